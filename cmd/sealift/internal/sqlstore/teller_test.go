package sqlstore

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/sealift/sealift/attest/audit"
)

// What was hashed in a transaction that did not come to its end, or ended in a file
// that nobody finds, is not told.
func TestOnlyWhatIsDurableIsTold(t *testing.T) {
	append1 := func(ctx context.Context, tx *tx) error { return tx.appendAudit(ctx, logged("lost").Events) }
	for name, c := range map[string]struct {
		spoil  func(ctx context.Context, s *Store, tx *tx) error
		goesOn bool
	}{
		"the transaction is lost": {func(ctx context.Context, _ *Store, tx *tx) error {
			_, err := tx.exec(ctx, "ROLLBACK")
			return err
		}, true},
		"the file is moved away meanwhile": {func(_ context.Context, s *Store, _ *tx) error {
			return os.Rename(s.path, filepath.Join(filepath.Dir(s.path), "away.db"))
		}, false},
	} {
		for _, again := range []bool{true, false} { // without savepoints, and with them
			t.Run(name, func(t *testing.T) {
				s, err := Create(t.Context(), filepath.Join(t.TempDir(), "state.db"))
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close() // may fail: its file is gone
				tail := new(audit.Tail)
				s.Tell(tail)
				if err := s.submit(t.Context(), again, func(ctx context.Context, tx *tx) error {
					if err := append1(ctx, tx); err != nil {
						return err
					}
					return c.spoil(ctx, s, tx)
				}); err == nil {
					t.Fatal("no error")
				}
				if told := tail.After(audit.Head{}); len(told) != 0 {
					t.Errorf("%d entries were told", len(told))
				}
				if !c.goesOn {
					return
				}
				if err := s.Commit(t.Context(), logged("kept")); err != nil {
					t.Fatal(err)
				}
				told := tail.After(audit.Head{})
				if len(told) != 1 {
					t.Fatalf("%d entries were told, want 1", len(told))
				}
				for e, err := range s.Audit(t.Context(), 1) {
					if err != nil || e.Head() != told[0].Head() {
						t.Errorf("the log has %v, %v; told was %v", e.Head(), err, told[0].Head())
					}
				}
			})
		}
	}
}

// Of changes that share a transaction, those that fail in their savepoint are not
// told, and those after them go on from what is there.
func TestWhatWasUndoneInItsSavepointIsNotTold(t *testing.T) {
	s := create(t)
	tail := new(audit.Tail)
	s.Tell(tail)
	if err := s.Commit(t.Context(), logged("before")); err != nil {
		t.Fatal(err)
	}
	var batch []*pending
	for i := range 5 {
		batch = append(batch, &pending{ctx: t.Context(), again: true, result: make(chan error, 1), do: func(ctx context.Context, tx *tx) error {
			if err := tx.appendAudit(ctx, logged(string(rune('a'+i))).Events); err != nil {
				return err
			}
			if i%2 == 1 {
				return os.ErrInvalid
			}
			return nil
		}})
	}
	s.commit(batch) // the writer waits for others
	for i, p := range batch {
		if err := <-p.result; (err != nil) != (i%2 == 1) {
			t.Errorf("%d: %v", i, err)
		}
	}
	told := tail.After(audit.Head{})
	var stored []audit.Head
	for e, err := range s.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, e.Head())
	}
	if len(told) != 4 || len(stored) != 4 {
		t.Fatalf("%d entries were told, and %d are there; want 4", len(told), len(stored))
	}
	for i := range told {
		if told[i].Head() != stored[i] {
			t.Errorf("told was %v, there is %v", told[i].Head(), stored[i])
		}
	}
}
