package sqlstore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
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
	for _, part := range []struct {
		what, query string
		scan        func(*sql.Rows) (server.Record, error)
	}{
		{"machines", "SELECT revision, body FROM machine ORDER BY id", func(r *sql.Rows) (rec server.Record, err error) {
			rec.Machine, err = scanMachine(r)
			return rec, err
		}},
		{"releases", "SELECT body FROM release ORDER BY id", func(r *sql.Rows) (rec server.Record, err error) {
			var body string
			if err := r.Scan(&body); err != nil {
				return rec, err
			}
			rec.Release = new(server.Release)
			return rec, json.Unmarshal([]byte(body), rec.Release)
		}},
		{"documents", "SELECT kind, name, revision, body FROM document ORDER BY kind, name", func(r *sql.Rows) (rec server.Record, err error) {
			d := new(server.Document)
			rec.Document = d
			return rec, r.Scan(&d.Kind, &d.Name, &d.Revision, (*[]byte)(&d.Body))
		}},
		{"evidence", "SELECT body FROM evidence", func(r *sql.Rows) (rec server.Record, err error) {
			var row []byte
			if err := r.Scan(&row); err != nil {
				return rec, err
			}
			// A part is never changed, so that it does not matter that
			// another connection reads it.
			rec.Evidence, err = join(row, s.part(ctx))
			return rec, err
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
		if err := dumpPart(ctx, conn, part.query, part.scan, each); err != nil {
			return fmt.Errorf("dump database %s: %s: %w", s.path, part.what, err)
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
	return s.submit(ctx, func(ctx context.Context, tx *tx) error {
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
		return insert("machine "+m.ID.String(), "INSERT INTO machine (id, revision, state, node_name, disk_guid, body) VALUES (?, ?, ?, ?, ?, ?)",
			m.ID[:], m.Revision, string(m.State), m.NodeName, sql.NullString{String: m.DiskGUID, Valid: m.DiskGUID != ""}, string(body))
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
		digest := sha256.Sum256(rec.Evidence)
		row, parts := cut(rec.Evidence)
		for _, p := range parts {
			if _, err := tx.exec(ctx, "INSERT INTO evidence_part (digest, body) VALUES (?, ?) ON CONFLICT DO NOTHING", p.digest[:], p.body); err != nil {
				return fmt.Errorf("load evidence %x: %w", digest, err)
			}
		}
		return insert(fmt.Sprintf("evidence %x", digest), "INSERT INTO evidence (digest, body) VALUES (?, ?)", digest[:], row)
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
