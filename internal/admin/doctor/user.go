package doctor

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// user is whom kekd runs as, and what says so; by is empty where nothing does.
type user struct {
	uid int
	by  string
}

func (u user) known() bool { return u.by != "" }

// ownerFlag is a flag of install, with the space after it.
func (u user) ownerFlag() string {
	if !u.known() {
		return ""
	}
	return "-o " + strconv.Itoa(u.uid) + " "
}

// Files that say whom kekd runs as.
const (
	podManifest = "/etc/kubernetes/manifests/kekd.yaml"
	unitName    = "kekd.service"
)

// userName is kekd's user where manifests/host/sysusers.d made it.
const userName = "kekd"

// findUser finds out whom kekd runs as: by its socket, its unit, its pod, or its user on
// this node. The owner of the state directory tells nothing: it may be the very mistake.
func (e *examination) findUser() user {
	socket := e.cfg.Socket.Path
	uid := -1
	if info, err := os.Lstat(socket); err == nil && info.Mode()&fs.ModeSocket != 0 {
		uid = owner(socket)
	}
	// A socket of root's may be systemd's.
	if uid > 0 {
		return user{uid, "the owner of " + socket}
	}
	if u := e.unitUser(); u.known() {
		return u
	}
	if u := podUser(filepath.Join(e.Root, podManifest)); u.known() {
		return u
	}
	if found, ok := e.User(userName); ok {
		return user{found, "the user " + userName + " of this node"}
	}
	if uid == 0 {
		return user{uid, "the owner of " + socket}
	}
	return user{uid: -1}
}

// unitUser reads User= of the systemd unit. The last of its drop-ins wins.
func (e *examination) unitUser() user {
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"} {
		unit := filepath.Join(e.Root, dir, unitName)
		files := []string{unit}
		if _, err := os.Stat(unit); err != nil {
			continue
		}
		if more, err := filepath.Glob(unit + ".d/*.conf"); err == nil {
			files = append(files, more...)
		}
		name, service := "", false
		for _, file := range files {
			b, err := os.ReadFile(file) //nolint:gosec // G304: a unit of kekd's
			if err != nil {
				return user{uid: -1}
			}
			for line := range strings.Lines(string(b)) {
				line = strings.TrimSpace(line)
				service = service || line == "[Service]"
				if v, ok := strings.CutPrefix(line, "User="); ok {
					name = strings.TrimSpace(v)
				}
			}
		}
		by := "User= of " + filepath.Join(dir, unitName)
		if uid, err := strconv.Atoi(name); err == nil {
			return user{uid, by}
		}
		if uid, ok := e.User(name); ok {
			return user{uid, by}
		}
		if name == "" && service {
			return user{0, filepath.Join(dir, unitName) + ", which has no User="}
		}
		return user{uid: -1}
	}
	return user{uid: -1}
}

// podUser reads runAsUser of kekd's static pod.
func podUser(manifest string) user {
	b, err := os.ReadFile(manifest) //nolint:gosec // G304: a constant
	if err != nil {
		return user{uid: -1}
	}
	type securityContext struct {
		RunAsUser *int `yaml:"runAsUser"`
	}
	var pod struct {
		Spec struct {
			SecurityContext securityContext `yaml:"securityContext"`
			Containers      []struct {
				Name            string          `yaml:"name"`
				SecurityContext securityContext `yaml:"securityContext"`
			} `yaml:"containers"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(b, &pod); err != nil {
		return user{uid: -1}
	}
	const by = "runAsUser of " + podManifest
	for _, c := range pod.Spec.Containers {
		if c.Name == "kekd" && c.SecurityContext.RunAsUser != nil {
			return user{*c.SecurityContext.RunAsUser, by}
		}
	}
	if uid := pod.Spec.SecurityContext.RunAsUser; uid != nil {
		return user{*uid, by}
	}
	return user{uid: -1}
}

// kekdUser reports whom kekd runs as.
func (e *examination) kekdUser() {
	const check = "kekd's user"
	if !e.user.known() {
		e.add(check, Skip, "unknown: there is no socket, unit, static pod or user of kekd's on this node, so owners of files are not judged", "")
		return
	}
	e.ok(check, "uid %d, by %s", e.user.uid, e.user.by)
}
