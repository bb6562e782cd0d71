package inventory

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRead(t *testing.T) {
	content, keys := map[string]string{}, []string{"/registry/secrets/ns/missing"}
	want := map[string]Class{}
	for i := range 500 {
		key := fmt.Sprintf("/registry/secrets/ns/%03d", i)
		content[key], want[key] = "k8s\x00"+string(make([]byte, 1000)), Unencrypted
		keys = append(keys, key)
	}
	content["/registry/secrets/ns/007"], want["/registry/secrets/ns/007"] = "k8s:enc:aescbc:v1:key1:x", OtherProvider
	f := newFake(t, content)
	f.largest = 40_000 // smaller than a full transaction's answer
	objects, err := f.store().Read(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Class{}
	for key, o := range objects {
		got[key] = o.Class
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Read (-want +got):\n%s", diff)
	}
}
