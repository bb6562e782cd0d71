package evidence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kekd/internal/cluster"
	"kekd/internal/httpapi"
	"kekd/internal/inventory"
	"kekd/internal/kek"
)

var (
	old  = kek.Info{Ring: "r", ID: "\x01", CheckValue: kek.CheckValue{1}, State: kek.Retired}
	next = kek.Info{Ring: "r", ID: "\x02", CheckValue: kek.CheckValue{2}, State: kek.Primary}
)

type token struct{}

func (token) Ring(context.Context) (*kek.Ring, error) {
	return &kek.Ring{Label: "r", Keys: []kek.Info{old, next}}, nil
}

// node answers what it is told to, half a second off.
type node struct {
	name   string
	status *httpapi.Status
	ahead  time.Duration
}

func (n node) Name() string { return n.name }

func (n node) Ask(context.Context) (s *httpapi.Status, ahead, uncertainty time.Duration, err error) {
	if n.status == nil {
		return nil, 0, 0, errors.New("refused")
	}
	return n.status, n.ahead, time.Second / 2, nil
}

type server struct {
	use cluster.KeyUse
	err error
}

func (server) Name() string { return "https://a" }

func (s server) KeyInUse(context.Context) (cluster.KeyUse, error) { return s.use, s.err }

type etcd struct{}

func (etcd) Name() string { return "https://e" }

func (etcd) Take(context.Context, inventory.Options) (*inventory.Report, error) {
	return &inventory.Report{}, nil
}

func providers(hashes ...string) cluster.KeyUse {
	var use cluster.KeyUse
	for i, h := range hashes {
		use.Providers = append(use.Providers, cluster.ProviderUse{Name: fmt.Sprint("p", i), Status: h})
	}
	return use
}

// status is that of a node that last used the old key so long ago.
func status(ago time.Duration, change ...func(*httpapi.Status)) *httpapi.Status {
	now := time.Now()
	s := &httpapi.Status{
		Time: now, Node: strings.Repeat("a", 32), UseRecorded: now.Add(-time.Hour),
		KeyRing: httpapi.NewKeyRing(&kek.Ring{Label: "r", Keys: []kek.Info{old, next}}, now),
	}
	s.Health.KeyID = next.KeyID()
	s.KeyRing.Keys[0].LastUsed = now.Add(-ago)
	for _, c := range change {
		c(s)
	}
	return s
}

func good() Witnesses {
	return Witnesses{
		Token: token{}, Nodes: []Node{node{name: "n", status: status(10 * time.Minute)}},
		APIServers: []APIServer{server{use: providers(kek.KeyIDHash(next.KeyID()))}}, Etcd: etcd{},
		Refresh: 10 * time.Second, Clock: time.Now,
	}
}

func TestGather(t *testing.T) {
	nodes := func(all ...*httpapi.Status) func(*Witnesses) {
		return func(w *Witnesses) {
			w.Nodes = nil
			for i, s := range all {
				w.Nodes = append(w.Nodes, node{name: fmt.Sprint("n", i), status: s})
			}
		}
	}
	api := func(use cluster.KeyUse, err error) func(*Witnesses) {
		return func(w *Witnesses) { w.APIServers = []APIServer{server{use, err}} }
	}
	outside := kek.KeyIDHash("other/01/abcdef")
	tests := []struct {
		name string
		set  func(*Witnesses)
		want Verdict
		// says is a part of what a finding says.
		says string
		wait time.Duration
	}{
		{"all agree", func(*Witnesses) {}, Unused, "etcd https://e: unused: no object of 0", 0},
		{"nobody asks the token", func(w *Witnesses) { w.Token = nil }, Unknown, "token: unknown: was not asked", 0},
		{"no etcd", func(w *Witnesses) { w.Etcd = nil }, Unknown, "etcd: unknown: could not be asked", 0},
		{"no node", nodes(), Unknown, "nodes: unknown: no kekd is known", 0},
		{"no API server", func(w *Witnesses) { w.APIServers = nil }, Unknown, "apiservers: unknown: none is known", 0},
		{"a witness that was not found", func(w *Witnesses) {
			w.Nodes, w.Missing = nil, []Finding{{Witness: "nodes", Verdict: Unknown, Detail: "no permission"}}
		}, Unknown, "nodes: unknown: no permission", 0},
		{"more kekds in the cluster", func(w *Witnesses) { w.Kekds = 3 }, Unknown, "the cluster runs 3 kekds and only 1 were asked", 0},
		{"more API servers in the cluster", func(w *Witnesses) { w.Listed = 2 }, Unknown, "apiservers: unknown: the cluster lists 2 and only 1 are named", 0},
		{"more kekds than API servers that are listed", func(w *Witnesses) {
			w.Nodes = append(w.Nodes, node{name: "n2", status: status(10*time.Minute, func(s *httpapi.Status) { s.Node = "b" })})
		}, Unknown, "apiservers: unknown: 2 kekds run, and the cluster lists only 1 API servers: one may be down; name every API server with --apiserver or cluster.apiServers", 0},
		{"more kekds than API servers that are named", func(w *Witnesses) {
			w.Nodes = append(w.Nodes, node{name: "n2", status: status(10*time.Minute, func(s *httpapi.Status) { s.Node = "b" })})
			w.Named, w.Listed = true, 1
		}, Unused, "node n2: unused", 0},
		{"one kekd by two addresses", func(w *Witnesses) {
			w.Nodes = append(w.Nodes, w.Nodes[0])
			w.APIServers = append(w.APIServers, w.APIServers[0])
		}, Unknown, "2 API servers and only 1 kekds", 0},
		{"no use since the record began, a while ago", nodes(status(0, func(s *httpapi.Status) { s.KeyRing.Keys[0].LastUsed = time.Time{} })), Unused, "has not used it since it began to record 1h", 0},
		{"no use since the record began, just now", nodes(status(0, func(s *httpapi.Status) {
			s.KeyRing.Keys[0].LastUsed, s.UseRecorded = time.Time{}, time.Now().Add(-time.Second)
		})), Used, "began to record 1s ago", 80 * time.Second},
		{"used a minute ago", nodes(status(time.Minute)), Used, "last used it 1m0s ago", 21 * time.Second},
		{"a node with a long refresh", nodes(status(2*time.Minute, func(s *httpapi.Status) { s.Refresh = httpapi.Duration(5 * time.Minute) })), Used, "must be out of use for 6m", 4*time.Minute + 11*time.Second},
		{"lagging, and another in use", nodes(status(time.Minute), status(0, func(s *httpapi.Status) { s.Node, s.Health.KeyID = "b", old.KeyID() })), Used, "node n1: used: encrypts under it", 0},
		{"published with no check value", nodes(status(time.Hour, func(s *httpapi.Status) { s.Health.KeyID = "r/01/000000" })), Used, "encrypts under it", 0},
		{"another ring", nodes(status(time.Hour, func(s *httpapi.Status) { s.KeyRing.Label = "q" })), Unknown, `uses the ring "q", not "r"`, 0},
		{"no ring yet", nodes(status(time.Hour, func(s *httpapi.Status) { s.KeyRing, s.RingProblem = nil, "no\x1btoken" })), Unknown, "has not read the key ring yet: no\ufffdtoken", 0},
		{"another token", nodes(status(time.Hour, func(s *httpapi.Status) { s.KeyRing.Keys = s.KeyRing.Keys[1:] })), Unknown, "does not see the key", 0},
		{"primary there", nodes(status(time.Hour, func(s *httpapi.Status) { s.KeyRing.Keys[0].State = "primary" })), Used, "holds it as the primary", 0},
		{"no KMS provider", api(cluster.KeyUse{}, fmt.Errorf("ask: %w", cluster.ErrNoKMS)), Unused, "has no KMS v2 provider", 0},
		{"no answer of a provider", api(providers(), nil), Unknown, "has answered yet", 0},
		{"another plugin", api(providers(outside), nil), Unused, "does not use the ring", 0},
		{"two providers, one behind", api(providers(kek.KeyIDHash(next.KeyID()), kek.KeyIDHash(old.KeyID())), nil), Used, `encrypts under it (KMS provider "p1")`, again},
		{"behind, with no check value", api(providers(kek.KeyIDHash("r/01/000000")), nil), Used, "encrypts under it", again},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := good()
			tt.set(&w)
			e, err := Gather(t.Context(), w, Question{Key: old})
			if err != nil || e.Verdict != tt.want {
				t.Fatalf("%v, %v, want %s", e, err, tt.want)
			}
			if !slices.ContainsFunc(e.Findings, func(f Finding) bool { return strings.Contains(f.String(), tt.says) }) {
				t.Errorf("the findings are %v, want %q", e.Findings, tt.says)
			}
			if (tt.want == Unused) != (len(e.Against()) == 0) {
				t.Errorf("against: %v", e.Against())
			}
			if (e.Wait - tt.wait).Abs() > time.Second {
				t.Errorf("wait %v, want %v", e.Wait, tt.wait)
			}
		})
	}
}

// TestPendingRecord: a node that lost its record may have used a pending key before.
func TestPendingRecord(t *testing.T) {
	tests := []struct {
		name string
		// recorded and made are how long ago; 0 means that it is not known.
		recorded, made time.Duration
		ahead          time.Duration
		want           Verdict
		wait           time.Duration
	}{
		{"a record from before the key", 40 * time.Second, 30 * time.Second, 0, Unused, 0},
		{"a record from after the key", 20 * time.Second, 30 * time.Second, 0, Unknown, 61 * time.Second},
		{"a record from before the key, as far as clocks tell", 30 * time.Second, 30 * time.Second, 0, Unknown, 51 * time.Second},
		{"a young record, and when the key was made is not known", 20 * time.Second, 0, 0, Unused, 0},
		{"a record that is old enough", 2 * time.Minute, 3 * time.Minute, 0, Unused, 0},
		{"the clock is a minute ahead", 30 * time.Second, 40 * time.Second, time.Minute, Unknown, 111 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				now := time.Now()
				pending := kek.Info{Ring: "r", ID: "\x03", State: kek.Pending, Activation: now.Add(10 * time.Minute)}
				q := Question{Key: pending, Pending: true}
				if tt.made > 0 {
					q.Made = now.Add(-tt.made)
				}
				w := good()
				w.Token = ring{pending}
				w.Nodes = []Node{node{"n", status(time.Hour, func(s *httpapi.Status) { s.UseRecorded = now.Add(tt.ahead - tt.recorded) }), tt.ahead}}
				e, err := Gather(t.Context(), w, q)
				if err != nil || e.Verdict != tt.want || (e.Wait-tt.wait).Abs() > time.Second {
					t.Errorf("%v, %v, wait %v; want %s, wait %v", e, err, e.Wait, tt.want, tt.wait)
				}
			})
		})
	}
}

// ring is a token with the given keys.
type ring []kek.Info

func (r ring) Ring(context.Context) (*kek.Ring, error) { return &kek.Ring{Label: "r", Keys: r}, nil }

// Evidence for a pending key expires before any clock comes near the activation.
func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pending := kek.Info{Ring: "r", ID: "\x03", State: kek.Pending, Activation: time.Now().Add(10 * time.Minute)}
		w := good()
		w.Nodes = []Node{
			node{"ahead", status(time.Hour), time.Minute},
			node{"behind", status(time.Hour, func(s *httpapi.Status) { s.Node, s.Refresh = "b", httpapi.Duration(20*time.Second) }), -time.Hour},
		}
		e, err := Gather(t.Context(), w, Question{Key: pending, Pending: true})
		if want := pending.Activation.Add(-20*time.Second - 5*time.Second - time.Minute - time.Second/2); err != nil || !e.Until.Equal(want) {
			t.Errorf("until %v, want %v (%v)", e.Until, want, err)
		}
	})
}

func TestGatherEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Gather(ctx, good(), Question{Key: old}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

// What speaks against the key is at the beginning, however much there is to say.
func TestSummary(t *testing.T) {
	e := Evidence{Verdict: Used}
	for i := range 100 {
		e.Findings = append(e.Findings, Finding{Witness: fmt.Sprint("node ", i), Verdict: Unused, Detail: "used it a long time ago, ä"})
	}
	e.Findings = append(e.Findings, Finding{Witness: "etcd", Verdict: Used, Detail: "7 objects"})
	s := e.Summary()
	if !strings.HasPrefix(s, "evidence used; etcd: used: 7 objects; node 0: unused: ") || len(s) > maxSummary+3 || !strings.HasSuffix(s, "...") {
		t.Errorf("%d bytes: %s", len(s), s)
	}
}
