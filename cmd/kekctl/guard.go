package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"kekd/internal/inventory"
	"kekd/internal/kek"
)

// objectsUnder counts the objects that need a key; empty if there are none.
func objectsUnder(ctx context.Context, key kek.Info, etcd *etcdFlags) (string, error) {
	report, err := etcd.take(ctx)
	if err != nil {
		return "", err
	}
	uses := report.Under(key.Ring, key.ID)
	if uses.None() {
		return "", nil
	}
	counts := make([]string, 0, len(uses.Resources))
	for _, r := range slices.Sorted(maps.Keys(uses.Resources)) {
		counts = append(counts, fmt.Sprintf("%d of %s", uses.Resources[r], plain(r)))
	}
	unclear := ""
	if uses.Unclear > 0 {
		unclear = fmt.Sprintf(", and %d that may be (kekctl inventory shows why)", uses.Unclear)
	}
	return fmt.Sprintf("%d objects in etcd are encrypted under it%s: %s", uses.Objects, unclear, strings.Join(counts, ", ")), nil
}

// take counts what etcd holds.
func (f *etcdFlags) take(ctx context.Context) (*inventory.Report, error) {
	store, err := f.open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return store.Take(ctx, inventory.Options{})
}

// check fails where take would, without reading everything.
func (f *etcdFlags) check(ctx context.Context) error {
	store, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	enough := errors.New("one object is enough")
	_, err = store.Visit(ctx, inventory.Options{}, func(inventory.Object) error { return enough })
	if errors.Is(err, enough) {
		return nil
	}
	return err
}
