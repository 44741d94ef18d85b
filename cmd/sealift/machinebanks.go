package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
)

// banksUnasked selects the machines that were not asked to prove their banks, or
// were not heard of since.
const banksUnasked = "not-asked"

// bankAnswers are what --banks may be.
func bankAnswers() []string {
	return []string{string(attest.BanksProven), string(attest.BanksFailed), string(attest.BanksUnable), string(attest.BanksSilent), banksUnasked}
}

func checkBanksFlag(s string) error {
	if s == "" || slices.Contains(bankAnswers(), s) {
		return nil
	}
	return usage{fmt.Errorf("--banks is %q, want %s", s, strings.Join(bankAnswers(), ", "))}
}

// answeredBanks reports whether a machine gave that answer, or any if it is empty.
func answeredBanks(m *api.Machine, answer string) bool {
	switch {
	case answer == "":
		return true
	case m.BankProof == nil:
		return answer == banksUnasked
	}
	return string(m.BankProof.Answer) == answer
}

// banksText says what a machine answered.
func banksText(m *api.Machine) string {
	p := m.BankProof
	if p == nil {
		return "not asked"
	}
	s := fmt.Sprintf("%s %s", p.Answer, p.At.UTC().Format(time.RFC3339))
	if p.Detail != "" {
		s += ": " + shorten(plain(p.Detail), 80)
	}
	if p.Answer != attest.BanksProven && (p.Vendor != "" || p.Model != "") {
		s += fmt.Sprintf(" (TPM %q %q)", plain(cmp.Or(p.Vendor, "unknown")), plain(p.Model))
	}
	return s
}
