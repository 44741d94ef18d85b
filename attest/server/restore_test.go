package server_test

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/backup"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/image/manifest"
)

// says tells the service, as an approver, what is to be said of a restore.
func (s *scene) says(verb string) (int, *api.RestoreStatus) {
	s.Helper()
	st := new(api.RestoreStatus)
	return s.call(s.operator(), "POST", "https://"+s.operators+api.PathRestore+"/"+verb, &api.StateChange{Reason: "compared"}, st), st
}

// A machine that was enrolled, and given its secrets, after the backup comes
// back to a service that never heard of it.
func TestAMachineThatTheRestoredStoreDoesNotKnowGetsNoSecondRelease(t *testing.T) {
	for name, enrol := range map[string]func(*scene, *box){
		"installed": func(s *scene, b *box) { s.enrol(b) },
		"expected":  func(s *scene, b *box) { s.expects(false, api.Expected{Serial: "SN-1", EK: manifest.SHA256(b.id)}) },
		"approved": func(s *scene, b *box) {
			s.claims(b, "SN-1", disk)
			s.post(b, "approve")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var config server.Config
			s := knowing(t, keep(&config))
			b := newBox(t, s.tpmCA)
			file := s.backUp()
			enrol(s, b)
			if status, resp := s.claims(b, "SN-1", disk); status != 200 {
				t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
			}
			memory, report := s.restored(nil, file)
			if report.Complete {
				t.Fatalf("got %+v", report)
			}
			s.adopt(config, memory)
			if status, _ := s.says("settle"); status != http.StatusConflict {
				t.Errorf("settled before it was accepted: HTTP %d", status)
			}
			if status, st := s.says("accept"); status != 200 || st.Held || !st.Unsettled {
				t.Fatalf("HTTP %d, %+v", status, st)
			}
			enrol(s, b)
			for i := range 2 {
				if status, resp := s.claims(b, "SN-1", disk); status != 403 || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
					t.Errorf("a second release in one boot: HTTP %d, %s", status, codes(resp.Result))
				}
				// The first is the service's own doing, the other is not.
				if n := strings.Count(s.kinds(), string(audit.KindAlarm)); n != i {
					t.Errorf("%d alarms after request %d", n, i+1)
				}
			}
			if m := s.machine(b); m.State != attest.StateEnrolled {
				t.Errorf("it is %s", m.State)
			}
			s.set(func() { s.boot.Reset++ })
			if status, resp := s.claims(b, "SN-1", disk); status != 200 {
				t.Errorf("in the next boot: HTTP %d, %s", status, codes(resp.Result))
			}
		})
	}
}

// Each step after a restore fails, or fails and is written all the same: nothing
// is released before its time, and nothing twice.
func TestWhatFailsAfterARestoreReleasesNothing(t *testing.T) {
	for name, persisted := range map[string]bool{"failed": false, "failed but persisted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var config server.Config
			s := newScene(t, keep(&config))
			b := newBox(t, s.tpmCA)
			s.enrol(b)
			file := s.backUp()
			if status, _ := s.attest(b); status != 200 { // and is lost
				t.Fatalf("HTTP %d", status)
			}
			memory, _ := s.restored(nil, file)
			s.adopt(config, memory)
			broken := func(step func()) {
				s.set(func() { s.fail = func(string) (error, bool) { return errors.New("disk full"), persisted } })
				step()
				s.set(func() { s.fail = nil })
			}
			ask := func() (int, string) {
				c := s.httpClient()
				var body struct {
					api.EvidenceResponse
					Code string
				}
				status := s.call(c, "POST", "https://"+s.nodes+api.PathEvidence, s.answer(b, s.challenge(c, b)), &body)
				if body.Release != nil && status != 200 {
					t.Errorf("HTTP %d with a release", status)
				}
				if body.Result != nil {
					return status, codes(body.Result)
				}
				return status, body.Code
			}
			broken(func() {
				if status, _ := s.says("accept"); status != http.StatusServiceUnavailable {
					t.Errorf("accept: HTTP %d", status)
				}
			})
			if status, code := ask(); !persisted && (status != http.StatusServiceUnavailable || code != "held") {
				t.Errorf("before it was accepted: HTTP %d, %s", status, code)
			} else if persisted && status != http.StatusForbidden {
				t.Errorf("accepted after all: HTTP %d, %s", status, code)
			}
			if status, st := s.says("accept"); status != 200 || st.Held {
				t.Fatalf("HTTP %d, %+v", status, st)
			}
			broken(func() {
				if status, code := ask(); status == 200 || status == http.StatusForbidden && !persisted {
					t.Errorf("the boot that is forfeited: HTTP %d, %s", status, code)
				}
			})
			for range 2 {
				if status, code := ask(); status != http.StatusForbidden || code != string(attest.CodeReleaseRepeated) {
					t.Errorf("the same boot again: HTTP %d, %s", status, code)
				}
			}
			broken(func() {
				if status, _ := s.says("settle"); status != http.StatusServiceUnavailable {
					t.Errorf("settle: HTTP %d", status)
				}
			})
			if status, st := s.says("settle"); status != 200 || st.Unsettled {
				t.Errorf("HTTP %d, %+v", status, st)
			}
			if n := strings.Count(s.kinds(), string(audit.KindAcceptRestore)); n != 2 {
				t.Errorf("%d entries tell of it, want 2", n)
			}
			s.set(func() { s.boot.Reset++ })
			if status, code := ask(); status != 200 {
				t.Errorf("the next boot: HTTP %d, %s", status, code)
			}
			if status, code := ask(); status != http.StatusForbidden {
				t.Errorf("a second release in it: HTTP %d, %s", status, code)
			}
		})
	}
}

func TestASettledRestoreTakesNewMachinesAsNew(t *testing.T) {
	var config server.Config
	s := newScene(t, keep(&config))
	b, late := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	if status, _ := s.says("settle"); status != http.StatusNotFound {
		t.Errorf("a store that was never restored: HTTP %d", status)
	}
	memory, _ := s.restored(nil, s.backUp())
	s.adopt(config, memory)
	s.says("accept")
	rec := record(late)
	rec.DiskGUID = otherDisk
	if _, err := s.srv.Enrol(t.Context(), "line-1", rec); err != nil { // before it is settled
		t.Fatal(err)
	}
	for range 2 { // again is no error
		if status, st := s.says("settle"); status != 200 || st.Unsettled || st.SettledBy != "alice" || st.Settled.IsZero() {
			t.Errorf("HTTP %d, %+v", status, st)
		}
	}
	s.enrol(b)
	if status, resp := s.attest(b); status != 200 {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
	if status, _ := s.attestFrom(late, otherDisk, false); status != 403 {
		t.Errorf("one that was enrolled before: HTTP %d", status)
	}
	if n := strings.Count(s.kinds(), string(audit.KindAcceptRestore)); n != 2 {
		t.Errorf("%d entries tell of it, want the acceptance and the settlement", n)
	}
}

// What one restore left open, the next does not forget: neither one from a
// backup of the restored store, nor one from the first backup and the log.
func TestARestoreOfARestoredStoreForgetsNothing(t *testing.T) {
	for name, accept := range map[string]bool{"held": false, "accepted": true} {
		for _, old := range []bool{false, true} {
			t.Run(name+map[bool]string{true: ", from the log", false: ", from a backup"}[old], func(t *testing.T) {
				t.Parallel()
				var config server.Config
				s := newScene(t, keep(&config))
				b, seen := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
				s.enrol(b)
				rec := record(seen)
				rec.DiskGUID = otherDisk
				if _, err := s.srv.Enrol(t.Context(), "line-1", rec); err != nil {
					t.Fatal(err)
				}
				first := s.backUp()
				if status, _ := s.attest(b); status != 200 { // and is lost
					t.Fatalf("HTTP %d", status)
				}
				memory, _ := s.restored(nil, first)
				s.adopt(config, memory)
				if accept {
					s.says("accept")
					// This one's boot is known, and so is its next.
					s.attestFrom(seen, otherDisk, false)
					s.set(func() { s.boot.Reset = 2 })
					if status, resp := s.attestFrom(seen, otherDisk, false); status != 200 {
						t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
					}
					s.set(func() { s.boot.Reset = 1 })
				}
				file := s.backUp()
				if old {
					file = first
				}
				memory, report := s.restored(func(o *backup.Order) { o.Log, o.Head = bytes.NewReader(s.exportLog(1)), s.head() }, file)
				if !report.Complete || report.Held == accept || !report.Unsettled {
					t.Fatalf("got %+v", report)
				}
				s.adopt(config, memory)
				var st api.RestoreStatus
				if s.call(s.operator(), "GET", "https://"+s.operators+api.PathRestore, nil, &st); st.Held == accept || !st.Unsettled {
					t.Errorf("got %+v", st)
				}
				if !accept {
					c := s.httpClient()
					var failed api.Error
					if s.call(c, "POST", "https://"+s.nodes+api.PathEvidence, s.answer(b, s.challenge(c, b)), &failed); failed.Code != "held" {
						t.Errorf("got %+v", failed)
					}
					s.says("accept")
				}
				if status, resp := s.attest(b); status != 403 || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
					t.Errorf("a second release in the boot of the lost one: HTTP %d, %s", status, codes(resp.Result))
				}
				if m := s.machine(seen); m.Restored == accept {
					t.Errorf("one that was released since forfeits %t", m.Restored)
				}
			})
		}
	}
}

// restart has the machine's service go on with another store.
func (m *machine) restart(c server.Config, memory *storetest.Memory) {
	m.Helper()
	m.adopt(c, memory)
	m.srv.AppraiseForReal()
	m.c = &client.Client{URL: "https://" + m.nodes, CA: m.pool(), ReleaseKey: &m.scene.release.PublicKey}
}

func TestARestoredServiceTakesReportsOfTheBootsThatItKnows(t *testing.T) {
	for name, tt := range map[string]struct {
		before                  bool // it reported before the backup
		reported, released, log bool // after the backup; the log is there
		want                    attest.Code
	}{
		"nothing happened since, and nothing was lost": {log: true},
		"the first report came since":                  {log: true, reported: true},
		"nothing happened since":                       {before: true},
		"reports came since, which are lost":           {before: true, reported: true},
		"the first report came since, which is lost":   {reported: true, want: attest.CodeReportBoot},
		"it was released since, as the log says":       {log: true, released: true, want: attest.CodeReportBoot},
		"it was released since, which is lost":         {before: true, released: true, want: attest.CodeReportBoot},
	} {
		t.Run(name, func(t *testing.T) {
			var config server.Config
			m, _ := releasedMachine(t, keep(&config))
			if tt.before {
				if _, err := m.report(nil); err != nil {
					t.Fatal(err)
				}
			}
			file := m.backUp()
			if tt.reported {
				if _, err := m.report(nil); err != nil {
					t.Fatal(err)
				}
			}
			start := func() {
				m.dev.Reset()
				m.power()
			}
			if tt.released {
				start()
				m.release()
			}
			memory, report := m.restored(func(o *backup.Order) {
				if tt.log {
					o.Log, o.Head = bytes.NewReader(m.exportLog(1)), m.head()
				}
			}, file)
			// What is lost altogether cannot be named.
			must := tt.log && tt.released || !tt.log && !tt.before
			if report.Complete != tt.log || (len(report.MustStart) == 1) != must {
				t.Errorf("got %+v", report)
			}
			m.restart(config, memory)
			if !tt.log {
				m.says("accept")
			}
			_, err := m.report(nil)
			if tt.want == "" && err != nil {
				t.Errorf("report: %v", err)
			}
			if tt.want != "" {
				m.wantRefused(err, tt.want)
				if !tt.log { // forfeits one boot
					start()
					_, _, _, err := m.boot(nil)
					m.wantRefused(err, attest.CodeReleaseRepeated)
				}
				start()
				m.release()
				if _, err := m.report(nil); err != nil {
					t.Errorf("after its next release: %v", err)
				}
			}
			// What was changed in the boot is seen as ever.
			m.dev.Extend(9, []byte("kexec"))
			_, err = m.report(nil)
			m.wantRefused(err, attest.CodePCRChanged)
		})
	}
}
