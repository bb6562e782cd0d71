package rewrap

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedstoragemigrationv1 "k8s.io/client-go/kubernetes/typed/storagemigration/v1"

	"kekd/internal/admin/text"
)

const (
	migrationPoll = time.Second
	// migrationNote is the time between two notes on the migrations.
	migrationNote = 10 * time.Second
	// migrationPickup is how long kube-controller-manager may take to notice one.
	migrationPickup = 30 * time.Second
	// migrationBlind is how long asking for one may fail.
	migrationBlind = time.Minute
	// cleanupTimeout bounds the wait for the controller to tidy up behind one, and
	// the deletion of one, also after an interruption.
	cleanupTimeout = 10 * time.Second
	// samplePause is the time between two looks at some of what is migrated.
	samplePause = 3 * time.Second
)

// migration is one of a resource.
type migration struct {
	resource *Resource
	name     string
	// begun is when it was created, seen when it was last read, ended when it had
	// come to its end.
	begun, seen, ended time.Time
	// state is how it is, in words.
	state string
}

// migrateAll migrates the resources whose turn it is, all at once: the controller
// waits up to a minute or so before it begins with a resource that seldom changes.
// What a migration does not do is left to the updates, if the method allows that.
func (r *run) migrateAll(ctx context.Context) error {
	var running []*migration
	defer func() {
		for _, m := range running {
			r.remove(ctx, m)
		}
	}()
	for i := range r.plan.Resources {
		resource := &r.plan.Resources[i]
		if resource.Method != Migration || resource.Stale == 0 || !resource.checked {
			continue
		}
		m, err := r.create(ctx, resource)
		if err == nil {
			running = append(running, m)
		} else if err := r.settle(resource, "no migration could be created: "+text.Short(err.Error())); err != nil {
			return err
		}
	}
	begun := time.Now()
	noted, sampled := begun, begun
	tick := time.NewTicker(migrationPoll)
	defer tick.Stop()
	for len(running) > 0 {
		var now time.Time
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now = <-tick.C:
		}
		for _, m := range slices.Clone(running) {
			done, problem := r.watch(ctx, m, now)
			if !done {
				continue
			}
			running = slices.DeleteFunc(running, func(other *migration) bool { return other == m })
			r.remove(ctx, m)
			if err := r.settle(m.resource, problem); err != nil {
				return err
			}
		}
		if now.Sub(sampled) >= samplePause {
			sampled = now
			if err := r.readSamples(ctx); err != nil {
				return err
			}
		}
		if now.Sub(noted) >= migrationNote && len(running) > 0 {
			noted = now
			r.note("migrating for %s: %s", now.Sub(begun).Round(time.Second), states(running))
		}
	}
	return nil
}

// settle notes how the migration of a resource ended.
func (r *run) settle(resource *Resource, problem string) error {
	switch {
	case problem == "":
		r.note("%s: migrated", resource.Name)
		r.result.Migrated = append(r.result.Migrated, resource.Name)
	case r.Method == Migration:
		return fmt.Errorf("migrate %s: %s", resource.Name, problem)
	default:
		r.note("%s: %s; updating its objects instead", resource.Name, problem)
	}
	return nil
}

func states(running []*migration) string {
	var all []string
	for _, m := range running {
		all = append(all, fmt.Sprintf("%s (%s)", m.resource.Name, m.state))
	}
	return strings.Join(all, ", ")
}

func (r *run) migrations() typedstoragemigrationv1.StorageVersionMigrationInterface {
	return r.Kube.StoragemigrationV1().StorageVersionMigrations()
}

func (r *run) create(ctx context.Context, resource *Resource) (*migration, error) {
	// Not cut short by an interruption, so that its name is known and it is deleted.
	created, err := r.migrations().Create(context.WithoutCancel(ctx), &storagemigrationv1.StorageVersionMigration{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "kekctl-"},
		Spec: storagemigrationv1.StorageVersionMigrationSpec{
			Resource: metav1.GroupResource{Group: resource.target.Group, Resource: resource.target.Resource},
		},
	}, metav1.CreateOptions{FieldManager: fieldManager})
	if err != nil {
		return nil, err
	}
	r.note("%s: migration %s was created", resource.Name, created.Name)
	now := time.Now()
	return &migration{resource: resource, name: created.Name, begun: now, seen: now}, nil
}

// remove deletes a migration, also after an interruption.
func (r *run) remove(ctx context.Context, m *migration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := r.migrations().Delete(ctx, m.name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		r.note("%s: the migration %s is left over: %v", m.resource.Name, m.name, err)
	}
}

// watch looks how a migration is. The problem is why it did not end well.
func (r *run) watch(ctx context.Context, m *migration, now time.Time) (done bool, problem string) {
	object, err := r.migrations().Get(ctx, m.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true, "somebody deleted the migration"
	case err != nil && now.Sub(m.seen) < migrationBlind:
		return false, ""
	case err != nil:
		return true, "the migration cannot be watched: " + text.Short(err.Error())
	}
	m.seen = now
	running := meta.FindStatusCondition(object.Status.Conditions, string(storagemigrationv1.MigrationRunning))
	if ended, problem := outcome(object); ended {
		if m.ended.IsZero() {
			m.ended = now
		}
		// When it has ended, the controller tidies up the definition of a custom
		// resource, which it could not if the migration were deleted before.
		m.state = "ended"
		tidied := running == nil || running.Status != metav1.ConditionTrue
		return tidied || now.Sub(m.ended) >= cleanupTimeout, problem
	}
	switch {
	case running != nil:
		m.state = text.Short(running.Message)
		return false, ""
	case now.Sub(m.begun) < migrationPickup:
		m.state = "waiting for kube-controller-manager"
		return false, ""
	}
	other := r.otherMigration(ctx, object)
	if other == "" {
		return true, fmt.Sprintf("no controller has taken up the migration within %s", migrationPickup)
	}
	m.state = fmt.Sprintf("waiting for %s, which migrates the same", other)
	return false, ""
}

// outcome says whether a migration ended, and why if not well.
func outcome(m *storagemigrationv1.StorageVersionMigration) (ended bool, problem string) {
	if meta.IsStatusConditionTrue(m.Status.Conditions, string(storagemigrationv1.MigrationSucceeded)) {
		return true, ""
	}
	failed := meta.FindStatusCondition(m.Status.Conditions, string(storagemigrationv1.MigrationFailed))
	if failed != nil && failed.Status == metav1.ConditionTrue {
		return true, "the migration failed: " + text.Short(failed.Message)
	}
	return false, ""
}

// otherMigration finds a migration of the same resource that runs: there is one at
// a time. Empty if there is none.
func (r *run) otherMigration(ctx context.Context, m *storagemigrationv1.StorageVersionMigration) string {
	list, err := r.migrations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return ""
	}
	for _, other := range list.Items {
		if other.Spec.Resource == m.Spec.Resource && other.Name != m.Name &&
			meta.IsStatusConditionTrue(other.Status.Conditions, string(storagemigrationv1.MigrationRunning)) {
			return other.Name
		}
	}
	return ""
}
