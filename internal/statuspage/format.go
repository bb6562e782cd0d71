package statuspage

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// none stands where there is nothing to show.
const none = "\u2013"

// span spells a length of time for people, in at most two units.
func span(d time.Duration) string {
	if d < 0 {
		d = -d
	}
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 10*time.Minute:
		return two(d, time.Minute, "min", time.Second, "s")
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < day:
		return two(d, time.Hour, "h", time.Minute, "min")
	case d < 10*day:
		return two(d, day, "d", time.Hour, "h")
	}
	return fmt.Sprintf("%d days", d/day)
}

func two(d, big time.Duration, bigUnit string, small time.Duration, smallUnit string) string {
	text := fmt.Sprintf("%d %s", d/big, bigUnit)
	if rest := d % big / small; rest > 0 {
		text += fmt.Sprintf(" %d %s", rest, smallUnit)
	}
	return text
}

// latency spells the time that an operation took, in two or three digits.
func latency(d time.Duration) string {
	v, unit := d.Seconds(), "s"
	switch {
	case d == 0:
		return "0"
	case d < 999500*time.Nanosecond:
		v, unit = v*1e6, "\u00b5s"
	case d < 999500*time.Microsecond:
		v, unit = v*1e3, "ms"
	}
	return digits(v) + " " + unit
}

// digits writes a number with one digit after the point if it is below ten.
func digits(v float64) string {
	if v < 9.95 {
		return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0")
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// rate spells how often something happens.
func rate(perSecond float64) string {
	switch {
	case perSecond == 0:
		return "0"
	case perSecond >= 0.95:
		return digits(perSecond) + "/s"
	case perSecond*60 >= 0.95:
		return digits(perSecond*60) + "/min"
	}
	return digits(max(perSecond*3600, 0.1)) + "/h"
}

// count writes a whole number with a narrow space between thousands.
func count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// percent spells a share, and says neither 0 nor 100 % of what is not.
func percent(part, whole uint64) string {
	if whole == 0 {
		return none
	}
	p := 100 * float64(part) / float64(whole)
	switch {
	case part > 0 && p < 0.1:
		return "< 0.1 %"
	case part < whole && p > 99.9:
		return "> 99.9 %"
	case p == math.Trunc(p):
		return fmt.Sprintf("%.0f %%", p)
	}
	return fmt.Sprintf("%.1f %%", p)
}

// shortKeyID leaves the middle of a key_id out.
func shortKeyID(id string) string {
	parts := strings.Split(id, "/")
	if len(parts) != 3 {
		return shorten(id, 12, 12)
	}
	return shorten(parts[0], 14, 8) + "/" + shorten(parts[1], 2, 8) + "/" + shorten(parts[2], 6, 6)
}

// shorten keeps some characters of both ends.
func shorten(s string, head, tail int) string {
	r := []rune(s)
	if len(r) <= head+tail+1 {
		return s
	}
	return string(r[:head]) + "\u2026" + string(r[len(r)-tail:])
}

// plural adds an s to a word where there is not one.
func plural(n uint64, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return count(n) + " " + word + "s"
}
