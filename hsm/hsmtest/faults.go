package hsmtest

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/pkcs11"
)

// SetFaults replaces the faults of the fake token in a file, or those of the
// fault-injecting module (FaultModule), while it runs. Each is a line: a
// function's name, then what happens to its calls and, with n=, to how many of
// them (to all without):
//
//	C_Encrypt rv=0x30 n=2     return a CK_RV, and do nothing
//	C_Decrypt hang            never return
//	C_Encrypt crash n=1       die of SIGSEGV
//	C_DecryptInit ms=250      take longer
//	C_Login print=secret      write a line to standard error
//	C_Encrypt spawn=5         start a process of its own that lives so many
//	                          seconds (the fake alone)
//
// The module alone knows these too:
//
//	C_GenerateKey after rv=5  return a CK_RV after the call took effect
//	C_Encrypt abort           call abort(); or exit(0): exit
//	C_Decrypt logout          log out behind the caller's back
//	C_Decrypt closeall        close all sessions behind the caller's back
//	C_OpenSession limit=3     open no more than three sessions
//	C_Encrypt garble          change a bit of the output (C_Decrypt too)
//	C_Encrypt leak=64         use up 64 MiB of memory
//	C_EncryptInit iv=cloudhsm want twelve zero bytes for the IV of AES-GCM, and
//	                          write the HSM's own over them
//	C_EncryptInit iv=luna     draw an IV of sixteen bytes and append it
//
// One line may do several things, in its order (the module: print, ms, leak,
// crash, abort, exit, hang, logout, closeall, rv). The first line of a function
// counts. An operation that C_EncryptInit began stays active when C_Encrypt
// returns a CK_RV of the faults'.
func SetFaults(path string, faults ...string) error {
	lock, err := lockFaults(path)
	if err != nil {
		return err
	}
	defer lock.Close() // which frees the lock
	return writeFaults(path, faults)
}

// lockFaults keeps other processes from the faults of a token until the file is
// closed.
func lockFaults(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".faults.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return lock, nil
}

// writeFaults replaces the file. The caller holds the lock.
func writeFaults(path string, faults []string) error {
	tmp := path + ".faults.new"
	if err := os.WriteFile(tmp, []byte(strings.Join(faults, "\n")), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path+".faults")
}

// inject does to a call what the faults say. Faults with a count are used up in
// the file, so that they are spent across processes too.
func inject(path, call string) error {
	fault, err := take(path, call)
	if err != nil {
		return fail(call, pkcs11.CKR_HOST_MEMORY)
	}
	for _, word := range fault {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "hang":
			select {}
		case "crash":
			_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV)
			select {}
		case "spawn":
			child := exec.Command("/bin/sleep", value) // meant to outlive us
			child.Stdout, child.Stderr = os.Stdout, os.Stderr
			if err := child.Start(); err != nil {
				return fail(call, pkcs11.CKR_HOST_MEMORY)
			}
		case "print":
			fmt.Fprintln(os.Stderr, value)
		case "ms":
			ms, _ := strconv.Atoi(value)
			time.Sleep(time.Duration(ms) * time.Millisecond)
		case "rv":
			rv, _ := strconv.ParseUint(value, 0, 32)
			return fail(call, uint(rv))
		}
	}
	return nil
}

// take returns the words of the first fault for a call, and counts it down.
func take(path, call string) ([]string, error) {
	lock, err := lockFaults(path)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // which frees the lock
	b, err := os.ReadFile(path + ".faults")
	if err != nil {
		return nil, nil // none set
	}
	lines := strings.Split(string(b), "\n")
	for i, line := range lines {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != call {
			continue
		}
		for j, w := range words {
			left, counted := strings.CutPrefix(w, "n=")
			if !counted {
				continue
			}
			n, _ := strconv.Atoi(left)
			if n <= 1 {
				lines = append(lines[:i], lines[i+1:]...)
			} else {
				words[j] = "n=" + strconv.Itoa(n-1)
				lines[i] = strings.Join(words, " ")
			}
			return words[1:], writeFaults(path, lines)
		}
		return words[1:], nil
	}
	return nil, nil
}
