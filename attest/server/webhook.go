package server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
)

// Types of events that have another name than the kind of their entry.
const (
	EventQuarantined      = "machine.quarantined"
	EventStale            = "machine.stale"
	EventFresh            = "machine.fresh"
	EventEvidenceAccepted = "evidence.accepted"
	EventEvidenceRefused  = "evidence.refused"
	EventReportAccepted   = "report.accepted"
	EventReportRefused    = "report.refused"
)

// EventTypes returns what a Webhook can ask for.
func EventTypes() []string {
	return []string{
		EventQuarantined, EventStale, EventFresh, string(audit.KindState), string(audit.KindAlarm),
		EventEvidenceAccepted, EventEvidenceRefused, EventReportAccepted, EventReportRefused,
		string(audit.KindRelease), string(audit.KindConfirm), string(audit.KindInstall), string(audit.KindExpected), string(audit.KindToken),
		string(audit.KindCampaign), string(audit.KindPolicy), string(audit.KindRecovery), string(audit.KindDiskKey), string(audit.KindKEK),
		string(audit.KindRestore), string(audit.KindAcceptRestore), string(audit.KindPrune), string(audit.KindChallengeRefused), string(audit.KindStart),
	}
}

// defaultEvents are those for which somebody should look.
func defaultEvents() []string {
	return []string{EventQuarantined, EventStale, EventFresh, string(audit.KindState), string(audit.KindAlarm)}
}

// Webhook is a receiver of events: entries of the audit log, as HTTP requests
// in the form of Standard Webhooks (standardwebhooks.com), version 1.
type Webhook struct {
	// URL to POST to: https, or http to this machine's loopback. It names the
	// webhook: how far it got is kept with it.
	URL string
	// Secrets that each request is signed with, at least one. With two, the
	// receiver can change from one to the other.
	Secrets []attest.Secret
	// Events are the types that are sent. Optional; those for which somebody
	// should look.
	Events []string
	// CA that the receiver's certificate must lead to. Optional; the system's.
	CA *x509.CertPool
}

// Bounds of webhooks.
const (
	minWebhookSecret   = 24 // bytes; Standard Webhooks wants 24 to 64
	maxWebhookSecrets  = 4
	maxWebhookDetails  = 64 << 10 // of an entry's data that is sent as it is, bytes
	maxWebhookAnswer   = 4 << 10
	maxWebhookFindings = 10
	// scanSave is after how many entries that are not sent the cursor is saved
	// all the same.
	scanSave = 5000
)

// ParseWebhookSecrets reads a file of secrets, one a line: "whsec_" and base64,
// as Standard Webhooks writes them, or any other text, which is the secret
// itself.
func ParseWebhookSecrets(b []byte) ([]attest.Secret, error) {
	var all []attest.Secret
	n := 0
	for line := range bytes.Lines(b) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		secret := attest.Secret(bytes.Clone(line))
		if text, ok := bytes.CutPrefix(line, []byte("whsec_")); ok {
			var err error
			if secret, err = base64.StdEncoding.DecodeString(string(text)); err != nil {
				// The decoder's error may quote what it read.
				return nil, fmt.Errorf("line %d: what follows whsec_ is not base64", n)
			}
		}
		if len(secret) < minWebhookSecret {
			return nil, fmt.Errorf("line %d: a secret of %d bytes, want at least %d", n, len(secret), minWebhookSecret)
		}
		all = append(all, secret)
	}
	if len(all) == 0 || len(all) > maxWebhookSecrets {
		return nil, fmt.Errorf("%d secrets, want 1 to %d", len(all), maxWebhookSecrets)
	}
	return all, nil
}

// hookTimes are the times of webhooks.
type hookTimes struct {
	poll    time.Duration // how often the log is looked at
	lease   time.Duration // for how long a replica is the one that delivers
	timeout time.Duration // of one request
	first   time.Duration // the pause after the first failure
	max     time.Duration // the longest pause
}

// hook is a Webhook that is delivered.
type hook struct {
	Webhook
	name   string // of its document
	shown  string // for logs: the URL's scheme and host
	client *http.Client
	holder string
	times  hookTimes

	// Of the goroutine that delivers.
	scanned int64     // entries before it are not to be sent
	failing bool      // was logged
	seen    int64     // revision of the cursor when another replica's lease was first seen
	seenAt  time.Time // when that was
}

// newHooks checks the webhooks. No error names a secret, nor a URL's path,
// which may be one.
func newHooks(all []Webhook) ([]*hook, error) {
	holder, err := randomID()
	if err != nil {
		return nil, err
	}
	var hooks []*hook
	for i, w := range all {
		h, err := newHook(w)
		if err != nil {
			return nil, fmt.Errorf("webhook %d: %w", i+1, err)
		}
		if slices.ContainsFunc(hooks, func(o *hook) bool { return o.name == h.name }) {
			return nil, fmt.Errorf("webhook %d: its URL is there twice", i+1)
		}
		h.holder = holder
		hooks = append(hooks, h)
	}
	return hooks, nil
}

func newHook(w Webhook) (*hook, error) {
	u, err := url.Parse(w.URL)
	if err != nil {
		return nil, errors.New("its URL cannot be read")
	}
	plain := u.Scheme == "http" && isLoopback(u.Hostname())
	switch {
	case u.Hostname() == "" || u.Scheme != "https" && !plain:
		return nil, fmt.Errorf("its URL is %s://%s..., want https, or http to loopback", u.Scheme, u.Host)
	case u.User != nil || u.Fragment != "":
		return nil, errors.New("its URL has a user or a fragment")
	case len(w.Secrets) == 0 || len(w.Secrets) > maxWebhookSecrets:
		return nil, fmt.Errorf("it has %d secrets, want 1 to %d", len(w.Secrets), maxWebhookSecrets)
	}
	for _, s := range w.Secrets {
		if len(s) < minWebhookSecret {
			return nil, fmt.Errorf("a secret of %d bytes, want at least %d", len(s), minWebhookSecret)
		}
	}
	if len(w.Events) == 0 {
		w.Events = defaultEvents()
	}
	for _, e := range w.Events {
		if !slices.Contains(EventTypes(), e) {
			return nil, fmt.Errorf("unknown event %q, want some of %s", e, strings.Join(EventTypes(), ", "))
		}
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	if plain {
		// Whatever the name localhost is made to mean.
		dialer.Control = func(_, address string, _ syscall.RawConn) error {
			if a, err := netip.ParseAddrPort(address); err != nil || !a.Addr().IsLoopback() {
				return fmt.Errorf("%s is not loopback", address)
			}
			return nil
		}
	}
	name := sha256.Sum256([]byte(w.URL))
	return &hook{
		Webhook: w, name: hex.EncodeToString(name[:16]), shown: u.Scheme + "://" + u.Host,
		client: &http.Client{
			// No proxy of the environment, no redirect: a receiver is who the
			// configuration says, and sends this service nowhere else.
			Transport: &http.Transport{
				DialContext: dialer.DialContext, TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: time.Minute, MaxIdleConns: 1,
				MaxResponseHeaderBytes: 16 << 10, TLSClientConfig: &tls.Config{RootCAs: w.CA, MinVersion: tls.VersionTLS12},
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		times: hookTimes{poll: 2 * time.Second, lease: 30 * time.Second, timeout: 10 * time.Second, first: time.Second, max: 5 * time.Minute},
	}, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// eventType returns the type of event that an entry is.
func eventType(e *audit.Entry) string {
	var d struct {
		From, To attest.EnrolmentState
		Stale    bool
		Result   *struct{ Allowed bool }
	}
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return string(e.Kind)
	}
	allowed := d.Result != nil && d.Result.Allowed
	switch {
	case e.Kind == audit.KindState && d.To == attest.StateQuarantined && d.From != d.To:
		return EventQuarantined
	case e.Kind == audit.KindStale && !d.Stale:
		return EventFresh
	case e.Kind == audit.KindStale:
		return EventStale
	case e.Kind == audit.KindVerdict && allowed:
		return EventEvidenceAccepted
	case e.Kind == audit.KindVerdict:
		return EventEvidenceRefused
	case e.Kind == audit.KindReport && allowed:
		return EventReportAccepted
	case e.Kind == audit.KindReport:
		return EventReportRefused
	}
	return string(e.Kind)
}

// event is the body of a request.
type event struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"` // of the entry
	Data      eventData `json:"data"`
}

type eventData struct {
	Seq     int64            `json:"seq"` // of the audit log
	Kind    audit.Kind       `json:"kind"`
	Machine attest.MachineID `json:"machine,omitzero"`
	Hash    string           `json:"hash"` // of the entry
	// Details is the entry's data, without the facts of a verdict, and only
	// the beginning of its findings.
	Details   json.RawMessage `json:"details,omitempty"`
	Truncated bool            `json:"truncated,omitempty"`
}

// eventBody returns the body of the request that tells of an entry.
func eventBody(typ string, e *audit.Entry) ([]byte, error) {
	d := eventData{Seq: e.Seq, Kind: e.Kind, Machine: e.Machine, Hash: e.Hash.String(), Details: e.Data}
	var verdict struct {
		Address string         `json:"address,omitempty"`
		Genuine *bool          `json:"genuine,omitempty"`
		Result  *attest.Result `json:"result,omitempty"`
	}
	if e.Kind == audit.KindVerdict || e.Kind == audit.KindReport {
		// One that cannot be read, of a later program, must not hold up the others.
		err := json.Unmarshal(e.Data, &verdict)
		if r := verdict.Result; err == nil && r != nil {
			r.Facts = []attest.Fact{}
			if len(r.Findings) > maxWebhookFindings {
				r.Findings, d.Truncated = r.Findings[:maxWebhookFindings], true
			}
		}
		if err == nil {
			d.Details, err = json.Marshal(verdict)
		}
		if err != nil {
			d.Details, d.Truncated = nil, true
		}
	}
	if len(d.Details) > maxWebhookDetails {
		d.Details, d.Truncated = nil, true
	}
	return json.Marshal(event{Type: typ, Timestamp: e.Time, Data: d})
}

// eventID is the same for each attempt to send an entry, by each replica.
func eventID(e *audit.Entry) string { return fmt.Sprintf("sealift_%d_%x", e.Seq, e.Hash[:8]) }

// sign returns the webhook-signature header: for each secret "v1," and the
// base64 HMAC-SHA256 of id, timestamp and body with dots between them.
func (h *hook) sign(id, timestamp string, body []byte) string {
	var out []string
	for _, s := range h.Secrets {
		m := hmac.New(sha256.New, s)
		fmt.Fprintf(m, "%s.%s.", id, timestamp)
		m.Write(body)
		out = append(out, "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
	}
	return strings.Join(out, " ")
}

// post sends one event. Any 2xx status means that the receiver has it.
func (h *hook) post(ctx context.Context, now time.Time, id string, body []byte) (err error) {
	ctx, cancel := context.WithTimeout(ctx, h.times.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("the request cannot be made")
	}
	stamp := strconv.FormatInt(now.Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "sealift")
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", stamp)
	req.Header.Set("webhook-signature", h.sign(id, stamp, body))
	resp, err := h.client.Do(req)
	if err != nil {
		// Without the URL, whose path may be a secret.
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return err
	}
	if ctx.Err() != nil {
		// The end of the time is told to the receiver before the connection is
		// closed. One that gives up because of that may end with a status 200,
		// which comes through in between: it does not mean that it has the event.
		_ = resp.Body.Close()
		return ctx.Err()
	}
	// An answer that goes on is not waited for: the status is what counts.
	_, _ = io.CopyN(io.Discard, resp.Body, maxWebhookAnswer)
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	return nil
}

// webhookKind is the kind of the documents that say how far a webhook got.
const webhookKind = "webhook"

// cursor is such a document. The next entry to look at, and who delivers.
type cursor struct {
	Receiver string    `json:"receiver"` // scheme and host
	Next     int64     `json:"next"`     // every entry before it that is wanted was delivered
	Holder   string    `json:"holder,omitempty"`
	Until    time.Time `json:"until,omitzero"` // of the holder's lease
	// Since and Attempts tell of the failures to deliver the next event, and
	// NotBefore when it is tried again, by whichever replica.
	Since     time.Time `json:"since,omitzero"`
	Attempts  int       `json:"attempts,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// DeliverWebhooks sends events to all webhooks until ctx ends. Each event is
// sent at least once, in the order of the log, one after the other for each
// webhook; one that fails is tried again until it works, and holds up no other
// webhook. The log is the queue: nothing is kept in memory, and a service that
// was stopped goes on where it was. A new webhook begins at the end of the log.
// Of several replicas one delivers at a time.
func (s *Server) DeliverWebhooks(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, h := range s.hooks {
		wg.Go(func() {
			defer h.client.CloseIdleConnections()
			for ctx.Err() == nil {
				pause, err := s.deliver(ctx, h)
				if err != nil && ctx.Err() == nil {
					s.c.Log.Error("webhook: the log or its cursor could not be used", "receiver", h.shown, "error", err)
					pause = max(pause, h.times.poll)
				}
				t := time.NewTimer(pause*3/4 + rand.N(pause/2+1))
				select {
				case <-ctx.Done():
				case <-t.C:
				}
				t.Stop()
			}
		})
	}
	wg.Wait()
	return nil
}

// readCursor returns how far a webhook got, and makes the cursor of a new one.
func (s *Server) readCursor(ctx context.Context, h *hook) (*Document, *cursor, error) {
	doc, err := s.c.Store.Document(ctx, webhookKind, h.name)
	if errors.Is(err, ErrNotFound) {
		end, err := s.logEnd(ctx)
		if err != nil {
			return nil, nil, err
		}
		doc, c := &Document{Kind: webhookKind, Name: h.name}, &cursor{Receiver: h.shown, Next: end + 1}
		return doc, c, s.saveCursor(ctx, doc, c)
	}
	if err != nil {
		return nil, nil, err
	}
	c := new(cursor)
	if err := json.Unmarshal(doc.Body, c); err != nil {
		return nil, nil, fmt.Errorf("read the cursor of a webhook: %w", err)
	}
	return doc, c, nil
}

// saveCursor writes a cursor, unless another replica did meanwhile: ErrConflict.
func (s *Server) saveCursor(ctx context.Context, doc *Document, c *cursor) error {
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	doc.Body = body
	if err := s.c.Store.Commit(ctx, &Change{Documents: []*Document{doc}}); err != nil {
		return err
	}
	doc.Revision++
	return nil
}

// logEnd returns the number of the last entry of the audit log.
func (s *Server) logEnd(ctx context.Context) (int64, error) {
	there := func(n int64) (bool, error) {
		for _, err := range s.c.Store.Audit(ctx, n) {
			return err == nil, err
		}
		return false, nil
	}
	var low, high int64 = 0, 1 // low is there, high is not
	for {
		ok, err := there(high)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		low, high = high, high*2
	}
	for high-low > 1 {
		mid := low + (high-low)/2
		ok, err := there(mid)
		if err != nil {
			return 0, err
		}
		if ok {
			low = mid
		} else {
			high = mid
		}
	}
	return low, nil
}

// deliver sends what is to be sent and returns when to look again.
func (s *Server) deliver(ctx context.Context, h *hook) (time.Duration, error) {
	doc, c, err := s.readCursor(ctx, h)
	if errors.Is(err, ErrConflict) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	now := s.wall()
	if c.Holder != h.holder && now.Before(c.Until) && !h.over(doc.Revision, time.Now()) {
		return h.times.poll, nil // another replica is at it
	}
	// No pause is longer than the longest: the clock was wrong when this one was
	// noted, or is now.
	if wait := c.NotBefore.Sub(now); wait > 0 && wait <= h.times.max {
		return wait, nil
	}
	from := max(c.Next, h.scanned)
	for e, err := range s.c.Store.Audit(ctx, from) {
		if err != nil {
			return 0, err
		}
		typ := eventType(&e)
		if !slices.Contains(h.Events, typ) {
			h.scanned = e.Seq + 1
			if h.scanned-c.Next < scanSave {
				continue
			}
			c.Next = h.scanned
			if err := s.saveCursor(ctx, doc, c); err != nil {
				return lost(h, err)
			}
			continue
		}
		// The lease must outlast the request, or another replica sends it too.
		now := s.wall()
		if left := c.Until.Sub(now); c.Holder != h.holder || left < h.times.lease/2 || left > h.times.lease {
			c.Holder, c.Until, c.Next = h.holder, now.Add(h.times.lease), e.Seq
			if err := s.saveCursor(ctx, doc, c); err != nil {
				return lost(h, err)
			}
		}
		body, err := eventBody(typ, &e)
		if err != nil {
			return 0, fmt.Errorf("encode entry %d: %w", e.Seq, err)
		}
		sent := h.post(ctx, s.c.Clock(), eventID(&e), body)
		if ctx.Err() != nil {
			return 0, s.giveBack(ctx, doc, c)
		}
		if sent != nil {
			return s.failed(ctx, h, doc, c, e.Seq, sent)
		}
		if h.failing {
			h.failing = false
			s.c.Log.Info("webhook is delivered again", "receiver", h.shown)
		}
		h.scanned = e.Seq + 1
		c.Next, c.Since, c.Attempts, c.NotBefore, c.Error = e.Seq+1, time.Time{}, 0, time.Time{}, ""
		if err := s.saveCursor(ctx, doc, c); err != nil {
			return lost(h, err)
		}
	}
	return h.times.poll, nil
}

// over reports whether another replica's lease is over by the time that passed
// here, whatever the clocks say: its cursor stayed at that revision for as long
// as a lease lasts. now has a monotonic reading.
func (h *hook) over(revision int64, now time.Time) bool {
	if h.seenAt.IsZero() || h.seen != revision {
		h.seen, h.seenAt = revision, now
	}
	return now.Sub(h.seenAt) >= h.times.lease
}

// lost is what to do when the cursor could not be written: look again.
func lost(h *hook, err error) (time.Duration, error) {
	h.scanned = 0
	if errors.Is(err, ErrConflict) {
		return h.times.poll, nil
	}
	return h.times.poll, err
}

// giveBack gives the lease back at the end of service, so that another replica
// need not wait for its end.
func (s *Server) giveBack(ctx context.Context, doc *Document, c *cursor) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	c.Holder, c.Until = "", time.Time{}
	if err := s.saveCursor(ctx, doc, c); err != nil && !errors.Is(err, ErrConflict) {
		return err
	}
	return nil
}

// failed notes that an event could not be sent, and gives the lease back:
// another replica may have a way to the receiver.
func (s *Server) failed(ctx context.Context, h *hook, doc *Document, c *cursor, seq int64, cause error) (time.Duration, error) {
	now := s.wall()
	if c.Attempts == 0 {
		c.Since = now
	}
	pause := h.times.first << min(c.Attempts, 20)
	if pause > h.times.max || pause <= 0 {
		pause = h.times.max
	}
	if !h.failing {
		h.failing = true
		s.c.Log.Error("webhook not delivered, trying again", "receiver", h.shown, "entry", seq, "since", c.Since, "error", cause)
	}
	c.Attempts++
	c.Next, c.NotBefore, c.Holder, c.Until, c.Error = seq, now.Add(pause), "", time.Time{}, clip(cause.Error())
	if err := s.saveCursor(ctx, doc, c); err != nil {
		return lost(h, err)
	}
	return pause, nil
}
