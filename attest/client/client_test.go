package client_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
)

// service answers as a test tells it, over real TLS.
type service struct {
	*testing.T
	srv   *httptest.Server
	key   *ecdsa.PrivateKey
	conns atomic.Int32

	silent, refuse, ending atomic.Bool // for a test's answer

	answer func(w http.ResponseWriter, r *http.Request)
}

func newKey(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newService(t *testing.T, change func(*tls.Config)) *service {
	t.Helper()
	s := &service{T: t, key: newKey(t, elliptic.P256())}
	s.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answer(w, r) }))
	s.srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	s.srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	if change != nil {
		change(s.srv.TLS)
	}
	s.srv.StartTLS()
	t.Cleanup(s.srv.Close)
	return s
}

func (s *service) client() *client.Client {
	pool := x509.NewCertPool()
	pool.AddCert(s.srv.Certificate())
	return &client.Client{URL: s.srv.URL, CA: pool, ReleaseKey: &s.key.PublicKey, Timeout: 10 * time.Second}
}

func (s *service) connect() *client.Session {
	s.Helper()
	session, err := s.client().Connect(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { session.Close() })
	return session
}

// reply answers with a status and JSON.
func reply(status int, v any) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
}

func challenge() *api.Challenge {
	return &api.Challenge{ID: "c1", Nonce: make([]byte, 32), PCRs: attest.PolicyPCRs()}
}

var machine = attest.MachineIDOf([]byte("m"))

func (s *service) release(change func(*api.Release)) *api.EvidenceResponse {
	s.Helper()
	r := &api.Release{ID: "r1", Machine: machine, ChallengeID: "c1"}
	if change != nil {
		change(r)
	}
	e, err := api.SignRelease(s.key, r)
	if err != nil {
		s.Fatal(err)
	}
	return &api.EvidenceResponse{Result: &attest.Result{Allowed: true, Image: "demo 1"}, Release: e}
}

func TestChallengeAndEvidenceGoOverOneConnection(t *testing.T) {
	s := newService(t, nil)
	var exporters [][]byte
	s.answer = func(w http.ResponseWriter, r *http.Request) {
		e, err := r.TLS.ExportKeyingMaterial(api.ExporterLabel, nil, api.ExporterLength)
		if err != nil {
			t.Error(err)
		}
		exporters = append(exporters, e)
		if r.ProtoMajor != 1 {
			t.Errorf("protocol is %s", r.Proto)
		}
		if r.URL.Path == api.PathChallenge {
			reply(200, challenge())(w, r)
			return
		}
		reply(200, s.release(nil))(w, r)
	}
	session := s.connect()
	ch, err := session.Challenge(t.Context(), &api.ChallengeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	r, result, err := session.Evidence(t.Context(), machine, &api.EvidenceRequest{ChallengeID: ch.ID})
	if err != nil {
		t.Fatal(err)
	}
	if r.ID != "r1" || result.Image != "demo 1" {
		t.Errorf("release %+v, result %+v", r, result)
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	for _, e := range exporters {
		if !bytes.Equal(e, session.Exporter()) {
			t.Errorf("the service's exporter is %x, the client's %x", e, session.Exporter())
		}
	}
}

// A client that dialled again would send evidence that is bound to another
// connection.
func TestAClosedConnectionIsNotDialledAgain(t *testing.T) {
	s := newService(t, nil)
	s.answer = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		reply(200, challenge())(w, r)
	}
	session := s.connect()
	// It could not be answered: the TPM need not begin.
	if _, err := session.Challenge(t.Context(), &api.ChallengeRequest{}); err == nil {
		t.Error("a challenge over a connection that ends: no error")
	}
	if _, _, err := session.Evidence(t.Context(), machine, &api.EvidenceRequest{}); err == nil {
		t.Error("no error")
	}
	if err := session.Close(); err != nil {
		t.Error(err)
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestReleasesForAnyoneElseAreRefused(t *testing.T) {
	s := newService(t, nil)
	other := newKey(t, elliptic.P256())
	tests := map[string]func() *api.EvidenceResponse{
		"another challenge": func() *api.EvidenceResponse { return s.release(func(r *api.Release) { r.ChallengeID = "c2" }) },
		"another machine":   func() *api.EvidenceResponse { return s.release(func(r *api.Release) { r.Machine[0] ^= 1 }) },
		"another key": func() *api.EvidenceResponse {
			key := s.key
			s.key = other
			defer func() { s.key = key }()
			return s.release(nil)
		},
		"an altered payload": func() *api.EvidenceResponse {
			r := s.release(nil)
			r.Release.Payload[10] ^= 1
			return r
		},
		"no release":      func() *api.EvidenceResponse { return &api.EvidenceResponse{Result: &attest.Result{Allowed: true}} },
		"an empty answer": func() *api.EvidenceResponse { return &api.EvidenceResponse{} },
		"the result, signed": func() *api.EvidenceResponse {
			return &api.EvidenceResponse{Release: &api.Envelope{PayloadType: api.ReleaseType}}
		},
	}
	for name, make := range tests {
		t.Run(name, func(t *testing.T) {
			s.answer = reply(200, make())
			if r, _, err := s.connect().Evidence(t.Context(), machine, &api.EvidenceRequest{ChallengeID: "c1"}); err == nil {
				t.Errorf("got %+v, want an error", r)
			}
		})
	}
}

func TestVerdictsAndFailuresAreToldApart(t *testing.T) {
	s := newService(t, nil)
	session := s.connect()
	s.answer = reply(403, &api.EvidenceResponse{Result: &attest.Result{Findings: []attest.Finding{{Code: attest.CodeCmdline, Message: "m"}, {Code: attest.CodeClock}}}})
	_, result, err := session.Evidence(t.Context(), machine, &api.EvidenceRequest{})
	var refused *client.RefusedError
	if !errors.As(err, &refused) || result == nil || !strings.Contains(err.Error(), "uki.cmdline: m (and 1 more findings)") {
		t.Errorf("a verdict: got %v", err)
	}
	s.answer = reply(403, api.Error{Code: "forbidden", Message: "no"})
	var failed *client.ServiceError
	if _, _, err := session.Evidence(t.Context(), machine, &api.EvidenceRequest{}); !errors.As(err, &failed) || failed.Answer.Code != "forbidden" {
		t.Errorf("a 403 that is no verdict: got %v", err)
	}
	s.answer = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		reply(429, api.Error{Code: "rate-limited", Message: "slow", Hint: "wait"})(w, r)
	}
	if _, err := session.Challenge(t.Context(), &api.ChallengeRequest{}); !errors.As(err, &failed) || failed.Status != 429 || failed.RetryAfter != 7*time.Second || !strings.Contains(err.Error(), "slow (wait)") {
		t.Errorf("a limit: got %v", err)
	}
	s.answer = func(w http.ResponseWriter, r *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) }
	if _, err := session.Challenge(t.Context(), &api.ChallengeRequest{}); !errors.As(err, &failed) || failed.Answer.Code != "http-502" {
		t.Errorf("a proxy's page: got %v", err)
	}
	// A refusal is none for a call that has no verdict.
	s.answer = reply(403, &api.EvidenceResponse{Result: &attest.Result{}})
	if _, err := session.Challenge(t.Context(), &api.ChallengeRequest{}); !errors.As(err, &failed) {
		t.Errorf("a verdict on a challenge: got %v", err)
	}
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestChallengesThatThisAgentCannotAnswerAreRefused(t *testing.T) {
	s := newService(t, nil)
	for name, change := range map[string]func(*api.Challenge){
		"no id":         func(c *api.Challenge) { c.ID = "" },
		"a long id":     func(c *api.Challenge) { c.ID = strings.Repeat("x", 65) },
		"a short nonce": func(c *api.Challenge) { c.Nonce = c.Nonce[:8] },
		"fewer PCRs":    func(c *api.Challenge) { c.PCRs = c.PCRs[:3] },
		"no PCRs":       func(c *api.Challenge) { c.PCRs = nil },
	} {
		ch := challenge()
		change(ch)
		s.answer = reply(200, ch)
		if _, err := s.connect().Challenge(t.Context(), &api.ChallengeRequest{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestHostileAnswersEndInAnError(t *testing.T) {
	s := newService(t, nil)
	hijack := func(answer string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(conn, answer)
			conn.Close()
		}
	}
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request){
		"no HTTP":        hijack("220 smtp\r\n"),
		"nothing":        hijack(""),
		"cut short":      hijack("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
		"endless":        hijack("HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat(" ", 5<<20)),
		"no JSON":        hijack("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
		"endless header": hijack("HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 20_000) + "Content-Length: 2\r\n\r\n{}"),
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusTemporaryRedirect)
		},
	} {
		s.answer = answer
		if _, err := s.connect().Challenge(t.Context(), &api.ChallengeRequest{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTheServiceMustBeTheRightOne(t *testing.T) {
	s := newService(t, nil)
	s.answer = reply(200, challenge())
	c := s.client()
	c.CA = x509.NewCertPool()
	if _, err := c.Connect(t.Context()); err == nil {
		t.Error("a certificate of another authority: no error")
	}
	old := newService(t, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
	if _, err := old.client().Connect(t.Context()); err == nil {
		t.Error("TLS 1.2: no error")
	}
	for _, url := range []string{"", "http://" + strings.TrimPrefix(s.srv.URL, "https://"), "https://", s.srv.URL + "/path", s.srv.URL + "?q", "https://user:secret@127.0.0.1", "::"} {
		c := s.client()
		c.URL = url
		if _, err := c.Connect(t.Context()); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v", url, err)
		}
	}
	for name, change := range map[string]func(*client.Client){
		"no certificate authority": func(c *client.Client) { c.CA = nil },
		"no release key":           func(c *client.Client) { c.ReleaseKey = nil },
	} {
		c := s.client()
		change(c)
		if _, err := c.Connect(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	s := newService(t, nil)
	started := make(chan struct{})
	s.answer = func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		close(started)
		<-r.Context().Done()
	}
	session := s.connect()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-started
		cancel()
	}()
	if _, err := session.Challenge(ctx, &api.ChallengeRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if _, err := session.Challenge(t.Context(), &api.ChallengeRequest{}); err == nil {
		t.Error("a session in an unknown state is used again")
	}
}

func TestConfirmProvesAndCutsItsOutcome(t *testing.T) {
	s := newService(t, nil)
	transport := attest.Secret(bytes.Repeat([]byte{1}, 32))
	var got api.ConfirmRequest
	s.answer = func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.URL.Path != api.PathConfirm {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		fmt.Fprint(w, "{}")
	}
	for _, outcome := range []string{api.OutcomeUnlocked, strings.Repeat("é", 600)} {
		if err := s.client().Confirm(t.Context(), transport, "r1", outcome); err != nil {
			t.Fatal(err)
		}
		if len(got.Outcome) > api.MaxOutcome || !strings.HasPrefix(outcome, got.Outcome) || !bytes.Equal(got.Proof, api.ConfirmProof(transport, "r1", got.Outcome)) {
			t.Errorf("sent %+v", got)
		}
	}
}

// A confirmation goes over the connection of its release, or over another if
// that one is gone.
func TestConfirmOutlivesItsConnection(t *testing.T) {
	t.Parallel()
	transport := attest.Secret(bytes.Repeat([]byte{1}, 32))
	for name, tt := range map[string]struct {
		// lose is what happens to the connection after the challenge.
		lose  func(s *service)
		conns int32
	}{
		"the connection is there":                {func(*service) {}, 1},
		"the service closed it":                  {func(s *service) { s.srv.CloseClientConnections() }, 2},
		"it leads nowhere, and no end of it":     {func(s *service) { s.silent.Store(true) }, 2},
		"the service answers, but with an error": {func(s *service) { s.refuse.Store(true) }, 1},
		"the service ends, another is there":     {func(s *service) { s.ending.Store(true) }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, nil)
			release := make(chan struct{})
			t.Cleanup(func() { close(release) }) // before the server is closed, which waits for the handler
			var confirmed atomic.Int32
			s.answer = func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				switch {
				case r.URL.Path == api.PathChallenge:
					reply(200, challenge())(w, r)
				case s.silent.CompareAndSwap(true, false):
					<-release
				case s.ending.CompareAndSwap(true, false):
					w.Header().Set("Connection", "close")
					reply(503, api.Error{Code: "unavailable"})(w, r)
				case s.refuse.Load():
					reply(403, api.Error{Code: "confirm-refused"})(w, r)
				default:
					confirmed.Add(1)
					fmt.Fprint(w, "{}")
				}
			}
			session := s.connect()
			if _, err := session.Challenge(t.Context(), &api.ChallengeRequest{}); err != nil {
				t.Fatal(err)
			}
			tt.lose(s)
			// Half of it is waited for in one case.
			ctx, cancel := context.WithTimeout(t.Context(), 16*time.Second)
			defer cancel()
			err := session.Confirm(ctx, transport, "r1", api.OutcomeUnlocked)
			var answered *client.ServiceError
			if s.refuse.Load() != errors.As(err, &answered) || !s.refuse.Load() && (err != nil || confirmed.Load() != 1) {
				t.Errorf("error %v after %d confirmations", err, confirmed.Load())
			}
			if got := s.conns.Load(); got != tt.conns {
				t.Errorf("made %d connections, want %d", got, tt.conns)
			}
		})
	}
}

// told answers with an error and headers.
func told(status int, code, after, connection string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		for name, v := range map[string]string{"Retry-After": after, "Connection": connection} {
			if v != "" {
				w.Header().Set(name, v)
			}
		}
		reply(status, api.Error{Code: code})(w, r)
	}
}

func verdict(codes ...attest.Code) func(http.ResponseWriter, *http.Request) {
	r := &attest.Result{}
	for _, c := range codes {
		r.Findings = append(r.Findings, attest.Finding{Code: c})
	}
	return reply(403, &api.EvidenceResponse{Result: r})
}

// What a TPM has signed is sent again while the service has no room for it, and
// nothing else is.
func TestEvidenceIsSentAgainWhereNothingWasDoneForIt(t *testing.T) {
	t.Parallel()
	busy, limited := told(503, api.CodeBusy, "1", ""), told(429, api.CodeRateLimited, "1", "")
	for name, tt := range map[string]struct {
		answers []func(http.ResponseWriter, *http.Request) // nil: a release
		hasty   bool                                       // a client without patience
		want    string                                     // of the error; empty: a release
	}{
		"no time":                              {answers: []func(http.ResponseWriter, *http.Request){busy, nil}},
		"too many":                             {answers: []func(http.ResponseWriter, *http.Request){limited, nil}},
		"no time, and it did not say for what": {answers: []func(http.ResponseWriter, *http.Request){told(503, api.CodeBusy, "", "")}, want: "busy"},
		"longer than there is patience":        {answers: []func(http.ResponseWriter, *http.Request){told(503, api.CodeBusy, "60", "")}, want: "busy"},
		"longer than anybody waits":            {answers: []func(http.ResponseWriter, *http.Request){told(503, api.CodeBusy, "99999999999", "")}, want: "busy"},
		"another failure":                      {answers: []func(http.ResponseWriter, *http.Request){told(503, "unavailable", "1", "")}, want: "unavailable"},
		"no time, and the connection ends":     {answers: []func(http.ResponseWriter, *http.Request){told(503, api.CodeBusy, "1", "close")}, want: "busy"},
		"a client without patience":            {answers: []func(http.ResponseWriter, *http.Request){busy}, hasty: true, want: "busy"},
		"the challenge ran out meanwhile":      {answers: []func(http.ResponseWriter, *http.Request){busy, verdict(attest.CodeChallenge)}, want: "busy"},
		"the challenge had run out":            {answers: []func(http.ResponseWriter, *http.Request){verdict(attest.CodeChallenge)}, want: "challenge.invalid"},
		"a verdict after that":                 {answers: []func(http.ResponseWriter, *http.Request){busy, verdict(attest.CodeCmdline)}, want: "uki.cmdline"},
		"a verdict that has more to say":       {answers: []func(http.ResponseWriter, *http.Request){busy, verdict(attest.CodeChallenge, attest.CodeQuarantined)}, want: "challenge.invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, nil)
			release := reply(200, s.release(nil))
			var asked atomic.Int32
			var bodies [2]string
			s.answer = func(w http.ResponseWriter, r *http.Request) {
				n := int(asked.Add(1)) - 1
				b, err := io.ReadAll(r.Body)
				if err != nil || n >= len(tt.answers) {
					t.Errorf("request %d: %v", n+1, err)
					return
				}
				bodies[n] = string(b)
				if tt.answers[n] == nil {
					release(w, r)
					return
				}
				tt.answers[n](w, r)
			}
			c := s.client()
			if !tt.hasty {
				c.Patience = 30 * time.Second
			}
			session, err := c.Connect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			r, _, err := session.Evidence(t.Context(), machine, &api.EvidenceRequest{ChallengeID: "c1"})
			if tt.want == "" && (err != nil || r == nil) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %+v, %v, want %q", r, err, tt.want)
			}
			var refused *client.RefusedError
			if isVerdict := strings.Contains(tt.want, "."); errors.As(err, &refused) != isVerdict {
				t.Errorf("a verdict: %t, want %t: %v", !isVerdict, isVerdict, err)
			}
			if n := int(asked.Load()); n != len(tt.answers) || n == 2 && bodies[0] != bodies[1] {
				t.Errorf("asked %d times, want %d, with %q", n, len(tt.answers), bodies)
			}
			if n := s.conns.Load(); n != 1 {
				t.Errorf("%d connections, want 1", n)
			}
		})
	}
}

func TestAReportThatIsNotAcceptedIsAnError(t *testing.T) {
	s := newService(t, nil)
	for name, answer := range map[string]*api.EvidenceResponse{"no result": {}, "another result": {Result: &attest.Result{}}} {
		s.answer = reply(200, answer)
		if _, err := s.connect().Report(t.Context(), &api.EvidenceRequest{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	s.answer = reply(200, &api.EvidenceResponse{Result: &attest.Result{Allowed: true}, ReportAfter: 1 << 40})
	if after, err := s.connect().Report(t.Context(), &api.EvidenceRequest{}); err != nil || after != api.MaxReportAfter*time.Second {
		t.Errorf("got %v, %v", after, err)
	}
}

// Another service would say the same, unless it was only this one that ends.
func TestConfirmGoesElsewhereOnlyFromAServiceThatEnds(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		conns  int32
	}{
		"it ends":                        {told(503, "unavailable", "", "close"), 2},
		"it goes on":                     {told(503, "unavailable", "", ""), 1},
		"it ends, and has answered":      {told(403, "confirm-refused", "", "close"), 1},
		"it has no time, and said when":  {told(503, api.CodeBusy, "60", ""), 1},
		"too many requests, and it ends": {told(429, api.CodeRateLimited, "60", "close"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, nil)
			s.answer = tt.answer
			err := s.connect().Confirm(t.Context(), make(attest.Secret, 32), "r1", api.OutcomeUnlocked)
			var answered *client.ServiceError
			if !errors.As(err, &answered) || s.conns.Load() != tt.conns {
				t.Errorf("%d connections, want %d: %v", s.conns.Load(), tt.conns, err)
			}
		})
	}
}

func TestALongAnswerIsRead(t *testing.T) {
	s := newService(t, nil)
	resp := s.release(nil)
	resp.Result.Facts = []attest.Fact{{Name: "n", Value: strings.Repeat("v", 1<<20)}}
	s.answer = reply(200, resp)
	if _, result, err := s.connect().Evidence(t.Context(), machine, &api.EvidenceRequest{ChallengeID: "c1"}); err != nil || len(result.Facts) != 1 {
		t.Errorf("got %v", err)
	}
}
