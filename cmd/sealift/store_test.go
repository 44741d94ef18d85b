package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// A service of an earlier version goes on while its operator makes a backup with
// the new program before the update: whoever is not the service leaves the tables
// as they are.
func TestTablesOfAServiceThatRunsAreNotUpdatedUnderIt(t *testing.T) {
	pg := pgtest.Start(t)
	sqlite := filepath.Join(t.TempDir(), "s.db")
	dsn := pg.Database(t)
	database := dsn[strings.LastIndex(dsn[:strings.Index(dsn, "?")], "/")+1 : strings.Index(dsn, "?")]
	setSQLite := func(version uint32) uint32 {
		t.Helper()
		b, err := os.ReadFile(sqlite)
		if err != nil {
			t.Fatal(err)
		}
		// "The Database Header" of the SQLite file format: the user version is
		// at offset 60.
		was := binary.BigEndian.Uint32(b[60:])
		if version > 0 {
			binary.BigEndian.PutUint32(b[60:], version)
			if err := os.WriteFile(sqlite, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return was
	}
	for name, c := range map[string]struct {
		store   string
		age     func()
		present func() bool // still as it was aged
	}{
		"SQLite": {sqlite, func() { setSQLite(4) }, func() bool { return setSQLite(0) == 4 }},
		"PostgreSQL": {
			dsn, func() { pg.SQL(t, database, "UPDATE sealift.version SET version = 2") },
			func() bool {
				return strings.TrimSpace(pg.SQL(t, database, "SELECT version FROM sealift.version")) == "2"
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, config, _ := backedUp(t, c.store)
			commands := [][]string{
				{"backup", "--config", config, "--out", filepath.Join(dir, "b")},
				{"store", "status", "--config", config},
				{"store", "prune", "--config", config, "--evidence-older-than", "400d"},
			}
			for _, args := range commands {
				mustCLI(t, args...)
			}
			c.age()
			for _, args := range commands {
				code, _, talk := cli(t, "", args...)
				if code != exitFailed || !strings.Contains(talk, "has the tables of an earlier version") || !strings.Contains(talk, "hint: use the program that the service runs") {
					t.Errorf("%v: exit %d, %s", args, code, talk)
				}
				if !c.present() {
					t.Fatalf("%v: the tables were updated", args)
				}
			}
		})
	}
}
