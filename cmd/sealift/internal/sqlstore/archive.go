package sqlstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/image/manifest"
)

var _ server.Archive = (*Store)(nil)

// Dump implements server.Archive. It reads one snapshot. Until it ends the
// write-ahead log cannot be used again from its start and grows with what
// others write.
func (s *Store) Dump(ctx context.Context, each func(server.Record) error) (err error) {
	conn, err := s.read.Conn(ctx)
	if err != nil {
		return fmt.Errorf("dump database %s: %w", s.path, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	// Deferred: a read transaction, whose snapshot the first read takes.
	if _, err := conn.ExecContext(ctx, "BEGIN DEFERRED"); err != nil {
		return fmt.Errorf("dump database %s: %w", s.path, err)
	}
	defer func() {
		_, endErr := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		err = errors.Join(err, endErr)
	}()
	part, err := conn.PrepareContext(ctx, "SELECT body FROM evidence_part WHERE digest = ?")
	if err != nil {
		return fmt.Errorf("dump database %s: %w", s.path, err)
	}
	defer func() { err = errors.Join(err, part.Close()) }()
	for _, table := range []struct {
		what, query string
		scan        func(*sql.Rows) (server.Record, error)
	}{
		// What is unique is unique by the columns: a record that says something else
		// could make a backup that cannot be restored.
		{"machines", selectMachine + " FROM machine ORDER BY id", func(r *sql.Rows) (rec server.Record, err error) {
			m, row, err := scanMachine(r)
			if err == nil && (row.NodeName != m.NodeName || row.DiskGUID != m.DiskGUID) {
				err = fmt.Errorf("machine %s: altered, its record is of node %q, disk %q, its row of node %q, disk %q", m.ID, m.NodeName, m.DiskGUID, row.NodeName, row.DiskGUID)
			}
			rec.Machine = m
			return rec, err
		}},
		{"releases", "SELECT body, id, machine, generation, reset_count, restart_count FROM release ORDER BY id", func(r *sql.Rows) (rec server.Record, err error) {
			var row server.Release
			var body, machine []byte
			if err := r.Scan(&body, &row.ID, &machine, &row.Generation, &row.ResetCount, &row.RestartCount); err != nil {
				return rec, err
			}
			rec.Release, err = server.DecodeRelease(row.ID, body)
			if rel := rec.Release; err == nil && (!bytes.Equal(machine, rel.Machine[:]) || rel.Generation != row.Generation || rel.ResetCount != row.ResetCount || rel.RestartCount != row.RestartCount) {
				err = fmt.Errorf("release %s: altered, its record is not of the boot that its row names", row.ID)
			}
			return rec, err
		}},
		{"documents", "SELECT kind, name, revision, body FROM document ORDER BY kind, name", func(r *sql.Rows) (rec server.Record, err error) {
			d := new(server.Document)
			rec.Document = d
			return rec, r.Scan(&d.Kind, &d.Name, &d.Revision, (*[]byte)(&d.Body))
		}},
		{"evidence", "SELECT digest, machine, received, pruned, body FROM evidence", func(r *sql.Rows) (rec server.Record, err error) {
			var digest, machine, row []byte
			var received, pruned sql.NullInt64
			if err := r.Scan(&digest, &machine, &received, &pruned, &row); err != nil {
				return rec, err
			}
			if pruned.Valid {
				gone := tombstone(digest, machine, received.Int64, pruned.Int64)
				rec.Pruned = &gone
				return rec, nil
			}
			// In the same snapshot: others may remove parts meanwhile.
			rec.Evidence, err = parts.Join(row, func(digest []byte) (body []byte, err error) {
				return body, part.QueryRowContext(ctx, digest).Scan(&body)
			})
			switch got := sha256.Sum256(rec.Evidence); {
			case errors.Is(err, sql.ErrNoRows), errors.Is(err, parts.ErrDamaged), err == nil && !bytes.Equal(got[:], digest):
				// A backup is signed: what was altered must not get into it.
				damaged := manifest.SHA256(digest)
				return server.Record{Damaged: &damaged}, nil
			case err != nil:
				return rec, fmt.Errorf("evidence %x: %w", digest, err)
			}
			return rec, nil
		}},
		{"the audit log", "SELECT line FROM audit ORDER BY seq", func(r *sql.Rows) (rec server.Record, err error) {
			var line []byte
			if err := r.Scan(&line); err != nil {
				return rec, err
			}
			e, err := audit.ParseLine(line)
			rec.Entry = &e
			return rec, err
		}},
	} {
		if err := dumpPart(ctx, conn, table.query, table.scan, each); err != nil {
			return fmt.Errorf("dump database %s: %s: %w", s.path, table.what, err)
		}
	}
	return nil
}

func dumpPart(ctx context.Context, conn *sql.Conn, query string, scan func(*sql.Rows) (server.Record, error), each func(server.Record) error) (err error) {
	rows, err := conn.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
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

// Load implements server.Archive. It is one transaction.
func (s *Store) Load(ctx context.Context, records iter.Seq2[server.Record, error]) error {
	return s.submit(ctx, false, func(ctx context.Context, tx *tx) error {
		var used bool
		if err := tx.get(ctx, &used, `SELECT EXISTS (SELECT 1 FROM machine) OR EXISTS (SELECT 1 FROM release) OR
			EXISTS (SELECT 1 FROM document) OR EXISTS (SELECT 1 FROM evidence) OR EXISTS (SELECT 1 FROM audit)`); err != nil {
			return err
		}
		if used {
			return fmt.Errorf("database %s is not empty: %w", s.path, server.ErrConflict)
		}
		var chain audit.Verifier
		for rec, err := range records {
			if err == nil {
				err = load(ctx, tx, rec, &chain)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// load writes one record into tables that have none with its names.
func load(ctx context.Context, tx *tx, rec server.Record, chain *audit.Verifier) error {
	insert := func(what, query string, args ...any) error {
		if err := one(server.ErrConflict)(tx.exec(ctx, query+" ON CONFLICT DO NOTHING", args...)); err != nil {
			return fmt.Errorf("load %s: %w", what, err)
		}
		return nil
	}
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
		return insert("machine "+m.ID.String(), "INSERT INTO machine (id, revision, state, node_name, disk_guid, due, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
			m.ID[:], m.Revision, string(m.State), m.NodeName, sql.NullString{String: m.DiskGUID, Valid: m.DiskGUID != ""}, dueOf(m), string(body))
	case rec.Release != nil:
		r := rec.Release
		body, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("load release %s: %w", r.ID, err)
		}
		return insert("release "+r.ID, "INSERT INTO release (id, machine, generation, reset_count, restart_count, confirmed, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
			r.ID, r.Machine[:], r.Generation, int64(r.ResetCount), int64(r.RestartCount), r.Outcome != "", string(body))
	case rec.Document != nil:
		d := rec.Document
		return insert(d.Kind+" "+d.Name, "INSERT INTO document (kind, name, revision, body) VALUES (?, ?, ?, ?)", d.Kind, d.Name, d.Revision, []byte(d.Body))
	case rec.Evidence != nil:
		return tx.putEvidence(ctx, newEvidence(rec.Evidence))
	case rec.Pruned != nil:
		p := rec.Pruned
		return insert(fmt.Sprintf("pruned evidence %s", p.Digest), "INSERT INTO evidence (digest, machine, received, pruned, body) VALUES (?, ?, ?, ?, x'')",
			p.Digest[:], p.Machine[:], p.Received.UnixNano(), p.Entry)
	case rec.Entry != nil:
		if err := chain.Add(*rec.Entry); err != nil {
			return err
		}
		line, err := audit.AppendLine(nil, *rec.Entry)
		if err != nil {
			return err
		}
		return insert(fmt.Sprintf("audit entry %d", rec.Entry.Seq), "INSERT INTO audit (seq, line) VALUES (?, ?)", rec.Entry.Seq, line[:len(line)-1])
	}
	return errors.New("load: a record that is nothing")
}
