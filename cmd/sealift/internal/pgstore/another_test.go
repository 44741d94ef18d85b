package pgstore

import (
	"iter"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// A database is lost and restored while a replica runs, which goes on as soon as
// there is one again under the same name. The restored log, with a later export,
// goes further than the replica knows; still what it believes is from before, that
// nothing is held above all.
func TestAReplicaDoesNotGoOnWithARestoredStore(t *testing.T) {
	pg := pgtest.Start(t)
	for name, empty := range map[string]string{
		"the schema was dropped": "DROP SCHEMA sealift CASCADE",
		"the tables were emptied": `TRUNCATE sealift.machine, sealift.release, sealift.evidence, sealift.evidence_part, sealift.document, sealift.audit;
			UPDATE sealift.head SET seq = 0, hash = decode(repeat('00', 32), 'hex')`,
	} {
		t.Run(name, func(t *testing.T) {
			dsn := pg.Database(t)
			idle, busy := open(t, dsn), open(t, dsn)
			for _, s := range []*Store{idle, busy, busy} {
				if err := s.Commit(t.Context(), logged(s.name+string(rune('a'+len(entries(t, s)))))); err != nil {
					t.Fatal(err)
				}
			}
			m := &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n"}, Revision: 1}
			records := []server.Record{{Machine: m}}
			var head audit.Head
			for e, err := range busy.Audit(t.Context(), 1) {
				if err != nil {
					t.Fatal(err)
				}
				head = e.Head()
				records = append(records, server.Record{Entry: &e})
			}
			e, err := audit.Next(head, audit.Event{Time: m.LastSeen.AddDate(2000, 0, 0), Kind: audit.KindRestore, Data: audit.Restore{}})
			if err != nil {
				t.Fatal(err)
			}
			records = append(records, server.Record{Entry: &e})
			pg.SQL(t, nameOf(dsn), empty)
			restorer := open(t, dsn)
			if err := restorer.Load(t.Context(), iter.Seq2[server.Record, error](func(yield func(server.Record, error) bool) {
				for _, r := range records {
					if !yield(r, nil) {
						return
					}
				}
			})); err != nil {
				t.Fatal(err)
			}
			for _, s := range []*Store{idle, busy} {
				if err := s.Commit(t.Context(), logged("more")); err == nil || !strings.Contains(err.Error(), "was restored") {
					t.Errorf("got %v, want an error that says that the store was restored", err)
				}
			}
			// Who restored it, and who starts now, can.
			for _, s := range []*Store{restorer, open(t, dsn)} {
				m.Revision++
				if err := s.Commit(t.Context(), &server.Change{Evidence: []byte("x")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
