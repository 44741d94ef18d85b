package cluster

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sealift/sealift/attest/audit"
)

const (
	csrPath = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	// signer of the client certificates with which kubelets authenticate.
	signer = "kubernetes.io/kube-apiserver-client-kubelet"

	// lookUsed and lookUnused are how often a token's node is looked at: after
	// its request was approved, and before, when it can only become Ready with
	// a certificate that it still has.
	lookUsed   = time.Second
	lookUnused = 5 * time.Second
)

// retry is how long after a failure Run tries again to prepare the cluster.
const retry = 2 * time.Second

// Run prepares the cluster, approves requests, sees nodes become Ready and
// takes tokens back, until ctx ends. A cluster that cannot be reached is tried
// again. Tokens that are out at the end are taken up by the next Run.
func (c *Cluster) Run(ctx context.Context, events Events) error {
	for failed := false; ; failed = true {
		err := c.prepare(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		if !failed { // once, not each time
			c.c.Log.Error("cluster is not prepared for join tokens", "error", err)
		}
		if !sleep(ctx, retry) {
			return nil
		}
	}
	failing := false
	for {
		ts := c.outstanding()
		if len(ts) == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-c.wake:
			}
			continue
		}
		err := c.watch(ctx, events, ts)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			c.c.Log.Error("join tokens are not watched over", "error", err)
		} else if err == nil && failing {
			c.c.Log.Info("join tokens are watched over again")
		}
		failing = err != nil
		if !sleep(ctx, c.c.Poll) {
			return nil
		}
	}
}

// sleep waits, and reports false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// watch does one round over the tokens that are out.
func (c *Cluster) watch(ctx context.Context, events Events, ts []*token) error {
	errs := []error{c.approveAll(ctx, ts), c.findForeign(ctx, events, ts)}
	for _, t := range ts {
		errs = append(errs, c.attend(ctx, events, t))
	}
	return errors.Join(errs...)
}

// attend ends a token whose node is Ready or whose time is over, and tells its
// events.
func (c *Cluster) attend(ctx context.Context, events Events, t *token) error {
	now := c.c.Clock()
	t.mu.Lock()
	used, gone := t.used, t.gone
	t.mu.Unlock()
	over := !now.Before(t.expires)
	if !gone && (over || !now.Before(t.nextLook)) {
		t.nextLook = now.Add(lookUnused)
		if used {
			t.nextLook = now.Add(lookUsed)
		}
		if err := c.look(ctx, t); err != nil && !over {
			return err
		}
		t.mu.Lock()
		gone = t.gone
		t.mu.Unlock()
	}
	if !gone && over {
		if err := c.revoke(ctx, t, audit.TokenExpired, ""); err != nil {
			return err
		}
	}
	return c.tellAll(ctx, events, t)
}

// look sees what became of a token's node, and ends the token if it is Ready.
func (c *Cluster) look(ctx context.Context, t *token) error {
	registered, ready, err := c.node(ctx, t)
	if err != nil {
		return err
	}
	if ready {
		const reason = "node is ready"
		return c.end(ctx, t, t.event(audit.TokenJoined, reason), t.event(audit.TokenRevoked, reason))
	}
	if c.c.Distro.requests() {
		return nil
	}
	return c.supervise(ctx, t, registered)
}

// tellAll tells a token's events in their order, and forgets the token when it
// is gone and all is told.
func (c *Cluster) tellAll(ctx context.Context, events Events, t *token) error {
	for {
		t.mu.Lock()
		if len(t.events) == 0 {
			gone := t.gone
			t.mu.Unlock()
			if gone {
				c.mu.Lock()
				delete(c.out, t.id)
				c.mu.Unlock()
			}
			return nil
		}
		ev := t.events[0]
		t.mu.Unlock()
		if ev.alarm != nil {
			if err := events.TokenAlarm(ctx, t.node, *ev.alarm); err != nil {
				return fmt.Errorf("raise alarm %s for join token %s: %w", ev.alarm.Name, t.id, err)
			}
		} else if err := events.TokenEvent(ctx, ev.step); err != nil {
			return fmt.Errorf("tell that join token %s was %s: %w", t.id, ev.step.Event, err)
		}
		t.mu.Lock()
		t.events = t.events[1:]
		t.mu.Unlock()
	}
}

// node reports whether the token's node has registered, and is Ready, in
// another boot than the one in which the token was minted for it. The Node
// object of an earlier install can be there, and say Ready, for a while after
// that install is gone.
func (c *Cluster) node(ctx context.Context, t *token) (registered, ready bool, err error) {
	var n node
	err = c.api.do(ctx, "GET", nodesPath+"/"+t.node, nil, &n)
	if isStatus(err, 404) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("read node %s: %w", t.node, err)
	}
	boot := n.Status.NodeInfo.BootID
	registered = boot != "" && boot != t.previousBoot
	return registered, registered && n.ready(), nil
}

// approveAll looks at all signing requests for the tokens that are out.
func (c *Cluster) approveAll(ctx context.Context, ts []*token) error {
	var list csrList
	if err := c.api.do(ctx, "GET", csrPath+"?fieldSelector=spec.signerName%3D"+signer, nil, &list); err != nil {
		return fmt.Errorf("list signing requests: %w", err)
	}
	var errs []error
	for _, t := range ts {
		var mine []*csr
		for i := range list.Items {
			if list.Items[i].spec.Username == "system:bootstrap:"+t.id {
				mine = append(mine, &list.Items[i])
			}
		}
		if err := c.approve(ctx, t, mine); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// approve approves one of a token's requests, if it is what the token was
// minted for. A request for anything else ends the token with an alarm: its
// holder is not the node. So does one that somebody else approved although it
// is for something else: k0s's own approver takes any.
func (c *Cluster) approve(ctx context.Context, t *token, requests []*csr) error {
	t.mu.Lock()
	gone := t.gone
	t.mu.Unlock()
	if gone {
		return nil
	}
	var key []byte // of the approved request
	for _, r := range requests {
		if !r.has("Approved") {
			continue
		}
		parsed, err := c.check(&r.spec, t.node)
		if err == nil && key != nil && !bytes.Equal(key, parsed.RawSubjectPublicKeyInfo) {
			err = errors.New("another key has a certificate already")
		}
		if err != nil {
			return c.alarm(ctx, t, t.alarm(audit.AlarmTokenMisused, "was used for signing request %s, which the cluster approved by itself: %v", r.name, err))
		}
		key = parsed.RawSubjectPublicKeyInfo
		c.markUsed(t, "signing request "+r.name+" approved")
	}
	for _, r := range requests {
		if r.has("Approved") || r.has("Denied") || r.has("Failed") {
			continue
		}
		parsed, err := c.check(&r.spec, t.node)
		if err == nil && key != nil && !bytes.Equal(key, parsed.RawSubjectPublicKeyInfo) {
			err = errors.New("a request with another key was approved before")
		}
		if err != nil {
			return c.alarm(ctx, t, t.alarm(audit.AlarmTokenRefused, "was used for signing request %s, which was not approved: %v", r.name, err))
		}
		body, err := r.withApproval("SealiftAttested", "join token "+t.id+" was released to the attested machine "+t.node, c.c.Clock())
		if err != nil {
			return fmt.Errorf("approve signing request %s: %w", r.name, err)
		}
		err = c.api.do(ctx, "PUT", csrPath+"/"+r.name+"/approval", body, nil)
		if isStatus(err, 409) || isStatus(err, 404) {
			return nil // changed or gone since it was listed: seen again in the next round
		}
		if err != nil {
			return fmt.Errorf("approve signing request %s: %w", r.name, err)
		}
		key = parsed.RawSubjectPublicKeyInfo
		c.markUsed(t, "signing request "+r.name+" approved")
	}
	return nil
}

// check is the check of requests by the cluster's distro.
func (c *Cluster) check(s *csrSpec, nodeName string) (*x509.CertificateRequest, error) {
	if !c.c.Distro.requests() {
		return nil, fmt.Errorf("nodes of %s make no signing requests with their token", c.c.Distro)
	}
	return check(s, nodeName)
}

// markUsed notes, and tells, that a token was used.
func (c *Cluster) markUsed(t *token, how string) {
	t.mu.Lock()
	first := !t.used
	t.used = true
	if first {
		t.events = append(t.events, t.event(audit.TokenUsed, how))
	}
	t.mu.Unlock()
	if first {
		t.nextLook = time.Time{} // at once
		c.c.Log.Info("join token used", "token", t.id, "node", t.node, "how", how)
	}
}

// parseRequest reads a PEM certificate request.
func parseRequest(b []byte) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one PEM certificate request")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// check accepts the request for the client certificate of exactly one node:
//   - signer, and the group that our tokens authenticate as;
//   - subject CN=system:node:<name>, O=system:nodes and nothing else;
//   - no subject alternative names;
//   - usages client auth, digital signature, and key encipherment at most;
//   - a valid signature by the requested key.
func check(s *csrSpec, nodeName string) (*x509.CertificateRequest, error) {
	if s.SignerName != signer {
		return nil, fmt.Errorf("signer is %q, want %q", s.SignerName, signer)
	}
	if !slices.Contains(s.Groups, Group) {
		return nil, fmt.Errorf("the requestor is not of the group %s", Group)
	}
	r, err := parseRequest(s.Request)
	if err != nil {
		return nil, err
	}
	if want := "system:node:" + nodeName; r.Subject.CommonName != want {
		return nil, fmt.Errorf("common name is %q, want %q", r.Subject.CommonName, want)
	}
	if !slices.Equal(r.Subject.Organization, []string{"system:nodes"}) {
		return nil, fmt.Errorf("organization is %q, want system:nodes", r.Subject.Organization)
	}
	if len(r.Subject.Names) != 2 {
		return nil, fmt.Errorf("the subject has %d attributes, want 2", len(r.Subject.Names))
	}
	if n := len(r.DNSNames) + len(r.IPAddresses) + len(r.EmailAddresses) + len(r.URIs); n > 0 {
		return nil, fmt.Errorf("got %d subject alternative names, want none", n)
	}
	if !slices.Contains(s.Usages, "client auth") {
		return nil, errors.New("usage client auth is missing")
	}
	for _, u := range s.Usages {
		if u != "client auth" && u != "digital signature" && u != "key encipherment" {
			return nil, fmt.Errorf("usage %q is none of a kubelet's client certificate", u)
		}
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return r, nil
}
