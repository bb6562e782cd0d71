package grafana

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../../.."

// all reads the dashboards of manifests/grafana, by uid.
func all(t *testing.T) map[string]*Dashboard {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "manifests/grafana/*.json"))
	if err != nil {
		t.Fatal(err)
	}
	byUID := map[string]*Dashboard{}
	for _, path := range paths {
		d, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := "kekd-" + strings.TrimSuffix(filepath.Base(path), ".json"); of(d.Uid) != want {
			t.Errorf("%s has the uid %s, want %s", path, of(d.Uid), want)
		}
		byUID[of(d.Uid)] = d
	}
	return byUID
}

func uids(dashboards map[string]*Dashboard) (list []string) {
	for uid := range dashboards {
		list = append(list, uid)
	}
	return list
}

func readCatalogue(t *testing.T) *Catalogue {
	t.Helper()
	c, err := ReadCatalogue(root)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The dashboards are as Grafana's schema says, and ask for nothing that is not there.
func TestDashboards(t *testing.T) {
	c, dashboards := readCatalogue(t), all(t)
	if len(dashboards) != 3 {
		t.Errorf("%d dashboards, want executive, oncall and debug", len(dashboards))
	}
	for uid, d := range dashboards {
		for _, err := range c.Check(d, uids(dashboards)) {
			t.Errorf("%s: %v", uid, err)
		}
		queries, err := d.Queries()
		if err != nil || len(queries) <= len(d.Panels) {
			t.Errorf("%s: %d queries in %d panels, %v", uid, len(queries), len(d.Panels), err)
		}
	}
}

// docs/dashboards.md tells of every panel.
func TestPageTellsOfEveryPanel(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/dashboards.md"))
	if err != nil {
		t.Fatal(err)
	}
	for uid, d := range all(t) {
		_, section, ok := strings.Cut(string(text), "`"+uid+"`")
		if !ok {
			t.Errorf("docs/dashboards.md lacks `%s`", uid)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		for _, p := range d.Panels {
			if !strings.Contains(section, "| "+of(p.Title)+" |") {
				t.Errorf("docs/dashboards.md, %s: no row for the panel %q", uid, of(p.Title))
			}
		}
	}
}

// sound is a dashboard with which nothing is wrong.
const sound = `{
  "uid": "kekd-sound", "title": "sound", "description": "For the tests.", "tags": ["kekd"], "schemaVersion": 41,
  "links": [{"title": "kekd", "type": "dashboards", "tags": ["kekd"], "icon": "dashboard", "tooltip": "", "asDropdown": false, "targetBlank": false, "includeVars": true, "keepTime": true}],
  "annotations": {"list": []},
  "templating": {"list": [
    {"type": "query", "name": "cluster", "datasource": {"type": "prometheus", "uid": "${datasource}"}, "query": {"query": "label_values(kekd_build_info, cluster)", "refId": "c"}, "includeAll": true, "allValue": ".*"}
  ]},
  "panels": [
    {"id": 1, "type": "row", "title": "Row", "gridPos": {"x": 0, "y": 0, "w": 24, "h": 1}, "collapsed": false, "panels": []},
    {"id": 2, "type": "stat", "title": "One", "gridPos": {"x": 0, "y": 1, "w": 12, "h": 4},
     "description": "What the reader of this panel should conclude from it.",
     "datasource": {"type": "prometheus", "uid": "${datasource}"},
     "links": [{"title": "Runbook", "type": "link", "url": "${docs}/runbooks/hsm-down.md", "icon": "doc", "tooltip": "", "tags": [], "asDropdown": false, "targetBlank": true, "includeVars": false, "keepTime": false}],
     "targets": [{"refId": "A", "legendFormat": "{{instance}}", "expr": "sum by (instance) (kekd_health_state{cluster=~\"$cluster\", state=~\"ready|coasting\"})"}],
     "fieldConfig": {"defaults": {"unit": "none", "thresholds": {"mode": "absolute", "steps": [{"value": null, "color": "green"}]}}, "overrides": []},
     "options": {"graphMode": "none", "colorMode": "value", "justifyMode": "auto", "textMode": "auto", "wideLayout": true, "showPercentChange": false, "percentChangeColorMode": "standard", "orientation": "auto", "reduceOptions": {"calcs": ["lastNotNull"]}}},
    {"id": 3, "type": "timeseries", "title": "Two", "gridPos": {"x": 12, "y": 1, "w": 12, "h": 4},
     "description": "What the reader of this panel should conclude from it.",
     "datasource": {"type": "prometheus", "uid": "${datasource}"},
     "links": [{"title": "Sound", "type": "link", "url": "/d/kekd-sound?${__url_time_range}", "icon": "doc", "tooltip": "", "tags": [], "asDropdown": false, "targetBlank": true, "includeVars": false, "keepTime": false}],
     "targets": [{"refId": "A", "expr": "histogram_quantile(0.9, sum by (le, method) (rate(kekd_grpc_request_duration_seconds_bucket[$__rate_interval])))", "legendFormat": "{{method}}"},
                 {"refId": "B", "expr": "kekd:request_slow:ratio_rate5m", "legendFormat": "{{method}}"},
                 {"refId": "C", "expr": "count(ALERTS{alertname=\"KekdDown\"}) or vector(0)"}],
     "fieldConfig": {"defaults": {"unit": "s"}, "overrides": []},
     "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []}, "tooltip": {"mode": "multi", "sort": "desc"}}}
  ]
}`

// Each check finds what it is there to find, and nothing else is wrong with the dashboard.
func TestBrokenDashboards(t *testing.T) {
	c := readCatalogue(t)
	for name, broken := range map[string]struct{ old, new, want string }{
		"sound":                       {"", "", ""},
		"an id":                       {`"uid": "kekd-sound",`, `"uid": "kekd-sound", "id": 7,`, "has an id"},
		"a random uid":                {`"uid": "kekd-sound",`, `"uid": "dQw4w9",`, "the uid is"},
		"an old schema":               {`"schemaVersion": 41`, `"schemaVersion": 36`, "schemaVersion is 36"},
		"a schema to come":            {`"schemaVersion": 41`, `"schemaVersion": 9999`, "schemaVersion is 9999"},
		"an unknown field":            {`"uid": "kekd-sound",`, `"uid": "kekd-sound", "colour": "red",`, "colour"},
		"an unknown field, panel":     {`"id": 2,`, `"id": 2, "size": 4,`, "size"},
		"an unknown field, options":   {`"graphMode"`, `"sparkline": true, "graphMode"`, "sparkline"},
		"an unknown field, query":     {`"refId": "B",`, `"refId": "B", "query": "x",`, "query"},
		"an unknown field, unit":      {`"unit": "s"`, `"unit": "s", "format": "s"`, "format"},
		"an unknown field, variable":  {`"allValue"`, `"every": 1, "allValue"`, "every"},
		"a type of field":             {`"w": 24`, `"w": "24"`, "cannot unmarshal"},
		"a missing option":            {`"graphMode": "none", `, ``, "graphMode"},
		"a panel's type":              {`"type": "timeseries"`, `"type": "graph"`, "of the type graph"},
		"two panels of one id":        {`"id": 3`, `"id": 2`, "id 2 is not its own"},
		"no id of a panel":            {`"id": 3, `, ``, "id 0 is not its own"},
		"two panels of one title":     {`"title": "Two"`, `"title": "One"`, "title is not the panel's own"},
		"no conclusion":               {`"description": "What the reader of this panel should conclude from it."`, `"description": "One"`, "no description"},
		"no unit":                     {`"unit": "s"`, `"min": 0`, "no unit"},
		"no thresholds":               {`, "thresholds": {"mode": "absolute", "steps": [{"value": null, "color": "green"}]}`, ``, "no thresholds"},
		"no query":                    {`"targets": [{"refId": "A", "legendFormat": "{{instance}}", "expr": "sum by (instance) (kekd_health_state{cluster=~\"$cluster\", state=~\"ready|coasting\"})"}],`, ``, "One: no query"},
		"no link":                     {`"title": "Runbook", "type": "link", "url": "${docs}/runbooks/hsm-down.md", "icon": "doc", "tooltip": "", "tags": [], "asDropdown": false, "targetBlank": true, "includeVars": false, "keepTime": false}],`, `"title": "Runbook"}], "links": [],`, "One: no link"},
		"an annotation's data source": {`"annotations": {"list": []}`, `"annotations": {"list": [{"name": "A", "datasource": {"type": "prometheus", "uid": "P1809"}, "enable": true, "iconColor": "red", "expr": "vector(1)"}]}`, "A: the data source"},
		"a variable's data source":    {`"name": "cluster", "datasource": {"type": "prometheus", "uid": "${datasource}"}`, `"name": "cluster", "datasource": {"type": "prometheus", "uid": "P1809"}`, "cluster: the data source"},
		"a data source":               {"\"prometheus\", \"uid\": \"${datasource}\"},\n     \"links\"", "\"prometheus\", \"uid\": \"P1809\"},\n     \"links\"", "not ${datasource}"},
		"one on the other":            {`"x": 12, "y": 1`, `"x": 11, "y": 1`, "Two lies over One"},
		"under a row":                 {`"x": 12, "y": 1`, `"x": 12, "y": 0`, "Two lies over Row"},
		"beside the grid":             {`"x": 12, "y": 1`, `"x": 13, "y": 1`, "stands out"},
		"nowhere":                     {`"gridPos": {"x": 12, "y": 1, "w": 12, "h": 4},`, ``, "has no place"},
		"a closed row":                {`"panels": []}`, `"panels": [{"type": "stat", "title": "hidden"}]}`, "a row that is closed"},
		"an idle variable":            {`cluster=~\"$cluster\", `, ``, "cluster is not used"},
		"all, but not without one":    {`"allValue": ".*"`, `"allValue": ".+"`, "want .*"},
		"an undeclared variable":      {`state=~\"ready`, `instance=~\"$node\", state=~\"ready`, "no variable is called $node"},
		"a variable's label":          {`label_values(kekd_build_info, cluster)`, `label_values(kekd_build_info, clustre)`, "no label clustre"},
		"a variable's query":          {`label_values(kekd_build_info, cluster)`, `kekd_build_info`, "is not label_values"},
		"no PromQL":                   {`kekd:request_slow:ratio_rate5m`, `kekd:request_slow:ratio_rate5m{`, "parse error"},
		"a metric":                    {`kekd_health_state`, `kekd_health_status`, `has "kekd_health_status"`},
		"a histogram without suffix":  {`kekd_grpc_request_duration_seconds_bucket`, `kekd_grpc_request_duration_seconds`, `has "kekd_grpc_request_duration_seconds"`},
		"no histogram":                {`kekd_health_state`, `kekd_health_state_count`, `has "kekd_health_state_count"`},
		"a rule":                      {`kekd:request_slow:ratio_rate5m`, `kekd:request_slow:ratio_rate5`, "kekd:request_slow:ratio_rate5"},
		"a rule's label":              {`kekd:request_slow:ratio_rate5m`, `kekd:request_slow:ratio_rate5m{instance=\"a\"}`, "no label instance"},
		"a label":                     {`state=~\"ready`, `stat=~\"ready`, "no label stat"},
		"a label's value":             {`ready|coasting`, `ready|costing`, `"costing" is none of`},
		"a label to group by":         {`sum by (instance) (`, `sum by (node) (`, "no label node"},
		"a quantile without le":       {`sum by (le, method)`, `sum by (method)`, "no le"},
		"a label in the legend":       {`"legendFormat": "{{instance}}"`, `"legendFormat": "{{node}}"`, "the legend has {{node}}"},
		"an alert":                    {`KekdDown`, `KekdDow`, `"KekdDow" is none of`},
		"a page":                      {`runbooks/hsm-down.md`, `runbooks/hsm-dow.md`, "no such file"},
		"a dashboard":                 {`/d/kekd-sound?`, `/d/kekd-sond?`, "leads to no dashboard"},
		"a foreign address":           {`${docs}/runbooks/hsm-down.md`, `https://example.com/`, "leads out of the documentation"},
		"a tag":                       {`"tags": ["kekd"], "schemaVersion"`, `"tags": [], "schemaVersion"`, "not to the tag kekd"},
	} {
		t.Run(name, func(t *testing.T) {
			if strings.Count(sound, broken.old) == 0 {
				t.Fatalf("the sound dashboard lacks %s", broken.old)
			}
			text := sound
			if broken.want != "" {
				text = strings.Replace(sound, broken.old, broken.new, 1)
			}
			d, err := Parse([]byte(text))
			if err == nil {
				err = errors.Join(c.Check(d, []string{"kekd-sound"})...)
			}
			switch {
			case broken.want == "" && err != nil:
				t.Errorf("something is wrong with it: %v", err)
			case broken.want != "" && (err == nil || !strings.Contains(err.Error(), broken.want)):
				t.Errorf("found %v, want %q", err, broken.want)
			}
		})
	}
}
