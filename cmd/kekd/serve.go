package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"kekd/hsm"
	"kekd/hsm/wire"
	"kekd/internal/config"
	"kekd/internal/health"
	"kekd/internal/history"
	"kekd/internal/httpapi"
	"kekd/internal/kek"
	"kekd/internal/logging"
	"kekd/internal/metrics"
	"kekd/internal/rotation"
	"kekd/internal/sdnotify"
	"kekd/internal/secret"
	"kekd/internal/setup"
	"kekd/internal/state"
	"kekd/internal/version"
	"kekd/keycache"
	"kekd/plugin"
)

// drainTime is how long requests in flight may take when kekd stops. The kubelet
// gives a pod 30 seconds.
const drainTime = 10 * time.Second

// closeTrail is how long the last signature of the audit trail may take.
const closeTrail = 5 * time.Second

// probeTimeout is when a probe has failed, at the latest: kube-apiserver would
// not have waited longer either.
const probeTimeout = 5 * time.Second

// gcPercent lets the heap grow to five times what is live before it is collected.
// A few megabytes are live, so the default collects all the time, at a tenth of
// the throughput; this costs some 20 MiB. GOGC overrides it.
const gcPercent = 400

// daemon is all parts of a running kekd.
type daemon struct {
	cfg     config.Config
	log     *zap.Logger
	metrics *metrics.Metrics
	store   *state.Dir
	token   *hsm.Token
	sealer  *keycache.Sealer
	monitor *health.Monitor
	prober  *health.Prober
	watcher *rotation.Watcher
	trail   *trail
	history *history.Recorder
	started time.Time
	traces  traces
	server  *plugin.Server
	socket  *plugin.Socket
	http    net.Listener // nil when it is turned off
	// unlock gives the state directory to the next kekd.
	unlock func() error
}

// serve runs the daemon until ctx ends.
func serve(ctx context.Context, path string, out *logging.Queue) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	if err := secret.HardenProcess(); err != nil {
		return err
	}
	loggers, err := logging.New(cfg.Log.Level, cfg.Log.Format, out)
	if err != nil {
		return err
	}
	out.OnLoss(func(lines uint64) {
		loggers.Log.Warn("log lines lost, for they were not read in time", zap.Uint64("lines", lines))
	})
	if err := preflight(cfg); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	d, err := assemble(ctx, cfg, loggers)
	if err != nil {
		return err
	}
	d.metrics.CollectLog(out.Lost)
	return d.run(ctx)
}

// preflight refuses what no waiting will mend, at once and in plain words. What
// the HSM does is not looked at: a host may come up before its HSM does.
func preflight(cfg config.Config) error {
	if info, err := os.Stat(cfg.HSM.Module); err != nil {
		return fmt.Errorf("hsm.module: %w; name the vendor's PKCS#11 library", err)
	} else if !info.Mode().IsRegular() {
		return fmt.Errorf("hsm.module: %s is no regular file; name the vendor's PKCS#11 library", cfg.HSM.Module)
	}
	pin, err := setup.PINSource(cfg.HSM).Read()
	if err != nil {
		return err
	}
	pin.Wipe()
	return nil
}

// assemble makes all parts and binds the sockets. Nothing runs yet.
func assemble(ctx context.Context, cfg config.Config, loggers logging.Loggers) (_ *daemon, err error) {
	d := &daemon{cfg: cfg, log: loggers.Log}
	d.metrics = metrics.New(version.Read(), now)
	store, err := state.Open(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	d.store = store
	// The socket comes first of all that takes time: a client that finds no
	// listener backs off for up to two minutes.
	if d.socket, err = plugin.Listen(cfg.Socket.Path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.abandon())
		}
	}()
	// The directory holds counts that are in memory too: two would count wrong.
	if d.unlock, err = store.Lock(); err != nil {
		return nil, err
	}
	if cfg.HTTP.Address != "" {
		if d.http, err = httpapi.Listen(ctx, cfg.HTTP.Address); err != nil {
			return nil, err
		}
	}
	d.started = now()
	d.history = newHistory(d.metrics, loggers.Log)
	if d.traces, err = openTraces(cfg.Tracing, loggers.Log.Named("tracing"), d.metrics); err != nil {
		return nil, err
	}
	watch := &observer{Metrics: d.metrics, history: d.history, ringLog: loggers.Log.Named("ring")}
	tokenConfig, err := setup.Token(cfg, store, loggers.Log, watch)
	if err != nil {
		return nil, err
	}
	tokenConfig.Tracer = d.traces.tracer
	d.token = hsm.New(tokenConfig)
	if d.trail, err = openTrail(cfg, d.token, store, loggers.Log, watch); err != nil {
		return nil, err
	}
	watch.trail = d.trail
	if d.sealer, err = d.newSealer(store, watch); err != nil {
		return nil, err
	}
	d.metrics.CollectSeeds(d.seeds)
	d.monitor = health.New(health.Config{
		Grace:      cfg.Health.OutageGrace,
		StaleAfter: 2*cfg.Health.ProbeInterval + 2*probeTimeout,
		Current:    d.current,
		Clock:      now,
		Logger:     loggers.Log.Named("health"),
		Observer:   watch,
	})
	d.metrics.CollectGrace(func() time.Time { return d.monitor.Report().CoastingUntil })
	d.prober = health.NewProber(health.ProberConfig{
		Interval: cfg.Health.ProbeInterval, Timeout: probeTimeout, Probe: d.probe, Monitor: d.monitor,
	})
	watch.prober = d.prober
	primary, err := setup.Primary(cfg.KeyRing)
	if err != nil {
		return nil, err
	}
	d.watcher, err = rotation.New(rotation.Config{
		Ring: cfg.KeyRing.Label, Primary: primary, Policy: cfg.KeyRing.Policy, Refresh: cfg.KeyRing.Refresh, Timeout: 2 * cfg.HSM.CallTimeout,
		Token: auditedToken{d.token, d.trail}, Sealer: d.sealer, Health: auditedHealth{d.monitor, d.trail}, Memory: store, Observer: watch,
		Clock: now, Logger: loggers.Log.Named("ring"), Audit: loggers.Audit,
		Tracer: d.traces.tracer,
	})
	if err != nil {
		return nil, err
	}
	d.server, err = plugin.New(plugin.Config{
		Sealer: d.sealer, Health: d.monitor, AllowedUIDs: cfg.Socket.AllowedUIDs,
		MaxInFlight: cfg.Socket.MaxInFlight, RequestTimeout: cfg.Socket.RequestTimeout,
		Log: loggers.Log.Named("plugin"), Observer: d.metrics, Auditor: d.trail.auditor(), Tracer: d.traces.tracer,
	})
	return d, err
}

func (d *daemon) newSealer(store *state.Dir, watch keycache.Observer) (*keycache.Sealer, error) {
	cfg := d.cfg
	mode := keycache.Seeded
	var uses keycache.Counter
	if cfg.Seeds.Mode == config.ModeDirect {
		mode = keycache.Direct
		counts, err := state.OpenUses(store)
		if err != nil {
			return nil, err
		}
		uses = counts
	}
	return keycache.New(keycache.Config{
		Ring: cfg.KeyRing.Label, Mode: mode, MaxAge: cfg.Seeds.MaxAge, MaxUses: cfg.Seeds.MaxUses,
		CacheSize: cfg.Seeds.CacheSize, LockMemory: cfg.Seeds.LockMemory, Observer: watch, DirectUses: uses,
		Clock: now, Tracer: d.traces.tracer,
		Look: func(ctx context.Context) error { return d.watcher.Look(ctx) }, // which is there once requests are
	}, auditedToken{d.token, d.trail})
}

// abandon frees what assemble has bound before it failed.
func (d *daemon) abandon() error {
	err := d.socket.Close()
	if d.unlock != nil {
		err = errors.Join(err, d.unlock())
	}
	if d.http != nil {
		err = errors.Join(err, d.http.Close())
	}
	if d.sealer != nil {
		err = errors.Join(err, d.sealer.Close())
	}
	if d.trail != nil {
		err = errors.Join(err, d.trail.close(context.Background())) // which was not started
	}
	err = errors.Join(err, d.traces.close(context.Background())) // which has no spans
	return err
}

// current is the key_id that Encrypt uses now; false while it could not.
func (d *daemon) current() (string, bool) {
	c, ok := d.sealer.Current()
	return c.KeyID, ok && !c.Expired
}

// probe proves the key in use.
func (d *daemon) probe(ctx context.Context) error {
	c, ok := d.sealer.Current()
	if !ok {
		return errNothingToProbe
	}
	return auditedToken{d.token, d.trail}.Probe(ctx, c.ID, c.Mechanism)
}

var errNothingToProbe = errors.New("no KEK is in use, so none is probed")

// run serves until ctx ends or a part fails, then stops everything in order: no
// new requests, those in flight drained, then the background work, the seeds
// wiped, the token closed, and the health endpoint last.
func (d *daemon) run(ctx context.Context) error {
	d.trail.start(d.cfg, d.store, d.log)
	httpContext, stopHTTP := context.WithCancel(context.WithoutCancel(ctx))
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHTTP()
	defer stopBackground()

	parts, failed := errgroup.WithContext(ctx)
	parts.Go(func() error { return d.server.Run(d.socket) })
	if d.http != nil {
		handler := httpapi.NewHandler(d, d.metrics.Gatherer(), d.log.Named("http"), d.pageOptions()...)
		parts.Go(func() error { return httpapi.Serve(httpContext, d.http, handler, d.log.Named("http")) })
	}
	var work errgroup.Group
	if d.http != nil {
		work.Go(func() error {
			d.history.Run(background)
			return nil
		})
	}
	work.Go(func() error {
		d.watcher.Run(background)
		return nil
	})
	work.Go(func() error {
		select {
		case <-d.watcher.First():
			d.prober.Run(background)
		case <-background.Done():
		}
		return nil
	})
	d.log.Info("kekd started", zap.Stringer("version", version.Read()), zap.String("socket", d.cfg.Socket.Path),
		zap.String("http", d.httpAddress()), zap.String("ring", d.cfg.KeyRing.Label), zap.String("mode", string(d.cfg.Seeds.Mode)))
	d.notify(sdnotify.Ready("serving; /readyz tells whether the HSM does"))

	<-failed.Done()
	d.log.Info("kekd stops")
	d.notify(sdnotify.Stopping())
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	drained := d.server.Shutdown(drain)
	if drained != nil {
		d.log.Warn("requests were cut off", zap.Error(drained))
	}
	stopBackground()
	_ = work.Wait() // its parts return no errors
	wiped := d.sealer.Close()
	// The end of the trail is signed by the token. Nobody is served meanwhile, and
	// what can't be signed now is told by the next start.
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), closeTrail)
	defer cancelLast()
	if err := d.trail.close(last); err != nil {
		d.log.Warn("the audit trail ends without a signature", zap.Error(err))
	}
	d.token.Close()
	if err := d.traces.close(ctx); err != nil {
		d.log.Warn("the last spans are lost", zap.Error(err))
	}
	stopHTTP()
	return errors.Join(parts.Wait(), wiped, d.unlock())
}

// httpAddress is where the HTTP endpoint listens, with the port that was taken
// where the configuration leaves the choice open; empty when it is turned off.
func (d *daemon) httpAddress() string {
	if d.http == nil {
		return ""
	}
	return d.http.Addr().String()
}

func (d *daemon) notify(err error) {
	if err != nil {
		d.log.Warn("systemd not notified", zap.Error(err))
	}
}

// observer is the metrics, and asks for a probe when something looks wrong or
// right again, so that the health does not lag behind by a probe's interval.
type observer struct {
	*metrics.Metrics
	// history is what the status page shows.
	history *history.Recorder
	// prober and trail are set before anything runs.
	prober *health.Prober
	trail  *trail
	// keys is what the last look at the ring found. Only the watcher's looks use it.
	keys    keyStates
	ringLog *zap.Logger
}

// HSMOperation implements hsm.Observer. Logins are put on record, for nobody asks for
// one: a worker that starts does them.
func (o *observer) HSMOperation(op, result string, elapsed time.Duration, traceID string) {
	o.Metrics.HSMOperation(op, result, elapsed, traceID)
	if op == wire.OpLogin.String() {
		o.trail.login(result, elapsed)
	}
}

// SetRing implements rotation.Observer.
func (o *observer) SetRing(r *kek.Ring) {
	o.Metrics.SetRing(r)
	o.history.SetRing(r)
	changes := o.keys.changes(r)
	logKeyChanges(o.ringLog, changes)
	o.trail.sawRing(r, changes)
}

// Breaker implements keycache.Observer.
func (o *observer) Breaker(open bool) {
	o.Metrics.Breaker(open)
	o.history.Breaker(open)
	o.prober.Kick()
}

// HSMWorkerRestart implements hsm.Observer.
func (o *observer) HSMWorkerRestart(reason string) {
	o.Metrics.HSMWorkerRestart(reason)
	o.history.HSMWorkerRestart(reason)
	o.prober.Kick()
}
