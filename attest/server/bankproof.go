package server

import (
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// answered notes what a machine's evidence says of the proof of its active banks.
// The caller knows that it is the machine's. Evidence of a machine that was not
// asked leaves what is noted, but that an approver's word ends what was proven.
func (m *Machine) answered(r *attest.Result, at time.Time) {
	if r.Allowed && m.Rebased && r.Banks != attest.BanksProven && m.BankProof != nil {
		p := *m.BankProof
		p.Proven = time.Time{}
		m.BankProof = &p
	}
	if r.Banks == "" {
		return
	}
	p := api.BankProof{Answer: r.Banks, At: at}
	if m.BankProof != nil {
		p.Proven = m.BankProof.Proven
	}
	if r.Allowed && r.Banks == attest.BanksProven {
		p.Proven = at
	}
	fact := func(name string) string {
		if i := slices.IndexFunc(r.Facts, func(f attest.Fact) bool { return f.Name == name }); i >= 0 {
			return clip(r.Facts[i].Value)
		}
		return ""
	}
	p.Vendor, p.Model = fact("tpm.vendor"), fact("tpm.model")
	switch r.Banks {
	case attest.BanksProven:
		p.Detail = fact("pcr.banks")
	case attest.BanksFailed:
		p.Detail = whyBanksFailed(r)
	case attest.BanksUnable:
		p.Detail = fact("pcr.banks.unable")
	}
	m.BankProof = &p
}

// whyBanksFailed says what is wrong with a proof of the active banks: a fact, if the
// policy only asks for it, or a finding.
func whyBanksFailed(r *attest.Result) string {
	if i := slices.IndexFunc(r.Facts, func(f attest.Fact) bool { return f.Name == "pcr.banks.failed" }); i >= 0 {
		return clip(r.Facts[i].Value)
	}
	for _, f := range r.Findings {
		if f.Code == attest.CodeBankHidden || f.Code == attest.CodeBankUnproven {
			return clip(string(f.Code) + ": " + f.Message)
		}
	}
	return ""
}

// banksAlarm returns the alarm for a proof of m's active banks that does not hold, and
// what to call when it is committed. It is raised as often as that for a finding.
func (s *Server) banksAlarm(sub *submission, m *Machine, r *attest.Result) (alarms []audit.Event, raised func()) {
	key := m.ID.String() + " " + string(audit.AlarmBanksFailed)
	if r.Banks != attest.BanksFailed || !s.raised.due(key, sub.now) {
		return nil, func() {}
	}
	what := "the proof of its active PCR banks failed"
	if r.Allowed {
		what += ", and it was released, as the policy only asks for one"
	}
	if why := whyBanksFailed(r); why != "" {
		what += ": " + why
	}
	return []audit.Event{alarm(m.ID, sub.now, audit.Alarm{Name: audit.AlarmBanksFailed, Peer: sub.peer.address, What: what})},
		func() { s.raised.note([]string{key}, sub.now) }
}

// banksProven reports whether accepted evidence of the machine had the proof. A
// second install does not change that; an approver does.
func (m *Machine) banksProven() bool {
	return !m.Rebased && m.BankProof != nil && !m.BankProof.Proven.IsZero()
}
