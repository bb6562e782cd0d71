package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kekd/internal/admin/nodes"
	"kekd/internal/admin/rewrap"
	"kekd/internal/cluster"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/state"
)

// rewrapFlags say how objects are re-encrypted.
type rewrapFlags struct {
	method    string
	rate      float64
	resources []string
	failures  string
}

func (f *rewrapFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.method, "method", string(rewrap.Auto), "auto, migration or update: see kekctl rewrap --help")
	flags.Float64Var(&f.rate, "rate", 20, "most updates per `second`")
	flags.StringArrayVar(&f.resources, "resource", nil, "take this `resource` too, once for each, spelled as kekctl inventory does (default: those that belong to the ring, see kekctl rewrap --help)")
	flags.StringVar(&f.failures, "failures", "", "`file` that lists every object that could not be rewritten, one JSON object a line")
}

func (f *rewrapFlags) check() error {
	switch rewrap.Method(f.method) {
	case rewrap.Auto, rewrap.Migration, rewrap.Update:
	default:
		return codeError{exitUsage, fmt.Sprintf("--method: must be auto, migration or update, got %q", f.method)}
	}
	if !(f.rate > 0) { // nor is NaN
		return codeError{exitUsage, fmt.Sprintf("--rate: must be more than 0 updates per second, got %v", f.rate)}
	}
	return nil
}

func newRewrap(a *app) *cobra.Command {
	var (
		yes     bool
		keyID   string
		wait    time.Duration
		servers []string
		how     rewrapFlags
		kube    kubeFlags
	)
	etcd := etcdFlags{kube: &kube}
	c := &cobra.Command{
		Use:   "rewrap",
		Short: "Re-encrypt the objects that are not under the primary",
		Long: `Have kube-apiserver rewrite every object that is not under the primary, without
changing what it holds. etcd tells which objects those are, before and at the end:
the command succeeds when there are none.

It takes the resources that belong to the ring: those of cluster.resources in the
configuration, else those that the EncryptionConfiguration has kekd encrypt, else
those of the last run that succeeded; and in any case those with an object under a
key of the ring, and those of --resource. If all objects of a resource have left the
ring, or nothing is under it, the command fails and says which. --resource encrypts
a resource for the first time.

Before it touches anything, it waits until every kube-apiserver encrypts under the
primary (--wait), has each of them write one object of each resource, and reads that
object from etcd. It stops if the object is not under the primary then: the server
does not have kekd as the first provider of the resource. While it runs, it reads
back what it had rewritten, and stops at the first object that got worse.

Methods:
  migration  a StorageVersionMigration for each resource, where the cluster serves
             that (Kubernetes 1.37 and later); kube-controller-manager does the work
             at its own pace. Events cannot be migrated.
  update     a patch that changes nothing for each object, at most --rate a second.
  auto       a migration where that is possible, and updates for what it leaves.

Each object rewritten is a write to etcd and an event to everybody who watches that
resource, and passes the admission webhooks: so the rate is low on purpose. At 20 a
second 100,000 objects take 83 minutes, in which the cluster notices nothing.

An object that cannot be rewritten does not stop the rest. At the end the first 20
of each kind are shown with the cause and what to do next. If there are more, the
file that has them all is named (--failures chooses it).

If a pending key takes over within the hour, the command refuses, since everything
would have to be rewritten again: run it after that, or pass --key-id.

It may be interrupted and run again: what is done stays done.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := how.check(); err != nil {
				return err
			}
			if wait < 0 {
				return codeError{exitUsage, fmt.Sprintf("--wait: must not be negative, got %v", wait)}
			}
			if _, _, err := kek.ParseKeyID(keyID); keyID != "" && err != nil {
				return codeError{exitUsage, "--key-id: " + err.Error()}
			}
			ctx := cmd.Context()
			c, err := kube.connect()
			if err != nil {
				return err
			}
			r := rewrapping{app: a, cluster: c, how: how, etcd: &etcd, yes: yes, keyID: keyID, despite: keyID != "", wait: wait}
			if r.keyID == "" {
				if r.keyID, err = a.primaryKeyID(ctx, wait); err != nil {
					return err
				}
			}
			// With --key-id no kekd needs to run here, nor be configured.
			if cfg, err := config.Load(a.configPath); err == nil {
				r.readConfig(cfg)
				if len(servers) == 0 {
					servers = cfg.Cluster.APIServers
				}
			}
			if r.servers, err = apiServers(ctx, c, servers); err != nil {
				return err
			}
			result, err := r.run(ctx)
			return a.rewrapped(result, err)
		},
	}
	addYes(c, &yes)
	c.Flags().StringVar(&keyID, "key-id", "", "the primary's `key_id`, as kekctl status shows it (default: asks the kekd of the configuration)")
	c.Flags().DurationVar(&wait, "wait", 2*time.Minute, "longest `time` to wait for kekd to have a primary, and for kube-apiserver to encrypt under it")
	c.Flags().StringArrayVar(&servers, "apiserver", nil, "`URL` of a kube-apiserver, once for each (default: those that the cluster lists)")
	how.add(c.Flags())
	kube.add(c.Flags())
	etcd.add(a, c.Flags())
	return c
}

// primaryKeyID asks the kekd of this machine, not the token: what counts is what
// kube-apiserver is told. A kekd that has no primary may be about to see a new one.
func (a *app) primaryKeyID(ctx context.Context, wait time.Duration) (string, error) {
	const remedy = "where no kekd runs, --key-id names the primary"
	cfg, err := config.Load(a.configPath)
	if err != nil {
		return "", fmt.Errorf("%w; %s", err, remedy)
	}
	if cfg.HTTP.Address != "" {
		// A key may have been created a moment ago, and kekd not have seen it yet. A kekd
		// that does not look now answers by what it knows, which the final inventory checks.
		_, _, _, _ = nodes.Local(cfg.HTTP.Address).Ask(ctx)
	}
	var keyID string
	note := func(text string) { a.note("%s", text) }
	missing, err := rewrap.Wait(ctx, time.Now().Add(wait), kekdPause, "kekd to have a primary", note, func() (string, error) {
		answer, err := askSocket(ctx, cfg.Socket.Path)
		switch {
		case err == nil:
			keyID = answer.GetKeyId()
			return "", nil
		case hasNoPrimary(err, cfg.Socket.Path):
			return oneLine(err), nil
		}
		return "", fmt.Errorf("ask kekd for the primary: %s; %s", oneLine(err), remedy)
	})
	if missing != "" {
		err = fmt.Errorf("ask kekd for the primary: %s; %s", missing, remedy)
	}
	return keyID, err
}

// kekdPause is the pause between two questions to this machine's kekd.
const kekdPause = time.Second

// hasNoPrimary tells a kekd that answers, and has no key to encrypt under, from one
// that is not there.
func hasNoPrimary(err error, socket string) bool {
	switch status.Code(err) {
	case codes.FailedPrecondition:
		return true
	case codes.Unavailable: // gRPC's own word for a socket where nobody listens, too
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	return false
}

// rewrapping is one re-encryption.
type rewrapping struct {
	*app
	cluster *cluster.Cluster
	servers []*cluster.APIServer
	how     rewrapFlags
	etcd    *etcdFlags
	yes     bool
	// keyID is the primary's. despite: even if another key takes over soon.
	keyID   string
	despite bool
	// wait is how long kube-apiserver may take to encrypt under it.
	wait time.Duration

	// configured, encrypted, memory, overflow and succession are as in rewrap.Config.
	configured []string
	encrypted  func(context.Context) ([]rewrap.Encrypted, error)
	memory     rewrap.Memory
	overflow   string
	succession func(context.Context) (rewrap.Succession, error)
}

// failuresName is the file of what could not be rewritten, in the state directory or
// else where kekctl runs.
const failuresName = "rewrap-failures.jsonl"

// readConfig takes what this node's configuration tells.
func (r *rewrapping) readConfig(cfg config.Config) {
	r.encrypted = func(context.Context) ([]rewrap.Encrypted, error) { return encryptedHere(cfg.Socket.Path) }
	r.configured = cfg.Cluster.Resources
	if cfg.HTTP.Address != "" {
		r.succession = func(ctx context.Context) (rewrap.Succession, error) { return succession(ctx, cfg) }
	}
	if _, err := os.Stat(cfg.StateDir); err != nil {
		return // no kekd has run here
	}
	store, err := state.Open(cfg.StateDir)
	if err != nil {
		r.note("cannot remember which resources belong to the ring: %s", oneLine(err))
		return
	}
	r.memory, r.overflow = store, filepath.Join(cfg.StateDir, failuresName)
}

// succession asks this node's kekd for the primary and for the key that follows it.
func succession(ctx context.Context, cfg config.Config) (rewrap.Succession, error) {
	var s rewrap.Succession
	answer, _, _, err := nodes.Local(cfg.HTTP.Address).Ask(ctx) // a key may have been created a moment ago
	if err != nil || answer.KeyRing == nil {
		return s, err
	}
	for _, k := range answer.KeyRing.Keys {
		switch {
		case k.State == kek.Primary.String():
			s.Primary = k.KeyID
		case k.State == kek.Pending.String() && (s.Pending == "" || k.Activation.Before(s.Activation)):
			s.Pending, s.Activation = k.KeyID, k.Activation
		}
	}
	return s, nil
}

// config wires the re-encryption to a cluster. The store is the caller's to close.
func (r *rewrapping) config(store rewrap.Store, show *display) rewrap.Config {
	cfg := rewrap.Config{
		Store: store, Kube: r.cluster.Kube, Metadata: r.cluster.Metadata, Ready: r.cluster.Ready,
		KeyID: r.keyID, Despite: r.despite, Wait: r.wait,
		Resources: r.how.resources, Configured: r.configured, Encrypted: r.encrypted, Memory: r.memory, Succession: r.succession,
		Method: rewrap.Method(r.how.method), Rate: r.how.rate,
		Failures: r.how.failures, Overflow: cmp.Or(r.overflow, failuresName),
		Begin: func(ctx context.Context, p *rewrap.Plan) error {
			show.clear()
			return r.begin(ctx, p)
		},
		Note:     show.note,
		Progress: show.progress,
	}
	for _, s := range r.servers {
		cfg.APIServers = append(cfg.APIServers, s)
	}
	return cfg
}

// run re-encrypts what is not under the primary. What is left of it is not an error.
func (r *rewrapping) run(ctx context.Context) (rewrap.Result, error) {
	store, err := r.etcd.open(ctx)
	if err != nil {
		return rewrap.Result{}, err
	}
	defer store.Close()
	show := display{app: r.app}
	defer show.clear()
	return rewrap.Run(ctx, r.config(store, &show))
}

// begin shows what is going to be done and asks.
func (r *rewrapping) begin(ctx context.Context, p *rewrap.Plan) error {
	for _, resource := range p.Resources {
		r.note("%s", planLine(resource))
	}
	if len(p.Absent) > 0 {
		r.note("without any object: %s", plain(strings.Join(p.Absent, ", ")))
	}
	if len(p.Untouched) > 0 {
		r.note("not touched, since nothing of it is under ring keys: %s", plain(strings.Join(p.Untouched, ", ")))
	}
	if p.Stale == 0 {
		return nil
	}
	r.note("%d objects will be rewritten under %s.", p.Stale, r.keyID)
	return r.confirm(ctx, r.yes)
}

func planLine(r rewrap.Resource) string {
	how := "by " + string(r.Method)
	if r.Problem != "" {
		how = "left alone: " + r.Problem
	}
	if r.Stale == 0 {
		return fmt.Sprintf("%s: all %d under the primary", plain(r.Name), r.Objects)
	}
	var stand []string
	for _, c := range r.Counts {
		under := []string{strconv.FormatInt(c.Objects, 10), string(c.Class)}
		for _, name := range []string{c.Provider, c.KeyID} {
			if name != "" {
				under = append(under, plain(name))
			}
		}
		stand = append(stand, strings.Join(under, " "))
	}
	return fmt.Sprintf("%s: %d of %d, %s (%s)", plain(r.Name), r.Stale, r.Objects, how, strings.Join(stand, ", "))
}

// rewrapped prints how a re-encryption went.
func (a *app) rewrapped(result rewrap.Result, failure error) error {
	if failure == nil || result.Found > 0 || len(result.Written) > 0 {
		if err := a.print(result, func(w io.Writer) { rewrapTable(w, result) }); err != nil {
			return errors.Join(failure, err)
		}
	}
	a.noteLeft(result)
	switch {
	case failure != nil:
		return failure
	case result.Left > 0:
		return codeError{exitFailed, fmt.Sprintf("%d objects are not under the primary %s", result.Left, result.KeyID)}
	}
	next := ""
	if result.Next != "" {
		next = fmt.Sprintf("; %s takes over at %s", result.Next, result.NextAt.Format(time.RFC3339))
	}
	a.note("all objects are under %s%s", result.KeyID, next)
	return nil
}

func rewrapTable(w io.Writer, result rewrap.Result) {
	row(w, "key_id", result.KeyID)
	row(w, "found", strconv.FormatInt(result.Found, 10))
	row(w, "migrated", dash(strings.Join(result.Migrated, ", ")))
	row(w, "updated", strconv.FormatInt(result.Updated, 10))
	row(w, "left", strconv.FormatInt(result.Left, 10))
	for _, kind := range rewrap.Kinds {
		if n := result.Kinds[kind]; n > 0 {
			row(w, "left: "+string(kind), strconv.FormatInt(n, 10))
		}
	}
	for _, o := range result.Shown {
		row(w, string(o.Kind), plain(o.Key), o.Reason)
	}
}

// noteLeft says what to do about what could not be rewritten, and where all of it is
// listed.
func (a *app) noteLeft(result rewrap.Result) {
	for _, kind := range rewrap.Kinds {
		if n := result.Kinds[kind]; n > 0 {
			a.note("%d %s: %s", n, kind, kind.Remedy())
		}
	}
	if result.List != "" && len(result.Kinds) > 0 {
		a.note("all of them are listed in %s", result.List)
	}
}

// display shows notes, and how far something is: in a line of its own on a
// terminal, else by a note now and then. It is for one goroutine.
type display struct {
	*app
	what         string
	line         *progress // nil without a terminal
	begun, noted time.Time
	done         int64
}

// displayPause is the time between two notes about progress.
const displayPause = 10 * time.Second

func (d *display) progress(what string, done, total int64) {
	now := time.Now()
	if what != d.what || done < d.done {
		d.clear()
		d.what, d.line, d.begun, d.noted = what, d.app.progress(what), now, now
	}
	d.done = done
	d.line.show(done, total)
	if d.line == nil && now.Sub(d.noted) >= displayPause {
		d.noted = now
		d.app.note("%s", progressLine(what, done, total, now.Sub(d.begun)))
	}
}

func (d *display) note(text string) {
	d.clear()
	d.app.note("%s", text)
}

func (d *display) clear() { d.line.clear() }
