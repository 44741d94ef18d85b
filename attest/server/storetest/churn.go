package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// Churn writes old and young evidence that shares parts, and prunes the old, in
// several goroutines until ctx ends, for tests that kill the process or the
// database meanwhile. No other run on the same store may have the name. told is given
// the digest of each young piece once it is durable, failed each error; both by many
// goroutines. With an error the same is tried with the next piece.
func Churn(ctx context.Context, name string, stores []server.Pruner, told func(manifest.SHA256), failed func(error)) {
	var wg sync.WaitGroup
	for w := range 4 {
		s := stores[w%len(stores)]
		wg.Go(func() {
			m := machine(fmt.Sprint(name, w))
			for i := 0; ctx.Err() == nil; i++ {
				for _, received := range []time.Time{epoch.Add(time.Duration(i)), epoch.Add(time.Hour + time.Duration(i))} {
					// A model's log comes and goes, and so do its parts.
					b := evidenceOf(m, received, eventLog(i/5%7, i))
					if err := s.Commit(ctx, &server.Change{Evidence: b, Events: []audit.Event{verdict(m.ID, "x")}}); err != nil {
						failed(err)
					} else if received.After(epoch.Add(time.Minute)) {
						told(digest(b))
					}
				}
			}
		})
	}
	for _, s := range stores {
		wg.Go(func() {
			for ctx.Err() == nil {
				order := server.PruneOrder{Before: epoch.Add(time.Minute), By: "ops", Now: func() time.Time { return epoch }}
				if _, err := server.Prune(ctx, s, order); err != nil {
					failed(err)
				}
			}
		})
	}
	wg.Wait()
}

// CheckChurn holds a store against what Churn was told of: all that is durable is
// there and whole, and what was pruned is remembered as the log has it.
func CheckChurn(t *testing.T, s server.Pruner, durable []manifest.SHA256) {
	t.Helper()
	for _, d := range durable {
		if _, err := s.Evidence(t.Context(), d); err != nil {
			t.Errorf("durable evidence %s: %v", d, err)
		}
	}
	var v audit.Verifier
	pruned := map[manifest.SHA256]int64{}
	for e, err := range s.Audit(t.Context(), 1) {
		if err == nil {
			err = v.Add(e)
		}
		var d audit.Prune
		if err == nil && e.Kind == audit.KindPrune {
			err = json.Unmarshal(e.Data, &d)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range d.Evidence {
			if pruned[x] != 0 {
				t.Errorf("evidence %s was pruned twice", x)
			}
			pruned[x] = e.Seq
		}
	}
	for d, seq := range pruned {
		var gone *server.PrunedError
		if _, err := s.Evidence(t.Context(), d); !errors.As(err, &gone) || gone.Entry != seq {
			t.Errorf("evidence %s was pruned by entry %d: %v", d, seq, err)
		}
	}
	// Dump reads everything, and checks it.
	if err := s.(server.Archive).Dump(t.Context(), func(r server.Record) error {
		if r.Damaged != nil {
			t.Errorf("evidence %s is damaged", r.Damaged)
		}
		if r.Pruned != nil && pruned[r.Pruned.Digest] == 0 {
			t.Errorf("evidence %s is gone, and no entry names it", r.Pruned.Digest)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	// And it goes on.
	if _, err := server.Prune(t.Context(), s, server.PruneOrder{Before: epoch.Add(time.Minute), By: "ops", Now: time.Now}); err != nil {
		t.Error(err)
	}
	for _, d := range durable {
		if _, err := s.Evidence(t.Context(), d); err != nil {
			t.Errorf("durable evidence %s, after one more run: %v", d, err)
		}
	}
	t.Logf("%d durable, %d pruned", len(durable), len(pruned))
}
