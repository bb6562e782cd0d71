package load

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"kekd/e2e/internal/harness"
)

var (
	soakLasts  = flag.Duration("soak", 45*time.Second, "how long TestSoak does harm")
	soakSeed   = flag.Uint64("soak-seed", 0, "what TestSoak chooses faults by; 0 takes the clock's")
	soakUpdate = flag.Bool("update", false, "write TestSoak's report to docs/reliability.md")
)

const (
	soakCallers = 64   // whose seeds are warm
	soakCold    = 4    // who ask for seeds that have left the cache
	soakSeeds   = 4000 // of those
	soakCache   = 2048 // which is less, so that the next round finds them cold again
)

// TestSoak does harm to the HSM every second while 64 callers work: none whose seed
// is warm may notice, and in the end all is as it was at the beginning.
func TestSoak(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-soak=%s -soak-seed=%d", *soakLasts, seed)
	r := startRig(t, harness.KekdOptions{
		Sessions: 8, CacheSize: soakCache, CallTimeout: 2 * time.Second, ProbeInterval: 500 * time.Millisecond,
	})
	s := &soak{rig: r, random: rand.New(rand.NewPCG(seed, 0)), kinds: map[string]int{}}
	s.prepare(t)
	before, err := r.usage(t.Context())
	must(t, err)
	restarts, renewals := s.restarts(t), s.renewals(t)

	stopStatus := r.watchStatus(t, r.connect(t), 100*time.Millisecond)
	stopCallers := s.callers(t)
	stopCold := s.coldCallers(t)
	file := readTokenFile(t, r.token)
	samples := s.harm(t, file)
	r.token.Faults(t)
	harness.Eventually(t, 30*time.Second, "kekd is ready after the faults", func(ctx context.Context) error {
		file.mend(t)
		ready, err := r.gauge(ctx, `kekd_health_state{state="ready"}`) // coasting is not enough
		if err == nil && ready != 1 {
			err = errors.New("it is not")
		}
		return err
	})
	stopCold()
	stopCallers()
	s.everythingOpens(t)
	s.allIsAsBefore(t, before)
	status := stopStatus()

	if file.mended > 0 {
		t.Logf("SoftHSM has lost its token %d times, and got it back", file.mended)
	}
	report := s.report(t, seed, before, samples, status, s.restarts(t)-restarts, s.renewals(t)-renewals)
	t.Logf("\n%s", report)
	s.warm.check(t, "whose seed is warm")
	s.cold.check(t, "whose seed is cold")
	if n := s.cold.count(codes.OK); n == 0 {
		t.Error("no cold seed was unwrapped at all: the faults leave no room")
	}
	if grown := growth(samples); grown > 32*mib {
		t.Errorf("kekd's memory grew by %.0f MiB in %s, want it flat", grown/mib, *soakLasts)
	}
	if *soakUpdate && !t.Failed() {
		must(t, harness.UpdatePage("../../docs/reliability.md", "soak", report))
	}
}

type soak struct {
	*rig

	random      *rand.Rand // of the test's goroutine
	old         []sealed   // under seeds that callers keep warm
	seeds       []sealed   // under seeds that leave the cache before they are asked for again
	bad         []sealed   // with damaged seeds
	clients     []client
	warm, cold  tally
	kinds       map[string]int // faults, by kind
	stopped     int            // a worker that got SIGSTOP, or 0
	mu          sync.Mutex
	kept        []sealed // of what callers sealed. Guarded by mu.
	openedAfter time.Duration
}

// prepare makes what is opened later, and warms what is to be warm.
func (s *soak) prepare(t *testing.T) {
	t.Helper()
	s.old = many(16, s.kek.seal)
	s.seeds = many(soakSeeds, s.kek.seal)
	s.bad = many(100, s.kek.damaged)
	for range 4 {
		c := s.connect(t)
		s.clients = append(s.clients, c)
		for _, v := range s.old {
			must(t, c.opens(t.Context(), v))
		}
	}
}

// callers starts those whose seeds are warm. Each seals and opens what it has sealed
// and what was sealed long ago; no call may fail.
func (s *soak) callers(t *testing.T) (stop func()) {
	t.Helper()
	return loops(t, soakCallers, 20*time.Millisecond, func(ctx context.Context, n int, random *rand.Rand) func(step int) {
		c := s.clients[n%len(s.clients)]
		var own []sealed
		return func(step int) {
			began := time.Now()
			if len(own) == 0 || random.IntN(4) == 0 {
				v, err := c.seals(ctx)
				if !s.warm.note(began, err, never) {
					return
				}
				if own = append(own, v); len(own) > 32 {
					own = own[1:]
				}
				if step%16 == 0 {
					s.keep(v)
				}
				return
			}
			from := own
			if random.IntN(3) == 0 {
				from = s.old
			}
			s.warm.note(began, c.opens(ctx, from[random.IntN(len(from))]), never)
		}
	})
}

// keep keeps a value for the end, unless there are many.
func (s *soak) keep(v sealed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) < 20_000 {
		s.kept = append(s.kept, v)
	}
}

// coldCallers starts those who need the HSM, who may be told that it is away. Nobody
// may be told that a sound ciphertext is damaged, or that a damaged one is sound.
func (s *soak) coldCallers(t *testing.T) (stop func()) {
	t.Helper()
	return loops(t, soakCold, 20*time.Millisecond, func(ctx context.Context, n int, random *rand.Rand) func(step int) {
		c := s.clients[n%len(s.clients)]
		mine := every(s.seeds, n, soakCold)
		return func(step int) {
			began := time.Now()
			if step%10 != 0 {
				s.cold.note(began, c.opens(ctx, mine[step%len(mine)]), transient)
				return
			}
			err := c.opens(ctx, s.bad[random.IntN(len(s.bad))])
			if err == nil {
				err = errors.New("a damaged seed opened something")
			}
			s.cold.note(began, err, func(err error) bool { return refused(err) || transient(err) })
		}
	})
}

// loops runs n loops with a step every so often, until the returned function is
// called; a step that has begun is ended.
func loops(t *testing.T, n int, pause time.Duration, begin func(ctx context.Context, n int, random *rand.Rand) func(step int)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			step := begin(context.WithoutCancel(ctx), i, rand.New(rand.NewPCG(uint64(i), 1)))
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for k := 1; ; k++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					step(k)
				}
			}
		})
	}
	stop = func() { cancel(); all.Wait() }
	t.Cleanup(stop)
	return stop
}

// harm sets another fault every second, and looks at what kekd takes.
func (s *soak) harm(t *testing.T, file *tokenFile) []usage {
	t.Helper()
	var samples []usage
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for until := time.Now().Add(*soakLasts); time.Now().Before(until); <-tick.C {
		file.mend(t)
		s.token.Faults(t) // none, unless the next lines say so
		kind := s.fault(t)
		s.kinds[kind]++
		u, err := s.usage(t.Context())
		if err != nil {
			t.Fatalf("kekd does not answer while the HSM is subject to %s: %v", kind, err)
		}
		samples = append(samples, u)
	}
	s.resume()
	return samples
}

// The PKCS#11 functions that faults are put on, and what the HSM says there. Not what
// says that a PIN is wrong or an operation forbidden: kekd believes those, and
// waits for an operator.
var (
	cryptoCalls = []string{"C_DecryptInit", "C_Decrypt", "C_EncryptInit", "C_Encrypt"}
	otherCalls  = []string{"C_OpenSession", "C_FindObjectsInit", "C_FindObjects", "C_GetAttributeValue", "C_GetTokenInfo", "C_GetSlotList", "C_Initialize", "C_Login"}
	codesOfHSM  = []string{"0x2", "0x5", "0x6", "0x30", "0x31", "0x32", "0x90", "0x91", "0xb0", "0xb1", "0xb3", "0xe0", "0xe1", "0x101", "0x150", "0x190", "0x80000123"}
)

// fault does some harm and returns what kind it is.
func (s *soak) fault(t *testing.T) string {
	t.Helper()
	s.resume()
	call := pick(s.random, cryptoCalls)
	if s.random.IntN(3) == 0 {
		call = pick(s.random, otherCalls)
	}
	times := pick(s.random, []string{" n=1", " n=2", " n=8", ""})
	set := func(format string, args ...any) { s.token.Faults(t, fmt.Sprintf(format, args...)) }
	switch kind := pick(s.random, []string{
		"none", "none", "none", "error", "error", "error", "error", "error after success", "hang", "crash", "abort", "exit",
		"slow", "too slow", "logout", "all sessions closed", "few sessions", "wrong output", "SIGKILL", "SIGSTOP", "token gone",
	}); kind {
	case "error":
		set("%s rv=%s%s", call, pick(s.random, codesOfHSM), times)
		return kind
	case "error after success":
		set("%s after rv=%s%s", pick(s.random, cryptoCalls), pick(s.random, codesOfHSM), times)
		return kind
	case "hang", "crash", "abort", "exit":
		set("%s %s n=%d", call, kind, 1+s.random.IntN(2))
		return kind
	case "slow":
		set("%s ms=%d", call, 20+s.random.IntN(200))
		return kind
	case "too slow": // than hsm.callTimeout
		set("%s ms=2500 n=4", call)
		return kind
	case "logout":
		set("%s logout n=1", pick(s.random, cryptoCalls))
		return kind
	case "all sessions closed":
		set("%s closeall n=1", pick(s.random, cryptoCalls))
		return kind
	case "few sessions":
		set("C_OpenSession limit=%d", 1+s.random.IntN(3))
		return kind
	case "wrong output": // to probes, proofs and the wrap of a new seed
		set("C_Encrypt garble n=1")
		return kind
	case "token gone":
		s.token.Faults(t, tokenGone...)
		return kind
	case "SIGKILL":
		for _, pid := range s.readyWorkers(t) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone already
		}
		return kind
	case "SIGSTOP":
		for _, pid := range s.readyWorkers(t) {
			if syscall.Kill(pid, syscall.SIGSTOP) == nil {
				s.stopped = pid
			}
		}
		return kind
	default:
		return kind
	}
}

// resume lets a worker go on that got SIGSTOP, unless kekd has killed it.
func (s *soak) resume() {
	if slices.Contains(s.Workers(), s.stopped) {
		_ = syscall.Kill(s.stopped, syscall.SIGCONT) // it may be gone already
	}
	s.stopped = 0
}

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

// everythingOpens opens whatever was sealed, once the HSM is well.
func (s *soak) everythingOpens(t *testing.T) {
	t.Helper()
	all := slices.Concat(s.kept, s.old, s.seeds)
	began := time.Now()
	until := began.Add(30 * time.Second)
	var y tally
	workers(16, func(i int) {
		for _, v := range every(all, i, 16) {
			for ; ; time.Sleep(10 * time.Millisecond) {
				asked := time.Now()
				err := s.clients[i%len(s.clients)].opens(t.Context(), v)
				if err != nil && transient(err) && time.Now().Before(until) {
					continue
				}
				y.note(asked, err, never)
				break
			}
		}
	})
	s.openedAfter = time.Since(began)
	y.check(t, "afterwards")
	if y.total() != len(all) {
		t.Errorf("%d values were opened in the end, want %d", y.total(), len(all))
	}
}

// allIsAsBefore waits until kekd holds no more than at the beginning.
func (s *soak) allIsAsBefore(t *testing.T, before usage) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, "all is as it was before", func(ctx context.Context) error {
		u, err := s.usage(ctx)
		if err != nil {
			return err
		}
		m, err := s.scrape(ctx)
		switch {
		case err != nil:
			return err
		case u.goroutines > before.goroutines+10, u.files > before.files+3, u.worker != 1:
			return fmt.Errorf("%+v, before %+v", u, before)
		case u.threads > before.threads+24: // the runtime never gives one back
			return fmt.Errorf("%.0f threads, before %.0f", u.threads, before.threads)
		case m[`kekd_hsm_sessions{state="in_use"}`] > 2, m[`kekd_hsm_sessions{state="waiting"}`] > 0, m["kekd_hsm_requests_waiting"] > 0:
			return fmt.Errorf("%v sessions are in use, %v calls wait for one, %v requests are with the HSM",
				m[`kekd_hsm_sessions{state="in_use"}`], m[`kekd_hsm_sessions{state="waiting"}`], m["kekd_hsm_requests_waiting"])
		}
		return nil
	})
}

// tokenFile is what SoftHSM keeps of the token itself. It writes the file anew at each
// C_Login, in place: a worker that is killed at that moment, because the machine
// stood still for longer than hsm.callTimeout, leaves an empty one.
type tokenFile struct {
	path    string
	content []byte
	broken  bool // when it was looked at last
	mended  int
}

func readTokenFile(t *testing.T, token *harness.Token) *tokenFile {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(token.Conf), "tokens", "*", "token.object"))
	must(t, err)
	if len(paths) != 1 {
		t.Fatalf("SoftHSM's files are %q, want one token", paths)
	}
	content, err := os.ReadFile(paths[0])
	must(t, err)
	return &tokenFile{path: paths[0], content: content}
}

// mend writes the file back if it is broken and stays so from one call to the next.
func (f *tokenFile) mend(t *testing.T) {
	t.Helper()
	info, err := os.Stat(f.path)
	must(t, err)
	before := f.broken
	f.broken = info.Size() != int64(len(f.content))
	if before && f.broken {
		must(t, os.WriteFile(f.path, f.content, 0o600))
		f.mended, f.broken = f.mended+1, false
	}
}

func (s *soak) restarts(t *testing.T) float64 {
	return s.Metrics(t).Sum("kekd_hsm_worker_restarts_total", nil)
}

func (s *soak) renewals(t *testing.T) float64 {
	return s.Metrics(t).Sum("kekd_seed_renewals_total", map[string]string{"result": "ok"})
}

// settled leaves out the time in which the heap finds its size.
func settled(samples []usage) []usage { return samples[len(samples)/3:] }

// growth is by how much the daemon's memory grew, in bytes: the slope of the straight
// line that fits best, over the time that it was looked at.
func growth(samples []usage) float64 {
	samples = settled(samples)
	n := float64(len(samples))
	var meanX, meanY, covariance, variance float64
	for i, u := range samples {
		meanX += float64(i) / n
		meanY += u.parentRSS / n
	}
	for i, u := range samples {
		covariance += (float64(i) - meanX) * (u.parentRSS - meanY)
		variance += (float64(i) - meanX) * (float64(i) - meanX)
	}
	if variance == 0 {
		return 0
	}
	return covariance / variance * (n - 1)
}

func TestGrowth(t *testing.T) {
	samples := make([]usage, 30)
	for i := range samples {
		samples[i].parentRSS = 1000 + float64(max(i, 10)-10)*3 // flat, then three a sample
	}
	if got := growth(samples); got < 56.9 || got > 57.1 {
		t.Errorf("grew by %.1f, want 3 times 19", got)
	}
	if got := growth(samples[:9]); got != 0 {
		t.Errorf("what is flat grew by %.1f", got)
	}
}

// report is the section of docs/reliability.md.
func (s *soak) report(t *testing.T, seed uint64, before usage, samples []usage, status *tally, restarts, renewals float64) string {
	t.Helper()
	after, err := s.usage(t.Context())
	must(t, err)
	most := func(of func(usage) float64) float64 {
		var m float64
		for _, u := range samples {
			m = max(m, of(u))
		}
		return m
	}
	var b strings.Builder
	row := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "| %s | %s |\n", what, fmt.Sprintf(format, args...))
	}
	latency := func(y *tally) string {
		return fmt.Sprintf("half within %s, 99%% within %s, all within %s", ms(y.quantile(0.5)), ms(y.quantile(0.99)), ms(y.quantile(1)))
	}
	var kinds []string
	for kind, n := range s.kinds {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, n))
	}
	slices.Sort(kinds)

	fmt.Fprintf(&b, "%s of faults, one each second (`-soak-seed=%d`), on SoftHSM behind a module that does harm.\n\n", *soakLasts, seed)
	b.WriteString("| | |\n| --- | --- |\n")
	row(fmt.Sprintf("%d callers whose seeds are warm", soakCallers), "%d requests, %d failed; %s", s.warm.total(), s.warm.nbad, latency(&s.warm))
	row("Status, each 100 ms", "%d requests, %d failed; %s", status.total(), status.nbad, latency(status))
	row(fmt.Sprintf("%d callers whose seeds are cold or damaged", soakCold), "%d requests: %s", s.cold.total(), strings.Trim(s.cold.String(), "map[]"))
	row("Faults", "%s", strings.Join(kinds, ", "))
	row("Worker processes that came to their end", "%.0f", restarts)
	row("Seeds renewed meanwhile", "%.0f", renewals)
	row("Values opened afterwards", "all %d, in %s", len(s.kept)+len(s.old)+len(s.seeds), s.openedAfter.Round(time.Millisecond))
	row("Memory of kekd (RSS)", "%.0f MiB before, %.0f MiB at most, %.0f MiB after; growth after the first third %+.1f MiB",
		before.parentRSS/mib, most(func(u usage) float64 { return u.parentRSS })/mib, after.parentRSS/mib, growth(samples)/mib)
	row("Memory of its workers", "%.0f MiB at most", most(func(u usage) float64 { return u.workerRSS })/mib)
	row("Goroutines, open files, threads of kekd", "%.0f, %.0f, %.0f before; %.0f, %.0f, %.0f at most; %.0f, %.0f, %.0f after",
		before.goroutines, before.files, before.threads,
		most(func(u usage) float64 { return u.goroutines }), most(func(u usage) float64 { return u.files }), most(func(u usage) float64 { return u.threads }),
		after.goroutines, after.files, after.threads)
	row("Worker processes, their threads", "%.0f, %.0f before; %.0f, %.0f at most; %.0f, %.0f after", before.worker, before.workerThreads,
		most(func(u usage) float64 { return u.worker }), most(func(u usage) float64 { return u.workerThreads }), after.worker, after.workerThreads)
	return b.String()
}
