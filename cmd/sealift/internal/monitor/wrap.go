package monitor

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// storeOperations are the operations that are timed, as labels.
func storeOperations() []string {
	return []string{"machine", "machines", "commit", "release", "evidence", "document", "documents", "audit"}
}

// Store returns s, timed. Every audit event that is committed through it is
// counted, whoever made it.
func (m *Monitor) Store(s server.Store) server.Store { return timed{s, m} }

type timed struct {
	server.Store
	m *Monitor
}

// took counts an operation that began at began.
func (t timed) took(operation string, began time.Time, err error) {
	t.m.store.WithLabelValues(operation).Observe(time.Since(began).Seconds())
	switch {
	case err == nil, errors.Is(err, server.ErrNotFound), errors.Is(err, server.ErrConflict), errors.Is(err, server.ErrReleased):
		// These are answers.
	case errors.Is(err, context.Canceled): // who asked went away
	default:
		t.m.failed.WithLabelValues(operation).Inc()
	}
}

func (t timed) Machine(ctx context.Context, id attest.MachineID) (*server.Machine, error) {
	began := time.Now()
	v, err := t.Store.Machine(ctx, id)
	t.took("machine", began, err)
	return v, err
}

func (t timed) Machines(ctx context.Context, q server.Query) ([]*server.Machine, error) {
	began := time.Now()
	v, err := t.Store.Machines(ctx, q)
	t.took("machines", began, err)
	return v, err
}

func (t timed) Commit(ctx context.Context, c *server.Change) error {
	began := time.Now()
	err := t.Store.Commit(ctx, c)
	t.took("commit", began, err)
	if err == nil {
		for i := range c.Events {
			t.m.events.WithLabelValues(string(c.Events[i].Kind)).Inc()
			if a, ok := c.Events[i].Data.(audit.Alarm); ok {
				t.m.alarms.WithLabelValues(string(a.Name)).Inc()
			}
		}
	}
	return err
}

func (t timed) Release(ctx context.Context, id string) (*server.Release, error) {
	began := time.Now()
	v, err := t.Store.Release(ctx, id)
	t.took("release", began, err)
	return v, err
}

func (t timed) Evidence(ctx context.Context, digest manifest.SHA256) ([]byte, error) {
	began := time.Now()
	v, err := t.Store.Evidence(ctx, digest)
	t.took("evidence", began, err)
	return v, err
}

func (t timed) Document(ctx context.Context, kind, name string) (*server.Document, error) {
	began := time.Now()
	v, err := t.Store.Document(ctx, kind, name)
	t.took("document", began, err)
	return v, err
}

func (t timed) Documents(ctx context.Context, kind, after string, limit int) ([]*server.Document, error) {
	began := time.Now()
	v, err := t.Store.Documents(ctx, kind, after, limit)
	t.took("documents", began, err)
	return v, err
}

// Audit is timed to its first entry: how long the rest takes is the reader's.
func (t timed) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		began, first := time.Now(), true
		for e, err := range t.Store.Audit(ctx, from) {
			if first || err != nil {
				t.took("audit", began, err)
				first = false
			}
			if !yield(e, err) {
				return
			}
		}
		if first {
			t.took("audit", began, nil)
		}
	}
}

// Pruner returns p. The entries that it makes are counted with those of Store.
func (m *Monitor) Pruner(p server.Pruner) server.Pruner { return countedPruner{p, m} }

type countedPruner struct {
	server.Pruner
	m *Monitor
}

func (c countedPruner) Prune(ctx context.Context, refs []server.EvidenceRef, entry func([]server.EvidenceRef) audit.Event) ([]server.EvidenceRef, error) {
	gone, err := c.Pruner.Prune(ctx, refs, entry)
	if len(gone) > 0 {
		c.m.events.WithLabelValues(string(audit.KindPrune)).Inc()
	}
	return gone, err
}

// Tokens returns t, timed. The result of the last attempt to mint is a check
// of the service's health.
func (m *Monitor) Tokens(t server.TokenMinter) server.TokenMinter { return timedTokens{t, m} }

type timedTokens struct {
	server.TokenMinter
	m *Monitor
}

func (t timedTokens) took(operation string, began time.Time, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	t.m.tokens.WithLabelValues(operation, result).Observe(time.Since(began).Seconds())
}

func (t timedTokens) Mint(ctx context.Context, nodeName string) (*server.Token, error) {
	began := time.Now()
	v, err := t.TokenMinter.Mint(ctx, nodeName)
	t.took("mint", began, err)
	t.m.mint.Store(&err)
	return v, err
}

func (t timedTokens) Revoke(ctx context.Context, id string) error {
	began := time.Now()
	err := t.TokenMinter.Revoke(ctx, id)
	t.took("revoke", began, err)
	return err
}
