package main

import (
	"math"
	"slices"
)

// quantile returns the q-quantile (0 to 1) of sorted values, interpolated
// between neighbours; 0 of none.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	below, part := math.Modf(q * float64(len(sorted)-1))
	low := int(below)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (sorted[high]-sorted[low])*part
}

// rareQuantile is quantile where five values at least lie beyond it, and 0
// otherwise: one slow call is an accident and no distribution.
func rareQuantile(sorted []float64, q float64) float64 {
	if float64(len(sorted))*(1-q) < 5 {
		return 0
	}
	return quantile(sorted, q)
}

// summary is the middle of some values and how far they spread.
type summary struct {
	Median float64 `json:"median"`
	// Lower and Upper are the quartiles: half of the values lie between them.
	Lower float64 `json:"lowerQuartile"`
	Upper float64 `json:"upperQuartile"`
}

// summarize leaves values as they are.
func summarize(values []float64) summary {
	sorted := slices.Sorted(slices.Values(values))
	return summary{Median: quantile(sorted, 0.5), Lower: quantile(sorted, 0.25), Upper: quantile(sorted, 0.75)}
}
