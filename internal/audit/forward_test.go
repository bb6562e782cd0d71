package audit

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen is the other end of a Forwarder.
func listen(t *testing.T) (socket string, conn *net.UnixConn) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "log")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	return socket, conn
}

// Every line goes there as it stands in the file.
func TestForward(t *testing.T) {
	for name, c := range map[string]struct {
		make   func(socket, program string) Forwarder
		before string
		after  string
	}{
		"syslog":   {NewSyslog, "<86>", ""},
		"journald": {NewJournald, "PRIORITY=6\nSYSLOG_FACILITY=10\nSYSLOG_IDENTIFIER=kekd-audit\nMESSAGE=", "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			socket, conn := listen(t)
			dir, signer, watch := t.TempDir(), newSigner(t), new(tally)
			l := open(t, settings(dir, signer, func(cfg *Config) { cfg.Forward, cfg.Observer = c.make(socket, "kekd-audit"), watch }))
			must(t, l.RecordWait(t.Context(), sample()))
			must(t, l.Close(t.Context()))
			for line := range strings.Lines(read(t, files(t, dir)[0])) {
				buf := make([]byte, 1<<16)
				n, err := conn.Read(buf)
				must(t, err)
				got := string(buf[:n])
				if !strings.HasPrefix(got, c.before) || !strings.HasSuffix(got, strings.TrimSuffix(line, "\n")+c.after) {
					t.Errorf("got %q for the line %q", got, line)
				}
			}
			if watch.fails(PartForward) {
				t.Error("failing, and all arrived")
			}
		})
	}
}

// Nobody there: the file has all, an alarm says so, and no record waits.
func TestForwardToNobody(t *testing.T) {
	dir, signer, watch := t.TempDir(), newSigner(t), new(tally)
	l := open(t, settings(dir, signer, func(cfg *Config) {
		cfg.Forward, cfg.Observer = NewSyslog(filepath.Join(dir, "nowhere"), "kekd-audit"), watch
	}))
	eventually(t, "an alarm", func() bool {
		must(t, l.RecordWait(t.Context(), sample()))
		return watch.fails(PartForward)
	})
	must(t, l.Close(t.Context()))
	wantOK(t, verify(t, dir, VerifyOptions{Keys: signer.keys()}))
}
