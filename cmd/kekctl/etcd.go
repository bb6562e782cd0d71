package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kekd/internal/apiserverflags"
	"kekd/internal/config"
	"kekd/internal/inventory"
)

// etcdFlags say where etcd is. What is not given on the command line is taken from
// cluster.etcd of kekd's configuration, else from kube-apiserver's static pod, if
// there is one on this machine, and is else as on a node that kubeadm set up.
type etcdFlags struct {
	endpoints     []string
	ca, cert, key string
	prefix        string
	overrides     []string
	viaCluster    bool
	manifest      string
	warned        bool // that the manifest cannot be read
	completed     bool
	app           *app
	given         *pflag.FlagSet
	// kube is for viaCluster. A command that has kubeFlags of its own puts them
	// here before it calls add.
	kube *kubeFlags
}

// The flags, which messages name too.
const (
	flagEndpoints = "etcd-endpoints"
	flagCA        = "etcd-cacert"
	flagCert      = "etcd-cert"
	flagKey       = "etcd-key"
	flagPrefix    = "etcd-prefix"
	flagOverrides = "etcd-servers-overrides"
)

func (f *etcdFlags) add(a *app, flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.endpoints, flagEndpoints, []string{"https://127.0.0.1:2379"}, "`URLs` of etcd; these and the next four default to cluster.etcd of kekd's configuration, else to what kube-apiserver's static pod on this machine says")
	flags.StringVar(&f.ca, flagCA, "/etc/kubernetes/pki/etcd/ca.crt", "`file` with the CA of etcd's certificates; empty for the system's")
	flags.StringVar(&f.cert, flagCert, "/etc/kubernetes/pki/apiserver-etcd-client.crt", "`file` with the client certificate for etcd; empty for none")
	flags.StringVar(&f.key, flagKey, "/etc/kubernetes/pki/apiserver-etcd-client.key", "`file` with the client certificate's key")
	flags.StringVar(&f.prefix, flagPrefix, "/registry", "kube-apiserver's --etcd-prefix")
	flags.StringSliceVar(&f.overrides, flagOverrides, nil, "kube-apiserver's --etcd-servers-overrides, `GROUP/RESOURCE#URL;URL`, to read these too; defaults to what its static pod on this machine says; empty for none")
	flags.BoolVar(&f.viaCluster, "etcd-via-cluster", false, "reach the endpoints through the cluster, from within a static pod of etcd")
	f.app, f.given, f.manifest = a, flags, apiserverflags.KubeadmManifest
	if f.kube == nil {
		f.kube = new(kubeFlags)
		f.kube.add(flags)
	}
}

// open prepares for reading etcd. Nothing is sent to it yet.
func (f *etcdFlags) open(ctx context.Context) (*inventory.Store, error) {
	if err := f.complete(); err != nil {
		return nil, err
	}
	cfg := inventory.Config{Endpoints: f.endpoints, Prefix: f.prefix}
	secure, err := inventory.Secure(f.endpoints)
	if err != nil {
		return nil, codeError{exitUsage, fmt.Sprintf("--%s: %v", flagEndpoints, err)}
	}
	if cfg.Overrides, err = inventory.ParseOverrides(f.overrides); err != nil {
		return nil, codeError{exitUsage, fmt.Sprintf("--%s: %v", flagOverrides, err)}
	}
	for _, o := range cfg.Overrides {
		overSecure, err := inventory.Secure(o.Endpoints)
		if err != nil {
			return nil, codeError{exitUsage, fmt.Sprintf("--%s: %v", flagOverrides, err)}
		}
		secure = secure || overSecure
	}
	if secure {
		if cfg.TLS, err = f.tls(); err != nil {
			return nil, err
		}
	}
	if f.viaCluster {
		if len(cfg.Overrides) > 0 {
			return nil, codeError{exitUsage, fmt.Sprintf("--etcd-via-cluster: does not reach the etcd that kube-apiserver keeps %s in (--%s); "+
				"run kekctl where it reaches that one", cfg.Overrides[0].Resource, flagOverrides)}
		}
		if cfg.Dial, err = f.dialer(ctx); err != nil {
			return nil, err
		}
	}
	return inventory.Open(cfg)
}

// complete fills in what the command line does not say. Only the first call that
// succeeds does anything.
func (f *etcdFlags) complete() error {
	if f.completed {
		return nil
	}
	err := f.fill()
	f.completed = err == nil
	return err
}

func (f *etcdFlags) fill() error {
	set := map[string]bool{} // by the command line or the configuration
	for _, flag := range []string{flagEndpoints, flagCA, flagCert, flagKey, flagPrefix, flagOverrides} {
		set[flag] = f.given.Changed(flag)
	}
	givenBy := "--" + flagEndpoints
	if !set[flagEndpoints] {
		givenBy = "cluster.etcd.endpoints"
	}
	if err := f.readConfig(set); err != nil {
		return err
	}
	said, err := apiserverflags.Read(f.manifest)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, apiserverflags.ErrNotAPIServer) && !f.warned {
			f.warned = true
			f.app.note("kekctl: warning: what it says of etcd, such as --%s, is not known: %s", flagOverrides, oneLine(err))
		}
		return nil
	}
	etcdServers, _ := said.Get("etcd-servers")
	if etcdServers == "" {
		return nil
	}
	servers := strings.Split(etcdServers, ",")
	overrides := strings.Join(said.All(flagOverrides), ",") // kube-apiserver adds them up
	switch {
	case !set[flagEndpoints]:
		f.endpoints = servers
	case overrides != "" && !set[flagOverrides] && !sameSet(f.endpoints, servers):
		// Whether that kube-apiserver is one of the cluster behind these endpoints is
		// unknown, so neither is which other stores belong to it.
		return fmt.Errorf("%s names %s, and kube-apiserver's static pod %s says --etcd-servers=%s --%s=%s: whether these overrides hold is unclear; "+
			"give --%s: the same value to read these too, or an empty one to leave them out",
			givenBy, strings.Join(f.endpoints, ","), f.manifest, etcdServers, flagOverrides, overrides, flagOverrides)
	}
	if !set[flagOverrides] && overrides != "" {
		f.overrides = strings.Split(overrides, ",")
	}
	for flag, v := range map[string]struct {
		value *string
		name  string
	}{flagCA: {&f.ca, "etcd-cafile"}, flagCert: {&f.cert, "etcd-certfile"}, flagKey: {&f.key, "etcd-keyfile"}} {
		if !set[flag] {
			*v.value, _ = said.Get(v.name)
		}
	}
	if prefix, _ := said.Get("etcd-prefix"); prefix != "" && !set[flagPrefix] {
		f.prefix = prefix
	}
	return nil
}

// readConfig takes what is not set from cluster.etcd of kekd's configuration, and
// notes it as set. Commands that need no more of the configuration work without it.
func (f *etcdFlags) readConfig(set map[string]bool) error {
	cfg, err := config.Load(f.app.configPath)
	switch named := f.given.Changed("config"); {
	case err == nil:
	case set[flagEndpoints], !named && (f.app.configPath == "" || errors.Is(err, fs.ErrNotExist)):
		return nil
	case named:
		return err
	default:
		f.app.note("kekctl: warning: cluster.etcd is not known: %s", oneLine(err))
		return nil
	}
	etcd := cfg.Cluster.Etcd
	if len(etcd.Endpoints) > 0 && !set[flagEndpoints] {
		f.endpoints, set[flagEndpoints] = etcd.Endpoints, true
	}
	for flag, v := range map[string]struct {
		value *string
		said  string
	}{flagCA: {&f.ca, etcd.CA}, flagCert: {&f.cert, etcd.Cert}, flagKey: {&f.key, etcd.Key}, flagPrefix: {&f.prefix, etcd.Prefix}} {
		if v.said != "" && !set[flag] {
			*v.value, set[flag] = v.said, true
		}
	}
	return nil
}

// sameSet reports whether two lists have the same elements.
func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func (f *etcdFlags) tls() (*tls.Config, error) {
	const remedy = "run kekctl on a control-plane node, or give --etcd-endpoints, --etcd-cacert, --etcd-cert and --etcd-key"
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("--etcd-cacert: %w; %s", err, remedy)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--etcd-cacert: %s holds no certificate in PEM; %s", f.ca, remedy)
		}
	}
	if f.cert != "" || f.key != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, fmt.Errorf("--etcd-cert, --etcd-key: %w; %s", err, remedy)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// dialer connects from within the pods of etcd, the first that lets it.
func (f *etcdFlags) dialer(ctx context.Context) (func(context.Context, string) (net.Conn, error), error) {
	c, err := f.kube.connect()
	if err != nil {
		return nil, err
	}
	pods, err := c.Pods(ctx, metav1.NamespaceSystem, "component=etcd")
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, errors.New("--etcd-via-cluster: no pod of namespace kube-system with the label component=etcd is running; give etcd's own address with --etcd-endpoints")
	}
	return func(ctx context.Context, address string) (net.Conn, error) {
		_, text, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		port, err := strconv.Atoi(text)
		if err != nil {
			return nil, err
		}
		var problems []error
		for _, p := range pods {
			conn, err := p.Dial(ctx, port)
			if err == nil {
				return conn, nil
			}
			problems = append(problems, err)
		}
		return nil, errors.Join(problems...)
	}, nil
}

// take counts what etcd holds.
func (f *etcdFlags) take(ctx context.Context) (*inventory.Report, error) {
	store, err := f.open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return store.Take(ctx, inventory.Options{})
}

// check fails where take would, without reading everything.
func (f *etcdFlags) check(ctx context.Context) error {
	store, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	enough := errors.New("one object is enough")
	_, err = store.Visit(ctx, inventory.Options{}, func(inventory.Object) error { return enough })
	if errors.Is(err, enough) {
		return nil
	}
	return err
}
