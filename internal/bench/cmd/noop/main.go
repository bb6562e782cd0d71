// Command noop is the KMS v2 plugin that does nothing, for package main of
// internal/bench: it serves the socket on descriptor 3 until stdin ends.
package main

import (
	"fmt"
	"os"

	"kekd/internal/bench/plugins"
)

func main() {
	if err := plugins.Serve(plugins.NewNoop(), os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "noop: error:", err)
		os.Exit(1)
	}
}
