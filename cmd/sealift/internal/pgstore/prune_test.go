package pgstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
	"github.com/sealift/sealift/image/manifest"
)

// TestServerKilledWhilePruning kills the database under replicas that write and
// prune, and starts it again at once. The replicas go on without being opened
// anew.
func TestServerKilledWhilePruning(t *testing.T) {
	pg := pgtest.Start(t)
	dsn := pg.Database(t)
	replicas := []server.Pruner{open(t, dsn), open(t, dsn)}
	var mu sync.Mutex
	var durable []manifest.SHA256
	progress := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var churn sync.WaitGroup
	churn.Go(func() {
		storetest.Churn(ctx, "", replicas, func(d manifest.SHA256) {
			mu.Lock()
			durable = append(durable, d)
			mu.Unlock()
			select {
			case progress <- struct{}{}:
			default:
			}
		}, func(error) {}) // the database is gone at times
	})
	for range 3 {
		for range 60 {
			<-progress
		}
		pg.Kill()
		pg.Restart(t)
		<-progress // they go on
	}
	cancel()
	churn.Wait()
	storetest.CheckChurn(t, replicas[0], durable)
	storetest.CheckChurn(t, open(t, dsn), durable)
}

// Between the look at which parts are in use and their removal somebody writes
// evidence that refers to one.
func TestAPartThatIsUsedAgainIsNotRemoved(t *testing.T) {
	s := open(t, pgtest.Start(t).Database(t))
	again, gone := []byte(`{"log":"`+strings.Repeat("a", 3000)+`"}`), []byte(`{"log":"`+strings.Repeat("b", 3000)+`"}`)
	for _, b := range [][]byte{again, gone} {
		if err := s.Commit(t.Context(), &server.Change{Evidence: b}); err != nil {
			t.Fatal(err)
		}
	}
	other := append(append([]byte{}, again...), ' ')
	once := true
	if err := s.Compact(t.Context(), time.Unix(0, 0), func(int, int64) error {
		if !once {
			return nil
		}
		once = false // in the new epoch
		return s.Commit(t.Context(), &server.Change{Evidence: other})
	}); err != nil {
		t.Fatal(err)
	}
	_, cutAgain := parts.Cut(again)
	_, cutGone := parts.Cut(gone)
	var epoch int64
	if err := s.pool.QueryRow(t.Context(), "SELECT epoch FROM sealift.head").Scan(&epoch); err != nil {
		t.Fatal(err)
	}
	n, _, err := s.removeParts(t.Context(), [][]byte{cutAgain[0].Digest[:], cutGone[0].Digest[:]}, epoch)
	if err != nil || n != 1 {
		t.Errorf("%d were removed, %v", n, err)
	}
	if got, err := s.Evidence(t.Context(), sha256.Sum256(other)); err != nil || !bytes.Equal(got, other) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}
