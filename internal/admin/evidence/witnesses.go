package evidence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kekd/internal/admin/nodes"
	"kekd/internal/admin/text"
	"kekd/internal/cluster"
	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// missing reports whether there is a finding about all of these witnesses already.
func (w Witnesses) missing(witness string) bool {
	return slices.ContainsFunc(w.Missing, func(f Finding) bool { return f.Witness == witness })
}

// askToken reads the ring. The key must be there, and not do what it must not.
func askToken(ctx context.Context, w Witnesses, q Question, e *Evidence) (Finding, *kek.Ring) {
	f := Finding{Witness: "token", Verdict: Unknown}
	if w.Token == nil {
		f.Detail = "was not asked"
		return f, nil
	}
	ring, err := w.Token.Ring(ctx)
	if err != nil {
		f.Detail = "could not be asked: " + text.Of(err)
		return f, nil
	}
	key, ok := ring.Lookup(q.Key.ID)
	if !ok {
		f.Detail = "no longer holds the key"
		return f, ring
	}
	e.Key = key
	f.Verdict, f.Detail = Used, "holds it as "+key.State.String()
	switch key.State {
	case kek.Pending:
		f.Detail += ", to activate at " + key.Activation.UTC().Format(time.RFC3339)
		if q.Pending {
			f.Verdict = Unused
		}
	case kek.Retired, kek.Disabled, kek.Scheduled:
		if !q.Pending {
			f.Verdict = Unused
		}
	}
	return f, ring
}

// addNodes judges what the nodes say.
func (e *Evidence) addNodes(w Witnesses, q Question, reports []nodes.Report, now time.Time) {
	j := judge{w: w, q: q, now: now, refresh: w.Refresh}
	for _, r := range reports {
		if r.Err == nil {
			j.refresh = max(j.refresh, time.Duration(r.Status.Refresh))
			j.offset = max(j.offset, r.Ahead.Abs()+r.Uncertainty)
			j.ahead = max(j.ahead, r.Ahead+r.Uncertainty)
		}
	}
	for _, r := range reports {
		f := j.node(r)
		f.Witness = "node " + r.Node.Name()
		e.Findings = append(e.Findings, f)
	}
	known := nodes.Distinct(reports)
	switch {
	case known == 0 && w.missing("nodes"):
	case known == 0:
		e.Findings = append(e.Findings, Finding{Witness: "nodes", Verdict: Unknown, Detail: "no kekd is known; name every kekd with --node or cluster.nodes"})
	case known < len(w.APIServers):
		e.Findings = append(e.Findings, Finding{Witness: "nodes", Verdict: Unknown,
			Detail: fmt.Sprintf("%d API servers and only %d kekds are known; name every kekd with --node or cluster.nodes", len(w.APIServers), known)})
	case known < w.Kekds:
		e.Findings = append(e.Findings, Finding{Witness: "nodes", Verdict: Unknown,
			Detail: fmt.Sprintf("the cluster runs %d kekds and only %d were asked; name every kekd with --node or cluster.nodes", w.Kekds, known)})
	}
	if servers := len(w.APIServers); servers > 0 && known > servers && !w.Named {
		// The cluster stops listing an API server that has not reported for some seconds,
		// and that may come back with what it last wrote under.
		e.Findings = append(e.Findings, Finding{Witness: "apiservers", Verdict: Unknown,
			Detail: fmt.Sprintf("%d kekds run, and the cluster lists only %d API servers: one may be down; name every API server with --apiserver or cluster.apiServers", known, servers)})
	}
	if q.Pending {
		e.Until = q.Key.Activation.Add(-j.refresh - pendingMargin - j.ahead)
	}
}

// judge holds what the answer of one node is judged by.
type judge struct {
	w   Witnesses
	q   Question
	now time.Time
	// refresh is the longest of all nodes and this machine. offset is the largest
	// difference of a clock from ours, and ahead of the one that is most ahead.
	refresh, offset, ahead time.Duration
}

func (j judge) node(r nodes.Report) Finding {
	if r.Err != nil {
		return Finding{Verdict: Unknown, Detail: "could not be asked: " + text.Of(r.Err)}
	}
	s := r.Status
	switch {
	case s.UseRecorded.IsZero():
		return Finding{Verdict: Unknown, Detail: fmt.Sprintf("runs kekd %s, which does not record the keys that it uses; upgrade kekd on that node", s.Version.Version)}
	case isKey(s.Health.KeyID, j.q.Key):
		return Finding{Verdict: Used, Detail: "encrypts under it"}
	}
	if j.q.Pending {
		return j.pending(r)
	}
	return j.retired(r)
}

// lag is how far the slowest witness can be behind.
func (j judge) lag() time.Duration { return j.refresh + apiServerPoll + j.offset + slack }

// ours is when something was by our clock, at the latest, that a node has a time for.
func (j judge) ours(t time.Time, r nodes.Report) time.Time { return t.Add(-r.Ahead + r.Uncertainty) }

// pending: the node has never used the key, and is not about to.
func (j judge) pending(r nodes.Report) Finding {
	if k, ok := r.Key(j.q.Key.ID.String()); ok && !k.LastUsed.IsZero() {
		return Finding{Verdict: Used, Detail: fmt.Sprintf("used it %s ago", ago(r.Status.Time.Sub(k.LastUsed)))}
	}
	// A record that began after the key was made may follow one that was lost. Until the
	// API servers must have asked the node since, they may use what it published before.
	recorded := j.ours(r.Status.UseRecorded, r)
	if idle, lag := j.now.Sub(recorded), j.lag(); !j.q.Made.IsZero() && !recorded.Before(j.q.Made) && idle <= lag {
		wait := lag - idle + time.Millisecond
		return Finding{Verdict: Unknown, wait: wait,
			Detail: fmt.Sprintf("began to record its use %s ago, and what it did before is not known; that must be %s ago, so wait %s", ago(idle), ago(lag), ago(wait))}
	}
	left := j.q.Key.Activation.Sub(j.now.Add(r.Ahead + r.Uncertainty))
	if least := j.refresh + pendingMargin; left <= least {
		return Finding{Verdict: Used, Detail: fmt.Sprintf("may encrypt under it in %s by its clock, which %s; more than %s must be left", left.Round(time.Second), clock(r.Ahead), least)}
	}
	return Finding{Verdict: Unused, Detail: fmt.Sprintf("never used it; its clock %s and reads %s before the activation", clock(r.Ahead), left.Round(time.Second))}
}

// retired: the node has not used the key for longer than anybody can lag.
func (j judge) retired(r nodes.Report) Finding {
	s := r.Status
	trouble := ""
	if t := r.Trouble(); t != "" {
		trouble = ": " + t
	}
	if s.KeyRing == nil {
		return Finding{Verdict: Unknown, Detail: "has not read the key ring yet" + trouble}
	}
	if s.KeyRing.Label != j.q.Key.Ring {
		return Finding{Verdict: Unknown, Detail: fmt.Sprintf("uses the ring %q, not %q; check keyRing.label on that node", s.KeyRing.Label, j.q.Key.Ring)}
	}
	if old := s.Time.Sub(s.KeyRing.Read); old > j.refresh+slack {
		return Finding{Verdict: Unknown, Detail: fmt.Sprintf("last read the key ring %s ago%s", ago(old), trouble)}
	}
	key, ok := r.Key(j.q.Key.ID.String())
	if !ok {
		return Finding{Verdict: Unknown, Detail: "does not see the key; check that it uses the same token" + trouble}
	}
	if key.State == kek.Primary.String() {
		return Finding{Verdict: Used, Detail: "holds it as the primary"}
	}
	last, what := key.LastUsed, "last used it"
	if last.IsZero() {
		last, what = s.UseRecorded, "has not used it since it began to record"
	}
	idle, lag := j.now.Sub(j.ours(last, r)), j.lag()
	if idle <= lag {
		wait := lag - idle + time.Millisecond
		return Finding{Verdict: Used, wait: wait,
			Detail: fmt.Sprintf("%s %s ago; it must be out of use for %s, so for %s more", what, ago(idle), ago(lag), ago(wait))}
	}
	return Finding{Verdict: Unused, Detail: fmt.Sprintf("%s %s ago", what, ago(idle))}
}

// serverReport is what one API server answered.
type serverReport struct {
	use cluster.KeyUse
	err error
}

func askServer(ctx context.Context, s APIServer) serverReport {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	use, err := s.KeyInUse(ctx)
	return serverReport{use, err}
}

// addServers judges what the API servers say.
func (e *Evidence) addServers(w Witnesses, q Question, answers []serverReport, reports []nodes.Report) {
	if len(answers) == 0 {
		if w.missing("apiservers") {
			return
		}
		e.Findings = append(e.Findings, Finding{Witness: "apiservers", Verdict: Unknown, Detail: "none is known; give --kubeconfig, or --apiserver for each"})
		return
	}
	the, ours := hashes(q, reports)
	if len(answers) < w.Listed {
		e.Findings = append(e.Findings, Finding{Witness: "apiservers", Verdict: Unknown,
			Detail: fmt.Sprintf("the cluster lists %d and only %d are named; name every one with --apiserver or cluster.apiServers", w.Listed, len(answers))})
	}
	for i, a := range answers {
		f := judgeServer(a, the, ours)
		f.Witness = "apiserver " + w.APIServers[i].Name()
		e.Findings = append(e.Findings, f)
	}
}

// hashes are those of all spellings of the key's key_id, and of all keys of the ring.
// A token may be able to compute a check value at one time and not at another, so
// there may be several.
func hashes(q Question, reports []nodes.Report) (the, ours map[string]bool) {
	the, ours = map[string]bool{}, map[string]bool{}
	add := func(k kek.Info) {
		for _, v := range []kek.CheckValue{k.CheckValue, {}} {
			h := kek.KeyIDHash(kek.KeyID(k.Ring, k.ID, v))
			ours[h] = true
			if k.ID == q.Key.ID {
				the[h] = true
			}
		}
	}
	add(q.Key)
	if q.Ring != nil {
		for _, k := range q.Ring.Keys {
			add(k)
		}
	}
	for _, r := range reports {
		if r.Status == nil || r.Status.KeyRing == nil {
			continue
		}
		for _, k := range r.Status.KeyRing.Keys {
			ours[k.KeyIDHash] = true
			if k.ID == q.Key.ID.String() {
				the[k.KeyIDHash] = true
			}
		}
	}
	return the, ours
}

// judgeServer judges what an API server says; the and ours are hashes.
func judgeServer(a serverReport, the, ours map[string]bool) Finding {
	switch {
	case errors.Is(a.err, cluster.ErrNoKMS):
		return Finding{Verdict: Unused, Detail: "has no KMS v2 provider"}
	case a.err != nil:
		return Finding{Verdict: Unknown, Detail: "could not be asked: " + text.Of(a.err)}
	}
	var others []string
	mine := false
	for _, p := range a.use.Providers {
		switch {
		case the[p.Status]:
			return Finding{Verdict: Used, wait: again, Detail: fmt.Sprintf("encrypts under it (KMS provider %q)", p.Name)}
		case ours[p.Status]:
			mine = true
			others = append(others, fmt.Sprintf("%q uses another key of the ring", p.Name))
		default:
			others = append(others, fmt.Sprintf("%q uses a key outside the ring", p.Name))
		}
	}
	switch {
	case a.use.Problem != "":
		return Finding{Verdict: Unknown, Detail: "is not healthy: " + text.Line(a.use.Problem)}
	case len(others) == 0:
		return Finding{Verdict: Unknown, Detail: "none of its KMS providers has answered yet"}
	case !mine:
		return Finding{Verdict: Unused, Detail: "does not use the ring: KMS provider " + strings.Join(others, ", ")}
	}
	return Finding{Verdict: Unused, Detail: "KMS provider " + strings.Join(others, ", ")}
}

// askEtcd counts the objects that need the key.
func askEtcd(ctx context.Context, w Witnesses, q Question) Finding {
	f := Finding{Witness: "etcd", Verdict: Unknown, Detail: "could not be asked: nothing says where it is"}
	if w.Etcd == nil {
		return f
	}
	report, err := w.Etcd.Take(ctx, inventory.Options{})
	// Only now: where etcd is may be found out when it is asked for the first time, and
	// a witness that is overruled must have the same name when it is asked again.
	f.Witness = "etcd " + w.Etcd.Name()
	if err != nil {
		f.Detail = "could not be asked: " + text.Of(err)
		return f
	}
	if uses := report.Under(q.Key.Ring, q.Key.ID); !uses.None() {
		f.Verdict, f.Detail = Used, text.Line(uses.String())
		return f
	}
	f.Verdict, f.Detail = Unused, fmt.Sprintf("no object of %d is encrypted under it", report.Objects)
	return f
}

// isKey reports whether a key_id names the key, whatever check value it has.
func isKey(keyID string, key kek.Info) bool {
	ring, id, err := kek.ParseKeyID(keyID)
	return err == nil && ring == key.Ring && id == key.ID
}

// clock says how a clock differs from ours.
func clock(ahead time.Duration) string {
	switch ahead = ahead.Round(time.Second); {
	case ahead > 0:
		return "is " + ahead.String() + " ahead of this one"
	case ahead < 0:
		return "is " + (-ahead).String() + " behind this one"
	}
	return "agrees with this one"
}

func ago(d time.Duration) string { return d.Round(time.Second).String() }
