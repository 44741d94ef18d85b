package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// fencer is a cluster that is told of nodes.
type fencer struct {
	mu     sync.Mutex
	fenced []string
	fail   error
}

func (f *fencer) Fence(_ context.Context, node, reason string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	f.fenced = append(f.fenced, node+" "+reason)
	return nil
}

// releasedMachine is a box with a real TPM that was released and capped.
func releasedMachine(t *testing.T, change func(*server.Config)) (*machine, *fencer) {
	t.Helper()
	dev := tpmtest.Config{Banks: []string{"sha256"}, P256Certificate: true}.Open(t)
	f := new(fencer)
	s := newScene(t, func(c *server.Config) {
		c.Policy = func(context.Context, attest.MachineID) (*attest.Policy, error) { return realPolicy(t, dev.CA), nil }
		c.Fence = f
		if change != nil {
			change(c)
		}
	})
	s.srv.AppraiseForReal()
	m := &machine{scene: s, dev: dev, log: readFile(t, "ovmf-2022.11-secureboot.bin"), disk: attest.Disk{GUID: logDisk(t)}}
	m.c = &client.Client{URL: "https://" + s.nodes, CA: s.pool(), ReleaseKey: &s.release.PublicKey}
	m.power()
	if _, err := s.srv.Enrol(t.Context(), "line-1", &api.InstallRecord{EKPublic: m.ek.Public, EKCertificates: m.ek.Certificates, DiskGUID: m.disk.GUID, Finished: time.Now()}); err != nil {
		t.Fatal(err)
	}
	m.release()
	return m, f
}

// release boots and caps.
func (m *machine) release() {
	m.Helper()
	secrets, _, release, err := m.boot(nil)
	m.wantReleased(err)
	if release.ReportAfter != 600 {
		m.Errorf("reports are wanted every %d s, want 600", release.ReportAfter)
	}
	if err := m.tpm.Cap("state", secrets.DiskKey, "c4f1ae57-0000-4000-8000-000000000001"); err != nil {
		m.Fatal(err)
	}
	m.disk.StateExists = true
}

// report runs the protocol as the agent does in the running system. change may
// alter what is sent.
func (m *machine) report(change func(*api.EvidenceRequest)) (time.Duration, error) {
	m.Helper()
	id, err := m.tpm.Identify("service")
	if err != nil {
		m.Fatal(err)
	}
	session, err := m.c.Connect(m.Context())
	if err != nil {
		m.Fatal(err)
	}
	defer session.Close()
	ch, err := session.Challenge(m.Context(), &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeReport, EKPublic: id.EK.Public, EKCertificates: [][]byte{}, AKPublic: id.AKPublic,
	})
	if err != nil {
		return 0, err
	}
	if len(ch.Credential)+len(ch.Secret) != 0 {
		m.Error("a challenge for a report has a credential")
	}
	ev, err := m.tpm.Report(m.Context(), tpm.ReportInput{
		Service: "service", EKPublic: id.EK.Public, AKPublic: id.AKPublic, Nonce: ch.Nonce, Exporter: session.Exporter(), EventLog: m.log, Disk: m.disk,
	})
	if err != nil {
		m.Fatal(err)
	}
	req := &api.EvidenceRequest{ChallengeID: ch.ID, Evidence: *ev}
	if change != nil {
		change(req)
	}
	return session.Report(m.Context(), req)
}

func (m *machine) record() *server.Machine {
	m.Helper()
	r, err := m.memory.Machine(m.Context(), m.id)
	if err != nil {
		m.Fatal(err)
	}
	return r
}

func TestARunningMachineReportsUntilItChanges(t *testing.T) {
	m, f := releasedMachine(t, nil)
	before := m.record()
	if before.ReportDue.IsZero() || !before.LastReport.IsZero() || before.Boot == nil {
		t.Fatalf("after the release: due %v, last report %v, boot %v", before.ReportDue, before.LastReport, before.Boot)
	}
	for range 3 {
		after, err := m.report(nil)
		if err != nil || after != 10*time.Minute {
			t.Fatalf("report: next after %v, %v", after, err)
		}
	}
	r := m.record()
	if r.LastReport.IsZero() || r.State != attest.StateEnrolled || r.Boot.Volume == nil || r.Clock != before.Clock || r.Boot.Clock <= r.Clock {
		t.Errorf("after reports: %+v, boot %+v", r, r.Boot)
	}
	if got := strings.Count(m.kinds(), "report"); got != 1 {
		t.Errorf("%d reports are in the audit log, want the first", got)
	}

	// Something is measured in the running system.
	m.dev.Extend(9, []byte("kexec"))
	_, err := m.report(nil)
	m.wantRefused(err, attest.CodePCRChanged)
	r = m.record()
	if r.State != attest.StateQuarantined || !strings.Contains(r.Reason, "report.pcr-changed") || !strings.Contains(r.Reason, "PCR 9") || !r.ReportDue.IsZero() {
		t.Errorf("state %s, reason %q, due %v", r.State, r.Reason, r.ReportDue)
	}
	if m.tokens.open() != 0 {
		t.Error("the join token is still good")
	}
	if err := m.srv.FenceNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.srv.FenceNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(f.fenced) != 1 || !strings.HasPrefix(f.fenced[0], r.NodeName+" quarantined: report refused") {
		t.Errorf("fenced: %q", f.fenced)
	}
	_, err = m.report(nil)
	m.wantRefused(err, attest.CodePCRChanged, attest.CodeQuarantined)

	// The next boot gets nothing until an operator says so.
	m.dev.Reset()
	m.power()
	_, _, _, err = m.boot(nil)
	m.wantRefused(err, attest.CodeQuarantined)
	if status := m.call(m.operator(), "POST", "https://"+m.operators+api.PathMachines+"/"+m.id.String()+"/reinstate", api.StateChange{Reason: "inspected"}, nil); status != 200 {
		t.Fatalf("reinstate: HTTP %d", status)
	}
	// The old boot's report is no longer the reference, the new one is.
	_, err = m.report(nil)
	m.wantRefused(err, attest.CodeReportBoot)
	m.release()
	if _, err := m.report(nil); err != nil {
		t.Error(err)
	}
	if r := m.record(); r.State != attest.StateEnrolled || r.FenceDue {
		t.Errorf("state %s, fence due %t", r.State, r.FenceDue)
	}
}

// Whoever can talk to the service, and knows a machine's keys, must not be able
// to have it locked out.
func TestNobodyElseCanQuarantineAMachine(t *testing.T) {
	m, _ := releasedMachine(t, nil)
	stranger := tpmtest.Config{Banks: []string{"sha256"}, P256Certificate: true}.Open(t)
	other := tpm.New(stranger)
	id, err := other.Identify("service")
	if err != nil {
		t.Fatal(err)
	}
	victim, err := m.tpm.Identify("service")
	if err != nil {
		t.Fatal(err)
	}
	// forge asks for a challenge in the victim's name, and answers with a
	// quote of the stranger's TPM, whose PCRs are all wrong.
	forge := func(ak []byte, lie func(*attest.Evidence)) error {
		session, err := m.c.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		ch, err := session.Challenge(t.Context(), &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeReport, EKPublic: victim.EK.Public, AKPublic: ak})
		if err != nil {
			t.Fatal(err)
		}
		ev, err := other.Report(t.Context(), tpm.ReportInput{
			Service: "service", EKPublic: victim.EK.Public, AKPublic: id.AKPublic, Nonce: ch.Nonce, Exporter: session.Exporter(), EventLog: m.log, Disk: m.disk,
		})
		if err != nil {
			t.Fatal(err)
		}
		ev.AKPublic = ak
		if lie != nil {
			lie(ev)
		}
		_, err = session.Report(t.Context(), &api.EvidenceRequest{ChallengeID: ch.ID, ActivationProof: attest.ActivationProof(nil, ch.ID, ch.Nonce, ak), Evidence: *ev})
		return err
	}
	m.wantRefused(forge(id.AKPublic, nil), attest.CodeAKChanged)
	m.wantRefused(forge(victim.AKPublic, nil), attest.CodeQuoteSignature, attest.CodeQuoteMissing)
	m.wantRefused(forge(victim.AKPublic, func(ev *attest.Evidence) { ev.Quotes = nil }), attest.CodeQuoteMissing)

	// A real report, altered by whoever carries it or sent a second time.
	var kept *api.EvidenceRequest
	_, err = m.report(func(r *api.EvidenceRequest) {
		r.Evidence.EventLog = bytes.Clone(r.Evidence.EventLog)
		r.Evidence.EventLog[100] ^= 1
	})
	m.wantRefused(err, attest.CodeQuoteNonce, attest.CodeQuoteMissing)
	_, err = m.report(func(r *api.EvidenceRequest) { r.Evidence.Disk.GUID = otherDisk })
	m.wantRefused(err, attest.CodeQuoteNonce, attest.CodeQuoteMissing)
	if _, err = m.report(func(r *api.EvidenceRequest) { kept = r }); err != nil {
		t.Fatal(err)
	}
	_, err = m.report(func(r *api.EvidenceRequest) { r.Evidence = kept.Evidence })
	m.wantRefused(err, attest.CodeQuoteNonce, attest.CodeQuoteMissing)
	_, err = m.report(func(r *api.EvidenceRequest) { *r = *kept })
	m.wantRefused(err, attest.CodeChallenge)

	if r := m.record(); r.State != attest.StateEnrolled {
		t.Fatalf("the machine is %s: %s", r.State, r.Reason)
	}
	for e, err := range m.memory.Audit(t.Context(), 1) {
		var d audit.Reattestation
		if err != nil || e.Kind == audit.KindReport && (json.Unmarshal(e.Data, &d) != nil || !d.Genuine && !e.Machine.IsZero()) {
			t.Errorf("entry %d: %s of machine %s, %v", e.Seq, e.Data, e.Machine, err)
		}
	}
	if _, err := m.report(nil); err != nil {
		t.Error(err)
	}
}

// Power cuts, restarts and a service that forgot a boot are no machine's fault.
func TestPowerCutsAndLostTimeQuarantineNobody(t *testing.T) {
	m, _ := releasedMachine(t, nil)
	for range 5 {
		if _, err := m.report(nil); err != nil {
			t.Fatal(err)
		}
		m.dev.PowerLoss()
		m.power()
		// Before its release the box has no boot to report of.
		_, err := m.report(nil)
		m.wantRefused(err, attest.CodeReportBoot)
		m.release()
	}
	// The service's store is restored from before the last boots.
	old := m.record()
	m.dev.Reset()
	m.power()
	m.release()
	now := m.record()
	old.Revision = now.Revision
	if err := m.memory.Commit(t.Context(), &server.Change{Machine: old}); err != nil {
		t.Fatal(err)
	}
	_, err := m.report(nil)
	m.wantRefused(err, attest.CodeReportBoot)
	// The challenge expires on the way.
	m.set(func() { m.offset = 0 })
	_, err = m.report(func(*api.EvidenceRequest) { m.set(func() { m.offset = 2 * time.Minute }) })
	m.wantRefused(err, attest.CodeChallenge)
	if r := m.record(); r.State != attest.StateEnrolled {
		t.Fatalf("the machine is %s: %s", r.State, r.Reason)
	}
}

// paperBoot is what a box on paper was when it was released.
func paperBoot() *attest.Boot { return &attest.Boot{AKName: []byte("ak"), ResetCount: 1} }

// reporting is a scene whose boxes report as verdict says.
func reporting(t *testing.T, change func(*server.Config)) (*scene, *box, func(attest.Report, ...attest.Code)) {
	t.Helper()
	s := newScene(t, change)
	s.set(func() { s.boot.State = paperBoot() })
	var mu sync.Mutex
	rep := attest.Report{Genuine: true, Clock: 1, Volume: map[string][]byte{"sha256": {1}}}
	var found []attest.Code
	s.srv.AppraiseReport(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, b *attest.Boot) (*attest.Result, attest.Report) {
		mu.Lock()
		defer mu.Unlock()
		r := &attest.Result{Findings: []attest.Finding{}, Facts: []attest.Fact{}}
		for _, c := range found {
			r.Findings = append(r.Findings, attest.Finding{Code: c, Message: "paper"})
		}
		if k.State != attest.StateEnrolled {
			r.Findings = append(r.Findings, attest.Finding{Code: "machine." + attest.Code(k.State)})
		}
		r.Allowed = len(r.Findings) == 0
		return r, rep
	})
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	if status, resp := s.attest(b); status != 200 {
		t.Fatalf("HTTP %d: %s", status, codes(resp.Result))
	}
	return s, b, func(r attest.Report, codes ...attest.Code) {
		mu.Lock()
		defer mu.Unlock()
		rep, found = r, codes
	}
}

func (s *scene) reportPaper(b *box) (int, *api.EvidenceResponse) {
	s.Helper()
	c := s.httpClient()
	ch := new(api.Challenge)
	if status := s.call(c, "POST", "https://"+s.nodes+api.PathChallenge, &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeReport, EKPublic: b.ekPublic, AKPublic: b.akPublic,
	}, ch); status != 200 {
		s.Errorf("challenge: HTTP %d", status)
	}
	return s.send(c, &api.EvidenceRequest{ChallengeID: ch.ID, Evidence: attest.Evidence{EKPublic: b.ekPublic, AKPublic: b.akPublic, Disk: attest.Disk{GUID: disk, StateExists: true}}})
}

func TestAMissedDeadlineIsStaleAndNoRefusal(t *testing.T) {
	s, b, _ := reporting(t, nil)
	up := s.now().Add(-time.Hour)
	sweep := func() {
		t.Helper()
		var wg sync.WaitGroup
		for range 4 { // replicas
			wg.Go(func() {
				if err := s.srv.Sweep(t.Context(), up); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	sweep()
	if s.machine(b).Stale {
		t.Fatal("stale right after the release")
	}
	s.set(func() { s.offset = 31 * time.Minute })
	// A service that was not there cannot have heard of anybody.
	if err := s.srv.Sweep(t.Context(), s.now().Add(-time.Minute)); err != nil || s.machine(b).Stale {
		t.Fatalf("stale for a service that has just started: %v", err)
	}
	sweep()
	sweep()
	m := s.machine(b)
	if !m.Stale || m.State != attest.StateEnrolled {
		t.Fatalf("stale %t, %s", m.Stale, m.State)
	}
	var list []api.Machine
	if s.call(s.operator(), "GET", "https://"+s.operators+api.PathMachines, nil, &list); len(list) != 1 || !list[0].Stale || list[0].ReportDue.IsZero() {
		t.Errorf("operators see %+v", list)
	}
	if status, resp := s.reportPaper(b); status != 200 || resp.ReportAfter != 600 {
		t.Fatalf("a stale machine's report: HTTP %d, next after %d", status, resp.ReportAfter)
	}
	if m := s.machine(b); m.Stale || m.LastReport.IsZero() {
		t.Errorf("stale %t, last report %v", m.Stale, m.LastReport)
	}
	s.set(func() { s.offset = 62 * time.Minute })
	sweep()
	// A new boot is heard of, too.
	s.set(func() { s.boot.Reset++; s.boot.State = paperBoot() })
	if status, resp := s.attest(b); status != 200 {
		t.Fatalf("a stale machine is refused its release: %s", codes(resp.Result))
	}
	if s.machine(b).Stale {
		t.Error("stale after a release")
	}
	if n := strings.Count(s.kinds(), "machine.stale"); n != 4 {
		t.Errorf("%d entries about being stale, want 4, however many replicas looked: %s", n, s.kinds())
	}
}

func TestServicesWithoutReportsHaveNoStaleMachines(t *testing.T) {
	s, b, _ := reporting(t, func(c *server.Config) { c.Reports.Every = -1 })
	s.set(func() { s.offset = 48 * time.Hour })
	if err := s.srv.Sweep(t.Context(), time.Time{}); err != nil || s.machine(b).Stale || !s.machine(b).ReportDue.IsZero() {
		t.Errorf("%v, %+v", err, s.machine(b).Machine)
	}
	if status, resp := s.reportPaper(b); status != 200 || resp.ReportAfter != 0 {
		t.Errorf("HTTP %d, next report after %d s", status, resp.ReportAfter)
	}
}

func TestReportsThatCannotBeAreRefusedAtTheStart(t *testing.T) {
	for _, r := range []server.Reports{
		{Every: time.Second}, {Every: 25 * time.Hour}, {Every: 10*time.Second + 1}, {Every: time.Minute, Deadline: time.Minute}, {Deadline: time.Second},
	} {
		s := newScene(t, nil)
		if _, err := server.New(server.Config{Store: s.memory, Standing: storetest.Standing(t, s.memory, s.release), Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return nil, nil },
			Log: slog.New(slog.DiscardHandler), ReleaseKey: newKey(t), KEK: bytes.Repeat([]byte{1}, server.KEKSize), Reports: r}); err == nil || !strings.Contains(err.Error(), "reports: ") {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// A challenge that is open when the machine is locked out is of no use: what
// counts is the record in the moment of the decision.
func TestALockOutTakesEffectOnOpenChallenges(t *testing.T) {
	for _, verb := range []string{"revoke", "quarantine"} {
		t.Run(verb, func(t *testing.T) {
			s := newScene(t, nil)
			b := newBox(t, s.tpmCA)
			s.enrol(b)
			c := s.httpClient()
			ch := s.challenge(c, b)
			url := "https://" + s.operators + api.PathMachines + "/" + b.id.String() + "/" + verb
			if status := s.call(s.operator(), "POST", url, api.StateChange{Reason: "stolen"}, nil); status != 200 {
				t.Fatalf("%s: HTTP %d", verb, status)
			}
			if status, resp := s.send(c, s.answer(b, ch)); status != 403 || resp.Release != nil {
				t.Errorf("released after %s: HTTP %d", verb, status)
			}
		})
		t.Run(verb+" between verdict and commit", func(t *testing.T) {
			s := newScene(t, nil)
			b := newBox(t, s.tpmCA)
			s.enrol(b)
			c := s.httpClient()
			ch := s.challenge(c, b)
			op := s.operator()
			var once sync.Once
			s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
				r, boot := s.appraise(ev, ch, ses, k, p)
				once.Do(func() { // the verdict is made and not yet written
					if !r.Allowed {
						t.Errorf("refused: %s", codes(r))
					}
					url := "https://" + s.operators + api.PathMachines + "/" + b.id.String() + "/" + verb
					if status := s.call(op, "POST", url, api.StateChange{Reason: "stolen"}, nil); status != 200 {
						t.Errorf("%s: HTTP %d", verb, status)
					}
				})
				return r, boot
			})
			if status, resp := s.send(c, s.answer(b, ch)); status != 403 || resp.Release != nil {
				t.Errorf("released while the machine was locked out: HTTP %d", status)
			}
			if s.tokens.open() != 0 {
				t.Error("a join token is out")
			}
		})
	}
}

func TestAFailedReportQuarantinesOnce(t *testing.T) {
	f := &fencer{fail: errors.New("no cluster")}
	s, b, verdict := reporting(t, func(c *server.Config) { c.Fence = f })
	verdict(attest.Report{Genuine: true}, attest.CodeReportBoot)
	if status, _ := s.reportPaper(b); status != 403 || s.machine(b).State != attest.StateEnrolled {
		t.Fatalf("HTTP %d, %s", status, s.machine(b).State)
	}
	verdict(attest.Report{Genuine: true, Changed: true}, attest.CodePCRChanged)
	// The store fails after it has written: the decision stands.
	s.set(func() {
		n := 0
		s.fail = func(method string) (error, bool) {
			if n++; method == "Commit" && n < 8 {
				return errors.New("lost"), true
			}
			return nil, false
		}
	})
	s.reportPaper(b)
	s.set(func() { s.fail = nil })
	m := s.machine(b)
	if m.State != attest.StateQuarantined || !m.FenceDue {
		t.Fatalf("%s, fence due %t", m.State, m.FenceDue)
	}
	// The cluster is not there: the node is fenced when it is back.
	if err := s.srv.FenceNodes(t.Context()); err == nil || !s.machine(b).FenceDue {
		t.Errorf("%v, fence due %t", err, s.machine(b).FenceDue)
	}
	f.mu.Lock()
	f.fail = nil
	f.mu.Unlock()
	if err := s.srv.FenceNodes(t.Context()); err != nil || s.machine(b).FenceDue || len(f.fenced) != 1 {
		t.Errorf("%v, fence due %t, fenced %q", err, s.machine(b).FenceDue, f.fenced)
	}
	if status, resp := s.attest(b); status != 403 {
		t.Errorf("released: HTTP %d, %s", status, codes(resp.Result))
	}
	// Quarantining it again changes nothing.
	if m, err := s.operatorClient().Quarantine(t.Context(), b.id, "again"); err != nil || !strings.HasPrefix(m.Reason, "report refused") {
		t.Errorf("%+v, %v", m, err)
	}
}

// A quarantine is for what a report shows; it is less than a revocation.
func TestAReportOfARevokedMachineLeavesItRevoked(t *testing.T) {
	s, b, verdict := reporting(t, nil)
	if _, err := s.operatorClient().Revoke(t.Context(), b.id, "stolen"); err != nil {
		t.Fatal(err)
	}
	verdict(attest.Report{Genuine: true, Changed: true}, attest.CodePCRChanged, attest.CodeMachineRevoked)
	if status, _ := s.reportPaper(b); status != 403 {
		t.Errorf("HTTP %d", status)
	}
	if m := s.machine(b); m.State != attest.StateRevoked || m.Reason != "stolen" {
		t.Errorf("it is %s: %s", m.State, m.Reason)
	}
}

func TestWatchFencesAtOnceAndEnds(t *testing.T) {
	fenced := make(chan string, 1)
	s, b, _ := reporting(t, func(c *server.Config) { c.Fence = fenceFunc(func(node string) { fenced <- node }) })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.srv.Watch(ctx) }()
	if _, err := s.operatorClient().Revoke(t.Context(), b.id, "stolen"); err != nil {
		t.Fatal(err)
	}
	if node := <-fenced; node != s.machine(b).NodeName {
		t.Errorf("fenced %s", node)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

type fenceFunc func(node string)

func (f fenceFunc) Fence(_ context.Context, node, _ string) error { f(node); return nil }

// A clock that is set forward, or a machine that slept, does not show in the
// monotonic reading: with it, the whole fleet would be stale at once.
func TestWatchGoesByTheTimeThatCanBeSet(t *testing.T) {
	s := newScene(t, func(c *server.Config) { c.Clock = time.Now })
	if now := s.srv.Wall(); strings.Contains(now.String(), " m=") {
		t.Errorf("the time has a monotonic reading: %v", now)
	}
}

// A clock that was ahead for days and is set right must not keep the fleet from being
// stale for days.
func TestAServiceThatStoodStillHasHeardOfNobody(t *testing.T) {
	first := time.Unix(1_000_000, 0)
	at := func(d time.Duration) time.Time { return first.Add(d) }
	for name, tt := range map[string]struct {
		then []time.Time
		want time.Duration
	}{
		"it looks once a minute":      {[]time.Time{at(time.Minute), at(2 * time.Minute), at(5 * time.Minute)}, 0},
		"it stood still for an hour":  {[]time.Time{at(time.Minute), at(time.Hour), at(61 * time.Minute)}, time.Hour},
		"its clock was set back":      {[]time.Time{at(time.Minute), at(-time.Hour), at(-59 * time.Minute)}, -time.Hour},
		"by less than it looks again": {[]time.Time{at(time.Minute), at(59 * time.Second), at(2 * time.Minute)}, 59 * time.Second},
	} {
		if got := server.Heard(first, tt.then...).Sub(first); got != tt.want {
			t.Errorf("%s: since %v, want %v", name, got, tt.want)
		}
	}
}
