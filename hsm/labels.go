package hsm

import (
	"context"
	"fmt"

	"kekd/hsm/wire"
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
