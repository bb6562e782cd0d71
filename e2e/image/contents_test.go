package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	kekd, softHSM := names(t)
	_, version, _ := strings.Cut(kekd, ":")
	for _, image := range []string{kekd, softHSM} {
		c := config(t, image)
		labels := c.Labels
		c.Labels = nil
		if diff := cmp.Diff(imageConfig{
			User:       "65529:65529",
			Entrypoint: []string{"/usr/local/bin/kekd"},
			Cmd:        []string{"serve", "--config", "/etc/kekd/config.yaml"},
			Env:        []string{"PATH=/usr/local/bin:/usr/bin"},
		}, c); diff != "" {
			t.Errorf("configuration of %s (-want +got):\n%s", image, diff)
		}
		if got := labels["org.opencontainers.image.version"]; got != version {
			t.Errorf("%s has the version label %q, want %q", image, got, version)
		}
		for _, name := range []string{
			"org.opencontainers.image.title",
			"org.opencontainers.image.description",
			"org.opencontainers.image.revision",
			"org.opencontainers.image.created",
			"org.opencontainers.image.base.name",
			"kekd.builder.name",
		} {
			if labels[name] == "" {
				t.Errorf("%s has no label %s", image, name)
			}
		}
	}
}

// TestFiles: what an attacker in the container could use is not there.
func TestFiles(t *testing.T) {
	t.Parallel()
	kekd, softHSM := names(t)
	programs := []string{"usr/local/bin/kekctl", "usr/local/bin/kekd"}
	ours := map[string]fs.FileMode{"run/kekd": 0o750, "var/lib/kekd": 0o700}
	t.Run("kekd", func(t *testing.T) {
		t.Parallel()
		checkFiles(t, kekd, programs, ours)
	})
	t.Run("softhsm", func(t *testing.T) {
		t.Parallel()
		checkFiles(t, softHSM, append([]string{"usr/bin/softhsm2-util"}, programs...), map[string]fs.FileMode{
			"run/kekd": 0o750, "var/lib/kekd": 0o700, "var/lib/softhsm/tokens": 0o700,
		})
	})
}

// checkFiles requires that the image has these programs and no others, and that
// kekd's user owns these directories and nothing else.
func checkFiles(t *testing.T, image string, programs []string, ours map[string]fs.FileMode) {
	all := files(t, image)
	var gotPrograms []string
	gotOurs := map[string]fs.FileMode{}
	for name, f := range all {
		mode := f.FileInfo().Mode()
		top, _, _ := strings.Cut(name, "/")
		switch {
		case top == "dev", top == "proc", top == "sys", f.Typeflag == tar.TypeReg && len(f.content) == 0:
			continue // docker made it for the container
		case !slices.Contains([]string{"etc", "lib", "lib64", "run", "usr", "var"}, top) && name != ".":
			t.Errorf("%s is in the image", name)
		}
		if f.Uid != 0 || f.Gid != 0 {
			if f.Uid != uid || f.Gid != uid {
				t.Errorf("%s belongs to %d:%d", name, f.Uid, f.Gid)
			}
			gotOurs[name] = mode.Perm()
		}
		if mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 || mode.Perm()&0o002 != 0 && mode&fs.ModeSymlink == 0 {
			t.Errorf("%s has the mode %v", name, mode)
		}
		// The dynamic loader and libc can be run, and run only what is there.
		if mode.IsRegular() && mode.Perm()&0o111 != 0 && !strings.Contains(path.Base(name), ".so") {
			gotPrograms = append(gotPrograms, name)
		}
	}
	slices.Sort(gotPrograms)
	if diff := cmp.Diff(programs, gotPrograms); diff != "" {
		t.Errorf("programs of %s (-want +got):\n%s", image, diff)
	}
	if diff := cmp.Diff(ours, gotOurs); diff != "" {
		t.Errorf("what kekd's user owns in %s (-want +got):\n%s", image, diff)
	}
	checkLinks(t, all)
	for name, line := range map[string]string{
		"etc/passwd":                              "kekd:x:65529:65529:kekd:/nonexistent:/usr/sbin/nologin\n",
		"etc/group":                               "kekd:x:65529:\n",
		"etc/nsswitch.conf":                       "hosts: files dns\n",
		"usr/lib/os-release":                      "ID=debian\n",
		"etc/ssl/certs/ca-certificates.crt":       "-----BEGIN CERTIFICATE-----\n",
		"var/lib/dpkg/status.d/libc6":             "Package: libc6\n",
		"usr/share/doc/libc6/copyright":           "GNU",
		"var/lib/dpkg/status.d/ca-certificates":   "Package: ca-certificates\n",
		"var/lib/dpkg/status.d/libc6.md5sums":     "/libc.so.6\n",
		"var/lib/dpkg/status.d/libssl3":           "Package: libssl3\n",
		"var/lib/dpkg/status.d/libstdc++6":        "Package: libstdc++6\n",
		"var/lib/dpkg/status.d/libgcc-s1.md5sums": "/libgcc_s.so.1\n",
	} {
		if !bytes.Contains(all[name].content, []byte(line)) {
			t.Errorf("%s of %s lacks %q", name, image, line)
		}
	}
}

// checkLinks requires that every program and library finds the libraries that it
// is linked to.
func checkLinks(t *testing.T, all map[string]file) {
	t.Helper()
	libraries := map[string]bool{}
	for name := range all {
		if strings.HasPrefix(name, "usr/lib/") {
			libraries[path.Base(name)] = true
		}
	}
	binaries := 0
	for name, f := range all {
		if !bytes.HasPrefix(f.content, []byte(elf.ELFMAG)) {
			continue
		}
		binaries++
		parsed, err := elf.NewFile(bytes.NewReader(f.content))
		if err != nil {
			t.Fatalf("read %s: %v", name, err)
		}
		needed, err := parsed.ImportedLibraries()
		if err != nil {
			t.Fatalf("read the libraries of %s: %v", name, err)
		}
		for _, library := range needed {
			if !libraries[library] {
				t.Errorf("%s needs %s, which is not in the image", name, library)
			}
		}
	}
	if binaries < 10 {
		t.Errorf("found %d binaries and libraries, want more", binaries)
	}
}
