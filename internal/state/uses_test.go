package state

import (
	"errors"
	"math"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"kekd/internal/kek"
)

func openUses(t *testing.T, d *Dir) *Uses {
	t.Helper()
	u, err := OpenUses(d)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func add(t *testing.T, u *Uses, id kek.ID, n, want uint64) {
	t.Helper()
	total, err := u.Add(id, n)
	if err != nil {
		t.Fatal(err)
	}
	if total != want {
		t.Errorf("Add(%s, %d) = %d, want %d", id, n, total, want)
	}
}

// Each total is on disk when Add returns it: nothing is closed or flushed here.
func TestUsesAcrossRestarts(t *testing.T) {
	d := open(t)
	u := openUses(t, d)
	add(t, u, "a", 4096, 4096)
	add(t, u, "b", 5, 5)
	add(t, u, "a", 4096, 8192)
	add(t, openUses(t, d), "a", 1, 8193)
	add(t, openUses(t, d), "b", 1, 6)
}

func TestUsesFullDisk(t *testing.T) {
	d := open(t)
	u := openUses(t, d)
	add(t, u, "a", 1, 1)
	removeSpare(t, d)
	d.create = func(string) (file, error) { return nil, syscall.ENOSPC }
	_, err := u.Add("a", 10)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "count 10 uses of key 61") {
		t.Errorf("Add on a full disk = %v, want ENOSPC and the key", err)
	}
	d.create = create
	add(t, u, "a", 1, 2)
	add(t, openUses(t, d), "a", 1, 3)
}

func TestUsesFile(t *testing.T) {
	d := open(t)
	for name, content := range map[string]string{
		"damaged":  `{"uses":{"61":`,
		"no id":    `{"uses":{"xyz":1}}`,
		"negative": `{"uses":{"61":-1}}`,
	} {
		if err := os.WriteFile(d.Path(usesName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenUses(d); err == nil || !strings.Contains(err.Error(), d.Path(usesName)) {
			t.Errorf("%s: OpenUses = %v, want an error that names the file", name, err)
		}
	}
	if err := os.WriteFile(d.Path(usesName), []byte(`{"uses":{"61":18446744073709551615}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	add(t, openUses(t, d), "a", 5, math.MaxUint64)
}

func TestUsesConcurrent(t *testing.T) {
	const callers, each = 4, 25
	u := openUses(t, open(t))
	totals := make(chan uint64, callers*each)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				total, err := u.Add("a", 1)
				if err != nil {
					t.Error(err)
				}
				totals <- total
			}
		})
	}
	wg.Wait()
	close(totals)
	seen := map[uint64]bool{}
	for total := range totals {
		if total < 1 || total > callers*each || seen[total] {
			t.Errorf("total %d is out of range or was handed out twice", total)
		}
		seen[total] = true
	}
}
