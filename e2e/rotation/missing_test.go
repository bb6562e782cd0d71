package rotation

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"kekd/e2e/internal/harness"
)

// testNodeMissing: a key that a node has not seen in time is cancelled by the
// rotation that made it, before anything is encrypted under it. With a node that does
// not answer at all there is no key to begin with.
func testNodeMissing(t *testing.T, c *cluster) {
	old := c.requireKey(t, "primary")
	before := len(c.ring(t))
	blind := c.blind(t, c.nodes[1].kekd)
	nodes := []string{"--node", c.nodes[0].kekd.URL, "--node", blind}
	// A tenth of the time is left for the evidence that the key can be cancelled.
	k := c.kekctl(t, 1, join([]string{"rotate", "--yes", "--activate-in", "50s"}, nodes, c.kubeFlags, c.etcdFlags)...)
	text := k.Stderr(t)
	for _, want := range []string{"has tested the key", "does not see it: ", "so it was cancelled; nothing was encrypted under it"} {
		if !strings.Contains(text, want) {
			t.Errorf("kekctl rotate does not say %q:\n%s", want, text)
		}
	}
	if now := c.requireKey(t, "primary"); now != old || len(c.ring(t)) != before {
		t.Errorf("the ring is %+v, want key %s the primary and none beside the %d before", c.ring(t), old.ID, before)
	}
	awaitKeyID(t, c.nodes[0].kekd, old.KeyID, takenUpWithin)

	c.nodes[1].kekd.Stop(t)
	start := time.Now()
	k = c.kekctl(t, 1, join([]string{"rotate", "--yes", "--activate-in", activateIn}, c.nodeFlags, c.kubeFlags, c.etcdFlags)...)
	if text := k.Stderr(t); !strings.Contains(text, "so no key was created") || time.Since(start) > time.Minute {
		t.Errorf("kekctl rotate with a node that is away ends after %v:\n%s", time.Since(start), text)
	}
	if now := c.requireKey(t, "primary"); now != old || len(c.ring(t)) != before {
		t.Errorf("the ring is %+v, want key %s the primary and none beside the %d before", c.ring(t), old.ID, before)
	}
}

// blind is the URL of a kekd that does not see pending keys: what it answers is
// without them.
func (c *cluster) blind(t *testing.T, k *harness.Kekd) string {
	t.Helper()
	target, err := url.Parse(k.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(resp *http.Response) error {
		var status map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
			return err
		}
		if ring, ok := status["keyRing"].(map[string]any); ok {
			keys, _ := ring["keys"].([]any)
			ring["keys"] = slices.DeleteFunc(keys, func(k any) bool { return k.(map[string]any)["state"] == "pending" })
		}
		b, err := json.Marshal(status)
		resp.Body, resp.ContentLength = io.NopCloser(strings.NewReader(string(b))), int64(len(b))
		resp.Header.Del("Content-Length")
		return err
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return server.URL
}
