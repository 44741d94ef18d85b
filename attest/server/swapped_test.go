package server_test

import (
	"context"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// swapped is a store to which somebody wrote who has no keys: the row of one
// machine holds another's record.
type swapped struct {
	server.Store
	id     attest.MachineID
	record *server.Machine // nil: as it is
}

func (s *swapped) Machine(ctx context.Context, id attest.MachineID) (*server.Machine, error) {
	if id == s.id && s.record != nil {
		m := *s.record
		return &m, nil
	}
	return s.Store.Machine(ctx, id)
}

// Whoever can write to the database and has a machine of the fleet must not have
// the service open another machine's disk key for it. The key's box names the
// machine that it is for, and so must the record.
func TestARecordOfAnotherMachineOpensNoDiskKey(t *testing.T) {
	store := new(swapped)
	s := newScene(t, func(c *server.Config) {
		store.Store = c.Store
		c.Store = store
	})
	theirs, own := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	s.enrol(theirs)
	status, resp := s.attest(theirs)
	if status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	_, secrets, _ := s.open(resp)
	victim := s.machine(theirs)
	// As the record of a machine whose disk, their disk, comes back to it.
	r := *victim
	r.Next = &api.Candidate{DiskGUID: victim.DiskGUID}
	r.Former = []server.FormerDisk{{DiskGUID: victim.DiskGUID, DiskKey: victim.DiskKey}}
	r.DiskGUID, r.Released = otherDisk, false
	// Their disk is nobody's then.
	free := *victim
	free.DiskGUID = ""
	if err := s.memory.Commit(t.Context(), &server.Change{Machine: &free}); err != nil {
		t.Fatal(err)
	}
	store.id, store.record = own.id, &r
	store.record.Revision++
	status, resp = s.attest(own)
	if status == 200 {
		_, got, _ := s.open(resp)
		t.Fatalf("released; the other machine's disk key: %t", string(got.DiskKey) == string(secrets.DiskKey))
	}
	if status != 500 || !strings.Contains(s.log.String(), "holds the record of machine "+theirs.id.String()) {
		t.Errorf("HTTP %d", status)
	}
}
