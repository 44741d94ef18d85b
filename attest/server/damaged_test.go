package server_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// noise is a store in which the records of releases, or of one machine, cannot be read.
type noise struct {
	server.Store
	releases bool
	machine  attest.MachineID
}

func (s *noise) Release(ctx context.Context, id string) (*server.Release, error) {
	if s.releases {
		return nil, &server.DamagedError{Release: id, Reason: errors.New("noise")}
	}
	return s.Store.Release(ctx, id)
}

func (s *noise) Machines(ctx context.Context, q server.Query) ([]*server.Machine, error) {
	ms, err := s.Store.Machines(ctx, q)
	for i, m := range ms {
		if m.ID == s.machine {
			ms[i] = &server.Machine{Machine: api.Machine{ID: m.ID, State: m.State, NodeName: m.NodeName, Damaged: "noise"}, Revision: m.Revision}
		}
	}
	return ms, err
}

// A confirmation whose release cannot be read is refused like one without a proof, and
// changes nothing. The confirmation counts once the record can be read.
func TestAConfirmationOfAReleaseThatCannotBeReadIsRefused(t *testing.T) {
	store := new(noise)
	s := newScene(t, func(c *server.Config) { store.Store, c.Store = c.Store, store })
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	status, resp := s.attest(b)
	if status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	r, _, transport := s.open(resp)
	store.releases = true
	if status := s.confirm(r, transport, api.OutcomeUnlocked); status != 403 {
		t.Errorf("HTTP %d, want 403", status)
	}
	if !strings.Contains(s.log.String(), "confirmation cannot be checked") {
		t.Error("the log does not say so")
	}
	if s.machine(b).StateMade {
		t.Error("it counted")
	}
	store.releases = false
	if status := s.confirm(r, transport, api.OutcomeUnlocked); status != 200 {
		t.Errorf("HTTP %d, want 200", status)
	}
	if !s.machine(b).StateMade {
		t.Error("it did not count")
	}
}

// A record that cannot be read does not keep the service from finding the machines that
// are stale.
func TestTheSweepGoesOnPastARecordThatCannotBeRead(t *testing.T) {
	store := new(noise)
	s, b, _ := reporting(t, func(c *server.Config) { store.Store, c.Store = c.Store, store })
	for i, id := range []attest.MachineID{{1}, {0: 0xff, 31: 0xff}} { // before it and after it
		m := &server.Machine{Machine: api.Machine{ID: id, NodeName: "x-" + id.Short(), State: attest.StateEnrolled, ReportDue: s.now()}}
		if err := s.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
			t.Fatal(i, err)
		}
	}
	store.machine = attest.MachineID{1}
	up := s.now().Add(-time.Hour)
	s.set(func() { s.offset = 31 * time.Minute })
	if err := s.srv.Sweep(t.Context(), up); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[attest.MachineID]bool{b.id: true, {1}: false, {0: 0xff, 31: 0xff}: true} {
		m, err := s.memory.Machine(t.Context(), id)
		if err != nil || m.Stale != want {
			t.Errorf("machine %s: stale %t, %v", id.Short(), m.Stale, err)
		}
	}
}
