package main

import (
	"context"
	"database/sql"
	"errors"
	"iter"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// A person locks a machine out, and before this replica looks at its log the next time
// somebody who writes to the database puts the record back. What was decided here counts
// here at once.
func TestALockOutCountsAtOnceWhateverTheRecordSays(t *testing.T) {
	t.Parallel()
	const unproven = string(attest.CodeMachineUnproven)
	s := newPolicyScene(t)
	listed := func(t *testing.T, r *replica, b *standingBox, withdrawn bool) {
		r.expect(t, api.Expected{Serial: b.serial, EK: [32]byte(b.id), Withdrawn: withdrawn})
	}
	for name, tt := range map[string]struct {
		strange bool // the machine was never installed
		lock    func(t *testing.T, d database, r *replica, b *standingBox)
		want    string
	}{
		"revoked": {
			lock: func(t *testing.T, d database, r *replica, b *standingBox) {
				r.state(t, b.id, attest.StateRevoked)
				d.becomes(b.id, attest.StateEnrolled)
			},
			want: unproven,
		},
		"quarantined": {
			lock: func(t *testing.T, d database, r *replica, b *standingBox) {
				r.state(t, b.id, attest.StateQuarantined)
				d.becomes(b.id, attest.StateEnrolled)
			},
			want: unproven,
		},
		"revoked, after an entry that another replica wrote": {
			lock: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.log(audit.KindConfirm, b.id, audit.Confirm{ReleaseID: "r", Outcome: "o"})
				r.state(t, b.id, attest.StateRevoked)
				d.becomes(b.id, attest.StateEnrolled)
			},
			want: unproven,
		},
		"revoked, with its record forgotten, and installed again": {
			lock: func(t *testing.T, d database, r *replica, b *standingBox) {
				r.state(t, b.id, attest.StateRevoked)
				d.exec("DELETE FROM machine WHERE id = ?", b.id[:])
				b.install(t, r)
			},
			want: unproven,
		},
		"revoked and reinstated": {
			lock: func(t *testing.T, d database, r *replica, b *standingBox) {
				r.state(t, b.id, attest.StateRevoked)
				r.state(t, b.id, attest.StateEnrolled)
			},
			want: "released",
		},
		"withdrawn from a list": {
			strange: true,
			lock: func(t *testing.T, d database, r *replica, b *standingBox) {
				listed(t, r, b, false)
				if err := r.live.watch(t.Context()); err != nil {
					t.Fatal(err)
				}
				listed(t, r, b, true)
				d.document("expected", b.id.String(), api.Expected{Serial: b.serial, EK: [32]byte(b.id), By: "ana"})
			},
			want: unproven,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "s.db")
			store := open(t, file)
			r := s.on(t).start(store, store, s.images[:], nil, nil)
			b := s.newBox(t, 1)
			if !tt.strange {
				b.install(t, r)
				if got := b.starts(r); got != "released" {
					t.Fatalf("before: %s", got)
				}
			}
			// All that was before was read, and nothing is from now on but what a decision asks for.
			if err := r.live.watch(t.Context()); err != nil {
				t.Fatal(err)
			}
			db, err := sql.Open("sqlite", file)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			tt.lock(t, database{t, db}, r, b)
			for range 2 {
				if got := b.starts(r); got != tt.want {
					t.Errorf("%s, want %s", got, tt.want)
				}
			}
		})
	}
}

// The same of replicas that share a database: through the one that was told, at once.
func TestALockOutCountsAtOnceAtTheReplicaThatWasTold(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	onBothStores(t, func(t *testing.T, open func() server.Store) {
		stores := []server.Store{open(), open()}
		var replicas []*replica
		for _, store := range stores {
			replicas = append(replicas, s.on(t).start(store, store, s.images[:], nil, nil))
		}
		told := replicas[1]
		b := s.newBox(t, 1)
		b.install(t, replicas[0])
		if got := b.starts(told); got != "released" {
			t.Fatalf("before: %s", got)
		}
		if err := told.live.watch(t.Context()); err != nil {
			t.Fatal(err)
		}
		long(t, stores[0], 3) // the other goes on writing
		told.state(t, b.id, attest.StateRevoked)
		m, err := stores[0].Machine(t.Context(), b.id)
		if err != nil {
			t.Fatal(err)
		}
		m.State, m.FenceDue = attest.StateEnrolled, false
		if err := stores[0].Commit(t.Context(), &server.Change{Machine: m}); err != nil {
			t.Fatal(err)
		}
		if got := b.starts(told); got != string(attest.CodeMachineUnproven) {
			t.Errorf("got %s", got)
		}
	})
}

// unread is a store whose log cannot be read.
type unread struct{ server.Store }

func (unread) Audit(context.Context, int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) { yield(audit.Entry{}, errors.New("away")) }
}

// Where what this process wrote cannot be read, nothing is said of the machine; of others
// what is known is still good.
func TestAnOwnEntryThatCannotBeReadIsNotPassedOver(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	store := open(t, filepath.Join(t.TempDir(), "s.db"))
	r := s.start(store, store, s.images[:], nil, nil)
	a, b := s.newBox(t, 1), s.newBox(t, 2)
	b.boot.Disk.GUID = "7b0d1e0c-3b1f-4a56-9d0e-000000000002"
	a.install(t, r)
	b.install(t, r)
	if err := r.live.watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.state(t, a.id, attest.StateRevoked)
	r.live.witness.store = unread{store}
	// What came before the revocation was taken; the rest would have been, too, were it
	// not for an entry of another.
	r.live.tail.After(audit.Head{Seq: 1 << 40})
	j := firsthand{judge{r.live}}
	if _, _, err := j.Machine(t.Context(), a.id, false); err == nil {
		t.Error("something is said of the machine that was revoked")
	}
	if state, _, err := j.Machine(t.Context(), b.id, false); state != attest.StateEnrolled || err != nil {
		t.Errorf("the other machine: %s, %v", state, err)
	}
	r.live.witness.store = store
	if state, _, err := j.Machine(t.Context(), a.id, false); state != attest.StateRevoked || err != nil {
		t.Errorf("when it can be read: %s, %v", state, err)
	}
}

func TestOwnEntriesAreForgottenOnceTheyWereRead(t *testing.T) {
	t.Parallel()
	o := new(ownWord)
	tail := o.tail()
	id := func(n int) attest.MachineID { return attest.MachineID{byte(n)} }
	for n := 1; n <= 3; n++ {
		tail.Append([]audit.Entry{{Seq: int64(n), Time: time.Now(), Kind: audit.KindState, Machine: id(n)}})
	}
	tail.Append([]audit.Entry{{Seq: 4, Kind: audit.KindExpected}, {Seq: 5, Kind: audit.KindConfirm, Machine: id(5)}})
	at := audit.Head{Seq: 2}
	o.forget(at)
	if len(o.machines) != 1 || o.machine(id(2), at) || !o.machine(id(3), at) || o.machine(id(5), at) || !o.list(at) {
		t.Errorf("%+v", o.machines)
	}
	at.Seq = 4
	o.forget(at)
	if len(o.machines) != 0 || o.machine(id(3), at) || o.list(at) {
		t.Errorf("%+v, lists %d", o.machines, o.lists)
	}
}
