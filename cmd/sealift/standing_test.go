package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/backup"
	"github.com/sealift/sealift/attest/server/storetest"
)

// standingBox is a machine that starts again and again.
type standingBox struct {
	tpm    *papertpm.TPM
	boot   *papertpm.Boot
	id     attest.MachineID
	serial string
}

func (s *policyScene) newBox(t *testing.T, n int) *standingBox {
	t.Helper()
	tpm, err := papertpm.FromSeed(fmt.Append(nil, t.Name(), "box", n))
	if err == nil {
		err = s.ca.Equip(tpm)
	}
	if err != nil {
		t.Fatal(err)
	}
	boot, err := papertpm.GoodBoot().OnDisk(fmt.Sprintf("7b0d1e0c-3b1f-4a56-9d0e-%012d", n), false)
	if err != nil {
		t.Fatal(err)
	}
	id, err := tpm.MachineID()
	if err != nil {
		t.Fatal(err)
	}
	smbios, err := attest.ParseSMBIOS(boot.SMBIOS)
	if err != nil {
		t.Fatal(err)
	}
	return &standingBox{tpm, boot, id, smbios.Serial}
}

// starts is what comes of the box's next boot.
func (b *standingBox) starts(r *replica) string {
	b.tpm.Reset()
	return r.ask(b.tpm, b.boot)
}

func (b *standingBox) install(t *testing.T, r *replica) {
	t.Helper()
	if _, err := r.service.Enrol(t.Context(), "installer", &api.InstallRecord{
		EKPublic: tpm2.Marshal(b.tpm.EKPublic), EKCertificates: b.tpm.EKCertificates, DiskGUID: b.boot.Disk.GUID, Finished: time.Now(),
	}); err != nil {
		t.Fatal(err)
	}
}

// operate does something over the operator API of r.
func (r *replica) operate(t *testing.T, f func(*operator.Client) error) {
	t.Helper()
	o := operatorOptions{server: r.operators, identity: r.ana}
	if err := o.do(f); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) state(t *testing.T, id attest.MachineID, to attest.EnrolmentState) {
	t.Helper()
	r.operate(t, func(c *operator.Client) (err error) {
		switch to {
		case attest.StateRevoked:
			_, err = c.Revoke(t.Context(), id, "stolen")
		case attest.StateQuarantined:
			_, err = c.Quarantine(t.Context(), id, "opened")
		case attest.StateEnrolled:
			_, err = c.Reinstate(t.Context(), id, "found")
		}
		return err
	})
}

func (r *replica) expect(t *testing.T, e api.Expected) {
	t.Helper()
	r.operate(t, func(c *operator.Client) error {
		a, err := c.Expect(t.Context(), &api.ExpectedList{Machines: []api.Expected{e}, Apply: true})
		if err == nil && (a.Results[0].Outcome == api.ExpectedConflict) {
			err = errors.New(a.Results[0].Problem)
		}
		return err
	})
}

// database is a thief's connection to the service's SQLite file, while it runs.
type database struct {
	t  *testing.T
	db *sql.DB
}

func (d database) exec(query string, args ...any) {
	d.t.Helper()
	r, err := d.db.ExecContext(d.t.Context(), query, args...)
	if err != nil {
		d.t.Fatal(err)
	}
	if n, err := r.RowsAffected(); err != nil || n != 1 {
		d.t.Fatalf("%s: %d rows, %v", query, n, err)
	}
}

func (d database) machine(id attest.MachineID) *server.Machine {
	d.t.Helper()
	m := new(server.Machine)
	var body string
	err := d.db.QueryRowContext(d.t.Context(), "SELECT body FROM machine WHERE id = ?", id[:]).Scan(&body)
	if err == nil {
		err = json.Unmarshal([]byte(body), m)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return m
}

// put writes a machine's record.
func (d database) put(m *server.Machine) {
	d.t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.db.ExecContext(d.t.Context(), "DELETE FROM machine WHERE id = ?", m.ID[:]); err != nil {
		d.t.Fatal(err)
	}
	d.exec("INSERT INTO machine (id, revision, state, node_name, disk_guid, body) VALUES (?, 99, ?, ?, ?, ?)", m.ID[:], string(m.State), m.NodeName, m.DiskGUID, string(b))
}

// becomes changes the state in a machine's record.
func (d database) becomes(id attest.MachineID, state attest.EnrolmentState) {
	d.t.Helper()
	m := d.machine(id)
	m.State, m.FenceDue = state, false
	d.put(m)
}

// log appends an entry, with its hashes, which needs no key.
func (d database) log(kind audit.Kind, id attest.MachineID, data any) {
	d.t.Helper()
	var line []byte
	if err := d.db.QueryRowContext(d.t.Context(), "SELECT line FROM audit ORDER BY seq DESC LIMIT 1").Scan(&line); err != nil {
		d.t.Fatal(err)
	}
	last, err := audit.ParseLine(line)
	if err != nil {
		d.t.Fatal(err)
	}
	e, err := audit.Next(last.Head(), audit.Event{Time: time.Now(), Kind: kind, Machine: id, Data: data})
	if err == nil {
		line, err = audit.AppendLine(nil, e)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	d.exec("INSERT INTO audit (seq, line) VALUES (?, ?)", e.Seq, line[:len(line)-1])
}

// entry returns the data of the last entry of a kind about a machine.
func (d database) entry(kind audit.Kind, id attest.MachineID, match string) json.RawMessage {
	d.t.Helper()
	rows, err := d.db.QueryContext(d.t.Context(), "SELECT line FROM audit ORDER BY seq DESC")
	if err != nil {
		d.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var line []byte
		if err := rows.Scan(&line); err != nil {
			d.t.Fatal(err)
		}
		e, err := audit.ParseLine(line)
		if err != nil {
			d.t.Fatal(err)
		}
		if e.Kind == kind && e.Machine == id && strings.Contains(string(e.Data), match) {
			return e.Data
		}
	}
	if err := rows.Err(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Fatalf("no entry %s of machine %s", kind, id.Short())
	return nil
}

func (d database) document(kind, name string, body any) {
	d.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.db.ExecContext(d.t.Context(), "DELETE FROM document WHERE kind = ? AND name = ?", kind, name); err != nil {
		d.t.Fatal(err)
	}
	d.exec("INSERT INTO document (kind, name, revision, body) VALUES (?, ?, 99, ?)", kind, name, b)
}

// Whoever writes to the database, and has no key of the service, has it give no secrets
// to a machine that the service did not enrol, or locked out.
func TestWhoeverWritesToTheDatabaseEnrolsNoMachine(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	const unproven = string(attest.CodeMachineUnproven)
	for name, tt := range map[string]struct {
		// before is done by the service, with a machine that was installed and released.
		before  func(t *testing.T, r *replica, b *standingBox)
		steal   func(t *testing.T, d database, r *replica, b *standingBox)
		says    string // the log, of the machine
		want    string // unproven if empty
		strange bool   // the machine was never installed
	}{
		"a revoked machine is enrolled": {
			before: func(t *testing.T, r *replica, b *standingBox) { r.state(t, b.id, attest.StateRevoked) },
			steal:  func(t *testing.T, d database, r *replica, b *standingBox) { d.becomes(b.id, attest.StateEnrolled) },
			says:   "revoked since ",
		},
		"a quarantined machine is enrolled": {
			before: func(t *testing.T, r *replica, b *standingBox) { r.state(t, b.id, attest.StateQuarantined) },
			steal:  func(t *testing.T, d database, r *replica, b *standingBox) { d.becomes(b.id, attest.StateEnrolled) },
			says:   "quarantined since ",
		},
		"a revoked machine is quarantined, and reinstated": {
			before: func(t *testing.T, r *replica, b *standingBox) { r.state(t, b.id, attest.StateRevoked) },
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.becomes(b.id, attest.StateQuarantined)
				r.state(t, b.id, attest.StateEnrolled)
			},
			says: "revoked since ",
		},
		"a machine is added": {
			strange: true,
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.put(&server.Machine{Machine: api.Machine{ID: b.id, State: attest.StateEnrolled, NodeName: api.NodeName(b.id, 10), DiskGUID: b.boot.Disk.GUID}})
			},
			says: "nothing that enrols it",
		},
		"a pending machine is enrolled": {
			strange: true,
			before: func(t *testing.T, r *replica, b *standingBox) {
				if got := b.starts(r); got != string(attest.CodeMachineUnknown) {
					t.Errorf("a stranger: %s", got)
				}
			},
			steal: func(t *testing.T, d database, r *replica, b *standingBox) { d.becomes(b.id, attest.StateEnrolled) },
			says:  "nothing that enrols it",
		},
		"the records of two machines are swapped": {
			before: func(t *testing.T, r *replica, b *standingBox) { r.state(t, b.id, attest.StateRevoked) },
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				other := s.newBox(t, 2)
				other.install(t, r)
				mine, theirs := d.machine(b.id), d.machine(other.id)
				mine.ID, theirs.ID = theirs.ID, mine.ID
				for _, m := range []*server.Machine{mine, theirs} {
					if _, err := d.db.ExecContext(t.Context(), "DELETE FROM machine WHERE id = ?", m.ID[:]); err != nil {
						t.Fatal(err)
					}
				}
				theirs.DiskGUID = b.boot.Disk.GUID
				mine.DiskGUID = other.boot.Disk.GUID
				d.put(mine)
				d.put(theirs)
			},
			says: "revoked since ",
		},
		"an entry is made up that reinstates it": {
			before: func(t *testing.T, r *replica, b *standingBox) { r.state(t, b.id, attest.StateRevoked) },
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.becomes(b.id, attest.StateEnrolled)
				d.log(audit.KindState, b.id, audit.StateChange{From: attest.StateRevoked, To: attest.StateEnrolled, By: "ana", Reason: "found"})
			},
			says: "revoked since ",
		},
		"the entry of an earlier reinstatement is there again": {
			before: func(t *testing.T, r *replica, b *standingBox) {
				r.state(t, b.id, attest.StateRevoked)
				r.state(t, b.id, attest.StateEnrolled)
				r.state(t, b.id, attest.StateRevoked)
			},
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.becomes(b.id, attest.StateEnrolled)
				d.log(audit.KindState, b.id, d.entry(audit.KindState, b.id, `"from":"revoked"`))
			},
			says: "revoked since ",
		},
		"the reinstatement of another machine is given to it": {
			before: func(t *testing.T, r *replica, b *standingBox) {
				r.state(t, b.id, attest.StateRevoked)
				other := s.newBox(t, 2)
				other.install(t, r)
				r.state(t, other.id, attest.StateRevoked)
				r.state(t, other.id, attest.StateEnrolled)
			},
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.becomes(b.id, attest.StateEnrolled)
				d.log(audit.KindState, b.id, d.entry(audit.KindState, s.newBox(t, 2).id, `"from":"revoked"`))
			},
			says: "revoked since ",
		},
		"a revoked machine is pending, and installed again": {
			before: func(t *testing.T, r *replica, b *standingBox) { r.state(t, b.id, attest.StateRevoked) },
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.becomes(b.id, attest.StatePending)
				b.install(t, r)
			},
			says: "revoked since ",
		},
		"a revoked machine is forgotten, and installed again": {
			before: func(t *testing.T, r *replica, b *standingBox) { r.state(t, b.id, attest.StateRevoked) },
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.exec("DELETE FROM machine WHERE id = ?", b.id[:])
				b.install(t, r)
			},
			says: "revoked since ",
		},
		"a machine is put on a list": {
			strange: true,
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.document("expected", b.id.String(), api.Expected{Serial: b.serial, EK: [32]byte(b.id), By: "ana"})
			},
		},
		"a machine is put on a list, with an entry": {
			strange: true,
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				e := api.Expected{Serial: b.serial, EK: [32]byte(b.id), By: "ana"}
				d.document("expected", b.id.String(), e)
				d.log(audit.KindExpected, attest.MachineID{}, audit.Expected{By: "ana", Machines: []audit.ExpectedLine{{Serial: b.serial, EK: [32]byte(b.id), Outcome: api.ExpectedAdded}}})
			},
		},
		"a machine that was withdrawn is on the list again": {
			strange: true,
			before: func(t *testing.T, r *replica, b *standingBox) {
				e := api.Expected{Serial: b.serial, EK: [32]byte(b.id)}
				r.expect(t, e)
				e.Withdrawn = true
				r.expect(t, e)
			},
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.document("expected", b.id.String(), api.Expected{Serial: b.serial, EK: [32]byte(b.id), By: "ana"})
				d.log(audit.KindExpected, attest.MachineID{}, d.entry(audit.KindExpected, attest.MachineID{}, `"outcome":"added"`))
			},
		},
		"a revoked machine is forgotten, and on a list": {
			before: func(t *testing.T, r *replica, b *standingBox) { r.state(t, b.id, attest.StateRevoked) },
			steal: func(t *testing.T, d database, r *replica, b *standingBox) {
				d.exec("DELETE FROM machine WHERE id = ?", b.id[:])
				d.document("expected", b.id.String(), api.Expected{Serial: b.serial, EK: [32]byte(b.id), By: "ana"})
			},
		},
		// What is less than the log says is obeyed.
		"an enrolled machine is revoked": {
			steal: func(t *testing.T, d database, r *replica, b *standingBox) { d.becomes(b.id, attest.StateRevoked) },
			want:  string(attest.CodeMachineRevoked),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "s.db")
			store, err := openStore(t.Context(), file)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { store.Close() })
			r := s.on(t).start(store, store, s.images[:], nil, nil)
			b := s.newBox(t, 1)
			if !tt.strange {
				b.install(t, r)
				if got := b.starts(r); got != "released" {
					t.Fatalf("before: %s", got)
				}
			}
			if tt.before != nil {
				tt.before(t, r, b)
			}
			// The replica may have read all of it, or not.
			if err := r.live.watch(t.Context()); err != nil {
				t.Fatal(err)
			}
			db, err := sql.Open("sqlite", file)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			tt.steal(t, database{t, db}, r, b)
			want := tt.want
			if want == "" {
				want = unproven
			}
			if got := b.starts(r); got != want {
				t.Errorf("while it runs: %s, want %s", got, want)
			}
			again := s.on(t).start(store, store, s.images[:], nil, nil)
			if err := again.live.witness.save(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			third := s.on(t).start(store, store, s.images[:], nil, nil)
			for _, r := range []*replica{again, third} {
				if got := b.starts(r); got != want {
					t.Errorf("after a start: %s, want %s", got, want)
				}
			}
			if want != unproven {
				return
			}
			raised := 0
			for _, a := range alarmsIn(t, store) {
				if a.Name == audit.AlarmMachineUnproven {
					raised++
				}
			}
			if raised != 3 { // each replica tells it once
				t.Errorf("%d alarms", raised)
			}
			var shown *api.Machine
			r.operate(t, func(c *operator.Client) (err error) {
				shown, err = c.Machine(t.Context(), b.id)
				return err
			})
			if !strings.HasPrefix(shown.Unproven, tt.says) || (tt.says == "") != (shown.Unproven == "") {
				t.Errorf("machine show says %q", shown.Unproven)
			}
			if shown.State != attest.StateEnrolled {
				return
			}
			// Nor is there a recovery.
			if !tt.strange && recoverableRecord(database{t, db}.machine(b.id)) {
				o := operatorOptions{server: r.operators, identity: r.ana}
				err := o.do(func(c *operator.Client) error {
					_, err := c.OpenRecovery(t.Context(), b.id, &api.RecoveryOpen{Reason: "x", Request: "x"})
					return err
				})
				if err == nil || !strings.Contains(err.Error(), "the decision log does not say so") {
					t.Errorf("recovery: %v", err)
				}
			}
			// And it is mended as the finding says.
			r.state(t, b.id, attest.StateRevoked)
			if got := b.starts(r); got != string(attest.CodeMachineRevoked) {
				t.Errorf("revoked: %s", got)
			}
			r.state(t, b.id, attest.StateEnrolled)
			for _, r := range []*replica{r, again} {
				if got := b.starts(r); got != "released" {
					t.Errorf("mended: %s", got)
				}
			}
		})
	}
}

// recoverableRecord reports whether a machine can be recovered.
func recoverableRecord(m *server.Machine) bool { return m.DiskKey != nil && m.DiskGUID != "" }

// Each way of the service to enrol a machine is one that the log tells.
func TestEachEnrolmentIsInTheLog(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	for name, enrol := range map[string]func(t *testing.T, r *replica, b *standingBox){
		"by an install record": func(t *testing.T, r *replica, b *standingBox) { b.install(t, r) },
		"by a list": func(t *testing.T, r *replica, b *standingBox) {
			r.expect(t, api.Expected{Serial: b.serial, EK: [32]byte(b.id)})
		},
		"by a list that was withdrawn before": func(t *testing.T, r *replica, b *standingBox) {
			for _, withdrawn := range []bool{false, true, false} {
				r.expect(t, api.Expected{Serial: b.serial, EK: [32]byte(b.id), Withdrawn: withdrawn})
			}
		},
		"by the digest of its certificate": func(t *testing.T, r *replica, b *standingBox) {
			r.expect(t, api.Expected{Serial: b.serial, EK: sha256.Sum256(b.tpm.EKCertificates[0])})
		},
		"by a person": func(t *testing.T, r *replica, b *standingBox) {
			if got := b.starts(r); got != string(attest.CodeMachineUnknown) {
				t.Fatal(got)
			}
			r.operate(t, func(c *operator.Client) error {
				_, err := c.Approve(t.Context(), b.id, "x")
				return err
			})
		},
		"in place of another": func(t *testing.T, r *replica, b *standingBox) {
			old := s.newBox(t, 2)
			old.install(t, r)
			if got := old.starts(r); got != "released" {
				t.Fatal(got)
			}
			r.operate(t, func(c *operator.Client) error {
				_, err := c.ReEnrol(t.Context(), old.id, b.id, "x")
				return err
			})
			if got := old.starts(r); got != string(attest.CodeMachineRevoked) {
				t.Errorf("the old one: %s", got)
			}
		},
		"reinstated": func(t *testing.T, r *replica, b *standingBox) {
			b.install(t, r)
			r.state(t, b.id, attest.StateQuarantined)
			r.state(t, b.id, attest.StateRevoked)
			r.state(t, b.id, attest.StateEnrolled)
		},
		"approved once more": func(t *testing.T, r *replica, b *standingBox) {
			b.install(t, r)
			if got := b.starts(r); got != "released" {
				t.Fatal(got)
			}
			r.operate(t, func(c *operator.Client) error {
				_, err := c.Approve(t.Context(), b.id, "cleared")
				return err
			})
		},
		"by a service whose clock was set back": func(t *testing.T, r *replica, b *standingBox) {
			b.install(t, r)
			r.state(t, b.id, attest.StateRevoked)
			r.later(-time.Hour)
			r.look()
			r.state(t, b.id, attest.StateEnrolled)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			memory := new(storetest.Memory)
			r := s.on(t).start(memory, memory, s.images[:], nil, nil)
			b := s.newBox(t, 1)
			enrol(t, r, b)
			if got := b.starts(r); got != "released" {
				t.Errorf("%s", got)
			}
			if err := r.live.witness.save(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			r = s.on(t).start(memory, memory, s.images[:], nil, nil)
			if got := b.starts(r); got != "released" {
				t.Errorf("after a start: %s", got)
			}
			// And after a restore.
			store := restored(t, s, memory)
			r = s.on(t).start(store, store, s.images[:], nil, nil)
			if got := b.starts(r); got != "released" {
				t.Errorf("after a restore: %s", got)
			}
		})
	}
}

// restored is a store that was filled from a backup of another, with nothing lost.
func restored(t *testing.T, s *policyScene, from server.Archive) *storetest.Memory {
	t.Helper()
	key, err := s.ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	m, err := backup.Write(&b, key, backup.Manifest{Taken: s.now()}, func(each func(server.Record) error) error { return from.Dump(t.Context(), each) })
	if err != nil {
		t.Fatal(err)
	}
	next := new(storetest.Memory)
	if _, err := backup.Restore(t.Context(), next.Load, &backup.Order{
		Backup: bytes.NewReader(b.Bytes()), Key: &key.PublicKey, Head: m.Head.Hash, By: "root", Reason: "the disk died", Now: s.now(),
		SignHead: func(h audit.HeadStatement) (*audit.Envelope, error) { return audit.Sign(key, audit.SeenType, h) },
	}); err != nil {
		t.Fatal(err)
	}
	return next
}

// counting is a store that counts the entries that are read from it.
type counting struct {
	*storetest.Memory
	read atomic.Int64
}

func (c *counting) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		for e, err := range c.Memory.Audit(ctx, from) {
			c.read.Add(1)
			if !yield(e, err) {
				return
			}
		}
	}
}

// What the log says of machines is kept, so that a start need not read all of it. What
// is kept is taken only if it is this service's, of this log.
func TestWhatTheLogSaysOfMachinesIsKept(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	key, err := s.ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	memory := new(storetest.Memory)
	r := s.start(memory, memory, s.images[:], nil, nil)
	fresh := func() *standingBox { return s.newBox(t, 1) }
	b, kept := fresh(), s.newBox(t, 2)
	kept.install(t, r)
	b.install(t, r)
	long(t, memory, 100)
	save := func(r *replica) {
		t.Helper()
		if err := r.live.witness.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.live.witness.save(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	save(r)
	early := steal(t, inMemory(), memory)
	r.state(t, b.id, attest.StateRevoked)
	long(t, memory, 100)
	save(r)
	// Another service with the same keys, where the machine is enrolled later on.
	test := new(storetest.Memory)
	other := s.start(test, test, s.images[:], nil, nil)
	long(t, test, 250)
	b.install(t, other)
	save(other)
	theirs := steal(t, inMemory(), test)

	documents := func(h *thief, from *thief, kinds ...string) {
		var rest []server.Record
		for _, r := range h.records {
			if r.Document == nil || !slices.Contains(kinds, r.Document.Kind) {
				rest = append(rest, r)
			}
		}
		if from != nil {
			for _, r := range from.records {
				if r.Document != nil && slices.Contains(kinds, r.Document.Kind) {
					rest = append(rest, r)
				}
			}
		}
		h.records = rest
	}
	part := audit.ShardName(int(b.id[0]))
	for name, tt := range map[string]struct {
		steal func(h *thief)
		all   bool // all of the log is read
	}{
		"it is as it was":                   {steal: func(h *thief) {}},
		"an older one":                      {steal: func(h *thief) { documents(h, early, standingKind, standingPartKind) }},
		"an older one, and an older head":   {steal: func(h *thief) { documents(h, early, standingKind, standingPartKind, server.KindSignedHead) }},
		"an older head":                     {steal: func(h *thief) { documents(h, early, server.KindSignedHead) }},
		"it is gone":                        {steal: func(h *thief) { documents(h, nil, standingKind, standingPartKind) }, all: true},
		"it is gone, and the head":          {steal: func(h *thief) { documents(h, nil, standingKind, standingPartKind, server.KindSignedHead) }, all: true},
		"the parts of an older one":         {steal: func(h *thief) { documents(h, early, standingPartKind) }, all: true},
		"no parts":                          {steal: func(h *thief) { documents(h, nil, standingPartKind) }, all: true},
		"another service's with these keys": {steal: func(h *thief) { documents(h, theirs, standingKind, standingPartKind) }, all: true},
		"a part is noise": {steal: func(h *thief) {
			h.document(standingPartKind, part, func(json.RawMessage) json.RawMessage { return json.RawMessage(`[]`) })
		}, all: true},
		"a part says that it is enrolled": {steal: func(h *thief) {
			h.document(standingPartKind, part, func(b json.RawMessage) json.RawMessage {
				for _, r := range early.records {
					if d := r.Document; d != nil && d.Kind == standingPartKind && d.Name == part {
						return d.Body
					}
				}
				return nil
			})
		}, all: true},
		"it is signed by another key": {steal: func(h *thief) {
			h.document(standingKind, standingName, func(b json.RawMessage) json.RawMessage {
				of, _, err := openStandingStatement(b, audit.ReleaseKeys{Present: &key.PublicKey})
				if err != nil {
					t.Fatal(err)
				}
				e, err := audit.Sign(newReleaseKey(t), audit.StandingType, of)
				if err != nil {
					t.Fatal(err)
				}
				b, err = json.Marshal(e)
				if err != nil {
					t.Fatal(err)
				}
				return b
			})
		}, all: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := steal(t, inMemory(), memory)
			h.t = t
			tt.steal(h)
			// And the record says that the machine is enrolled.
			for i, r := range h.records {
				if r.Machine != nil && r.Machine.ID == b.id {
					m := *r.Machine
					m.State = attest.StateEnrolled
					h.records[i].Machine = &m
				}
			}
			store := &counting{Memory: h.store().(*storetest.Memory)}
			again := s.on(t).start(store, store, s.images[:], nil, nil)
			if n, whole := store.read.Load(), int64(len(h.log)); n > whole/2+60 != tt.all {
				t.Errorf("%d entries were read, of %d", n, whole)
			}
			for id, want := range map[attest.MachineID]attest.EnrolmentState{b.id: attest.StateRevoked, kept.id: attest.StateEnrolled, {1}: attest.StateUnknown} {
				for _, current := range []bool{false, true} {
					if got, _, err := (judge{again.live}).Machine(t.Context(), id, current); got != want || err != nil {
						t.Errorf("machine %s is %q, %v; want %q", id.Short(), got, err, want)
					}
				}
			}
			mine := fresh()
			if got := mine.starts(again); got != string(attest.CodeMachineUnproven) {
				t.Errorf("it is given %s", got)
			}
			// What is kept from here on is right again.
			save(again)
			third := &counting{Memory: store.Memory}
			w := newWitness(t, third, key, "")
			if err := w.catchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := third.read.Load(); n > 5 {
				t.Errorf("the next start reads %d entries", n)
			}
			if state, _ := w.standing.all.Machine(b.id); state != attest.StateRevoked {
				t.Errorf("after the next start it is %q", state)
			}
		})
	}
}

// Entries of an earlier version are not signed. They count up to the first start of one
// that signs, and not after it.
func TestEnrolmentsOfAnEarlierVersionCount(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	b, late, listed := s.newBox(t, 1), s.newBox(t, 2), s.newBox(t, 3)
	record := func(b *standingBox, from attest.EnrolmentState) {
		t.Helper()
		m := &server.Machine{Machine: api.Machine{ID: b.id, State: attest.StateEnrolled, NodeName: api.NodeName(b.id, 10), DiskGUID: b.boot.Disk.GUID}}
		if err := memory.Commit(t.Context(), &server.Change{Machine: m, Events: []audit.Event{{
			Time: s.now(), Kind: audit.KindState, Machine: b.id, Data: audit.StateChange{From: from, To: attest.StateEnrolled, By: "ana", Reason: "install record"},
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := memory.Commit(t.Context(), &server.Change{Events: []audit.Event{{Time: s.now(), Kind: audit.KindStart, Data: audit.Start{KEK: "k", ReleaseKey: "r"}}}}); err != nil {
		t.Fatal(err)
	}
	record(b, "")
	body, err := json.Marshal(api.Expected{Serial: listed.serial, EK: [32]byte(listed.id), By: "ana"})
	if err != nil {
		t.Fatal(err)
	}
	if err := memory.Commit(t.Context(), &server.Change{
		Documents: []*server.Document{{Kind: "expected", Name: listed.id.String(), Body: body}},
		Events: []audit.Event{{Time: s.now(), Kind: audit.KindExpected, Data: audit.Expected{
			By: "ana", Machines: []audit.ExpectedLine{{Serial: listed.serial, EK: [32]byte(listed.id), Outcome: api.ExpectedAdded}},
		}}},
	}); err != nil {
		t.Fatal(err)
	}
	r := s.start(memory, memory, s.images[:], nil, nil)
	record(late, "")
	for _, tt := range []struct {
		box  *standingBox
		want string
	}{{b, "released"}, {late, string(attest.CodeMachineUnproven)}, {listed, "released"}} {
		if got := tt.box.starts(r); got != tt.want {
			t.Errorf("machine %s: %s, want %s", tt.box.id.Short(), got, tt.want)
		}
	}
}

// What an earlier version enrolled too late an approver approves, without a lock-out of
// its node; not so a machine that the log says is locked out.
func TestAnApproverEnrolsWhatIsEnrolledOnRecordAlone(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	late := s.newBox(t, 1)
	r := s.start(memory, memory, s.images[:], nil, nil)
	if err := r.service.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := memory.Commit(t.Context(), &server.Change{
		Machine: &server.Machine{Machine: api.Machine{ID: late.id, State: attest.StateEnrolled, NodeName: api.NodeName(late.id, 10), DiskGUID: late.boot.Disk.GUID}},
		Events:  []audit.Event{{Time: s.now(), Kind: audit.KindState, Machine: late.id, Data: audit.StateChange{To: attest.StateEnrolled, By: "ana", Reason: "install record"}}},
	}); err != nil {
		t.Fatal(err)
	}
	if got := late.starts(r); got != string(attest.CodeMachineUnproven) {
		t.Fatalf("enrolled by an earlier version: %s", got)
	}
	approve := func(b *standingBox) (err error) {
		r.operate(t, func(c *operator.Client) error {
			_, err = c.Approve(t.Context(), b.id, "it is ours")
			return nil
		})
		return err
	}
	if err := approve(late); err != nil {
		t.Fatal(err)
	}
	if got := late.starts(r); got != "released" {
		t.Errorf("approved: %s", got)
	}
	for e, err := range memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindState && e.Machine == late.id && !bytes.Contains(e.Data, []byte(`"to":"enrolled"`)) {
			t.Errorf("the log has %s", e.Data)
		}
	}
	r.state(t, late.id, attest.StateRevoked)
	w, err := r.live.watched(t.Context())
	if err == nil {
		err = w.catchUp(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := memory.Machine(t.Context(), late.id)
	if err != nil {
		t.Fatal(err)
	}
	m.State = attest.StateEnrolled
	if err := memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	if err := approve(late); err == nil || !strings.Contains(err.Error(), "revoked since") {
		t.Errorf("approved on record alone: %v", err)
	}
	if got := late.starts(r); got != string(attest.CodeMachineUnproven) {
		t.Errorf("revoked: %s", got)
	}
}

// An approver decides on a machine that is enrolled on record alone as on a pending one:
// where that is refused, nothing is written, and the hint says what mends it.
func TestAnApproverDoesNotEnrolForWhoeverWritesToTheDatabase(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	added := func(b *standingBox) *server.Machine {
		return &server.Machine{Machine: api.Machine{ID: b.id, State: attest.StateEnrolled, NodeName: api.NodeName(b.id, 10), DiskGUID: b.boot.Disk.GUID}}
	}
	for name, tt := range map[string]struct {
		steal      func(t *testing.T, d database, r *replica, b, other *standingBox)
		want, hint string
	}{
		"revoked": {func(t *testing.T, d database, r *replica, b, _ *standingBox) {
			b.install(t, r)
			r.state(t, b.id, attest.StateRevoked)
			d.becomes(b.id, attest.StateEnrolled)
		}, "revoked since ", "sealift machine revoke "},
		"quarantined": {func(t *testing.T, d database, r *replica, b, _ *standingBox) {
			b.install(t, r)
			r.state(t, b.id, attest.StateQuarantined)
			d.becomes(b.id, attest.StateEnrolled)
		}, "quarantined since ", "sealift machine revoke "},
		"replaced": {func(t *testing.T, d database, _ *replica, b, other *standingBox) {
			m := added(b)
			m.ReplacedBy = other.id
			d.put(m)
		}, "was replaced by machine ", ""},
		"with a serial number of another": {func(t *testing.T, d database, r *replica, b, other *standingBox) {
			r.expect(t, api.Expected{Serial: "S-1", EK: [32]byte(other.id)})
			m := added(b)
			m.Serial = "S-1"
			d.put(m)
		}, `serial number "S-1" was enrolled beforehand with the endorsement key `, "--replace"},
		"with a TPM of another": {func(t *testing.T, d database, r *replica, b, other *standingBox) {
			other.install(t, r)
			d.put(added(b))
			d.document("tpm", "ek-"+b.id.String(), map[string]any{"machine": other.id})
		}, "is that of machine ", "sealift machine re-enrol "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "s.db")
			store := open(t, file)
			r := s.on(t).start(store, store, s.images[:], nil, nil)
			db, err := sql.Open("sqlite", file)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			d, b, other := database{t, db}, s.on(t).newBox(t, 1), s.on(t).newBox(t, 2)
			tt.steal(t, d, r, b, other)
			record := d.machine(b.id)
			states := func() (n int) {
				for e, err := range store.Audit(t.Context(), 1) {
					if err != nil {
						t.Fatal(err)
					}
					if e.Kind == audit.KindState && e.Machine == b.id {
						n++
					}
				}
				return n
			}
			before := states()
			o := operatorOptions{server: r.operators, identity: r.ana}
			err = o.do(func(c *operator.Client) error { _, err := c.Approve(t.Context(), b.id, "it is ours"); return err })
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(hintOf(err), tt.hint) || exitCode(err) != exitFailed {
				t.Errorf("approved: %v; hint: %s", err, hintOf(err))
			}
			after := d.machine(b.id)
			if states() != before || after.State != record.State || after.Revision != record.Revision || after.Rebased {
				t.Errorf("the record is %+v", after)
			}
			if got := b.starts(r); !strings.Contains(got, string(attest.CodeMachineUnproven)) {
				t.Errorf("it is given %s", got)
			}
			if locked := strings.Contains(tt.hint, "machine revoke"); !locked {
				return
			}
			r.state(t, b.id, attest.StateRevoked)
			if err := o.do(func(c *operator.Client) error { _, err := c.Approve(t.Context(), b.id, "it is ours"); return err }); err == nil || !strings.Contains(err.Error(), "cannot be made enrolled by approve") {
				t.Errorf("mended, and approved: %v", err)
			}
			r.state(t, b.id, attest.StateEnrolled)
			if got := b.starts(r); got != "released" {
				t.Errorf("mended: %s", got)
			}
		})
	}
}

// With another release key what was enrolled under the former one stays enrolled, if the
// configuration has that, and nothing that is signed with it after the change enrols.
func TestEnrolmentsOfAFormerReleaseKeyCount(t *testing.T) {
	t.Parallel()
	first, former, key := newReleaseKey(t), newReleaseKey(t), newReleaseKey(t)
	memory := new(storetest.Memory)
	commit := func(ev audit.Event) {
		t.Helper()
		ev.Time = time.Now()
		if err := memory.Commit(t.Context(), &server.Change{Events: []audit.Event{ev}}); err != nil {
			t.Fatal(err)
		}
	}
	starts := func(key *ecdsa.PrivateKey) {
		t.Helper()
		id, err := api.KeyID(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		commit(audit.Event{Kind: audit.KindStart, Data: audit.Start{ReleaseKey: id, SignsEnrolments: true}})
	}
	enrol := func(id byte, key *ecdsa.PrivateKey) {
		t.Helper()
		ev := audit.Event{Kind: audit.KindState, Machine: attest.MachineID{id}, Data: audit.StateChange{To: attest.StateEnrolled}}
		if key != nil {
			var err error
			if ev, err = audit.SignTrust(key, ev, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		commit(ev)
	}
	starts(first)
	enrol(1, first)
	enrol(2, nil)
	starts(former)
	enrol(3, first)
	enrol(4, former)
	enrol(5, nil)
	starts(key)
	enrol(6, former)
	enrol(7, key)
	enrol(8, nil)
	starts(first) // anybody can write that who writes to the database
	starts(former)
	enrol(9, first)
	enrol(10, former)
	const yes, no = attest.StateEnrolled, attest.StateUnknown
	for name, tt := range map[string]struct {
		former  []*ecdsa.PublicKey
		want    [10]attest.EnrolmentState
		alarms  int // one for each of them up to 8, and one for the rest
		unknown int // ids of keys
	}{
		"both are known":     {[]*ecdsa.PublicKey{&first.PublicKey, &former.PublicKey}, [10]attest.EnrolmentState{yes, no, no, yes, no, no, yes, no, no, no}, 7, 0},
		"the last is known":  {[]*ecdsa.PublicKey{&former.PublicKey}, [10]attest.EnrolmentState{no, no, no, yes, no, no, yes, no, no, no}, 8, 1},
		"none is known":      {nil, [10]attest.EnrolmentState{no, no, no, no, no, no, yes, no, no, no}, 9, 2},
		"in the wrong order": {[]*ecdsa.PublicKey{&former.PublicKey, &first.PublicKey}, [10]attest.EnrolmentState{yes, no, yes, no, no, no, yes, no, no, no}, 7, 0},
		"another is named":   {[]*ecdsa.PublicKey{&newReleaseKey(t).PublicKey}, [10]attest.EnrolmentState{no, no, no, no, no, no, yes, no, no, no}, 9, 2},
		"the first is known": {[]*ecdsa.PublicKey{&first.PublicKey}, [10]attest.EnrolmentState{yes, no, yes, no, no, no, yes, no, no, no}, 7, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := steal(t, inMemory(), memory).store()
			for range 2 { // the second goes by what the first kept
				w, err := openWitness(t.Context(), store, key, "", time.Now, slog.New(slog.DiscardHandler), tt.former...)
				if err == nil {
					err = w.catchUp(t.Context())
				}
				if err == nil {
					err = w.save(t.Context(), true)
				}
				if err != nil {
					t.Fatal(err)
				}
				for i, want := range tt.want {
					if got, _ := w.standing.all.Machine(attest.MachineID{byte(i + 1)}); got != want {
						t.Errorf("machine %d is %q, want %q", i+1, got, want)
					}
				}
				if got := w.standing.all.UnknownKeys(); len(got) != tt.unknown {
					t.Errorf("unknown keys: %q", got)
				}
			}
			raised := alarmsIn(t, store)
			if len(raised) != tt.alarms {
				t.Errorf("%d alarms: %+v", len(raised), raised)
			}
			for _, a := range raised {
				if a.Name != audit.AlarmEnrolmentUnproven {
					t.Errorf("alarm %s: %s", a.Name, a.What)
				}
			}
		})
	}
}

// What one replica decides counts at the others at once: an enrolment as soon as it is
// asked for, a revocation as the record says it.
func TestReplicasAgreeOnEnrolments(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func() server.Store) {
		s := newPolicyScene(t)
		first, second := open(), open()
		replicas := []*replica{s.start(first, first, s.images[:], nil, nil), s.start(second, second, s.images[:], nil, nil)}
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				b := s.newBox(t, n)
				a, z := replicas[n%2], replicas[(n+1)%2]
				b.install(t, a)
				if got := b.starts(z); got != "released" {
					t.Errorf("installed at one: %s at the other", got)
				}
				for range 3 {
					a.state(t, b.id, attest.StateRevoked)
					if got := b.starts(z); got != string(attest.CodeMachineRevoked) {
						t.Errorf("revoked at one: %s at the other", got)
					}
					z.state(t, b.id, attest.StateEnrolled)
					for _, r := range replicas {
						if got := b.starts(r); got != "released" {
							t.Errorf("reinstated at one: %s", got)
						}
					}
				}
			})
		}
		wg.Wait()
		for _, a := range alarmsIn(t, first) {
			if a.Name == audit.AlarmMachineUnproven {
				t.Errorf("alarm: %s", a.What)
			}
		}
	})
}

// However many ask, the log is read once for all of them; and not at all if it was read
// to its end of late.
func TestTheLogIsReadOnceForAllWhoAsk(t *testing.T) {
	t.Parallel()
	store := &counting{Memory: new(storetest.Memory)}
	w := newWitness(t, store, newReleaseKey(t), "")
	now := time.Now()
	var mu sync.Mutex
	w.clock = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	if err := w.upToDate(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	long(t, store.Memory, 1000)
	if err := w.upToDate(t.Context(), false); err != nil || store.read.Load() != 0 {
		t.Errorf("%d entries were read, %v", store.read.Load(), err)
	}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if err := w.upToDate(t.Context(), true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Each further reading reads the last entry alone.
	if n := store.read.Load(); n < 1000 || n > 1000+64 {
		t.Errorf("%d entries were read", n)
	}
	before := store.read.Load()
	mu.Lock()
	now = now.Add(standingBound + 1)
	mu.Unlock()
	long(t, store.Memory, 1)
	if err := w.upToDate(t.Context(), false); err != nil || store.read.Load() == before {
		t.Errorf("after %v nothing was read, %v", standingBound, err)
	}
}

// BenchmarkStanding measures what a release has to ask, with 100,000 machines, and how
// much memory these take.
func BenchmarkStanding(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	memory := new(storetest.Memory)
	now := time.Now() // nothing grows old meanwhile
	w, err := openWitness(b.Context(), memory, key, "", func() time.Time { return now }, slog.New(slog.DiscardHandler))
	if err == nil {
		err = w.catchUp(b.Context())
	}
	if err != nil {
		b.Fatal(err)
	}
	const machines = 100_000
	id := func(n int) attest.MachineID { return sha256.Sum256(fmt.Append(nil, n)) }
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var head audit.Head
	for n := range machines {
		e, err := audit.Next(head, audit.Event{Time: time.Now(), Kind: audit.KindState, Machine: id(n), Data: audit.StateChange{To: attest.StateEnrolled}})
		if err == nil {
			err = w.add(e)
		}
		if err != nil {
			b.Fatal(err)
		}
		head = e.Head()
	}
	took := heap() - before
	ids := make([]attest.MachineID, 1000)
	for n := range ids {
		ids[n] = id(n * 100)
	}
	live := &livePolicy{witness: w}
	n := 0
	b.ResetTimer()
	for b.Loop() {
		if state, _, err := (judge{live}).Machine(b.Context(), ids[n%len(ids)], false); state != attest.StateEnrolled || err != nil {
			b.Fatal(state, err)
		}
		n++
	}
	b.ReportMetric(float64(took)/machines, "B/machine")
}
