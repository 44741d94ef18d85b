package pgstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/image/manifest"
)

var _ server.Pruner = (*Store)(nil)

// Usage implements server.Pruner.
func (s *Store) Usage(ctx context.Context) (*api.StoreStatus, error) {
	u := &api.StoreStatus{Schema: len(migrations), FreeBytes: -1}
	var oldest, newest *int64
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// Counting takes as long as there are rows.
		if _, err := tx.Exec(ctx, "SELECT set_config('statement_timeout', '0', true)"); err != nil {
			return err
		}
		for _, q := range []struct {
			query string
			into  any
		}{
			{"SELECT 'PostgreSQL ' || current_setting('server_version')", &u.Store},
			{"SELECT pg_database_size(current_database())", &u.Bytes},
			{"SELECT count(*) FROM sealift.machine", &u.Machines.Count},
			{"SELECT count(*) FROM sealift.release", &u.Releases.Count},
			{"SELECT count(*) FROM sealift.release WHERE NOT confirmed", &u.OpenReleases},
			{"SELECT count(*) FROM sealift.document", &u.Documents.Count},
			{"SELECT count(*) FROM sealift.evidence WHERE pruned IS NULL", &u.Evidence.Count},
			{"SELECT count(*) FROM sealift.evidence WHERE pruned IS NOT NULL", &u.Pruned},
			{"SELECT count(*) FROM sealift.evidence WHERE received IS NULL", &u.Unindexed},
			{"SELECT count(*) FROM sealift.evidence_part", &u.Parts.Count},
			{"SELECT seq FROM sealift.head", &u.Audit.Count},
			{"SELECT min(received) FROM sealift.evidence WHERE pruned IS NULL AND received >= 0", &oldest},
			{"SELECT max(received) FROM sealift.evidence WHERE pruned IS NULL AND received >= 0", &newest},
		} {
			if err := tx.QueryRow(ctx, q.query).Scan(q.into); err != nil {
				return err
			}
		}
		for table, r := range map[string]*api.StoreRecords{
			"machine": &u.Machines, "release": &u.Releases, "document": &u.Documents, "evidence": &u.Evidence, "evidence_part": &u.Parts, "audit": &u.Audit,
		} {
			if err := tx.QueryRow(ctx, "SELECT pg_total_relation_size(('sealift.' || $1)::regclass)", table).Scan(&r.Bytes); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("measure %s: %w", s.name, err)
	}
	if oldest != nil && newest != nil {
		u.OldestEvidence, u.NewestEvidence = time.Unix(0, *oldest).UTC(), time.Unix(0, *newest).UTC()
	}
	return u, nil
}

// IndexEvidence implements server.Pruner.
func (s *Store) IndexEvidence(ctx context.Context, limit int) (int, error) {
	type row struct{ digest, body []byte }
	found, err := rows(ctx, s, "SELECT digest, body FROM sealift.evidence WHERE received IS NULL LIMIT $1", []any{limit}, func(r pgx.CollectableRow) (one row, err error) {
		return one, r.Scan(&one.digest, &one.body)
	})
	if err != nil {
		return 0, fmt.Errorf("look for evidence of an earlier version: %w", err)
	}
	if len(found) == 0 {
		return 0, nil
	}
	p := &pending{ctx: ctx}
	for _, r := range found {
		var machine []byte
		received := int64(unknown)
		// What comes first is in the row itself, and not in a part. A row that
		// cannot be read is Evidence's to tell of.
		if body, err := parts.Join(r.body, func([]byte) ([]byte, error) { return nil, nil }); err == nil {
			if id, at, ok := server.EvidenceAbout(body); ok {
				machine, received = id[:], at.UnixNano()
			}
		}
		p.statements = append(p.statements, statement{fmt.Sprintf("note when evidence %x was received", r.digest),
			"UPDATE sealift.evidence SET machine = $2, received = $3 WHERE digest = $1 AND received IS NULL", []any{r.digest, machine, received}, nil})
	}
	return len(found), s.submit(ctx, p)
}

// needs sets what needs each piece of evidence.
func needs(ctx context.Context, from asker, refs []server.EvidenceRef) error {
	var ids [][]byte
	machines, open := map[attest.MachineID]*server.Machine{}, map[attest.MachineID][]*server.Release{}
	for i := range refs {
		if id := refs[i].Machine; machines[id] == nil {
			machines[id] = new(server.Machine)
			ids = append(ids, id[:])
		}
	}
	// What a machine needs that has a record which cannot be read is not known: all.
	all := func(id attest.MachineID) {
		machines[id] = &server.Machine{Machine: api.Machine{ID: id, State: attest.StateQuarantined}}
	}
	found, err := from.Query(ctx, selectMachine+" FROM sealift.machine WHERE id = ANY($1)", ids)
	if err != nil {
		return err
	}
	if _, err := pgx.CollectRows(found, func(r pgx.CollectableRow) (_ struct{}, err error) {
		m, known, err := scanMachine(r)
		switch {
		case errors.As(err, new(*server.DamagedError)):
			all(known.ID)
			return struct{}{}, nil
		case err == nil:
			machines[m.ID] = m
		}
		return struct{}{}, err
	}); err != nil {
		return err
	}
	if found, err = from.Query(ctx, "SELECT machine, body FROM sealift.release WHERE NOT confirmed AND machine = ANY($1)", ids); err != nil {
		return err
	}
	var id, body []byte
	if _, err := pgx.ForEachRow(found, []any{&id, &body}, func() error {
		r := new(server.Release)
		if json.Unmarshal(body, r) != nil {
			all(attest.MachineID(id))
			return nil
		}
		open[r.Machine] = append(open[r.Machine], r)
		return nil
	}); err != nil {
		return err
	}
	for i := range refs {
		m := machines[refs[i].Machine]
		if m.ID.IsZero() {
			m = nil // it is not on record
		}
		refs[i].Needed = server.Needed(&refs[i], m, open[refs[i].Machine])
	}
	return nil
}

// OldEvidence implements server.Pruner.
func (s *Store) OldEvidence(ctx context.Context, before time.Time, after *server.EvidenceRef, limit int) ([]server.EvidenceRef, error) {
	received, digest := int64(0), []byte{}
	if after != nil {
		received, digest = after.Received.UnixNano(), after.Digest[:]
	}
	refs, err := rows(ctx, s, `SELECT digest, machine, received, pg_column_size(body) FROM sealift.evidence
		WHERE pruned IS NULL AND received >= 0 AND received < $1 AND (received, digest) > ($2, $3) ORDER BY received, digest LIMIT $4`,
		[]any{before.UnixNano(), received, digest, limit}, func(r pgx.CollectableRow) (ref server.EvidenceRef, err error) {
			var digest, machine []byte
			var received int64
			err = r.Scan(&digest, &machine, &received, &ref.Size)
			copy(ref.Digest[:], digest)
			copy(ref.Machine[:], machine)
			ref.Received = time.Unix(0, received).UTC()
			return ref, err
		})
	if err == nil {
		var cancel context.CancelFunc
		if ctx, cancel, err = bounded(ctx); err == nil {
			defer cancel()
			err = needs(ctx, s.pool, refs)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look for old evidence: %w", err)
	}
	return refs, nil
}

// Prune implements server.Pruner.
func (s *Store) Prune(ctx context.Context, refs []server.EvidenceRef, entry func([]server.EvidenceRef) audit.Event) (gone []server.EvidenceRef, err error) {
	err = s.submit(ctx, &pending{ctx: ctx, do: func(ctx context.Context, tx pgx.Tx, head audit.Head) ([]audit.Event, error) {
		gone = nil
		now := append([]server.EvidenceRef{}, refs...)
		if err := needs(ctx, tx, now); err != nil {
			return nil, fmt.Errorf("prune: %w", err)
		}
		var digests [][]byte
		for _, ref := range now {
			if ref.Needed == "" {
				digests = append(digests, append([]byte{}, ref.Digest[:]...))
			}
		}
		rows, err := tx.Query(ctx, "UPDATE sealift.evidence SET body = '', pruned = $2 WHERE digest = ANY($1) AND pruned IS NULL RETURNING digest", digests, head.Seq+1)
		if err != nil {
			return nil, fmt.Errorf("prune: %w", err)
		}
		removed := map[manifest.SHA256]bool{}
		var digest []byte
		if _, err := pgx.ForEachRow(rows, []any{&digest}, func() error { removed[manifest.SHA256(digest)] = true; return nil }); err != nil {
			return nil, fmt.Errorf("prune: %w", err)
		}
		for _, ref := range now {
			if removed[ref.Digest] {
				gone = append(gone, ref)
			}
		}
		if len(gone) == 0 {
			return nil, nil
		}
		return []audit.Event{entry(gone)}, nil
	}})
	if err != nil {
		return nil, err
	}
	return gone, nil
}

// removeParts removes those of the parts that are of an epoch before that one still:
// a row that was written since they were looked at may refer to them. It holds the
// lock of the head.
func (s *Store) removeParts(ctx context.Context, digests [][]byte, before int64) (n int, bytes int64, err error) {
	if len(digests) == 0 {
		return 0, 0, nil
	}
	err = s.submit(ctx, &pending{ctx: ctx, do: func(ctx context.Context, tx pgx.Tx, _ audit.Head) ([]audit.Event, error) {
		return nil, tx.QueryRow(ctx, `WITH gone AS (DELETE FROM sealift.evidence_part WHERE digest = ANY($1) AND epoch < $2 RETURNING pg_column_size(body) AS size)
			SELECT count(*), coalesce(sum(size), 0) FROM gone`, digests, before).Scan(&n, &bytes)
	}})
	return n, bytes, err
}

// compactPage is how many rows Compact reads, and removes, at a time.
const compactPage = 256

// Compact implements server.Pruner. What is in one piece is cut first. Then it takes
// the epochs before that of the oldest evidence that was received since then: what is
// left of them is what something needs, which is little, and it is read to see what
// parts it refers to. Rows that are written from now on are of the present epoch, and
// so are, or become, the parts that they refer to.
func (s *Store) Compact(ctx context.Context, since time.Time, step func(int, int64) error) error {
	if err := s.recut(ctx, step); err != nil {
		return err
	}
	var before int64
	err := s.submit(ctx, &pending{ctx: ctx, do: func(ctx context.Context, tx pgx.Tx, _ audit.Head) ([]audit.Event, error) {
		return nil, tx.QueryRow(ctx, `UPDATE sealift.head SET epoch = epoch + 1 RETURNING coalesce((SELECT epoch FROM sealift.evidence
			WHERE pruned IS NULL AND received >= 0 AND received >= $1 ORDER BY received, digest LIMIT 1), epoch)`, since.UnixNano()).Scan(&before)
	}})
	if err != nil {
		return fmt.Errorf("begin another epoch: %w", err)
	}
	if err := step(0, 0); err != nil {
		return err
	}
	type at struct {
		epoch  int64
		digest []byte
		size   int64
	}
	used := map[manifest.SHA256]struct{}{}
	for last := (at{-1, []byte{}, 0}); ; {
		page, err := rows(ctx, s, `SELECT epoch, digest, body FROM sealift.evidence
			WHERE pruned IS NULL AND epoch < $1 AND (epoch, digest) > ($2, $3) ORDER BY epoch, digest LIMIT $4`,
			[]any{before, last.epoch, last.digest, compactPage}, func(r pgx.CollectableRow) (a at, err error) {
				var row []byte
				if err := r.Scan(&a.epoch, &a.digest, &row); err != nil {
					return a, err
				}
				return a, parts.Refs(row, func(d []byte) { used[manifest.SHA256(d)] = struct{}{} })
			})
		if err != nil {
			// A row that cannot be read may refer to anything.
			return fmt.Errorf("look for parts in use: %w", err)
		}
		if len(page) == 0 {
			break
		}
		last = page[len(page)-1]
		if err := step(0, 0); err != nil {
			return err
		}
	}
	for last := (at{-1, []byte{}, 0}); ; {
		page, err := rows(ctx, s, `SELECT epoch, digest, pg_column_size(body) FROM sealift.evidence_part
			WHERE epoch < $1 AND (epoch, digest) > ($2, $3) ORDER BY epoch, digest LIMIT $4`,
			[]any{before, last.epoch, last.digest, compactPage}, func(r pgx.CollectableRow) (a at, err error) {
				return a, r.Scan(&a.epoch, &a.digest, &a.size)
			})
		if err != nil {
			return fmt.Errorf("look for parts not in use: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		last = page[len(page)-1]
		var digests [][]byte
		for _, p := range page {
			if _, ok := used[manifest.SHA256(p.digest)]; !ok {
				digests = append(digests, p.digest)
			}
		}
		n, bytes, err := s.removeParts(ctx, digests, before)
		if err != nil {
			return fmt.Errorf("remove parts that are not in use: %w", err)
		}
		if err := step(n, bytes); err != nil {
			return err
		}
	}
}
