package operator

import (
	"context"
	"net/http"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
)

func (c *Client) recovery(ctx context.Context, method string, id attest.MachineID, path string, body any) (*api.Recovery, error) {
	r := new(api.Recovery)
	if err := c.call(ctx, method, api.PathMachines+"/"+id.String()+path, nil, body, r); err != nil {
		return nil, err
	}
	return r, nil
}

// Recovery returns a machine's last recovery.
func (c *Client) Recovery(ctx context.Context, id attest.MachineID) (*api.Recovery, error) {
	return c.recovery(ctx, http.MethodGet, id, api.PathRecovery, nil)
}

// OpenRecovery opens a recovery, or returns the one that is open for the boot
// of the request.
func (c *Client) OpenRecovery(ctx context.Context, id attest.MachineID, req *api.RecoveryOpen) (*api.Recovery, error) {
	return c.recovery(ctx, http.MethodPost, id, api.PathRecovery, req)
}

// ApproveRecovery approves a recovery.
func (c *Client) ApproveRecovery(ctx context.Context, id attest.MachineID, req *api.RecoveryApprove) (*api.Recovery, error) {
	return c.recovery(ctx, http.MethodPost, id, api.PathRecoveryApprove, req)
}

// TakeRecoveryCode returns the code of a recovery that was approved. It is
// given once: after an error it may be lost.
func (c *Client) TakeRecoveryCode(ctx context.Context, id attest.MachineID, request string) (*api.RecoveryCode, error) {
	code := new(api.RecoveryCode)
	if err := c.call(ctx, http.MethodPost, api.PathMachines+"/"+id.String()+api.PathRecoveryCode, nil, &api.RecoveryTake{Request: request}, code); err != nil {
		return nil, err
	}
	return code, nil
}
