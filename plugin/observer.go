package plugin

import (
	"time"

	"google.golang.org/grpc/codes"
)

// Observer counts what the plugin does. Its methods are called concurrently, on
// the way of every request, and must not block.
type Observer interface {
	// Arrived reports a request whose headers have come, of whatever method. Those that
	// no Request follows were turned away by gRPC itself, or given up by the client
	// before its message was there.
	Arrived()
	// Request reports a call that ended, by method name ("Encrypt") and code.
	// Requests that gRPC itself turned away (unknown method, oversize message,
	// undecodable message) are not among them. traceID is the id of its trace in
	// hexadecimal, empty if none is recorded.
	Request(method string, code codes.Code, elapsed time.Duration, traceID string)
	// Verified reports, instead of Request, a call of kekctl verify that failed by its
	// own doing, as those with damaged input must.
	Verified(method string)
	// InFlight changes the number of Encrypts and Decrypts being served.
	InFlight(delta int)
	// Refused reports a connection closed because this uid is not on the allow-list.
	Refused(uid uint32)
	// TooMany reports a connection closed because as many as may be are open.
	TooMany()
	// Panic reports a request that ended in a recovered panic.
	Panic()
}

// nopObserver stands in where nobody counts.
type nopObserver struct{}

func (nopObserver) Arrived()                                          {}
func (nopObserver) Request(string, codes.Code, time.Duration, string) {}
func (nopObserver) Verified(string)                                   {}
func (nopObserver) InFlight(int)                                      {}
func (nopObserver) Refused(uint32)                                    {}
func (nopObserver) TooMany()                                          {}
func (nopObserver) Panic()                                            {}
