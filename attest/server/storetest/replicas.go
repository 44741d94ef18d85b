package storetest

import (
	"context"
	"iter"
	"sync/atomic"

	"github.com/sealift/sealift/attest"
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

func (r *replicas) Documents(ctx context.Context, kind string) ([]*server.Document, error) {
	return r.next().Documents(ctx, kind)
}

func (r *replicas) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return r.next().Audit(ctx, from)
}
