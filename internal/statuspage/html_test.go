package statuspage

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"kekd/internal/health"
	"kekd/internal/history"
	"kekd/internal/httpapi"
)

// parse reads a page and checks that it is sound: elements are closed by what opened
// them, ids are there once, and what refers to one finds it.
func parse(t *testing.T, body string) *html.Node {
	t.Helper()
	balanced(t, body)
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for n := range doc.Descendants() {
		if id := attribute(n, "id"); id != "" {
			if ids[id] {
				t.Errorf("the id %q is there twice", id)
			}
			ids[id] = true
		}
	}
	for n := range doc.Descendants() {
		refs := strings.Fields(attribute(n, "aria-labelledby"))
		if ref, ok := strings.CutPrefix(attribute(n, "href"), "#"); ok {
			refs = append(refs, ref)
		}
		for _, ref := range refs {
			if !ids[ref] {
				t.Errorf("<%s> refers to #%s, which is not there", n.Data, ref)
			}
		}
	}
	return doc
}

// balanced checks that every element is closed, in order.
func balanced(t *testing.T, body string) {
	t.Helper()
	void := []string{"meta", "link", "br"}
	var open []string
	z := html.NewTokenizer(strings.NewReader(body))
	for {
		switch z.Next() {
		case html.ErrorToken:
			if len(open) > 0 {
				t.Errorf("never closed: %q", open)
			}
			return
		case html.StartTagToken:
			if name, _ := z.TagName(); !slices.Contains(void, string(name)) {
				open = append(open, string(name))
			}
		case html.EndTagToken:
			name, _ := z.TagName()
			if len(open) == 0 || open[len(open)-1] != string(name) {
				t.Fatalf("</%s> closes %q", name, open)
			}
			open = open[:len(open)-1]
		case html.TextToken, html.SelfClosingTagToken, html.CommentToken, html.DoctypeToken:
		}
	}
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// elements are those that the page is made of; no script, frame or form among them.
var elements = []string{
	"html", "head", "meta", "title", "link", "style", "body", "header", "main", "footer", "nav", "section", "div", "figure", "figcaption", "details", "summary",
	"h1", "h2", "p", "a", "b", "strong", "span", "code", "abbr", "time", "br", "ul", "li", "dl", "dt", "dd",
	"table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "symbol", "use", "path", "circle", "rect", "text", "desc",
}

// harmless checks that a page has nothing that runs and asks for nothing elsewhere.
func harmless(t *testing.T, doc *html.Node) {
	t.Helper()
	for n := range doc.Descendants() {
		if n.Type == html.CommentNode {
			t.Errorf("the page has the comment %q", n.Data)
		}
		if n.Type != html.ElementNode {
			continue
		}
		if !slices.Contains(elements, n.Data) {
			t.Errorf("the page has a <%s>", n.Data)
		}
		for _, a := range n.Attr {
			switch {
			case strings.HasPrefix(a.Key, "on"), a.Key == "style", a.Key == "src", a.Key == "srcdoc", a.Key == "action":
				t.Errorf("<%s> has %s=%q", n.Data, a.Key, a.Val)
			case a.Key == "href":
				u, err := url.Parse(a.Val)
				if n.Data == "link" && err == nil && u.Scheme == "data" {
					break
				}
				if err != nil || u.Scheme != "" || u.Host != "" {
					t.Errorf("<%s> leads to %q", n.Data, a.Val)
				}
			case strings.Contains(a.Val, "://") && a.Key != "title":
				t.Errorf("<%s> has %s=%q", n.Data, a.Key, a.Val)
			}
		}
	}
	if strings.Contains(styleSheet, "url(") || strings.Contains(styleSheet, "@import") {
		t.Error("the style sheet asks for something")
	}
}

func TestHTML(t *testing.T) {
	for name, s := range stories() {
		t.Run(name, func(t *testing.T) {
			doc := parse(t, get(t, page(t, s), "/").Body.String())
			harmless(t, doc)
			for n := range doc.Descendants() {
				if n.Data == "th" && attribute(n, "scope") == "" {
					t.Error("a <th> has no scope")
				}
				if n.Data == "table" && (n.FirstChild.NextSibling == nil || n.FirstChild.NextSibling.Data != "caption") {
					t.Error("a table has no caption")
				}
			}
		})
	}
}

// The worst texts that a token, a module or a host name could bring.
const hostile = `</style></title><script>alert(1)</script>"><img src=x onerror=alert(2)> javascript:alert(3) {{.}} ` + "\x00\u202e\xff" + `&lt;b&gt;`

func TestHostileTexts(t *testing.T) {
	for name, s := range stories() {
		t.Run(name, func(t *testing.T) {
			s.facts.Node, s.facts.Ring = hostile, hostile
			s.status.Version.Version, s.status.Health.Reason, s.status.RingProblem = hostile, hostile, hostile
			s.status.Policy = []string{hostile}
			s.status.Seeds.Mechanism = hostile
			s.status.Token = &httpapi.Token{Label: hostile, Serial: hostile, Manufacturer: hostile, Model: hostile, Library: hostile}
			if s.status.KeyRing != nil {
				for i := range s.status.KeyRing.Keys {
					k := &s.status.KeyRing.Keys[i]
					k.KeyID, k.State, k.Mechanism, k.Problem = hostile, hostile, hostile, []string{"", hostile}[i%2]
				}
			}
			s.status.Health.KeyID = hostile
			s.reading.Now.AuditFailing = []string{hostile}
			for i := range s.reading.Changes {
				s.reading.Changes[i].Text, s.reading.Changes[i].Subject = hostile, hostile
			}
			body := get(t, page(t, s), "/").Body.String()
			doc, err := html.Parse(strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			balanced(t, body)
			harmless(t, doc)
			seen := 0
			for n := range doc.Descendants() {
				if n.Type == html.TextNode && strings.Contains(n.Data, "<script>alert(1)</script>") {
					seen++
				}
			}
			if seen < 5 {
				t.Errorf("the text stands on the page %d times: was it dropped?", seen)
			}
		})
	}
}

// An unknown state, which a later version might bring, must not break the page.
func TestUnknownState(t *testing.T) {
	s := tell(health.State(hostile), "x", func(*story) {})
	harmless(t, parse(t, get(t, page(t, s), "/").Body.String()))
}

func TestHeaders(t *testing.T) {
	h := get(t, page(t, stories()["ready"]), "/").Header()
	want := map[string]string{
		"Content-Type":    "text/html; charset=utf-8",
		"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
		"Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
	}
	for name, value := range want {
		if got := h.Get(name); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	csp := regexp.MustCompile(`^default-src 'none'; style-src 'sha256-[A-Za-z0-9+/]{43}='; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'$`)
	if got := h.Get("Content-Security-Policy"); !csp.MatchString(got) {
		t.Errorf("Content-Security-Policy is %q", got)
	}
}

// What looks like a key, a seed or a ciphertext belongs to a key_id, or is not there.
func TestNothingLooksSecret(t *testing.T) {
	for name, s := range stories() {
		body := strings.Replace(get(t, page(t, s), "/").Body.String(), styleSheet, "", 1)
		if s.status.KeyRing != nil {
			for _, k := range s.status.KeyRing.Keys {
				body = strings.ReplaceAll(body, k.KeyID, "")
			}
		}
		for _, found := range regexp.MustCompile(`\b[0-9a-f]{24,}\b|[A-Za-z0-9+/]{40,}=*`).FindAllString(body, -1) {
			t.Errorf("%s: the page has %q", name, found)
		}
	}
}

func TestRunbooksAreThere(t *testing.T) {
	named := map[string]bool{}
	everything := tell(health.Ready, "", func(s *story) {
		n := &s.reading.Now
		n.PINLatched, n.AuditFailing, n.AuditLost, n.Panics, n.SessionsWaiting, n.SessionsInUse = true, []string{"write"}, 1, 1, 1, 4
		n.CallersRefused, n.ConnectionsRefused, n.LogLinesLost = 1, 1, 1
		s.status.Seeds.BreakerOpen, s.status.RingProblem = true, "x"
	})
	all := stories()
	all["everything"] = everything
	for _, s := range all {
		for _, path := range regexp.MustCompile(`docs/runbooks/[a-z-]+\.md`).FindAllString(get(t, page(t, s), "/").Body.String(), -1) {
			named[path] = true
		}
	}
	if len(named) < 11 {
		t.Errorf("only %d runbooks are named", len(named))
	}
	for path := range named {
		if _, err := os.Stat("../../" + path); err != nil {
			t.Error(err)
		}
	}
}

func TestReload(t *testing.T) {
	p := page(t, stories()["ready"])
	for query, want := range map[string]string{
		"": "", "?refresh=10": "10", "?refresh=60": "60", "?refresh=0": "", "?refresh=1;url=http://x": "", "?refresh=%22": "",
	} {
		body := get(t, p, "/"+query).Body.String()
		got := ""
		if m := regexp.MustCompile(`<meta http-equiv="refresh" content="([^"]*)">`).FindStringSubmatch(body); m != nil {
			got = m[1]
		}
		if got != want {
			t.Errorf("%q reloads after %q, want %q", query, got, want)
		}
	}
}

// However many ask, the page is made once a second.
func TestRenderedOnceASecond(t *testing.T) {
	s, now, made := stories()["ready"], noon, 0
	p := page(t, s)
	p.cfg.Clock = func() time.Time { return now }
	p.cfg.History = func() (history.Reading, error) { made++; return s.reading, nil }
	for range 50 {
		get(t, p, "/")
	}
	now = now.Add(time.Second)
	get(t, p, "/")
	now = now.Add(-time.Hour) // a clock that is set back must not keep an old page for an hour
	get(t, p, "/")
	if made != 3 {
		t.Errorf("the page was made %d times, want 3", made)
	}
}

func TestMetricsBroken(t *testing.T) {
	s := stories()["ready"]
	s.broken = errors.New("collector said " + hostile)
	body := get(t, page(t, s), "/").Body.String()
	parse(t, body)
	if !strings.Contains(body, "The metrics cannot be read") || strings.Contains(body, "collector said") {
		t.Error("the page does not say that the metrics cannot be read, or says why")
	}
}

func TestHead(t *testing.T) {
	server := httptest.NewServer(page(t, stories()["ready"]))
	defer server.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodHead, server.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Security-Policy") == "" {
		t.Errorf("HEAD = %d %v", answer.StatusCode, answer.Header)
	}
}
