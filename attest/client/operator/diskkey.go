package operator

import (
	"context"
	"net/http"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
)

// RotateKey has a machine get another disk key in its next boots. One whose
// key is being changed already stays as it is.
func (c *Client) RotateKey(ctx context.Context, id attest.MachineID, reason string) (*api.Machine, error) {
	return c.setState(ctx, id, "rotate-key", reason)
}

// KEK returns what is under which key-encryption key.
func (c *Client) KEK(ctx context.Context) (*api.KEKStatus, error) {
	st := new(api.KEKStatus)
	if err := c.call(ctx, http.MethodGet, api.PathKEK, nil, nil, st); err != nil {
		return nil, err
	}
	return st, nil
}

// Rewrap brings all disk keys under the present key-encryption key. It returns
// when that is done; cut off, what was done stays done.
func (c *Client) Rewrap(ctx context.Context, reason string) (*api.KEKStatus, error) {
	st := new(api.KEKStatus)
	if err := c.call(ctx, http.MethodPost, api.PathKEKRewrap, nil, api.KEKRewrapRequest{Reason: reason}, st); err != nil {
		return nil, err
	}
	return st, nil
}
