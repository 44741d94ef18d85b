package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// ground is a kind of store, and how whoever writes to its database changes it.
type ground struct {
	fresh  func(t *testing.T) server.Archive // with nothing in it
	change func(h *thief) server.Archive     // with what the thief makes of what was there
}

func inMemory() *ground {
	return &ground{
		fresh: func(*testing.T) server.Archive { return new(storetest.Memory) },
		change: func(h *thief) server.Archive {
			next := new(storetest.Memory)
			h.load(next, h.records, h.chained())
			if len(h.rows) > 0 {
				return &replaced{next, h.rows}
			}
			return next
		},
	}
}

// onAllStores runs a test in memory, and on SQLite and PostgreSQL, where the thief
// changes rows by SQL while nobody has them open.
func onAllStores(t *testing.T, test func(t *testing.T, g *ground)) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, inMemory())
	})
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		tables := &tables{
			text: func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" },
			blob: func(b []byte) string { return fmt.Sprintf("x'%x'", b) },
		}
		test(t, &ground{
			fresh: func(t *testing.T) server.Archive { return open(t, filepath.Join(t.TempDir(), "s.db")) },
			change: func(h *thief) server.Archive {
				file := filepath.Join(h.t.TempDir(), "s.db")
				return h.changed(tables, file, func(statements []string) {
					db, err := sql.Open("sqlite", file)
					if err == nil {
						_, err = db.ExecContext(h.t.Context(), strings.Join(statements, ";\n"))
						err = errors.Join(err, db.Close())
					}
					if err != nil {
						h.t.Fatal(err)
					}
				})
			},
		})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		pg := pgtest.Start(t)
		blob := func(b []byte) string { return fmt.Sprintf(`'\x%x'`, b) }
		tables := &tables{schema: "sealift.", text: func(s string) string { return blob([]byte(s)) }, blob: blob}
		test(t, &ground{
			fresh: func(t *testing.T) server.Archive { return open(t, pg.Database(t)) },
			change: func(h *thief) server.Archive {
				dsn := pg.Database(h.t)
				at, err := url.Parse(dsn)
				if err != nil {
					h.t.Fatal(err)
				}
				return h.changed(tables, dsn, func(statements []string) {
					statements = append(statements, tables.head(h.chained()))
					// The kernel bounds an argument.
					for part := range slices.Chunk(statements, 8) {
						pg.SQL(h.t, strings.TrimPrefix(at.Path, "/"), strings.Join(part, ";\n"))
					}
				})
			},
		})
	})
}

func open(t *testing.T, name string) stateStore {
	t.Helper()
	store, err := openStore(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// A thief is who can write to the database, and has no key of the service. Here
// it is a copy that is changed at will.
type thief struct {
	t       *testing.T
	on      *ground
	records []server.Record
	log     []audit.Entry         // chained anew in the end
	rows    map[int64]audit.Entry // what rows of it hold in place of that

	was    []server.Record // before anything was changed
	wasLog []audit.Entry
}

// steal reads all of a store.
func steal(t *testing.T, on *ground, store server.Archive) *thief {
	t.Helper()
	h := &thief{t: t, on: on}
	if err := store.Dump(t.Context(), func(r server.Record) error {
		if r.Entry != nil {
			h.wasLog = append(h.wasLog, *r.Entry)
		} else {
			h.was = append(h.was, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return h.copied()
}

// copied is a thief with what was there.
func (h *thief) copied() *thief {
	c := &thief{t: h.t, on: h.on, was: h.was, wasLog: h.wasLog, log: slices.Clone(h.wasLog)}
	for _, r := range h.was {
		if r.Document != nil {
			d := *r.Document
			r.Document = &d
		}
		c.records = append(c.records, r)
	}
	return c
}

// store is the store that the thief leaves, with the log chained anew.
func (h *thief) store() server.Archive { return h.on.change(h) }

// chained is the log that the thief leaves. Entries that are as they were keep their
// place.
func (h *thief) chained() []audit.Entry {
	h.t.Helper()
	var out []audit.Entry
	var head audit.Head
	for _, e := range h.log {
		again, err := audit.Next(head, audit.Event{Time: e.Time, Kind: e.Kind, Machine: e.Machine, Data: e.Data})
		if err != nil {
			h.t.Fatal(err)
		}
		head, out = again.Head(), append(out, again)
	}
	return out
}

func (h *thief) load(store server.Archive, records []server.Record, log []audit.Entry) {
	h.t.Helper()
	if err := store.Load(h.t.Context(), func(yield func(server.Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
		for i := range log {
			if !yield(server.Record{Entry: &log[i]}, nil) {
				return
			}
		}
	}); err != nil {
		h.t.Fatal(err)
	}
}

// changed makes a database of what was there, has run change it, and opens it.
func (h *thief) changed(tables *tables, name string, run func(statements []string)) server.Archive {
	h.t.Helper()
	store, err := openStore(h.t.Context(), name)
	if err != nil {
		h.t.Fatal(err)
	}
	h.load(store, h.was, h.wasLog)
	if err := store.Close(); err != nil {
		h.t.Fatal(err)
	}
	if statements := tables.changes(h); len(statements) > 0 {
		run(statements)
	}
	return open(h.t, name)
}

// tables are those of a database, and how its SQL spells values.
type tables struct {
	schema string
	text   func(string) string // of the columns that hold text
	blob   func([]byte) string
}

// changes are the statements that make what the thief leaves of what was there.
func (d *tables) changes(h *thief) (out []string) {
	h.t.Helper()
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	documents := func(all []server.Record) map[[2]string]*server.Document {
		by := map[[2]string]*server.Document{}
		for _, r := range all {
			if r.Document != nil {
				by[[2]string{r.Document.Kind, r.Document.Name}] = r.Document
			}
		}
		return by
	}
	was, is := documents(h.was), documents(h.records)
	for at, before := range was {
		row := fmt.Sprintf("kind = %s AND name = %s", d.text(at[0]), d.text(at[1]))
		switch now := is[at]; {
		case now == nil:
			add("DELETE FROM %sdocument WHERE %s", d.schema, row)
		case now.Revision != before.Revision || !bytes.Equal(now.Body, before.Body):
			add("UPDATE %sdocument SET revision = %d, body = %s WHERE %s", d.schema, now.Revision, d.blob(now.Body), row)
		}
	}
	for at, now := range is {
		if was[at] == nil {
			add("INSERT INTO %sdocument (kind, name, revision, body) VALUES (%s, %s, %d, %s)", d.schema, d.text(at[0]), d.text(at[1]), now.Revision, d.blob(now.Body))
		}
	}
	log := h.chained()
	for i, e := range log {
		if other, ok := h.rows[e.Seq]; ok {
			e = other
		}
		line, err := audit.AppendLine(nil, e)
		if err != nil {
			h.t.Fatal(err)
		}
		line = line[:len(line)-1]
		switch seq := int64(i + 1); {
		case i >= len(h.wasLog):
			add("INSERT INTO %saudit (seq, line) VALUES (%d, %s)", d.schema, seq, d.blob(line))
		case e.Hash != h.wasLog[i].Hash:
			add("UPDATE %saudit SET line = %s WHERE seq = %d", d.schema, d.blob(line), seq)
		}
	}
	if len(log) < len(h.wasLog) {
		add("DELETE FROM %saudit WHERE seq > %d", d.schema, len(log))
	}
	return out
}

// head is the statement that writes where the log ends.
func (d *tables) head(log []audit.Entry) string {
	var head audit.Head
	if len(log) > 0 {
		head = log[len(log)-1].Head()
	}
	return fmt.Sprintf("UPDATE %shead SET seq = %d, hash = %s", d.schema, head.Seq, d.blob(head.Hash[:]))
}

// replaced is a store in memory in which entries of the log have others in their
// place, which whoever starts after them does not read.
type replaced struct {
	server.Archive
	by map[int64]audit.Entry
}

func (r *replaced) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		for e, err := range r.Archive.Audit(ctx, from) {
			if other, ok := r.by[e.Seq]; ok && err == nil {
				e = other
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// document changes the body of a document, or takes it away.
func (h *thief) document(kind, name string, change func(body json.RawMessage) json.RawMessage) {
	h.t.Helper()
	for i, r := range h.records {
		if d := r.Document; d != nil && d.Kind == kind && d.Name == name {
			if d.Body = change(d.Body); d.Body == nil {
				h.records = append(h.records[:i:i], h.records[i+1:]...)
			}
			return
		}
	}
	h.t.Fatalf("there is no %s %s", kind, name)
}

func (h *thief) pointer(change func(p *policyPointer)) {
	h.t.Helper()
	h.document(policyCurrentKind, policyCurrentName, func(body json.RawMessage) json.RawMessage {
		var p policyPointer
		if err := json.Unmarshal(body, &p); err != nil {
			h.t.Fatal(err)
		}
		change(&p)
		body, err := json.Marshal(p)
		if err != nil {
			h.t.Fatal(err)
		}
		return body
	})
}

// cut ends the log before the last enabling.
func (h *thief) cut() {
	for i := len(h.log) - 1; i >= 0; i-- {
		if h.log[i].Kind == audit.KindPolicy {
			h.log = h.log[:i]
			return
		}
	}
	h.t.Fatal("nothing was enabled")
}
