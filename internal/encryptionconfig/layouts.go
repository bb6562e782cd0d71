package encryptionconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"kekd/internal/apiserverflags"
)

// The layouts.
const (
	layoutKubeadm = "kubeadm"
	layoutRKE2    = "rke2"
	layoutK3s     = "k3s"
	layoutGiven   = "given"
)

// credFile is where k3s and RKE2 write an EncryptionConfiguration of their own, below
// their data directory.
const credFile = "server/cred/encryption-config.json" //nolint:gosec // G101: the name of a file

// distribution is what k3s and RKE2 have in common: a configuration file whose lists of
// arguments go on to Kubernetes' programs.
type distribution struct {
	layout string
	config string // and a directory of the same name with ".d" behind
	data   string // the default of data-dir
	units  []string
	// own: its own encryption is on unless it is turned off.
	own bool
}

func k3s() distribution {
	return distribution{
		layout: layoutK3s, config: "/etc/rancher/k3s/config.yaml", data: "/var/lib/rancher/k3s",
		units: []string{"/etc/systemd/system/k3s.service", "/usr/lib/systemd/system/k3s.service", "/usr/local/lib/systemd/system/k3s.service"},
	}
}

func rke2() distribution {
	return distribution{
		layout: layoutRKE2, config: "/etc/rancher/rke2/config.yaml", data: "/var/lib/rancher/rke2",
		units: []string{"/etc/systemd/system/rke2-server.service", "/usr/lib/systemd/system/rke2-server.service", "/usr/local/lib/systemd/system/rke2-server.service"},
		own:   true,
	}
}

// locate finds the file by the layouts. A static pod comes first: it is what runs.
func locate(root string) (Source, error) {
	for _, pod := range []struct{ layout, manifest string }{
		{layoutKubeadm, apiserverflags.KubeadmManifest},
		{layoutRKE2, apiserverflags.RKE2Manifest},
	} {
		flags, err := apiserverflags.Read(filepath.Join(root, pod.manifest))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		s := Source{Layout: pod.layout, By: pod.manifest, root: root}
		if err != nil {
			return s, err
		}
		return s.fromFlags(flags)
	}
	for _, d := range []distribution{k3s(), rke2()} {
		s, found, err := d.locate(root)
		if found || err != nil {
			return s, err
		}
	}
	return Source{root: root}, ErrNoAPIServer
}

// fromFlags takes the file from kube-apiserver's flags.
func (s Source) fromFlags(flags apiserverflags.Flags) (Source, error) {
	file, _ := flags.Get(flagFile)
	if file == "" {
		return s, fmt.Errorf("%w in %s: it writes plaintext", ErrNoFile, s.By)
	}
	s.flags, s.file, s.Reload = flags, file, "false"
	text, _ := flags.Get(flagReload)
	if reload, err := strconv.ParseBool(text); err == nil && reload {
		s.Reload = "true"
	}
	if s.File = flags.HostPath(file); s.File == "" {
		return s, fmt.Errorf("--%s=%s in %s: no hostPath volume shows that file in the pod; mount its directory, as manifests/kube-apiserver/kubeadm.yaml does", flagFile, file, s.By)
	}
	return s, nil
}

// locate finds the file of a server of the distribution; false if the node is none.
func (d distribution) locate(root string) (Source, bool, error) {
	s := Source{Layout: d.layout, By: d.config, root: root}
	args, read, err := d.args(root)
	if err != nil {
		return s, true, err
	}
	data := d.data
	if v := args.last("data-dir"); v != "" {
		data = v
	}
	server, err := exists(filepath.Join(root, data, "server"))
	if err != nil {
		return s, true, err
	}
	flags := apiserverflags.FromArgs(args.apiserver())
	if _, given := flags.Get(flagFile); given {
		if len(read) > 0 {
			s.By = strings.Join(read, " and ")
		}
		s, err = s.fromFlags(flags)
		return s, true, err
	}
	if !server {
		return s, false, nil
	}
	// Its own configuration, which it passes on with automatic reload.
	cred := filepath.Join(data, credFile)
	own, err := exists(filepath.Join(root, cred))
	if err != nil {
		return s, true, err
	}
	on := args.last("secrets-encryption")
	if own && on != "false" && (d.own || on == "true") {
		s.File, s.file, s.Reload, s.By = cred, cred, "true", "secrets-encryption of "+d.layout
		return s, true, nil
	}
	return s, true, fmt.Errorf("%w in %s: it writes plaintext", ErrNoFile, s.By)
}

// arguments are the options of a distribution, by name, in the order of precedence.
type arguments map[string][]string

func (a arguments) last(name string) string {
	if v := a[name]; len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

// apiserver returns the flags for kube-apiserver.
func (a arguments) apiserver() []string {
	var out []string
	for _, v := range a["kube-apiserver-arg"] {
		out = append(out, "--"+strings.TrimLeft(v, "-"))
	}
	return out
}

// args reads the configuration files, then the unit, whose arguments win, and says which
// of them have arguments for kube-apiserver.
func (d distribution) args(root string) (arguments, []string, error) {
	args := arguments{}
	var by []string
	more, err := filepath.Glob(filepath.Join(root, d.config+".d", "*.yaml"))
	if err != nil {
		return nil, nil, err
	}
	for _, file := range append([]string{filepath.Join(root, d.config)}, more...) {
		data, err := read(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read the configuration of %s: %w", d.layout, err)
		}
		has, err := args.addYAML(data)
		if err != nil {
			return nil, nil, fmt.Errorf("read the configuration of %s: %s: %w", d.layout, file, err)
		}
		if has {
			by = append(by, strings.TrimPrefix(file, root))
		}
	}
	for _, unit := range d.units {
		data, err := read(filepath.Join(root, unit))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read the unit of %s: %w", d.layout, err)
		}
		if args.addUnit(string(data)) {
			by = append(by, unit)
		}
		break // systemd takes the first, too
	}
	return args, by, nil
}

// addYAML adds a configuration file. A later file replaces a list of an earlier one,
// unless its name ends with "+". It reports whether there are arguments for
// kube-apiserver.
func (a arguments) addYAML(data []byte) (bool, error) {
	var in map[string]yaml.Node
	if err := yaml.Unmarshal(data, &in); err != nil {
		return false, err
	}
	has := false
	for _, key := range slices.Sorted(maps.Keys(in)) {
		node := in[key]
		name, more := strings.CutSuffix(key, "+")
		if !slices.Contains([]string{"kube-apiserver-arg", "secrets-encryption", "data-dir"}, name) {
			continue
		}
		var values []string
		if node.Kind == yaml.SequenceNode {
			if err := node.Decode(&values); err != nil {
				return false, fmt.Errorf("%s: %w", key, err)
			}
		} else {
			values = []string{node.Value}
		}
		if !more {
			a[name] = nil
		}
		a[name] = append(a[name], values...)
		has = has || name == "kube-apiserver-arg"
	}
	return has, nil
}

// addUnit adds the arguments of a unit's ExecStart.
func (a arguments) addUnit(unit string) bool {
	unit = strings.ReplaceAll(unit, "\\\n", " ")
	has := false
	for line := range strings.Lines(unit) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart=")
		if !ok {
			continue
		}
		words := strings.Fields(command)
		for i := range words {
			words[i] = strings.Trim(words[i], `'"`)
		}
		flags := apiserverflags.FromArgs(words)
		for _, name := range []string{"kube-apiserver-arg", "secrets-encryption", "data-dir"} {
			values := flags.All(name)
			a[name] = append(a[name], values...)
			has = has || name == "kube-apiserver-arg" && len(values) > 0
		}
	}
	return has
}
