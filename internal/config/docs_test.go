package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

const manual = "../../docs/configuration.md"

const manualHead = `# Configuration

<!-- Made from the comments in internal/config/config.go by
     go test ./internal/config -run TestManual -update -->

kekd reads one YAML file: ` + "`kekd serve --config FILE`" + `. ` + "`kekctl config check`" + ` reads it
with the same code and reports every problem at once.

Unknown keys, keys written twice, YAML anchors and a second document are refused.
Durations have a unit: ` + "`500ms`, `10s`, `10m`, `24h`" + `. Paths are absolute. A section
that is left out has its defaults. Nothing secret belongs into the file.

A whole configuration, every value but those of hsm and keyRing.label the default:

` + "```yaml\n"

// The manual is made from the Config type, so that neither can drift.
func TestManual(t *testing.T) {
	comments := fieldComments(t)
	example, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(manualHead + string(example) + "```\n")
	writeSection(t, &b, comments, "", reflect.ValueOf(Default()))

	if *update {
		if err := os.WriteFile(manual, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), string(got)); diff != "" {
		t.Errorf("docs/configuration.md is not what the comments say; run this test with -update (-want +got):\n%s", diff)
	}
}

// writeSection writes the plain fields of a struct, then its sections.
func writeSection(t *testing.T, b *strings.Builder, comments map[string]string, path string, section reflect.Value) {
	var nested []int
	for i := range section.NumField() {
		if section.Field(i).Kind() == reflect.Struct {
			nested = append(nested, i)
			continue
		}
		field := section.Type().Field(i)
		name := join(path, field.Tag.Get("yaml"))
		text := comments[section.Type().Name()+"."+field.Name]
		first, rest, ok := strings.Cut(text, " ")
		if !ok || first != field.Name {
			t.Errorf("the comment of %s (%s) must begin with the field's name, got %q", name, field.Name, text)
		}
		if path == "" {
			fmt.Fprintf(b, "\n## %s\n\nDefault: `%s`. %s\n", name, defaultText(section.Field(i)), sentence(rest))
			continue
		}
		fmt.Fprintf(b, "\n- **`%s`** (%s%s) %s", name, typeText(field.Type), defaultNote(section.Field(i)), sentence(rest))
	}
	if len(nested) < section.NumField() && path != "" {
		b.WriteString("\n")
	}
	for _, i := range nested {
		field := section.Type().Field(i)
		name := join(path, field.Tag.Get("yaml"))
		text := comments[field.Type.Name()]
		if text == "" {
			t.Errorf("the type of %s has no comment", name)
		}
		if path != "" {
			text = comments[section.Type().Name()+"."+field.Name]
		}
		_, rest, _ := strings.Cut(text, " ")
		fmt.Fprintf(b, "\n## %s\n\n%s\n", name, sentence(rest))
		writeSection(t, b, comments, name, section.Field(i))
	}
}

// sentence turns the rest of a Go comment, whose first word was the name, into
// a sentence of its own.
func sentence(s string) string {
	for _, verb := range []string{"is ", "are ", "says "} {
		if rest, ok := strings.CutPrefix(s, verb); ok {
			s = rest
			break
		}
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func typeText(typ reflect.Type) string {
	switch {
	case typ == reflect.TypeFor[time.Duration]():
		return "duration"
	case typ.Kind() == reflect.String:
		return "text"
	case typ.Kind() == reflect.Bool:
		return "true or false"
	case typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.String:
		return "list of texts"
	case typ.Kind() == reflect.Slice:
		return "list of numbers"
	case typ.Kind() == reflect.Map:
		return "texts by name"
	}
	return "number"
}

func defaultNote(v reflect.Value) string {
	if v.IsZero() && v.Kind() == reflect.String || v.Kind() == reflect.Map {
		return ""
	}
	return ", default `" + defaultText(v) + "`"
}

func defaultText(v reflect.Value) string {
	if d, ok := reflect.TypeAssert[time.Duration](v); ok {
		return show(d)
	}
	return fmt.Sprint(v.Interface())
}

// fieldComments returns the comments of config.go on one line each, by
// "Type" and "Type.Field".
func fieldComments(t *testing.T) map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	comments := map[string]string{}
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		spec := gen.Specs[0].(*ast.TypeSpec)
		comments[spec.Name.Name] = oneLine(gen.Doc)
		structure, ok := spec.Type.(*ast.StructType)
		if !ok {
			continue
		}
		for _, field := range structure.Fields.List {
			comments[spec.Name.Name+"."+field.Names[0].Name] = oneLine(field.Doc)
		}
	}
	return comments
}

func oneLine(doc *ast.CommentGroup) string {
	return strings.Join(strings.Fields(doc.Text()), " ")
}

// Every field has a YAML name, and every default is one that Validate accepts.
func TestFieldsAndDefaults(t *testing.T) {
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		for field := range typ.Fields() {
			name := field.Tag.Get("yaml")
			if name == "" || strconv.Quote(name) != `"`+name+`"` || strings.ContainsAny(name, ",-.") {
				t.Errorf("%s.%s has the YAML name %q", typ.Name(), field.Name, name)
			}
			if field.Type.Kind() == reflect.Struct {
				walk(field.Type)
			}
		}
	}
	walk(reflect.TypeFor[Config]())

	c := Default()
	c.HSM.Module, c.HSM.Token.Label, c.HSM.PINFile, c.KeyRing.Label = "/m.so", "t", "/pin", "r"
	if err := c.Validate(); err != nil {
		t.Errorf("the defaults and the required fields are refused: %v", err)
	}
}
