// Package conformance checks a KMS v2 plugin from the outside, as
// kube-apiserver would meet it: it speaks to the plugin's Unix socket only and
// knows nothing of what is behind. It is the engine of "kekctl verify" and
// judges any plugin, not only kekd.
//
// # What it judges by
//
// A finding is a failure where kube-apiserver 1.37 would reject the answer,
// where data could be lost or forged, or where the plugin stops serving. It is
// a warning where the contract is silent and an operator will regret it all
// the same, such as an error code that hides the cause. Limits are those that
// kube-apiserver enforces, which are a byte wider than the text of the API.
//
// # What it does to the plugin
//
// The checks encrypt random data that nobody needs and send some hundreds of
// damaged requests, so the plugin's log and error metrics will show them. kekd
// counts them apart, by the gRPC header kekd-verify that every request carries.
// The checks create, change and delete no key. They are safe against a plugin in
// production, except that a plugin which one bad request can stop will stop.
//
// # Order
//
// Checks run one after the other, the harmless first and those that might stop
// a bad plugin last, so that a plugin that dies still has a full report of what
// came before. A check whose groundwork is missing is skipped, never passed.
package conformance
