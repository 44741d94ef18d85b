package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// quoted is what a valid quote proves of one PCR bank.
type quoted struct {
	bank   string
	values map[int][]byte // PolicyPCRs; nil if no PCR is quoted, as of a bank that is off
	time   tpmTime
}

// off reports whether the bank has none of the PCRs: nothing can be extended
// into it.
func (q *quoted) off() bool { return q.values == nil }

// tpmTime is what every TPMS_ATTEST says of its TPM (Part 2, 10.11.1).
type tpmTime struct {
	clock                    uint64 // ms
	resetCount, restartCount uint32
	safe                     bool
	firmware                 uint64
}

func (t tpmTime) sameBoot(o tpmTime) bool {
	return t.resetCount == o.resetCount && t.restartCount == o.restartCount && t.firmware == o.firmware
}

// checkError is a failed check with its code.
type checkError struct {
	code      Code
	message   string
	got, want string
	what      string           // of CodeQuoteNonce: whose extraData it is
	attest    *tpm2.TPMSAttest // and the whole statement
}

func (e *checkError) Error() string { return e.message }

func failf(code Code, format string, args ...any) *checkError {
	return &checkError{code: code, message: fmt.Sprintf(format, args...)}
}

// checkAttest checks what quotes and certifications have in common: what
// checkStatement does, and our extraData.
func checkAttest(what string, raw, sig []byte, typ tpm2.TPMST, key *ecdsa.PublicKey, akName, extra []byte) (*tpm2.TPMSAttest, *checkError) {
	a, err := checkStatement(what, raw, sig, typ, key, akName)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(a.ExtraData.Buffer, extra) {
		e := failf(CodeQuoteNonce, "%s: it answers another challenge, connection or set of evidence: extraData is %x, want %x", what, a.ExtraData.Buffer, extra)
		e.got, e.want = fmt.Sprintf("%x", a.ExtraData.Buffer), fmt.Sprintf("%x", extra)
		e.what, e.attest = what, a
		return nil, e
	}
	return a, nil
}

// checkStatement checks what the attestation key signed, whatever it answers: strict
// decoding, TPM_GENERATED_VALUE as magic, the wanted type, a signature by the
// attestation key in its own scheme, and the qualified name of
// the signer, which tells that the attestation key is a primary key of the
// endorsement hierarchy: only there are the counters the real ones.
func checkStatement(what string, raw, sig []byte, typ tpm2.TPMST, key *ecdsa.PublicKey, akName []byte) (*tpm2.TPMSAttest, *checkError) {
	if len(raw) > maxStructure || len(sig) > maxStructure {
		return nil, failf(CodeMalformed, "%s: structure of %d and signature of %d bytes, at most %d allowed", what, len(raw), len(sig), maxStructure)
	}
	if len(raw) < 6 {
		return nil, failf(CodeMalformed, "%s: %d bytes are no TPMS_ATTEST", what, len(raw))
	}
	// Part 2, 10.12.12. Without the magic, the bytes could be data that an
	// unrestricted key signed for its user (CVE-2024-29038).
	if magic := binary.BigEndian.Uint32(raw); magic != uint32(tpm2.TPMGeneratedValue) {
		return nil, failf(CodeQuoteFormat, "%s: magic is %#08x, want %#08x: no TPM made this", what, magic, uint32(tpm2.TPMGeneratedValue))
	}
	if t := binary.BigEndian.Uint16(raw[4:]); t != uint16(typ) {
		return nil, failf(CodeQuoteFormat, "%s: attestation type is %#04x, want %#04x", what, t, uint16(typ))
	}
	if err := checkSignature(what, raw, sig, key); err != nil {
		return nil, err
	}
	a, err := decodeAttest(what, raw)
	if err != nil {
		return nil, failf(CodeMalformed, "%v", err)
	}
	if want := primaryQualifiedName(tpm2.TPMRHEndorsement, akName); !bytes.Equal(a.QualifiedSigner.Buffer, want) {
		return nil, failf(CodeAKAttributes, "%s: signer's qualified name is %x, want %x: the attestation key must be a primary key of the endorsement hierarchy",
			what, a.QualifiedSigner.Buffer, want)
	}
	return a, nil
}

// checkSignature checks a TPMT_SIGNATURE (Part 2, 11.3.4). The scheme must be
// the attestation key's own, so that no weaker hash can be slipped in.
func checkSignature(what string, message, sig []byte, key *ecdsa.PublicKey) *checkError {
	s, err := decodeSignature(what+": signature", sig)
	if err != nil {
		return failf(CodeMalformed, "%v", err)
	}
	if s.SigAlg != tpm2.TPMAlgECDSA {
		return failf(CodeQuoteFormat, "%s: signature scheme is %#04x, want ECDSA", what, uint16(s.SigAlg))
	}
	e, err := s.Signature.ECDSA()
	if err != nil {
		return failf(CodeMalformed, "%s: signature: %v", what, err)
	}
	if e.Hash != tpm2.TPMAlgSHA256 {
		return failf(CodeQuoteFormat, "%s: signature hash is %#04x, want SHA-256", what, uint16(e.Hash))
	}
	digest := sha256.Sum256(message)
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer)) {
		return failf(CodeQuoteSignature, "%s: signature is not by the attestation key", what)
	}
	return nil
}

func timeOf(a *tpm2.TPMSAttest) tpmTime {
	c := a.ClockInfo
	return tpmTime{clock: c.Clock, resetCount: c.ResetCount, restartCount: c.RestartCount, safe: bool(c.Safe), firmware: a.FirmwareVersion}
}

// checkQuote checks one quote: the checks of checkAttest, the bank and exactly
// PolicyPCRs as its selection, and that its digest is the one of the PCR
// values sent beside it.
//
// A quote without values is what the TPM signs of a bank that is off: it takes
// those PCRs out of the selection that it does not have (Part 3, 18.4), so that its
// selection must be empty. It proves nothing: see checkActiveBanks.
func checkQuote(q *Quote, key *ecdsa.PublicKey, akName, extra []byte) (*quoted, *checkError) {
	what := "quote of bank " + printable([]byte(q.Bank), 8)
	hash, ok := bankHash(q.Bank)
	if !ok {
		return nil, failf(CodeMalformed, "%s: unknown bank", what)
	}
	what = "quote of bank " + q.Bank
	a, cerr := checkAttest(what, q.Attest, q.Signature, tpm2.TPMSTAttestQuote, key, akName, extra)
	if cerr != nil {
		return nil, cerr
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return nil, failf(CodeMalformed, "%s: %v", what, err)
	}
	pcrs := PolicyPCRs()
	if len(q.PCRs) == 0 {
		pcrs = nil
	}
	if pcrs != nil && selectsNothing(info.PCRSelect) {
		e := failf(CodeQuoteEmpty, "%s: it covers no PCR, and PCR values were sent with it", what)
		e.got, e.want = selectionText(info.PCRSelect), selectionText(selectionOf(bankAlg(q.Bank), pcrs))
		return nil, e
	}
	if want := selectionOf(bankAlg(q.Bank), pcrs); !equalSelection(info.PCRSelect, want) {
		e := failf(CodeQuoteSelection, "%s: it covers %s, want %s", what, selectionText(info.PCRSelect), selectionText(want))
		e.got, e.want = selectionText(info.PCRSelect), selectionText(want)
		return nil, e
	}
	if len(q.PCRs) != len(pcrs) {
		return nil, failf(CodeQuoteDigest, "%s: %d PCR values were sent, want %d", what, len(q.PCRs), len(PolicyPCRs()))
	}
	for _, p := range pcrs {
		if len(q.PCRs[p]) != hash.Size() {
			return nil, failf(CodeQuoteDigest, "%s: PCR %d has %d bytes, want %d", what, p, len(q.PCRs[p]), hash.Size())
		}
	}
	if pcrs == nil {
		return &quoted{bank: q.Bank, time: timeOf(a)}, nil
	}
	if got := pcrDigest(q.PCRs); !bytes.Equal(got, info.PCRDigest.Buffer) {
		e := failf(CodeQuoteDigest, "%s: the PCR values sent have the digest %x, the quote has %x", what, got, info.PCRDigest.Buffer)
		e.got, e.want = fmt.Sprintf("%x", got), fmt.Sprintf("%x", info.PCRDigest.Buffer)
		return nil, e
	}
	return &quoted{bank: q.Bank, values: q.PCRs, time: timeOf(a)}, nil
}

func selectsNothing(s tpm2.TPMLPCRSelection) bool {
	return !slices.ContainsFunc(s.PCRSelections, func(p tpm2.TPMSPCRSelection) bool { return !allBytes(p.PCRSelect, 0) })
}

// bankAlg is the inverse of bankName.
func bankAlg(name string) tpm2.TPMAlgID {
	switch name {
	case "sha1":
		return tpm2.TPMAlgSHA1
	case "sha256":
		return tpm2.TPMAlgSHA256
	case "sha384":
		return tpm2.TPMAlgSHA384
	case "sha512":
		return tpm2.TPMAlgSHA512
	}
	return tpm2.TPMAlgNull
}

// selectionText writes a selection for people, e.g. "sha256:[0 1 7]".
func selectionText(s tpm2.TPMLPCRSelection) string {
	var parts []string
	for i, sel := range s.PCRSelections {
		if i == MaxBanks {
			parts = append(parts, "...")
			break
		}
		name, ok := bankName(uint16(sel.Hash))
		if !ok {
			name = fmt.Sprintf("%#04x", uint16(sel.Hash))
		}
		var pcrs []int
		for p := 0; p < len(sel.PCRSelect)*8 && p < 64; p++ {
			if sel.PCRSelect[p/8]&(1<<(p%8)) != 0 {
				pcrs = append(pcrs, p)
			}
		}
		parts = append(parts, fmt.Sprintf("%s:%d", name, pcrs))
	}
	if parts == nil {
		return "no PCR"
	}
	return fmt.Sprint(parts)
}

// checkClock compares the TPM's counters with those of the last accepted
// evidence and returns the rules broken.
//
// A clock that is not safe (the TPM lost power without TPM2_Shutdown, and has
// not yet counted up to where its clock may have been) is accepted in a new
// TPM reset: resetCount, which survives a power cut, orders the boots, and
// refusing would lock a box out for up to an hour after each power cut.
func checkClock(t tpmTime, known *Known) []string {
	var broken []string
	switch {
	case t.resetCount < known.ResetCount:
		broken = append(broken, fmt.Sprintf("the TPM counts %d resets, it had counted %d before: it was cleared or replaced", t.resetCount, known.ResetCount))
	case t.resetCount == known.ResetCount && known.Clock > 0:
		if t.restartCount < known.RestartCount {
			broken = append(broken, fmt.Sprintf("the TPM counts %d restarts since its last reset, it had counted %d before", t.restartCount, known.RestartCount))
		}
		if t.clock < known.Clock {
			broken = append(broken, fmt.Sprintf("the TPM's clock is %d ms, it was %d ms before in the same boot", t.clock, known.Clock))
		}
	case t.safe && t.clock < known.Clock:
		broken = append(broken, fmt.Sprintf("the TPM's clock is %d ms and said to be safe, it was %d ms before", t.clock, known.Clock))
	}
	return broken
}

// checkBanks requires a quote of every bank that firmware measures into. A bank
// that nobody quotes could be extended with anything (CVE-2021-42299).
func (v *verification) checkBanks(l *EventLog) {
	for _, b := range l.Banks {
		if slices.ContainsFunc(v.ev.Quotes, func(q Quote) bool { return q.Bank == b }) {
			continue
		}
		v.find(Finding{
			Code:    CodeQuoteMissing,
			Message: fmt.Sprintf("firmware measures into the bank %s, but it is not quoted", b),
			Hint:    "activate in the firmware's setup only banks that the TPM can quote, SHA-256 or SHA-384 among them",
		})
	}
}
