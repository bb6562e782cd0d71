// Package tracing says what kekd's traces are made of: the spans, by name, their
// attributes, and how they hang together. docs/tracing.md is the catalogue; a test
// holds it against this package. What exports them is package otlp, below, which
// kekd alone links.
//
// Whoever makes spans is given a *Tracer; nil is tracing turned off, and costs a
// comparison. Nothing here uses OpenTelemetry's global state. A span holds names,
// counts, classes of errors, the client's uid and key_ids; never the text of an
// error, nor anything that was or is to be encrypted.
package tracing
