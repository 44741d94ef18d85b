package pgstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
)

var _ server.Archive = (*Store)(nil)

// Dump implements server.Archive. It reads one snapshot; the server keeps the
// old versions of rows until it ends.
func (s *Store) Dump(ctx context.Context, each func(server.Record) error) error {
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// It takes as long as whoever keeps the records.
		if _, err := tx.Exec(ctx, "SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true)"); err != nil {
			return err
		}
		for _, part := range []struct {
			what, query string
			scan        func(pgx.Rows) (server.Record, error)
		}{
			// What is unique is unique by the columns: a record that says something
			// else could make a backup that cannot be restored.
			{"machines", selectMachine + " FROM sealift.machine ORDER BY id", func(r pgx.Rows) (rec server.Record, err error) {
				m, row, err := scanMachine(r)
				if err == nil && (row.NodeName != m.NodeName || row.DiskGUID != m.DiskGUID) {
					err = fmt.Errorf("machine %s: altered, its record is of node %q, disk %q, its row of node %q, disk %q", m.ID, m.NodeName, m.DiskGUID, row.NodeName, row.DiskGUID)
				}
				rec.Machine = m
				return rec, err
			}},
			{"releases", "SELECT body, id, machine, generation, reset_count, restart_count FROM sealift.release ORDER BY id", func(r pgx.Rows) (rec server.Record, err error) {
				var body, id, machine []byte
				var generation, reset, restart int64
				if err := r.Scan(&body, &id, &machine, &generation, &reset, &restart); err != nil {
					return rec, err
				}
				rec.Release, err = server.DecodeRelease(string(id), body)
				if rel := rec.Release; err == nil && (!bytes.Equal(machine, rel.Machine[:]) || rel.Generation != generation || int64(rel.ResetCount) != reset || int64(rel.RestartCount) != restart) {
					err = fmt.Errorf("release %q: altered, its record is not of the boot that its row names", id)
				}
				return rec, err
			}},
			{"documents", "SELECT kind, name, revision, body FROM sealift.document ORDER BY kind, name", func(r pgx.Rows) (rec server.Record, err error) {
				var kind, name []byte
				d := new(server.Document)
				err = r.Scan(&kind, &name, &d.Revision, (*[]byte)(&d.Body))
				d.Kind, d.Name = string(kind), string(name)
				rec.Document = d
				return rec, err
			}},
			{"evidence", "", nil},
			{"the audit log", "SELECT line FROM sealift.audit ORDER BY seq", func(r pgx.Rows) (rec server.Record, err error) {
				var line []byte
				if err := r.Scan(&line); err != nil {
					return rec, err
				}
				e, err := audit.ParseLine(line)
				rec.Entry = &e
				return rec, err
			}},
		} {
			var err error
			if part.scan == nil {
				err = dumpEvidence(ctx, tx, each)
			} else {
				err = dumpPart(ctx, tx, part.query, part.scan, each)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", part.what, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("dump %s: %w", s.name, err)
	}
	return nil
}

func dumpPart(ctx context.Context, tx pgx.Tx, query string, scan func(pgx.Rows) (server.Record, error), each func(server.Record) error) error {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		rec, err := scan(rows)
		if err != nil {
			return err
		}
		if err := each(rec); err != nil {
			return err
		}
	}
	return rows.Err()
}

// loadBatch is how many records Load sends at a time.
const loadBatch = 256

// Load implements server.Archive. It is one transaction, under the lock of the
// audit log's head. The store is another one then: replicas that ran on what was
// there before do not write to it.
func (s *Store) Load(ctx context.Context, records iter.Seq2[server.Record, error]) error {
	var name string
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var used bool
		_, err := tx.Exec(ctx, "SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true)")
		if err == nil {
			_, err = tx.Exec(ctx, "SELECT seq FROM sealift.head FOR UPDATE")
		}
		if err == nil {
			err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM sealift.machine) OR EXISTS (SELECT 1 FROM sealift.release) OR
				EXISTS (SELECT 1 FROM sealift.document) OR EXISTS (SELECT 1 FROM sealift.evidence) OR EXISTS (SELECT 1 FROM sealift.audit)`).Scan(&used)
		}
		if err != nil {
			return fmt.Errorf("load %s: %w", s.name, err)
		}
		if used {
			return fmt.Errorf("%s is not empty: %w", s.name, server.ErrConflict)
		}
		var chain audit.Verifier
		known := parts.NewSet()
		b := new(pgx.Batch)
		send := func() error {
			err := tx.SendBatch(ctx, b).Close()
			b = new(pgx.Batch)
			var pg *pgconn.PgError
			if errors.As(err, &pg) && pg.Code == "23505" { // unique_violation
				return fmt.Errorf("load %s: two records that cannot be together (%s): %w", s.name, pg.ConstraintName, server.ErrConflict)
			}
			if err != nil {
				return fmt.Errorf("load %s: %w", s.name, err)
			}
			return nil
		}
		for rec, err := range records {
			if err == nil {
				err = queueLoad(b, rec, &chain, known)
			}
			if err == nil && b.Len() >= loadBatch {
				err = send()
			}
			if err != nil {
				return err
			}
		}
		if err := send(); err != nil {
			return err
		}
		head := chain.Head()
		if err := tx.QueryRow(ctx, "UPDATE sealift.head SET seq = $1, hash = $2, store = gen_random_uuid() RETURNING store::text", head.Seq, head.Hash[:]).Scan(&name); err != nil {
			return fmt.Errorf("load %s: %w", s.name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.store.Store(&name)
	return nil
}

// queueLoad adds the statements that write one record. known are the parts of
// evidence that were written.
func queueLoad(b *pgx.Batch, rec server.Record, chain *audit.Verifier, known *parts.Set) error {
	switch {
	case rec.Machine != nil:
		m := rec.Machine
		if m.Revision < 1 {
			return fmt.Errorf("load machine %s: revision is %d", m.ID, m.Revision)
		}
		body, err := json.Marshal(m)
		if err != nil {
			return fmt.Errorf("load machine %s: %w", m.ID, err)
		}
		var disk []byte
		if m.DiskGUID != "" {
			disk = []byte(m.DiskGUID)
		}
		b.Queue("INSERT INTO sealift.machine (id, revision, state, node_name, disk_guid, due, body) VALUES ($1, $2, $3, $4, $5, $6, $7)",
			m.ID[:], m.Revision, []byte(m.State), []byte(m.NodeName), disk, dueOf(m), body)
	case rec.Release != nil:
		r := rec.Release
		body, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("load release %s: %w", r.ID, err)
		}
		b.Queue("INSERT INTO sealift.release (id, machine, generation, reset_count, restart_count, confirmed, body) VALUES ($1, $2, $3, $4, $5, $6, $7)",
			[]byte(r.ID), r.Machine[:], r.Generation, int64(r.ResetCount), int64(r.RestartCount), r.Outcome != "", body)
	case rec.Document != nil:
		d := rec.Document
		b.Queue("INSERT INTO sealift.document (kind, name, revision, body) VALUES ($1, $2, $3, $4)", []byte(d.Kind), []byte(d.Name), d.Revision, []byte(d.Body))
	case rec.Evidence != nil:
		st, cut := evidenceStatement(rec.Evidence)
		for _, p := range cut {
			if !known.Has(p.Digest) {
				b.Queue(putPart, p.Digest[:], p.Body)
				known.Add(p.Digest)
			}
		}
		known.Keep()
		b.Queue(st.query, st.args...)
	case rec.Pruned != nil:
		p := rec.Pruned
		b.Queue("INSERT INTO sealift.evidence (digest, machine, received, pruned, body) VALUES ($1, $2, $3, $4, '')",
			p.Digest[:], p.Machine[:], p.Received.UnixNano(), p.Entry)
	case rec.Entry != nil:
		if err := chain.Add(*rec.Entry); err != nil {
			return err
		}
		line, err := audit.AppendLine(nil, *rec.Entry)
		if err != nil {
			return err
		}
		b.Queue("INSERT INTO sealift.audit (seq, line) VALUES ($1, $2)", rec.Entry.Seq, line[:len(line)-1])
	default:
		return errors.New("load: a record that is nothing")
	}
	return nil
}
