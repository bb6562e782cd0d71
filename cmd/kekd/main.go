// Command kekd is the Kubernetes KMS v2 plugin daemon: kube-apiserver's Secrets
// are encrypted under a key that never leaves an HSM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"kekd/hsm"
	"kekd/hsm/worker"
	"kekd/internal/logging"
	"kekd/internal/version"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// lastWords is how long the end of the log may take to be written.
const lastWords = 2 * time.Second

const usage = `Usage:
  kekd serve --config FILE   serve kube-apiserver until SIGTERM
  kekd version               print the version

kekctl config check FILE checks a configuration, kekctl doctor checks the rest.
`

func main() {
	if worker.Is(os.Args) {
		os.Exit(worker.Main(worker.OpenModule))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main with everything passed in.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		_, _ = io.WriteString(stderr, usage)
		return exitUsage
	}
	switch args[0] {
	case "serve":
		return serveCommand(ctx, args[1:], stderr)
	case "version", "--version":
		_, _ = fmt.Fprintln(stdout, "kekd", version.Read())
		return exitOK
	case "help", "-h", "--help":
		_, _ = io.WriteString(stdout, usage)
		return exitOK
	}
	_, _ = fmt.Fprintf(stderr, "kekd: error: unknown command %q\n%s", args[0], usage)
	return exitUsage
}

func serveCommand(ctx context.Context, args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("kekd serve", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", "", "the configuration `FILE` (YAML)")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case flags.NArg() > 0:
		_, _ = fmt.Fprintf(stderr, "kekd: error: serve takes no arguments, got %q\n", flags.Arg(0))
		return exitUsage
	}
	// Whoever reads the log may be stuck, or gone, which would end a Go program that
	// writes to standard error. Neither is a reason to keep requests waiting.
	signal.Ignore(syscall.SIGPIPE)
	out := logging.NewQueue(stderr)
	defer out.Close(lastWords)
	if err := serve(ctx, *path, out); err != nil {
		_, _ = fmt.Fprintln(out, "kekd: error:", err)
		if hint := hsm.Hint(err); hint != "" {
			_, _ = fmt.Fprintln(out, "kekd: hint:", hint)
		}
		return exitFailed
	}
	return exitOK
}
