package page

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// pageWithin bounds all that is done with one page: a busy machine takes seconds.
const pageWithin = 2 * time.Minute

// measure finds what is wrong with a page's layout; see the file.
//
//go:embed measure.js
var measure string

// browser is a headless Chromium, for one test. It ends with the test.
func browser(t *testing.T) context.Context {
	t.Helper()
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Fatal("no Chromium is installed: install chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, // root has no other way
		chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(time.Minute))
	allocator, cancelAllocator := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		cancel() // waits until the process has ended
		cancelAllocator()
	})
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	return ctx
}

// look is how a page is looked at.
type look struct {
	width, height int64
	scheme        string // light or dark
	media         string // screen or print
}

func (l look) String() string {
	s := fmt.Sprintf("%d-%s", l.width, l.scheme)
	if l.media == "print" {
		s += "-print"
	}
	return s
}

// looks are a phone, a tablet and a desktop in both colour schemes, and paper.
func looks() []look {
	var all []look
	for _, scheme := range []string{"light", "dark"} {
		for _, size := range [][2]int64{{360, 740}, {768, 1024}, {1280, 900}} {
			all = append(all, look{size[0], size[1], scheme, "screen"})
		}
	}
	return append(all, look{720, 1000, "light", "print"})
}

// seen is what came of looking.
type seen struct {
	mu sync.Mutex
	// requests are the addresses that the browser asked for.
	requests []string
	// complaints are what it wrote to its console or held against the page.
	complaints []string

	// picture is a PNG of the whole page.
	picture []byte

	Title string
	Text  string // as a reader sees it
	// Findings are what is wrong with the layout.
	Findings []string
	// Colours of text that were compared with what is behind them.
	Compared int
}

// visit opens an address in a new tab, with JavaScript turned off, and checks what
// every page must keep: nothing is asked for but the page, nothing is complained about,
// nothing sticks out, all text can be read against its background.
func visit(t *testing.T, browser context.Context, url, name string, l look) *seen {
	t.Helper()
	tab, closeTab := chromedp.NewContext(browser)
	defer closeTab()
	if err := chromedp.Do(tab, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(tab, pageWithin)
	defer cancel()
	s := &seen{}
	var found string
	var hearing sync.WaitGroup
	err := chromedp.Do(limited, chromedp.Func(func(ctx context.Context, tab *chromedp.Target) (err error) {
		do := func(err error) {
			if err != nil {
				t.Errorf("%s, %v: %v", name, l, err)
			}
		}
		s.hear(t, tab, &hearing)
		do(empty(cdp.Call(ctx, tab, network.Enable, network.EnableParams{})))
		do(empty(cdp.Call(ctx, tab, log.Enable, cdp.Empty{})))
		do(empty(cdp.Call(ctx, tab, audits.Enable, cdp.Empty{})))
		do(empty(cdp.Call(ctx, tab, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})))
		do(empty(cdp.Call(ctx, tab, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
			Width: l.width, Height: l.height, DeviceScaleFactor: 1, Mobile: l.width < 500,
		})))
		do(empty(cdp.Call(ctx, tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Media: l.media, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}},
		})))
		_, err = chromedp.Navigate(url)(ctx, tab)
		do(err)
		found, err = chromedp.Evaluate[string](measure)(ctx, tab) // the debugger may, the page may not
		do(err)
		beyond := true
		shot, err := cdp.Call(ctx, tab, page.CaptureScreenshot, page.CaptureScreenshotParams{CaptureBeyondViewport: &beyond})
		s.picture = shot.Data
		return err
	}))
	closeTab() // after which no more is heard
	hearing.Wait()
	if err != nil || found == "" {
		t.Fatalf("%s, %v: %v", name, l, err)
	}
	keep(t, name+"-"+l.String()+".png", s.picture)
	if err := json.Unmarshal([]byte(found), s); err != nil {
		t.Fatal(err)
	}
	if len(s.requests) != 1 || s.requests[0] != url {
		t.Errorf("%s, %v: the browser asked for %q, want %q alone", name, l, s.requests, url)
	}
	for _, c := range s.complaints {
		t.Errorf("%s, %v: the browser complains: %s", name, l, c)
	}
	for _, f := range s.Findings {
		t.Errorf("%s, %v: %s", name, l, f)
	}
	if s.Compared < 50 {
		t.Errorf("%s, %v: only %d texts were compared with their background", name, l, s.Compared)
	}
	return s
}

func empty(_ cdp.Empty, err error) error { return err }

// hear notes what the browser tells of a tab, until the tab is closed.
func (s *seen) hear(t *testing.T, tab *chromedp.Target, hearing *sync.WaitGroup) {
	listen(t, tab, hearing, network.RequestWillBeSent, func(e network.EventRequestWillBeSent) {
		if !strings.HasPrefix(e.Request.URL, "data:") { // the icon, which is in the page
			s.add(&s.requests, e.Request.URL)
		}
	})
	listen(t, tab, hearing, log.EntryAdded, func(e log.EventEntryAdded) { s.add(&s.complaints, e.Entry.Text) })
	listen(t, tab, hearing, runtime.ConsoleAPICalled, func(e runtime.EventConsoleAPICalled) {
		s.add(&s.complaints, fmt.Sprintf("console: %v", e.Args))
	})
	listen(t, tab, hearing, runtime.ExceptionThrown, func(e runtime.EventExceptionThrown) {
		s.add(&s.complaints, e.ExceptionDetails.Text)
	})
	listen(t, tab, hearing, audits.IssueAdded, func(e audits.EventIssueAdded) {
		s.add(&s.complaints, fmt.Sprintf("%s %+v", e.Issue.Code, e.Issue.Details))
	})
}

func (s *seen) add(to *[]string, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*to = append(*to, text)
}

// listen calls f with each event until the tab is closed. It hears from the moment
// it returns.
func listen[E any](t *testing.T, tab *chromedp.Target, hearing *sync.WaitGroup, of cdp.Event[E], f func(E)) {
	ctx, cancel := context.WithTimeout(t.Context(), pageWithin)
	events := cdp.Events(ctx, tab, of)
	hearing.Go(func() {
		defer cancel()
		for e, err := range events {
			if err != nil {
				t.Errorf("listen to %s: %v", of.Method, err)
				return
			}
			f(e)
		}
	})
}

// keep writes a file to KEKD_SCREENSHOTS, or to the test's artifacts.
func keep(t *testing.T, name string, content []byte) {
	t.Helper()
	dir := os.Getenv("KEKD_SCREENSHOTS")
	if dir == "" {
		dir = t.ArtifactDir()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}
