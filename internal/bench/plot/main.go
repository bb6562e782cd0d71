// Command plot draws what bench report has measured, as SVG:
//
//	cd internal/bench/plot && go run . -in ../../../.run-bench/report.json -out ../../../docs/performance
//
// It is a module of its own, so that the drawing library is nobody else's
// dependency.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"image/color"
	"os"
	"path/filepath"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

func main() {
	in := flag.String("in", ".run-bench/report.json", "the report's `file`")
	out := flag.String("out", "docs/performance", "`directory` for the pictures")
	flag.Parse()
	if err := run(*in, *out); err != nil {
		fmt.Fprintln(os.Stderr, "plot: error:", err)
		os.Exit(1)
	}
}

// report is the part of the report's JSON that is drawn.
type report struct {
	Rows []row  `json:"rows"`
	Cold []cold `json:"coldDecrypts"`
}

type row struct {
	HSMLatency float64 `json:"hsmLatencyMilliseconds"`
	Callers    int     `json:"callers"`
	Operation  string  `json:"operation"`
	Target     string  `json:"target"`
	Ratio      summary `json:"ratioToNoop"`
	P50        float64 `json:"p50Microseconds"`
	P90        float64 `json:"p90Microseconds"`
	P99        float64 `json:"p99Microseconds"`
	P999       float64 `json:"p999Microseconds"`
}

type summary struct {
	Median float64 `json:"median"`
	Lower  float64 `json:"lowerQuartile"`
	Upper  float64 `json:"upperQuartile"`
}

type cold struct {
	HSMLatency float64 `json:"hsmLatencyMilliseconds"`
	Seeds      int     `json:"seeds"`
	Cold       seconds `json:"cold"`
	Warm       seconds `json:"warm"`
	Naive      seconds `json:"naive"`
}

type seconds struct {
	Seconds float64 `json:"seconds"`
}

func run(in, out string) error {
	b, err := os.ReadFile(in) //nolint:gosec // G304: the file that was asked for
	if err != nil {
		return err
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("read %s: %w", in, err)
	}
	if len(r.Rows) == 0 || len(r.Cold) == 0 {
		return fmt.Errorf("%s is not what bench report stores", in)
	}
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // G301: pictures, for all to see
		return err
	}
	for name, draw := range map[string]func(report) (*vgsvg.Canvas, error){
		"throughput.svg": drawThroughput, "latency.svg": drawLatency, "cold.svg": drawCold,
	} {
		c, err := draw(r)
		if err != nil {
			return fmt.Errorf("draw %s: %w", name, err)
		}
		if err := write(c, filepath.Join(out, name)); err != nil {
			return err
		}
	}
	return nil
}

func write(c *vgsvg.Canvas, path string) error {
	f, err := os.Create(path) //nolint:gosec // G304: the file that was asked for
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if _, err := c.WriteTo(&text); err != nil {
		return errors.Join(err, f.Close())
	}
	// Who lacks the font shall see one of the same widths.
	const family = "font-family:Liberation Sans"
	_, err = f.Write(bytes.ReplaceAll(text.Bytes(), []byte(family), []byte(family+",Arial,Helvetica,sans-serif")))
	return errors.Join(err, f.Close())
}

// newCanvas is a white picture with room for some panels beside each other.
func newCanvas(panels int) (*vgsvg.Canvas, draw.Canvas) {
	c := vgsvg.New(vg.Length(panels)*4.2*vg.Inch, 3.6*vg.Inch)
	dc := draw.New(c)
	dc.SetColor(color.White)
	dc.Fill(dc.Path())
	return c, dc
}
