package inventory

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

type fakeMembers map[string]*clientv3.StatusResponse // by URL

func (f fakeMembers) MemberList(context.Context, ...clientv3.OpOption) (*clientv3.MemberListResponse, error) {
	return &clientv3.MemberListResponse{Members: []*etcdserverpb.Member{
		{ID: 1, Name: "well", ClientURLs: []string{"http://a"}},
		{ID: 2, Name: "away", ClientURLs: []string{"http://b"}},
		{ID: 3, Name: "second URL", ClientURLs: []string{"http://b", "http://c"}},
		{ID: 4, Name: "full", ClientURLs: []string{"http://d"}},
		{ID: 5, Name: "mistaken", ClientURLs: []string{"http://a"}},
		{ID: 6},
	}}, nil
}

func (f fakeMembers) Status(_ context.Context, endpoint string) (*clientv3.StatusResponse, error) {
	if f[endpoint] == nil {
		return nil, errors.New("connection refused")
	}
	return f[endpoint], nil
}

func TestMembers(t *testing.T) {
	t.Parallel()
	answer := func(id uint64, problems ...string) *clientv3.StatusResponse {
		return &clientv3.StatusResponse{Header: &etcdserverpb.ResponseHeader{MemberId: id}, Errors: problems}
	}
	s := &Store{sources: []*source{{members: fakeMembers{"http://a": answer(1), "http://c": answer(3), "http://d": answer(4, "alarm:NOSPACE")}}}}
	members, err := s.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range members {
		got[m.Name+" "+m.Endpoint] = ""
		if m.Err != nil {
			got[m.Name+" "+m.Endpoint] = m.Err.Error()
		}
	}
	want := map[string]string{
		"well http://a":       "",
		"away http://b":       "http://b: connection refused",
		"second URL http://b": "",
		"full http://d":       "alarm:NOSPACE",
		"mistaken http://a":   "http://a: another member answers there",
		" ":                   "it has joined the cluster but has not started",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
