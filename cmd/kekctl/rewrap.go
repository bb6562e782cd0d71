package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kekd/internal/cluster"
	"kekd/internal/config"
	"kekd/internal/kek"
	"kekd/internal/rewrap"
)

// rewrapFlags say how objects are re-encrypted.
type rewrapFlags struct {
	method    string
	rate      float64
	resources []string
}

func (f *rewrapFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.method, "method", string(rewrap.Auto), "auto, migration or update: see kekctl rewrap --help")
	flags.Float64Var(&f.rate, "rate", 20, "most updates per `second`")
	flags.StringArrayVar(&f.resources, "resource", nil, "take this `resource` too, once for each, spelled as kekctl inventory does (default: those with an object under a key of the ring)")
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
		Long: `Have kube-apiserver write every object anew that is not under the primary, without
changing what it holds. etcd tells which objects those are, before and at the end:
the command succeeds when there are none.

It takes the resources that have an object under a key of the ring already, and
those of --resource. While a kube-apiserver encrypts under another key it does not
begin: kekd sees a new primary within keyRing.refresh, and kube-apiserver takes it up
within about a minute. --wait says how long to wait for that.

Methods:
  migration  a StorageVersionMigration for each resource, where the cluster serves
             that (Kubernetes 1.37 and later); kube-controller-manager does the work
             at its own pace. Events cannot be migrated.
  update     a patch that changes nothing for each object, at most --rate a second.
  auto       a migration where that is possible, and updates for what it leaves.

Each object written anew is a write to etcd and an event to everybody who watches
that resource, and passes the admission webhooks: so the rate is low on purpose. At
20 a second 100,000 objects take 83 minutes, in which the cluster notices nothing.

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
			r := rewrapping{app: a, cluster: c, how: how, etcd: &etcd, yes: yes, keyID: keyID, wait: wait}
			if r.keyID == "" {
				if r.keyID, err = a.primaryKeyID(ctx, wait); err != nil {
					return err
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
	etcd.add(c.Flags())
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
	var keyID string
	missing, err := a.waitFor(ctx, time.Now().Add(wait), kekdPause, "kekd to have a primary", func() (string, error) {
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
	// keyID is the primary's.
	keyID string
	// wait is how long kube-apiserver may take to encrypt under it.
	wait time.Duration
}

// run re-encrypts what is not under the primary. What is left of it is no error.
func (r *rewrapping) run(ctx context.Context) (rewrap.Result, error) {
	ring, primary, err := kek.ParseKeyID(r.keyID)
	if err != nil {
		return rewrap.Result{}, err
	}
	store, err := r.etcd.open(ctx)
	if err != nil {
		return rewrap.Result{}, err
	}
	defer store.Close()
	show := display{app: r.app}
	defer show.clear()
	return rewrap.Run(ctx, rewrap.Config{
		Store: store, Kube: r.cluster.Kube, Metadata: r.cluster.Metadata,
		Ring: ring, Primary: primary,
		Resources: r.how.resources, Method: rewrap.Method(r.how.method), Rate: r.how.rate,
		Begin: func(ctx context.Context, p *rewrap.Plan) error {
			show.clear()
			return r.begin(ctx, p)
		},
		Note:     show.note,
		Progress: show.progress,
	})
}

// begin shows what is going to be done and asks.
func (r *rewrapping) begin(ctx context.Context, p *rewrap.Plan) error {
	for _, resource := range p.Resources {
		r.note("%s", planLine(resource))
	}
	if len(p.Untouched) > 0 {
		r.note("not touched, since nothing of it is under ring keys: %s", plain(strings.Join(p.Untouched, ", ")))
	}
	if err := r.awaitServers(ctx, p.Providers); err != nil {
		return err
	}
	if p.Stale == 0 {
		return nil
	}
	r.note("%d objects will be written anew, to stand under %s.", p.Stale, r.keyID)
	return r.confirm(ctx, r.yes)
}

// awaitServers waits until every API server encrypts under the primary. Written anew
// before, objects would stand under the key that is to go.
func (r *rewrapping) awaitServers(ctx context.Context, providers []string) error {
	deadline := time.Now().Add(r.wait)
	for _, s := range r.servers {
		missing, err := r.waitFor(ctx, deadline, serversPause, s.URL+" to encrypt under "+r.keyID, func() (string, error) {
			use, err := s.KeyInUse(ctx)
			if err != nil {
				return "", err
			}
			return use.Lacks(r.keyID, providers...), nil
		})
		if missing != "" {
			err = codeError{exitFailed, fmt.Sprintf("%s does not encrypt under %s: %s; wait longer (--wait), or look why it does not ask kekd", s.URL, r.keyID, missing)}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// waitFor looks again and again until nothing is missing, look fails or the deadline is
// there, and notes what is missing when that is another thing than before. It returns
// what is missing at the deadline, or an error.
func (a *app) waitFor(ctx context.Context, deadline time.Time, between time.Duration, what string, look func() (missing string, err error)) (string, error) {
	var told string
	for {
		missing, err := look()
		if err != nil || missing == "" || time.Until(deadline) <= 0 {
			return missing, err
		}
		if missing != told {
			told = missing
			a.note("waiting for %s: %s", what, missing)
		}
		if err := pause(ctx, min(between, time.Until(deadline))); err != nil {
			return "", err
		}
	}
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
	if failure != nil {
		return failure
	}
	if err := a.print(result, func(w io.Writer) {
		row(w, "found", strconv.FormatInt(result.Found, 10))
		row(w, "migrated", dash(strings.Join(result.Migrated, ", ")))
		row(w, "updated", strconv.FormatInt(result.Updated, 10))
		row(w, "left", strconv.FormatInt(result.Left, 10))
		for _, o := range result.Objects {
			row(w, plain(o.Key), o.Reason)
		}
	}); err != nil {
		return err
	}
	if result.Left > 0 {
		return codeError{exitFailed, fmt.Sprintf("%d objects are not under the primary", result.Left)}
	}
	return nil
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
