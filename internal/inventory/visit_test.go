package inventory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fill adds n objects of one resource with values of size bytes.
func fill(content map[string]string, resource string, n, size int) {
	for i := range n {
		content[fmt.Sprintf("/registry/%s/ns/%06d", resource, i)] = strings.Repeat("x", size)
	}
}

// visitAll returns the keys in the order of the visit.
func visitAll(t *testing.T, s *Store) ([]string, Pass) {
	t.Helper()
	var keys []string
	pass, err := s.Visit(t.Context(), Options{}, func(o Object) error {
		keys = append(keys, o.Key)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys, pass
}

func TestVisitEachOnce(t *testing.T) {
	t.Parallel()
	for name, fill := range map[string]func(map[string]string){
		"few":      func(c map[string]string) { fill(c, "secrets", 3, 100) },
		"a page":   func(c map[string]string) { fill(c, "secrets", maxKeys, 10) },
		"one more": func(c map[string]string) { fill(c, "secrets", maxKeys+1, 10) },
		"many":     func(c map[string]string) { fill(c, "secrets", 9000, 10) },
		"many resources": func(c map[string]string) {
			for i := range 300 {
				fill(c, fmt.Sprint("r", i), 2+i%5, 10)
			}
		},
		"a resource's end": func(c map[string]string) { fill(c, "a", maxKeys, 10); fill(c, "b", 1, 10) },
		"no slash behind": func(c map[string]string) {
			for i := range 500 {
				c[fmt.Sprint("/registry/key", i)] = "x"
			}
		},
		"odd keys": func(c map[string]string) {
			for i := range 200 {
				c["/registry/"+strings.Repeat("/", i)] = ""
				c["/registry/\xff\xff"+strings.Repeat("\xff", i)+"/x"] = ""
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := map[string]string{}
			fill(content)
			f := newFake(t, content)
			content["/registry/namespaces/default"] = ""
			// The neighbours of the prefix are no objects.
			f.change(func(c map[string]string) { c["/registry"], c["/registry0"], c["compact_rev_key"] = "", "", "" })
			keys, pass := visitAll(t, f.store())
			seen := map[string]string{}
			last := ""
			for _, k := range keys {
				if k <= last {
					t.Fatalf("%q comes behind %q", k, last)
				}
				last = k
				seen[k] = content[k]
			}
			if len(keys) != len(content) || !cmp.Equal(seen, content) {
				t.Errorf("visited %d objects, want %d", len(keys), len(content))
			}
			if want := (Pass{Revision: 2}); pass != want {
				t.Errorf("got %+v, want %+v", pass, want)
			}
		})
	}
}

func TestVisitSizesPages(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fill    func(map[string]string)
		largest int
		want    []page
	}{
		"small objects": {
			func(c map[string]string) { fill(c, "secrets", 100, 100) }, maxAnswer,
			// The first page holds the namespace too.
			[]page{{32, 32}, {32, 32}, {32, 32}, {32, 5}},
		},
		"large objects": {
			func(c map[string]string) { fill(c, "secrets", 40, 500_000) }, maxAnswer,
			[]page{{32, 0}, {8, 8}, {4, 4}, {4, 4}, {4, 4}, {4, 4}, {4, 4}, {4, 4}, {4, 4}, {4, 4}, {4, 1}},
		},
		"large behind small": {
			func(c map[string]string) { fill(c, "events", 40, 100); fill(c, "secrets", 30, 1<<20) }, 32 << 20,
			[]page{{32, 32}, {32, 32}, {2, 2}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}},
		},
		"one that is larger than a page": {
			func(c map[string]string) { fill(c, "events", 3, 100); fill(c, "secrets", 1, maxAnswer) }, maxAnswer - 1,
			[]page{{32, 0}, {8, 0}, {2, 2}, {32, 0}, {8, 0}, {2, 2}, {32, 0}, {8, 0}, {2, 0}, {1, 0}, {1, 1}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			content := map[string]string{}
			c.fill(content)
			f := newFake(t, content)
			f.largest = c.largest
			keys, _ := visitAll(t, f.store())
			if want := len(f.revisions[1]); len(keys) != want {
				t.Errorf("visited %d objects, want %d", len(keys), want)
			}
			if diff := cmp.Diff(c.want, f.pages); diff != "" {
				t.Errorf("pages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVisitOneInstant(t *testing.T) {
	t.Parallel()
	content := map[string]string{}
	fill(content, "secrets", 1000, 10)
	f := newFake(t, content)
	// Whatever changes is not seen.
	f.before = func(n int) {
		f.change(func(c map[string]string) {
			delete(c, fmt.Sprintf("/registry/secrets/ns/%06d", 1000-n))
			c[fmt.Sprintf("/registry/secrets/zz/%06d", n)] = ""
		})
	}
	keys, pass := visitAll(t, f.store())
	if want := (Pass{Revision: 1}); pass != want || len(keys) != 1001 {
		t.Errorf("visited %d objects with %+v, want 1001 with %+v", len(keys), pass, want)
	}
}

// TestVisitAtMemberThatLags: a member that does not have the revision yet catches up.
func TestVisitAtMemberThatLags(t *testing.T) {
	t.Parallel()
	content := map[string]string{}
	fill(content, "secrets", 100, 10)
	f := newFake(t, content)
	f.lags = true
	keys, pass := visitAll(t, f.store())
	if want := (Pass{Revision: 1}); pass != want || len(keys) != 101 {
		t.Errorf("visited %d objects with %+v, want 101 with %+v", len(keys), pass, want)
	}
}

func TestVisitGoesOnAfterCompaction(t *testing.T) {
	t.Parallel()
	content := map[string]string{}
	fill(content, "secrets", 1000, 10)
	f := newFake(t, content)
	requests := 0
	f.before = func(int) {
		n := requests
		requests++
		if n != 1 && n != 4 {
			return
		}
		f.change(func(c map[string]string) {
			delete(c, "/registry/secrets/ns/000000")                  // seen already
			delete(c, fmt.Sprintf("/registry/secrets/ns/00099%d", n)) // not seen yet
			c["/registry/secrets/zz/new"] = ""
		})
		f.compact()
	}
	keys, pass := visitAll(t, f.store())
	seen := map[string]int{}
	for _, k := range keys {
		seen[k]++
	}
	for i := range 1000 {
		want := 1
		if i == 991 || i == 994 {
			want = 0
		}
		if key := fmt.Sprintf("/registry/secrets/ns/%06d", i); seen[key] != want {
			t.Errorf("visited %s %d times, want %d", key, seen[key], want)
		}
	}
	if seen["/registry/secrets/zz/new"] != 1 {
		t.Error("what was created in the meantime is not there")
	}
	if want := (Pass{Revision: 3, Compacted: 2}); pass != want {
		t.Errorf("got %+v, want %+v", pass, want)
	}
}

func TestVisitEnds(t *testing.T) {
	t.Parallel()
	content := map[string]string{}
	fill(content, "secrets", 1000, 10)
	broken := errors.New("broken")

	t.Run("by the visitor", func(t *testing.T) {
		t.Parallel()
		n := 0
		_, err := newFake(t, content).store().Visit(t.Context(), Options{}, func(Object) error {
			if n++; n == 150 {
				return broken
			}
			return nil
		})
		if err != broken || n != 150 { //nolint:errorlint // it is promised as it is
			t.Errorf("ended with %v after %d objects", err, n)
		}
	})
	t.Run("by the context", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		f := newFake(t, content)
		f.before = func(n int) {
			if n == 2 {
				cancel()
			}
		}
		n := 0
		_, err := f.store().Visit(ctx, Options{}, func(Object) error { n++; return nil })
		if !errors.Is(err, context.Canceled) || len(f.pages) != 3 {
			t.Errorf("ended with %v after %d pages, want 3", err, len(f.pages))
		}
	})
	t.Run("by etcd", func(t *testing.T) {
		t.Parallel()
		f := newFake(t, content)
		f.before = func(n int) {
			if n == 2 {
				f.err = broken
			}
		}
		_, err := f.store().Visit(t.Context(), Options{}, func(Object) error { return nil })
		if want := "read etcd at http://fake:2379: broken"; err == nil || err.Error() != want {
			t.Errorf("ended with %v, want %q", err, want)
		}
	})
	t.Run("by an answer that is always too large", func(t *testing.T) {
		t.Parallel()
		f := newFake(t, content)
		f.largest = 1
		if _, err := f.store().Take(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "larger than max") {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestVisitRefusesWhatIsNoCluster(t *testing.T) {
	t.Parallel()
	content := map[string]string{}
	fill(content, "secrets", 10, 10)
	f := newFake(t, content)
	f.change(func(c map[string]string) { delete(c, "/registry/namespaces/default") })
	for name, s := range map[string]*Store{
		"no namespaces":  f.store(),
		"another prefix": newStore(newFake(t, content), "http://fake:2379", "other", nil),
	} {
		if r, err := s.Take(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "has no namespaces below /") {
			t.Errorf("%s: got %+v, %v", name, r, err)
		}
	}
}

func TestVisitShowsProgress(t *testing.T) {
	t.Parallel()
	content := map[string]string{}
	fill(content, "secrets", 69, 10)
	var got [][2]int64
	progress := func(done, total int64) { got = append(got, [2]int64{done, total}) }
	if _, err := newFake(t, content).store().Take(t.Context(), Options{Progress: progress}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][2]int64{{32, 70}, {64, 70}, {70, 70}}, got); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
}
