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
// Part 1, "Audit"): TPM2_Hash (Part 3, 15.4) of the qualifying data of the quotes,
// with SHA-256 and TPM_RH_NULL, and then TPM2_GetCapability (Part 3, 30.2) of
// TPM_CAP_PCRS, property 0, count 1. The attestation key signs the session's digest,
// with the same qualifying data (TPM2_GetSessionAuditDigest, Part 3, 18.5).
type BankProof struct {
	List      []byte `json:"list"`      // TPML_PCR_SELECTION as the TPM gave it
	Attest    []byte `json:"attest"`    // TPMS_ATTEST
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
}

// factBanks names the fact that lists the active banks, of a proof that holds.
const factBanks = "pcr.banks"

// checkBankProof checks a proof:
//
//   - the list decodes exactly;
//   - the statement, as checkAttest does: magic, type TPM_ST_ATTEST_SESSION_AUDIT,
//     a signature by the attestation key, our extraData, the signer;
//   - the session's digest, computed from the two commands that there must be in
//     the session, in their order, and from their answers, the second with this
//     list.
//
// It returns the banks that have any PCR, in the TPM's order, and the counters in
// the statement. The caller compares both with the quotes.
//
// The statement alone does not say when the list was made. A session outlives a TPM
// restart, and a TPM that is told to change its banks between TPM2_Shutdown(STATE)
// and the restart comes back with others in the same resetCount. What the TPM hashes
// first has the nonce in it, so that the list is not older than the challenge.
// Whether other commands ran outside of the session meanwhile (exclusiveSession) is
// of no interest: they do not change the banks, and where there is a resource
// manager they cannot be kept out.
func checkBankProof(p *BankProof, key *ecdsa.PublicKey, akName, extra []byte) ([]string, tpmTime, *checkError) {
	const what = "proof of the active banks"
	none := tpmTime{}
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
	if want := bankListDigest(extra, p.List); !bytes.Equal(info.SessionDigest.Buffer, want) {
		e := failf(CodeBankUnproven, "%s: the TPM did not give the list that was sent: the session's digest is %x, of %s it is %x",
			what, info.SessionDigest.Buffer, selectionText(*list), want)
		e.got, e.want = fmt.Sprintf("%x", info.SessionDigest.Buffer), fmt.Sprintf("%x", want)
		return nil, none, e
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
	return active, timeOf(a), nil
}

// bankListDigest returns the digest of the audit session of a BankProof (Part 1,
// "Session Audit", "cpHash", "rpHash"). A TPM names all banks whatever count it is
// asked for, so that moreData is never set.
func bankListDigest(extra, list []byte) []byte {
	be := binary.BigEndian
	u16 := func(v uint16) []byte { return be.AppendUint16(nil, v) }
	u32 := func(v uint32) []byte { return be.AppendUint32(nil, v) }
	digest := make([]byte, sha256.Size)
	audit := func(command tpm2.TPMCC, parameters, answer []byte) {
		cpHash := sha256.Sum256(slices.Concat(u32(uint32(command)), parameters))
		rpHash := sha256.Sum256(slices.Concat(u32(uint32(tpm2.TPMRCSuccess)), u32(uint32(command)), answer))
		d := sha256.Sum256(slices.Concat(digest, cpHash[:], rpHash[:]))
		digest = d[:]
	}
	hashed := sha256.Sum256(extra)
	ticket := slices.Concat(u16(uint16(tpm2.TPMSTHashCheck)), u32(uint32(tpm2.TPMRHNull)), u16(0))
	audit(tpm2.TPMCCHash,
		slices.Concat(u16(uint16(len(extra))), extra, u16(uint16(tpm2.TPMAlgSHA256)), u32(uint32(tpm2.TPMRHNull))),
		slices.Concat(u16(sha256.Size), hashed[:], ticket))
	audit(tpm2.TPMCCGetCapability,
		slices.Concat(u32(uint32(tpm2.TPMCapPCRs)), u32(0), u32(1)),
		slices.Concat([]byte{0}, u32(uint32(tpm2.TPMCapPCRs)), list))
	return digest
}

// checkActiveBanks has the TPM itself say which banks are active, where that
// decides: SHA-256, which is said to be off, could be the only bank that the
// firmware extends, and the one that is quoted an active but empty one that an
// attacker's system filled (CVE-2021-42299). Evidence that has SHA-256 quoted with
// its PCRs needs no proof; one that is there is checked all the same.
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
		if off {
			v.find(Finding{
				Code:    CodeBankUnproven,
				Message: "the sha256 bank is said to be off, and nothing proves it: the TPM's own list of its active banks is missing",
				Hint:    "use an agent of this version; if the TPM cannot sign the list, activate the SHA-256 bank in the firmware's setup",
			})
		}
		return
	}
	active, t, err := checkBankProof(v.ev.Banks, key, akName, extra)
	if err != nil {
		v.fail(err, quoteHint(err.code))
		return
	}
	v.fact(factBanks, strings.Join(active, " "), TrustQuoted)
	for _, q := range quotes {
		if !q.time.sameBoot(t) {
			v.find(Finding{Code: CodeClock, Message: "the proof of the active banks and the quotes are not of one boot of one TPM", Hint: hintRetry})
			break
		}
	}
	for _, b := range active {
		// What is wrong with a quote that is not valid was found.
		if i := slices.IndexFunc(quotes, func(q *quoted) bool { return q.bank == b }); i >= 0 && quotes[i].off() || i < 0 && !sent[b] {
			v.find(Finding{
				Code:    CodeBankHidden,
				Message: fmt.Sprintf("bank %s is active, says the TPM, and the machine does not quote its PCRs: what was measured into it is kept back", b),
				Got:     "not quoted", Want: "quoted",
				Hint: "deactivate in the firmware's setup what is not SHA-1, SHA-256, SHA-384 or SHA-512; if the bank is one of these, the agent was altered: keep the evidence and inspect the machine",
			})
		}
	}
	for _, q := range quotes {
		if !q.off() && !slices.Contains(active, q.bank) {
			v.find(Finding{Code: CodeBankUnproven, Message: fmt.Sprintf("bank %s is quoted with its PCRs, and the TPM does not list it among the active ones", q.bank), Hint: hintAgent})
		}
	}
}
