// Package hsm is the token that holds the KEKs, as the rest of kekd sees it:
// wrap and unwrap under a key, list, create, import, disable and destroy keys, and
// read the key ring off them.
//
// # The worker process
//
// PKCS#11 modules hang, crash, leak and lose their sessions, and a call into C
// can't be cancelled. So this process never loads the module: it re-executes
// itself as a worker (package worker) and speaks to it over an inherited
// socketpair (package wire). The worker never sees a request of kube-apiserver;
// this process never sees a handle. One supervisor owns the worker:
//
//   - it starts one when a call needs it, at most one start at a time, and waits
//     with growing, jittered pauses between starts that failed or workers that
//     died young; in between calls fail at once;
//   - a call has its caller's deadline, after which the caller gets its error
//     while the call goes on and keeps its session; past the call timeout the
//     worker is killed with SIGKILL, which frees everything;
//   - a worker that dies, or reports a fault of the token or the module, is
//     replaced; the calls that were in flight are done once more on the new one
//     if their own deadline still allows, except those that change the token.
//
// # The PIN
//
// It is read from its source at each start of a worker and handed over the
// socketpair. A PIN that the token refused is never tried again, by this process
// or a later one, until the source holds another one or an operator removes the
// latch: three tries are all that many tokens allow.
package hsm
