package httpapi

import (
	"time"

	"kekd/hsm/wire"
	"kekd/internal/health"
	"kekd/internal/kek"
	"kekd/internal/version"
)

// Status is the JSON of /status. kekctl reads it, so fields are added and never
// renamed. Nothing in it is secret.
type Status struct {
	// Time is when the answer was made, by this node's clock.
	Time    time.Time     `json:"time"`
	Health  health.Report `json:"health"`
	Version version.Info  `json:"version"`
	Seeds   Seeds         `json:"seeds"`
	// KeyRing is missing before the ring was read for the first time.
	KeyRing *KeyRing `json:"keyRing,omitempty"`
	// RingProblem is why the last look at the ring did not end with a key in use;
	// empty if it did.
	RingProblem string `json:"ringProblem,omitempty"`
	// Policy are the ways in which the ring is not as keyRing.policy demands.
	Policy []string `json:"policy,omitempty"`
	// Token is missing while no worker process has found the token.
	Token *Token `json:"token,omitempty"`
	// Node identifies this kekd's state directory, whatever address it is reached
	// by: 32 hexadecimal digits, drawn when the directory is first used.
	Node string `json:"node,omitempty"`
	// UseRecorded is since when this node records which key it uses. What it did
	// before is not known. Zero where it keeps no record.
	UseRecorded time.Time `json:"useRecorded,omitzero"`
	// Refresh is keyRing.refresh, and OutageGrace health.outageGrace, of this node.
	Refresh     Duration `json:"refresh,omitzero"`
	OutageGrace Duration `json:"outageGrace,omitzero"`
}

// Duration is a time.Duration that JSON spells with a unit, as in 1m30s.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	parsed, err := time.ParseDuration(string(b))
	*d = Duration(parsed)
	return err
}

// Seeds is how the KEK is used now, and the seed cache.
type Seeds struct {
	// Mode is seeded or direct.
	Mode string `json:"mode"`
	// Mechanism wraps the seed in use; empty without one.
	Mechanism string `json:"mechanism,omitempty"`
	// Created is when the seed in use was made; zero without one.
	Created time.Time `json:"created,omitzero"`
	// Uses is how often the seed in use encrypted, of MaxUses.
	Uses    uint64 `json:"uses"`
	MaxUses uint64 `json:"maxUses,omitempty"`
	// DirectUses is how often this node used the KEK in direct mode.
	DirectUses uint64 `json:"directUses,omitempty"`
	// Cached is how many unwrapped seeds are kept, of at most Capacity.
	Cached   int `json:"cached"`
	Capacity int `json:"capacity"`
	// Waiting is how many requests are with the HSM.
	Waiting int `json:"waiting"`
	// RememberedFailures is how many refusals of the HSM are remembered.
	RememberedFailures int `json:"rememberedFailures"`
	// BreakerOpen is whether requests that need the HSM fail at once.
	BreakerOpen bool `json:"breakerOpen"`
}

// KeyRing is the ring as it was last read off the token.
type KeyRing struct {
	Label string    `json:"label"`
	Read  time.Time `json:"read"`
	// Keys are all keys of the ring, oldest first.
	Keys []Key `json:"keys"`
}

// Key is one KEK.
type Key struct {
	// ID is the CKA_ID in hexadecimal.
	ID string `json:"id"`
	// KeyID is what Kubernetes calls the key.
	KeyID string `json:"keyID"`
	// KeyIDHash is the SHA-256 that metrics carry, of kekd and of kube-apiserver.
	KeyIDHash string `json:"keyIDHash"`
	// State is pending, primary, retired, disabled or scheduled-for-destruction.
	State string `json:"state"`
	// Proven: this node has encrypted and decrypted with the key, by Mechanism.
	Proven bool `json:"proven"`
	// Mechanism is how the key wraps; empty where nobody has tried.
	Mechanism string `json:"mechanism,omitempty"`
	// Problem is why this node could not use the key; empty if it could, or nobody
	// has tried.
	Problem string `json:"problem,omitempty"`
	// Activation is zero for a key that another tool made.
	Activation time.Time `json:"activation,omitzero"`
	// DestroyAfter is zero unless the key is scheduled for destruction.
	DestroyAfter time.Time `json:"destroyAfter,omitzero"`
	// LastUsed is when this node last encrypted under the key, or told
	// kube-apiserver to, by this node's clock. It may be later than the truth, never
	// earlier. Zero means not since Status.UseRecorded.
	LastUsed   time.Time      `json:"lastUsed,omitzero"`
	Attributes kek.Attributes `json:"attributes"`
}

// Token is what the HSM says of itself.
type Token struct {
	Label        string `json:"label"`
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
	Firmware     string `json:"firmware,omitempty"`
	// Library is the PKCS#11 module's description of itself.
	Library string `json:"library,omitempty"`
	Slot    uint   `json:"slot"`
	// WorkerPID is the process that holds the module; 0 while none runs.
	WorkerPID int `json:"workerPID,omitempty"`
}

// NewToken returns what /status shows of a token, without a worker process.
func NewToken(t wire.TokenInfo) Token {
	return Token{
		Label: t.Label, Serial: t.Serial, Manufacturer: t.Manufacturer, Model: t.Model, Firmware: t.Firmware,
		Library: t.Library, Slot: t.Slot,
	}
}

// NewKeyRing returns what /status shows of a ring that was read at this time. What
// was proven is for the caller to add.
func NewKeyRing(r *kek.Ring, read time.Time) *KeyRing {
	ring := &KeyRing{Label: r.Label, Read: read, Keys: make([]Key, 0, len(r.Keys))}
	for _, k := range r.Keys {
		ring.Keys = append(ring.Keys, Key{
			ID:           k.ID.String(),
			KeyID:        k.KeyID(),
			KeyIDHash:    kek.KeyIDHash(k.KeyID()),
			State:        k.State.String(),
			Activation:   k.Activation,
			DestroyAfter: k.DestroyAfter,
			Attributes:   k.Attributes,
		})
	}
	return ring
}
