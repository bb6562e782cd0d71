// Package evidence finds out whether a key is out of use. It asks everyone that could
// use the key; a witness that does not answer counts as using it:
//
//   - the token: is the key there, and what state does the ring give it?
//   - every node: which key it publishes, when it last used this one, what its clock
//     says, and when it last read the ring;
//   - every API server: which key each of its KMS providers uses;
//   - etcd, last: how many objects are under the key, and how many may be.
//
// A retired key is unused when it has been out of use everywhere for longer than the
// slowest witness can lag: the longest keyRing.refresh (a node notices its successor),
// one minute (kube-apiserver asks its plugin for the key_id), the largest difference
// between clocks, and a margin. A pending key is unused when no node has used it and
// every node's clock is still well before its activation.
package evidence

import (
	"context"
	"strings"
	"sync"
	"time"

	"kekd/internal/admin/nodes"
	"kekd/internal/cluster"
	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// Verdict is what is known of the use of a key.
type Verdict string

const (
	// Unused: the witness does not use the key and has not for long enough.
	Unused Verdict = "unused"
	// Used: the witness uses the key, or did a moment ago.
	Used Verdict = "used"
	// Unknown: the witness could not be asked, or its answer does not tell. It counts
	// as Used.
	Unknown Verdict = "unknown"
)

// Finding is what one witness knows.
type Finding struct {
	// Witness is "token", "node NAME", "apiserver URL", "etcd URL", or "nodes" and
	// "apiservers" for what concerns all of them.
	Witness string  `json:"witness"`
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail"`

	// wait is how long it takes until the witness may say otherwise without anybody
	// doing anything; zero where waiting does not help.
	wait time.Duration
}

// String is the finding in one line.
func (f Finding) String() string { return f.Witness + ": " + string(f.Verdict) + ": " + f.Detail }

// Evidence is what all witnesses know of a key.
type Evidence struct {
	KeyID string    `json:"keyID"`
	Taken time.Time `json:"taken"`
	// Verdict is Used if any witness says so, else Unknown if any does not know, else
	// Unused.
	Verdict  Verdict   `json:"verdict"`
	Findings []Finding `json:"findings"`
	// Key is the key as the token held it when it was asked. A change must be
	// conditional on it.
	Key kek.Info `json:"-"`
	// Wait is how much longer the key must stay out of use before the slowest witness
	// cannot be behind; zero if anything else says that the key is in use.
	Wait time.Duration `json:"-"`
	// Until is when the evidence for a pending key expires: from then on a node may
	// use the key. Zero for other keys.
	Until time.Time `json:"-"`
}

// Against returns the findings that are not Unused.
func (e Evidence) Against() []Finding {
	var against []Finding
	for _, f := range e.Findings {
		if f.Verdict != Unused {
			against = append(against, f)
		}
	}
	return against
}

// maxSummary bounds a summary, in bytes: the audit trail keeps no more of a text.
const maxSummary = 800

// Summary is the evidence in one line for the audit trail. The witnesses that disagree
// come first, in case the rest is cut off.
func (e Evidence) Summary() string {
	var b strings.Builder
	b.WriteString("evidence " + string(e.Verdict))
	for _, against := range []bool{true, false} {
		for _, f := range e.Findings {
			if (f.Verdict != Unused) == against {
				b.WriteString("; " + f.String())
			}
		}
	}
	if b.Len() <= maxSummary {
		return b.String()
	}
	return strings.ToValidUTF8(b.String()[:maxSummary], "") + "..."
}

// Question says which key is asked about.
type Question struct {
	// Key is the key as it was seen. Its ID and ring name it.
	Key kek.Info
	// Ring is the whole ring, to tell our KMS providers from others; nil takes the
	// ring that the token holds.
	Ring *kek.Ring
	// Pending: the key must never have been used. Otherwise it must be out of use.
	Pending bool
	// Made is when the key was made, by this machine's clock; zero if that is not known.
	// A node that has only begun to record its use since then may have used the key before
	// its record was lost.
	Made time.Time
}

// Token reads the ring.
type Token interface {
	// Ring returns the ring with the states that this machine's clock gives the keys.
	Ring(ctx context.Context) (*kek.Ring, error)
}

// Node is a running kekd.
type Node = nodes.Node

// APIServer is one kube-apiserver.
type APIServer interface {
	Name() string
	KeyInUse(ctx context.Context) (cluster.KeyUse, error)
}

// Etcd counts the objects that etcd holds.
type Etcd interface {
	Name() string
	Take(ctx context.Context, o inventory.Options) (*inventory.Report, error)
}

// Witnesses are all that could know of a key's use. What is missing here is reported
// as unknown.
type Witnesses struct {
	Token      Token
	Nodes      []Node
	APIServers []APIServer
	Etcd       Etcd
	// Kekds is how many kekds the cluster is known to run, at least. There must be one
	// for each API server anyway.
	Kekds int
	// Named: the administrator has named the API servers, so there are no others. Listed
	// is how many the cluster lists then.
	Named  bool
	Listed int
	// Missing are findings about witnesses that were not found at all.
	Missing []Finding
	// Refresh is keyRing.refresh of this machine.
	Refresh time.Duration
	Clock   func() time.Time
}

const (
	// apiServerPoll is how often kube-apiserver asks its plugin for the key_id.
	apiServerPoll = time.Minute
	// slack is what is added to every lag: for a node's look at the ring, and a clock
	// that drifts.
	slack = 10 * time.Second
	// pendingMargin is what is left before the activation of a pending key, beside
	// keyRing.refresh, when it is called unused.
	pendingMargin = 5 * time.Second
	// again is when to ask an API server again that still uses the key.
	again = 5 * time.Second
	// serverTimeout bounds the questions to one API server.
	serverTimeout = 20 * time.Second
)

// Gather asks all witnesses: the token, nodes and API servers at the same time, and
// etcd after them, so that what they wrote until they were asked is counted. Its
// error is ctx's: whatever else fails is a finding.
func Gather(ctx context.Context, w Witnesses, q Question) (Evidence, error) {
	e := Evidence{KeyID: q.Key.KeyID(), Taken: w.Clock(), Key: q.Key}
	var (
		asked   sync.WaitGroup
		token   Finding
		ring    *kek.Ring
		reports []nodes.Report
		servers = make([]serverReport, len(w.APIServers))
	)
	asked.Go(func() { token, ring = askToken(ctx, w, q, &e) })
	asked.Go(func() { reports = nodes.AskAll(ctx, w.Nodes) })
	for i, s := range w.APIServers {
		asked.Go(func() { servers[i] = askServer(ctx, s) })
	}
	asked.Wait()
	if q.Ring == nil {
		q.Ring = ring
	}
	e.Findings = append(e.Findings, token)
	e.Findings = append(e.Findings, w.Missing...)
	now := w.Clock()
	e.addNodes(w, q, reports, now)
	e.addServers(w, q, servers, reports)
	e.Findings = append(e.Findings, askEtcd(ctx, w, q))
	if err := context.Cause(ctx); err != nil {
		return e, err
	}
	e.conclude()
	return e, nil
}

// conclude derives the verdict from the findings.
func (e *Evidence) conclude() {
	e.Verdict, e.Wait = Unused, 0
	helps := true
	for _, f := range e.Against() {
		if e.Verdict == Unused || f.Verdict == Used {
			e.Verdict = f.Verdict
		}
		helps = helps && f.wait > 0
		e.Wait = max(e.Wait, f.wait)
	}
	if !helps {
		e.Wait = 0
	}
}
