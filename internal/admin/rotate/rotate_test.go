package rotate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kekd/internal/admin/admintest"
	"kekd/internal/admin/evidence"
	"kekd/internal/admin/nodes"
	"kekd/internal/admin/rotate"
	"kekd/internal/admin/wait"
	"kekd/internal/config"
	"kekd/internal/httpapi"
	"kekd/internal/kek"
)

// lag is how long after its last use a key is out of use for certain.
const lag = 80 * time.Second

// journey is a rotation in a world.
type journey struct {
	*admintest.World

	lines admintest.Lines
	delay time.Duration
	ifDue bool
	// written is how many objects were written to check the API servers.
	written int
	// maxAge is keyRing.policy.maxAge.
	maxAge time.Duration
	// left: objects that the ring's resources have lost.
	left error
	// evidence that speaks against cancelling.
	against error
	// made is when the key that was to be cancelled was made.
	made    time.Time
	unsound []string
	// unclear is how many objects may be under any key.
	unclear int64
	// latency is how long each node takes to answer.
	latency time.Duration
}

// slow is a node that takes its time.
type slow struct {
	nodes.Node
	latency time.Duration
}

func (s slow) Ask(ctx context.Context) (*httpapi.Status, time.Duration, time.Duration, error) {
	if err := wait.Pause(ctx, s.latency); err != nil {
		return nil, 0, 0, err
	}
	return s.Node.Ask(ctx)
}

func (j *journey) run(ctx context.Context) (rotate.Result, error) {
	w := j.World
	j.Reset()
	cfg := rotate.Config{
		IfDue: j.ifDue, Delay: j.delay, DelayGiven: j.delay > 0,
		Policy: config.KeyPolicy{MaxAge: j.maxAge}, Refresh: admintest.Refresh, Timeout: 90 * time.Second,
		Doctor:   func(context.Context) (int, []string) { return 12, j.unsound },
		Token:    admintest.Token{World: w},
		Members:  []rotate.Member{w},
		Objects:  objects{j},
		Evidence: j.evidence, Cancel: j.cancel,
		Memory: admintest.Memory{World: w}, Confirm: func(string) error { return nil },
		Note: j.lines.Add, Clock: time.Now,
	}
	for _, n := range w.Nodes {
		cfg.Nodes = append(cfg.Nodes, slow{n, j.latency})
	}
	for _, s := range w.Servers {
		cfg.Servers = append(cfg.Servers, rotate.Server(s))
	}
	return rotate.Run(ctx, cfg)
}

func (j *journey) text() string { return j.lines.Text() }

// evidence says that a key is unused once no node has encrypted under it for long
// enough.
func (j *journey) evidence(ctx context.Context, key kek.Info, _ *kek.Ring) (evidence.Evidence, error) {
	if _, err := j.Count(ctx); err != nil {
		return evidence.Evidence{}, err
	}
	var wait time.Duration
	for _, n := range j.Nodes {
		wait = max(wait, lag-time.Since(n.UsedUntil(key.ID)))
	}
	if wait > 0 {
		return evidence.Evidence{Verdict: evidence.Used, Wait: wait, Findings: []evidence.Finding{
			{Witness: "node-1", Verdict: evidence.Used, Detail: "used it a moment ago"},
		}}, nil
	}
	return evidence.Evidence{Verdict: evidence.Unused}, nil
}

func (j *journey) cancel(ctx context.Context, key kek.Info, made time.Time) error {
	j.made = made
	if j.against != nil {
		return j.against
	}
	return admintest.Token{World: j.World}.Destroy(ctx, key)
}

// objects are the world's objects, of one resource.
type objects struct{ *journey }

// CheckWriters implements rotate.Objects.
func (o objects) CheckWriters(ctx context.Context, keyID string) (rotate.Checked, error) {
	writes, err := o.Writes(ctx)
	if err != nil {
		return rotate.Checked{}, err
	}
	o.written += len(writes)
	for i, under := range writes {
		if under != keyID {
			return rotate.Checked{}, fmt.Errorf("%s writes secrets under %s", o.Servers[i].Name(), under)
		}
	}
	checked, err := o.Check(ctx, keyID)
	checked.Writes = len(writes)
	return checked, err
}

// Check implements rotate.Objects.
func (o objects) Check(context.Context, string) (rotate.Checked, error) {
	var n int64
	for _, count := range o.Objects() {
		n += count
	}
	return rotate.Checked{Resources: []string{"secrets"}, Objects: n}, o.left
}

// Rewrap implements rotate.Objects.
func (o objects) Rewrap(ctx context.Context, keyID string) (rotate.Rewrapped, error) {
	writes, err := o.Writes(ctx)
	if err != nil {
		return rotate.Rewrapped{}, err
	}
	for i, under := range writes {
		if under != keyID {
			return rotate.Rewrapped{}, fmt.Errorf("%s writes secrets under %s", o.Servers[i].Name(), under)
		}
	}
	_, id, err := kek.ParseKeyID(keyID)
	for more := true; more && err == nil; {
		more, err = o.RewriteOne(ctx, id)
		time.Sleep(100 * time.Millisecond)
	}
	return rotate.Rewrapped{Found: 100}, err
}

// Uses implements rotate.Objects.
func (o objects) Uses(ctx context.Context, _ *kek.Ring) (map[kek.ID]rotate.Uses, error) {
	uses := map[kek.ID]rotate.Uses{}
	counts, err := o.Count(ctx)
	for id, n := range counts {
		uses[id] = rotate.Uses{Objects: n, Unclear: o.unclear}
	}
	return uses, err
}

// requireEnd requires that one rotation was made, however often it was begun.
func (j *journey) requireEnd(t *testing.T, result rotate.Result, err error) {
	t.Helper()
	ring := j.Ring()
	primary, _ := ring.Primary()
	switch {
	case err != nil:
		t.Fatalf("it ends with %v\n%s", err, j.text())
	case len(ring.Keys) != 2 || primary.ID != ring.Keys[1].ID:
		t.Fatalf("the ring is %+v, want two keys and the second the primary\n%s", ring.Keys, j.text())
	case j.Objects()[primary.ID] != 100 || len(j.Objects()) != 1:
		t.Fatalf("the objects are %v, want all under %s", j.Objects(), primary.ID)
	case result.KeyID != primary.KeyID() || len(result.Retirable) != 1 || result.Retirable[0].ID != ring.Keys[0].ID.String():
		t.Fatalf("the result is %+v", result)
	case j.Keeps(rotate.MemoryName):
		t.Fatal("the rotation is still open")
	}
	for _, n := range j.Nodes {
		if n.Encrypts() != primary.ID {
			t.Errorf("%s encrypts under %s", n.Name(), n.Encrypts())
		}
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		set   func(j *journey)
		wants []string
	}{
		{"all is well", func(*journey) {}, []string{
			"1 doctor      12 checks, none failed", "2 reach       node-0 answers", "2 reach       https://server-1 answers",
			"2 reach       https://etcd answers", "3 writers     2 object(s) written and read back", "4 key         created r/",
			"5 nodes       node-1 has tested the key", "6 activation  in 5m0s", "6 activation  waiting for the activation: another 4m50s",
			"7 apiservers  https://server-0 has taken up the key", "8 rewrap      100 of 100 objects re-encrypted",
			"9 inventory   no object is under an older key; 100 are under r/", "10 retire      nothing in this cluster needs r/",
		}},
		{"a clock is three minutes ahead", func(j *journey) { j.Nodes[1].Offset = 3 * time.Minute }, []string{"node-1 has tested the key; its clock is 3m0s ahead of this one"}},
		{"a clock is three minutes behind", func(j *journey) { j.Nodes[1].Offset = -3 * time.Minute }, []string{
			"its clock is 3m0s behind this one",
			"waiting for node-1 to encrypt under the key: does not encrypt under it: it encrypts under r/",
			"by its clock the key activates in 2m",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				j := &journey{World: admintest.New(t, 2)}
				tc.set(j)
				result, err := j.run(t.Context())
				j.requireEnd(t, result, err)
				for _, want := range tc.wants {
					if !strings.Contains(j.text(), want) {
						t.Errorf("it does not say %q:\n%s", want, j.text())
					}
				}
			})
		})
	}
}

// TestKilledAnywhere kills kekctl in each of its operations, before and after that took
// effect, and runs it again at once or after the key has activated.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	operations := 0
	synctest.Test(t, func(t *testing.T) {
		j := &journey{World: admintest.New(t, 2)}
		if _, err := j.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		operations = j.Operations()
	})
	if operations < 30 {
		t.Fatalf("a rotation has only %d operations: this shows little", operations)
	}
	for _, later := range []time.Duration{0, 10 * time.Minute} {
		for _, after := range []bool{false, true} {
			for at := 1; at <= operations; at++ {
				t.Run(fmt.Sprintf("operation %d, took effect %t, again after %s", at, after, later), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						j := &journey{World: admintest.New(t, 2)}
						j.KillAt, j.KillAfter = at, after
						first, err := j.run(t.Context())
						j.KillAt = 0
						if err == nil && at < operations/2 {
							t.Fatalf("the kill shows nothing:\n%s", j.text())
						}
						time.Sleep(later)
						if !j.Keeps(rotate.MemoryName) && len(j.Ring().Keys) == 2 {
							// It was killed after its last change: nothing is left to do.
							if len(first.Retirable) != 1 {
								t.Errorf("it forgets an unfinished rotation: %+v\n%s", first, j.text())
							}
							return
						}
						result, err := j.run(t.Context())
						j.requireEnd(t, result, err)
					})
				})
			}
		}
	}
}

// TestInterruptedAtEachStep is Ctrl-C when a step says its first word.
func TestInterruptedAtEachStep(t *testing.T) {
	t.Parallel()
	for step := 1; step <= 10; step++ {
		t.Run(fmt.Sprint("step ", step), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				j := &journey{World: admintest.New(t, 2)}
				ctx, cancel := context.WithCancelCause(t.Context())
				stopped := errors.New("Ctrl-C")
				j.Hook = func(string) {
					if strings.Contains("\n"+j.text(), fmt.Sprintf("\n%d ", step)) {
						cancel(stopped)
					}
				}
				_, err := j.run(ctx)
				j.Hook = nil
				if err == nil && step < 10 {
					t.Fatalf("it succeeds:\n%s", j.text())
				}
				if text := j.text(); err != nil && !strings.Contains(text, "Interrupted. ") {
					t.Errorf("it does not say that it was interrupted:\n%s", text)
				}
				if err == nil {
					return
				}
				result, err := j.run(t.Context())
				j.requireEnd(t, result, err)
			})
		})
	}
}

// TestContinuedLate: a rotation that is continued shortly before the activation gives up
// no key that the nodes have tested.
func TestContinuedLate(t *testing.T) {
	t.Parallel()
	for left := 20 * time.Second; left > 12*time.Second; left -= 10 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			j := &journey{World: admintest.New(t, 2), delay: time.Minute}
			ctx, cancel := context.WithTimeout(t.Context(), j.delay-left)
			defer cancel()
			if _, err := j.run(ctx); err == nil {
				t.Fatalf("it succeeds:\n%s", j.text())
			}
			j.latency = 20 * time.Millisecond
			result, err := j.run(t.Context())
			j.requireEnd(t, result, err)
		})
		if t.Failed() {
			t.Fatalf("with %s left before the activation", left)
		}
	}
}

// TestRefusals: what makes a key useless or dangerous is found before there is one.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		set  func(j *journey)
		want string
	}{
		{"this node is not sound", func(j *journey) { j.unsound = []string{"mechanism: broken"} }, "a check of this node failed, so no key was created"},
		{"an API server is down", func(j *journey) { j.Servers[1].Down = true }, "2 reach       https://server-1: connection refused"},
		{"a node is down", func(j *journey) { j.Nodes[1].Down = true }, "2 reach       node-1: connection refused"},
		{"a node does not reach the token", func(j *journey) { j.Nodes[1].CutOff = true }, "2 reach       node-1: the HSM is unavailable"},
		{"a clock is further ahead than the delay", func(j *journey) { j.Nodes[1].Offset = 10 * time.Minute }, "the clock of node-1 is 10m0s ahead, so it would encrypt under a key that activates in 5m0s before every node has seen it"},
		{"fewer kekds than API servers", func(j *journey) { j.Nodes = j.Nodes[:1] }, "2 kube-apiservers and only 1 kekd(s) are known"},
		{"one kekd by two names", func(j *journey) { j.Nodes = []*admintest.Node{j.Nodes[0], j.Nodes[0]} }, "2 kube-apiservers and only 1 kekd(s) are known"},
		{"identity is first", func(j *journey) { j.Servers[1].Identity = true }, "https://server-1 writes secrets under identity"},
		{"a resource left the ring", func(j *journey) { j.left = errors.New("configmaps have left the ring") }, "configmaps have left the ring"},
		{"a resource left the ring, nightly", func(j *journey) {
			j.left, j.ifDue, j.maxAge = errors.New("configmaps have left the ring"), true, 2160*time.Hour
		}, "configmaps have left the ring"},
		{"nothing is under the ring", func(j *journey) { j.SetObjects(j.Ring().Keys[0].ID, 0) }, "no object in etcd is under a key of the ring"},
		{"nothing is under the ring, nightly", func(j *journey) {
			j.SetObjects(j.Ring().Keys[0].ID, 0)
			j.ifDue, j.maxAge = true, 2160*time.Hour
		}, "no object in etcd is under a key of the ring"},
		{"the primary is not due", func(j *journey) { j.ifDue, j.maxAge = true, 2160*time.Hour }, "the primary has been the primary for 1h0m"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				j := &journey{World: admintest.New(t, 2)}
				tc.set(j)
				begun := time.Now()
				_, err := j.run(t.Context())
				if err == nil || !strings.Contains(fmt.Sprint(j.text(), "\n", err), tc.want) {
					t.Errorf("it ends with %v and says\n%s\nwant %q", err, j.text(), tc.want)
				}
				if (tc.name == "the primary is not due") != errors.Is(err, rotate.ErrNotDue) {
					t.Errorf("it ends with %v", err)
				}
				if j.ifDue && j.written > 0 {
					t.Errorf("it wrote %d objects, although nothing was due", j.written)
				}
				if len(j.Ring().Keys) != 1 || j.Keeps(rotate.MemoryName) {
					t.Errorf("the ring is %+v, want one key, and no rotation begun", j.Ring().Keys)
				}
				if took := time.Since(begun); took > 45*time.Second {
					t.Errorf("it took %s to find out", took)
				}
			})
		})
	}
}

// TestDue: a timer rotates when the primary is old enough.
func TestDue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journey{World: admintest.New(t, 2), ifDue: true, maxAge: time.Hour}
		result, err := j.run(t.Context())
		j.requireEnd(t, result, err)
	})
}

// TestUnclear: an object whose key cannot be told may be under the old one.
func TestUnclear(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := &journey{World: admintest.New(t, 2), unclear: 3}
		if _, err := j.run(t.Context()); err == nil || !strings.Contains(j.text(), "9 inventory   3 objects may be under any key") {
			t.Errorf("it ends with %v and says\n%s", err, j.text())
		}
	})
}

// TestNodeMissing: a key that a node does not test in time is cancelled, if the
// evidence allows it; else it stays, and the message says what to do.
func TestNodeMissing(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		set   func(j *journey)
		hook  func(j *journey) // once the key is there
		gone  bool
		wants []string
	}{
		{"cancelled", func(j *journey) { j.Nodes[1].Blind = true }, nil, true,
			[]string{"5 nodes       node-1: does not see it: ", "waiting for node-1 to test the key: does not see it: , 10s of at most", "so it was cancelled; nothing was encrypted under it"}},
		{"the evidence is against it", func(j *journey) {
			j.Nodes[1].Blind = true
			j.against = errors.New("node-1 uses it")
		}, nil, false, []string{"was not cancelled: node-1 uses it; it activates in ", "kekctl key cancel "}},
		{"a clock is ahead", func(j *journey) { j.Nodes[1].Blind, j.Nodes[1].Offset = true, 2*time.Minute }, nil, true,
			// Two minutes earlier than without it: 5 min - 2 min - 15 s - 30 s.
			[]string{"of at most 2m15s", "so it was cancelled"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				j := &journey{World: admintest.New(t, 2)}
				tc.set(j)
				_, err := j.run(t.Context())
				text := fmt.Sprint(j.text(), "\n", err)
				for _, want := range tc.wants {
					if !strings.Contains(text, want) {
						t.Errorf("it does not say %q:\n%s", want, text)
					}
				}
				if j.made.IsZero() || j.made.After(time.Now().Add(-time.Minute)) {
					t.Errorf("the key was made at %s", j.made)
				}
				if gone := len(j.Ring().Keys) == 1; err == nil || gone != tc.gone {
					t.Fatalf("it ends with %v, and the key is gone: %t, want %t", err, gone, tc.gone)
				}
				// The nodes are mended: the next run finishes what this one began.
				j.Nodes[1].Blind, j.against = false, nil
				result, err := j.run(t.Context())
				j.requireEnd(t, result, err)
			})
		})
	}
}

// TestServerGoesAway: a witness that is lost in the middle stops the rotation where it
// is, and the next run continues.
func TestServerGoesAway(t *testing.T) {
	t.Parallel()
	for step, tc := range map[int]struct {
		done   []string // what the step before has said at its end
		failed string
	}{
		5: {[]string{"4 key "}, "not all nodes have tested"},
		6: {[]string{"node-0 has tested the key", "node-1 has tested the key"}, "not all nodes encrypt under"},
		7: {[]string{"node-0 encrypts under the key", "node-1 encrypts under the key"}, "not all kube-apiservers have taken up"},
	} {
		t.Run(fmt.Sprint("step ", step), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				j := &journey{World: admintest.New(t, 2), against: errors.New("node-1 could not be asked")}
				j.Hook = func(string) {
					text := j.text()
					lost := !slices.ContainsFunc(tc.done, func(line string) bool { return !strings.Contains(text, line) })
					j.Nodes[1].Silent = j.Nodes[1].Silent || lost && step < 7
					j.Servers[1].Down = j.Servers[1].Down || lost && step == 7
				}
				_, err := j.run(t.Context())
				j.Hook = nil
				if err == nil || !strings.Contains(err.Error(), tc.failed) {
					t.Fatalf("it ends with %v\n%s", err, j.text())
				}
				j.Nodes[1].Silent, j.Servers[1].Down = false, false
				result, err := j.run(t.Context())
				j.requireEnd(t, result, err)
			})
		})
	}
}
