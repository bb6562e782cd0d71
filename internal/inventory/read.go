package inventory

import (
	"context"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// maxOps is how many operations etcd takes in one transaction.
	maxOps = 128
	// firstOps bounds the first transaction, before any size is known.
	firstOps = 16
)

// Read returns what etcd holds at the keys now, by key. The reads are linearizable:
// they see every write that was acknowledged before. Keys without a value are left
// out. Like a pass, it fetches some megabytes at a time.
func (s *Store) Read(ctx context.Context, keys []string) (map[string]Object, error) {
	objects := make(map[string]Object, len(keys))
	limit := firstOps
	for len(keys) > 0 {
		// One transaction asks one etcd.
		src, part := s.source(keys[0]), keys[:min(limit, len(keys))]
		if i := slices.IndexFunc(part, func(key string) bool { return s.source(key) != src }); i > 0 {
			part = part[:i]
		}
		size, err := s.readPart(ctx, src, part, objects)
		switch {
		case status.Code(err) == codes.ResourceExhausted && len(part) > 1:
			limit = max(len(part)/4, 1) // more than maxAnswer
			continue
		case err != nil:
			return nil, err
		}
		keys = keys[len(part):]
		limit = min(max(pageBytes/(size/len(part)+1), 1), 2*limit, maxOps)
	}
	return objects, nil
}

// readPart reads the keys in one transaction and returns the size of the answer.
func (s *Store) readPart(ctx context.Context, src *source, keys []string, objects map[string]Object) (size int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, errNoAnswer)
	defer cancel()
	gets := make([]clientv3.Op, len(keys))
	for i, key := range keys {
		gets[i] = clientv3.OpGet(key)
	}
	resp, err := src.kv.Do(ctx, clientv3.OpTxn(nil, gets, nil))
	if err != nil {
		return 0, src.failed(ctx, err)
	}
	for _, r := range resp.Txn().Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			size += len(kv.Key) + len(kv.Value)
			o := s.object(kv.Key, kv.Value, kv.ModRevision)
			objects[o.Key] = o
		}
	}
	return size, nil
}
