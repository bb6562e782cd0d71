package harness

import "math"

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
