package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

var _ server.Teller = (*Store)(nil)

// Machine implements server.Store.
func (s *Store) Machine(ctx context.Context, id attest.MachineID) (*server.Machine, error) {
	query, err := s.stmt(ctx, selectMachine+" FROM machine WHERE id = ?")
	if err != nil {
		return nil, fmt.Errorf("read machine %s: %w", id, err)
	}
	m, _, err := scanMachine(query.QueryRowContext(ctx, id[:]))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("machine %s: %w", id, server.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read machine %s: %w", id, err)
	}
	return m, nil
}

// selectMachine is what scanMachine reads.
const selectMachine = "SELECT revision, body, id, state, node_name, coalesce(disk_guid, '')"

// scanMachine reads a row of selectMachine: the record, and what its columns say. A
// record that cannot be read gives a *server.DamagedError.
func scanMachine(row interface{ Scan(...any) error }) (m, known *server.Machine, err error) {
	known = new(server.Machine)
	var id, body []byte
	if err := row.Scan(&known.Revision, &body, &id, (*string)(&known.State), &known.NodeName, &known.DiskGUID); err != nil {
		return nil, nil, err
	}
	if len(id) != len(known.ID) {
		return nil, nil, fmt.Errorf("altered: a machine's id has %d bytes, want %d", len(id), len(known.ID))
	}
	known.ID = attest.MachineID(id)
	m, err = server.DecodeMachine(known, body)
	return m, known, err
}

// Machines implements server.Store.
func (s *Store) Machines(ctx context.Context, q server.Query) (_ []*server.Machine, err error) {
	var where []string
	var args []any
	match := func(condition string, arg any) {
		where = append(where, condition)
		args = append(args, arg)
	}
	if q.State != "" {
		match("state = ?", string(q.State))
	}
	if q.DiskGUID != "" {
		match("disk_guid = ?", q.DiskGUID)
	}
	if q.NodeName != "" {
		match("node_name = ?", q.NodeName)
	}
	if !q.After.IsZero() {
		match("id > ?", q.After[:])
	}
	from := "machine"
	if !q.Due.IsZero() {
		// Few are due of many, whatever the planner thinks.
		from += " INDEXED BY machine_due"
		match("due <= ?", q.Due.UnixNano())
	}
	query := selectMachine + " FROM " + from
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	query += " ORDER BY id"
	if q.Limit > 0 {
		query += " LIMIT ?"
		args = append(args, q.Limit)
	}
	if !q.Due.IsZero() {
		// Only ids are sorted.
		query = selectMachine + " FROM machine WHERE id IN (" + strings.Replace(query, selectMachine, "SELECT id", 1) + ") ORDER BY id"
	}
	// The texts are as many as there are ways to ask, which are few.
	prepared, err := s.stmt(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("read machines: %w", err)
	}
	rows, err := prepared.QueryContext(ctx, args...)
	if err != nil {
		return nil, fmt.Errorf("read machines: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var out []*server.Machine
	for rows.Next() {
		m, known, err := scanMachine(rows)
		if errors.As(err, new(*server.DamagedError)) {
			m, err = known, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read machines: %w", err)
		}
		out = append(out, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read machines: %w", err)
	}
	return out, nil
}

// one returns missed unless exactly one row was changed.
func one(missed error) func(sql.Result, error) error {
	return func(r sql.Result, err error) error {
		if err != nil {
			return err
		}
		n, err := r.RowsAffected()
		if err != nil {
			return err
		}
		if n != 1 {
			return missed
		}
		return nil
	}
}

// Commit implements server.Store. All is encoded here, by the caller: the
// writer has no time to lose.
func (s *Store) Commit(ctx context.Context, c *server.Change) error {
	gives, err0 := encoded(c.Gives)
	machine, err1 := encoded(c.Machine)
	release, err2 := encoded(c.Release)
	confirm, err3 := encoded(c.Confirm)
	if err := errors.Join(err0, err1, err2, err3); err != nil {
		return fmt.Errorf("encode what is to be stored: %w", err)
	}
	var ev *evidence
	if c.Evidence != nil {
		ev = newEvidence(c.Evidence)
	}
	return s.submit(ctx, true, func(ctx context.Context, tx *tx) error {
		if c.Gives != nil {
			if err := putMachine(ctx, tx, c.Gives, gives); err != nil {
				return fmt.Errorf("store machine %s: %w", c.Gives.ID, err)
			}
		}
		if c.Machine != nil {
			if err := putMachine(ctx, tx, c.Machine, machine); err != nil {
				return fmt.Errorf("store machine %s: %w", c.Machine.ID, err)
			}
		}
		if c.Release != nil {
			if err := putRelease(ctx, tx, c.Release, release); err != nil {
				return fmt.Errorf("store release %s: %w", c.Release.ID, err)
			}
		}
		if c.Confirm != nil {
			if err := confirmRelease(ctx, tx, c.Confirm, confirm); err != nil {
				return fmt.Errorf("confirm release %s: %w", c.Confirm.ID, err)
			}
		}
		for _, d := range c.Documents {
			if err := putDocument(ctx, tx, d); err != nil {
				return fmt.Errorf("store %s %s: %w", d.Kind, d.Name, err)
			}
		}
		if ev != nil {
			if err := tx.putEvidence(ctx, ev); err != nil {
				return err
			}
		}
		return tx.appendAudit(ctx, c.Events)
	})
}

// encoded returns v as JSON, or nothing for nothing.
func encoded[T any](v *T) (string, error) {
	if v == nil {
		return "", nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

// errChanged: a column that is searched by changes, or the record is another.
var errChanged = errors.New("changed")

// putMachine writes m if the stored revision is m's.
func putMachine(ctx context.Context, tx *tx, m *server.Machine, body string) error {
	disk := sql.NullString{String: m.DiskGUID, Valid: m.DiskGUID != ""}
	due := dueOf(m)
	if m.Revision == 0 {
		// Any conflict will do: the id, the node name or the disk.
		return one(server.ErrConflict)(tx.exec(ctx,
			"INSERT INTO machine (id, revision, state, node_name, disk_guid, due, body) VALUES (?, 1, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
			m.ID[:], string(m.State), m.NodeName, disk, due, body))
	}
	// SQLite writes each index anew of which a column is named, even to the same
	// value, and these hardly ever change, but for due.
	same, err := tx.exec(ctx,
		"UPDATE machine SET revision = revision + 1, due = ?, body = ? WHERE id = ? AND revision = ? AND state = ? AND node_name = ? AND disk_guid IS ?",
		due, body, m.ID[:], m.Revision, string(m.State), m.NodeName, disk)
	if err := one(errChanged)(same, err); !errors.Is(err, errChanged) {
		return err
	}
	return one(server.ErrConflict)(tx.exec(ctx,
		"UPDATE OR IGNORE machine SET revision = revision + 1, state = ?, node_name = ?, disk_guid = ?, due = ?, body = ? WHERE id = ? AND revision = ?",
		string(m.State), m.NodeName, disk, due, body, m.ID[:], m.Revision))
}

// dueOf is the column due: Unix nanoseconds, NULL for never.
func dueOf(m *server.Machine) sql.NullInt64 {
	at := m.Due()
	return sql.NullInt64{Int64: at.UnixNano(), Valid: !at.IsZero()}
}

func putRelease(ctx context.Context, tx *tx, r *server.Release, body string) error {
	return one(server.ErrReleased)(tx.exec(ctx,
		"INSERT INTO release (id, machine, generation, reset_count, restart_count, confirmed, body) VALUES (?, ?, ?, ?, ?, 0, ?) ON CONFLICT DO NOTHING",
		r.ID, r.Machine[:], r.Generation, int64(r.ResetCount), int64(r.RestartCount), body))
}

func confirmRelease(ctx context.Context, tx *tx, r *server.Release, body string) error {
	return one(server.ErrConflict)(tx.exec(ctx,
		"UPDATE release SET confirmed = 1, body = ? WHERE id = ? AND confirmed = 0", body, r.ID))
}

// putDocument writes d if the stored revision is d's.
func putDocument(ctx context.Context, tx *tx, d *server.Document) error {
	if d.Revision == 0 {
		return one(server.ErrConflict)(tx.exec(ctx,
			"INSERT INTO document (kind, name, revision, body) VALUES (?, ?, 1, ?) ON CONFLICT DO NOTHING", d.Kind, d.Name, []byte(d.Body)))
	}
	return one(server.ErrConflict)(tx.exec(ctx,
		"UPDATE document SET revision = revision + 1, body = ? WHERE kind = ? AND name = ? AND revision = ?", []byte(d.Body), d.Kind, d.Name, d.Revision))
}

// Document implements server.Store.
func (s *Store) Document(ctx context.Context, kind, name string) (*server.Document, error) {
	d := &server.Document{Kind: kind, Name: name}
	err := s.get(ctx, "SELECT revision, body FROM document WHERE kind = ? AND name = ?", []any{kind, name}, &d.Revision, (*[]byte)(&d.Body))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("%s %s: %w", kind, name, server.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", kind, name, err)
	}
	return d, nil
}

// Documents implements server.Store.
func (s *Store) Documents(ctx context.Context, kind, after string, limit int) (_ []*server.Document, err error) {
	if limit <= 0 {
		limit = -1 // none
	}
	query, err := s.stmt(ctx, "SELECT name, revision, body FROM document WHERE kind = ? AND name > ? ORDER BY name LIMIT ?")
	if err != nil {
		return nil, fmt.Errorf("read documents of kind %s: %w", kind, err)
	}
	rows, err := query.QueryContext(ctx, kind, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read documents of kind %s: %w", kind, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var out []*server.Document
	for rows.Next() {
		d := &server.Document{Kind: kind}
		if err := rows.Scan(&d.Name, &d.Revision, (*[]byte)(&d.Body)); err != nil {
			return nil, fmt.Errorf("read documents of kind %s: %w", kind, err)
		}
		out = append(out, d)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read documents of kind %s: %w", kind, err)
	}
	return out, nil
}

// Release implements server.Store.
func (s *Store) Release(ctx context.Context, id string) (*server.Release, error) {
	var body []byte
	err := s.get(ctx, "SELECT body FROM release WHERE id = ?", []any{id}, &body)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("release %s: %w", id, server.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read release %s: %w", id, err)
	}
	return server.DecodeRelease(id, body)
}

// Tell implements server.Teller.
func (s *Store) Tell(tail *audit.Tail) { s.tail.Store(tail) }

// auditPage is how many audit entries are read at a time. A reader that takes
// its time must not hold a read transaction, which would keep the write-ahead
// log from being checkpointed.
const auditPage = 200

// Audit implements server.Store. An entry that cannot be read as one gives an
// *audit.BrokenError.
func (s *Store) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		for {
			page, err := s.auditPage(ctx, from)
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
				from = e.Seq + 1
			}
			if err != nil {
				yield(audit.Entry{}, err)
				return
			}
			if len(page) < auditPage {
				return
			}
		}
	}
}

func (s *Store) auditPage(ctx context.Context, from int64) (page []audit.Entry, err error) {
	rows, err := s.read.QueryContext(ctx, "SELECT seq, line FROM audit WHERE seq >= ? ORDER BY seq LIMIT ?", from, auditPage)
	if err != nil {
		return nil, fmt.Errorf("read audit log from %d: %w", from, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var seq int64
		var line []byte
		if err := rows.Scan(&seq, &line); err != nil {
			return page, fmt.Errorf("read audit log from %d: %w", from, err)
		}
		e, err := audit.ParseLine(line)
		if err == nil && e.Seq != seq {
			err = fmt.Errorf("altered: the row of entry %d holds entry %d", seq, e.Seq)
		}
		if err != nil {
			return page, &audit.BrokenError{Seq: seq, Line: seq, Reason: err.Error()}
		}
		page = append(page, e)
	}
	if err := rows.Err(); err != nil {
		return page, fmt.Errorf("read audit log from %d: %w", from, err)
	}
	return page, nil
}
