// Command demo runs kekd on a SoftHSM token of its own, below a directory that
// it makes anew, and shows it at work (make run).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"kekd/internal/demo/sandbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demo: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	kekd := flag.String("kekd", "bin/kekd", "the daemon's `binary`")
	kekctl := flag.String("kekctl", "bin/kekctl", "the administrator's tool's `binary`")
	dir := flag.String("dir", ".run", "`directory` for token, configuration and socket; made anew")
	flag.Parse()
	box, err := sandbox.New(ctx, *dir, *kekd, *kekctl)
	if err != nil {
		return err
	}
	return show(ctx, box)
}
