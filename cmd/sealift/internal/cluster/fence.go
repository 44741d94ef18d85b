package cluster

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/sealift/sealift/attest/server"
)

// fenceAnnotation says on a node why it was fenced.
const fenceAnnotation = "sealift.dev/fenced"

// maxAnnotation bounds the reason on a node, bytes.
const maxAnnotation = 512

var _ server.NodeFencer = (*Cluster)(nil)

// Fence implements server.NodeFencer. It makes the node unschedulable, as
// kubectl cordon does, or, with Config.DeleteNodes, deletes it: Kubernetes then
// takes its pods for gone and starts them elsewhere. What runs on the machine
// runs on, and its kubelet's certificate stays valid until it runs out:
// Kubernetes cannot revoke one, and a kubelet that starts anew registers its
// node again. Nobody but a person undoes a cordon.
func (c *Cluster) Fence(ctx context.Context, nodeName, reason string) error {
	if err := checkNodeName(nodeName); err != nil {
		return fmt.Errorf("fence node: %w", err)
	}
	var err error
	if c.c.DeleteNodes {
		err = c.api.do(ctx, "DELETE", nodesPath+"/"+nodeName, nil, nil)
	} else {
		if len(reason) > maxAnnotation {
			reason = reason[:maxAnnotation]
		}
		err = c.api.do(ctx, "PATCH", nodesPath+"/"+nodeName, json.RawMessage(patch(reason)), nil)
	}
	if isStatus(err, 404) {
		return nil // it never joined
	}
	if err != nil {
		return fmt.Errorf("fence node %s: %w", nodeName, err)
	}
	c.c.Log.Info("node fenced", "node", nodeName, "deleted", c.c.DeleteNodes)
	return nil
}

// patch returns a JSON merge patch (RFC 7386) that cordons a node.
func patch(reason string) []byte {
	b, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"annotations": map[string]string{fenceAnnotation: reason}},
		"spec":     map[string]any{"unschedulable": true},
	})
	if err != nil {
		panic("cluster: BUG: " + err.Error())
	}
	return b
}
