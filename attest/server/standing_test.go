package server_test

import (
	"context"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// behind is the Standing of a replica that has read nothing of what others decided, until
// it is asked for the current one.
type behind struct{ s *scene }

func (b behind) read(current bool) *audit.Standing {
	b.s.Helper()
	all, err := audit.NewStanding(audit.ReleaseKeys{Present: &b.s.release.PublicKey})
	if err != nil {
		b.s.Fatal(err)
	}
	if current {
		for e, err := range b.s.memory.Audit(context.Background(), 1) {
			if err == nil {
				err = all.Note(e)
			}
			if err != nil {
				b.s.Fatal(err)
			}
		}
	}
	return all
}

func (b behind) Machine(_ context.Context, id attest.MachineID, current bool) (attest.EnrolmentState, time.Time, error) {
	state, at := b.read(current).Machine(id)
	return state, at, nil
}

func (b behind) Expected(_ context.Context, ek manifest.SHA256, serial string, current bool) (bool, time.Time, error) {
	ok, at := b.read(current).Expected(ek, serial)
	return ok, at, nil
}

func (b behind) Restored(context.Context) (time.Time, error) { return b.read(true).Restored(), nil }

// The clocks of replicas differ, and one is set back. What enrols counts nevertheless,
// also if what came before was decided by another just before, and after a restore on a
// host whose clock was ahead.
func TestAnEnrolmentCountsWhateverTheClockSays(t *testing.T) {
	t.Parallel()
	var b behind
	s := newScene(t, func(c *server.Config) {
		c.Standing, c.Limits = &b, server.Limits{
			PerAddress: time.Second, AddressBurst: 1 << 20, PerEK: time.Second, EKBurst: 1 << 20,
			OperatorPerAddress: time.Second, OperatorAddressBurst: 1 << 20, PerOperator: time.Second, OperatorBurst: 1 << 20,
		}
	})
	b.s, s.tokens.life = s, 5*time.Minute
	back := func() { s.set(func() { s.offset -= time.Minute }) }
	x := newBox(t, s.tpmCA)
	s.enrol(x)
	for _, verb := range []string{"revoke", "quarantine"} {
		if status := s.post(x, verb); status != 200 {
			t.Fatalf("%s: HTTP %d", verb, status)
		}
		back()
		if status := s.post(x, "reinstate"); status != 200 {
			t.Fatalf("reinstate: HTTP %d", status)
		}
		if got, at := b.read(true).Machine(x.id); got != attest.StateEnrolled {
			t.Errorf("reinstated after %s, the log says %s since %v", verb, got, at)
		}
		if status, resp := s.attest(x); status != 200 {
			t.Errorf("reinstated after %s: HTTP %d, %s", verb, status, codes(resp.Result))
		}
		s.set(func() { s.boot.Reset++ })
	}
	line := api.Expected{Serial: "ABC-1", EK: manifest.SHA256{1}}
	withdrawn := line
	withdrawn.Withdrawn = true
	for _, l := range []api.Expected{line, withdrawn, line} {
		if got := s.expects(false, l); got != "added" && got != "withdrawn" {
			t.Error(got)
		}
		back()
	}
	if ok, at := b.read(true).Expected(line.EK, line.Serial); !ok {
		t.Errorf("imported again, it is not expected since %v", at)
	}
	if err := s.srv.Record(t.Context(), audit.Event{Time: s.now().Add(time.Hour), Kind: audit.KindRestore, Data: audit.Restore{By: "root"}}); err != nil {
		t.Fatal(err)
	}
	y := newBox(t, s.tpmCA)
	rec := record(y)
	rec.DiskGUID = "7b0d1e0c-3b1f-4a56-9d0e-000000000009"
	if _, err := s.srv.Enrol(t.Context(), "line-1", rec); err != nil {
		t.Fatal(err)
	}
	if got, _ := b.read(true).Machine(y.id); got != attest.StateEnrolled {
		t.Errorf("installed after a restore, the log says %q", got)
	}
}
