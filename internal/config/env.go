package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// hiddenValue is what every value of an Env prints as.
const hiddenValue = "[set]"

// Env maps the names of environment variables to their values. Printing and
// marshalling show the names only, since some vendors take secrets this way.
type Env map[string]string

// List returns the variables as NAME=VALUE, sorted by name, for exec.Cmd.Env.
func (e Env) List() []string {
	list := make([]string, 0, len(e))
	for _, name := range slices.Sorted(maps.Keys(e)) {
		list = append(list, name+"="+e[name])
	}
	return list
}

// names returns the variables with their values hidden.
func (e Env) names() map[string]string {
	hidden := make(map[string]string, len(e))
	for name := range e {
		hidden[name] = hiddenValue
	}
	return hidden
}

// Format implements fmt.Formatter, so that no verb reaches the values.
func (e Env) Format(f fmt.State, _ rune) {
	names := slices.Sorted(maps.Keys(e))
	_, _ = fmt.Fprintf(f, "{%s}", strings.Join(names, " "))
}

// MarshalYAML implements yaml.Marshaler.
func (e Env) MarshalYAML() (any, error) { return e.names(), nil }

// MarshalJSON implements json.Marshaler.
func (e Env) MarshalJSON() ([]byte, error) { return json.Marshal(e.names()) }
