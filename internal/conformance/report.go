package conformance

// Outcome is how one check ended.
type Outcome string

const (
	// OK: nothing found.
	OK Outcome = "ok"
	// Warn: within the contract, and still worth a change.
	Warn Outcome = "warn"
	// Fail: kube-apiserver would reject it, or data or service is at risk.
	Fail Outcome = "fail"
	// Skip: not run, because an earlier check that it builds on failed or the
	// run was interrupted.
	Skip Outcome = "skip"
)

// Result is the outcome of one check. Nothing in it is secret: the checks'
// plaintexts are random and not shown.
type Result struct {
	// Name is the check's name in kebab case. Names are stable: scripts select by them.
	Name    string  `json:"name"`
	Outcome Outcome `json:"status"`
	// Detail is one line on what was seen. Text from the plugin is quoted and cut.
	Detail string `json:"detail"`
	// Remedy is what to change in the plugin; empty unless Outcome is Warn or Fail.
	Remedy string `json:"remedy,omitempty"`
}

// Report is what a whole run found.
type Report struct {
	// Version and KeyID are what the first Status said; empty when it failed.
	Version string   `json:"version,omitempty"`
	KeyID   string   `json:"keyID,omitempty"`
	Results []Result `json:"results"`
}

// Count returns how many checks ended in the given way.
func (r Report) Count(o Outcome) int {
	n := 0
	for _, res := range r.Results {
		if res.Outcome == o {
			n++
		}
	}
	return n
}

// Passed reports whether every check ran and none failed. Warnings pass.
func (r Report) Passed() bool {
	return len(r.Results) > 0 && r.Count(Fail) == 0 && r.Count(Skip) == 0
}
