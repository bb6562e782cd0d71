package state

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kekd/internal/kek"
)

func removeSpare(t *testing.T, d *Dir) {
	t.Helper()
	if err := os.Remove(filepath.Join(d.path, spareName)); err != nil {
		t.Fatal(err)
	}
}

func noRoom(string) (file, error) { return nil, syscall.ENOSPC }

// A full disk takes one more save; the next is refused, and there is a spare again
// once there is room.
func TestSpare(t *testing.T) {
	d := open(t)
	d.create = noRoom
	if err := d.Writable(); err != nil {
		t.Errorf("Writable with a spare: %v", err)
	}
	if err := d.Save("latch", fact{"a", 1}); err != nil {
		t.Fatalf("the first Save: %v, want it in the spare", err)
	}
	var got fact
	if found, err := d.Load("latch", &got); !found || err != nil || got != (fact{"a", 1}) {
		t.Errorf("Load = %v, %v, %v", got, found, err)
	}
	if info, err := os.Stat(d.Path("latch")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v; want mode 0600", info, err)
	}
	for what, err := range map[string]error{"Save": d.Save("latch", fact{"b", 2}), "Writable": d.Writable()} {
		if !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, kek.ErrState) || !strings.Contains(err.Error(), "make room where stateDir is") {
			t.Errorf("%s without a spare: %v, want ENOSPC, ErrState and the remedy", what, err)
		}
	}
	if _, err := d.Load("latch", &got); err != nil || got.Name != "a" {
		t.Errorf("after a failed Save: %v, %v, want the fact before", got, err)
	}
	d.create = create
	if err := d.Save("latch", fact{"c", 3}); err != nil {
		t.Fatal(err)
	}
	d.create = noRoom
	if err := d.Save("latch", fact{"d", 4}); err != nil {
		t.Errorf("Save on a disk that is full again: %v", err)
	}
}

// What does not fit the spare is not saved in half.
func TestSpareTooSmall(t *testing.T) {
	d := open(t)
	d.create = noRoom
	if err := d.Save("latch", fact{Name: strings.Repeat("x", spareSize)}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Save = %v, want ENOSPC", err)
	}
	if found, err := d.Load("latch", new(fact)); found || err != nil {
		t.Errorf("Load = %v, %v, want nothing", found, err)
	}
}

// A file of a directory that is gone was not removed: it may be a latch.
func TestDirectoryGone(t *testing.T) {
	d := open(t)
	if err := os.RemoveAll(d.path); err != nil {
		t.Fatal(err)
	}
	_, load := d.Load("latch", new(fact))
	for what, err := range map[string]error{"Load": load, "Save": d.Save("latch", fact{}), "Remove": d.Remove("latch"), "Writable": d.Writable()} {
		if !errors.Is(err, kek.ErrState) || !strings.Contains(err.Error(), "restore "+d.path) {
			t.Errorf("%s = %v, want ErrState and the remedy", what, err)
		}
	}
}

func TestWritable(t *testing.T) {
	d := open(t)
	if err := d.Writable(); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(d.path); err != nil || len(entries) != 1 || entries[0].Name() != spareName {
		t.Errorf("left %v, %v; want the spare alone", entries, err)
	}
	d.create = func(string) (file, error) { return nil, syscall.EROFS }
	if err := d.Writable(); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "mount stateDir writable") {
		t.Errorf("Writable = %v, want EROFS and the remedy", err)
	}
}

func TestLock(t *testing.T) {
	d := open(t)
	release, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(d.path) // as kekctl does: reading and saving go on
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Save("latch", fact{}); err != nil {
		t.Error(err)
	}
	if _, err := other.Lock(); err == nil || !strings.Contains(err.Error(), "another kekd uses "+d.path) {
		t.Errorf("Lock of a locked directory = %v, want a refusal", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	release, err = other.Lock()
	if err != nil {
		t.Fatalf("Lock after the release: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
}
