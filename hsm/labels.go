package hsm

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"kekd/hsm/wire"
	"kekd/internal/kek"
)

// OtherLabels returns labels of AES keys on the token that are not of the ring: at most
// wire.MaxLabels, and how many there are beside them.
func (t *Token) OtherLabels(ctx context.Context) (labels []string, more int, err error) {
	var reply wire.LabelsReply
	if _, err := t.do(ctx, wire.OpLabels, retry, struct{}{}, nil, &reply); err != nil {
		return nil, 0, fmt.Errorf("list the labels of other keys: %w", err)
	}
	return reply.Labels, reply.More, nil
}

// OtherLabelsError is the error of a ring without a key, on a token that has AES keys
// under other labels: keyRing.label may be mistyped. It wraps kek.ErrNoKey.
type OtherLabelsError struct {
	// Ring is keyRing.label.
	Ring string
	// Labels are those that the token has, and More how many there are beside them.
	Labels []string
	More   int
}

// Error implements error.
func (e *OtherLabelsError) Error() string {
	return fmt.Sprintf("%v: no key has the label %q, and the token has AES keys under other labels: %s",
		kek.ErrNoKey, e.Ring, e.List())
}

// List is the labels as a message has them.
func (e *OtherLabelsError) List() string {
	quoted := make([]string, 0, len(e.Labels))
	for _, l := range e.Labels {
		quoted = append(quoted, strconv.Quote(l))
	}
	list := strings.Join(quoted, ", ")
	if e.More > 0 {
		list += fmt.Sprintf(" and %d more", e.More)
	}
	return list
}

// Hint says what to do.
func (*OtherLabelsError) Hint() string {
	return "correct keyRing.label if it is mistyped; kekctl key create --new-ring creates the first key of another ring"
}

// Unwrap yields kek.ErrNoKey.
func (*OtherLabelsError) Unwrap() error { return kek.ErrNoKey }

// labelLister is a *Token.
type labelLister interface {
	OtherLabels(ctx context.Context) (labels []string, more int, err error)
}

// ExplainEmpty returns a better error than cause for a ring without a key, where the
// token has keys under other labels.
func ExplainEmpty(ctx context.Context, token labelLister, ring string, cause error) error {
	labels, more, err := token.OtherLabels(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%w (and %w)", cause, err)
	case len(labels) == 0:
		return cause
	}
	return &OtherLabelsError{Ring: ring, Labels: labels, More: more}
}
