package pgstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
	"github.com/sealift/sealift/image/manifest"
)

func open(t testing.TB, dsn string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStore(t *testing.T) {
	pg := pgtest.Start(t)
	again := func(t *testing.T, s server.Store) server.Store { return open(t, s.(*Store).pool.Config().ConnString()) }
	storetest.Run(t, storetest.Subject{
		Open:    func(t *testing.T) server.Store { return open(t, pg.Database(t)) },
		Replica: again,
		Reopen: func(t *testing.T, s server.Store) server.Store {
			pg.Kill()
			pg.Restart(t)
			return again(t, s)
		},
	})
}

func TestReplicasThatStartAtOnceMakeTheTablesOnce(t *testing.T) {
	dsn := pgtest.Start(t).Database(t)
	var wg sync.WaitGroup
	stores := make([]*Store, 8)
	for i := range stores {
		wg.Go(func() {
			s, err := Open(t.Context(), dsn)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			stores[i] = s
			if err := s.Commit(t.Context(), logged(fmt.Sprint("start ", i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := entries(t, open(t, dsn)); len(got) != len(stores) {
		t.Errorf("%d audit entries, want %d", len(got), len(stores))
	}
}

// logged is a change that leaves one audit entry with that text.
func logged(text string) *server.Change {
	return &server.Change{Events: []audit.Event{{Time: time.Unix(1, 0), Kind: audit.KindRelease, Data: audit.Release{ID: text}}}}
}

// entries verifies the audit log and returns the texts of its entries.
func entries(t testing.TB, s server.Store) map[string]bool {
	t.Helper()
	var v audit.Verifier
	out := map[string]bool{}
	for e, err := range s.Audit(t.Context(), 1) {
		if err == nil {
			err = v.Add(e)
		}
		var d audit.Release
		if err == nil {
			err = json.Unmarshal(e.Data, &d)
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[d.ID] {
			t.Errorf("%s was logged twice", d.ID)
		}
		out[d.ID] = true
	}
	return out
}

func TestOpenRefuses(t *testing.T) {
	pg := pgtest.Start(t)
	unsafe := map[string]*pgtest.Server{
		"fsync":            pgtest.Start(t, "fsync = off"),
		"full_page_writes": pgtest.Start(t, "full_page_writes = off"),
	}
	database := func(setting string) string {
		dsn := pg.Database(t)
		pg.SQL(t, "postgres", fmt.Sprintf("ALTER DATABASE %s SET %s", nameOf(dsn), setting))
		return dsn
	}
	prepared := func(queries ...string) string {
		dsn := pg.Database(t)
		for _, q := range queries {
			pg.SQL(t, nameOf(dsn), q)
		}
		return dsn
	}
	later := pg.Database(t)
	s, err := Open(t.Context(), later)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	pg.SQL(t, nameOf(later), "UPDATE sealift.version SET version = 5")
	tests := map[string]struct{ dsn, want string }{
		"commits that are not durable":           {database("synchronous_commit = off"), "synchronous_commit = off"},
		"a server without fsync":                 {unsafe["fsync"].Database(t), "fsync = off"},
		"a server whose pages may tear":          {unsafe["full_page_writes"].Database(t), "full_page_writes = off"},
		"tables of a later program":              {later, "the tables are of version 5, want at most 4"},
		"a schema of another program":            {prepared("CREATE SCHEMA sealift", "CREATE TABLE sealift.machine ()"), "not of this program"},
		"a database that is not there":           {pg.DSN("nowhere"), "does not exist"},
		"another machine without TLS":            {"postgres://sealift@db.example/sealift?sslmode=disable", "sslmode=verify-full"},
		"another machine by the default sslmode": {"postgres://sealift@db.example/sealift", "sslmode=verify-full"},
		"another machine with an unnamed proof":  {"postgres://sealift@db.example/sealift?sslmode=verify-ca", "sslmode=verify-full"},
		"another machine with blind TLS":         {"postgres://sealift@10.0.0.1/sealift?sslmode=require", "sslmode=verify-full"},
		"another machine after this one":         {"postgres://sealift@localhost,db.example/sealift?sslmode=disable", "db.example"},
		"what is no DSN":                         {"postgres//sealift@localhost", "not of the form"},
		"a DSN that cannot be read":              {"postgres://sealift@localhost:port/sealift", "not of the form"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := Open(t.Context(), tt.dsn)
			if err == nil {
				s.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want it to contain %q", err, tt.want)
			}
		})
	}
}

// TestTablesOfTheFirstVersionAreBroughtToOurs makes version 1: challenges had a
// table, evidence was in one piece, and nothing said what was due or old.
func TestTablesOfTheFirstVersionAreBroughtToOurs(t *testing.T) {
	pg := pgtest.Start(t)
	dsn := pg.Database(t)
	s := open(t, dsn)
	due := time.Unix(1000, 123)
	m := &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n", State: attest.StateEnrolled, ReportDue: due, Reason: "\x00 ✓"}}
	old, err := json.Marshal(&api.StoredEvidence{
		Version: api.Version, Received: time.Unix(5, 0), Machine: attest.MachineID{2}, Evidence: attest.Evidence{EventLog: make([]byte, 15_000)},
	})
	if err != nil {
		t.Fatal(err)
	}
	before := logged("before")
	before.Machine, before.Evidence = m, old
	if err := s.Commit(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for _, q := range []string{
		"ALTER TABLE sealift.machine DROP COLUMN due",
		"DROP INDEX sealift.release_open",
		"DROP TABLE sealift.evidence_part",
		"ALTER TABLE sealift.evidence DROP COLUMN machine, DROP COLUMN received, DROP COLUMN epoch, DROP COLUMN pruned",
		fmt.Sprintf("UPDATE sealift.evidence SET body = decode('%x', 'hex')", old),
		"ALTER TABLE sealift.head DROP COLUMN epoch, DROP COLUMN store",
		"CREATE TABLE sealift.challenge (id bytea PRIMARY KEY, expires bigint NOT NULL, body bytea NOT NULL)",
		"CREATE INDEX challenge_expires ON sealift.challenge (expires)",
		"INSERT INTO sealift.challenge (id, expires, body) VALUES ('c', 1, '{}')",
		"UPDATE sealift.version SET version = 1",
	} {
		pg.SQL(t, nameOf(dsn), q)
	}
	var wg sync.WaitGroup
	for range 4 { // one brings them over, the others find them so
		wg.Go(func() {
			s, err := Open(t.Context(), dsn)
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
		})
	}
	wg.Wait()
	s = open(t, dsn)
	var version int
	var there bool
	if err := s.row(t.Context(), "SELECT version, to_regclass('sealift.challenge') IS NOT NULL FROM sealift.version", nil, &version, &there); err != nil || version != 4 || there {
		t.Errorf("version %d, challenges are there: %t, %v", version, there, err)
	}
	if err := s.Commit(t.Context(), logged("after")); err != nil {
		t.Error(err)
	}
	if got := entries(t, s); len(got) != 2 || !got["before"] {
		t.Errorf("the log has %v", got)
	}
	for at, want := range map[time.Time]int{due: 1, due.Add(-1): 0} {
		if found, err := s.Machines(t.Context(), server.Query{Due: at}); err != nil || len(found) != want {
			t.Errorf("%d machines are due at %s, %v; want %d", len(found), at, err, want)
		}
	}
	digest := sha256.Sum256(old)
	if got, err := s.Evidence(t.Context(), digest); err != nil || !bytes.Equal(got, old) {
		t.Errorf("evidence in one piece: %d bytes, %v", len(got), err)
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Unindexed != 1 || u.Parts.Count != 0 {
		t.Errorf("%+v, %v", u, err)
	}
	r, err := server.Prune(t.Context(), s, server.PruneOrder{Before: time.Unix(6, 0), By: "ops", Now: time.Now})
	if err != nil || r.Removed != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := s.Evidence(t.Context(), digest); !errors.As(err, new(*server.PrunedError)) {
		t.Errorf("got %v, want it pruned", err)
	}
}

func TestWhatTwoPiecesOfEvidenceShareIsStoredOnce(t *testing.T) {
	s := open(t, pgtest.Start(t).Database(t))
	size := func() (n int64) {
		if err := s.row(t.Context(), `SELECT (SELECT coalesce(sum(length(body)), 0) FROM sealift.evidence) +
			(SELECT coalesce(sum(length(body)), 0) FROM sealift.evidence_part)`, nil, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	log := strings.Repeat("0123456789abcdef", 3000)
	put := func(i int) []byte {
		b := fmt.Appendf(nil, `{"log":"%s","n":%d}`, log, i)
		if err := s.Commit(t.Context(), &server.Change{Evidence: b}); err != nil {
			t.Fatal(err)
		}
		return b
	}
	put(0)
	was := size()
	for i := range 5 {
		put(i + 1)
	}
	if grown := size() - was; grown > 5*1024 {
		t.Errorf("five more with the same log take %d bytes", grown)
	}
}

func TestAPartThatIsLostOrAlteredIsFound(t *testing.T) {
	pg := pgtest.Start(t)
	body := []byte(`{"log":"` + strings.Repeat("0123456789abcdef", 3000) + `"}`)
	for name, query := range map[string]string{
		"altered": "UPDATE sealift.evidence_part SET body = 'x'",
		"lost":    "DELETE FROM sealift.evidence_part",
		"row":     "UPDATE sealift.evidence SET body = decode('01ff', 'hex') WHERE octet_length(body) > 5",
	} {
		dsn := pg.Database(t)
		s := open(t, dsn)
		for _, b := range [][]byte{body, []byte("whole")} {
			if err := s.Commit(t.Context(), &server.Change{Evidence: b}); err != nil {
				t.Fatal(err)
			}
		}
		pg.SQL(t, nameOf(dsn), query)
		if got, err := s.Evidence(t.Context(), sha256.Sum256(body)); err == nil || errors.Is(err, server.ErrNotFound) {
			t.Errorf("%s: got %d bytes, %v", name, len(got), err)
		}
		if got := damaged(t, s); len(got) != 1 || got[0] != sha256.Sum256(body) {
			t.Errorf("%s: dumped as damaged: %v", name, got)
		}
	}
}

// A row whose columns and record say two things makes a backup that cannot be
// restored: names that are unique in the columns may not be so in the records.
func TestARowThatContradictsItsRecordIsNotDumped(t *testing.T) {
	pg := pgtest.Start(t)
	for name, query := range map[string]string{
		"a node name":        "UPDATE sealift.machine SET node_name = 'x'",
		"a disk":             "UPDATE sealift.machine SET disk_guid = NULL",
		"a machine's id":     "UPDATE sealift.machine SET id = 'x'",
		"a release's id":     "UPDATE sealift.release SET id = 'x'",
		"another machine's":  "UPDATE sealift.release SET machine = 'x'",
		"another generation": "UPDATE sealift.release SET generation = 8",
		"another reset":      "UPDATE sealift.release SET reset_count = 8",
		"another restart":    "UPDATE sealift.release SET restart_count = 8",
	} {
		t.Run(name, func(t *testing.T) {
			dsn := pg.Database(t)
			s := open(t, dsn)
			m := &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n", DiskGUID: "d"}}
			if err := s.Commit(t.Context(), &server.Change{Machine: m, Release: &server.Release{ID: "r", Machine: m.ID, ResetCount: 1}}); err != nil {
				t.Fatal(err)
			}
			dump := func() error { return s.Dump(t.Context(), func(server.Record) error { return nil }) }
			if err := dump(); err != nil {
				t.Fatal(err)
			}
			pg.SQL(t, nameOf(dsn), query)
			if err := dump(); err == nil || !strings.Contains(err.Error(), "altered") {
				t.Errorf("got %v, want an error that says that it was altered", err)
			}
		})
	}
}

// damaged returns what a dump says of evidence that is not as it was stored. The
// rest of it must be there: the evidence "whole".
func damaged(t *testing.T, s server.Archive) (all []manifest.SHA256) {
	t.Helper()
	whole := false
	if err := s.Dump(t.Context(), func(r server.Record) error {
		if r.Damaged != nil {
			all = append(all, *r.Damaged)
		}
		whole = whole || string(r.Evidence) == "whole"
		return nil
	}); err != nil {
		t.Error(err)
	}
	if !whole {
		t.Error("what is not damaged is not in the dump")
	}
	return all
}

// nameOf returns the name of the database of a DSN.
func nameOf(dsn string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		panic(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

func TestAnUnsafeSettingThatComesLaterDoesNotReachOpenSessions(t *testing.T) {
	pg := pgtest.Start(t)
	s := open(t, pg.Database(t))
	pg.SQL(t, "postgres", "ALTER SYSTEM SET synchronous_commit = off")
	pg.SQL(t, "postgres", "SELECT pg_reload_conf()")
	var got string
	// On the connection that was there before, which is the only one.
	if err := s.row(t.Context(), "SELECT current_setting('synchronous_commit')", nil, &got); err != nil || got != "on" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestAPasswordIsShownNowhere(t *testing.T) {
	for _, dsn := range []string{
		"postgres://sealift:s3cret@db.example/sealift",
		"postgres://sealift:s3cret@db.example:port/sealift",
		"postgres://sealift:s3cret@localhost:1/sealift",
		"postgres://localhost:1/sealift?user=x&password=s3cret",
		"postgres://sealift:s3cret@localhost/sealift?sslmode=sure",
		"postgres://localhost/sealift?password=s3cret&connect_timeout=s3cret",
		"postgres://sealift:s3cret%zz@localhost/sealift",
		"postgres://sealift:s3cret@localhost/sealift?pool_max_conns=s3cret",
	} {
		s, err := Open(t.Context(), dsn)
		if err == nil {
			s.Close()
			t.Errorf("%s: no error", dsn)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error shows the password: %v", err)
		}
		if strings.Contains(Name(dsn), "s3cret") {
			t.Errorf("the name shows the password: %s", Name(dsn))
		}
	}
	if got, want := Name("postgres://sealift:s3cret@db/sealift?sslmode=verify-full"), "postgres://sealift@db/sealift"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// proxy stands between a store and its server, and can cut the line.
type proxy struct {
	dsn string
	// cut is asked for each piece that a client sends, and says whether the
	// line is cut before the piece reaches the server, or after the server has
	// it and before the client has the answer.
	cut func(piece []byte) (before, after bool)
	mu  sync.Mutex
}

func newProxy(t *testing.T, dsn string) *proxy {
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(u.Query().Get("host"), ".s.PGSQL.5432")
	dir, err := os.MkdirTemp("", "px-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	u.RawQuery = url.Values{"host": {dir}}.Encode()
	p := &proxy{dsn: u.String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			backend, err := net.Dial("unix", socket)
			if err != nil {
				client.Close()
				continue
			}
			answered := make(chan struct{})
			wg.Go(func() { p.carry(client, backend.(*net.UnixConn), answered) })
			wg.Go(func() {
				defer close(answered)
				_, _ = io.Copy(client, backend) // ends when either is closed
				client.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return p
}

func (p *proxy) set(cut func([]byte) (bool, bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
}

// carry takes what the client sends to the server, until one of them goes away.
// answered is closed when the server's answers have nowhere to go.
func (p *proxy) carry(client net.Conn, backend *net.UnixConn, answered <-chan struct{}) {
	defer client.Close()
	defer backend.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		before, after := false, false
		p.mu.Lock()
		if p.cut != nil {
			before, after = p.cut(buf[:n])
		}
		p.mu.Unlock()
		if before {
			return
		}
		if after {
			client.Close() // the answer will not get there
		}
		if _, err := backend.Write(buf[:n]); err != nil {
			return
		}
		if after {
			_ = backend.CloseWrite() // the server does what it has, then ends
			<-answered
			return
		}
	}
}

func TestALineThatIsCut(t *testing.T) {
	pg := pgtest.Start(t)
	once := func(text string, before, after bool) func([]byte) (bool, bool) {
		done := false
		return func(b []byte) (bool, bool) {
			if done || !bytes.Contains(b, []byte(text)) {
				return false, false
			}
			done = true
			return before, after
		}
	}
	m := &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n"}}
	change := logged("cut")
	change.Machine, change.Release, change.Evidence = m, &server.Release{ID: "r", Machine: m.ID}, []byte("e")
	tests := map[string]struct {
		cut     func([]byte) (bool, bool)
		fails   bool
		written bool
	}{
		"before the transaction":            {once("begin", true, false), false, true},
		"in the transaction":                {once("sealift.head FOR UPDATE", true, false), false, true},
		"after its writes":                  {once("sealift.head FOR UPDATE", false, true), false, true},
		"before the log":                    {once("UPDATE sealift.head", true, false), false, true},
		"before the commit":                 {once("commit\x00", true, false), true, false},
		"between the commit and its answer": {once("commit\x00", false, true), true, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dsn := pg.Database(t)
			open(t, dsn).Close() // the tables are there
			p := newProxy(t, dsn)
			s := open(t, p.dsn)
			tail := new(audit.Tail)
			s.Tell(tail)
			p.set(tt.cut)
			err := s.Commit(t.Context(), change)
			if (err != nil) != tt.fails {
				t.Errorf("got %v, want an error: %t", err, tt.fails)
			}
			if errors.Is(err, server.ErrConflict) || errors.Is(err, server.ErrReleased) {
				t.Errorf("got %v: what its own write did is no conflict", err)
			}
			// Told is what is known to be there, once.
			if told := len(tail.After(audit.Head{})); told != 1 && !tt.fails || told != 0 && tt.fails {
				t.Errorf("%d entries were told", told)
			}
			direct := open(t, dsn)
			// It waits for the lock of a transaction that is not decided yet.
			if err := direct.Commit(t.Context(), logged("direct")); err != nil {
				t.Fatal(err)
			}
			_, machineErr := direct.Machine(t.Context(), m.ID)
			_, releaseErr := direct.Release(t.Context(), "r")
			for _, err := range []error{machineErr, releaseErr} {
				if (err == nil) != tt.written {
					t.Errorf("got %v, want it written: %t", err, tt.written)
				}
			}
			if got := entries(t, direct); got["cut"] != tt.written {
				t.Errorf("log is %v, want it written: %t", got, tt.written)
			}
			// And the store goes on, on a new line.
			if err := s.Commit(t.Context(), logged("after")); err != nil {
				t.Error(err)
			}
			var heads []audit.Head
			for e, err := range direct.Audit(t.Context(), 1) {
				if err != nil {
					t.Fatal(err)
				}
				heads = append(heads, e.Head())
			}
			if told := tail.After(heads[len(heads)-2]); len(told) != 1 || told[0].Head() != heads[len(heads)-1] {
				t.Errorf("%d entries were told, want that of the last commit", len(told))
			}
		})
	}
}

func TestADatabaseThatWentBackIsNotWritten(t *testing.T) {
	pg := pgtest.Start(t)
	dsn := pg.Database(t)
	s := open(t, dsn)
	for i := range 3 {
		if err := s.Commit(t.Context(), logged(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	// As after a failover to a standby that had not everything yet.
	pg.SQL(t, nameOf(dsn), `WITH gone AS (DELETE FROM sealift.audit WHERE seq = 3)
		UPDATE sealift.head SET seq = 2, hash = (SELECT decode(convert_from(line, 'UTF8')::json->>'hash', 'hex') FROM sealift.audit WHERE seq = 2)`)
	wantWentBack := func() {
		t.Helper()
		if err := s.Commit(t.Context(), logged("more")); err == nil || !strings.Contains(err.Error(), "went back") {
			t.Errorf("got %v, want an error that says that the log went back", err)
		}
	}
	wantWentBack()
	if got := entries(t, s); len(got) != 2 {
		t.Errorf("%d audit entries, want 2", len(got))
	}
	// A replica that was started since makes the log as long again, and longer.
	other := open(t, dsn)
	for i := range 2 {
		if err := other.Commit(t.Context(), logged(fmt.Sprint("other ", i))); err != nil {
			t.Fatal(err)
		}
		wantWentBack()
	}
	if err := other.Commit(t.Context(), logged("more")); err != nil {
		t.Error(err)
	}
}

// A replica of an earlier version is left running when another brings the tables
// to its own.
func TestTablesOfALaterVersionAreNotWritten(t *testing.T) {
	pg := pgtest.Start(t)
	dsn := pg.Database(t)
	s := open(t, dsn)
	if err := s.Commit(t.Context(), logged("first")); err != nil {
		t.Fatal(err)
	}
	pg.SQL(t, nameOf(dsn), "UPDATE sealift.version SET version = version + 1")
	for _, c := range []*server.Change{logged("more"), {Evidence: []byte("evidence")}} {
		if err := s.Commit(t.Context(), c); !errors.Is(err, errVersion) {
			t.Errorf("got %v, want %v", err, errVersion)
		}
	}
}

// TestServerKilled kills the database under replicas that write, and starts it
// again at once. The replicas go on without being opened anew.
func TestServerKilled(t *testing.T) {
	pg := pgtest.Start(t)
	dsn := pg.Database(t)
	replicas := []*Store{open(t, dsn), open(t, dsn)}
	var mu sync.Mutex
	durable := map[string]bool{}
	stop := make(chan struct{})
	progress := make(chan struct{}, 1)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			s := replicas[w%2]
			for i := uint32(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("r-%d-%d", w, i)
				c := logged(id)
				c.Release = &server.Release{ID: id, Machine: attest.MachineID{byte(w)}, ResetCount: i}
				err := s.Commit(t.Context(), c)
				if errors.Is(err, server.ErrReleased) {
					t.Errorf("release %s: %v, and it was asked for once", id, err)
				}
				mu.Lock()
				if err == nil {
					durable[id] = true
				}
				mu.Unlock()
				if err == nil {
					select {
					case progress <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	for range 3 {
		for range 30 {
			<-progress
		}
		pg.Kill()
		pg.Restart(t)
		<-progress // they go on
	}
	close(stop)
	wg.Wait()
	log := entries(t, replicas[0])
	for id := range durable {
		if _, err := replicas[0].Release(t.Context(), id); err != nil || !log[id] {
			t.Errorf("release %s was durable: %v, in the log: %t", id, err, log[id])
		}
	}
	for id := range log {
		if _, err := replicas[1].Release(t.Context(), id); err != nil {
			t.Errorf("release %s is in the log alone: %v", id, err)
		}
	}
	t.Logf("%d durable releases, %d in the log", len(durable), len(log))
}

// BenchmarkReleases writes releases from many goroutines through so many
// replicas.
func BenchmarkReleases(b *testing.B) {
	for _, n := range []int{1, 2} {
		b.Run(fmt.Sprint(n, " replicas"), func(b *testing.B) {
			dsn := pgtest.Start(b).Database(b)
			var replicas []*Store
			for range n {
				replicas = append(replicas, open(b, dsn))
			}
			blob := make([]byte, 60<<10)
			var next atomic.Uint32
			b.SetParallelism(64)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := next.Add(1)
					c := logged(fmt.Sprint("r", i))
					c.Release = &server.Release{ID: fmt.Sprint("r", i), ResetCount: i}
					c.Evidence = append(blob[:len(blob):len(blob)], c.Release.ID...)
					if err := replicas[i%uint32(n)].Commit(b.Context(), c); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkSweep(b *testing.B) { storetest.BenchmarkSweep(b, open(b, pgtest.Start(b).Database(b))) }

func BenchmarkPrune(b *testing.B) { storetest.BenchmarkPrune(b, open(b, pgtest.Start(b).Database(b))) }

func BenchmarkReleasesBesidePrune(b *testing.B) {
	storetest.BenchmarkReleasesBesidePrune(b, open(b, pgtest.Start(b).Database(b)))
}
