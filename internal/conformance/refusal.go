package conformance

import (
	"fmt"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// judgeRefusal says how well an error refuses a bad request. kube-apiserver
// shows the code to users and makes it a metric's label, and alerts are built
// on it; so damage to one object must not look like an outage of the key.
func judgeRefusal(err error) (Outcome, string) {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition,
		codes.PermissionDenied, codes.OutOfRange, codes.DataLoss:
		return OK, ""
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return Fail, "it looks like an outage instead of a refusal: " + describe(err)
	default:
		return Warn, "the code does not say that the request is at fault: " + describe(err)
	}
}

// judgeOversize is judgeRefusal for messages that gRPC's own limit may stop,
// which it does with ResourceExhausted.
func judgeOversize(err error) (Outcome, string) {
	if status.Code(err) == codes.ResourceExhausted {
		return OK, ""
	}
	return judgeRefusal(err)
}

// describe puts an error of the plugin on one line.
func describe(err error) string {
	s := status.Convert(err)
	return fmt.Sprintf("%s %s", s.Code(), quote(s.Message()))
}

// quote makes text of the plugin safe for a terminal and a log line: quoted,
// and cut to a length that fits.
func quote(s string) string {
	const most = 160
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "..."
	}
	return strconv.QuoteToASCII(s)
}
