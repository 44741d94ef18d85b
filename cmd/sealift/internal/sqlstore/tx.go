package sqlstore

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
)

// tx is the connection of the writer, with the transaction that is open on it.
// It is used by the writer alone.
type tx struct {
	conn     *sql.Conn
	prepared map[string]*sql.Stmt

	// head is that of the audit log as this transaction has it, nil before it
	// was read. Nobody else writes while the transaction is open.
	head *audit.Head
	// last is the last line that was read or written: it need not be read as an
	// entry again.
	last line
	// appended are the entries of this transaction.
	appended []audit.Entry
	// known is the last line that was there when a transaction was committed. A
	// database without it has lost decisions.
	known line

	// parts are those of evidence that are in the database. inEpoch: this
	// transaction has told them the epoch.
	parts   *parts.Set
	inEpoch bool
}

// line is a line of the audit log. The zero line is none.
type line struct {
	text []byte
	head audit.Head // the entry that it is
}

func newTx(ctx context.Context, db *sql.DB, known line) (*tx, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &tx{conn: conn, prepared: map[string]*sql.Stmt{}, last: known, known: known, parts: parts.NewSet()}, nil
}

// stmt prepares each statement once: its text is a constant of this package.
func (t *tx) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	if s := t.prepared[query]; s != nil {
		return s, nil
	}
	s, err := t.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	t.prepared[query] = s
	return s, nil
}

func (t *tx) exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	s, err := t.stmt(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.ExecContext(ctx, args...)
}

// get reads one row into dest. No row is sql.ErrNoRows.
func (t *tx) get(ctx context.Context, dest any, query string, args ...any) error {
	s, err := t.stmt(ctx, query)
	if err != nil {
		return err
	}
	return s.QueryRowContext(ctx, args...).Scan(dest)
}

// begin takes the write lock, so that no transaction fails halfway because
// another writer was faster. After an error the connection is of no use.
func (t *tx) begin(ctx context.Context) error {
	t.head, t.inEpoch, t.appended = nil, false, nil
	if _, err := t.exec(ctx, "BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	var version int64
	if err := t.get(ctx, &version, "PRAGMA user_version"); err != nil {
		return fmt.Errorf("read the schema version: %w", err)
	}
	if version != schemaVersion {
		return fmt.Errorf("schema version is %d, want %d: %w", version, schemaVersion, errVersion)
	}
	if t.known.text == nil {
		return nil
	}
	if head, err := t.auditHead(ctx); err != nil || head == t.known.head {
		return err
	}
	var there []byte
	if err := t.get(ctx, &there, "SELECT line FROM audit WHERE seq = ?", t.known.head.Seq); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("read audit entry %d: %w", t.known.head.Seq, err)
	}
	if !bytes.Equal(there, t.known.text) {
		return fmt.Errorf("audit entry %d is not there as it was: %w", t.known.head.Seq, errWentBack)
	}
	return nil
}

func (t *tx) commit(ctx context.Context) error {
	if _, err := t.exec(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	t.parts.Keep()
	t.known = t.last
	return nil
}

// rollback undoes the transaction.
func (t *tx) rollback(ctx context.Context) error {
	t.last, t.appended = t.known, nil
	t.parts.Drop()
	if _, err := t.exec(ctx, "ROLLBACK"); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// close gives the connection back. SQLite keeps one that has statements left,
// with its locks and its log, and database/sql leaves those of a Conn to us.
func (t *tx) close() error {
	var errs []error
	for _, s := range t.prepared {
		errs = append(errs, s.Close())
	}
	clear(t.prepared)
	return errors.Join(append(errs, t.conn.Close())...)
}

// discard closes the connection, and with it a transaction that is open.
func (t *tx) discard() error {
	var errs []error
	for _, s := range t.prepared {
		errs = append(errs, s.Close())
	}
	clear(t.prepared)
	// Only a connection that is called bad is closed and not kept.
	if err := t.conn.Raw(func(any) error { return driver.ErrBadConn }); !errors.Is(err, driver.ErrBadConn) {
		errs = append(errs, err)
	}
	if err := t.conn.Close(); err != nil && !errors.Is(err, sql.ErrConnDone) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// savepoint runs do so that its failure leaves no trace. result is what do
// returned; err means that the transaction is lost.
func (t *tx) savepoint(ctx context.Context, do func(context.Context, *tx) error) (result, err error) {
	if _, err := t.exec(ctx, "SAVEPOINT one"); err != nil {
		return nil, fmt.Errorf("savepoint: %w", err)
	}
	head, last, appended := t.head, t.last, len(t.appended)
	if result = do(ctx, t); result != nil {
		t.head, t.last, t.appended = head, last, t.appended[:appended]
		t.parts.Drop()
		if _, err := t.exec(ctx, "ROLLBACK TO one"); err != nil {
			return result, fmt.Errorf("roll back: %w, after: %v", err, result)
		}
	}
	if _, err := t.exec(ctx, "RELEASE one"); err != nil {
		return result, fmt.Errorf("release savepoint: %w", err)
	}
	return result, nil
}

// auditHead returns the head of the audit log. It is read once a transaction.
func (t *tx) auditHead(ctx context.Context) (audit.Head, error) {
	if t.head != nil {
		return *t.head, nil
	}
	var text []byte
	var head audit.Head
	switch err := t.get(ctx, &text, "SELECT line FROM audit ORDER BY seq DESC LIMIT 1"); {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return head, fmt.Errorf("read the head of the audit log: %w", err)
	case bytes.Equal(text, t.last.text):
		head = t.last.head
	default:
		last, err := audit.ParseLine(text)
		if err != nil {
			return head, fmt.Errorf("read the head of the audit log: %w", err)
		}
		head = last.Head()
		t.last = line{text, head}
	}
	t.head = &head
	return head, nil
}

// appendAudit continues the chain from the last entry.
func (t *tx) appendAudit(ctx context.Context, events []audit.Event) error {
	if len(events) == 0 {
		return nil
	}
	head, err := t.auditHead(ctx)
	if err != nil {
		return err
	}
	for _, ev := range events {
		e, err := audit.Next(head, ev)
		if err != nil {
			return err
		}
		text, err := audit.AppendLine(nil, e)
		if err != nil {
			return err
		}
		text = text[:len(text)-1]
		if _, err := t.exec(ctx, "INSERT INTO audit (seq, line) VALUES (?, ?)", e.Seq, text); err != nil {
			return fmt.Errorf("append audit entry %d: %w", e.Seq, err)
		}
		head = e.Head()
		t.last = line{text, head}
		t.appended = append(t.appended, e)
	}
	t.head = &head
	return nil
}
