// Package image tests the images that `make image` has built, and their bills of
// material, as an administrator gets them: by the docker command alone. It needs
// root, since kekd's files on the host belong to kekd's user. Without docker it
// fails; nothing is skipped.
//
// Environment:
//
//	KEKD_IMAGE    the images' name, default kekd
//	KEKD_VERSION  their tag, without -softhsm
//	DOCKER        the docker command, default docker
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// uid is kekd's user and group, in the image and on the host.
const uid = 65529

// lockedDown is how the static pod runs kekd, with its seccomp profile and
// without any network besides.
var lockedDown = []string{
	"--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none",
	"--security-opt", "seccomp=" + filepath.Join("..", "..", "manifests", "static-pod", "components", "seccomp", "kekd.json"),
}

// names returns the image for production and the one for trials.
func names(tb testing.TB) (kekd, softHSM string) {
	tb.Helper()
	version := os.Getenv("KEKD_VERSION")
	if version == "" {
		tb.Fatal("KEKD_VERSION is not set: run `make e2e-image`")
	}
	kekd = cmp.Or(os.Getenv("KEKD_IMAGE"), "kekd") + ":" + version
	return kekd, kekd + "-softhsm"
}

// result is how a docker command ended.
type result struct {
	code           int
	stdout, stderr string
}

// run runs docker and returns how it ended.
func run(tb testing.TB, args ...string) result {
	tb.Helper()
	return runIn(tb.Context(), tb, args...)
}

func runIn(ctx context.Context, tb testing.TB, args ...string) result {
	tb.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, cmp.Or(os.Getenv("DOCKER"), "docker"), args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		tb.Fatalf("run docker: %v", err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// docker runs docker, requires that it succeeds, and returns what it printed.
func docker(tb testing.TB, args ...string) string {
	tb.Helper()
	r := run(tb, args...)
	if r.code != 0 {
		tb.Fatalf("docker %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// container makes a container by `docker create` or `docker run` that goes with the
// test.
func container(tb testing.TB, args ...string) string {
	tb.Helper()
	id := docker(tb, args...)
	tb.Cleanup(func() {
		if r := runIn(context.Background(), tb, "rm", "--force", id); r.code != 0 {
			tb.Errorf("remove a container: %s", r.stderr)
		}
	})
	return id
}

// file is a file of an image.
type file struct {
	*tar.Header
	content []byte
}

// files returns all files of an image by their path, without a slash in front.
func files(tb testing.TB, image string) map[string]file {
	tb.Helper()
	all := map[string]file{}
	for archive := tar.NewReader(strings.NewReader(export(tb, image))); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			tb.Fatalf("read the files of %s: %v", image, err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			tb.Fatalf("read %s of %s: %v", header.Name, image, err)
		}
		all[strings.TrimSuffix(header.Name, "/")] = file{header, content}
	}
}

func export(tb testing.TB, image string) string {
	tb.Helper()
	r := run(tb, "export", container(tb, "create", image))
	if r.code != 0 {
		tb.Fatalf("export %s: %s", image, r.stderr)
	}
	return r.stdout
}

// imageConfig is the part of an image's configuration that tests look at.
type imageConfig struct {
	User       string
	Entrypoint []string
	Cmd        []string
	Env        []string
	Labels     map[string]string
}

func config(tb testing.TB, image string) imageConfig {
	tb.Helper()
	var c imageConfig
	if err := json.Unmarshal([]byte(docker(tb, "image", "inspect", "--format", "{{json .Config}}", image)), &c); err != nil {
		tb.Fatalf("read the configuration of %s: %v", image, err)
	}
	return c
}
