package manifests_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// What the dashboards ask and show is e2e/internal/grafana's to check, which has
// Grafana's schema and Prometheus' parser; here is how they get to Grafana.

// dashboardFiles reads the dashboards by the names of their files.
func dashboardFiles(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("grafana/*.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	texts := map[string]string{}
	for _, path := range paths {
		texts[filepath.Base(path)] = read(t, path)
	}
	return texts
}

// The ConfigMap that Grafana's sidecar finds has all dashboards as they are, and none is
// too large to be reviewed.
func TestDashboardsConfigMap(t *testing.T) {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "grafana")
	if err != nil {
		t.Fatal(err)
	}
	data, err := built.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	var c corev1.ConfigMap
	decode(t, string(data), &c)
	if c.Labels["grafana_dashboard"] == "" {
		t.Errorf("the labels are %v: the sidecar looks for grafana_dashboard", c.Labels)
	}
	files := dashboardFiles(t)
	if diff := cmp.Diff(files, c.Data); diff != "" {
		t.Errorf("the ConfigMap is not the files (-want +got):\n%s", diff)
	}
	// etcd takes 1 MiB, of everything that is in the object.
	if len(data) > 512<<10 {
		t.Errorf("the ConfigMap has %d bytes, want 512 KiB at most", len(data))
	}
	for name, text := range files {
		if lines := strings.Count(text, "\n"); lines > 600 {
			t.Errorf("%s has %d lines, want 600 at most", name, lines)
		}
	}
}

// The provisioning is what Grafana knows, and README.md says where its files go.
func TestDashboardsProvisioning(t *testing.T) {
	var p struct {
		APIVersion int `json:"apiVersion"`
		Providers  []struct {
			Name                  string `json:"name"`
			Folder                string `json:"folder"`
			Type                  string `json:"type"`
			AllowUIUpdates        bool   `json:"allowUiUpdates"`
			UpdateIntervalSeconds int    `json:"updateIntervalSeconds"`
			Options               struct {
				Path string `json:"path"`
			} `json:"options"`
		} `json:"providers"`
	}
	text := read(t, "grafana/provisioning.yaml")
	decode(t, text, &p)
	if p.APIVersion != 1 || len(p.Providers) != 1 || p.Providers[0].Type != "file" {
		t.Fatalf("got %+v", p)
	}
	readme := read(t, "grafana/README.md")
	for _, path := range []string{p.Providers[0].Options.Path, "/etc/grafana/provisioning/dashboards/kekd.yaml"} {
		if !strings.Contains(readme, path) {
			t.Errorf("grafana/README.md lacks %s", path)
		}
	}
	if !strings.HasPrefix(text, "# /etc/grafana/provisioning/dashboards/kekd.yaml\n") {
		t.Error("provisioning.yaml does not begin with its place")
	}
}

// README.md says what each file is for, and the address that it replaces is in each.
func TestDashboardsReadme(t *testing.T) {
	readme := read(t, "grafana/README.md")
	entries, err := os.ReadDir("grafana")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != "README.md" && !strings.Contains(readme, "| `"+name+"` |") {
			t.Errorf("grafana/README.md does not say what %s is", name)
		}
	}
	const address = "https://git.example.com/kekd/blob/main/docs"
	if !strings.Contains(readme, "s#"+address+"#") {
		t.Errorf("grafana/README.md does not replace %s", address)
	}
	for name, text := range dashboardFiles(t) {
		if strings.Count(text, address) != 1 {
			t.Errorf("%s has %s %d times, want once", name, address, strings.Count(text, address))
		}
	}
}

// docs/dashboards.md leads from each alert to its runbook.
func TestDashboardsPageHasEveryAlert(t *testing.T) {
	page := read(t, "../docs/dashboards.md")
	known := alerts(t)
	for name, r := range known {
		path := strings.TrimPrefix(r.Annotations["runbook_url"], "docs/")
		row := fmt.Sprintf("| `%s` | %s | [%s](%s) |", name, r.Labels["severity"], strings.TrimSuffix(filepath.Base(path), ".md"), path)
		if !strings.Contains(page, row) {
			t.Errorf("docs/dashboards.md lacks %s", row)
		}
	}
	if rows := strings.Count(page, "\n| `Kekd"); rows != len(known) {
		t.Errorf("docs/dashboards.md has %d alerts, want %d", rows, len(known))
	}
}
