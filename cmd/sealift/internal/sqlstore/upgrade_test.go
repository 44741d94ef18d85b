package sqlstore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// TestKilledWhileTheSchemaChanges kills a process that brings a file of many
// machines to our version, as soon as its log has grown by so much.
func TestKilledWhileTheSchemaChanges(t *testing.T) {
	if path := os.Getenv("SQLSTORE_TEST_UPGRADE"); path != "" {
		s, err := Open(context.Background(), path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_ = s.Close()
		os.Exit(0)
	}
	const machines = 4_000
	s := create(t)
	m := &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n", State: attest.StateEnrolled, ReportDue: time.Unix(1000, 0)}}
	if err := s.Commit(t.Context(), &server.Change{Machine: m, Events: []audit.Event{{Time: time.Unix(1, 0), Kind: audit.KindStart, Data: audit.Start{}}}}); err != nil {
		t.Fatal(err)
	}
	tamper(t, s, fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO machine (id, revision, state, node_name, due, body)
		SELECT CAST(printf('%%032d', i) AS BLOB), 1, state, 'n' || i, due, body FROM n, machine WHERE id = x'%x'`, machines, m.ID[:]))
	tamper(t, s, `
		DROP INDEX machine_due; DROP INDEX release_open; DROP INDEX evidence_received; DROP INDEX evidence_unindexed;
		DROP INDEX evidence_epoch; DROP INDEX evidence_part_epoch; DROP TABLE epoch;
		ALTER TABLE machine DROP COLUMN due;
		ALTER TABLE evidence DROP COLUMN machine; ALTER TABLE evidence DROP COLUMN received;
		ALTER TABLE evidence DROP COLUMN epoch; ALTER TABLE evidence DROP COLUMN pruned;
		ALTER TABLE evidence_part DROP COLUMN epoch;
		PRAGMA user_version = 4;`)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, grown := range []int64{0, 1 << 10, 128 << 10, 1 << 20, 2 << 20} {
		path := copyFiles(t, s.path)
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhileTheSchemaChanges$")
		cmd.Env = append(os.Environ(), "SQLSTORE_TEST_UPGRADE="+path)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait() // it was killed
			close(ended)
		}()
		for alive := true; alive; {
			select {
			case <-ended:
				alive = false
			default:
			}
			if st, err := os.Stat(path + "-wal"); err == nil && st.Size() >= grown {
				_ = cmd.Process.Kill() // SIGKILL; it may be gone
				<-ended
				alive = false
			}
		}
		if !cmd.ProcessState.Success() {
			killed++
		}
		again, err := Open(t.Context(), path)
		if err != nil {
			t.Fatalf("after %d bytes: %v", grown, err)
		}
		if found, err := again.Machines(t.Context(), server.Query{Due: time.Unix(1001, 0)}); err != nil || len(found) != machines+1 {
			t.Errorf("after %d bytes: %d machines are due, %v; want %d", grown, len(found), err, machines+1)
		}
		if err := again.Commit(t.Context(), &server.Change{Evidence: []byte("x"), Events: []audit.Event{{Time: time.Unix(2, 0), Kind: audit.KindStart, Data: audit.Start{}}}}); err != nil {
			t.Error(err)
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(filepath.Dir(path)); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d processes were killed before they were done", killed)
	if killed == 0 {
		t.Error("no process was killed before it was done")
	}
}
