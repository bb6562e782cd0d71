package rewrap

import (
	"context"
	"fmt"
	"time"

	"k8s.io/client-go/metadata"

	"kekd/internal/admin/wait"
	"kekd/internal/cluster"
)

// APIServer is one of the cluster's.
type APIServer interface {
	// Name is its URL.
	Name() string
	// Metadata is a client of this server and no other.
	Metadata() metadata.Interface
	// KeyInUse asks which KEKs it encrypts with.
	KeyInUse(ctx context.Context) (cluster.KeyUse, error)
}

// serversPause is the pause between two questions to an API server. It asks its
// plugins at most every 20 seconds.
const serversPause = 3 * time.Second

// AwaitServers waits until every API server encrypts under the key. Rewritten before
// that, objects would be under the key that is to be retired. providers are names
// under which API servers know the plugin.
func AwaitServers(ctx context.Context, servers []APIServer, keyID string, providers []string, wait time.Duration, note func(string)) error {
	deadline := time.Now().Add(wait)
	for _, s := range servers {
		missing, err := Wait(ctx, deadline, serversPause, s.Name()+" to encrypt under "+keyID, note, func() (string, error) {
			use, err := s.KeyInUse(ctx)
			if err != nil {
				return "", err
			}
			return use.Lacks(keyID, providers...), nil
		})
		if missing != "" {
			err = fmt.Errorf("%s does not encrypt under %s: %s; wait longer (--wait), or find out why it does not ask kekd", s.Name(), keyID, missing)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Wait looks again and again until nothing is missing, look fails or the deadline has
// come, and notes what is missing whenever that changes. It returns what is missing
// at the deadline.
func Wait(ctx context.Context, deadline time.Time, between time.Duration, what string, note func(string), look func() (missing string, err error)) (string, error) {
	var noted string
	for {
		missing, err := look()
		if err != nil || missing == "" || time.Until(deadline) <= 0 {
			return missing, err
		}
		if missing != noted {
			noted = missing
			note(fmt.Sprintf("waiting up to %s for %s: %s", time.Until(deadline).Round(time.Second), what, missing))
		}
		if err := wait.Pause(ctx, min(between, time.Until(deadline))); err != nil {
			return "", err
		}
	}
}
