package pgstore

import (
	"context"
	"errors"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// The server dies in the middle of an update of the tables, which waits for
// somebody's lock after its first steps.
func TestServerKilledWhileTheTablesChange(t *testing.T) {
	pg := pgtest.Start(t)
	dsn := pg.Database(t)
	s := open(t, dsn)
	change := logged("before")
	change.Machine = &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n", State: attest.StateEnrolled, ReportDue: time.Unix(1000, 0)}}
	if err := s.Commit(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for _, q := range []string{
		"ALTER TABLE sealift.machine DROP COLUMN due",
		"DROP INDEX sealift.release_open",
		"DROP TABLE sealift.evidence_part",
		"ALTER TABLE sealift.evidence DROP COLUMN machine, DROP COLUMN received, DROP COLUMN epoch, DROP COLUMN pruned",
		"ALTER TABLE sealift.head DROP COLUMN epoch, DROP COLUMN store",
		"CREATE TABLE sealift.challenge (id bytea PRIMARY KEY, expires bigint NOT NULL, body bytea NOT NULL)",
		"UPDATE sealift.version SET version = 1",
	} {
		pg.SQL(t, nameOf(dsn), q)
	}
	for _, table := range []string{"machine", "evidence", "head"} {
		holder, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE sealift."+table+" IN ROW SHARE MODE"); err != nil {
			t.Fatal(err)
		}
		var opening sync.WaitGroup
		opening.Go(func() {
			if s, err := Open(t.Context(), dsn); err == nil {
				s.Close()
				t.Errorf("waiting for %s: the tables were updated by a server that died", table)
			}
		})
		for waits := false; !waits; {
			if err := holder.QueryRow(t.Context(), "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND relation = $1::regclass)", "sealift."+table).Scan(&waits); err != nil {
				t.Fatal(err)
			}
		}
		pg.Kill()
		opening.Wait()
		_ = holder.Close(t.Context()) // its server is gone
		pg.Restart(t)
		if got := pg.SQL(t, nameOf(dsn), "SELECT version, to_regclass('sealift.challenge') IS NOT NULL FROM sealift.version"); got != "1|t\n" && got != "1|t" {
			t.Errorf("waiting for %s: the tables are %q", table, got)
		}
	}
	s = open(t, dsn)
	if got := entries(t, s); len(got) != 1 || !got["before"] {
		t.Errorf("the log has %v", got)
	}
	if found, err := s.Machines(t.Context(), server.Query{Due: time.Unix(1001, 0)}); err != nil || len(found) != 1 {
		t.Errorf("%d machines are due, %v", len(found), err)
	}
	if err := s.Commit(t.Context(), logged("after")); err != nil {
		t.Error(err)
	}
}

// A replica that starts while another updates the tables waits for it, longer
// than a statement may take otherwise.
func TestAReplicaWaitsForAnUpdateOfTheTables(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t)
	dsn := pg.Database(t)
	open(t, dsn).Close()
	other, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.WithoutCancel(t.Context()))
	if _, err := other.Exec(t.Context(), "SELECT pg_advisory_lock($1)", int64(schemaLock)); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		s, err := Open(t.Context(), dsn)
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}()
	for waits := false; !waits; {
		if err := other.QueryRow(t.Context(), "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory')").Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing happens when it has waited for so long: that is what is to be seen.
	if _, err := other.Exec(t.Context(), "SELECT pg_sleep(21)"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-opened:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	if _, err := other.Exec(t.Context(), "SELECT pg_advisory_unlock($1)", int64(schemaLock)); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// The server dies while a backup is loaded: the tables stay empty, and take it
// again.
func TestServerKilledWhileABackupIsLoaded(t *testing.T) {
	pg := pgtest.Start(t)
	dsn := pg.Database(t)
	s := open(t, dsn)
	records := func(half func()) iter.Seq2[server.Record, error] {
		return func(yield func(server.Record, error) bool) {
			for i := range 4 * loadBatch {
				if i == 2*loadBatch {
					half()
				}
				m := &server.Machine{Machine: api.Machine{ID: attest.MachineID{1, byte(i >> 8), byte(i)}, NodeName: string(rune('a' + i))}, Revision: 1}
				if !yield(server.Record{Machine: m}, nil) {
					return
				}
			}
		}
	}
	if err := s.Load(t.Context(), records(pg.Kill)); err == nil {
		t.Fatal("no error")
	}
	pg.Restart(t)
	if all, err := s.Machines(context.WithoutCancel(t.Context()), server.Query{}); err != nil || len(all) != 0 {
		t.Errorf("%d machines are there, %v", len(all), err)
	}
	// Two at once: one does it.
	other := open(t, dsn)
	var conflicts, done int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, s := range []*Store{s, other} {
		wg.Go(func() {
			err := s.Load(t.Context(), records(func() {}))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				done++
			case errors.Is(err, server.ErrConflict):
				conflicts++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if done != 1 || conflicts != 1 {
		t.Errorf("%d loaded it, %d found it loaded", done, conflicts)
	}
	if all, err := other.Machines(t.Context(), server.Query{}); err != nil || len(all) != 4*loadBatch {
		t.Errorf("%d machines are there, %v", len(all), err)
	}
}
