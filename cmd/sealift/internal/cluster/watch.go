package cluster

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/sealift/sealift/attest/audit"
)

// Intervals of looking: while a token is out, a kubelet waits for its
// certificate; otherwise only leftovers of an earlier process are looked for.
const (
	busyInterval = 250 * time.Millisecond
	idleInterval = 30 * time.Second
)

// Events takes what becomes of tokens; attest/server's Server is one.
type Events interface {
	TokenEvent(ctx context.Context, t audit.Token) error
}

// Run follows all tokens until ctx ends. A cluster that cannot be reached is
// tried again: tokens expire by themselves.
func (c *Cluster) Run(ctx context.Context, events Events) error {
	prepared := false
	for {
		wait := idleInterval
		var err error
		if !prepared {
			err = c.Prepare(ctx)
			prepared = err == nil
		}
		if err == nil {
			var out int
			if out, err = c.look(ctx, events); out > 0 {
				wait = busyInterval
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			c.log.Warn("join tokens could not be followed", "error", err)
			wait = time.Second
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.minted:
		case <-time.After(wait):
		}
	}
}

// look brings every token one step further and returns how many are out.
func (c *Cluster) look(ctx context.Context, events Events) (int, error) {
	var tokens secretList
	if err := c.call(ctx, http.MethodGet, secretsAt+"?labelSelector="+url.QueryEscape(nodeLabel), nil, &tokens); err != nil {
		return 0, fmt.Errorf("list join tokens: %w", err)
	}
	if len(tokens.Items) == 0 {
		return 0, nil
	}
	var requests csrList
	if err := c.call(ctx, http.MethodGet, csrsAt+"?fieldSelector="+url.QueryEscape("spec.signerName="+signer), nil, &requests); err != nil {
		return len(tokens.Items), fmt.Errorf("list certificate requests: %w", err)
	}
	var errs []error
	for i := range tokens.Items {
		if err := c.follow(ctx, events, &tokens.Items[i], requests.Items); err != nil {
			errs = append(errs, err)
		}
	}
	return len(tokens.Items), errors.Join(errs...)
}

// follow brings one token one step further.
func (c *Cluster) follow(ctx context.Context, events Events, s *secret, requests []csr) error {
	id, nodeName := string(s.Data["token-id"]), s.Metadata.Labels[nodeLabel]
	if s.Type != tokenType || s.Metadata.Name != "bootstrap-token-"+id {
		return fmt.Errorf("secret %s has our label and is no token of ours", s.Metadata.Name)
	}
	expires, err := time.Parse(time.RFC3339, string(s.Data["expiration"]))
	if err != nil {
		return fmt.Errorf("join token %s: %w", id, err)
	}
	tell := func(what audit.TokenEvent, reason string) error {
		return events.TokenEvent(ctx, audit.Token{Event: what, ID: id, NodeName: nodeName, Expires: expires, Reason: reason})
	}

	issued := false
	if i := slices.IndexFunc(requests, func(r csr) bool { return r.Spec.Username == "system:bootstrap:"+id && r.has("Approved") }); i >= 0 {
		issued = len(requests[i].Status.Certificate) > 0
	} else if now := c.clock(); now.Before(expires) {
		for i := range requests {
			r := &requests[i]
			if r.Spec.Username != "system:bootstrap:"+id || r.has("Denied") {
				continue
			}
			approved, err := c.decide(ctx, r, nodeName, now)
			if err != nil {
				return err
			}
			if approved {
				break // one token, one certificate
			}
		}
	}
	if issued && c.firstUse(id) {
		if err := tell(audit.TokenUsed, "a certificate was issued for it"); err != nil {
			c.forgetUse(id)
			return err
		}
	}
	if issued {
		var n node
		err := c.call(ctx, http.MethodGet, "/api/v1/nodes/"+url.PathEscape(nodeName), nil, &n)
		if err != nil && !isStatus(err, http.StatusNotFound) {
			return fmt.Errorf("look at node %s: %w", nodeName, err)
		}
		if err == nil && n.ready() {
			if err := tell(audit.TokenJoined, "the node is Ready"); err != nil {
				return err
			}
			if err := c.Revoke(ctx, id); err != nil {
				return err
			}
			c.forgetUse(id)
			return tell(audit.TokenRevoked, "the node is Ready")
		}
	}
	if c.clock().Before(expires) {
		return nil
	}
	if err := c.Revoke(ctx, id); err != nil {
		return err
	}
	c.forgetUse(id)
	return tell(audit.TokenExpired, "the time is over")
}

func (c *Cluster) firstUse(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used[id] {
		return false
	}
	c.used[id] = true
	return true
}

func (c *Cluster) forgetUse(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.used, id)
}

// decide approves a request that is what the node's kubelet must ask for, and
// denies any other.
func (c *Cluster) decide(ctx context.Context, r *csr, nodeName string, now time.Time) (approved bool, err error) {
	condition := csrCondition{Type: "Approved", Status: "True", Reason: "SealiftAttested", LastUpdateTime: now.UTC().Truncate(time.Second),
		Message: "the token was released to the attested machine of node " + nodeName}
	if bad := checkRequest(&r.Spec, nodeName); bad != nil {
		condition.Type, condition.Reason, condition.Message = "Denied", "SealiftRefused", bad.Error()
		c.log.Warn("certificate request denied", "csr", r.Metadata.Name, "node", nodeName, "reason", bad)
	}
	status, _ := r.raw["status"].(map[string]any)
	if status == nil {
		status = map[string]any{}
		r.raw["status"] = status
	}
	conditions, _ := status["conditions"].([]any)
	status["conditions"] = append(conditions, condition)
	// A list's items lack what says what they are.
	r.raw["apiVersion"], r.raw["kind"] = "certificates.k8s.io/v1", "CertificateSigningRequest"
	if err := c.call(ctx, http.MethodPut, csrsAt+"/"+url.PathEscape(r.Metadata.Name)+"/approval", r.raw, nil); err != nil {
		return false, fmt.Errorf("decide on certificate request %s: %w", r.Metadata.Name, err)
	}
	return condition.Type == "Approved", nil
}

// checkRequest says why a certificate request is not that of a node's kubelet
// for its first client certificate (Kubernetes, "Certificates and Certificate
// Signing Requests", kube-apiserver-client-kubelet).
func checkRequest(s *csrSpec, nodeName string) error {
	if s.SignerName != signer {
		return fmt.Errorf("signer is %q, want %q", s.SignerName, signer)
	}
	block, rest := pem.Decode(s.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		return errors.New("the request is not one PEM block")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return fmt.Errorf("the request cannot be read: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return fmt.Errorf("the request is not signed by its key: %w", err)
	}
	if want := "system:node:" + nodeName; req.Subject.CommonName != want {
		return fmt.Errorf("common name is %q, want %q", req.Subject.CommonName, want)
	}
	if !slices.Equal(req.Subject.Organization, []string{"system:nodes"}) {
		return fmt.Errorf("organization is %q, want system:nodes", req.Subject.Organization)
	}
	if n := len(req.DNSNames) + len(req.EmailAddresses) + len(req.IPAddresses) + len(req.URIs); n > 0 {
		return fmt.Errorf("%d subject alternative names, want none", n)
	}
	client := false
	for _, u := range s.Usages {
		switch u {
		case "digital signature", "key encipherment":
		case "client auth":
			client = true
		default:
			return fmt.Errorf("usage %q is not for a client certificate", u)
		}
	}
	if !client {
		return errors.New("usage client auth is missing")
	}
	return nil
}
