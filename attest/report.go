package attest

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/sealift/sealift/image/manifest"
)

// PurposeReport asks, again and again in the running system, whether the
// machine is still in the boot that was given its secrets, with nothing
// measured since. Nothing is ever released for it.
const PurposeReport Purpose = "report"

// releasedText is what the agent measures into PCR 11 and 12 when it caps a
// boot after its release.
const releasedText = "sealift released"

// Boot is the state of a machine in the moment of its release: what every
// report of the same boot is held against.
type Boot struct {
	AKName       []byte `json:"akName"` // TPM Name of the attestation key
	ResetCount   uint32 `json:"resetCount"`
	RestartCount uint32 `json:"restartCount"`
	TPMFirmware  uint64 `json:"tpmFirmware"`
	DiskGUID     string `json:"diskGUID"`
	// PCRs are the quoted values of PolicyPCRs, one after another, of each
	// bank that was quoted.
	PCRs map[string][]byte `json:"pcrs"`
	// LogSize and LogDigest are of the event log.
	LogSize   int             `json:"logSize"`
	LogDigest manifest.SHA256 `json:"logDigest"`

	// Clock is that of the last accepted report, ms; 0 before the first.
	Clock uint64 `json:"clock,omitempty"`
	// Volume is PCR 15 of each bank as the first accepted report had it: the
	// cap extends it by the volume key, which the service does not know.
	Volume map[string][]byte `json:"volume,omitempty"`
}

// bootOf returns what valid quotes say of the boot that they are from.
func bootOf(ev *Evidence, akName []byte, t tpmTime, banks []*quoted) *Boot {
	b := &Boot{
		AKName: akName, ResetCount: t.resetCount, RestartCount: t.restartCount, TPMFirmware: t.firmware, DiskGUID: ev.Disk.GUID,
		PCRs: map[string][]byte{}, LogSize: len(ev.EventLog), LogDigest: sha256.Sum256(ev.EventLog),
	}
	for _, q := range banks {
		for _, p := range PolicyPCRs() {
			b.PCRs[q.bank] = append(b.PCRs[q.bank], q.values[p]...)
		}
	}
	return b
}

// BootState returns the state in which the machine was when it gave the evidence,
// for VerifyReport.
func (v *Verified) BootState() *Boot { return v.boot }

// Report is what one report proves. The zero value proves nothing.
type Report struct {
	// Genuine: the attestation key of the boot on record signed exactly this
	// report, for this challenge and connection. Only then does a finding say
	// something about the machine, and not about whoever sent it.
	Genuine bool
	// Changed: the report is of the boot on record, and the machine is no
	// longer as it was when it was released. Never without Genuine.
	Changed bool
	Clock   uint64            // TPMS_CLOCK_INFO clock, ms
	Volume  map[string][]byte // PCR 15 of each bank
}

// VerifyReport appraises evidence of PurposeReport. It checks, in this order:
//
//   - sizes: nothing larger than its limit is parsed;
//   - the challenge: not expired, for this purpose and these two keys, on a
//     connection with a channel binding;
//   - that there is a boot on record: the machine has had a release;
//   - the attestation key: that of the boot on record, which was proven to be
//     in the machine's TPM before the release. No credential is activated;
//   - that no transport key is sent: nothing can be wrapped for a report;
//   - each quote, as Verify does, of exactly the banks of the release, all of
//     one boot, with the reset and restart count and the TPM firmware of the
//     boot on record, and a clock that has not gone back since the last report;
//   - PCR 0 to 7, 9, 13 and 14: as quoted for the release;
//   - PCR 11 and 12: those of the release, extended by the cap and nothing else;
//   - PCR 15: extended by the cap, and since the first report never again;
//   - the event log: that of the release, unchanged or with events added to
//     other PCRs;
//   - the disk: that of the release;
//   - the machine: enrolled.
//
// The policy is not asked: that an image or a firmware is no longer allowed
// shows in the next boot, and is no fault of a box that runs.
//
// A result with a finding is a refusal. Whether it is also a reason to lock the
// machine out is what Report.Changed says: never for a report that somebody
// else can have sent, and never for one of another boot, which a restart, a
// service restored from a backup, or a TPM2_Clear explains.
func VerifyReport(ev *Evidence, ch *Challenge, s *Session, known *Known, boot *Boot) (*Result, Report) {
	v := &verification{ev: ev, ch: ch, ses: s, known: known, r: &Result{
		Findings: []Finding{}, Facts: []Fact{}, Firmware: Firmware{Verdict: FirmwareUnknown},
	}}
	if ev == nil || ch == nil || s == nil || known == nil {
		v.find(Finding{Code: CodeMalformed, Message: "evidence, challenge, session or record is missing"})
		return v.r, Report{}
	}
	if err := checkSizes(ev); err != nil {
		v.find(Finding{Code: CodeMalformed, Message: err.Error(), Hint: hintAgent})
		return v.r, Report{}
	}
	if id, err := EKMachineID(ch.EKPublic); err == nil {
		v.r.Machine = id
	}
	v.checkReportChallenge()
	rep := v.checkReport(boot)
	v.fact("machine.state", stateName(known.State), TrustRecorded)
	v.checkState()
	if v.dropped > 0 {
		v.r.Findings = append(v.r.Findings, Finding{Code: CodeEventUnknown, Message: fmt.Sprintf("%d more findings are not listed", v.dropped)})
	}
	if len(v.r.Findings) == 0 && rep.Genuine && !rep.Changed {
		v.r.Allowed = true
	}
	return v.r, rep
}

func (v *verification) checkReportChallenge() {
	if v.ch.Purpose != PurposeReport {
		v.find(Finding{Code: CodeChallenge, Message: fmt.Sprintf("challenge: its purpose is %q, want %q", v.ch.Purpose, PurposeReport), Hint: hintAgent})
	}
	if !v.ses.Now.Before(v.ch.Expires) {
		v.find(Finding{Code: CodeChallenge, Message: "challenge: it expired", Hint: hintRetry})
	}
	if len(v.ch.Nonce) != 32 {
		v.find(Finding{Code: CodeChallenge, Message: fmt.Sprintf("challenge: it has a nonce of %d bytes, want 32", len(v.ch.Nonce)), Hint: hintRetry})
	}
	if !bytes.Equal(v.ev.EKPublic, v.ch.EKPublic) || !bytes.Equal(v.ev.AKPublic, v.ch.AKPublic) {
		v.find(Finding{Code: CodeChallenge, Message: "challenge: it was made for other keys than the evidence has", Hint: hintRetry})
	}
	if len(v.ses.Exporter) != 32 {
		v.find(Finding{Code: CodeChallenge, Message: fmt.Sprintf("challenge: the connection has a channel binding of %d bytes, want 32", len(v.ses.Exporter)), Hint: "connect with TLS 1.3"})
	}
}

// checkReport does all that needs the boot on record.
func (v *verification) checkReport(boot *Boot) Report {
	if boot == nil {
		v.find(Finding{Code: CodeReportBoot, Message: "what the machine was at its last release is not on record, so there is nothing to compare with: it had none, or the service was restored from a backup since", Hint: "restart the machine: its next release is the new reference"})
		return Report{}
	}
	key, err := checkAK(v.ev.AKPublic)
	if err != nil {
		v.find(Finding{Code: CodeAKAttributes, Message: err.Error(), Hint: hintAgent})
		return Report{}
	}
	if name := nameOf(v.ev.AKPublic); len(boot.AKName) == 0 || !bytes.Equal(name, boot.AKName) {
		v.find(Finding{
			Code: CodeAKChanged, Message: "the attestation key is not the one that was proven before the release",
			Got: hex.EncodeToString(name), Want: hex.EncodeToString(boot.AKName), Hint: "restart the machine",
		})
		return Report{}
	}
	if t := v.ev.Transport; len(t.Public)+len(t.CreationData)+len(t.Certify)+len(t.Signature) > 0 {
		v.find(Finding{Code: CodeTransport, Message: "a report has a transport key: nothing is released for one", Hint: hintAgent})
		return Report{}
	}
	extra := QualifyingData(Binding{Purpose: PurposeReport, Nonce: v.ch.Nonce, Exporter: v.ses.Exporter}, v.ev)
	var banks []*quoted
	for i := range v.ev.Quotes {
		q, err := checkQuote(&v.ev.Quotes[i], key, boot.AKName, extra)
		if err != nil {
			v.fail(err, quoteHint(err.code))
			continue
		}
		if slices.ContainsFunc(banks, func(o *quoted) bool { return o.bank == q.bank }) {
			v.find(Finding{Code: CodeMalformed, Message: "bank " + q.bank + " is quoted twice", Hint: hintAgent})
			continue
		}
		if !q.off() {
			banks = append(banks, q)
		}
	}
	if len(banks) == 0 {
		v.find(Finding{Code: CodeQuoteMissing, Message: "no valid quote was sent", Hint: hintAgent})
		return Report{}
	}
	// What is not signed proves nothing of the machine, and neither does an
	// answer to another question.
	if len(v.r.Findings) > 0 {
		return Report{}
	}
	rep := Report{Genuine: true, Clock: banks[0].time.clock, Volume: map[string][]byte{}}
	v.rooted = true
	if !v.sameBootAs(boot, banks) {
		return rep
	}
	before := len(v.r.Findings)
	v.checkReportBanks(boot, banks)
	for _, q := range banks {
		rep.Volume[q.bank] = q.values[capPCR]
	}
	v.checkReportLog(boot)
	if v.ev.Disk.GUID != boot.DiskGUID {
		v.find(Finding{
			Code: CodeDiskForeign, Message: fmt.Sprintf("the machine was released on disk %s, it reports from disk %s", boot.DiskGUID, v.ev.Disk.GUID),
			Got: v.ev.Disk.GUID, Want: boot.DiskGUID, Hint: "restart the machine",
		})
	}
	rep.Changed = len(v.r.Findings) > before
	return rep
}

// sameBootAs reports whether all quotes are of the boot on record, and not
// older than the last report.
func (v *verification) sameBootAs(boot *Boot, banks []*quoted) bool {
	want := tpmTime{resetCount: boot.ResetCount, restartCount: boot.RestartCount, firmware: boot.TPMFirmware}
	for _, q := range banks {
		if !q.time.sameBoot(want) {
			v.find(Finding{
				Code: CodeReportBoot,
				Message: fmt.Sprintf("the report is of TPM reset %d, restart %d, firmware %#x; the last release was in reset %d, restart %d, firmware %#x",
					q.time.resetCount, q.time.restartCount, q.time.firmware, boot.ResetCount, boot.RestartCount, boot.TPMFirmware),
				Hint: "restart the machine: its next release is the new reference",
			})
			return false
		}
		if q.time.clock < boot.Clock {
			// A report can be overtaken by the one that the agent sent when
			// it had no answer.
			v.find(Finding{Code: CodeClock, Message: fmt.Sprintf("the report's clock is %d ms, a report with %d ms was accepted before", q.time.clock, boot.Clock), Hint: hintRetry})
			return false
		}
	}
	v.fact("tpm.resets", fmt.Sprint(banks[0].time.resetCount), TrustQuoted)
	v.fact("tpm.restarts", fmt.Sprint(banks[0].time.restartCount), TrustQuoted)
	return true
}

// checkReportBanks compares the PCRs of each bank with those of the release.
func (v *verification) checkReportBanks(boot *Boot, banks []*quoted) {
	for name := range boot.PCRs {
		if !slices.ContainsFunc(banks, func(q *quoted) bool { return q.bank == name }) {
			v.find(Finding{Code: CodeQuoteMissing, Message: fmt.Sprintf("bank %s was quoted for the release and is not quoted now", name), Hint: hintReportChanged})
		}
	}
	for _, q := range banks {
		hash, _ := bankHash(q.bank) // checkQuote knows the bank
		was := boot.PCRs[q.bank]
		if len(was) != len(PolicyPCRs())*hash.Size() {
			v.find(Finding{Code: CodeQuoteMissing, Message: fmt.Sprintf("bank %s was not quoted for the release", q.bank), Hint: hintReportChanged})
			continue
		}
		for i, pcr := range PolicyPCRs() {
			old, got := was[i*hash.Size():(i+1)*hash.Size()], q.values[pcr]
			want := old
			switch pcr {
			case kernelPCR, firstUntouched:
				want = extended(hash, old, releasedText)
			case capPCR:
				first, seen := boot.Volume[q.bank]
				if want = first; !seen && !bytes.Equal(got, old) {
					continue
				}
				if !seen {
					v.findPCR(pcr, Finding{
						Code: CodePCRChanged, Message: fmt.Sprintf("PCR %d, bank %s, was not extended since the release: the boot is not capped", pcr, q.bank),
						Got: hex.EncodeToString(got), Hint: hintReportChanged,
					})
					continue
				}
			}
			if bytes.Equal(got, want) {
				continue
			}
			v.findPCR(pcr, Finding{
				Code: CodePCRChanged, Message: fmt.Sprintf("PCR %d, bank %s, is %x, want %x: something was measured after the release", pcr, q.bank, got, want),
				Got: hex.EncodeToString(got), Want: hex.EncodeToString(want), Hint: hintReportChanged,
			})
		}
	}
}

const hintReportChanged = "keep the evidence, find out what ran on the machine, and restart it before it is reinstated"

// extended returns a PCR after one extension by the digest of a text.
func extended(hash crypto.Hash, old []byte, text string) []byte {
	d := hash.New()
	d.Write([]byte(text))
	h := hash.New()
	h.Write(old)
	h.Write(d.Sum(nil))
	return h.Sum(nil)
}

// checkReportLog wants the log of the release at the beginning of the log. What
// was added cannot be about a PCR that is quoted: those have not changed, and
// an event that did not change its PCR is a forgery.
func (v *verification) checkReportLog(boot *Boot) {
	changed := func(format string, args ...any) {
		v.find(Finding{Code: CodeLogChanged, Message: "event log: " + fmt.Sprintf(format, args...), Hint: hintReportChanged})
	}
	if len(v.ev.EventLog) < boot.LogSize {
		changed("it has %d bytes, %d at the release", len(v.ev.EventLog), boot.LogSize)
		return
	}
	if d := manifest.SHA256(sha256.Sum256(v.ev.EventLog[:boot.LogSize])); d != boot.LogDigest {
		changed("its first %d bytes have the digest %s, %s at the release", boot.LogSize, d, boot.LogDigest)
		return
	}
	if len(v.ev.EventLog) == boot.LogSize {
		return
	}
	old, err := ParseEventLog(v.ev.EventLog[:boot.LogSize])
	if err != nil {
		changed("%v", err) // it was accepted for the release
		return
	}
	l, err := ParseEventLog(v.ev.EventLog)
	if err != nil {
		changed("what was added since the release: %v", err)
		return
	}
	for i := range l.Events[min(len(old.Events), len(l.Events)):] {
		if e := &l.Events[len(old.Events)+i]; slices.Contains(PolicyPCRs(), e.PCR) {
			changed("event %d was added, for PCR %d, which has not changed", e.Number, e.PCR)
			return
		}
	}
}
