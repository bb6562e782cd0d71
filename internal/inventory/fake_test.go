package inventory

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fakeEtcd keeps every revision until it is compacted.
type fakeEtcd struct {
	t         *testing.T
	revisions []map[string]string // by revision
	compacted int64
	// largest answer in bytes, unless any is asked for; 0 for any, 1 for none.
	largest int
	// fails, if not nil, says whether a request fails.
	fails func() error
	// lags: this member has no revision yet, unless it asks the others.
	lags bool
	// before is called before a request for keys is answered, with its number.
	before func(n int)

	pages   []page
	counted int64 // keys in the ranges of all requests for keys
	err     error
}

// page is what one request for keys brought.
type page struct {
	Limit int64
	Keys  int
}

func newFake(t *testing.T, content map[string]string) *fakeEtcd {
	content = maps.Clone(content)
	content["/registry/namespaces/default"] = "k8s\x00"
	return &fakeEtcd{t: t, revisions: []map[string]string{{}, content}}
}

func (f *fakeEtcd) store() *Store {
	return newStore(f, "http://fake:2379", "/registry", func() error { return nil })
}

func (f *fakeEtcd) current() int64 { return int64(len(f.revisions) - 1) }

func (f *fakeEtcd) change(change func(content map[string]string)) {
	next := maps.Clone(f.revisions[f.current()])
	change(next)
	f.revisions = append(f.revisions, next)
}

func (f *fakeEtcd) compact() { f.compacted = f.current() }

func (f *fakeEtcd) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if f.err != nil {
		return nil, f.err
	}
	if _, ok := ctx.Deadline(); !ok {
		f.t.Error("a request has no deadline")
	}
	op := clientv3.OpGet(key, opts...)
	if !op.IsCountOnly() && f.before != nil {
		f.before(len(f.pages))
	}
	if f.fails != nil {
		if err := f.fails(); err != nil {
			return nil, err
		}
	}
	revision := op.Rev()
	switch {
	case f.lags && op.IsSerializable():
		return nil, rpctypes.ErrFutureRev
	case revision == 0:
		revision = f.current()
	case revision < f.compacted:
		return nil, rpctypes.ErrCompacted
	}
	content := f.revisions[revision]
	resp := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: f.current()}}
	size := 0
	for _, k := range slices.Sorted(maps.Keys(content)) {
		if k != key && (k < key || bytes.Compare([]byte(k), op.RangeBytes()) >= 0) {
			continue
		}
		resp.Count++
		switch {
		case op.IsCountOnly():
		case op.Limit() > 0 && int64(len(resp.Kvs)) == op.Limit():
			resp.More = true
		default:
			resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: []byte(k), Value: []byte(content[k]), ModRevision: revision})
			size += len(content[k])
		}
	}
	if f.largest > 0 && size > f.largest && (ctx.Value(anySize{}) == nil || f.largest == 1) {
		f.pages = append(f.pages, page{op.Limit(), 0})
		return nil, status.Error(codes.ResourceExhausted, "grpc: received message larger than max")
	}
	if !op.IsCountOnly() {
		f.counted += resp.Count
		f.pages = append(f.pages, page{op.Limit(), len(resp.Kvs)})
	}
	return resp, nil
}

// Do answers a transaction of gets at one revision.
func (f *fakeEtcd) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	if _, ok := ctx.Deadline(); !ok {
		f.t.Error("a request has no deadline")
	}
	_, gets, _ := op.Txn()
	txn := new(clientv3.TxnResponse)
	content, size := f.revisions[f.current()], 0
	for _, get := range gets {
		found := new(etcdserverpb.RangeResponse)
		if value, ok := content[string(get.KeyBytes())]; ok {
			found.Kvs = []*mvccpb.KeyValue{{Key: get.KeyBytes(), Value: []byte(value), ModRevision: f.current()}}
			size += len(value)
		}
		txn.Responses = append(txn.Responses, &etcdserverpb.ResponseOp{Response: &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: found}})
	}
	if f.largest > 0 && size > f.largest {
		return clientv3.OpResponse{}, status.Error(codes.ResourceExhausted, "grpc: received message larger than max")
	}
	return txn.OpResponse(), nil
}
