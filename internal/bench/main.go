// Command bench measures KMS v2 plugins beside a plugin that does nothing, on
// one machine in one run:
//
//	go run ./internal/bench -target seeded=/run/kekd/kekd.sock,http://127.0.0.1:8780/metrics
//
// # What is measured
//
// Closed loops: each of 1, 8 or 64 callers sends its next Encrypt or Decrypt of
// 32 bytes, which is what kube-apiserver sends, once the last is answered. All
// callers share one connection, as kube-apiserver's do. Decrypts are warm: they
// take turns through ciphertexts that were decrypted once before.
//
// # Why beside a no-op
//
// Most of such a call is gRPC and the kernel, and both vary from machine to
// machine and minute to minute. The no-op server runs with grpc-go's defaults
// in a process of its own and answers with as many bytes as kekd does, so the
// ratio to it is what a plugin's own work costs. All targets take turns in
// short rounds, in another order each round, so that a noisy minute hits all
// alike; the ratio is taken within a round, and the median of all rounds is
// reported with its quartiles. A second no-op, "control", shows how far from
// 1.00 the noise alone goes.
//
// # HSM operations
//
// Where a target has a metrics URL, the counter of its HSM operations is read
// before and after each measurement. All operations count, whatever their
// cause: the background probes too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Exit codes, as kekctl's.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// options is the command line.
type options struct {
	targets  targetFlag
	callers  callersFlag
	conns    int
	rounds   int
	duration time.Duration
	control  bool
	metric   string
	out      string
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	o := options{callers: callersFlag{1, 8, 64}}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Var(&o.targets, "target", "`name=socket[,metricsURL]` of a plugin to measure; may be repeated")
	fs.Var(&o.callers, "callers", "comma-separated `numbers` of concurrent callers")
	fs.IntVar(&o.conns, "conns", 1, "connections that the callers of a target share")
	fs.IntVar(&o.rounds, "rounds", 40, "rounds; every target is measured once in each")
	fs.DurationVar(&o.duration, "duration", 100*time.Millisecond, "length of one measurement")
	fs.BoolVar(&o.control, "control", true, "measure a second no-op, to show the noise")
	fs.StringVar(&o.metric, "metric", "kekd_hsm_operations_total", "`name` of the counter of HSM operations")
	fs.StringVar(&o.out, "out", "markdown", "`format` of the report: markdown or json")
	if err := fs.Parse(args); err != nil {
		return options{}, err
	}
	if err := o.validate(fs.Args()); err != nil {
		printf(stderr, "bench: error: %v\n", err)
		return options{}, err
	}
	return o, nil
}

func (o options) validate(rest []string) error {
	var errs []error
	if len(rest) > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q; targets are given with -target", rest[0]))
	}
	if o.conns < 1 || o.conns > 64 {
		errs = append(errs, fmt.Errorf("-conns: must be 1 to 64, got %d", o.conns))
	}
	if o.rounds < 1 || o.rounds > 10000 {
		errs = append(errs, fmt.Errorf("-rounds: must be 1 to 10000, got %d", o.rounds))
	}
	if o.duration < time.Millisecond || o.duration > time.Minute {
		errs = append(errs, fmt.Errorf("-duration: must be 1ms to 1m, got %v", o.duration))
	}
	if o.out != "markdown" && o.out != "json" {
		errs = append(errs, fmt.Errorf("-out: must be markdown or json, got %q", o.out))
	}
	if o.metric == "" {
		errs = append(errs, errors.New("-metric: must not be empty"))
	}
	return errors.Join(errs...)
}

// callersFlag is a list such as "1,8,64".
type callersFlag []int

func (c *callersFlag) String() string {
	parts := make([]string, 0, len(*c))
	for _, n := range *c {
		parts = append(parts, strconv.Itoa(n))
	}
	return strings.Join(parts, ",")
}

func (c *callersFlag) Set(s string) error {
	var list callersFlag
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 1 || n > 1024 {
			return fmt.Errorf("%q is not a number from 1 to 1024", part)
		}
		if slices.Contains(list, n) {
			return fmt.Errorf("%d is given twice", n)
		}
		list = append(list, n)
	}
	*c = list
	return nil
}

// run is the program. The report goes to stdout, progress and errors to stderr.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == noopCommand {
		if err := serveNoop(stdin); err != nil {
			printf(stderr, "bench: error: no-op server: %v\n", err)
			return exitFailed
		}
		return exitOK
	}
	o, err := parseOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		return exitUsage
	}
	if err := measureAll(ctx, o, stdout, stderr); err != nil {
		printf(stderr, "bench: error: %v\n", err)
		return exitFailed
	}
	return exitOK
}

// measureAll starts the no-op servers, measures every target and writes the
// report. A target with failed calls is reported and makes an error.
func measureAll(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "kekd-bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	names := []string{noopName}
	if o.control {
		names = append(names, controlName)
	}
	var specs []targetSpec
	for _, name := range names {
		socket, stop, err := startNoop(dir, name, stderr)
		if err != nil {
			return err
		}
		defer stop()
		specs = append(specs, targetSpec{name: name, socket: socket})
	}
	var targets []*target
	defer func() {
		for _, t := range targets {
			t.close()
		}
	}()
	for _, spec := range append(specs, o.targets...) {
		t, err := openTarget(ctx, spec, o.conns, o.metric)
		if err != nil {
			return fmt.Errorf("target %s: %w", spec.name, err)
		}
		targets = append(targets, t)
	}

	s := schedule{targets: targets, callers: o.callers, rounds: o.rounds, duration: o.duration}
	printf(stderr, "bench: %d targets, %v of measurements\n", len(targets), s.length().Round(time.Second))
	report, err := s.run(ctx, func(round int) { printf(stderr, "bench: round %d of %d\n", round+1, o.rounds) })
	if err != nil {
		return err
	}
	if o.out == "json" {
		err = report.writeJSON(stdout)
	} else {
		err = report.writeMarkdown(stdout)
	}
	return errors.Join(err, report.failures())
}

// printf writes a note to the user. Where stderr is gone nobody can be told.
func printf(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
