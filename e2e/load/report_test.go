package load

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Where the soak's report stands in the documentation.
const (
	beginMarker = "<!-- soak:begin -->"
	endMarker   = "<!-- soak:end -->"
	heading     = "## Soak"
)

// update puts a report between the markers of a page, which it reads and replaces in
// one go: others may edit other parts of it. A page that is missing is made.
func update(path, report string) error {
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = []byte("# Reliability\n"), nil
	}
	if err != nil {
		return err
	}
	text, err := replace(string(old), report)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".soak-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already, if all went well
	_, err = tmp.WriteString(text)
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// replace puts the report between the markers, and adds both at the end of a text
// without them.
func replace(text, report string) (string, error) {
	begin, end := strings.Index(text, beginMarker), strings.Index(text, endMarker)
	block := beginMarker + "\n" + strings.TrimSpace(report) + "\n" + endMarker
	switch {
	case begin < 0 && end < 0:
		return strings.TrimRight(text, "\n") + "\n\n" + heading + "\n\n" + block + "\n", nil
	case begin < 0 || end < begin:
		return "", fmt.Errorf("want %s and behind it %s", beginMarker, endMarker)
	}
	return text[:begin] + block + text[end+len(endMarker):], nil
}

func TestUpdate(t *testing.T) {
	const block = beginMarker + "\nnew\n" + endMarker
	for _, tc := range []struct{ name, text, want string }{
		{"no page", "", "# Reliability\n\n" + heading + "\n\n" + block + "\n"},
		{"without markers", "# Page\n\ntext\n", "# Page\n\ntext\n\n" + heading + "\n\n" + block + "\n"},
		{"with markers", "a\n" + beginMarker + "\nold\n" + endMarker + "\nb\n", "a\n" + block + "\nb\n"},
		{"the end is missing", "a\n" + beginMarker + "\nold\n", ""},
		{"the wrong way round", endMarker + "\n" + beginMarker + "\n", ""},
	} {
		path := filepath.Join(t.TempDir(), "page.md")
		if tc.text != "" {
			must(t, os.WriteFile(path, []byte(tc.text), 0o600))
		}
		err := update(path, "\nnew\n")
		if (err != nil) != (tc.want == "") {
			t.Errorf("%s: %v", tc.name, err)
		}
		if got, _ := os.ReadFile(path); tc.want != "" && string(got) != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
