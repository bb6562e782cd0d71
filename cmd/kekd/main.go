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

	"kekd/hsm"
	"kekd/hsm/worker"
	"kekd/internal/version"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

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
	if err := serve(ctx, *path, stderr); err != nil {
		_, _ = fmt.Fprintln(stderr, "kekd: error:", err)
		if hint := hsm.Hint(err); hint != "" {
			_, _ = fmt.Fprintln(stderr, "kekd: hint:", hint)
		}
		return exitFailed
	}
	return exitOK
}
