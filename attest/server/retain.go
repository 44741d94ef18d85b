package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// maxRetention bounds how old evidence one can ask for, seconds: 200 years.
const maxRetention = 200 * 366 * 24 * 3600

func (s *Server) handleStore(handle func(string, api.Role, func(Operator, http.ResponseWriter, *http.Request) (any, *failure))) {
	if s.c.Pruner == nil {
		return
	}
	handle("GET "+api.PathStore, api.RoleViewer, s.getStore)
	handle("POST "+api.PathStore+"/prune", api.RoleApprover, s.postPrune)
}

// getStore answers GET api.PathStore. Counting reads much: one request at a time.
func (s *Server) getStore(_ Operator, _ http.ResponseWriter, r *http.Request) (any, *failure) {
	var order *PruneOrder
	if v := r.URL.Query().Get("older"); v != "" {
		older, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return nil, badRequest("older is %q, want a number of seconds", v)
		}
		before, f := s.olderThan(older)
		if f != nil {
			return nil, f
		}
		order = &PruneOrder{Before: before, DryRun: true}
	}
	if !s.measuring.take(r.Context(), s.c.Limits.Queue) {
		f := busy(limitConcurrent)
		f.text = "the store is being measured for another"
		return nil, f
	}
	defer s.measuring.release()
	u, err := s.c.Pruner.Usage(r.Context())
	if err == nil && order != nil {
		var report api.PruneReport
		report, err = Prune(r.Context(), s.c.Pruner, *order)
		u.Prune = &report
	}
	if err != nil {
		return nil, unavailable("the store", err)
	}
	u.Retention = int64(s.c.Retention / time.Second)
	return u, nil
}

// olderThan returns the time so many seconds ago.
func (s *Server) olderThan(seconds int64) (time.Time, *failure) {
	if seconds < int64(MinRetention/time.Second) || seconds > maxRetention {
		return time.Time{}, badRequest("evidence older than %d seconds: want %d (24 hours) to %d", seconds, int64(MinRetention/time.Second), int64(maxRetention))
	}
	return s.c.Clock().Add(-time.Duration(seconds) * time.Second), nil
}

// postPrune answers POST api.PathStore/prune. It writes how far it is about once
// a second, and at the end. When whoever asked goes away it ends, and what was
// pruned stays so.
func (s *Server) postPrune(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	var req api.PruneRequest
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	if len(req.Reason) > maxReason {
		return nil, badRequest("reason has %d bytes, at most %d allowed", len(req.Reason), maxReason)
	}
	before, f := s.olderThan(req.Older)
	if f != nil {
		return nil, f
	}
	if !s.pruning.take(r.Context(), s.c.Limits.Queue) {
		f := busy(limitConcurrent)
		f.text = "the store is being pruned already"
		return nil, f
	}
	leave := sync.OnceFunc(s.pruning.release)
	defer leave()
	if !req.DryRun {
		var clock *ClockError
		switch _, err := NotePruneClock(r.Context(), s.c.Pruner, s.c.Clock(), req.ClockIsRight); {
		case errors.As(err, &clock):
			return nil, conflict(clock.Error(), "look at the clock of the service; if it is right: sealift store prune --clock-is-right")
		case err != nil:
			return nil, unavailable("the store", err)
		}
		s.clockFault.Store(nil)
	}
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	started, last := false, time.Now()
	tell := func(p api.PruneReport) error {
		if !started {
			started = true
			w.Header().Set("Content-Type", "application/jsonl")
			w.Header().Set("Cache-Control", "no-store")
		}
		// Not every ResponseWriter has deadlines or flushes; those of tests do not.
		_ = rc.SetWriteDeadline(time.Now().Add(bodyTimeout))
		err := enc.Encode(p)
		_ = rc.Flush()
		last = time.Now()
		return err
	}
	order := PruneOrder{
		Before: before, By: op.Name, Reason: req.Reason, DryRun: req.DryRun, Now: s.c.Clock, Rest: Rest,
		Progress: func(p api.PruneReport) error {
			if time.Since(last) < time.Second {
				return nil
			}
			return tell(p)
		},
	}
	report, err := Prune(r.Context(), s.c.Pruner, order)
	leave() // whoever hears of the end may go on at once
	s.logPruned(report, op.Name)
	switch {
	case err != nil && !started:
		return nil, unavailable("the store", err)
	case err != nil:
		// Cut the connection: the reader must not take a part for all.
		s.c.Log.Error("store not pruned to the end", "by", op.Name, "error", err)
		panic(http.ErrAbortHandler)
	}
	// Whoever went away now has missed the end only.
	_ = tell(report)
	_ = rc.SetWriteDeadline(time.Time{})
	return nil, nil
}

func (s *Server) logPruned(r api.PruneReport, by string) {
	if !r.DryRun && r.Removed+r.Parts > 0 {
		s.c.Log.Info("evidence pruned", "before", r.Before, "removed", r.Removed, "parts", r.Parts, "bytes", r.Bytes, "by", by)
	}
}

// Rest waits four times as long as the work before took, so that no more than a
// fifth of the store's time is spent on it. It is for PruneOrder.
func Rest(ctx context.Context, took time.Duration) error {
	select {
	case <-time.After(min(4*took, 4*time.Second)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// prunedEvidence answers who asks for evidence that was pruned, with what the
// audit log says of that.
func (s *Server) prunedEvidence(ctx context.Context, p *PrunedError) *failure {
	f := &failure{
		status: http.StatusGone, code: api.CodePruned,
		text: fmt.Sprintf("evidence %s of machine %s, received %s, was pruned: audit entry %d", p.Digest, p.Machine, p.Received.UTC().Format(time.RFC3339), p.Entry),
		hint: "the audit log has its verdict: sealift report --machine " + p.Machine.String(),
	}
	for e, err := range s.c.Store.Audit(ctx, p.Entry) {
		var d audit.Prune
		if err == nil && e.Kind == audit.KindPrune && json.Unmarshal(e.Data, &d) == nil {
			f.text = fmt.Sprintf("evidence %s of machine %s, received %s, was pruned on %s by %s: audit entry %d",
				p.Digest, p.Machine, p.Received.UTC().Format(time.RFC3339), e.Time.UTC().Format(time.RFC3339), d.By, p.Entry)
		}
		break // one is enough
	}
	return f
}

const (
	// retainFirst is when Retain prunes first: not when a whole fleet comes back
	// with the service after a power cut.
	retainFirst = 10 * time.Minute
	// retainEvery is how often it does then.
	retainEvery = 24 * time.Hour
	// retainAgain is when it tries again after an error, retainClock if the clock
	// is wrong, which a person or a time server mends.
	retainAgain = 10 * time.Minute
	retainClock = time.Hour
)

// Retain prunes what is older than the retention, ten minutes after the start and
// then once a day, until ctx ends. Any
// number of replicas may do so at once: each piece is removed, and recorded,
// once. Without a retention it only notes how old evidence is that an earlier
// program stored, and what the clock says (NotePruneClock).
func (s *Server) Retain(ctx context.Context) error {
	if s.c.Pruner == nil {
		return nil
	}
	for wait := retainFirst; ; {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		wait = retainEvery
		if err := s.retain(ctx); err != nil && ctx.Err() == nil {
			wait = retainAgain
			if errors.As(err, new(*ClockError)) {
				wait = retainClock
			}
			s.c.Log.Error("old evidence not pruned, trying again", "error", err, "again", wait)
		}
	}
}

// retain does it once.
func (s *Server) retain(ctx context.Context) error {
	if !s.pruning.take(ctx, 0) {
		return errors.New("the store is being pruned")
	}
	defer s.pruning.release()
	now := s.c.Clock()
	first, err := NotePruneClock(ctx, s.c.Pruner, now, false)
	var clock *ClockError
	switch isClock := errors.As(err, &clock); {
	case isClock && s.c.Retention > 0:
		s.clockFault.Store(clock)
		return fmt.Errorf("%w; if it is right: sealift store prune --evidence-older-than AGE --clock-is-right", err)
	case err != nil && !isClock:
		return err
	}
	s.clockFault.Store(nil)
	if s.c.Retention == 0 {
		began := time.Now()
		return index(ctx, s.c.Pruner, func() error {
			err := Rest(ctx, time.Since(began))
			began = time.Now()
			return err
		})
	}
	if first {
		s.c.Log.Info("the clock is noted; old evidence is pruned from the next time on", "clock", now, "next", retainEvery)
		return nil
	}
	report, err := Prune(ctx, s.c.Pruner, PruneOrder{
		By: "service", Reason: "retention " + s.c.Retention.String(), Before: now.Add(-s.c.Retention), Now: s.c.Clock, Rest: Rest,
	})
	s.logPruned(report, "service")
	return err
}
