package sqlstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/image/manifest"
)

// log is a long string of JSON, of which two differ in one place.
func log(change string) string {
	return strings.Repeat("0123456789abcdef", 2000) + change + strings.Repeat("fedcba9876543210", 1000)
}

func TestWhatTwoPiecesOfEvidenceShareIsStoredOnce(t *testing.T) {
	s := create(t)
	size := func() (n int) {
		if err := s.read.QueryRow("SELECT (SELECT sum(length(body)) FROM evidence) + (SELECT sum(length(body)) FROM evidence_part)").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := []byte(`{"log":"` + log("x") + `"}`)
	if err := s.Commit(t.Context(), &server.Change{Evidence: first}); err != nil {
		t.Fatal(err)
	}
	was := size()
	for i := range 5 {
		if err := s.Commit(t.Context(), &server.Change{Evidence: fmt.Appendf(nil, `{"log":"%s","n":%d}`, log("x"), i)}); err != nil {
			t.Fatal(err)
		}
	}
	if grown := size() - was; grown > 5*1024 {
		t.Errorf("five more with the same log take %d bytes", grown)
	}
	was = size()
	if err := s.Commit(t.Context(), &server.Change{Evidence: []byte(`{"log":"` + log("y") + `"}`)}); err != nil {
		t.Fatal(err)
	}
	if grown := size() - was; grown < parts.Size || grown > 2*parts.Size {
		t.Errorf("a log with one other byte takes %d bytes", grown)
	}
}

func TestAPartThatIsLostOrAlteredIsFound(t *testing.T) {
	body := []byte(`{"log":"` + log("x") + `"}`)
	d := sha256.Sum256(body)
	_, cut := parts.Cut(body)
	for name, query := range map[string]string{
		"altered": fmt.Sprintf("UPDATE evidence_part SET body = CAST('x' AS BLOB) WHERE digest = x'%x'", cut[0].Digest),
		"lost":    fmt.Sprintf("DELETE FROM evidence_part WHERE digest = x'%x'", cut[0].Digest),
		"row":     fmt.Sprintf("UPDATE evidence SET body = x'01ff' WHERE digest = x'%x'", d),
	} {
		s := create(t)
		for _, b := range [][]byte{body, []byte("whole")} {
			if err := s.Commit(t.Context(), &server.Change{Evidence: b}); err != nil {
				t.Fatal(err)
			}
		}
		tamper(t, s, query)
		if got, err := s.Evidence(t.Context(), d); err == nil || errors.Is(err, server.ErrNotFound) {
			t.Errorf("%s: got %d bytes, %v", name, len(got), err)
		}
		if got := damaged(t, s); len(got) != 1 || got[0] != d {
			t.Errorf("%s: dumped as damaged: %v", name, got)
		}
	}
}

// damaged returns what a dump says of evidence that is not as it was stored. The
// rest of it must be there: the evidence "whole".
func damaged(t *testing.T, s server.Archive) (all []manifest.SHA256) {
	t.Helper()
	whole := false
	if err := s.Dump(t.Context(), func(r server.Record) error {
		if r.Damaged != nil {
			all = append(all, *r.Damaged)
		}
		whole = whole || string(r.Evidence) == "whole"
		return nil
	}); err != nil {
		t.Error(err)
	}
	if !whole {
		t.Error("what is not damaged is not in the dump")
	}
	return all
}

// A part that was written in a transaction that failed is written again.
func TestAPartOfAFailedWriteIsStoredByTheNext(t *testing.T) {
	s := create(t)
	body := []byte(`{"log":"` + log("x") + `"}`)
	// An event that is none is seen after the evidence is written.
	if err := s.Commit(t.Context(), &server.Change{Evidence: body, Events: []audit.Event{{}}}); err == nil {
		t.Fatal("an event without a kind was stored")
	}
	if err := s.Commit(t.Context(), &server.Change{Evidence: body}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Evidence(t.Context(), sha256.Sum256(body)); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func openBench(b *testing.B) *Store {
	s, err := Create(b.Context(), filepath.Join(b.TempDir(), "state.db"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func BenchmarkSweep(b *testing.B) { storetest.BenchmarkSweep(b, openBench(b)) }

func BenchmarkPrune(b *testing.B) { storetest.BenchmarkPrune(b, openBench(b)) }

func BenchmarkReleasesBesidePrune(b *testing.B) {
	storetest.BenchmarkReleasesBesidePrune(b, openBench(b))
}

// The parts of one write are those of its own transaction, whatever became of the
// writes that it was first made together with.
func TestPartsAreWrittenAgainIfAnotherWriteFails(t *testing.T) {
	s := create(t)
	body := []byte(`{"log":"` + log("x") + `"}`)
	failure := errors.New("fails")
	var batch []*pending
	for _, do := range []func(context.Context, *tx) error{
		func(ctx context.Context, tx *tx) error { return tx.putEvidence(ctx, newEvidence(body)) },
		func(context.Context, *tx) error { return failure },
	} {
		batch = append(batch, &pending{ctx: t.Context(), do: do, again: true, result: make(chan error, 1)})
	}
	s.commit(batch) // the writer has nothing to do meanwhile
	if first, second := <-batch[0].result, <-batch[1].result; first != nil || !errors.Is(second, failure) {
		t.Fatalf("got %v and %v", first, second)
	}
	if got, err := s.Evidence(t.Context(), sha256.Sum256(body)); err != nil || !bytes.Equal(got, body) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}
