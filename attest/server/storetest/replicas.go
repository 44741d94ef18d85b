package storetest

import (
	"context"
	"iter"
	"sync/atomic"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// replicas is several Stores over one state. Each call goes to the next, so
// that a test of one Store is a test of what they do to each other.
type replicas struct {
	all  []server.Store
	turn atomic.Uint64
}

func (r *replicas) next() server.Store { return r.all[r.turn.Add(1)%uint64(len(r.all))] }

func (r *replicas) Machine(ctx context.Context, id attest.MachineID) (*server.Machine, error) {
	return r.next().Machine(ctx, id)
}

func (r *replicas) Machines(ctx context.Context, q server.Query) ([]*server.Machine, error) {
	return r.next().Machines(ctx, q)
}

func (r *replicas) Commit(ctx context.Context, c *server.Change) error {
	return r.next().Commit(ctx, c)
}

func (r *replicas) Release(ctx context.Context, id string) (*server.Release, error) {
	return r.next().Release(ctx, id)
}

func (r *replicas) Evidence(ctx context.Context, digest manifest.SHA256) ([]byte, error) {
	return r.next().Evidence(ctx, digest)
}

func (r *replicas) Document(ctx context.Context, kind, name string) (*server.Document, error) {
	return r.next().Document(ctx, kind, name)
}

func (r *replicas) Documents(ctx context.Context, kind, after string, limit int) ([]*server.Document, error) {
	return r.next().Documents(ctx, kind, after, limit)
}

func (r *replicas) pruner() server.Pruner { return r.next().(server.Pruner) }

func (r *replicas) Usage(ctx context.Context) (*api.StoreStatus, error) {
	return r.pruner().Usage(ctx)
}

func (r *replicas) IndexEvidence(ctx context.Context, limit int) (int, error) {
	return r.pruner().IndexEvidence(ctx, limit)
}

func (r *replicas) OldEvidence(ctx context.Context, before time.Time, after *server.EvidenceRef, limit int) ([]server.EvidenceRef, error) {
	return r.pruner().OldEvidence(ctx, before, after, limit)
}

func (r *replicas) Prune(ctx context.Context, refs []server.EvidenceRef, entry func([]server.EvidenceRef) audit.Event) ([]server.EvidenceRef, error) {
	return r.pruner().Prune(ctx, refs, entry)
}

func (r *replicas) Compact(ctx context.Context, since time.Time, step func(int, int64) error) error {
	return r.pruner().Compact(ctx, since, step)
}

func (r *replicas) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return r.next().Audit(ctx, from)
}
