package load

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// scrape reads the values of the daemon's metrics, by their spelling there. Unlike
// Metrics it can be called off the test's goroutine.
func (r *rig) scrape(ctx context.Context) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+"/metrics", http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if values[name], err = strconv.ParseFloat(value, 64); err != nil {
			return nil, fmt.Errorf("metric %s: %w", line, err)
		}
	}
	return values, nil
}

func (r *rig) gauge(ctx context.Context, name string) (float64, error) {
	values, err := r.scrape(ctx)
	if err == nil {
		if _, ok := values[name]; !ok {
			err = fmt.Errorf("kekd has no metric %s", name)
		}
	}
	return values[name], err
}

// usage is what the daemon and its workers take at one moment.
type usage struct {
	parentRSS, workerRSS  float64 // bytes
	goroutines, threads   float64 // of the parent
	files                 float64 // of the parent
	workerThreads, worker float64 // of all workers, and how many there are
}

// usage reads it. A worker that ends meanwhile is left out.
func (r *rig) usage(ctx context.Context) (usage, error) {
	m, err := r.scrape(ctx)
	if err != nil {
		return usage{}, err
	}
	u := usage{
		parentRSS: m["process_resident_memory_bytes"], goroutines: m["go_goroutines"],
		threads: m["go_threads"], files: m["process_open_fds"],
	}
	for _, pid := range r.Workers() {
		status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		if err != nil {
			continue
		}
		u.worker++
		u.workerRSS += 1024 * statusField(string(status), "VmRSS:")
		u.workerThreads += statusField(string(status), "Threads:")
	}
	return u, nil
}

// statusField is a number of /proc/PID/status.
func statusField(status, name string) float64 {
	_, rest, _ := strings.Cut(status, "\n"+name)
	value, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	n, _ := strconv.ParseFloat(strings.TrimSuffix(value, " kB"), 64)
	return n
}
