package server_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// tokens knows operators by tokens that are their names and roles.
type tokens struct{}

func (tokens) Authenticate(ctx context.Context, token string) (server.Operator, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		return server.Operator{}, errors.New("it may take for ever")
	}
	if token == "" {
		return server.Operator{Name: "ana", Roles: []api.Role{api.RoleViewer}}, nil // nobody may ask for it
	}
	name, roles, _ := strings.Cut(token, "/")
	switch name {
	case "down":
		return server.Operator{Name: "ana", Roles: []api.Role{api.RoleOperator}}, fmt.Errorf("%w: the issuer is down", server.ErrCannotTell)
	case "bad":
		return server.Operator{Name: "ana", Roles: []api.Role{api.RoleOperator}}, errors.New("it expired")
	}
	op := server.Operator{Name: strings.ReplaceAll(name, "_", " ")}
	for r := range strings.SplitSeq(roles, "+") {
		op.Roles = append(op.Roles, api.Role(r))
	}
	return op, nil
}

// showing is a client that has these Authorization headers in each request.
type showing struct {
	http.RoundTripper
	header []string
}

func (b showing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for _, h := range b.header {
		r.Header.Add("Authorization", h)
	}
	return b.RoundTripper.RoundTrip(r)
}

func withHeader(c *http.Client, header ...string) *http.Client {
	return &http.Client{Transport: showing{c.Transport, header}}
}

func TestOperatorsMayShowAToken(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Bearer = tokens{} })
	url := "https://" + s.operators + api.PathMachines
	for name, tt := range map[string]struct {
		client *http.Client
		status int
		code   string
	}{
		"a good token":                        {withHeader(s.httpClient(), "Bearer ana/viewer"), 200, ""},
		"the scheme in lower case":            {withHeader(s.httpClient(), "bearer ana/viewer"), 200, ""},
		"a certificate":                       {s.operator(), 200, ""},
		"a token without a role":              {withHeader(s.httpClient(), "Bearer ana/"), 403, "forbidden"},
		"a token that is refused":             {withHeader(s.httpClient(), "Bearer bad"), 401, "unauthenticated"},
		"an issuer that is down":              {withHeader(s.httpClient(), "Bearer down"), 503, "unavailable"},
		"neither":                             {s.httpClient(), 401, "unauthenticated"},
		"both":                                {withHeader(s.operator(), "Bearer ana/viewer"), 400, "two-identities"},
		"both, and the token is bad":          {withHeader(s.operator(), "Bearer bad"), 400, "two-identities"},
		"two tokens":                          {withHeader(s.httpClient(), "Bearer bad", "Bearer ana/viewer"), 401, "unauthenticated"},
		"a good token, and a bad one":         {withHeader(s.httpClient(), "Bearer ana/viewer", "Bearer bad"), 401, "unauthenticated"},
		"another scheme":                      {withHeader(s.httpClient(), "Basic YTpi"), 401, "unauthenticated"},
		"an empty token":                      {withHeader(s.httpClient(), "Bearer "), 401, "unauthenticated"},
		"a name of control characters":        {withHeader(s.httpClient(), "Bearer a\tb/viewer"), 401, "unauthenticated"},
		"a name beyond ASCII":                 {withHeader(s.httpClient(), "Bearer \u0430na/viewer"), 401, "unauthenticated"},
		"a name between spaces":               {withHeader(s.httpClient(), "Bearer _ana/viewer"), 401, "unauthenticated"},
		"no name":                             {withHeader(s.httpClient(), "Bearer /viewer"), 401, "unauthenticated"},
		"a node's certificate":                {s.httpClient(s.certificate(pkix.Name{CommonName: "box-1"}, x509.ExtKeyUsageClientAuth)), 403, "forbidden"},
		"a token beside a node's certificate": {withHeader(s.httpClient(s.certificate(pkix.Name{CommonName: "box-1"}, x509.ExtKeyUsageClientAuth)), "Bearer ana/viewer"), 400, "two-identities"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := tt.client.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var e api.Error
			if resp.StatusCode != 200 {
				if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
					t.Fatal(err)
				}
			}
			if resp.StatusCode != tt.status || e.Code != tt.code {
				t.Errorf("HTTP %d, %+v; want %d, %q", resp.StatusCode, e, tt.status, tt.code)
			}
			if challenged := resp.Header.Get("WWW-Authenticate") != ""; challenged != (tt.status == 401) {
				t.Errorf("HTTP %d with WWW-Authenticate %t", resp.StatusCode, challenged)
			}
			if id := resp.Header.Get(api.HeaderRequestID); len(id) != 16 || tt.status != 200 && e.Request != id {
				t.Errorf("request id is %q in the header and %q in the body", id, e.Request)
			}
		})
	}
	if strings.Contains(s.log.String(), "ana/viewer") {
		t.Error("the log has a token")
	}
}

func TestTokensOpenNothingWhereNoneAreTaken(t *testing.T) {
	s := newScene(t, nil)
	if resp, err := withHeader(s.httpClient(), "Bearer ana/viewer").Get("https://" + s.operators + api.PathMachines); err == nil {
		resp.Body.Close()
		t.Errorf("HTTP %d without a certificate, want no connection", resp.StatusCode)
	}
}

func TestOperatorsAreToldApartInTheAuditLog(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Bearer = tokens{} })
	subject := func(cn string) *http.Client {
		return s.httpClient(s.certificate(pkix.Name{CommonName: cn, Organization: []string{api.OperatorOrganization}, OrganizationalUnit: []string{"operator"}}, x509.ExtKeyUsageClientAuth))
	}
	clients := []*http.Client{subject("alice"), withHeader(s.httpClient(), "Bearer alice/operator"), withHeader(s.httpClient(), "Bearer oidc:alice/operator")}
	for _, c := range clients {
		b := newBox(t, s.tpmCA)
		rec := record(b)
		rec.DiskGUID = fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-%012d", time.Now().UnixNano()%1e12)
		if status, body := s.raw(c, "POST", "https://"+s.operators+api.PathInstalls, rec); status != 200 {
			t.Fatalf("HTTP %d: %s", status, body)
		}
	}
	for _, cn := range []string{"oidc:alice", "service", "provisioner: 52:54:00:00:00:01", " alice", "al\u0456ce"} {
		if status, _ := s.raw(subject(cn), "GET", "https://"+s.operators+api.PathMachines, nil); status != 403 {
			t.Errorf("a certificate of %q: HTTP %d, want 403", cn, status)
		}
	}
	var by []string
	for e, err := range s.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		var d audit.Install
		if e.Kind == audit.KindInstall && json.Unmarshal(e.Data, &d) == nil {
			by = append(by, d.By)
		}
	}
	if got := strings.Join(by, ", "); got != "alice, oidc:alice, oidc:oidc:alice" {
		t.Errorf("the log names %s", got)
	}
}

func TestARevokedCertificateIsRefusedOnAnOpenConnection(t *testing.T) {
	var mu sync.Mutex
	var revoked bool
	var broken error
	s := newScene(t, func(c *server.Config) {
		c.Revoked = func(crt *x509.Certificate) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			return revoked && crt.Subject.CommonName == "alice", broken
		}
	})
	c := s.operator()
	ask := func() (int, string) {
		var e api.Error
		status, b := s.raw(c, "GET", "https://"+s.operators+api.PathMachines, nil)
		_ = json.Unmarshal(b, &e) // a list is no error
		return status, e.Code
	}
	if status, _ := ask(); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	mu.Lock()
	revoked = true
	mu.Unlock()
	if status, code := ask(); status != 403 || code != "certificate-revoked" {
		t.Errorf("revoked: HTTP %d, %s", status, code)
	}
	s.wantAlarms(audit.AlarmRevokedOperator)
	// Whoever has it cannot fill the log with it.
	before := strings.Count(s.kinds(), string(audit.KindAlarm))
	for range 100 {
		if status, code := ask(); status != 403 || code != "certificate-revoked" {
			t.Fatalf("again: HTTP %d, %s", status, code)
		}
	}
	if n := strings.Count(s.kinds(), string(audit.KindAlarm)) - before; n > 50 {
		t.Errorf("100 requests raise %d alarms", n)
	}
	mu.Lock()
	revoked, broken = false, errors.New("no file")
	mu.Unlock()
	if status, code := ask(); status != 503 || code != "unavailable" {
		t.Errorf("a list that cannot be read: HTTP %d, %s", status, code)
	}
	mu.Lock()
	broken = nil
	mu.Unlock()
	s.set(func() { s.offset = 31 * 366 * 24 * time.Hour })
	if status, code := ask(); status != 403 || code != "forbidden" {
		t.Errorf("a certificate that ended while it was connected: HTTP %d, %s", status, code)
	}
}

func TestOperatorsHaveLimitsOfTheirOwn(t *testing.T) {
	s := newScene(t, func(c *server.Config) {
		c.Bearer = tokens{}
		c.Limits = server.Limits{PerOperator: time.Hour, OperatorBurst: 2, OperatorPerAddress: time.Hour, OperatorAddressBurst: 7}
	})
	url := "https://" + s.operators + api.PathMachines
	ana, bob, eve := withHeader(s.httpClient(), "Bearer ana/viewer"), withHeader(s.httpClient(), "Bearer bob/viewer"), withHeader(s.httpClient(), "Bearer bad")
	for i, want := range []struct {
		client *http.Client
		status int
		text   string
	}{{ana, 200, ""}, {ana, 200, ""}, {ana, 429, "operator"}, {bob, 200, ""}, {eve, 401, ""}, {eve, 401, ""}, {bob, 200, ""}, {bob, 429, "address"}, {eve, 429, "address"}} {
		var e api.Error
		status, b := s.raw(want.client, "GET", url, nil)
		_ = json.Unmarshal(b, &e) // a list is no error
		if status != want.status || !strings.Contains(e.Message, want.text) {
			t.Errorf("request %d: HTTP %d, %+v; want %d, %q", i, status, e, want.status, want.text)
		}
	}
	// Nodes are not held up by operators.
	if ch := s.challenge(s.httpClient(), newBox(t, s.tpmCA)); ch.ID == "" {
		t.Error("no challenge")
	}
}

// gauge is a Meter that keeps what it is told.
type gauge struct {
	mu  sync.Mutex
	all map[string]int
}

func (g *gauge) add(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all[fmt.Sprintf(format, args...)]++
}

func (g *gauge) Request(api, route string, status int, _ time.Duration) {
	g.add("%s %s %d", api, route, status)
}
func (g *gauge) Verdict(r *attest.Result) { g.add("allowed %t %s", r.Allowed, codes(r)) }
func (g *gauge) Limited(api, limit string) {
	g.add("limited %s %s", api, limit)
}

func (g *gauge) count(what string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all[what]
}

func TestWhatIsAnsweredIsCounted(t *testing.T) {
	g := &gauge{all: map[string]int{}}
	s := newScene(t, func(c *server.Config) {
		c.Meter = g
		c.Limits = server.Limits{PerEK: time.Hour, EKBurst: 3, OperatorPerAddress: time.Hour, OperatorAddressBurst: 1}
	})
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	s.attest(b)
	s.attest(b)
	c := s.httpClient()
	s.send(c, s.answer(b, &api.Challenge{ID: "none"}))
	s.challenge(c, b)
	s.raw(c, "POST", "https://"+s.nodes+api.PathChallenge, &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic})
	s.raw(c, "GET", "https://"+s.nodes+"/favicon.ico", nil)
	s.raw(c, "GET", "https://"+s.nodes+api.PathChallenge, nil)
	s.raw(c, "GET", "https://"+s.nodes+api.PathMachines+"/x", nil)
	op := s.operator()
	s.raw(op, "GET", "https://"+s.operators+api.PathMachines+"/"+b.id.String(), nil)
	s.raw(op, "GET", "https://"+s.operators+api.PathMachines, nil)
	for what, want := range map[string]int{
		"node POST /v1/challenge 200":         3,
		"node POST /v1/challenge 429":         1,
		"limited node endorsement-key":        1,
		"node POST /v1/evidence 200":          1,
		"node POST /v1/evidence 403":          2,
		"allowed true ":                       1,
		"allowed false release.repeated":      1,
		"allowed false challenge.invalid":     1,
		"node none 404":                       2,
		"node none 405":                       1,
		"operator GET /v1/machines/{id} 200":  1,
		"operator GET /v1/machines 429":       1,
		"limited operator address":            1,
		"limited node address":                0,
		"operator none 404":                   0,
		"operator GET /v1/machines/{id}/ 200": 0,
	} {
		if got := g.count(what); got != want {
			t.Errorf("%s: counted %d, want %d; all: %v", what, got, want, g.all)
		}
	}
}

func TestEachAPIIsOnItsOwnListenerOnly(t *testing.T) {
	g := &gauge{all: map[string]int{}}
	s := newScene(t, func(c *server.Config) { c.Meter = g })
	var e api.Error
	for _, path := range []string{api.PathMachines, api.PathMachines + "/x/approve", api.PathInstalls, api.PathAudit, api.PathEvidenceLog + "/x"} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			if status := s.call(s.operator(), method, "https://"+s.nodes+path, "{}", &e); status != 404 || e.Code != "wrong-listener" {
				t.Errorf("%s %s on the node listener: HTTP %d, %+v", method, path, status, e)
			}
		}
	}
	for _, path := range []string{api.PathChallenge, api.PathEvidence, api.PathConfirm} {
		if status := s.call(s.operator(), "POST", "https://"+s.operators+path, "{}", &e); status != 404 || e.Code != "wrong-listener" {
			t.Errorf("%s on the operator listener: HTTP %d, %+v", path, status, e)
		}
	}
	if status := s.call(s.httpClient(), "GET", "https://"+s.nodes+"/", nil, &e); status != 404 || e.Code != "not-found" {
		t.Errorf("nothing at all: HTTP %d, %+v", status, e)
	}
	if status := s.call(s.httpClient(), "GET", "https://"+s.nodes+api.PathEvidence, nil, &e); status != 405 || e.Code != "method-not-allowed" {
		t.Errorf("another method: HTTP %d, %+v", status, e)
	}
	found := 0
	for entry, err := range s.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		var d audit.Alarm
		if entry.Kind == audit.KindAlarm && json.Unmarshal(entry.Data, &d) == nil && d.Name == audit.AlarmWrongListener && d.Peer == "127.0.0.1" && strings.Contains(d.What, "/v1/") {
			found++
		}
	}
	if found != 15 {
		t.Errorf("the audit log has alarms of %d requests for the operator API on the node listener, want 15", found)
	}
}
