package worker

import (
	"os"
	"path/filepath"
	"testing"
)

func TestVolunteer(t *testing.T) {
	for before, want := range map[string]string{"-997\n": "-797", "0\n": "200", "950\n": "1000", "1000\n": "1000"} {
		file := filepath.Join(t.TempDir(), "oom_score_adj")
		if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := volunteer(file); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%q became %q, %v; want %q", before, got, err, want)
		}
	}
}
