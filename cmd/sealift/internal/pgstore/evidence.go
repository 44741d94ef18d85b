package pgstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/image/manifest"
)

// A row of evidence holds what parts.Cut made of it. It also says, for Prune,
// whose it is and when it was received, Unix nanoseconds: unknown if the evidence
// does not say, and NULL as long as nobody looked. pruned is the number of the
// audit entry that records that the row's evidence was removed.
//
// The epoch, beside the head of the audit log, is a number that Compact counts
// up. A row has the epoch in which it was written, and a part the last in which a
// row was written that refers to it: so no row refers to a part of an epoch before
// its own. Whoever writes has the head locked, and leaves out only parts that it
// knows to be of the epoch that it then reads; Compact removes only parts of
// epochs before the present one.
const unknown = -1

// putPart stores a part, or makes one that is there a part of this epoch.
const putPart = `INSERT INTO sealift.evidence_part AS old (digest, body, epoch) VALUES ($1, $2, (SELECT epoch FROM sealift.head))
	ON CONFLICT (digest) DO UPDATE SET epoch = excluded.epoch WHERE old.epoch < excluded.epoch`

// evidenceStatement writes evidence whose parts are there. That it is there is
// no error; if it was pruned, it is there again.
func evidenceStatement(body []byte) (statement, []parts.Part) {
	digest := sha256.Sum256(body)
	row, cut := parts.Cut(body)
	var machine []byte
	received := int64(unknown)
	if id, at, ok := server.EvidenceAbout(body); ok {
		machine, received = id[:], at.UnixNano()
	}
	return statement{fmt.Sprintf("store evidence %x", digest), `INSERT INTO sealift.evidence AS old (digest, machine, received, epoch, body)
		VALUES ($1, $2, $3, (SELECT epoch FROM sealift.head), $4)
		ON CONFLICT (digest) DO UPDATE SET body = excluded.body, epoch = excluded.epoch, pruned = NULL WHERE old.pruned IS NOT NULL`,
		[]any{digest[:], machine, received, row}, nil}, cut
}

// dueOf is the column due.
func dueOf(m *server.Machine) *int64 {
	at := m.Due()
	if at.IsZero() {
		return nil
	}
	ns := at.UnixNano()
	return &ns
}

// errNoPart: evidence refers to a part that is not there.
var errNoPart = errors.New("a part of it is not there")

// asker asks a query: a pool, or a transaction.
type asker interface {
	Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
}

// whole puts rows of evidence together, with one query for the parts of all.
func whole(ctx context.Context, from asker, rows [][]byte) ([][]byte, error) {
	var want [][]byte
	all := map[manifest.SHA256][]byte{}
	for _, row := range rows {
		if err := parts.Refs(row, func(d []byte) {
			if _, known := all[manifest.SHA256(d)]; !known {
				all[manifest.SHA256(d)] = nil
				want = append(want, d)
			}
		}); err != nil {
			return nil, err
		}
	}
	if len(want) > 0 {
		found, err := from.Query(ctx, "SELECT digest, body FROM sealift.evidence_part WHERE digest = ANY($1)", want)
		if err != nil {
			return nil, err
		}
		var digest []byte
		var body []byte
		if _, err := pgx.ForEachRow(found, []any{&digest, &body}, func() error {
			all[manifest.SHA256(digest)] = append([]byte{}, body...)
			return nil
		}); err != nil {
			return nil, err
		}
	}
	out := make([][]byte, 0, len(rows))
	for _, row := range rows {
		body, err := parts.Join(row, func(d []byte) ([]byte, error) {
			if p := all[manifest.SHA256(d)]; p != nil {
				return p, nil
			}
			return nil, errNoPart
		})
		if err != nil {
			return nil, err
		}
		out = append(out, body)
	}
	return out, nil
}

// Evidence implements server.Store.
func (s *Store) Evidence(ctx context.Context, digest manifest.SHA256) ([]byte, error) {
	body, err := s.evidence(ctx, digest)
	if errors.Is(err, errNoPart) {
		// It may have been pruned between two reads.
		body, err = s.evidence(ctx, digest)
	}
	var gone *server.PrunedError
	if err != nil && !errors.As(err, &gone) {
		return nil, fmt.Errorf("read evidence %s: %w", digest, err)
	}
	return body, err
}

func (s *Store) evidence(ctx context.Context, digest manifest.SHA256) ([]byte, error) {
	var row, machine []byte
	var received, pruned *int64
	err := s.row(ctx, "SELECT body, machine, received, pruned FROM sealift.evidence WHERE digest = $1", []any{digest[:]}, &row, &machine, &received, &pruned)
	if err != nil {
		return nil, err
	}
	if pruned != nil {
		return nil, &server.PrunedError{PrunedEvidence: tombstone(digest[:], machine, received, *pruned)}
	}
	ctx, cancel, err := bounded(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	bodies, err := whole(ctx, s.pool, [][]byte{row})
	if err != nil {
		return nil, err
	}
	if got := manifest.SHA256(sha256.Sum256(bodies[0])); got != digest {
		return nil, fmt.Errorf("altered, its digest is %s", got)
	}
	return bodies[0], nil
}

// tombstone is what a row says of evidence that was pruned.
func tombstone(digest, machine []byte, received *int64, pruned int64) server.PrunedEvidence {
	p := server.PrunedEvidence{Entry: pruned}
	copy(p.Digest[:], digest)
	copy(p.Machine[:], machine)
	if received != nil {
		p.Received = time.Unix(0, *received).UTC()
	}
	return p
}

// dumpPage is how many pieces of evidence are put together at a time.
const dumpPage = 64

// dumpEvidence gives each all evidence of a snapshot.
func dumpEvidence(ctx context.Context, tx pgx.Tx, each func(server.Record) error) error {
	for after := []byte{}; ; {
		var digests, bodies [][]byte
		var gone []server.PrunedEvidence
		rows, err := tx.Query(ctx, "SELECT digest, body, machine, received, pruned FROM sealift.evidence WHERE digest > $1 ORDER BY digest LIMIT $2", after, dumpPage)
		if err != nil {
			return err
		}
		n := 0
		for rows.Next() {
			var digest, body, machine []byte
			var received, pruned *int64
			if err := rows.Scan(&digest, &body, &machine, &received, &pruned); err != nil {
				rows.Close()
				return err
			}
			n, after = n+1, digest
			if pruned != nil {
				gone = append(gone, tombstone(digest, machine, received, *pruned))
				continue
			}
			digests, bodies = append(digests, digest), append(bodies, body)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		joined, err := whole(ctx, tx, bodies)
		if errors.Is(err, errNoPart) || errors.Is(err, parts.ErrDamaged) {
			// One of them: each by itself.
			joined = nil
			for _, row := range bodies {
				one, err := whole(ctx, tx, [][]byte{row})
				switch {
				case errors.Is(err, errNoPart) || errors.Is(err, parts.ErrDamaged):
					one = [][]byte{nil}
				case err != nil:
					return err
				}
				joined = append(joined, one[0])
			}
		} else if err != nil {
			return err
		}
		for i, body := range joined {
			rec := server.Record{Evidence: body}
			// A backup is signed: what was altered must not get into it.
			if damaged := manifest.SHA256(digests[i]); sha256.Sum256(body) != damaged {
				rec = server.Record{Damaged: &damaged}
			}
			if err := each(rec); err != nil {
				return err
			}
		}
		for _, p := range gone {
			if err := each(server.Record{Pruned: &p}); err != nil {
				return err
			}
		}
		if n < dumpPage {
			return nil
		}
	}
}
