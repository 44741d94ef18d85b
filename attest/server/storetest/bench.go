package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
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

// BenchmarkReleasesBesidePrune writes releases one after the other, by turns
// while old evidence is pruned as the service prunes it and while it is not, and
// tells how long one takes with and without, in milliseconds, and how much longer
// with: what else the machine does falls on both.
func BenchmarkReleasesBesidePrune(b *testing.B, s server.Pruner) {
	const old, turns, releases = 16_000, 40, 25
	body := func(m *server.Machine, at time.Time, i int) []byte {
		log := append(make([]byte, 0, 33_000), eventLog(1, i)...)
		return evidenceOf(m, at, append(log, eventLog(2, i)...))
	}
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < old; i += 16 {
				m := machine(fmt.Sprint("old ", i/4))
				if err := s.Commit(b.Context(), &server.Change{Evidence: body(m, epoch.Add(time.Duration(i)*time.Second), i)}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	// turn is full while the pruner has to wait.
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	wait := func() {
		turn <- struct{}{}
		<-turn
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var removed, left atomic.Int64
	pruner := make(chan error, 1)
	go func() {
		order := server.PruneOrder{
			Before: epoch.AddDate(1, 0, 0), By: "ops", Now: time.Now,
			Rest: func(ctx context.Context, took time.Duration) error {
				err := server.Rest(ctx, took)
				wait()
				return err
			},
			Progress: func(r api.PruneReport) error {
				removed.Store(r.Removed)
				return nil
			},
		}
		wait()
		_, err := server.Prune(ctx, s, order)
		left.Store(1)
		pruner <- err
	}()
	took := map[bool][]float64{}
	for t := range turns {
		pruning := t%2 == 1
		if pruning {
			<-turn
		}
		for i := range releases {
			m := machine(fmt.Sprintf("new %d-%d-%d", b.N, t, i))
			e := body(m, epoch.AddDate(2, 0, 0), i)
			m.LastEvidence = digest(e)
			began := time.Now()
			if err := s.Commit(b.Context(), &server.Change{Machine: m, Evidence: e, Release: release("r "+m.NodeName, m, 1), Events: []audit.Event{verdict(m.ID, "x")}}); err != nil {
				b.Fatal(err)
			}
			took[pruning] = append(took[pruning], float64(time.Since(began))/1e6)
			time.Sleep(time.Millisecond)
		}
		if pruning {
			turn <- struct{}{}
		}
	}
	if left.Load() != 0 {
		b.Fatal("the pruner was done before the releases were")
	}
	cancel()
	<-turn
	if err := <-pruner; !errors.Is(err, context.Canceled) {
		b.Fatal(err)
	}
	at := func(pruning bool, share float64) float64 {
		all := took[pruning]
		slices.Sort(all)
		return all[int(share*float64(len(all)-1))]
	}
	for name, share := range map[string]float64{"p50": 0.5, "p99": 0.99} {
		b.ReportMetric(at(false, share), name+"-ms")
		b.ReportMetric(at(true, share), name+"-ms-pruning")
		b.ReportMetric(at(true, share)/at(false, share), name+"-ratio")
	}
	b.ReportMetric(float64(removed.Load()), "pieces-pruned")
}
