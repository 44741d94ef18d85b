package cluster

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// recorder is Events that can fail.
type recorder struct {
	mu      sync.Mutex
	got     []string
	alarms  []string
	whats   []string
	expects map[string]bool // names of nodes
	fail    int             // so many calls fail first
}

func (r *recorder) TokenAlarm(_ context.Context, nodeName string, a audit.Alarm) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail > 0 {
		r.fail--
		return errors.New("made to fail")
	}
	r.alarms = append(r.alarms, string(a.Name)+" "+nodeName)
	r.whats = append(r.whats, a.What)
	return nil
}

func (r *recorder) ExpectsNode(_ context.Context, nodeName string) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.expects[nodeName], nil
}

func (r *recorder) TokenEvent(_ context.Context, t audit.Token) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail > 0 {
		r.fail--
		return errors.New("made to fail")
	}
	r.got = append(r.got, string(t.Event)+" "+t.NodeName)
	return nil
}

func (r *recorder) list() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.got, ", ")
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func newLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(testLog{t}, nil)) }

// clock can be moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// scene is a cluster under test, driven round by round instead of by Run.
type scene struct {
	*testing.T
	distro Distro
	api    *fakeAPI
	c      *Cluster
	clock  *clock
	events *recorder
	log    bytes.Buffer
}

func newScene(t *testing.T) *scene { return newDistroScene(t, Kubernetes) }

func newDistroScene(t *testing.T, d Distro) *scene {
	t.Helper()
	s := &scene{T: t, distro: d, api: newFakeAPI(t), clock: &clock{now: time.Now()}, events: &recorder{expects: map[string]bool{}}}
	s.api.distro, s.api.clock = d, s.clock.read
	s.c = s.open()
	return s
}

// open makes another Cluster for the same API server, as a new process does.
func (s *scene) open() *Cluster {
	s.Helper()
	log := slog.New(slog.NewTextHandler(io.MultiWriter(testLog{s.T}, &s.log), nil))
	c, err := New(Config{Distro: s.distro, Kubeconfig: s.api.kubeconfig(), Log: log, Clock: s.clock.read})
	if err != nil {
		s.Fatal(err)
	}
	if err := c.prepare(s.Context()); err != nil {
		s.Fatal(err)
	}
	return c
}

func (s *scene) mint(node string) *server.Token {
	s.Helper()
	t, err := s.c.Mint(s.Context(), node)
	if err != nil {
		s.Fatal(err)
	}
	return t
}

// round moves the clock past the next look at each node and watches once.
func (s *scene) round() error {
	s.clock.advance(lookUnused)
	return s.c.watch(s.Context(), s.events, s.c.outstanding())
}

func (s *scene) mustRound() {
	s.Helper()
	if err := s.round(); err != nil {
		s.Fatal(err)
	}
}

func (s *scene) want(events string, tokens int) {
	s.Helper()
	if got := s.events.list(); got != events {
		s.Errorf("events are %q, want %q", got, events)
	}
	if n := s.api.tokens(); n != tokens {
		s.Errorf("%d tokens in the cluster, want %d", n, tokens)
	}
}

func (s *scene) wantAlarms(want string) {
	s.Helper()
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	if got := strings.Join(s.events.alarms, ", "); got != want {
		s.Errorf("alarms are %q (%q), want %q", got, s.events.whats, want)
	}
}

func TestANodeJoinsAndItsTokenIsTakenBack(t *testing.T) {
	s := newScene(t)
	token := s.mint("box-1")
	if token.Server != s.api.srv.URL || len(token.CA) == 0 || token.Expires.After(s.clock.read().Add(MaxTTL)) {
		t.Errorf("token is %+v", token)
	}
	s.mustRound()
	s.want("", 1)
	if code := s.api.kubelet().ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "digital signature", "client auth"); code != 201 {
		t.Fatalf("signing request: HTTP %d", code)
	}
	s.mustRound()
	if got := s.api.conditions("csr-1"); got != "Approved" {
		t.Errorf("conditions are %q", got)
	}
	s.want("used box-1", 1)
	s.api.setNode("box-1", "boot-1", false)
	s.mustRound()
	s.want("used box-1", 1)
	s.api.setNode("box-1", "boot-1", true)
	s.mustRound()
	s.want("used box-1, joined box-1, revoked box-1", 0)
	if len(s.c.outstanding()) != 0 {
		t.Error("the token is still watched")
	}
	if code := s.api.kubelet().ask(string(token.Secret), "csr-2", nodeRequest("box-1"), "client auth"); code != 401 {
		t.Errorf("the token works after it was taken back: HTTP %d", code)
	}
}

func TestRunDoesItAll(t *testing.T) {
	api, events := newFakeAPI(t), &recorder{}
	failures := 1
	api.fail = func(r *http.Request) int {
		if r.Method == "POST" && r.URL.Path == bindingPath && failures > 0 {
			failures--
			return 500
		}
		return 0
	}
	c, err := New(Config{Kubeconfig: api.kubeconfig(), Log: newLog(t), Poll: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Mint(t.Context(), "box-1"); err == nil {
		t.Error("a token was minted before its group was bound")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx, events) }()
	for !c.prepared.Load() {
		time.Sleep(time.Millisecond)
	}
	token, err := c.Mint(ctx, "box-1")
	if err != nil {
		t.Fatal(err)
	}
	api.kubelet().ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "client auth")
	api.setNode("box-1", "boot-1", true)
	for api.tokens() > 0 || !strings.Contains(events.list(), "revoked") {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRequestsForAnythingElseEndTheToken(t *testing.T) {
	tests := map[string]struct {
		request *x509.CertificateRequest
		usages  []string
	}{
		"another node":         {nodeRequest("box-2"), []string{"client auth"}},
		"a cluster admin":      {&x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}}, []string{"client auth"}},
		"a second group":       {&x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:box-1", Organization: []string{"system:nodes", "system:masters"}}}, []string{"client auth"}},
		"no group":             {&x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:box-1"}}, []string{"client auth"}},
		"server usage":         {nodeRequest("box-1"), []string{"client auth", "server auth"}},
		"no client usage":      {nodeRequest("box-1"), []string{"digital signature"}},
		"a DNS name":           {&x509.CertificateRequest{Subject: nodeRequest("box-1").Subject, DNSNames: []string{"kubernetes"}}, []string{"client auth"}},
		"a second name":        {&x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:box-1", Organization: []string{"system:nodes"}, ExtraNames: []pkix.AttributeTypeAndValue{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "system:node:box-2"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "system:node:box-1"}}}}, []string{"client auth"}},
		"an organization unit": {&x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:box-1", Organization: []string{"system:nodes"}, OrganizationalUnit: []string{"x"}}}, []string{"client auth"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			token := s.mint("box-1")
			if code := s.api.kubelet().ask(string(token.Secret), "csr-1", tt.request, tt.usages...); code != 201 {
				t.Fatalf("signing request: HTTP %d", code)
			}
			s.mustRound()
			if got := s.api.conditions("csr-1"); got != "" {
				t.Errorf("conditions are %q", got)
			}
			s.want("revoked box-1", 0)
			s.wantAlarms("token.request-refused box-1")
		})
	}
}

func TestOneKeyForEachToken(t *testing.T) {
	s := newScene(t)
	token := s.mint("box-1")
	k := s.api.kubelet()
	k.ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "client auth")
	s.mustRound()
	k.ask(string(token.Secret), "csr-again", nodeRequest("box-1"), "client auth")
	s.mustRound()
	if got := s.api.conditions("csr-again"); got != "Approved" {
		t.Errorf("the same kubelet's second request: conditions are %q", got)
	}
	s.want("used box-1", 1)
	s.api.kubelet().ask(string(token.Secret), "csr-thief", nodeRequest("box-1"), "client auth")
	s.mustRound()
	if got := s.api.conditions("csr-thief"); got != "" {
		t.Errorf("a request with another key: conditions are %q", got)
	}
	s.want("used box-1, revoked box-1", 0)
	s.wantAlarms("token.request-refused box-1")
}

func TestRequestsOfOthersAreLeftAlone(t *testing.T) {
	s := newScene(t)
	s.mint("box-1")
	if code := s.api.kubelet().ask(adminToken, "csr-admin", nodeRequest("box-1"), "client auth"); code != 201 {
		t.Fatalf("HTTP %d", code)
	}
	s.mustRound()
	if got := s.api.conditions("csr-admin"); got != "" {
		t.Errorf("conditions are %q", got)
	}
	s.want("", 1)
}

func TestATokenExpires(t *testing.T) {
	s := newScene(t)
	s.mint("box-1")
	s.clock.advance(MaxTTL - lookUnused - time.Second)
	s.mustRound()
	s.want("", 1)
	s.clock.advance(2 * time.Second)
	s.mustRound()
	s.want("expired box-1", 0)
}

func TestTheNodeObjectOfAnEarlierInstallIsNoJoin(t *testing.T) {
	s := newScene(t)
	s.api.setNode("box-1", "boot-1", true)
	token := s.mint("box-1")
	s.api.kubelet().ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "client auth")
	s.mustRound()
	s.want("used box-1", 1)
	s.api.setNode("box-1", "boot-2", true)
	s.mustRound()
	s.want("used box-1, joined box-1, revoked box-1", 0)
}

func TestANodeThatStillHasItsCertificateJoinsWithoutTheToken(t *testing.T) {
	s := newScene(t)
	s.api.setNode("box-1", "boot-1", true)
	s.mint("box-1")
	s.api.setNode("box-1", "boot-2", true)
	s.mustRound()
	s.want("joined box-1, revoked box-1", 0)
}

func TestOneTokenForEachNodeAtATime(t *testing.T) {
	s := newScene(t)
	first := s.mint("box-1")
	second := s.mint("box-1")
	if first.ID == second.ID {
		t.Error("the same token twice")
	}
	s.mint("box-2")
	s.mustRound()
	s.want("revoked box-1", 2)
}

func TestRevokeIsIdempotentAndChecksItsArgument(t *testing.T) {
	s := newScene(t)
	token := s.mint("box-1")
	for range 2 {
		if err := s.c.Revoke(t.Context(), token.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.c.Revoke(t.Context(), "aaaaaa"); err != nil {
		t.Errorf("a token that never was: %v", err)
	}
	for _, bad := range []string{"", "../../x", "abcdef.0123456789abcdef", "ABCDEF"} {
		if err := s.c.Revoke(t.Context(), bad); err == nil || strings.Contains(err.Error(), "0123456789") {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	s.mustRound()
	s.want("revoked box-1", 0)
}

func TestEventsAreToldAgainInTheirOrder(t *testing.T) {
	s := newScene(t)
	token := s.mint("box-1")
	s.api.kubelet().ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "client auth")
	s.api.setNode("box-1", "boot-1", true)
	s.events.fail = 2
	for range 2 {
		if err := s.round(); err == nil {
			t.Error("no error")
		}
	}
	s.mustRound()
	s.want("used box-1, joined box-1, revoked box-1", 0)
}

func TestAnotherProcessGoesOnWithTokens(t *testing.T) {
	s := newScene(t)
	s.api.setNode("box-1", "boot-1", true)
	token := s.mint("box-1")
	s.c = s.open()
	s.mustRound()
	s.want("", 1)
	s.api.kubelet().ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "client auth")
	s.mustRound()
	s.c = s.open() // the approved request is found again
	s.api.kubelet().ask(string(token.Secret), "csr-thief", nodeRequest("box-1"), "client auth")
	s.mustRound()
	s.want("used box-1, used box-1, revoked box-1", 0)
}

func TestFailuresOfTheAPIServerLoseNothing(t *testing.T) {
	s := newScene(t)
	token := s.mint("box-1")
	s.api.kubelet().ask(string(token.Secret), "csr-1", nodeRequest("box-1"), "client auth")
	for _, method := range []string{"PUT", "DELETE", "GET"} {
		s.api.mu.Lock()
		s.api.fail = func(r *http.Request) int {
			if r.Method == method {
				return 503
			}
			return 0
		}
		s.api.mu.Unlock()
		if err := s.round(); err == nil {
			t.Errorf("%s fails: no error", method)
		}
		if method == "PUT" {
			s.api.fail = nil
			s.mustRound()
			s.api.setNode("box-1", "boot-1", true)
		}
	}
	s.api.mu.Lock()
	s.api.fail = nil
	s.api.mu.Unlock()
	s.mustRound()
	s.want("used box-1, joined box-1, revoked box-1", 0)
}

func TestAMintThatFailsLeavesNoToken(t *testing.T) {
	s := newScene(t)
	s.api.fail = func(r *http.Request) int {
		if r.Method == "POST" {
			return 500
		}
		return 0
	}
	if _, err := s.c.Mint(t.Context(), "box-1"); err == nil || !strings.Contains(err.Error(), "node box-1") {
		t.Errorf("got %v", err)
	}
	if _, err := s.c.Mint(t.Context(), "Box_1"); err == nil {
		t.Error("a bad node name: no error")
	}
	s.want("", 0)
	if len(s.c.outstanding()) != 0 {
		t.Error("a token is watched that was not made")
	}
}

func TestTheBindingIsPutRight(t *testing.T) {
	s := newScene(t)
	s.api.mu.Lock()
	b := s.api.bindings[bindingName]
	b.Metadata.ResourceVersion = "7"
	b.Subjects = append(b.Subjects, subject{Kind: "Group", Name: "system:authenticated"})
	s.api.mu.Unlock()
	s.open()
	if got := s.api.bindings[bindingName].Subjects; len(got) != 1 || got[0].Name != Group {
		t.Errorf("subjects are %+v", got)
	}
	s.api.bindings[bindingName].RoleRef.Name = "cluster-admin"
	if err := s.c.prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "cluster-admin") {
		t.Errorf("a binding to another role: got %v", err)
	}
}

func TestTokensPrintRedacted(t *testing.T) {
	s := newScene(t)
	token := s.mint("box-1")
	_, value, _ := strings.Cut(string(token.Secret), ".")
	if out := fmt.Sprintf("%v %+v %#v", token, *token, *token); strings.Contains(out, value) {
		t.Errorf("prints the secret: %s", out)
	}
}

func TestRandomTextIsOfTheTokenAlphabet(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		s, err := randomText(16)
		if err != nil || len(s) != 16 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") != "" || seen[s] {
			t.Fatalf("got %q, %v", s, err)
		}
		seen[s] = true
	}
}

func TestNewRefuses(t *testing.T) {
	api := newFakeAPI(t)
	good := Config{Kubeconfig: api.kubeconfig(), Log: newLog(t)}
	plain := api.kubeconfig()
	b, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(api.srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(plain, []byte(strings.ReplaceAll(string(b), "https://"+u.Host, "http://"+u.Host)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no kubeconfig":      func(c *Config) { c.Kubeconfig = "" },
		"a missing one":      func(c *Config) { c.Kubeconfig = "/does/not/exist" },
		"an unknown context": func(c *Config) { c.Context = "x" },
		"plain HTTP":         func(c *Config) { c.Kubeconfig = plain },
		"no log":             func(c *Config) { c.Log = nil },
		"too long a TTL":     func(c *Config) { c.TTL = MaxTTL + 1 },
		"an unknown distro":  func(c *Config) { c.Distro = "k8s" },
		"a plain server":     func(c *Config) { c.Server = "http://10.0.0.1" },
		"a negative poll":    func(c *Config) { c.Poll = -1 },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"), "client auth")
	f.Add([]byte(""), "")
	f.Fuzz(func(t *testing.T, request []byte, usage string) {
		r, err := check(&csrSpec{Request: request, SignerName: signer, Usages: []string{usage}, Groups: []string{Group}}, "box-1")
		if err != nil {
			return
		}
		if r.Subject.CommonName != "system:node:box-1" || usage != "client auth" {
			t.Errorf("accepted %+v with usage %q", r.Subject, usage)
		}
		if block, _ := pem.Decode(request); block == nil {
			t.Error("accepted what is no PEM")
		}
	})
}
