// Package httpapi is kekd's HTTP endpoint:
//
//	/livez    200 as long as the process serves; never depends on the HSM, since
//	          a restart would throw away the seeds that an outage needs
//	/readyz   200 in the states ready and coasting, else 503 with the reason
//	/metrics  the metrics, for Prometheus
//	/status   everything an operator asks for, as JSON (type Status)
//	/refresh  the same after a look at the key ring, by POST
//
// All but /refresh answer GET and HEAD only, from memory. /refresh changes nothing
// either: it has kekd do at once what it does every few seconds, at most once a
// second whoever asks. Nothing here is secret. There is no login: configuration
// keeps the endpoint on loopback unless an operator insists.
package httpapi
