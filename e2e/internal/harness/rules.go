package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

const (
	// Quicker is by how much QuickRules makes the rules quicker: a day is two minutes,
	// an hour five seconds.
	Quicker = 720
	// leastWindow and leastFor bound that: a window has to have several scrapes, which
	// are a second apart.
	leastWindow, leastFor = 8 * time.Second, time.Second
)

var (
	windowPattern = regexp.MustCompile(`\[(\d+)([smhd])\]`)
	offsetPattern = regexp.MustCompile(`offset (\d+)([smhd])`)
	agePattern    = regexp.MustCompile(`(time\(\) - .* > )(\d+)\n`)
	forPattern    = regexp.MustCompile(`(?m)^(\s+)for: (\d+)([smhd])$`)
)

// QuickRules writes the rules and alerts of manifests/prometheus into a directory that
// goes with the test, and returns it. What they say of time is divided by Quicker, every
// window, offset, age and `for`, so that minutes show what takes days; nothing else about them
// is changed. No window becomes shorter than 8 s, no `for` and no offset shorter than 1 s.
// They want a scrape and an evaluation each second.
func QuickRules(tb testing.TB) string {
	tb.Helper()
	dir := shortDir(tb)
	for _, folder := range []string{"rules", "alerts"} {
		paths, err := filepath.Glob("../../manifests/prometheus/" + folder + "/*.yaml")
		if err != nil || len(paths) == 0 {
			tb.Fatalf("%s: %v %v", folder, paths, err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path) //nolint:gosec // G304: a file of the checkout
			if err != nil {
				tb.Fatal(err)
			}
			writeFile(tb, filepath.Join(dir, folder+"-"+filepath.Base(path)), quick(string(text)))
		}
	}
	return dir
}

// quick divides what a rule file says of time.
func quick(text string) string {
	shorter := func(number, unit string, least time.Duration) string {
		n, _ := strconv.Atoi(number)
		d := time.Duration(n) * map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[unit]
		return fmt.Sprintf("%dms", max(d/Quicker, least).Milliseconds())
	}
	text = windowPattern.ReplaceAllStringFunc(text, func(s string) string {
		m := windowPattern.FindStringSubmatch(s)
		return "[" + shorter(m[1], m[2], leastWindow) + "]"
	})
	text = offsetPattern.ReplaceAllStringFunc(text, func(s string) string {
		m := offsetPattern.FindStringSubmatch(s)
		return "offset " + shorter(m[1], m[2], leastFor)
	})
	text = agePattern.ReplaceAllStringFunc(text, func(s string) string {
		m := agePattern.FindStringSubmatch(s)
		seconds, _ := strconv.Atoi(m[2])
		// Never less than two checkpoints of the harness's, which come each second.
		return fmt.Sprintf("%s%d\n", m[1], max(seconds/Quicker, 3))
	})
	return forPattern.ReplaceAllStringFunc(text, func(s string) string {
		m := forPattern.FindStringSubmatch(s)
		return m[1] + "for: " + shorter(m[2], m[3], leastFor)
	})
}
