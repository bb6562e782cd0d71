package plugin

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	kmsapi "k8s.io/kms/apis/v2"
)

func quickWatch(_ *Config, s *Server) {
	if s != nil {
		s.watchEvery = 5 * time.Millisecond
	}
}

// status asks over a new connection.
func (r *rig) status(t *testing.T) error {
	t.Helper()
	conn := dial(t, r.path)
	defer func() { _ = conn.Close() }()
	_, err := kmsapi.NewKeyManagementServiceClient(conn).Status(t.Context(), &kmsapi.StatusRequest{})
	return err
}

func TestVanishedSocketIsBoundAgain(t *testing.T) {
	r := start(t, quickWatch)
	before := r.client(t)
	if err := call(t.Context(), before, "Status"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		must(t, os.Remove(r.path))
		eventually(t, "a new client is served", func() bool { return r.status(t) == nil })
		info, err := os.Lstat(r.path)
		must(t, err)
		if info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("mode of the new socket is %v", info.Mode())
		}
	}
	if err := call(t.Context(), before, "Encrypt"); err != nil {
		t.Errorf("the connection from before: %v", err)
	}
	eventually(t, "the log tells", func() bool {
		return r.logs.FilterMessage("socket had vanished, bound it again").Len() == 3
	})
}

func TestDirectoryThatVanishedAndCameBack(t *testing.T) {
	r := start(t, quickWatch)
	dir := filepath.Dir(r.path)
	const fault = "socket cannot be reached at its path, new clients find no kekd"
	must(t, os.RemoveAll(dir))
	eventually(t, "the log tells", func() bool { return r.logs.FilterMessage(fault).Len() == 1 })
	if text := logText(t, r.logs); !strings.Contains(text, "directory "+dir+" does not exist") {
		t.Errorf("log:\n%s", text)
	}
	must(t, os.Mkdir(dir, 0o700))
	eventually(t, "a new client is served", func() bool { return r.status(t) == nil })
	// The lock went with the directory and was taken again.
	if _, err := Listen(r.path); err == nil || !strings.Contains(err.Error(), "another kekd") {
		t.Errorf("a second kekd: %v", err)
	}
}

// tend is what every tick does; here it runs step by step.
func TestTend(t *testing.T) {
	path := filepath.Join(tempDir(t), "kekd.sock")
	s := mustListen(t, path)
	step := func(name string, wantRebound bool, wantErr string) {
		t.Helper()
		rebound, err := s.tend()
		if rebound != wantRebound || (err == nil) != (wantErr == "") || (err != nil && !strings.Contains(err.Error(), wantErr)) {
			t.Fatalf("%s: rebound %v, error %v; want %v, %q", name, rebound, err, wantRebound, wantErr)
		}
	}
	step("untouched", false, "")

	must(t, os.Remove(path))
	foreign := foreignListener(t, path)
	foreignInode, err := inodeOf(path)
	must(t, err)
	step("replaced by a live one", false, "another process listens at "+path)
	if now, err := inodeOf(path); err != nil || now != foreignInode {
		t.Fatalf("fought over the path: %v, %v", now, err)
	}

	_ = foreign.Close()
	step("its owner is gone", true, "")
	step("untouched", false, "")

	must(t, os.Remove(path))
	must(t, os.WriteFile(path, []byte("precious"), 0o600))
	step("replaced by a file", false, "exists and is no socket")
	must(t, os.Remove(path))
	step("the file is gone", true, "")

	dir := filepath.Dir(path)
	must(t, os.Remove(path))
	must(t, os.Chmod(dir, 0o777))
	step("directory opened to all", false, "chmod go-w "+dir)
	must(t, os.Chmod(dir, 0o700))
	step("directory closed again", true, "")

	must(t, os.Remove(path))
	must(t, os.Remove(path+lockSuffix))
	other, err := acquireLock(path)
	must(t, err)
	step("another kekd took the lock", false, "another kekd")
	must(t, other.Close())
	step("it is gone", true, "")

	must(t, os.Remove(path))
	must(t, s.Close())
	step("closed", false, "")
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("bound after Close: %v", err)
	}
}

// A bind that loses the race with Close leaves nothing behind.
func TestReplaceAfterClose(t *testing.T) {
	path := filepath.Join(tempDir(t), "kekd.sock")
	s := mustListen(t, path)
	must(t, s.stop())
	listener, at, err := bind(path)
	must(t, err)
	if rebound, err := s.replace(listener, at, s.lock); rebound || err != nil {
		t.Errorf("replace = %v, %v", rebound, err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stayed: %v", err)
	}
	if _, err := listener.Accept(); err == nil || !strings.Contains(err.Error(), net.ErrClosed.Error()) {
		t.Errorf("the listener stayed open: %v", err)
	}
}

// A fault that stays is logged when it begins and once a minute, not every 2 s.
func TestFaultIsLoggedOnceAMinute(t *testing.T) {
	path := filepath.Join(tempDir(t), "kekd.sock")
	s := mustListen(t, path)
	must(t, os.RemoveAll(filepath.Dir(path)))
	core, logs := observer.New(zap.DebugLevel)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute+time.Second)
		defer cancel()
		s.watch(ctx, watchInterval, zap.New(core))
	})
	if n := logs.Len(); n != 3 {
		t.Errorf("%d lines in three minutes, want 3:\n%s", n, logText(t, logs))
	}
}
