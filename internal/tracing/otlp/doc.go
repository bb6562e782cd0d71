// Package otlp exports spans to an OpenTelemetry Collector, or whatever else takes
// OTLP by gRPC. kekd alone links it.
//
// No request ever waits for it: a bounded number of spans waits in memory, more are
// dropped, and what a collector does not take in time is given up. Both are counted.
// Nothing here touches OpenTelemetry's global state. Of its environment variables
// OTEL_RESOURCE_ATTRIBUTES counts, and no other: the rest is configuration, and a token
// for the collector stands in a file, since others can see an environment.
package otlp
