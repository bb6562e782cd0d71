package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fullOptions is the command line of report.
type fullOptions struct {
	kekd, kekctl, faults string
	noop, naive          string
	dir, out             string
	callers              callersFlag
	latencies            latenciesFlag
	rounds               int
	duration             time.Duration
	sessions             int
	seeds                seedsFlag
	coldRounds           int
	starts               int
	status               time.Duration
}

func parseFullOptions(args []string, stderr io.Writer) (fullOptions, error) {
	o := fullOptions{
		callers:   callersFlag{1, 8, 64},
		latencies: latenciesFlag{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond},
		seeds:     seedsFlag{50, 10000},
	}
	fs := flag.NewFlagSet("bench report", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&o.kekd, "kekd", "bin/kekd", "the daemon's `binary`")
	fs.StringVar(&o.kekctl, "kekctl", "bin/kekctl", "the administrator's tool's `binary`")
	fs.StringVar(&o.faults, "faults", "bin/kekd-faults.so", "the PKCS#11 `module` that stands before SoftHSM: it counts calls and makes them slower")
	fs.StringVar(&o.noop, "noop", sibling("noop"), "the no-op server's `binary`")
	fs.StringVar(&o.naive, "naive", sibling("naive"), "the naive plugin's `binary`")
	fs.StringVar(&o.dir, "dir", ".run-bench/token", "`directory` for token and sockets; made anew")
	fs.StringVar(&o.out, "json", ".run-bench/report.json", "`file` for the report's figures")
	fs.Var(&o.callers, "callers", "comma-separated `numbers` of concurrent callers")
	fs.Var(&o.latencies, "latencies", "comma-separated `milliseconds` that each HSM operation takes longer")
	fs.IntVar(&o.rounds, "rounds", 16, "rounds; every target is measured once in each, at each latency")
	fs.DurationVar(&o.duration, "duration", 100*time.Millisecond, "length of one measurement")
	fs.IntVar(&o.sessions, "sessions", 16, "PKCS#11 sessions of each kekd and of the naive plugin")
	fs.Var(&o.seeds, "seeds", "comma-separated `numbers` of seeds that a cold cache decrypts")
	fs.IntVar(&o.coldRounds, "cold-rounds", 3, "rounds of up to 1000 seeds; more are decrypted once")
	fs.IntVar(&o.starts, "starts", 5, "starts of each target that are timed, at the least and the greatest latency")
	fs.DurationVar(&o.status, "status", 500*time.Millisecond, "length of one measurement of Status")
	return o, parse(fs, args, stderr, func() error { return o.validate(fs.Args()) })
}

func (o fullOptions) validate(rest []string) error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(len(rest) == 0, "unexpected argument %q", strings.Join(rest, " "))
	require(o.rounds >= 1 && o.rounds <= 10000, "-rounds: must be 1 to 10000, got %d", o.rounds)
	for name, d := range map[string]time.Duration{"duration": o.duration, "status": o.status} {
		require(d >= time.Millisecond && d <= time.Minute, "-%s: must be 1ms to 1m, got %v", name, d)
	}
	require(o.sessions >= 1 && o.sessions <= 64, "-sessions: must be 1 to 64, got %d", o.sessions)
	require(o.coldRounds >= 1 && o.coldRounds <= 100, "-cold-rounds: must be 1 to 100, got %d", o.coldRounds)
	require(o.starts >= 1 && o.starts <= 100, "-starts: must be 1 to 100, got %d", o.starts)
	require(slices.Max(o.callers) <= 64, "-callers: must be at most 64 here, which is how many may wait for the HSM at once")
	return errors.Join(errs...)
}

// seedsFlag is a list such as "50,10000".
type seedsFlag []int

func (f *seedsFlag) String() string { return joinNumbers(*f) }

func (f *seedsFlag) Set(s string) (err error) {
	*f, err = parseNumbers(s, cacheSize)
	return err
}

// latenciesFlag is a list of milliseconds such as "0,5,20".
type latenciesFlag []time.Duration

func (l *latenciesFlag) String() string {
	ms := make([]int, 0, len(*l))
	for _, d := range *l {
		ms = append(ms, int(d.Milliseconds()))
	}
	return joinNumbers(ms)
}

func (l *latenciesFlag) Set(s string) error {
	var list latenciesFlag
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 || n > 1000 {
			return fmt.Errorf("%q is not a number of milliseconds from 0 to 1000", part)
		}
		list = append(list, time.Duration(n)*time.Millisecond)
	}
	slices.Sort(list)
	*l = slices.Compact(list)
	return nil
}

// extremes are the least and the greatest latency.
func (l latenciesFlag) extremes() []time.Duration {
	return slices.Compact([]time.Duration{l[0], l[len(l)-1]})
}

// reportCommand measures everything on a token of its own, stores the figures and
// prints them.
func reportCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseFullOptions(args, stderr)
	if err != nil {
		return err
	}
	begun := time.Now()
	r, err := measureEverything(ctx, o, stderr)
	if err != nil {
		return err
	}
	printf(stderr, "bench: done in %v\n", time.Since(begun).Round(time.Second))
	if err := storeReport(r, o.out); err != nil {
		return err
	}
	return errors.Join(r.writeMarkdown(stdout), r.failures())
}

// measureEverything measures one kind of thing after the other. All of it runs
// while the plugins of the other kinds are idle.
func measureEverything(ctx context.Context, o fullOptions, stderr io.Writer) (r *report, err error) {
	say := func(format string, args ...any) { printf(stderr, "bench: "+format+"\n", args...) }
	stand, err := newStand(ctx, o, stderr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stand.close()) }()

	say("%d starts of each target", o.starts)
	starts, err := stand.measureStarts(ctx)
	if err != nil {
		return nil, fmt.Errorf("measure the start: %w", err)
	}
	if err := stand.open(ctx); err != nil {
		return nil, err
	}
	before, err := stand.countOperations(ctx)
	if err != nil {
		return nil, err
	}
	s := schedule{
		targets: stand.targets, callers: o.callers, rounds: o.rounds, duration: o.duration,
		latencies: o.latencies, setLatency: stand.setLatency,
	}
	say("%d targets, %v of measurements", len(s.targets), s.length().Round(time.Second))
	r, err = s.run(ctx, func(round int) { say("round %d of %d", round+1, o.rounds) })
	if err != nil {
		return nil, err
	}
	after, err := stand.countOperations(ctx)
	if err != nil {
		return nil, err
	}
	r.Settings.Sessions, r.Starts = o.sessions, starts
	r.Operations = newOperations(stand.targets, before, after)
	if r.Memory, err = stand.measureMemory(); err != nil {
		return nil, err
	}
	say("Status while the rest is saturated")
	if r.Status, err = stand.measureStatus(ctx); err != nil {
		return nil, fmt.Errorf("measure Status: %w", err)
	}
	say("Decrypt with a cold cache")
	if r.Cold, err = stand.measureCold(ctx, say); err != nil {
		return nil, fmt.Errorf("measure the cold cache: %w", err)
	}
	return r, nil
}

func storeReport(r *report, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // G301: figures, for all to read
		return fmt.Errorf("write report: %w", err)
	}
	f, err := os.Create(path) //nolint:gosec // G304: the file that was asked for
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return errors.Join(r.writeJSON(f), f.Close())
}

func loadReport(path string) (*report, error) {
	b, err := os.ReadFile(path) //nolint:gosec // G304: the file that was asked for
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	r := &report{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read report %s: %w", path, err)
	}
	return r, nil
}
