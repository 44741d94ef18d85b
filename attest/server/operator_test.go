package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/strict"
)

func TestOperatorsNeedTheirCertificate(t *testing.T) {
	s := newScene(t, nil)
	url := "https://" + s.operators + api.PathMachines
	if status := s.call(s.operator(), "GET", url, nil, nil); status != 200 {
		t.Errorf("an operator: HTTP %d", status)
	}
	node := s.httpClient(s.certificate(pkix.Name{CommonName: "box-1"}, x509.ExtKeyUsageClientAuth))
	var e api.Error
	if status := s.call(node, "GET", url, nil, &e); status != 403 || e.Code != "forbidden" {
		t.Errorf("a certificate of another organization: HTTP %d, %+v", status, e)
	}
	foreign := s.httpClient(s.certificate(pkix.Name{CommonName: "alice", Organization: []string{"another"}, OrganizationalUnit: []string{"operator", "viewer"}}, x509.ExtKeyUsageClientAuth))
	if status := s.call(foreign, "GET", url, nil, &e); status != 403 || !strings.Contains(e.Message, "organization") {
		t.Errorf("a certificate of another organization that names roles: HTTP %d, %+v", status, e)
	}
	nameless := s.httpClient(s.certificate(pkix.Name{Organization: []string{api.OperatorOrganization}}, x509.ExtKeyUsageClientAuth))
	if status := s.call(nameless, "GET", url, nil, nil); status != 403 {
		t.Errorf("a certificate without a name: HTTP %d", status)
	}
	for name, c := range map[string]*http.Client{
		"no certificate":       s.httpClient(),
		"a server certificate": s.httpClient(s.certificate(pkix.Name{CommonName: "x", Organization: []string{api.OperatorOrganization}}, x509.ExtKeyUsageServerAuth)),
	} {
		if resp, err := c.Get(url); err == nil {
			resp.Body.Close()
			t.Errorf("%s: HTTP %d", name, resp.StatusCode)
		}
	}
	// The operator API is not on the nodes' listener, whoever asks.
	if status, _ := s.raw(s.operator(), "GET", "https://"+s.nodes+api.PathMachines, nil); status != 404 {
		t.Errorf("the operator API on the node listener: HTTP %d", status)
	}
	// Nor does the handler alone trust a connection without a verified chain.
	w := &response{header: http.Header{}}
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.srv.OperatorHandler().ServeHTTP(w, r)
	if w.status != 403 {
		t.Errorf("plain HTTP: HTTP %d", w.status)
	}
	cert, err := x509.ParseCertificate(s.certificate(pkix.Name{CommonName: "alice", Organization: []string{api.OperatorOrganization}, OrganizationalUnit: []string{"viewer"}}, x509.ExtKeyUsageClientAuth).Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[uint16]int{tls.VersionTLS12: 403, tls.VersionTLS13: 200} {
		w := httptest.NewRecorder()
		r.TLS = &tls.ConnectionState{Version: version, VerifiedChains: [][]*x509.Certificate{{cert}}}
		s.srv.OperatorHandler().ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: HTTP %d, want %d", tls.VersionName(version), w.Code, want)
		}
	}
}

// response is a ResponseWriter.
type response struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *response) Header() http.Header         { return w.header }
func (w *response) WriteHeader(status int)      { w.status = status }
func (w *response) Write(b []byte) (int, error) { return w.body.Write(b) }

func TestStatesOfAMachine(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	op := s.operator()
	path := "https://" + s.operators + api.PathMachines + "/" + b.id.String() + "/"
	post := func(verb, reason string) (int, api.Machine) {
		t.Helper()
		var m api.Machine
		return s.call(op, "POST", path+verb, api.StateChange{Reason: reason}, &m), m
	}
	// mends asks for what cannot be, and wants the command that can.
	mends := func(verb, command string) {
		t.Helper()
		var e api.Error
		if s.call(op, "POST", path+verb, api.StateChange{Reason: "r"}, &e); e.Code != "conflict" || !strings.HasSuffix(e.Hint, "sealift machine "+command+" "+b.id.String()+" --reason TEXT") {
			t.Errorf("%s is answered with %+v, want the hint to %s", verb, e, command)
		}
	}
	if status, _ := post("approve", "r"); status != 404 {
		t.Errorf("approve an unknown machine: HTTP %d", status)
	}
	if status, resp := s.attest(b); status != 403 || codes(resp.Result) != string(attest.CodeMachineUnknown) {
		t.Fatalf("unknown: HTTP %d, %s", status, codes(resp.Result))
	}
	if status, resp := s.attest(b); status != 403 || codes(resp.Result) != string(attest.CodeMachinePending) {
		t.Fatalf("pending: HTTP %d, %s", status, codes(resp.Result))
	}
	mends("reinstate", "approve")
	steps := []struct {
		verb   string
		status int
		state  attest.EnrolmentState
		code   attest.Code // of evidence after it
	}{
		{"reinstate", 409, attest.StatePending, attest.CodeMachinePending},
		{"approve", 200, attest.StateEnrolled, ""},
		{"approve", 200, attest.StateEnrolled, attest.CodeReleaseRepeated},
		{"revoke", 200, attest.StateRevoked, attest.CodeMachineRevoked},
		{"approve", 409, attest.StateRevoked, attest.CodeMachineRevoked},
		{"reinstate", 200, attest.StateEnrolled, attest.CodeReleaseRepeated},
	}
	for _, step := range steps {
		if step.verb == "approve" && step.status == 409 {
			mends("approve", "reinstate")
		}
		status, _ := post(step.verb, "because "+step.verb)
		if m := s.machine(b); status != step.status || m.State != step.state {
			t.Errorf("%s: HTTP %d, state %s; want %d, %s", step.verb, status, m.State, step.status, step.state)
		}
		if status, resp := s.attest(b); !strings.Contains(codes(resp.Result), string(step.code)) || (status == 200) != (step.code == "") {
			t.Errorf("after %s: HTTP %d, %s; want %s", step.verb, status, codes(resp.Result), step.code)
		}
	}
	if status, _ := post("revoke", " "); status != 400 {
		t.Errorf("no reason: HTTP %d", status)
	}
	if status, _ := post("revoke", strings.Repeat("x", 1025)); status != 400 {
		t.Errorf("an endless reason: HTTP %d", status)
	}
	var who []string
	for e, err := range s.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindState {
			var d audit.StateChange
			if err := json.Unmarshal(e.Data, &d); err != nil {
				t.Fatal(err)
			}
			who = append(who, string(d.From)+">"+string(d.To)+" by "+d.By)
		}
	}
	if got, want := strings.Join(who, ", "), ">pending by service, pending>enrolled by alice, enrolled>enrolled by alice, enrolled>revoked by alice, revoked>enrolled by alice"; got != want {
		t.Errorf("log says %s, want %s", got, want)
	}
}

func TestRevokingTakesBackTheJoinToken(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	if status, _ := s.attest(b); status != 200 || s.tokens.open() != 1 {
		t.Fatalf("HTTP %d, %d tokens", status, s.tokens.open())
	}
	if status := s.call(s.operator(), "POST", "https://"+s.operators+api.PathMachines+"/"+b.id.String()+"/revoke", api.StateChange{Reason: "stolen"}, nil); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	if n := s.tokens.open(); n != 0 {
		t.Errorf("%d tokens are out", n)
	}
}

func TestInstallRecordsEnrol(t *testing.T) {
	s := newScene(t, nil)
	a, b := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	op := s.operator()
	url := "https://" + s.operators + api.PathInstalls
	install := func(rec *api.InstallRecord) (int, api.Machine) {
		t.Helper()
		var m api.Machine
		return s.call(op, "POST", url, rec, &m), m
	}
	status, m := install(record(a))
	if status != 200 || m.State != attest.StateEnrolled || m.NodeName != "box-"+a.id.String()[:10] || m.DiskGUID != disk {
		t.Fatalf("HTTP %d, %+v", status, m)
	}
	if status, _ := s.attest(a); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	before := s.kinds()
	if status, _ := install(record(a)); status != 200 || s.kinds() != before || !s.machine(a).Released {
		t.Errorf("the same record again: HTTP %d, log %s", status, s.kinds())
	}
	if status, _ := install(record(b)); status != 409 {
		t.Errorf("another's disk: HTTP %d", status)
	}

	again := record(a)
	again.DiskGUID = otherDisk

	// A revoked machine stays revoked.
	if status := s.call(op, "POST", "https://"+s.operators+api.PathMachines+"/"+a.id.String()+"/revoke", api.StateChange{Reason: "r"}, nil); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	again.Finished = again.Finished.Add(time.Hour)
	if status, _ := install(again); status != 409 || s.machine(a).State != attest.StateRevoked {
		t.Errorf("a revoked machine: HTTP %d, state %s", status, s.machine(a).State)
	}
	if _, err := s.srv.Enrol(t.Context(), "line-1", again); !errors.Is(err, server.ErrRefused) {
		t.Errorf("a revoked machine: %v, want %v", err, server.ErrRefused)
	}

	// So does one in quarantine.
	c := newBox(t, s.tpmCA)
	third := record(c)
	third.DiskGUID = "6c0d1e0c-3b1f-4a56-9d0e-0123456789ab"
	if status, _ := install(third); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	if _, err := s.operatorClient().Quarantine(t.Context(), c.id, "r"); err != nil {
		t.Fatal(err)
	}
	third.DiskGUID = otherDisk
	if status, _ := install(third); status != 409 || s.machine(c).State != attest.StateQuarantined {
		t.Errorf("a quarantined machine: HTTP %d, state %s", status, s.machine(c).State)
	}

	for name, change := range map[string]func(*api.InstallRecord){
		"no key":             func(r *api.InstallRecord) { r.EKPublic = nil },
		"a broken key":       func(r *api.InstallRecord) { r.EKPublic = r.EKPublic[:20] },
		"an endless key":     func(r *api.InstallRecord) { r.EKPublic = make([]byte, 5000) },
		"no disk":            func(r *api.InstallRecord) { r.DiskGUID = "" },
		"a disk of zeros":    func(r *api.InstallRecord) { r.DiskGUID = "00000000-0000-0000-0000-000000000000" },
		"a disk in capitals": func(r *api.InstallRecord) { r.DiskGUID = strings.ToUpper(r.DiskGUID) },
		"an endless claim":   func(r *api.InstallRecord) { r.Serial = strings.Repeat("x", 300) },
	} {
		rec := record(b)
		rec.DiskGUID = strings.Replace(disk, "6a", "6c", 1)
		change(rec)
		if status, _ := install(rec); status != 400 {
			t.Errorf("%s: HTTP %d", name, status)
		}
	}
}

// Two ids whose first ten digits are the same are not to be had; a name that
// is taken is.
func TestNodeNamesAreUnique(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	squatter := &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "box-" + b.id.String()[:10], State: attest.StateEnrolled}}
	if err := s.memory.Commit(t.Context(), &server.Change{Machine: squatter}); err != nil {
		t.Fatal(err)
	}
	s.enrol(b)
	if got, want := s.machine(b).NodeName, "box-"+b.id.String()[:16]; got != want {
		t.Errorf("node name is %s, want %s", got, want)
	}
}

func TestTheAuditLogIsStreamedWhole(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	s.attest(b)
	op := s.operator()
	status, lines := s.raw(op, "GET", "https://"+s.operators+api.PathAudit, nil)
	head, n, err := audit.Verify(bytes.NewReader(lines))
	if status != 200 || err != nil || n != 6 || head.Seq != 6 {
		t.Errorf("HTTP %d, head %+v, %d entries, %v", status, head, n, err)
	}
	if _, lines := s.raw(op, "GET", "https://"+s.operators+api.PathAudit+"?from=5", nil); bytes.Count(lines, []byte("\n")) != 2 {
		t.Errorf("from 5: %s", lines)
	}
	if _, lines := s.raw(op, "GET", "https://"+s.operators+api.PathAudit+"?machine="+b.id.String(), nil); bytes.Count(lines, []byte("\n")) != 5 {
		t.Errorf("of one machine: %s", lines)
	}
	if status, lines := s.raw(op, "GET", "https://"+s.operators+api.PathAudit+"?from=99", nil); status != 200 || len(lines) != 0 {
		t.Errorf("past the end: HTTP %d, %s", status, lines)
	}
	for _, bad := range []string{"?from=0", "?from=x", "?machine=12"} {
		if status, _ := s.raw(op, "GET", "https://"+s.operators+api.PathAudit+bad, nil); status != 400 {
			t.Errorf("%s: HTTP %d", bad, status)
		}
	}
}

// brokenLog is a store whose log breaks off.
type brokenLog struct{ server.Store }

func (b brokenLog) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		for e := range b.Store.Audit(ctx, from) {
			if !yield(e, nil) || !yield(audit.Entry{}, errors.New("disk on fire")) {
				return
			}
		}
	}
}

func TestAPartOfTheAuditLogIsNotTakenForTheWhole(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Store = brokenLog{c.Store} })
	s.enrol(newBox(t, s.tpmCA))
	resp, err := s.operator().Get("https://" + s.operators + api.PathAudit)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("the log broke off and the answer did not")
	}
}

func TestStoredEvidenceGivesTheVerdictAgain(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeCmdline, Message: "m"}} })
	s.attest(b)
	var digest string
	for e, err := range s.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindVerdict {
			var v audit.Verdict
			if err := json.Unmarshal(e.Data, &v); err != nil {
				t.Fatal(err)
			}
			digest = v.Evidence.String()
		}
	}
	op := s.operator()
	status, body := s.raw(op, "GET", "https://"+s.operators+api.PathEvidenceLog+"/"+digest, nil)
	if sum := sha256.Sum256(body); status != 200 || digest != attest.MachineID(sum).String() {
		t.Fatalf("HTTP %d, digest %x, want %s", status, sum, digest)
	}
	var stored api.StoredEvidence
	if err := strict.Decode(bytes.NewReader(body), &stored); err != nil {
		t.Fatal(err)
	}
	if stored.Machine != b.id || stored.Known.State != attest.StateEnrolled || !bytes.Equal(stored.Evidence.EKPublic, b.ekPublic) {
		t.Errorf("stored evidence is %+v", stored)
	}
	if r, _ := s.appraise(&stored.Evidence, &stored.Challenge, &stored.Session, &stored.Known, &attest.Policy{}); codes(r) != string(attest.CodeCmdline) {
		t.Errorf("appraised again: %s", codes(r))
	}
	for path, want := range map[string]int{"/" + strings.Repeat("0", 63) + "1": 404, "/xyz": 400, "/": 404} {
		if status, _ := s.raw(op, "GET", "https://"+s.operators+api.PathEvidenceLog+path, nil); status != want {
			t.Errorf("%s: HTTP %d, want %d", path, status, want)
		}
	}
}

func TestCampaignsAreServedToOperatorsOnly(t *testing.T) {
	var asked []string
	s := newScene(t, func(c *server.Config) {
		c.Campaigns = func(operator string, w http.ResponseWriter, r *http.Request) {
			asked = append(asked, operator+" "+r.Method+" "+r.URL.Path)
			w.WriteHeader(http.StatusAccepted)
		}
	})
	if status, _ := s.raw(s.operator(), "POST", "https://"+s.operators+api.PathCampaigns, "{}"); status != 202 {
		t.Errorf("HTTP %d", status)
	}
	if status, _ := s.raw(s.operator(), "GET", "https://"+s.operators+api.PathCampaigns+"/bios", nil); status != 202 {
		t.Errorf("HTTP %d", status)
	}
	other := s.httpClient(s.certificate(pkix.Name{CommonName: "box-1"}, x509.ExtKeyUsageClientAuth))
	if status, _ := s.raw(other, "GET", "https://"+s.operators+api.PathCampaigns, nil); status != 403 {
		t.Errorf("HTTP %d", status)
	}
	if got := strings.Join(asked, ", "); got != "alice POST /v1/campaigns, alice GET /v1/campaigns/bios" {
		t.Errorf("asked: %s", got)
	}
}

func TestARoleMayDoWhatItIsFor(t *testing.T) {
	s := newScene(t, nil)
	id := strings.Repeat("ab", 32)
	requests := map[string]struct {
		method, path string
		need         api.Role
	}{
		"list machines":  {http.MethodGet, api.PathMachines, api.RoleViewer},
		"show a machine": {http.MethodGet, api.PathMachines + "/" + id, api.RoleViewer},
		"approve":        {http.MethodPost, api.PathMachines + "/" + id + "/approve", api.RoleApprover},
		"revoke":         {http.MethodPost, api.PathMachines + "/" + id + "/revoke", api.RoleOperator},
		"reinstate":      {http.MethodPost, api.PathMachines + "/" + id + "/reinstate", api.RoleApprover},
		"rejoin":         {http.MethodPost, api.PathMachines + "/" + id + "/rejoin", api.RoleOperator},
		"install":        {http.MethodPost, api.PathInstalls, api.RoleOperator},
		"audit log":      {http.MethodGet, api.PathAudit, api.RoleAuditor},
		"evidence":       {http.MethodGet, api.PathEvidenceLog + "/" + strings.Repeat("1", 64), api.RoleAuditor},
	}
	for _, units := range [][]string{nil, {"unheard-of"}, {"viewer"}, {"operator"}, {"approver"}, {"auditor"}} {
		client := s.httpClient(s.certificate(pkix.Name{
			CommonName: "x", Organization: []string{api.OperatorOrganization}, OrganizationalUnit: units,
		}, x509.ExtKeyUsageClientAuth))
		known := len(units) > 0 && api.Role(units[0]).Known()
		for name, tt := range requests {
			t.Run(fmt.Sprint(units, " ", name), func(t *testing.T) {
				status, _ := s.raw(client, tt.method, "https://"+s.operators+tt.path, "{}")
				may := known && (tt.need == api.RoleViewer || string(tt.need) == units[0])
				if got := status != http.StatusForbidden; got != may {
					t.Errorf("status %d, may is %t", status, may)
				}
			})
		}
	}
}
