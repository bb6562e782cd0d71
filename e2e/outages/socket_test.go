package outages

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// newcomer waits until a client that connects anew is served.
func (n *node) newcomer(t *testing.T) time.Duration {
	t.Helper()
	begun := time.Now()
	harness.Eventually(t, soon, "a new client is served", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, apiserverTimeout)
		defer cancel()
		client := n.KMS(t)
		defer client.Close() // it would connect later, and count as left over
		_, err := client.Status(ctx)
		return err
	})
	return time.Since(begun)
}

func TestSocketDeleted(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{})
	if err := os.Remove(n.Socket); err != nil {
		t.Fatal(err)
	}
	n.expect(t, healthy...) // over the connection that is there
	ready := n.newcomer(t)
	n.logged(t, `"socket had vanished, bound it again"`)
	n.back(t)
	result(52, "Socket file deleted", fmt.Sprintf("nothing over connections that are there; new ones find no socket for %.1f s", ready.Seconds()), throughout)
}

func TestSocketDirectoryDeleted(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{})
	dir := filepath.Dir(n.Socket)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	n.logged(t, `"socket cannot be reached at its path, new clients find no kekd".*does not exist; create it`)
	n.expect(t, healthy...)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ready := n.newcomer(t)

	// Made again by somebody careless: a directory where others could take kekd's place.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	n.logged(t, `"socket cannot be reached at its path.*(0777|group|others).*chmod`)
	n.expect(t, healthy...)
	if _, err := os.Lstat(n.Socket); err == nil {
		t.Error("kekd bound its socket in a directory that others can write to")
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	again := n.newcomer(t)
	n.back(t)
	result(53, "Directory of the socket deleted and made again", fmt.Sprintf("nothing over connections that are there; new ones are served %.1f s after it is back, and where it is back with mode 0777 not before that is put right (%.1f s), which the log says", ready.Seconds(), again.Seconds()), throughout)
}

func TestTwoDaemonsOnOneSocket(t *testing.T) {
	t.Parallel()
	n := started(t, harness.NewToken(t), harness.KekdOptions{})
	second := harness.NewSibling(t, n.Token, harness.KekdOptions{})
	config := strings.ReplaceAll(readFile(t, second.ConfigFile()), second.Socket, n.Socket)
	if err := os.WriteFile(second.ConfigFile(), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	second.Start(t)
	if state := second.AwaitExit(t, soon); state.ExitCode() != 1 {
		t.Errorf("the second ended with %v, want exit code 1", state)
	}
	(&node{Kekd: second}).logged(t, fmt.Sprintf(`kekd: error: socket.path: another kekd \(pid %d\) serves .*; stop it first or choose another path`, n.PID()))
	n.newcomer(t)
	n.back(t)
	result(54, "Two daemons on one socket path", "nothing; the second ends with exit code 1 and names the first's pid", throughout)
}
