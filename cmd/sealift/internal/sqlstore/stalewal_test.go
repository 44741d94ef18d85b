package sqlstore

import (
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// A service that was killed leaves its write-ahead log. Should the database be
// removed, and the log not, then SQLite would write the pages of the old database
// into whatever gets its name.
func TestADatabaseIsNotMadeBesideTheLogOfAnother(t *testing.T) {
	for _, suffix := range []string{"-wal", "-journal"} {
		t.Run(suffix, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			old := create(t)
			defer old.Close()
			if err := old.Commit(t.Context(), &server.Change{Release: &server.Release{ID: "old", Machine: attest.MachineID{1}}}); err != nil {
				t.Fatal(err)
			}
			log, err := os.ReadFile(old.path + "-wal")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path+suffix, log, 0o600); err != nil {
				t.Fatal(err)
			}
			entry, err := audit.Next(audit.Head{}, audit.Event{Time: time.Unix(1, 0), Kind: audit.KindStart, Data: audit.Start{}})
			if err != nil {
				t.Fatal(err)
			}
			var records iter.Seq2[server.Record, error] = func(yield func(server.Record, error) bool) {
				yield(server.Record{Entry: &entry}, nil)
			}
			if err := Fill(t.Context(), path, records); !errors.Is(err, errOldLog) {
				t.Errorf("Fill: got %v, want %v", err, errOldLog)
			}
			if s, err := Create(t.Context(), path); !errors.Is(err, errOldLog) {
				t.Errorf("Create: got %v, want %v", err, errOldLog)
				if err == nil {
					t.Log(s.Release(t.Context(), "old"))
					s.Close()
				}
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("there is a database: %v", err)
			}
			if left, err := os.ReadFile(path + suffix); err != nil || len(left) != len(log) {
				t.Errorf("the log was touched: %d bytes of %d, %v", len(left), len(log), err)
			}
		})
	}
}
