package grafana

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

// Catalogue is what a query may ask for.
type Catalogue struct {
	// metrics has the labels of each metric that kekd has, the target's included, and
	// recorded those of each recording rule.
	metrics, recorded map[string]labels
	// histograms are the metrics with _bucket, _count and _sum.
	histograms map[string]bool
	// values are those of a metric's label where they are a fixed set.
	values map[[2]string][]string
	// alerts are the names of the alerts.
	alerts map[string]bool
	// docs is the folder that the links lead to.
	docs string
}

// labels is a set of names.
type labels map[string]bool

func set(names ...string) labels {
	s := labels{}
	for _, n := range names {
		s[n] = true
	}
	return s
}

func (l labels) String() string { return strings.Join(slices.Sorted(maps.Keys(l)), ", ") }

// targetLabels are what Prometheus adds when it scrapes; cluster may be an external one.
var targetLabels = []string{"cluster", "job", "instance"}

// others are the metrics that are not kekd's own: Prometheus makes up and ALERTS, the
// libraries for Go the rest, which docs/metrics.md does not list one by one.
var others = map[string]labels{
	"up":     set(targetLabels...),
	"ALERTS": set("alertname", "alertstate", "severity", "cause", "cluster", "job", "instance"),

	"go_goroutines":                 set(targetLabels...),
	"process_cpu_seconds_total":     set(targetLabels...),
	"process_open_fds":              set(targetLabels...),
	"process_resident_memory_bytes": set(targetLabels...),
	"process_start_time_seconds":    set(targetLabels...),
}

var (
	metricRow = regexp.MustCompile("(?m)^\\| `(kekd_[a-z0-9_]+)` \\| ([a-z]+) \\| [^|]+ \\| ([^|]*) \\|")
	valuesRow = regexp.MustCompile("(?m)^\\| `(kekd_[a-z0-9_]+)` \\| `([a-z_]+)` \\| ([^|]*) \\|$")
	quoted    = regexp.MustCompile("`([^`]+)`")
)

// ReadCatalogue reads docs/metrics.md and the rules of a checkout of kekd.
func ReadCatalogue(root string) (*Catalogue, error) {
	c := &Catalogue{
		metrics: maps.Clone(others), recorded: map[string]labels{}, histograms: map[string]bool{},
		values: map[[2]string][]string{}, alerts: map[string]bool{}, docs: filepath.Join(root, "docs"),
	}
	page, err := os.ReadFile(filepath.Join(c.docs, "metrics.md"))
	if err != nil {
		return nil, err
	}
	for _, m := range metricRow.FindAllStringSubmatch(string(page), -1) {
		l := set(targetLabels...)
		for _, name := range quotedIn(m[3]) {
			l[name] = true
		}
		c.metrics[m[1]] = l
		c.histograms[m[1]] = m[2] == "histogram"
	}
	for _, m := range valuesRow.FindAllStringSubmatch(string(page), -1) {
		c.values[[2]string{m[1], m[2]}] = quotedIn(m[3])
	}
	if len(c.metrics) < 30 || len(c.values) < 10 {
		return nil, fmt.Errorf("docs/metrics.md has %d metrics and %d labels with fixed values: are its tables read right?", len(c.metrics), len(c.values))
	}
	return c, c.readRules(filepath.Join(root, "manifests", "prometheus"))
}

func quotedIn(s string) (names []string) {
	for _, m := range quoted.FindAllStringSubmatch(s, -1) {
		names = append(names, m[1])
	}
	return names
}

// readRules adds what is recorded and the alerts. A rule may read what one above it
// records.
func (c *Catalogue) readRules(dir string) error {
	var paths []string
	for _, folder := range []string{"rules", "alerts"} {
		found, err := filepath.Glob(filepath.Join(dir, folder, "*.yaml"))
		if err != nil || len(found) == 0 {
			return errors.Join(err, fmt.Errorf("%s/%s: %d files", dir, folder, len(found)))
		}
		paths = append(paths, found...)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path) //nolint:gosec // G304: a file of the checkout
		if err != nil {
			return err
		}
		var file struct {
			Groups []struct {
				Rules []struct {
					Record, Alert, Expr string
					Labels              map[string]string
				}
			}
		}
		if err := yaml.Unmarshal(text, &file); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, g := range file.Groups {
			for _, r := range g.Rules {
				if r.Alert != "" {
					c.alerts[r.Alert] = true
					continue
				}
				has, problems := c.read(r.Expr)
				if len(problems) != 0 {
					return fmt.Errorf("%s: %s: %w", path, r.Record, errors.Join(problems...))
				}
				for name := range r.Labels {
					has[name] = true
				}
				c.recorded[r.Record] = has
			}
		}
	}
	return nil
}

// labelsOf returns the labels of a metric as a selector spells it, and the metric that
// docs/metrics.md lists.
func (c *Catalogue) labelsOf(name string) (has labels, listed string, ok bool) {
	if has, ok = c.recorded[name]; ok {
		return has, name, true
	}
	if has, ok = c.metrics[name]; ok && !c.histograms[name] {
		return has, name, true
	}
	for _, suffix := range []string{"_bucket", "_count", "_sum"} {
		base, cut := strings.CutSuffix(name, suffix)
		if !cut || !c.histograms[base] {
			continue
		}
		has = maps.Clone(c.metrics[base])
		if suffix == "_bucket" {
			has["le"] = true
		}
		return has, base, true
	}
	return nil, "", false
}

// read parses a query without variables. It returns the labels that its series have,
// and what is wrong with it.
func (c *Catalogue) read(query string) (labels, []error) {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		return nil, []error{err}
	}
	r := reading{catalogue: c}
	return r.labels(expr), r.problems
}

// reading walks through one query.
type reading struct {
	catalogue *Catalogue
	problems  []error
}

func (r *reading) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf(format, args...))
}

// labels returns the labels that the series of an expression have; nil for a scalar.
func (r *reading) labels(expr parser.Expr) labels {
	switch e := expr.(type) {
	case *parser.VectorSelector:
		return r.selector(e)
	case *parser.MatrixSelector:
		return r.labels(e.VectorSelector)
	case *parser.SubqueryExpr:
		return r.labels(e.Expr)
	case *parser.ParenExpr:
		return r.labels(e.Expr)
	case *parser.StepInvariantExpr:
		return r.labels(e.Expr)
	case *parser.UnaryExpr:
		return r.labels(e.Expr)
	case *parser.AggregateExpr:
		inner := r.labels(e.Expr)
		r.known(e.Grouping, inner, e.Op.String()+" by")
		if !e.Without {
			return set(e.Grouping...)
		}
		for _, name := range e.Grouping {
			delete(inner, name)
		}
		return inner
	case *parser.Call:
		return r.call(e)
	case *parser.BinaryExpr:
		return r.binary(e)
	}
	return nil
}

func (r *reading) call(e *parser.Call) labels {
	var has labels
	for _, arg := range e.Args {
		if of := r.labels(arg); of != nil {
			has = of
		}
	}
	switch e.Func.Name {
	case "histogram_quantile":
		if !has["le"] {
			r.problem("histogram_quantile of what has no le: %s", e)
		}
		delete(has, "le")
	case "label_replace", "label_join":
		r.problem("%s is not read: its labels are made up", e.Func.Name)
	case "vector", "absent":
		return labels{}
	}
	return has
}

func (r *reading) binary(e *parser.BinaryExpr) labels {
	left, right := r.labels(e.LHS), r.labels(e.RHS)
	if left == nil || right == nil || e.VectorMatching == nil {
		if left == nil {
			return right
		}
		return left
	}
	m := e.VectorMatching
	both := maps.Clone(left)
	maps.Copy(both, right)
	r.known(m.MatchingLabels, both, "matching")
	r.known(m.Include, both, "group")
	if e.Op == parser.LOR {
		return both
	}
	has := left
	if m.Card == parser.CardOneToMany {
		has = right
	}
	has = maps.Clone(has)
	if m.Card == parser.CardOneToOne && !e.Op.IsSetOperator() && !m.On {
		for _, name := range m.MatchingLabels {
			delete(has, name)
		}
	}
	for _, name := range m.Include {
		has[name] = true
	}
	return has
}

// known complains of names that are not among the labels.
func (r *reading) known(names []string, has labels, where string) {
	for _, name := range names {
		if !has[name] {
			r.problem("%s: no label %s, only %s", where, name, has)
		}
	}
}

func (r *reading) selector(e *parser.VectorSelector) labels {
	has, listed, ok := r.catalogue.labelsOf(e.Name)
	if !ok {
		r.problem("neither docs/metrics.md nor a rule has %q", e.Name)
		return labels{}
	}
	for _, m := range e.LabelMatchers {
		if m.Name == "__name__" {
			continue
		}
		if !has[m.Name] {
			r.problem("%s has no label %s, only %s", e.Name, m.Name, has)
		}
		values, closed := r.catalogue.values[[2]string{listed, m.Name}]
		if e.Name == "ALERTS" && m.Name == "alertname" {
			values, closed = slices.Sorted(maps.Keys(r.catalogue.alerts)), true
		}
		if !closed {
			continue
		}
		// Each branch of a regular expression must mean something.
		for branch := range strings.SplitSeq(m.Value, "|") {
			pattern := regexp.QuoteMeta(branch)
			if m.Type.String() == "=~" || m.Type.String() == "!~" {
				pattern = branch
			}
			re, err := regexp.Compile("^(?:" + pattern + ")$")
			if err != nil {
				r.problem("%s{%s}: %w", e.Name, m, err)
			} else if !slices.ContainsFunc(values, re.MatchString) {
				r.problem("%s{%s}: %q is none of %s", e.Name, m, branch, strings.Join(values, ", "))
			}
		}
	}
	return maps.Clone(has)
}
