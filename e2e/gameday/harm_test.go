package gameday

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"kekd/e2e/internal/harness"
)

// takenAway is an HSM that cannot be reached.
func takenAway(t *testing.T, n *node) { n.token.TakeAway(t) }

// putBack mends it.
func putBack(t *testing.T, n *node) { n.token.PutBack(t) }

// tokens is SoftHSM's directory of tokens.
func tokens(n *node) string { return filepath.Join(filepath.Dir(n.token.Conf), "tokens") }

// backup copies the token, as the vendor's tool would.
func backup(t *testing.T, n *node) {
	t.Helper()
	if err := os.CopyFS(filepath.Join(n.root, "backup"), os.DirFS(tokens(n))); err != nil {
		t.Fatalf("back up the token: %v", err)
	}
}

// emptied deletes the token; the HSM answers as before.
func emptied(t *testing.T, n *node) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(tokens(n)), os.Mkdir(tokens(n), 0o700)); err != nil {
		t.Fatalf("empty the HSM: %v", err)
	}
}

// restore puts the backup back.
func restore(t *testing.T, n *node) {
	t.Helper()
	if err := os.CopyFS(tokens(n), os.DirFS(filepath.Join(n.root, "backup"))); err != nil {
		t.Fatalf("restore the token: %v", err)
	}
}

// primary is the CKA_ID of the key that kekd encrypts under.
func (n *node) primary(t *testing.T) string {
	t.Helper()
	keyID, err := n.kekd.KMS(t).Status(t.Context())
	if err != nil {
		t.Fatalf("ask kekd for its key: %v", err)
	}
	return strings.Split(keyID, "/")[1]
}

// pkcs11Tool does something on the token with OpenSC's tool, as an administrator might.
func pkcs11Tool(t *testing.T, n *node, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "pkcs11-tool", append([]string{
		"--module", n.token.Module, "--token-label", n.token.Label, "--login", "--pin", n.token.PIN(),
	}, args...)...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+n.token.Conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pkcs11-tool %q: %v\n%s", args, err, out)
	}
}

// foreignKey makes a key on the ring with another tool, one that may leave the token.
// Its id is of kekd's own form, so it has an age.
func foreignKey(t *testing.T, n *node, age time.Duration) {
	t.Helper()
	id := binary.BigEndian.AppendUint64([]byte{1}, uint64(time.Now().Add(-age).Unix()))
	id = append(id, make([]byte, 8)...)
	_, _ = rand.Read(id[len(id)-8:]) // never fails
	pkcs11Tool(t, n, "--keygen", "--key-type", "AES:32", "--label", n.kekd.Ring, "--id", hex.EncodeToString(id), "--extractable")
}

// damaged puts Secrets into etcd that cannot be decrypted: copies of the first, which is
// bound to its name. Their names sort before the others'.
func damaged(t *testing.T, n *node, count int) {
	t.Helper()
	const prefix = "/registry/secrets/default/"
	first, err := n.etcd.Get(t.Context(), prefix+"secret-0")
	if err != nil || len(first.Kvs) != 1 {
		t.Fatalf("read a Secret from etcd: %v, %v", first, err)
	}
	for i := range count {
		if _, err := n.etcd.Put(t.Context(), fmt.Sprintf("%sdamaged-%02d", prefix, i), string(first.Kvs[0].Value)); err != nil {
			t.Fatalf("write a Secret to etcd: %v", err)
		}
	}
}

// withoutNewObjects removes what was made on the token since its backup. kekd's worker is
// ended too, since SoftHSM does not tell a process that runs.
func withoutNewObjects(t *testing.T, n *node) {
	t.Helper()
	err := filepath.WalkDir(tokens(n), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(tokens(n), path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(n.root, "backup", name)); err == nil {
			return nil
		}
		return os.Remove(path)
	})
	if err != nil {
		t.Fatalf("remove the new objects: %v", err)
	}
	n.kekd.KillWorker(t)
}

// journalReader copies what a pipe brings into a file, until it is stopped.
type journalReader struct {
	pipe, to string
	reader   *os.File
	done     chan struct{}
}

func (j *journalReader) start(t *testing.T) {
	t.Helper()
	var err error
	// Without O_NONBLOCK it would wait for a writer.
	if j.reader, err = os.OpenFile(j.pipe, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		t.Fatalf("read the log: %v", err)
	}
	file, err := os.OpenFile(j.to, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatalf("keep the log: %v", err)
	}
	j.done = make(chan struct{})
	go func() {
		defer close(j.done)
		defer file.Close()
		_, _ = io.Copy(file, j.reader)
	}()
}

// stop leaves the pipe without a reader.
func (j *journalReader) stop() {
	_ = j.reader.Close()
	<-j.done
}

// readable gives kekd's log a reader, which can be stopped, in place of its file.
func readable(t *testing.T, n *node) {
	t.Helper()
	n.journal = filepath.Join(n.root, "journal")
	n.reader = &journalReader{pipe: filepath.Join(n.root, "stderr"), to: n.journal}
	if err := unix.Mkfifo(n.reader.pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	n.reader.start(t)
	t.Cleanup(func() { n.reader.stop() })
	w, err := os.OpenFile(n.reader.pipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	n.kekd.LogTo(w)
}

// unread stops the reader, and has kekd log until lines are lost.
func unread(t *testing.T, n *node) {
	t.Helper()
	n.reader.stop()
	kms := n.kekd.KMS(t)
	harness.Eventually(t, soon, "a line is lost", func(ctx context.Context) error {
		if _, err := kms.Encrypt(ctx, []byte("x")); err != nil {
			return err
		}
		if n.kekd.Metrics(t).Sum("kekd_log_lines_lost_total", nil) == 0 {
			return errors.New("none is")
		}
		return nil
	})
}

// strangers are what the test's own program becomes under these names, with a socket and
// kekd's allowance of connections: a client that does not behave.
var strangers = map[string]func(ctx context.Context, socket string) error{
	"leaky-agent": func(ctx context.Context, socket string) error {
		var kept []net.Conn
		for {
			c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
			if err != nil {
				return err
			}
			if len(kept) < 1024 {
				kept = append(kept, c)
				continue
			}
			_ = c.Close() // kekd has done so already
			time.Sleep(100 * time.Millisecond)
		}
	},
	"who-is-this": func(ctx context.Context, socket string) error {
		conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		client := kmsapi.NewKeyManagementServiceClient(conn)
		sealed, err := client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: []byte("x"), Uid: "x"})
		for err == nil {
			_, err = client.Decrypt(ctx, &kmsapi.DecryptRequest{
				Ciphertext: sealed.GetCiphertext(), KeyId: sealed.GetKeyId(), Annotations: sealed.GetAnnotations(), Uid: "x",
			})
			time.Sleep(20 * time.Millisecond)
		}
		return err
	},
}

// stranger starts one of them. It ends with the test.
func stranger(t *testing.T, n *node, name string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.root, name)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, n.kekd.Socket)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// auditDisk gives the audit trail a file system of its own, of 1 MiB, and the token a key
// that signs the trail.
func auditDisk(t *testing.T, n *node) {
	t.Helper()
	if err := os.MkdirAll(n.kekd.AuditDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(n.root, "kept") // what kekctl has written there
	if err := os.CopyFS(kept, os.DirFS(n.kekd.AuditDir())); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("kekd-gameday", n.kekd.AuditDir(), "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Fatalf("mount a small file system: %v; run this as root, who may", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(n.kekd.AuditDir(), unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the small file system: %v", err)
		}
	})
	if err := os.CopyFS(n.kekd.AuditDir(), os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	n.kekd.Command(t, "audit", "key", "create", "--yes")
}

func ballast(n *node) string { return filepath.Join(n.kekd.AuditDir(), "ballast") }

// fillAudit takes all room on the disk of the trail.
func fillAudit(t *testing.T, n *node) {
	t.Helper()
	f, err := os.OpenFile(ballast(n), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if closed := f.Close(); !errors.Is(err, syscall.ENOSPC) || closed != nil {
		t.Fatalf("fill the disk: %v, %v", err, closed)
	}
}
