package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func TestNodesNeedTLS13(t *testing.T) {
	s := newScene(t, nil)
	for name, state := range map[string]*tls.ConnectionState{"plain HTTP": nil, "TLS 1.2": {Version: tls.VersionTLS12}} {
		for _, path := range []string{api.PathChallenge, api.PathEvidence, api.PathConfirm} {
			r := httptest.NewRequest("POST", path, strings.NewReader("{}"))
			r.TLS = state
			w := httptest.NewRecorder()
			s.srv.NodeHandler().ServeHTTP(w, r)
			if w.Code != 400 {
				t.Errorf("%s, %s: HTTP %d", name, path, w.Code)
			}
		}
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool(), MaxVersion: tls.VersionTLS12}}
	if resp, err := (&http.Client{Transport: tr}).Post("https://"+s.nodes+api.PathChallenge, "application/json", strings.NewReader("{}")); err == nil {
		resp.Body.Close()
		t.Errorf("the listener speaks TLS 1.2: HTTP %d", resp.StatusCode)
	}
}

func TestBadRequestsAreRefusedWithAPublicCode(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	good := api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic}
	with := func(f func(*api.ChallengeRequest)) any {
		r := good
		f(&r)
		return r
	}
	evidence := func(f func(*api.EvidenceRequest)) any {
		r := s.answer(b, &api.Challenge{ID: "x"})
		f(r)
		return r
	}
	tests := map[string]struct {
		path   string
		body   any
		status int
		code   string
	}{
		"no JSON":              {api.PathChallenge, "hello", 400, "bad-request"},
		"two documents":        {api.PathChallenge, "{} {}", 400, "bad-request"},
		"an unknown field":     {api.PathChallenge, `{"version":1,"extra":1}`, 400, "bad-request"},
		"another version":      {api.PathChallenge, with(func(r *api.ChallengeRequest) { r.Version = 2 }), 400, "bad-request"},
		"another purpose":      {api.PathChallenge, with(func(r *api.ChallengeRequest) { r.Purpose = "admin" }), 400, "bad-request"},
		"no EK":                {api.PathChallenge, with(func(r *api.ChallengeRequest) { r.EKPublic = nil }), 400, "bad-request"},
		"a large EK":           {api.PathChallenge, with(func(r *api.ChallengeRequest) { r.EKPublic = make([]byte, 2000) }), 400, "bad-request"},
		"no AK":                {api.PathChallenge, with(func(r *api.ChallengeRequest) { r.AKPublic = nil }), 400, "bad-request"},
		"the AK as EK":         {api.PathChallenge, with(func(r *api.ChallengeRequest) { r.EKPublic = r.AKPublic }), 400, "bad-request"},
		"an endless challenge": {api.PathChallenge, `{"ekPublic":"` + strings.Repeat("A", api.MaxChallengeBody) + `"}`, 413, "too-large"},
		"endless evidence":     {api.PathEvidence, `{"challengeID":"` + strings.Repeat("A", api.MaxEvidenceBody) + `"}`, 413, "too-large"},
		"an endless confirm":   {api.PathConfirm, `{"outcome":"` + strings.Repeat("A", api.MaxConfirmBody) + `"}`, 413, "too-large"},
		"no challenge id":      {api.PathEvidence, evidence(func(r *api.EvidenceRequest) { r.ChallengeID = "" }), 400, "bad-request"},
		"an endless id":        {api.PathEvidence, evidence(func(r *api.EvidenceRequest) { r.ChallengeID = strings.Repeat("x", 65) }), 400, "bad-request"},
		"no disk":              {api.PathEvidence, evidence(func(r *api.EvidenceRequest) { r.Evidence.Disk.GUID = "" }), 400, "bad-request"},
		"a disk of SQL":        {api.PathEvidence, evidence(func(r *api.EvidenceRequest) { r.Evidence.Disk.GUID = "' OR 1=1 --" }), 400, "bad-request"},
	}
	c := s.httpClient()
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var e api.Error
			if status := s.call(c, "POST", "https://"+s.nodes+tt.path, tt.body, &e); status != tt.status || e.Code != tt.code || e.Message == "" {
				t.Errorf("HTTP %d, %+v; want %d, %s", status, e, tt.status, tt.code)
			}
		})
	}
	if status, _ := s.raw(c, "GET", "https://"+s.nodes+api.PathChallenge, nil); status != 405 {
		t.Errorf("GET: HTTP %d", status)
	}
}

func TestAnExpiredChallengeIsRefused(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	s.set(func() { s.offset = 61 * time.Second })
	if status, resp := s.send(c, req); status != 403 || codes(resp.Result) != string(attest.CodeChallenge) {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
}

func TestAnUnprovenSenderLeavesLittleBehind(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{UnprovenBurst: 2, EKBurst: 100} })
	b := newBox(t, s.tpmCA)
	c := s.httpClient()
	for range 5 {
		req := s.answer(b, s.challenge(c, b))
		req.ActivationProof = []byte("no proof")
		if status, resp := s.send(c, req); status != 403 || !strings.Contains(codes(resp.Result), string(attest.CodeActivation)) {
			t.Errorf("HTTP %d, %s", status, codes(resp.Result))
		}
	}
	if got := s.kinds(); got != "service.start evidence.verdict evidence.verdict" {
		t.Errorf("log is %s", got)
	}
	s.set(func() { s.offset += time.Minute })
	req := s.answer(b, s.challenge(c, b))
	req.ActivationProof = nil
	s.send(c, req)
	var last audit.Verdict
	for e, err := range s.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind != audit.KindVerdict {
			continue
		}
		last = audit.Verdict{}
		if err := json.Unmarshal(e.Data, &last); err != nil {
			t.Fatal(err)
		}
		if !e.Machine.IsZero() || !last.Evidence.IsZero() {
			t.Errorf("entry %d names a machine or evidence that nothing proves", e.Seq)
		}
	}
	if last.Suppressed != 3 {
		t.Errorf("%d refusals are said to be suppressed, want 3", last.Suppressed)
	}
	if _, err := s.memory.Machine(t.Context(), b.id); !errors.Is(err, server.ErrNotFound) {
		t.Errorf("a machine was recorded: %v", err)
	}
}

func TestPendingMachinesNeedATrustedTPMAndAreBounded(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{MaxPending: 2, EKBurst: 100} })
	for range 3 {
		b := newBox(t, s.tpmCA)
		if status, resp := s.attest(b); status != 403 || codes(resp.Result) != string(attest.CodeMachineUnknown) {
			t.Errorf("HTTP %d, %s", status, codes(resp.Result))
		}
	}
	stranger := newBox(t, tpmtest.NewCA(t))
	s.attest(stranger)
	if _, err := s.memory.Machine(t.Context(), stranger.id); !errors.Is(err, server.ErrNotFound) {
		t.Errorf("a TPM that nobody vouches for is recorded: %v", err)
	}
	ms, err := s.memory.Machines(t.Context(), server.Query{State: attest.StatePending})
	if err != nil || len(ms) != 2 {
		t.Errorf("%d machines are pending, %v; want 2", len(ms), err)
	}
	// The third left nothing, of the stranger there is a verdict.
	if strings.Count(s.kinds(), "evidence.verdict") != 3 {
		t.Errorf("log is %s", s.kinds())
	}
	if strings.Count(s.kinds(), "machine.state") != 2 {
		t.Errorf("log is %s", s.kinds())
	}
}

func TestOfAMachineThatAsksWithoutEndLittleIsStored(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{EKBurst: 100, RefusalBurst: 3} })
	b, other := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	s.enrol(b)
	s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeCmdline, Message: "m"}} })
	refused := func(b *box) {
		t.Helper()
		if status, resp := s.attest(b); status != 403 || !strings.Contains(codes(resp.Result), string(attest.CodeCmdline)) {
			t.Errorf("HTTP %d, %s", status, codes(resp.Result))
		}
	}
	verdicts := func() (n int, last audit.Verdict) {
		t.Helper()
		for e, err := range s.memory.Audit(t.Context(), 1) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == audit.KindVerdict {
				n, last = n+1, audit.Verdict{}
				if err := json.Unmarshal(e.Data, &last); err != nil {
					t.Fatal(err)
				}
			}
		}
		return n, last
	}
	for range 8 {
		refused(b)
	}
	if n, _ := verdicts(); n != 3 {
		t.Errorf("%d verdicts are logged, want 3", n)
	}
	refused(other) // has a budget of its own
	if n, _ := verdicts(); n != 4 {
		t.Errorf("%d verdicts are logged, want 4", n)
	}
	s.set(func() { s.offset += time.Minute })
	refused(b)
	if n, last := verdicts(); n != 5 || last.Suppressed != 5 || last.Evidence.IsZero() {
		t.Errorf("%d verdicts are logged, the last is %+v; want 5, and 5 suppressed", n, last)
	}
	// What is accepted is always kept.
	s.set(func() { s.refuse = nil })
	if status, _ := s.attest(b); status != 200 {
		t.Errorf("HTTP %d", status)
	}
	if n, _ := verdicts(); n != 6 {
		t.Errorf("%d verdicts are logged, want 6", n)
	}
}

func TestRatesAreLimited(t *testing.T) {
	s := newScene(t, func(c *server.Config) {
		c.Limits = server.Limits{PerAddress: time.Hour, AddressBurst: 6, PerEK: time.Hour, EKBurst: 2}
	})
	a, b := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	c := s.httpClient()
	ask := func(b *box) (int, string) {
		var e api.Error
		status := s.call(c, "POST", "https://"+s.nodes+api.PathChallenge, &api.ChallengeRequest{
			Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic,
		}, &e)
		return status, e.Message
	}
	for i, want := range []struct {
		box    *box
		status int
		text   string
	}{{a, 200, ""}, {a, 200, ""}, {a, 429, "endorsement key"}, {b, 200, ""}, {b, 200, ""}, {b, 429, "endorsement key"}, {b, 429, "address"}, {a, 429, "address"}} {
		if status, text := ask(want.box); status != want.status || !strings.Contains(text, want.text) {
			t.Errorf("request %d: HTTP %d, %q; want %d, %q", i, status, text, want.status, want.text)
		}
	}
	// Operators are not held up by nodes.
	if status := s.call(s.operator(), "GET", "https://"+s.operators+api.PathMachines, nil, nil); status != 200 {
		t.Errorf("operator: HTTP %d", status)
	}
}

func TestNobodyUsesUpTheChallengesOfAnothersMachine(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{PerEK: time.Hour, EKBurst: 2} })
	b := newBox(t, s.tpmCA)
	state := tlsState(t)
	body := mustJSON(t, &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic})
	for i, want := range []struct {
		from   string
		status int
	}{
		{"192.0.2.1:1", 200}, {"192.0.2.1:2", 200}, {"192.0.2.1:3", 429}, {"192.0.2.2:1", 200}, {"192.0.2.2:1", 200}, {"192.0.2.2:1", 429},
		{"[2001:db8::1]:1", 200}, {"[2001:db8::2]:1", 200}, {"[2001:db8::3]:1", 429}, {"[2001:db8:0:1::1]:1", 200},
	} {
		r := httptest.NewRequest("POST", api.PathChallenge, bytes.NewReader(body))
		r.TLS, r.RemoteAddr = state, want.from
		w := httptest.NewRecorder()
		s.srv.NodeHandler().ServeHTTP(w, r)
		if w.Code != want.status {
			t.Errorf("request %d from %s: HTTP %d, want %d: %s", i, want.from, w.Code, want.status, w.Body)
		}
	}
}

func TestLimiter(t *testing.T) {
	l := server.NewLimiter(time.Second, 3)
	now := time.Unix(1000, 0)
	take := func(key string, want bool) {
		t.Helper()
		if ok, wait := l.Allow(key, now); ok != want || !ok && (wait <= 0 || wait > time.Second) {
			t.Errorf("%s at %v: %t, wait %v; want %t", key, now.Unix(), ok, wait, want)
		}
	}
	for range 3 {
		take("a", true)
	}
	take("a", false)
	take("b", true)
	now = now.Add(time.Second)
	take("a", true)
	take("a", false)
	now = now.Add(time.Hour)
	for range 3 {
		take("a", true)
	}
	take("a", false)
	// Keys without end do not take memory without end, nor lock out those
	// that come back later.
	for i := range 150_000 {
		l.Allow(string(rune(i))+"k", now)
	}
	now = now.Add(time.Minute)
	take("new", true)
}

func TestKeysThatFillTheLimiterShutOutNoOther(t *testing.T) {
	now := time.Unix(1000, 0)
	strict, lenient := server.NewLimiter(time.Hour, 1), server.NewProvenLimiter(time.Hour, 1)
	for i := range 100_000 {
		for _, l := range []server.Limiter{strict, lenient} {
			if ok, _ := l.Allow(fmt.Sprint(i), now); !ok {
				t.Fatalf("key %d is refused", i)
			}
		}
	}
	if ok, _ := strict.Allow("another", now); ok {
		t.Error("the limiter has room without end")
	}
	if ok, _ := lenient.Allow("another", now); !ok {
		t.Error("another key is shut out")
	}
	if ok, _ := lenient.Allow("0", now); ok {
		t.Error("a key that is known is not limited")
	}
}

func TestAnEndorsementKeyIsLimitedOverAllAddresses(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Limits.PerEK, c.Limits.EKBurst = time.Hour, 2 })
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	from := func(host byte) *http.Client {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, host)}}
		c := s.httpClient()
		tr, ok := c.Transport.(*http.Transport)
		if !ok {
			t.Fatal("no transport")
		}
		tr.DialContext = d.DialContext
		return c
	}
	ask := func(host byte, change func(*api.EvidenceRequest)) (int, *api.EvidenceResponse) {
		c := from(host)
		req := s.answer(b, s.challenge(c, b))
		if change != nil {
			change(req)
		}
		return s.send(c, req)
	}
	// Whoever does not hold the key uses nothing of it up.
	for host := byte(10); host < 15; host++ {
		if status, r := ask(host, func(req *api.EvidenceRequest) { req.ActivationProof = []byte("a guess") }); status != 403 || codes(r.Result) != string(attest.CodeActivation) {
			t.Errorf("a guess: HTTP %d, %s", status, codes(r.Result))
		}
	}
	if status, _ := ask(2, nil); status != 200 {
		t.Errorf("the first: HTTP %d", status)
	}
	if status, r := ask(3, nil); status != 403 || codes(r.Result) != string(attest.CodeReleaseRepeated) {
		t.Errorf("the second: HTTP %d, %s", status, codes(r.Result))
	}
	if status, _ := ask(4, nil); status != 429 {
		t.Errorf("the third, from a third address: HTTP %d, want 429", status)
	}
	other := newBox(t, s.tpmCA)
	c := from(4)
	if status, r := s.send(c, s.answer(other, s.challenge(c, other))); status != 403 || codes(r.Result) != "machine.unknown" && !strings.Contains(codes(r.Result), string(attest.CodeDiskForeign)) {
		t.Errorf("another machine: HTTP %d, %s", status, codes(r.Result))
	}
}

func TestAddressesAreCountedByWhatOnePeerHas(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:5":                 "192.0.2.1",
		"[::ffff:192.0.2.1]:5":        "192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:5":    "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::1]:5":    "2001:db8:1:2::/64",
		"[fe80::1%eth0]:5":            "fe80::/64",
		"[64:ff9b::192.0.2.7]:5":      "192.0.2.7",
		"[64:ff9b:1::192.0.2.7]:5":    "64:ff9b:1::/64",
		"@":                           "unknown",
		"/run/some.socket":            "unknown",
		"not an address at all:99999": "unknown",
	} {
		if got := server.AddressKey(remote); got != want {
			t.Errorf("%s: got %s, want %s", remote, got, want)
		}
	}
}

func TestAPanicCostsOneRequest(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	s.srv.Appraise(func(*attest.Evidence, *attest.Challenge, *attest.Session, *attest.Known, *attest.Policy) (*attest.Result, *server.Boot) {
		panic("a bug")
	})
	c := s.httpClient()
	var e api.Error
	if status := s.call(c, "POST", "https://"+s.nodes+api.PathEvidence, s.answer(b, s.challenge(c, b)), &e); status != 500 || e.Code != "internal" || strings.Contains(e.Message, "bug") {
		t.Errorf("HTTP %d, %+v", status, e)
	}
	s.srv.Appraise(s.appraise)
	if status, _ := s.attest(b); status != 200 {
		t.Errorf("the next request: HTTP %d", status)
	}
}

func TestTheEndOfServiceLetsRequestsFinish(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.srv.ServeNodes(ctx, ln, s.certificate(pkixName("service"), serverAuth)) }()
	s.nodes = ln.Addr().String()
	working, goOn := make(chan struct{}), make(chan struct{})
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		close(working)
		<-goOn
		return s.appraise(ev, ch, ses, k, p)
	})
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	answered := make(chan int)
	go func() {
		status, _ := s.send(c, req)
		answered <- status
	}()
	<-working
	stop()
	close(goOn)
	if status := <-answered; status != 200 {
		t.Errorf("the request under way: HTTP %d", status)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", s.nodes); err == nil {
		conn.Close()
		t.Error("the listener is still open")
	}
}

func TestABusyServiceSaysSo(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{Concurrent: 1, Queue: time.Millisecond, EKBurst: 100} })
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	working, goOn := make(chan struct{}), make(chan struct{})
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		close(working)
		<-goOn
		return s.appraise(ev, ch, ses, k, p)
	})
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.send(c, req)
	}()
	<-working
	var e api.Error
	if status := s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathChallenge, "{}", &e); status != 503 || e.Code != "busy" {
		t.Errorf("HTTP %d, %+v", status, e)
	}
	close(goOn)
	<-done
}

// A body that never ends, and says when it is being read.
type endless struct {
	reading chan<- struct{}
	stop    <-chan struct{}
}

func (e endless) Read([]byte) (int, error) {
	e.reading <- struct{}{}
	<-e.stop
	return 0, io.ErrUnexpectedEOF
}

// A body of a length that is not said counts as a large one.
func TestOneAddressDoesNotTakeAllLargeBodies(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{Queue: time.Millisecond} })
	b := newBox(t, s.tpmCA)
	state := tlsState(t)
	body := mustJSON(t, &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic})
	ask := func(from string, body io.Reader) int {
		r := httptest.NewRequest("POST", api.PathChallenge, body)
		r.TLS, r.RemoteAddr = state, from
		w := httptest.NewRecorder()
		s.srv.NodeHandler().ServeHTTP(w, r)
		return w.Code
	}
	reading, stop := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	unsaid := func() io.Reader { return io.MultiReader(bytes.NewReader(body)) }
	for range 4 {
		wg.Go(func() { ask("192.0.2.1:1", endless{reading, stop}) })
		<-reading
	}
	if status := ask("192.0.2.1:2", unsaid()); status != 503 {
		t.Errorf("the address that holds its share: HTTP %d, want 503", status)
	}
	if status := ask("192.0.2.1:2", bytes.NewReader(body)); status != 200 {
		t.Errorf("the same with a short body: HTTP %d, want 200", status)
	}
	if status := ask("192.0.2.2:1", unsaid()); status != 200 {
		t.Errorf("another address: HTTP %d, want 200", status)
	}
	close(stop)
	wg.Wait()
	if status := ask("192.0.2.1:3", unsaid()); status != 200 {
		t.Errorf("after its bodies ended: HTTP %d, want 200", status)
	}
	if n := s.srv.Shares(); n != 0 {
		t.Errorf("%d shares are kept that nobody uses", n)
	}
}

func TestNewRefusesAnUnsafeConfiguration(t *testing.T) {
	good := func() server.Config {
		kek := make(attest.Secret, server.KEKSize)
		rand.Read(kek)
		store, key := new(storetest.Memory), newKey(t)
		return server.Config{
			Store: store, Standing: storetest.Standing(t, store, key), KEK: kek, ReleaseKey: key, Log: slog.New(slog.DiscardHandler),
			Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return nil, errors.New("none") },
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*server.Config){
		"no store":             func(c *server.Config) { c.Store = nil },
		"no standing":          func(c *server.Config) { c.Standing = nil },
		"no policy":            func(c *server.Config) { c.Policy = nil },
		"no log":               func(c *server.Config) { c.Log = nil },
		"no release key":       func(c *server.Config) { c.ReleaseKey = nil },
		"a P-384 release key":  func(c *server.Config) { c.ReleaseKey = p384 },
		"no KEK":               func(c *server.Config) { c.KEK = nil },
		"a short KEK":          func(c *server.Config) { c.KEK = c.KEK[:16] },
		"a KEK of zeros":       func(c *server.Config) { c.KEK = make(attest.Secret, server.KEKSize) },
		"a long challenge TTL": func(c *server.Config) { c.Limits.ChallengeTTL = time.Hour },
		"a negative limit":     func(c *server.Config) { c.Limits.Concurrent = -1 },
	} {
		c := good()
		change(&c)
		if _, err := server.New(c); err == nil || bytes.Contains([]byte(err.Error()), c.KEK) && len(c.KEK) > 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := server.New(good()); err != nil {
		t.Error(err)
	}
}

func TestAPolicyThatCannotBeReadRefuses(t *testing.T) {
	var gone atomic.Bool
	s := newScene(t, func(c *server.Config) {
		good := c.Policy
		c.Policy = func(ctx context.Context, id attest.MachineID) (*attest.Policy, error) {
			if gone.Load() {
				return nil, errors.New("no file")
			}
			return good(ctx, id)
		}
	})
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	gone.Store(true)
	if _, err := s.srv.Enrol(t.Context(), "line-1", record(b)); err == nil || errors.Is(err, server.ErrRefused) {
		t.Errorf("enrol: %v, want an error that is not final", err)
	}
	c := s.httpClient()
	var e api.Error
	if status := s.call(c, "POST", "https://"+s.nodes+api.PathEvidence, s.answer(b, s.challenge(c, b)), &e); status != 503 || strings.Contains(e.Message, "file") {
		t.Errorf("HTTP %d, %+v", status, e)
	}
}

func FuzzNodeAPI(f *testing.F) {
	f.Add(0, []byte(`{"version":1,"purpose":"unlock","ekPublic":"AA==","akPublic":"AA=="}`))
	f.Add(1, []byte(`{"challengeID":"x","evidence":{"disk":{"guid":"6a0d1e0c-3b1f-4a56-9d0e-0123456789ab"}}}`))
	f.Add(2, []byte(`{"releaseID":"x","outcome":"unlocked","proof":"AA=="}`))
	f.Add(3, []byte(`{"challengeID":"x","activationProof":"AA=="}`))
	kek := make(attest.Secret, server.KEKSize)
	rand.Read(kek)
	store, key := new(storetest.Memory), newKey(f)
	srv, err := server.New(server.Config{
		Store: store, Standing: storetest.Standing(f, store, key), KEK: kek, ReleaseKey: key, Log: slog.New(slog.DiscardHandler),
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return &attest.Policy{}, nil },
	})
	if err != nil {
		f.Fatal(err)
	}
	// A real connection's state, for its exporter.
	state := tlsState(f)
	paths := []string{api.PathChallenge, api.PathEvidence, api.PathConfirm, api.PathKey}
	f.Fuzz(func(t *testing.T, path int, body []byte) {
		r := httptest.NewRequest("POST", paths[uint(path)%4], bytes.NewReader(body))
		r.TLS = state
		w := httptest.NewRecorder()
		srv.NodeHandler().ServeHTTP(w, r)
		if w.Code == 500 || w.Code == 200 && uint(path)%4 != 0 {
			t.Errorf("HTTP %d: %s", w.Code, w.Body)
		}
	})
}
