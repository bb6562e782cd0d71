package nodes

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"kekd/internal/httpapi"
)

// FuzzStatus: whatever answers at a node's address, kekctl's view of it is one
// printable line, and a key that it does not know is not found.
func FuzzStatus(f *testing.F) {
	example, err := os.ReadFile("../../httpapi/testdata/status.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{string(example), "", "null", "{}", "[]", `{"keyRing":{"keys":null}}`, `{"keyRing":{"keys":[{"keyID":"k"}]}}`, `{"ringProblem":"a\u001b[2Jb\nc"}`, `{"health":{"reason":"\u202e"}}`, `{"time":"x"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n := HTTP{name: "n", url: "http://n", client: &http.Client{Transport: answering(body)}}
		status, err := n.Status(context.Background())
		if (status == nil) == (err == nil) {
			t.Fatalf("%v and %v", status, err)
		}
		r := Report{Node: n, Status: status, Err: err}
		if s := r.Trouble(); strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
			t.Errorf("the trouble is %q", s)
		}
		if _, ok := r.Key("an id that no node has"); ok {
			t.Error("it has a key that it does not name")
		}
	})
}

// answering is an http.RoundTripper that answers every request with these bytes.
type answering []byte

// RoundTrip implements http.RoundTripper.
func (a answering) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Body: io.NopCloser(strings.NewReader(string(a))), Request: req}, nil
}

// The offset of a node's clock is never off by more than the uncertainty says.
func TestClockOffset(t *testing.T) {
	for _, ahead := range []time.Duration{0, 3 * time.Minute, -3 * time.Minute} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost || r.URL.Path != "/refresh" {
				t.Errorf("%s %s, want POST /refresh", r.Method, r.URL.Path)
			}
			text, err := time.Now().Add(ahead).MarshalText()
			if err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(w, `{"time":"`+string(text)+`"}`)
		}))
		n, err := Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		_, got, uncertainty, err := n.Ask(t.Context())
		server.Close()
		if err != nil || (got-ahead).Abs() > uncertainty || uncertainty > AskTimeout {
			t.Errorf("a clock %v ahead: %v give or take %v, %v", ahead, got, uncertainty, err)
		}
	}
}

func TestRefused(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	n, err := Parse(strings.TrimPrefix(server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	reports := AskAll(t.Context(), []Node{n})
	if got := reports[0].Trouble(); got != "POST /refresh: 404 Not Found" {
		t.Errorf("the trouble is %q", got)
	}
	if s := (Report{Status: &httpapi.Status{}}).Trouble(); s != "" {
		t.Errorf("a node without trouble has %q", s)
	}
}
