package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/httpapi"
	"kekd/internal/kek"
	"kekd/internal/version"
)

func newKeyExport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "export-attributes [ID]",
		Short: "Print as JSON what the token says of the keys, for auditors",
		Long: `Print as JSON, for all keys of the ring or one, every attribute that shows where a
key came from and what may be done with it, as the token tells it now; null where it
does not tell. What is not as it should be is listed under findings. Nothing is
changed on the token, and no key leaves it.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.keyExport(cmd.Context(), strings.Join(args, ""))
		},
	}
}

// exported is what export-attributes prints. Fields are added and never renamed.
type exported struct {
	Time    time.Time     `json:"time"`
	Version version.Info  `json:"version"`
	Token   httpapi.Token `json:"token"`
	Ring    string        `json:"ring"`
	Keys    []exportedKey `json:"keys"`
	// Findings say in sentences what is not as it should be.
	Findings []string `json:"findings"`
}

// exportedKey is one key. A nil pointer means that the token does not tell, or that
// there is nothing to tell.
type exportedKey struct {
	ID    string `json:"id"`
	KeyID string `json:"keyID"`
	// State is nil where the ring is unclear.
	State        *string    `json:"state"`
	Activation   *time.Time `json:"activation"`
	DestroyAfter *time.Time `json:"destroyAfter"`
	CheckValue   *string    `json:"checkValue"`
	Label        string     `json:"label"`
	KeyType      string     `json:"keyType"`
	Bits         *int       `json:"bits"`
	// HMACKey: a key for aes-cbc-hmac stands beside it.
	HMACKey bool `json:"hmacKey"`

	Local            *bool   `json:"local"`
	KeyGenMechanism  *string `json:"keyGenMechanism"`
	Sensitive        *bool   `json:"sensitive"`
	AlwaysSensitive  *bool   `json:"alwaysSensitive"`
	Extractable      *bool   `json:"extractable"`
	NeverExtractable *bool   `json:"neverExtractable"`

	Encrypt *bool `json:"encrypt"`
	Decrypt *bool `json:"decrypt"`
	Wrap    *bool `json:"wrap"`
	Unwrap  *bool `json:"unwrap"`
	Sign    *bool `json:"sign"`
	Verify  *bool `json:"verify"`
	Derive  *bool `json:"derive"`

	Token       *bool `json:"token"`
	Private     *bool `json:"private"`
	Modifiable  *bool `json:"modifiable"`
	Destroyable *bool `json:"destroyable"`
	// AllowedMechanisms is empty where nothing is restricted.
	AllowedMechanisms []string `json:"allowedMechanisms"`

	// Provenance is there for a key that was imported on this node.
	Provenance *provenance `json:"provenance"`
}

func (a *app) keyExport(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.close()
	token, err := s.token.Info(ctx)
	if err != nil {
		return err
	}
	ring, _, ringErr := s.ring(ctx)
	if ring == nil && !isAny(ringErr, kek.ErrAmbiguous) {
		return ringErr
	}
	keys, err := s.token.Evidence(ctx)
	if err != nil {
		return err
	}
	imported, err := loadProvenance(s.store)
	if err != nil {
		return err
	}
	out := exported{
		Time: time.Now().UTC(), Version: version.Read(), Ring: s.cfg.KeyRing.Label,
		Token: httpapi.NewToken(token),
		Keys:  []exportedKey{}, Findings: []string{},
	}
	if ringErr != nil {
		out.Findings = append(out.Findings, ringErr.Error())
	}
	for _, k := range keys {
		if name != "" && name != k.Info.ID.String() && name != k.Info.KeyID() {
			continue
		}
		e := newKeyEvidence(k)
		if known, ok := ring.Lookup(k.Info.ID); ok {
			e.State = new(known.State.String())
		}
		if p, ok := imported.Keys[e.ID]; ok {
			e.Provenance = &p
		}
		out.Keys = append(out.Keys, e)
		out.Findings = append(out.Findings, e.findings()...)
	}
	if name != "" && len(out.Keys) == 0 {
		return codeError{exitFailed, fmt.Sprintf("the ring %q has no key %s; kekctl key list shows its keys", out.Ring, name)}
	}
	return a.printJSON(out)
}

func newKeyEvidence(k hsm.Evidence) exportedKey {
	at := k.Info.Attributes
	e := exportedKey{
		ID: k.Info.ID.String(), KeyID: k.Info.KeyID(), Label: at.Label, KeyType: "AES", HMACKey: k.Key.HMAC,
		Local: at.Local, Sensitive: at.Sensitive, AlwaysSensitive: at.AlwaysSensitive,
		Extractable: at.Extractable, NeverExtractable: at.NeverExtractable,
		Encrypt: at.Encrypt, Decrypt: at.Decrypt, Wrap: k.Wrap, Unwrap: k.Unwrap, Sign: k.Sign, Verify: k.Verify, Derive: k.Derive,
		Token: k.Token, Private: k.Private, Modifiable: k.Modifiable, Destroyable: k.Destroyable,
	}
	if at.Bits != 0 {
		e.Bits = &at.Bits
	}
	if !k.Info.Activation.IsZero() {
		e.Activation = &k.Info.Activation
	}
	if !k.Info.DestroyAfter.IsZero() {
		e.DestroyAfter = &k.Info.DestroyAfter
	}
	if k.Info.CheckValue != (kek.CheckValue{}) {
		e.CheckValue = new(k.Info.CheckValue.String())
	}
	if k.KeyGenMechanism != nil {
		e.KeyGenMechanism = new(wire.MechanismName(*k.KeyGenMechanism))
	}
	if k.AllowedMechanisms != nil {
		e.AllowedMechanisms = []string{}
		for _, m := range k.AllowedMechanisms {
			e.AllowedMechanisms = append(e.AllowedMechanisms, wire.MechanismName(m))
		}
	}
	return e
}

// findings says what an auditor should ask about.
func (e exportedKey) findings() []string {
	var out []string
	is := func(b *bool, v bool) bool { return b != nil && *b == v }
	say := func(format string, args ...any) { out = append(out, "key "+e.ID+": "+fmt.Sprintf(format, args...)) }
	switch {
	case is(e.Local, true):
	case e.Provenance != nil:
		say("it was imported, not generated on the token (CKA_LOCAL is not true); see its provenance")
	default:
		say("the token does not say that it generated the key (CKA_LOCAL is not true): it was imported, or this token never says so")
	}
	switch {
	case is(e.Extractable, true):
		say("it can be taken out of the token, wrapped (CKA_EXTRACTABLE is true)")
	case e.Extractable == nil:
		say("the token does not tell whether the key can leave it (CKA_EXTRACTABLE)")
	case is(e.NeverExtractable, false):
		say("it was outside the token, or could have been taken out, before (CKA_NEVER_EXTRACTABLE is false)")
	}
	switch {
	case is(e.Sensitive, false):
		say("it can be read in clear (CKA_SENSITIVE is false)")
	case e.Sensitive == nil:
		say("the token does not tell whether the key can be read (CKA_SENSITIVE)")
	case is(e.AlwaysSensitive, false):
		say("it could be read in clear before, as every imported key (CKA_ALWAYS_SENSITIVE is false)")
	}
	if e.Bits != nil && *e.Bits != 256 {
		say("it has %d bits, not 256", *e.Bits)
	}
	var more []string
	for _, right := range []struct {
		name string
		has  *bool
	}{{"wrap", e.Wrap}, {"unwrap", e.Unwrap}, {"sign", e.Sign}, {"verify", e.Verify}, {"derive", e.Derive}} {
		if is(right.has, true) {
			more = append(more, right.name)
		}
	}
	if len(more) > 0 {
		say("it may also be used to %s; a KEK needs no more than encrypt and decrypt", strings.Join(more, ", "))
	}
	if is(e.Private, false) {
		say("it can be used without a login (CKA_PRIVATE is false)")
	}
	return out
}
