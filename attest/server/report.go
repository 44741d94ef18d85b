package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// Reports says how often machines report from their running system. The zero
// value is every ten minutes.
type Reports struct {
	// Every is how often; 10 minutes if zero, none at all if negative, else 10
	// seconds to 24 hours. An agent spreads its reports by a quarter of it.
	Every time.Duration
	// Deadline is how long after a report or a release the next report must
	// be accepted before the machine is stale; three times Every if zero, at
	// least one and a half.
	Deadline time.Duration
}

// check sets what is zero and refuses what cannot be.
func (r *Reports) check() error {
	if r.Every < 0 {
		*r = Reports{Every: -1}
		return nil
	}
	if r.Every == 0 {
		r.Every = 10 * time.Minute
	}
	if r.Deadline == 0 {
		r.Deadline = 3 * r.Every
	}
	if r.Every < api.MinReportAfter*time.Second || r.Every > api.MaxReportAfter*time.Second || r.Every%time.Second != 0 {
		return fmt.Errorf("every %v is not a whole number of seconds between %ds and %ds", r.Every, api.MinReportAfter, api.MaxReportAfter)
	}
	if r.Deadline < r.Every+r.Every/2 {
		return fmt.Errorf("the deadline %v is less than one and a half times %v, which one lost report would miss", r.Deadline, r.Every)
	}
	return nil
}

// seconds is what an agent is told, 0 if no reports are wanted.
func (r Reports) seconds() int { return int(max(0, r.Every) / time.Second) }

// heardOf sets when the machine must be heard of again and returns the event
// that ends its being stale.
func (s *Server) heardOf(m *Machine, now time.Time) []audit.Event {
	var events []audit.Event
	if m.Stale {
		events = append(events, staleEvent(m, false, now))
	}
	m.Stale, m.ReportDue = false, time.Time{}
	if s.c.Reports.Every > 0 {
		m.ReportDue = now.Add(s.c.Reports.Deadline)
	}
	return events
}

func staleEvent(m *Machine, stale bool, now time.Time) audit.Event {
	return audit.Event{Time: now, Kind: audit.KindStale, Machine: m.ID, Data: audit.Stale{Stale: stale, Due: m.ReportDue, LastReport: m.LastReport, NodeName: m.NodeName}}
}

// decideReport appraises a report against the machine's present record and
// commits what follows from it. A record that changed meanwhile gives a failure
// whose cause is ErrConflict; nothing was written then.
func (s *Server) decideReport(ctx context.Context, sub *submission) (int, any, *failure) {
	m, f := s.load(ctx, sub.machine)
	if f != nil {
		return 0, nil, f
	}
	ev := &sub.request.Evidence
	known := &attest.Known{State: m.State, StateReason: m.Reason}
	session := &attest.Session{Exporter: sub.peer.exporter, Now: sub.now}
	result, rep := s.appraiseReport(ev, sub.challenge, session, known, m.Boot)
	entry := audit.Reattestation{ChallengeID: sub.challenge.ID, Address: sub.peer.address, Result: bounded(result), Genuine: rep.Genuine, Changed: rep.Changed}
	switch {
	case result.Allowed && rep.Genuine && !rep.Changed && len(result.Findings) == 0 && m.State == attest.StateEnrolled && m.Boot != nil:
		return s.reportAccepted(ctx, sub, m, result, rep, entry)
	case result.Allowed:
		return 0, nil, internal(fmt.Errorf("machine %s: accepted a report that is genuine %t, changed %t, of a machine that is %q", m.ID, rep.Genuine, rep.Changed, m.State))
	case m.Revision == 0 || !rep.Genuine:
		// Whoever sent this did not prove to be the machine.
		ok, n := s.unproven.log("", sub.now)
		if !ok {
			return refused(result)
		}
		entry.Suppressed = n
		if f := s.commit(ctx, &Change{Events: []audit.Event{{Time: sub.now, Kind: audit.KindReport, Data: entry}}}); f != nil {
			return 0, nil, f
		}
		s.c.Log.Info("report refused", "machine", m.ID.Short(), "peer", sub.peer.address, "proven", false, "codes", codesOf(result))
		return refused(result)
	}
	stored, err := json.Marshal(&api.StoredEvidence{
		Version: api.Version, Received: sub.now, Address: sub.peer.address, Machine: sub.machine,
		Challenge: *sub.challenge, Session: *session, Known: *known, Evidence: *ev, Boot: m.Boot,
	})
	if err != nil {
		return 0, nil, internal(fmt.Errorf("encode report: %w", err))
	}
	entry.Evidence = digestOf(stored)
	change := &Change{Machine: m, Evidence: stored}
	m.LastSeen, m.Address = sub.now, sub.peer.address
	lock := rep.Changed && m.State == attest.StateEnrolled
	if !lock {
		if !sub.counted {
			sub.counted = true
			sub.logged, sub.suppressed = s.refusals.log(sub.machine.String(), sub.now)
		}
		if !sub.logged {
			return refused(result)
		}
		entry.Suppressed = sub.suppressed
	}
	change.Events = []audit.Event{{Time: sub.now, Kind: audit.KindReport, Machine: m.ID, Data: entry}}
	token := m.TokenID
	if lock {
		state := stateEvent(m, attest.StateQuarantined, "service", quarantineReason(result))
		state.Time = sub.now
		change.Events = append(change.Events, state)
	}
	if f := s.commit(ctx, change); f != nil {
		return 0, nil, f
	}
	if lock {
		s.c.Log.Error("machine quarantined: it is no longer what was released", "machine", m.ID.Short(), "node", m.NodeName, "codes", codesOf(result))
		s.lockedOut(ctx, m.ID, token)
	} else {
		s.c.Log.Info("report refused", "machine", m.ID.Short(), "peer", sub.peer.address, "proven", true, "codes", codesOf(result))
	}
	return refused(result)
}

// quarantineReason says why a report locks its machine out.
func quarantineReason(r *attest.Result) string {
	s := "report refused: " + strings.Join(codesOf(r), ", ")
	if len(r.Findings) > 0 {
		s += ": " + r.Findings[0].Message
	}
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "")
	}
	return s
}

// reportAccepted records that the machine is as it was released. Only the first
// report of a boot is an entry of the audit log: it sets what PCR 15 must be.
func (s *Server) reportAccepted(ctx context.Context, sub *submission, m *Machine, result *attest.Result, rep attest.Report, entry audit.Reattestation) (int, any, *failure) {
	change := &Change{Machine: m, Events: s.heardOf(m, sub.now)}
	if m.Boot.Volume == nil {
		m.Boot.Volume, entry.Volume = rep.Volume, rep.Volume
		change.Events = append(change.Events, audit.Event{Time: sub.now, Kind: audit.KindReport, Machine: m.ID, Data: entry})
	}
	m.Boot.Clock = rep.Clock
	m.LastSeen, m.LastReport, m.Address = sub.now, sub.now, sub.peer.address
	if f := s.commit(ctx, change); f != nil {
		return 0, nil, f
	}
	return http.StatusOK, &api.EvidenceResponse{Result: result, ReportAfter: s.c.Reports.seconds()}, nil
}

// A NodeFencer keeps a cluster from using nodes. It is used by many goroutines.
type NodeFencer interface {
	// Fence has the cluster give no more work to the node. That there is no
	// such node is no error. It may be called again for the same node.
	Fence(ctx context.Context, nodeName, reason string) error
}

// lockedOut does outside the store what a lock-out means: the open join token
// is taken back, and Watch has the node fenced.
func (s *Server) lockedOut(ctx context.Context, id attest.MachineID, token string) {
	if token != "" && s.c.Tokens != nil {
		s.takeBack(ctx, id, token)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

const (
	// sweepEvery is how often Watch looks for machines whose time is over.
	sweepEvery = time.Minute
	// sweepPage is how many records it reads at a time.
	sweepPage = 500
)

// Watch finds the machines that missed the time of their report, and fences the
// nodes of those that were locked out, until ctx ends. Any number of replicas
// may watch at once: each change is made once.
func (s *Server) Watch(ctx context.Context) error {
	heard := listening{s.wall(), s.wall()}
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		if err := s.fence(ctx); err != nil && ctx.Err() == nil {
			s.c.Log.Error("nodes not fenced, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			continue
		case <-t.C:
		}
		if err := s.sweep(ctx, heard.since(s.wall())); err != nil && ctx.Err() == nil {
			s.c.Log.Error("stale machines not found, trying again", "error", err)
		}
	}
}

// listening is since when a service could hear of machines, and when it last looked.
type listening struct{ up, last time.Time }

// since returns since when it could, at a time now: not from before it stood still, or
// before its clock was set. That nobody was heard of is then no machine's fault.
func (l *listening) since(now time.Time) time.Time {
	if now.Sub(l.last) > 3*sweepEvery || now.Before(l.last) {
		l.up = now
	}
	l.last = now
	return l.up
}

// wall returns the time that records have. Without the monotonic reading, which
// goes on evenly while the clock is set, or stands still while the machine
// sleeps: two such times tell nothing of either.
func (s *Server) wall() time.Time { return s.c.Clock().Round(0) }

// eachDue calls f for all machines of a state that Watch must look at by now.
func (s *Server) eachDue(ctx context.Context, state attest.EnrolmentState, f func(*Machine) error) error {
	var after attest.MachineID
	for now := s.c.Clock(); ; {
		page, err := s.c.Store.Machines(ctx, Query{State: state, Due: now, After: after, Limit: sweepPage})
		if err != nil {
			return err
		}
		for _, m := range page {
			after = m.ID
			if m.Damaged != "" {
				s.c.Log.Error("a machine's record cannot be read", "machine", m.ID.Short(), "error", m.Damaged)
				continue
			}
			if err := f(m); err != nil {
				return err
			}
		}
		if len(page) < sweepPage {
			return nil
		}
	}
}

// sweep marks the machines that are stale. A service that has run since up only
// cannot have heard of a machine before.
func (s *Server) sweep(ctx context.Context, up time.Time) error {
	if s.c.Reports.Every < 0 {
		return nil
	}
	grace := up.Add(s.c.Reports.Deadline)
	if !s.c.Clock().After(grace) {
		return nil
	}
	over := func(m *Machine, now time.Time) bool {
		return m.State == attest.StateEnrolled && !m.Stale && !m.ReportDue.IsZero() && now.After(m.ReportDue) && now.After(grace)
	}
	return s.eachDue(ctx, attest.StateEnrolled, func(m *Machine) error {
		if !over(m, s.c.Clock()) {
			return nil
		}
		_, f := s.change(ctx, m.ID, func(m *Machine, now time.Time) ([]audit.Event, *failure) {
			if !over(m, now) {
				return nil, nil
			}
			m.Stale = true
			return []audit.Event{staleEvent(m, true, now)}, nil
		})
		if f != nil {
			return f.asError("mark machine " + m.ID.Short() + " stale")
		}
		s.c.Log.Info("machine is stale", "machine", m.ID.Short(), "node", m.NodeName, "due", m.ReportDue)
		return nil
	})
}

// effectFenced is what the effect of a fence ends with, in the audit log.
const effectFenced = " was fenced"

// fence fences the nodes of machines that were locked out, and remembers that
// it was done. One that fails does not keep the others from it.
func (s *Server) fence(ctx context.Context) error {
	if s.c.Fence == nil {
		return nil
	}
	var errs []error
	for _, state := range []attest.EnrolmentState{attest.StateQuarantined, attest.StateRevoked} {
		err := s.eachDue(ctx, state, func(m *Machine) error {
			if !m.FenceDue {
				return nil
			}
			call, cancel := context.WithTimeout(ctx, s.c.Limits.Mint)
			defer cancel()
			if err := s.c.Fence.Fence(call, m.NodeName, string(m.State)+": "+m.Reason); err != nil {
				errs = append(errs, fmt.Errorf("node %s: %w", m.NodeName, err))
				return nil
			}
			_, f := s.change(ctx, m.ID, func(m *Machine, now time.Time) ([]audit.Event, *failure) {
				if !m.FenceDue || m.State != state {
					return nil, nil
				}
				m.FenceDue = false
				return []audit.Event{{Kind: audit.KindState, Machine: m.ID, Data: audit.StateChange{
					From: m.State, To: m.State, By: "service", Reason: m.Reason, Effect: "node " + m.NodeName + effectFenced,
				}}}, nil
			})
			if f != nil {
				return f.asError("record that node " + m.NodeName + " was fenced")
			}
			return nil
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
