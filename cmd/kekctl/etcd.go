package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kekd/internal/inventory"
)

// apiserverManifest is kube-apiserver's static pod on a node that kubeadm set up.
const apiserverManifest = "/etc/kubernetes/manifests/kube-apiserver.yaml"

// etcdFlags say where etcd is. What is not given on the command line is taken from
// kube-apiserver's static pod, if there is one on this machine, and is else as on a
// node that kubeadm set up.
type etcdFlags struct {
	endpoints     []string
	ca, cert, key string
	prefix        string
	viaCluster    bool
	manifest      string
	given         *pflag.FlagSet
	// kube is for viaCluster. A command that has kubeFlags of its own puts them
	// here before it calls add.
	kube *kubeFlags
}

func (f *etcdFlags) add(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.endpoints, "etcd-endpoints", []string{"https://127.0.0.1:2379"}, "`URLs` of etcd; these and the next four default to what kube-apiserver's static pod on this machine says")
	flags.StringVar(&f.ca, "etcd-cacert", "/etc/kubernetes/pki/etcd/ca.crt", "`file` with the CA of etcd's certificates; empty for the system's")
	flags.StringVar(&f.cert, "etcd-cert", "/etc/kubernetes/pki/apiserver-etcd-client.crt", "`file` with the client certificate for etcd; empty for none")
	flags.StringVar(&f.key, "etcd-key", "/etc/kubernetes/pki/apiserver-etcd-client.key", "`file` with the client certificate's key")
	flags.StringVar(&f.prefix, "etcd-prefix", "/registry", "kube-apiserver's --etcd-prefix")
	flags.BoolVar(&f.viaCluster, "etcd-via-cluster", false, "reach the endpoints through the cluster, from within a static pod of etcd")
	f.given, f.manifest = flags, apiserverManifest
	if f.kube == nil {
		f.kube = new(kubeFlags)
		f.kube.add(flags)
	}
}

// open prepares for reading etcd. Nothing is sent to it yet.
func (f *etcdFlags) open(ctx context.Context) (*inventory.Store, error) {
	f.readManifest()
	cfg := inventory.Config{Endpoints: f.endpoints, Prefix: f.prefix}
	secure, err := f.secure()
	if err != nil {
		return nil, err
	}
	if secure {
		if cfg.TLS, err = f.tls(); err != nil {
			return nil, err
		}
	}
	if f.viaCluster {
		if cfg.Dial, err = f.dialer(ctx); err != nil {
			return nil, err
		}
	}
	return inventory.Open(cfg)
}

// readManifest takes the flags that were not given from kube-apiserver's. Without
// a manifest that this user may read and that makes sense, their defaults hold.
func (f *etcdFlags) readManifest() {
	b, err := os.ReadFile(f.manifest)
	if err != nil {
		return
	}
	var pod struct {
		Spec struct {
			Containers []struct {
				Command []string `yaml:"command"`
				Args    []string `yaml:"args"`
			} `yaml:"containers"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(b, &pod); err != nil {
		return
	}
	said := map[string]string{}
	for _, c := range pod.Spec.Containers {
		words := append(c.Command, c.Args...)
		for i, word := range words {
			name, value, ok := strings.Cut(word, "=")
			if !ok && i+1 < len(words) {
				value = words[i+1]
			}
			said[name] = value
		}
	}
	if said["--etcd-servers"] == "" {
		return
	}
	if !f.given.Changed("etcd-endpoints") {
		f.endpoints = strings.Split(said["--etcd-servers"], ",")
	}
	for flag, v := range map[string]struct {
		value *string
		name  string
	}{
		"etcd-cacert": {&f.ca, "--etcd-cafile"},
		"etcd-cert":   {&f.cert, "--etcd-certfile"},
		"etcd-key":    {&f.key, "--etcd-keyfile"},
	} {
		if !f.given.Changed(flag) {
			*v.value = said[v.name]
		}
	}
	if prefix := said["--etcd-prefix"]; prefix != "" && !f.given.Changed("etcd-prefix") {
		f.prefix = prefix
	}
}

// secure reports whether the endpoints speak TLS.
func (f *etcdFlags) secure() (bool, error) {
	schemes := map[string]bool{}
	for _, endpoint := range f.endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return false, codeError{exitUsage, fmt.Sprintf("--etcd-endpoints: must be URLs such as https://127.0.0.1:2379, got %q", endpoint)}
		}
		schemes[u.Scheme] = true
	}
	if len(schemes) != 1 {
		return false, codeError{exitUsage, fmt.Sprintf("--etcd-endpoints: must be all http or all https, got %q", strings.Join(f.endpoints, ","))}
	}
	return schemes["https"], nil
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
