package server

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// A record in the store is not signed: whoever writes to the database can make a revoked
// machine an enrolled one, or add one. The service gives secrets only to a machine that
// its decision log says is enrolled, too. The log is chained, where it ended is signed,
// and entries that enrol are signed themselves (audit.Trust).
//
// What the record lacks is lacking, whatever the log says: it may be newer.

// A Standing is what the audit log says of machines, as far as it was read. It is asked
// by many goroutines, before each release, and is cheap. If current is set, the log is
// read to where it ended when the call began, which is not.
//
// What another replica decided counts here within seconds without that. An error says that
// it is not known what the log says.
type Standing interface {
	// Machine returns in which state the log leaves a machine, StateUnknown if it was
	// never enrolled or locked out, and when that was decided.
	Machine(ctx context.Context, id attest.MachineID, current bool) (attest.EnrolmentState, time.Time, error)

	// Expected reports whether an endorsement key, by the digest that a list gave, is to
	// be enrolled with a serial number, and when that was last decided.
	Expected(ctx context.Context, ek manifest.SHA256, serial string, current bool) (bool, time.Time, error)

	// Restored returns when the store was last filled from a backup, zero if never. What
	// enrols counts only if it was signed later.
	Restored(ctx context.Context) (time.Time, error)
}

// unprovenMachine returns what the log says of an enrolled machine, if that is not that
// it is enrolled; else nothing.
//
// The record must have been read before. Then a log that says less is no older than the
// record: either somebody else wrote the record, or it changed since, which whoever
// writes it again finds out (ErrConflict).
func (s *Server) unprovenMachine(ctx context.Context, m *Machine) (string, *failure) {
	if m.State != attest.StateEnrolled {
		return "", nil
	}
	for _, current := range []bool{false, true} {
		state, at, err := s.c.Standing.Machine(ctx, m.ID, current)
		switch {
		case err != nil:
			return "", unavailable("the decision log", fmt.Errorf("what it says of machine %s: %w", m.ID, err))
		case state == attest.StateEnrolled:
			return "", nil
		case !current:
		case state == attest.StateUnknown:
			return "nothing that enrols it", nil
		default:
			return fmt.Sprintf("%s since %s", state, at.Format(time.RFC3339)), nil
		}
	}
	return "", nil
}

// unprovenExpectation does the same for a machine that is to be enrolled because its
// endorsement key is on a list. One that was locked out is not enrolled by a list.
func (s *Server) unprovenExpectation(ctx context.Context, id attest.MachineID, e *api.Expected) (string, *failure) {
	for _, current := range []bool{false, true} {
		ok, at, err := s.c.Standing.Expected(ctx, e.EK, e.Serial, current)
		var state attest.EnrolmentState
		if err == nil {
			state, _, err = s.c.Standing.Machine(ctx, id, false)
		}
		locked := state == attest.StateRevoked || state == attest.StateQuarantined
		switch {
		case err != nil:
			return "", unavailable("the decision log", fmt.Errorf("what it says of endorsement key %s: %w", e.EK, err))
		case ok && !locked:
			return "", nil
		case !current:
		case locked:
			return string(state), nil
		case at.IsZero():
			return "nothing of a list with its endorsement key", nil
		default:
			return "that its endorsement key is not on a list with this serial number, since " + at.Format(time.RFC3339), nil
		}
	}
	return "", nil
}

// proveEnrolment tells the verifier if the log does not say what the store does. Only
// what a TPM has proven to be its own is looked up.
func (s *Server) proveEnrolment(ctx context.Context, sub *submission, m *Machine, k *attest.Known) (f *failure) {
	switch {
	case !sub.proven || k.State != attest.StateEnrolled:
	case sub.expected != nil:
		k.Unproven, f = s.unprovenExpectation(ctx, m.ID, sub.expected)
	default:
		k.Unproven, f = s.unprovenMachine(ctx, m)
	}
	return f
}

// refuseUnproven refuses a recovery of a machine that the log does not say is enrolled.
// The refusal is written with the record, so that it is that of the record as it is.
func (s *Server) refuseUnproven(ctx context.Context, p person, m *Machine) *failure {
	says, f := s.unprovenMachine(ctx, m)
	if f != nil || says == "" {
		return f
	}
	now := s.c.Clock()
	text := fmt.Sprintf("machine %s is enrolled on record, and the decision log does not say so: it says %s", m.ID, says)
	f = s.commit(ctx, &Change{Machine: m, Events: []audit.Event{
		{Time: now, Kind: audit.KindRecovery, Machine: m.ID, Data: audit.Recovery{Event: audit.RecoveryRefused, By: p.Name, Reason: text}},
		alarm(m.ID, now, audit.Alarm{Name: audit.AlarmMachineUnproven, What: string(attest.CodeMachineUnproven) + ": " + text, Peer: p.Name}),
	}})
	if f != nil {
		return f
	}
	return &failure{
		status: http.StatusConflict, code: string(attest.CodeMachineUnproven), text: text,
		hint: fmt.Sprintf("somebody may have written to the database; then: sealift machine revoke %s --reason TEXT", m.ID),
	}
}

// unlogged reports whether a machine is enrolled on record alone, so that an approver
// decides on it as on a pending one. One that the log says is locked out he does not.
func (s *Server) unlogged(ctx context.Context, m *Machine) (bool, *failure) {
	says, f := s.unprovenMachine(ctx, m)
	if f != nil || says == "" {
		return false, f
	}
	state, _, err := s.c.Standing.Machine(ctx, m.ID, false)
	switch {
	case err != nil:
		return false, unavailable("the decision log", fmt.Errorf("what it says of machine %s: %w", m.ID, err))
	case state == attest.StateRevoked || state == attest.StateQuarantined:
		return false, conflict(fmt.Sprintf("machine %s is enrolled on record, and the decision log says %s", m.ID, says),
			fmt.Sprintf("somebody may have written to the database; then: sealift machine revoke %s --reason TEXT", m.ID))
	}
	return true, nil
}

// signTrust signs the events of c that enrol. The time is later than what the log is
// known to say last of whom they are about, also if the clock was set back.
func (s *Server) signTrust(ctx context.Context, c *Change) error {
	copied := false
	for i, ev := range c.Events {
		if !audit.NeedsTrust(ev) {
			continue
		}
		if !copied {
			// A decision that is made again signs again.
			c.Events, copied = slices.Clone(c.Events), true
		}
		signed, err := audit.SignTrust(s.c.ReleaseKey, ev, s.after(ctx, ev))
		if err != nil {
			return err
		}
		c.Events[i] = signed
	}
	return nil
}

// after returns the time of an event, or one that is just after the last that the log
// has of whom it is about, and after the last restore, to the microsecond. The log is read
// to its end for it, as another replica, whose clock is ahead, may have decided just
// before; but not for a machine that is new and unknown, of which many come at once. Where
// that is not known, it is the event's; if it does not count then, nothing is given.
func (s *Server) after(ctx context.Context, ev audit.Event) time.Time {
	at := ev.Time
	later := func(last time.Time, err error) {
		if err == nil && at.UnixMicro() <= last.UnixMicro() {
			at = last.Add(time.Microsecond)
		}
	}
	switch d := ev.Data.(type) {
	case audit.StateChange:
		state, last, err := s.c.Standing.Machine(ctx, ev.Machine, false)
		if state != attest.StateUnknown || d.From != attest.StateUnknown && d.From != attest.StatePending {
			_, last, err = s.c.Standing.Machine(ctx, ev.Machine, true)
		}
		later(last, err)
	case audit.Expected:
		for i, m := range d.Machines {
			_, last, err := s.c.Standing.Expected(ctx, m.EK, m.Serial, i == 0)
			later(last, err)
		}
	}
	later(s.c.Standing.Restored(ctx))
	return at
}
