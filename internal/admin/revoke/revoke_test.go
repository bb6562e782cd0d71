package revoke_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"kekd/internal/admin/admintest"
	"kekd/internal/admin/nodes"
	"kekd/internal/admin/revoke"
	"kekd/internal/kek"
)

// emergency is a revocation in a world.
type emergency struct {
	*admintest.World
	lines admintest.Lines
	// kekds is how many the cluster runs, as far as is known.
	kekds int
}

func (e *emergency) run(ctx context.Context, id kek.ID) (revoke.Result, error) {
	e.Reset()
	cfg := revoke.Config{
		ID: id, Token: admintest.Token{World: e.World}, Refresh: admintest.Refresh, Timeout: 30 * time.Second, Kekds: e.kekds,
		Note: e.lines.Add, Clock: time.Now,
	}
	for _, n := range e.Nodes {
		cfg.Nodes = append(cfg.Nodes, nodes.Node(n))
	}
	return revoke.Run(ctx, cfg)
}

// TestNotAllNodesAreKnown: nodes that were not watched may use the key.
func TestNotAllNodesAreKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &emergency{World: admintest.New(t, 2), kekds: 3}
		result, err := e.run(t.Context(), e.first())
		if err == nil || !strings.Contains(err.Error(), "2 node(s) refuse it, and the cluster runs 3") || result.Problem != err.Error() || result.Revoked == "" {
			t.Errorf("%v: %+v", err, result)
		}
	})
}

func (e *emergency) text() string { return e.lines.Text() }

// first is the world's first key.
func (e *emergency) first() kek.ID { return e.Ring().Keys[0].ID }

// settle lets all nodes look at the ring.
func (e *emergency) settle() {
	for _, n := range e.Nodes {
		n.Encrypts()
	}
}

func (e *emergency) requireRevoked(t *testing.T, id kek.ID, result revoke.Result, err error) {
	t.Helper()
	if err != nil || result.Revoked == "" || result.Problem != "" || len(result.Nodes) != len(e.Nodes) {
		t.Fatalf("it ends with %v: %+v\n%s", err, result, e.text())
	}
	for i, n := range result.Nodes {
		under := e.Nodes[i].Encrypts()
		if !n.Refuses || n.Problem != "" || under == "" || under == id || !strings.Contains(n.KeyID, under.String()) {
			t.Errorf("it says %+v of a node that encrypts under %s\n%s", n, under, e.text())
		}
	}
	if k, _ := e.Ring().Lookup(id); k.State != kek.Disabled {
		t.Errorf("the key is %s", k.State)
	}
	if trouble := e.lasts(id); trouble != "" {
		t.Errorf("%s\n%s", trouble, e.text())
	}
}

// lasts says what a node does wrong after a revocation that succeeded, whenever its clock
// reaches the activation of a key.
func (e *emergency) lasts(id kek.ID) string {
	ended := time.Now()
	instants := []time.Time{ended}
	for _, n := range e.Nodes {
		for _, k := range e.All() {
			instants = append(instants, k.Activation.Add(-n.Offset))
		}
	}
	slices.SortFunc(instants, time.Time.Compare)
	for _, at := range instants {
		time.Sleep(time.Until(at))
		for _, n := range e.Nodes {
			if under := n.Encrypts(); under == id || under == "" {
				return fmt.Sprintf("%s after its end %s encrypts under %q", time.Since(ended), n.Name(), under.String())
			}
		}
	}
	return ""
}

func TestRevoked(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		// set returns the key to revoke.
		set func(e *emergency) kek.ID
		// within is how long it may take, and keys how many the ring has at the end.
		within time.Duration
		keys   int
		wants  []string
	}{
		{"the primary", (*emergency).first, 3 * time.Second, 2, []string{"(primary).", "node-1 encrypts under r/", "node-0 refuses the key after "}},
		{"a retired key", func(e *emergency) kek.ID {
			e.Add(time.Now().Add(-time.Minute))
			e.settle()
			return e.first()
		}, 2 * time.Second, 2, []string{"(retired)."}},
		{"the newest key is half made", func(e *emergency) kek.ID {
			e.Break(e.Add(time.Now().Add(-time.Minute)).ID)
			e.settle()
			return e.first()
		}, 3 * time.Second, 3, []string{"the token cannot use the primary r/", "so a new key is made to take over"}},
		{"a node is a little behind", func(e *emergency) kek.ID {
			e.Nodes[1].Offset = -8 * time.Second
			e.Add(time.Now().Add(-4 * time.Second))
			e.settle()
			return e.first()
		}, 6 * time.Second, 2, []string{"node-1 encrypts under r/"}},
		{"a node has not reached the key", func(e *emergency) kek.ID {
			e.Nodes[1].Offset = -time.Minute
			k := e.Add(time.Now().Add(-30 * time.Second))
			e.settle()
			return k.ID
		}, 70 * time.Second, 3, []string{"waiting for node-1 to refuse the key: it refuses the key and encrypts under r/", "but for 20s only: by its clock the key activates then, and r/"}},
		{"a node is far behind", func(e *emergency) kek.ID {
			e.Nodes[1].Offset = -20 * time.Second
			e.Add(time.Now().Add(-4 * time.Second))
			e.settle()
			return e.first()
		}, 18 * time.Second, 2, []string{
			"kekctl: warning: node-1 cannot encrypt for about 16s once the key is disabled: by its clock r/",
			"node-1 refuses the key after 0.", "waiting for node-1 to refuse the key: it refuses the key and cannot encrypt for another",
		}},
		{"published while a clock was ahead", func(e *emergency) kek.ID {
			e.Nodes[1].Offset = 3 * time.Minute
			k := e.Add(time.Now().Add(2 * time.Minute))
			e.settle()
			e.Nodes[1].Offset = 0
			return k.ID
		}, 2*time.Minute + 5*time.Second, 3, []string{"(pending).", "cannot encrypt for about 2m1s once the key is disabled"}},
		{"a pending key takes over later", func(e *emergency) kek.ID {
			e.Add(time.Now().Add(time.Hour))
			return e.first()
		}, 3 * time.Second, 3, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := &emergency{World: admintest.New(t, 2)}
				id := tc.set(e)
				begun := time.Now()
				result, err := e.run(t.Context(), id)
				took := time.Since(begun)
				e.requireRevoked(t, id, result, err)
				if took > tc.within {
					t.Errorf("it took %s, want at most %s\n%s", took, tc.within, e.text())
				}
				if n := len(e.Ring().Keys); n != tc.keys {
					t.Errorf("the ring has %d keys, want %d", n, tc.keys)
				}
				for _, want := range tc.wants {
					if !strings.Contains(e.text(), want) {
						t.Errorf("it does not say %q:\n%s", want, e.text())
					}
				}
			})
		})
	}
}

// TestIncomplete: what is not seen is not claimed, and each node is accounted for.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		set  func(e *emergency)
		want string // the error
		// revoked: the key is disabled on the token.
		revoked, successor bool
		nodes              []string // the problem of each; empty for none
	}{
		{"a node does not answer", func(e *emergency) { e.Nodes[1].Silent = true },
			"1 of 2 nodes were seen to refuse it, and 1 to encrypt under another key", true, true, []string{"", "it does not answer: connection refused"}},
		{"a node is cut off from the token", func(e *emergency) { e.Nodes[1].CutOff = true },
			"1 of 2 nodes were seen to refuse it", true, true, []string{"", "the key is primary there; the HSM is unavailable"}},
		{"the successor cannot be made", func(e *emergency) { e.on("create", func() { e.TokenAway = true }) },
			"is not disabled: 2 of 2 nodes were not seen to refuse it, so what is under it still decrypts there", false, false, []string{"the key is primary there", "the key is primary there"}},
		{"the token is lost once the successor is made", func(e *emergency) { e.on("disable", func() { e.TokenAway = true }) },
			"is not known to be disabled: 2 of 2 nodes were not seen to refuse it, so what is under it still decrypts there", false, true, []string{"the key is retired there", "the key is retired there"}},
		{"a node's last answer is cut off", func(e *emergency) {
			e.Nodes[1].CutOff = true
			e.on("ask node-0", func() {
				e.Nodes[0].Silent = strings.Contains(e.text(), "node-0 refuses the key")
			})
		}, "1 of 2 nodes were seen to refuse it", true, true, []string{"", "the key is primary there; the HSM is unavailable"}},
		{"the clock of a node is hours behind", func(e *emergency) { e.Nodes[1].Offset = -time.Hour + time.Minute },
			"2 of 2 nodes were seen to refuse it, and 1 to encrypt under another key", true, true, []string{"", "it refuses the key and cannot encrypt for another 58m"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := &emergency{World: admintest.New(t, 2)}
				tc.set(e)
				begun := time.Now()
				result, err := e.run(t.Context(), e.first())
				if took := time.Since(begun); took > 40*time.Second {
					t.Errorf("it took %s", took)
				}
				if err == nil || !strings.Contains(err.Error(), tc.want) || result.Problem != err.Error() {
					t.Errorf("it ends with %v and the problem %q, want %q", err, result.Problem, tc.want)
				}
				if (result.Revoked != "") != tc.revoked || (result.Successor != "") != tc.successor || len(result.Nodes) != 2 {
					t.Fatalf("the result is %+v\n%s", result, e.text())
				}
				for i, want := range tc.nodes {
					got := result.Nodes[i]
					if !strings.HasPrefix(got.Problem, want) || (want == "") != (got.Problem == "") {
						t.Errorf("it says %+v of node %d, want %q", got, i, want)
					}
				}
			})
		})
	}
}

// on runs f before each operation of that name.
func (e *emergency) on(name string, f func()) {
	e.Hook = func(n string) {
		if n == name {
			f()
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		set  func(e *emergency) kek.ID
		want string
	}{
		{"pending", func(e *emergency) kek.ID { return e.Add(time.Now().Add(time.Hour)).ID },
			"is pending and encrypts nothing yet; remove it with kekctl key cancel "},
		{"pending, and a node cannot be asked", func(e *emergency) kek.ID {
			e.Nodes[1].Silent = true
			return e.Add(time.Now().Add(time.Hour)).ID
		}, "encrypts nothing yet, as far as is known: node-1 could not be asked (connection refused)"},
		{"not there", func(*emergency) kek.ID { return "\x77" }, `the ring "r" has no key 77`},
		{"two of one id", func(e *emergency) kek.ID {
			e.Twin()
			return e.first2()
		}, "the ring \"r\" has several keys"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := &emergency{World: admintest.New(t, 2)}
				id := tc.set(e)
				if _, err := e.run(t.Context(), id); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("it ends with %v, want %q", err, tc.want)
				}
			})
		})
	}
}

func (e *emergency) first2() kek.ID { return e.All()[0].ID }

// TestAmbiguousRing: a key that has its id for itself is revoked although nothing
// tells the primary.
func TestAmbiguousRing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &emergency{World: admintest.New(t, 2)}
		id := e.first()
		e.Foreign("\x05")
		e.Foreign("\x05") // which makes the ring ambiguous
		result, err := e.run(t.Context(), id)
		if err == nil || result.Revoked == "" || result.Successor == "" {
			t.Errorf("it ends with %v: %+v; want the key disabled, and nodes that keep it named\n%s", err, result, e.text())
		}
		if keys := e.All(); keys[0].State != kek.Disabled {
			t.Errorf("the key is %v", keys[0].State)
		}
	})
}

// TestLost is a lost answer of the token: the key is disabled all the same.
func TestLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &emergency{World: admintest.New(t, 2)}
		id := e.first()
		e.LoseAnswer = "disable"
		result, err := e.run(t.Context(), id)
		e.requireRevoked(t, id, result, err)
	})
}

// TestModel: whatever the world is like, a revocation that succeeds leaves no node that
// uses the key or cannot encrypt, and one that does not succeed says of which.
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			e := &emergency{World: admintest.New(t, 3)}
			for range rapid.IntRange(0, 3).Draw(rt, "keys") {
				k := e.Add(time.Now().Add(time.Duration(rapid.IntRange(-300, 120).Draw(rt, "activation")) * time.Second))
				if rapid.Bool().Draw(rt, "half made") {
					e.Break(k.ID)
				}
			}
			for _, n := range e.Nodes {
				n.Offset = time.Duration(rapid.SampledFrom([]int{0, 0, -20, 20, -180, 180}).Draw(rt, "offset")) * time.Second
			}
			e.settle()
			for _, n := range e.Nodes {
				if rapid.Bool().Draw(rt, "clock set right") {
					n.Offset = 0
				}
				n.CutOff = rapid.IntRange(0, 5).Draw(rt, "cut off") == 0
			}
			keys := e.All()
			id := keys[rapid.IntRange(0, len(keys)-1).Draw(rt, "which")].ID
			if rapid.IntRange(0, 4).Draw(rt, "token lost") == 0 {
				lost := rapid.SampledFrom([]string{"create", "disable", "try"}).Draw(rt, "in")
				e.on(lost, func() { e.TokenAway = true })
			}
			result, err := e.run(t.Context(), id)
			if err == nil {
				for i, n := range e.Nodes {
					if under := n.Encrypts(); under == id || under == "" || !result.Nodes[i].Refuses {
						rt.Fatalf("it succeeds, and node %d encrypts under %q: %+v\n%s", i, under.String(), result, e.text())
					}
				}
				if trouble := e.lasts(id); trouble != "" {
					rt.Fatalf("it succeeds, and %s: %+v\n%s", trouble, result, e.text())
				}
				return
			}
			if result.KeyID == "" {
				if k := disabled(e.All(), id); k {
					rt.Fatalf("it ends with %v and no result, and the key is disabled", err)
				}
				return
			}
			if result.Problem == "" || len(result.Nodes) != 3 || errors.Is(err, context.DeadlineExceeded) {
				rt.Fatalf("it ends with %v: %+v", err, result)
			}
			if result.Revoked != "" && !disabled(e.All(), id) {
				rt.Fatalf("it says that the key is revoked: %+v", result)
			}
			for i, n := range e.Nodes {
				uses := n.Encrypts() == id
				if said := result.Nodes[i]; uses && (said.Refuses || said.Problem == "") {
					rt.Fatalf("node %d uses the key, and it says %+v\n%s", i, said, fmt.Sprint(e.text()))
				}
			}
		})
	})
}

func disabled(keys []kek.Info, id kek.ID) bool {
	for _, k := range keys {
		if k.ID == id {
			return k.State == kek.Disabled
		}
	}
	return false
}
