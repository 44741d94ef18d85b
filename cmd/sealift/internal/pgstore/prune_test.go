package pgstore

import (
	"context"
	"sync"
	"testing"

	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
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
