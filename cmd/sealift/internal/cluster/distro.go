package cluster

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sealift/sealift/attest/audit"
)

// Distro says how the nodes of a cluster join it. The values are the names of
// profiles' distros.
type Distro string

// Distros. The token is a bootstrap token for all of them, `id.secret`; the
// node's agent makes of it the file that its distro reads. What differs is who
// signs the node's certificate, and so what binds the token to the node:
//
//   - Kubernetes: the kubelet makes a signing request, and Run approves the one
//     for the node's name. Nobody else may approve.
//   - K0s: the same, but k0s binds system:bootstrappers, which every bootstrap
//     token is of, to the automatic approver (k0sproject/k0s,
//     pkg/component/controller/systemrbac.go). So a request for another name is
//     seen only after it was approved: an alarm, and the token is taken back.
//     Controllers that run with --disable-components=system-rbac leave the
//     approval to Run.
//   - K3s, RKE2: the supervisor signs for any bootstrap token whatever node name
//     the request's header says, if no other node has that name: a name belongs
//     to the password that came with its first request (k3s-io/k3s,
//     pkg/server/handlers/router.go, pkg/nodepassword/validate.go). Nothing
//     binds the token to a name. Run takes it back as soon as the node has
//     registered, and with an alarm if meanwhile a node registers that had no
//     token.
const (
	Kubernetes Distro = "kubernetes"
	K3s        Distro = "k3s"
	RKE2       Distro = "rke2"
	K0s        Distro = "k0s"
)

// Distros returns all of them.
func Distros() []Distro { return []Distro{Kubernetes, K3s, RKE2, K0s} }

// requests reports whether nodes join by a certificate signing request through
// the API.
func (d Distro) requests() bool { return d == Kubernetes || d == K0s }

// passwordSuffix follows a node's name in the name of the secret in which a
// supervisor keeps the hash of its password.
func (c *Cluster) passwordSuffix() string { return ".node-password." + string(c.c.Distro) }

// freeName makes a node's name free for the install that is about to join. A
// supervisor ties a name to the password of the first node that had it, and
// keeps the hash in a secret: the install that now has none of the passwords of
// before would be refused. That this machine may have the name is proven.
func (c *Cluster) freeName(ctx context.Context, nodeName string) error {
	if c.c.Distro.requests() {
		return nil
	}
	name := nodeName + c.passwordSuffix()
	if err := c.api.do(ctx, "DELETE", secretsPath+"/"+name, nil, nil); err != nil && !isStatus(err, 404) {
		return fmt.Errorf("forget the password of the node's former install: %w", err)
	}
	return nil
}

// supervise looks after a token whose certificate the supervisor signs. A node
// that has registered has all certificates that it needs the token for (k3s-io/k3s,
// pkg/agent/config/config.go: they are fetched before the kubelet starts, and
// each later call may be made with the kubelet's certificate). Its secret is
// deleted then: it was used once.
func (c *Cluster) supervise(ctx context.Context, t *token, registered bool) error {
	t.mu.Lock()
	used := t.used
	t.mu.Unlock()
	for _, n := range c.foreign {
		// Whole seconds: what is of the same one is taken for later.
		if t.warned || n.Name == t.node || n.CreationTimestamp.Before(t.created.Truncate(time.Second)) {
			continue
		}
		t.warned = true
		alarm := t.alarm(audit.AlarmForeignNode, "was open when node %s appeared, which had no token; it may have been used for that", n.Name)
		if !used {
			return c.alarm(ctx, t, alarm)
		}
		// The secret is gone already, and its node is about to be Ready.
		t.mu.Lock()
		t.events = append(t.events, alarm)
		t.mu.Unlock()
	}
	if used || !registered {
		return nil
	}
	if err := c.deleteSecret(ctx, t.id); err != nil {
		return err
	}
	c.markUsed(t, "node registered; the token works no more")
	return nil
}

// listPage is how many objects are asked for at once.
const listPage = 500

// findForeign finds the nodes that appeared since the first of the tokens was
// minted and that had no token of ours, once for all tokens of a round and at
// most every lookUnused. A node has appeared when it registers, and before that
// when the supervisor keeps its password, which is when it gives it a
// certificate.
func (c *Cluster) findForeign(ctx context.Context, events Events, ts []*token) error {
	now := c.c.Clock()
	if c.c.Distro.requests() || now.Before(c.nextForeign) {
		return nil
	}
	var first time.Time
	for _, t := range ts {
		if first.IsZero() || t.created.Before(first) {
			first = t.created
		}
	}
	var foreign []objectMeta
	for path, suffix := range map[string]string{nodesPath: "", secretsPath: c.passwordSuffix()} {
		all, err := c.list(ctx, path)
		if err != nil {
			return err
		}
		for _, o := range all {
			var ok bool
			if o.Name, ok = strings.CutSuffix(o.Name, suffix); !ok || o.CreationTimestamp.Before(first.Truncate(time.Second)) {
				continue
			}
			expected, err := events.ExpectsNode(ctx, o.Name)
			if err != nil {
				return err
			}
			if !expected {
				foreign = append(foreign, o)
			}
		}
	}
	c.foreign, c.nextForeign = foreign, now.Add(lookUnused)
	return nil
}

// list returns the metadata of all objects of a collection.
func (c *Cluster) list(ctx context.Context, path string) ([]objectMeta, error) {
	var all []objectMeta
	for next := ""; ; {
		q := url.Values{"limit": {strconv.Itoa(listPage)}}
		if next != "" {
			q.Set("continue", next)
		}
		var list metadataList
		if err := c.api.call(ctx, "GET", path+"?"+q.Encode(), acceptMetadata, nil, &list); err != nil {
			return nil, fmt.Errorf("list what joined: %w", err)
		}
		for _, o := range list.Items {
			all = append(all, o.Metadata)
		}
		if next = list.Metadata.Continue; next == "" {
			return all, nil
		}
	}
}

// approverRole lets its subjects' signing requests for node certificates be
// approved by the cluster itself.
const approverRole = "system:certificates.k8s.io:certificatesigningrequests:nodeclient"

// warnOfApprovers looks for cluster role bindings by which the cluster approves
// what our tokens ask for: then a token is good for any node name until Run has
// seen the request.
func (c *Cluster) warnOfApprovers(ctx context.Context) error {
	var list roleBindingList
	if err := c.api.do(ctx, "GET", bindingPath, nil, &list); err != nil {
		return fmt.Errorf("list cluster role bindings: %w", err)
	}
	ours := []string{Group, "system:bootstrappers", "system:authenticated"}
	for _, b := range list.Items {
		if b.RoleRef.Name != approverRole {
			continue
		}
		for _, s := range b.Subjects {
			if s.Kind != "Group" || !slices.Contains(ours, s.Name) {
				continue
			}
			hint := "delete it"
			if c.c.Distro == K0s {
				hint = "run the controllers with --disable-components=system-rbac, see docs/join-tokens.md"
			}
			c.c.Log.Warn("the cluster approves node certificates by itself: a join token is not bound to its node name", "binding", b.Metadata.Name, "group", s.Name, "hint", hint)
		}
	}
	return nil
}
