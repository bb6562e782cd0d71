package main

import (
	"fmt"
	"time"

	"kekd/hsm/wire"
	"kekd/internal/kek"
	"kekd/internal/state"
)

// provenance is where an imported key came from, as far as this node was told.
type provenance struct {
	Time time.Time `json:"time"`
	// UID is the user who ran the import, and SudoUser who he was before sudo, as
	// sudo says.
	UID      int    `json:"uid"`
	SudoUser string `json:"sudoUser,omitempty"`
	// Source is what --source said.
	Source string            `json:"source,omitempty"`
	Method wire.ImportMethod `json:"method"`
	Hash   wire.OAEPHash     `json:"hash,omitempty"`
	// WrappingKey is the CKA_ID of the key that unwrapped, and Fingerprint the
	// SHA-256 of its SubjectPublicKeyInfo, for a one-time key pair.
	WrappingKey string `json:"wrappingKey"`
	Fingerprint string `json:"fingerprint,omitempty"`
	// WrappedSHA256 is that of the file.
	WrappedSHA256 string `json:"wrappedSHA256"`
	CheckValue    string `json:"checkValue"`
	// Confirmed: the check value is the one that --check-value gave.
	Confirmed   bool   `json:"confirmed"`
	TokenSerial string `json:"tokenSerial"`
}

// provenanceName is where the state directory keeps it.
const provenanceName = "provenance"

// provenanceFile is the JSON of that file: by CKA_ID in hexadecimal.
type provenanceFile struct {
	Keys map[string]provenance `json:"keys"`
}

func loadProvenance(store *state.Dir) (provenanceFile, error) {
	file := provenanceFile{Keys: map[string]provenance{}}
	_, err := store.Load(provenanceName, &file)
	return file, err
}

// saveProvenance adds what is known of one key.
func saveProvenance(store *state.Dir, id kek.ID, p provenance) error {
	file, err := loadProvenance(store)
	if err != nil {
		return err
	}
	file.Keys[id.String()] = p
	if err := store.Save(provenanceName, file); err != nil {
		return fmt.Errorf("record where key %s came from: %w", id, err)
	}
	return nil
}
