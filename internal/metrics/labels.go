package metrics

import (
	"slices"

	"google.golang.org/grpc/codes"
)

// other stands for a label's value that is not on its list.
const other = "other"

// verify stands for a failure that kekctl verify has brought about on purpose.
const verify = "verify"

// The values that labels may have. The packages that report them know more of
// their meaning; here they only keep the number of time series bounded.
var (
	methods       = []string{"Status", "Encrypt", "Decrypt"}
	failures      = []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Internal}
	hsmOperations = []string{
		"load", "login", "keys", "create", "prove", "probe", "wrap", "unwrap", "set-use", "destroy",
		"import-state", "import-begin", "import", "import-abort", "evidence", "audit-keys", "audit-create", "audit-sign", "abandon", "close",
	}
	hsmResults     = []string{"ok", "token", "request", "pin", "refused", "no-key", "ambiguous", "setup", "changed", "timeout", "canceled", "unavailable"}
	opResults      = append(slices.Clone(hsmResults), verify)
	restartReasons = []string{"died", "token", "request", "pin", "refused", "no-key", "ambiguous", "setup"}
	auditParts     = []string{"write", "sign", "forward", "memory", "trail"}
	cacheResults   = []string{"hit", "miss", "remembered", verify}
	spanResults    = []string{"exported", "failed", "dropped"}
	evictions      = []string{"room", "revoked", "doubted", "closed"}
)

// closed returns value if it is among the allowed ones, else other.
func closed(value string, allowed []string) string {
	if slices.Contains(allowed, value) {
		return value
	}
	return other
}

// resultOf is the label of something that either worked or did not.
func resultOf(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
