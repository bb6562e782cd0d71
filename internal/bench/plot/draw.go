package main

import (
	"fmt"
	"image/color"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// look is how a target is drawn. The colours are Okabe and Ito's, which the
// colour-blind can tell apart; the shapes say the same.
type look struct {
	label  string
	colour color.RGBA
	glyph  draw.GlyphDrawer
}

var looks = map[string]look{
	"no-op":   {"no-op", color.RGBA{0x55, 0x55, 0x55, 0xff}, draw.CrossGlyph{}},
	"control": {"no-op, control", color.RGBA{0x99, 0x99, 0x99, 0xff}, draw.PlusGlyph{}},
	"seeded":  {"kekd, seeded", color.RGBA{0x00, 0x72, 0xb2, 0xff}, draw.CircleGlyph{}},
	"direct":  {"kekd, direct", color.RGBA{0xd5, 0x5e, 0x00, 0xff}, draw.SquareGlyph{}},
	"naive":   {"naive plugin", color.RGBA{0x00, 0x9e, 0x73, 0xff}, draw.TriangleGlyph{}},
	"warm":    {"kekd, once more (warm)", color.RGBA{0x56, 0xb4, 0xe9, 0xff}, draw.RingGlyph{}},
}

// drawnCallers is the number of callers of the latency plot, and the first of the
// throughput plot.
const drawnCallers = 8

// newPanel is an empty plot with a logarithmic y axis.
func newPanel(title, x, y string) *plot.Plot {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.TextStyle.Font.Size = vg.Points(12)
	p.Title.Padding = vg.Points(8)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font.Size = vg.Points(10)
		axis.Tick.Label.Font.Size = vg.Points(9)
		axis.Padding, axis.Label.Padding = vg.Points(4), vg.Points(3)
	}
	p.Y.Scale = plot.LogScale{}
	p.Legend.TextStyle.Font.Size = vg.Points(9)
	p.Legend.Padding = vg.Points(2)
	p.Legend.ThumbnailWidth = vg.Points(22)
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	grid.Horizontal.Color = color.Gray{0xe4}
	p.Add(grid)
	return p
}

// series draws points with a line between them.
func series(p *plot.Plot, l look, dashed, legend bool, points plotter.XYs) error {
	line, dots, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	line.Color, dots.Color = l.colour, l.colour
	line.Width, dots.Radius, dots.Shape = vg.Points(1.4), vg.Points(3), l.glyph
	if dashed {
		line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	}
	p.Add(line, dots)
	if legend {
		p.Legend.Add(l.label, line, dots)
	}
	return nil
}

// names labels the x axis at 0, 1, 2...
func names(labels []string) plot.ConstantTicks {
	ticks := make(plot.ConstantTicks, len(labels))
	for i, label := range labels {
		ticks[i] = plot.Tick{Value: float64(i), Label: label}
	}
	return ticks
}

// halves labels a logarithmic axis at 1, 2, 5, 10...
type halves struct{}

func (halves) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v >= low*0.999 && v <= high*1.001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: number(v)})
			}
		}
	}
	return ticks
}

// decades labels a logarithmic axis at 1, 10, 100...
type decades struct{ format func(float64) string }

func (d decades) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		v := math.Pow(10, e)
		if v >= low*0.999 && v <= high*1.001 {
			ticks = append(ticks, plot.Tick{Value: v, Label: d.format(v)})
		}
		for m := 2.0; m < 10; m++ {
			if v*m >= low && v*m <= high {
				ticks = append(ticks, plot.Tick{Value: v * m})
			}
		}
	}
	return ticks
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 3, 64) }

// duration spells a time given in seconds.
func duration(s float64) string {
	switch {
	case s < 0.9e-3:
		return number(math.Round(s*1e9)/1e3) + " µs"
	case s < 0.9:
		return number(math.Round(s*1e6)/1e3) + " ms"
	}
	return number(s) + " s"
}

// decadeRange widens an axis to whole decades.
func decadeRange(axis *plot.Axis) {
	axis.Min = math.Pow(10, math.Floor(math.Log10(axis.Min*1.001)))
	axis.Max = math.Pow(10, math.Ceil(math.Log10(axis.Max*0.999)))
}

func hsmLabels(ms []float64) []string {
	var labels []string
	for _, v := range ms {
		if v == 0 {
			labels = append(labels, "as it is")
		} else {
			labels = append(labels, "+"+number(v)+" ms")
		}
	}
	return labels
}

// tile draws panels beside each other.
func tile(panels []*plot.Plot) *vgsvg.Canvas {
	c, dc := newCanvas(len(panels))
	t := draw.Tiles{Rows: 1, Cols: len(panels), PadX: vg.Points(14), PadTop: vg.Points(6), PadBottom: vg.Points(6), PadLeft: vg.Points(6), PadRight: vg.Points(10)}
	for i, canvas := range plot.Align([][]*plot.Plot{panels}, t, dc)[0] {
		panels[i].Draw(canvas)
	}
	return c
}

// drawThroughput shows the ratio of ops/s to the no-op's by latency of the HSM.
func drawThroughput(r report) (*vgsvg.Canvas, error) {
	var latencies []float64
	var callers []int
	for _, row := range r.Rows {
		if !slices.Contains(latencies, row.HSMLatency) {
			latencies = append(latencies, row.HSMLatency)
		}
		if row.Callers >= drawnCallers && !slices.Contains(callers, row.Callers) {
			callers = append(callers, row.Callers)
		}
	}
	var panels []*plot.Plot
	for i, n := range callers {
		p := newPanel(fmt.Sprintf("Encrypt, %d callers", n), "latency of the HSM", "ops/s, of the no-op's")
		for _, target := range []string{"control", "seeded", "direct", "naive"} {
			points, err := ratios(r, n, target, latencies)
			if err != nil {
				return nil, err
			}
			bars, err := plotter.NewYErrorBars(points)
			if err != nil {
				return nil, err
			}
			bars.Color = looks[target].colour
			p.Add(bars)
			if err := series(p, looks[target], false, i == 0, points.XYs); err != nil {
				return nil, err
			}
		}
		p.X.Tick.Marker, p.Y.Tick.Marker = names(hsmLabels(latencies)), halves{}
		p.X.Min, p.X.Max = -0.3, float64(len(latencies))-0.7
		p.Y.Min = min(p.Y.Min, 0.01)
		decadeRange(&p.Y)
		p.Y.Max = 2
		p.Legend.Left, p.Legend.Top = true, false
		p.Legend.XOffs, p.Legend.YOffs = vg.Points(6), vg.Points(6)
		panels = append(panels, p)
	}
	for _, p := range panels { // one scale for all
		p.Y.Min, p.Y.Max = min(panels[0].Y.Min, p.Y.Min), max(panels[0].Y.Max, p.Y.Max)
		panels[0].Y.Min, panels[0].Y.Max = p.Y.Min, p.Y.Max
	}
	return tile(panels), nil
}

// withErrors are points with quartiles.
type withErrors struct {
	plotter.XYs
	plotter.YErrors
}

func ratios(r report, callers int, target string, latencies []float64) (withErrors, error) {
	var w withErrors
	for x, latency := range latencies {
		i := slices.IndexFunc(r.Rows, func(row row) bool {
			return row.HSMLatency == latency && row.Callers == callers && row.Target == target && row.Operation == "Encrypt"
		})
		if i < 0 {
			return w, fmt.Errorf("no figures of %s at %d callers", target, callers)
		}
		ratio := r.Rows[i].Ratio
		w.XYs = append(w.XYs, plotter.XY{X: float64(x), Y: ratio.Median})
		w.YErrors = append(w.YErrors, struct{ Low, High float64 }{ratio.Median - ratio.Lower, ratio.Upper - ratio.Median})
	}
	return w, nil
}

// drawLatency shows the quantiles of the latency, with the HSM as it is and at
// its slowest.
func drawLatency(r report) (*vgsvg.Canvas, error) {
	slowest := 0.0
	for _, row := range r.Rows {
		slowest = max(slowest, row.HSMLatency)
	}
	var panels []*plot.Plot
	for i, latency := range slices.Compact([]float64{0, slowest}) {
		p := newPanel(fmt.Sprintf("Decrypt, %d callers, HSM %s", drawnCallers, hsmLabels([]float64{latency})[0]), "quantile of the calls", "latency")
		for _, row := range r.Rows {
			if row.HSMLatency != latency || row.Callers != drawnCallers || row.Operation != "Decrypt" || row.Target == "control" {
				continue
			}
			var points plotter.XYs
			for x, us := range []float64{row.P50, row.P90, row.P99, row.P999} {
				if us > 0 { // else there were too few calls
					points = append(points, plotter.XY{X: float64(x), Y: us / 1e6})
				}
			}
			if err := series(p, looks[row.Target], false, i == 0, points); err != nil {
				return nil, err
			}
		}
		p.X.Tick.Marker, p.Y.Tick.Marker = names([]string{"50%", "90%", "99%", "99.9%"}), decades{duration}
		p.X.Min, p.X.Max = -0.3, 3.3
		decadeRange(&p.Y)
		p.Legend.Left, p.Legend.Top = true, true
		p.Legend.XOffs, p.Legend.YOffs = vg.Points(6), vg.Points(-4)
		panels = append(panels, p)
	}
	for _, p := range panels {
		p.Y.Min, p.Y.Max = min(panels[0].Y.Min, p.Y.Min), max(panels[0].Y.Max, p.Y.Max)
		panels[0].Y.Min, panels[0].Y.Max = p.Y.Min, p.Y.Max
	}
	return tile(panels), nil
}

// drawCold shows how long a cold cache takes.
func drawCold(r report) (*vgsvg.Canvas, error) {
	var counts []int
	for _, c := range r.Cold {
		if !slices.Contains(counts, c.Seeds) {
			counts = append(counts, c.Seeds)
		}
	}
	var panels []*plot.Plot
	for i, n := range counts {
		p := newPanel(fmt.Sprintf("Decrypt of %d seeds after a start", n), "latency of the HSM", "time for all")
		var latencies []float64
		lines := map[string]plotter.XYs{}
		for _, c := range r.Cold {
			if c.Seeds != n {
				continue
			}
			x := float64(len(latencies))
			latencies = append(latencies, c.HSMLatency)
			lines["seeded"] = append(lines["seeded"], plotter.XY{X: x, Y: c.Cold.Seconds})
			lines["warm"] = append(lines["warm"], plotter.XY{X: x, Y: c.Warm.Seconds})
			lines["naive"] = append(lines["naive"], plotter.XY{X: x, Y: c.Naive.Seconds})
		}
		for _, name := range []string{"seeded", "naive", "warm"} {
			if err := series(p, looks[name], false, i == 0, lines[name]); err != nil {
				return nil, err
			}
		}
		p.X.Tick.Marker, p.Y.Tick.Marker = names(hsmLabels(latencies)), decades{duration}
		p.X.Min, p.X.Max = -0.3, float64(len(latencies))-0.7
		decadeRange(&p.Y)
		p.Legend.Left, p.Legend.Top = true, true
		p.Legend.XOffs, p.Legend.YOffs = vg.Points(6), vg.Points(-4)
		panels = append(panels, p)
	}
	return tile(panels), nil
}
