package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/recovery"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
)

// recoveryScene is a machine with a disk key, and people.
type recoveryScene struct {
	*scene
	config    server.Config
	box       *box
	half      attest.Secret // the service's half of the disk key
	boot      *recovery.BootKey
	alice     *http.Client // opens
	bob, carl *http.Client // approve
}

func (s *scene) identity(name string, roles ...string) tls.Certificate {
	return s.certificate(pkix.Name{CommonName: name, Organization: []string{api.OperatorOrganization}, OrganizationalUnit: roles}, x509.ExtKeyUsageClientAuth)
}

func newRecoveryScene(t *testing.T, people ...server.Person) *recoveryScene {
	t.Helper()
	var config server.Config
	s := newScene(t, func(c *server.Config) {
		c.Bearer, c.People = anybody{}, people
		config = *c
	})
	r := &recoveryScene{scene: s, config: config, box: newBox(t, s.tpmCA)}
	s.enrol(r.box)
	_, resp := s.attest(r.box)
	_, secrets, _ := s.open(resp)
	r.half = secrets.DiskKey
	r.reboot()
	r.hire()
	return r
}

// hire gives people their certificates.
func (r *recoveryScene) hire() {
	r.alice = r.httpClient(r.identity("alice", "operator", "approver"))
	r.bob, r.carl = r.httpClient(r.identity("bob", "approver")), r.httpClient(r.identity("carl", "approver"))
}

// anybody takes a token for the name of an approver, who is an operator too if
// the name begins with an a. After a tilde is the subject.
type anybody struct{}

func (anybody) Authenticate(_ context.Context, token string) (server.Operator, error) {
	name, subject, _ := strings.Cut(token, "~")
	op := server.Operator{Name: name, Subject: subject, Roles: []api.Role{api.RoleApprover}}
	if strings.HasPrefix(token, "a") {
		op.Roles = append(op.Roles, api.RoleOperator)
	}
	return op, nil
}

// reboot gives the machine a new boot key.
func (r *recoveryScene) reboot() {
	r.Helper()
	var err error
	if r.boot, err = recovery.NewBootKey(r.box.id, disk); err != nil {
		r.Fatal(err)
	}
}

func (r *recoveryScene) url(path string) string {
	return "https://" + r.operators + api.PathMachines + "/" + r.box.id.String() + path
}

// answer of a step.
type step struct {
	api.Recovery
	api.Error
	status int
}

func (r *recoveryScene) step(c *http.Client, path string, body any) step {
	r.Helper()
	var a step
	status, b := r.raw(c, "POST", r.url(path), body)
	if err := json.Unmarshal(b, &a.Recovery); err != nil {
		r.Fatal(err)
	}
	if err := json.Unmarshal(b, &a.Error); err != nil {
		r.Fatal(err)
	}
	a.status = status
	return a
}

func (r *recoveryScene) request() string { return strings.Join(r.boot.Request(), "\n") }

func (r *recoveryScene) opened(c *http.Client) api.Recovery {
	r.Helper()
	a := r.step(c, api.PathRecovery, &api.RecoveryOpen{Request: r.request(), Reason: "network down"})
	if a.status != 200 {
		r.Fatalf("open: HTTP %d, %+v", a.status, a.Error)
	}
	return a.Recovery
}

func (r *recoveryScene) approve(c *http.Client, id string) step {
	r.Helper()
	return r.step(c, api.PathRecoveryApprove, &api.RecoveryApprove{Request: id, Reason: "called the store"})
}

func (r *recoveryScene) take(c *http.Client, id string) (int, *api.RecoveryCode, api.Error) {
	r.Helper()
	var code api.RecoveryCode
	var e api.Error
	status, b := r.raw(c, "POST", r.url(api.PathRecoveryCode), &api.RecoveryTake{Request: id})
	if err := json.Unmarshal(b, &code); err != nil {
		r.Fatal(err)
	}
	if err := json.Unmarshal(b, &e); err != nil {
		r.Fatal(err)
	}
	return status, &code, e
}

// A code has no room for a node name that is not made of the machine's id. Whoever asks
// hears that at once, and not when two people have approved.
func TestAMachineWithAnothersNodeNameHasNoRecovery(t *testing.T) {
	r := newRecoveryScene(t)
	board := newBox(t, r.tpmCA)
	if _, err := r.operatorClient().ReEnrol(t.Context(), r.box.id, board.id, "board exchanged"); err != nil {
		t.Fatal(err)
	}
	r.box = board
	r.set(func() { r.scene.boot.Reset++ })
	if status, resp := r.claims(board, "", otherDisk); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	key, err := recovery.NewBootKey(board.id, otherDisk)
	if err != nil {
		t.Fatal(err)
	}
	a := r.step(r.alice, api.PathRecovery, &api.RecoveryOpen{Request: strings.Join(key.Request(), "\n"), Reason: "network down"})
	if a.status != 409 || !strings.Contains(a.Message, "node name") || a.Hint == "" {
		t.Errorf("HTTP %d, %+v", a.status, a.Error)
	}
}

// The request was of another disk: its code would hold the key of the new one.
func TestAReinstallEndsARecovery(t *testing.T) {
	r := newRecoveryScene(t)
	req := r.opened(r.alice)
	if a := r.approve(r.bob, req.ID); a.status != 200 {
		t.Fatalf("HTTP %d, %+v", a.status, a.Error)
	}
	r.reinstall(r.box, otherDisk, time.Unix(5000, 0))
	r.set(func() { r.scene.boot.Reset++ })
	if status, resp := r.attestFrom(r.box, otherDisk, false); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	if a := r.approve(r.carl, req.ID); a.status != 409 || !strings.Contains(a.Message, "installed anew") {
		t.Errorf("HTTP %d, %+v", a.status, a.Error)
	}
	if status, code, e := r.take(r.alice, req.ID); status != 409 || len(code.Code) > 0 {
		t.Errorf("HTTP %d, %+v", status, e)
	}
}

// opens types a code at the machine.
func (r *recoveryScene) opens(code attest.Secret) (*recovery.Secrets, error) {
	reader := r.boot.Reader()
	var s *recovery.Secrets
	var err error
	for l := range strings.SplitSeq(string(code), "\n") {
		if _, s, err = reader.Line(l, r.now()); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func TestTwoPeopleRecoverAMachine(t *testing.T) {
	r := newRecoveryScene(t)
	before := r.kinds()
	req := r.opened(r.alice)
	if again := r.opened(r.alice); again.ID != req.ID {
		t.Errorf("the same request was opened twice: %s, %s", req.ID, again.ID)
	}
	if status, _, e := r.take(r.alice, req.ID); status != 409 || e.Code != "not-approved" || !strings.Contains(e.Hint, req.ID) {
		t.Errorf("without approval: HTTP %d, %+v", status, e)
	}
	if a := r.approve(r.alice, req.ID); a.status != 200 || len(a.Approvals) != 1 {
		t.Fatalf("who opened it may approve once: HTTP %d, %+v", a.status, a)
	}
	if status, _, e := r.take(r.alice, req.ID); status != 409 || e.Code != "not-approved" {
		t.Errorf("with one approval: HTTP %d, %+v", status, e)
	}
	if a := r.approve(r.bob, req.ID); a.status != 200 || len(a.Approvals) != 2 {
		t.Fatalf("HTTP %d, %+v", a.status, a)
	}
	if status, _, e := r.take(r.httpClient(r.identity("dora", "operator")), req.ID); status != 403 {
		t.Errorf("somebody else takes the code: HTTP %d, %+v", status, e)
	}
	status, code, e := r.take(r.alice, req.ID)
	if status != 200 {
		t.Fatalf("HTTP %d, %+v", status, e)
	}
	if status, _, e := r.take(r.alice, req.ID); status != 409 || !strings.Contains(e.Message, "given once") {
		t.Errorf("a second time: HTTP %d, %+v", status, e)
	}
	secrets, err := r.opens(code.Code)
	if err != nil || !bytes.Equal(secrets.DiskKey, r.half) || api.NodeName(r.box.id, secrets.NameDigits) != r.machine(r.box).NodeName {
		t.Errorf("got %+v, %v", secrets, err)
	}
	if got, want := strings.TrimPrefix(r.kinds(), before), " machine.recovery machine.recovery machine.recovery machine.recovery alarm"; got != want {
		t.Errorf("the log goes on with %q, want %q", got, want)
	}
	r.wantAlarms(audit.AlarmRecoveryGiven)

	// Nothing kept or logged holds the code or the half.
	var kept bytes.Buffer
	for e, err := range r.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		kept.Write(e.Data)
	}
	doc, err := r.memory.Document(t.Context(), "recovery", r.box.id.String())
	if err != nil {
		t.Fatal(err)
	}
	kept.Write(doc.Body)
	kept.WriteString(r.log.String())
	for l := range strings.SplitSeq(string(code.Code), "\n") {
		if bytes.Contains(kept.Bytes(), []byte(l)) {
			t.Error("a line of the code is kept or logged")
		}
	}

	// The machine restarts: the code is of no use.
	r.reboot()
	if s, err := r.opens(code.Code); !errors.Is(err, recovery.ErrOtherBoot) {
		t.Errorf("after a reboot: %v, %v", s, err)
	}
	// Another recovery can be opened, and needs its own approvals.
	second := r.opened(r.alice)
	if second.ID == req.ID || len(second.Approvals) != 0 {
		t.Errorf("got %+v", second)
	}
}

func TestOnePersonIsNotTwo(t *testing.T) {
	r := newRecoveryScene(t)
	shared := r.identity("erin", "operator", "approver")
	req := r.opened(r.httpClient(shared))
	bob := r.identity("bob", "approver")
	if a := r.approve(r.httpClient(bob), req.ID); a.status != 200 {
		t.Fatalf("HTTP %d, %+v", a.status, a.Error)
	}
	other := *r
	for name, c := range map[string]*http.Client{
		"the same certificate":         r.httpClient(bob),
		"the name in another key":      r.httpClient(r.identity("bob", "approver")),
		"the name in other letters":    r.httpClient(r.identity("BOB", "approver")),
		"the key under another name":   r.httpClient(r.renamed(bob, "frank", "approver")),
		"the opener's, under another":  r.httpClient(r.renamed(shared, "gus", "approver")),
		"the name in a token":          withHeader(r.httpClient(), "Bearer bob"),
		"another name in a token":      withHeader(r.httpClient(), "Bearer kim"),
		"an operator without the role": r.httpClient(r.identity("hal", "operator", "auditor")),
		"an auditor":                   r.httpClient(r.identity("ida", "auditor")),
	} {
		if a := other.approve(c, req.ID); a.status != 409 && a.status != 403 {
			t.Errorf("%s: HTTP %d, %+v", name, a.status, a.Recovery)
		}
	}
	if status, _, e := r.take(r.httpClient(shared), req.ID); status != 409 || e.Code != "not-approved" {
		t.Errorf("HTTP %d, %+v", status, e)
	}
	refused := audit.AlarmRecoveryRefused
	r.wantAlarms(refused, refused, refused, refused, refused, refused, refused)
	if a := r.approve(r.carl, req.ID); a.status != 200 || len(a.Approvals) != 2 {
		t.Errorf("another person with a certificate: HTTP %d, %+v", a.status, a)
	}
	if a := r.step(r.bob, api.PathRecovery, &api.RecoveryOpen{Request: r.request(), Reason: "x"}); a.status != 403 {
		t.Errorf("an approver opens a recovery: HTTP %d", a.status)
	}
}

// A certificate and a token are of two people only if the configuration says so.
func TestAPersonWithACertificateAndATokenIsOne(t *testing.T) {
	t.Parallel()
	bob, kim := server.Person{Name: "Bob", Certificates: []string{"bob"}}, server.Person{Name: "Kim", Tokens: []string{"kim"}}
	bobToo := server.Person{Name: "Bob", Certificates: []string{"bob"}, Tokens: []string{"kim", "lee"}}
	const cert, token, other = "certificate of bob", "token of kim", "token of lee"
	for name, c := range map[string]struct {
		people        []server.Person
		first, second string
		status        int
		says          string
	}{
		"nobody is configured":                     {nil, cert, token, 409, "nothing says that oidc:kim is another person"},
		"nobody is configured, token first":        {nil, token, cert, 409, "nothing says that bob is another person"},
		"one of them is":                           {[]server.Person{bob}, cert, token, 409, "nothing says"},
		"the other one is":                         {[]server.Person{kim}, token, cert, 409, "nothing says"},
		"both are, as two":                         {[]server.Person{bob, kim}, cert, token, 200, ""},
		"both are, as two, token first":            {[]server.Person{bob, kim}, token, cert, 200, ""},
		"both are, as one":                         {[]server.Person{bobToo}, cert, token, 409, "who cannot approve it twice"},
		"two tokens, nobody is":                    {nil, token, other, 200, ""},
		"two tokens of two, one of them is":        {[]server.Person{kim}, token, other, 200, ""},
		"two tokens that are configured as of one": {[]server.Person{bobToo}, token, other, 409, "who cannot approve it twice"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRecoveryScene(t, c.people...)
			clients := map[string]*http.Client{cert: r.bob, token: withHeader(r.httpClient(), "Bearer kim"), other: withHeader(r.httpClient(), "Bearer lee")}
			req := r.opened(r.alice)
			if a := r.approve(clients[c.first], req.ID); a.status != 200 {
				t.Fatalf("%s: HTTP %d, %+v", c.first, a.status, a.Error)
			}
			a := r.approve(clients[c.second], req.ID)
			if a.status != c.status || !strings.Contains(a.Message, c.says) {
				t.Errorf("%s: HTTP %d, %+v", c.second, a.status, a.Error)
			}
			want := 409
			if c.status == 200 {
				want = 200
			}
			if status, _, e := r.take(r.alice, req.ID); status != want {
				t.Errorf("the code: HTTP %d, %+v", status, e)
			}
		})
	}
}

// Who may choose the name in their token, an address or a nickname, is still one:
// the subject stays.
func TestATokensSubjectIsOnePersonUnderAnyName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		opener, first, second string
		status                int
	}{
		"two subjects":                               {"ann~u0", "kim~u1", "lee~u2", 200},
		"one subject under two names":                {"ann~u0", "kim~u1", "lee~u1", 409},
		"two subjects under one name":                {"ann~u0", "kim~u1", "kim~u2", 409},
		"the opener approves under another name":     {"ann~u1", "kim~u1", "lee~u2", 409},
		"the opener approves under the one and only": {"ann~u1", "ann~u1", "lee~u2", 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRecoveryScene(t)
			token := func(s string) *http.Client { return withHeader(r.httpClient(), "Bearer "+s) }
			req := r.opened(token(c.opener))
			statuses := []int{r.approve(token(c.first), req.ID).status, r.approve(token(c.second), req.ID).status}
			if got := slices.Max(statuses); got != c.status {
				t.Errorf("approvals: HTTP %d, want %d among them", statuses, c.status)
			}
			if status, _, e := r.take(token(c.opener), req.ID); status != c.status {
				t.Errorf("the code: HTTP %d, want %d: %+v", status, c.status, e)
			}
			// Under another name it is theirs, too.
			if status, _, e := r.take(token("a-new-name~"+strings.SplitAfter(c.opener, "~")[1]), req.ID); status != 409 {
				t.Errorf("the code under another name: HTTP %d, %+v", status, e)
			}
		})
	}
}

func TestACodeIsForWhoOpenedTheRecovery(t *testing.T) {
	t.Parallel()
	r := newRecoveryScene(t, server.Person{Name: "Alice", Certificates: []string{"alice"}, Tokens: []string{"a1"}})
	req := r.opened(r.alice)
	for _, c := range []*http.Client{r.bob, r.carl} {
		if a := r.approve(c, req.ID); a.status != 200 {
			t.Fatalf("HTTP %d, %+v", a.status, a.Error)
		}
	}
	if status, _, e := r.take(withHeader(r.httpClient(), "Bearer alice"), req.ID); status != 403 || !strings.Contains(e.Message, "the code is for them") {
		t.Errorf("the opener's name in a token: HTTP %d, %+v", status, e)
	}
	if status, _, e := r.take(withHeader(r.httpClient(), "Bearer a1"), req.ID); status != 200 {
		t.Errorf("the opener with a token, as configured: HTTP %d, %+v", status, e)
	}
}

func TestANameIsOfOnePerson(t *testing.T) {
	var config server.Config
	newScene(t, func(c *server.Config) {
		config = *c
	})
	for name, people := range map[string][]server.Person{
		"no name":               {{Certificates: []string{"a"}}},
		"nothing":               {{Name: "A"}},
		"a person twice":        {{Name: "A", Certificates: []string{"a"}}, {Name: "A", Tokens: []string{"b"}}},
		"a certificate twice":   {{Name: "A", Certificates: []string{"a"}}, {Name: "B", Certificates: []string{"A"}}},
		"a token twice":         {{Name: "A", Tokens: []string{"a"}}, {Name: "B", Tokens: []string{"a"}}},
		"a token as a name":     {{Name: "A", Certificates: []string{"oidc:a"}}},
		"the service":           {{Name: "A", Certificates: []string{"service"}}},
		"a name with a newline": {{Name: "A", Tokens: []string{"a\nb"}}},
	} {
		c := config
		c.Standing = storetest.Standing(t, new(storetest.Memory), newKey(t))
		c.KEK, c.People = bytes.Repeat([]byte{1}, server.KEKSize), people
		if _, err := server.New(c); err == nil || !strings.Contains(err.Error(), "people") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// renamed is a certificate for the key of another.
func (s *scene) renamed(c tls.Certificate, name string, roles ...string) tls.Certificate {
	s.Helper()
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		s.Fatal(err)
	}
	template := *leaf
	template.RawSubject, template.Subject = nil, pkix.Name{CommonName: name, Organization: []string{api.OperatorOrganization}, OrganizationalUnit: roles}
	der, err := x509.CreateCertificate(nil, &template, s.ca, leaf.PublicKey, s.caKey)
	if err != nil {
		s.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: c.PrivateKey}
}

func TestARecoveryHasItsTime(t *testing.T) {
	r := newRecoveryScene(t)
	for _, minutes := range []int{-1, 61, 1 << 40} {
		if a := r.step(r.alice, api.PathRecovery, &api.RecoveryOpen{Request: r.request(), Reason: "x", Minutes: minutes}); a.status != 400 {
			t.Errorf("%d minutes: HTTP %d", minutes, a.status)
		}
	}
	a := r.step(r.alice, api.PathRecovery, &api.RecoveryOpen{Request: r.request(), Reason: "x", Minutes: 10})
	if a.status != 200 || a.Expires.Sub(a.Opened) != 10*time.Minute {
		t.Fatalf("HTTP %d, %+v", a.status, a)
	}
	r.approve(r.alice, a.Recovery.ID)
	r.set(func() { r.offset = 10 * time.Minute })
	if b := r.approve(r.bob, a.Recovery.ID); b.status != 409 || !strings.Contains(b.Message, "was over") {
		t.Errorf("approved too late: HTTP %d, %+v", b.status, b.Error)
	}
	if status, _, _ := r.take(r.alice, a.Recovery.ID); status != 409 {
		t.Errorf("taken too late: HTTP %d", status)
	}
	req := r.opened(r.alice)
	if req.ID == a.Recovery.ID || len(req.Approvals) > 0 {
		t.Errorf("the recovery that was over goes on: %+v", req)
	}
	r.approve(r.alice, req.ID)
	r.approve(r.bob, req.ID)
	_, code, _ := r.take(r.alice, req.ID)
	r.set(func() { r.offset += 61 * time.Minute })
	var expired *recovery.ExpiredError
	if _, err := r.opens(code.Code); !errors.As(err, &expired) {
		t.Errorf("the code is typed too late: %v", err)
	}
}

func TestARecoveryIsOfOneMachine(t *testing.T) {
	r := newRecoveryScene(t)
	for name, f := range map[string]func() (*recovery.BootKey, error){
		"another machine": func() (*recovery.BootKey, error) { return recovery.NewBootKey(attest.MachineID{1}, disk) },
		"another disk":    func() (*recovery.BootKey, error) { return recovery.NewBootKey(r.box.id, otherDisk) },
	} {
		k, err := f()
		if err != nil {
			t.Fatal(err)
		}
		a := r.step(r.alice, api.PathRecovery, &api.RecoveryOpen{Request: strings.Join(k.Request(), " "), Reason: "x"})
		if a.status != 400 || !strings.Contains(a.Message, "not of this machine") {
			t.Errorf("%s: HTTP %d, %+v", name, a.status, a.Error)
		}
	}
	typo := "Z" + r.request()[1:]
	if typo == r.request() {
		typo = "Y" + typo[1:]
	}
	if a := r.step(r.alice, api.PathRecovery, &api.RecoveryOpen{Request: typo, Reason: "x"}); a.status != 400 || !strings.Contains(a.Message, "line 1, group 1") {
		t.Errorf("a typo: HTTP %d, %+v", a.status, a.Error)
	}
	for path, body := range map[string]any{
		api.PathRecovery:        &api.RecoveryOpen{Request: r.request()},
		api.PathRecoveryApprove: &api.RecoveryApprove{Request: "none", Reason: "x"},
		api.PathRecoveryCode:    &api.RecoveryTake{Request: "none"},
	} {
		if a := r.step(r.alice, path, body); a.status != 400 && a.status != 404 {
			t.Errorf("%s: HTTP %d", path, a.status)
		}
	}
	if status := r.call(r.alice, "GET", r.url(api.PathRecovery), nil, nil); status != 404 {
		t.Errorf("HTTP %d", status)
	}
	r.opened(r.alice)
	var seen api.Recovery
	if status := r.call(r.httpClient(r.identity("v", "viewer")), "GET", r.url(api.PathRecovery), nil, &seen); status != 200 || seen.By != "alice" {
		t.Errorf("HTTP %d, %+v", status, seen)
	}
}

func TestAnotherBootsRequestTakesThePlace(t *testing.T) {
	r := newRecoveryScene(t)
	first := r.opened(r.alice)
	r.approve(r.alice, first.ID)
	if a := r.step(r.httpClient(r.identity("dora", "operator")), api.PathRecovery, &api.RecoveryOpen{Request: r.request(), Reason: "x"}); a.status != 409 {
		t.Errorf("somebody else's request for the same boot: HTTP %d", a.status)
	}
	r.reboot()
	second := r.opened(r.alice)
	if second.ID == first.ID || len(second.Approvals) != 0 {
		t.Errorf("got %+v", second)
	}
	if a := r.approve(r.bob, first.ID); a.status != 404 {
		t.Errorf("the former one is approved: HTTP %d", a.status)
	}
}

func TestNotEveryMachineCanBeRecovered(t *testing.T) {
	for _, state := range []attest.EnrolmentState{attest.StateRevoked, attest.StateQuarantined, attest.StatePending} {
		r := newRecoveryScene(t)
		req := r.opened(r.alice)
		r.approve(r.alice, req.ID)
		r.approve(r.bob, req.ID)
		m := r.machine(r.box)
		m.State = state
		if err := r.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
			t.Fatal(err)
		}
		if a := r.step(r.alice, api.PathRecovery, &api.RecoveryOpen{Request: r.request(), Reason: "x"}); a.status != 409 {
			t.Errorf("%s, open: HTTP %d", state, a.status)
		}
		if a := r.approve(r.carl, req.ID); a.status != 409 {
			t.Errorf("%s, approve: HTTP %d", state, a.status)
		}
		if status, code, _ := r.take(r.alice, req.ID); status != 409 || code.Code != nil {
			t.Errorf("%s, take: HTTP %d", state, status)
		}
		if state == attest.StateRevoked {
			refused := audit.AlarmRecoveryRefused
			r.wantAlarms(refused, refused, refused)
		}
	}
	r := newRecoveryScene(t)
	r.box = newBox(t, r.tpmCA)
	r.reboot()
	if a := r.step(r.alice, api.PathRecovery, &api.RecoveryOpen{Request: r.request(), Reason: "x"}); a.status != 404 {
		t.Errorf("an unknown machine: HTTP %d", a.status)
	}
	rec := record(r.box)
	rec.DiskGUID = otherDisk
	if _, err := r.srv.Enrol(t.Context(), "line-1", rec); err != nil {
		t.Fatal(err)
	}
	if a := r.step(r.alice, api.PathRecovery, &api.RecoveryOpen{Request: r.request(), Reason: "x"}); a.status != 409 || !strings.Contains(a.Message, "nothing to recover") {
		t.Errorf("a machine without a disk key: HTTP %d, %+v", a.status, a.Error)
	}
}

func TestOfThoseWhoTakeACodeAtOnceOneGetsIt(t *testing.T) {
	r := newRecoveryScene(t)
	req := r.opened(r.alice)
	r.approve(r.alice, req.ID)
	r.approve(r.bob, req.ID)
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := 0
	for range 8 {
		wg.Go(func() {
			status, code, e := r.take(r.alice, req.ID)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case status == 200 && len(code.Code) > 0:
				codes++
			case status != 409 && status != 503:
				t.Errorf("HTTP %d, %+v", status, e)
			}
		})
	}
	wg.Wait()
	if codes != 1 {
		t.Errorf("%d codes, want 1", codes)
	}
	r.wantAlarms(audit.AlarmRecoveryGiven)
}

func TestACodeIsLostRatherThanGivenTwice(t *testing.T) {
	for _, persisted := range []bool{false, true} {
		r := newRecoveryScene(t)
		req := r.opened(r.alice)
		r.approve(r.alice, req.ID)
		r.approve(r.bob, req.ID)
		r.set(func() {
			r.fail = func(m string) (error, bool) {
				if m == "Commit" {
					return errors.New("killed"), persisted
				}
				return nil, false
			}
		})
		if status, code, _ := r.take(r.alice, req.ID); status != 503 || code.Code != nil {
			t.Errorf("persisted %t: HTTP %d", persisted, status)
		}
		r.set(func() { r.fail = nil })
		status, code, e := r.take(r.alice, req.ID)
		if persisted && (status != 409 || code.Code != nil) {
			t.Errorf("a code that was marked given is given: HTTP %d, %+v", status, e)
		}
		if !persisted && status != 200 {
			t.Errorf("a code that was not marked given is not: HTTP %d, %+v", status, e)
		}
		if again := r.opened(r.alice); persisted && again.ID == req.ID {
			t.Error("no other recovery can be opened")
		}
	}
}

func TestTheCodeOfAKeyThatIsBeingChangedHoldsBoth(t *testing.T) {
	r := newRecoveryScene(t)
	if status := r.call(r.alice, "POST", r.url("/rotate-key"), &api.StateChange{Reason: "yearly"}, nil); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	r.set(func() { r.scene.boot.Reset++ })
	c := r.httpClient()
	ev := r.answer(r.box, r.challenge(c, r.box))
	ev.Evidence.Disk.StateExists = true
	_, resp := r.send(c, ev)
	_, secrets, _ := r.open(resp)
	if secrets.NextDiskKey == nil {
		t.Fatal("the release holds no next key")
	}
	req := r.opened(r.alice)
	r.approve(r.alice, req.ID)
	r.approve(r.bob, req.ID)
	_, code, _ := r.take(r.alice, req.ID)
	got, err := r.opens(code.Code)
	if err != nil || !bytes.Equal(got.DiskKey, secrets.DiskKey) || !bytes.Equal(got.NextDiskKey, secrets.NextDiskKey) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// A recovery whose code may have been given after a backup was made does not
// come back with it.
func TestARestoreForgetsOpenRecoveries(t *testing.T) {
	r := newRecoveryScene(t)
	req := r.opened(r.alice)
	r.approve(r.alice, req.ID)
	doc, err := r.memory.Document(t.Context(), "recovery", r.box.id.String())
	if err != nil {
		t.Fatal(err)
	}
	restored := server.NewRecovery()
	restored.Add(server.Record{Machine: r.machine(r.box)})
	if restored.Add(server.Record{Document: doc}) {
		t.Error("a recovery is written as it was")
	}
	for e, err := range r.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindRecovery || e.Kind == audit.KindAlarm {
			if err := restored.Replay(e); err != nil {
				t.Error(err)
			}
		}
	}
	records, entries, err := restored.Finish(audit.Head{}, audit.Restore{Complete: true}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range records {
		if rec.Document != nil && rec.Document.Kind == "recovery" {
			t.Error("the recovery is in the restored store")
		}
	}
	var summary audit.Restore
	if err := json.Unmarshal(entries[0].Data, &summary); err != nil || !summary.Complete {
		t.Errorf("the restore is not complete: %+v, %v", summary, err)
	}
}

// A store that was restored and that nobody has accepted gives no codes.
func TestNoCodeIsGivenWhileReleasesAreHeld(t *testing.T) {
	r := newRecoveryScene(t)
	req := r.opened(r.alice)
	r.approve(r.alice, req.ID)
	r.approve(r.bob, req.ID)
	held := &server.Document{Kind: "restore", Name: "last", Body: json.RawMessage(`{"status":{"held":true}}`)}
	if err := r.memory.Commit(t.Context(), &server.Change{Documents: []*server.Document{held}}); err != nil {
		t.Fatal(err)
	}
	c := r.config
	c.Standing = storetest.Standing(t, r.memory, r.release)
	var err error
	if r.srv, err = server.New(c); err != nil {
		t.Fatal(err)
	}
	r.listen()
	r.hire()
	if status, code, e := r.take(r.alice, req.ID); status != 503 || e.Code != "held" || code.Code != nil {
		t.Errorf("HTTP %d, %+v", status, e)
	}
	if a := r.step(r.alice, api.PathRecovery, &api.RecoveryOpen{Request: r.request(), Reason: "x"}); a.status != 503 {
		t.Errorf("open: HTTP %d", a.status)
	}
}
