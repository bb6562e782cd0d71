package inventory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Options say how to read.
type Options struct {
	// Progress, if not nil, is called after every page with the number of objects
	// read, and the number that there were at the start.
	Progress func(done, total int64)
	// Waiting, if not nil, is called when etcd, which has answered before, does not
	// answer any more: before each pause, with the reason and how much longer is
	// waited. Reading then resumes where it was.
	Waiting func(reason error, left time.Duration)
}

// Pass is how reading all objects went.
type Pass struct {
	// Revision is etcd's revision that the last object was read at.
	Revision int64 `json:"revision"`
	// Compacted counts how often etcd dropped the revision in the meantime and
	// reading continued at the current one. 0 means that the objects are those of
	// one instant. Otherwise each object was read once, as it was at some time
	// since the start, unless it was deleted or created in the meantime.
	Compacted int `json:"compacted"`
	// Resumed counts how often reading continued after etcd had not answered.
	Resumed int `json:"resumed,omitempty"`
}

// Visit calls visit for each object, in the order of etcd's keys; those of
// overridden resources come last. It reads page by page, at one revision for as long
// as etcd keeps that. An error of visit ends it and is returned as it is. The
// revisions of objects and of Pass are those of the etcd that they are in; Pass has
// that of the cluster's own.
func (s *Store) Visit(ctx context.Context, opts Options, visit func(Object) error) (Pass, error) {
	passes, err := s.visit(ctx, opts, visit)
	return total(passes), err
}

// total is the pass of the cluster's own etcd, with what happened in all.
func total(passes []Pass) Pass {
	if len(passes) == 0 {
		return Pass{}
	}
	sum := passes[0]
	for _, p := range passes[1:] {
		sum.Compacted += p.Compacted
		sum.Resumed += p.Resumed
	}
	return sum
}

// visit returns a pass for each source.
func (s *Store) visit(ctx context.Context, opts Options, visit func(Object) error) ([]Pass, error) {
	passes := make([]Pass, len(s.sources))
	var objects, done int64
	for i, src := range s.sources {
		n, revision, err := s.count(ctx, src)
		if err != nil {
			return nil, err
		}
		passes[i].Revision = revision
		objects += n
	}
	for i, src := range s.sources {
		scan := &scan{store: s, source: src, opts: opts, Pass: &passes[i], pager: newPager(s.prefix)}
		err := scan.run(ctx, visit, func(n int) {
			if done += int64(n); opts.Progress != nil {
				opts.Progress(done, objects)
			}
		})
		if err != nil {
			return passes, err
		}
	}
	return passes, nil
}

// count returns how many keys there are below the prefix, and etcd's revision. It
// is an error if these are not a cluster's: with the wrong store or the wrong prefix
// it would seem that no object needs a key.
func (s *Store) count(ctx context.Context, src *source) (objects, revision int64, err error) {
	resp, err := src.get(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, 0, err
	}
	if src.resources != nil {
		return resp.Count, resp.Header.Revision, nil // it may hold none of them yet
	}
	namespaces, err := src.get(ctx, s.prefix+"namespaces/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, 0, err
	}
	if namespaces.Count == 0 {
		return 0, 0, fmt.Errorf("etcd at %s has no namespaces below %s, so it is not the store of a cluster; "+
			"give the endpoints and the prefix that kube-apiserver has (--etcd-servers, --etcd-prefix)", src.endpoint, s.prefix)
	}
	return resp.Count, resp.Header.Revision, nil
}

// scan reads one etcd, which has answered already.
type scan struct {
	store  *Store
	source *source
	opts   Options
	// lags is set once a member did not have the revision yet.
	lags bool
	*Pass
	*pager
}

func (r *scan) run(ctx context.Context, visit func(Object) error, read func(n int)) error {
	for {
		resp, err := r.page(ctx)
		if err != nil {
			return err
		}
		for _, kv := range resp.Kvs {
			if err := visit(r.store.object(kv.Key, kv.Value, kv.ModRevision)); err != nil {
				return err
			}
		}
		if len(resp.Kvs) > 0 {
			read(len(resp.Kvs))
		}
		if !r.next(resp.Kvs, resp.Count, resp.More) {
			return nil
		}
	}
}

// page asks for the next page until it has one.
func (r *scan) page(ctx context.Context) (*clientv3.GetResponse, error) {
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(r.end()), clientv3.WithLimit(r.limit), clientv3.WithRev(r.Revision)}
		if !r.lags {
			// A revision that etcd has is the same on every member, so none needs to ask
			// the others.
			opts = append(opts, clientv3.WithSerializable())
		}
		resp, err := r.get(ctx, r.start, opts...)
		switch {
		case errors.Is(err, rpctypes.ErrFutureRev) && !r.lags:
			r.lags = true
		case errors.Is(err, rpctypes.ErrCompacted):
			// kube-apiserver compacts every five minutes. A large store is never read
			// at one instant by starting over.
			current, err := r.get(ctx, r.store.prefix, clientv3.WithCountOnly())
			if err != nil {
				return nil, err
			}
			r.Revision = current.Header.Revision
			r.Compacted++
		case status.Code(err) == codes.ResourceExhausted && !r.refused() && ctx.Value(anySize{}) == nil:
			ctx = context.WithValue(ctx, anySize{}, true) // one large object
		case status.Code(err) == codes.ResourceExhausted && ctx.Value(anySize{}) == nil:
			// More than maxAnswer: fewer are asked for.
		default:
			return resp, err
		}
	}
}

// How long an etcd may be away that has answered before: long enough for a restart,
// or for the election of a leader.
const (
	patience   = time.Minute
	firstPause = 250 * time.Millisecond
	maxPause   = 5 * time.Second
)

// get makes one request, and repeats it while etcd is away.
func (r *scan) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	began := time.Now()
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		resp, err := r.source.get(ctx, key, opts...)
		if err == nil {
			if pause > firstPause {
				r.Resumed++
			}
			return resp, nil
		}
		if ctx.Err() != nil || !transient(err) {
			return nil, err
		}
		left := (patience - time.Since(began)).Round(time.Second)
		if left <= 0 {
			return nil, fmt.Errorf("%w; tried for %v, so run it again when etcd is back", err, time.Since(began).Round(time.Second))
		}
		if r.opts.Waiting != nil {
			r.opts.Waiting(err, left)
		}
		select {
		case <-time.After(min(pause, left)):
		case <-ctx.Done():
			return nil, fmt.Errorf("read etcd at %s: %w", r.source.endpoint, context.Cause(ctx))
		}
	}
}

// transient reports whether a failed request may succeed later: etcd restarts, has
// no leader for a moment, is overloaded, or cannot be reached.
func transient(err error) bool {
	if errors.Is(err, errNoAnswer) || errors.Is(err, rpctypes.ErrTooManyRequests) {
		return true
	}
	code := status.Code(err)
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		code = e.Code()
	}
	return code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.Aborted
}
