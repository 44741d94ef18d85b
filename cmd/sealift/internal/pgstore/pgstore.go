// Package pgstore keeps the service's state in PostgreSQL, for several replicas
// of the service at once: it implements server.Store. Open opens a database and
// makes the tables on the first start.
//
// Changes of decisions go through one goroutine in each replica, which commits
// those that wait together (group commit), so that they share one fsync and one
// turn at the head of the audit log. The row of that head is locked first in
// each such transaction: replicas take turns there, and under that lock what a
// change compares with cannot change.
package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
)

const (
	// minVersion is the oldest server that is used, as server_version_num.
	// Since 14 a server notices clients that went away in the middle of a
	// statement (client_connection_check_interval).
	minVersion = 140000
	// maxConns is how many connections a replica has at most, if the DSN does
	// not say (pool_max_conns).
	maxConns = 16
	// connectTimeout is for one connection, if the DSN does not say.
	connectTimeout = 10 * time.Second
	// limit is how long one call may take altogether. The server's own limits
	// are shorter, so that it is the one that gives up, and says why.
	limit = 40 * time.Second
	// migrateLimit is how long the tables of an earlier version may take to
	// become ours.
	migrateLimit = time.Hour
	// tries is how often a write is begun again that the server ended before
	// anything was decided.
	tries = 4
)

// session are the settings of each connection. A replica that was frozen or cut
// off must not keep the lock on the audit log's head from the others, so the
// server ends what it left open.
var session = map[string]string{
	"application_name":                    "sealift",
	"search_path":                         "pg_catalog", // our names are qualified
	"default_transaction_isolation":       "read committed",
	"statement_timeout":                   "20s",
	"lock_timeout":                        "10s",
	"idle_in_transaction_session_timeout": "10s",
	"client_connection_check_interval":    "5s",
}

// IsDSN reports whether a store is named as a PostgreSQL database.
func IsDSN(s string) bool {
	return strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://")
}

// Name returns what may be said of a DSN in logs and errors: no password, no
// parameters.
func Name(dsn string) string {
	u, err := url.Parse(dsn)
	if err != nil || !IsDSN(dsn) {
		return "postgres database"
	}
	u.RawQuery, u.Fragment, u.RawFragment = "", "", ""
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	return u.String()
}

// Store is an open database. Its methods may be used by many goroutines.
type Store struct {
	name string // of the database, fit for errors
	pool *pgxpool.Pool

	queue  chan *pending // to the writer
	quit   chan struct{} // closed by Close
	closed sync.Once
	done   chan struct{} // closed by the writer when it ends

	// last is the head of the audit log that the writer saw last. A database
	// without that entry has lost decisions.
	last audit.Head
	tail atomic.Pointer[audit.Tail] // see Tell; nil: nobody is told
	// store is the name of the store that was opened, or loaded.
	store atomic.Pointer[string]
	// parts are those of evidence that are in the database. Of the writer.
	parts *parts.Set
}

// configure reads a DSN. What it refuses, it refuses without showing the DSN.
func configure(dsn string) (*pgxpool.Config, error) {
	u, err := url.Parse(dsn)
	if err != nil || !IsDSN(dsn) {
		return nil, errors.New("the DSN is not of the form postgres://user@host/database")
	}
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		// pgx shows the value that it could not read, which may be a password
		// that stands in the wrong place.
		return nil, errors.New("a parameter of the DSN, or a PG* variable of the environment, has a value that cannot be used")
	}
	if err := checkTransport(c.ConnConfig); err != nil {
		return nil, err
	}
	if !u.Query().Has("pool_max_conns") {
		c.MaxConns = maxConns
	}
	if c.ConnConfig.ConnectTimeout == 0 {
		c.ConnConfig.ConnectTimeout = connectTimeout
	}
	for k, v := range session {
		c.ConnConfig.RuntimeParams[k] = v
	}
	c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error { return checkServer(ctx, conn) }
	return c, nil
}

// checkTransport refuses to go to another machine without TLS that proves its
// name: whoever answers there decides who is revoked.
func checkTransport(c *pgx.ConnConfig) error {
	ends := []*pgconn.FallbackConfig{{Host: c.Host, TLSConfig: c.TLSConfig}}
	for _, f := range append(ends, c.Fallbacks...) {
		// sslmode=verify-ca is pgx's own check in place of crypto/tls's, which
		// is then told to skip its own.
		if local(f.Host) || f.TLSConfig != nil && !f.TLSConfig.InsecureSkipVerify && f.TLSConfig.ServerName != "" {
			continue
		}
		return fmt.Errorf("host %s would be reached without a verified certificate: add sslmode=verify-full (and sslrootcert=FILE) to the DSN", f.Host)
	}
	return nil
}

// local reports whether a host is this machine: a Unix socket's directory, or
// a loopback address.
func local(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// checkServer refuses a server that would not keep what it said is committed.
// It is asked on each new connection: a failover or a new configuration may
// have brought another one.
func checkServer(ctx context.Context, conn *pgx.Conn) error {
	var version, commit, fsync, pages string
	var standby bool
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num'), current_setting('synchronous_commit'),
		current_setting('fsync'), current_setting('full_page_writes'), pg_is_in_recovery()`).Scan(&version, &commit, &fsync, &pages, &standby)
	if err != nil {
		return fmt.Errorf("ask the server how it is configured: %w", err)
	}
	n, err := strconv.Atoi(version)
	switch {
	case err != nil || n < minVersion:
		return fmt.Errorf("the server is PostgreSQL %s (server_version_num), want %d or later", version, minVersion)
	case standby:
		return errors.New("the server is a standby: name the primary, or add target_session_attrs=read-write to the DSN")
	case fsync != "on":
		return fmt.Errorf("the server has fsync = %s: decisions would not survive a loss of power", fsync)
	case pages != "on":
		return fmt.Errorf("the server has full_page_writes = %s: decisions would not survive a loss of power", pages)
	case commit == "off":
		return errors.New("the server has synchronous_commit = off for this role or database: decisions would be answered before they are durable")
	}
	// A later change of the server's configuration does not reach a setting
	// that the session has made itself.
	if _, err := conn.Exec(ctx, "SELECT set_config('synchronous_commit', $1, false)", commit); err != nil {
		return fmt.Errorf("set synchronous_commit: %w", err)
	}
	return nil
}

// Open opens the database that dsn names, postgres://user@host/database, makes
// the tables if there are none, and brings those of an earlier version to ours.
// It refuses a server that is too old or does not keep what it committed, and
// tables of a later version.
//
// A password comes from the file that PGPASSFILE or passfile= name, ~/.pgpass,
// or PGPASSWORD. One in the DSN works, too, and is shown nowhere.
func Open(ctx context.Context, dsn string) (*Store, error) {
	name := Name(dsn)
	c, err := configure(dsn)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, migrateLimit)
	defer cancel()
	if err := migrate(ctx, pool); err != nil {
		pool.Close()
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	s := &Store{name: name, pool: pool, queue: make(chan *pending), quit: make(chan struct{}), done: make(chan struct{}), parts: parts.NewSet()}
	store, err := s.storeName(ctx)
	if err != nil {
		pool.Close()
		return nil, err
	}
	s.store.Store(&store)
	go s.writer()
	return s, nil
}

// storeName returns the name that the store has in the database.
func (s *Store) storeName(ctx context.Context) (name string, err error) {
	if err := s.pool.QueryRow(ctx, "SELECT store::text FROM sealift.head").Scan(&name); err != nil {
		return "", fmt.Errorf("open %s: read the name of the store: %w", s.name, err)
	}
	return name, nil
}

// Close finishes the writes that wait and closes the connections.
func (s *Store) Close() error {
	s.closed.Do(func() {
		close(s.quit)
		<-s.done
		s.pool.Close()
	})
	return nil
}

// bounded is ctx for work that is begun: it does not end because the caller
// goes away, which would cost the connection, but it does end.
func bounded(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	return ctx, cancel, nil
}

// undecided reports whether the server says that it has undone everything, so
// that the same can be tried again: a serialization failure or a deadlock
// (PostgreSQL, appendix A, class 40). The driver's own word that nothing was
// sent (pgconn.SafeToRetry) is not asked: it has it so of a COMMIT whose answer
// was lost.
func undecided(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}
