package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"kekd/internal/kek"
)

// The forms of names. The ring's label leaves out the slash, which separates the
// parts of a key_id and the suffixes that mark a key's state.
var (
	ringLabel  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$`)
	envName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	credential = regexp.MustCompile(`^[^/\x00-\x1f\x7f]{1,255}$`)
	resource   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
	printable  = regexp.MustCompile(`^[^\x00-\x1f\x7f]*$`)
)

// tokenScheme begins a PKCS#11 URI. The rest is parsed where it is matched.
const tokenScheme = "pkcs11:"

// maxSocketPath is the longest path of a Unix socket in bytes: sun_path has 108,
// and a NUL ends it.
const maxSocketPath = 107

// Validate reports all that is wrong with c as Problems, nil if nothing is. It
// looks at no file: what only the machine can tell is told when kekd uses it.
func (c Config) Validate() error { return c.problems().err() }

func (c Config) problems() Problems {
	var v validator
	v.socket(c.Socket)
	v.http(c.HTTP)
	v.hsm(c.HSM)
	v.keyRing(c.KeyRing)
	v.seeds(c.Seeds)
	within(&v, "health.probeInterval", c.Health.ProbeInterval, 100*time.Millisecond, 5*time.Minute)
	within(&v, "health.outageGrace", c.Health.OutageGrace, 0, 24*time.Hour)
	oneOf(&v, "log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf(&v, "log.format", c.Log.Format, "json", "console")
	v.audit(c.Audit)
	v.tracing(c.Tracing)
	v.cluster(c.Cluster)
	v.path("stateDir", c.StateDir)
	return v.problems
}

func (v *validator) cluster(c Cluster) {
	v.urls("cluster.etcd.endpoints", c.Etcd.Endpoints, "http", "https")
	if len(c.Etcd.Endpoints) > 0 {
		first, _, _ := strings.Cut(c.Etcd.Endpoints[0], "://")
		for i, e := range c.Etcd.Endpoints {
			if scheme, _, _ := strings.Cut(e, "://"); scheme != first {
				v.add(fmt.Sprintf("cluster.etcd.endpoints[%d]", i), "use http for all, or https for all", "must use %s as the first endpoint does, got %q", first, e)
			}
		}
	}
	for _, f := range []struct{ field, path string }{
		{"cluster.etcd.ca", c.Etcd.CA}, {"cluster.etcd.cert", c.Etcd.Cert}, {"cluster.etcd.key", c.Etcd.Key}, {"cluster.etcd.prefix", c.Etcd.Prefix},
	} {
		if f.path != "" {
			v.path(f.field, f.path)
		}
	}
	if (c.Etcd.Cert == "") != (c.Etcd.Key == "") {
		v.add("cluster.etcd.cert", "set both or neither", "must be set together with cluster.etcd.key")
	}
	v.urls("cluster.apiServers", c.APIServers, "https")
	v.urls("cluster.nodes", c.Nodes, "http", "https")
	for i, r := range c.Resources {
		if !resource.MatchString(r) {
			v.add(fmt.Sprintf("cluster.resources[%d]", i), "write it as secrets or widgets.example.com; kekctl inventory lists the names",
				"must be a plural, with a group behind a dot for custom resources, got %q", r)
		}
	}
}

// urls checks a list of addresses without a path.
func (v *validator) urls(field string, list []string, schemes ...string) {
	for i, s := range list {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) || u.Port() == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
			v.add(fmt.Sprintf("%s[%d]", field, i), "write it as "+schemes[0]+"://10.0.0.1:PORT", "must be %s://HOST:PORT, got %q", strings.Join(schemes, " or "), s)
		}
	}
}

func (v *validator) audit(a Audit) {
	if a.Dir != "" {
		v.path("audit.dir", a.Dir)
	}
	oneOf(v, "audit.onFailure", a.OnFailure, AuditContinue, AuditBlock)
	oneOf(v, "audit.warmDecrypts", a.WarmDecrypts, WarmAll, WarmAggregate)
	within(v, "audit.checkpointEvery", a.CheckpointEvery, time.Second, time.Hour)
	within(v, "audit.checkpointRecords", a.CheckpointRecords, 10, 50000)
	within(v, "audit.maxFileSize", a.MaxFileSize, 1<<20, 1<<30)
	if a.MaxFiles != 0 {
		within(v, "audit.maxFiles", a.MaxFiles, 2, 100000)
	}
	if a.MaxAge != 0 {
		within(v, "audit.maxAge", a.MaxAge, time.Hour, 87600*time.Hour)
	}
	oneOf(v, "audit.forward", a.Forward, ForwardNone, ForwardSyslog, ForwardJournald)
}

func (v *validator) tracing(t Tracing) {
	if !(t.SampleRatio >= 0 && t.SampleRatio <= 1) { // so that NaN is not either
		v.add("tracing.sampleRatio", "write 0.01 for one request in a hundred", "must be 0 to 1, got %v", t.SampleRatio)
	}
	const field = "tracing.endpoint"
	for _, f := range []struct{ field, path string }{
		{"tracing.caFile", t.CAFile}, {"tracing.clientCertificateFile", t.ClientCertificateFile}, {"tracing.clientKeyFile", t.ClientKeyFile},
	} {
		if f.path == "" {
			continue
		}
		v.path(f.field, f.path)
		if !strings.HasPrefix(t.Endpoint, "https://") {
			v.add(f.field, "begin tracing.endpoint with https://, or remove the line", "needs an endpoint with TLS")
		}
	}
	if t.HeadersFile != "" {
		v.path("tracing.headersFile", t.HeadersFile)
	}
	if (t.ClientCertificateFile == "") != (t.ClientKeyFile == "") {
		v.add("tracing.clientCertificateFile", "set both or neither", "must be set together with tracing.clientKeyFile")
	}
	if t.Endpoint == "" {
		return
	}
	e, err := ParseEndpoint(t.Endpoint)
	if err != nil {
		v.add(field, "write it as http://127.0.0.1:4317 or https://collector.example:4317", "%s", err.Error())
		return
	}
	if !e.TLS && !e.Loopback && !t.AllowPlaintext {
		v.add(field, "use https://, or set tracing.allowPlaintext: true if the network is trusted",
			"must be a loopback address without TLS, got %q", t.Endpoint)
	}
	if !e.TLS && !e.Loopback && t.HeadersFile != "" {
		v.add("tracing.headersFile", "begin tracing.endpoint with https://, or remove the line",
			"would show its headers to whoever is on the way")
	}
}

// Endpoint is a tracing.endpoint, taken apart.
type Endpoint struct {
	// Address is HOST:PORT, an IPv6 address in brackets.
	Address string
	TLS     bool
	// Loopback: the host is this one, whatever a name server says.
	Loopback bool
}

// ParseEndpoint takes a tracing.endpoint apart. The error's text says what it must
// look like and repeats nothing that could be a password.
func ParseEndpoint(s string) (Endpoint, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return Endpoint{}, errors.New("must be http://HOST:PORT or https://HOST:PORT")
	case u.User != nil:
		return Endpoint{}, errors.New("must not carry a user or password")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return Endpoint{}, errors.New("must have nothing behind the port: OTLP by gRPC has no path")
	}
	if port, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || port == 0 {
		return Endpoint{}, errors.New("must have a port from 1 to 65535, usually 4317")
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return Endpoint{
		Address: u.Host, TLS: u.Scheme == "https",
		Loopback: u.Hostname() == "localhost" || err == nil && addr.IsLoopback(),
	}, nil
}

// validator collects problems.
type validator struct{ problems Problems }

func (v *validator) add(field, remedy, format string, args ...any) {
	v.problems = append(v.problems, Problem{Field: field, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (v *validator) socket(s Socket) {
	v.path("socket.path", s.Path)
	if len(s.Path) > maxSocketPath {
		v.add("socket.path", "choose a shorter directory", "must have at most %d bytes, got %d", maxSocketPath, len(s.Path))
	}
	if n := len(s.AllowedUIDs); n < 1 || n > 64 {
		v.add("socket.allowedUIDs", "list the user id of kube-apiserver, usually [0]", "must list 1 to 64 user ids, got %d", n)
	}
	seen := map[uint32]bool{}
	for i, uid := range s.AllowedUIDs {
		if seen[uid] {
			v.add(fmt.Sprintf("socket.allowedUIDs[%d]", i), "remove it", "repeats the user id %d", uid)
		}
		seen[uid] = true
	}
	within(v, "socket.maxInFlight", s.MaxInFlight, 1, 65536)
	within(v, "socket.requestTimeout", s.RequestTimeout, 100*time.Millisecond, time.Minute)
}

func (v *validator) http(h HTTP) {
	const field = "http.address"
	if h.Address == "" {
		return
	}
	// netip and not net.SplitHostPort: a name could resolve to anything, and
	// kekd starts before the cluster's DNS.
	i := strings.LastIndexByte(h.Address, ':')
	if i < 0 {
		v.add(field, "write it as 127.0.0.1:8780", "must be IP:PORT or localhost:PORT, got %q", h.Address)
		return
	}
	host, port := h.Address[:i], h.Address[i+1:]
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		v.add(field, "write it as 127.0.0.1:8780", "must end with a port from 0 to 65535, got %q", h.Address)
		return
	}
	local := host == "localhost"
	if host != "" && !local {
		addr, err := netip.ParseAddr(unbracket(host))
		if err != nil {
			v.add(field, "write it as 127.0.0.1:8780 or [::1]:8780", "must be IP:PORT or localhost:PORT, got %q", h.Address)
			return
		}
		local = addr.IsLoopback()
	}
	if !local && !h.AllowRemote {
		v.add(field, "use 127.0.0.1, or set http.allowRemote: true if the network is trusted",
			"must be a loopback address, got %q", h.Address)
	}
}

// unbracket strips the brackets of an IPv6 host. Without brackets it returns "",
// which is no address: where such a host ends and the port begins is a guess.
func unbracket(host string) string {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			return inner
		}
	}
	if strings.Contains(host, ":") {
		return ""
	}
	return host
}

func (v *validator) hsm(h HSM) {
	if h.Module == "" {
		v.add("hsm.module", "set it to the path of the vendor's PKCS#11 module, for SoftHSM /usr/lib/softhsm/libsofthsm2.so", "is required")
	} else {
		v.path("hsm.module", h.Module)
	}
	v.token(h.Token)
	v.pin(h)
	within(v, "hsm.sessions", h.Sessions, 1, 64)
	within(v, "hsm.callTimeout", h.CallTimeout, time.Second, 5*time.Minute)
	oneOf(v, "hsm.mechanism", h.Mechanism, MechanismAuto, MechanismGCM, MechanismKWP, MechanismCBCHMAC)
	if len(h.InitArgs) > 4096 || !printable.MatchString(h.InitArgs) {
		v.add("hsm.initArgs", "", "must have at most 4096 bytes and no control characters, got %d bytes", len(h.InitArgs))
	}
	for _, entry := range h.Env.List() {
		name, value, _ := strings.Cut(entry, "=")
		if !envName.MatchString(name) {
			v.add("hsm.env", "use letters, digits and underscores, no digit first", "%q is no name of an environment variable", name)
		}
		if strings.ContainsRune(value, 0) {
			v.add("hsm.env."+name, "", "must not contain a NUL byte")
		}
	}
}

func (v *validator) token(t Token) {
	set := map[string]string{"label": t.Label, "serial": t.Serial, "uri": t.URI}
	given := slices.DeleteFunc([]string{"label", "serial", "uri"}, func(k string) bool { return set[k] == "" })
	switch len(given) {
	case 0:
		v.add("hsm.token", "set label, serial or uri; pkcs11-tool --module MODULE -L lists the tokens", "is required")
		return
	case 1:
	default:
		v.add("hsm.token", "keep one", "must have exactly one of label, serial and uri, got %s", strings.Join(given, " and "))
		return
	}
	v.name("hsm.token.label", t.Label, 32)
	v.name("hsm.token.serial", t.Serial, 16)
	switch {
	case t.URI == "":
	case strings.Contains(t.URI, "pin-value=") || strings.Contains(t.URI, "pin-source="):
		// The URI is printed, here and by the hsm package.
		v.add("hsm.token.uri", "use hsm.pinFile or hsm.pinCredential", "must not carry a PIN (pin-value, pin-source)")
	case !strings.HasPrefix(t.URI, tokenScheme):
		v.add("hsm.token.uri", "write it as pkcs11:token=LABEL", "must begin with %s, got %q", tokenScheme, t.URI)
	}
}

// name checks a token's label or serial number, which PKCS#11 pads with spaces.
func (v *validator) name(field, s string, size int) {
	switch {
	case len(s) > size:
		v.add(field, "", "must have at most %d bytes, got %d", size, len(s))
	case !printable.MatchString(s) || strings.TrimSpace(s) != s:
		v.add(field, "leave the padding out", "must have no control characters and no spaces at its ends, got %q", s)
	}
}

func (v *validator) pin(h HSM) {
	switch {
	case h.PINFile == "" && h.PINCredential == "":
		v.add("hsm.pinFile", "set it to a file with mode 0600 that holds the PIN, or set hsm.pinCredential", "is required")
	case h.PINFile != "" && h.PINCredential != "":
		v.add("hsm.pinFile", "keep one", "must not be set together with hsm.pinCredential")
	case h.PINFile != "":
		v.path("hsm.pinFile", h.PINFile)
	case !credential.MatchString(h.PINCredential) || h.PINCredential == "." || h.PINCredential == "..":
		v.add("hsm.pinCredential", "give the NAME of LoadCredential=NAME:PATH", "must be a name without slashes, got %q", h.PINCredential)
	}
}

func (v *validator) keyRing(k KeyRing) {
	switch {
	case k.Label == "":
		v.add("keyRing.label", "set it to the CKA_LABEL of the KEKs, for example k8s-kek", "is required")
	case !ringLabel.MatchString(k.Label):
		v.add("keyRing.label", "choose another label",
			"must be a letter or digit, then up to 126 letters, digits, dots, underscores and hyphens, got %q", k.Label)
	}
	within(v, "keyRing.refresh", k.Refresh, 100*time.Millisecond, 10*time.Minute)
	within(v, "keyRing.policy.maxAge", k.Policy.MaxAge, 0, 87600*time.Hour)
	within(v, "keyRing.policy.minActivationDelay", k.Policy.MinActivationDelay, 0, 720*time.Hour)
	within(v, "keyRing.policy.minDestroyDelay", k.Policy.MinDestroyDelay, 24*time.Hour, 87600*time.Hour)
	for i, a := range k.Policy.Require {
		oneOf(v, fmt.Sprintf("keyRing.policy.require[%d]", i), a, Sensitive, NonExtractable, AlwaysSensitive, NeverExtractable, Local)
	}
	if k.Primary == "" {
		return
	}
	if _, err := kek.ParseID(k.Primary); err != nil {
		v.add("keyRing.primary", "kekctl key list shows the CKA_IDs",
			"must be a CKA_ID of 1 to %d bytes in hexadecimal, got %q", kek.MaxIDSize, k.Primary)
	}
}

func (v *validator) seeds(s Seeds) {
	oneOf(v, "seeds.mode", s.Mode, ModeSeeded, ModeDirect)
	within(v, "seeds.maxAge", s.MaxAge, 10*time.Second, 720*time.Hour)
	within(v, "seeds.maxUses", s.MaxUses, 1, 1<<32)
	within(v, "seeds.cacheSize", s.CacheSize, 1, 1<<20)
}

// path checks a path that must be absolute, since a service's working directory
// is nobody's choice.
func (v *validator) path(field, path string) {
	switch {
	case path == "":
		v.add(field, "remove the line for the default, or give a path", "must not be empty")
	case strings.ContainsRune(path, 0):
		v.add(field, "", "must not contain a NUL byte")
	case !filepath.IsAbs(path):
		v.add(field, "write it from the root, beginning with a slash", "must be an absolute path, got %q", path)
	}
}

// within checks the bounds of a number or a duration.
func within[T cmp.Ordered](v *validator, field string, got, low, high T) {
	if got < low || got > high {
		v.add(field, "", "must be %s to %s, got %s", show(low), show(high), show(got))
	}
}

// show prints a number, or a duration as an operator would write it.
func show[T cmp.Ordered](value T) string {
	s := fmt.Sprint(value)
	if _, ok := any(value).(time.Duration); !ok {
		return s
	}
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
	}
	if t, ok := strings.CutSuffix(s, "h0m"); ok {
		s = t + "h"
	}
	return s
}

// oneOf checks a choice.
func oneOf[T ~string](v *validator, field string, got T, choices ...T) {
	if slices.Contains(choices, got) {
		return
	}
	names := make([]string, len(choices))
	for i, c := range choices {
		names[i] = string(c)
	}
	v.add(field, "", "must be one of %s, got %q", strings.Join(names, ", "), got)
}
