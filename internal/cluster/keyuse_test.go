package cluster

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kekd/internal/kek"
)

const (
	oldKey = "k8s-kek/01/aaaaaa"
	newKey = "k8s-kek/02/bbbbbb"
)

// metricsText is what kube-apiserver 1.37 has to say after a rotation.
var metricsText = strings.NewReplacer("OLD", kek.KeyIDHash(oldKey), "NEW", kek.KeyIDHash(newKey)).Replace(`
# HELP apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds [ALPHA] The last time in seconds when a keyID was used.
# TYPE apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds gauge
apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds{apiserver_id_hash="sha256:1",key_id_hash="NEW",provider_name="kekd",transformation_type="from_storage"} 1.7870000099e+09
apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds{apiserver_id_hash="sha256:1",key_id_hash="OLD",provider_name="kekd",transformation_type="to_storage"} 1.787000001e+09
# HELP apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds [ALPHA] The last time in seconds when a keyID was returned by the Status RPC call.
# TYPE apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds gauge
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:1",key_id_hash="OLD",provider_name="kekd"} 1.7870000015e+09
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:1",key_id_hash="NEW",provider_name="kekd"} 1.787000002e+09
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:1",key_id_hash="OLD",provider_name="kekd-2"} 1.787000002e+09
`)

func at(seconds float64) time.Time { return time.UnixMicro(int64(1787e12 + seconds*1e6)).UTC() }

func TestKeyInUse(t *testing.T) {
	providers := []ProviderUse{
		{Name: "kekd", Status: kek.KeyIDHash(newKey), StatusTime: at(2), Written: kek.KeyIDHash(oldKey), WrittenTime: at(1)},
		{Name: "kekd-2", Status: kek.KeyIDHash(oldKey), StatusTime: at(2)},
	}
	const health, metrics = "/readyz/kms-providers", "/metrics"
	answer := func(code int, body string) func(int) (int, string) {
		return func(int) (int, string) { return code, body }
	}
	tests := []struct {
		name            string
		health, metrics func(request int) (int, string)
		want            KeyUse
		err             string
	}{
		{"healthy", answer(200, "ok"), answer(200, metricsText), KeyUse{Providers: providers}, ""},
		{"unhealthy", answer(500, "internal server error:\n kekd: HSM away\n"), answer(200, metricsText),
			KeyUse{Problem: "internal server error: kekd: HSM away", Providers: providers}, ""},
		{"no seed could be made under the key of the last Status",
			func(request int) (int, string) {
				if request == 1 {
					return 200, "ok" // of an earlier Status
				}
				return 500, "no seed"
			}, answer(200, metricsText), KeyUse{Problem: "no seed", Providers: providers}, ""},
		{"no KMS v2", answer(404, "404 page not found"), answer(200, ""), KeyUse{},
			"ask URL for /readyz/kms-providers: it does not encrypt with a KMS v2 provider"},
		{"no right to ask", answer(403, "forbidden: User \"x\""), answer(200, ""), KeyUse{},
			"ask URL for /readyz/kms-providers: 403 Forbidden: forbidden: User \"x\""},
		{"no metrics", answer(200, "ok"), answer(403, "no"), KeyUse{}, "read the metrics of URL: 403 Forbidden: no"},
		{"odd metrics", answer(200, "ok"), answer(200, "{"), KeyUse{}, "read the metrics of URL: text format parsing error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var requests atomic.Int32
			mux := http.NewServeMux()
			mux.HandleFunc(health, func(w http.ResponseWriter, _ *http.Request) {
				code, body := tt.health(int(requests.Add(1)))
				w.WriteHeader(code)
				_, _ = fmt.Fprint(w, body)
			})
			mux.HandleFunc(metrics, func(w http.ResponseWriter, _ *http.Request) {
				code, body := tt.metrics(0)
				w.WriteHeader(code)
				_, _ = fmt.Fprint(w, body)
			})
			c := serve(t, "x", mux)
			servers, err := c.AddressedAPIServers(c.Server())
			if err != nil {
				t.Fatal(err)
			}
			got, err := servers[0].KeyInUse(t.Context())
			if tt.err != "" {
				if want := strings.ReplaceAll(tt.err, "URL", c.Server()); err == nil || !strings.HasPrefix(err.Error(), want) {
					t.Fatalf("KeyInUse: %v, want %q", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("KeyInUse (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLacks(t *testing.T) {
	use := KeyUse{Providers: []ProviderUse{{Name: "a", Status: kek.KeyIDHash(newKey)}, {Name: "b", Status: kek.KeyIDHash(oldKey)}}}
	tests := []struct {
		name      string
		problem   string
		keyID     string
		providers []string
		want      string
	}{
		{"one of them", "", newKey, nil, ""},
		{"none of them", "", "k8s-kek/03/cccccc", nil, "none of its KMS providers uses the key"},
		{"the one that matters", "", newKey, []string{"a"}, ""},
		{"not the one that matters", "", newKey, []string{"a", "b"}, `its KMS provider "b" uses another key`},
		{"one that is no longer there", "", newKey, []string{"c"}, ""},
		{"unhealthy", "away", newKey, nil, "it is not healthy: away"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := use
			u.Problem = tt.problem
			if got := u.Lacks(tt.keyID, tt.providers...); got != tt.want {
				t.Errorf("Lacks = %q, want %q", got, tt.want)
			}
		})
	}
}
