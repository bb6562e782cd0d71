package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// UpdatePage puts what a run has measured into a page of docs/, between the lines
// <!-- NAME:begin --> and <!-- NAME:end -->. The page is read and replaced in one
// go, since others may edit other parts of it meanwhile.
func UpdatePage(page, name, content string) error {
	old, err := os.ReadFile(page) //nolint:gosec // G304: the page that the test names
	if err != nil {
		return err
	}
	text, err := between(string(old), name, content)
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(page), "."+name+"-*")
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
	return os.Rename(tmp.Name(), page)
}

// between replaces what stands between the marks of a name.
func between(text, name, content string) (string, error) {
	begin, end := "<!-- "+name+":begin -->\n", "<!-- "+name+":end -->\n"
	before, rest, ok := strings.Cut(text, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return "", fmt.Errorf("want the line %s and behind it %s", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return before + begin + strings.TrimSpace(content) + "\n" + end + after, nil
}
