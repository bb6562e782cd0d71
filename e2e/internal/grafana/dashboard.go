package grafana

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
)

// Dashboard is one that was read strictly: nothing in it is unknown to Grafana's schema,
// the classic one, which every Grafana imports.
type Dashboard struct {
	dashboard.Dashboard

	// Panels are all panels in their order, without the rows that group them.
	Panels []dashboard.Panel
	// Rows are those rows.
	Rows []dashboard.RowPanel
}

// Query is one that a dashboard asks Prometheus.
type Query struct {
	// Of is the panel, the annotation or the variable that asks.
	Of string
	// Expr is PromQL with Grafana's variables in it, or label_values(…) of a variable.
	Expr string
	// Legend names the series, with labels as {{label}}.
	Legend string
	// Instant tells that the present value is asked for, and not those of the time shown.
	Instant bool
	// Variable tells that it gives the values of a variable.
	Variable bool
}

// Load reads a dashboard.
func Load(path string) (*Dashboard, error) {
	text, err := os.ReadFile(path) //nolint:gosec // G304: a file of the checkout
	if err != nil {
		return nil, err
	}
	d, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// Parse reads a dashboard. It refuses fields and types that Grafana's schema does not
// have, in the dashboard and in the options of its panels.
func Parse(text []byte) (*Dashboard, error) {
	plugins.RegisterDefaultPlugins()
	d := &Dashboard{}
	// The strict reading returns its list of errors even where that is empty, and then
	// leaves the panels out: it can only be asked for its opinion.
	var opinion dashboard.Dashboard //nolint:staticcheck // SA1019: what every Grafana imports
	if err := opinion.UnmarshalJSONStrict(text); !isNone(err) {
		return nil, err
	}
	if err := readParts(text); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &d.Dashboard); err != nil {
		return nil, err
	}
	if err := d.Validate(); !isNone(err) {
		return nil, err
	}
	for i, p := range d.Dashboard.Panels {
		switch {
		case p.RowPanel != nil && len(p.RowPanel.Panels) != 0:
			return nil, fmt.Errorf("panels[%d]: a row that is closed hides its panels", i)
		case p.RowPanel != nil:
			d.Rows = append(d.Rows, *p.RowPanel)
		case p.Panel != nil:
			d.Panels = append(d.Panels, *p.Panel)
		default:
			return nil, fmt.Errorf("panels[%d] is neither a panel nor a row", i)
		}
	}
	if len(d.Panels) == 0 {
		return nil, errors.New("no panels")
	}
	return d, nil
}

// readParts reads strictly what the strict reading of a panel does not: its queries, since
// it comes to know the type of the data source after them, and its fields.
func readParts(text []byte) error {
	var parts struct {
		Panels []struct {
			Title       string
			Targets     []json.RawMessage
			FieldConfig json.RawMessage
		}
	}
	if err := json.Unmarshal(text, &parts); err != nil {
		return err
	}
	for _, p := range parts.Panels {
		if err := new(dashboard.FieldConfigSource).UnmarshalJSONStrict(p.FieldConfig); !isNone(err) {
			return fmt.Errorf("%s: fieldConfig: %w", p.Title, err)
		}
		for _, target := range p.Targets {
			if err := new(prometheus.Dataquery).UnmarshalJSONStrict(target); !isNone(err) {
				return fmt.Errorf("%s: targets: %w", p.Title, err)
			}
		}
	}
	return nil
}

// Queries lists all queries of the dashboard: panels, annotations, variables.
func (d *Dashboard) Queries() ([]Query, error) {
	var all []Query
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			q, ok := target.(*prometheus.Dataquery)
			if !ok {
				return nil, fmt.Errorf("%s asks %T, not Prometheus", of(p.Title), target)
			}
			all = append(all, Query{Of: of(p.Title), Expr: q.Expr, Legend: of(q.LegendFormat), Instant: is(q.Instant)})
		}
	}
	for _, a := range d.Annotations.List {
		all = append(all, Query{Of: a.Name, Expr: of(a.Expr)})
	}
	for _, v := range d.Templating.List {
		if v.Type != dashboard.VariableTypeQuery {
			continue
		}
		if v.Query == nil {
			return nil, fmt.Errorf("the variable %s has no query", v.Name)
		}
		expr, _ := v.Query.Map["query"].(string)
		all = append(all, Query{Of: "$" + v.Name, Expr: expr, Variable: true})
	}
	return all, nil
}

// variablePattern matches $name, ${name} and ${name:format}.
var variablePattern = regexp.MustCompile(`\$(\w+)|\$\{(\w+)(?::\w+)?\}`)

// Interpolate puts values in the place of variables. It refuses those without a value.
func Interpolate(text string, values map[string]string) (string, error) {
	var unknown []string
	text = variablePattern.ReplaceAllStringFunc(text, func(s string) string {
		m := variablePattern.FindStringSubmatch(s)
		value, ok := values[m[1]+m[2]]
		if !ok {
			unknown = append(unknown, s)
		}
		return value
	})
	if len(unknown) != 0 {
		return "", fmt.Errorf("no variable is called %s", strings.Join(unknown, ", "))
	}
	return text, nil
}

var labelValuesPattern = regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)

// LabelValues takes label_values(selector, label) apart.
func (q Query) LabelValues() (selector, label string, err error) {
	m := labelValuesPattern.FindStringSubmatch(q.Expr)
	if m == nil {
		return "", "", fmt.Errorf("%s: %q is not label_values(selector, label)", q.Of, q.Expr)
	}
	return m[1], m[2], nil
}

// links are all links of the dashboard with the place where they stand.
func (d *Dashboard) links() map[string][]dashboard.DashboardLink {
	all := map[string][]dashboard.DashboardLink{"the dashboard": d.Links}
	for _, p := range d.Panels {
		name := of(p.Title)
		all[name] = append(all[name], p.Links...)
		if p.FieldConfig != nil {
			all[name] = append(all[name], p.FieldConfig.Defaults.Links...)
		}
	}
	return all
}

// compact returns what JSON says without its layout.
func compact(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// isNone tells whether there is no error, or a list of none.
func isNone(err error) bool {
	var list cog.BuildErrors
	return err == nil || errors.As(err, &list) && len(list) == 0
}

func of(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func is(b *bool) bool { return b != nil && *b }
