// Package rewrap has kube-apiserver rewrite the objects that are not under the
// primary KEK. kube-apiserver does that whenever an object is updated, even if the
// update changes nothing, so there are two ways: its own storage version migration,
// and updates that change nothing, one by one. Neither changes what an object holds.
//
// kube-apiserver is not trusted to encrypt with kekd. Before a resource is touched,
// one object is written through each API server and read back from etcd, and what is
// written later is read back too. etcd also tells what is left to do, so an
// interrupted run continues where it was.
package rewrap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// Store is the cluster's etcd.
type Store interface {
	Take(ctx context.Context, opts inventory.Options) (*inventory.Report, error)
	Visit(ctx context.Context, opts inventory.Options, visit func(inventory.Object) error) (inventory.Pass, error)
	// Read returns what is stored at the keys now, by key.
	Read(ctx context.Context, keys []string) (map[string]inventory.Object, error)
}

// Method says how objects are rewritten.
type Method string

// The methods.
const (
	// Auto migrates where the cluster can, and updates what is left.
	Auto Method = "auto"
	// Migration creates a StorageVersionMigration for each resource. The cluster
	// paces it.
	Migration Method = "migration"
	// Update sends an empty patch for each object.
	Update Method = "update"
)

// Config says what is to be done. Fields are required unless it says otherwise.
type Config struct {
	Store Store
	// Kube and Metadata are clients of the kubeconfig's server, and Ready asks
	// whether it is ready; nil takes it to be.
	Kube     kubernetes.Interface
	Metadata metadata.Interface
	Ready    func(ctx context.Context) error
	// APIServers are all API servers of the cluster.
	APIServers []APIServer
	// KeyID is the primary's, which all objects are to be under.
	KeyID string
	// Resources are named by the administrator: they are taken even if nothing of
	// them is under the ring yet. They are spelled as in inventory.Object.
	Resources []string
	// Configured are the resources that belong to the ring by the configuration, and
	// Encrypted returns those of EncryptionConfigurations. Both may be nil.
	Configured []string
	Encrypted  func(ctx context.Context) ([]Encrypted, error)
	// Memory keeps which resources belong to the ring. It may be nil.
	Memory Memory
	// Succession asks this node's kekd which key is the primary and which takes
	// over; nil where there is nobody to ask. Despite goes on although another key
	// takes over soon.
	Succession func(ctx context.Context) (Succession, error)
	Despite    bool
	Method     Method
	// Rate bounds the updates per second. Migrations do not heed it.
	Rate float64
	// Wait is how long the API servers may take to encrypt under the primary.
	Wait time.Duration
	// Failures is the file that lists every object that could not be rewritten; may
	// be empty. Overflow is where that list goes if it is longer than what is shown.
	Failures, Overflow string
	// Begin hears what is going to be done, be it nothing, before any object is
	// touched. An error ends it here.
	Begin func(context.Context, *Plan) error
	// Note hears what happens, one line at a time.
	Note func(string)
	// Progress hears how far a part of the work is, often.
	Progress func(what string, done, total int64)
}

// Result is what was done and what is left. It makes JSON.
type Result struct {
	// KeyID is the key that the objects were to be under.
	KeyID string `json:"keyID"`
	// Found is how many objects were not under it.
	Found int64 `json:"found"`
	// Migrated are the resources that were migrated.
	Migrated []string `json:"migrated,omitempty"`
	// Updated is how many objects were updated one by one.
	Updated int64 `json:"updated"`
	// Left is how many objects are not under it at the end.
	Left int64 `json:"left"`
	// Kinds counts what could not be rewritten, and Objects are the first of it.
	Kinds   map[Kind]int64 `json:"kinds,omitempty"`
	Objects []Failure      `json:"objects,omitempty"`
	// List is the file that has them all, if there is one.
	List string `json:"list,omitempty"`
	// Shown are the first of each kind.
	Shown []Failure `json:"-"`
	// Next is the key_id of a pending key, and NextAt when it takes over.
	Next   string    `json:"next,omitempty"`
	NextAt time.Time `json:"nextAt,omitzero"`
	// Written is what each API server wrote when it was checked.
	Written []Written `json:"written,omitempty"`
	// Seconds is how long the rewriting took, and CheckSeconds the part of it that
	// went into checking the API servers and reading back what they wrote.
	Seconds      float64 `json:"seconds"`
	CheckSeconds float64 `json:"checkSeconds"`
}

const (
	// batchSize is how many objects are remembered at a time, some 200 bytes each.
	batchSize = 50_000
	// maxRounds is how often etcd is read and what is stale updated, apart from what
	// the batches are too small for. Objects that are stale again each time are
	// written by something else under another key.
	maxRounds = 3
)

// Run rewrites what is not under the primary, and returns what was done also beside
// an error. When ctx ends, the object in hand is finished. Objects that could not be
// rewritten are no error: see Result.Left.
func Run(ctx context.Context, cfg Config) (Result, error) {
	r, err := newRun(cfg)
	if err != nil {
		return Result{}, err
	}
	defer r.failures.spill.close()
	if r.list, err = newList(cfg.Failures); err != nil {
		return r.result, err
	}
	defer r.list.spill.close()
	if err := r.makePlan(ctx); err != nil {
		return r.result, err
	}
	r.result.Found, r.result.Left = r.plan.Stale, r.plan.Stale
	if err := r.checkSuccession(ctx); err != nil {
		return r.result, err
	}
	if err := r.Begin(ctx, r.plan); err != nil {
		return r.result, err
	}
	err = r.rewrite(ctx)
	if err != nil {
		// The list is that of the last look at etcd, which may not have come.
		err = errors.Join(err, r.list.reset(), r.failures.each(r.list.add))
	}
	if ctx.Err() != nil {
		r.note("What is done stays done: the same command continues with the rest.")
		err = fmt.Errorf("interrupted with up to %d of %d objects left: %w", r.result.Left, r.result.Found, context.Cause(ctx))
	}
	return r.result, errors.Join(err, r.list.finish(&r.result, cfg.Failures, cfg.Overflow))
}

// run is a Run in progress.
type run struct {
	Config
	ring     string
	primary  kek.ID
	plan     *Plan
	limiter  *rate.Limiter
	failures *failures
	list     *list
	// webhooks are those that did not answer.
	webhooks map[string]bool
	// samples are stale objects that are looked at while a migration runs.
	samples map[string]*sample
	// base is a revision of etcd after the API servers were checked.
	base int64
	// batch are the objects that were updated since readBackAt, when the last ones
	// were read back.
	batch      []object
	readBackAt time.Time
	// takeover is when another key becomes the primary; zero if none does.
	takeover time.Time
	// before is the primary when this began, by this node's kekd.
	before string
	result Result
}

func newRun(cfg Config) (*run, error) {
	ring, primary, err := kek.ParseKeyID(cfg.KeyID)
	if err != nil {
		return nil, err
	}
	limit := rate.Limit(cfg.Rate)
	if cfg.Rate == 0 {
		limit = rate.Inf
	}
	return &run{
		Config: cfg, ring: ring, primary: primary,
		limiter:  rate.NewLimiter(limit, 1),
		failures: newFailures(),
		webhooks: map[string]bool{},
		samples:  map[string]*sample{},
		result:   Result{KeyID: cfg.KeyID},
	}, nil
}

func (r *run) reading() inventory.Options {
	return inventory.Options{Progress: func(done, total int64) { r.Progress("inventory", done, total) }}
}

func (r *run) note(format string, args ...any) { r.Note(fmt.Sprintf(format, args...)) }

// rewrite checks the API servers, rewrites what is stale, and closes the books.
func (r *run) rewrite(ctx context.Context) error {
	if err := AwaitServers(ctx, r.APIServers, r.KeyID, r.plan.Providers, r.Wait, r.Note); err != nil {
		return err
	}
	defer addSince(&r.result.Seconds, time.Now())
	if r.plan.Stale > 0 {
		if err := r.checkWriters(ctx, r.plan.stale()); err != nil {
			return err
		}
		if err := r.rounds(ctx); err != nil {
			return err
		}
	}
	if err := r.checkPrimary(ctx); err != nil || r.result.Left > 0 {
		return err
	}
	r.remember()
	return nil
}

// addSince adds the time that has passed since began.
func addSince(seconds *float64, began time.Time) { *seconds += time.Since(began).Seconds() }

func (r *run) rounds(ctx context.Context) error {
	if err := r.migrateAll(ctx); err != nil {
		return err
	}
	rounds := maxRounds + int(r.plan.Stale/batchSize)
	for round := 0; ; round++ {
		var rest Failure
		switch {
		case r.Method == Migration:
			rest = Failure{Kind: LeftOut, Reason: "the migration left it out"}
		case round == rounds:
			rest = Failure{Kind: Reverted, Reason: "it was rewritten, but not under the primary"}
		}
		objects, err := r.look(ctx, rest)
		if err != nil || len(objects) == 0 {
			return err
		}
		if err := r.updateAll(ctx, objects); err != nil {
			return err
		}
	}
}

// object is one that is to be updated.
type object struct {
	inventory.Object
	resource *Resource
}

// errFull ends a look at etcd when the batch is full.
var errFull = fmt.Errorf("%d objects are enough for now", batchSize)

// look reads etcd and returns the first objects that are to be updated: those that
// were not tried yet, else those that were set aside. All others that are stale are
// listed with the reason, as is everything if there is a reason to do nothing with
// the rest. When it returns no object, the list is final.
func (r *run) look(ctx context.Context, rest Failure) ([]object, error) {
	if err := r.list.reset(); err != nil {
		return nil, err
	}
	var fresh, aside []object
	_, err := r.Store.Visit(ctx, r.reading(), func(o inventory.Object) error {
		if o.Under(r.ring, r.primary) {
			return nil
		}
		resource := r.plan.find(o.Resource)
		if resource == nil {
			if r.ours(o.Standing()) {
				return r.list.add(Failure{o.Key, Reverted, "it was not there when this began; run kekctl rewrap again"})
			}
			return nil
		}
		if r.spoiled(o, resource) {
			return r.accuse(ctx, object{o, resource}, "")
		}
		failure, retry, err := r.reason(o, resource, rest)
		switch {
		case err != nil:
			return err
		case retry && len(aside) < batchSize:
			aside = append(aside, object{o, resource})
		case retry:
		case failure.Kind != "":
			return r.list.add(failure)
		case len(fresh) == batchSize:
			return errFull
		default:
			fresh = append(fresh, object{o, resource})
		}
		return nil
	})
	switch {
	case errors.Is(err, errFull): // and so the count is not whole
	case err != nil:
		return nil, err
	default:
		r.result.Left = r.list.total + int64(len(fresh)+len(aside))
	}
	if len(fresh) == 0 {
		return aside, nil
	}
	return fresh, nil
}

// reason says why an object is not updated; empty if it is. retry says that it is
// tried once more when nothing else is left.
func (r *run) reason(o inventory.Object, resource *Resource, rest Failure) (failure Failure, retry bool, err error) {
	place, failed := r.failures.find(o.Key)
	switch {
	case o.Class == inventory.Unparsable:
		return Failure{o.Key, Unreadable, o.Problem}, false, nil
	case failed && place.kind.patience().aside && place.tries < maxGoes && rest.Kind == "":
		return Failure{}, true, nil
	case failed:
		failure, err = r.failures.load(place)
		return failure, false, err
	case resource.Problem != "":
		return Failure{o.Key, resource.problemKind, resource.Problem}, false, nil
	case !resource.target.Fits(o.Path):
		return Failure{o.Key, Unserved, "its key in etcd is not that of an object of the API"}, false, nil
	}
	rest.Key = o.Key
	return rest, false, nil
}

// maxGoes is how often an object is tried that may be rewritten later.
const maxGoes = 2
