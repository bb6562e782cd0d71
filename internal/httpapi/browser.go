package httpapi

import (
	"mime"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// wantsHTML reports whether the client asks for text/html by name, as browsers do and
// curl, kekctl and Prometheus do not.
func wantsHTML(r *http.Request) bool {
	for _, accept := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(accept, ",") {
			kind, params, err := mime.ParseMediaType(part)
			if err != nil || kind != "text/html" {
				continue
			}
			if q, err := strconv.ParseFloat(params["q"], 64); err != nil || q > 0 {
				return true
			}
		}
	}
	return false
}

// localOnly refuses requests that come for the name of a web site.
func localOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !localHost(r.Host) {
			text(w, http.StatusMisdirectedRequest,
				"kekd listens on loopback only, and this name may be a web site's; ask for an IP address, localhost or a host name without a dot\n")
			return
		}
		next(w, r)
	}
}

// localHost reports whether a Host header is one that no web site can have a browser
// send to another machine than its own: an IP address, which needs no DNS, a
// name without a dot or below localhost, which the DNS does not tell, or none.
func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	return !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost")
}
