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
	total, resources := report.Under(key.Ring, key.ID)
	if total == 0 {
		return "", nil
	}
	counts := make([]string, 0, len(resources))
	for _, r := range slices.Sorted(maps.Keys(resources)) {
		counts = append(counts, fmt.Sprintf("%d of %s", resources[r], r))
	}
	return fmt.Sprintf("%d objects in etcd are encrypted under it (%s)", total, strings.Join(counts, ", ")), nil
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
