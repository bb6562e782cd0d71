package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFileSize bounds the file in bytes. A configuration has a few hundred.
const maxFileSize = 256 << 10

// Load reads and checks the file at path. The error names the path and wraps
// Problems where the content is at fault; the Config is then the default.
func Load(path string) (Config, error) {
	data, err := readFile(path)
	if err != nil {
		return Default(), err
	}
	c, err := Parse(data)
	if err != nil {
		return Default(), fmt.Errorf("configuration %s:\n%w", path, err)
	}
	return c, nil
}

// readFile reads at most maxFileSize bytes of a configuration.
func readFile(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("no configuration file is given; pass --config FILE")
	}
	f, err := os.Open(path) //nolint:gosec // G304: the operator names the file
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the configuration: %w; write the file or pass --config FILE", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()

	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("read the configuration: %s is larger than %d KiB; is it the right file?", path, maxFileSize>>10)
	}
	return data, nil
}

// Parse reads and checks a configuration: the defaults, overlaid with data. The
// error is of type Problems.
func Parse(data []byte) (Config, error) {
	root, err := document(data)
	if err != nil {
		return Default(), Problems{{Text: err.Error()}}
	}
	c := Default()
	d := decoder{lines: map[string]int{}}
	d.root(root, &c)

	problems := d.problems
	for _, p := range c.problems() {
		// A field that could not be read still has its default: what Validate
		// thinks of it would only confuse.
		if problems.covers(p.Field) {
			continue
		}
		p.Line = d.lines[p.Field]
		problems = append(problems, p)
	}
	if len(problems) > 0 {
		return Default(), problems
	}
	return c, nil
}

// document returns the root of the only YAML document in data.
func document(data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root, more yaml.Node
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the file is empty; it needs at least hsm and keyRing")
	case err != nil:
		return nil, syntaxError(err)
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		return nil, fmt.Errorf("a second YAML document begins at line %d; keep one", more.Line)
	case !errors.Is(err, io.EOF):
		return nil, syntaxError(err)
	}
	return root.Content[0], nil
}

// syntaxError drops the parser's own prefix, which means nothing to an operator.
func syntaxError(err error) error {
	return fmt.Errorf("the file is not valid YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
}

// String returns the configuration as YAML, the values of hsm.env hidden.
func (c Config) String() string {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(c); err != nil {
		return fmt.Sprintf("configuration cannot be printed: %v", err)
	}
	return b.String()
}
