package rewrap

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"kekd/internal/admin/text"
)

// Kind says why an object could not be rewritten. Kinds are part of the JSON that
// kekctl prints.
type Kind string

// The kinds.
const (
	// Unreadable objects are stored in a form that kube-apiserver cannot decrypt or
	// decode.
	Unreadable Kind = "unreadable"
	// Forbidden objects are those that the kubeconfig's user may not patch.
	Forbidden Kind = "forbidden"
	// Refused objects no longer pass validation or admission.
	Refused Kind = "refused"
	// Webhook objects are behind an admission webhook that does not answer.
	Webhook Kind = "webhook"
	// Conflict objects changed during each attempt.
	Conflict Kind = "conflict"
	// Gone objects are in etcd, and kube-apiserver says that they do not exist.
	Gone Kind = "gone"
	// Server objects make kube-apiserver fail in another way.
	Server Kind = "server"
	// Unserved objects have no API through which they could be rewritten.
	Unserved Kind = "unserved"
	// LeftOut objects were skipped by a migration, and --method forbids updates.
	LeftOut Kind = "left-out"
	// Unchanged objects are as they should be by kube-apiserver's configuration.
	Unchanged Kind = "unchanged"
	// Reverted objects were rewritten, and something wrote them under another key
	// afterwards.
	Reverted Kind = "reverted"
)

// Kinds are all kinds, in the order in which they are shown.
var Kinds = []Kind{Unreadable, Forbidden, Refused, Webhook, Conflict, Gone, Server, Unserved, LeftOut, Unchanged, Reverted}

// Remedy says what to do next about objects of the kind.
func (k Kind) Remedy() string {
	switch k {
	case Unreadable:
		return "kube-apiserver cannot read these objects: restore them from a backup, or delete them and create them again (docs/rewrap.md, \"Unreadable objects\")"
	case Forbidden:
		return "the kubeconfig's user lacks the verb patch: try kubectl auth can-i patch RESOURCE -n NAMESPACE, use an administrator's kubeconfig, and run kekctl rewrap again"
	case Refused:
		return "these objects break a rule that is newer than they are: change them or the rule, and run kekctl rewrap again"
	case Webhook:
		return "an admission webhook does not answer: find it with kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations, bring it back, and run kekctl rewrap again"
	case Conflict:
		return "something writes these objects all the time: run kekctl rewrap again"
	case Gone:
		return "kube-apiserver does not find these objects although etcd holds them: read its log, and run kekctl rewrap again"
	case Server:
		return "kube-apiserver fails on these objects alone: read its log"
	case Unserved:
		return "no API serves these keys of etcd: run kekctl rewrap again in ten minutes for kube-apiserver's own records; delete what an uninstalled custom resource left in etcd"
	case LeftOut:
		return "run kekctl rewrap --method update for these objects"
	case Unchanged:
		return "kube-apiserver considers these objects up to date: run kekctl apiserver check on every control-plane node"
	case Reverted:
		return "another API server writes these objects under another key: name every API server with --apiserver, and run kekctl rewrap again"
	}
	return ""
}

// patience is how often an object is tried in one go, and the pause after the first
// try; it doubles. What is set aside gets one more try when all else is done.
type patience struct {
	tries int
	pause time.Duration
	aside bool
}

func (k Kind) patience() patience {
	switch k {
	case Conflict:
		return patience{tries: 5, pause: 200 * time.Millisecond, aside: true}
	case Webhook, Server:
		return patience{tries: 3, pause: time.Second, aside: true}
	case Unreadable, Gone, Unchanged:
		return patience{tries: 1, aside: true}
	}
	return patience{tries: 1}
}

// verdict is what an error of a patch says.
type verdict struct {
	kind   Kind
	reason string
	// away: it may be the server, and not the object. throttled: it is the server.
	away, throttled bool
	// timeout: it took so long that it is not tried again at once.
	timeout bool
	// after is how long the server wants to be left alone.
	after time.Duration
	// webhook is the one that does not answer.
	webhook string
}

// judge reads the error of a patch. Without a status of the API server it is the
// network's.
func judge(err error) verdict {
	v := verdict{kind: Server, reason: text.Short(err.Error()), timeout: timedOut(err)}
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		v.after = min(time.Duration(seconds)*time.Second, maxPause)
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		v.away = true
		return v
	}
	code, text := status.Status().Code, status.Status().Message
	switch {
	case apierrors.IsStoreReadError(err):
		v.kind = Unreadable
	case apierrors.IsNotFound(err):
		v.kind = Gone
	case apierrors.IsConflict(err):
		v.kind = Conflict
	case strings.Contains(text, failedWebhook):
		v.kind, v.webhook = Webhook, quoted(text, failedWebhook)
	case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err) && strings.Contains(text, " cannot patch "):
		v.kind = Forbidden
	case code == http.StatusTooManyRequests:
		v.throttled = true
	case code == http.StatusServiceUnavailable, code == http.StatusGatewayTimeout, code == http.StatusBadGateway:
		v.away = true
	case code >= http.StatusInternalServerError:
	default:
		v.kind = Refused
	}
	return v
}

// failedWebhook is how kube-apiserver begins to tell of a webhook that it cannot
// reach, as opposed to one that refuses.
const failedWebhook = "failed calling webhook "

// quoted returns what is in quotes after a text.
func quoted(text, behind string) string {
	_, rest, _ := strings.Cut(text, behind)
	parts := strings.SplitN(rest, `"`, 3)
	if len(parts) < 3 {
		return ""
	}
	return parts[1]
}

// timedOut reports whether an error may concern one request alone: the server was
// reached, and did not answer in time.
func timedOut(err error) bool {
	var timeout net.Error
	return apierrors.IsTimeout(err) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
