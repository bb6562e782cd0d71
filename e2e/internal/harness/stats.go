package harness

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"
)

// Quantile returns the q-quantile (0 to 1) of sorted values, interpolated
// between neighbours; 0 of none.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	below, part := math.Modf(q * float64(len(sorted)-1))
	low := int(below)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (sorted[high]-sorted[low])*part
}

// ProcessorTime is what a process has used, to 10 ms.
func ProcessorTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// pid (name) state ...; the name may hold anything. utime and stime are the
	// 14th and 15th field, in ticks of 10 ms on every Linux.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	var ticks int
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(string(field))
		if err != nil {
			return 0, fmt.Errorf("read /proc/PID/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
