package pgstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// Evidence that is in the tables as those of before version 3 had it is cut by
// whatever run of prune comes first, half-way and twice at once as well.
func TestEvidenceInOnePieceIsCutIntoParts(t *testing.T) {
	pg := pgtest.Start(t)
	dsn := pg.Database(t)
	s, beside := open(t, dsn), open(t, dsn)
	log := make([]byte, 40_000)
	for i := range log {
		log[i] = byte(i * i >> 7)
	}
	var all [][]byte
	for i := range 3 * recutPage {
		b, err := json.Marshal(&api.StoredEvidence{
			Version: api.Version, Received: time.Unix(int64(i), 0), Machine: attest.MachineID{2}, Evidence: attest.Evidence{EventLog: fmt.Appendf(log[:len(log):len(log)], "%d", i)},
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
		d := sha256.Sum256(b)
		if _, err := s.pool.Exec(t.Context(), "INSERT INTO sealift.evidence (digest, body) VALUES ($1, $2)", d[:], b); err != nil {
			t.Fatal(err)
		}
	}
	altered := sha256.Sum256(all[7])
	pg.SQL(t, nameOf(dsn), fmt.Sprintf("UPDATE sealift.evidence SET body = body || '\\x20'::bytea WHERE digest = decode('%x', 'hex')", altered))
	room := func() (n int64) {
		if err := s.row(t.Context(), `SELECT (SELECT sum(length(body)) FROM sealift.evidence) + (SELECT coalesce(sum(length(body)), 0) FROM sealift.evidence_part)`, nil, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	wantAll := func(from int) {
		t.Helper()
		for i, b := range all {
			got, err := s.Evidence(t.Context(), sha256.Sum256(b))
			switch {
			case i < from:
				if !errors.As(err, new(*server.PrunedError)) {
					t.Errorf("piece %d: %v, want it pruned", i, err)
				}
			case i == 7:
				if err == nil || errors.Is(err, server.ErrNotFound) {
					t.Errorf("the altered piece: %v", err)
				}
			case err != nil || !bytes.Equal(got, b):
				t.Errorf("piece %d: %d bytes, %v", i, len(got), err)
			}
		}
	}
	was := room()
	order := server.PruneOrder{Before: time.Unix(5, 0), By: "ops", Now: time.Now, DryRun: true}
	if _, err := server.Prune(t.Context(), s, order); err != nil {
		t.Fatal(err)
	}
	if now := room(); now != was {
		t.Errorf("a dry run made %d bytes of %d", now, was)
	}
	// Cut off after the first page.
	order.DryRun = false
	stop := errors.New("stop")
	if err := s.Compact(t.Context(), order.Before, func(int, int64) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("got %v, want it to stop", err)
	}
	wantAll(0)
	var wg sync.WaitGroup
	for _, s := range []*Store{s, beside} {
		wg.Go(func() {
			if r, err := server.Prune(t.Context(), s, order); err != nil || !r.Done {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	wg.Wait()
	wantAll(5)
	// The altered piece is kept whole: it is all that there is of it.
	if now := room(); now > int64(len(all))*12_000+60_000+int64(len(all[7])) {
		t.Errorf("%d pieces take %d bytes, they took %d", len(all)-5, now, was)
	}
	var left int
	if err := s.row(t.Context(), "SELECT count(*) FROM sealift.evidence WHERE epoch = 0 AND pruned IS NULL", nil, &left); err != nil || left != 0 {
		t.Errorf("%d rows are left as they were, %v", left, err)
	}
	// What was cut shares its parts with what comes, and outlives it.
	if _, err := server.Prune(t.Context(), s, order); err != nil {
		t.Fatal(err)
	}
	wantAll(5)
}
