package rewrap

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"kekd/internal/admin/text"
	"kekd/internal/inventory"
)

// Written is what etcd held after an API server was made to write an object.
type Written struct {
	Resource string `json:"resource"`
	// APIServer is the server's URL.
	APIServer string `json:"apiServer"`
	// Key is the object's key in etcd.
	Key string `json:"key"`
	inventory.Standing
	// Problem says what is wrong with it; empty if the object is under the primary.
	Problem string `json:"problem,omitempty"`
}

// Writers is what CheckWriters found out.
type Writers struct {
	Plan    *Plan
	Written []Written
	// Unchecked are the resources of which no object could be written, if there is
	// any, with the reason.
	Unchecked map[string]string
}

// Look reads which resources belong to the ring, and what their objects are under. It
// fails as CheckWriters does if one has left the ring, and writes nothing.
func Look(ctx context.Context, cfg Config) (*Plan, error) {
	r, err := newRun(cfg)
	if err != nil {
		return nil, err
	}
	defer r.failures.spill.close()
	if err := r.makePlan(ctx); err != nil {
		return nil, err
	}
	return r.plan, nil
}

// CheckWriters has each API server write one object of each resource of the ring, and
// reads it back from etcd. An error says which writes what under something else than
// the primary, or which resource has left the ring. What was spoiled that way is
// brought back where an API server can do it. An object that is under the primary and
// stays unchanged tells as much as one that is rewritten: a server that would write
// it under something else rewrites it.
func CheckWriters(ctx context.Context, cfg Config) (Writers, error) {
	r, err := newRun(cfg)
	if err != nil {
		return Writers{}, err
	}
	defer r.failures.spill.close()
	if err := r.makePlan(ctx); err != nil {
		return Writers{}, err
	}
	w := Writers{Plan: r.plan, Unchecked: map[string]string{}}
	var resources []*Resource
	for i := range r.plan.Resources {
		if r.plan.Resources[i].Problem == "" {
			resources = append(resources, &r.plan.Resources[i])
		}
	}
	for _, name := range r.plan.Absent {
		w.Unchecked[name] = "it has no object"
	}
	err = r.checkWriters(ctx, resources)
	w.Written = r.result.Written
	for _, resource := range resources {
		if err == nil && !resource.checked {
			w.Unchecked[resource.Name] = "none of its objects could be written"
		}
	}
	return w, err
}

const (
	// candidates is how many objects of a resource may be tried, of those that are
	// under the same kind of provider.
	candidates = 4
	// sampled is how many stale objects of a resource are read back now and then.
	sampled = 64
	// lostRaces is how often something else may write the object in hand.
	lostRaces = 3
)

// sample is a random choice of a resource's objects.
type sample struct {
	// byRank are candidates, by what they are under.
	byRank [ranks]reservoir
	stale  reservoir
}

// reservoir keeps some of the objects that it is shown, each with the same chance:
// what is damaged or forbidden is often in one stretch.
type reservoir struct {
	size    int
	shown   int
	objects []object
}

func (v *reservoir) show(o object) {
	v.shown++
	if len(v.objects) < v.size {
		v.objects = append(v.objects, o)
	} else if i := rand.IntN(v.shown); i < v.size { //nolint:gosec // G404: no secret depends on it
		v.objects[i] = o
	}
}

// The ranks order what objects are under. An API server that writes a lower one where
// a higher one was makes it worse.
const (
	rankUnknown = iota
	rankUnencrypted
	rankOther // another provider or plugin
	rankRing  // an older key of the ring
	rankPrimary
	ranks
)

func (r *run) rank(o inventory.Object) int {
	switch {
	case o.Under(r.ring, r.primary):
		return rankPrimary
	case r.ours(o.Standing()):
		return rankRing
	case o.Class == inventory.Unparsable:
		return rankUnknown
	case o.Class == inventory.Unencrypted:
		return rankUnencrypted
	}
	return rankOther
}

// drawSamples reads etcd for objects of the resources.
func (r *run) drawSamples(ctx context.Context, resources []*Resource) error {
	for _, resource := range resources {
		s := new(sample)
		for i := range s.byRank {
			s.byRank[i].size = candidates
		}
		s.stale.size = sampled
		r.samples[resource.Name] = s
	}
	pass, err := r.Store.Visit(ctx, r.reading(), func(found inventory.Object) error {
		s, resource := r.samples[found.Resource], r.plan.find(found.Resource)
		if s == nil || !resource.target.Fits(found.Path) {
			return nil
		}
		o, rank := object{found, resource}, r.rank(found)
		s.byRank[rank].show(o)
		if rank != rankPrimary && rank != rankUnknown {
			s.stale.show(o)
		}
		return nil
	})
	r.base = max(r.base, pass.Revision)
	return err
}

// checkWriters checks every API server with every resource. A resource of which no
// object can be written stays unchecked.
func (r *run) checkWriters(ctx context.Context, resources []*Resource) error {
	defer addSince(&r.result.CheckSeconds, time.Now())
	if err := r.drawSamples(ctx, resources); err != nil {
		return err
	}
	r.Note(checkNote)
	var problems []error
	for _, resource := range resources {
		err := r.checkResource(ctx, resource)
		if wrong := (*wrongError)(nil); errors.As(err, &wrong) {
			problems = append(problems, err)
			continue
		}
		if err != nil {
			return err
		}
		if !resource.checked {
			r.note("%s: no object could be written to check the API servers with; its objects are read back one by one", resource.Name)
		}
	}
	return errors.Join(problems...)
}

const checkNote = "writing one object of each resource through each API server, to see what it is under afterwards"

func (r *run) checkResource(ctx context.Context, resource *Resource) error {
	// What is lost least comes first: a server with identity first leaves what is
	// unencrypted as it is, and shows itself by that.
	left, away := r.APIServers, 0
	for rank := rankUnencrypted; rank < ranks; rank++ {
		for _, o := range r.samples[resource.Name].byRank[rank].objects {
			if away == candidates {
				return nil
			}
			rest, v, err := r.checkObject(ctx, o, left)
			if err != nil || v == nil {
				return err
			}
			if v.kind == Webhook || v.timeout {
				away++
			}
			left = rest
		}
	}
	return nil
}

// wrongError is an API server that does not write under the primary.
type wrongError struct{ text string }

// Error implements error.
func (e *wrongError) Error() string { return e.text }

// checkObject has each server write the object. The verdict says why it could not be
// written; the servers left are then to be checked with another object.
func (r *run) checkObject(ctx context.Context, o object, servers []APIServer) ([]APIServer, *verdict, error) {
	var wrong []Written
	good, last, touched := APIServer(nil), o.Object, false
	left, later := slices.Clone(servers), 0
	for len(left) > 0 {
		s := left[0]
		after, v, err := r.writeThrough(ctx, s, o)
		if err != nil {
			return nil, nil, err
		}
		if v != nil && v.kind == Unreadable && later < len(left)-1 {
			// Another may have in memory what it takes to read the object, and this one can
			// read it when that has written it.
			left, later = append(left[1:], s), later+1
			continue
		}
		if v != nil && len(wrong) == 0 {
			return left, v, nil
		}
		if v != nil {
			break // wrong is reason enough to stop
		}
		left, later = left[1:], 0
		w := Written{Resource: o.Resource, APIServer: s.Name(), Key: o.Key, Standing: after.Standing()}
		if after.Under(r.ring, r.primary) {
			good = s
		} else {
			w.Problem = "writes " + o.Resource + " " + r.describe(after.Standing())
			wrong = append(wrong, w)
		}
		r.result.Written = append(r.result.Written, w)
		touched = touched || after.ModRevision != o.ModRevision
		last, r.base = after, max(r.base, after.ModRevision)
	}
	if len(wrong) > 0 {
		return nil, nil, &wrongError{r.wrongText(ctx, o, last, touched, wrong, good)}
	}
	o.resource.checked = true
	if !o.Under(r.ring, r.primary) {
		if o.resource.Method == Migration {
			o.resource.Stale-- // a migration for nothing takes minutes
		}
		r.result.Updated++
		r.result.Left--
	}
	return nil, nil, nil
}

// wrongText says which servers write what, what became of the object, and what to do.
// It brings the object back if it can.
func (r *run) wrongText(ctx context.Context, o object, last inventory.Object, touched bool, wrong []Written, good APIServer) string {
	var texts []string
	for _, w := range wrong {
		texts = append(texts, w.APIServer+" "+w.Problem)
	}
	why := fmt.Sprintf("%s, and not under the primary %s; put the kms provider of kekd first in the providers of %s in the EncryptionConfiguration of each such API server, and restart it",
		strings.Join(texts, ", and "), r.KeyID, o.Resource)
	switch {
	case !touched:
		return why + fmt.Sprintf(" (no object was changed; %s shows it)", text.Short(o.Key))
	case last.Under(r.ring, r.primary):
		return why + fmt.Sprintf(" (only %s was rewritten; it is under the primary again)", text.Short(o.Key))
	case good != nil:
		if after, v, err := r.writeThrough(ctx, good, o); err == nil && v == nil && after.Under(r.ring, r.primary) {
			return why + fmt.Sprintf(" (only %s was rewritten; %s brought it back under the primary)", text.Short(o.Key), good.Name())
		}
	}
	return why + fmt.Sprintf(" (only %s was rewritten; it is now %s)", text.Short(o.Key), r.describe(last.Standing()))
}

// describe says what an object is under, as an EncryptionConfiguration calls it.
func (r *run) describe(s inventory.Standing) string {
	switch s.Class {
	case inventory.Unencrypted:
		return "with identity (unencrypted)"
	case inventory.OtherProvider:
		kind, name, _ := strings.Cut(s.Provider, ":")
		_, name, _ = strings.Cut(name, ":")
		return "with " + text.Short(kind) + ": " + text.Short(name)
	case inventory.KMSv2:
		// A second plugin may have a ring of the same label.
		if r.ours(s) && (len(r.plan.Providers) == 0 || slices.Contains(r.plan.Providers, s.Provider)) {
			return "under another key of the ring, " + text.Short(s.KeyID)
		}
		return fmt.Sprintf("with another KMS provider %q (key_id %s)", s.Provider, text.Short(s.KeyID))
	}
	return "in a form that cannot be parsed"
}

// writeThrough has one API server write the object, and returns what etcd holds then.
func (r *run) writeThrough(ctx context.Context, s APIServer, o object) (after inventory.Object, v *verdict, err error) {
	for range lostRaces {
		revision, v, err := r.attempt(ctx, direct(s), o)
		if err != nil || v != nil {
			return after, v, err
		}
		found, err := r.read(ctx, []string{o.Key})
		if err != nil {
			return after, nil, err
		}
		after, exists := found[o.Key]
		switch {
		case !exists:
			return after, &verdict{kind: Gone, reason: "it was deleted in the meantime"}, nil
		case strconv.FormatInt(after.ModRevision, 10) == revision:
			return after, nil, nil
		}
	}
	return after, &verdict{kind: Conflict, reason: "something else writes it all the time"}, nil
}

// read reads keys from etcd, and waits for it if it is away.
func (r *run) read(ctx context.Context, keys []string) (found map[string]inventory.Object, err error) {
	reading := context.WithoutCancel(ctx) // what was written is read back also after an interruption
	_, err = Wait(ctx, time.Now().Add(awayPatience), awayPause, "etcd", r.Note, func() (string, error) {
		if found, err = r.Store.Read(reading, keys); err != nil {
			return text.Short(err.Error()), nil //nolint:nilerr // it is what is missing
		}
		return "", nil
	})
	if err == nil && found == nil {
		err = errors.New("read back what was written: etcd does not answer")
	}
	return found, err
}

// updateFirst rewrites an object of a resource that is not checked yet: each API
// server writes it, and it is read back each time.
func (r *run) updateFirst(ctx context.Context, o object) (*verdict, error) {
	defer addSince(&r.result.CheckSeconds, time.Now())
	_, v, err := r.checkObject(ctx, o, r.APIServers)
	return v, err
}

// sortedKeys are the objects' keys, in etcd's order.
func sortedKeys(objects []object) []string {
	keys := make([]string, len(objects))
	for i, o := range objects {
		keys[i] = o.Key
	}
	slices.Sort(keys)
	return keys
}
