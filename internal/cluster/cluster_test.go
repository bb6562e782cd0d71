package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// writeConfig writes a kubeconfig of one server with a context of that name.
func writeConfig(t *testing.T, path, server, context string) string {
	t.Helper()
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: %[2]s,
clusters: [{name: c, cluster: {server: "%[1]s"}}],
users: [{name: u, user: {token: t}}],
contexts: [{name: %[2]s, context: {cluster: c, user: u}}]}`, server, context)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConnect(t *testing.T) {
	dir := t.TempDir()
	named := writeConfig(t, filepath.Join(dir, "named"), "https://named:1", "one")
	environment := writeConfig(t, filepath.Join(dir, "environment"), "https://environment:2", "two")
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name                      string
		path, context, kubeconfig string
		server, err               string
	}{
		{"the flag goes first", named, "", environment, "https://named:1", ""},
		{"then the environment", "", "", environment, "https://environment:2", ""},
		{"a context by name", "", "two", environment, "https://environment:2", ""},
		{"a context that is not there", named, "two", "", "", `--context: the kubeconfig has no context "two"`},
		{"a file that is not there", filepath.Join(dir, "none"), "", environment, "", "--kubeconfig: stat "},
		{"a file without a cluster", empty, "", "", "", "--kubeconfig: there is no cluster in [" + empty + "]"},
		{"an environment that names nothing", "", "", filepath.Join(dir, "none"), "", "--kubeconfig: there is no cluster in ["},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(clientcmd.RecommendedConfigPathEnvVar, tt.kubeconfig)
			c, err := Connect(tt.path, tt.context)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("Connect: %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || c.Server() != tt.server {
				t.Fatalf("Connect = %+v, %v, want server %s", c, err, tt.server)
			}
		})
	}
}
