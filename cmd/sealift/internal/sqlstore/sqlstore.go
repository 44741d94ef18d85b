// Package sqlstore keeps the service's state in SQLite: it implements
// server.Store. Create makes a file, Open opens one.
//
// All writes go through one goroutine, which commits those that wait together
// (group commit): the fsync of a commit is what a release costs, and a fleet
// that powers up at once asks for many. Each write still succeeds or fails by
// itself: if one fails, all are made again, each in a savepoint of its own. Other
// processes may use the file at the same time; SQLite's lock keeps their transactions
// apart.
package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"modernc.org/sqlite" // also the database/sql driver "sqlite"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// applicationID marks the file as ours (PRAGMA application_id), schemaVersion
// says how its tables look (PRAGMA user_version).
const (
	applicationID = 0x5ea11f70
	schemaVersion = 6
)

// schema makes the tables. Columns hold what is searched or must be unique;
// the rest of a record is its JSON in body.
const schema = machines + `
CREATE TABLE evidence (
	digest   BLOB PRIMARY KEY, -- SHA-256 of the evidence
	machine  BLOB,
	received INTEGER,
	epoch    INTEGER NOT NULL DEFAULT 0,
	pruned   INTEGER,
	body     BLOB NOT NULL -- as parts.Cut wrote it
) STRICT;
CREATE TABLE audit (
	seq  INTEGER PRIMARY KEY,
	line BLOB NOT NULL -- as exported, without the newline
) STRICT;
CREATE TABLE evidence_part (
	digest BLOB PRIMARY KEY, -- SHA-256 of body
	epoch  INTEGER NOT NULL DEFAULT 0,
	body   BLOB NOT NULL
) STRICT;
` + documents + pruning

// machines are the tables of machines and releases. They have rowids: the tree
// of a table without them has whole rows in its inner nodes as well, four of ours
// in a page, so that of 10,000 machines it is seven pages deep.
const machines = `
CREATE TABLE machine (
	id        BLOB NOT NULL UNIQUE,
	revision  INTEGER NOT NULL,
	state     TEXT NOT NULL,
	node_name TEXT NOT NULL UNIQUE,
	disk_guid TEXT UNIQUE, -- NULL if there is none
	due       INTEGER, -- server.Machine.Due as Unix nanoseconds, NULL for never
	body      TEXT NOT NULL
) STRICT;
CREATE INDEX machine_state ON machine (state, id);
CREATE INDEX machine_due ON machine (state, due, id) WHERE due IS NOT NULL;
CREATE TABLE release (
	id            TEXT NOT NULL UNIQUE,
	machine       BLOB NOT NULL,
	generation    INTEGER NOT NULL,
	reset_count   INTEGER NOT NULL,
	restart_count INTEGER NOT NULL,
	confirmed     INTEGER NOT NULL, -- 0 or 1
	body          TEXT NOT NULL,
	UNIQUE (machine, generation, reset_count, restart_count)
) STRICT;
CREATE INDEX release_open ON release (machine) WHERE confirmed = 0;
`

// pruning is what finds evidence that is old.
const pruning = `
CREATE INDEX evidence_received ON evidence (received, digest) WHERE pruned IS NULL AND received >= 0;
CREATE INDEX evidence_unindexed ON evidence (epoch) WHERE received IS NULL;
CREATE INDEX evidence_epoch ON evidence (epoch) WHERE pruned IS NULL;
CREATE INDEX evidence_part_epoch ON evidence_part (epoch);
CREATE TABLE epoch (
	one   INTEGER PRIMARY KEY CHECK (one = 1),
	epoch INTEGER NOT NULL
) STRICT;
INSERT INTO epoch (one, epoch) VALUES (1, 1);
`

// firstParts are the parts of version 3.
const firstParts = `
CREATE TABLE evidence_part (
	digest BLOB PRIMARY KEY,
	body   BLOB NOT NULL
) STRICT;
`

const documents = `
CREATE TABLE document (
	kind     TEXT NOT NULL,
	name     TEXT NOT NULL,
	revision INTEGER NOT NULL,
	body     BLOB NOT NULL,
	PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
`

// fromFirst brings a file of schema version 1, which had campaigns only, to
// version 2.
const fromFirst = documents + `
INSERT INTO document (kind, name, revision, body) SELECT 'campaign', name, revision, body FROM campaign;
DROP TABLE campaign;
` + fromSecond

// fromSecond brings a file of schema version 2, which had all evidence in one
// piece, to version 3.
const fromSecond = firstParts + fromThird

// fromThird brings a file of schema version 3, which had challenges, to
// version 4.
const fromThird = `
DROP TABLE challenge;
` + fromFourth

// fromFourth brings a file of schema version 4, which did not say what is due
// and what is old, to version 5. When evidence was received is in it;
// IndexEvidence looks. A time may be due a fraction of a second early.
const fromFourth = `
ALTER TABLE machine ADD COLUMN due INTEGER;
UPDATE machine SET due = CASE
	WHEN json_extract(body, '$.fenceDue') THEN 0
	WHEN state = 'enrolled' AND NOT coalesce(json_extract(body, '$.stale'), 0)
		THEN CAST(strftime('%s', json_extract(body, '$.reportDue')) AS INTEGER) * 1000000000
END;
ALTER TABLE evidence ADD COLUMN machine BLOB;
ALTER TABLE evidence ADD COLUMN received INTEGER;
ALTER TABLE evidence ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
ALTER TABLE evidence ADD COLUMN pruned INTEGER;
ALTER TABLE evidence_part ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
` + pruning + fromFifth

// fromFifth brings a file of schema version 5, whose machines and releases had
// no rowids, to version 6. The indexes go with their tables.
const fromFifth = `
ALTER TABLE machine RENAME TO machine_5;
ALTER TABLE release RENAME TO release_5;
DROP INDEX machine_state;
DROP INDEX IF EXISTS machine_due;
DROP INDEX IF EXISTS release_open;
` + machines + `
INSERT INTO machine (id, revision, state, node_name, disk_guid, due, body)
	SELECT id, revision, state, node_name, disk_guid, due, body FROM machine_5 ORDER BY id;
INSERT INTO release (id, machine, generation, reset_count, restart_count, confirmed, body)
	SELECT id, machine, generation, reset_count, restart_count, confirmed, body FROM release_5;
DROP TABLE machine_5;
DROP TABLE release_5;
PRAGMA user_version = 6;
`

// readers bounds the connections that read at once.
const readers = 8

// maxBatch bounds the writes of one commit. More would only make each wait
// longer: the fsync is shared well before.
const maxBatch = 128

// Store is an open database. Its methods may be used by many goroutines.
type Store struct {
	path  string
	file  os.FileInfo // that path named when it was opened
	read  *sql.DB     // sees what was committed last
	write *sql.DB     // one connection, used by the writer only
	tx    *tx         // on that connection; of the writer, nil if there is none
	known line        // of the tx that was there before

	prepared sync.Map // query to *sql.Stmt of read

	tail atomic.Pointer[audit.Tail] // see Tell; nil: nobody is told

	queue  chan *pending // to the writer
	quit   chan struct{} // closed by Close
	closed sync.Once
	done   chan struct{} // closed by the writer when it ends
	err    error         // of closing; written before Close returns first
}

// pending is a write that waits for the writer.
type pending struct {
	ctx    context.Context
	do     func(context.Context, *tx) error
	again  bool // do may be called again after its work was undone
	result chan error
}

// dsn is the driver's name for path with our settings. Transactions take the
// write lock when they begin, so that none fails halfway because another
// writer was faster; synchronous=FULL makes each commit survive a power cut.
func dsn(path string, pragmas ...string) string {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": append([]string{
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)",
	}, pragmas...)}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// Create makes a new database at path, mode 0600, and opens it. It never
// touches a file that exists, and one that it did not finish does not exist.
func Create(ctx context.Context, path string) (*Store, error) {
	if err := build(ctx, path, func(string) error { return nil }); err != nil {
		return nil, fmt.Errorf("create database %s: %w", path, err)
	}
	return Open(ctx, path)
}

// Fill is Create and Load in one: whenever it is cut off, there is the whole
// database at path or none. An empty one would be taken for that of a new service.
func Fill(ctx context.Context, path string, records iter.Seq2[server.Record, error]) error {
	err := build(ctx, path, func(temp string) error {
		s, err := Open(ctx, temp)
		if err != nil {
			return err
		}
		return errors.Join(s.Load(ctx, records), s.Close())
	})
	if err != nil {
		return fmt.Errorf("fill database %s: %w", path, err)
	}
	return nil
}

// errOldLog: beside the name there is what SQLite would take for the log of the
// database of that name, and write into it.
var errOldLog = errors.New("there is the log of a database that is not there: put the database back, or move the log away if another store is wanted")

// build makes a database, has fill put into it what belongs there, and gives it
// its name.
func build(ctx context.Context, path string, fill func(temp string) error) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	for _, suffix := range []string{"-wal", "-journal"} {
		if _, err := os.Lstat(path + suffix); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s: %w", path+suffix, errOldLog), err)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return err
	}
	temp := f.Name()
	defer func() {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			err = errors.Join(err, removeIfThere(temp+suffix))
		}
	}()
	if err := f.Close(); err != nil {
		return err
	}
	if err := initialise(ctx, temp); err != nil {
		return err
	}
	if err := fill(temp); err != nil {
		return err
	}
	if err := checkpoint(ctx, temp); err != nil {
		return err
	}
	// Unlike a rename, a link does not replace what came meanwhile.
	if err := os.Link(temp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// checkpoint moves what is in the write-ahead log into the file itself. Closing
// the last connection does so too, but says nothing if there is no room for it.
func checkpoint(ctx context.Context, path string) (err error) {
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	var busy, frames, moved int64
	if err := db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &moved); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if busy != 0 || frames != moved {
		return fmt.Errorf("checkpoint: %d of %d pages moved, busy %d", moved, frames, busy)
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// initialise writes the schema into an empty file.
func initialise(ctx context.Context, path string) (err error) {
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	for _, q := range []string{
		schema,
		fmt.Sprintf("PRAGMA application_id = %d", applicationID),
		fmt.Sprintf("PRAGMA user_version = %d", schemaVersion),
	} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

// Open opens the database at path. It refuses a file that is not there, that
// others can read, that is no database of ours, or whose schema version is
// later than ours. One of an earlier version is brought to ours.
func Open(ctx context.Context, path string) (_ *Store, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("open database %s: not a regular file", path)
	}
	if m := st.Mode().Perm(); m&0o077 != 0 {
		return nil, fmt.Errorf("open database %s: mode is %04o, want 0600: others could read it", path, m)
	}
	// What a commit waits for is then that its data is on the disk, and not
	// also the time of the file's last change. SQLite does so wherever its own
	// configure script made it, which is in every distribution.
	if _, err := sqlite.Fdatasync(true); err != nil && !errors.Is(err, sqlite.ErrFdatasyncUnavailable) {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	write, err := sql.Open("sqlite", dsn(path, "cache_size(-8192)"))
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	write.SetMaxOpenConns(1)
	read, err := sql.Open("sqlite", dsn(path, "query_only(1)", "cache_size(-512)"))
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, errors.Join(err, write.Close()))
	}
	// All are kept: opening one costs more than most queries.
	read.SetMaxOpenConns(readers)
	read.SetMaxIdleConns(readers)
	s := &Store{path: path, read: read, write: write, queue: make(chan *pending), quit: make(chan struct{}), done: make(chan struct{})}
	err = s.checkSchema(ctx)
	if err == nil {
		// It is open for writing now: an overlay has made its own copy.
		s.file, err = os.Stat(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, errors.Join(err, read.Close(), write.Close()))
	}
	go s.writer()
	return s, nil
}

// stmt returns a prepared statement that reads. Each text is prepared once on
// each connection: they are constants of this package.
func (s *Store) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	if p, ok := s.prepared.Load(query); ok {
		return p.(*sql.Stmt), nil
	}
	p, err := s.read.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	if was, raced := s.prepared.LoadOrStore(query, p); raced {
		return was.(*sql.Stmt), p.Close()
	}
	return p, nil
}

// get reads one row into dest. No row is sql.ErrNoRows.
func (s *Store) get(ctx context.Context, query string, args []any, dest ...any) error {
	p, err := s.stmt(ctx, query)
	if err != nil {
		return err
	}
	return p.QueryRowContext(ctx, args...).Scan(dest...)
}

// checkSchema compares the file's marks with ours.
func (s *Store) checkSchema(ctx context.Context) error {
	var app, version int64
	if err := s.write.QueryRowContext(ctx, "PRAGMA application_id").Scan(&app); err != nil {
		return err
	}
	if app != applicationID {
		return fmt.Errorf("not a database of this program: application id is %#x, want %#x", app, applicationID)
	}
	if err := s.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version >= 1 && version < schemaVersion {
		tx, err := s.write.BeginTx(ctx, nil) // takes the write lock
		if err != nil {
			return err
		}
		// Another process may have been first.
		if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		if script := map[int64]string{1: fromFirst, 2: fromSecond, 3: fromThird, 4: fromFourth, 5: fromFifth}[version]; script != "" {
			if _, err := tx.ExecContext(ctx, script); err != nil {
				return errors.Join(fmt.Errorf("bring the schema to version %d: %w", schemaVersion, err), tx.Rollback())
			}
			version = schemaVersion
		}
		if err := tx.Commit(); err != nil {
			return fmt.Errorf("bring the schema to version %d: %w", schemaVersion, err)
		}
	}
	if version != schemaVersion {
		return fmt.Errorf("schema version is %d, want %d", version, schemaVersion)
	}
	return nil
}

// Close finishes the writes that wait and closes the file.
func (s *Store) Close() error {
	s.closed.Do(func() {
		close(s.quit)
		<-s.done
		// The reader first: the last connection to close checkpoints, and
		// only one that can write does.
		err := s.read.Close()
		if s.tx != nil {
			err = errors.Join(err, s.tx.close())
		}
		if err := errors.Join(err, s.write.Close()); err != nil {
			s.err = fmt.Errorf("close database %s: %w", s.path, err)
		}
	})
	return s.err
}

// submit has the writer run do, and waits until that is durable or failed. It
// waits even if ctx ends, because do may refer to the caller's memory; ctx only
// keeps a write from starting. again: do may be called once more after its work
// was undone.
func (s *Store) submit(ctx context.Context, again bool, do func(context.Context, *tx) error) error {
	return s.await(&pending{ctx: ctx, do: do, again: again, result: make(chan error, 1)})
}

func (s *Store) await(p *pending) error {
	select {
	case s.queue <- p:
		return <-p.result
	case <-p.ctx.Done():
		return p.ctx.Err()
	case <-s.quit:
		return fmt.Errorf("database %s: closed", s.path)
	}
}

// writer owns the write connection until quit.
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

// commit runs a batch in one transaction and tells each its result after the
// commit.
func (s *Store) commit(batch []*pending) {
	// A write that has begun is not given up for one caller's sake: it shares
	// the transaction with others.
	ctx := context.Background()
	results := make([]error, len(batch))
	err := s.replaced()
	if err == nil {
		err = s.transact(ctx, batch, results)
	}
	if err == nil {
		err = s.replaced() // before anybody acts on it
	}
	if err != nil {
		if s.tx != nil {
			s.known = s.tx.known
			err = errors.Join(err, s.tx.discard())
			s.tx = nil
		}
		// Also of those that failed by themselves: what they met may have been of
		// this transaction, and is not there.
		for i := range results {
			results[i] = fmt.Errorf("database %s: %w", s.path, err)
		}
	} else if tail := s.tail.Load(); tail != nil {
		tail.Append(s.tx.appended)
	}
	for i, p := range batch {
		p.result <- results[i]
	}
}

func (s *Store) transact(ctx context.Context, batch []*pending, results []error) (err error) {
	if s.tx == nil {
		if s.tx, err = newTx(ctx, s.write, s.known); err != nil {
			return err
		}
	}
	// Nearly all succeed, and a savepoint has SQLite keep a copy of each page
	// that is changed.
	if done, err := s.plainly(ctx, batch, results); done || err != nil {
		return err
	}
	if err := s.tx.begin(ctx); err != nil {
		return err
	}
	for i, p := range batch {
		if results[i] = p.ctx.Err(); results[i] != nil {
			continue
		}
		if results[i], err = s.tx.savepoint(ctx, p.do); err != nil {
			return err
		}
	}
	return s.tx.commit(ctx)
}

// plainly commits a batch without savepoints. If one fails, or can be made only
// once, nothing was done.
func (s *Store) plainly(ctx context.Context, batch []*pending, results []error) (done bool, err error) {
	for _, p := range batch {
		if !p.again {
			return false, nil
		}
	}
	if err := s.tx.begin(ctx); err != nil {
		return false, err
	}
	for i, p := range batch {
		if results[i] = p.ctx.Err(); results[i] != nil {
			continue
		}
		if failed := p.do(ctx, s.tx); failed != nil {
			// SQLite itself may have given up the transaction, for want of room.
			if err := s.tx.rollback(ctx); err != nil {
				return false, fmt.Errorf("%w, after: %v", err, failed) // which is no answer any more
			}
			return false, nil
		}
	}
	return true, s.tx.commit(ctx)
}
