// Package health decides what kekd may promise to kube-apiserver.
//
// Status either says ok or fails, nothing in between: kube-apiserver goes on
// writing for as long as Status carries a valid key_id, whatever healthz says
// beside it. So the decision when to stop writes is made here, by five states:
//
//	starting  no key is proven yet                        Status fails, Encrypt fails
//	ready     the last proof passed                       both served
//	coasting  the HSM fails, for less than the grace      both served, from the seed
//	unready   the grace is over, or the PIN is latched    both fail
//	revoked   the primary KEK is disabled or gone         both fail (FailedPrecondition)
//
// A Monitor is told of proofs, failures and revocations and answers from memory.
// It has no goroutine: what time alone changes (coasting ends) is found by
// whoever asks next. A Prober runs the proofs.
//
//	         Published            Failed, or no news for too long
//	starting ────────▶ ready ◀──────────────────────────────▶ coasting
//	    ▲                ▲ ▲    Succeeded, Published              │ grace over
//	    │ no way back    │ └──────────────────────────── unready ◀┘ or PIN latched
//	                     │ Published only
//	                  revoked ◀── Revoked, from any state
package health
