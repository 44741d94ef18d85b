package server

import (
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
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
		p.Detail = fact("pcr.banks.failed")
		for _, f := range r.Findings {
			if p.Detail == "" && (f.Code == attest.CodeBankHidden || f.Code == attest.CodeBankUnproven) {
				p.Detail = clip(string(f.Code) + ": " + f.Message)
			}
		}
	case attest.BanksUnable:
		p.Detail = fact("pcr.banks.unable")
	}
	m.BankProof = &p
}

// banksProven reports whether accepted evidence of the machine had the proof. A
// second install does not change that; an approver does.
func (m *Machine) banksProven() bool {
	return !m.Rebased && m.BankProof != nil && !m.BankProof.Proven.IsZero()
}
