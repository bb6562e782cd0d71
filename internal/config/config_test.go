package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// minimal sets the required fields and nothing else.
const minimal = `
hsm:
  module: /lib/p11.so
  token: {label: kekd}
  pinFile: /etc/kekd/pin
keyRing: {label: k8s-kek}
`

func TestLoadExample(t *testing.T) {
	got, err := Load("testdata/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.HSM.Module = "/usr/lib/softhsm/libsofthsm2.so"
	want.HSM.Token.Label = "kekd"
	want.HSM.PINFile = "/etc/kekd/pin"
	want.HSM.Env = Env{"SOFTHSM2_CONF": "/etc/kekd/softhsm2.conf"}
	want.KeyRing.Label = "k8s-kek"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("example.yaml should be the defaults and the required fields (-want +got):\n%s", diff)
	}
}

func TestParseEveryField(t *testing.T) {
	got, err := Parse([]byte(`
socket:
  path: /run/other.sock
  allowedUIDs: [0, 65534]
  maxInFlight: 8
  requestTimeout: 1500ms
http: {address: "[::]:9000", allowRemote: true}
stateDir: /srv/state
hsm:
  module: /lib/p11.so
  token: {serial: 0012345}
  pinCredential: hsm-pin
  allowOpenPinFile: true
  allowFinalPinTry: true
  sessions: 64
  callTimeout: 1m
  mechanism: aes-kwp
  initArgs: "configdir='sql:/x'"
  env: {A: b, C_D: 1}
keyRing:
  label: A.b_c-9
  refresh: 100ms
  primary: 00ff
  policy: {maxAge: 2160h, minActivationDelay: 90s, require: [local, never-extractable]}
seeds: {mode: direct, maxAge: 720h, maxUses: 4294967296, cacheSize: 1, lockMemory: false}
health: {probeInterval: 5m, outageGrace: 0s}
log: {level: debug, format: console}
audit: {dir: /srv/audit, onFailure: block, warmDecrypts: aggregate, checkpointEvery: 2m, checkpointRecords: 50, maxFileSize: 1048576, maxFiles: 0, maxAge: 48h, forward: journald}
tracing:
  endpoint: https://collector.example:4317
  allowPlaintext: true
  caFile: /etc/otel/ca.pem
  clientCertificateFile: /etc/otel/kekd.pem
  clientKeyFile: /etc/otel/kekd.key
  headersFile: /etc/otel/headers
  sampleRatio: 0.25
cluster:
  etcd: {endpoints: ["https://10.0.0.1:2379", "https://10.0.0.2:2379"], ca: /etcd/ca.crt, cert: /etcd/c.crt, key: /etcd/c.key, prefix: /registry}
  apiServers: ["https://10.0.0.1:6443"]
  nodes: ["http://10.0.0.1:8780", "http://10.0.0.2:8780"]
  resources: [secrets, widgets.example.com]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Socket:   Socket{Path: "/run/other.sock", AllowedUIDs: []uint32{0, 65534}, MaxInFlight: 8, RequestTimeout: 1500 * time.Millisecond},
		HTTP:     HTTP{Address: "[::]:9000", AllowRemote: true},
		StateDir: "/srv/state",
		HSM: HSM{
			Module: "/lib/p11.so", Token: Token{Serial: "0012345"}, PINCredential: "hsm-pin",
			AllowOpenPINFile: true, AllowFinalPINTry: true, Sessions: 64, CallTimeout: time.Minute,
			Mechanism: MechanismKWP, InitArgs: "configdir='sql:/x'", Env: Env{"A": "b", "C_D": "1"},
		},
		KeyRing: KeyRing{
			Label: "A.b_c-9", Refresh: 100 * time.Millisecond, Primary: "00ff",
			Policy: KeyPolicy{MaxAge: 2160 * time.Hour, MinActivationDelay: 90 * time.Second, MinDestroyDelay: 24 * time.Hour, Require: []Attribute{Local, NeverExtractable}},
		},
		Seeds:  Seeds{Mode: ModeDirect, MaxAge: 720 * time.Hour, MaxUses: 1 << 32, CacheSize: 1},
		Health: Health{ProbeInterval: 5 * time.Minute},
		Log:    Log{Level: "debug", Format: "console"},
		Audit: Audit{
			Dir: "/srv/audit", OnFailure: AuditBlock, WarmDecrypts: WarmAggregate, CheckpointEvery: 2 * time.Minute,
			CheckpointRecords: 50, MaxFileSize: 1 << 20, MaxAge: 48 * time.Hour, Forward: ForwardJournald,
		},
		Tracing: Tracing{
			Endpoint: "https://collector.example:4317", AllowPlaintext: true, CAFile: "/etc/otel/ca.pem",
			ClientCertificateFile: "/etc/otel/kekd.pem", ClientKeyFile: "/etc/otel/kekd.key", HeadersFile: "/etc/otel/headers", SampleRatio: 0.25,
		},
		Cluster: Cluster{
			Etcd: Etcd{
				Endpoints: []string{"https://10.0.0.1:2379", "https://10.0.0.2:2379"},
				CA:        "/etcd/ca.crt", Cert: "/etcd/c.crt", Key: "/etcd/c.key", Prefix: "/registry",
			},
			APIServers: []string{"https://10.0.0.1:6443"},
			Nodes:      []string{"http://10.0.0.1:8780", "http://10.0.0.2:8780"},
			Resources:  []string{"secrets", "widgets.example.com"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
}

func TestParseProblems(t *testing.T) {
	tests := []struct {
		name string
		yaml string   // replaces minimal, unless it begins with "+": then it follows it
		want []string // all problems
	}{
		{"empty file", "", []string{`the file is empty; it needs at least hsm and keyRing`}},
		{"no content", "---\n", []string{
			`the file has no content; it needs at least hsm and keyRing`,
			`hsm.module: is required; set it to the path of the vendor's PKCS#11 module, for SoftHSM /usr/lib/softhsm/libsofthsm2.so`,
			`hsm.token: is required; set label, serial or uri; pkcs11-tool --module MODULE -L lists the tokens`,
			`hsm.pinFile: is required; set it to a file with mode 0600 that holds the PIN, or set hsm.pinCredential`,
			`keyRing.label: is required; set it to the CKA_LABEL of the KEKs, for example k8s-kek`,
		}},
		{"no mapping", "- 1\n", []string{
			`must be a section of key: value lines, got a list (line 1)`,
			`hsm.module: is required; set it to the path of the vendor's PKCS#11 module, for SoftHSM /usr/lib/softhsm/libsofthsm2.so`,
			`hsm.token: is required; set label, serial or uri; pkcs11-tool --module MODULE -L lists the tokens`,
			`hsm.pinFile: is required; set it to a file with mode 0600 that holds the PIN, or set hsm.pinCredential`,
			`keyRing.label: is required; set it to the CKA_LABEL of the KEKs, for example k8s-kek`,
		}},
		{"syntax", "hsm: {", []string{`the file is not valid YAML: line 1: did not find expected node content`}},
		{"second document", "+---\nhsm: {}\n", []string{`a second YAML document begins at line 7; keep one`}},
		{"trailing garbage", "+---\n}\n", []string{`the file is not valid YAML: line 7: did not find expected node content`}},
		{"unknown section", "+sockets: {}\n", []string{
			`sockets: unknown field (line 7); known here: socket, http, hsm, keyRing, seeds, health, log, audit, tracing, cluster, stateDir`}},
		{"ratio no number", "+tracing: {sampleRatio: all}\n", []string{`tracing.sampleRatio: must be a number, got "all" (line 7)`}},
		{"ratio NaN", "+tracing: {sampleRatio: .nan}\n", []string{`tracing.sampleRatio: must be 0 to 1, got NaN (line 7); write 0.01 for one request in a hundred`}},
		{"unknown field", "+http: {addr: x}\n", []string{`http.addr: unknown field (line 7); known here: address, allowRemote`}},
		{"wrong case", "+http: {Address: x}\n", []string{`http.Address: unknown field (line 7); known here: address, allowRemote`}},
		{"set twice", "+log: {level: info, level: warn}\n", []string{`log.level: is set twice, first in line 7 (line 7); keep one`}},
		{"alias", "+log: &a {level: info}\n", []string{`log: YAML anchors and aliases are not supported (line 7); write the value out`}},
		{"merge key", "+log: {<<: {level: info}}\n", []string{`log: a key must be a plain word, got "<<" (line 7)`}},
		{"several at once, in order, with lines", "hsm:\n  module: /lib/p11.so\n  token: {label: kekd}\n  sessions: many\n" +
			"  callTimeout: 10\n  env: [x]\n  pinFile: pin\nkeyRing: {label: k8s-kek}\nlog: {level: loud}\nseeds: {lockMemory: 1}\n",
			[]string{
				`hsm.sessions: must be a whole number, got "many" (line 4)`,
				`hsm.callTimeout: must be a duration such as 10s, got "10" (line 5); give a unit: ms, s, m or h`,
				`hsm.env: must be a section of key: value lines, got a list (line 6)`,
				`seeds.lockMemory: must be true or false, got "1" (line 10)`,
				`hsm.pinFile: must be an absolute path, got "pin" (line 7); write it from the root, beginning with a slash`,
				`log.level: must be one of debug, info, warn, error, got "loud" (line 9)`,
			}},
		{"section is a scalar", "hsm: 5\nkeyRing: {label: k8s-kek}\n", []string{
			`hsm: must be a section of key: value lines, got "5" (line 1)`}},
		{"scalar is a section", "+log: {level: {a: b}}\n", []string{`log.level: must be a text, got a section (line 7)`}},
		{"null", "+log: {level: }\n", []string{`log.level: must be a text, got nothing (line 7)`}},
		{"binary", "+log: {level: !!binary aGVsbG8=}\n", []string{`log.level: must be a text, got binary data (line 7)`}},
		{"fraction", "+seeds: {maxUses: 1e6}\n", []string{`seeds.maxUses: must be a whole number, got "1e6" (line 7)`}},
		{"negative user id", "+socket: {allowedUIDs: [-1, 0]}\n", []string{
			`socket.allowedUIDs[0]: must be a whole number from 0 to 4294967295, got "-1" (line 7)`}},
		{"large user id", "+socket: {allowedUIDs: [4294967296]}\n", []string{
			`socket.allowedUIDs[0]: must be a whole number from 0 to 4294967295, got "4294967296" (line 7)`}},
		{"user id no list", "+socket: {allowedUIDs: 0}\n", []string{
			`socket.allowedUIDs: must be a list, got "0" (line 7); write it as [A, B]`}},
		{"user ids null", "+socket: {allowedUIDs: }\n", []string{
			`socket.allowedUIDs: must be a list, got nothing (line 7); write it as [A, B]`}},
		{"no user id", "+socket: {allowedUIDs: []}\n", []string{
			`socket.allowedUIDs: must list 1 to 64 user ids, got 0 (line 7); list the user id of kube-apiserver, usually [0]`}},
		{"user id twice", "+socket: {allowedUIDs: [0, 1, 0]}\n", []string{
			`socket.allowedUIDs[2]: repeats the user id 0; remove it`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := tt.yaml
			if rest, ok := strings.CutPrefix(text, "+"); ok {
				text = minimal + rest
			}
			c, err := Parse([]byte(text))
			if _, ok := errors.AsType[Problems](err); !ok {
				t.Fatalf("Parse = %v, want Problems", err)
			}
			if diff := cmp.Diff(strings.Join(tt.want, "\n"), err.Error()); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(Default(), c); diff != "" {
				t.Errorf("Parse with problems should return the default (-want +got):\n%s", diff)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", 300)
	tests := []struct {
		name string
		edit func(c *Config)
		want string // the only problem; empty if there is none
	}{
		{"nothing", func(*Config) {}, ""},
		{"socket relative", func(c *Config) { c.Socket.Path = "kekd.sock" }, `socket.path: must be an absolute path, got "kekd.sock"; write it from the root, beginning with a slash`},
		{"socket abstract", func(c *Config) { c.Socket.Path = "@kekd" }, `socket.path: must be an absolute path, got "@kekd"; write it from the root, beginning with a slash`},
		{"socket empty", func(c *Config) { c.Socket.Path = "" }, `socket.path: must not be empty; remove the line for the default, or give a path`},
		{"socket 107 bytes", func(c *Config) { c.Socket.Path = "/" + long[:106] }, ""},
		{"socket 108 bytes", func(c *Config) { c.Socket.Path = "/" + long[:107] }, `socket.path: must have at most 107 bytes, got 108; choose a shorter directory`},
		{"65 user ids", func(c *Config) {
			c.Socket.AllowedUIDs = nil
			for uid := range uint32(65) {
				c.Socket.AllowedUIDs = append(c.Socket.AllowedUIDs, uid)
			}
		}, `socket.allowedUIDs: must list 1 to 64 user ids, got 65; list the user id of kube-apiserver, usually [0]`},
		{"in flight 0", func(c *Config) { c.Socket.MaxInFlight = 0 }, `socket.maxInFlight: must be 1 to 65536, got 0`},
		{"in flight 65537", func(c *Config) { c.Socket.MaxInFlight = 65537 }, `socket.maxInFlight: must be 1 to 65536, got 65537`},
		{"request timeout short", func(c *Config) { c.Socket.RequestTimeout = 99 * time.Millisecond }, `socket.requestTimeout: must be 100ms to 1m, got 99ms`},
		{"request timeout long", func(c *Config) { c.Socket.RequestTimeout = 2 * time.Hour }, `socket.requestTimeout: must be 100ms to 1m, got 2h`},
		{"http off", func(c *Config) { c.HTTP.Address = "" }, ""},
		{"http localhost", func(c *Config) { c.HTTP.Address = "localhost:1" }, ""},
		{"http IPv6", func(c *Config) { c.HTTP.Address = "[::1]:65535" }, ""},
		{"http other loopback", func(c *Config) { c.HTTP.Address = "127.8.8.8:0" }, ""},
		{"http all", func(c *Config) { c.HTTP.Address = ":8780" }, `http.address: must be a loopback address, got ":8780"; use 127.0.0.1, or set http.allowRemote: true if the network is trusted`},
		{"http all IPv4", func(c *Config) { c.HTTP.Address = "0.0.0.0:8780" }, `http.address: must be a loopback address, got "0.0.0.0:8780"; use 127.0.0.1, or set http.allowRemote: true if the network is trusted`},
		{"http all, allowed", func(c *Config) { c.HTTP = HTTP{Address: ":8780", AllowRemote: true} }, ""},
		{"http no port", func(c *Config) { c.HTTP.Address = "127.0.0.1" }, `http.address: must be IP:PORT or localhost:PORT, got "127.0.0.1"; write it as 127.0.0.1:8780`},
		{"http port name", func(c *Config) { c.HTTP.Address = "127.0.0.1:http" }, `http.address: must end with a port from 0 to 65535, got "127.0.0.1:http"; write it as 127.0.0.1:8780`},
		{"http port 65536", func(c *Config) { c.HTTP.Address = "127.0.0.1:65536" }, `http.address: must end with a port from 0 to 65535, got "127.0.0.1:65536"; write it as 127.0.0.1:8780`},
		{"http name", func(c *Config) { c.HTTP = HTTP{Address: "node1:80", AllowRemote: true} }, `http.address: must be IP:PORT or localhost:PORT, got "node1:80"; write it as 127.0.0.1:8780 or [::1]:8780`},
		{"http bare IPv6", func(c *Config) { c.HTTP.Address = "::1:80" }, `http.address: must be IP:PORT or localhost:PORT, got "::1:80"; write it as 127.0.0.1:8780 or [::1]:8780`},
		{"state relative", func(c *Config) { c.StateDir = "state" }, `stateDir: must be an absolute path, got "state"; write it from the root, beginning with a slash`},
		{"state NUL", func(c *Config) { c.StateDir = "/a\x00" }, `stateDir: must not contain a NUL byte`},
		{"module name only", func(c *Config) { c.HSM.Module = "libsofthsm2.so" }, `hsm.module: must be an absolute path, got "libsofthsm2.so"; write it from the root, beginning with a slash`},
		{"two tokens", func(c *Config) { c.HSM.Token.Serial = "1" }, `hsm.token: must have exactly one of label, serial and uri, got label and serial; keep one`},
		{"label padded", func(c *Config) { c.HSM.Token.Label = "kekd  " }, `hsm.token.label: must have no control characters and no spaces at its ends, got "kekd  "; leave the padding out`},
		{"label 33 bytes", func(c *Config) { c.HSM.Token.Label = long[:33] }, `hsm.token.label: must have at most 32 bytes, got 33`},
		{"serial 17 bytes", func(c *Config) { c.HSM.Token = Token{Serial: long[:17]} }, `hsm.token.serial: must have at most 16 bytes, got 17`},
		{"uri", func(c *Config) { c.HSM.Token = Token{URI: "pkcs11:token=a"} }, ""},
		{"uri scheme", func(c *Config) { c.HSM.Token = Token{URI: "token=a"} }, `hsm.token.uri: must begin with pkcs11:, got "token=a"; write it as pkcs11:token=LABEL`},
		{"uri with PIN", func(c *Config) { c.HSM.Token = Token{URI: "pkcs11:token=a?pin-value=1234"} }, `hsm.token.uri: must not carry a PIN (pin-value, pin-source); use hsm.pinFile or hsm.pinCredential`},
		{"two PINs", func(c *Config) { c.HSM.PINCredential = "pin" }, `hsm.pinFile: must not be set together with hsm.pinCredential; keep one`},
		{"no PIN", func(c *Config) { c.HSM.PINFile = "" }, `hsm.pinFile: is required; set it to a file with mode 0600 that holds the PIN, or set hsm.pinCredential`},
		{"credential path", func(c *Config) { c.HSM.PINFile, c.HSM.PINCredential = "", "../pin" }, `hsm.pinCredential: must be a name without slashes, got "../pin"; give the NAME of LoadCredential=NAME:PATH`},
		{"credential dots", func(c *Config) { c.HSM.PINFile, c.HSM.PINCredential = "", ".." }, `hsm.pinCredential: must be a name without slashes, got ".."; give the NAME of LoadCredential=NAME:PATH`},
		{"sessions 0", func(c *Config) { c.HSM.Sessions = 0 }, `hsm.sessions: must be 1 to 64, got 0`},
		{"sessions 65", func(c *Config) { c.HSM.Sessions = 65 }, `hsm.sessions: must be 1 to 64, got 65`},
		{"call timeout", func(c *Config) { c.HSM.CallTimeout = 0 }, `hsm.callTimeout: must be 1s to 5m, got 0s`},
		{"mechanism", func(c *Config) { c.HSM.Mechanism = "rsa" }, `hsm.mechanism: must be one of auto, aes-gcm, aes-kwp, aes-cbc-hmac, got "rsa"`},
		{"init arguments", func(c *Config) { c.HSM.InitArgs = "a\nb" }, `hsm.initArgs: must have at most 4096 bytes and no control characters, got 3 bytes`},
		{"environment name", func(c *Config) { c.HSM.Env = Env{"A-B": "hunter2"} }, `hsm.env: "A-B" is no name of an environment variable; use letters, digits and underscores, no digit first`},
		{"environment value", func(c *Config) { c.HSM.Env = Env{"A": "hunter2\x00"} }, `hsm.env.A: must not contain a NUL byte`},
		{"ring label", func(c *Config) { c.KeyRing.Label = "a/b" }, `keyRing.label: must be a letter or digit, then up to 126 letters, digits, dots, underscores and hyphens, got "a/b"; choose another label`},
		{"ring label 127 bytes", func(c *Config) { c.KeyRing.Label = long[:127] }, ""},
		{"ring label 128 bytes", func(c *Config) { c.KeyRing.Label = long[:128] }, `keyRing.label: must be a letter or digit, then up to 126 letters, digits, dots, underscores and hyphens, got "` + long[:128] + `"; choose another label`},
		{"policy age", func(c *Config) { c.KeyRing.Policy.MaxAge = -time.Second }, `keyRing.policy.maxAge: must be 0s to 87600h, got -1s`},
		{"policy delay", func(c *Config) { c.KeyRing.Policy.MinActivationDelay = 721 * time.Hour }, `keyRing.policy.minActivationDelay: must be 0s to 720h, got 721h`},
		{"destroy delay", func(c *Config) { c.KeyRing.Policy.MinDestroyDelay = time.Hour }, `keyRing.policy.minDestroyDelay: must be 24h to 87600h, got 1h`},
		{"mixed etcd", func(c *Config) { c.Cluster.Etcd.Endpoints = []string{"https://a:1", "http://b:2"} }, `cluster.etcd.endpoints[1]: must use https as the first endpoint does, got "http://b:2"; use http for all, or https for all`},
		{"etcd with a path", func(c *Config) { c.Cluster.Etcd.Endpoints = []string{"https://a:1/x"} }, `cluster.etcd.endpoints[0]: must be http or https://HOST:PORT, got "https://a:1/x"; write it as http://10.0.0.1:PORT`},
		{"half a pair", func(c *Config) { c.Cluster.Etcd.Key = "/k" }, `cluster.etcd.cert: must be set together with cluster.etcd.key; set both or neither`},
		{"API server over http", func(c *Config) { c.Cluster.APIServers = []string{"http://a:1"} }, `cluster.apiServers[0]: must be https://HOST:PORT, got "http://a:1"; write it as https://10.0.0.1:PORT`},
		{"node without a port", func(c *Config) { c.Cluster.Nodes = []string{"http://a"} }, `cluster.nodes[0]: must be http or https://HOST:PORT, got "http://a"; write it as http://10.0.0.1:PORT`},
		{"resource", func(c *Config) { c.Cluster.Resources = []string{"Secret"} }, `cluster.resources[0]: must be a plural, with a group behind a dot for custom resources, got "Secret"; write it as secrets or widgets.example.com; kekctl inventory lists the names`},
		{"policy attribute", func(c *Config) { c.KeyRing.Policy.Require = []Attribute{Local, "secret"} }, `keyRing.policy.require[1]: must be one of sensitive, non-extractable, always-sensitive, never-extractable, local, got "secret"`},
		{"refresh", func(c *Config) { c.KeyRing.Refresh = time.Hour }, `keyRing.refresh: must be 100ms to 10m, got 1h`},
		{"primary", func(c *Config) { c.KeyRing.Primary = "xyz" }, `keyRing.primary: must be a CKA_ID of 1 to 64 bytes in hexadecimal, got "xyz"; kekctl key list shows the CKA_IDs`},
		{"mode", func(c *Config) { c.Seeds.Mode = "" }, `seeds.mode: must be one of seeded, direct, got ""`},
		{"max age", func(c *Config) { c.Seeds.MaxAge = 9 * time.Second }, `seeds.maxAge: must be 10s to 720h, got 9s`},
		{"max uses 0", func(c *Config) { c.Seeds.MaxUses = 0 }, `seeds.maxUses: must be 1 to 4294967296, got 0`},
		{"max uses large", func(c *Config) { c.Seeds.MaxUses = 1<<32 + 1 }, `seeds.maxUses: must be 1 to 4294967296, got 4294967297`},
		{"cache size", func(c *Config) { c.Seeds.CacheSize = 0 }, `seeds.cacheSize: must be 1 to 1048576, got 0`},
		{"probe interval", func(c *Config) { c.Health.ProbeInterval = 0 }, `health.probeInterval: must be 100ms to 5m, got 0s`},
		{"grace", func(c *Config) { c.Health.OutageGrace = -time.Second }, `health.outageGrace: must be 0s to 24h, got -1s`},
		{"tracing here", func(c *Config) { c.Tracing.Endpoint = "http://localhost:4317/" }, ""},
		{"tracing here, IPv6", func(c *Config) { c.Tracing.Endpoint = "http://[::1]:4317" }, ""},
		{"tracing by TLS", func(c *Config) { c.Tracing.Endpoint = "https://collector:4317" }, ""},
		{"tracing in the open", func(c *Config) { c.Tracing.Endpoint = "http://192.0.2.1:4317" }, `tracing.endpoint: must be a loopback address without TLS, got "http://192.0.2.1:4317"; use https://, or set tracing.allowPlaintext: true if the network is trusted`},
		{"tracing in the open, by name", func(c *Config) { c.Tracing.Endpoint = "http://localhost.example:4317" }, `tracing.endpoint: must be a loopback address without TLS, got "http://localhost.example:4317"; use https://, or set tracing.allowPlaintext: true if the network is trusted`},
		{"tracing in the open, allowed", func(c *Config) {
			c.Tracing.Endpoint, c.Tracing.AllowPlaintext = "http://192.0.2.1:4317", true
		}, ""},
		{"tracing without a scheme", func(c *Config) { c.Tracing.Endpoint = "127.0.0.1:4317" }, `tracing.endpoint: must be http://HOST:PORT or https://HOST:PORT; write it as http://127.0.0.1:4317 or https://collector.example:4317`},
		{"tracing without a port", func(c *Config) { c.Tracing.Endpoint = "https://collector" }, `tracing.endpoint: must have a port from 1 to 65535, usually 4317; write it as http://127.0.0.1:4317 or https://collector.example:4317`},
		{"tracing by HTTP", func(c *Config) { c.Tracing.Endpoint = "http://127.0.0.1:4318/v1/traces" }, `tracing.endpoint: must have nothing behind the port: OTLP by gRPC has no path; write it as http://127.0.0.1:4317 or https://collector.example:4317`},
		{"tracing with a password", func(c *Config) { c.Tracing.Endpoint = "http://u:hunter2@127.0.0.1:4317" }, `tracing.endpoint: must not carry a user or password; write it as http://127.0.0.1:4317 or https://collector.example:4317`},
		{"tracing CA without TLS", func(c *Config) { c.Tracing.Endpoint, c.Tracing.CAFile = "http://127.0.0.1:4317", "/ca.pem" }, `tracing.caFile: needs an endpoint with TLS; begin tracing.endpoint with https://, or remove the line`},
		{"tracing CA relative", func(c *Config) { c.Tracing.Endpoint, c.Tracing.CAFile = "https://c:4317", "ca.pem" }, `tracing.caFile: must be an absolute path, got "ca.pem"; write it from the root, beginning with a slash`},
		{"tracing half a pair", func(c *Config) { c.Tracing.Endpoint, c.Tracing.ClientKeyFile = "https://c:4317", "/k.pem" }, `tracing.clientCertificateFile: must be set together with tracing.clientKeyFile; set both or neither`},
		{"tracing headers here", func(c *Config) { c.Tracing.Endpoint, c.Tracing.HeadersFile = "http://127.0.0.1:4317", "/h" }, ""},
		{"tracing headers by TLS", func(c *Config) { c.Tracing.Endpoint, c.Tracing.HeadersFile = "https://c:4317", "/h" }, ""},
		{"tracing headers relative", func(c *Config) { c.Tracing.Endpoint, c.Tracing.HeadersFile = "https://c:4317", "h" }, `tracing.headersFile: must be an absolute path, got "h"; write it from the root, beginning with a slash`},
		{"tracing headers in the open", func(c *Config) {
			c.Tracing = Tracing{Endpoint: "http://192.0.2.1:4317", AllowPlaintext: true, HeadersFile: "/h", SampleRatio: 1}
		}, `tracing.headersFile: would show its headers to whoever is on the way; begin tracing.endpoint with https://, or remove the line`},
		{"sample ratio", func(c *Config) { c.Tracing.SampleRatio = 1.5 }, `tracing.sampleRatio: must be 0 to 1, got 1.5; write 0.01 for one request in a hundred`},
		{"log format", func(c *Config) { c.Log.Format = "xml" }, `log.format: must be one of json, console, got "xml"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse([]byte(minimal))
			if err != nil {
				t.Fatal(err)
			}
			tt.edit(&c)
			got := ""
			if err := c.Validate(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("Validate:\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, make([]byte, maxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte(minimal+"log: {level: loud}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing.yaml")
	tests := []struct{ name, path, want string }{
		{"none given", "", "no configuration file is given; pass --config FILE"},
		{"missing", missing, "read the configuration: open " + missing + ": no such file or directory; write the file or pass --config FILE"},
		{"directory", dir, "read the configuration: read " + dir + ": is a directory"},
		{"large", large, "read the configuration: " + large + " is larger than 256 KiB; is it the right file?"},
		{"content", bad, "configuration " + bad + ":\nlog.level: must be one of debug, info, warn, error, got \"loud\" (line 7)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(tt.path)
			if err == nil || err.Error() != tt.want {
				t.Errorf("Load:\n got %v\nwant %s", err, tt.want)
			}
		})
	}
	if _, err := Load(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load(missing) = %v, want fs.ErrNotExist inside", err)
	}
}

// Vendors take secrets by environment variables: no way of printing shows one.
func TestPrintHidesEnvironment(t *testing.T) {
	const secret = "hunter2"
	c, err := Parse([]byte(minimal + "  \n"))
	if err != nil {
		t.Fatal(err)
	}
	c.HSM.Env = Env{"TOKEN": secret}
	printed := []string{c.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		printed = append(printed, fmt.Sprintf(verb, c), fmt.Sprintf(verb, c.HSM), fmt.Sprintf(verb, c.HSM.Env))
	}
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range append(printed, string(data)) {
		if strings.Contains(s, secret) || strings.Contains(s, fmt.Sprintf("%x", secret)) {
			t.Errorf("the value of an environment variable is printed: %s", s)
		}
	}
	if !strings.Contains(c.String(), "TOKEN: '[set]'") {
		t.Errorf("String does not name the variable:\n%s", c)
	}
	if diff := cmp.Diff([]string{"TOKEN=" + secret}, c.HSM.Env.List()); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	example, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Add([]byte("hsm: {<<: *a, token: &b [1], 1: 2}\n---\n"))
	f.Add([]byte("\"a\\nb\": 1\nhsm: {\"\\e[2J\": 1, env: {\"A\\nB\": c}}\n"))
	f.Add([]byte("hsm: {token: {uri: \"pkcs11:token=a?pin-value=1234\"}, pinFile: \"a\\0\"}\nlog: {level: \"\\u202e\"}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 || err.Error() == "" {
				t.Fatalf("Parse = %#v, want Problems with a text", err)
			}
			for _, p := range problems {
				// One line each, that a terminal shows as it is, and names the field or is
				// about the file as a whole.
				if s := p.String(); p.Text == "" || !utf8.ValidString(s) || strings.IndexFunc(s, unicode.IsControl) >= 0 {
					t.Errorf("problem %q", s)
				}
				if p.Line < 0 || p.Line > 1+bytes.Count(data, []byte("\n"))+bytes.Count(data, []byte("\r"))+bytes.Count(data, []byte("\u2028"))+bytes.Count(data, []byte("\u2029"))+bytes.Count(data, []byte("\u0085")) {
					t.Errorf("problem %q in %d bytes", p, len(data))
				}
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("Parse accepted what Validate refuses: %v", err)
		}
		// What is printed can be read again, but for the hidden values.
		again, err := Parse([]byte(c.String()))
		if err != nil {
			t.Fatalf("Parse(String): %v\n%s", err, c)
		}
		hide := cmp.Transformer("hide", Env.names)
		if diff := cmp.Diff(c, again, hide); diff != "" {
			t.Fatalf("Parse(String) differs (-want +got):\n%s", diff)
		}
	})
}
