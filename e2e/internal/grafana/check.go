package grafana

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

const (
	// gridWidth is that of Grafana's grid.
	gridWidth = 24
	// oldestSchema is the version of the schema that Grafana 12.0 writes. A later
	// Grafana reads it; an earlier one would not know what it says.
	oldestSchema = 41
)

// panelTypes are those that every Grafana has and that need no more explanation.
var panelTypes = []string{"stat", "timeseries", "table", "heatmap", "state-timeline"}

// Check returns what is wrong with a dashboard. siblings are the uids of all dashboards
// that there are.
func (c *Catalogue) Check(d *Dashboard, siblings []string) (problems []error) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if d.Id != nil {
		problem("the dashboard has an id, which belongs to one Grafana: %d", *d.Id)
	}
	if !regexp.MustCompile(`^kekd-[a-z]+$`).MatchString(of(d.Uid)) {
		problem("the uid is %q, want kekd-…", of(d.Uid))
	}
	if d.SchemaVersion < oldestSchema || d.SchemaVersion > dashboard.NewDashboard().SchemaVersion {
		problem("schemaVersion is %d, want %d or what the schema has, %d", d.SchemaVersion, oldestSchema, dashboard.NewDashboard().SchemaVersion)
	}
	if of(d.Title) == "" || of(d.Description) == "" {
		problem("the dashboard lacks a title or a description")
	}
	problems = append(problems, d.checkPanels()...)
	problems = append(problems, d.checkGrid()...)
	problems = append(problems, d.checkVariables()...)
	problems = append(problems, c.checkQueries(d)...)
	problems = append(problems, c.checkLinks(d, siblings)...)
	return problems
}

// checkPanels wants of each panel what its reader needs, and that no data source is
// written into it.
func (d *Dashboard) checkPanels() (problems []error) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	ids, titles := map[uint32]bool{}, map[string]bool{}
	unique := func(id uint32, title string) {
		if id == 0 || ids[id] {
			problem("%s: the panel's id %d is not its own", title, id)
		}
		if title == "" || titles[title] {
			problem("%q: the title is not the panel's own", title)
		}
		ids[id], titles[title] = true, true
	}
	for _, row := range d.Rows {
		unique(row.Id, of(row.Title))
	}
	for _, p := range d.Panels {
		title := of(p.Title)
		var id uint32
		if p.Id != nil {
			id = *p.Id
		}
		unique(id, title)
		if !slices.Contains(panelTypes, p.Type) {
			problem("%s: a panel of the type %s", title, p.Type)
		}
		if len(of(p.Description)) < 40 {
			problem("%s: no description that says what to conclude", title)
		}
		if p.Datasource == nil || of(p.Datasource.Uid) != "${datasource}" {
			problem("%s: the data source is not ${datasource}: %s", title, compact(p.Datasource))
		}
		if len(p.Targets) == 0 {
			problem("%s: no query", title)
		}
		if p.FieldConfig == nil || of(p.FieldConfig.Defaults.Unit) == "" {
			problem("%s: no unit", title)
		}
		if p.Type == "stat" && (p.FieldConfig == nil || p.FieldConfig.Defaults.Thresholds == nil) {
			problem("%s: no thresholds", title)
		}
	}
	for _, a := range d.Annotations.List {
		if a.Datasource == nil || of(a.Datasource.Uid) != "${datasource}" {
			problem("%s: the data source is not ${datasource}", a.Name)
		}
	}
	return problems
}

// checkGrid wants each panel to stand within the grid and on no other.
func (d *Dashboard) checkGrid() (problems []error) {
	taken := map[[2]uint32]string{}
	place := func(title string, at *dashboard.GridPos) {
		switch {
		case at == nil || at.W == 0 || at.H == 0:
			problems = append(problems, fmt.Errorf("%s has no place", title))
			return
		case at.X+at.W > gridWidth:
			problems = append(problems, fmt.Errorf("%s stands out: %d + %d of %d columns", title, at.X, at.W, gridWidth))
			return
		}
		for x := at.X; x < at.X+at.W; x++ {
			for y := at.Y; y < at.Y+at.H; y++ {
				if other, ok := taken[[2]uint32{x, y}]; ok {
					problems = append(problems, fmt.Errorf("%s lies over %s", title, other))
					return
				}
				taken[[2]uint32{x, y}] = title
			}
		}
	}
	for _, row := range d.Rows {
		place(of(row.Title), row.GridPos)
	}
	for _, p := range d.Panels {
		place(of(p.Title), p.GridPos)
	}
	return problems
}

// checkVariables wants every variable to be used, and no choice of one to be empty where
// a label is missing.
func (d *Dashboard) checkVariables() (problems []error) {
	text := compact(d.Dashboard)
	for _, v := range d.Templating.List {
		uses := regexp.MustCompile(`\$(` + v.Name + `\b|\{` + v.Name + `[:}])`)
		if !uses.MatchString(text) {
			problems = append(problems, fmt.Errorf("the variable %s is not used", v.Name))
		}
		if is(v.IncludeAll) && of(v.AllValue) != ".*" {
			problems = append(problems, fmt.Errorf("the variable %s: all is %q, want .*, which matches where the label is missing too", v.Name, of(v.AllValue)))
		}
		if v.Type == dashboard.VariableTypeQuery && (v.Datasource == nil || of(v.Datasource.Uid) != "${datasource}") {
			problems = append(problems, fmt.Errorf("the variable %s: the data source is not ${datasource}", v.Name))
		}
	}
	return problems
}

// Everything gives a query's variables the values that choose everything.
func Everything() map[string]string {
	return map[string]string{"cluster": ".*", "job": "kekd", "node": ".*", "__rate_interval": "5m", "__range": "1h"}
}

// checkQueries reads every query.
func (c *Catalogue) checkQueries(d *Dashboard) (problems []error) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	declared := Everything()
	for name := range declared {
		if !strings.HasPrefix(name, "__") && !slices.ContainsFunc(d.Templating.List, func(v dashboard.VariableModel) bool { return v.Name == name }) {
			delete(declared, name)
		}
	}
	queries, err := d.Queries()
	if err != nil {
		problem("%w", err)
	}
	for _, q := range queries {
		expr, label := q.Expr, ""
		if q.Variable {
			if expr, label, err = q.LabelValues(); err != nil {
				problem("%w", err)
				continue
			}
		}
		expr, err := Interpolate(expr, declared)
		if err != nil {
			problem("%s: %w", q.Of, err)
			continue
		}
		has, wrong := c.read(expr)
		for _, err := range wrong {
			problem("%s: %w", q.Of, err)
		}
		if len(wrong) != 0 {
			continue
		}
		if label != "" && !has[label] {
			problem("%s: no label %s, only %s", q.Of, label, has)
		}
		for _, m := range legendPattern.FindAllStringSubmatch(q.Legend, -1) {
			if !has[m[1]] {
				problem("%s: the legend has {{%s}}, the series have %s", q.Of, m[1], has)
			}
		}
	}
	return problems
}

var legendPattern = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)

// checkLinks follows every link.
func (c *Catalogue) checkLinks(d *Dashboard, siblings []string) (problems []error) {
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	for where, links := range d.links() {
		if len(links) == 0 {
			problem("%s: no link", where)
		}
		for _, l := range links {
			url := of(l.Url)
			page, isPage := strings.CutPrefix(url, "${docs}/")
			uid, isDashboard := strings.CutPrefix(url, "/d/")
			switch {
			case l.Type == dashboard.DashboardLinkTypeDashboards:
				if !slices.Equal(l.Tags, []string{"kekd"}) || !slices.Contains(d.Tags, "kekd") {
					problem("%s: the link %q is not to the tag kekd, or the dashboard lacks it", where, l.Title)
				}
			case isPage:
				path, _, _ := strings.Cut(page, "#")
				if _, err := os.Stat(filepath.Join(c.docs, filepath.FromSlash(path))); err != nil {
					problem("%s: the link %q: %w", where, l.Title, err)
				}
			case isDashboard:
				uid, _, _ = strings.Cut(uid, "?")
				if !slices.Contains(siblings, uid) {
					problem("%s: the link %q leads to no dashboard: %s", where, l.Title, url)
				}
			default:
				problem("%s: the link %q leads out of the documentation: %s", where, l.Title, url)
			}
		}
	}
	return problems
}
