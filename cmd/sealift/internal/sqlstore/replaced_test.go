package sqlstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/server"
)

// A backup is restored under the name of a file that a service still has open:
// what that service decides would be in a file that nobody finds any more, and
// the restored one would decide the same again.
func TestAFileThatIsNoLongerThereIsNotWritten(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, path string){
		"removed": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"moved away, and another made": func(t *testing.T, path string) {
			if err := os.Rename(path, filepath.Join(t.TempDir(), "old.db")); err != nil {
				t.Fatal(err)
			}
			// Beside what SQLite keeps under that name.
			other := create(t)
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(other.path, path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Create(t.Context(), filepath.Join(t.TempDir(), "state.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close() // may fail: its files are gone
			if err := s.Commit(t.Context(), &server.Change{Release: &server.Release{ID: "before", Machine: attest.MachineID{1}}}); err != nil {
				t.Fatal(err)
			}
			replace(t, s.path)
			for range 2 {
				err = s.Commit(t.Context(), &server.Change{Release: &server.Release{ID: "after", Machine: attest.MachineID{2}}})
				if err == nil || !strings.Contains(err.Error(), "no longer the one that was opened") {
					t.Errorf("got %v, want an error that says that the file is another", err)
				}
			}
		})
	}
}

// The file goes while a transaction is under way: what was committed to it is lost.
func TestAFileThatGoesDuringACommit(t *testing.T) {
	s := create(t)
	p := &pending{ctx: t.Context(), result: make(chan error, 1), do: func(context.Context, *tx) error { return os.Remove(s.path) }}
	s.commit([]*pending{p}) // the writer has nothing to do meanwhile
	if err := <-p.result; !errors.Is(err, errReplaced) {
		t.Errorf("got %v, want %v", err, errReplaced)
	}
}
