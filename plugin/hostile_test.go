package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"
)

// testLimits are short, but for what a well-behaved client has to meet on a
// machine under load.
var testLimits = limits{connections: 1024, handshake: 2 * time.Second, silence: 200 * time.Millisecond, answer: 2 * time.Second}

// stand is a server under attack and a well-behaved client of it.
type stand struct {
	*rig
	client kmsapi.KeyManagementServiceClient

	goroutines, files int
	memory            uint64
}

// newStand notes what the server uses at rest, with its one client connected.
func newStand(t *testing.T, l limits) *stand {
	t.Helper()
	r := start(t, func(c *Config, _ *Server) {
		c.limits = l
		c.RequestTimeout = time.Second
	})
	s := &stand{rig: r, client: r.client(t)}
	s.serves(t)
	s.goroutines, s.files, s.memory = runtime.NumGoroutine(), descriptors(t), s.used()
	return s
}

// serves makes the well-behaved client ask for everything, and looks at the answers.
// Requests of the attackers may take all places there are: then it is told so at once,
// and asks again.
func (s *stand) serves(t *testing.T) {
	t.Helper()
	for range 20 {
		served := true
		wrong := func(format string, args ...any) {
			t.Helper()
			t.Errorf(format, args...)
			served = false
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		health, err := s.client.Status(ctx, &kmsapi.StatusRequest{})
		if err != nil || health.Healthz != "ok" || health.Version != "v2" || health.KeyId != testKeyID {
			wrong("Status: %v, %v", health, err)
		}
		sealed, err := askAgain(ctx, func() (*kmsapi.EncryptResponse, error) {
			return s.client.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: seed, Uid: testUID})
		})
		if err != nil || sealed.KeyId != testKeyID || string(sealed.Ciphertext) != sealedPrefix+string(seed) {
			wrong("Encrypt: %v, %v", sealed, err)
		}
		opened, err := askAgain(ctx, func() (*kmsapi.DecryptResponse, error) {
			return s.client.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: []byte(sealedPrefix + string(seed)), KeyId: testKeyID, Uid: testUID})
		})
		if err != nil || !bytes.Equal(opened.GetPlaintext(), seed) {
			wrong("Decrypt: %v, %v", opened, err)
		}
		cancel()
		if !served {
			t.FailNow()
		}
	}
}

// askAgain asks until the answer is another than that the cap is reached, or until ctx
// ends.
func askAgain[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	for {
		resp, err := ask()
		if status.Code(err) != codes.ResourceExhausted || ctx.Err() != nil {
			return resp, err
		}
		time.Sleep(time.Millisecond)
	}
}

// used is the memory in use, in bytes, without what the tests themselves keep.
func (s *stand) used() uint64 {
	s.logs.TakeAll()
	runtime.GC()
	runtime.GC() // pools keep what they have for one collection
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func descriptors(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(entries)
}

// atRest waits until the server uses no more than it did before the attack.
func (s *stand) atRest(t *testing.T) {
	t.Helper()
	const slack = 8 << 20
	var why string
	deadline := time.Now().Add(30 * time.Second)
	for {
		goroutines, files, memory, open := runtime.NumGoroutine(), descriptors(t), s.used(), s.server.peers.open.Load()
		why = fmt.Sprintf("%d goroutines of %d before, %d descriptors of %d, %d KiB of %d, %d connections",
			goroutines, s.goroutines, files, s.files, memory>>10, s.memory>>10, open)
		// The test's own goroutines are among them, and gRPC's workers.
		if goroutines <= s.goroutines+2 && files <= s.files && memory <= s.memory+slack && open == 1 {
			t.Log(why)
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the attack: %s\n%s", why, stacks())
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, _, _, panics := s.tally.snapshot(); panics != 0 {
		t.Errorf("%d panics", panics)
	}
	s.serves(t)
}

func stacks() []byte {
	b := make([]byte, 64<<10)
	return b[:runtime.Stack(b, true)]
}

// encryptRequest is an Encrypt on a stream, whole.
func encryptRequest(tb testing.TB, stream uint32) []byte {
	tb.Helper()
	b, err := proto.Marshal(&kmsapi.EncryptRequest{Plaintext: seed, Uid: testUID})
	if err != nil {
		tb.Fatal(err)
	}
	return append(frame(frameHeaders, flagEndHeaders, stream, headerBlock("Encrypt")),
		frame(frameData, flagEndStream, stream, message(b))...)
}

// during makes the well-behaved client ask until done says that the attack is over,
// and once more then.
func (s *stand) during(t *testing.T, done <-chan struct{}) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		s.serves(t)
		if time.Now().After(deadline) {
			t.Fatalf("the attack does not end\n%s", stacks())
		}
	}
}

// dribble writes a byte each 100 ms until the server has had enough.
func dribble(c rawClient, b []byte) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := range b {
		if _, err := c.Write(b[i : i+1]); err != nil {
			return
		}
		<-tick.C
	}
}

// Clients that begin something and do not finish it, a few of each kind at once.
// The server ends each of their connections by itself, and serves others meanwhile.
func TestStalledClients(t *testing.T) {
	afterGreeting := func(parts ...[]byte) func(rawClient) error {
		return func(c rawClient) error { return errors.Join(c.greet(), c.send(parts...)) }
	}
	half := encryptRequest(t, 1)
	half = half[:len(half)-10]
	// Each returns when it has stalled, or when the server has ended the connection.
	attacks := map[string]func(rawClient) error{
		"says nothing": func(rawClient) error { return nil },
		"a slow preface": func(c rawClient) error {
			dribble(c, append([]byte(preface), frame(frameSettings, 0, 0, make([]byte, 60))...))
			return nil
		},
		"the preface and no SETTINGS": func(c rawClient) error { return c.send([]byte(preface)) },
		"HTTP/1.1":                    func(c rawClient) error { return c.send([]byte("POST / HTTP/1.1\r\nHost: localhost\r\n\r\n")) },
		"TLS": func(c rawClient) error {
			return c.send([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), make([]byte, 600))
		},
		"greets and says nothing more": afterGreeting(),
		"slow headers": func(c rawClient) error {
			err := c.greet()
			dribble(c, frame(frameHeaders, flagEndHeaders|flagEndStream, 1, make([]byte, 16<<10)))
			return err
		},
		"headers without END_HEADERS": afterGreeting(frame(frameHeaders, 0, 1, headerBlock("Encrypt"))),
		"half a frame":                afterGreeting(half),
		"a stream without a message":  afterGreeting(frame(frameHeaders, flagEndHeaders, 1, headerBlock("Encrypt"))),
		"the write side is shut":      func(c rawClient) error { return errors.Join(c.greet(), c.CloseWrite()) },
		"the write side is shut in a request": func(c rawClient) error {
			return errors.Join(c.greet(), c.send(frame(frameHeaders, flagEndHeaders, 1, headerBlock("Encrypt"))), c.CloseWrite())
		},
		"never reads an answer": func(c rawClient) error {
			if err := c.greet(); err != nil {
				return err
			}
			// Until both directions are full: the server stops reading what it can't
			// answer, and ends the connection.
			const each = 100
			for i := uint32(0); i < 1<<20; i += each {
				var batch []byte
				for j := i; j < i+each; j++ {
					batch = append(batch, encryptRequest(t, 2*j+1)...)
				}
				switch err := c.send(batch); {
				case errors.Is(err, os.ErrDeadlineExceeded):
					return fmt.Errorf("still connected after %d requests", i)
				case err != nil:
					return nil //nolint:nilerr // the server has ended the connection, as it should
				}
			}
			return errors.New("a million requests were taken, and no answer was read")
		},
	}
	const each = 3
	s := newStand(t, testLimits)
	var stalled sync.WaitGroup
	clients := map[rawClient]string{}
	for name, attack := range attacks {
		for range each {
			c := dialRaw(t, s.path)
			clients[c] = name
			stalled.Go(func() {
				if err := attack(c); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	s.serves(t)
	s.during(t, closedAfter(stalled.Wait))
	for c, name := range clients {
		if !c.drain() {
			t.Errorf("%s: the server did not end the connection", name)
		}
		must(t, c.Close())
	}
	s.atRest(t)
}

// closedAfter returns a channel that is closed when f has returned.
func closedAfter(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return done
}

// A request whose message never comes ends at the request timeout, though its
// client answers pings and lives.
func TestHalfRequestsEnd(t *testing.T) {
	for name, begin := range map[string][]byte{
		"headers alone":    nil,
		"a length alone":   {0, 0, 0, 0, 40},
		"half a message":   append(message(make([]byte, 40))[:5], 0x0a, 0x20, 'h', 'a', 'l', 'f'),
		"the largest half": append([]byte{0, 0, 0, 0xff, 0xff}, make([]byte, 16<<10-5)...),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t, testLimits)
			c := dialRaw(t, s.path)
			must(t, c.greet())
			heard := c.live()
			const streams = 50
			for i := range uint32(streams) {
				must(t, c.send(frame(frameHeaders, flagEndHeaders, 2*i+1, headerBlock("Decrypt", "grpc-timeout", "10H"))))
				if begin != nil {
					must(t, c.send(frame(frameData, 0, 2*i+1, begin)))
				}
			}
			s.serves(t)
			ended := map[uint32]bool{}
			for len(ended) < streams {
				h := receive(t, "the end of all streams", heard)
				if h.kind == 0 && h.stream == 0 {
					t.Fatalf("the connection ended after %d streams", len(ended))
				}
				if h.ended() {
					ended[h.stream] = true
				}
			}
			// The connection is none the worse for it.
			must(t, c.send(encryptRequest(t, 2*streams+1)))
			for {
				if h := receive(t, "the answer to a whole request", heard); h.kind == frameData && h.stream == 2*streams+1 {
					if !bytes.Contains(h.payload, []byte(sealedPrefix+string(seed))) {
						t.Errorf("the answer is %q", h.payload)
					}
					break
				}
			}
			must(t, c.Close())
			s.atRest(t)
		})
	}
}

// Floods of all that HTTP/2 lets a client send for little. None ends the server,
// or keeps others waiting, or leaves anything behind.
func TestFloods(t *testing.T) {
	rst := []byte{0, 0, 0, 8} // CANCEL
	const many = 10_000
	tests := []struct {
		name string
		// next is what comes as number i, after a greeting.
		next func(t *testing.T, i uint32) []byte
		// ends is set where the server ends the connection, goAway is in its reason.
		ends   bool
		goAway string
	}{
		{"rapid reset", func(t *testing.T, i uint32) []byte {
			return append(encryptRequest(t, 2*i+1), frame(frameRST, 0, 2*i+1, rst)...)
		}, false, ""},
		{"reset before the message", func(_ *testing.T, i uint32) []byte {
			return append(frame(frameHeaders, flagEndHeaders, 2*i+1, headerBlock("Encrypt")), frame(frameRST, 0, 2*i+1, rst)...)
		}, false, ""},
		{"requests for nothing", func(_ *testing.T, i uint32) []byte {
			return frame(frameHeaders, flagEndHeaders|flagEndStream, 2*i+1, headerBlock("Nothing"))
		}, false, ""},
		{"streams above the limit", func(_ *testing.T, i uint32) []byte {
			return frame(frameHeaders, flagEndHeaders, 2*i+1, headerBlock("Encrypt"))
		}, false, ""},
		{"pings", func(*testing.T, uint32) []byte { return frame(framePing, 0, 0, make([]byte, 8)) }, true, "too_many_pings"},
		{"settings", func(*testing.T, uint32) []byte { return frame(frameSettings, 0, 0, []byte{0, 4, 0, 1, 0, 0}) }, false, ""},
		{"header tables of other sizes", func(_ *testing.T, i uint32) []byte {
			return frame(frameSettings, 0, 0, []byte{0, 1, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)})
		}, false, ""},
		{"window updates", func(*testing.T, uint32) []byte { return frame(frameWindowUpdate, 0, 0, []byte{0, 0, 0, 1}) }, false, ""},
		{"data of no stream", func(*testing.T, uint32) []byte { return frame(frameData, 0, 1, nil) }, false, ""},
		{"continuations", func(_ *testing.T, i uint32) []byte {
			if i == 0 {
				return frame(frameHeaders, 0, 1, headerBlock("Encrypt"))
			}
			return frame(frameContinuation, 0, 1, bytes.Repeat([]byte("\x00\x01a\x01b"), 200))
		}, true, ""},
		{"headers that grow when read", func(_ *testing.T, i uint32) []byte {
			// One entry of 4,000 bytes in the table, then references to it: 1.6 MB each.
			block := headerBlock("Encrypt")
			if i == 0 {
				block = append(block, "\x40\x01a\x7f\xa1\x1e"...)
				block = append(block, bytes.Repeat([]byte("b"), 4000)...)
			} else {
				block = append(block, bytes.Repeat([]byte{0x80 | 62}, 400)...)
			}
			return frame(frameHeaders, flagEndHeaders|flagEndStream, 2*i+1, block)
		}, false, ""},
		{"frames of no type", func(*testing.T, uint32) []byte { return frame(0xfa, 0xff, 0, make([]byte, 100)) }, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStand(t, testLimits)
			c := dialRaw(t, s.path)
			must(t, c.greet())
			sent, why := 0, ""
			listened := closedAfter(func() {
				for h := range c.live() {
					if h.kind == frameGoAway {
						why = string(h.payload)
					}
				}
			})
			s.during(t, closedAfter(func() {
				for ; sent < many && c.send(tt.next(t, uint32(sent))) == nil; sent++ {
				}
				_ = c.CloseWrite() // the server may have ended it
				<-listened
			}))
			if ended := sent < many || why != ""; ended != tt.ends || !strings.Contains(why, tt.goAway) {
				t.Errorf("%d were sent, and the server's last words are %q; want ended %t, %q", sent, why, tt.ends, tt.goAway)
			}
			must(t, c.Close())
			s.atRest(t)
		})
	}
}

// wantDescriptors makes sure that the process may have so many. Go has raised the
// soft limit to the hard one already.
func wantDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var files unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	if files.Cur < n {
		t.Fatalf("RLIMIT_NOFILE is %d, and this test needs %d; raise the hard limit (ulimit -Hn)", files.Cur, n)
	}
}

// A thousand idle connections that answer pings stay, for as long as they like,
// and cost little.
func TestThousandIdleConnections(t *testing.T) {
	const idle = 1000
	wantDescriptors(t, 2*idle+200)
	s := newStand(t, testLimits)
	pinged := make([]chan struct{}, 0, idle)
	clients := make([]rawClient, 0, idle)
	for range idle {
		c := dialRaw(t, s.path)
		must(t, c.greet())
		seen := make(chan struct{}, 1)
		go func() {
			for {
				kind, flags, _, payload, err := c.next()
				if err != nil {
					return
				}
				if kind == framePing && flags&flagAck == 0 {
					_, _ = c.Write(frame(framePing, flagAck, 0, payload))
					select {
					case seen <- struct{}{}:
					default:
					}
				}
			}
		}()
		clients, pinged = append(clients, c), append(pinged, seen)
	}
	s.serves(t)
	// Each outlives two questions whether it is still there.
	for range 2 {
		for _, p := range pinged {
			select {
			case <-p:
			case <-time.After(time.Minute):
				t.Fatal("a client was not asked whether it is there")
			}
		}
	}
	if n := s.server.peers.open.Load(); n != idle+1 {
		t.Errorf("%d connections are open, want %d", n, idle+1)
	}
	memory := s.used() - min(s.used(), s.memory)
	t.Logf("%d KiB for each connection, its test client's part included", memory>>10/idle)
	if memory > 100<<20 {
		t.Errorf("%d idle connections cost %d MiB", idle, memory>>20)
	}
	s.serves(t)
	for _, c := range clients {
		must(t, c.Close())
	}
	s.atRest(t)
}

// Above the cap a connection is ended before a byte of it is read; below it, once
// another has gone, it is served.
func TestConnectionsAreCapped(t *testing.T) {
	l := testLimits
	l.connections, l.silence = 10, time.Minute
	s := newStand(t, l)
	var clients []rawClient
	for range l.connections - 1 {
		c := dialRaw(t, s.path)
		must(t, c.greet())
		clients = append(clients, c)
	}
	for range 3 * throttleLines {
		c := dialRaw(t, s.path)
		if b, err := io.ReadAll(c); len(b) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a connection above the cap got %q, %v", b, err)
		}
		must(t, c.Close())
	}
	if n := s.tally.refusals(); n != 3*throttleLines {
		t.Errorf("%d connections counted as too many, want %d", n, 3*throttleLines)
	}
	lines := s.logs.FilterMessage("connection refused, too many are open").All()
	if len(lines) != throttleLines || lines[0].ContextMap()["peer_uid"] != uint32(os.Getuid()) {
		t.Errorf("%d lines, want %d: %v", len(lines), throttleLines, lines)
	}
	s.serves(t)
	must(t, clients[0].Close())
	eventually(t, "the place is free", func() bool { return s.server.peers.open.Load() < int64(l.connections) })
	c := dialRaw(t, s.path)
	must(t, c.greet())
	must(t, c.Close())
	for _, c := range clients[1:] {
		must(t, c.Close())
	}
	s.atRest(t)
}

func TestCapLeavesDescriptors(t *testing.T) {
	var files unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	few, plenty := limits{connections: 1}, limits{connections: int(min(files.Cur, 1<<30))}
	if got := few.withinDescriptors(); got != few {
		t.Errorf("a cap of 1 became %d", got.connections)
	}
	if got := plenty.withinDescriptors().connections; uint64(got) != uint64(plenty.connections)/2 {
		t.Errorf("a cap of %d with as many descriptors became %d", plenty.connections, got)
	}
}

// Connections that come and go at once, whatever they have said.
func TestDroppedConnections(t *testing.T) {
	s := newStand(t, testLimits)
	greeting := append([]byte(preface), frame(frameSettings, 0, 0, nil)...)
	var flood sync.WaitGroup
	for _, said := range [][]byte{nil, []byte(preface), greeting, append(bytes.Clone(greeting), encryptRequest(t, 1)...)} {
		flood.Go(func() {
			for range 1000 {
				conn, err := net.Dial("unix", s.path)
				if errors.Is(err, syscall.EAGAIN) {
					continue // the queue is full, by the flood's own doing
				}
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = conn.Write(said) // the server may end it first
				_ = conn.Close()
			}
		})
	}
	s.during(t, closedAfter(flood.Wait))
	s.atRest(t)
}

// Floods from a uid that is not on the list.
func TestForeignFlood(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("only root can connect as somebody else")
		}
		t.Skip("only root can connect as somebody else")
	}
	s := newStand(t, testLimits)
	// The file's mode would keep others out as well.
	must(t, os.Chmod(filepath.Dir(s.path), 0o755))
	must(t, os.Chmod(s.path, 0o666))
	// By /proc, since the binary's directory is closed to others.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{childEnv + "=" + childFlooder, childPathEnv + "=" + s.path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	var flooded error
	s.during(t, closedAfter(func() { flooded = cmd.Wait() }))
	if flooded != nil {
		t.Fatalf("the flood: %v\n%s", flooded, out.Bytes())
	}
	_, _, refused, _ := s.tally.snapshot()
	if len(refused) != floodSize {
		t.Errorf("%d refused, want %d", len(refused), floodSize)
	}
	s.atRest(t)
}

const floodSize = 2000

// childFlood connects again and again, and wants each connection ended unread.
func childFlood(path string) int {
	for range floodSize {
		conn, err := net.Dial("unix", path)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, _ = conn.Write([]byte(preface)) // the server may have ended it
		if b, err := io.ReadAll(conn); len(b) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			fmt.Printf("got %q, %v\n", b, err)
			return 1
		}
		_ = conn.Close()
	}
	return 0
}

// None of those who stall holds up the end.
func TestShutdownDespiteStalledClients(t *testing.T) {
	l := testLimits
	l.silence = time.Minute
	r := start(t, func(c *Config, _ *Server) { c.limits = l })
	dialRaw(t, r.path) // says nothing
	greeted, half := dialRaw(t, r.path), dialRaw(t, r.path)
	must(t, greeted.greet())
	must(t, half.greet())
	must(t, half.send(frame(frameHeaders, flagEndHeaders, 1, headerBlock("Encrypt"))))
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := r.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	if err := receive(t, "Run", r.ran); err != nil {
		t.Errorf("Run: %v", err)
	}
	r.ran <- nil // for the cleanup
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("the end took %v", took)
	}
}
