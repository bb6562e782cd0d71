package config

import (
	"time"
)

// Config is everything that an operator can set. Only hsm.module, hsm.token,
// hsm.pinFile (or hsm.pinCredential) and keyRing.label have no default.
type Config struct {
	Socket  Socket  `yaml:"socket"`
	HTTP    HTTP    `yaml:"http"`
	HSM     HSM     `yaml:"hsm"`
	KeyRing KeyRing `yaml:"keyRing"`
	Seeds   Seeds   `yaml:"seeds"`
	Health  Health  `yaml:"health"`
	Log     Log     `yaml:"log"`
	Audit   Audit   `yaml:"audit"`
	Tracing Tracing `yaml:"tracing"`
	Cluster Cluster `yaml:"cluster"`
	// StateDir is the directory, absolute, where kekd remembers what must survive a
	// restart: the newest key it published, a latched PIN, the use counts of direct
	// mode. It is made with mode 0700 if it is missing. No key, seed or PIN
	// is kept there, but who deletes it makes kekd forget a revoked key.
	StateDir string `yaml:"stateDir"`
}

// Socket is where kube-apiserver reaches kekd.
type Socket struct {
	// Path is the Unix socket's path, absolute, at most 107 bytes. Its directory
	// must exist, belong to root or to kekd's user, and be writable by nobody else.
	// The EncryptionConfiguration names it as endpoint: unix://PATH.
	Path string `yaml:"path"`
	// AllowedUIDs are the user ids that may call, 1 to 64 of them, as the kernel
	// reports them (SO_PEERCRED). kube-apiserver runs as 0 under kubeadm.
	AllowedUIDs []uint32 `yaml:"allowedUIDs"`
	// MaxInFlight bounds the Encrypt and Decrypt requests served at once, 1 to
	// 65536; one more is refused at once (ResourceExhausted). Status is never
	// refused.
	MaxInFlight int `yaml:"maxInFlight"`
	// RequestTimeout ends a request whose client set no shorter deadline, 100ms to
	// 1m. kube-apiserver's own timeout is 3s by default.
	RequestTimeout time.Duration `yaml:"requestTimeout"`
}

// HTTP is the read-only endpoint of /livez, /readyz, /metrics and /status, and of the
// status page at /.
type HTTP struct {
	// Address is IP:PORT or localhost:PORT to listen on; port 0 takes a free one.
	// Empty turns the endpoint off.
	Address string `yaml:"address"`
	// AllowRemote permits an address that is not loopback. The endpoint has no
	// login and no TLS: whoever reaches it reads key ids, states and counters.
	AllowRemote bool `yaml:"allowRemote"`
}

// HSM is the token that holds the KEKs, and how to reach it.
type HSM struct {
	// Module is the path, absolute, of the PKCS#11 module (a shared library) of the
	// HSM's vendor. It is loaded in a child process only. Required.
	Module string `yaml:"module"`
	// Token names the one token to use. Exactly one of its fields is required.
	Token Token `yaml:"token"`
	// PINFile is the path, absolute, of the file that holds the user PIN, 1 to 256
	// bytes and perhaps one newline. Others than its owner must not be able to read
	// it. Either this or hsm.pinCredential is required.
	PINFile string `yaml:"pinFile"`
	// PINCredential is the name of the systemd credential (LoadCredential=,
	// LoadCredentialEncrypted=) that holds the user PIN.
	PINCredential string `yaml:"pinCredential"`
	// AllowOpenPINFile accepts a hsm.pinFile that group or others can read, as some
	// secret stores mount it.
	AllowOpenPINFile bool `yaml:"allowOpenPinFile"`
	// AllowFinalPINTry lets kekd log in although the token reports that one more
	// wrong PIN locks it. Without it such a token is not touched.
	AllowFinalPINTry bool `yaml:"allowFinalPinTry"`
	// Sessions is how many PKCS#11 sessions are used at once, 1 to 64. Warm
	// requests need none.
	Sessions int `yaml:"sessions"`
	// CallTimeout is how long one call into the module may take, 1s to 5m. A call
	// past it costs the worker process its life (SIGKILL), since a PKCS#11 call
	// cannot be cancelled.
	CallTimeout time.Duration `yaml:"callTimeout"`
	// Mechanism is what wraps new seeds: auto (the best one that passes a proof on
	// the real KEK), aes-gcm, aes-kwp or aes-cbc-hmac. Old ciphertexts are opened
	// with the mechanism that they name, whatever is set here.
	Mechanism Mechanism `yaml:"mechanism"`
	// InitArgs is passed to C_Initialize as its reserved argument, at most 4096
	// bytes. NSS softokn needs it; other modules want it empty.
	InitArgs string `yaml:"initArgs"`
	// Env is the whole environment of the worker process, for modules that
	// are configured so (SOFTHSM2_CONF, ChrystokiConfigurationPath). The values are
	// not printed. Not the place for a PIN.
	Env Env `yaml:"env"`
}

// Token names a token by exactly one property.
type Token struct {
	// Label is the token's label, 1 to 32 bytes, without the padding.
	Label string `yaml:"label"`
	// Serial is the token's serial number, 1 to 16 bytes. Quote it in YAML.
	Serial string `yaml:"serial"`
	// URI is a PKCS#11 URI (RFC 7512) that matches the token, as
	// pkcs11:token=kekd;serial=0123. A PIN in it is refused.
	URI string `yaml:"uri"`
}

// KeyRing says which keys of the token are KEKs of this cluster.
type KeyRing struct {
	// Label is the CKA_LABEL that the ring's keys share: a letter or digit, then up
	// to 126 letters, digits, dots, underscores and hyphens. It is part of the
	// key_id in every object that Kubernetes stores; the keys of another label are
	// another ring. Required.
	Label string `yaml:"label"`
	// Refresh is how often the ring is read, 100ms to 10m. A key that was revoked
	// or activated is noticed within this time.
	Refresh time.Duration `yaml:"refresh"`
	// Primary is the CKA_ID, hexadecimal, of the key that encrypts. Only for a ring
	// with several keys that other tools made; keys that kekctl made order
	// themselves.
	Primary string `yaml:"primary"`
	// Policy is what is demanded of the ring. kekd warns by log and metric where the
	// ring is not so, and goes on; kekctl doctor fails.
	Policy KeyPolicy `yaml:"policy"`
}

// KeyPolicy is what an organisation demands of its KEKs.
type KeyPolicy struct {
	// MaxAge is how long after its activation a key may be the primary, 0s to
	// 87600h; 0s is without limit. kekctl rotate --if-due rotates then.
	MaxAge time.Duration `yaml:"maxAge"`
	// MinActivationDelay is the least time between the creation of a key beside
	// others and its activation, 0s to 720h. kekctl refuses less, except to revoke.
	MinActivationDelay time.Duration `yaml:"minActivationDelay"`
	// MinDestroyDelay is the least time that a key stays restorable after kekctl key
	// destroy, 24h to 87600h, in whole days.
	MinDestroyDelay time.Duration `yaml:"minDestroyDelay"`
	// Require are attributes that every usable key must have, as the token tells
	// them: any of sensitive, non-extractable, always-sensitive, never-extractable
	// and local. An imported key is not local, and was known outside the token.
	Require []Attribute `yaml:"require"`
}

// Cluster tells kekctl where the cluster is. kekd does not read it. What is left
// out kekctl finds out: from kube-apiserver's static pod, the kubeconfig, and the
// cluster itself.
type Cluster struct {
	// Etcd is the cluster's store.
	Etcd Etcd `yaml:"etcd"`
	// APIServers are the URLs of all API servers, https://HOST:PORT. Empty takes
	// those that the cluster lists.
	APIServers []string `yaml:"apiServers"`
	// Nodes are the URLs of all kekds' HTTP endpoints, http://HOST:PORT. Empty takes
	// the kekd pods of the cluster, or this node's kekd if there are none.
	Nodes []string `yaml:"nodes"`
	// Resources are those that kube-apiserver encrypts with kekd, spelled as kekctl
	// inventory does: secrets, widgets.example.com. Empty takes those of the
	// EncryptionConfiguration.
	Resources []string `yaml:"resources"`
}

// Etcd says how to reach etcd.
type Etcd struct {
	// Endpoints are the client URLs of all members, all http or all https.
	Endpoints []string `yaml:"endpoints"`
	// CA is the file, absolute, with the CA of etcd's certificates.
	CA string `yaml:"ca"`
	// Cert is the file, absolute, with kekctl's client certificate for etcd.
	Cert string `yaml:"cert"`
	// Key is the file, absolute, with that certificate's key.
	Key string `yaml:"key"`
	// Prefix is kube-apiserver's --etcd-prefix.
	Prefix string `yaml:"prefix"`
}

// Seeds says how the KEK is used.
type Seeds struct {
	// Mode is one of seeded (requests are served from a seed that the KEK wrapped
	// once) and direct (every request is one operation of the HSM). Both read what
	// both wrote.
	Mode Mode `yaml:"mode"`
	// MaxAge is how long one seed encrypts, 10s to 720h. A new one is prepared at
	// 80% of it. An outage of the HSM that outlives the seed stops Encrypt.
	MaxAge time.Duration `yaml:"maxAge"`
	// MaxUses is how often one seed encrypts, 1 to 4294967296. A new one is
	// prepared at 80% of it.
	MaxUses uint64 `yaml:"maxUses"`
	// CacheSize is how many unwrapped seeds are kept for Decrypt, 1 to 1048576, 32
	// bytes each. Old ciphertexts whose seed is not kept cost one HSM operation.
	CacheSize int `yaml:"cacheSize"`
	// LockMemory keeps seeds out of swap (mlock) and fails the start where the
	// limit does not allow it (systemd: LimitMEMLOCK=).
	LockMemory bool `yaml:"lockMemory"`
}

// Health says when kekd calls itself healthy.
type Health struct {
	// ProbeInterval is the time between two probes (one wrap and one unwrap on the
	// primary KEK), 100ms to 5m, give or take a tenth.
	ProbeInterval time.Duration `yaml:"probeInterval"`
	// OutageGrace is how long kekd goes on serving from its seeds while the HSM
	// fails, counted from the last success, 0s to 24h. After it Status fails, and
	// kube-apiserver stops writing within three minutes. 0s stops at the first
	// failure.
	OutageGrace time.Duration `yaml:"outageGrace"`
}

// Log says what is written to standard error.
type Log struct {
	// Level is one of debug, info, warn and error. Requests are logged at debug.
	Level string `yaml:"level"`
	// Format is one of json and console.
	Format string `yaml:"format"`
}

// Audit says where operations with the keys are put on record, see audit.md.
type Audit struct {
	// Dir is the directory, absolute, of the audit trail. kekd and kekctl write a
	// chain of files each. It is made with mode 0750 if it is missing, and must be
	// writable by nobody but its owner. Empty turns the trail off.
	Dir string `yaml:"dir"`
	// OnFailure is one of continue (what cannot be written is lost, counted, and the
	// trail says so later) and block (no Encrypt or Decrypt is answered before it is
	// in the file, and none while it cannot be; kekctl changes nothing then).
	OnFailure AuditPolicy `yaml:"onFailure"`
	// WarmDecrypts is one of all (a record for each) and aggregate (the Decrypts that
	// were served from memory are added up by caller and key until the next
	// checkpoint).
	WarmDecrypts WarmDecrypts `yaml:"warmDecrypts"`
	// CheckpointEvery is how often the trail is signed by the audit key on the token,
	// 1s to 1h. What was not signed yet could be cut off unnoticed.
	CheckpointEvery time.Duration `yaml:"checkpointEvery"`
	// CheckpointRecords signs the trail earlier, after so many records, 10 to 50000.
	CheckpointRecords int `yaml:"checkpointRecords"`
	// MaxFileSize is the size in bytes at which a file ends, 1048576 to 1073741824.
	MaxFileSize int `yaml:"maxFileSize"`
	// MaxFiles is how many files of a chain are kept, 2 to 100000; 0 keeps all.
	MaxFiles int `yaml:"maxFiles"`
	// MaxAge is how long after its last record a file is kept, 1h to 87600h; 0s keeps
	// all.
	MaxAge time.Duration `yaml:"maxAge"`
	// Forward is where each line goes besides the file, as far as it is taken there:
	// one of none, syslog (the datagram socket /dev/log) and journald.
	Forward Forward `yaml:"forward"`
}

// AuditPolicy is a choice of audit.onFailure.
type AuditPolicy string

const (
	AuditContinue AuditPolicy = "continue"
	AuditBlock    AuditPolicy = "block"
)

// WarmDecrypts is a choice of audit.warmDecrypts.
type WarmDecrypts string

const (
	WarmAll       WarmDecrypts = "all"
	WarmAggregate WarmDecrypts = "aggregate"
)

// Forward is a choice of audit.forward.
type Forward string

const (
	ForwardNone     Forward = "none"
	ForwardSyslog   Forward = "syslog"
	ForwardJournald Forward = "journald"
)

// Tracing says where the traces of requests go, see tracing.md. The names in
// parentheses are those that OpenTelemetry has for the same in the environment.
type Tracing struct {
	// Endpoint is the collector that takes OTLP by gRPC (OTEL_EXPORTER_OTLP_ENDPOINT):
	// http://HOST:PORT without TLS, https://HOST:PORT with it. Empty turns tracing off.
	Endpoint string `yaml:"endpoint"`
	// AllowPlaintext permits an http:// endpoint that is not on this host
	// (OTEL_EXPORTER_OTLP_INSECURE). Whoever is on the way reads key_ids, uids and
	// times, and can take the collector's place.
	AllowPlaintext bool `yaml:"allowPlaintext"`
	// CAFile is the path, absolute, of the certificates in PEM that vouch for an
	// https:// endpoint (OTEL_EXPORTER_OTLP_CERTIFICATE). Empty trusts those of the
	// system.
	CAFile string `yaml:"caFile"`
	// ClientCertificateFile is the path, absolute, of the certificate in PEM that kekd
	// shows to an https:// endpoint (OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE). It is read
	// anew for every connection.
	ClientCertificateFile string `yaml:"clientCertificateFile"`
	// ClientKeyFile is the path, absolute, of the key of that certificate
	// (OTEL_EXPORTER_OTLP_CLIENT_KEY).
	ClientKeyFile string `yaml:"clientKeyFile"`
	// HeadersFile is the path, absolute, of a file with headers that each batch carries,
	// such as a token for the collector: lines of the form NAME: VALUE
	// (OTEL_EXPORTER_OTLP_HEADERS, which is not read). Its mode must be 0600. It is read
	// anew for each batch.
	HeadersFile string `yaml:"headersFile"`
	// SampleRatio is the share of requests that are recorded, 0 to 1
	// (OTEL_TRACES_SAMPLER=parentbased_traceidratio, OTEL_TRACES_SAMPLER_ARG). For a
	// client that sends its own trace along, its decision counts instead. Starts of the
	// HSM worker, proofs of keys and changes of the key in use are always recorded.
	SampleRatio float64 `yaml:"sampleRatio"`
}

// Mechanism is a choice of hsm.mechanism.
type Mechanism string

const (
	MechanismAuto    Mechanism = "auto"
	MechanismGCM     Mechanism = "aes-gcm"
	MechanismKWP     Mechanism = "aes-kwp"
	MechanismCBCHMAC Mechanism = "aes-cbc-hmac"
)

// Attribute is a choice of keyRing.policy.require.
type Attribute string

const (
	Sensitive        Attribute = "sensitive"
	NonExtractable   Attribute = "non-extractable"
	AlwaysSensitive  Attribute = "always-sensitive"
	NeverExtractable Attribute = "never-extractable"
	Local            Attribute = "local"
)

// Mode is a choice of seeds.mode.
type Mode string

const (
	ModeSeeded Mode = "seeded"
	ModeDirect Mode = "direct"
)

// Default returns the configuration of an empty file. It is complete but for
// the fields that have no default, so Validate refuses it.
func Default() Config {
	return Config{
		Socket: Socket{
			Path:           "/run/kekd/kekd.sock",
			AllowedUIDs:    []uint32{0},
			MaxInFlight:    256,
			RequestTimeout: 5 * time.Second,
		},
		HTTP: HTTP{Address: "127.0.0.1:8780"},
		HSM: HSM{
			Sessions:    4,
			CallTimeout: 10 * time.Second,
			Mechanism:   MechanismAuto,
		},
		KeyRing: KeyRing{Refresh: 10 * time.Second, Policy: KeyPolicy{MinDestroyDelay: 24 * time.Hour, Require: []Attribute{}}},
		Seeds: Seeds{
			Mode:       ModeSeeded,
			MaxAge:     24 * time.Hour,
			MaxUses:    1 << 20,
			CacheSize:  4096,
			LockMemory: true,
		},
		Health: Health{
			ProbeInterval: 10 * time.Second,
			OutageGrace:   10 * time.Minute,
		},
		Log: Log{Level: "info", Format: "json"},
		Audit: Audit{
			OnFailure:         AuditContinue,
			WarmDecrypts:      WarmAll,
			CheckpointEvery:   time.Minute,
			CheckpointRecords: 1000,
			MaxFileSize:       64 << 20,
			MaxFiles:          100,
			Forward:           ForwardNone,
		},
		Tracing: Tracing{SampleRatio: 1},
		Cluster: Cluster{
			Etcd:       Etcd{Endpoints: []string{}},
			APIServers: []string{}, Nodes: []string{}, Resources: []string{},
		},
		StateDir: "/var/lib/kekd",
	}
}
