package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kekd/internal/httpapi"
	"kekd/internal/kek"
)

func newKeyList(a *app) *cobra.Command {
	var inUse bool
	var etcd etcdFlags
	c := &cobra.Command{
		Use:   "list",
		Short: "List the key ring, oldest key first",
		Long: `List the keys of the ring on the token, oldest first, with the state that kekd
on this node gives them. The mechanism is found by using the key.

With --in-use the objects in etcd that need each key are counted.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !inUse {
				return a.keyList(cmd.Context(), nil)
			}
			return a.keyList(cmd.Context(), &etcd)
		},
	}
	c.Flags().BoolVar(&inUse, "in-use", false, "count the objects in etcd that need each key")
	etcd.add(a, c.Flags())
	return c
}

// keyListing is what kekctl key list prints as JSON.
type keyListing struct {
	Label string      `json:"label"`
	Read  time.Time   `json:"read"`
	Keys  []listedKey `json:"keys"`
}

// listedKey is a key of the ring, and what stands under it.
type listedKey struct {
	httpapi.Key
	// Objects is how many objects in etcd need the key; nil if nobody asked.
	Objects *int64 `json:"objects,omitempty"`
}

// keyList prints the ring, with counts from etcd unless that is nil.
func (a *app) keyList(ctx context.Context, etcd *etcdFlags) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.close()
	ring, listing, problem := s.listing(ctx)
	if ring == nil {
		return problem
	}
	if etcd != nil {
		if err := listing.count(ctx, etcd, ring); err != nil {
			return err
		}
	}
	err = a.print(listing, func(w io.Writer) {
		head := []string{"#", "CKA_ID", "STATE", "ACTIVATION", "AGE", "CHECK VALUE", "MECHANISM", "ATTRIBUTES"}
		if etcd != nil {
			head = append(head, "OBJECTS")
		}
		row(w, head...)
		for i, k := range ring.Keys {
			cells := append([]string{strconv.Itoa(i + 1)}, listedCells(k, listing.Keys[i], listing.Read)...)
			if n := listing.Keys[i].Objects; n != nil {
				cells = append(cells, strconv.FormatInt(*n, 10))
			}
			row(w, cells...)
		}
	})
	if err != nil {
		return err
	}
	return problem
}

// listing reads the ring. The ring is nil only if it could not be read; where its
// states are unclear they are not set, and the error says why.
func (s *session) listing(ctx context.Context) (*kek.Ring, keyListing, error) {
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	ring, keys, problem := s.ring(ctx)
	if ring == nil && keys == nil {
		return nil, keyListing{}, problem
	}
	if ring == nil {
		// The states are unclear; the keys themselves are what helps.
		slices.SortFunc(keys, func(a, b kek.Info) int { return a.ID.Compare(b.ID) })
		ring = &kek.Ring{Label: s.cfg.KeyRing.Label, Keys: keys}
	}
	shown := httpapi.NewKeyRing(ring, time.Now())
	out := keyListing{Label: shown.Label, Read: shown.Read, Keys: make([]listedKey, 0, len(shown.Keys))}
	for i, k := range shown.Keys {
		if ring.Keys[i].State.Decrypts() {
			if m, err := s.token.Try(ctx, ring.Keys[i].ID); err == nil {
				k.Mechanism = m.String()
			}
		}
		out.Keys = append(out.Keys, listedKey{Key: k})
	}
	return ring, out, problem
}

// count fills in how many objects need each key.
func (l *keyListing) count(ctx context.Context, etcd *etcdFlags, ring *kek.Ring) error {
	report, err := etcd.take(ctx)
	if err != nil {
		return err
	}
	for i, k := range ring.Keys {
		uses := report.Under(ring.Label, k.ID)
		n := uses.Objects + uses.Unclear
		l.Keys[i].Objects = &n
	}
	return nil
}

// listedCells are the cells of one key's row.
func listedCells(k kek.Info, shown listedKey, now time.Time) []string {
	activation, age, mechanism := "-", "-", "-"
	if !k.Activation.IsZero() {
		activation = k.Activation.Format(time.RFC3339)
		age = shortAge(now.Sub(k.Activation))
	}
	name := "unclear"
	if k.State != 0 {
		name = k.State.String()
	}
	if k.State == kek.Scheduled {
		name += " after " + k.DestroyAfter.Format(time.DateOnly)
	}
	if shown.Mechanism != "" {
		mechanism = shown.Mechanism
	}
	return []string{k.ID.String(), name, activation, age, k.CheckValue.String(), mechanism, attributes(k.Attributes)}
}

// shortAge spells a duration in its largest unit: 34d, 5h, -12m.
func shortAge(d time.Duration) string {
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%s%dd", sign, d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%s%dh", sign, d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%s%dm", sign, d/time.Minute)
	}
	return fmt.Sprintf("%s%ds", sign, d/time.Second)
}

// attributes names what an operator should know of a key, the unsafe in capitals.
func attributes(at kek.Attributes) string {
	var words []string
	for _, f := range []struct {
		value   *bool
		yes, no string
	}{
		{at.Encrypt, "encrypt", ""},
		{at.Decrypt, "decrypt", ""},
		{at.Sensitive, "sensitive", "NOT-SENSITIVE"},
		{at.Extractable, "EXTRACTABLE", "non-extractable"},
		{at.NeverExtractable, "never-extractable", ""},
		{at.Local, "local", ""},
	} {
		switch {
		case f.value == nil:
		case *f.value && f.yes != "":
			words = append(words, f.yes)
		case !*f.value && f.no != "":
			words = append(words, f.no)
		}
	}
	return strings.Join(words, ",")
}
