package health

import (
	"context"
	"math/rand/v2"
	"time"
)

// kickGap is the shortest time between the starts of two probes, however often
// Kick is called.
const kickGap = time.Second

// ProberConfig is what a Prober needs. All fields are required.
type ProberConfig struct {
	// Interval is the time between the end of a probe and the start of the next,
	// give or take a tenth, so that the nodes of a cluster do not probe a network
	// HSM in step.
	Interval time.Duration
	// Timeout is a probe's deadline.
	Timeout time.Duration
	// Probe proves that the HSM wraps and unwraps with the primary KEK. It must
	// return soon after ctx ends.
	Probe func(ctx context.Context) error
	// Monitor hears of every result.
	Monitor *Monitor
}

// Prober probes the HSM in the background.
type Prober struct {
	cfg ProberConfig
	// kick holds at most one token: "probe soon".
	kick chan struct{}
}

// NewProber returns a Prober. It does nothing before Run.
func NewProber(cfg ProberConfig) *Prober {
	return &Prober{cfg: cfg, kick: make(chan struct{}, 1)}
}

// Kick asks for a probe soon, at most one a second: after a request that failed,
// or a worker that came back. It never blocks.
func (p *Prober) Kick() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Run probes at once and then on and on until ctx ends. It must be called once.
func (p *Prober) Run(ctx context.Context) {
	for ctx.Err() == nil {
		next := time.Now().Add(kickGap)
		p.probe(ctx)
		p.wait(ctx, next)
	}
}

// probe runs one probe and reports its result, unless kekd is stopping: that is
// no failure of the HSM.
func (p *Prober) probe(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	err := p.cfg.Probe(limited)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		p.cfg.Monitor.Failed(err)
	default:
		p.cfg.Monitor.Succeeded()
	}
}

// wait returns when the next probe is due: after the interval, or after a kick
// but not before earliest.
func (p *Prober) wait(ctx context.Context, earliest time.Time) {
	timer := time.NewTimer(jitter(p.cfg.Interval))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
		return
	case <-p.kick:
	}
	timer.Reset(time.Until(earliest))
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// jitter returns d, give or take a tenth.
func jitter(d time.Duration) time.Duration {
	tenth := d / 10
	return d - tenth + rand.N(2*tenth+1) //nolint:gosec // G404: spreads load, protects nothing
}
