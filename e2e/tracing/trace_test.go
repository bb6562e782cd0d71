package tracing

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

const decrypt = "v2.KeyManagementService/Decrypt"

// find returns the first span that matches, when it has come.
func find(t *testing.T, r *receiver, what string, match func(*span) bool) *span {
	t.Helper()
	var found *span
	harness.Eventually(t, 20*time.Second, what, func(context.Context) error {
		all, _ := r.traces(t)
		for _, s := range all {
			if match(s) {
				found = s
				return nil
			}
		}
		return fmt.Errorf("not among %d spans", len(all))
	})
	return found
}

// whole returns the trace of a span when all of this many spans have come.
func whole(t *testing.T, r *receiver, s *span, spans int) []*span {
	t.Helper()
	var trace []*span
	harness.Eventually(t, 20*time.Second, "the whole trace", func(context.Context) error {
		all, _ := r.traces(t)
		if trace = traceOf(all, s.GetTraceId()); len(trace) < spans {
			return fmt.Errorf("%d spans of %d:\n%s", len(trace), spans, shape(trace))
		}
		return nil
	})
	return trace
}

// A Decrypt that finds no seed after a start, one that finds it, and one under which
// the worker dies, through a real collector with TLS in both directions.
func TestTraces(t *testing.T) {
	r := newReceiver(t)
	section := startCollector(t, r)
	token := harness.NewToken(t).WithFaults(t)
	token.Faults(t)
	k := harness.NewKekd(t, token, harness.KekdOptions{Tracing: section, ProbeInterval: time.Minute})
	k.StartReady(t)
	plaintext := make([]byte, 32)
	_, _ = rand.Read(plaintext)
	sealed, err := k.KMS(t).Encrypt(t.Context(), plaintext)
	if err != nil {
		t.Fatal(err)
	}
	k.Stop(t)
	find(t, r, "the spans of a kekd that has stopped", func(s *span) bool { return s.GetName() == "v2.KeyManagementService/Encrypt" })

	token.Faults(t, "C_Decrypt ms=20") // as over a network
	k.StartReady(t)
	client := k.KMS(t)
	open := func(what string) {
		t.Helper()
		if got, err := client.Decrypt(t.Context(), sealed); err != nil || !bytes.Equal(got, plaintext) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	open("a cold Decrypt")
	token.Faults(t)
	open("a warm Decrypt")

	cold := find(t, r, "the cold Decrypt", func(s *span) bool { return s.GetName() == decrypt && s.attributes()["kekd.source"] == "hsm" })
	trace := whole(t, r, cold, 6)
	t.Logf("a cold Decrypt:\n%s", tree(trace))
	const coldShape = decrypt + "\n  seed.fetch\n    seed.unwrap\n      hsm.unwrap\n        hsm.session.await\n        hsm.call\n"
	if got := shape(trace); got != coldShape {
		t.Errorf("a cold Decrypt has the spans\n%swant\n%s", got, coldShape)
	}
	for i, s := range trace[1:5] { // each but the last two is within the one before it
		if s.length() > trace[i].length() {
			t.Errorf("%s takes %s, longer than %s around it", s.GetName(), s.length(), trace[i].length())
		}
	}
	if call := trace[5].length(); call < 20*time.Millisecond {
		t.Errorf("the call takes %s, the module slept for 20ms", call)
	}
	update(t, "cold", "```\n"+tree(trace)+"```")
	said := cold.attributes()
	if said["kms.uid"] != "e2e" || said["kms.key_id"] != sealed.KeyID || said["rpc.response.status_code"] != "OK" || said["kekd.result"] != "ok" {
		t.Errorf("the cold Decrypt says %v", said)
	}
	if cold.resource["service.name"] != "kekd" || cold.resource["service.version"] == "" || cold.resource["host.name"] == "" || cold.resource["service.instance.id"] == "" {
		t.Errorf("the resource is %v", cold.resource)
	}
	warm := find(t, r, "the warm Decrypt", func(s *span) bool { return s.GetName() == decrypt && s.attributes()["kekd.source"] == "cache" })
	if trace := whole(t, r, warm, 1); len(trace) != 1 {
		t.Errorf("a warm Decrypt has the spans\n%s", shape(trace))
	}
	logged(t, k, hex.EncodeToString(cold.GetTraceId()))
	exemplar(t, k, r)

	// The worker dies under a cold Decrypt.
	k.Stop(t)
	k.StartReady(t)
	token.Faults(t, "C_Decrypt crash n=1")
	open("a Decrypt under which the worker dies")
	died := find(t, r, "the operation that met the death", func(s *span) bool { return s.attributes()["kekd.hsm.attempts"] == "2" })
	trace = whole(t, r, died, 9)
	t.Logf("a Decrypt under which the worker dies:\n%s", tree(trace))
	const diedShape = decrypt + "\n  seed.fetch\n    seed.unwrap\n      hsm.unwrap\n        hsm.session.await\n        hsm.call\n        hsm.worker.await\n        hsm.session.await\n        hsm.call\n"
	if got := shape(trace); got != diedShape {
		t.Errorf("it has the spans\n%swant\n%s", got, diedShape)
	}
	started := find(t, r, "the start of the next worker", func(s *span) bool {
		return s.GetName() == "hsm.worker.start" && len(s.GetLinks()) == 1 && bytes.Equal(s.GetLinks()[0].GetSpanId(), died.GetSpanId())
	})
	restart := whole(t, r, started, 7)
	t.Logf("the start of the next worker:\n%s", tree(restart))
	update(t, "died", "```\n"+tree(trace)+"\n"+tree(restart)+"```")

	// The switch to the first key is on record, and so is each look.
	for _, name := range []string{"ring.switch", "ring.look"} {
		find(t, r, name, func(s *span) bool { return s.GetName() == name })
	}
	k.Stop(t)
	known(t, r)
	silent(t, r, token, plaintext, sealed.Ciphertext)
}

// logged requires a line of the log that has the request's uid and trace.
func logged(t *testing.T, k *harness.Kekd, traceID string) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "the request is in the log with its trace", func(context.Context) error {
		for line := range strings.SplitSeq(k.Log(t), "\n") {
			if strings.Contains(line, `"msg":"request served"`) && strings.Contains(line, `"uid":"e2e"`) && strings.Contains(line, `"trace_id":"`+traceID+`"`) {
				return nil
			}
		}
		return errors.New("no such line")
	})
}

// exemplar requires that a trace which /metrics names for the HSM's times was exported.
func exemplar(t *testing.T, k *harness.Kekd, r *receiver) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, k.URL+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, histogram := range []string{`kekd_hsm_operation_duration_seconds_bucket{op="unwrap"`, `kekd_grpc_request_duration_seconds_bucket{method="Decrypt"`} {
		var id string
		for line := range strings.SplitSeq(string(body), "\n") {
			if _, after, ok := strings.Cut(line, `# {trace_id="`); ok && strings.HasPrefix(line, histogram) {
				id, _, _ = strings.Cut(after, `"`)
			}
		}
		raw, err := hex.DecodeString(id)
		if err != nil || len(raw) != 16 {
			t.Errorf("%s…} has the exemplar %q, want a trace", histogram, id)
			continue
		}
		find(t, r, "the trace of the exemplar", func(s *span) bool { return bytes.Equal(s.GetTraceId(), raw) })
	}
}

// known requires that docs/tracing.md has every span, attribute and event that came.
func known(t *testing.T, r *receiver) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	has := func(kind, name string) {
		t.Helper()
		if !bytes.Contains(text, []byte("`"+name+"`")) {
			t.Errorf("docs/tracing.md does not have the %s %s", kind, name)
		}
	}
	all, _ := r.traces(t)
	for _, s := range all {
		name := s.GetName()
		if op, ok := strings.CutPrefix(name, "hsm."); ok && !strings.Contains(op, ".") && op != "call" {
			name = "hsm.OPERATION"
		}
		if strings.HasPrefix(name, "v2.KeyManagementService/") {
			name = "v2.KeyManagementService/METHOD"
		}
		has("span", name)
		for key := range s.attributes() {
			has("attribute", key)
		}
		for key := range s.resource {
			has("attribute of the resource", key)
		}
		for _, e := range s.GetEvents() {
			has("event", e.GetName())
		}
	}
}

// silent requires that nothing secret was sent, in no encoding.
func silent(t *testing.T, r *receiver, token *harness.Token, secrets ...[]byte) {
	t.Helper()
	pin, err := os.ReadFile(token.PINFile)
	if err != nil {
		t.Fatal(err)
	}
	_, raw := r.traces(t)
	if len(raw) == 0 {
		t.Fatal("nothing was sent")
	}
	for i, s := range append(secrets, pin) {
		for _, form := range [][]byte{
			s, []byte(hex.EncodeToString(s)), []byte(base64.StdEncoding.EncodeToString(s)), []byte(base64.RawURLEncoding.EncodeToString(s)),
		} {
			if bytes.Contains(raw, form) {
				t.Errorf("secret %d was sent as %.16q…", i, form)
			}
		}
	}
	if bytes.Contains(raw, []byte(token.PINFile)) {
		t.Error("the PIN's path was sent")
	}
}
