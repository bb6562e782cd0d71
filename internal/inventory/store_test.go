package inventory

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

func TestPrefix(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"/registry": "/registry/", "registry": "/registry/", "/registry/": "/registry/", "/a/b": "/a/b/", "/": "/", "": "/",
	} {
		if got := newStore(nil, "", given, nil).prefix; got != want {
			t.Errorf("%q becomes %q, want %q", given, got, want)
		}
	}
}

// An etcd that cannot be reached is not an empty one, and the error says why.
func TestOpenDials(t *testing.T) {
	t.Parallel()
	s, err := Open(Config{
		Endpoints: []string{"http://etcd.example.com:2379"},
		Prefix:    "/registry",
		Dial: func(_ context.Context, address string) (net.Conn, error) {
			return nil, errors.New("no way to " + address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Take(t.Context(), Options{})
	if err == nil || !strings.Contains(err.Error(), "read etcd at http://etcd.example.com:2379: ") || !strings.Contains(err.Error(), "no way to etcd.example.com:2379") {
		t.Errorf("got %v", err)
	}
}
