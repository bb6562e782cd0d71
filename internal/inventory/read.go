package inventory

import (
	"context"

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
// out. Like a pass, it fetches some megabytes at a time, and asks the etcd that
// kube-apiserver keeps each key's resource in.
func (s *Store) Read(ctx context.Context, keys []string) (map[string]Object, error) {
	bySource := make(map[*source][]string)
	for _, key := range keys {
		src := s.source(key)
		bySource[src] = append(bySource[src], key)
	}
	objects := make(map[string]Object, len(keys))
	for src, keys := range bySource {
		if err := s.readFrom(ctx, src, keys, objects); err != nil {
			return nil, err
		}
	}
	return objects, nil
}

// readFrom adds to objects what one etcd holds at the keys.
func (s *Store) readFrom(ctx context.Context, src *source, keys []string, objects map[string]Object) error {
	limit := firstOps
	for len(keys) > 0 {
		part := keys[:min(limit, len(keys))]
		size, err := s.readPart(ctx, src, part, objects)
		switch {
		case status.Code(err) == codes.ResourceExhausted && len(part) > 1:
			limit = max(len(part)/4, 1) // more than maxAnswer
			continue
		case err != nil:
			return err
		}
		keys = keys[len(part):]
		limit = min(max(pageBytes/(size/len(part)+1), 1), 2*limit, maxOps)
	}
	return nil
}

// readPart reads the keys in one transaction and returns the size of the answer.
func (s *Store) readPart(ctx context.Context, src *source, keys []string, objects map[string]Object) (size int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, errNoAnswer)
	defer cancel()
	if len(keys) == 1 {
		ctx = context.WithValue(ctx, anySize{}, true)
	}
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
