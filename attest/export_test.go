package attest

import (
	"bytes"
	"crypto/x509"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// What tests outside the package see of its inside. They are outside because
// they use package papertpm, which imports this one.
const (
	ActionCalling       = actionCalling
	ActionReturning     = actionReturning
	ActionExit          = actionExit
	ActionExitDone      = actionExitDone
	ActionExitFailed    = actionExitFailed
	GUIDX509            = guidX509
	LocalitySignature   = localitySignature
	SpecIDSignature     = specIDSignature
	MaxDecodedEvents    = maxDecodedEvents
	MaxEvents           = maxEvents
	MaxEventText        = maxEventText
	MaxFindings         = maxFindings
	MaxListedEvents     = maxListedEvents
	MaxSMBIOSString     = maxSMBIOSString
	MaxSMBIOSStructures = maxSMBIOSStructures
)

var (
	AllBytes           = allBytes
	CertifiesKey       = certifiesKey
	CheckAK            = checkAK
	CheckEK            = checkEK
	CleanTo            = cleanTo
	DescribePath       = describePath
	DescribeSignatures = describeSignatures
	GPTDiskGUID        = gptDiskGUID
	ParseVariable      = parseVariable
	VersionText        = versionText
	WeakROCA           = weakROCA
)

// DecodeStructures decodes b as each structure that a TPM sends and returns
// what go-tpm makes of those that were accepted.
func DecodeStructures(b []byte) map[string][]byte {
	out := map[string][]byte{}
	if v, err := decodePublic("fuzz", b); err == nil {
		out["TPMT_PUBLIC"] = tpm2.Marshal(v)
	}
	if v, err := decodeAttest("fuzz", b); err == nil {
		out["TPMS_ATTEST"] = tpm2.Marshal(v)
	}
	if v, err := decodeSignature("fuzz", b); err == nil {
		out["TPMT_SIGNATURE"] = tpm2.Marshal(v)
	}
	if v, err := decodeTimeInfo("fuzz", b); err == nil {
		out["TPMS_TIME_INFO"] = tpm2.Marshal(v)
	}
	if v, err := decodeSelection("fuzz", b); err == nil {
		out["TPML_PCR_SELECTION"] = tpm2.Marshal(v)
	}
	if v, err := decodeCreation("fuzz", b); err == nil {
		out["TPMS_CREATION_DATA"] = tpm2.Marshal(v)
	}
	return out
}

// VerifyLog judges ev as Verify does from its event log on, as if a trusted TPM had
// quoted what another log leads to, which may be the same. It gives ev these quotes,
// unsigned, and searches little for what is wrong with a log that does not replay.
func VerifyLog(ev *Evidence, other *EventLog, known *Known, p *Policy) (*Result, error) {
	v := &verification{ev: ev, known: known, p: p, extends: 512, r: &Result{Findings: []Finding{}, Facts: []Fact{}}, rooted: true}
	var banks []*quoted
	ev.Quotes = nil
	if !slices.Contains(other.Banks, "sha256") {
		ev.Quotes = append(ev.Quotes, Quote{Bank: "sha256"}) // off
	}
	for _, bank := range other.Banks {
		q := &quoted{bank: bank, values: map[int][]byte{}}
		ev.Quotes = append(ev.Quotes, Quote{Bank: bank, PCRs: q.values})
		for _, pcr := range PolicyPCRs() {
			var err error
			if q.values[pcr], err = other.Replay(bank, pcr); err != nil {
				return nil, err
			}
		}
		banks = append(banks, q)
	}
	log := v.parseLog()
	smbios := v.parseSMBIOS()
	if log != nil {
		v.checkBanks(log)
		v.appraise(log, banks, other.main, smbios)
	}
	v.checkMachine(nil)
	return v.r, nil
}

// Digests returns what an event extended, by bank of the log.
func (e *Event) Digests() [][]byte { return e.digests }

// Clone returns a copy that shares no memory with the evidence.
func (v *Verified) Clone() *Verified {
	c := *v
	c.transport, c.pcrs = bytes.Clone(v.transport), cloneValues(v.pcrs)
	return &c
}

// Disagreements returns what the comparison of a log's banks finds.
func Disagreements(l *EventLog) []Finding {
	v := &verification{p: &Policy{}, r: &Result{}}
	sound := map[int]bool{}
	for pcr := range maxPCR + 1 {
		sound[pcr] = true
	}
	var banks []*quoted
	for _, bank := range l.Banks {
		banks = append(banks, &quoted{bank: bank})
	}
	v.checkAgreement(l, sound, banks)
	return v.r.Findings
}

// SentPaths is how many sets of authorities are tried, and how many signatures it
// took to find them.
func (p *TPMPolicy) SentPaths(leaf *x509.Certificate, sent []*x509.Certificate, now time.Time) (paths, checks int) {
	s := p.search(leaf, sent, now)
	return len(s.paths), len(s.checked)
}
