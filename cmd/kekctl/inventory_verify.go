package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"kekd/internal/admin/readcheck"
	"kekd/internal/config"
)

// maxShown bounds the failures that are printed. --failures has all.
const maxShown = 100

// verified is what inventory --verify prints.
type verified struct {
	Server string `json:"server"`
	Ring   string `json:"ring"`
	readcheck.Result
	// Failures are the first maxShown.
	Failures []readcheck.Failure `json:"failures"`
}

func (a *app) verifyInventory(ctx context.Context, etcd *etcdFlags, kube *kubeFlags, how verifyFlags) (err error) {
	if how.rate <= 0 {
		return codeError{exitUsage, fmt.Sprintf("--rate: must be more than 0, got %v", how.rate)}
	}
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return fmt.Errorf("--verify needs the key ring's label: %w", err)
	}
	store, err := etcd.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	c, err := kube.connect()
	if err != nil {
		return err
	}
	resources, err := c.Resources(ctx)
	if err != nil {
		return err
	}
	list, err := newFailureList(how.failures)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, list.close()) }()
	out := verified{Server: c.Server(), Ring: cfg.KeyRing.Label, Failures: []readcheck.Failure{}}
	p := a.progress("verify")
	out.Result, err = readcheck.Run(ctx, readcheck.Config{
		Store: store, Metadata: c.Metadata, Resources: resources, Ring: out.Ring, Rate: how.rate,
		Reading: a.reading(p),
		Failed: func(f readcheck.Failure) error {
			if len(out.Failures) < maxShown {
				out.Failures = append(out.Failures, f)
			}
			return list.add(f)
		},
	})
	p.clear()
	if err != nil {
		return fmt.Errorf("after %d objects: %w", out.Read+out.Failed, err)
	}
	return a.printReadable(out, how.failures)
}

func (a *app) printReadable(out verified, file string) error {
	err := a.print(out, func(w io.Writer) {
		row(w, "read", strconv.FormatInt(out.Read, 10))
		row(w, "failed", strconv.FormatInt(out.Failed, 10))
		for _, f := range out.Failures {
			row(w, plain(f.Key), dash(plain(f.KeyID)), f.Reason)
		}
	})
	if err != nil || out.Failed == 0 {
		return err
	}
	where := "all are listed above"
	switch {
	case file != "":
		where = "all are listed in " + file
	case out.Failed > maxShown:
		where = fmt.Sprintf("the first %d are listed above; --failures FILE lists all", maxShown)
	}
	return codeError{exitFailed, fmt.Sprintf("%s cannot read %d of %d objects under ring %s: %s",
		out.Server, out.Failed, out.Read+out.Failed, out.Ring, where)}
}

// failureList writes failures to a file, one JSON object a line; without a file it
// writes nothing.
type failureList struct {
	file *os.File
	w    *bufio.Writer
}

func newFailureList(path string) (*failureList, error) {
	if path == "" {
		return &failureList{}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) //nolint:gosec // G304: the administrator names it
	if err != nil {
		return nil, fmt.Errorf("--failures: %w", err)
	}
	return &failureList{f, bufio.NewWriter(f)}, nil
}

func (l *failureList) add(f readcheck.Failure) error {
	if l.file == nil {
		return nil
	}
	if err := json.NewEncoder(l.w).Encode(f); err != nil {
		return fmt.Errorf("--failures: %w", err)
	}
	return nil
}

func (l *failureList) close() error {
	if l.file == nil {
		return nil
	}
	return errors.Join(l.w.Flush(), l.file.Close())
}
