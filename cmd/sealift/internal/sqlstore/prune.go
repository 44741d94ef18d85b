package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/image/manifest"
)

var _ server.Pruner = (*Store)(nil)

// maxMeasured bounds the file whose tables are measured, bytes: each of its
// pages is read for it.
const maxMeasured = 4 << 30

// Usage implements server.Pruner.
func (s *Store) Usage(ctx context.Context) (*api.StoreStatus, error) {
	u := &api.StoreStatus{Schema: schemaVersion}
	var page, pages, free int64
	var version string
	var oldest, newest sql.NullInt64
	for _, q := range []struct {
		query string
		into  any
	}{
		{"PRAGMA page_size", &page}, {"PRAGMA page_count", &pages}, {"PRAGMA freelist_count", &free}, {"SELECT sqlite_version()", &version},
		{"SELECT count(*) FROM machine", &u.Machines.Count},
		{"SELECT count(*) FROM release", &u.Releases.Count},
		{"SELECT count(*) FROM release WHERE confirmed = 0", &u.OpenReleases},
		{"SELECT count(*) FROM document", &u.Documents.Count},
		{"SELECT count(*) FROM evidence WHERE pruned IS NULL", &u.Evidence.Count},
		{"SELECT count(*) FROM evidence WHERE received IS NULL", &u.Unindexed},
		{"SELECT count(*) FROM evidence", &u.Pruned},
		{"SELECT count(*) FROM evidence_part", &u.Parts.Count},
		{"SELECT coalesce(max(seq), 0) FROM audit", &u.Audit.Count},
		{"SELECT min(received) FROM evidence WHERE pruned IS NULL AND received >= 0", &oldest},
		{"SELECT max(received) FROM evidence WHERE pruned IS NULL AND received >= 0", &newest},
	} {
		if err := s.read.QueryRowContext(ctx, q.query).Scan(q.into); err != nil {
			return nil, fmt.Errorf("measure database %s: %w", s.path, err)
		}
	}
	u.Store = "SQLite " + version
	u.Pruned -= u.Evidence.Count
	u.Bytes, u.FreeBytes = page*pages, page*free
	if wal, err := os.Stat(s.path + "-wal"); err == nil {
		u.Bytes += wal.Size()
	}
	if oldest.Valid && newest.Valid {
		u.OldestEvidence, u.NewestEvidence = time.Unix(0, oldest.Int64).UTC(), time.Unix(0, newest.Int64).UTC()
	}
	for table, r := range map[string]*api.StoreRecords{
		"machine": &u.Machines, "release": &u.Releases, "document": &u.Documents, "evidence": &u.Evidence, "evidence_part": &u.Parts, "audit": &u.Audit,
	} {
		r.Bytes = -1
		if u.Bytes > maxMeasured {
			continue
		}
		if err := s.read.QueryRowContext(ctx, `SELECT coalesce(sum(pgsize), 0) FROM dbstat
			WHERE aggregate = TRUE AND name IN (SELECT name FROM sqlite_schema WHERE tbl_name = ?)`, table).Scan(&r.Bytes); err != nil {
			return nil, fmt.Errorf("measure database %s: table %s: %w", s.path, table, err)
		}
	}
	return u, nil
}

// IndexEvidence implements server.Pruner.
func (s *Store) IndexEvidence(ctx context.Context, limit int) (n int, err error) {
	type found struct {
		digest []byte
		about  *evidence
	}
	rows, err := collect(ctx, s, "SELECT digest, body FROM evidence WHERE received IS NULL ORDER BY epoch LIMIT ?", []any{limit}, func(r *sql.Rows) (f found, err error) {
		var row []byte
		if err := r.Scan(&f.digest, &row); err != nil {
			return f, err
		}
		f.about = &evidence{received: unknown}
		// What comes first is in the row itself, and not in a part.
		body, err := parts.Join(row, func([]byte) ([]byte, error) { return nil, nil })
		if err != nil {
			return f, nil // Evidence says so of it
		}
		if machine, received, ok := server.EvidenceAbout(body); ok {
			f.about.machine, f.about.received = machine[:], received.UnixNano()
		}
		return f, nil
	})
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	err = s.submit(ctx, true, func(ctx context.Context, tx *tx) error {
		for _, f := range rows {
			if _, err := tx.exec(ctx, "UPDATE evidence SET machine = ?, received = ? WHERE digest = ? AND received IS NULL", f.about.machine, f.about.received, f.digest); err != nil {
				return fmt.Errorf("note when evidence %x was received: %w", f.digest, err)
			}
		}
		return nil
	})
	return len(rows), err
}

// collect reads the rows of a query.
func collect[T any](ctx context.Context, s *Store, query string, args []any, scan func(*sql.Rows) (T, error)) (out []T, err error) {
	prepared, err := s.stmt(ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := prepared.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// needing finds out what needs evidence, each machine once.
type needing struct {
	// query returns the rows of one column of a query with one argument.
	query    func(query string, arg []byte) ([]string, error)
	machines map[attest.MachineID]*server.Machine
	open     map[attest.MachineID][]*server.Release
}

func (n *needing) need(ref *server.EvidenceRef) (api.Need, error) {
	id := ref.Machine
	if _, known := n.machines[id]; !known {
		machines, err1 := decoded[server.Machine](n.query("SELECT body FROM machine WHERE id = ?", id[:]))
		open, err2 := decoded[server.Release](n.query("SELECT body FROM release WHERE machine = ? AND confirmed = 0", id[:]))
		err := errors.Join(err1, err2)
		switch {
		case errors.Is(err, errDamaged):
			// What it needs is not known: all.
			machines = []*server.Machine{{Machine: api.Machine{ID: id, State: attest.StateQuarantined}}}
		case err != nil:
			return "", fmt.Errorf("what needs evidence of machine %s: %w", id, err)
		}
		n.machines[id], n.open[id] = nil, open
		if len(machines) > 0 {
			n.machines[id] = machines[0]
		}
	}
	return server.Needed(ref, n.machines[id], n.open[id]), nil
}

// errDamaged: a record cannot be read.
var errDamaged = errors.New("the record cannot be read")

func decoded[T any](bodies []string, err error) ([]*T, error) {
	var out []*T
	for _, b := range bodies {
		v := new(T)
		if err := json.Unmarshal([]byte(b), v); err != nil {
			return nil, fmt.Errorf("%w: %v", errDamaged, err)
		}
		out = append(out, v)
	}
	return out, err
}

func newNeeding(query func(string, []byte) ([]string, error)) *needing {
	return &needing{query: query, machines: map[attest.MachineID]*server.Machine{}, open: map[attest.MachineID][]*server.Release{}}
}

func scanText(r *sql.Rows) (v string, err error) { return v, r.Scan(&v) }

// OldEvidence implements server.Pruner.
func (s *Store) OldEvidence(ctx context.Context, before time.Time, after *server.EvidenceRef, limit int) ([]server.EvidenceRef, error) {
	received, digest := int64(0), []byte{}
	if after != nil {
		received, digest = after.Received.UnixNano(), after.Digest[:]
	}
	refs, err := collect(ctx, s, `SELECT digest, machine, received, length(body) FROM evidence INDEXED BY evidence_received
		WHERE pruned IS NULL AND received >= 0 AND received < ? AND (received, digest) > (?, ?) ORDER BY received, digest LIMIT ?`,
		[]any{before.UnixNano(), received, digest, limit}, func(r *sql.Rows) (ref server.EvidenceRef, err error) {
			var digest, machine []byte
			var received int64
			err = r.Scan(&digest, &machine, &received, &ref.Size)
			copy(ref.Digest[:], digest)
			ref.Machine, ref.Received = machineID(machine), time.Unix(0, received).UTC()
			return ref, err
		})
	n := newNeeding(func(query string, arg []byte) ([]string, error) { return collect(ctx, s, query, []any{arg}, scanText) })
	for i := range refs {
		if err == nil {
			refs[i].Needed, err = n.need(&refs[i])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look for old evidence in database %s: %w", s.path, err)
	}
	return refs, nil
}

// Prune implements server.Pruner.
func (s *Store) Prune(ctx context.Context, refs []server.EvidenceRef, entry func([]server.EvidenceRef) audit.Event) (gone []server.EvidenceRef, err error) {
	err = s.submit(ctx, true, func(ctx context.Context, tx *tx) error {
		gone = nil
		n := newNeeding(func(query string, arg []byte) ([]string, error) { return tx.texts(ctx, query, arg) })
		for _, ref := range refs {
			var err error
			if ref.Needed, err = n.need(&ref); err != nil {
				return err
			}
			if ref.Needed == "" {
				gone = append(gone, ref)
			}
		}
		head, err := tx.auditHead(ctx)
		if err != nil {
			return err
		}
		// Only what was removed by this is to be in the entry.
		var removed []server.EvidenceRef
		for _, ref := range gone {
			r, err := tx.exec(ctx, "UPDATE evidence SET body = x'', pruned = ? WHERE digest = ? AND pruned IS NULL", head.Seq+1, ref.Digest[:])
			if err != nil {
				return fmt.Errorf("prune evidence %s: %w", ref.Digest, err)
			}
			if n, err := r.RowsAffected(); err != nil {
				return err
			} else if n == 1 {
				removed = append(removed, ref)
			}
		}
		if gone = removed; len(gone) == 0 {
			return nil
		}
		return tx.appendAudit(ctx, []audit.Event{entry(gone)})
	})
	if err != nil {
		return nil, err
	}
	return gone, nil
}

// texts reads the rows of one column.
func (t *tx) texts(ctx context.Context, query string, arg []byte) (out []string, err error) {
	s, err := t.stmt(ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := s.QueryContext(ctx, arg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		v, err := scanText(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// at is where a row of evidence, or of a part, is in the order of their epochs.
type at struct{ epoch, row int64 }

// part is a row of a part.
type part struct {
	at
	digest []byte
	size   int64
}

// removeParts removes those of the parts that are of an epoch before that one still:
// a row that was written since they were looked at may refer to them.
func (s *Store) removeParts(ctx context.Context, unused []part, before int64) (n int, bytes int64, err error) {
	if len(unused) == 0 {
		return 0, 0, nil
	}
	err = s.submit(ctx, true, func(ctx context.Context, tx *tx) error {
		n, bytes = 0, 0
		for _, p := range unused {
			r, err := tx.exec(ctx, "DELETE FROM evidence_part WHERE digest = ? AND epoch < ?", p.digest, before)
			if err != nil {
				return fmt.Errorf("remove part %x: %w", p.digest, err)
			}
			if gone, err := r.RowsAffected(); err != nil {
				return err
			} else if gone == 1 {
				n, bytes = n+1, bytes+p.size
			}
		}
		return nil
	})
	return n, bytes, err
}

// compactPage is how many rows Compact reads, and removes, at a time.
const compactPage = 256

// Compact implements server.Pruner. It takes the epochs before that of the
// oldest evidence that was received since then: what is left of them is what
// something needs, which is little, and it is read to see what parts it refers
// to. Rows that are written from now on are of the present epoch, and so are, or
// become, the parts that they refer to.
func (s *Store) Compact(ctx context.Context, since time.Time, step func(int, int64) error) error {
	var before int64
	err := s.submit(ctx, true, func(ctx context.Context, tx *tx) error {
		err := tx.get(ctx, &before, `SELECT coalesce((SELECT epoch FROM evidence INDEXED BY evidence_received
			WHERE pruned IS NULL AND received >= 0 AND received >= ? ORDER BY received, digest LIMIT 1), (SELECT epoch + 1 FROM epoch))`, since.UnixNano())
		if err == nil {
			_, err = tx.exec(ctx, "UPDATE epoch SET epoch = epoch + 1")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("begin another epoch: %w", err)
	}
	if err := step(0, 0); err != nil {
		return err
	}
	used := map[manifest.SHA256]struct{}{}
	var last at
	for {
		rows, err := collect(ctx, s, `SELECT epoch, rowid, body FROM evidence INDEXED BY evidence_epoch
			WHERE pruned IS NULL AND epoch < ? AND (epoch, rowid) > (?, ?) ORDER BY epoch, rowid LIMIT ?`,
			[]any{before, last.epoch, last.row, compactPage}, func(r *sql.Rows) (a at, err error) {
				var row []byte
				if err := r.Scan(&a.epoch, &a.row, &row); err != nil {
					return a, err
				}
				return a, parts.Refs(row, func(d []byte) { used[manifest.SHA256(d)] = struct{}{} })
			})
		if err != nil {
			// A row that cannot be read may refer to anything.
			return fmt.Errorf("look for parts in use: %w", err)
		}
		if len(rows) == 0 {
			break
		}
		last = rows[len(rows)-1]
		if err := step(0, 0); err != nil {
			return err
		}
	}
	for last = (at{-1, 0}); ; {
		rows, err := collect(ctx, s, `SELECT epoch, rowid, digest, length(body) FROM evidence_part INDEXED BY evidence_part_epoch
			WHERE epoch < ? AND (epoch, rowid) > (?, ?) ORDER BY epoch, rowid LIMIT ?`,
			[]any{before, last.epoch, last.row, compactPage}, func(r *sql.Rows) (p part, err error) {
				return p, r.Scan(&p.epoch, &p.row, &p.digest, &p.size)
			})
		if err != nil {
			return fmt.Errorf("look for parts not in use: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		last = rows[len(rows)-1].at
		unused := slices.DeleteFunc(rows, func(p part) bool { _, ok := used[manifest.SHA256(p.digest)]; return ok })
		n, bytes, err := s.removeParts(ctx, unused, before)
		if err != nil {
			return err
		}
		if err := step(n, bytes); err != nil {
			return err
		}
	}
}

// Vacuum writes the database at path anew, without the room that holds nothing,
// which goes back to the file system. There must be room for a second copy. A
// service that has the database open can read meanwhile, and not write.
func Vacuum(ctx context.Context, path string) (err error) {
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return fmt.Errorf("vacuum database %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	for _, q := range []string{"VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"} {
		if _, err := db.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("vacuum database %s: %w", path, err)
		}
	}
	return nil
}
