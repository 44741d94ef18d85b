package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/server"
)

// BenchmarkSweep reads what Watch reads once a minute, of 10,000 machines of
// which ten are due; and, to compare with, the records of all.
func BenchmarkSweep(b *testing.B, s server.Store) {
	const machines, overdue, page = 10_000, 10, 500
	now := time.Now()
	for i := range machines {
		m := machine(fmt.Sprint(i))
		m.ReportDue = now.Add(time.Hour)
		if i < overdue {
			m.ReportDue = now.Add(-time.Hour)
		}
		m.Boot = &attest.Boot{PCRs: map[string][]byte{"sha256": make([]byte, 16*32)}}
		if err := s.Commit(b.Context(), &server.Change{Machine: m}); err != nil {
			b.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		due  time.Time
		want int
	}{"due": {now, overdue}, "all": {time.Time{}, machines}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				n := 0
				for q := (server.Query{State: attest.StateEnrolled, Due: c.due, Limit: page}); ; {
					ms, err := s.Machines(b.Context(), q)
					if err != nil {
						b.Fatal(err)
					}
					if n += len(ms); len(ms) < page {
						break
					}
					q.After = ms[len(ms)-1].ID
				}
				if n != c.want {
					b.Fatalf("%d machines, want %d", n, c.want)
				}
			}
		})
	}
}

// BenchmarkPrune removes evidence of 1,000 machines of one model, each with an
// event log of 32 kB, and tells how many pieces a second.
func BenchmarkPrune(b *testing.B, s server.Pruner) {
	const machines, boots = 1000, 5
	var all time.Duration
	removed := int64(0)
	for round := 0; b.Loop(); round++ {
		b.StopTimer()
		for i := range machines {
			m := machine(fmt.Sprintf("%d-%d", round, i))
			log := append(make([]byte, 0, 33_000), eventLog(1, i)...)
			log = append(log, eventLog(2, i)...)
			for j := range boots {
				e := evidenceOf(m, epoch.Add(time.Duration(j)*time.Hour), append(log, byte(j)))
				m.LastEvidence = digest(e)
				r := release(fmt.Sprintf("%d-%d-%d", round, i, j), m, uint32(j))
				if err := s.Commit(b.Context(), &server.Change{Machine: m, Evidence: e, Release: r}); err != nil {
					b.Fatal(err)
				}
				m.Revision++
				r.Outcome = "unlocked"
				if err := s.Commit(b.Context(), &server.Change{Confirm: r}); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.StartTimer()
		began := time.Now()
		r, err := server.Prune(b.Context(), s, server.PruneOrder{Before: epoch.AddDate(1, 0, 0), By: "ops", Now: time.Now})
		if err != nil || r.Removed != machines*(boots-1) {
			b.Fatalf("%+v, %v", r, err)
		}
		all += time.Since(began)
		removed += r.Removed
	}
	b.ReportMetric(float64(removed)/all.Seconds(), "pieces/s")
}
