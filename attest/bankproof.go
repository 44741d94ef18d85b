package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// BankProof is a TPM's own list of its active PCR banks. A quote says which PCRs
// of a bank somebody asked for; this says which banks there are.
//
// The device runs two commands in an audit session with SHA-256 (TPM 2.0 Library
// Part 1, "Audit"): TPM2_ReadClock (Part 3, 29.1), and then TPM2_GetCapability
// (Part 3, 30.2) of TPM_CAP_PCRS, property 0, count 1. The attestation key signs the
// session's digest with the qualifying data of the quotes
// (TPM2_GetSessionAuditDigest, Part 3, 18.5).
type BankProof struct {
	Time      []byte `json:"time"`      // TPMS_TIME_INFO, as the TPM gave it before the list
	List      []byte `json:"list"`      // TPML_PCR_SELECTION, as the TPM gave it
	Attest    []byte `json:"attest"`    // TPMS_ATTEST
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
}

// checkBankProof checks a proof:
//
//   - the time and the list decode exactly;
//   - the statement, as checkAttest does: magic, type TPM_ST_ATTEST_SESSION_AUDIT,
//     a signature by the attestation key, our extraData, the signer;
//   - the session's digest, computed from the two commands that there must be in
//     the session, in their order, and from their answers with this time and this
//     list;
//   - the resets and restarts that the TPM counted before it gave the list: the
//     same as in the statement.
//
// It returns the banks that have any PCR, in the TPM's order, and the counters in
// the statement. The caller compares both with the quotes.
//
// A TPM changes its banks when it starts (Part 3, TPM2_PCR_Allocate), which is
// mostly a reset. But a session outlives a TPM restart, and a TPM that is told to
// change its banks between TPM2_Shutdown(STATE) and the restart comes back with
// others while it counts the same reset. Hence the time: what was counted before
// the list and is counted after it was so when it was given.
// Whether other commands ran outside of the session meanwhile (exclusiveSession) is
// of no interest: they do not change the banks, and where there is a resource
// manager they cannot be kept out.
func checkBankProof(p *BankProof, key *ecdsa.PublicKey, akName, extra []byte) ([]string, tpmTime, *checkError) {
	const what = "proof of the active banks"
	none := tpmTime{}
	before, err := decodeTimeInfo(what+": time", p.Time)
	if err != nil {
		return nil, none, failf(CodeMalformed, "%v", err)
	}
	list, err := decodeSelection(what+": list", p.List)
	if err != nil {
		return nil, none, failf(CodeMalformed, "%v", err)
	}
	a, cerr := checkAttest(what, p.Attest, p.Signature, tpm2.TPMSTAttestSessionAudit, key, akName, extra)
	if cerr != nil {
		return nil, none, cerr
	}
	info, err := a.Attested.SessionAudit()
	if err != nil {
		return nil, none, failf(CodeMalformed, "%s: %v", what, err)
	}
	if want := bankListDigest(p.Time, p.List); !bytes.Equal(info.SessionDigest.Buffer, want) {
		e := failf(CodeBankUnproven, "%s: the TPM did not give the time and the list that were sent: the session's digest is %x, with %s it is %x",
			what, info.SessionDigest.Buffer, selectionText(*list), want)
		e.got, e.want = fmt.Sprintf("%x", info.SessionDigest.Buffer), fmt.Sprintf("%x", want)
		return nil, none, e
	}
	t, c := timeOf(a), before.ClockInfo
	if c.ResetCount != t.resetCount || c.RestartCount != t.restartCount || c.Clock > t.clock {
		return nil, none, failf(CodeClock, "%s: the TPM was started after it gave the list: reset %d, restart %d, clock %d ms before it, reset %d, restart %d, clock %d ms when it was signed",
			what, c.ResetCount, c.RestartCount, c.Clock, t.resetCount, t.restartCount, t.clock)
	}
	var active []string
	for _, s := range list.PCRSelections {
		if allBytes(s.PCRSelect, 0) {
			continue
		}
		name, ok := bankName(uint16(s.Hash))
		if !ok {
			name = fmt.Sprintf("%#04x", uint16(s.Hash))
		}
		active = append(active, name)
	}
	return active, t, nil
}

// bankListDigest returns the digest of the audit session of a BankProof (Part 1,
// "Session Audit", "cpHash", "rpHash"). A TPM names all banks whatever count it is
// asked for, so that moreData is never set.
func bankListDigest(time, list []byte) []byte {
	u32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	digest := make([]byte, sha256.Size)
	audit := func(command tpm2.TPMCC, parameters, answer []byte) {
		cpHash := sha256.Sum256(slices.Concat(u32(uint32(command)), parameters))
		rpHash := sha256.Sum256(slices.Concat(u32(uint32(tpm2.TPMRCSuccess)), u32(uint32(command)), answer))
		d := sha256.Sum256(slices.Concat(digest, cpHash[:], rpHash[:]))
		digest = d[:]
	}
	audit(tpm2.TPMCCReadClock, nil, time)
	audit(tpm2.TPMCCGetCapability,
		slices.Concat(u32(uint32(tpm2.TPMCapPCRs)), u32(0), u32(1)),
		slices.Concat([]byte{0}, u32(uint32(tpm2.TPMCapPCRs)), list))
	return digest
}

// checkActiveBanks has the TPM itself say which banks are active, where that
// decides: SHA-256, which is said to be off, could be the only bank that the
// firmware extends, and the one that is quoted an active but empty one that an
// attacker's system filled (CVE-2021-42299). Where SHA-256 is quoted with its PCRs,
// it can be the bank that was filled: then it is for the policy to want the proof.
// One that nobody wants is checked all the same; of one that the policy asks for
// without requiring it, what is wrong is told and refuses nothing.
//
// quotes are those that are valid, sent the banks of those that were sent.
func (v *verification) checkActiveBanks(quotes []*quoted, sent map[string]bool, key *ecdsa.PublicKey, akName, extra []byte) {
	off := slices.ContainsFunc(quotes, func(q *quoted) bool { return q.bank == "sha256" && q.off() })
	if off && slices.Contains(v.known.Banks, "sha256") {
		v.find(Finding{
			Code:    CodeBankTurnedOff,
			Message: "the sha256 bank was active in the last accepted boot, and is said to be off now",
			Got:     "off", Want: "active",
			Hint: "activate the SHA-256 bank in the firmware's setup; if it was turned off on purpose: " + v.command("approve"),
		})
	}
	if v.ev.Banks == nil {
		v.noBankProof(quotes, off)
		return
	}
	found := v.checkProvenBanks(quotes, sent, key, akName, extra)
	switch filled := slices.ContainsFunc(quotes, func(q *quoted) bool { return q.bank == "sha256" && !q.off() }); {
	case !v.rooted:
	case len(found) == 0:
		v.r.Banks = BanksProven
	default:
		v.r.Banks = BanksFailed
		if v.p.TPM.AskBanks && !v.p.TPM.ProveBanks && filled {
			// Whoever sends this could have sent nothing, and would be taken. An honest
			// machine with a bank that nobody can quote is not refused for having been
			// asked.
			v.fact(factBanksFailed, fmt.Sprintf("%s: %s", found[0].Code, found[0].Message), TrustClaimed)
			return
		}
	}
	for _, f := range found {
		v.find(f)
	}
}

// checkProvenBanks checks the proof that the evidence has, and compares it with the
// quotes.
func (v *verification) checkProvenBanks(quotes []*quoted, sent map[string]bool, key *ecdsa.PublicKey, akName, extra []byte) []Finding {
	var found []Finding
	find := func(f Finding) { found = append(found, f) }
	active, t, err := checkBankProof(v.ev.Banks, key, akName, extra)
	if err != nil {
		v.explainNonce(err, key, akName)
		return []Finding{{Code: err.code, Message: err.message, Got: err.got, Want: err.want, Hint: quoteHint(err.code)}}
	}
	v.fact(factBanks, strings.Join(active, " "), TrustQuoted)
	for _, q := range quotes {
		if !q.time.sameBoot(t) {
			find(Finding{Code: CodeClock, Message: "the proof of the active banks and the quotes are not of one boot of one TPM", Hint: hintRetry})
			break
		}
	}
	for _, b := range active {
		// What is wrong with a quote that is not valid was found.
		if i := slices.IndexFunc(quotes, func(q *quoted) bool { return q.bank == b }); i >= 0 && quotes[i].off() || i < 0 && !sent[b] {
			find(Finding{
				Code:    CodeBankHidden,
				Message: fmt.Sprintf("bank %s is active, says the TPM, and the machine does not quote its PCRs: what was measured into it is kept back", b),
				Got:     "not quoted", Want: "quoted",
				Hint: "deactivate in the firmware's setup what is not SHA-1, SHA-256, SHA-384 or SHA-512; if the bank is one of these, the agent was altered: keep the evidence and inspect the machine",
			})
		}
	}
	for _, q := range quotes {
		if !q.off() && !slices.Contains(active, q.bank) {
			find(Finding{Code: CodeBankUnproven, Message: fmt.Sprintf("bank %s is quoted with its PCRs, and the TPM does not list it among the active ones", q.bank), Hint: hintAgent})
		}
	}
	return found
}
