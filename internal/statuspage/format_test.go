package statuspage

import (
	"math"
	"strings"
	"testing"
	"time"

	"kekd/internal/version"
)

func TestWords(t *testing.T) {
	const ms, h, day = time.Millisecond, time.Hour, 24 * time.Hour
	tests := []struct{ got, want string }{
		{span(0), "0 s"}, {span(-42 * time.Second), "42 s"}, {span(59*time.Second + 999*ms), "59 s"}, {span(time.Minute), "1 min"},
		{span(90 * time.Second), "1 min 30 s"}, {span(10*time.Minute + 30*time.Second), "10 min"}, {span(h), "1 h"}, {span(h + 61*time.Second), "1 h 1 min"},
		{span(26 * h), "1 d 2 h"}, {span(10 * day), "10 days"}, {span(400 * day), "400 days"},
		{latency(0), "0"}, {latency(30 * time.Microsecond), "30 µs"}, {latency(2500 * time.Nanosecond), "2.5 µs"}, {latency(999600 * time.Nanosecond), "1 ms"},
		{latency(9940 * time.Microsecond), "9.9 ms"}, {latency(9960 * time.Microsecond), "10 ms"}, {latency(999 * ms), "999 ms"}, {latency(999600 * time.Microsecond), "1 s"}, {latency(10 * time.Second), "10 s"},
		{rate(0), "0"}, {rate(1234), "1234/s"}, {rate(1.94), "1.9/s"}, {rate(0.5), "30/min"}, {rate(1.0 / 600), "6/h"}, {rate(1e-9), "0.1/h"},
		{count(0), "0"}, {count(999), "999"}, {count(1000), "1\u202f000"}, {count(1234567), "1\u202f234\u202f567"},
		{percent(0, 0), none}, {percent(0, 9), "0 %"}, {percent(9, 9), "100 %"}, {percent(1, 1e6), "< 0.1 %"}, {percent(1e6-1, 1e6), "> 99.9 %"}, {percent(1, 3), "33.3 %"},
		{shortKeyID("k8s-kek/01000000006b079ac6519bff2bcf76e3a1/203065"), "k8s-kek/01…cf76e3a1/203065"}, {shortKeyID("k/02/aabbcc"), "k/02/aabbcc"},
		{shortKeyID(strings.Repeat("x", 40)), "xxxxxxxxxxxx…xxxxxxxxxxxx"}, {shortKeyID(""), ""},
		{buildOf(version.Info{Revision: "unknown", Time: "unknown"}), ""},
		{buildOf(version.Info{Revision: "1f2e3d4c5b6a79881726354453627180deadbeef-dirty", Time: "2026-10-30T09:12:44Z", FIPS140: "v1.26.0"}), "commit 1f2e3d4c5b6a… of 30 Oct 2026, changed since, FIPS 140-3 module v1.26.0"},
		{at(noon.Add(300*ms), noon).Ago, "just now"}, {at(noon.Add(2*time.Second), noon).Ago, "in 2 s"}, {at(noon.Add(-2*time.Second), noon).Ago, "2 s ago"},
		{at(noon.Add(-time.Second), noon).Clock, "11:59:59 UTC"}, {at(noon.Add(-13*h), noon).Clock, "1 Nov 2026, 23:00 UTC"}, {at(time.Time{}, noon).Clock, ""},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestPlotOfFewPoints(t *testing.T) {
	nan := math.NaN()
	p := newPlot("x", "X", "nothing", rate, linear(rate), values{class: "s1", name: "a", at: []float64{nan, 3, nan, 1, 2}})
	if got := p.Series[0]; len(got.Dots) != 1 || strings.Count(got.Path, "M") != 1 || strings.Count(got.Path, "L") != 1 {
		t.Errorf("a gap is drawn as %+v", got)
	}
	if want := "X, last hour: a from 1/s to 3/s, latest 2/s."; p.Desc != want {
		t.Errorf("the description is %q, want %q", p.Desc, want)
	}
	p = newPlot("x", "X", "nothing", rate, linear(rate), values{name: "a", at: []float64{nan, nan}})
	if p.Empty != "nothing" || len(p.Series) != 0 {
		t.Errorf("a plot without points is %+v", p)
	}
	p = newPlot("x", "X", "nothing", rate, linear(rate), values{name: "a", at: []float64{0, 0}, rare: true}, values{name: "b", at: []float64{0, 1}})
	if p.Series[0].Path != "" || p.Series[1].Path == "" {
		t.Errorf("what never happens is drawn as %+v", p.Series)
	}
}

// Whatever the values, every point is within the axes.
func TestScalesHoldTheirValues(t *testing.T) {
	for _, hi := range []float64{0, 1e-9, 1e-6, 3e-5, 1e-4, 0.00999999, 0.01, 1, 7, 10, 1e6} {
		for _, lo := range []float64{hi, hi / 3, hi / 1e5} {
			for name, s := range map[string]scale{"linear": linear(rate)(lo, hi), "decades": decades(lo, hi)} {
				for _, v := range []float64{lo, hi, (lo + hi) / 2} {
					if y := s.y(v); math.IsNaN(y) || y < plotTop-0.01 || y > plotBottom+0.01 {
						t.Errorf("%s from %g to %g: %g is at %g", name, lo, hi, v, y)
					}
				}
				if len(s.ticks) < 2 || len(s.ticks) > 9 {
					t.Errorf("%s from %g to %g has %d ticks", name, lo, hi, len(s.ticks))
				}
			}
		}
	}
}
