// Package operator is an operator's side of the attestation service's API: it
// lists and changes machines, hands over install records, and reads the audit
// log. Operators authenticate by a client certificate or a token.
package operator

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// maxAnswer bounds an answer that is read whole, bytes. The list of a large
// fleet is the largest.
const maxAnswer = 256 << 20

// Client calls one attestation service. Make it with New.
type Client struct {
	base  *url.URL
	http  *http.Client
	token attest.Secret // nil if the operator has a certificate
}

// Config is what a Client needs. All fields are required unless marked
// Optional.
type Config struct {
	URL         string          // https://host[:port] of the operator API
	CA          *x509.CertPool  // that the service's certificate must lead to
	Certificate tls.Certificate // of the operator; with a Token there must be none
	Token       attest.Secret   // of an OpenID Connect issuer that the service trusts. Optional.
	// Timeout bounds each call but that of Audit. Optional; one minute.
	Timeout time.Duration
}

// Error is a failure that the service answered with.
type Error struct {
	Status int       // HTTP
	Answer api.Error // what the service said
}

func (e *Error) Error() string {
	s := fmt.Sprintf("attestation service: %s: %s", e.Answer.Code, e.Answer.Message)
	if e.Answer.Request != "" && e.Status >= http.StatusInternalServerError {
		s += " (request " + e.Answer.Request + " in its log)"
	}
	return s
}

// New returns a Client.
func New(c Config) (*Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("operator API: %w", err)
	}
	if u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("operator API: URL is %q, want https://host[:port]", u.Redacted())
	}
	if c.CA == nil {
		return nil, errors.New("operator API: no certificate authority")
	}
	if (len(c.Certificate.Certificate) == 0) == (len(c.Token) == 0) {
		return nil, errors.New("operator API: want one of client certificate and token")
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = time.Minute
	}
	u.Path = ""
	var certificates []tls.Certificate
	if len(c.Token) == 0 {
		certificates = []tls.Certificate{c.Certificate}
	}
	return &Client{base: u, token: c.Token, http: &http.Client{
		// The service sends nobody elsewhere, and a token is for it alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: timeout}).DialContext,
			TLSHandshakeTimeout:   timeout,
			ResponseHeaderTimeout: timeout,
			IdleConnTimeout:       time.Minute,
			TLSClientConfig: &tls.Config{
				RootCAs: c.CA, Certificates: certificates, MinVersion: tls.VersionTLS13,
			},
		}}}, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// maxWait bounds how long a call waits because the service said that there
// were too many.
const maxWait = time.Minute

// send makes a request and returns an answer with status 200, whose body the
// caller closes. One that came too fast, or when the service had no time, is made
// again when the service said: nothing was done for it.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("%s %s: encode request: %w", method, path, err)
		}
	}
	for waited := time.Duration(0); ; {
		resp, err := c.once(ctx, method, path, query, b)
		var wait time.Duration
		if err == nil {
			after, _ := strconv.Atoi(resp.Header.Get("Retry-After")) // 0 without
			wait = time.Duration(after) * time.Second
		}
		resp, err = c.answered(resp, err, method, path)
		var e *Error
		if !errors.As(err, &e) || e.Status != http.StatusTooManyRequests && e.Answer.Code != api.CodeBusy || wait <= 0 || waited+wait > maxWait {
			return resp, err
		}
		select {
		case <-time.After(wait):
			waited += wait
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// once makes a request.
func (c *Client) once(ctx context.Context, method, path string, query url.Values, body []byte) (*http.Response, error) {
	u := *c.base
	u.Path, u.RawQuery = path, query.Encode()
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if len(c.token) > 0 {
		req.Header.Set("Authorization", "Bearer "+string(c.token))
	}
	return c.http.Do(req)
}

// answered makes an error of an answer with another status than 200.
func (c *Client) answered(resp *http.Response, err error, method, path string) (*http.Response, error) {
	if err != nil {
		return nil, err // names method and URL
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	e := &Error{Status: resp.StatusCode}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, fmt.Errorf("%s %s: status %d: %w", method, path, resp.StatusCode, err)
	}
	if json.Unmarshal(b, &e.Answer) != nil || e.Answer.Code == "" {
		e.Answer = api.Error{Code: "http-" + strconv.Itoa(resp.StatusCode), Message: http.StatusText(resp.StatusCode)}
	}
	return nil, e
}

// call makes a request and decodes the answer into v.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, v any) error {
	b, err := c.fetch(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s %s: decode the service's answer: %w", method, path, err)
	}
	return nil
}

func (c *Client) fetch(ctx context.Context, method, path string, query url.Values, body any) ([]byte, error) {
	resp, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	return c.body(resp, method, path)
}

// body reads an answer whole.
func (c *Client) body(resp *http.Response, method, path string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, fmt.Errorf("%s %s: read the service's answer: %w", method, path, err)
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("%s %s: the service's answer is larger than %d bytes", method, path, maxAnswer)
	}
	return b, nil
}

// pages reads a list page by page.
func pages[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			var page []T
			next, err := c.page(ctx, path, query, &page)
			if err != nil {
				yield(*new(T), err)
				return
			}
			for _, v := range page {
				if !yield(v, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			query.Set("after", next)
		}
	}
}

// page reads one page of a list into v, and returns where the next one begins.
func (c *Client) page(ctx context.Context, path string, query url.Values, v any) (next string, err error) {
	resp, err := c.send(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return "", err
	}
	b, err := c.body(resp, http.MethodGet, path)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return "", fmt.Errorf("%s %s: decode the service's answer: %w", http.MethodGet, path, err)
	}
	next = resp.Header.Get(api.HeaderNext)
	if next != "" && next == query.Get("after") {
		return "", fmt.Errorf("%s %s: the service's answer has no end", http.MethodGet, path)
	}
	return next, nil
}

// AllMachines returns all machines, or those of one state, in the order of their
// ids, as they are read page by page. An error ends the sequence.
func (c *Client) AllMachines(ctx context.Context, state attest.EnrolmentState) iter.Seq2[api.Machine, error] {
	q := url.Values{}
	if state != attest.StateUnknown {
		q.Set("state", string(state))
	}
	return pages[api.Machine](ctx, c, api.PathMachines, q)
}

// Machines returns all machines, or those of one state.
func (c *Client) Machines(ctx context.Context, state attest.EnrolmentState) ([]api.Machine, error) {
	return all(c.AllMachines(ctx, state))
}

// MachinesLike returns the machines whose ids begin with these hex digits, at most 64.
func (c *Client) MachinesLike(ctx context.Context, digits string) iter.Seq2[api.Machine, error] {
	return func(yield func(api.Machine, error) bool) {
		first, err := attest.ParseMachineID(digits + strings.Repeat("0", max(2*len(attest.MachineID{})-len(digits), 0)))
		if err != nil {
			yield(api.Machine{}, err)
			return
		}
		q := url.Values{}
		if before := new(big.Int).SetBytes(first[:]); before.Sign() > 0 { // a list begins after an id
			before.Sub(before, big.NewInt(1)).FillBytes(first[:])
			q.Set("after", first.String())
		}
		for m, err := range pages[api.Machine](ctx, c, api.PathMachines, q) {
			if err == nil && !strings.HasPrefix(m.ID.String(), digits) {
				return
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

func all[T any](seq iter.Seq2[T, error]) (out []T, err error) {
	for v, err := range seq {
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// Machine returns one machine.
func (c *Client) Machine(ctx context.Context, id attest.MachineID) (*api.Machine, error) {
	m := new(api.Machine)
	if err := c.call(ctx, http.MethodGet, api.PathMachines+"/"+id.String(), nil, nil, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Approve enrols a pending machine.
func (c *Client) Approve(ctx context.Context, id attest.MachineID, reason string) (*api.Machine, error) {
	return c.setState(ctx, id, "approve", reason)
}

// Revoke keeps a machine from getting secrets, from its next request on.
func (c *Client) Revoke(ctx context.Context, id attest.MachineID, reason string) (*api.Machine, error) {
	return c.setState(ctx, id, "revoke", reason)
}

// Quarantine keeps a machine from getting secrets until it was inspected, from
// its next request on.
func (c *Client) Quarantine(ctx context.Context, id attest.MachineID, reason string) (*api.Machine, error) {
	return c.setState(ctx, id, "quarantine", reason)
}

// Reinstate enrols a revoked or quarantined machine again.
func (c *Client) Reinstate(ctx context.Context, id attest.MachineID, reason string) (*api.Machine, error) {
	return c.setState(ctx, id, "reinstate", reason)
}

// ReEnrol gives the node name and the serial number of a machine to another
// endorsement key, and revokes the machine.
func (c *Client) ReEnrol(ctx context.Context, old, next attest.MachineID, reason string) (*api.Machine, error) {
	m := new(api.Machine)
	if err := c.call(ctx, http.MethodPost, api.PathMachines+"/"+old.String()+"/re-enrol", nil, api.ReEnrol{New: next, Reason: reason}, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Expected returns the machines that were enrolled beforehand.
func (c *Client) Expected(ctx context.Context) ([]api.Expected, error) {
	return all(c.AllExpected(ctx))
}

// AllExpected is Expected, as it is read page by page. An error ends the sequence.
func (c *Client) AllExpected(ctx context.Context) iter.Seq2[api.Expected, error] {
	return pages[api.Expected](ctx, c, api.PathExpected, url.Values{})
}

// Expect enrols at most api.MaxExpected machines beforehand, or checks whether
// that can be done.
func (c *Client) Expect(ctx context.Context, list *api.ExpectedList) (*api.ExpectedAnswer, error) {
	out := new(api.ExpectedAnswer)
	if err := c.call(ctx, http.MethodPost, api.PathExpected, nil, list, out); err != nil {
		return nil, err
	}
	if len(out.Results) != len(list.Machines) {
		return nil, fmt.Errorf("the service answered for %d machines of %d", len(out.Results), len(list.Machines))
	}
	return out, nil
}

// Rejoin has an enrolled machine's next release hold a join token again.
func (c *Client) Rejoin(ctx context.Context, id attest.MachineID, reason string) (*api.Machine, error) {
	return c.setState(ctx, id, "rejoin", reason)
}

func (c *Client) setState(ctx context.Context, id attest.MachineID, verb, reason string) (*api.Machine, error) {
	m := new(api.Machine)
	if err := c.call(ctx, http.MethodPost, api.PathMachines+"/"+id.String()+"/"+verb, nil, api.StateChange{Reason: reason}, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Restore returns what is known of the last restore of the service's store.
func (c *Client) Restore(ctx context.Context) (*api.RestoreStatus, error) {
	s := new(api.RestoreStatus)
	if err := c.call(ctx, http.MethodGet, api.PathRestore, nil, nil, s); err != nil {
		return nil, err
	}
	return s, nil
}

// AcceptRestore lets a service that was restored from a backup release secrets
// again.
func (c *Client) AcceptRestore(ctx context.Context, reason string) (*api.RestoreStatus, error) {
	s := new(api.RestoreStatus)
	if err := c.call(ctx, http.MethodPost, api.PathRestore+"/accept", nil, api.StateChange{Reason: reason}, s); err != nil {
		return nil, err
	}
	return s, nil
}

// SettleRestore has a service that was restored from a backup take machines that
// it does not know as new.
func (c *Client) SettleRestore(ctx context.Context, reason string) (*api.RestoreStatus, error) {
	s := new(api.RestoreStatus)
	if err := c.call(ctx, http.MethodPost, api.PathRestore+"/settle", nil, api.StateChange{Reason: reason}, s); err != nil {
		return nil, err
	}
	return s, nil
}

// Install hands over an install record, which enrols the machine.
func (c *Client) Install(ctx context.Context, rec *api.InstallRecord) (*api.Machine, error) {
	m := new(api.Machine)
	if err := c.call(ctx, http.MethodPost, api.PathInstalls, nil, rec, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Audit returns the audit log from entry from on (1 is the first), of one
// machine if that is set. The entries are not verified: give them to
// audit.Verifier, or to audit.Build. An error ends the sequence.
func (c *Client) Audit(ctx context.Context, from int64, machine attest.MachineID) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		q := url.Values{"from": {strconv.FormatInt(from, 10)}}
		if !machine.IsZero() {
			q.Set("machine", machine.String())
		}
		resp, err := c.send(ctx, http.MethodGet, api.PathAudit, q, nil)
		if err != nil {
			yield(audit.Entry{}, err)
			return
		}
		// What was read is what counts.
		defer func() { _ = resp.Body.Close() }()
		for e, err := range audit.Lines(resp.Body) {
			if !yield(e, err) {
				return
			}
		}
	}
}

// AuditHead returns where the audit log ends, signed by the service. The signature is
// not verified here: an operator does not have the service's key.
func (c *Client) AuditHead(ctx context.Context) (*audit.Envelope, error) {
	e := new(audit.Envelope)
	if err := c.call(ctx, http.MethodGet, api.PathAuditHead, nil, nil, e); err != nil {
		return nil, err
	}
	return e, nil
}

// Evidence returns the stored evidence of that digest, as api.StoredEvidence
// in JSON.
func (c *Client) Evidence(ctx context.Context, digest manifest.SHA256) ([]byte, error) {
	return c.fetch(ctx, http.MethodGet, api.PathEvidenceLog+"/"+digest.String(), nil, nil)
}

// Store returns what the service's store holds, and what pruning evidence that is
// older would do now, if that is not zero. It writes nothing.
func (c *Client) Store(ctx context.Context, older time.Duration) (*api.StoreStatus, error) {
	q := url.Values{}
	if older != 0 {
		q.Set("older", strconv.FormatInt(int64(older/time.Second), 10))
	}
	st := new(api.StoreStatus)
	if err := c.call(ctx, http.MethodGet, api.PathStore, q, nil, st); err != nil {
		return nil, err
	}
	return st, nil
}

// Prune has the service remove old evidence, or count it. It returns how far that
// is, about once a second; the last report is Done, and an answer without it is
// an error. An error ends the sequence.
func (c *Client) Prune(ctx context.Context, req *api.PruneRequest) iter.Seq2[api.PruneReport, error] {
	return func(yield func(api.PruneReport, error) bool) {
		resp, err := c.send(ctx, http.MethodPost, api.PathStore+"/prune", nil, req)
		if err != nil {
			yield(api.PruneReport{}, err)
			return
		}
		// What was read is what counts.
		defer func() { _ = resp.Body.Close() }()
		for d := json.NewDecoder(resp.Body); ; {
			var r api.PruneReport
			if err := d.Decode(&r); err != nil {
				yield(api.PruneReport{}, fmt.Errorf("the service's answer was cut short: %w", err))
				return
			}
			if !yield(r, nil) || r.Done {
				return
			}
		}
	}
}

// Campaigns returns all firmware campaigns in JSON.
func (c *Client) Campaigns(ctx context.Context) ([]json.RawMessage, error) {
	var out []json.RawMessage
	err := c.call(ctx, http.MethodGet, api.PathCampaigns, nil, nil, &out)
	return out, err
}

// Campaign returns one firmware campaign in JSON.
func (c *Client) Campaign(ctx context.Context, name string) (json.RawMessage, error) {
	return c.fetch(ctx, http.MethodGet, api.PathCampaigns+"/"+name, nil, nil)
}

// PostCampaign starts or changes a firmware campaign and returns the answer.
func (c *Client) PostCampaign(ctx context.Context, campaign any) (json.RawMessage, error) {
	return c.fetch(ctx, http.MethodPost, api.PathCampaigns, nil, campaign)
}

// Explanation explains the stored evidence of that digest: under the present
// policy of the service, or under a proposal if that is not nil.
func (c *Client) Explanation(ctx context.Context, digest manifest.SHA256, proposal *api.PolicyProposal) (*attest.Explanation, error) {
	path, x := api.PathEvidenceLog+"/"+digest.String()+"/explanation", new(attest.Explanation)
	method, body := http.MethodGet, any(nil)
	if proposal != nil {
		method, body = http.MethodPost, proposal
	}
	if err := c.call(ctx, method, path, nil, body, x); err != nil {
		return nil, err
	}
	return x, nil
}

// Policy returns the policy that the service has enabled.
func (c *Client) Policy(ctx context.Context) (*api.PolicyState, error) {
	p := new(api.PolicyState)
	if err := c.call(ctx, http.MethodGet, api.PathPolicy, nil, nil, p); err != nil {
		return nil, err
	}
	return p, nil
}

// EnablePolicy makes a policy that of all replicas of the service.
func (c *Client) EnablePolicy(ctx context.Context, req *api.PolicyEnable) (*api.PolicyState, error) {
	p := new(api.PolicyState)
	if err := c.call(ctx, http.MethodPost, api.PathPolicy+"/enable", nil, req, p); err != nil {
		return nil, err
	}
	return p, nil
}

// WhatIf tries a proposal against the stored evidence of all machines. The last
// line is the summary; an answer without it is an error. An error ends the
// sequence.
func (c *Client) WhatIf(ctx context.Context, proposal *api.PolicyProposal) iter.Seq2[api.WhatIf, error] {
	return func(yield func(api.WhatIf, error) bool) {
		resp, err := c.send(ctx, http.MethodPost, api.PathPolicy+"/whatif", nil, proposal)
		if err != nil {
			yield(api.WhatIf{}, err)
			return
		}
		// What was read is what counts.
		defer func() { _ = resp.Body.Close() }()
		for d := json.NewDecoder(resp.Body); ; {
			var line api.WhatIf
			if err := d.Decode(&line); err != nil {
				yield(api.WhatIf{}, fmt.Errorf("the service's answer was cut short: %w", err))
				return
			}
			if !yield(line, nil) || line.Summary != nil {
				return
			}
		}
	}
}
