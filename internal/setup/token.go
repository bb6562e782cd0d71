// Package setup turns a configuration into the parts that kekd and kekctl both
// build from it.
package setup

import (
	"fmt"

	"go.uber.org/zap"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/secret"
)

// Token returns what hsm.New needs. The observer may be nil.
func Token(cfg config.Config, latch hsm.LatchStore, log *zap.Logger, observer hsm.Observer) (hsm.Config, error) {
	selector, err := Selector(cfg.HSM.Token)
	if err != nil {
		return hsm.Config{}, err
	}
	mechanism := string(cfg.HSM.Mechanism)
	if cfg.HSM.Mechanism == config.MechanismAuto {
		mechanism = ""
	}
	return hsm.Config{
		Module:           cfg.HSM.Module,
		InitArgs:         cfg.HSM.InitArgs,
		Env:              cfg.HSM.Env,
		Token:            selector,
		PIN:              PINSource(cfg.HSM),
		Sessions:         cfg.HSM.Sessions,
		CallTimeout:      cfg.HSM.CallTimeout,
		Mechanism:        mechanism,
		AllowFinalPINTry: cfg.HSM.AllowFinalPINTry,
		Ring:             cfg.KeyRing.Label,
		Latch:            latch,
		Logger:           log.Named("hsm"),
		Observer:         observer,
	}, nil
}

// Selector returns the token that the configuration names.
func Selector(t config.Token) (wire.Selector, error) {
	if t.URI == "" {
		return wire.Selector{Label: t.Label, Serial: t.Serial}, nil
	}
	s, err := hsm.ParseURI(t.URI)
	if err != nil {
		return wire.Selector{}, fmt.Errorf("hsm.token.uri: %w; for example pkcs11:token=kekd;serial=0123", err)
	}
	return s, nil
}

// PINSource returns where the PIN comes from.
func PINSource(h config.HSM) hsm.PINSource {
	if h.PINCredential != "" {
		return secret.CredentialSource{Name: h.PINCredential}
	}
	return secret.FileSource{Path: h.PINFile, AllowOpen: h.AllowOpenPINFile}
}

// Primary returns the CKA_ID of keyRing.primary, empty if none is set.
func Primary(k config.KeyRing) (kek.ID, error) {
	if k.Primary == "" {
		return "", nil
	}
	id, err := kek.ParseID(k.Primary)
	if err != nil {
		return "", fmt.Errorf("keyRing.primary: %w; kekctl key list shows the ids", err)
	}
	return id, nil
}
