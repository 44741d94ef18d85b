package sqlstore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/image/manifest"
)

// A row of evidence holds what parts.Cut made of it. It also says, for Prune,
// whose it is and when it was received, Unix nanoseconds: unknown if the evidence
// does not say, and NULL as long as nobody looked. pruned is the number of the
// audit entry that records that the row's evidence was removed.
//
// The epoch of the database is a number that Compact counts up. A row has the
// epoch in which it was written, and a part the last in which a row was written
// that refers to it: so no row refers to a part of an epoch before its own.
// Whoever writes reads the epoch in its transaction, and Compact removes only
// parts of epochs before the present one.
const unknown = -1

// evidence is evidence on its way into the database.
type evidence struct {
	digest   [sha256.Size]byte
	machine  []byte // NULL if not known
	received int64
	row      []byte
	parts    []parts.Part
}

func newEvidence(body []byte) *evidence {
	e := &evidence{digest: sha256.Sum256(body), received: unknown}
	e.row, e.parts = parts.Cut(body)
	if machine, received, ok := server.EvidenceAbout(body); ok {
		e.machine, e.received = machine[:], received.UnixNano()
	}
	return e
}

// epoch returns the epoch of the database. It is read once a transaction.
func (t *tx) epoch(ctx context.Context) (int64, error) {
	if !t.inEpoch {
		var epoch int64
		if err := t.get(ctx, &epoch, "SELECT epoch FROM epoch"); err != nil {
			return 0, fmt.Errorf("read the epoch: %w", err)
		}
		t.parts.Begin(epoch)
		t.inEpoch = true
	}
	return t.parts.Epoch(), nil
}

// putEvidence stores evidence. That it is there is no error; if it was pruned,
// it is there again.
func (t *tx) putEvidence(ctx context.Context, e *evidence) error {
	epoch, err := t.epoch(ctx)
	if err != nil {
		return err
	}
	for _, p := range e.parts {
		if t.parts.Has(p.Digest) {
			continue
		}
		if _, err := t.exec(ctx, `INSERT INTO evidence_part (digest, body, epoch) VALUES (?, ?, ?)
			ON CONFLICT DO UPDATE SET epoch = excluded.epoch WHERE epoch < excluded.epoch`, p.Digest[:], p.Body, epoch); err != nil {
			return fmt.Errorf("store evidence %x: %w", e.digest, err)
		}
		t.parts.Add(p.Digest)
	}
	if _, err := t.exec(ctx, `INSERT INTO evidence (digest, machine, received, epoch, body) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET body = excluded.body, epoch = excluded.epoch, pruned = NULL WHERE pruned IS NOT NULL`,
		e.digest[:], e.machine, e.received, epoch, e.row); err != nil {
		return fmt.Errorf("store evidence %x: %w", e.digest, err)
	}
	return nil
}

// Evidence implements server.Store.
func (s *Store) Evidence(ctx context.Context, digest manifest.SHA256) ([]byte, error) {
	body, err := s.evidence(ctx, digest)
	if errors.Is(err, errNoPart) {
		// It may have been pruned between two reads.
		body, err = s.evidence(ctx, digest)
	}
	if err != nil && !errors.Is(err, server.ErrNotFound) {
		return nil, fmt.Errorf("read evidence %s: %w", digest, err)
	}
	return body, err
}

func (s *Store) evidence(ctx context.Context, digest manifest.SHA256) ([]byte, error) {
	var row, machine []byte
	var received, pruned sql.NullInt64
	err := s.get(ctx, "SELECT body, machine, received, pruned FROM evidence WHERE digest = ?", []any{digest[:]}, &row, &machine, &received, &pruned)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("evidence %s: %w", digest, server.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if pruned.Valid {
		return nil, &server.PrunedError{PrunedEvidence: tombstone(digest[:], machine, received.Int64, pruned.Int64)}
	}
	body, err := parts.Join(row, s.part(ctx))
	if err != nil {
		return nil, err
	}
	if got := manifest.SHA256(sha256.Sum256(body)); got != digest {
		return nil, fmt.Errorf("altered, its digest is %s", got)
	}
	return body, nil
}

// tombstone is what a row says of evidence that was pruned.
func tombstone(digest, machine []byte, received, pruned int64) server.PrunedEvidence {
	p := server.PrunedEvidence{Received: time.Unix(0, received).UTC(), Entry: pruned}
	copy(p.Digest[:], digest)
	p.Machine = machineID(machine)
	return p
}

func machineID(b []byte) (id attest.MachineID) {
	copy(id[:], b)
	return id
}

// errNoPart: evidence refers to a part that is not there.
var errNoPart = errors.New("a part of it is not there")

// part returns a function that reads parts of evidence.
func (s *Store) part(ctx context.Context) func(digest []byte) ([]byte, error) {
	return func(digest []byte) (body []byte, err error) {
		err = s.get(ctx, "SELECT body FROM evidence_part WHERE digest = ?", []any{digest}, &body)
		if errors.Is(err, sql.ErrNoRows) {
			err = errNoPart
		}
		return body, err
	}
}
