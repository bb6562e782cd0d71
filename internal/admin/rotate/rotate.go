// Package rotate takes a cluster from one key-encryption key to the next, as a machine
// of steps that can be interrupted anywhere and run again. It asks every witness before
// it creates a key, and calls nothing done that it has not read back.
package rotate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kekd/internal/admin/evidence"
	"kekd/internal/admin/newkey"
	"kekd/internal/admin/nodes"
	"kekd/internal/cluster"
	"kekd/internal/config"
	"kekd/internal/kek"
)

// Server is a kube-apiserver.
type Server interface {
	Name() string
	KeyInUse(ctx context.Context) (cluster.KeyUse, error)
}

// Member is a member of etcd.
type Member interface {
	Name() string
	// Reach fails where the member does not answer.
	Reach(ctx context.Context) error
}

// Token is the key ring on the token.
type Token interface {
	newkey.Token
	// Create makes a key with this CKA_ID and tests it.
	Create(ctx context.Context, id kek.ID) (kek.Info, kek.Mechanism, error)
}

// Checked is what a check of the writers found.
type Checked struct {
	// Resources belong to the ring.
	Resources []string
	// Objects is how many of their objects are under a key of the ring.
	Objects int64
	// Writes is how many objects were written and read back.
	Writes int
	// Unchecked are the resources of which no object could be written.
	Unchecked []string
}

// Rewrapped is what a re-encryption did.
type Rewrapped struct {
	// Found were not under the primary, and Left are not at the end.
	Found, Left int64
	// Failures name objects that are left, and why.
	Failures []string
	// Report is for the JSON output.
	Report any
}

// Uses is how many objects need a key, and how many may.
type Uses struct{ Objects, Unclear int64 }

// Objects is what etcd holds, through the API servers that write it.
type Objects interface {
	// Check only reads. It fails if a resource has left the ring.
	Check(ctx context.Context, keyID string) (Checked, error)
	// CheckWriters fails unless every API server writes every resource of the ring under
	// this key. It knows which resources belong to the ring, and fails if one has left it.
	CheckWriters(ctx context.Context, keyID string) (Checked, error)
	// Rewrap brings every object under this key, and reads each back.
	Rewrap(ctx context.Context, keyID string) (Rewrapped, error)
	// Uses counts the objects under each key of the ring.
	Uses(ctx context.Context, ring *kek.Ring) (map[kek.ID]Uses, error)
}

// Memory keeps an unfinished rotation.
type Memory interface {
	Load(name string, v any) (bool, error)
	Save(name string, v any) error
	Remove(name string) error
}

// Config is what a rotation needs. All fields are required, but for the flags.
type Config struct {
	// IfDue does nothing before the primary is as old as Policy.MaxAge.
	IfDue bool
	// Delay is when the key activates, if DelayGiven.
	Delay      time.Duration
	DelayGiven bool

	Policy config.KeyPolicy
	// Refresh is this node's keyRing.refresh.
	Refresh time.Duration
	// Timeout bounds each wait for the HSM.
	Timeout time.Duration

	// Doctor checks this node: how many checks there were, and those that failed.
	Doctor  func(ctx context.Context) (checks int, failed []string)
	Token   Token
	Nodes   []nodes.Node
	Servers []Server
	Members []Member
	Objects Objects
	// Evidence asks every witness about a retired key.
	Evidence func(ctx context.Context, key kek.Info, ring *kek.Ring) (evidence.Evidence, error)
	// Cancel removes a pending key that was made at this time, unless a witness
	// disagrees.
	Cancel  func(ctx context.Context, key kek.Info, made time.Time) error
	Memory  Memory
	Confirm func(plan string) error
	// Note hears of what happens. Several goroutines may call it at once.
	Note  func(line string)
	Clock func() time.Time
}

// MemoryName is the name under which an unfinished rotation is kept.
const MemoryName = "rotation"

// journey is what is kept of an unfinished rotation. All else shows on the token, the
// nodes and in etcd.
type journey struct {
	// Key is the CKA_ID, in hexadecimal, of the key that takes over.
	Key string `json:"key"`
	// Created: by the rotation, which may cancel it again.
	Created bool      `json:"created"`
	Begun   time.Time `json:"begun"`
}

// ErrNotDue ends a rotation with IfDue that has nothing to do.
var ErrNotDue = errors.New("the primary is not due")

// Key names a key in the result.
type Key struct {
	ID    string `json:"id"`
	KeyID string `json:"keyID"`
	// Against says why a key is kept.
	Against []string `json:"against,omitempty"`
}

// Result is what a rotation did.
type Result struct {
	KeyID  string `json:"keyID"`
	Rewrap any    `json:"rewrap"`
	// Retirable are the keys that nothing needs any more, by the evidence of every
	// witness.
	Retirable []Key `json:"retirable"`
	// Kept are the other retired keys.
	Kept []Key `json:"kept"`
	// Resumed is when the rotation began that this run finished; zero for one of its own.
	Resumed time.Time `json:"resumed,omitzero"`
}

// run is a rotation in progress.
type run struct {
	Config

	// step is the number and name of the step in progress.
	number int
	name   string

	// ahead and behind are the largest differences between a node's clock and ours that
	// were seen, uncertainty included.
	ahead, behind time.Duration
	// fastest is the node whose clock is ahead most.
	fastest nodes.Report
	// published are the keys that nodes encrypt under.
	published []kek.ID

	// view is the ring as step 3 found it.
	view newkey.View
	// begun is the rotation that was begun earlier.
	begun journey
	// key is the one that takes over.
	key kek.Info
	// created: by this rotation, which may cancel it again.
	created bool
	// finishing: an earlier run has created the key, and it is the primary already.
	finishing bool

	result Result
}

// step is one step of a rotation. Each finds out how far things are, so that
// it can be run again.
type step struct {
	name string
	do   func(*run, context.Context) error
}

func steps() []step {
	return []step{
		{"doctor", (*run).doctor},
		{"reach", (*run).reach},
		{"writers", (*run).writers},
		{"key", (*run).newKey},
		{"nodes", (*run).nodes},
		{"activation", (*run).activation},
		{"apiservers", (*run).apiServers},
		{"rewrap", (*run).rewrap},
		{"inventory", (*run).inventory},
		{"retire", (*run).retire},
	}
}

// Run rotates. It ends with ErrNotDue where nothing is to be done.
func Run(ctx context.Context, cfg Config) (Result, error) {
	r := &run{Config: cfg, result: Result{Retirable: []Key{}, Kept: []Key{}}}
	for i, s := range steps() {
		r.number, r.name = i+1, s.name
		if err := s.do(r, ctx); err != nil {
			if ctx.Err() != nil {
				r.interrupted()
			}
			return r.result, err
		}
	}
	return r.result, nil
}

// say prints a line of the step in progress.
func (r *run) say(format string, args ...any) {
	r.Note(fmt.Sprintf("%d %-10s  %s", r.number, r.name, fmt.Sprintf(format, args...)))
}

func (r *run) interrupted() {
	if r.key.ID == "" {
		r.Note("Interrupted. No key was created.")
		return
	}
	r.Note(fmt.Sprintf("Interrupted. Nothing is lost: run kekctl rotate again to continue with key %s.", r.key.ID))
}

// keep remembers the rotation, so that another run continues it. It stays as old as the
// run that created the key.
func (r *run) keep(id kek.ID) error {
	if !r.created || r.begun.Key != id.String() {
		r.begun = journey{Key: id.String(), Created: r.created, Begun: r.Clock().UTC().Truncate(time.Second)}
	}
	return r.Memory.Save(MemoryName, r.begun)
}
