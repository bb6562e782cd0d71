package hardening

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// spellings are the forms in which a PIN could leak.
func spellings(pin string) map[string][]byte {
	s := map[string][]byte{
		"the PIN":                []byte(pin),
		"the PIN in hexadecimal": []byte(hex.EncodeToString([]byte(pin))),
		"the PIN in HEXADECIMAL": []byte(strings.ToUpper(hex.EncodeToString([]byte(pin)))),
	}
	for format, name := range map[string]string{"% x": "spaced", "% X": "SPACED", "%# x": "0x"} {
		s["the PIN in hexadecimal, "+name] = fmt.Appendf(nil, format, []byte(pin))
	}
	s["the PIN in hexadecimal, colons"] = bytes.ReplaceAll(s["the PIN in hexadecimal, SPACED"], []byte(" "), []byte(":"))
	s["the PIN in hexadecimal, as of an array"] = bytes.ReplaceAll(s["the PIN in hexadecimal, 0x"], []byte(" "), []byte(", "))
	for shift := range 3 {
		text := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), pin...))
		// Without what its neighbours have a part in.
		from, to := (8*shift+5)/6, (8*(shift+len(pin)))/6
		s[fmt.Sprintf("the PIN in base64, shifted by %d", shift)] = []byte(text[from:to])
	}
	return s
}

// contains reports each spelling of a PIN that a text holds.
func contains(t *testing.T, where, text string, pins ...string) {
	t.Helper()
	for _, pin := range pins {
		for name, needle := range spellings(pin) {
			if bytes.Contains([]byte(text), needle) {
				t.Errorf("%s holds %s", where, name)
			}
		}
	}
}

// requireNoPIN looks at everything that others than root could come to see, and at
// what a backup of the node would take along.
func requireNoPIN(t *testing.T, k *harness.Kekd, pins ...string) {
	t.Helper()
	contains(t, "the log", k.Log(t), pins...)
	if k.Running() {
		for _, path := range []string{"/status", "/metrics", "/readyz"} {
			_, body, err := k.Get(t.Context(), path)
			if err != nil {
				t.Error(err)
			}
			contains(t, path, body, pins...)
		}
		pids := []int{k.PID()}
		if workers := k.Workers(); len(workers) > 0 {
			pids = append(pids, workers...)
		}
		for _, pid := range pids {
			for _, file := range []string{"environ", "cmdline"} {
				if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file)); err == nil {
					contains(t, file+" of a process", string(text), pins...)
				} else if !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
			}
		}
	}
	files := 0
	err := filepath.WalkDir(k.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		contains(t, path, string(text), pins...)
		files++
		return err
	})
	if err != nil || files < 2 {
		t.Errorf("%d files, %v", files, err)
	}
}

// wipedWithin is how long a PIN may be in memory: while a worker starts and logs in.
const wipedWithin = 20 * time.Second

// requireNotInMemory searches a process's memory for PINs, until there is none: kekd
// may just be reading it, for another worker. What nobody wipes stays for longer.
func requireNotInMemory(t *testing.T, pid int, pins ...string) {
	t.Helper()
	needles := map[string][]byte{}
	for _, pin := range pins {
		needles[pin] = []byte(pin)
		needles[pin+" in hexadecimal"] = []byte(hex.EncodeToString([]byte(pin)))
	}
	harness.Eventually(t, wipedWithin, "no PIN is in memory", func(context.Context) error {
		if found := search(t, pid, needles); len(found) > 0 {
			return fmt.Errorf("%v", found)
		}
		return nil
	})
}

// TestPIN: logged in, with another worker's login besides.
func TestPIN(t *testing.T) {
	k := started(t)
	pin := k.Token.PIN()
	requireNoPIN(t, k, pin)
	requireNotInMemory(t, k.PID(), pin)
	worker := k.WorkerPID(t)
	k.KillWorker(t)
	worker = k.WorkerPID(t, worker)
	requireNotInMemory(t, k.PID(), pin)
	// What the module keeps is its own affair. SoftHSM keeps none in clear.
	requireNotInMemory(t, worker, pin)
	k.Stop(t)
	requireNoPIN(t, k, pin)
}

// TestWrongPIN: refused, latched, latched over a restart, and put right.
func TestWrongPIN(t *testing.T) {
	k := newKekd(t, asInAPod())
	pin := k.Token.PIN()
	const wrong = "wrong-7Hq2-PIN"
	k.Token.WritePIN(t, wrong)
	k.Start(t)
	latched := func() {
		t.Helper()
		harness.Eventually(t, readyWithin, "the PIN is latched", func(ctx context.Context) error {
			_, body, err := k.Get(ctx, "/status")
			if err == nil && !strings.Contains(body, "not tried again") {
				err = errors.New(body)
			}
			return err
		})
		requireNoPIN(t, k, pin, wrong)
		requireNotInMemory(t, k.PID(), pin, wrong)
	}
	latched()
	k.Stop(t)
	k.Start(t)
	latched()
	k.Token.WritePIN(t, pin)
	k.WaitReady(t, readyWithin)
	requireNoPIN(t, k, pin, wrong)
	requireNotInMemory(t, k.PID(), pin, wrong)
}

// TestMalformedPINFile: kekd's error does not quote the file.
func TestMalformedPINFile(t *testing.T) {
	for name, content := range map[string]string{
		"two lines": "%s\n%[1]s", "zero byte": "%s\x00", "too long": "%s" + strings.Repeat("x", 300),
	} {
		t.Run(name, func(t *testing.T) {
			k := newKekd(t, asInAPod())
			k.Token.WritePIN(t, fmt.Sprintf(content, k.Token.PIN()))
			k.Start(t)
			if state := k.AwaitExit(t, readyWithin); state.ExitCode() != 1 || !strings.Contains(k.Log(t), "hsm.pinFile") {
				t.Errorf("kekd ended with %v, want exit code 1 and an error of hsm.pinFile", state)
			}
			requireNoPIN(t, k, k.Token.PIN())
		})
	}
}

// misbehaving is a daemon whose module prints the PIN, and crashes once the trigger,
// a file, is there.
func misbehaving(t *testing.T) (k *harness.Kekd, trigger string) {
	t.Helper()
	token := harness.NewToken(t)
	k = harness.NewKekd(t, token, harness.KekdOptions{})
	// Where kekd's user finds them.
	module, trigger := filepath.Join(k.Dir(), "libmisbehaves.so"), filepath.Join(k.Dir(), "state", "crash")
	out, err := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-Wall", "-Werror",
		fmt.Sprintf("-DREAL=%q", token.Module), fmt.Sprintf("-DTRIGGER=%q", trigger),
		"-o", module, "testdata/module.c", "-ldl").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	token.Module = module
	k.Configure(t, harness.KekdOptions{})
	k.Confine(t, asInAPod())
	k.StartReady(t)
	return k, trigger
}

// TestModuleThatPrints: a module's debug output with the PIN in it is not logged.
func TestModuleThatPrints(t *testing.T) {
	k, _ := misbehaving(t)
	const withheld = "[a line that holds the PIN]"
	if got := strings.Count(k.Log(t), withheld); got != 9 {
		t.Errorf("%d lines withheld, and the module prints 9", got)
	}
	requireNoPIN(t, k, k.Token.PIN())
	requireNotInMemory(t, k.PID(), k.Token.PIN())
}

// TestModuleThatCrashes: Go's report of the crash is logged without what was on the
// stack, which may be a seed, and in the registers.
func TestModuleThatCrashes(t *testing.T) {
	k, trigger := misbehaving(t)
	worker := k.WorkerPID(t)
	if err := os.WriteFile(trigger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k.WorkerPID(t, worker) // the prober decrypts all the time
	log := k.Log(t)
	if !strings.Contains(log, `"line":"SIGSEGV: segmentation violation"`) {
		t.Error("the log does not have the report of the crash")
	}
	if line := regexp.MustCompile(`"line":"([0-9a-f]{16}:|r[a-z0-9]+ +0x)[^"]*`).FindString(log); line != "" {
		t.Errorf("the log shows memory: %s", line)
	}
	if strings.Contains(log, "5eed00") {
		t.Error("the log holds what the module had on its stack")
	}
}
