package sqlstore

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

func logged(text string) *server.Change {
	return &server.Change{Events: []audit.Event{{Time: time.Unix(1, 0), Kind: audit.KindStart, Data: audit.Start{Version: text}}}}
}

// sqlite3 has another process's connection write to a database.
func sqlite3(t *testing.T, path string, queries ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range queries {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

// A copy is restored into the file that a service has open, as SQLite's own shell
// does it: the file is the same, and what the service decided since is gone.
func TestADatabaseThatWentBackIsNotWritten(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, s *Store){
		"the log is shorter": func(*testing.T, *Store) {},
		"another process has made it as long": func(t *testing.T, s *Store) {
			other, err := Open(t.Context(), s.path)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				if err := other.Commit(t.Context(), logged(fmt.Sprint("other ", i))); err != nil {
					t.Fatal(err)
				}
			}
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, after := range []string{"a commit", "a commit that failed", "a write that was undone"} {
			t.Run(name+", after "+after, func(t *testing.T) {
				s := create(t)
				if err := s.Commit(t.Context(), logged("kept")); err != nil {
					t.Fatal(err)
				}
				copied := filepath.Join(t.TempDir(), "copy.db")
				sqlite3(t, s.path, "VACUUM INTO '"+copied+"'")
				decided := logged("lost")
				decided.Release = &server.Release{ID: "r", Machine: attest.MachineID{1}}
				if err := s.Commit(t.Context(), decided); err != nil {
					t.Fatal(err)
				}
				switch after {
				case "a commit that failed":
					sqlite3(t, s.path, "ALTER TABLE audit RENAME TO gone")
					if err := s.Commit(t.Context(), logged("x")); err == nil {
						t.Fatal("no error")
					}
					sqlite3(t, s.path, "ALTER TABLE gone RENAME TO audit")
				case "a write that was undone":
					if err := s.Commit(t.Context(), decided); !errors.Is(err, server.ErrReleased) {
						t.Fatal(err)
					}
				}
				sqlite3(t, s.path, "ATTACH '"+copied+"' AS copy",
					"DELETE FROM audit", "INSERT INTO audit SELECT * FROM copy.audit", "DELETE FROM release", "INSERT INTO release SELECT * FROM copy.release")
				change(t, s)
				for _, c := range []*server.Change{
					{Release: &server.Release{ID: "again", Machine: attest.MachineID{1}}},
					logged("more"),
					{Evidence: []byte("evidence")},
				} {
					if err := s.Commit(t.Context(), c); !errors.Is(err, errWentBack) {
						t.Errorf("got %v, want %v", err, errWentBack)
					}
				}
				if _, err := s.Prune(t.Context(), nil, nil); !errors.Is(err, errWentBack) {
					t.Errorf("prune: got %v, want %v", err, errWentBack)
				}
			})
		}
	}
}

// What another process adds is no loss.
func TestAnotherProcessMayAddToTheLog(t *testing.T) {
	s := create(t)
	if err := s.Commit(t.Context(), logged("first")); err != nil {
		t.Fatal(err)
	}
	other, err := Open(t.Context(), s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for i := range 3 {
		for _, s := range []*Store{other, other, s} {
			if err := s.Commit(t.Context(), logged(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	var v audit.Verifier
	for e, err := range s.Audit(t.Context(), 1) {
		if err == nil {
			err = v.Add(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if v.Head().Seq != 10 {
		t.Errorf("%d entries, want 10", v.Head().Seq)
	}
}

// A service of a later version was started on the file of one that runs, and has
// brought its tables to its own.
func TestTablesOfALaterVersionAreNotWritten(t *testing.T) {
	s := create(t)
	if err := s.Commit(t.Context(), logged("first")); err != nil {
		t.Fatal(err)
	}
	sqlite3(t, s.path, fmt.Sprintf("PRAGMA user_version = %d", schemaVersion+1))
	for range 2 {
		if err := s.Commit(t.Context(), logged("more")); !errors.Is(err, errVersion) {
			t.Errorf("got %v, want %v", err, errVersion)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.path); err != nil {
		t.Error(err)
	}
}
