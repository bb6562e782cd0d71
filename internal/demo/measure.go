package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
)

// measure runs the bench binary against a seeded and a direct kekd on one token.
func measure(ctx context.Context, b *sandbox, bench string, flags []string) (err error) {
	args := flags
	for _, mode := range []string{"seeded", "direct"} {
		d, err := b.configure(ctx, mode, mode)
		if err != nil {
			return err
		}
		if mode == "seeded" {
			if _, err := b.ctl(ctx, d, "key", "create", "--yes"); err != nil {
				return err
			}
		}
		if err := b.start(ctx, d); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.stop()) }()
		args = append(args, "-target", mode+"="+d.socket+",http://"+d.http+"/metrics")
	}
	cmd := exec.CommandContext(ctx, bench, args...) //nolint:gosec // G204: the binary that was asked for
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
