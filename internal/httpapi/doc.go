// Package httpapi is kekd's HTTP endpoint:
//
//	/         a page for people, to browsers; the list of paths to all others
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
//
// The page is at / and not at a path of its own, so that the address that is in
// the log and the configuration is all that one has to know. It goes to whoever asks
// for text/html by name. curl asks for */* and gets the list.
//
// A web site that somebody on the node, or at the end of a tunnel to it, looks at
// can make its own name resolve to 127.0.0.1 (DNS rebinding), and would then read
// /status as if it were its own. Nothing secret would be lost, and yet key_ids, states
// and versions are nobody's business. So on loopback /, /status and /refresh refuse a
// Host that is a name with a dot (421). It is not so on other addresses: there nodes
// have such names, and whoever is let in by the network can ask without a browser. The
// probes and /metrics take any Host, for whatever stands before them may set one.
package httpapi
