package state

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Inspection is what a look at a state directory shows.
type Inspection struct {
	// UID is whom the directory belongs to; -1 where the system does not say.
	UID  int
	Mode fs.FileMode
}

// Inspect looks at the state directory at path, on behalf of no user in particular, and
// changes nothing. The error wraps fs.ErrNotExist if there is none; the Inspection is
// valid beside an error that says that others could write to it.
func Inspect(path string) (Inspection, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Inspection{UID: -1}, fmt.Errorf("check the state directory: %w", err)
	}
	found := Inspection{UID: -1, Mode: info.Mode().Perm()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		found.UID = int(stat.Uid)
	}
	if !info.IsDir() {
		return found, fmt.Errorf("check the state directory: %s is not a directory; set stateDir to one", path)
	}
	if found.Mode&0o022 != 0 {
		return found, fmt.Errorf("check the state directory: %s is writable by group or others (mode %04o); run chmod 0700 %s",
			path, found.Mode, path)
	}
	return found, nil
}

// OpenExisting is Open for a program that only looks: it makes neither the directory
// nor anything in it. Save works as ever, for what must be kept all the same.
func OpenExisting(path string) (*Dir, error) {
	if err := check(path); err != nil {
		return nil, err
	}
	return &Dir{path: path, create: create}, nil
}

// check refuses what is not a directory of ours alone.
func check(path string) error {
	found, err := Inspect(path)
	switch {
	case err != nil:
		return err
	case found.UID > 0 && found.UID != os.Geteuid():
		return fmt.Errorf("check the state directory: %s belongs to user %d, and this runs as user %d; run it as user %d, or give the directory to the user that kekd runs as",
			path, found.UID, os.Geteuid(), found.UID)
	}
	return nil
}
