// Package httpapi is kekd's read-only HTTP endpoint:
//
//	/livez    200 as long as the process serves; never depends on the HSM, since
//	          a restart would throw away the seeds that an outage needs
//	/readyz   200 in the states ready and coasting, else 503 with the reason
//	/metrics  the metrics, for Prometheus
//	/status   everything an operator asks for, as JSON (type Status)
//
// It answers GET and HEAD only, from memory, and holds nothing secret. It has no
// login: configuration keeps it on loopback unless an operator insists.
package httpapi
