// runc stands before the real runc on hosts whose capability bounding set lacks
// CAP_SYS_RESOURCE. There runc can neither hand that capability to a container nor
// lower an oom_score_adj, and refuses to start any container that asks for either,
// as privileged ones do. The wrapper takes both wishes out of the bundle's
// config.json, and out of the process files of exec, and then becomes runc. On all
// other hosts it only becomes runc.
//
// The formats are those of the OCI runtime specification, config.md.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const capability = "CAP_SYS_RESOURCE"

// realRunc is overridden by KEKD_RUNC.
const realRunc = "/usr/sbin/runc"

func main() {
	fmt.Fprintf(os.Stderr, "runc wrapper: %v\n", run(os.Args))
	os.Exit(1)
}

// run returns only if it can't become runc.
func run(args []string) error {
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("read the capability bounding set: %w", err)
	}
	if has == 0 {
		for _, edit := range files(args[1:]) {
			if err := rewrite(edit); err != nil {
				return err
			}
		}
	}
	runc := realRunc
	if p := os.Getenv("KEKD_RUNC"); p != "" {
		runc = p
	}
	err = syscall.Exec(runc, append([]string{runc}, args[1:]...), os.Environ()) //nolint:gosec // that is what it is for
	return fmt.Errorf("execute %s: %w", runc, err)
}

// files names what a command line of runc reads: the bundle's configuration, and
// the process of exec.
func files(args []string) []string {
	var found []string
	bundle, creates := ".", false
	for i, a := range args {
		value := func(names ...string) (string, bool) {
			for _, n := range names {
				if a == n && i+1 < len(args) {
					return args[i+1], true
				}
				if v, ok := strings.CutPrefix(a, n+"="); ok {
					return v, true
				}
			}
			return "", false
		}
		if v, ok := value("--bundle", "-b"); ok {
			bundle = v
		}
		if v, ok := value("--process", "-p"); ok {
			found = append(found, v)
		}
		creates = creates || a == "create" || a == "run" || a == "restore"
	}
	if creates {
		found = append(found, filepath.Join(bundle, "config.json"))
	}
	return found
}

func rewrite(path string) error {
	old, err := os.ReadFile(path) //nolint:gosec // named by who runs runc
	if errors.Is(err, fs.ErrNotExist) {
		return nil // runc says so better
	}
	if err != nil {
		return err
	}
	var doc map[string]any
	d := json.NewDecoder(bytes.NewReader(old))
	d.UseNumber() // device numbers and limits do not fit a float64
	if err := d.Decode(&doc); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	process := doc
	if p, ok := doc["process"].(map[string]any); ok {
		process = p
	}
	strip(process)
	changed, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.WriteFile(path, changed, 0o600)
}

// strip takes out of a process what the host can't give.
func strip(process map[string]any) {
	if sets, ok := process["capabilities"].(map[string]any); ok {
		for name, set := range sets {
			if list, ok := set.([]any); ok {
				sets[name] = slices.DeleteFunc(list, func(c any) bool { return c == capability })
			}
		}
	}
	if n, ok := process["oomScoreAdj"].(json.Number); ok && strings.HasPrefix(n.String(), "-") {
		process["oomScoreAdj"] = 0
	}
}
