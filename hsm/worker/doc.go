// Package worker is the child process that loads the PKCS#11 module. It knows
// one token and does what the parent asks over the socketpair: find the token,
// log in, list, create, import, change, destroy and prove keys, wrap and unwrap.
//
// It is crash-only. An operation that fails for a reason that lies in a session
// or a handle is tried once more on a fresh session; whatever fails then is
// reported with its class, and where that is the token's or the module's fault
// the parent ends this process and starts another. There is no ladder of
// repairs in here: after a token vanished and came back nothing less than a new
// C_Initialize helps with common modules, and a new process is the surest one.
//
// # Threads
//
// Each request runs in its own goroutine, and the parent has at most as many in
// flight as there are sessions, so no call waits inside C for a session and the
// number of threads stays bounded even when all calls hang. A session is used by
// one goroutine at a time.
//
// # Sessions and login
//
// One session is opened first, logged in and kept to the end: login is per
// token and process, and ends when its last session closes. The pool's sessions
// come on top. A session that saw any error is closed and replaced, since nobody
// can tell from outside whether the failed operation is still active in it.
//
// # Handles
//
// Object handles are found once and kept for the life of the process. They die
// with it, which is what makes keeping them safe: after C_Finalize handle numbers
// start again, and an old one may name another key.
package worker
