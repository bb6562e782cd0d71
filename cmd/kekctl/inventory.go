package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"kekd/internal/inventory"
)

// verifyFlags say how inventory --verify reads.
type verifyFlags struct {
	verify   bool
	rate     float64
	failures string
}

func newInventory(a *app) *cobra.Command {
	var kube kubeFlags
	etcd := etcdFlags{kube: &kube}
	var how verifyFlags
	c := &cobra.Command{
		Use:   "inventory",
		Short: "Count the objects in etcd under each key",
		Long: `Read all objects of a cluster in etcd and count, for each resource, how many are
encrypted under which key_id, how many are not encrypted or under another provider,
and how many cannot be parsed. Nothing is decrypted and the HSM is not needed. An
object may change while others are read; run it again after writing has ended to be
sure.

With --verify, read each object that is encrypted under the key ring through the API
server instead, and name those that it cannot decrypt. Nothing is changed. The exit
code is 1 if there are any.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case how.verify:
				return a.verifyInventory(cmd.Context(), &etcd, &kube, how)
			case how.failures != "":
				return codeError{exitUsage, "--failures: is for --verify; give both or neither"}
			}
			return a.inventory(cmd.Context(), &etcd)
		},
	}
	kube.add(c.Flags())
	etcd.add(a, c.Flags())
	c.Flags().BoolVar(&how.verify, "verify", false, "read each encrypted object through the API server and name those that cannot be read")
	c.Flags().Float64Var(&how.rate, "rate", 200, "with --verify, the most objects to read per `second`")
	c.Flags().StringVar(&how.failures, "failures", "", "with --verify, a `file` for the complete list of objects that cannot be read, one JSON object a line")
	return c
}

func (a *app) inventory(ctx context.Context, etcd *etcdFlags) error {
	store, err := etcd.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	report, err := a.takeInventory(ctx, store)
	if err != nil {
		return err
	}
	return a.printInventory(report)
}

// takeInventory shows how far it is.
func (a *app) takeInventory(ctx context.Context, store *inventory.Store) (*inventory.Report, error) {
	p := a.progress("inventory")
	defer p.clear()
	return store.Take(ctx, a.reading(p))
}

// reading shows how far it is, and why it waits.
func (a *app) reading(p *progress) inventory.Options {
	return inventory.Options{
		Progress: p.show,
		Waiting: func(reason error, left time.Duration) {
			p.clear()
			a.note("etcd does not answer, trying for another %v: %s", left, oneLine(reason))
		},
	}
}

// printInventory prints a report, and notes what its table does not tell.
func (a *app) printInventory(r *inventory.Report) error {
	if err := a.print(r, func(w io.Writer) { inventoryTable(w, r) }); err != nil {
		return err
	}
	a.note("%d objects below %s of etcd at %s, revision %d, in %s", r.Objects, r.Prefix, r.Endpoint, r.Revision,
		time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond))
	if r.Compacted > 0 {
		a.note("kekctl: warning: the counts are not those of one instant: etcd was compacted %d time(s) while it was read", r.Compacted)
	}
	if r.Resumed > 0 {
		a.note("etcd did not answer for a while, %d time(s); reading resumed where it was", r.Resumed)
	}
	for _, s := range r.Stores[min(1, len(r.Stores)):] {
		a.note("with %s from etcd at %s, revision %d", strings.Join(s.Overrides, ", "), s.Endpoint, s.Revision)
	}
	for _, s := range r.Unparsable {
		a.note("kekctl: warning: %s cannot be parsed: %s", plain(s.Key), s.Problem)
	}
	return nil
}

func inventoryTable(w io.Writer, r *inventory.Report) {
	row(w, "RESOURCE", "OBJECTS", "STANDING", "PROVIDER", "KEY_ID")
	rows := func(resource string, counts []inventory.Count) {
		for _, c := range counts {
			row(w, plain(resource), strconv.FormatInt(c.Objects, 10), string(c.Class), dash(plain(c.Provider)), dash(plain(c.KeyID)))
		}
	}
	for _, resource := range r.Resources {
		rows(resource.Resource, resource.Counts)
	}
	rows("TOTAL", r.Totals)
}

// plain quotes what could do something to a terminal or to a table: what etcd
// holds may be anybody's.
func plain(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) || r == unicode.ReplacementChar }) < 0 {
		return s
	}
	return fmt.Sprintf("%+q", s)
}

// dash stands for nothing in a table.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
