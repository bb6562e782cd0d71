// Package history remembers the last hour of a kekd, in its own memory: some numbers
// every ten seconds, and what has changed, with its time and reason. The status page
// shows it to whoever has no Prometheus. It is gone when kekd ends.
//
// The numbers are read from the registry of the metrics, as a scrape does: a
// request pays nothing for them, and the page can't disagree with /metrics. Counters
// and buckets of histograms are kept as they stand, so that the rate and the
// quantiles of any span are the difference of two samples.
//
// What has changed is told by the observers of health, rotation, hsm, keycache and
// audit, which a Recorder implements in part. The same change again and again, such
// as a worker that does not come up, is kept once, with a count.
//
// The memory is bounded, whatever happens: 361 samples of 800 bytes (290 kB), and
// 50 changes of each of four groups with at most 300 bytes of text (80 kB).
package history
