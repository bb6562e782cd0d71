package hardening

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kekd/e2e/internal/harness"
)

// proc reads a file of a process.
func proc(t *testing.T, pid int, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// status is a process's or thread's /proc status by name.
func status(t *testing.T, text string) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("line %q of a status", line)
		}
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

// both calls f with the daemon and with its worker.
func both(t *testing.T, k *harness.Kekd, f func(t *testing.T, pid int)) {
	t.Helper()
	for name, pid := range map[string]int{"kekd": k.PID(), "worker": k.WorkerPID(t)} {
		t.Run(name, func(t *testing.T) { f(t, pid) })
	}
}

// TestProcesses: what the kernel says of both processes, thread by thread.
func TestProcesses(t *testing.T) {
	k := started(t)
	c := connect(t, k)
	c.mustDecrypt(t, c.encrypt(t))
	both(t, k, func(t *testing.T, pid int) {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil || len(tasks) < 2 {
			t.Fatalf("threads %v, %v: want several", tasks, err)
		}
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			if errors.Is(err, os.ErrNotExist) {
				continue // it ended since
			}
			if err != nil {
				t.Fatal(err)
			}
			got := status(t, string(text))
			id, none := strconv.Itoa(uid), "0000000000000000"
			for name, want := range map[string]string{
				"NoNewPrivs": "1",
				"Uid":        strings.Join([]string{id, id, id, id}, " "), "Gid": strings.Join([]string{id, id, id, id}, " "), "Groups": "",
				"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
			} {
				if got[name] != want {
					t.Errorf("%s: %s is %q, want %q", task, name, got[name], want)
				}
			}
		}
		if !strings.Contains(strings.Join(strings.Fields(proc(t, pid, "limits")), " "), "Max core file size 0 0 bytes") {
			t.Errorf("RLIMIT_CORE is not 0:\n%s", proc(t, pid, "limits"))
		}
		// The kernel gives the files of an undumpable process to root.
		info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
			t.Errorf("/proc/%d/mem belongs to %d, so the process is dumpable", pid, owner)
		}
	})
}

// TestOtherProcessesOfTheUser: whoever runs as kekd's user sees nothing of it.
func TestOtherProcessesOfTheUser(t *testing.T) {
	k := started(t)
	both(t, k, func(t *testing.T, pid int) {
		for name, err := range asUser(t, func() map[string]error {
			tried := map[string]error{"ptrace": unix.PtraceAttach(pid), "process_vm_readv": vmRead(pid)}
			for _, file := range []string{"mem", "maps", "environ", "fd", "root", "exe", "syscall"} {
				_, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, file))
				if file == "root" || file == "exe" {
					_, err = os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, file))
				}
				tried[file] = err
			}
			return tried
		}) {
			if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
				t.Errorf("%s: %v, want a refusal", name, err)
			}
		}
	})
	// The test would see access, if there were any.
	probe := exec.CommandContext(t.Context(), "sleep", "60")
	probe.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	if err := probe.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = probe.Process.Kill(), probe.Wait() }()
	harness.Eventually(t, 10*time.Second, "a dumpable process is open to its user", func(context.Context) error {
		var err error
		for _, e := range asUser(t, func() map[string]error {
			_, err := os.Open(fmt.Sprintf("/proc/%d/mem", probe.Process.Pid))
			return map[string]error{"mem": err}
		}) {
			err = e
		}
		return err
	})
}

// vmRead reads one byte of a process at address 0, which is mapped nowhere: what
// comes is EFAULT where the process is open, and EPERM where it is not.
func vmRead(pid int) error {
	var b [1]byte
	local := []unix.Iovec{{Base: &b[0], Len: 1}}
	_, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 0, Len: 1}}, 0)
	return err
}

// asUser runs f on a thread of kekd's user, without capabilities, which ends with it.
func asUser(t *testing.T, f func() map[string]error) map[string]error {
	t.Helper()
	out := make(chan map[string]error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		// The raw calls change this thread alone.
		for _, call := range [][2]uintptr{{unix.SYS_SETRESGID, uid}, {unix.SYS_SETRESUID, uid}} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[1], call[1]); errno != 0 {
				out <- map[string]error{"become the user": fmt.Errorf("call %d: %w", call[0], errno)}
				return
			}
		}
		out <- f()
	}()
	return <-out
}

// TestLockedMemory: the seeds stand in one mapping, locked and left out of dumps.
func TestLockedMemory(t *testing.T) {
	k := started(t)
	const want = (4096 + 2) * 32
	arenas := lockedMappings(t, k.PID())
	if len(arenas) != 1 || arenas[0].size() < want || arenas[0].size() > want+1<<14 {
		t.Fatalf("locked mappings %v, want one of some %d bytes", arenas, want)
	}
	if !slices.Contains(arenas[0].flags, "dd") {
		t.Errorf("the mapping of the seeds is in core dumps: %v", arenas[0].flags)
	}
	locked := status(t, proc(t, k.PID(), "status"))["VmLck"]
	if locked != fmt.Sprintf("%d kB", arenas[0].size()>>10) {
		t.Errorf("VmLck is %s, and the mapping has %d bytes", locked, arenas[0].size())
	}
}

// TestMemlockTooLow: kekd says what to do, and does not run with seeds in swap.
func TestMemlockTooLow(t *testing.T) {
	c := asInAPod()
	c.Memlock = 64 << 10
	k := newKekd(t, c)
	k.Start(t)
	if state := k.AwaitExit(t, readyWithin); state.ExitCode() != 1 {
		t.Errorf("kekd ended with %v, want exit code 1", state)
	}
	for _, want := range []string{"RLIMIT_MEMLOCK is 65536 bytes", "LimitMEMLOCK=", "seeds.lockMemory: false"} {
		if !strings.Contains(k.Log(t), want) {
			t.Errorf("the error does not say %q", want)
		}
	}
}

// TestWorkerGetsNothingOfTheParents: descriptors and environment of the worker.
func TestWorkerGetsNothingOfTheParents(t *testing.T) {
	k := started(t)
	// Connections and requests, so that there is something to leak.
	c := connect(t, k)
	c.mustDecrypt(t, c.encrypt(t))
	first := k.WorkerPID(t)
	k.KillWorker(t)
	pid := k.WorkerPID(t, first)

	if got, want := proc(t, pid, "environ"), "SOFTHSM2_CONF="+k.Token.Conf+"\x00"; got != want {
		t.Errorf("the worker's environment is %q, want hsm.env alone: %q", got, want)
	}
	shared := links(t, k.PID())
	for fd, link := range links(t, pid) {
		switch {
		case fd == "0" && link == "/dev/null":
		case (fd == "1" || fd == "2") && strings.HasPrefix(link, "pipe:"):
		case fd == "3" && strings.HasPrefix(link, "socket:"):
		case strings.HasPrefix(link, "anon_inode:") || strings.HasPrefix(link, "/sys/fs/cgroup/"): // the Go runtime's own
		case strings.HasPrefix(link, "socket:"): // the module's, to syslog, if it is not the parent's; see below
		case strings.HasPrefix(link, filepath.Dir(k.Token.Conf)) && link != k.Token.PINFile: // the module's
		default:
			t.Errorf("descriptor %s of the worker is %s", fd, link)
		}
		for other, parents := range shared {
			if strings.HasPrefix(link, "socket:") && parents == link {
				t.Errorf("descriptor %s of the worker is the parent's %s, %s", fd, other, link)
			}
		}
	}
	inherited := false
	for fd, link := range shared {
		inherited = inherited || link == harness.InheritedFile
		if link == k.Token.PINFile {
			t.Errorf("descriptor %s of kekd is the PIN file", fd)
		}
	}
	if !inherited {
		t.Errorf("kekd has inherited nothing, so the test shows nothing: %v", shared)
	}
}

// links are a process's open files by descriptor.
func links(t *testing.T, pid int) map[string]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			all[e.Name()] = link
		}
	}
	if len(all) == 0 {
		t.Fatalf("process %d has no descriptors", pid)
	}
	return all
}

// TestCrashesLeaveNoCore: no file in the working directory, which is kekd's own, and
// the kernel says of kekd that it dumped none. The harness leaves RLIMIT_CORE as high
// as it may.
func TestCrashesLeaveNoCore(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("core_pattern is %s", bytes.TrimSpace(pattern))
	for _, sig := range []syscall.Signal{syscall.SIGABRT, syscall.SIGSEGV} {
		t.Run(sig.String(), func(t *testing.T) {
			k := started(t)
			worker := k.WorkerPID(t)
			if err := syscall.Kill(worker, sig); err != nil {
				t.Fatal(err)
			}
			k.WorkerPID(t, worker)
			k.Signal(t, sig)
			if state := k.AwaitExit(t, readyWithin); state.Sys().(syscall.WaitStatus).CoreDump() {
				t.Errorf("kekd dumped core: %v", state)
			}
			cores, err := filepath.Glob(filepath.Join(k.Dir(), "core*")) // kekd's working directory
			if err != nil || len(cores) != 0 {
				t.Errorf("core files %v, %v", cores, err)
			}
		})
	}
}
