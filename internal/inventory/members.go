package inventory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// lister is what asking the members needs of etcd's client.
type lister interface {
	MemberList(ctx context.Context, opts ...clientv3.OpOption) (*clientv3.MemberListResponse, error)
	Status(ctx context.Context, endpoint string) (*clientv3.StatusResponse, error)
}

// Member is a member of an etcd cluster.
type Member struct {
	Name string `json:"name"`
	// Endpoint is the first URL that the member gives to clients; empty if it has not
	// started yet.
	Endpoint string `json:"endpoint"`
	// Err is why the member could not be asked, or what it says is wrong with it; nil
	// if it is well.
	Err error `json:"-"`
}

// memberTimeout bounds what is waited for one member.
const memberTimeout = 5 * time.Second

// Members asks every member of every etcd that the store consists of. An error means
// that the list of members could not be had.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	var members []Member
	for _, src := range s.sources {
		limited, cancel := context.WithTimeoutCause(ctx, requestTimeout, errNoAnswer)
		list, err := src.members.MemberList(limited)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("list the members of etcd at %s: %w", src.endpoint, err)
		}
		for _, m := range list.Members {
			member := Member{Name: m.Name, Err: src.ask(ctx, m.ID, m.ClientURLs)}
			if len(m.ClientURLs) > 0 {
				member.Endpoint = m.ClientURLs[0]
			}
			members = append(members, member)
		}
	}
	return members, nil
}

// ask asks a member at the first of its URLs where it answers.
func (s *source) ask(ctx context.Context, id uint64, urls []string) error {
	if len(urls) == 0 {
		return errors.New("it has joined the cluster but has not started")
	}
	var problems []error
	for _, url := range urls {
		limited, cancel := context.WithTimeoutCause(ctx, memberTimeout, fmt.Errorf("no answer within %v", memberTimeout))
		status, err := s.members.Status(limited, url)
		if cause := context.Cause(limited); err != nil && cause != nil {
			err = cause
		}
		cancel()
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("%s: %w", url, err))
		case status.Header.MemberId != id:
			problems = append(problems, fmt.Errorf("%s: another member answers there", url))
		case len(status.Errors) > 0:
			return errors.New(strings.Join(status.Errors, "; "))
		default:
			return nil
		}
	}
	return errors.Join(problems...)
}
