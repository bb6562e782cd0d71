package cmdtest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdLeakFree looks for the script's secrets: plain, in hexadecimal and in
// base64.
func cmdLeakFree(s *script, ts *testscript.TestScript, args []string) (output, error) {
	files := make([]string, 0, len(args))
	for _, name := range args {
		files = append(files, ts.MkAbs(name))
	}
	if len(args) == 0 {
		var err error
		if files, err = s.exposed(ts); err != nil {
			return output{}, err
		}
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrPermission) && os.Getuid() != 0 {
			continue // closed to kekd's own user: nothing leaks there
		}
		if err != nil {
			return output{}, err
		}
		for _, secret := range s.secrets {
			if holds(content, []byte(secret)) {
				return output{}, fmt.Errorf("%s holds a secret (%s...)", path, secret[:5])
			}
		}
	}
	return output{}, nil
}

// exposed lists what the script's programs have made, but for the PIN file and
// the token itself, and what /proc shows of the daemons and their workers.
func (s *script) exposed(ts *testscript.TestScript) ([]string, error) {
	var files []string
	err := filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == filepath.Join(s.dir, tokenDir):
			return filepath.SkipDir
		case entry.Type().IsRegular() && path != filepath.Join(s.dir, "pin"):
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	n := s.node(ts)
	if !n.running() {
		return nil, usageError("leakfree, while kekd runs")
	}
	pids := group(n.run.pid)
	if len(pids) < 2 {
		return nil, errors.New("kekd has no worker to look at")
	}
	for _, pid := range pids {
		proc := filepath.Join("/proc", strconv.Itoa(pid))
		files = append(files, filepath.Join(proc, "environ"), filepath.Join(proc, "cmdline"))
	}
	return files, nil
}

func holds(content, secret []byte) bool {
	lower := bytes.ToLower(content)
	if bytes.Contains(content, secret) || bytes.Contains(lower, []byte(hex.EncodeToString(secret))) {
		return true
	}
	// In base64 the text depends on where in a group of three bytes the secret
	// begins; the ends, which its neighbours change, are left out.
	for shift := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), secret...))
		if bytes.Contains(content, []byte(encoded[4:len(encoded)-4])) {
			return true
		}
	}
	return false
}
