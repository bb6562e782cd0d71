package main

import (
	"context"
	"io"
	"os/user"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"kekd/hsm"
	"kekd/internal/admin/doctor"
	"kekd/internal/admin/nodes"
	"kekd/internal/config"
	"kekd/internal/httpapi"
	"kekd/internal/setup"
)

func newDoctor(a *app) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything that kekd needs on this node, one line each",
		Long: `Check the configuration, the socket, the HTTP address, the PIN, the state
directory, the module, the token, the key ring, the mechanism (by using it on the
real KEK), and what kube-apiserver's EncryptionConfiguration does on this node.

Each check runs whatever became of the others, unless it depends on one that
failed. Nothing is changed, but a wrong PIN is tried once and latched, as kekd
does. Exits with 1 if a check fails.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context(), file) },
	}
	addEncryptionConfig(c.Flags(), &file)
	return c
}

func (a *app) doctor(ctx context.Context, encryptionConfig string) error {
	report := a.examine(ctx, encryptionConfig)
	err := a.print(report, func(w io.Writer) {
		for _, f := range report {
			row(w, string(f.Result), f.Check, f.Detail)
			if f.Remedy != "" {
				row(w, "", "", "-> "+f.Remedy)
			}
		}
	})
	if err != nil {
		return err
	}
	if report.Failed() != nil {
		return codeError{code: exitFailed}
	}
	return nil
}

// examine has the doctor look at this node.
func (a *app) examine(ctx context.Context, encryptionConfig string) doctor.Report {
	ctx, cancel := context.WithTimeout(ctx, 2*hsmTimeout)
	defer cancel()
	return doctor.Examine(ctx, doctor.Options{
		Config:           a.configPath,
		EncryptionConfig: encryptionConfig,
		Open:             a.openForDoctor,
		Socket:           askSocket,
		HTTP: func(ctx context.Context, address string) (*httpapi.Status, error) {
			return nodes.Local(address).Status(ctx)
		},
		User:     lookupUser,
		Outsider: outsider,
		Clock:    time.Now,
	})
}

// openForDoctor prepares the token; the HSM is not touched yet.
func (a *app) openForDoctor(cfg config.Config, latch hsm.LatchStore, pin hsm.PINSource) (doctor.Token, error) {
	log, err := a.logger()
	if err != nil {
		return nil, err
	}
	c, err := setup.Token(cfg, latch, log, nil)
	if err != nil {
		return nil, err
	}
	if pin != nil {
		c.PIN = pin
	}
	return hsm.New(c), nil
}

// lookupUser returns the id of a user of this system.
func lookupUser(name string) (int, bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, false
	}
	uid, err := strconv.Atoi(u.Uid)
	return uid, err == nil
}
