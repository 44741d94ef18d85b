package audit

import (
	"fmt"

	"github.com/sealift/sealift/attest"
)

// A chain whose end the service signed may have entries that it did not write: whoever
// writes to the database can append to the log, and the service goes on from there. Of
// those that enrol a machine it can be told, see Standing.

// trust notes what an entry of the intact chain says of machines, if the report has the
// service's key.
func (b *builder) trust(e Entry) {
	if b.standing == nil {
		return
	}
	// It could not be read, which its line says; those after it can.
	if b.standing.Note(e) != nil {
		b.standing.head = e.Head()
	}
	b.doubt = b.standing.Unsigned()
}

// enrolment returns what a machine, of which m is reported so far, is after e, by which it
// becomes d.To, and what is to be said of e if that does not count. Of what comes after a
// break nothing is known.
func (b *builder) enrolment(e Entry, d *StateChange, m *MachineReport) (state attest.EnrolmentState, warning string) {
	if b.standing == nil || !b.r.Chain.Intact || !d.enrols() {
		return d.To, ""
	}
	if state, _ = b.standing.Machine(e.Machine); state == attest.StateEnrolled {
		return state, ""
	}
	says := string(state)
	if state == attest.StateUnknown {
		state, says = m.State, "not enrolled"
	}
	why := "the service did not sign it as what comes next of the machine"
	for _, u := range b.doubt.First { // of e, if any
		why = u.Why
		if u.Unknown {
			why += ", which may be a former one (--former)"
		}
	}
	return state, fmt.Sprintf(" (this does not count: %s; the machine stays %s)", why, says)
}
