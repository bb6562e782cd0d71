package worker

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

const (
	// oomAhead is how much likelier than the parent the kernel kills the worker when
	// memory is short, in thousandths of all memory. It outweighs all that the parent
	// needs, and leaves the worker as far behind the other processes as the parent
	// was put.
	oomAhead = 200
	// oomMax is the kernel's highest score.
	oomMax = 1000
)

// volunteer raises this process's score in the file, which it has from its parent.
// The out-of-memory killer is to take the worker, which costs a restart, and not the
// parent with all seeds.
func volunteer(file string) error {
	text, err := os.ReadFile(file) //nolint:gosec // G304: a file of /proc
	if err != nil {
		return err
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(strconv.Itoa(min(score+oomAhead, oomMax))), 0o600)
}
