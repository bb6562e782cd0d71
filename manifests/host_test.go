package manifests_test

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"

	"kekd/internal/config"
	"kekd/internal/secret"
	"kekd/internal/sockpath"
	"kekd/internal/state"
)

// lines are the lines of a sysusers.d or tmpfiles.d file, in fields.
func lines(t *testing.T, file string) [][]string {
	t.Helper()
	var all [][]string
	for line := range strings.Lines(read(t, file)) {
		if fields := strings.Fields(line); len(fields) > 0 && !strings.HasPrefix(line, "#") {
			all = append(all, fields)
		}
	}
	return all
}

func TestSysusers(t *testing.T) {
	got := lines(t, "host/sysusers.d/kekd.conf")
	if len(got) != 2 || !slices.Equal(got[0], []string{"g", "kekd", strconv.Itoa(uid)}) ||
		!slices.Equal(got[1][:3], []string{"u", "kekd", fmt.Sprintf("%d:%d", uid, uid)}) {
		t.Errorf("lines %q", got)
	}
}

// kekd's own checks judge the modes of tmpfiles.d.
func TestTmpfiles(t *testing.T) {
	type entry struct {
		mode         os.FileMode
		owner, group string
	}
	entries := map[string]entry{}
	for _, file := range []string{"host/tmpfiles.d/kekd.conf", "host/tmpfiles.d/kekd-softhsm.conf"} {
		for _, f := range lines(t, file) {
			if len(f) != 6 {
				t.Fatalf("line %q has %d fields", f, len(f))
			}
			mode, err := strconv.ParseUint(f[2], 8, 32)
			if err != nil {
				t.Fatal(err)
			}
			entries[f[1]] = entry{os.FileMode(mode), f[3], f[4]}
		}
	}
	made := func(of string) string {
		e, ok := entries[of]
		if !ok {
			t.Fatalf("no line for %s", of)
		}
		dir := t.TempDir()
		if err := os.Chmod(dir, e.mode); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	if err := sockpath.CheckDirectory(made(socketDir()), os.Geteuid()); err != nil {
		t.Error(err)
	}
	if _, err := state.Open(made(config.Default().StateDir)); err != nil {
		t.Error(err)
	}
	pin := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(pin, []byte("1234"), entries[configDir+"/pin"].mode); err != nil {
		t.Fatal(err)
	}
	if _, err := (secret.FileSource{Path: pin}).Read(); err != nil {
		t.Error(err)
	}
	for _, of := range []string{socketDir(), config.Default().StateDir, auditDir, configDir + "/pin", tokenDir} {
		if e := entries[of]; e.owner != "kekd" || e.group != "kekd" {
			t.Errorf("%s is %v: kekd must be able to use it", of, e)
		}
	}
	for _, of := range []string{configDir, configDir + "/config.yaml", configDir + "/softhsm2.conf"} {
		if e := entries[of]; e.owner != "root" || e.group != "kekd" || e.mode&0o027 != 0 {
			t.Errorf("%s is %v: kekd reads it, and root alone writes it", of, e)
		}
	}
}

// options reads a unit or a drop-in: the values of each option, in order.
func options(t *testing.T, file string) map[string][]string {
	t.Helper()
	parsed, err := unit.DeserializeOptions(strings.NewReader(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, o := range parsed {
		all[o.Section+"."+o.Name] = append(all[o.Section+"."+o.Name], o.Value)
	}
	return all
}

// one is the option's only value.
func one(t *testing.T, o map[string][]string, name string) string {
	t.Helper()
	if len(o[name]) != 1 {
		t.Fatalf("%s is %q, want one value", name, o[name])
	}
	return o[name][0]
}

func TestService(t *testing.T) {
	o := options(t, "systemd/kekd.service")
	for name, want := range map[string]string{
		"Service.Type":                     "notify",
		"Service.User":                     "kekd",
		"Service.Group":                    "kekd",
		"Service.RuntimeDirectory":         path.Base(socketDir()),
		"Service.RuntimeDirectoryPreserve": "yes", // pods have it mounted
		"Service.StateDirectory":           path.Base(config.Default().StateDir),
		"Service.LogsDirectory":            path.Base(auditDir),
		"Service.Restart":                  "always",
		"Service.KillMode":                 "mixed",    // the worker serves until kekd has drained
		"Service.OOMPolicy":                "continue", // the worker's death is no reason to stop kekd
		"Service.NoNewPrivileges":          "yes",
		"Service.CapabilityBoundingSet":    "",
		"Unit.StartLimitIntervalSec":       "0",
	} {
		if got := one(t, o, name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
	startsKekd(t, strings.Fields(one(t, o, "Service.ExecStart")))
	before := strings.Fields(one(t, o, "Unit.Before"))
	for _, u := range []string{"kubelet.service", "k3s.service", "rke2-server.service"} {
		if !slices.Contains(before, u) {
			t.Errorf("not before %s", u)
		}
	}
	if stop, err := time.ParseDuration(one(t, o, "Service.TimeoutStopSec") + "s"); err != nil || stop < 2*drainTime(t) {
		t.Errorf("stops within %v (%v), and kekd drains for %v before it closes the token", stop, err, drainTime(t))
	}
	// A unit that wants a sign of life from a program that gives none is killed.
	if _, wants := o["Service.WatchdogSec"]; wants != strings.Contains(read(t, "../internal/sdnotify/sdnotify.go"), "WATCHDOG") {
		t.Errorf("WatchdogSec is set: %v, and kekd does the other", wants)
	}
	// localhost: the default of http.address.
	if one(t, o, "Service.IPAddressDeny") != "any" || one(t, o, "Service.IPAddressAllow") != "localhost" {
		t.Error("not everything but the loopback is closed")
	}
}

// The largest cache that the configuration admits can be locked.
func TestMemlock(t *testing.T) {
	locked, ok := strings.CutSuffix(one(t, options(t, "systemd/kekd.service"), "Service.LimitMEMLOCK"), "M")
	limit, err := strconv.Atoi(locked)
	if !ok || err != nil {
		t.Fatalf("LimitMEMLOCK=%s", locked)
	}
	base := read(t, "config/softhsm.yaml")
	most := 0
	for bits := range 63 {
		if _, err := config.Parse(fmt.Appendf(nil, "%s\nseeds: {cacheSize: %d}\n", base, 1<<bits)); err == nil {
			most = 1 << bits
		}
	}
	if need := (most + 2) * secret.SlotSize; most == 0 || need > limit<<20 {
		t.Errorf("LimitMEMLOCK is %d MiB, and %d seeds take %d bytes", limit, most, need)
	}
	// What the pod says of the default.
	kib := int(math.Ceil(float64((config.Default().Seeds.CacheSize+2)*secret.SlotSize)/float64(os.Getpagesize()))) * os.Getpagesize() >> 10
	for _, file := range []string{"static-pod/base/kekd.yaml", "systemd/kekd.service"} {
		if !strings.Contains(read(t, file), fmt.Sprintf("%d KiB by", kib)) {
			t.Errorf("%s does not say that %d KiB are locked by default", file, kib)
		}
	}
}

func TestSocketUnit(t *testing.T) {
	o := options(t, "systemd/kekd.socket")
	for name, want := range map[string]string{
		"Socket.ListenStream": config.Default().Socket.Path,
		"Socket.SocketUser":   "kekd",
		"Socket.SocketMode":   "0600",
		"Install.WantedBy":    "sockets.target",
	} {
		if got := one(t, o, name); got != want {
			t.Errorf("%s=%s, want %s", name, got, want)
		}
	}
}

func TestDropIns(t *testing.T) {
	if got := one(t, options(t, "systemd/kekd.service.d/softhsm.conf"), "Service.ReadWritePaths"); got != tokenDir {
		t.Errorf("SoftHSM writes to %s, and may to %s", tokenDir, got)
	}
	c := parse(t, "config/systemd.yaml")
	plain := one(t, options(t, "systemd/kekd.service"), "Service.LoadCredential")
	if plain != c.HSM.PINCredential+":"+configDir+"/pin" {
		t.Errorf("LoadCredential=%s, and config/systemd.yaml has hsm.pinCredential %s", plain, c.HSM.PINCredential)
	}
	o := options(t, "systemd/kekd.service.d/encrypted-pin.conf")
	encrypted := one(t, o, "Service.LoadCredentialEncrypted")
	if !strings.HasPrefix(encrypted, c.HSM.PINCredential+":/") || one(t, o, "Service.LoadCredential") != "" {
		t.Errorf("LoadCredentialEncrypted=%s does not take the place of %s", encrypted, plain)
	}
}

// systemd's own judgement, of the unit alone and with each drop-in.
func TestSystemdAnalyze(t *testing.T) {
	analyze := program(t, "systemd-analyze")
	dropIns, err := filepath.Glob("systemd/kekd.service.d/*.conf")
	if err != nil || len(dropIns) == 0 {
		t.Fatalf("drop-ins %q, %v", dropIns, err)
	}
	for _, dropIn := range append([]string{""}, dropIns...) {
		t.Run(cmp.Or(dropIn, "alone"), func(t *testing.T) {
			dir := t.TempDir()
			// It wants the program to be there.
			text := strings.ReplaceAll(read(t, "systemd/kekd.service"), "/usr/local/bin/kekd", "/bin/true")
			write(t, filepath.Join(dir, "kekd.service"), text)
			write(t, filepath.Join(dir, "kekd.socket"), read(t, "systemd/kekd.socket"))
			if dropIn != "" {
				write(t, filepath.Join(dir, "kekd.service.d", filepath.Base(dropIn)), read(t, dropIn))
			}
			// What it does not understand is a warning, with exit code 0.
			out, err := exec.Command(analyze, "verify", "--man=no", filepath.Join(dir, "kekd.service"), filepath.Join(dir, "kekd.socket")).CombinedOutput()
			if out = ofOurs(out); err != nil || len(out) > 0 {
				t.Errorf("verify: %v\n%s", err, out)
			}
			if dropIn != "" {
				return
			}
			// Exposure in tenths: 0 is best, 100 worst. Versions count differently.
			out, err = exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold=15", filepath.Join(dir, "kekd.service")).CombinedOutput()
			if err != nil {
				t.Errorf("security: %v\n%s", err, out)
			}
		})
	}
}

// ofOurs keeps the lines about kekd's units: verify looks at the machine's as well.
func ofOurs(out []byte) []byte {
	var kept bytes.Buffer
	for line := range bytes.Lines(out) {
		if bytes.Contains(line, []byte("kekd")) {
			_, _ = kept.Write(line)
		}
	}
	return kept.Bytes()
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func parse(t *testing.T, file string) config.Config {
	t.Helper()
	c, err := config.Parse([]byte(read(t, file)))
	if err != nil {
		t.Fatalf("%s:\n%v", file, err)
	}
	return c
}

// Each example is a configuration, and every path in it is there where its pod or
// its unit runs.
func TestConfigs(t *testing.T) {
	found, err := filepath.Glob("config/*.yaml")
	if err != nil || len(found) < len(overlays) {
		t.Fatalf("files %q, %v", found, err)
	}
	for _, file := range found {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c := parse(t, file)
			if !slices.Equal(c.Socket.AllowedUIDs, []uint32{0, uid}) {
				t.Errorf("allowedUIDs %v, want kube-apiserver's and kekd's own", c.Socket.AllowedUIDs)
			}
			d := config.Default()
			if c.Socket.Path != d.Socket.Path || c.StateDir != d.StateDir || c.HTTP != d.HTTP {
				t.Error("moves what pod and unit expect at its default")
			}
			if c.Audit.Dir != auditDir {
				t.Errorf("audit.dir is %q, and pod and unit have %s", c.Audit.Dir, auditDir)
			}
			overlay := strings.TrimSuffix(filepath.Base(file), ".yaml")
			if _, ok := overlays[overlay]; !ok {
				return // systemd's, which sees the whole node
			}
			var dirs []string
			for _, m := range pod(t, overlay).Spec.Containers[0].VolumeMounts {
				dirs = append(dirs, m.MountPath+"/")
			}
			if overlay == "softhsm" {
				dirs = append(dirs, "/usr/lib/softhsm/") // the image's
			}
			paths := []string{c.HSM.Module, c.HSM.PINFile, c.Audit.Dir}
			for _, value := range c.HSM.Env {
				paths = append(paths, value)
			}
			for _, p := range paths {
				if !slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(p+"/", dir) }) {
					t.Errorf("%s is not in the pod, which has %q", p, dirs)
				}
			}
		})
	}
	tokens := regexp.MustCompile(`(?m)^directories\.tokendir = (.*)$`).FindStringSubmatch(read(t, "config/softhsm2.conf"))
	if tokens == nil || tokens[1] != tokenDir {
		t.Errorf("SoftHSM's tokens are in %q, and %s is mounted", tokens, tokenDir)
	}
}
