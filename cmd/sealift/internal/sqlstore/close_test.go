package sqlstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"github.com/sealift/sealift/attest/server"
)

// A connection that has statements left is not closed by SQLite, but kept as it
// is: its log stays, and its locks.
func TestNothingIsLeftOfAStoreThatWasClosed(t *testing.T) {
	s := create(t)
	for i := range 100 {
		if err := s.Commit(t.Context(), &server.Change{Evidence: fmt.Appendf(make([]byte, 30_000), "%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(s.path + "-wal"); err != nil || st.Size() < 1<<20 {
		t.Fatalf("there is no log to check this with: %v, %v", st, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if _, err := os.Stat(s.path + suffix); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left, %v", suffix, err)
		}
	}
}

func TestADiscardedTransactionHoldsNoLock(t *testing.T) {
	s := create(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), s.path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	// As the writer has one after it failed, of a kind that leaves it open.
	broken, err := newTx(t.Context(), again.write, line{})
	if err != nil {
		t.Fatal(err)
	}
	if err := broken.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := broken.exec(t.Context(), "INSERT INTO evidence (digest, body) VALUES (x'00', x'00')"); err != nil {
		t.Fatal(err)
	}
	if err := broken.discard(); err != nil {
		t.Fatal(err)
	}
	if err := again.Commit(t.Context(), &server.Change{Evidence: []byte("x")}); err != nil {
		t.Errorf("the next write: %v", err)
	}
}
