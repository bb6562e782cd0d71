package main

import (
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/admin/newkey"
)

func newKeyRotate(a *app) *cobra.Command {
	var yes, now bool
	var delay time.Duration
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Create the KEK that takes over from the primary",
		Long: `Create a key that becomes the primary on every node, five minutes from now unless
--activate-in says otherwise. Every node sees it within keyRing.refresh, and can
decrypt with it at once. kekctl rotate does this and all that belongs to it.

With --now there is no time for the nodes to see the key first: until a node has
looked at the ring, reads of what another has written already may have to wait
for that look. It is meant for a key that must not be used any longer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := cmd.Flags().Changed("activate-in")
			if now && given {
				return codeError{exitUsage, "--now and --activate-in exclude each other; give one"}
			}
			if err := checkDelay(delay); err != nil {
				return err
			}
			return a.keyCreate(cmd.Context(), yes, func(s *session) newkey.Plan {
				if now {
					return newkey.AtOnce(s.cfg.KeyRing.Policy.MinActivationDelay)
				}
				return newkey.Successor(s.delayed(delay, given))
			})
		},
	}
	addYes(c, &yes)
	c.Flags().DurationVar(&delay, "activate-in", 0, "when the key becomes the primary (default 5m, or keyRing.policy.minActivationDelay if that is longer)")
	c.Flags().BoolVar(&now, "now", false, "the key becomes the primary as soon as a node sees it")
	return c
}
