package hardening

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kekd/e2e/internal/harness"
)

// notSeen are the comments in the profile of what kekd with SoftHSM is not seen to
// call. Everything else that the profile allows is.
var notSeen = []string{
	"kekd itself, where the runtime has not set no_new_privs.",
	"What the Go runtime and glibc use besides: by kernel, by architecture, or when something goes wrong.",
	"Vendors' modules. Network HSMs: the client's sockets and its resolver.",
	"Vendors' modules. Locks, semaphores and memory that processes share.",
	"Vendors' modules. What daemons' clients, loggers and C++ runtimes are used to.",
	"AF_INET6.",
}

// mayBeRefused are calls that are seen without a filter, and done without under one.
var mayBeRefused = []string{
	"clone3", // glibc then calls clone
	"seccomp",
}

// dangerous are calls that kekd and modules have no use for, and attackers have.
var dangerous = []string{
	"acct", "add_key", "bpf", "chroot", "clone3", "delete_module", "execveat", "fanotify_init", "finit_module", "fsmount",
	"fsopen", "init_module", "io_setup", "io_uring_enter", "io_uring_register", "io_uring_setup", "kcmp", "kexec_file_load",
	"kexec_load", "keyctl", "landlock_create_ruleset", "lookup_dcookie", "memfd_create", "memfd_secret", "mount", "mount_setattr", "move_mount",
	"name_to_handle_at", "open_by_handle_at", "open_tree", "perf_event_open", "personality", "pidfd_getfd", "pivot_root",
	"process_madvise", "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "reboot", "request_key", "setgid",
	"setgroups", "sethostname", "setns", "setresuid", "setuid", "settimeofday", "swapon", "syslog", "umount2", "unshare",
	"userfaultfd", "vmsplice",
}

// TestProfile: the pod's seccomp profile allows what kekd is seen to call, and
// nothing without a reason.
func TestProfile(t *testing.T) {
	allowed, p := readProfile(t)
	for _, name := range dangerous {
		known(t, name)
		if _, ok := allowed.allowed[name]; ok {
			t.Errorf("%s is allowed", name)
		}
	}
	for what, refused := range map[string]bool{
		"a packet socket": allowed.allows("socket", unix.AF_PACKET), "a netlink socket": allowed.allows("socket", unix.AF_NETLINK),
		"a vsock socket":   allowed.allows("socket", unix.AF_VSOCK),
		"a user namespace": allowed.allows("clone", unix.CLONE_NEWUSER|uint32(unix.SIGCHLD)),
		"a namespace":      allowed.allows("clone", unix.CLONE_NEWNS|uint32(unix.SIGCHLD)),
	} {
		if refused {
			t.Errorf("%s is allowed", what)
		}
	}

	seen := traced(t)
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if _, ok := allowed.allowed[name]; !ok && !slices.Contains(mayBeRefused, name) {
			t.Errorf("kekd calls %s, which the profile does not allow", name)
		}
	}
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			_, here := system(t).SyscallNames[name]
			if s.Action != "SCMP_ACT_ALLOW" {
				continue
			}
			if reason := slices.Contains(notSeen, s.Comment); here && !reason && !seen[name] {
				t.Errorf("kekd does not call %s, so it belongs under a reason", name)
			} else if strings.HasPrefix(s.Comment, "Vendors' modules.") && seen[name] {
				t.Errorf("kekd calls %s, and the profile has it under %q", name, s.Comment)
			}
		}
	}
	for _, reason := range notSeen {
		if !slices.ContainsFunc(p.Syscalls, func(s rule) bool {
			return s.Comment == reason
		}) {
			t.Errorf("nothing in the profile has the reason %q", reason)
		}
	}
	t.Logf("%d system calls of %d are allowed; kekd is seen to use %d", len(allowed.allowed), len(system(t).SyscallNames), len(seen))
}

// traced is what kekd and its worker call on a journey.
func traced(t *testing.T) map[string]bool {
	t.Helper()
	c := asInAPod()
	c.Trace = filepath.Join(t.TempDir(), "trace")
	k := newKekd(t, c)
	journey(t, k)
	f, err := os.Open(c.Trace)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	call := regexp.MustCompile(`^\d+ +([a-z0-9_]+)\((.*)`)
	seen, on, starts := map[string]bool{}, false, 0
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		m := call.FindStringSubmatch(lines.Text())
		if m == nil {
			continue // the end of a call, or a signal
		}
		// The test's own program, which becomes kekd, is no part of it.
		if m[1] == "execve" && strings.Contains(m[2], "serve") {
			on = strings.HasPrefix(m[2], `"`+k.Dir())
			if on {
				starts++
			}
		}
		if on {
			seen[m[1]] = true
		}
	}
	if lines.Err() != nil || starts != 2 {
		t.Fatalf("%d starts in the trace, want 2; %v", starts, lines.Err())
	}
	return seen
}

// TestJourneyUnderProfile: the profile is enough.
func TestJourneyUnderProfile(t *testing.T) {
	allowed, _ := readProfile(t)
	c := asInAPod()
	c.Filter = allowed.program(t)
	k := newKekd(t, c)
	journey(t, k)
}

// TestJourneyUnderUnit: so is the SystemCallFilter of the systemd unit.
func TestJourneyUnderUnit(t *testing.T) {
	allowed := readUnit(t)
	for _, name := range dangerous {
		if _, ok := allowed.allowed[name]; ok && !slices.Contains(unitsOther, name) {
			t.Errorf("%s is allowed", name)
		}
	}
	c := asInAPod()
	c.Filter = allowed.program(t)
	journey(t, newKekd(t, c))
}

// unitsOther are dangerous calls that other settings of the unit refuse, or that
// its filter can't without: glibc makes threads by clone3, and RestrictNamespaces=
// refuses it there.
var unitsOther = []string{"clone3", "personality"}

// readUnit is the policy of the unit's SystemCallFilter lines, by systemd's own lists.
func readUnit(t *testing.T) policy {
	t.Helper()
	unit, err := os.ReadFile("../../manifests/systemd/kekd.service")
	if err != nil {
		t.Fatal(err)
	}
	p := policy{allowed: map[string][]condition{}}
	for _, name := range group(t, "@default") {
		p.allowed[name] = nil
	}
	lines := 0
	for line := range strings.Lines(string(unit)) {
		list, ok := strings.CutPrefix(strings.TrimSpace(line), "SystemCallFilter=")
		if !ok {
			continue
		}
		lines++
		list, deny := strings.CutPrefix(list, "~")
		if deny == (lines == 1) {
			t.Fatal("the first line must allow, and the others deny")
		}
		for item := range strings.FieldsSeq(list) {
			for _, name := range group(t, item) {
				if deny {
					delete(p.allowed, name)
				} else {
					p.allowed[name] = nil
				}
			}
		}
	}
	return p
}

// group expands a group of systemd's.
func group(t *testing.T, name string) []string {
	t.Helper()
	if !strings.HasPrefix(name, "@") {
		known(t, name)
		return []string{name}
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "syscall-filter", name).Output()
	if err != nil {
		t.Fatalf("systemd-analyze: %v: install systemd 247 or later", err)
	}
	var all []string
	for line := range strings.Lines(string(out)) {
		item := strings.TrimSpace(line)
		switch {
		case item == "" || item == name || strings.HasPrefix(item, "#"):
		case strings.HasPrefix(item, "@"):
			all = append(all, group(t, item)...)
		default:
			all = append(all, item)
		}
	}
	if len(all) == 0 {
		t.Fatalf("the group %s is empty", name)
	}
	return all
}

// tryArgument marks the test binary's call of itself, to try system calls.
const tryArgument = "try-system-calls"

// attempt is one system call with its arguments.
type attempt struct {
	Name      string
	Number    uintptr
	Arguments [3]uintptr
}

// try makes the calls and prints what the kernel says.
func try() {
	if len(os.Args) != 3 || os.Args[1] != tryArgument {
		return
	}
	runtime.LockOSThread()
	var calls []attempt
	if err := json.Unmarshal([]byte(os.Args[2]), &calls); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, c := range calls {
		r, _, errno := unix.RawSyscall(c.Number, c.Arguments[0], c.Arguments[1], c.Arguments[2])
		if strings.HasPrefix(c.Name, "clone") && errno == 0 && r == 0 {
			os.Exit(0) // the child that should not be
		}
		fmt.Println(c.Name, int(errno))
	}
	os.Exit(0)
}

// tryAs tries the calls under a confinement, and returns their errors.
func tryAs(t *testing.T, c harness.Confinement, calls []attempt) map[string]unix.Errno {
	t.Helper()
	text, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]unix.Errno{}
	for line := range strings.Lines(harness.RunConfined(t, c, os.Args[0], tryArgument, string(text))) {
		var name string
		var errno int
		if _, err := fmt.Sscan(line, &name, &errno); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got[name] = unix.Errno(errno)
	}
	if len(got) != len(calls) {
		t.Fatalf("%d answers to %d calls", len(got), len(calls))
	}
	return got
}

// TestRefused makes the calls, in a process under the very filter.
func TestRefused(t *testing.T) {
	numbers := system(t).SyscallNames
	var calls []attempt
	for name, number := range numbers {
		if strings.HasPrefix(name, "ure") || strings.HasPrefix(name, "upr") {
			continue // uprobes' own, which no filter sees: from elsewhere they are SIGILL
		}
		calls = append(calls, attempt{Name: name, Number: uintptr(number)})
	}
	for filter, p := range map[string]policy{"profile": first(readProfile(t)), "unit": readUnit(t)} {
		t.Run(filter, func(t *testing.T) {
			c := asInAPod()
			c.Filter = p.program(t)
			refused := slices.DeleteFunc(slices.Clone(calls), func(a attempt) bool { _, ok := p.allowed[a.Name]; return ok })
			if filter == "profile" {
				refused = append(refused,
					attempt{"socket-netlink", uintptr(numbers["socket"]), [3]uintptr{unix.AF_NETLINK, unix.SOCK_RAW}},
					attempt{"socket-packet", uintptr(numbers["socket"]), [3]uintptr{unix.AF_PACKET, unix.SOCK_RAW}},
					attempt{"clone-newuser", uintptr(numbers["clone"]), [3]uintptr{unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD)}})
			}
			for name, errno := range tryAs(t, c, refused) {
				if errno != p.refusal(name) {
					t.Errorf("%s: %v, want %v", name, errno, p.refusal(name))
				}
			}
			t.Logf("%d calls refused", len(refused))
		})
	}
	// Without a filter these are let through, so that a refusal is the filter's.
	for name, errno := range tryAs(t, asInAPod(), []attempt{
		{"getcpu", uintptr(numbers["getcpu"]), [3]uintptr{}},
		{"unshare", uintptr(numbers["unshare"]), [3]uintptr{}},
		{"socket-netlink", uintptr(numbers["socket"]), [3]uintptr{unix.AF_NETLINK, unix.SOCK_RAW}},
	}) {
		if errno != 0 {
			t.Errorf("%s without a filter: %v", name, errno)
		}
	}
}

func first(p policy, _ profile) policy { return p }
