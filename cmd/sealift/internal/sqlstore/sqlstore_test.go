package sqlstore

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
)

func create(t *testing.T) *Store {
	t.Helper()
	s, err := Create(t.Context(), filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// copyFiles copies the database as it is on disk, as a kill would leave it:
// nothing is closed or checkpointed first.
func copyFiles(t *testing.T, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "state.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestStore(t *testing.T) {
	open := func(t *testing.T, path string) server.Store {
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	storetest.Run(t, storetest.Subject{
		Open:    func(t *testing.T) server.Store { return create(t) },
		Replica: func(t *testing.T, s server.Store) server.Store { return open(t, s.(*Store).path) },
		Reopen:  func(t *testing.T, s server.Store) server.Store { return open(t, copyFiles(t, s.(*Store).path)) },
	})
}

func TestCreateMakesPrivateFilesAndKeepsOthers(t *testing.T) {
	s := create(t)
	event := audit.Event{Time: time.Unix(1, 0), Kind: audit.KindStart, Data: audit.Start{}}
	if err := s.Commit(t.Context(), &server.Change{Events: []audit.Event{event}}); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		st, err := os.Stat(s.path + suffix)
		if err != nil {
			t.Error(err)
		} else if st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %04o, want 0600", filepath.Base(s.path+suffix), st.Mode().Perm())
		}
	}
	if _, err := Create(t.Context(), s.path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second Create: got %v, want %v", err, fs.ErrExist)
	}
	files, err := os.ReadDir(filepath.Dir(s.path))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.Contains(f.Name(), ".new-") {
			t.Errorf("%s was left behind", f.Name())
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	exec := func(query string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			db, err := sql.Open("sqlite", dsn(path))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.Exec(query); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := map[string]struct {
		spoil func(t *testing.T, path string)
		want  string
	}{
		"no file":                 {func(t *testing.T, path string) { os.Remove(path) }, "no such file"},
		"a later schema":          {exec("PRAGMA user_version = 7"), "schema version is 7, want 6"},
		"another program's file":  {exec("PRAGMA application_id = 7"), "application id is 0x7"},
		"a file that others read": {func(t *testing.T, path string) { os.Chmod(path, 0o644) }, "mode is 0644, want 0600"},
		"no database": {func(t *testing.T, path string) {
			os.WriteFile(path, []byte(strings.Repeat("not a database\n", 100)), 0o600)
		}, "not a database"},
		"an empty file": {func(t *testing.T, path string) { os.Truncate(path, 0) }, "application id is 0x0"},
		"a directory": {func(t *testing.T, path string) {
			os.Remove(path)
			os.Mkdir(path, 0o700)
		}, "not a regular file"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := create(t)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			tt.spoil(t, s.path)
			got, err := Open(t.Context(), s.path)
			if err == nil {
				got.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want it to contain %q", err, tt.want)
			}
		})
	}
}

// What a loss of power takes can only be seen with one: that each commit is synced
// is a setting of the connection that writes (PRAGMA synchronous, 2 is FULL).
func TestEachCommitIsSynced(t *testing.T) {
	s := create(t)
	if err := s.Commit(t.Context(), &server.Change{Evidence: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also of the connection after one that was given up
		for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal"} {
			var got string
			if err := s.submit(t.Context(), false, func(ctx context.Context, tx *tx) error { return tx.get(ctx, &got, "PRAGMA "+pragma) }); err != nil || got != want {
				t.Errorf("%s is %s, %v, want %s", pragma, got, err, want)
			}
		}
		if err := s.submit(t.Context(), false, func(ctx context.Context, tx *tx) error { _, err := tx.exec(ctx, "ROLLBACK"); return err }); err == nil {
			t.Error("a transaction that was lost gives no error")
		}
	}
}

func TestAWriteAfterCloseFails(t *testing.T) {
	s := create(t)
	s.Close()
	if err := s.Commit(t.Context(), &server.Change{}); err == nil {
		t.Error("no error")
	}
}

func TestAWriteIsNotStartedForACallerThatWentAway(t *testing.T) {
	s := create(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n"}}
	if err := s.Commit(ctx, &server.Change{Machine: m}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if _, err := s.Machine(t.Context(), m.ID); !errors.Is(err, server.ErrNotFound) {
		t.Errorf("got %v, want %v", err, server.ErrNotFound)
	}
}

// tamper changes a database behind the store's back.
func tamper(t *testing.T, s *Store, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(s.path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

func TestAnAlteredRowIsFound(t *testing.T) {
	tests := map[string]struct{ query, want string }{
		"data altered":      {`UPDATE audit SET line = CAST(replace(CAST(line AS TEXT), 'unlocked', 'unlockeD') AS BLOB) WHERE seq = 2`, "entry 2"},
		"row deleted":       {`DELETE FROM audit WHERE seq = 2`, "missing entry: 3 comes after 1"},
		"row renumbered":    {`UPDATE audit SET seq = 9 WHERE seq = 3`, "the row of entry 9 holds entry 3"},
		"row not an entry":  {`UPDATE audit SET line = x'00' WHERE seq = 2`, "entry 2"},
		"rows swapped":      {`UPDATE audit SET line = (SELECT b.line FROM audit b WHERE b.seq = 5 - audit.seq) WHERE seq IN (2, 3)`, "the row of entry 2 holds entry 3"},
		"first row deleted": {`DELETE FROM audit WHERE seq = 1`, "missing entry: 2 comes after 0"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := create(t)
			for i := range 3 {
				ev := audit.Event{Time: time.Unix(int64(i), 0), Kind: audit.KindConfirm, Data: audit.Confirm{ReleaseID: fmt.Sprint(i), Outcome: "unlocked"}}
				if err := s.Commit(t.Context(), &server.Change{Events: []audit.Event{ev}}); err != nil {
					t.Fatal(err)
				}
			}
			tamper(t, s, tt.query)
			var v audit.Verifier
			var err error
			for e, readErr := range s.Audit(t.Context(), 1) {
				if err = readErr; err == nil {
					err = v.Add(e)
				}
				if err != nil {
					break
				}
			}
			var broken *audit.BrokenError
			if !errors.As(err, &broken) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a *BrokenError with %q", err, tt.want)
			}
		})
	}
}

// A row whose columns and record say two things makes a backup that cannot be
// restored: names that are unique in the columns may not be so in the records.
func TestARowThatContradictsItsRecordIsNotDumped(t *testing.T) {
	for name, query := range map[string]string{
		"a node name":        "UPDATE machine SET node_name = 'x'",
		"a disk":             "UPDATE machine SET disk_guid = NULL",
		"a machine's id":     "UPDATE machine SET id = x'78'",
		"a release's id":     "UPDATE release SET id = 'x'",
		"another machine's":  "UPDATE release SET machine = x'78'",
		"another generation": "UPDATE release SET generation = 8",
		"another reset":      "UPDATE release SET reset_count = 8",
		"another restart":    "UPDATE release SET restart_count = 8",
	} {
		t.Run(name, func(t *testing.T) {
			s := create(t)
			m := &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n", DiskGUID: "d"}}
			if err := s.Commit(t.Context(), &server.Change{Machine: m, Release: &server.Release{ID: "r", Machine: m.ID, ResetCount: 1}}); err != nil {
				t.Fatal(err)
			}
			dump := func() error { return s.Dump(t.Context(), func(server.Record) error { return nil }) }
			if err := dump(); err != nil {
				t.Fatal(err)
			}
			tamper(t, s, query)
			if err := dump(); err == nil || !strings.Contains(err.Error(), "altered") {
				t.Errorf("got %v, want an error that says that it was altered", err)
			}
		})
	}
}

// TestAFileOfAnEarlierSchemaIsBroughtToOurs makes a file of each version: the
// fifth had machines and releases without rowids, the third had challenges, the second
// no parts of evidence either, and in the first campaigns had a table of their own,
// and there were no documents.
func TestAFileOfAnEarlierSchemaIsBroughtToOurs(t *testing.T) {
	fifth := `
		ALTER TABLE machine RENAME TO machine_6; ALTER TABLE release RENAME TO release_6;
		DROP INDEX machine_state; DROP INDEX machine_due; DROP INDEX release_open;
		CREATE TABLE machine (
			id BLOB PRIMARY KEY, revision INTEGER NOT NULL, state TEXT NOT NULL, node_name TEXT NOT NULL UNIQUE,
			disk_guid TEXT UNIQUE, due INTEGER, body TEXT NOT NULL
		) STRICT, WITHOUT ROWID;
		CREATE INDEX machine_state ON machine (state);
		CREATE INDEX machine_due ON machine (state, due) WHERE due IS NOT NULL;
		CREATE TABLE release (
			id TEXT PRIMARY KEY, machine BLOB NOT NULL, generation INTEGER NOT NULL, reset_count INTEGER NOT NULL,
			restart_count INTEGER NOT NULL, confirmed INTEGER NOT NULL, body TEXT NOT NULL,
			UNIQUE (machine, generation, reset_count, restart_count)
		) STRICT, WITHOUT ROWID;
		CREATE INDEX release_open ON release (machine) WHERE confirmed = 0;
		INSERT INTO machine SELECT id, revision, state, node_name, disk_guid, due, body FROM machine_6;
		INSERT INTO release SELECT id, machine, generation, reset_count, restart_count, confirmed, body FROM release_6;
		DROP TABLE machine_6; DROP TABLE release_6;
		PRAGMA user_version = 5;`
	fourth := fifth + `
		DROP INDEX machine_due; DROP INDEX release_open; DROP INDEX evidence_received; DROP INDEX evidence_unindexed;
		DROP INDEX evidence_epoch; DROP INDEX evidence_part_epoch; DROP TABLE epoch;
		ALTER TABLE machine DROP COLUMN due;
		ALTER TABLE evidence DROP COLUMN machine; ALTER TABLE evidence DROP COLUMN received;
		ALTER TABLE evidence DROP COLUMN epoch; ALTER TABLE evidence DROP COLUMN pruned;
		ALTER TABLE evidence_part DROP COLUMN epoch;
		PRAGMA user_version = 4;`
	third := fourth + `
		CREATE TABLE challenge (id TEXT PRIMARY KEY, expires INTEGER NOT NULL, body TEXT NOT NULL) STRICT, WITHOUT ROWID;
		CREATE INDEX challenge_expires ON challenge (expires);
		INSERT INTO challenge (id, expires, body) VALUES ('c', 1, '{}');
		PRAGMA user_version = 3;`
	second := third + `
		DROP TABLE evidence_part;
		PRAGMA user_version = 2;`
	first := second + `
		CREATE TABLE campaign (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, body BLOB NOT NULL) STRICT, WITHOUT ROWID;
		INSERT INTO campaign (name, revision, body) SELECT name, revision, body FROM document;
		DROP TABLE document;
		PRAGMA user_version = 1;`
	schemaOf := func(s *Store) (out string) {
		err := s.read.QueryRow("SELECT group_concat(type || ' ' || name, ', ') FROM (SELECT type, name FROM sqlite_schema ORDER BY type, name)").Scan(&out)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, script := range map[string]string{"version 1": first, "version 2": second, "version 3": third, "version 4": fourth, "version 5": fifth} {
		t.Run(name, func(t *testing.T) {
			s := create(t)
			want := schemaOf(s)
			change := &server.Change{
				Events:    []audit.Event{{Time: time.Unix(1, 0), Kind: audit.KindStart, Data: audit.Start{}}},
				Documents: []*server.Document{{Kind: "campaign", Name: "bios", Body: json.RawMessage(`{"a":1}`)}},
				Evidence:  []byte("evidence"),
				Machine: &server.Machine{Machine: api.Machine{
					ID: attest.MachineID{1}, NodeName: "n", State: attest.StateEnrolled, ReportDue: time.Unix(1000, 123),
				}},
			}
			if err := s.Commit(t.Context(), change); err != nil {
				t.Fatal(err)
			}
			old, err := json.Marshal(&api.StoredEvidence{Version: api.Version, Received: time.Unix(5, 0), Machine: attest.MachineID{2}})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(t.Context(), &server.Change{Evidence: old}); err != nil {
				t.Fatal(err)
			}
			tamper(t, s, script)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			for round := range 2 { // brought over, then as it is
				again, err := Open(t.Context(), s.path)
				if err != nil {
					t.Fatal(err)
				}
				if got := schemaOf(again); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				d, err := again.Document(t.Context(), "campaign", "bios")
				if err != nil {
					t.Fatal(err)
				}
				if d.Revision != 1 || string(d.Body) != `{"a":1}` {
					t.Errorf("got revision %d of %s", d.Revision, d.Body)
				}
				if b, err := again.Evidence(t.Context(), sha256.Sum256([]byte("evidence"))); err != nil || string(b) != "evidence" {
					t.Errorf("got %q, %v", b, err)
				}
				for at, want := range map[time.Time]int{time.Unix(1001, 0): 1, time.Unix(999, 0): 0} {
					if found, err := again.Machines(t.Context(), server.Query{Due: at}); err != nil || len(found) != want {
						t.Errorf("%d machines are due at %s, %v; want %d", len(found), at, err, want)
					}
				}
				r, err := server.Prune(t.Context(), again, server.PruneOrder{Before: time.Unix(6, 0), By: "ops", Now: time.Now})
				if err != nil || r.Removed != int64(1-round) {
					t.Errorf("%+v, %v", r, err)
				}
				if _, err := again.Evidence(t.Context(), sha256.Sum256(old)); !errors.As(err, new(*server.PrunedError)) {
					t.Errorf("got %v, want it pruned", err)
				}
				// What the new tables are for can be written.
				if err := again.Commit(t.Context(), &server.Change{Evidence: []byte(`{"log":"` + log("x") + `"}`)}); err != nil {
					t.Error(err)
				}
				if err := again.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestKill kills a process in the middle of its writes and checks that the
// database opens and holds all that the process was told is durable.
func TestKill(t *testing.T) {
	if path := os.Getenv("SQLSTORE_TEST_VICTIM"); path != "" {
		victim(path)
	}
	for round := range 3 {
		path := filepath.Join(t.TempDir(), "state.db")
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "SQLSTORE_TEST_VICTIM="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		durable := map[string]bool{}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			durable[lines.Text()] = true
			if len(durable) == 20*(round+1) {
				if err := cmd.Process.Kill(); err != nil { // SIGKILL
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed

		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		var v audit.Verifier
		logged := map[string]bool{}
		for e, err := range s.Audit(t.Context(), 1) {
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Add(e); err != nil {
				t.Fatal(err)
			}
			var d audit.Release
			if err := json.Unmarshal(e.Data, &d); err != nil {
				t.Fatal(err)
			}
			logged[d.ID] = true
		}
		for id := range durable {
			if !logged[id] {
				t.Errorf("release %s was durable and is not in the log", id)
			}
			if _, err := s.Release(t.Context(), id); err != nil {
				t.Errorf("release %s was durable: %v", id, err)
			}
		}
		for id := range logged {
			if _, err := s.Release(t.Context(), id); err != nil {
				t.Errorf("release %s is in the log alone: %v", id, err)
			}
		}
		if len(durable) == 0 {
			t.Error("nothing was written before the kill")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// victim writes releases from several goroutines and prints the id of each
// that is durable, until it is killed.
func victim(path string) {
	s, err := Create(context.Background(), path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ids := make(chan string)
	for w := range 4 {
		go func() {
			for i := uint32(0); ; i++ {
				id := fmt.Sprintf("r-%d-%d", w, i)
				err := s.Commit(context.Background(), &server.Change{
					Release: &server.Release{ID: id, Machine: attest.MachineID{byte(w)}, ResetCount: i},
					Events:  []audit.Event{{Time: time.Unix(1, 0), Kind: audit.KindRelease, Data: audit.Release{ID: id}}},
				})
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				ids <- id
			}
		}()
	}
	for id := range ids {
		fmt.Println(id)
	}
}

func BenchmarkReleases(b *testing.B) {
	s, err := Create(b.Context(), filepath.Join(b.TempDir(), "state.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	blob := make([]byte, 60<<10)
	b.SetParallelism(64)
	next := make(chan uint32)
	go func() {
		for i := uint32(0); ; i++ {
			next <- i
		}
	}()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := <-next
			id := fmt.Sprint("r", i)
			err := s.Commit(b.Context(), &server.Change{
				Release:  &server.Release{ID: id, ResetCount: i},
				Evidence: append(blob, id...),
				Events:   []audit.Event{{Time: time.Unix(1, 0), Kind: audit.KindRelease, Data: audit.Release{ID: id}}},
			})
			if err != nil {
				b.Error(err)
			}
		}
	})
}

// What a change met in a transaction that was lost then is no answer: what was in
// its way is not there.
func TestALostTransactionAnswersNobody(t *testing.T) {
	first, second := release("a"), release("b") // of one boot
	put := func(r *server.Release) func(context.Context, *tx) error {
		return func(ctx context.Context, tx *tx) error { return putRelease(ctx, tx, r, "{}") }
	}
	// As SQLite does it by itself, for want of room.
	undone := func(then error) func(context.Context, *tx) error {
		return func(ctx context.Context, tx *tx) error {
			_, err := tx.exec(ctx, "ROLLBACK")
			return errors.Join(err, then)
		}
	}
	for name, last := range map[string]error{"the last is as good": nil, "the last fails": server.ErrReleased} {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, again %t", name, again), func(t *testing.T) {
				s := create(t)
				var batch []*pending
				for _, do := range []func(context.Context, *tx) error{put(first), put(second), undone(last)} {
					if again {
						// All is made again in savepoints if one fails: here the first.
						batch = append(batch, &pending{ctx: t.Context(), do: undone(last), again: true, result: make(chan error, 1)})
						break
					}
					batch = append(batch, &pending{ctx: t.Context(), do: do, result: make(chan error, 1)})
				}
				s.commit(batch) // the writer has nothing to do meanwhile
				for i, p := range batch {
					if err := <-p.result; err == nil || errors.Is(err, server.ErrReleased) {
						t.Errorf("%d: got %v, want that nothing is known", i, err)
					}
				}
				if err := s.Commit(t.Context(), &server.Change{Release: second}); err != nil {
					t.Errorf("the next: %v", err)
				}
			})
		}
	}
}

func release(id string) *server.Release {
	return &server.Release{ID: id, Machine: attest.MachineID{1}, ResetCount: 1}
}
