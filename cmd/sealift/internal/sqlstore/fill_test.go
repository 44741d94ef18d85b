package sqlstore

import (
	"errors"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// TestFillMakesAWholeDatabaseOrNone kills a process that fills a database, and
// has records fail: either time there is none, because an empty one would be taken
// for that of a new service.
func TestFillMakesAWholeDatabaseOrNone(t *testing.T) {
	entry := func() *audit.Entry {
		e, err := audit.Next(audit.Head{}, audit.Event{Time: time.Unix(1, 0), Kind: audit.KindStart, Data: audit.Start{}})
		if err != nil {
			t.Fatal(err)
		}
		return &e
	}
	records := func(then func() error) iter.Seq2[server.Record, error] {
		return func(yield func(server.Record, error) bool) {
			if !yield(server.Record{Entry: entry()}, nil) {
				return
			}
			if err := then(); err != nil {
				yield(server.Record{}, err)
			}
		}
	}
	if path := os.Getenv("SQLSTORE_TEST_FILL"); path != "" {
		_ = Fill(t.Context(), path, records(func() error {
			self, err := os.FindProcess(os.Getpid())
			if err == nil {
				err = self.Kill()
			}
			if err == nil {
				select {}
			}
			return err
		}))
		os.Exit(0) // not killed
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	cmd := exec.Command(os.Args[0], "-test.run=^TestFillMakesAWholeDatabaseOrNone$")
	cmd.Env = append(os.Environ(), "SQLSTORE_TEST_FILL="+path)
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("it was not killed: %s", out)
	}
	bad := errors.New("bad record")
	if err := Fill(t.Context(), path, records(func() error { return bad })); !errors.Is(err, bad) {
		t.Errorf("got %v, want %v", err, bad)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("there is a database: %v", err)
	}
	if err := Fill(t.Context(), path, records(func() error { return nil })); err != nil {
		t.Fatal(err)
	}
	if err := Fill(t.Context(), path, records(func() error { return nil })); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: got %v, want %v", err, fs.ErrExist)
	}
	// One that comes while another is filled stays as it is.
	raced := filepath.Join(dir, "raced.db")
	err := Fill(t.Context(), raced, records(func() error { return os.WriteFile(raced, []byte("another's"), 0o600) }))
	if b, readErr := os.ReadFile(raced); !errors.Is(err, fs.ErrExist) || string(b) != "another's" {
		t.Errorf("got %v, want %v; there is now %.20q, %v", err, fs.ErrExist, b, readErr)
	}
	if left, err := filepath.Glob(raced + ".new-*"); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.read.ExecContext(t.Context(), "DELETE FROM audit"); err == nil {
		t.Error("who reads can write")
	}
	n := 0
	for _, err := range s.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("the log has %d entries, want 1", n)
	}
}
