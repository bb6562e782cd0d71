package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type fact struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

func open(t *testing.T) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSaveLoadRemove(t *testing.T) {
	d := open(t)
	var got fact
	if found, err := d.Load("latch", &got); found || err != nil {
		t.Fatalf("Load before Save = %v, %v, want nothing", found, err)
	}
	for _, want := range []fact{{"a", 1}, {"b", 2}} {
		if err := d.Save("latch", want); err != nil {
			t.Fatal(err)
		}
		got = fact{}
		again, err := Open(d.path)
		if err != nil {
			t.Fatal(err)
		}
		if found, err := again.Load("latch", &got); !found || err != nil {
			t.Fatalf("Load after Save = %v, %v", found, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Load (-want +got):\n%s", diff)
		}
	}
	for range 2 {
		if err := d.Remove("latch"); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if found, err := d.Load("latch", &got); found || err != nil {
		t.Errorf("Load after Remove = %v, %v, want nothing", found, err)
	}
}

func TestModes(t *testing.T) {
	d := open(t)
	if err := d.Save("latch", fact{}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{d.path: 0o700, d.Path("latch"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("mode of %s = %04o, want %04o", path, got, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(dir, "shared")
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o770); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(dir, "missing", "state")
	tests := []struct{ name, path, want string }{
		{"no parent", orphan, "make the state directory: mkdir " + orphan + ": no such file or directory; make its parent directory, or set stateDir"},
		{"a file", plain, "check the state directory: " + plain + " is not a directory; set stateDir to one"},
		{"writable by the group", shared, "check the state directory: " + shared + " is writable by group or others (mode 0770); run chmod 0700 " + shared},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(tt.path)
			if err == nil || err.Error() != tt.want {
				t.Errorf("Open:\n got %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestLoadDamaged(t *testing.T) {
	tests := []struct{ name, content, want string }{
		{"empty", "", "EOF"},
		{"truncated", `{"name":"a"`, "unexpected EOF"},
		{"not JSON", "name: a", "invalid character"},
		{"wrong type", `{"count":"1"}`, "cannot unmarshal string"},
		{"unknown field", `{"name":"a","until":1}`, `unknown field "until"`},
		{"two values", `{"name":"a"}{"name":"b"}`, "something follows the first value"},
		{"garbage after", `{"name":"a"} x`, "something follows the first value"},
		{"large", strings.Repeat(" ", maxFileSize+1), "is larger than 1024 KiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := open(t)
			if err := os.WriteFile(d.Path("latch"), []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			found, err := d.Load("latch", new(fact))
			if found || err == nil {
				t.Fatalf("Load = %v, %v, want an error: damaged is not missing", found, err)
			}
			for _, part := range []string{tt.want, d.Path("latch")} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("Load = %v, want %q in it", err, part)
				}
			}
		})
	}
}

// faultyFile fails at one step, after half of what it does.
type faultyFile struct {
	file
	step string
	err  error
}

func (f faultyFile) Write(b []byte) (int, error) {
	if f.step != "write" {
		return f.file.Write(b)
	}
	n, _ := f.file.Write(b[:len(b)/2])
	return n, f.err
}

func (f faultyFile) Sync() error {
	if f.step == "sync" {
		return f.err
	}
	return f.file.Sync()
}

func (f faultyFile) Close() error {
	err := f.file.Close()
	if f.step == "close" {
		return f.err
	}
	return err
}

func TestFailedSaveLosesNothing(t *testing.T) {
	for _, step := range []string{"create", "write", "sync", "close", "rename"} {
		t.Run(step, func(t *testing.T) {
			d := open(t)
			old := fact{"old", 1}
			if err := d.Save("latch", old); err != nil {
				t.Fatal(err)
			}
			removeSpare(t, d)
			d.create = func(path string) (file, error) {
				switch step {
				case "create":
					return nil, syscall.ENOSPC
				case "rename":
					// The source of the rename is not there any more.
					f, err := create(path)
					return f, errors.Join(err, os.Remove(path))
				}
				f, err := create(path)
				return faultyFile{f, step, syscall.ENOSPC}, err
			}
			err := d.Save("latch", fact{"new", 2})
			if err == nil {
				t.Fatal("Save reported no error")
			}
			if step != "rename" && !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("Save = %v, want ENOSPC inside", err)
			}
			var got fact
			if _, err := d.Load("latch", &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(old, got); diff != "" {
				t.Errorf("after a failed Save (-want +got):\n%s", diff)
			}
			entries, err := os.ReadDir(d.path)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 1 {
				t.Errorf("a failed Save left %v behind", entries)
			}
			d.create = create
			if err := d.Save("latch", fact{"new", 2}); err != nil {
				t.Errorf("Save after the fault: %v", err)
			}
		})
	}
}

// What a crash left half written is neither read nor in the way.
func TestCrashLeavesTemporaryFile(t *testing.T) {
	d := open(t)
	if err := os.WriteFile(d.Path("latch")+".new", []byte(`{"name":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := d.Load("latch", new(fact)); found || err != nil {
		t.Errorf("Load = %v, %v, want nothing", found, err)
	}
	if err := d.Save("latch", fact{"a", 1}); err != nil {
		t.Errorf("Save: %v", err)
	}
}

func TestNames(t *testing.T) {
	d := open(t)
	for _, name := range []string{"", "A", "../x", "a/b", "a.b", "1a", strings.Repeat("a", 65)} {
		_, load := d.Load(name, new(fact))
		for op, err := range map[string]error{"Load": load, "Save": d.Save(name, fact{}), "Remove": d.Remove(name)} {
			if err == nil || !strings.Contains(err.Error(), "not a name") {
				t.Errorf("%s(%q) = %v, want a refusal", op, name, err)
			}
		}
	}
	if err := d.Save("latch", func() {}); err == nil {
		t.Error("Save accepted what JSON cannot hold")
	}
}

func TestConcurrentSaves(t *testing.T) {
	d := open(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := d.Save("latch", fact{"x", i}); err != nil {
				t.Error(err)
			}
			if _, err := d.Load("latch", new(fact)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A program that only looks makes nothing: no directory, no spare.
func TestOpenExisting(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	if _, err := OpenExisting(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: got %v", err)
	}
	if _, err := Inspect(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: got %v", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := OpenExisting(path)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := d.Load("none", new(int)); found || err != nil {
		t.Errorf("nothing is kept: got %v, %v", found, err)
	}
	if files, err := os.ReadDir(path); err != nil || len(files) != 0 {
		t.Errorf("the directory has %v, %v", files, err)
	}
	found, err := Inspect(path)
	if want := (Inspection{UID: os.Geteuid(), Mode: 0o700}); found != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", found, err, want)
	}
	if err := os.Chmod(path, 0o770); err != nil {
		t.Fatal(err)
	}
	if found, err := Inspect(path); err == nil || found.Mode != 0o770 {
		t.Errorf("a directory that the group can write to: got %+v, %v", found, err)
	}
}
