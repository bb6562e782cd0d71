package conformance

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// The times that the Kubernetes documentation asks of a plugin.
const (
	encryptBudget = 100 * time.Millisecond
	decryptBudget = 10 * time.Millisecond
)

var latency = check{
	name:   "latency",
	needs:  needSample,
	remedy: "answer Encrypt within 100 ms and Decrypt within 10 ms, for example by caching what the key service unwrapped; a LIST decrypts one object after the other",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		var encrypts, decrypts []time.Duration
		for range r.opts.RoundTrips {
			start := r.opts.Clock()
			s, err := r.encryptNew(ctx, seedSize)
			if err != nil {
				return Fail, "Encrypt: " + describe(err)
			}
			middle := r.opts.Clock()
			if _, err := r.decrypt(ctx, s.sealed); err != nil {
				return Fail, "Decrypt: " + describe(err)
			}
			encrypts = append(encrypts, middle.Sub(start))
			decrypts = append(decrypts, r.opts.Clock().Sub(middle))
		}
		var f findings
		encrypt, decrypt := median(encrypts), median(decrypts)
		if encrypt > encryptBudget {
			f.warnf("the median Encrypt takes %v, more than %v", encrypt, encryptBudget)
		}
		if decrypt > decryptBudget {
			f.warnf("the median Decrypt takes %v, more than %v", decrypt, decryptBudget)
		}
		return f.result(fmt.Sprintf("the median Encrypt takes %v, the median Decrypt %v", encrypt, decrypt))
	},
}

// median returns the upper middle of d, which must not be empty, and sorts it.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

var statusUnderLoad = check{
	name:   "status-under-load",
	needs:  needSample,
	remedy: "answer Status from memory and keep it out of any queue or lock that Encrypt and Decrypt wait in: kube-apiserver's readiness waits for it",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		load, stop := context.WithCancel(ctx)
		var callers sync.WaitGroup
		defer callers.Wait()
		defer stop()
		// Each caller reports its first Encrypt, failed or not, so that no Status
		// is measured before there is a load. What fails is judged elsewhere.
		started := make(chan struct{}, r.opts.Callers)
		for range r.opts.Callers {
			callers.Go(func() {
				for first := true; load.Err() == nil; first = false {
					_, _ = r.encryptNew(load, seedSize)
					if first {
						started <- struct{}{}
					}
				}
			})
		}
		for range r.opts.Callers {
			select {
			case <-started:
			case <-ctx.Done():
				return Skip, ""
			}
		}
		var slowest time.Duration
		for range statusCalls {
			start := r.opts.Clock()
			if _, err := r.status(ctx); err != nil {
				return Fail, describe(err)
			}
			slowest = max(slowest, r.opts.Clock().Sub(start))
		}
		if slowest > statusBudget {
			return Warn, fmt.Sprintf("the slowest of %d Status calls takes %v, more than %v, while %d callers encrypt", statusCalls, slowest, statusBudget, r.opts.Callers)
		}
		return OK, fmt.Sprintf("the slowest of %d Status calls takes %v while %d callers encrypt", statusCalls, slowest, r.opts.Callers)
	},
}

var concurrentRoundTrips = check{
	name:   "concurrent-round-trips",
	needs:  needSample,
	remedy: "make the service safe for concurrent calls and let at least a few dozen run at once: kube-apiserver decrypts ten watch events at a time and has no queue of its own",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		var f findings
		r.concurrently(func() {
			for range r.opts.RoundTrips {
				m, err := r.matchKeyID(ctx)
				if err != nil {
					f.failf("%s", describe(err))
					return
				}
				if m.disagrees() && m.before == m.after {
					f.failf("Status says %s, Encrypt says %s", quote(m.before), quote(m.sealed.GetKeyId()))
				}
				if problem := r.comesBack(ctx, m.sample); problem != "" {
					f.failf("%s", problem)
				}
			}
		})
		return f.result(fmt.Sprintf("%d callers, %d round trips each", r.opts.Callers, r.opts.RoundTrips))
	},
}

var abandonedCalls = check{
	name:   "abandoned-calls",
	needs:  needSample,
	remedy: "end the work of a call when its context ends and give back what it holds: kube-apiserver gives up after its timeout and asks again",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		const each = 8
		// Half of the calls end by their deadline, which travels to the plugin,
		// and half by being cancelled, after 1 to 128 ms: some are answered before,
		// some never reach the plugin, and some end halfway.
		r.concurrently(func() {
			for i := range each {
				call, cancel := abandonedContext(ctx, time.Millisecond<<i, i%2 == 1)
				_, _ = r.encryptNew(call, seedSize)
				_, _ = r.decrypt(call, r.sample.sealed)
				cancel()
			}
		})
		var f findings
		r.concurrently(func() {
			s, err := r.encryptNew(ctx, seedSize)
			if err != nil {
				f.failf("Encrypt: %s", describe(err))
				return
			}
			if problem := r.comesBack(ctx, s); problem != "" {
				f.failf("%s", problem)
			}
		})
		return f.result(fmt.Sprintf("%d callers are served after %d abandoned calls", r.opts.Callers, 2*each*r.opts.Callers))
	},
}

// abandonedContext ends after d at the latest.
func abandonedContext(ctx context.Context, d time.Duration, byDeadline bool) (context.Context, context.CancelFunc) {
	if byDeadline {
		return context.WithTimeout(ctx, d)
	}
	ctx, cancel := context.WithCancel(ctx)
	time.AfterFunc(d, cancel)
	return ctx, cancel
}

var healthyAtEnd = check{
	name:   "healthy-at-end",
	needs:  needSample,
	remedy: "let no request change the health of the service: a damaged object says nothing about the key, and one bad caller must not stop the others",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		resp, err := r.status(ctx)
		if err != nil {
			return Fail, "Status: " + describe(err)
		}
		var f findings
		if h := resp.GetHealthz(); h != "ok" {
			f.failf("healthz is %s", quote(h))
		}
		if problem := r.comesBack(ctx, r.sample); problem != "" {
			f.failf("the first ciphertext of this run: %s", problem)
		}
		if _, err := r.encryptNew(ctx, seedSize); err != nil {
			f.failf("Encrypt: %s", describe(err))
		}
		if id := resp.GetKeyId(); id != r.first.GetKeyId() {
			f.warnf("the key_id changed during this run from %s to %s; run this again if there was a rotation", quote(r.first.GetKeyId()), quote(id))
		}
		return f.result("Status, Encrypt and Decrypt work as at the start")
	},
}

// concurrently runs f once for each caller and waits for all.
func (r *runner) concurrently(f func()) {
	var callers sync.WaitGroup
	for range r.opts.Callers {
		callers.Go(f)
	}
	callers.Wait()
}

// comesBack decrypts a sample and returns what is wrong, or "".
func (r *runner) comesBack(ctx context.Context, s *sample) string {
	plaintext, err := r.decrypt(ctx, s.sealed)
	switch {
	case err != nil:
		return "Decrypt: " + describe(err)
	case !bytes.Equal(plaintext, s.plaintext):
		return "Decrypt returned something else than was encrypted"
	}
	return ""
}
