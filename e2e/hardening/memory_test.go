package hardening

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"kekd/e2e/internal/harness"
)

// mapping is one line of a process's memory map.
type mapping struct {
	low, high uint64
	perms     string
	name      string
	flags     []string // VmFlags of smaps
}

func (m mapping) size() int { return int(m.high - m.low) }

func (m mapping) locked() bool { return slices.Contains(m.flags, "lo") }

func (m mapping) String() string {
	return fmt.Sprintf("%x-%x %s %s %v", m.low, m.high, m.perms, m.name, m.flags)
}

// mappings reads a process's memory map.
func mappings(t *testing.T, pid int) []mapping {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var all []mapping
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok {
			all[len(all)-1].flags = strings.Fields(flags)
			continue
		}
		var m mapping
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &m.low, &m.high, &m.perms); n == 3 {
			if fields := strings.Fields(line); len(fields) > 5 {
				m.name = fields[5]
			}
			all = append(all, m)
		}
	}
	if len(all) < 10 {
		t.Fatalf("process %d has the mappings %v", pid, all)
	}
	return all
}

func lockedMappings(t *testing.T, pid int) []mapping {
	t.Helper()
	return slices.DeleteFunc(mappings(t, pid), func(m mapping) bool { return !m.locked() })
}

// find is a place in a process's memory.
type find struct {
	what    string
	address uint64
	in      mapping
}

func (f find) String() string { return fmt.Sprintf("%s at %x in %v", f.what, f.address, f.in) }

// search looks for needles in all readable memory of a process, which stands still
// meanwhile: the heap with what is garbage, the stacks of goroutines and threads, the
// data of libraries.
func search(t *testing.T, pid int, needles map[string][]byte) []find {
	t.Helper()
	for name, n := range needles {
		if len(n) < 8 {
			t.Fatalf("%s has %d bytes, too few not to turn up by chance", name, len(n))
		}
	}
	halt(t, pid)
	defer func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Errorf("let process %d go on: %v", pid, err)
		}
	}()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	var found []find
	total := 0
	for _, m := range mappings(t, pid) {
		if m.perms[0] != 'r' || strings.HasPrefix(m.name, "[v") { // vvar, vsyscall: the kernel's
			continue
		}
		content := make([]byte, m.size())
		n, err := mem.ReadAt(content, int64(m.low))
		// A mapping of a file may end behind the file.
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EIO) {
			t.Fatalf("read %v: %v", m, err)
		}
		total += n
		for name, needle := range needles {
			for from := 0; ; {
				i := bytes.Index(content[from:], needle)
				if i < 0 {
					break
				}
				found = append(found, find{name, m.low + uint64(from+i), m})
				from += i + 1
			}
		}
	}
	if total < 10<<20 {
		t.Fatalf("only %d bytes of process %d were readable", total, pid)
	}
	return found
}

// halt stops a process and waits until all its threads stand still.
func halt(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	harness.AwaitHalted(t, pid)
}
