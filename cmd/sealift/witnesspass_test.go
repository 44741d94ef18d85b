package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// rows is a store that is open, and its log as whoever writes to the database changes it
// meanwhile.
type rows struct {
	store server.Store
	// put has row seq hold a line, or be gone if it is empty.
	put func(seq int64, line []byte)
	// insert puts a line before row seq, and those from there on after it.
	insert func(seq int64, line []byte)
}

// rewritten is a log of which rows are changed in memory.
type rewritten struct {
	*storetest.Memory
	mu    sync.Mutex
	alter func([]audit.Entry) []audit.Entry // guarded by mu
}

func (r *rewritten) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		var all []audit.Entry
		for e := range r.Memory.Audit(ctx, 1) {
			all = append(all, e)
		}
		r.mu.Lock()
		alter := r.alter
		r.mu.Unlock()
		if alter != nil {
			all = alter(all)
		}
		for _, e := range all {
			if e.Seq >= from && !yield(e, nil) {
				return
			}
		}
	}
}

// onAllLogs runs a test in memory, on SQLite and on PostgreSQL, where rows are changed
// while the store is in use.
func onAllLogs(t *testing.T, test func(t *testing.T, fresh func(t *testing.T) rows)) {
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		test(t, func(t *testing.T) rows {
			m := &rewritten{Memory: new(storetest.Memory)}
			change := func(f func(all []audit.Entry, i int, e *audit.Entry) []audit.Entry) func(int64, []byte) {
				return func(seq int64, line []byte) {
					var e *audit.Entry
					if line != nil {
						one, err := audit.ParseLine(line)
						if err != nil {
							t.Fatal(err)
						}
						e = &one
					}
					m.mu.Lock()
					defer m.mu.Unlock()
					m.alter = func(all []audit.Entry) []audit.Entry { return f(all, int(seq-1), e) }
				}
			}
			return rows{
				store: m,
				put: change(func(all []audit.Entry, i int, e *audit.Entry) []audit.Entry {
					if e == nil {
						return append(all[:i:i], all[i+1:]...)
					}
					all[i] = *e
					return all
				}),
				insert: change(func(all []audit.Entry, i int, e *audit.Entry) []audit.Entry {
					return append(append(all[:i:i], *e), all[i:]...)
				}),
			}
		})
	})
	by := func(store server.Store, table, blob string, run func(statements ...string)) rows {
		return rows{
			store: store,
			put: func(seq int64, line []byte) {
				if line == nil {
					run(fmt.Sprintf("DELETE FROM %s WHERE seq = %d", table, seq))
					return
				}
				run(fmt.Sprintf("UPDATE %s SET line = "+blob+" WHERE seq = %d", table, line, seq))
			},
			insert: func(seq int64, line []byte) {
				run(fmt.Sprintf("UPDATE %s SET seq = -seq - 1 WHERE seq >= %d", table, seq), fmt.Sprintf("UPDATE %s SET seq = -seq WHERE seq < 0", table),
					fmt.Sprintf("INSERT INTO %s (seq, line) VALUES (%d, "+blob+")", table, seq, line))
			},
		}
	}
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		test(t, func(t *testing.T) rows {
			file := filepath.Join(t.TempDir(), "s.db")
			store := open(t, file)
			return by(store, "audit", "x'%x'", func(statements ...string) {
				db, err := sql.Open("sqlite", file)
				if err == nil {
					_, err = db.ExecContext(t.Context(), strings.Join(statements, ";\n"))
					err = errors.Join(err, db.Close())
				}
				if err != nil {
					t.Fatal(err)
				}
			})
		})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		pg := pgtest.Start(t)
		test(t, func(t *testing.T) rows {
			dsn := pg.Database(t)
			at, err := url.Parse(dsn)
			if err != nil {
				t.Fatal(err)
			}
			return by(open(t, dsn), "sealift.audit", `'\x%x'`, func(statements ...string) {
				pg.SQL(t, strings.TrimPrefix(at.Path, "/"), strings.Join(statements, ";\n"))
			})
		})
	})
}

// entriesOf reads what a log has, as far as it can be read.
func entriesOf(t *testing.T, store server.Store) (out []audit.Entry) {
	t.Helper()
	for e, err := range store.Audit(t.Context(), 1) {
		if err != nil {
			break
		}
		out = append(out, e)
	}
	return out
}

func lineOf(t *testing.T, e audit.Entry) []byte {
	t.Helper()
	line, err := audit.AppendLine(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	return line[:len(line)-1]
}

// another is the entry that is made up in the place of one, with hashes that fit.
func another(t *testing.T, e audit.Entry) audit.Entry {
	t.Helper()
	made, err := audit.Next(audit.Head{Seq: e.Seq - 1, Hash: e.Prev}, audit.Event{Time: e.Time, Kind: audit.KindConfirm, Data: audit.Confirm{ReleaseID: "made up", Outcome: "o"}})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// pass goes over the log once, or until something is wrong.
func (p *logPass) pass(t *testing.T) error {
	t.Helper()
	for range 1 << 16 {
		if done, err := p.step(t.Context()); done || err != nil {
			return err
		}
	}
	t.Fatal("a pass does not end")
	return nil
}

// Whatever is changed in a log that this process wrote and took without reading it is
// found by the next pass, wherever that begins, and named; and by the next start at once.
func TestARowThatIsAlteredBehindTheServiceIsFoundInAPass(t *testing.T) {
	t.Parallel()
	const (
		last = 450 // more than two steps
		row  = 200 // where they alter it
	)
	onAllLogs(t, func(t *testing.T, fresh func(t *testing.T) rows) {
		for name, c := range map[string]struct {
			alter func(r rows, all []audit.Entry)
			want  string
		}{
			"its time": {func(r rows, all []audit.Entry) {
				e := all[row-1]
				e.Time = e.Time.Add(1)
				r.put(row, lineOf(t, e))
			}, "entry 200 (line 200): altered: its fields hash to"},
			"what it says": {func(r rows, all []audit.Entry) {
				e := all[row-1]
				e.Data = []byte(`{"releaseID":"other","outcome":"o"}`)
				r.put(row, lineOf(t, e))
			}, "entry 200 (line 200): altered: its fields hash to"},
			"all of it, with hashes that fit": {func(r rows, all []audit.Entry) { r.put(row, lineOf(t, another(t, all[row-1]))) },
				"entry 200"},
			"it is another entry": {func(r rows, all []audit.Entry) { r.put(row, lineOf(t, all[row])) }, "entry "},
			"it is gone":          {func(r rows, _ []audit.Entry) { r.put(row, nil) }, "entry 201 (line 201): missing entry: 201 comes after 199"},
			"one was added":       {func(r rows, all []audit.Entry) { r.insert(row, lineOf(t, another(t, all[row-1]))) }, "entry "},
			"the first is gone":   {func(r rows, _ []audit.Entry) { r.put(1, nil) }, "entry 2 (line 2): missing entry: 2 comes after 0"},
			"the first is that of another log": {func(r rows, all []audit.Entry) {
				e, err := audit.Next(audit.Head{Hash: [32]byte{1}}, audit.Event{Time: time.Now(), Kind: audit.KindStart, Data: audit.Start{}})
				if err != nil {
					t.Fatal(err)
				}
				r.put(1, lineOf(t, e))
			}, "which was replaced"},
			"the last but one": {func(r rows, all []audit.Entry) {
				e := all[last-2]
				e.Time = e.Time.Add(1)
				r.put(last-1, lineOf(t, e))
			}, "entry 449 (line 449): altered"},
		} {
			t.Run(name, func(t *testing.T) {
				r := fresh(t)
				w := newWitness(t, r.store, newReleaseKey(t), "")
				w.tail = newTail()
				r.store.(server.Teller).Tell(w.tail)
				for range last / 50 {
					var events []audit.Event
					for range 50 {
						events = append(events, audit.Event{Time: time.Now(), Kind: audit.KindConfirm, Data: audit.Confirm{ReleaseID: "r", Outcome: "o"}})
					}
					if err := r.store.Commit(t.Context(), &server.Change{Events: events}); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.keepUp(t.Context()); err != nil {
					t.Fatal(err)
				}
				all := entriesOf(t, r.store)
				if len(all) != last {
					t.Fatalf("%d entries", len(all))
				}
				firsts := []int64{1, 2, row - 1, row, row + 1, last}
				passes := map[int64]*logPass{}
				for _, first := range firsts {
					// In a process of its own, which has not found it yet.
					passes[first] = &logPass{w: &logWitness{store: r.store, log: w.log, chain: audit.VerifierAt(all[last-1].Head())}, first: first}
					if err := passes[first].pass(t); err != nil || passes[first].n != last {
						t.Fatalf("before, from entry %d on: %v, %d entries", first, err, passes[first].n)
					}
				}
				c.alter(r, all)
				for _, first := range firsts {
					err := passes[first].pass(t)
					if !errors.Is(err, errAltered) || !strings.Contains(err.Error(), c.want) {
						t.Errorf("from entry %d on: %v", first, err)
					}
					if _, _, again := passes[first].w.seen(); again == nil || again.Error() != err.Error() {
						t.Errorf("from entry %d on, it is not for good: %v", first, again)
					}
				}
				// A start looks there first.
				next := &logPass{w: &logWitness{store: r.store, log: w.log, chain: audit.VerifierAt(all[last-1].Head())}}
				done, err := next.step(t.Context())
				if done || !errors.Is(err, errAltered) {
					t.Errorf("after a start: %t, %v", done, err)
				}
			})
		}
	})
}

// Nothing is released any more, until somebody has put it right: one alarm says why, and a
// start changes nothing of that.
func TestNothingIsReleasedOnceAPassFoundTheLogAltered(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"SQLite", "PostgreSQL"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newPolicyScene(t).on(t)
			var r rows
			onLog(t, kind, &r)
			a := s.start(r.store, r.store, s.images[:], policyText(1, "1"), nil)
			a.wants("before", 1, "released")
			long(t, r.store, 20)
			if err := a.live.watch(t.Context()); err != nil {
				t.Fatal(err)
			}
			// A start reads from there on.
			if err := a.live.witness.save(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			all := entriesOf(t, r.store)
			const row = 3
			right := lineOf(t, all[row-1])
			wrong := all[row-1]
			wrong.Time = wrong.Time.Add(1)
			r.put(row, lineOf(t, wrong))
			a.wants("before a pass", 1, "released")
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { a.live.Run(ctx); close(done) }()
			a.await("alarm")
			a.wants("found", 1, "unavailable")
			cancel()
			<-done
			for range 3 {
				if err := a.live.look(t.Context()); !errors.Is(err, errAltered) || !strings.Contains(err.Error(), "entry 3 (line 3): altered") {
					t.Errorf("got %v", err)
				}
			}
			alarms := func() (n int) {
				for e, err := range r.store.Audit(t.Context(), row+1) {
					if err != nil {
						t.Fatal(err)
					}
					if e.Kind == audit.KindAlarm && strings.Contains(string(e.Data), `"`+string(audit.AlarmLogAltered)+`"`) && strings.Contains(string(e.Data), "entry 3 (line 3): altered") {
						n++
					}
				}
				return n
			}
			if n := alarms(); n != 1 {
				t.Errorf("%d alarms", n)
			}
			b := s.start(r.store, r.store, s.images[:], policyText(1, "1"), nil)
			b.wants("after a start", 1, "unavailable")
			if n := alarms(); n != 2 { // it is another process
				t.Errorf("%d alarms after a start", n)
			}
			r.put(row, right)
			c := s.start(r.store, r.store, s.images[:], policyText(1, "1"), nil)
			c.wants("put right", 1, "released")
			if err := (&logPass{w: c.live.witness}).pass(t); err != nil {
				t.Error(err)
			}
			var found passFound
			if _, err := document(t.Context(), r.store, passKind, passName, &found); err != nil || found.Entry != 0 {
				t.Errorf("still said to be altered: %+v, %v", found, err)
			}
		})
	}
}

// onLog makes one of a kind of onAllLogs.
func onLog(t *testing.T, kind string, r *rows) {
	t.Helper()
	if kind == "PostgreSQL" {
		pg := pgtest.Start(t)
		dsn := pg.Database(t)
		at, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		*r = rows{store: open(t, dsn), put: func(seq int64, line []byte) {
			pg.SQL(t, strings.TrimPrefix(at.Path, "/"), fmt.Sprintf(`UPDATE sealift.audit SET line = '\x%x' WHERE seq = %d`, line, seq))
		}}
		return
	}
	file := filepath.Join(t.TempDir(), "s.db")
	*r = rows{store: open(t, file), put: func(seq int64, line []byte) {
		db, err := sql.Open("sqlite", file)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		database{t, db}.exec("UPDATE audit SET line = ? WHERE seq = ?", line, seq)
	}}
}

// While a pass runs the service and another replica go on writing, and prune. Nothing of
// that is an alteration, and what came since is gone over by the next pass.
func TestAPassIsOfWhatWasSeenWhenItBegan(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func() server.Store) {
		stores := []server.Store{open(), open()}
		w := newWitness(t, stores[0], newReleaseKey(t), "")
		w.tail = newTail()
		stores[0].(server.Teller).Tell(w.tail)
		old := time.Now().Add(-48 * time.Hour).UTC()
		pruner := stores[1].(server.Pruner)
		p := &logPass{w: w, first: 77}
		for round := range 3 {
			for n := range 130 {
				evidence := fmt.Appendf(nil, `{"version":"v1","received":%q,"address":"192.0.2.1","machine":%q,"n":"%d %d"}`, old.Format(time.RFC3339Nano), attest.MachineID{1}, round, n)
				change := &server.Change{Evidence: evidence, Events: []audit.Event{{Time: time.Now(), Kind: audit.KindConfirm, Data: audit.Confirm{ReleaseID: "r", Outcome: "o"}}}}
				if err := stores[n%2].Commit(t.Context(), change); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.keepUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			head, _, _ := w.seen()
			for steps := 0; ; steps++ {
				done, err := p.step(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if done {
					break
				}
				report, err := server.Prune(t.Context(), pruner, server.PruneOrder{
					Before: time.Now().Add(-25 * time.Hour), By: "ana", Now: time.Now, Progress: func(api.PruneReport) error { return nil },
				})
				if err != nil || steps == 0 && report.Removed == 0 {
					t.Fatalf("%d pieces pruned, %v", report.Removed, err)
				}
				long(t, stores[1], 1)
				if err := w.keepUp(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if p.n != head.Seq {
				t.Errorf("round %d: %d entries were gone over, and %d were seen", round, p.n, head.Seq)
			}
			// There is something to prune in the next round's first step.
			long(t, stores[0], passStep)
		}
	})
}

// A store that is away for a while holds a pass up, and is no alteration.
func TestAPassGoesOnWhenTheStoreIsThereAgain(t *testing.T) {
	t.Parallel()
	memory := new(storetest.Memory)
	long(t, memory, 500)
	w := newWitness(t, memory, newReleaseKey(t), "")
	if err := w.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, after := range []int{0, 1, 150, 399, 499} {
		p := &logPass{w: w, first: 300}
		w.store = &breaking{Memory: memory, after: after}
		var err error
		for err == nil {
			var done bool
			if done, err = p.step(t.Context()); done {
				t.Fatalf("after %d entries: it came to its end", after)
			}
		}
		if errors.Is(err, errAltered) {
			t.Fatal(err)
		}
		w.store = memory
		if err := p.pass(t); err != nil || p.n != 500 {
			t.Errorf("after %d entries: %v, %d were gone over", after, err, p.n)
		}
	}
}

func TestALogThatIsEmptyIsGoneOver(t *testing.T) {
	t.Parallel()
	memory := new(storetest.Memory)
	w := newWitness(t, memory, newReleaseKey(t), "")
	p := &logPass{w: w}
	if err := p.pass(t); err != nil {
		t.Error(err)
	}
	long(t, memory, 1)
	if err := w.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.pass(t); err != nil || p.n != 1 {
		t.Errorf("%v, %d entries", err, p.n)
	}
}

// What is kept of what was found is not signed: whatever it says, all is gone over.
func TestWhatWasFoundIsAHint(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"entry":0}`, `{"entry":-7}`, `{"entry":1}`, `{"entry":300}`, `{"entry":9223372036854775807}`, `[]`, `{"entry":"x"}`} {
		memory := new(storetest.Memory)
		long(t, memory, 300)
		if err := memory.Commit(t.Context(), &server.Change{Documents: []*server.Document{{Kind: passKind, Name: passName, Body: []byte(body)}}}); err != nil {
			t.Fatal(err)
		}
		w := newWitness(t, memory, newReleaseKey(t), "")
		if err := w.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := &logPass{w: w}
		for range 2 {
			if err := p.pass(t); err != nil || p.n != 300 {
				t.Errorf("%s: %v, %d entries", body, err, p.n)
			}
		}
	}
}

// BenchmarkAPass measures the CPU time of going over a log of a million entries, and what
// share of a core a service takes for it with its rests; of what its own process uses.
func BenchmarkAPass(b *testing.B) {
	data := audit.Verdict{ChallengeID: strings.Repeat("c", 1800), Address: "192.0.2.1"} // as long as a usual entry
	for kind, entries := range map[string]int{"SQLite": 1_000_000, "PostgreSQL": 100_000} {
		b.Run(kind, func(b *testing.B) {
			name := filepath.Join(b.TempDir(), "s.db")
			if kind == "PostgreSQL" {
				name = pgtest.Start(b).Database(b)
			}
			store, err := openStore(b.Context(), name)
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			for range entries / 1000 {
				var events []audit.Event
				for range 1000 {
					events = append(events, audit.Event{Time: time.Now(), Kind: audit.KindVerdict, Data: data})
				}
				if err := store.Commit(b.Context(), &server.Change{Events: events}); err != nil {
					b.Fatal(err)
				}
			}
			w := &logWitness{store: store, log: slog.New(slog.DiscardHandler), chain: new(audit.Verifier)}
			for e, err := range store.Audit(b.Context(), int64(entries)) {
				if err != nil {
					b.Fatal(err)
				}
				w.chain = audit.VerifierAt(e.Head())
			}
			p := &logPass{w: w, first: int64(entries / 3)}
			step := func() bool {
				done, err := p.step(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				return done
			}
			for b.Loop() {
				before := cpuTime(b)
				for !step() {
				}
				used := cpuTime(b) - before
				b.ReportMetric(used.Seconds(), "s-CPU/pass")
				b.ReportMetric(float64(used.Microseconds())/float64(entries), "µs-CPU/entry")
				// With its rests, as goOver takes them.
				before, began := cpuTime(b), time.Now()
				for range 20 {
					at := time.Now()
					step()
					time.Sleep(passRest * time.Since(at))
				}
				b.ReportMetric(100*float64(cpuTime(b)-before)/float64(time.Since(began)), "%-of-a-core")
				b.ReportMetric(float64(p.n)/time.Since(began).Seconds(), "entries/s")
			}
		})
	}
}
