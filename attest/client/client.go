// Package client is a node's side of the attestation protocol. Connect opens
// the one TLS connection that a Session is: its exporter is signed by the TPM
// with the evidence, so challenge and evidence must go over it and nothing here
// ever dials again in between. A confirmation goes over it too while it lasts.
//
// The connection is HTTP/1.1 over TLS 1.3. What the service says is believed
// only as far as its release key signed it.
package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
)

// maxAnswer bounds an answer's body, and maxAnswerHeader what is around it,
// bytes.
const (
	maxAnswer       = 4 << 20
	maxAnswerHeader = 64 << 10
)

// Client knows one attestation service. All fields are required unless marked
// Optional. It can be used by many goroutines.
type Client struct {
	URL        string           // https://host[:port] of the node API
	CA         *x509.CertPool   // that the service's certificate must lead to
	ReleaseKey *ecdsa.PublicKey // that releases must be signed with

	// Dial opens the TCP connection. Optional; net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout bounds the handshake and each exchange. Optional; 30 s.
	Timeout time.Duration
	// Patience is for how long a Session waits, in each call, to ask again over
	// its connection when the service has no room for a request and said when to
	// come back. Another connection would be another handshake and another quote.
	// Optional; not at all.
	Patience time.Duration
}

// RefusedError is the service's verdict on evidence that it did not accept.
type RefusedError struct {
	Result *attest.Result
}

func (e *RefusedError) Error() string {
	if len(e.Result.Findings) == 0 {
		return "evidence refused without a finding"
	}
	f := e.Result.Findings[0]
	more := ""
	if n := len(e.Result.Findings) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more findings)", n)
	}
	return fmt.Sprintf("evidence refused: %s: %s%s", f.Code, f.Message, more)
}

// ServiceError is any other failure that the service answered with.
type ServiceError struct {
	Status     int           // HTTP
	Answer     api.Error     // what the service said
	RetryAfter time.Duration // 0 if the service did not say
}

func (e *ServiceError) Error() string {
	s := fmt.Sprintf("attestation service: %s: %s", e.Answer.Code, e.Answer.Message)
	if e.Answer.Hint != "" {
		s += " (" + e.Answer.Hint + ")"
	}
	if e.Answer.Request != "" {
		s += " (request " + e.Answer.Request + ")"
	}
	return s
}

// Session is one connection to the service. It is used by one goroutine.
type Session struct {
	client   *Client
	host     string
	timeout  time.Duration
	conn     *tls.Conn
	in       *io.LimitedReader // of conn; one answer at a time
	r        *bufio.Reader     // of in
	exporter []byte
	broken   error // after which the connection is of no use
}

// Connect dials the service and completes the TLS handshake.
func (c *Client) Connect(ctx context.Context) (*Session, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("connect to the attestation service: %w", err)
	}
	switch {
	case u.Scheme != "https" || u.Hostname() == "":
		return nil, fmt.Errorf("connect to the attestation service: URL is %q, want https://host[:port]", c.URL)
	case u.User != nil || u.RawQuery != "" || u.Path != "" && u.Path != "/":
		return nil, fmt.Errorf("connect to the attestation service: URL %q has more than https://host[:port]", u.Redacted())
	case c.CA == nil:
		return nil, errors.New("connect to the attestation service: no certificate authority")
	case c.ReleaseKey == nil:
		return nil, errors.New("connect to the attestation service: no release key")
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	address := net.JoinHostPort(u.Hostname(), port)
	timeout := c.Timeout
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to the attestation service: %w", err)
	}
	conn := tls.Client(raw, &tls.Config{
		RootCAs:    c.CA,
		ServerName: u.Hostname(),
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("connect to the attestation service at %s: %w", address, errors.Join(err, raw.Close()))
	}
	state := conn.ConnectionState()
	exporter, err := state.ExportKeyingMaterial(api.ExporterLabel, nil, api.ExporterLength)
	if err != nil {
		return nil, fmt.Errorf("connect to the attestation service at %s: channel binding: %w", address, errors.Join(err, conn.Close()))
	}
	in := &io.LimitedReader{R: conn}
	return &Session{client: c, host: u.Host, timeout: timeout, conn: conn, in: in, r: bufio.NewReader(in), exporter: exporter}, nil
}

// Exporter returns the connection's tls-exporter channel binding (RFC 9266),
// for the evidence's qualifying data.
func (s *Session) Exporter() []byte { return slices.Clone(s.exporter) }

// Close ends the connection.
func (s *Session) Close() error {
	if err := s.conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil // the service had ended it
}

// Challenge asks for a challenge and checks that it is one that this agent can
// answer.
func (s *Session) Challenge(ctx context.Context, req *api.ChallengeRequest) (*api.Challenge, error) {
	ch := new(api.Challenge)
	if err := s.post(ctx, api.PathChallenge, req, ch, nil); err != nil {
		return nil, fmt.Errorf("ask for a challenge: %w", err)
	}
	if s.broken != nil {
		// The service ends. What the TPM would do now would be for nothing.
		return nil, fmt.Errorf("ask for a challenge: it cannot be answered: %w", s.broken)
	}
	switch {
	case ch.ID == "" || len(ch.ID) > 64:
		return nil, fmt.Errorf("ask for a challenge: its id has %d characters, want 1 to 64", len(ch.ID))
	case len(ch.Nonce) != 32:
		return nil, fmt.Errorf("ask for a challenge: its nonce has %d bytes, want 32", len(ch.Nonce))
	case !slices.Equal(ch.PCRs, attest.PolicyPCRs()):
		return nil, fmt.Errorf("ask for a challenge: the service wants PCRs %v, this agent quotes %v", ch.PCRs, attest.PolicyPCRs())
	}
	return ch, nil
}

// ProveKey answers a challenge of this session only with the proof that its
// endorsement key is in one TPM with the attestation key.
func (s *Session) ProveKey(ctx context.Context, req *api.KeyRequest) error {
	if err := s.post(ctx, api.PathKey, req, &struct{}{}, nil); err != nil {
		return fmt.Errorf("prove an endorsement key: %w", err)
	}
	return nil
}

// Evidence sends evidence for a challenge of this session. It returns the
// release only if the release key signed it for this challenge and this
// machine. The result is the service's word, for people to read. A verdict
// against the machine is a *RefusedError.
func (s *Session) Evidence(ctx context.Context, machine attest.MachineID, req *api.EvidenceRequest) (*api.Release, *attest.Result, error) {
	resp := new(api.EvidenceResponse)
	refused := new(api.EvidenceResponse)
	err := s.post(ctx, api.PathEvidence, req, resp, refused)
	if err != nil {
		return nil, nil, fmt.Errorf("send evidence: %w", err)
	}
	if refused.Result != nil {
		return nil, refused.Result, &RefusedError{Result: refused.Result}
	}
	if resp.Release == nil {
		return nil, resp.Result, errors.New("send evidence: the service answered without a release")
	}
	r, err := api.VerifyRelease(resp.Release, s.client.ReleaseKey)
	if err != nil {
		return nil, resp.Result, fmt.Errorf("the service's answer to the evidence: %w", err)
	}
	if r.ChallengeID != req.ChallengeID {
		return nil, resp.Result, fmt.Errorf("release %s is for challenge %s, this is challenge %s", r.ID, r.ChallengeID, req.ChallengeID)
	}
	if r.Machine != machine {
		return nil, resp.Result, fmt.Errorf("release %s is for machine %s, this is machine %s", r.ID, r.Machine, machine)
	}
	return r, resp.Result, nil
}

// Report sends a report for a challenge of this session. after is when the
// service wants the next one, 0 if it did not say. A verdict against the
// machine is a *RefusedError.
func (s *Session) Report(ctx context.Context, req *api.EvidenceRequest) (after time.Duration, err error) {
	resp := new(api.EvidenceResponse)
	refused := new(api.EvidenceResponse)
	if err := s.post(ctx, api.PathEvidence, req, resp, refused); err != nil {
		return 0, fmt.Errorf("send report: %w", err)
	}
	if refused.Result != nil {
		return 0, &RefusedError{Result: refused.Result}
	}
	if resp.Result == nil || !resp.Result.Allowed {
		return 0, errors.New("send report: the service answered without accepting it")
	}
	return time.Duration(min(max(0, resp.ReportAfter), api.MaxReportAfter)) * time.Second, nil
}

// Confirm tells the service how a release of this session ended:
// api.OutcomeUnlocked, or an error text, which is cut to what the service
// takes. The connection may have gone since, with a NAT that forgot it or a
// service that was started again, or that ends: then it dials anew, and leaves at least half
// of ctx's time for that. The service takes a confirmation twice.
func (s *Session) Confirm(ctx context.Context, transport attest.Secret, releaseID, outcome string) error {
	half, cancel := ctx, func() {}
	if deadline, ok := ctx.Deadline(); ok {
		half, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
	}
	err := s.confirm(half, transport, releaseID, outcome)
	cancel()
	var answered *ServiceError
	if err == nil || ctx.Err() != nil || errors.As(err, &answered) && !(answered.Status == http.StatusServiceUnavailable && s.broken != nil) {
		return err
	}
	return s.client.Confirm(ctx, transport, releaseID, outcome)
}

// Confirm is Session.Confirm over a connection of its own.
func (c *Client) Confirm(ctx context.Context, transport attest.Secret, releaseID, outcome string) error {
	s, err := c.Connect(ctx)
	if err != nil {
		return fmt.Errorf("confirm release %s: %w", releaseID, err)
	}
	// The answer is what counts, not how the connection ends.
	defer func() { _ = s.Close() }()
	return s.confirm(ctx, transport, releaseID, outcome)
}

func (s *Session) confirm(ctx context.Context, transport attest.Secret, releaseID, outcome string) error {
	if len(outcome) > api.MaxOutcome {
		outcome = string(bytes.ToValidUTF8([]byte(outcome[:api.MaxOutcome]), nil))
	}
	req := &api.ConfirmRequest{ReleaseID: releaseID, Outcome: outcome, Proof: api.ConfirmProof(transport, releaseID, outcome)}
	if err := s.post(ctx, api.PathConfirm, req, &struct{}{}, nil); err != nil {
		return fmt.Errorf("confirm release %s: %w", releaseID, err)
	}
	return nil
}

// post makes one exchange, and makes it again while the service has no room for
// it. An answer with status 200 is decoded into ok, one with status 403 that has
// a result into refused, if that is not nil; any other is a *ServiceError.
func (s *Session) post(ctx context.Context, path string, req, ok any, refused *api.EvidenceResponse) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	patience, cancel := context.WithTimeout(ctx, s.client.Patience)
	defer cancel()
	var before error
	for {
		err := s.once(ctx, path, body, ok, refused)
		if before != nil && refused != nil && outlived(refused.Result) {
			// The challenge ran out in the meantime, or the service has none open
			// any more: no verdict on the machine.
			return before
		}
		var e *ServiceError
		if !errors.As(err, &e) || s.broken != nil || !e.again() || !pause(patience, e.RetryAfter) {
			return err
		}
		before = err
	}
}

// outlived reports whether evidence was refused only because its challenge is
// not open.
func outlived(r *attest.Result) bool {
	return r != nil && len(r.Findings) == 1 && r.Findings[0].Code == attest.CodeChallenge
}

// again reports whether the service refused a request before it did anything
// for it, and said when to come back.
func (e *ServiceError) again() bool {
	return e.RetryAfter > 0 && (e.Answer.Code == api.CodeBusy || e.Answer.Code == api.CodeRateLimited)
}

// pause waits for d and up to a quarter more, so that not all come back at once,
// and reports whether ctx lasted.
func pause(ctx context.Context, d time.Duration) bool {
	d += rand.N(d/4 + 1)
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// once makes one exchange, see post.
func (s *Session) once(ctx context.Context, path string, body []byte, ok any, refused *api.EvidenceResponse) error {
	if s.broken != nil {
		return fmt.Errorf("the connection is of no use since an earlier error: %w", s.broken)
	}
	status, header, answer, err := s.exchange(ctx, path, body)
	if err != nil {
		s.broken = err
		return err
	}
	switch {
	case status == http.StatusOK:
		// Fields of a newer service are passed over.
		if err := json.Unmarshal(answer, ok); err != nil {
			return fmt.Errorf("decode the service's answer: %w", err)
		}
		return nil
	case status == http.StatusForbidden && refused != nil:
		if err := json.Unmarshal(answer, refused); err == nil && refused.Result != nil {
			return nil
		}
	}
	e := &ServiceError{Status: status}
	if err := json.Unmarshal(answer, &e.Answer); err != nil || e.Answer.Code == "" {
		e.Answer = api.Error{Code: "http-" + strconv.Itoa(status), Message: http.StatusText(status)}
	}
	if n, err := strconv.Atoi(header.Get("Retry-After")); err == nil && n > 0 && n <= 3600 {
		e.RetryAfter = time.Duration(n) * time.Second
	}
	return e
}

// exchange sends one request over the session's connection and reads the
// answer whole.
func (s *Session) exchange(ctx context.Context, path string, body []byte) (status int, header http.Header, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	// A deadline in the past ends a read or write that is under way.
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil && ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.host+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "sealift-agent")
	// A service that has no room for a long body answers before it has read it,
	// and what is written then fails. Nothing more is waited for: what ends the
	// write ends the read.
	unwritten := req.Write(s.conn)
	s.in.N = maxAnswerHeader
	resp, err := http.ReadResponse(s.r, req)
	if err != nil && unwritten != nil {
		return 0, nil, nil, fmt.Errorf("write request: %w", unwritten)
	}
	if err != nil {
		return 0, nil, nil, fmt.Errorf("read answer: %w", err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	s.in.N += maxAnswer
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return 0, nil, nil, fmt.Errorf("read answer: %w", err)
	}
	if len(answer) > maxAnswer {
		return 0, nil, nil, fmt.Errorf("read answer: larger than %d bytes", maxAnswer)
	}
	if resp.Close || unwritten != nil {
		s.broken = errors.New("the service closed the connection")
		// It waits for this end before it ends itself. How it goes does not matter.
		_ = s.conn.Close()
	}
	return resp.StatusCode, resp.Header, answer, nil
}
