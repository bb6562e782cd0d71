// Package plugin is what kube-apiserver talks to: the KMS v2 service on a Unix
// socket. It knows no HSM and no cryptography. It checks what comes in and what
// goes out, turns errors into gRPC codes, and looks after the socket.
//
// # Contract
//
// Status, Encrypt and Decrypt are served as k8s.io/kms/apis/v2 defines them.
// Status answers "ok" with a key_id, or fails: kube-apiserver renews its write
// seed on any Status that carries a valid key_id, whatever healthz says, so a
// third answer would not stop writes.
//
//	plaintext    1 to 1024 bytes in (kube-apiserver sends 32)
//	ciphertext   1 to 1024 bytes, in and out
//	key_id       1 to 1024 bytes of UTF-8, in and out
//	annotations  none out, so none accepted in
//	message      at most 64 KiB
//	headers      at most 16 KiB
//
// # Failures
//
// Clients get a code and a fixed text (errors.go); the detail goes to the log
// under the request's uid, a few lines per class and time.
//
//	Unavailable         kekd is not ready, or the HSM does not answer
//	ResourceExhausted   too many requests at once, or a message over 64 KiB
//	InvalidArgument     the request, or its ciphertext, is not one kekd could have made
//	NotFound            the ciphertext's KEK is not on the token
//	FailedPrecondition  the KEK is disabled, destroyed, or may not be used this way
//	DeadlineExceeded    the request's time is over
//	Canceled            the client gave up
//	Internal            a bug; the log says more
//
// # Socket
//
// Listen takes the socket that systemd passes, or binds one: in a directory that
// nobody else can write to, with mode 0600 from its first moment, under a lock
// file. It is bound before the HSM is touched and for as long as the process
// lives, since a client that finds no listener backs off for up to two minutes.
// A socket that vanishes or is replaced is bound again. Every caller's uid is
// checked against an allow-list before a byte of it is read.
//
// # Connections
//
// What a client can hold by doing nothing, or too much, ends by itself:
//
//	handshake            5 s for the HTTP/2 preface and the first SETTINGS
//	request              Config.RequestTimeout from its headers on, whole or not
//	connection           80 s without a whole frame, pings being answered included:
//	                     a client that stalls in a frame, or never reads
//	connections at once  1,024, and at most half of the process's descriptors;
//	                     more are closed unread, and logged
//
// There is no limit of idleness: kube-apiserver keeps one connection for days, and
// answers pings. Pings of a client's own, other than at most one each five minutes
// during a request, end its connection (gRPC's default).
//
// # Life
//
//	Listen → New → Run (blocks) … Shutdown: stop accepting → drain → hard stop
//
// Run may start while the HSM is still being opened: Health then says why
// nothing is served yet.
package plugin
