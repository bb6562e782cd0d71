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
)

const (
	// fieldManager is who we are in an audit log. A patch that changes nothing
	// leaves no trace in an object's managed fields.
	fieldManager = "kekctl"
	// tries bounds the attempts at one object, and firstPause is the wait after
	// the first; it doubles.
	tries      = 5
	firstPause = time.Second
	// maxPause bounds what a server may have us wait.
	maxPause = time.Minute
	// updateTimeout bounds one attempt, also after an interruption.
	updateTimeout = 30 * time.Second
	// maxFailures in a row end it all: then it is not the objects.
	maxFailures = 10
)

// updateAll updates objects one by one.
func (r *run) updateAll(ctx context.Context, objects []object) error {
	done := r.result.Updated
	// The first batch of many does not tell how many there are.
	total := max(done+int64(len(objects)), r.plan.updates())
	for _, o := range objects {
		if err := r.updateOne(ctx, o); err != nil {
			return err
		}
		done++
		r.Progress("rewrap", done, total)
	}
	return nil
}

// updateOne has one object written anew and notes how that went.
func (r *run) updateOne(ctx context.Context, o object) error {
	problem, transient, err := r.update(ctx, o)
	switch {
	case err != nil:
		return err
	case problem == "":
		r.failures = 0
		r.result.Updated++
		r.result.Left--
		return nil
	}
	r.failed[o.Key] = problem
	if !transient {
		r.failures = 0
	} else if r.failures++; r.failures == maxFailures {
		return fmt.Errorf("%d objects failed in a row, the last with: %s", maxFailures, problem)
	}
	if len(r.failed) > maxListed {
		return fmt.Errorf("more than %d objects could not be written anew, the last with: %s", maxListed, problem)
	}
	return nil
}

// update sends the patch until the server has taken or refused it. The problem is
// why the object could not be written anew, transient if that may pass.
func (r *run) update(ctx context.Context, o object) (problem string, transient bool, err error) {
	for try, pause := 1, firstPause; ; try, pause = try+1, 2*pause {
		if err := r.limiter.Wait(ctx); err != nil {
			return "", false, err
		}
		revision, err := r.patch(ctx, o)
		switch {
		case apierrors.IsNotFound(err):
			return "", false, nil // deleted since
		case err == nil && revision == strconv.FormatInt(o.ModRevision, 10):
			return "kube-apiserver finds nothing to write anew: see whether its EncryptionConfiguration has the plugin as the first provider of this resource", false, nil
		case err == nil:
			return "", false, nil
		case !passing(err):
			return clean(err.Error()), false, nil
		case try == tries:
			return fmt.Sprintf("%s (tried %d times)", clean(err.Error()), tries), true, nil
		}
		if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
			pause = min(time.Duration(seconds)*time.Second, maxPause)
		}
		if err := sleep(ctx, pause); err != nil {
			return "", false, err
		}
	}
}

// patch sends a patch that changes nothing, and returns the object's revision. It
// needs no precondition, since whatever the object is by now it stays. One that is
// under way is finished though ctx ends.
func (r *run) patch(ctx context.Context, o object) (revision string, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), updateTimeout)
	defer cancel()
	var client metadata.ResourceInterface = r.Metadata.Resource(o.target.GroupVersionResource)
	if o.target.namespaced {
		client = r.Metadata.Resource(o.target.GroupVersionResource).Namespace(o.Path[0])
	}
	patched, err := client.Patch(ctx, o.Path[len(o.Path)-1], types.MergePatchType, []byte("{}"), metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return "", err
	}
	return patched.ResourceVersion, nil
}

// passing reports whether an error may pass: a conflict, a server that is busy,
// away or in trouble, a network.
func passing(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true
	}
	code := status.Status().Code
	return code == http.StatusConflict || code == http.StatusTooManyRequests || code >= http.StatusInternalServerError
}

// sleep waits, or returns the cause of ctx's end.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
