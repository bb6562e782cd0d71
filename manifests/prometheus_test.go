package manifests_test

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write prometheus/operator/prometheusrule.yaml anew")

// ruleFile is a rule file of Prometheus, and the spec of a PrometheusRule.
type ruleFile struct {
	Groups []ruleGroup `json:"groups"`
}

type ruleGroup struct {
	Name     string `json:"name"`
	Interval string `json:"interval,omitempty"`
	Rules    []rule `json:"rules"`
}

type rule struct {
	Record      string            `json:"record,omitempty"`
	Alert       string            `json:"alert,omitempty"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// ruleFiles reads all rules, recording ones first.
func ruleFiles(t *testing.T) ruleFile {
	t.Helper()
	var all ruleFile
	for _, pattern := range []string{"prometheus/rules/*.yaml", "prometheus/alerts/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %v, %v", pattern, paths, err)
		}
		for _, path := range paths {
			var f ruleFile
			decode(t, read(t, path), &f)
			all.Groups = append(all.Groups, f.Groups...)
		}
	}
	return all
}

func alerts(t *testing.T) map[string]rule {
	t.Helper()
	byName := map[string]rule{}
	for _, g := range ruleFiles(t).Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			if _, twice := byName[r.Alert]; twice {
				t.Errorf("two alerts are called %s", r.Alert)
			}
			byName[r.Alert] = r
		}
	}
	return byName
}

// runbookParts are what every page for an alert has.
var runbookParts = []string{"## How it shows", "## How to confirm", "## What to do", "## How to know that it is over"}

// Whoever is woken learns what it is about, how urgent it is and what to do.
func TestAlertsLeadToTheirRunbooks(t *testing.T) {
	for name, r := range alerts(t) {
		if s := r.Labels["severity"]; s != "page" && s != "ticket" {
			t.Errorf("%s has the severity %q, want page or ticket", name, s)
		}
		if r.Labels["cause"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s lacks a cause, a summary or a description", name)
		}
		url := r.Annotations["runbook_url"]
		if !strings.HasPrefix(url, "docs/runbooks/") {
			t.Errorf("%s has the runbook %q, want docs/runbooks/…", name, url)
			continue
		}
		page := read(t, filepath.Join("..", url))
		for _, part := range append([]string{"`" + name + "`"}, runbookParts...) {
			if !strings.Contains(page, part) {
				t.Errorf("%s lacks %s", url, part)
			}
		}
	}
}

// Every alert was seen to fire and to be quiet.
func TestEveryAlertIsTested(t *testing.T) {
	type test struct {
		AlertRuleTest []struct {
			AlertName string `json:"alertname"`
			ExpAlerts []any  `json:"exp_alerts"`
		} `json:"alert_rule_test"`
	}
	fires, quiet := map[string]bool{}, map[string]bool{}
	paths, err := filepath.Glob("prometheus/tests/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		var f struct{ Tests []test }
		if err := yaml.Unmarshal([]byte(read(t, path)), &f); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, test := range f.Tests {
			for _, a := range test.AlertRuleTest {
				if len(a.ExpAlerts) == 0 {
					quiet[a.AlertName] = true
				} else {
					fires[a.AlertName] = true
				}
			}
		}
	}
	known := alerts(t)
	for name := range known {
		if !fires[name] || !quiet[name] {
			t.Errorf("%s: seen to fire: %v, seen to be quiet: %v", name, fires[name], quiet[name])
		}
	}
	for name := range fires {
		if _, ok := known[name]; !ok {
			t.Errorf("the tests know %s, which does not exist", name)
		}
	}
}

// The rules ask for nothing that kekd does not measure, and read no rule that is not
// recorded.
func TestRulesUseMetricsThatExist(t *testing.T) {
	var known []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(kekd_[a-z0-9_]+)`").FindAllStringSubmatch(read(t, "../docs/metrics.md"), -1) {
		known = append(known, m[1])
	}
	recorded := map[string]bool{}
	rules := ruleFiles(t)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			recorded[r.Record] = true
		}
	}
	used := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			for _, name := range regexp.MustCompile(`\bkekd[_:][a-zA-Z0-9_:]+`).FindAllString(r.Expr, -1) {
				used[name] = true
			}
		}
	}
	for name := range used {
		base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
		if strings.Contains(name, ":") {
			if !recorded[name] {
				t.Errorf("%s is not recorded", name)
			}
		} else if !slices.Contains(known, name) && !slices.Contains(known, base) {
			t.Errorf("docs/metrics.md does not have %s", name)
		}
	}
	if len(used) < 30 {
		t.Errorf("the rules use %d metrics only: %v", len(used), slices.Sorted(maps.Keys(used)))
	}
}

// The inhibition rules name alerts that exist, and no ticket holds back a page.
func TestInhibitions(t *testing.T) {
	var config struct {
		Route        any   `json:"route"`
		Receivers    []any `json:"receivers"`
		InhibitRules []struct {
			Sources []string `json:"source_matchers"`
			Targets []string `json:"target_matchers"`
			Equal   []string `json:"equal"`
		} `json:"inhibit_rules"`
	}
	decode(t, read(t, "prometheus/alertmanager.yaml"), &config)
	known := alerts(t)
	// matching returns the alerts that matchers on alertname mean.
	matching := func(matchers []string) (names []string) {
		for name := range known {
			all := true
			for _, m := range matchers {
				parts := regexp.MustCompile(`^alertname(=~|!=|=)"(.*)"$`).FindStringSubmatch(m)
				if parts == nil {
					t.Fatalf("the matcher %s is not on the alert's name", m)
				}
				matched := regexp.MustCompile("^(?:" + parts[2] + ")$").MatchString(name)
				all = all && matched == (parts[1] != "!=")
			}
			if all {
				names = append(names, name)
			}
		}
		return names
	}
	for _, r := range config.InhibitRules {
		for _, word := range regexp.MustCompile(`Kekd[A-Za-z]+`).FindAllString(strings.Join(append(r.Sources, r.Targets...), " "), -1) {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(known)), func(name string) bool { return strings.HasPrefix(name, word) }) {
				t.Errorf("alertmanager.yaml names %s, which does not exist", word)
			}
		}
		for _, source := range matching(r.Sources) {
			for _, target := range matching(r.Targets) {
				if known[source].Labels["severity"] == "ticket" && known[target].Labels["severity"] == "page" {
					t.Errorf("the ticket %s holds back the page %s", source, target)
				}
			}
		}
	}
	if len(config.InhibitRules) == 0 {
		t.Error("nothing is held back")
	}
}

// The PrometheusRule is the rule files, and nothing else.
func TestPrometheusRule(t *testing.T) {
	const path = "prometheus/operator/prometheusrule.yaml"
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "monitoring.coreos.com/v1",
		"kind":       "PrometheusRule",
		"metadata":   map[string]any{"name": "kekd", "namespace": "kube-system"},
		"spec":       ruleFiles(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "# Made from ../rules and ../alerts, where the comments are: go test ./manifests -run TestPrometheusRule -update\n" + string(text)
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("%s is not what the rule files say; run this test with -update (-want +got):\n%s", path, diff)
	}
}
