package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// decoder fills a Config from YAML nodes and collects problems instead of
// stopping at the first. The yaml package's own strict mode reports Go types
// and no field paths, which an operator cannot use.
type decoder struct {
	problems Problems
	// lines remembers where the file sets each field.
	lines map[string]int
}

// add reports a problem of a node's field.
func (d *decoder) add(field string, n *yaml.Node, remedy, format string, args ...any) {
	d.problems = append(d.problems, Problem{
		Field: field, Line: n.Line, Text: fmt.Sprintf(format, args...), Remedy: remedy,
	})
}

// root decodes the document's root into c.
func (d *decoder) root(n *yaml.Node, c *Config) {
	if isNull(n) {
		d.problems = append(d.problems, Problem{Text: "the file has no content", Remedy: "it needs at least hsm and keyRing"})
		return
	}
	d.value("", n, reflect.ValueOf(c).Elem())
}

// value decodes n into out, the field called name.
func (d *decoder) value(name string, n *yaml.Node, out reflect.Value) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.add(name, n, "write the value out", "YAML anchors and aliases are not supported")
		return
	}
	if out.Type() == reflect.TypeFor[time.Duration]() {
		d.duration(name, n, out)
		return
	}
	switch out.Kind() {
	case reflect.Struct:
		d.section(name, n, out)
	case reflect.Map:
		d.table(name, n, out)
	case reflect.Slice:
		d.list(name, n, out)
	case reflect.String:
		d.text(name, n, out)
	default:
		d.scalar(name, n, out)
	}
}

// section decodes a mapping into a struct.
func (d *decoder) section(name string, n *yaml.Node, out reflect.Value) {
	fields := map[string]reflect.Value{}
	var known []string
	for i := range out.NumField() {
		key := out.Type().Field(i).Tag.Get("yaml")
		fields[key] = out.Field(i)
		known = append(known, key)
	}
	for key, v := range d.pairs(name, n) {
		field, ok := fields[key.Value]
		if !ok {
			d.add(join(name, key.Value), key, "known here: "+strings.Join(known, ", "), "unknown field")
			continue
		}
		d.value(join(name, key.Value), v, field)
	}
}

// table decodes a mapping of strings.
func (d *decoder) table(name string, n *yaml.Node, out reflect.Value) {
	table := reflect.MakeMap(out.Type())
	for key, v := range d.pairs(name, n) {
		elem := reflect.New(out.Type().Elem()).Elem()
		d.value(join(name, key.Value), v, elem)
		table.SetMapIndex(reflect.ValueOf(key.Value), elem)
	}
	out.Set(table)
}

// list decodes a sequence.
func (d *decoder) list(name string, n *yaml.Node, out reflect.Value) {
	d.lines[name] = n.Line
	if n.Kind != yaml.SequenceNode {
		d.add(name, n, "write it as [A, B]", "must be a list, got %s", describe(n))
		return
	}
	list := reflect.MakeSlice(out.Type(), len(n.Content), len(n.Content))
	for i, v := range n.Content {
		d.value(fmt.Sprintf("%s[%d]", name, i), v, list.Index(i))
	}
	out.Set(list)
}

// pairs yields the keys and values of a mapping; nothing for null, which is what
// a section with all its lines commented out is.
func (d *decoder) pairs(name string, n *yaml.Node) func(yield func(k, v *yaml.Node) bool) {
	return func(yield func(k, v *yaml.Node) bool) {
		if isNull(n) {
			return
		}
		if n.Kind != yaml.MappingNode {
			d.add(name, n, "", "must be a section of key: value lines, got %s", describe(n))
			return
		}
		seen := map[string]int{}
		for i := 0; i < len(n.Content); i += 2 {
			key, v := n.Content[i], n.Content[i+1]
			if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" {
				d.add(name, key, "", "a key must be a plain word, got %s", describe(key))
				continue
			}
			if line, ok := seen[key.Value]; ok {
				d.add(join(name, key.Value), key, "keep one", "is set twice, first in line %d", line)
				continue
			}
			seen[key.Value] = key.Line
			d.lines[join(name, key.Value)] = key.Line
			if !yield(key, v) {
				return
			}
		}
	}
}

// text decodes any plain value as it is written, so that a serial number made
// of digits needs no quotes.
func (d *decoder) text(name string, n *yaml.Node, out reflect.Value) {
	if n.Kind != yaml.ScalarNode || isNull(n) || n.ShortTag() == "!!binary" {
		d.add(name, n, "", "must be a text, got %s", describe(n))
		return
	}
	out.SetString(n.Value)
}

// duration decodes a number with a unit.
func (d *decoder) duration(name string, n *yaml.Node, out reflect.Value) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		if v, err := time.ParseDuration(n.Value); err == nil {
			out.SetInt(int64(v))
			return
		}
	}
	d.add(name, n, "give a unit: ms, s, m or h", "must be a duration such as 10s, got %s", describe(n))
}

// scalar decodes a number or a boolean.
func (d *decoder) scalar(name string, n *yaml.Node, out reflect.Value) {
	want, tag := "a whole number", "!!int"
	switch out.Kind() {
	case reflect.Bool:
		want, tag = "true or false", "!!bool"
	case reflect.Float64:
		want = "a number"
		if n.ShortTag() == "!!float" {
			tag = "!!float"
		}
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == tag && n.Decode(out.Addr().Interface()) == nil {
		return
	}
	if out.CanUint() && n.ShortTag() == tag {
		want = "a whole number from 0 to 4294967295"
	}
	d.add(name, n, "", "must be %s, got %s", want, describe(n))
}

// describe names what a node is, with its value where that is short. A value
// under hsm.env never gets here: every plain value is a text.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a section"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch {
	case isNull(n):
		return "nothing"
	case n.ShortTag() == "!!binary":
		return "binary data"
	case len(n.Value) > 64:
		return fmt.Sprintf("%q…", n.Value[:64])
	}
	return fmt.Sprintf("%q", n.Value)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// join appends a key to a field's path, in quotes if it would not show as it is.
func join(name, key string) string {
	if strings.ContainsFunc(key, func(r rune) bool { return !unicode.IsPrint(r) }) {
		key = strconv.Quote(key)
	}
	if name == "" {
		return key
	}
	return name + "." + key
}
