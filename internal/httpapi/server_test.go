package httpapi

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs Serve on a free port and returns its address, a stop function and
// the channel of its result.
func start(t *testing.T, handler http.Handler) (net.Listener, context.CancelFunc, <-chan error) {
	t.Helper()
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- Serve(ctx, l, handler, zap.NewNop()) }()
	t.Cleanup(cancel)
	return l, cancel, result
}

// fetch makes one request on a connection of its own.
func fetch(t *testing.T, l net.Listener) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/livez", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func wait(t *testing.T, result <-chan error) error {
	t.Helper()
	select {
	case err := <-result:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("Serve did not return")
		return nil
	}
}

func TestServeAndStop(t *testing.T) {
	l, stop, result := start(t, NewHandler(source{}, registry(), zap.NewNop()))
	if body, err := fetch(t, l); err != nil || body != "ok\n" {
		t.Errorf("GET /livez = %q, %v", body, err)
	}
	stop()
	if err := wait(t, result); err != nil {
		t.Errorf("Serve after the stop = %v", err)
	}
	if _, err := fetch(t, l); err == nil {
		t.Error("the port still answers after the stop")
	}
}

// A request that runs when kekd stops is still answered.
func TestStopDrains(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	l, stop, result := start(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "late")
	}))
	answer := make(chan string, 1)
	go func() {
		body, err := fetch(t, l)
		if err != nil {
			body = err.Error()
		}
		answer <- body
	}()
	<-entered
	stop()
	close(release)
	if body := <-answer; body != "late" {
		t.Errorf("the running request got %q", body)
	}
	if err := wait(t, result); err != nil {
		t.Errorf("Serve after the stop = %v", err)
	}
}

func TestServeBrokenListener(t *testing.T) {
	l, _, result := start(t, http.NotFoundHandler())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, result); err == nil || !strings.HasPrefix(err.Error(), "serve HTTP: ") {
		t.Errorf("Serve with a broken listener = %v, want an error", err)
	}
}

func TestListenTaken(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Listen(t.Context(), l.Addr().String())
	if err == nil {
		t.Fatal("Listen took a port twice")
	}
	for _, part := range []string{"http.address: ", l.Addr().String(), "address already in use", "choose another port"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("Listen = %v, want %q in it", err, part)
		}
	}
}

// A client that does not finish its request is cut off, and does not keep kekd
// from stopping.
func TestSilentClient(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		result <- serve(ctx, l, &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: 50 * time.Millisecond})
	}()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /livez HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("the connection of a silent client: %v, want it closed", err)
	}
	stop()
	if err := wait(t, result); err != nil {
		t.Errorf("Serve after the stop = %v", err)
	}
}
