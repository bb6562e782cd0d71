package encryptionconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	apiVersion = "apiserver.config.k8s.io/v1"
	kind       = "EncryptionConfiguration"
	// defaultTimeout is kube-apiserver's, for a provider that sets none.
	defaultTimeout = 3 * time.Second
)

// Config is an EncryptionConfiguration and where it was found.
type Config struct {
	Source Source
	Rules  []Rule
	// unread are the parts of the file that this package does not know or that are not
	// valid, whatever the socket.
	unread []Problem
}

// Rule is how some resources are encrypted.
type Rule struct {
	Resources []string
	Providers []Provider
}

// Kinds of provider.
const (
	KindKMS       = "kms"
	KindIdentity  = "identity"
	KindAESGCM    = "aesgcm"
	KindAESCBC    = "aescbc"
	KindSecretbox = "secretbox"
	// KindUnknown is a provider with no kind that this package knows, or with several.
	KindUnknown = "unknown"
)

// Provider is one provider of a rule.
type Provider struct {
	Kind string
	// Key is the first key's name, of a provider with static keys.
	Key string
	// KMS is nil except for KindKMS.
	KMS *KMS
}

// KMS is a KMS plugin as the file describes it.
type KMS struct {
	// APIVersion is v1 where the file sets none.
	APIVersion string
	Name       string
	Endpoint   string
	Timeout    time.Duration
	// CacheSize is nil where the file sets none.
	CacheSize *int64
}

// String names a provider as a person would: "identity", "aescbc: key1", "kms kekd".
func (p Provider) String() string {
	switch {
	case p.KMS != nil:
		return "kms " + p.KMS.Name
	case p.Key != "":
		return p.Kind + ": " + p.Key
	}
	return p.Kind
}

// The file as it is written.
type fileConfig struct {
	APIVersion string     `yaml:"apiVersion"`
	Kind       string     `yaml:"kind"`
	Resources  []fileRule `yaml:"resources"`
}

type fileRule struct {
	Resources []string       `yaml:"resources"`
	Providers []fileProvider `yaml:"providers"`
}

type fileProvider struct {
	AESGCM    *fileKeys `yaml:"aesgcm"`
	AESCBC    *fileKeys `yaml:"aescbc"`
	Secretbox *fileKeys `yaml:"secretbox"`
	Identity  *struct{} `yaml:"identity"`
	KMS       *fileKMS  `yaml:"kms"`
}

type fileKeys struct {
	Keys []struct {
		Name   string `yaml:"name"`
		Secret hidden `yaml:"secret"`
	} `yaml:"keys"`
}

// hidden is a value that is not read.
type hidden struct{}

// UnmarshalYAML implements yaml.Unmarshaler.
func (*hidden) UnmarshalYAML(*yaml.Node) error { return nil }

type fileKMS struct {
	APIVersion string `yaml:"apiVersion"`
	Name       string `yaml:"name"`
	Endpoint   string `yaml:"endpoint"`
	Timeout    string `yaml:"timeout"`
	CacheSize  *int64 `yaml:"cachesize"`
}

// Parse reads an EncryptionConfiguration, in YAML or JSON. It fails only for what is no
// such file at all; Resources reports the rest.
func Parse(data []byte) (Config, error) {
	var c Config
	var in fileConfig
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err := dec.Decode(&in)
	var typeErr *yaml.TypeError
	switch {
	case errors.Is(err, io.EOF):
		return c, errors.New("the file is empty")
	case errors.As(err, &typeErr):
		for _, text := range typeErr.Errors {
			c.refuse(plain(text), correct)
		}
	case err != nil:
		return c, fmt.Errorf("not valid YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		c.refuse("more follows the first YAML document, which kube-apiserver does not read", "remove it")
	}
	if in.APIVersion != apiVersion || in.Kind != kind {
		if in.Kind == "" && len(in.Resources) == 0 {
			return c, fmt.Errorf("not an %s: kind is %q", kind, in.Kind)
		}
		c.refuse(fmt.Sprintf("apiVersion and kind must be %s and %s, got %q and %q", apiVersion, kind, in.APIVersion, in.Kind), correct)
	}
	for i, r := range in.Resources {
		c.Rules = append(c.Rules, c.rule(i, r))
	}
	if len(c.Rules) == 0 {
		c.refuse("resources is empty, so nothing is encrypted", "begin with "+encryptFile)
	}
	return c, nil
}

// goType is a Go type in an error of the YAML parser.
var goType = regexp.MustCompile(` (in type|into) [a-zA-Z0-9_.*\[\]]+$`)

// plain takes Go's types, and values that may be keys, out of an error of the parser.
func plain(text string) string {
	text = goType.ReplaceAllString(text, "")
	if before, _, ok := strings.Cut(text, "cannot unmarshal "); ok {
		return before + "a value of the wrong type"
	}
	return strings.Replace(text, "not found", "is unknown", 1)
}

// correct is the remedy for most mistakes.
const correct = "correct the file: a running kube-apiserver keeps its old configuration, and does not start again with this one"

// refuse notes a mistake that keeps kube-apiserver from using the file.
func (c *Config) refuse(text, remedy string) {
	c.unread = append(c.unread, Problem{Verdict: Fail, Text: text, Remedy: remedy})
}

func (c *Config) rule(i int, in fileRule) Rule {
	r := Rule{Resources: in.Resources}
	if len(in.Resources) == 0 {
		c.refuse(fmt.Sprintf("resources[%d].resources is empty", i), correct)
	}
	if len(in.Providers) == 0 {
		c.refuse(fmt.Sprintf("resources[%d].providers is empty", i), correct)
	}
	for j, p := range in.Providers {
		r.Providers = append(r.Providers, c.provider(fmt.Sprintf("resources[%d].providers[%d]", i, j), p))
	}
	return r
}

func (c *Config) provider(field string, in fileProvider) Provider {
	var found []Provider
	for _, k := range []struct {
		kind string
		keys *fileKeys
	}{{KindAESGCM, in.AESGCM}, {KindAESCBC, in.AESCBC}, {KindSecretbox, in.Secretbox}} {
		if k.keys == nil {
			continue
		}
		p := Provider{Kind: k.kind}
		if len(k.keys.Keys) > 0 {
			p.Key = k.keys.Keys[0].Name
		} else {
			c.refuse(fmt.Sprintf("%s.%s.keys is empty", field, k.kind), correct)
		}
		found = append(found, p)
	}
	if in.Identity != nil {
		found = append(found, Provider{Kind: KindIdentity})
	}
	if in.KMS != nil {
		found = append(found, Provider{Kind: KindKMS, KMS: c.kms(field+".kms", in.KMS)})
	}
	if len(found) != 1 {
		c.refuse(fmt.Sprintf("%s must have exactly one of aesgcm, aescbc, secretbox, identity and kms, got %d", field, len(found)), "correct the file; identity is written as identity: {}")
		return Provider{Kind: KindUnknown}
	}
	return found[0]
}

func (c *Config) kms(field string, in *fileKMS) *KMS {
	k := &KMS{APIVersion: in.APIVersion, Name: in.Name, Endpoint: in.Endpoint, Timeout: defaultTimeout, CacheSize: in.CacheSize}
	if k.APIVersion == "" {
		k.APIVersion = "v1"
	}
	if in.Timeout != "" {
		d, err := time.ParseDuration(in.Timeout)
		if err != nil {
			c.refuse(fmt.Sprintf("%s.timeout must be a duration such as 3s, got %q", field, in.Timeout), correct)
			return k
		}
		k.Timeout = d
	}
	return k
}
