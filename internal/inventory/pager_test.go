package inventory

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"pgregory.net/rapid"
)

// walked is what walking sorted keys took.
type walked struct {
	keys     []string
	requests int
	counted  int // keys in the ranges of all requests: what etcd counts
}

// walk answers the pager's requests as etcd does.
func walk(keys []string, prefix string) walked {
	var w walked
	for p, goOn := newPager(prefix), true; goOn; w.requests++ {
		from, _ := slices.BinarySearch(keys, p.start)
		to, _ := slices.BinarySearch(keys, p.end())
		var page []*mvccpb.KeyValue
		for _, key := range keys[from:min(to, from+int(p.limit))] {
			page = append(page, &mvccpb.KeyValue{Key: []byte(key)})
			w.keys = append(w.keys, key)
		}
		w.counted += to - from
		goOn = p.next(page, int64(to-from), to-from > len(page))
	}
	return w
}

// TestPagerCost: whatever the keys look like, etcd counts few keys for each that it
// returns, and few requests are for little.
func TestPagerCost(t *testing.T) {
	t.Parallel()
	const n = 100_000
	for name, key := range map[string]func(i int) string{
		"one namespace":      func(i int) string { return fmt.Sprintf("/registry/secrets/default/object-%07d", i) },
		"hundred namespaces": func(i int) string { return fmt.Sprintf("/registry/secrets/ns-%d/object-%07d", i%97, i) },
		"namespaces with few": func(i int) string {
			return fmt.Sprintf("/registry/secrets/namespace-%d/sh.helm.release.v1.release.v%d", i/7, i%7)
		},
		"random names": func(i int) string {
			return fmt.Sprintf("/registry/events/default/pod.%016x", uint64(i+1)*0x9e3779b97f4a7c15)
		},
		"numbers":        func(i int) string { return fmt.Sprintf("/registry/configmaps/default/%d", i) },
		"many resources": func(i int) string { return fmt.Sprintf("/registry/example.com/widgets%d/x", i) },
		"long names in common": func(i int) string {
			return fmt.Sprintf("/registry/secrets/%s/%s-%d", strings.Repeat("n", 60), strings.Repeat("o", 200), i)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var keys []string
			for i := range n {
				keys = append(keys, key(i))
			}
			slices.Sort(keys)
			w := walk(keys, "/registry/")
			t.Logf("%d requests, %d keys counted for each", w.requests, w.counted/w.requests)
			if !slices.Equal(keys, w.keys) {
				t.Errorf("visited %d keys, want %d", len(w.keys), len(keys))
			}
			if most := n / maxKeys * 3 / 2; w.requests > most {
				t.Errorf("%d requests, want at most %d", w.requests, most)
			}
			if each := w.counted / w.requests; each > maxRange {
				t.Errorf("etcd counts %d keys for each request, want at most %d", each, maxRange)
			}
		})
	}
}

// Every key is visited once, in order, whatever bytes it has.
func TestPagerVisitsAll(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringOfN(rapid.RuneFrom([]rune("\x00/ab\xff")), 0, 6, -1), 0, 300, rapid.ID).Draw(t, "names")
		copies := rapid.IntRange(1, 40).Draw(t, "copies")
		var keys []string
		for _, name := range names {
			for i := range copies {
				keys = append(keys, "/r/"+name+strings.Repeat("\xff", i%2)+strings.Repeat("x", i))
			}
		}
		slices.Sort(keys)
		keys = slices.Compact(keys)
		got := walk(slices.Concat([]string{"/a", "/r"}, keys, []string{"/r0", "/s"}), "/r/").keys
		if diff := cmp.Diff(keys, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
