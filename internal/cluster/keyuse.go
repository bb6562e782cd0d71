package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"kekd/internal/kek"
)

// ErrNoKMS is the answer of an API server that has no KMS v2 provider.
var ErrNoKMS = errors.New("it does not encrypt with a KMS v2 provider")

// KeyUse is which KEKs an API server encrypts with. Key ids come as the hashes
// that kube-apiserver publishes (kek.KeyIDHash).
type KeyUse struct {
	// Problem is what /readyz/kms-providers says when it is not ok; empty if it is.
	Problem string `json:"problem,omitempty"`
	// Providers are the KMS v2 providers that answered at least once, by name.
	Providers []ProviderUse `json:"providers"`
}

// ProviderUse is what an API server does with one KMS v2 provider.
type ProviderUse struct {
	Name string `json:"name"`
	// Status is the key_id that the plugin's Status named last, and when.
	Status     string    `json:"status"`
	StatusTime time.Time `json:"statusTime"`
	// Written is the key_id that an object was last written under, and when; empty
	// before the first write.
	Written     string    `json:"written,omitempty"`
	WrittenTime time.Time `json:"writtenTime,omitzero"`
}

// Lacks says why the server does not encrypt under the key_id now; empty if it
// does. One provider must use it, and each of the named ones that the server has.
func (u KeyUse) Lacks(keyID string, providers ...string) string {
	if u.Problem != "" {
		return "it is not healthy: " + u.Problem
	}
	hash, used := kek.KeyIDHash(keyID), false
	for _, p := range u.Providers {
		switch {
		case p.Status == hash:
			used = true
		case slices.Contains(providers, p.Name):
			return fmt.Sprintf("its KMS provider %q uses another key", p.Name)
		}
	}
	if !used {
		return "none of its KMS providers uses the key"
	}
	return ""
}

// KeyInUse asks the server for its health with its KMS providers and reads its
// metrics. The first makes the server ask its plugins for their Status, but at
// most every 20 seconds: who waits for a key asks again and again.
func (s *APIServer) KeyInUse(ctx context.Context) (KeyUse, error) {
	const health = "/readyz/kms-providers"
	if _, err := s.healthy(ctx, health); err != nil {
		return KeyUse{}, err
	}
	code, body, err := s.get(ctx, "/metrics")
	if err == nil && code != http.StatusOK {
		err = refusal(code, body)
	}
	if err != nil {
		return KeyUse{}, fmt.Errorf("read the metrics of %s: %w", s.URL, err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		return KeyUse{}, fmt.Errorf("read the metrics of %s: %w", s.URL, err)
	}
	use := KeyUse{Providers: providerUses(families)}
	// Asked once more: the server counts the Status before it makes a seed under
	// the key, and this answer covers at least the Status that was counted.
	use.Problem, err = s.healthy(ctx, health)
	return use, err
}

// healthy asks a health endpoint and returns its complaint; empty if it has none.
func (s *APIServer) healthy(ctx context.Context, path string) (string, error) {
	code, body, err := s.get(ctx, path)
	switch {
	case err != nil:
	case code == http.StatusNotFound:
		err = ErrNoKMS
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		err = refusal(code, body)
	}
	if err != nil {
		return "", fmt.Errorf("ask %s for %s: %w", s.URL, path, err)
	}
	if code == http.StatusOK {
		return "", nil
	}
	return strings.Join(strings.Fields(body), " "), nil
}

// maxAnswer bounds an answer, in bytes. The metrics of a large cluster have some
// megabytes.
const maxAnswer = 256 << 20

// get asks for a path of the server.
func (s *APIServer) get(ctx context.Context, path string) (code int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+path, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, string(text), err
}

// refusal is the error of an answer that is no answer.
func refusal(code int, body string) error {
	const shown = 200
	text := strings.Join(strings.Fields(body), " ")
	return fmt.Errorf("%d %s: %s", code, http.StatusText(code), text[:min(len(text), shown)])
}

// providerUses reads for each provider which key_id came last.
func providerUses(families map[string]*dto.MetricFamily) []ProviderUse {
	uses := map[string]ProviderUse{}
	const prefix = "apiserver_envelope_encryption_key_id_hash_"
	for _, m := range families[prefix+"status_last_timestamp_seconds"].GetMetric() {
		use, at := uses[label(m, "provider_name")], unix(m.GetGauge().GetValue())
		if at.After(use.StatusTime) {
			use.Name, use.Status, use.StatusTime = label(m, "provider_name"), label(m, "key_id_hash"), at
			uses[use.Name] = use
		}
	}
	for _, m := range families[prefix+"last_timestamp_seconds"].GetMetric() {
		use, known := uses[label(m, "provider_name")]
		at := unix(m.GetGauge().GetValue())
		if known && label(m, "transformation_type") == "to_storage" && at.After(use.WrittenTime) {
			use.Written, use.WrittenTime = label(m, "key_id_hash"), at
			uses[use.Name] = use
		}
	}
	return slices.SortedFunc(maps.Values(uses), func(a, b ProviderUse) int { return strings.Compare(a.Name, b.Name) })
}

func label(m *dto.Metric, name string) string {
	for _, pair := range m.GetLabel() {
		if pair.GetName() == name {
			return pair.GetValue()
		}
	}
	return ""
}

// unix is the time of a gauge in seconds. Microseconds are all that a float holds.
func unix(seconds float64) time.Time { return time.UnixMicro(int64(seconds * 1e6)).UTC() }
