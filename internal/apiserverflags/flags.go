// Package apiserverflags reads kube-apiserver's flags on the node that runs it: from
// its static pod, or from the arguments that a distribution passes on to it.
package apiserverflags

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// KubeadmManifest is kube-apiserver's static pod on a node that kubeadm set up.
const KubeadmManifest = "/etc/kubernetes/manifests/kube-apiserver.yaml"

// RKE2Manifest is kube-apiserver's static pod on a server of RKE2.
const RKE2Manifest = "/var/lib/rancher/rke2/agent/pod-manifests/kube-apiserver.yaml"

// maxFileSize bounds a manifest in bytes. One has about ten thousand.
const maxFileSize = 1 << 20

// ErrNotAPIServer is the error of a manifest without a kube-apiserver.
var ErrNotAPIServer = errors.New("no container of kube-apiserver")

// Flags are kube-apiserver's flags. The zero value has none.
type Flags struct {
	values map[string][]string
	inPod  bool
	mounts []mount
}

// mount shows part of the host's file system in the pod.
type mount struct{ inside, host string }

// Read reads a static pod. The error wraps fs.ErrNotExist if there is no such file,
// and ErrNotAPIServer if it describes another pod.
func Read(file string) (Flags, error) {
	f, err := os.Open(file) //nolint:gosec // G304: a constant, or named by the administrator
	if err != nil {
		return Flags{}, fmt.Errorf("read kube-apiserver's static pod: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = fmt.Errorf("larger than %d KiB", maxFileSize>>10)
	}
	if err != nil {
		return Flags{}, fmt.Errorf("read kube-apiserver's static pod %s: %w", file, err)
	}
	flags, err := Parse(data)
	if err != nil {
		return Flags{}, fmt.Errorf("read kube-apiserver's static pod %s: %w", file, err)
	}
	return flags, nil
}

// pod is what matters of a static pod.
type pod struct {
	Spec struct {
		Containers []container `yaml:"containers"`
		Volumes    []struct {
			Name     string `yaml:"name"`
			HostPath *struct {
				Path string `yaml:"path"`
			} `yaml:"hostPath"`
		} `yaml:"volumes"`
	} `yaml:"spec"`
}

type container struct {
	Name         string   `yaml:"name"`
	Command      []string `yaml:"command"`
	Args         []string `yaml:"args"`
	VolumeMounts []struct {
		Name      string `yaml:"name"`
		MountPath string `yaml:"mountPath"`
		SubPath   string `yaml:"subPath"`
	} `yaml:"volumeMounts"`
}

// Parse reads the content of a static pod.
func Parse(manifest []byte) (Flags, error) {
	var p pod
	if err := yaml.Unmarshal(manifest, &p); err != nil {
		return Flags{}, err
	}
	i := slices.IndexFunc(p.Spec.Containers, container.isAPIServer)
	if i < 0 {
		return Flags{}, ErrNotAPIServer
	}
	c := p.Spec.Containers[i]
	flags := FromArgs(append(slices.Clone(c.Command), c.Args...))
	flags.inPod = true
	for _, m := range c.VolumeMounts {
		for _, v := range p.Spec.Volumes {
			if v.Name == m.Name && v.HostPath != nil {
				flags.mounts = append(flags.mounts, mount{path.Clean(m.MountPath), path.Join(v.HostPath.Path, m.SubPath)})
			}
		}
	}
	return flags, nil
}

func (c container) isAPIServer() bool {
	return c.Name == "kube-apiserver" ||
		len(c.Command) > 0 && path.Base(c.Command[0]) == "kube-apiserver"
}

// FromArgs reads a command line: --name=value, --name value, or --name alone, which
// is "true". Words that are not flags are skipped.
func FromArgs(words []string) Flags {
	flags := Flags{values: map[string][]string{}}
	for i := 0; i < len(words); i++ {
		if !strings.HasPrefix(words[i], "--") {
			continue
		}
		name, value, ok := strings.Cut(words[i], "=")
		if !ok {
			value = "true"
			if i+1 < len(words) && !strings.HasPrefix(words[i+1], "--") {
				i++
				value = words[i]
			}
		}
		flags.add(name, value)
	}
	return flags
}

func (f *Flags) add(name, value string) {
	name = normal(name)
	f.values[name] = append(f.values[name], value)
}

// normal spells a flag's name as kube-apiserver does, which takes underscores too.
func normal(name string) string {
	return strings.ReplaceAll(strings.TrimLeft(name, "-"), "_", "-")
}

// Get returns the value of a flag, named without dashes. The last one counts where it
// is given several times. It is empty and false where the flag is not given.
func (f Flags) Get(name string) (string, bool) {
	all := f.values[normal(name)]
	if len(all) == 0 {
		return "", false
	}
	return all[len(all)-1], true
}

// All returns every value of a flag, for flags that may be repeated.
func (f Flags) All(name string) []string { return slices.Clone(f.values[normal(name)]) }

// HostPath returns where on the host the file is that kube-apiserver sees at a path.
// It is the path itself for a kube-apiserver that is not in a pod. It is empty where
// no hostPath volume shows the file.
func (f Flags) HostPath(inside string) string {
	if !f.inPod {
		return inside
	}
	inside = path.Clean(inside)
	var best *mount
	for i, m := range f.mounts {
		if within(inside, m.inside) && (best == nil || len(m.inside) > len(best.inside)) {
			best = &f.mounts[i]
		}
	}
	if best == nil {
		return ""
	}
	return filepath.Join(best.host, strings.TrimPrefix(inside, best.inside))
}

// MountsFile reports whether a volume of the pod is this very file, and not a directory
// that holds it.
func (f Flags) MountsFile(inside string) bool {
	inside = path.Clean(inside)
	return slices.ContainsFunc(f.mounts, func(m mount) bool { return m.inside == inside })
}

// within reports whether a path is dir or below it.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
