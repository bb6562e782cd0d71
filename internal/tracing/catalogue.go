package tracing

import (
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// The spans, but for those of requests, which are named after their gRPC method, and
// those that HSM names.
const (
	// SeedFetch is a Decrypt that needs a seed which is not in the cache, for as long
	// as it waits for it.
	SeedFetch = "seed.fetch"
	// SeedUnwrap is the flight that brings the seed, for all who wait. It goes on when
	// they leave.
	SeedUnwrap = "seed.unwrap"
	// RingAwait is a Decrypt under a key that the ring lacks, while the ring is looked
	// at once more.
	RingAwait = "ring.await"

	// WorkerAwait is an operation that waits for a worker process to start.
	WorkerAwait = "hsm.worker.await"
	// SessionAwait is a call that waits for a free session.
	SessionAwait = "hsm.session.await"
	// Call is a call from its being sent to the worker until its answer, or until
	// nobody waits for it any more.
	Call = "hsm.call"
	// WorkerStart brings up a worker process: load, login and proof.
	WorkerStart = "hsm.worker.start"

	// RingLook is a look at the key ring on the token.
	RingLook = "ring.look"
	// RingProve tries a pending key.
	RingProve = "ring.prove"
	// RingSwitch makes a key the one that encrypts.
	RingSwitch = "ring.switch"
	// SeedRenew replaces the seed of the key in use.
	SeedRenew = "seed.renew"
)

// HSM names the span of an operation of the HSM, as the caller saw it.
func HSM(operation string) string { return "hsm." + operation }

// Rare reports whether a span with this name is recorded whatever the sample ratio
// is, where it begins a trace: what happens seldom, and matters when it does.
func Rare(name string) bool {
	switch name {
	case WorkerStart, RingProve, RingSwitch, SeedRenew:
		return true
	}
	return false
}

// The attributes.
const (
	// UID is what the client calls the request: any text of at most 64 bytes.
	UID = attribute.Key("kms.uid")
	// KeyID is the key_id of the request or, of an Encrypt, of the response.
	KeyID = attribute.Key("kms.key_id")
	// Source is where a request was served from: seed, cache (both are in memory) or
	// hsm.
	Source = attribute.Key("kekd.source")
	// Result is "ok" or the class of the error.
	Result = attribute.Key("kekd.result")
	// Flight of a seed.fetch is "own", if it is the one that asked the HSM, or
	// "shared", if it waited for another's, to which it then has a link.
	Flight = attribute.Key("kekd.flight")
	// Operation is what the worker was asked to do.
	Operation = attribute.Key("kekd.hsm.operation")
	// Attempts is on how many workers an operation was tried.
	Attempts = attribute.Key("kekd.hsm.attempts")
	// Function is the PKCS#11 function that failed, and ReturnValue what it said.
	Function    = attribute.Key("kekd.pkcs11.function")
	ReturnValue = attribute.Key("kekd.pkcs11.return_value")
	// Reason is why a worker was started: the class of its predecessor's end; empty
	// for the first.
	Reason = attribute.Key("kekd.hsm.reason")
	// Mechanism is the one that was proven.
	Mechanism = attribute.Key("kekd.mechanism")

	// Of OpenTelemetry's conventions for RPC.
	rpcSystem = semconv.RPCSystemNameKey
	rpcMethod = semconv.RPCMethodKey
	// RPCCode is the gRPC code, as "NOT_FOUND".
	RPCCode = semconv.RPCResponseStatusCodeKey
)

// The events of spans.
const (
	// Remembered: a Decrypt was refused from the memory of a recent refusal.
	Remembered = "refusal remembered"
	// Replaced: the worker was ended, and the operation is tried on another one.
	Replaced = "worker replaced"
)
