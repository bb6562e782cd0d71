package inventory

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Pages are sized in bytes, which etcd cannot do: the number of keys follows from
// the sizes seen so far.
const (
	pageBytes = 4 << 20
	minKeys   = 10
	firstKeys = 100
	maxKeys   = 2000
)

// Options say how to read.
type Options struct {
	// Progress, if not nil, is called after every page with the number of objects
	// read, and the number that there were at the start.
	Progress func(done, total int64)
}

// Pass is how reading all objects went.
type Pass struct {
	// Revision is etcd's revision that the last object was read at.
	Revision int64 `json:"revision"`
	// Compacted counts how often etcd dropped the revision in the meantime and
	// reading went on at the current one. 0 means that the objects are those of
	// one instant. Otherwise each object was read once, as it was at some time
	// since the start, unless it was deleted or created in the meantime.
	Compacted int `json:"compacted"`
}

// Visit calls visit for each object, in the order of etcd's keys. It reads page by
// page, at one revision for as long as etcd keeps that. An error of visit ends it
// and is returned as it is.
func (s *Store) Visit(ctx context.Context, opts Options, visit func(Object) error) (Pass, error) {
	total, revision, err := s.count(ctx)
	if err != nil {
		return Pass{}, err
	}
	pass := Pass{Revision: revision}
	var (
		done  int64
		start = s.prefix
		all   = clientv3.GetPrefixRangeEnd(s.prefix)
		end   = all
		limit = int64(firstKeys)
	)
	for {
		resp, err := s.get(ctx, start, clientv3.WithRange(end), clientv3.WithLimit(limit), clientv3.WithRev(pass.Revision))
		switch {
		case errors.Is(err, rpctypes.ErrCompacted):
			// The apiserver compacts every five minutes. A store of that size is
			// never read at one instant by asking again.
			if pass.Revision, err = s.revision(ctx); err != nil {
				return pass, err
			}
			pass.Compacted++
			continue
		case status.Code(err) == codes.ResourceExhausted && limit > 1:
			limit = max(limit/4, 1) // more than maxAnswer
			continue
		case err != nil:
			return pass, err
		}
		size := 0
		for _, kv := range resp.Kvs {
			size += len(kv.Key) + len(kv.Value)
			if err := visit(s.object(kv.Key, kv.Value, kv.ModRevision)); err != nil {
				return pass, err
			}
		}
		done += int64(len(resp.Kvs))
		if opts.Progress != nil {
			opts.Progress(done, total)
		}
		switch {
		case resp.More:
			last := string(resp.Kvs[len(resp.Kvs)-1].Key)
			start = last + "\x00"
			limit = nextLimit(limit, size/len(resp.Kvs))
			// A resource is read to its end before the next begins.
			end = all
			if p := s.resourcePrefix(last); p != "" {
				end = clientv3.GetPrefixRangeEnd(p)
			}
		case end != all:
			// What this resource's objects weigh says nothing of the next: a page
			// for 2000 events would be gigabytes of Helm releases.
			start, end, limit = end, all, firstKeys
		default:
			return pass, nil
		}
	}
}

// count returns how many keys there are below the prefix, and etcd's revision. It
// is an error if these are not a cluster's: whoever asks the wrong store or below
// the wrong prefix would learn that no object needs a key.
func (s *Store) count(ctx context.Context) (total, revision int64, err error) {
	resp, err := s.get(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, 0, err
	}
	namespaces, err := s.get(ctx, s.prefix+"namespaces/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, 0, err
	}
	if namespaces.Count == 0 {
		return 0, 0, fmt.Errorf("etcd at %s has no namespaces below %s, so it is not the store of a cluster; "+
			"give the endpoints and the prefix that kube-apiserver has (--etcd-servers, --etcd-prefix)", s.endpoint, s.prefix)
	}
	return resp.Count, resp.Header.Revision, nil
}

// revision returns etcd's current revision.
func (s *Store) revision(ctx context.Context) (int64, error) {
	resp, err := s.get(ctx, s.prefix, clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return resp.Header.Revision, nil
}

// nextLimit sizes the next page after one of so many keys, whose keys and values
// had so many bytes each. It at most doubles, because the next objects may be
// larger.
func nextLimit(last int64, each int) int64 {
	return min(max(pageBytes/int64(each+1), minKeys), 2*last, maxKeys)
}
