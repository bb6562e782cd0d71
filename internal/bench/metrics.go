package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxMetrics bounds what is read of a metrics page, in bytes.
const maxMetrics = 16 << 20

// counterReader reads one counter of a Prometheus endpoint, summed over all labels.
type counterReader struct {
	client *http.Client
	url    string
	metric string
}

func (r *counterReader) read(ctx context.Context) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	// The text format; a client that names none may be given another.
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("read metrics: %s answered %s", r.url, resp.Status)
	}
	sum, samples, err := sumCounter(io.LimitReader(resp.Body, maxMetrics), r.metric)
	if err != nil {
		return 0, fmt.Errorf("read metrics of %s: %w", r.url, err)
	}
	if samples == 0 {
		return 0, fmt.Errorf("read metrics: %s has no metric %s; name the counter of HSM operations with -metric", r.url, r.metric)
	}
	return sum, nil
}

// sumCounter adds up all samples of a metric in Prometheus text format and
// says how many there were.
func sumCounter(text io.Reader, metric string) (sum float64, samples int, err error) {
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), metric)
		if !ok {
			continue
		}
		rest, ok = cutLabels(rest)
		if !ok {
			continue // another metric whose name only starts the same
		}
		fields := strings.Fields(rest) // value and perhaps a timestamp
		if len(fields) < 1 || len(fields) > 2 {
			return 0, 0, fmt.Errorf("line %q has no value", lines.Text())
		}
		value, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return 0, 0, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		sum += value
		samples++
	}
	return sum, samples, lines.Err()
}

// cutLabels removes {...} from the front of what follows a metric's name. A
// quoted label may hold braces and escaped quotes. It returns false where s
// goes on as a longer name.
func cutLabels(s string) (string, bool) {
	if strings.HasPrefix(s, " ") || strings.HasPrefix(s, "\t") {
		return s, true
	}
	if !strings.HasPrefix(s, "{") {
		return "", false
	}
	quoted := false
	for i := 1; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && s[i] == '}':
			return s[i+1:], true
		}
	}
	return "", true // no value: sumCounter says so
}
