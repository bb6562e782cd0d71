// Command demo runs kekd on a SoftHSM token of its own, below a directory that
// it makes anew, and either shows it at work (make run) or measures it (make
// bench).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
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
	bench := flag.String("bench", "", "measure with this bench `binary` instead of showing; its flags follow")
	dir := flag.String("dir", ".run", "`directory` for token, configuration and socket; made anew")
	flag.Parse()
	root, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	box, err := newSandbox(ctx, root, *kekd, *kekctl)
	if err != nil {
		return err
	}
	if *bench != "" {
		return measure(ctx, box, *bench, flag.Args())
	}
	return show(ctx, box)
}
