package attest

import "fmt"

// BankAnswer is what evidence says of the proof of its active PCR banks.
type BankAnswer string

// Answers. Evidence of a machine that was not asked, and says nothing, has none.
const (
	BanksProven BankAnswer = "proven" // a BankProof that holds and agrees with the quotes
	BanksFailed BankAnswer = "failed" // one that does not hold, or with a bank that is not quoted
	BanksUnable BankAnswer = "unable" // none, as the TPM cannot: the machine's word
	BanksSilent BankAnswer = "silent" // none, and not a word: the agent does not know what it was asked, or leaves it out
)

// Facts on the proof of the active banks.
const (
	factBanks       = "pcr.banks"        // the active banks, of a proof that holds
	factBanksFailed = "pcr.banks.failed" // what is wrong with a proof that the policy only asks for
	factBanksUnable = "pcr.banks.unable" // why there is none, by the machine's word
	factBanksExempt = "pcr.banks.exempt" // why no proof is required
)

// What a finding that no proof is there has as Got: why it is not.
const (
	gotUnasked = "not asked"
	gotUnable  = string(BanksUnable)
	gotSilent  = string(BanksSilent)
)

// noBankProof judges evidence without a BankProof. off: SHA-256 is said to be off.
func (v *verification) noBankProof(quotes []*quoted, off bool) {
	got, why, hint := gotUnasked, "the machine was not asked for it", "restart the machine, or wait until it boots: it is asked then"
	switch {
	case v.ev.NoBanks != "":
		got, why = gotUnable, "the TPM cannot sign it, says the machine: "+cleanText(v.ev.NoBanks)
		hint = "exempt the TPM in the policy, if you can do without: " + v.tpmRuleLine("bankExemptions") + "; sealift policy lint says what that leaves uncovered"
	case v.ch.AsksBanks:
		got, why = gotSilent, "the machine was asked for it, and its agent does not say a word: it is older than this, or was altered"
		hint = "install an image with an agent of this version, which says why if its TPM cannot; until then this machine could be exempted in the policy: " + v.tpmRuleLine("bankExemptions")
	}
	if v.rooted && got != gotUnasked {
		v.r.Banks = BankAnswer(got)
	}
	v.fact(factBanksUnable, cleanText(v.ev.NoBanks), TrustClaimed)
	if off {
		// No exemption: nothing but the proof says that SHA-256 was not filled.
		v.find(Finding{
			Code:    CodeBankUnproven,
			Message: "the sha256 bank is said to be off, and nothing proves it: the TPM's own list of its active banks is missing",
			Hint:    "use an agent of this version; if the TPM cannot sign the list, activate the SHA-256 bank in the firmware's setup",
		})
		return
	}
	if !v.p.TPM.ProveBanks {
		return
	}
	f := Finding{
		Code:    CodeBankUnproven,
		Message: "the policy wants proof of which banks are active, and the TPM's own list of them is missing: " + why,
		Got:     got, Want: string(BanksProven), Hint: hint,
	}
	// A TPM that could sign its banks once can do so again.
	if x := v.tpmRule(v.p.TPM.BankExemptions, quotes); x != nil {
		if !v.known.BanksProven {
			v.fact(factBanksExempt, x.Reason, TrustRecorded)
			return
		}
		f.Message += fmt.Sprintf("; the policy exempts this TPM (%s), which does not count: evidence of it was accepted with the list before, so it can sign one", cleanText(x.Reason))
		f.Hint = "use an agent that gives the list, as before; if the TPM's firmware was changed on purpose: " + v.command("approve")
	}
	v.find(f)
}
