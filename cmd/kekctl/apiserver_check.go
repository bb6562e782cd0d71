package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kekd/internal/admin/rewrap"
	"kekd/internal/config"
	"kekd/internal/encryptionconfig"
)

func newAPIServerCheck(a *app) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "check",
		Short: "Check which provider encrypts each resource on this node",
		Long: `Read the EncryptionConfiguration that the kube-apiserver of this node uses, and
report for each resource the providers in their order: whether this kekd encrypts
it, whether identity or another key does, and what kube-apiserver would refuse.
It reads files only. kube-apiserver takes a changed file up within a minute, or at
its next start.

kekctl finds the file on nodes that kubeadm, k3s or RKE2 set up. Run it on every
control-plane node: each has a file of its own.

Exits with 1 if a resource fails, or if there is no such file.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.apiserverCheck(file) },
	}
	addEncryptionConfig(c.Flags(), &file)
	return c
}

// addEncryptionConfig adds the flag that names the file where it is not found.
func addEncryptionConfig(flags *pflag.FlagSet, file *string) {
	flags.StringVar(file, "encryption-config", "", "kube-apiserver's EncryptionConfiguration `file` on this node (default: the one that kubeadm's, k3s's or RKE2's files name)")
}

// apiserverReport is what kekctl apiserver check prints as JSON.
type apiserverReport struct {
	encryptionconfig.Source

	Socket    string                      `json:"socket"`
	Verdict   encryptionconfig.Verdict    `json:"verdict"`
	Problems  []encryptionconfig.Problem  `json:"problems,omitempty"`
	Resources []encryptionconfig.Resource `json:"resources"`
}

func (a *app) apiserverCheck(file string) error {
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return err
	}
	found, err := encryptionconfig.Find("", file)
	switch {
	case errors.Is(err, encryptionconfig.ErrNoAPIServer):
		return fmt.Errorf("%w; run this on a control-plane node of kubeadm, k3s or RKE2, or name the file with --encryption-config", err)
	case errors.Is(err, encryptionconfig.ErrNoFile):
		return fmt.Errorf("%w; set it as manifests/kube-apiserver/kubeadm.yaml does, or name the file with --encryption-config", err)
	case err != nil:
		return err
	}
	report := apiserverReport{
		Source: found.Source, Socket: cfg.Socket.Path,
		Problems: found.FileProblems(), Resources: found.Resources(cfg.Socket.Path),
	}
	report.Verdict = found.Verdict(cfg.Socket.Path)
	if err := a.print(report, func(w io.Writer) { apiserverTable(w, report) }); err != nil {
		return err
	}
	if report.Verdict == encryptionconfig.Fail {
		return codeError{code: exitFailed}
	}
	return nil
}

func apiserverTable(w io.Writer, r apiserverReport) {
	row(w, string(encryptionconfig.OK), "file", r.File+" ("+r.How()+")")
	problems := func(name string, all []encryptionconfig.Problem) {
		for _, p := range all {
			row(w, string(p.Verdict), name, p.Text)
			row(w, "", "", "-> "+p.Remedy)
		}
	}
	problems("file", r.Problems)
	for _, resource := range r.Resources {
		row(w, string(resource.Verdict), resource.Name, strings.Join(resource.Providers, ", "))
		problems("", resource.Problems)
	}
}

// encryptedHere are the resources that the kube-apiserver of this node encrypts with
// the kekd of a socket; none where this node has no kube-apiserver, or it does not
// encrypt.
func encryptedHere(socket string) ([]rewrap.Encrypted, error) {
	found, err := encryptionconfig.Find("", "")
	switch {
	case errors.Is(err, encryptionconfig.ErrNoAPIServer), errors.Is(err, encryptionconfig.ErrNoFile):
		return nil, nil
	case err != nil:
		return nil, err
	}
	resources, _ := found.ResourcesOf(socket)
	return []rewrap.Encrypted{{Path: found.Source.File, Resources: resources}}, nil
}
