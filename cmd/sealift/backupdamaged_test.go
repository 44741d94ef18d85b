package main

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
)

// A disk that fails takes a page of evidence: that must not keep the rest from
// being backed up.
func TestABackupCanLeaveOutDamagedEvidence(t *testing.T) {
	dir, config, _ := backedUp(t, "")
	store, file := filepath.Join(dir, "s.db"), filepath.Join(dir, "backup")
	s, err := sqlstore.Open(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"one", "two"} {
		if err := s.Commit(t.Context(), &server.Change{Evidence: []byte(b)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", store)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var digest string
	if err := db.QueryRowContext(t.Context(), "UPDATE evidence SET body = x'00' WHERE body = CAST('one' AS BLOB) RETURNING lower(hex(digest))").Scan(&digest); err != nil {
		t.Fatal(err)
	}
	code, _, talk := cli(t, "", "backup", "--config", config, "--out", file)
	if code != exitFailed || !strings.Contains(talk, digest) || !strings.Contains(talk, "--leave-out-damaged") {
		t.Errorf("exit %d: %s", code, talk)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("there is a backup")
	}
	code, _, talk = cli(t, "", "--json", "backup", "--config", config, "--out", file, "--leave-out-damaged")
	if code != exitOK || !strings.Contains(talk, "left out: evidence "+digest) {
		t.Fatalf("exit %d: %s", code, talk)
	}
	again := writeConfig(t, dir, "again.yaml", filepath.Join(dir, "again.db"))
	mustCLI(t, "restore", file, "--config", again, "--reason", "the disk failed")
	restored, err := sqlstore.Open(t.Context(), filepath.Join(dir, "again.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	u, err := restored.Usage(t.Context())
	if err != nil || u.Evidence.Count != 1 || u.Machines.Count != 4 {
		t.Errorf("restored %+v, %v", u, err)
	}
}
