package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hmac"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/image/manifest"
)

// maxFindings bounds a Result, so that hostile evidence cannot fill an audit
// log. What is beyond it is counted, but for the first finding of each code, so that
// it cannot hide one either.
const maxFindings = 64

// verification is the state of one Verify.
type verification struct {
	ev    *Evidence
	ch    *Challenge
	ses   *Session
	known *Known
	p     *Policy

	r       *Result
	smbios  *SMBIOS // what the machine claims to be, once it was read
	dropped int
	extends int // how many more hashes the search of replayDiagnosis may compute

	ek *EndorsementKey // if a trusted authority vouches for it

	// rooted is whether the attestation key is proven to be in a TPM that a
	// trusted authority vouches for. Without it nothing is quoted by a TPM,
	// and all facts are claims.
	rooted bool
}

// Verify appraises evidence. It checks, in this order:
//
//   - sizes: nothing larger than its limit is parsed;
//   - the challenge: not expired, for this purpose and these two keys, on a
//     connection with a channel binding;
//   - the endorsement key: VerifyEK;
//   - the attestation key: AKName, proof of activation, and the same key as
//     last time;
//   - each quote: magic, type, signature and its scheme, extraData, signer,
//     exact PCR selection, digest of the values sent; SHA-256, or SHA-384 if
//     the policy says so, and every bank of the event log quoted, all of one
//     boot;
//   - the active banks: exactly those that the TPM lists are quoted, where
//     SHA-256 is said to be off or the policy requires the proof of a TPM that it
//     does not exempt; and SHA-256 is not off since the last accepted boot;
//   - the transport key: checkTransport, certified in the same boot;
//   - the TPM's counters, clock and firmware version against the last accepted
//     evidence, and its firmware against the policy's denials;
//   - the event log: strict format, replay of every bank to the quoted values,
//     the same events in every bank, one valid separator in each of PCR 0 to 7;
//   - what booted: Secure Boot on with the image's keys (PCR 7), an allowed
//     image and nothing else (PCR 4), its sections (PCR 11), initrd and command
//     line (PCR 9), no other driver or event (PCR 2, 3, 5, 6), PCR 12 to 15
//     untouched;
//   - the firmware: the digests of an allowed build in PCR 0, and a machine
//     that claims the same version;
//   - the policy's own rules for the model: versions, dates, components;
//   - the machine: enrolled, not another machine by another endorsement key of
//     its TPM, its own disk, its state partition, no second release in this boot.
//
// It goes on after a failed check and lists all that can be judged: PCRs are
// judged only where a quote by the attestation key covers them and the log
// leads to the quoted value. Nothing is allowed while there is a finding.
func Verify(ev *Evidence, ch *Challenge, s *Session, known *Known, p *Policy) *Result {
	v := &verification{ev: ev, ch: ch, ses: s, known: known, p: p, extends: maxExtends, r: &Result{
		Findings: []Finding{}, Facts: []Fact{}, Firmware: Firmware{Verdict: FirmwareUnknown},
	}}
	if ev == nil || ch == nil || s == nil || known == nil || p == nil {
		v.find(Finding{Code: CodeMalformed, Message: "evidence, challenge, session, record or policy is missing"})
		return v.r
	}
	v.r.Policy = p.ID
	if err := checkSizes(ev); err != nil {
		v.find(Finding{Code: CodeMalformed, Message: err.Error(), Hint: hintAgent})
		return v.r
	}
	v.checkChallenge()
	ek := v.checkEndorsement()
	v.ek = ek
	key, akName := v.checkAttestationKey()
	v.rooted = ek != nil && key != nil && len(v.r.Findings) == 0
	if p.NotInForce != "" {
		v.find(Finding{Code: CodePolicyDates, Message: "the policy gives nothing now: " + p.NotInForce, Hint: "sign and enable a policy that is in force: sealift policy sign"})
	}

	var proof *Verified
	var banks []*quoted
	if key != nil {
		banks, proof = v.checkQuotes(key, akName)
	}
	if ek != nil && proof != nil {
		v.checkDenied(ek, proof.tpmFirmware)
	}
	log := v.parseLog()
	if log != nil {
		v.checkBanks(log)
	}
	smbios := v.parseSMBIOS()
	if log != nil && proof != nil {
		v.appraise(log, banks, proof.bank, smbios)
	}
	v.checkMachine(proof)
	v.checkSerial(smbios)
	if v.dropped > 0 {
		v.r.Findings = append(v.r.Findings, Finding{Code: CodeEventUnknown, Message: fmt.Sprintf("%d more findings are not listed", v.dropped)})
	}
	if len(v.r.Findings) == 0 && proof != nil && v.rooted {
		v.r.Allowed, v.r.verified = true, proof
	}
	return v.r
}

// Hints that more than one finding gives.
const (
	hintAgent = "use an agent of this version"
	hintRetry = "let the agent ask for a new challenge: it does so by itself after a while"
)

// full reports whether the next finding of a code, and of a component if it names
// one, is only counted, so that a hostile log does not cost the writing of messages
// that nobody gets.
func (v *verification) full(c Code, component string) bool {
	return len(v.r.Findings) >= maxFindings &&
		slices.ContainsFunc(v.r.Findings, func(f Finding) bool { return f.Code == c && f.Component == component })
}

func (v *verification) find(f Finding) {
	if v.full(f.Code, f.Component) {
		v.dropped++
		return
	}
	v.r.Findings = append(v.r.Findings, f)
}

func (v *verification) fail(e *checkError, hint string) {
	v.find(Finding{Code: e.code, Message: e.message, Got: e.got, Want: e.want, Hint: hint})
}

// findPCR adds a finding about a PCR.
func (v *verification) findPCR(pcr int, f Finding) {
	f.PCR = &pcr
	v.find(f)
}

// fact records a fact. Nothing is proven while the root of trust is not.
func (v *verification) fact(name, value string, t Trust) {
	if value == "" {
		return
	}
	if !v.rooted && t != TrustRecorded {
		t = TrustClaimed
	}
	v.r.Facts = append(v.r.Facts, Fact{Name: name, Value: value, Trust: t})
}

// command returns the command line with which an operator changes the
// machine's standing.
func (v *verification) command(verb string) string {
	id := "ID"
	if !v.r.Machine.IsZero() {
		id = v.r.Machine.String()
	}
	return "sealift machine " + verb + " " + id + " --reason TEXT"
}

func checkSizes(ev *Evidence) error {
	switch {
	case len(ev.EventLog) > MaxEventLog:
		return fmt.Errorf("event log has %d bytes, at most %d allowed", len(ev.EventLog), MaxEventLog)
	case len(ev.SMBIOS) > MaxSMBIOS:
		return fmt.Errorf("smbios table has %d bytes, at most %d allowed", len(ev.SMBIOS), MaxSMBIOS)
	case len(ev.EKCertificates) > MaxCertificates:
		return fmt.Errorf("%d endorsement certificates, at most %d allowed", len(ev.EKCertificates), MaxCertificates)
	case len(ev.Quotes) > MaxBanks:
		return fmt.Errorf("%d quotes, at most %d allowed", len(ev.Quotes), MaxBanks)
	case len(ev.NoBanks) > MaxNoBanks:
		return fmt.Errorf("why the active banks are not proven has %d bytes, at most %d allowed", len(ev.NoBanks), MaxNoBanks)
	}
	if err := checkGUID(ev.Disk.GUID); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	return nil
}

// checkGUID requires the usual text form in lower case.
func checkGUID(s string) error {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' ||
		strings.Trim(s, "0123456789abcdef-") != "" || strings.Count(s, "-") != 4 {
		return fmt.Errorf("guid is %s, want 36 lower-case characters", printable([]byte(s), 40))
	}
	return nil
}

func (v *verification) checkChallenge() {
	find := func(code Code, hint, format string, args ...any) {
		v.find(Finding{Code: code, Message: "challenge: " + fmt.Sprintf(format, args...), Hint: hint})
	}
	bad := func(hint, format string, args ...any) { find(CodeChallenge, hint, format, args...) }
	if !v.ses.Now.Before(v.ch.Expires) {
		bad(hintRetry, "it expired at %s, now is %s", v.ch.Expires.UTC().Format(time.RFC3339), v.ses.Now.UTC().Format(time.RFC3339))
	}
	if v.ch.Purpose != PurposeUnlock {
		bad(hintAgent, "its purpose is %q, want %q", v.ch.Purpose, PurposeUnlock)
	}
	if len(v.ch.Nonce) != 32 || len(v.ch.ActivationSecret) != activationSecretSize {
		bad(hintRetry, "it has a nonce of %d and a secret of %d bytes, want 32 and %d", len(v.ch.Nonce), len(v.ch.ActivationSecret), activationSecretSize)
	}
	if !bytes.Equal(v.ev.EKPublic, v.ch.EKPublic) {
		find(CodeChallengeKey, hintRetry, "it was made for another endorsement key than the evidence has")
	}
	if !bytes.Equal(v.ev.AKPublic, v.ch.AKPublic) {
		find(CodeChallengeKey, hintRetry, "it was made for another attestation key than the evidence has")
	}
	if len(v.ses.Exporter) != 32 {
		bad("connect with TLS 1.3", "the connection has a channel binding of %d bytes, want 32", len(v.ses.Exporter))
	}
}

// checkEndorsement checks the endorsement key and names the machine. It
// returns the key if a trusted authority vouches for it.
func (v *verification) checkEndorsement() *EndorsementKey {
	_, key, err := checkEK(v.ev.EKPublic)
	v.r.Machine, err = machineIfGood(key, err)
	ek, findings := v.p.TPM.verifyEK(v.r.Machine, key, err, v.ev.EKCertificates, v.ses.Now)
	for _, f := range findings {
		v.find(f)
	}
	if ek == nil {
		return nil
	}
	// The certificate is what says these; that the TPM is the certificate's is
	// what activation proves.
	v.fact("tpm.class", string(ek.Class()), TrustRecorded)
	v.fact("tpm.certificate", certificateName(ek.Certificate()), TrustRecorded)
	if m := ek.Model(); m.Vendor != 0 {
		v.fact("tpm.vendor", m.Vendor.String(), TrustRecorded)
		v.fact("tpm.model", m.Model, TrustRecorded)
	}
	v.fact("tpm.certificate.quirks", strings.Join(ek.quirks, " "), TrustRecorded)
	if ek.imported {
		v.fact("tpm.certificate.source", "imported", TrustRecorded)
	}
	if ek.expired {
		v.fact("tpm.certificate.expired", ek.Certificate().NotAfter.UTC().Format(time.RFC3339), TrustRecorded)
	}
	return ek
}

// checkAttestationKey returns the attestation key and its Name, or nil.
func (v *verification) checkAttestationKey() (*ecdsa.PublicKey, []byte) {
	// ActivationProof binds the secret to this challenge and key; an unset
	// secret proves nothing and checkChallenge has refused it.
	want := activationProof(v.ch.ActivationSecret, v.ch.ID, v.ch.Nonce, v.ev.AKPublic)
	if !hmac.Equal(want, v.ses.ActivationProof) {
		v.find(Finding{
			Code:    CodeActivation,
			Message: "attestation key and endorsement key are not proven to be in one TPM: the activation proof is wrong",
			Hint:    hintRetry,
		})
	}
	key, err := checkAK(v.ev.AKPublic)
	if err != nil {
		v.find(Finding{Code: CodeAKAttributes, Message: err.Error(), Hint: hintAgent})
		return nil, nil
	}
	name := nameOf(v.ev.AKPublic)
	if len(v.known.AKName) > 0 && !bytes.Equal(name, v.known.AKName) {
		v.find(Finding{
			Code:    CodeAKChanged,
			Message: fmt.Sprintf("machine %s has another attestation key than before", v.r.Machine.Short()),
			Got:     hex.EncodeToString(name), Want: hex.EncodeToString(v.known.AKName),
			Hint: "if the TPM's endorsement hierarchy was reset or the service was renamed on purpose: " + v.command("approve"),
		})
	}
	return key, name
}

// checkQuotes checks all that the attestation key signed. It returns the valid
// quotes of active banks, none of them unless they suffice, and what they
// prove. The proof is worth something only if there is no finding at all.
func (v *verification) checkQuotes(key *ecdsa.PublicKey, akName []byte) ([]*quoted, *Verified) {
	extra := QualifyingData(Binding{
		Purpose: v.ch.Purpose, Nonce: v.ch.Nonce, Exporter: v.ses.Exporter, TransportID: transportName(&v.ev.Transport),
	}, v.ev)
	byBank := map[string]*quoted{}
	var banks []*quoted
	seen := map[string]bool{}
	for i := range v.ev.Quotes {
		if bank := v.ev.Quotes[i].Bank; seen[bank] {
			v.find(Finding{Code: CodeMalformed, Message: fmt.Sprintf("bank %s is quoted twice", printable([]byte(bank), 8)), Hint: hintAgent})
			continue
		} else {
			seen[bank] = true
		}
		q, err := checkQuote(&v.ev.Quotes[i], key, akName, extra)
		if err != nil {
			v.explainNonce(err, key, akName)
			v.fail(err, quoteHint(err.code))
			continue
		}
		byBank[q.bank] = q
		banks = append(banks, q)
	}
	v.checkActiveBanks(banks, seen, key, akName, extra)
	main := v.mainBank(byBank, seen, banks)
	if main == nil {
		return nil, nil
	}
	t, err := checkTransport(&v.ev.Transport, main, key, akName, v.ch.Nonce)
	if err != nil {
		v.fail(err, hintAgent)
	}
	for _, q := range banks {
		if !q.time.sameBoot(main.time) {
			v.find(Finding{Code: CodeClock, Message: fmt.Sprintf("the quotes of the banks %s and %s are not of one boot of one TPM", q.bank, main.bank), Hint: hintRetry})
		}
	}
	if err == nil && !t.sameBoot(main.time) {
		v.find(Finding{Code: CodeClock, Message: "the certification of the transport key and the quote are not of one boot of one TPM", Hint: hintRetry})
	}
	for _, m := range checkClock(main.time, v.known) {
		v.find(Finding{Code: CodeClock, Message: m, Hint: "if the TPM was cleared on purpose: " + v.command("approve")})
	}
	if main.time.firmware < v.known.TPMFirmware {
		v.find(Finding{
			Code:    CodeTPMFirmware,
			Message: fmt.Sprintf("the TPM's own firmware is older than before: version %#x, it was %#x", main.time.firmware, v.known.TPMFirmware),
			Got:     fmt.Sprintf("%#x", main.time.firmware), Want: fmt.Sprintf("%#x", v.known.TPMFirmware),
			Hint: "update the TPM's firmware; if it was set back on purpose: " + v.command("approve"),
		})
	}
	banks = slices.DeleteFunc(banks, (*quoted).off)
	v.fact("tpm.firmware", fmt.Sprintf("%#x", main.time.firmware), TrustQuoted)
	v.fact("tpm.resets", fmt.Sprint(main.time.resetCount), TrustQuoted)
	v.fact("tpm.restarts", fmt.Sprint(main.time.restartCount), TrustQuoted)
	v.fact("tpm.clock.safe", fmt.Sprint(main.time.safe), TrustQuoted)
	return banks, &Verified{
		machine:      v.r.Machine,
		akName:       akName,
		transport:    bytes.Clone(v.ev.Transport.Public),
		bank:         main.bank,
		pcrs:         cloneValues(main.values),
		resetCount:   main.time.resetCount,
		restartCount: main.time.restartCount,
		clock:        main.time.clock,
		tpmFirmware:  main.time.firmware,
		boot:         bootOf(v.ev, akName, main.time, banks),
	}
}

// mainBank returns the quote of the bank to whose state the agent binds the
// transport key: SHA-256 if it is active, else SHA-384. It adds a finding and
// returns nil if the quotes do not suffice.
//
// A bank that is not quoted could be the only one that the firmware extends, and
// the one that is quoted could be an active but empty bank that an attacker's
// system filled (CVE-2021-42299). So SHA-384 counts for itself only together with
// a quote of SHA-256 without PCRs. That quote is no proof that SHA-256 is off: a
// TPM names the PCRs that it has of those that it was asked for (Part 3, 18.4),
// and whoever asks may ask for none. The proof is checkActiveBanks'. Where SHA-256
// is off, firmware that knows no SHA-384 measures nothing at all: hence the policy
// has to say as well that the bank is sha384, or that this TPM may be without SHA-256,
// by which its owner vouches for the firmware.
func (v *verification) mainBank(quotes map[string]*quoted, sent map[string]bool, signed []*quoted) *quoted {
	missing := func(hint, format string, args ...any) *quoted {
		v.find(Finding{Code: CodeQuoteMissing, Message: fmt.Sprintf(format, args...), Hint: hint})
		return nil
	}
	q := quotes["sha256"]
	if q == nil && sent["sha256"] {
		return nil // what is wrong with it was found
	}
	if q == nil && sent["sha1"] && !sent["sha384"] && !sent["sha512"] {
		v.find(Finding{Code: CodeQuoteDowngraded, Message: "of the banks, only sha1 is quoted, which never suffices", Got: "sha1", Want: "sha256",
			Hint: "activate the SHA-256 bank in the firmware's setup, or use an agent of this version"})
		return nil
	}
	if q == nil {
		return missing("activate the SHA-256 bank in the firmware's setup, or use an agent of this version",
			"the sha256 bank is not quoted, not even without a PCR: SHA-1 never suffices")
	}
	if q.off() {
		if q = quotes["sha384"]; q == nil && sent["sha384"] {
			return nil
		}
		if q == nil || q.off() {
			return missing("activate the SHA-256 or the SHA-384 bank in the firmware's setup",
				"the sha256 and sha384 banks are off: SHA-1 never suffices")
		}
		if v.p.Bank != "sha384" && v.tpmRule(v.p.TPM.WithoutSHA256, signed) == nil {
			return missing("activate the SHA-256 bank in the firmware's setup; or, if the firmware of these machines is known to measure into SHA-384, say so in the policy: "+v.tpmRuleLine("withoutSHA256"),
				"the sha256 bank is quoted without a PCR, as one that is off, and the policy does not appraise by sha384")
		}
	}
	switch want := quotes[v.p.Bank]; {
	case v.p.Bank == "", v.p.Bank == "sha256" && q.bank == "sha384":
	case !slices.Contains(appraisalBanks(), v.p.Bank):
		return missing("set the bank of the policy to sha256 or sha384", "the policy appraises by the bank %q, want one of %q", cleanText(v.p.Bank), appraisalBanks())
	case want == nil && sent[v.p.Bank]:
		return nil
	case want == nil || want.off():
		return missing("activate the bank in the firmware's setup", "the policy appraises by the bank %s, which is not active", v.p.Bank)
	}
	return q
}

func cloneValues(m map[int][]byte) map[int][]byte {
	m = maps.Clone(m)
	for k, b := range m {
		m[k] = bytes.Clone(b)
	}
	return m
}

// quoteHint says what mends a quote that failed a check.
func quoteHint(c Code) string {
	switch c {
	case CodeQuoteConnection:
		return "somebody is between the machine and the service: look who has the address that the evidence came from"
	case CodeQuoteEvidence:
		return "what was sent beside the quote was altered after the TPM had signed: keep the evidence; " + hintRetry
	case CodeQuoteNonce, CodeQuoteChallenge:
		return "evidence answers one challenge on one connection: " + hintRetry
	case CodeQuoteDigest:
		return "a PCR was extended between reading and quoting it: " + hintRetry
	}
	return hintAgent
}

func (v *verification) parseLog() *EventLog {
	l, err := ParseEventLog(v.ev.EventLog)
	if err != nil {
		v.find(Finding{Code: CodeLogMalformed, Message: err.Error(), Hint: "the firmware must keep a TCG 2 crypto-agile event log with SHA-256: update it, or activate the bank in its setup"})
		return nil
	}
	return l
}

// parseSMBIOS returns what the machine claims to be, empty if it claims
// nothing: the firmware check then refuses for want of a claim.
func (v *verification) parseSMBIOS() *SMBIOS {
	s, err := ParseSMBIOS(v.ev.SMBIOS)
	if err != nil {
		v.find(Finding{Code: CodeMalformed, Message: err.Error(), Hint: "the agent sends /sys/firmware/dmi/tables/DMI: look at it with dmidecode"})
		return &SMBIOS{}
	}
	for _, f := range []struct{ name, value string }{
		{"smbios.manufacturer", s.Manufacturer}, {"smbios.product", s.Product}, {"smbios.serial", s.Serial}, {"smbios.uuid", s.UUID},
		{"smbios.bios.vendor", s.BIOSVendor}, {"smbios.bios.version", s.BIOSVersion}, {"smbios.bios.date", s.BIOSDate},
		{"smbios.board.manufacturer", s.BoardManufacturer}, {"smbios.board.product", s.BoardProduct},
	} {
		v.fact(f.name, f.value, TrustClaimed)
	}
	return s
}

// appraise judges the event log against the valid quotes.
func (v *verification) appraise(l *EventLog, banks []*quoted, main string, smbios *SMBIOS) {
	v.smbios = smbios
	if v.p.Bank == "sha384" {
		main = v.p.Bank
	}
	if !slices.Contains(l.Banks, main) {
		for _, q := range banks {
			if q.bank == main {
				v.findUnlogged(l, q, "activate in the firmware's setup only banks that the firmware measures into")
			}
		}
		return
	}
	l.appraiseBy(main)
	v.fact("pcr.bank", main, TrustQuoted)
	sound := v.replay(l, banks)
	v.checkAgreement(l, sound, banks)
	v.checkSeparators(l, sound)
	v.checkUntouched(l, banks)
	boot := &measuredBoot{v: v, log: l, sound: sound}
	boot.appraise()
	v.appraiseFirmware(l, sound, banks, smbios)
}

// imageName names an image in a result.
func imageName(m *manifest.Manifest) string { return cleanText(m.Name + " " + m.Version) }
