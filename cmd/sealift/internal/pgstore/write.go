package pgstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/image/manifest"
)

// maxBatch bounds the changes of one commit. More would only make each wait
// longer: the fsync is shared well before.
const maxBatch = 128

// pending is a change that waits for the writer.
type pending struct {
	ctx        context.Context
	statements []statement
	parts      []parts.Part // of evidence that is among the statements
	events     []audit.Event
	// do is more that is to be done, in place of all this: by itself in a
	// transaction, after the head of the audit log was locked. It returns the
	// events. It may be called again, in another transaction.
	do     func(ctx context.Context, tx pgx.Tx, head audit.Head) ([]audit.Event, error)
	result chan error
}

// statement is one part of a change.
type statement struct {
	doing  string
	query  string
	args   []any
	missed error // the result if it changes no row; nil if that is as good
}

// Commit implements server.Store.
func (s *Store) Commit(ctx context.Context, c *server.Change) error {
	statements, err := write(c)
	if err != nil {
		return err
	}
	for _, ev := range c.Events {
		// What cannot be an entry at all is this caller's fault, and must not
		// show first among the changes of others.
		if _, err := audit.Next(audit.Head{}, ev); err != nil {
			return err
		}
	}
	p := &pending{ctx: ctx, statements: statements, events: c.Events}
	if c.Evidence != nil {
		st, cut := evidenceStatement(c.Evidence)
		p.statements, p.parts = append(p.statements, st), cut
	}
	return s.submit(ctx, p)
}

// submit has the writer do p, and waits until that is durable or failed.
func (s *Store) submit(ctx context.Context, p *pending) error {
	p.result = make(chan error, 1)
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case s.queue <- p:
		// Even if ctx ends: only the writer knows what became of it.
		return <-p.result
	case <-ctx.Done():
		return ctx.Err()
	case <-s.quit:
		return fmt.Errorf("%s: closed", s.name)
	}
}

// write returns the statements that write c, but for its evidence and events.
func write(c *server.Change) ([]statement, error) {
	var out []statement
	if m := c.Machine; m != nil {
		doing := fmt.Sprintf("store machine %s", m.ID)
		body, err := json.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		var disk []byte
		if m.DiskGUID != "" {
			disk = []byte(m.DiskGUID)
		}
		args := []any{m.ID[:], []byte(m.State), []byte(m.NodeName), disk, dueOf(m), body}
		if m.Revision == 0 {
			// Any conflict will do: the id, the node name or the disk.
			out = append(out, statement{doing, `INSERT INTO sealift.machine (id, state, node_name, disk_guid, due, body, revision)
				VALUES ($1, $2, $3, $4, $5, $6, 1) ON CONFLICT DO NOTHING`, args, server.ErrConflict})
		} else {
			out = append(out, statement{doing, `UPDATE sealift.machine SET revision = revision + 1, state = $2, node_name = $3, disk_guid = $4, due = $5, body = $6
				WHERE id = $1 AND revision = $7`, append(args, m.Revision), server.ErrConflict})
		}
	}
	if r := c.Release; r != nil {
		doing := fmt.Sprintf("store release %s", r.ID)
		body, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		out = append(out, statement{doing, `INSERT INTO sealift.release (id, machine, generation, reset_count, restart_count, confirmed, body)
			VALUES ($1, $2, $3, $4, $5, false, $6) ON CONFLICT DO NOTHING`,
			[]any{[]byte(r.ID), r.Machine[:], r.Generation, int64(r.ResetCount), int64(r.RestartCount), body}, server.ErrReleased})
	}
	if r := c.Confirm; r != nil {
		doing := fmt.Sprintf("confirm release %s", r.ID)
		body, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		out = append(out, statement{doing, "UPDATE sealift.release SET confirmed = true, body = $2 WHERE id = $1 AND NOT confirmed",
			[]any{[]byte(r.ID), body}, server.ErrConflict})
	}
	for _, d := range c.Documents {
		doing := fmt.Sprintf("store %s %s", d.Kind, d.Name)
		args := []any{[]byte(d.Kind), []byte(d.Name), []byte(d.Body)}
		if d.Revision == 0 {
			out = append(out, statement{doing, `INSERT INTO sealift.document (kind, name, body, revision)
				VALUES ($1, $2, $3, 1) ON CONFLICT DO NOTHING`, args, server.ErrConflict})
		} else {
			out = append(out, statement{doing, `UPDATE sealift.document SET revision = revision + 1, body = $3
				WHERE kind = $1 AND name = $2 AND revision = $4`, append(args, d.Revision), server.ErrConflict})
		}
	}
	return out, nil
}

// writer owns last until quit.
func (s *Store) writer() {
	defer close(s.done)
	for {
		var batch []*pending
		select {
		case p := <-s.queue:
			batch = append(batch, p)
		case <-s.quit:
			return
		}
	more:
		for len(batch) < maxBatch {
			select {
			case p := <-s.queue:
				batch = append(batch, p)
			default:
				break more
			}
		}
		s.commit(batch)
	}
}

// A refusal is what one change of a batch met, so that the batch was not
// committed.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// commit writes a batch in one transaction. A change that is refused undoes
// the transaction, so each is then written by itself: refusals are rare, and
// what is refused alone was refused by what others wrote for good.
func (s *Store) commit(batch []*pending) {
	var live []*pending
	for _, p := range batch {
		if err := p.ctx.Err(); err != nil {
			p.result <- err
			continue
		}
		if p.do != nil {
			p.result <- s.transact([]*pending{p})
			continue
		}
		live = append(live, p)
	}
	if len(live) == 0 {
		return
	}
	err := s.transact(live)
	if errors.As(err, new(refusal)) && len(live) > 1 {
		for _, p := range live {
			p.result <- s.transact([]*pending{p})
		}
		return
	}
	for _, p := range live {
		p.result <- err
	}
}

// transact writes a batch in one transaction, and begins again where nothing
// was decided.
func (s *Store) transact(batch []*pending) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var err error
	for tried := 0; tried < tries; {
		var asked bool
		asked, err = s.attempt(ctx, batch)
		if errors.Is(err, errEpoch) && ctx.Err() == nil {
			// Nothing failed: a run of prune began meanwhile, and with several
			// replicas the next may, too.
			continue
		}
		tried++
		// As long as the server was not asked to commit, it has not.
		again := undecided(err) || !asked && lost(err)
		if err == nil || !again || ctx.Err() != nil {
			break
		}
	}
	var r refusal
	if errors.As(err, &r) {
		return r
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// lost reports whether the connection broke, or the server ended it: an error
// that is none of the server's answers to a statement.
func lost(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		// 57P: the server shuts down, crashed, or cannot be used yet.
		return pg.Code[:min(3, len(pg.Code))] == "57P" || pg.Severity == "FATAL"
	}
	return !errors.As(err, new(refusal)) && !errors.As(err, new(*pgconn.ConnectError)) && !errors.Is(err, errWentBack) && !errors.Is(err, errVersion) && !errors.Is(err, errAnother)
}

// errWentBack: the database is not the one that this replica wrote to.
var errWentBack = errors.New("the audit log went back: a failover or a restore has lost decisions, and this replica must not go on with it")

// errVersion: a program of another version has brought the tables to its own, and
// what this one would write may lack what the others look for.
var errVersion = errors.New("the tables are of another version of this program: start this replica again with that")

// errAnother: the same of a database whose log goes on. What this replica has
// read, and remembers, may not be so in it: that nothing is held, for one.
var errAnother = errors.New("the store is not the one that this replica was started on: it was restored meanwhile, so start the service again")

// attempt writes a batch once. asked reports whether the server was asked to
// commit, so that after an error it may have done so.
func (s *Store) attempt(ctx context.Context, batch []*pending) (asked bool, err error) {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	defer func() {
		if !asked {
			// The connection may be gone, and with it the transaction.
			_ = tx.Rollback(ctx)
		}
		s.parts.Drop() // what was kept is no longer there
	}()
	head, err := s.lockAndWrite(ctx, tx, batch)
	if err != nil {
		return false, err
	}
	for _, p := range batch {
		if p.do != nil {
			if p.events, err = p.do(ctx, tx, head); err != nil {
				return false, err
			}
		}
	}
	next, appended, err := appendAudit(ctx, tx, head, batch)
	if err != nil {
		return false, err
	}
	if err := tx.Commit(ctx); err != nil {
		return true, fmt.Errorf("commit: %w", err)
	}
	s.last = next
	s.parts.Keep()
	if tail := s.tail.Load(); tail != nil {
		tail.Append(appended)
	}
	return true, nil
}

// errEpoch: the database is in another epoch than this replica thought, so that
// parts which it left out may be gone.
var errEpoch = errors.New("the store is in another epoch")

// lockAndWrite locks the head of the audit log and writes all statements, in
// one round trip.
func (s *Store) lockAndWrite(ctx context.Context, tx pgx.Tx, batch []*pending) (head audit.Head, err error) {
	b := new(pgx.Batch)
	b.Queue("SELECT seq, hash, epoch, store::text FROM sealift.head FOR UPDATE")
	// In a statement of its own, which sees what is there once the row is locked.
	// A line ends with the entry's hash, before a quote and a brace.
	b.Queue(`SELECT version, (SELECT substring(line FROM octet_length(line) - 65 FOR 64) FROM sealift.audit WHERE seq = $1) FROM sealift.version`, s.last.Seq)
	var missing []parts.Part
	for _, p := range batch {
		for _, part := range p.parts {
			if !s.parts.Has(part.Digest) {
				s.parts.Add(part.Digest)
				missing = append(missing, part)
			}
		}
	}
	for _, part := range missing {
		b.Queue(putPart, part.Digest[:], part.Body)
	}
	for _, p := range batch {
		for _, st := range p.statements {
			b.Queue(st.query, st.args...)
		}
	}
	results := tx.SendBatch(ctx, b)
	defer func() {
		if closeErr := results.Close(); err == nil {
			err = closeErr
		}
	}()
	var hash []byte
	var epoch int64
	var store string
	if err := results.QueryRow().Scan(&head.Seq, &hash, &epoch, &store); err != nil {
		return head, fmt.Errorf("lock the head of the audit log: %w", err)
	}
	if store != *s.store.Load() {
		return head, errAnother
	}
	if len(hash) != len(head.Hash) {
		return head, fmt.Errorf("the head of the audit log has a hash of %d bytes", len(hash))
	}
	head.Hash = manifest.SHA256(hash)
	var version int
	var there []byte // of entry s.last.Seq
	if err := results.QueryRow().Scan(&version, &there); err != nil {
		return head, fmt.Errorf("look for audit entry %d: %w", s.last.Seq, err)
	}
	if version != len(migrations) {
		return head, fmt.Errorf("the tables are of version %d, want %d: %w", version, len(migrations), errVersion)
	}
	if s.last.Seq > 0 && string(there) != s.last.Hash.String() || head.Seq < s.last.Seq || head.Seq == s.last.Seq && head.Hash != s.last.Hash {
		return head, fmt.Errorf("the log ends at entry %d, and entry %d is not there as it was: %w", head.Seq, s.last.Seq, errWentBack)
	}
	if epoch != s.parts.Epoch() {
		s.parts.Begin(epoch)
		return head, errEpoch
	}
	for _, part := range missing {
		if _, err := results.Exec(); err != nil {
			return head, fmt.Errorf("store a part of evidence, %x: %w", part.Digest, err)
		}
	}
	for _, p := range batch {
		for _, st := range p.statements {
			tag, err := results.Exec()
			var pg *pgconn.PgError
			switch {
			case errors.As(err, &pg) && (pg.ConstraintName == "machine_node_name" || pg.ConstraintName == "machine_disk_guid"):
				return head, refusal{fmt.Errorf("%s: %w", st.doing, server.ErrConflict)}
			case err != nil:
				return head, fmt.Errorf("%s: %w", st.doing, err)
			case tag.RowsAffected() != 1 && st.missed != nil:
				return head, refusal{fmt.Errorf("%s: %w", st.doing, st.missed)}
			}
		}
	}
	return head, nil
}

// appendAudit continues the chain at head, which is locked, and returns the
// new head and the entries up to it.
func appendAudit(ctx context.Context, tx pgx.Tx, head audit.Head, batch []*pending) (next audit.Head, appended []audit.Entry, err error) {
	b := new(pgx.Batch)
	for _, p := range batch {
		for _, ev := range p.events {
			e, err := audit.Next(head, ev)
			if err != nil {
				return head, nil, refusal{err}
			}
			line, err := audit.AppendLine(nil, e)
			if err != nil {
				return head, nil, refusal{err}
			}
			b.Queue("INSERT INTO sealift.audit (seq, line) VALUES ($1, $2)", e.Seq, line[:len(line)-1])
			head, appended = e.Head(), append(appended, e)
		}
	}
	if b.Len() == 0 {
		return head, nil, nil
	}
	b.Queue("UPDATE sealift.head SET seq = $1, hash = $2", head.Seq, head.Hash[:])
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return head, nil, fmt.Errorf("append to the audit log: %w", err)
	}
	return head, appended, nil
}
