// Command kekctl is the administrator's tool beside kekd: it creates, rotates and
// retires KEKs, re-encrypts what is under old ones, finds out what is wrong, and
// puts any KMS v2 plugin through its paces.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kekd/hsm"
	"kekd/hsm/worker"
	"kekd/internal/secret"
)

// Exit codes.
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitUnhealthy = 3
)

func main() {
	if worker.Is(os.Args) {
		os.Exit(worker.Main(worker.OpenModule))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// codeError is an error with an exit code of its own. Its report is on stdout
// already if it has no text.
type codeError struct {
	code int
	text string
}

// Error implements error.
func (e codeError) Error() string { return e.text }

// run is main with everything passed in.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if err := secret.HardenProcess(); err != nil {
		_, _ = fmt.Fprintln(stderr, "kekctl: error:", err)
		return exitFailed
	}
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if coded, ok := errors.AsType[codeError](err); ok {
		if coded.text != "" {
			_, _ = fmt.Fprintln(stderr, "kekctl: error:", visible(coded.text))
		}
		return coded.code
	}
	_, _ = fmt.Fprintln(stderr, "kekctl: error:", visible(err.Error()))
	if !a.began {
		// The command line was not understood: nothing has run yet.
		_, _ = fmt.Fprintln(stderr, "kekctl: hint: kekctl help shows the commands and their flags")
		return exitUsage
	}
	if hint := hintOf(err); hint != "" {
		_, _ = fmt.Fprintln(stderr, "kekctl: hint:", visible(hint))
	}
	return exitFailed
}

// hintOf is the remedy that an error carries, empty if none.
func hintOf(err error) string {
	if hint := hsm.Hint(err); hint != "" {
		return hint
	}
	if e, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return e.Hint()
	}
	return ""
}

// newRoot makes the command tree.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "kekctl",
		Short:         "Administer kekd and its KEKs",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if a.output != "table" && a.output != "json" {
				return fmt.Errorf("--output: must be table or json, got %q", a.output)
			}
			a.began = true
			a.command = cmd.CommandPath()
			return nil
		},
	}
	root.PersistentFlags().StringVarP(&a.configPath, "config", "c", "/etc/kekd/config.yaml", "kekd's configuration `file`")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "output `format`: table or json")
	root.PersistentFlags().BoolVarP(&a.verbose, "verbose", "v", false, "log to stderr what is done with the HSM")
	key := group("key", "Create, list and retire KEKs", newKeyList(a), newKeyCreate(a), newKeyRotate(a), newKeyCancel(a),
		newKeyDisable(a), newKeyEnable(a), newKeyDestroy(a), newKeyRestore(a), newKeyPurge(a),
		newKeyImport(a), newKeyExport(a))
	addAdminPIN(a, key.PersistentFlags())
	pin := group("pin", "Deal with a PIN that the token refused", newPINUnlatch(a))
	cfg := group("config", "Work on the configuration", newConfigCheck(a))
	apiserver := group("apiserver", "Look at how the kube-apiserver of this node encrypts", newAPIServerCheck(a))
	root.AddCommand(key, pin, cfg, apiserver, newAudit(a), newStatus(a), newDoctor(a), newInventory(a), newRotate(a), newRewrap(a), newRevoke(a), newVerify(a), newVersion(a))
	return root
}

// addAdminPIN adds the flag of what may change something on the token.
func addAdminPIN(a *app, flags *pflag.FlagSet) {
	flags.StringVar(&a.adminPIN, "admin-pin-file", "", "`file` with the PIN to change the token with, if kekd's own role may only use keys")
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Nobody asked for help, so it is no data.
			_, _ = fmt.Fprint(cmd.ErrOrStderr(), cmd.UsageString())
			return codeError{code: exitUsage}
		},
	}
	c.AddCommand(commands...)
	return c
}
