package server

import (
	"fmt"
	"maps"
	"slices"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
)

// Lost returns the machines whose disk key was made after the backup.
func (r *Recovery) Lost() []attest.MachineID {
	var out []attest.MachineID
	for _, id := range sorted(r.lost) {
		if m := r.machines[id]; m != nil && m.DiskGUID == r.lost[id] {
			out = append(out, id)
		}
	}
	return out
}

// MustStart returns the machines that were released after the backup, or whose
// first report may be lost, and that are not locked out: their reports are
// refused until their next release.
func (r *Recovery) MustStart() []api.RestoreMissing {
	var out []api.RestoreMissing
	for _, id := range sorted(r.started) {
		if m := r.machines[id]; m.State == attest.StateEnrolled && m.Boot == nil {
			out = append(out, missing(m, r.started[id]+": its reports are refused until it starts anew", "restart the machine"))
		}
	}
	return out
}

func missing(m *Machine, what, mend string) api.RestoreMissing {
	return api.RestoreMissing{Machine: m.ID, NodeName: m.NodeName, Serial: m.Serial, What: what, Mend: mend}
}

// Missing returns what could not be rebuilt and a person must mend: the policy, then
// machine by machine.
func (r *Recovery) Missing() []api.RestoreMissing {
	var out []api.RestoreMissing
	// First, as it is about all machines, and of what is missing only so much is kept.
	if p := r.policy; p.Seq > 0 {
		what := "that policies were turned off after the backup"
		if p.Name != "" {
			what = fmt.Sprintf("policy %s version %d, enabled after the backup", p.Name, p.Version)
		}
		out = append(out, api.RestoreMissing{What: what + ": nothing is released until a policy is enabled again", Mend: "sealift policy enable FILE --reason TEXT"})
	}
	for _, id := range r.Lost() {
		m := r.machines[id]
		out = append(out, missing(m, "its disk key, made after the backup: its disk does not open any more",
			"sealift machine reinstate "+id.String()+" --reason TEXT, and install it again"))
	}
	for _, id := range sorted(r.next) {
		if m := r.machines[id]; m.DiskGUID == r.next[id] && r.lost[id] != m.DiskGUID {
			out = append(out, missing(m, "its next disk key, released after the backup: its disk may open with that alone",
				"restart it; if its disk opens: sealift machine rotate-key "+id.String()+" --reason TEXT, else install it again"))
		}
	}
	for _, id := range sorted(r.asked) {
		if m := r.machines[id]; m.DiskGUID == r.asked[id] && r.lost[id] != m.DiskGUID && r.next[id] != m.DiskGUID {
			out = append(out, missing(m, "that its disk key was to change", "sealift machine rotate-key "+id.String()+" --reason TEXT"))
		}
	}
	for _, id := range sorted(r.unknown) {
		m := r.machines[id]
		for _, what := range slices.Sorted(maps.Keys(r.unknown[id])) {
			out = append(out, missing(m, what+", in entries of an earlier version",
				"install it again, or, if it is not yours: sealift machine revoke "+id.String()+" --reason TEXT"))
		}
	}
	for _, e := range r.expected {
		out = append(out, api.RestoreMissing{
			Serial: e.Serial, What: "its enrolment beforehand with the endorsement key " + e.EK.String() + ", in entries of an earlier version (" + e.Outcome + ")",
			Mend: "sealift machine import FILE, again",
		})
	}
	return out
}
