// Package metrics is kekd's own Prometheus registry and all that is in it.
//
// One Metrics value satisfies the Observer interfaces of plugin, keycache, hsm
// and health, none of which knows Prometheus. docs/metrics.md is the catalogue;
// a test holds it against the registry.
//
// Times are in seconds, sizes in bytes. Label sets are closed: a value that
// is not on its list is counted as "other", so that no error text and nothing a
// client chooses becomes a time series. A key_id appears as its SHA-256, spelled
// as kube-apiserver's own metrics spell it, so that the two can be joined; their
// number is bounded by the key ring.
package metrics
