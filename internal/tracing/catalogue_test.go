package tracing

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// page is the catalogue for operators.
const page = "../../docs/tracing.md"

// inCode are the names of catalogue.go by kind: the texts of its constants.
func inCode(t *testing.T) (spans, attributes, events []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "catalogue.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var kind *[]string
	kinds := map[string]*[]string{"SeedFetch": &spans, "UID": &attributes, "Remembered": &events}
	for _, decl := range file.Decls {
		consts, ok := decl.(*ast.GenDecl)
		if !ok || consts.Tok != token.CONST {
			continue
		}
		first := consts.Specs[0].(*ast.ValueSpec).Names[0].Name
		if kind = kinds[first]; kind == nil {
			t.Fatalf("a block of constants begins with %s, which this test does not know", first)
		}
		ast.Inspect(consts, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok {
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				*kind = append(*kind, text)
			}
			return true
		})
	}
	attributes = append(attributes, string(rpcSystem), string(rpcMethod), string(RPCCode))
	return spans, attributes, events
}

// cells are the names in backquotes of the first column of the table that begins with
// this heading.
func cells(t *testing.T, text, heading string) []string {
	t.Helper()
	_, table, ok := strings.Cut(text, "| "+heading+" |")
	if !ok {
		t.Fatalf("%s has no table of the %ss", page, heading)
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var names []string
	for _, line := range strings.Split(table, "\n")[2:] {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// docs/tracing.md lists each span, attribute and event that there is, and no other.
func TestCatalogue(t *testing.T) {
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	spans, attributes, events := inCode(t)
	// Those whose names are made.
	spans = append(spans, "v2.KeyManagementService/METHOD", HSM("OPERATION"))
	same := func(kind string, code, doc []string) {
		t.Helper()
		slices.Sort(code)
		slices.Sort(doc)
		if !slices.Equal(code, doc) {
			t.Errorf("%s in the code:\n%s\non the page:\n%s", kind, strings.Join(code, "\n"), strings.Join(doc, "\n"))
		}
	}
	same("spans", spans, cells(t, text, "Span"))
	same("attributes", attributes, cells(t, text, "Attribute"))
	for _, e := range events {
		if !strings.Contains(text, "`"+e+"`") {
			t.Errorf("the page does not tell of the event %q", e)
		}
	}
	for _, s := range spans {
		row := regexp.MustCompile("(?m)^\\| `" + regexp.QuoteMeta(s) + "` \\|.*$").FindString(text)
		if Rare(s) != strings.Contains(row, "always recorded") {
			t.Errorf("%s is always recorded: %v, the page says: %s", s, Rare(s), row)
		}
	}
}
