package main

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	"kekd/internal/config"
	"kekd/internal/setup"
)

func newConfigCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration, and show it with all defaults filled in",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				a.configPath = args[0]
			}
			return a.configCheck()
		},
	}
}

func (a *app) configCheck() error {
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return err
	}
	_, tokenErr := setup.Selector(cfg.HSM.Token)
	_, ringErr := setup.Primary(cfg.KeyRing)
	if err := errors.Join(tokenErr, ringErr); err != nil {
		return err
	}
	a.note("%s is valid.", a.configPath)
	return a.print(cfg, func(w io.Writer) { _, _ = io.WriteString(w, cfg.String()) })
}
