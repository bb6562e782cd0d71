package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/config"
	"kekd/internal/conformance"
)

func newVerify(a *app) *cobra.Command {
	var socket string
	var opts conformance.Options
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check a KMS v2 plugin against the contract that kube-apiserver enforces",
		Long: `Talk to a KMS v2 plugin, kekd or any other, as kube-apiserver does, and as a
hostile etcd would make it: Status, round trips, limits, tampered and foreign
input, load. It encrypts random values only and changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.verify(cmd.Context(), socket, opts) },
	}
	c.Flags().StringVar(&socket, "socket", "", "the plugin's socket, a path or unix:///path (default: the configuration's)")
	c.Flags().DurationVar(&opts.CallTimeout, "timeout", 3*time.Second, "deadline of each call; kube-apiserver's default is 3s")
	c.Flags().IntVar(&opts.Callers, "callers", 8, "concurrent callers in the load checks")
	return c
}

func (a *app) verify(ctx context.Context, socket string, opts conformance.Options) error {
	if socket == "" {
		cfg, err := config.Load(a.configPath)
		if err != nil {
			return err
		}
		socket = cfg.Socket.Path
	}
	conn, err := conformance.Dial(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	report := conformance.Run(ctx, conn, opts)
	err = a.print(report, func(w io.Writer) {
		row(w, "CHECK", "RESULT", "DETAIL")
		for _, r := range report.Results {
			row(w, r.Name, string(r.Outcome), r.Detail)
			if r.Remedy != "" {
				row(w, "", "", "-> "+r.Remedy)
			}
		}
	})
	if err != nil {
		return err
	}
	a.note("%d ok, %d warnings, %d failed, %d skipped", report.Count(conformance.OK), report.Count(conformance.Warn),
		report.Count(conformance.Fail), report.Count(conformance.Skip))
	if !report.Passed() {
		return codeError{code: exitFailed}
	}
	return nil
}
