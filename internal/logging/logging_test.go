package logging

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"kekd/internal/secret"
)

// newTest returns loggers that write into the buffer.
func newTest(t *testing.T, level, format string) (Loggers, *bytes.Buffer) {
	t.Helper()
	var b bytes.Buffer
	l, err := New(level, format, zapcore.AddSync(&b))
	if err != nil {
		t.Fatal(err)
	}
	return l, &b
}

func lines(b *bytes.Buffer) int { return strings.Count(b.String(), "\n") }

func TestJSON(t *testing.T) {
	l, b := newTest(t, "info", "json")
	l.Log.Named("hsm").Info("worker restarted", zap.Duration("elapsed", 1500*time.Millisecond), zap.Any("pin", secret.Bytes("1234")))
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if _, err := time.Parse(time.RFC3339Nano, got["ts"].(string)); err != nil {
		t.Errorf("ts: %v", err)
	}
	for key, want := range map[string]string{"level": "info", "logger": "hsm", "msg": "worker restarted", "elapsed": "1.5s"} {
		if got[key] != want {
			t.Errorf("%s = %v, want %s", key, got[key], want)
		}
	}
}

func TestConsole(t *testing.T) {
	l, b := newTest(t, "info", "console")
	l.Log.Warn("socket bound again", zap.String("path", "/run/kekd/kekd.sock"))
	for _, part := range []string{"\twarn\t", "socket bound again", `{"path": "/run/kekd/kekd.sock"}`} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("%q is not in %q", part, b)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	for _, format := range []string{"json", "console"} {
		l, b := newTest(t, "debug", format)
		pin := secret.Bytes("hunter2")
		l.Log.Info("all ways", zap.Any("any", pin), zap.Stringer("stringer", pin), zap.Object("object", pin),
			zap.Reflect("reflect", map[string]any{"pin": pin}))
		for _, leak := range []string{"hunter2", "aHVudGVyMg"} {
			if strings.Contains(b.String(), leak) {
				t.Errorf("%s: the secret is in %q", format, b)
			}
		}
	}
}

func TestLevel(t *testing.T) {
	l, b := newTest(t, "warn", "json")
	l.Log.Info("too low")
	if lines(b) != 0 {
		t.Errorf("info was written at level warn: %s", b)
	}
	l.Level.SetLevel(zap.DebugLevel)
	l.Log.Debug("now")
	if lines(b) != 1 {
		t.Errorf("debug was not written after the level changed: %q", b)
	}
}

func TestSampling(t *testing.T) {
	l, b := newTest(t, "info", "json")
	// The sampler counts by the entries' own second, which may turn once here.
	for range 1000 {
		l.Log.Warn("the same")
	}
	if n := lines(b); n < sampleFirst || n > 2*(sampleFirst+1000/sampleThen) {
		t.Errorf("%d of 1000 equal entries were written, want about %d", n, sampleFirst+1000/sampleThen)
	}
}

func TestAudit(t *testing.T) {
	l, b := newTest(t, "error", "json")
	for range 1000 {
		l.Audit.Info("caller refused", zap.Uint32("uid", 7))
	}
	if n := lines(b); n != 1000 {
		t.Errorf("%d of 1000 audit events were written", n)
	}
	if !strings.Contains(b.String(), `"logger":"audit"`) {
		t.Errorf("an audit event does not name its logger: %s", b.String()[:200])
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct{ level, format, want string }{
		{"loud", "json", `log.level: unrecognized level: "loud"`},
		{"info", "xml", `log.format: must be one of json, console, got "xml"`},
	} {
		_, err := New(tt.level, tt.format, zapcore.AddSync(&bytes.Buffer{}))
		if err == nil || err.Error() != tt.want {
			t.Errorf("New(%q, %q) = %v, want %s", tt.level, tt.format, err, tt.want)
		}
	}
}
