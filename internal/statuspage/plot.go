package statuspage

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// The size of a plot, in units of its view box, and where its axes are.
const (
	plotWidth, plotHeight = 360.0, 172.0
	plotLeft, plotRight   = 52.0, 350.0
	plotTop, plotBottom   = 12.0, 142.0
)

// plot is a picture of some series over the last hour, as the template draws it.
type plot struct {
	ID, Title string
	// Desc tells in words what is to be seen.
	Desc string
	Y    []tick
	X    []tick
	// Series are drawn in this order.
	Series []series
	// Empty is shown where there is nothing to draw.
	Empty string
}

// tick is a mark at an axis.
type tick struct {
	At    float64
	Label string
}

// series is one line, with gaps where there is nothing to tell.
type series struct {
	// Class says how the line looks: its colour and its dashes.
	Class, Name string
	Path        string
	// Dots are points without neighbours.
	Dots []dot
	// Min, Max and Last are spelled out; empty if there are no points.
	Min, Max, Last string
}

type dot struct{ X, Y float64 }

// values is what a series is made from: one value for each of the spans that the hour
// is split into, oldest first; NaN for none.
type values struct {
	class, name string
	at          []float64
	// rare: a line that never leaves zero is not drawn, for all is well.
	rare bool
}

// scale maps values to heights.
type scale struct {
	y     func(v float64) float64
	ticks []tick
}

// newPlot draws series on one scale. spell writes a value with its unit.
func newPlot(id, title, empty string, spell func(float64) string, make func(lo, hi float64) scale, all ...values) plot {
	p := plot{ID: id, Title: title, X: hourTicks()}
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range all {
		low, high, _ := extremes(v.at)
		lo, hi = min(lo, low), max(hi, high)
	}
	if lo > hi {
		p.Empty, p.Desc = empty, title+", last hour: "+empty+"."
		return p
	}
	s := make(lo, hi)
	p.Y = s.ticks
	var words []string
	for _, v := range all {
		drawn := series{Class: v.class, Name: v.name}
		low, high, last := extremes(v.at)
		if !v.rare || high > 0 {
			drawn.Path, drawn.Dots = drawLine(v.at, s.y)
		}
		if low <= high {
			drawn.Min, drawn.Max, drawn.Last = spell(low), spell(high), spell(last)
			words = append(words, fmt.Sprintf("%s from %s to %s, latest %s", v.name, drawn.Min, drawn.Max, drawn.Last))
		}
		p.Series = append(p.Series, drawn)
	}
	p.Desc = title + ", last hour: " + strings.Join(words, "; ") + "."
	return p
}

// extremes are the least, the greatest and the last value; low > high if there is none.
func extremes(all []float64) (low, high, last float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, v := range all {
		if !math.IsNaN(v) {
			low, high, last = min(low, v), max(high, v), v
		}
	}
	return low, high, last
}

// drawLine turns values into a path and the points that no line reaches.
func drawLine(all []float64, y func(float64) float64) (path string, dots []dot) {
	var b strings.Builder
	present := func(i int) bool { return i >= 0 && i < len(all) && !math.IsNaN(all[i]) }
	for i, v := range all {
		switch p := (dot{plotX(i, len(all)), y(v)}); {
		case !present(i):
		case !present(i-1) && !present(i+1):
			dots = append(dots, p)
		case !present(i - 1):
			fmt.Fprintf(&b, "M%.1f %.1f", p.X, p.Y)
		default:
			fmt.Fprintf(&b, "L%.1f %.1f", p.X, p.Y)
		}
	}
	return b.String(), dots
}

// plotX is where the i-th of n values stands: the last one at the right end.
func plotX(i, n int) float64 {
	if n < 2 {
		return plotRight
	}
	return plotLeft + (plotRight-plotLeft)*float64(i)/float64(n-1)
}

func hourTicks() []tick {
	at := func(share float64) float64 { return plotLeft + (plotRight-plotLeft)*share }
	return []tick{{at(0), "60 min ago"}, {at(0.5), "30 min ago"}, {at(1), "now"}}
}

func plotY(share float64) float64 { return plotBottom - (plotBottom-plotTop)*share }

// linear is a scale from 0 to a round number.
func linear(spell func(float64) string) func(lo, hi float64) scale {
	return func(_, hi float64) scale {
		top := roundUp(hi)
		s := scale{y: func(v float64) float64 { return plotY(v / top) }}
		for _, share := range []float64{0, 0.5, 1} {
			s.ticks = append(s.ticks, tick{plotY(share), spell(top * share)})
		}
		return s
	}
}

// roundUp returns the next of 1, 2, 5, 10, 20 and so on; 1 for 0.
func roundUp(v float64) float64 {
	if v <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, step := range []float64{1, 2, 5} {
		if v <= step*unit*(1+1e-9) {
			return step * unit
		}
	}
	return 10 * unit
}

// decades is a logarithmic scale of seconds, for latencies from microseconds to
// seconds are looked at in one picture.
func decades(lo, hi float64) scale {
	const least = -6 // a microsecond
	from := math.Floor(math.Log10(max(lo, 1e-6)) + 1e-9)
	to := math.Ceil(math.Log10(max(hi, 1e-6)) - 1e-9)
	from = max(from, least)
	if to-from < 1 {
		to = from + 1
	}
	s := scale{y: func(v float64) float64 {
		return plotY((math.Log10(max(v, math.Pow(10, from))) - from) / (to - from))
	}}
	for e := from; e <= to; e++ {
		s.ticks = append(s.ticks, tick{plotY((e - from) / (to - from)), latency(time.Duration(math.Round(math.Pow(10, e+9))))})
	}
	return s
}
