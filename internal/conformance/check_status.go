package conformance

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// statusCalls is how often the checks on Status ask.
const statusCalls = 20

// statusBudget is how long a Status may take before it is called slow.
// kube-apiserver's /readyz waits for it.
const statusBudget = 100 * time.Millisecond

var statusAnswers = check{
	name:   "status-answers",
	remedy: "start the plugin, let this user connect to the socket, and serve the gRPC service v2.KeyManagementService; kube-apiserver reads and writes nothing before Status has answered once",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		resp, err := r.status(ctx)
		if err != nil {
			if status.Code(err) == codes.Unimplemented {
				return Fail, "the plugin does not serve KMS v2: " + describe(err)
			}
			return Fail, describe(err)
		}
		r.first = resp
		return OK, "Status answered"
	},
}

var statusVersion = check{
	name:   "status-version",
	needs:  needStatus,
	remedy: `answer the version "v2"`,
	run: func(_ context.Context, r *runner) (Outcome, string) {
		switch v := r.first.GetVersion(); v {
		case "v2":
			return OK, v
		case "v2beta1":
			return Warn, "v2beta1 means the same as v2 and is the older name; do not change it while an apiserver runs, which holds the plugin to its first answer"
		default:
			return Fail, fmt.Sprintf("the version is %s", quote(v))
		}
	},
}

var statusHealthz = check{
	name:   "status-healthz",
	needs:  needStatus,
	remedy: `answer healthz "ok" exactly; to stop writes fail the call instead, since a bad healthz with a good key_id does not stop them`,
	run: func(_ context.Context, r *runner) (Outcome, string) {
		if h := r.first.GetHealthz(); h != "ok" {
			return Fail, fmt.Sprintf("healthz is %s", quote(h))
		}
		return OK, "ok"
	},
}

var statusKeyID = check{
	name:   "status-key-id",
	needs:  needStatus,
	remedy: fmt.Sprintf("name the KEK with 1 to %d bytes that are public", maxKeyID),
	run: func(_ context.Context, r *runner) (Outcome, string) {
		if problem := checkKeyID(r.first.GetKeyId()); problem != "" {
			return Fail, problem
		}
		return OK, quote(r.first.GetKeyId())
	},
}

var statusStable = check{
	name:   "status-stable",
	needs:  needStatus,
	remedy: "change the key_id only when the KEK changes, and never back: each change makes kube-apiserver treat all stored data as stale; never change the version",
	run: func(ctx context.Context, r *runner) (Outcome, string) {
		var f findings
		seen := []string{r.first.GetKeyId()}
		for range statusCalls {
			resp, err := r.status(ctx)
			if err != nil {
				f.failf("a repeated Status failed: %s", describe(err))
				break
			}
			if v := resp.GetVersion(); v != r.first.GetVersion() {
				f.failf("the version changed from %s to %s", quote(r.first.GetVersion()), quote(v))
				break
			}
			id := resp.GetKeyId()
			if id == seen[len(seen)-1] {
				continue
			}
			if slices.Contains(seen, id) {
				f.failf("the key_id went back to %s", quote(id))
				break
			}
			seen = append(seen, id)
		}
		switch n := len(seen) - 1; {
		case n == 1:
			f.warnf("the key_id changed from %s to %s; run this again if a rotation is going on", quote(seen[0]), quote(seen[1]))
		case n > 1:
			f.failf("the key_id changed %d times within %d calls", n, statusCalls)
		}
		return f.result(fmt.Sprintf("%d calls agree", statusCalls+1))
	},
}
