package hardening

import (
	"encoding/json"
	"maps"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// policy says what a filter allows, on the architecture of the test.
type policy struct {
	// allowed is by name; without conditions it is always allowed, else if one of
	// them holds.
	allowed map[string][]condition
	// errno is what others get: EPERM, but for those named here.
	errno map[string]unix.Errno
}

// condition is met when all comparisons are.
type condition []comparison

// comparison is of the lower half of an argument: all that the profile compares are
// 32 bits wide.
type comparison struct {
	Index uint32 `json:"index"`
	Mask  uint32 `json:"-"`
	Value uint32 `json:"-"`
}

// profile is the part of a seccomp profile of the Open Container Initiative that
// kekd's uses.
type profile struct {
	DefaultAction string   `json:"defaultAction"`
	Architectures []string `json:"architectures"`
	Syscalls      []rule   `json:"syscalls"`
}

// rule allows or refuses calls, for a reason.
type rule struct {
	Comment string   `json:"comment"`
	Names   []string `json:"names"`
	Action  string   `json:"action"`
	// ErrnoRet is for the action SCMP_ACT_ERRNO. Not every runtime knows one for the
	// default action, so that is EPERM.
	ErrnoRet uint32 `json:"errnoRet"`
	Args     []struct {
		Index    uint32 `json:"index"`
		Value    uint64 `json:"value"`
		ValueTwo uint64 `json:"valueTwo"`
		Op       string `json:"op"`
	} `json:"args"`
}

// system is the architecture of the test.
func system(t *testing.T) *arch.Info {
	t.Helper()
	info, err := arch.GetInfo(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// known requires that a system call is one, on some architecture.
func known(t *testing.T, name string) {
	t.Helper()
	for _, a := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		if _, ok := a.SyscallNames[name]; ok {
			return
		}
	}
	t.Errorf("there is no system call %q", name)
}

// readProfile reads the pod's profile strictly: a runtime would read over a slip.
func readProfile(t *testing.T) (policy, profile) {
	t.Helper()
	f, err := os.Open("../../manifests/static-pod/components/seccomp/kekd.json")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	var p profile
	if err := d.Decode(&p); err != nil {
		t.Fatal(err)
	}
	if p.DefaultAction != "SCMP_ACT_ERRNO" || !slices.Equal(p.Architectures, []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"}) {
		t.Fatalf("the default is %s, for %v", p.DefaultAction, p.Architectures)
	}
	out := policy{allowed: map[string][]condition{}, errno: map[string]unix.Errno{}}
	for _, s := range p.Syscalls {
		if s.Action == "SCMP_ACT_ERRNO" && s.ErrnoRet != 0 && len(s.Args) == 0 {
			for _, name := range s.Names {
				known(t, name)
				out.errno[name] = unix.Errno(s.ErrnoRet)
			}
			continue
		}
		if s.Action != "SCMP_ACT_ALLOW" || s.ErrnoRet != 0 || s.Comment == "" {
			t.Errorf("%v: action %q, errno %d, comment %q", s.Names, s.Action, s.ErrnoRet, s.Comment)
		}
		var all condition
		for _, a := range s.Args {
			c := comparison{Index: a.Index, Mask: ^uint32(0), Value: uint32(a.Value)}
			switch {
			case a.Op == "SCMP_CMP_EQ" && a.ValueTwo == 0 && a.Value>>32 == 0:
			case a.Op == "SCMP_CMP_MASKED_EQ" && (a.Value|a.ValueTwo)>>32 == 0:
				c.Mask, c.Value = uint32(a.Value), uint32(a.ValueTwo)
			default:
				t.Fatalf("comparison %+v", a)
			}
			all = append(all, c)
		}
		for _, name := range s.Names {
			known(t, name)
			before, twice := out.allowed[name]
			if twice && (len(all) == 0 || len(before) == 0) {
				t.Errorf("%s is allowed twice", name)
			}
			if out.allowed[name] = nil; len(all) > 0 {
				out.allowed[name] = append(before, all)
			}
		}
	}
	return out, p
}

// program compiles a policy as libseccomp does for a container runtime.
func (p policy) program(t *testing.T) []unix.SockFilter {
	t.Helper()
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		and   = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
		x32   = 0x40000000
		// Offsets in struct seccomp_data; the machine is little-endian.
		number, architecture, arguments = 0, 4, 16
	)
	info := system(t)
	refuse := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	allow := unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW}
	code := []unix.SockFilter{
		{Code: load, K: architecture}, {Code: equal, K: uint32(info.ID), Jt: 1}, {Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: number}, {Code: least, K: x32, Jf: 1}, refuse,
	}
	for _, name := range slices.Sorted(maps.Keys(p.allowed)) {
		n, ok := info.SyscallNames[name]
		if !ok {
			continue // of the other architecture
		}
		body := []unix.SockFilter{}
		for _, all := range p.allowed[name] {
			var checks []unix.SockFilter
			for i, c := range all {
				left := 3 * (len(all) - 1 - i) // instructions of the comparisons that follow
				checks = append(checks, unix.SockFilter{Code: load, K: arguments + 8*c.Index},
					unix.SockFilter{Code: and, K: c.Mask}, unix.SockFilter{Code: equal, K: c.Value, Jf: uint8(left + 1)})
			}
			body = append(append(body, checks...), allow)
		}
		if len(p.allowed[name]) > 0 {
			body = append(body, refuse)
		} else {
			body = append(body, allow)
		}
		code = append(code, unix.SockFilter{Code: equal, K: uint32(n), Jf: uint8(len(body))})
		code = append(code, body...)
	}
	for name, errno := range p.errno {
		if n, ok := info.SyscallNames[name]; ok {
			code = append(code, unix.SockFilter{Code: equal, K: uint32(n), Jf: 1}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(errno)})
		}
	}
	code = append(code, refuse)
	if len(code) > 4096 {
		t.Fatalf("a filter of %d instructions", len(code))
	}
	return code
}

// refusal is the error of a call that is not allowed.
func (p policy) refusal(name string) unix.Errno {
	if errno, ok := p.errno[name]; ok {
		return errno
	}
	return unix.EPERM
}

// allows reports what a policy does with a call, whatever the compiler makes of it.
func (p policy) allows(name string, arguments ...uint32) bool {
	conditions, ok := p.allowed[name]
	if !ok || len(conditions) == 0 {
		return ok
	}
	return slices.ContainsFunc(conditions, func(all condition) bool {
		for _, c := range all {
			if arguments[c.Index]&c.Mask != c.Value {
				return false
			}
		}
		return true
	})
}
