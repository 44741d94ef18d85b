package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
)

// secondKey is b's TPM with another of its endorsement keys, which the authority
// certifies too.
func (s *scene) secondKey(b *box) *box {
	s.Helper()
	ek := newKey(s)
	d, err := b.tpm.WithEK(ek)
	if err != nil {
		s.Fatal(err)
	}
	o := &box{tpm: d, ekPublic: tpm2.Marshal(d.EKPublic), akPublic: b.akPublic, cert: s.tpmCA.Certify(s, ek.Public()).Raw}
	if o.id, err = d.MachineID(); err != nil {
		s.Fatal(err)
	}
	return o
}

// nextBoot has the next evidence be of another boot.
func (s *scene) nextBoot() { s.set(func() { s.boot.Reset++ }) }

// attests gives evidence of b, from a disk.
func (s *scene) attests(b *box, guid string) (int, string) {
	s.Helper()
	c := s.httpClient()
	req := s.answer(b, s.challenge(c, b))
	req.Evidence.Disk = attest.Disk{GUID: guid, StateExists: true}
	status, resp := s.send(c, req)
	return status, codes(resp.Result)
}

// proveKeys proves other endorsement keys over a connection as an agent does.
func (s *scene) proveKeys(c *http.Client, others ...*box) {
	s.Helper()
	for _, o := range others {
		if status := s.proveKey(c, s.keyProof(o, s.challenge(c, o))); status != 200 {
			s.Fatalf("prove a key: HTTP %d", status)
		}
	}
}

func (s *scene) keyProof(b *box, ch *api.Challenge) *api.KeyRequest {
	return &api.KeyRequest{ChallengeID: ch.ID, ActivationProof: s.answer(b, ch).ActivationProof}
}

func (s *scene) proveKey(c *http.Client, req *api.KeyRequest) int {
	s.Helper()
	return s.call(c, "POST", "https://"+s.nodes+api.PathKey, req, nil)
}

// attestsWith gives evidence of b after its TPM's other keys were proven.
func (s *scene) attestsWith(b *box, others ...*box) (int, string) {
	s.Helper()
	c := s.httpClient()
	s.proveKeys(c, others...)
	req := s.answer(b, s.challenge(c, b))
	req.KeysProven, req.Evidence.Disk.StateExists = true, true
	status, resp := s.send(c, req)
	return status, codes(resp.Result)
}

// logged returns the entries of the audit log about a machine, of a kind.
func (s *scene) logged(id attest.MachineID, kind audit.Kind) []string {
	s.Helper()
	var out []string
	for e, err := range s.memory.Audit(context.Background(), 1) {
		if err != nil {
			s.Fatal(err)
		}
		if e.Machine == id && e.Kind == kind {
			out = append(out, string(e.Data))
		}
	}
	return out
}

func TestOneTPMIsNotTwoMachines(t *testing.T) {
	for name, tt := range map[string]struct {
		then string // what an operator does with the machine
		// before is what becomes of the second key before it gives evidence.
		before func(s *scene, first, second *box)
		record bool // the second key has a record of its own
	}{
		"an enrolled one":                       {},
		"a quarantined one":                     {then: "quarantine"},
		"a revoked one":                         {then: "revoke"},
		"a revoked one with an install record":  {then: "revoke", record: true, before: func(s *scene, _, second *box) { s.install(second, otherDisk, "other") }},
		"an enrolled one and an install record": {record: true, before: func(s *scene, _, second *box) { s.install(second, otherDisk, "other") }},
		"a revoked one that is expected": {then: "revoke", before: func(s *scene, _, second *box) {
			if got := s.expects(false, api.Expected{Serial: "CZ-2", EK: second.digests(s)[0]}); got != "added" {
				s.Fatal(got)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, nil)
			first, _ := s.running()
			second := s.secondKey(first)
			if tt.then != "" {
				if status := s.post(first, tt.then); status != 200 {
					t.Fatalf("%s: HTTP %d", tt.then, status)
				}
			}
			if tt.before != nil {
				tt.before(s, first, second)
			}
			s.nextBoot()
			status, got := s.attests(second, otherDisk)
			if status != http.StatusForbidden || !strings.Contains(got, string(attest.CodeTPMTaken)) {
				t.Fatalf("HTTP %d, %s", status, got)
			}
			id := first.id
			if tt.record {
				id = second.id
			} else if _, err := s.memory.Machine(t.Context(), second.id); err == nil {
				t.Error("it waits for approval as another machine")
			}
			// It shows where somebody looks for the machine, and as an alarm.
			verdicts, alarms := s.logged(id, audit.KindVerdict), s.logged(id, audit.KindAlarm)
			if len(verdicts) == 0 || !strings.Contains(verdicts[len(verdicts)-1], string(attest.CodeTPMTaken)) {
				t.Errorf("no verdict of machine %s says so: %s", id.Short(), verdicts)
			}
			if !strings.Contains(strings.Join(alarms, " "), string(attest.CodeTPMTaken)) {
				t.Errorf("no alarm: %s", alarms)
			}
			if tt.then == "" {
				// The machine itself is as it was.
				s.nextBoot()
				if status, got := s.attests(first, disk); status != 200 {
					t.Errorf("the machine itself: HTTP %d, %s", status, got)
				}
			}
		})
	}
}

// install hands over an install record.
func (s *scene) install(b *box, guid, serial string) {
	s.Helper()
	rec := record(b)
	rec.DiskGUID, rec.Serial = guid, serial
	if _, err := s.srv.Enrol(s.Context(), "line-1", rec); err != nil {
		s.Fatal(err)
	}
}

func TestAMachineThatWaitsOwnsItsTPMOnlyOnceItIsLockedOut(t *testing.T) {
	s := newScene(t, nil)
	first := newBox(t, s.tpmCA)
	second := s.secondKey(first)
	if _, got := s.attests(second, otherDisk); !strings.Contains(got, string(attest.CodeMachineUnknown)) {
		t.Fatal(got)
	}
	if m := s.machine(second); m.State != attest.StatePending {
		t.Fatalf("state %q", m.State)
	}
	s.enrol(first)
	if status, got := s.attests(first, disk); status != 200 {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	s.nextBoot()
	if status, got := s.attests(second, otherDisk); status != 403 || !strings.Contains(got, string(attest.CodeTPMTaken)) {
		t.Errorf("the one that waited: HTTP %d, %s", status, got)
	}

	third := newBox(t, s.tpmCA)
	s.attests(third, "6c0d1e0c-3b1f-4a56-9d0e-0123456789ab")
	if status := s.post(third, "revoke"); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	if status, got := s.attests(s.secondKey(third), "6d0d1e0c-3b1f-4a56-9d0e-0123456789ab"); status != 403 || !strings.Contains(got, string(attest.CodeTPMTaken)) {
		t.Errorf("of one revoked while it waited: HTTP %d, %s", status, got)
	}
}

// What was never released is known by its attestation key all the same, as soon as
// that has signed something.
func TestAMachineThatWasRefusedAndLockedOutOwnsItsTPM(t *testing.T) {
	s := newScene(t, nil)
	first := newBox(t, s.tpmCA)
	s.enrol(first)
	s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeSecureBootOff}} })
	if status, got := s.attests(first, disk); status != 403 {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	s.set(func() { s.refuse = nil })
	if status := s.post(first, "revoke"); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	second := s.secondKey(first)
	s.install(second, otherDisk, "other")
	if status, got := s.attests(second, otherDisk); status != 403 || !strings.Contains(got, string(attest.CodeTPMTaken)) {
		t.Errorf("HTTP %d, %s", status, got)
	}
}

// A broken TPM's endorsement key, which an authority vouches for, opens credentials
// for any attestation key in software. What it sends is not another machine's.
func TestWhatTheAttestationKeyDidNotSignIsNotItsMachines(t *testing.T) {
	s := newScene(t, nil)
	first, _ := s.running()
	broken := s.secondKey(first)
	before := s.machine(first)
	s.nextBoot()
	s.set(func() { s.unsigned = true })
	if status, got := s.attests(broken, otherDisk); status != 403 {
		t.Errorf("HTTP %d, %s", status, got)
	}
	if after := s.machine(first); after.Revision != before.Revision {
		t.Errorf("the machine's record has changed: %+v", after.Machine)
	}
	if alarms := s.logged(first.id, audit.KindAlarm); len(alarms) > 0 {
		t.Errorf("alarms of the machine: %s", alarms)
	}
	if m := s.machine(broken); m.State != attest.StatePending {
		t.Errorf("state %q", m.State)
	}

	// Nor is the TPM of one that was not released yet the broken one's.
	other := newBox(t, s.tpmCA)
	s.install(other, "6c0d1e0c-3b1f-4a56-9d0e-0123456789ab", "other")
	thief := s.secondKey(other)
	s.attests(thief, otherDisk)
	if status := s.post(thief, "revoke"); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	s.set(func() { s.unsigned = false })
	if status, got := s.attests(other, "6c0d1e0c-3b1f-4a56-9d0e-0123456789ab"); status != 200 {
		t.Errorf("HTTP %d, %s", status, got)
	}
}

func TestTheServiceTellsAnAgentWhichKeyIsItsMachines(t *testing.T) {
	s := newScene(t, nil)
	first := newBox(t, s.tpmCA)
	second := s.secondKey(first)
	advice := func(b *box) string {
		ch := s.challenge(s.httpClient(), b)
		return fmt.Sprint(ch.Machine.Short(), " ", ch.ProveKeys)
	}
	none := attest.MachineID{}.Short()
	for _, b := range []*box{first, second} {
		if got := advice(b); got != none+" false" {
			t.Errorf("before any release: %s", got)
		}
	}
	s.enrol(first)
	if status, got := s.attests(first, disk); status != 200 {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	if got := advice(first); got != none+" true" {
		t.Errorf("the machine itself: %s", got)
	}
	if got := advice(second); got != first.id.Short()+" false" {
		t.Errorf("the other key: %s", got)
	}
	s.nextBoot()
	if status, got := s.attestsWith(first, second); status != 200 {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	if m := s.machine(first); !slices.Equal(m.OtherKeys, []attest.MachineID{second.id}) {
		t.Errorf("other keys: %v", m.OtherKeys)
	}
	if got := advice(first); got != none+" false" {
		t.Errorf("once its keys are proven: %s", got)
	}
	s.nextBoot()
	s.set(func() { s.boot.Firmware++ })
	if status, got := s.attests(first, disk); status != 200 {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	if got := advice(first); got != none+" true" {
		t.Errorf("after an update of the TPM's firmware: %s", got)
	}
	if status := s.post(first, "revoke"); status != 200 {
		t.Fatal(status)
	}
	if got := advice(second); got != none+" false" {
		t.Errorf("once it is revoked: %s", got)
	}
}

func TestAProvenKeyIsKnownWithoutTheAttestationKey(t *testing.T) {
	s := newScene(t, nil)
	first, _ := s.running()
	second := s.secondKey(first)
	s.nextBoot()
	if status, got := s.attestsWith(first, second); status != 200 {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	// A service that was renamed has the TPM make another attestation key.
	other := newBox(t, s.tpmCA)
	renamed, err := other.tpm.WithEK(second.tpm.EK)
	if err != nil {
		t.Fatal(err)
	}
	again := &box{tpm: renamed, ekPublic: second.ekPublic, akPublic: other.akPublic, cert: second.cert, id: second.id}
	s.nextBoot()
	if status, got := s.attests(again, otherDisk); status != 403 || !strings.Contains(got, string(attest.CodeTPMTaken)) {
		t.Errorf("enrolled: HTTP %d, %s", status, got)
	}
	// An installer met that key: the record is the machine's.
	s.install(again, otherDisk, "S-"+first.id.Short())
	if m := s.machine(first); m.Next == nil || m.Next.DiskGUID != otherDisk {
		t.Errorf("no candidate: %+v", m.Next)
	}
	if _, err := s.memory.Machine(t.Context(), second.id); err == nil {
		t.Error("the install record made another machine")
	}
	if status := s.post(first, "revoke"); status != 200 {
		t.Fatal(status)
	}
	if _, err := s.srv.Enrol(t.Context(), "line-1", record(again)); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("an install record brings it back: %v", err)
	}
	if status, got := s.attests(again, otherDisk); status != 403 || !strings.Contains(got, string(attest.CodeTPMTaken)) {
		t.Errorf("revoked: HTTP %d, %s", status, got)
	}
	// Nor does a person, by mistake.
	if status := s.post(again, "approve"); status != http.StatusNotFound && status != http.StatusConflict {
		t.Errorf("approve: HTTP %d", status)
	}
}

func TestAKeyThatIsAnotherMachineAlreadyIsNotTakenOver(t *testing.T) {
	s := newScene(t, nil)
	first, _ := s.running()
	// A machine of its own since a time when the service had another name.
	second := newBox(t, s.tpmCA)
	s.install(second, otherDisk, "other")
	if status, got := s.attests(second, otherDisk); status != 200 {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	inFirst, err := first.tpm.WithEK(second.tpm.EK)
	if err != nil {
		t.Fatal(err)
	}
	proven := &box{tpm: inFirst, ekPublic: second.ekPublic, akPublic: first.akPublic, cert: second.cert, id: second.id}
	s.nextBoot()
	if status, got := s.attestsWith(first, proven); status != 403 || got != string(attest.CodeTPMTaken) {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	if m := s.machine(first); len(m.OtherKeys) > 0 {
		t.Errorf("refused evidence has noted %v", m.OtherKeys)
	}
	// Without the proof nothing is known of it.
	if status, got := s.attests(first, disk); status != 200 {
		t.Errorf("HTTP %d, %s", status, got)
	}
}

func TestReEnrolmentGivesATPMToAnotherOfItsKeys(t *testing.T) {
	for _, installed := range []bool{false, true} {
		t.Run(fmt.Sprint("installed before ", installed), func(t *testing.T) {
			s := newScene(t, nil)
			first, _ := s.running()
			second := s.secondKey(first)
			if installed {
				s.install(second, otherDisk, "other")
			}
			op := s.operatorClient()
			m, err := op.ReEnrol(t.Context(), first.id, second.id, "its certificate changed")
			if err != nil || m.NodeName != api.NodeName(first.id, 10) {
				t.Fatalf("%+v, %v", m, err)
			}
			if ch := s.challenge(s.httpClient(), second); !ch.Machine.IsZero() {
				t.Errorf("the agent is told to use the key of machine %s", ch.Machine.Short())
			}
			s.nextBoot()
			if status, got := s.attests(second, otherDisk); status != 200 {
				t.Errorf("HTTP %d, %s", status, got)
			}
			s.nextBoot()
			if status, got := s.attests(first, disk); status != 403 || !strings.Contains(got, string(attest.CodeMachineRevoked)) {
				t.Errorf("the former key: HTTP %d, %s", status, got)
			}
			if status := s.post(second, "revoke"); status != 200 {
				t.Fatal(status)
			}
			if status, got := s.attests(first, disk); status != 403 || !strings.Contains(got, string(attest.CodeTPMTaken)) {
				t.Errorf("the former key of a revoked machine: HTTP %d, %s", status, got)
			}
		})
	}
}

func TestOnlyATPMThatAnAuthorityVouchesForIsTakenForAnother(t *testing.T) {
	s := newScene(t, nil)
	first, _ := s.running()
	// The attestation key is known to whoever reads along; whoever makes up the
	// endorsement key activates anything with it.
	made := s.secondKey(first)
	made.cert = nil
	before := s.machine(first)
	s.nextBoot()
	if status, got := s.attests(made, otherDisk); status != 403 || strings.Contains(got, string(attest.CodeTPMTaken)) {
		t.Errorf("HTTP %d, %s", status, got)
	}
	if after := s.machine(first); after.Revision != before.Revision {
		t.Error("a key in software has changed the machine's record")
	}
}

func TestAKeyIsProvenOnlyByItsChallenge(t *testing.T) {
	s := newScene(t, nil)
	b, _ := s.running()
	second := s.secondKey(b)
	c := s.httpClient()
	ch := s.challenge(c, second)
	good := s.keyProof(second, ch)
	if status := s.proveKey(s.httpClient(), good); status != 403 {
		t.Errorf("over another connection: HTTP %d", status)
	}
	wrong := *good
	wrong.ActivationProof = make([]byte, 32)
	if status := s.proveKey(c, &wrong); status != 403 {
		t.Errorf("a wrong proof: HTTP %d", status)
	}
	if status := s.proveKey(c, good); status != 403 {
		t.Errorf("a challenge that was answered: HTTP %d", status)
	}
	if status := s.proveKey(c, &api.KeyRequest{ChallengeID: strings.Repeat("x", 65)}); status != 400 {
		t.Errorf("a long id: HTTP %d", status)
	}
	// Evidence does not answer the same challenge.
	both := s.challenge(c, second)
	if status := s.proveKey(c, s.keyProof(second, both)); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	if status, resp := s.send(c, s.answer(second, both)); status != 403 || codes(resp.Result) != string(attest.CodeChallenge) {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
	// What was proven counts for that attestation key and connection alone.
	s.nextBoot()
	other := newBox(t, s.tpmCA)
	s.install(other, otherDisk, "other")
	req := s.answer(other, s.challenge(c, other))
	req.Evidence.Disk.GUID = otherDisk
	if status, resp := s.send(c, req); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	if m := s.machine(other); len(m.OtherKeys) > 0 {
		t.Errorf("another machine over the connection has the keys %v", m.OtherKeys)
	}
	var more []*box
	for range api.MaxKeys - 1 {
		more = append(more, s.secondKey(b))
	}
	s.proveKeys(c, more...)
	s.proveKeys(c, second) // again
	if status := s.proveKey(c, s.keyProof(b, s.challenge(c, b))); status != 400 {
		t.Errorf("more keys than there is room for: HTTP %d", status)
	}
	late := s.keyProof(more[0], s.challenge(c, more[0]))
	s.set(func() { s.offset = time.Hour })
	if status := s.proveKey(c, late); status != 403 {
		t.Errorf("a challenge that has expired: HTTP %d", status)
	}
}

// TestRecordsOfAnEarlierVersionAreIndexed begins with a store in which one TPM is
// several machines, and which says nothing of TPMs.
func TestRecordsOfAnEarlierVersionAreIndexed(t *testing.T) {
	for name, tt := range map[string]struct {
		first, second attest.EnrolmentState
		replaced      bool // the first by the second
		want          int  // the one that the TPM is; 0 or 1
		alarm         bool
	}{
		"the one that was seen last":  {attest.StateEnrolled, attest.StateEnrolled, false, 1, true},
		"the one that was revoked":    {attest.StateRevoked, attest.StateEnrolled, false, 0, true},
		"the one that was given it":   {attest.StateRevoked, attest.StateEnrolled, true, 1, false},
		"the one that is quarantined": {attest.StateQuarantined, attest.StateEnrolled, false, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory := new(storetest.Memory)
			plain := newScene(t, nil) // for its authority
			boxes := []*box{newBox(t, plain.tpmCA)}
			boxes = append(boxes, plain.secondKey(boxes[0]))
			akName, err := attest.AKName(boxes[0].akPublic)
			if err != nil {
				t.Fatal(err)
			}
			for i, state := range []attest.EnrolmentState{tt.first, tt.second} {
				m := &server.Machine{AKName: akName, Machine: api.Machine{
					ID: boxes[i].id, State: state, NodeName: fmt.Sprint("n", i), LastSeen: time.Unix(int64(1000+i), 0), DiskGUID: []string{disk, otherDisk}[i],
				}}
				if tt.replaced && i == 0 {
					m.ReplacedBy = boxes[1].id
				}
				if err := memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
					t.Fatal(err)
				}
			}
			s := newScene(t, func(c *server.Config) { c.Store = memory })
			s.memory = memory
			doc, err := memory.Document(t.Context(), audit.BindingTPM, "ak-"+hex.EncodeToString(akName))
			if err != nil {
				t.Fatal(err)
			}
			var owner struct{ Machine attest.MachineID }
			if err := json.Unmarshal(doc.Body, &owner); err != nil || owner.Machine != boxes[tt.want].id {
				t.Errorf("the TPM is machine %s (%v), want the %d. of %s and %s", owner.Machine.Short(), err, tt.want+1, boxes[0].id.Short(), boxes[1].id.Short())
			}
			if got := strings.Contains(s.kinds(), string(audit.KindAlarm)); got != tt.alarm {
				t.Errorf("alarm: %t, want %t", got, tt.alarm)
			}
			before := s.kinds()
			if err := s.srv.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := s.kinds(); strings.Count(after, string(audit.KindAlarm)) != strings.Count(before, string(audit.KindAlarm)) {
				t.Error("it is told again at the next start")
			}
		})
	}
}

// enrolled is the entry that enrols a machine, not signed.
func enrolled(id attest.MachineID) audit.Event {
	return audit.Event{Time: time.Unix(1, 0), Kind: audit.KindState, Machine: id, Data: audit.StateChange{To: attest.StateEnrolled, By: "ana"}}
}

func TestDuplicatesOfAnEarlierVersionBecomeOneMachine(t *testing.T) {
	s := newScene(t, nil)
	first, _ := s.running()
	second := s.secondKey(first)
	m := s.machine(first)
	twin := &server.Machine{AKName: m.AKName, ReleaseID: "r", Machine: api.Machine{ID: second.id, State: attest.StateEnrolled, NodeName: "twin", DiskGUID: otherDisk}}
	ev, err := audit.SignTrust(s.release, enrolled(second.id), s.now())
	if err == nil {
		err = s.memory.Commit(t.Context(), &server.Change{Machine: twin, Events: []audit.Event{ev}})
	}
	if err != nil {
		t.Fatal(err)
	}
	s.nextBoot()
	if status, got := s.attests(second, otherDisk); status != 403 || !strings.Contains(got, string(attest.CodeTPMTaken)) {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	kept, err := s.operatorClient().ReEnrol(t.Context(), first.id, second.id, "one box")
	if err != nil || kept.NodeName != "twin" || kept.State != attest.StateEnrolled {
		t.Fatalf("%+v, %v", kept, err)
	}
	if m := s.machine(first); m.State != attest.StateRevoked || m.ReplacedBy != second.id || !m.FenceDue {
		t.Errorf("the other: %q, replaced by %s, fence due %t", m.State, m.ReplacedBy.Short(), m.FenceDue)
	}
	if status, got := s.attests(second, otherDisk); status != 200 {
		t.Errorf("HTTP %d, %s", status, got)
	}
	stranger := newBox(t, s.tpmCA)
	s.install(stranger, "6c0d1e0c-3b1f-4a56-9d0e-0123456789ab", "stranger")
	if status, got := s.attests(stranger, "6c0d1e0c-3b1f-4a56-9d0e-0123456789ab"); status != 200 {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	if _, err := s.operatorClient().ReEnrol(t.Context(), second.id, stranger.id, "another box"); err == nil {
		t.Error("a machine with another TPM, which is in use, took the place of this one")
	}
}

// An earlier version let one box be two machines, and an operator revoked the one that
// was not in use. The box is then refused, and the hint's command mends it.
func TestADuplicateThatWasRevokedByHandIsReplaced(t *testing.T) {
	memory := new(storetest.Memory)
	plain := newScene(t, nil) // for its authority
	first := newBox(t, plain.tpmCA)
	second := plain.secondKey(first)
	akName, err := attest.AKName(first.akPublic)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*server.Machine{
		{AKName: akName, Machine: api.Machine{ID: first.id, State: attest.StateRevoked, Reason: "duplicate", NodeName: "n0", DiskGUID: disk}},
		{AKName: akName, ReleaseID: "r", Machine: api.Machine{ID: second.id, State: attest.StateEnrolled, NodeName: "n1", DiskGUID: otherDisk}},
	} {
		change := &server.Change{Machine: m}
		if m.State == attest.StateEnrolled {
			change.Events = []audit.Event{enrolled(m.ID)} // as that version has it, unsigned
		}
		if err := memory.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	s := newScene(t, func(c *server.Config) {
		c.Store = memory
		c.Standing = storetest.Standing(t, memory, c.ReleaseKey.(*ecdsa.PrivateKey))
	})
	s.memory, s.tpmCA = memory, plain.tpmCA
	if status, got := s.attests(second, otherDisk); status != 403 || got != string(attest.CodeTPMTaken) {
		t.Fatalf("HTTP %d, %s", status, got)
	}
	// By which the verifier knows what to advise.
	stored, err := memory.Evidence(t.Context(), s.machine(second).LastEvidence)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := api.DecodeEvidence(stored)
	if err != nil {
		t.Fatal(err)
	}
	if ev.Known.State != attest.StateEnrolled || ev.Known.TPMOwner != first.id || ev.Known.TPMOwnerState != attest.StateRevoked {
		t.Errorf("the verifier is told that the machine is %s, and machine %s, which has its TPM, %s", ev.Known.State, ev.Known.TPMOwner.Short(), ev.Known.TPMOwnerState)
	}
	if m, err := s.operatorClient().ReEnrol(t.Context(), first.id, second.id, "the duplicate was revoked"); err != nil || m.NodeName != "n1" {
		t.Fatalf("%+v, %v", m, err)
	}
	if status, got := s.attests(second, otherDisk); status != 200 {
		t.Errorf("HTTP %d, %s", status, got)
	}
	if status, _ := s.attests(first, disk); status != 403 {
		t.Error("the record that was revoked is served")
	}
}

func TestReplicasIndexTheirStoreAtOnce(t *testing.T) {
	s := newScene(t, nil)
	for round := range 5 {
		memory := new(storetest.Memory)
		var servers []*server.Server
		for i := range 300 {
			m := &server.Machine{AKName: fmt.Append(nil, "ak ", i), Machine: api.Machine{ID: attest.MachineID{1, byte(i), byte(i >> 8)}, State: attest.StateEnrolled, NodeName: fmt.Sprint("n", i)}}
			if err := memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			srv, err := server.New(server.Config{
				Store: memory, Standing: storetest.Standing(t, memory, s.release), KEK: bytes.Repeat([]byte{1}, server.KEKSize), ReleaseKey: s.release, Log: slog.New(slog.DiscardHandler),
				Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return &attest.Policy{}, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			servers = append(servers, srv)
		}
		var wg sync.WaitGroup
		for i, srv := range servers {
			wg.Go(func() {
				if err := srv.Start(t.Context()); err != nil {
					t.Errorf("round %d, replica %d: %v", round, i, err)
				}
			})
		}
		wg.Wait()
		docs, err := memory.Documents(t.Context(), audit.BindingTPM, "", 0)
		if err != nil || len(docs) != 301 {
			t.Errorf("round %d: %d documents, %v; want one for each of 300 machines, and that it is done", round, len(docs), err)
		}
	}
}
