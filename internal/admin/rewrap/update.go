package rewrap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"

	"kekd/internal/admin/text"
	"kekd/internal/admin/wait"
)

const (
	// fieldManager is who we are in an audit log. A patch that changes nothing
	// leaves no trace in an object's managed fields.
	fieldManager = "kekctl"
	// maxPause bounds what a server may have us wait.
	maxPause = time.Minute
	// updateTimeout bounds one attempt, also after an interruption.
	updateTimeout = 30 * time.Second
	// awayPatience is how long a server may be away before the run ends, and
	// awayPause the pause between two attempts.
	awayPatience = 5 * time.Minute
	awayPause    = 2 * time.Second
)

// updateAll updates objects one by one.
func (r *run) updateAll(ctx context.Context, objects []object) error {
	done := r.result.Updated
	// The first batch of many does not tell how many there are.
	total := max(done+int64(len(objects)), r.plan.updates())
	r.readBackAt = time.Now()
	for _, o := range objects {
		err := r.checkTakeover()
		if err == nil {
			err = r.updateOne(ctx, o)
		}
		if err != nil {
			// What was written is read back in any case.
			return errors.Join(r.readBack(ctx), err)
		}
		done++
		r.Progress("rewrap", done, total)
	}
	return r.readBack(ctx)
}

// updateOne has one object rewritten and notes how that went.
func (r *run) updateOne(ctx context.Context, o object) error {
	if !o.resource.checked {
		v, err := r.updateFirst(ctx, o)
		if err != nil || v == nil {
			return err
		}
		return r.failures.add(Failure{o.Key, v.kind, v.reason})
	}
	own := server{name: "kube-apiserver", metadata: r.Metadata, ready: r.Ready}
	revision, v, err := r.attempt(ctx, own, o)
	if v != nil && v.kind == Unreadable {
		revision, v, err = r.attemptEach(ctx, o, v)
	}
	if err == nil && v == nil && revision == strconv.FormatInt(o.ModRevision, 10) {
		v = &verdict{kind: Unchanged, reason: "kube-apiserver finds nothing to rewrite"}
	}
	switch {
	case err != nil:
		return err
	case v != nil:
		return r.failures.add(Failure{o.Key, v.kind, v.reason})
	}
	r.failures.forget(o.Key)
	r.result.Updated++
	r.result.Left--
	return r.written(ctx, o)
}

// server is where patches are sent.
type server struct {
	name     string
	metadata metadata.Interface
	// ready asks whether it is; nil takes it to be.
	ready func(ctx context.Context) error
}

// direct is an API server without a load balancer before it.
func direct(s APIServer) server {
	return server{name: s.Name(), metadata: s.Metadata(), ready: func(ctx context.Context) error {
		use, err := s.KeyInUse(ctx)
		if err == nil && use.Problem != "" {
			err = errors.New(use.Problem)
		}
		return err
	}}
}

// attempt sends the patch until the server has taken or refused it, and returns the
// object's revision, or why it could not be rewritten. A server that is away is
// waited for, since nothing else could be rewritten either.
func (r *run) attempt(ctx context.Context, to server, o object) (revision string, v *verdict, err error) {
	var away time.Time
	for try, pause := 1, time.Duration(0); ; {
		if err := r.limiter.Wait(ctx); err != nil {
			return "", nil, err
		}
		revision, err := r.patch(ctx, to.metadata, o)
		if err == nil {
			return revision, nil, nil
		}
		v := judge(err)
		if trouble := r.trouble(ctx, to, &v); trouble != "" {
			switch now := time.Now(); {
			case away.IsZero():
				away = now
				r.note("waiting up to %s for %s: %s", awayPatience, to.name, trouble)
			case now.Sub(away) >= awayPatience:
				return "", nil, fmt.Errorf("%s cannot rewrite anything: %s; run this again when it can (waited for %s)", to.name, trouble, awayPatience)
			}
			if err := wait.Pause(ctx, max(v.after, awayPause)); err != nil {
				return "", nil, err
			}
			continue
		}
		if v.kind == Server && r.unreadable(ctx, to, o) {
			v.kind = Unreadable
		}
		p := r.patienceWith(v)
		if try >= p.tries {
			if v.kind == Webhook {
				r.webhooks[v.webhook] = true
			}
			if try > 1 {
				v.reason = fmt.Sprintf("%s (tried %d times)", v.reason, try)
			}
			return "", &v, nil
		}
		try, pause = try+1, max(2*pause, p.pause)
		if err := wait.Pause(ctx, max(v.after, pause)); err != nil {
			return "", nil, err
		}
	}
}

// attemptEach sends the patch through one API server after the other: each keeps in
// memory what it has decrypted, so one may read what another cannot. It returns the
// first verdict if none can.
func (r *run) attemptEach(ctx context.Context, o object, first *verdict) (revision string, v *verdict, err error) {
	if len(r.APIServers) < 2 {
		return "", first, nil
	}
	for _, s := range r.APIServers {
		if revision, v, err := r.attempt(ctx, direct(s), o); err != nil || v == nil {
			return revision, nil, err
		}
	}
	return "", first, nil
}

// patienceWith is the patience that is left with a failure.
func (r *run) patienceWith(v verdict) patience {
	p := v.kind.patience()
	if v.timeout || v.kind == Webhook && r.webhooks[v.webhook] {
		p.tries = 1
	}
	return p
}

// trouble says why the server could rewrite nothing at all now; empty if the failure
// concerns the object alone.
func (r *run) trouble(ctx context.Context, to server, v *verdict) string {
	switch {
	case v.throttled:
		return v.reason
	case !v.away && v.kind != Server || to.ready == nil:
		return ""
	}
	if err := to.ready(context.WithoutCancel(ctx)); err != nil {
		return text.Short(err.Error())
	}
	return ""
}

// unreadable reports whether a server that is well cannot even read the object.
func (r *run) unreadable(ctx context.Context, to server, o object) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), updateTimeout)
	defer cancel()
	_, err := client(to.metadata, o).Get(ctx, o.Path[len(o.Path)-1], metav1.GetOptions{})
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Code == http.StatusInternalServerError
}

// patch sends a patch that changes nothing, and returns the object's revision. It
// needs no precondition, since whatever the object is by now it stays. One that is
// under way is finished though ctx ends.
func (r *run) patch(ctx context.Context, through metadata.Interface, o object) (revision string, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), updateTimeout)
	defer cancel()
	patched, err := client(through, o).Patch(ctx, o.Path[len(o.Path)-1], types.MergePatchType, []byte("{}"), metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return "", err
	}
	return patched.ResourceVersion, nil
}

// client is for objects of the same resource and namespace.
func client(through metadata.Interface, o object) metadata.ResourceInterface {
	resource := through.Resource(o.resource.target.GroupVersionResource)
	if o.resource.target.Namespaced {
		return resource.Namespace(o.Path[0])
	}
	return resource
}
