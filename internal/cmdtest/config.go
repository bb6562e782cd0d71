package cmdtest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// defaults are the fields of a node's configuration, as YAML writes the values.
// The intervals are short, so that scripts need not wait.
func (n *node) defaults() map[string]string {
	path := func(name string) string { return filepath.Join(n.dir, name) }
	return map[string]string{
		"socket.path":           n.socket(),
		"socket.allowedUIDs":    fmt.Sprintf("[%d]", os.Getuid()),
		"http.address":          n.address,
		"stateDir":              path(n.name + "-state"),
		"hsm.module":            softHSMModule,
		"hsm.token.label":       defaultLabel,
		"hsm.pinFile":           path("pin"),
		"hsm.env.SOFTHSM2_CONF": path(softHSMConf),
		"keyRing.label":         "k8s-kek",
		"keyRing.refresh":       "200ms",
		"health.probeInterval":  "200ms",
		// A user who runs the tests may not be allowed to lock memory.
		"seeds.lockMemory": fmt.Sprint(os.Getuid() == 0),
	}
}

// cmdConfig writes the node's configuration: the defaults, changed by fields
// that are set (socket.path=/x) or left out (-socket.path).
func cmdConfig(s *script, ts *testscript.TestScript, args []string) (output, error) {
	n := s.node(ts)
	fields := n.defaults()
	for _, arg := range args {
		if name, ok := strings.CutPrefix(arg, "-"); ok {
			if _, known := fields[name]; !known {
				return output{}, usageError("config: " + name + " is no default")
			}
			delete(fields, name)
			continue
		}
		name, value, ok := strings.Cut(arg, "=")
		if !ok {
			return output{}, usageError("config [FIELD=VALUE] [-FIELD] ...")
		}
		fields[name] = value
	}
	return output{}, os.WriteFile(n.config(), []byte(asYAML(fields)), 0o600)
}

// asYAML writes fields with paths of any depth. The values are written as they
// are, so that a script can give any, wrong ones included.
func asYAML(fields map[string]string) string {
	var b strings.Builder
	var open []string // the sections that the next line is in
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		path := strings.Split(name, ".")
		same := 0
		for same < len(open) && same < len(path)-1 && open[same] == path[same] {
			same++
		}
		open = path[:len(path)-1]
		for i := same; i < len(open); i++ {
			b.WriteString(strings.Repeat("  ", i) + open[i] + ":\n")
		}
		b.WriteString(strings.Repeat("  ", len(open)) + path[len(path)-1] + ": " + fields[name] + "\n")
	}
	return b.String()
}
