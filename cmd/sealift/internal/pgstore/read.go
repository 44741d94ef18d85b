package pgstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

var _ server.Teller = (*Store)(nil)

// row reads one row. A row that is not there gives server.ErrNotFound.
func (s *Store) row(ctx context.Context, query string, args []any, into ...any) error {
	ctx, cancel, err := bounded(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	err = s.pool.QueryRow(ctx, query, args...).Scan(into...)
	if errors.Is(err, pgx.ErrNoRows) {
		return server.ErrNotFound
	}
	return err
}

// rows reads the rows of a query, each with scan.
func rows[T any](ctx context.Context, s *Store, query string, args []any, scan func(pgx.CollectableRow) (T, error)) ([]T, error) {
	ctx, cancel, err := bounded(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	r, err := s.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(r, scan)
}

// selectMachine is what scanMachine reads.
const selectMachine = "SELECT revision, body, id, state, node_name, coalesce(disk_guid, '')"

// scanMachine reads a row of selectMachine: the record, and what its columns say. A
// record that cannot be read gives a *server.DamagedError.
func scanMachine(row pgx.Row) (m, known *server.Machine, err error) {
	known = new(server.Machine)
	var body, id, state, name, disk []byte
	if err := row.Scan(&known.Revision, &body, &id, &state, &name, &disk); err != nil {
		return nil, nil, err
	}
	if len(id) != len(known.ID) {
		return nil, nil, fmt.Errorf("altered: a machine's id has %d bytes, want %d", len(id), len(known.ID))
	}
	known.ID, known.State, known.NodeName, known.DiskGUID = attest.MachineID(id), attest.EnrolmentState(state), string(name), string(disk)
	m, err = server.DecodeMachine(known, body)
	return m, known, err
}

// Machine implements server.Store.
func (s *Store) Machine(ctx context.Context, id attest.MachineID) (*server.Machine, error) {
	one, cancel, err := bounded(ctx)
	if err != nil {
		return nil, fmt.Errorf("read machine %s: %w", id, err)
	}
	defer cancel()
	m, _, err := scanMachine(s.pool.QueryRow(one, selectMachine+" FROM sealift.machine WHERE id = $1", id[:]))
	if errors.Is(err, pgx.ErrNoRows) {
		err = server.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read machine %s: %w", id, err)
	}
	return m, nil
}

// Machines implements server.Store.
func (s *Store) Machines(ctx context.Context, q server.Query) ([]*server.Machine, error) {
	var where []string
	var args []any
	match := func(condition string, arg []byte) {
		args = append(args, arg)
		where = append(where, fmt.Sprintf("%s $%d", condition, len(args)))
	}
	if q.State != "" {
		match("state =", []byte(q.State))
	}
	if q.DiskGUID != "" {
		match("disk_guid =", []byte(q.DiskGUID))
	}
	if q.NodeName != "" {
		match("node_name =", []byte(q.NodeName))
	}
	if !q.After.IsZero() {
		match("id >", q.After[:])
	}
	if !q.Due.IsZero() {
		args = append(args, q.Due.UnixNano())
		where = append(where, fmt.Sprintf("due <= $%d", len(args)))
	}
	from := "sealift.machine"
	if len(where) > 0 {
		from += " WHERE " + strings.Join(where, " AND ")
	}
	limit := ""
	if q.Limit > 0 {
		args = append(args, q.Limit)
		limit = fmt.Sprintf(" LIMIT $%d", len(args))
	}
	query := selectMachine + " FROM " + from + " ORDER BY id" + limit
	if !q.Due.IsZero() {
		// Few are due of many: OFFSET 0 keeps the planner from going through
		// all in the order of their ids, to save sorting the few.
		query = selectMachine + " FROM sealift.machine WHERE id = ANY(ARRAY(SELECT id FROM (SELECT id FROM " + from + " OFFSET 0) due ORDER BY id" + limit + ")) ORDER BY id"
	}
	out, err := rows(ctx, s, query, args, func(r pgx.CollectableRow) (*server.Machine, error) {
		m, known, err := scanMachine(r)
		if errors.As(err, new(*server.DamagedError)) {
			return known, nil
		}
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("read machines: %w", err)
	}
	return out, nil
}

// Release implements server.Store.
func (s *Store) Release(ctx context.Context, id string) (*server.Release, error) {
	var body []byte
	if err := s.row(ctx, "SELECT body FROM sealift.release WHERE id = $1", []any{[]byte(id)}, &body); err != nil {
		return nil, fmt.Errorf("read release %s: %w", id, err)
	}
	return server.DecodeRelease(id, body)
}

// Document implements server.Store.
func (s *Store) Document(ctx context.Context, kind, name string) (*server.Document, error) {
	d := &server.Document{Kind: kind, Name: name}
	err := s.row(ctx, "SELECT revision, body FROM sealift.document WHERE kind = $1 AND name = $2",
		[]any{[]byte(kind), []byte(name)}, &d.Revision, (*[]byte)(&d.Body))
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", kind, name, err)
	}
	return d, nil
}

// Documents implements server.Store.
func (s *Store) Documents(ctx context.Context, kind, after string, limit int) ([]*server.Document, error) {
	var most *int // NULL is no limit
	if limit > 0 {
		most = &limit
	}
	out, err := rows(ctx, s, "SELECT name, revision, body FROM sealift.document WHERE kind = $1 AND name > $2 ORDER BY name LIMIT $3", []any{[]byte(kind), []byte(after), most},
		func(r pgx.CollectableRow) (*server.Document, error) {
			var name []byte
			d := &server.Document{Kind: kind}
			err := r.Scan(&name, &d.Revision, (*[]byte)(&d.Body))
			d.Name = string(name)
			return d, err
		})
	if err != nil {
		return nil, fmt.Errorf("read documents of kind %s: %w", kind, err)
	}
	return out, nil
}

// Tell implements server.Teller.
func (s *Store) Tell(tail *audit.Tail) { s.tail.Store(tail) }

// auditPage is how many audit entries are read at a time.
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

func (s *Store) auditPage(ctx context.Context, from int64) ([]audit.Entry, error) {
	type row struct {
		seq  int64
		line []byte
	}
	read, err := rows(ctx, s, "SELECT seq, line FROM sealift.audit WHERE seq >= $1 ORDER BY seq LIMIT $2", []any{from, auditPage},
		func(r pgx.CollectableRow) (one row, err error) {
			err = r.Scan(&one.seq, &one.line)
			return one, err
		})
	if err != nil {
		return nil, fmt.Errorf("read audit log from %d: %w", from, err)
	}
	var page []audit.Entry
	for _, r := range read {
		e, err := audit.ParseLine(r.line)
		if err == nil && e.Seq != r.seq {
			err = fmt.Errorf("altered: the row of entry %d holds entry %d", r.seq, e.Seq)
		}
		if err != nil {
			return page, &audit.BrokenError{Seq: r.seq, Line: r.seq, Reason: err.Error()}
		}
		page = append(page, e)
	}
	return page, nil
}
