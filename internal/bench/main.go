// Command bench measures KMS v2 plugins beside a plugin that does nothing, on
// one machine in one run:
//
//	go build -o DIR ./internal/bench ./internal/bench/cmd/...
//	DIR/bench -target seeded=/run/kekd/kekd.sock,http://127.0.0.1:8780/metrics
//	DIR/bench report        everything that docs/performance.md has, of kekds that it starts
//	DIR/bench write FILE    what report found and stored, as Markdown
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
// ratio to it is what a plugin's own work costs. It is a program of its own too:
// as a copy of the client it would share the client's memory pages and branch
// predictions, and be faster by a fifth at a single caller than any plugin can be.
//
// All targets take turns in short rounds, in another order each round, so that a
// noisy minute hits all alike; the ratio is taken within a round, and the median
// of all rounds is reported with its quartiles. A second no-op, "control", shows
// how far from 1.00 the noise alone goes.
//
// # HSM operations
//
// Where a target has a metrics URL, the counter of its HSM operations is read
// before and after each measurement. All operations count, whatever their
// cause: the background probes too. The subcommand report counts the calls that
// reach the PKCS#11 module instead.
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

	"kekd/hsm/worker"
)

// Exit codes, as kekctl's.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	if worker.Is(os.Args) { // report makes seeds by a token of its own
		os.Exit(worker.Main(worker.OpenModule))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
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
	noop     string
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
	fs.StringVar(&o.noop, "noop", sibling("noop"), "the no-op server's `binary`")
	fs.StringVar(&o.out, "out", "markdown", "`format` of the report: markdown or json")
	return o, parse(fs, args, stderr, func() error { return o.validate(fs.Args()) })
}

// parse reads the flags and checks them. What it returns is errUsage or
// flag.ErrHelp, after stderr was told.
func parse(fs *flag.FlagSet, args []string, stderr io.Writer, validate func() error) error {
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if err := validate(); err != nil {
		printf(stderr, "bench: error: %v\n", err)
		return errUsage
	}
	return nil
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

func (c *callersFlag) String() string { return joinNumbers(*c) }

func (c *callersFlag) Set(s string) (err error) {
	*c, err = parseNumbers(s, 1024)
	return err
}

func joinNumbers(list []int) string {
	parts := make([]string, 0, len(list))
	for _, n := range list {
		parts = append(parts, strconv.Itoa(n))
	}
	return strings.Join(parts, ",")
}

// parseNumbers reads numbers from 1 to most, each once.
func parseNumbers(s string, most int) ([]int, error) {
	var list []int
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 1 || n > most {
			return nil, fmt.Errorf("%q is not a number from 1 to %d", part, most)
		}
		if slices.Contains(list, n) {
			return nil, fmt.Errorf("%d is given twice", n)
		}
		list = append(list, n)
	}
	return list, nil
}

// run is the program. The report goes to stdout, progress and errors to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command := measureCommand
	if len(args) > 0 {
		switch args[0] {
		case "report":
			command, args = reportCommand, args[1:]
		case "write":
			command, args = writeCommand, args[1:]
		}
	}
	err := command(ctx, args, stdout, stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errUsage):
		return exitUsage
	}
	printf(stderr, "bench: error: %v\n", err)
	return exitFailed
}

// errUsage: the command line is wrong, and stderr has been told why.
var errUsage = errors.New("wrong usage")

// measureCommand measures the targets that it is given.
func measureCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	return measureAll(ctx, o, stdout, stderr)
}

// measureAll starts the no-op servers, measures every target and writes the
// report. A target with failed calls is reported and makes an error.
func measureAll(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "kekd-bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	specs, stop, err := startNoops(o.noop, dir, o.control, stderr)
	defer stop()
	if err != nil {
		return err
	}
	targets, closeAll, err := openTargets(ctx, append(specs, o.targets...), o.conns, o.metric)
	defer closeAll()
	if err != nil {
		return err
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

// startNoops starts the no-op server, and with control a second one. The caller
// calls stop, even after an error.
func startNoops(binary, dir string, control bool, stderr io.Writer) (specs []targetSpec, stop func(), err error) {
	var started []*child
	stop = func() {
		for _, c := range started {
			c.stop()
		}
	}
	names := []string{noopName}
	if control {
		names = append(names, controlName)
	}
	for _, name := range names {
		c, err := startPlugin(binary, nil, nil, dir, name, stderr)
		if err != nil {
			return nil, stop, err
		}
		started = append(started, c)
		specs = append(specs, targetSpec{name: name, socket: c.socket, pids: []int{c.pid}})
	}
	return specs, stop, nil
}

// openTargets prepares all of them. The caller calls closeAll, even after an error.
func openTargets(ctx context.Context, specs []targetSpec, conns int, metric string) (_ []*target, closeAll func(), err error) {
	var targets []*target
	closeAll = func() {
		for _, t := range targets {
			t.close()
		}
	}
	for _, spec := range specs {
		t, err := openTarget(ctx, spec, conns, metric)
		if err != nil {
			return nil, closeAll, fmt.Errorf("target %s: %w", spec.name, err)
		}
		targets = append(targets, t)
	}
	return targets, closeAll, nil
}

// printf writes a note to the user. Where stderr is gone nobody can be told.
func printf(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
