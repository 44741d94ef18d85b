package server_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// alarms returns the alarms in the audit log.
func (s *scene) alarms() []audit.Alarm {
	s.Helper()
	var out []audit.Alarm
	for e, err := range s.memory.Audit(s.Context(), 1) {
		if err != nil {
			s.Fatal(err)
		}
		if e.Kind != audit.KindAlarm {
			continue
		}
		var a audit.Alarm
		if err := json.Unmarshal(e.Data, &a); err != nil {
			s.Fatal(err)
		}
		out = append(out, a)
	}
	return out
}

// wantAlarms compares the names of the alarms in the log, in their order, with
// the operational log.
func (s *scene) wantAlarms(want ...audit.AlarmName) {
	s.Helper()
	got := []audit.AlarmName{}
	for _, a := range s.alarms() {
		got = append(got, a.Name)
		if !strings.Contains(s.log.String(), "level=ERROR msg=alarm name="+string(a.Name)) {
			s.Errorf("alarm %s is not in the operational log", a.Name)
		}
	}
	if len(got) != len(want) {
		s.Errorf("alarms are %q, want %q", got, want)
		return
	}
	for i := range got {
		if got[i] != want[i] {
			s.Errorf("alarms are %q, want %q", got, want)
			return
		}
	}
}

func TestASecondRequestInOneBootIsAnAlarm(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	if status, _ := s.attest(b); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	s.wantAlarms()
	if status, _ := s.attest(b); status != 403 {
		t.Fatalf("HTTP %d", status)
	}
	s.wantAlarms(audit.AlarmReleaseRepeated)
	if a := s.alarms()[0]; a.Peer != "127.0.0.1" {
		t.Errorf("got %+v", a)
	}
	if !strings.HasSuffix(s.kinds(), "evidence.verdict alarm") {
		t.Errorf("log is %s", s.kinds())
	}
	// A restored record does not know, the releases do.
	m := s.machine(b)
	m.Released = false
	if err := s.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	s.attest(b)
	s.wantAlarms(audit.AlarmReleaseRepeated, audit.AlarmReleaseRepeated)
	s.set(func() { s.boot.Reset++ })
	if status, _ := s.attest(b); status != 200 {
		t.Errorf("next boot: HTTP %d", status)
	}
	s.wantAlarms(audit.AlarmReleaseRepeated, audit.AlarmReleaseRepeated)
}

func TestAFloodOfSecondRequestsIsNoFloodOfAlarms(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Limits.RefusalBurst, c.Limits.Refusal = 2, time.Hour })
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	for range 6 {
		s.attest(b)
	}
	s.wantAlarms(audit.AlarmReleaseRepeated, audit.AlarmReleaseRepeated)
}

// Whoever uses up what is kept of a machine's refusals does not get a second release
// asked for in silence.
func TestOtherRefusalsKeepNoSecondRequestFromBeingAnAlarm(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits.RefusalBurst, c.Limits.Refusal = 2, 1000*time.Hour })
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	boot := func() {
		t.Helper()
		s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeEventUnknown, Message: "m"}} })
		for range 3 {
			s.attest(b)
		}
		s.set(func() { s.refuse = nil })
		if status, _ := s.attest(b); status != 200 {
			t.Fatalf("HTTP %d", status)
		}
		for range 2 {
			if status, _ := s.attest(b); status != 403 {
				t.Fatalf("HTTP %d", status)
			}
		}
	}
	boot()
	s.wantAlarms(audit.AlarmReleaseRepeated)
	s.set(func() { s.boot.Reset++ })
	boot()
	s.wantAlarms(audit.AlarmReleaseRepeated, audit.AlarmReleaseRepeated)
}

func TestOtherRefusalsAreNoAlarm(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeFirmwareUnknown, Message: "m"}} })
	s.attest(b)
	s.wantAlarms()
}

func TestAConfirmationThatContradictsIsAnAlarm(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	_, resp := s.attest(b)
	r, _, transport := s.open(resp)
	confirm := func(outcome string) int {
		req := &api.ConfirmRequest{ReleaseID: r.ID, Outcome: outcome, Proof: api.ConfirmProof(transport, r.ID, outcome)}
		return s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm, req, nil)
	}
	if a, b := confirm("luks: no space"), confirm("luks: no space"); a != 200 || b != 200 {
		t.Fatalf("HTTP %d, %d", a, b)
	}
	s.wantAlarms()
	if code := confirm(api.OutcomeUnlocked); code != 403 {
		t.Errorf("HTTP %d", code)
	}
	s.wantAlarms(audit.AlarmConfirmContradicted)
	if what := s.alarms()[0].What; !strings.Contains(what, "no space") || !strings.Contains(what, "without proof") {
		t.Errorf("got %q", what)
	}
}

func TestAlarmsAboutTokensNameTheMachine(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	name := s.machine(b).NodeName
	expects := func(node string) bool {
		ok, err := s.srv.ExpectsNode(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if expects(name) || expects("other") {
		t.Error("a node is expected before its machine was given anything")
	}
	s.attest(b)
	if !expects(name) || expects("other") {
		t.Error("the node is not expected, or another is")
	}
	if err := s.srv.TokenAlarm(t.Context(), name, audit.Alarm{Name: audit.AlarmTokenMisused, What: "w"}); err != nil {
		t.Fatal(err)
	}
	if err := s.srv.TokenAlarm(t.Context(), "gone", audit.Alarm{Name: audit.AlarmForeignNode, What: "w"}); err != nil {
		t.Fatal(err)
	}
	s.wantAlarms(audit.AlarmTokenMisused, audit.AlarmForeignNode)
	var of []attest.MachineID
	for e, err := range s.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindAlarm {
			of = append(of, e.Machine)
		}
	}
	if of[0] != b.id || !of[1].IsZero() {
		t.Errorf("alarms are about %v", of)
	}
	// In the service's log, too: no machine is none, and not one of zeros.
	if log := s.log.String(); !strings.Contains(log, "machine="+b.id.Short()) || strings.Contains(log, "machine=000000000000") {
		t.Errorf("the log has\n%s", log)
	}
}

// Whoever floods the service with evidence that proves nothing does not keep an
// attempt on the operator API out of the log, and what was not logged is counted.
func TestRefusedEvidenceDoesNotHideThatTheOperatorAPIWasAskedFor(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Limits.Unproven, c.Limits.UnprovenBurst = time.Hour, 1 })
	ask := func(path, body string, status int) {
		t.Helper()
		if got := s.call(s.operator(), "POST", "https://"+s.nodes+path, body, nil); got != status {
			t.Fatalf("HTTP %d, want %d", got, status)
		}
	}
	evidence := `{"challengeID":"made up","activationProof":"AA==","evidence":{"disk":{"guid":"c4f1ae57-0000-4000-8000-000000000001"}}}`
	ask(api.PathEvidence, evidence, 403)
	ask(api.PathEvidence, evidence, 403)
	ask(api.PathMachines, "{}", 404)
	ask(api.PathMachines, "{}", 404)
	s.wantAlarms(audit.AlarmWrongListener)
	s.offset += 2 * time.Hour
	ask(api.PathMachines, "{}", 404)
	s.wantAlarms(audit.AlarmWrongListener, audit.AlarmWrongListener)
	if a := s.alarms(); len(a) == 2 && !strings.Contains(a[1].What, "after 1 times") {
		t.Errorf("the second alarm is %q", a[1].What)
	}
}
