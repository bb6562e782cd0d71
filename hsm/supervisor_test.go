package hsm

import (
	"testing"
	"time"
)

// The HSM may return right after a start has failed, and must not be missed for a
// second.
func TestPausesBetweenStarts(t *testing.T) {
	t.Parallel()
	for failures := range 50 {
		var s supervisor
		s.failures = failures
		now := time.Now()
		s.pause()
		wait := s.notBefore.Sub(now)
		switch {
		case failures <= 1 && wait > 50*time.Millisecond:
			t.Errorf("after %d failures a pause of %s, want none", failures, wait)
		case failures > 1 && wait < 80*time.Millisecond:
			t.Errorf("after %d failures a pause of %s, which is no pace", failures, wait)
		case wait > 950*time.Millisecond:
			t.Errorf("after %d failures a pause of %s, want less than a second", failures, wait)
		}
	}
}
