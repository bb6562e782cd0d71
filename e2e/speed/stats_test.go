package speed

import (
	"fmt"
	"slices"
	"testing"

	"kekd/e2e/internal/harness"
)

// summary is the middle of some values and the quartiles around it.
type summary struct{ median, lower, upper float64 }

func summarize(values []float64) summary {
	sorted := slices.Sorted(slices.Values(values))
	return summary{harness.Quantile(sorted, 0.5), harness.Quantile(sorted, 0.25), harness.Quantile(sorted, 0.75)}
}

func (s summary) String() string { return fmt.Sprintf("%.2f (%.2f-%.2f)", s.median, s.lower, s.upper) }

// ratio divides the values of each round by those of a base in the same round.
func ratio(values, base []float64) summary {
	ratios := make([]float64, len(values))
	for i := range values {
		ratios[i] = values[i] / base[i]
	}
	return summarize(ratios)
}

func TestSummarize(t *testing.T) {
	for _, tc := range []struct {
		name   string
		values []float64
		want   summary
	}{
		{"one", []float64{3}, summary{3, 3, 3}},
		{"odd, unsorted", []float64{5, 1, 3, 2, 4}, summary{3, 2, 4}},
		{"between two", []float64{1, 2}, summary{1.5, 1.25, 1.75}},
	} {
		if got := summarize(tc.values); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// A ratio of medians would say 1: each round was twice as slow as the last.
func TestRatioIsTakenWithinARound(t *testing.T) {
	if got, want := ratio([]float64{8, 4, 2, 1}, []float64{4, 2, 1, 0.5}), (summary{2, 2, 2}); got != want {
		t.Errorf("ratio %+v, want %+v", got, want)
	}
}
