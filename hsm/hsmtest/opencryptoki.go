package hsmtest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kekd/hsm/wire"
	"kekd/hsm/worker"
	"kekd/internal/kek"
)

// Opencryptoki is a fresh soft token of opencryptoki with its own slot daemon.
// Unlike SoftHSM and NSS it has neither AES-GCM nor AES-KWP, and it locks the user
// PIN at the third wrong one.
//
// opencryptoki has fixed paths and system-wide shared memory, so each token lives
// in mount and IPC namespaces of its own, and a user namespace too where the test
// does not run as root. Nothing outside of them is read or written. The daemon is
// the process that holds them open: with it, all is gone.
type Opencryptoki struct {
	*Fixture
	// SlotDaemon is the daemon's process id. Its end is that of the namespaces.
	SlotDaemon int
	// enter is the start of a command that runs in the token's namespaces.
	enter []string
}

const (
	slotDaemon = "/usr/sbin/pkcsslotd"
	slotConf   = "/usr/sbin/pkcsconf"
	soPIN      = "87654321" // of every new soft token
	toolPath   = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
)

// notAllowed is how opencryptokiScript ends where it may not mount.
const notAllowed = 77

// opencryptokiScript makes a machine of its own for the daemon and becomes it. The
// group pkcs11 is made to be that of the caller, the only one that a user
// namespace knows.
const opencryptokiScript = `
cover() { mount -t tmpfs -o mode=0755 tmpfs "$1" || exit 77; }
mount --make-rprivate / || exit 77
for dir in /run /dev/shm /etc/opencryptoki /var/lib/opencryptoki; do cover "$dir"; done
set -e
cd /etc/opencryptoki
printf 'root:x:0:\npkcs11:x:0:root\n' >group
mount --bind group /etc/group || exit 77
cat >opencryptoki.conf <<end
version opencryptoki-3.1
slot 0
{
stdll = libpkcs11_sw.so
}
slot 1
{
stdll = libpkcs11_sw.so
tokname = twin
}
end
for token in swtok twin; do
	mkdir -p -m 0770 /run/lock/opencryptoki/$token /var/lib/opencryptoki/$token/TOK_OBJ
done
exec ` + slotDaemon + ` -f
`

// NewOpencryptoki makes a soft token. A missing opencryptoki fails the test. Where
// namespaces are not allowed, it fails if CI is set and is skipped otherwise.
func NewOpencryptoki(t *testing.T) *Opencryptoki {
	t.Helper()
	modules, err := filepath.Glob("/usr/lib/*/libopencryptoki.so.0")
	must(t, err)
	if _, err := os.Stat(slotDaemon); err != nil || len(modules) == 0 {
		t.Fatal("opencryptoki is not installed: run make deps")
	}
	self, err := os.Executable()
	must(t, err)

	label := "kekd-" + suffix()
	o := startSlotDaemon(t)
	o.Fixture = fixture(t, modules[0], label, "123456")
	o.Config.Command = func() *exec.Cmd { return o.command(self, worker.Arg) }
	o.Mechanisms = []kek.Mechanism{kek.CBCHMAC}
	o.ImportMethods, o.SizeTold, o.NoECDSA = []wire.ImportMethod{wire.RSAOAEP}, true, true
	o.Hashes = []wire.OAEPHash{wire.SHA256, wire.SHA1}
	o.Locks = true
	initToken := func(t *testing.T, slot int) {
		t.Helper()
		c := strconv.Itoa(slot)
		o.must(t, label+"\n", slotConf, "-I", "-c", c, "-S", soPIN)
		o.must(t, "", slotConf, "-u", "-c", c, "-S", soPIN, "-n", "123456")
	}
	initToken(t, 0)
	o.Twin = func(t *testing.T) { t.Helper(); initToken(t, 1) }
	o.ForeignKey = func(t *testing.T, keyLabel, id string) {
		t.Helper()
		o.Generate(t, "aes:32", keyLabel, id)
		o.Generate(t, "GENERIC:32", keyLabel, id+hex.EncodeToString([]byte("/hmac")))
	}
	return o
}

// startSlotDaemon starts a slot daemon in namespaces of its own and waits until it
// answers. It ends with the test, or with the test's process.
func startSlotDaemon(t *testing.T) *Opencryptoki {
	t.Helper()
	var output bytes.Buffer // read after ended is closed
	cmd, ended, err := startIsolated(&output, os.Geteuid() != 0)
	if errors.Is(err, syscall.EPERM) && os.Geteuid() == 0 {
		cmd, ended, err = startIsolated(&output, true) // root of a container
	}
	if err != nil {
		noNamespaces(t, err.Error())
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // an error means that it is dead already
		<-ended
	})
	ns := fmt.Sprintf("/proc/%d/ns/", cmd.Process.Pid)
	o := &Opencryptoki{SlotDaemon: cmd.Process.Pid, enter: []string{"nsenter", "--mount=" + ns + "mnt", "--ipc=" + ns + "ipc"}}
	if cmd.SysProcAttr.Cloneflags&syscall.CLONE_NEWUSER != 0 {
		o.enter = append(o.enter, "--user="+ns+"user", "--preserve-credentials")
	}
	o.enter = append(o.enter, "--")
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		last, err := o.Run(t, "", slotConf, "-t", "-c", "0")
		if err == nil {
			return o
		}
		select {
		case <-tick.C:
		case <-ended:
			if cmd.ProcessState.ExitCode() == notAllowed {
				noNamespaces(t, output.String())
			}
			t.Fatalf("the slot daemon ended: %v\n%s", cmd.ProcessState, &output)
		case <-deadline:
			t.Fatalf("the slot daemon does not answer within 20 s: %v\n%s", err, last)
		}
	}
}

// startIsolated starts opencryptokiScript. The channel is closed when its process
// is reaped.
func startIsolated(output *bytes.Buffer, asUser bool) (*exec.Cmd, <-chan struct{}, error) {
	cmd := exec.Command("/bin/sh", "-c", opencryptokiScript)
	cmd.Env = []string{toolPath}
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL}
	if asUser {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		// The kernel sends Pdeathsig when the thread that started the process ends, so
		// this one must last as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // cmd.ProcessState tells
		}
	}()
	return cmd, ended, <-started
}

// noNamespaces ends a test that can't have a machine of its own.
func noNamespaces(t *testing.T, why string) {
	t.Helper()
	text := "opencryptoki's fixed paths need mount and IPC namespaces, which this host refuses: " + strings.TrimSpace(why) +
		"\nrun the tests as root; in a container, with CAP_SYS_ADMIN and a seccomp and AppArmor profile that allow mount(2);" +
		" or as another user where user namespaces are open (sysctl kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)"
	if os.Getenv("CI") != "" {
		t.Fatal(text)
	}
	t.Skip(text)
}

// command makes a command that runs beside the daemon. nsenter becomes it without
// a fork, so that its process id is the command's own.
func (o *Opencryptoki) command(name string, args ...string) *exec.Cmd {
	full := append(append([]string{}, o.enter...), name)
	return exec.Command(full[0], append(full[1:], args...)...)
}

// Run runs a program beside the daemon and returns what it printed.
func (o *Opencryptoki) Run(t *testing.T, stdin, name string, args ...string) (string, error) {
	t.Helper()
	cmd := o.command(name, args...)
	cmd.Env = []string{toolPath}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is Run for what can't fail.
func (o *Opencryptoki) must(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	out, err := o.Run(t, stdin, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// SetPIN has the security officer set the user PIN, which also unlocks it.
func (o *Opencryptoki) SetPIN(t *testing.T, pin string) {
	t.Helper()
	o.must(t, "", slotConf, "-u", "-c", "0", "-S", soPIN, "-n", pin)
}

// Login logs in once by another program, which costs a try where the PIN is wrong.
func (o *Opencryptoki) Login(t *testing.T, pin string) error {
	t.Helper()
	out, err := o.Run(t, "", "pkcs11-tool", "--module", o.Config.Module, "--token-label", o.Config.Token.Label, "--login", "--pin", pin, "--list-objects")
	if err != nil {
		return errors.New(out)
	}
	return nil
}

// Generate makes a key by another program. The type is as pkcs11-tool spells it.
func (o *Opencryptoki) Generate(t *testing.T, keyType, label, id string) {
	t.Helper()
	o.must(t, "", "pkcs11-tool", "--module", o.Config.Module, "--token-label", o.Config.Token.Label, "--login", "--pin", "123456",
		"--keygen", "--key-type", keyType, "--label", label, "--id", id)
}

// TriesLeft is how many wrong PINs the token still takes, by its own flags: 3 to 0.
func (o *Opencryptoki) TriesLeft(t *testing.T) int {
	t.Helper()
	out := o.must(t, "", slotConf, "-t", "-c", "0")
	for left, flag := range []string{"USER_PIN_LOCKED", "USER_PIN_FINAL_TRY", "USER_PIN_COUNT_LOW"} {
		if strings.Contains(out, "|"+flag+"|") {
			return left
		}
	}
	return 3
}
