package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"kekd/hsm"
	"kekd/internal/audit"
	"kekd/internal/config"
	"kekd/internal/state"
)

func newPINUnlatch(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "unlatch",
		Short: "Let kekd try the PIN again that the token refused",
		Long: `Remove the latch that keeps a refused PIN from being tried again, of kekd's own
and of the one given by --admin-pin-file. Needed only
when the PIN itself was right, for example after the security officer unlocked
it: a changed PIN is noticed by itself.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.pinUnlatch(cmd.Context()) },
	}
}

func (a *app) pinUnlatch(ctx context.Context) error {
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return err
	}
	store, err := state.Open(cfg.StateDir)
	if err != nil {
		return err
	}
	trail := &adminTrail{app: a, cfg: cfg, store: store, log: zap.NewNop()}
	return trail.do(ctx, audit.Unlatch, "", func() (string, error) { return "", a.unlatch(store) })
}

// unlatch removes the latches.
func (a *app) unlatch(store *state.Dir) error {
	none := true
	for _, name := range []string{hsm.LatchName, adminLatchName} {
		var rec hsm.LatchRecord
		found, err := store.Load(name, &rec)
		if err != nil {
			return errors.Join(err, errors.New("remove the file by hand"))
		}
		if !found {
			continue
		}
		if err := store.Remove(name); err != nil {
			return err
		}
		none = false
		a.note("Removed the latch of %s on token %s (%s). The next start of the HSM worker tries the PIN once.",
			rec.Since.Format(time.RFC3339), rec.Serial, rec.Reason)
	}
	if none {
		a.note("No PIN is latched.")
	}
	return nil
}
