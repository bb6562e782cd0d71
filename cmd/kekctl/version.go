package main

import (
	"io"

	"github.com/spf13/cobra"

	"kekd/internal/version"
)

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := version.Read()
			return a.print(v, func(w io.Writer) { row(w, "kekctl "+v.String()) })
		},
	}
}
