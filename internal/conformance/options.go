package conformance

import "time"

// Options tune a run. The zero value is what "kekctl verify" uses.
type Options struct {
	// CallTimeout is the deadline of each call. The default, 3 s, is
	// kube-apiserver's own.
	CallTimeout time.Duration
	// Callers is how many callers the concurrent checks use. Default 8.
	Callers int
	// RoundTrips is how many round trips each caller does. Default 25.
	RoundTrips int
	// Positions is how many byte positions of a ciphertext are damaged at most,
	// spread evenly. Default 256, which is every byte of a kekd ciphertext.
	Positions int
	// Clock measures latency. Default time.Now.
	Clock func() time.Time
}

// withDefaults replaces what is not positive by its default.
func (o Options) withDefaults() Options {
	if o.CallTimeout <= 0 {
		o.CallTimeout = 3 * time.Second
	}
	if o.Callers <= 0 {
		o.Callers = 8
	}
	if o.RoundTrips <= 0 {
		o.RoundTrips = 25
	}
	if o.Positions <= 0 {
		o.Positions = 256
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return o
}
