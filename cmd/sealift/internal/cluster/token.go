package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

const (
	secretsPath = "/api/v1/namespaces/kube-system/secrets"
	nodesPath   = "/api/v1/nodes"

	// managedLabel is on the secrets that are ours. The annotations keep what
	// another process needs to go on with a token.
	managedLabel   = "sealift.dev/join-token"
	nodeAnnotation = "sealift.dev/node"
	bootAnnotation = "sealift.dev/previous-boot-id"
)

// mintAttempts bounds how often a token id that is taken is drawn again.
const mintAttempts = 4

// token is one that is out.
type token struct {
	id      string
	node    string
	expires time.Time
	// previousBoot is the boot id that the node had, if there was one, when
	// the token was minted. Only a node of another boot has used the token or
	// done without it.
	previousBoot string
	// created is when the API server made the token, by its own clock.
	created time.Time

	mu       sync.Mutex
	used     bool      // guarded by mu: a request for it was approved, or its node registered
	gone     bool      // guarded by mu: it has ended, and its secret was deleted
	events   []event   // guarded by mu: not yet told
	nextLook time.Time // of the node; used by Run only
	warned   bool      // of a foreign node; used by Run only
}

// event is what Events is to be told: a step of the token's life, or an alarm.
type event struct {
	step  audit.Token
	alarm *audit.Alarm
}

// event returns an event of the token's life.
func (t *token) event(e audit.TokenEvent, reason string) event {
	return event{step: audit.Token{Event: e, ID: t.id, NodeName: t.node, Reason: reason}}
}

// alarm returns an alarm about the token.
func (t *token) alarm(name audit.AlarmName, format string, args ...any) event {
	return event{alarm: &audit.Alarm{Name: name, What: fmt.Sprintf("join token %s of node %s ", t.id, t.node) + fmt.Sprintf(format, args...)}}
}

// randomText draws n characters of the alphabet of bootstrap tokens, each with
// the same probability.
func randomText(n int) (string, error) {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	out := make([]byte, 0, n)
	var b [64]byte
	for len(out) < n {
		if _, err := rand.Read(b[:]); err != nil {
			return "", fmt.Errorf("read random bytes: %w", err)
		}
		for _, v := range b {
			// 252 is the largest multiple of 36 that a byte holds.
			if v < 252 && len(out) < n {
				out = append(out, alphabet[v%36])
			}
		}
	}
	return string(out), nil
}

// checkNodeName accepts a lower-case RFC 1123 label.
func checkNodeName(name string) error {
	if ok, err := regexp.MatchString(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`, name); err != nil || !ok {
		return fmt.Errorf("node name %q is not a lower-case RFC 1123 label", name)
	}
	return nil
}

// Mint implements server.TokenMinter. A token for the same node that is still
// out is taken back: only one is good at a time.
func (c *Cluster) Mint(ctx context.Context, nodeName string) (*server.Token, error) {
	if err := checkNodeName(nodeName); err != nil {
		return nil, fmt.Errorf("mint join token: %w", err)
	}
	if !c.prepared.Load() {
		return nil, errors.New("mint join token: the cluster is not prepared yet")
	}
	for _, t := range c.outstanding() {
		if t.node == nodeName {
			if err := c.revoke(ctx, t, audit.TokenRevoked, "another token was minted for the node"); err != nil {
				return nil, fmt.Errorf("mint join token for node %s: take back token %s: %w", nodeName, t.id, err)
			}
		}
	}
	var n node
	if err := c.api.do(ctx, "GET", nodesPath+"/"+nodeName, nil, &n); err != nil && !isStatus(err, 404) {
		return nil, fmt.Errorf("mint join token: read node %s: %w", nodeName, err)
	}
	t := &token{node: nodeName, expires: c.c.Clock().Add(c.c.TTL).UTC().Truncate(time.Second), previousBoot: n.Status.NodeInfo.BootID}
	if err := c.freeName(ctx, nodeName); err != nil {
		return nil, fmt.Errorf("mint join token for node %s: %w", nodeName, err)
	}
	value, err := randomText(16)
	if err != nil {
		return nil, fmt.Errorf("mint join token for node %s: %w", nodeName, err)
	}
	var made secret
	for range mintAttempts {
		if t.id, err = randomText(6); err != nil {
			break
		}
		if err = c.api.do(ctx, "POST", secretsPath, c.tokenSecret(t, value), &made); !isStatus(err, 409) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("mint join token for node %s: %w", nodeName, err)
	}
	t.created = made.Metadata.CreationTimestamp
	c.add(t)
	c.c.Log.Info("join token minted", "token", t.id, "node", nodeName, "expires", t.expires)
	return &server.Token{ID: t.id, Secret: attest.Secret(t.id + "." + value), Expires: t.expires, Server: c.server, CA: c.ca}, nil
}

// tokenSecret returns the Secret that makes a bootstrap token.
func (c *Cluster) tokenSecret(t *token, value string) *secret {
	s := &secret{
		APIVersion: "v1", Kind: "Secret", Type: "bootstrap.kubernetes.io/token",
		Metadata: objectMeta{
			Name: "bootstrap-token-" + t.id, Namespace: "kube-system",
			Labels:      map[string]string{managedLabel: "true"},
			Annotations: map[string]string{nodeAnnotation: t.node, bootAnnotation: t.previousBoot},
		},
		Data: map[string][]byte{
			"description":                    []byte("one join of node " + t.node),
			"token-id":                       []byte(t.id),
			"token-secret":                   []byte(value),
			"expiration":                     []byte(t.expires.Format(time.RFC3339)),
			"usage-bootstrap-authentication": []byte("true"),
			"auth-extra-groups":              []byte(Group),
		},
	}
	if c.c.Distro == Kubernetes {
		// For those who read the cluster's address from kube-public/cluster-info.
		s.Data["usage-bootstrap-signing"] = []byte("true")
	}
	return s
}

// adopt reads back what tokenSecret wrote.
func adopt(s *secret) (*token, error) {
	t := &token{
		id: string(s.Data["token-id"]), node: s.Metadata.Annotations[nodeAnnotation], previousBoot: s.Metadata.Annotations[bootAnnotation],
		created: s.Metadata.CreationTimestamp,
	}
	if "bootstrap-token-"+t.id != s.Metadata.Name || len(t.id) != 6 {
		return nil, fmt.Errorf("its token id is %q", t.id)
	}
	if err := checkNodeName(t.node); err != nil {
		return nil, err
	}
	var err error
	if t.expires, err = time.Parse(time.RFC3339, string(s.Data["expiration"])); err != nil {
		return nil, fmt.Errorf("its expiration: %w", err)
	}
	return t, nil
}

// Revoke implements server.TokenMinter.
func (c *Cluster) Revoke(ctx context.Context, id string) error {
	if ok, err := regexp.MatchString(`^[a-z0-9]{6}$`, id); err != nil || !ok {
		return errors.New("revoke join token: not a token id")
	}
	c.mu.Lock()
	t := c.out[id]
	c.mu.Unlock()
	if t == nil {
		// Minted by another replica, or long gone.
		return c.deleteSecret(ctx, id)
	}
	return c.revoke(ctx, t, audit.TokenRevoked, "by the service")
}

func (c *Cluster) deleteSecret(ctx context.Context, id string) error {
	if err := c.api.do(ctx, "DELETE", secretsPath+"/bootstrap-token-"+id, nil, nil); err != nil && !isStatus(err, 404) {
		return fmt.Errorf("revoke join token %s: %w", id, err)
	}
	return nil
}

// revoke ends a token for a reason.
func (c *Cluster) revoke(ctx context.Context, t *token, as audit.TokenEvent, reason string) error {
	return c.end(ctx, t, t.event(as, reason))
}

// alarm ends a token with an alarm.
func (c *Cluster) alarm(ctx context.Context, t *token, alarm event) error {
	return c.end(ctx, t, t.event(audit.TokenRevoked, "alarm "+string(alarm.alarm.Name)), alarm)
}

// end deletes a token's secret and queues the events that tell of it, once.
func (c *Cluster) end(ctx context.Context, t *token, events ...event) error {
	if err := c.deleteSecret(ctx, t.id); err != nil {
		return err
	}
	t.mu.Lock()
	first := !t.gone
	t.gone = true
	if first {
		t.events = append(t.events, events...)
	}
	t.mu.Unlock()
	if first {
		c.c.Log.Info("join token ended", "token", t.id, "node", t.node, "as", string(events[0].step.Event), "reason", events[0].step.Reason)
	}
	return nil
}
