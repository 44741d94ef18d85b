package attest_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
)

// reported is a machine that was released and capped, and that makes reports.
type reported struct {
	*scene
	boot *Boot
	log  []byte
}

func newReported(t testing.TB, banks ...string) *reported {
	t.Helper()
	s := newScene(t)
	if len(banks) > 0 {
		s.Banks = banks
	}
	s.collect()
	v, ok := s.verify().Verified()
	if !ok {
		t.Fatalf("the release was refused: %+v", s.verify().Findings)
	}
	// As a store keeps it.
	b, err := json.Marshal(v.BootState())
	if err != nil {
		t.Fatal(err)
	}
	r := &reported{scene: s, boot: new(Boot), log: s.ev.EventLog}
	if err := json.Unmarshal(b, r.boot); err != nil {
		t.Fatal(err)
	}
	for pcr, text := range map[int]string{15: "volume key", 12: "sealift released", 11: "sealift released"} {
		r.extend(pcr, text)
	}
	s.tpm.Clock.Clock += 60_000
	s.ch.Purpose = PurposeReport
	return r
}

func (r *reported) extend(pcr int, text string) { r.tpm.Extend(pcr, []byte(text)) }

// collect makes a report.
func (r *reported) collect() {
	r.t.Helper()
	r.ev = &Evidence{EKPublic: tpm2.Marshal(r.tpm.EKPublic), AKPublic: tpm2.Marshal(r.tpm.AKPublic), EventLog: r.log, Disk: r.Disk}
	r.ch.EKPublic, r.ch.AKPublic = r.ev.EKPublic, r.ev.AKPublic
	extra := QualifyingData(Binding{Purpose: r.ch.Purpose, Nonce: r.ch.Nonce, Exporter: r.ses.Exporter}, r.ev)
	for _, bank := range r.Banks {
		q, err := r.tpm.Quote(bank, extra)
		if err != nil {
			r.t.Fatal(err)
		}
		r.ev.Quotes = append(r.ev.Quotes, q)
	}
}

func (r *reported) verify() (*Result, Report) {
	return VerifyReport(r.ev, r.ch, r.ses, r.known, r.boot)
}

func TestAReportOfAReleasedBootIsAccepted(t *testing.T) {
	for _, banks := range [][]string{{"sha256"}, {"sha256", "sha384"}} {
		r := newReported(t, banks...)
		for i := range 3 {
			r.collect()
			result, rep := r.verify()
			if !result.Allowed || !rep.Genuine || rep.Changed || len(rep.Volume) != len(banks) {
				t.Fatalf("%s, report %d: %+v, %+v", banks, i, result, rep)
			}
			if _, ok := result.Verified(); ok {
				t.Fatal("a report gives what a secret can be wrapped for")
			}
			r.boot.Volume, r.boot.Clock = rep.Volume, rep.Clock
			r.tpm.Clock.Clock += 600_000
		}
	}
}

// addEvent returns the log with an event appended.
func addEvent(log []byte, pcr int) []byte {
	whole := papertpm.EncodeLog([]string{"sha256"}, []papertpm.Measurement{{PCR: pcr, Type: EventIPL, Data: []byte("later")}})
	header := papertpm.EncodeLog([]string{"sha256"}, nil)
	return append(bytes.Clone(log), whole[len(header):]...)
}

func TestAReportIsRefusedAndWhetherTheMachineChanged(t *testing.T) {
	for name, c := range map[string]struct {
		before, after    func(*reported)
		want             []Code
		genuine, changed bool
	}{
		// The machine is no longer what was released.
		"firmware's PCR was extended":         {before: func(r *reported) { r.extend(0, "x") }, want: []Code{CodePCRChanged}, genuine: true, changed: true},
		"the kernel's PCR was extended":       {before: func(r *reported) { r.extend(9, "x") }, want: []Code{CodePCRChanged}, genuine: true, changed: true},
		"PCR 11 was extended again":           {before: func(r *reported) { r.extend(11, "x") }, want: []Code{CodePCRChanged}, genuine: true, changed: true},
		"PCR 12 was extended again":           {before: func(r *reported) { r.extend(12, "x") }, want: []Code{CodePCRChanged}, genuine: true, changed: true},
		"a system extension was added":        {before: func(r *reported) { r.extend(13, "x") }, want: []Code{CodePCRChanged}, genuine: true, changed: true},
		"PCR 14 was extended":                 {before: func(r *reported) { r.extend(14, "x") }, want: []Code{CodePCRChanged}, genuine: true, changed: true},
		"PCR 15 after the first report":       {before: func(r *reported) { r.first(); r.extend(15, "x") }, want: []Code{CodePCRChanged}, genuine: true, changed: true},
		"the boot is not capped":              {before: func(r *reported) { r.tpm.PCRs["sha256"] = r.released() }, want: []Code{CodePCRChanged}, genuine: true, changed: true},
		"the log is shorter":                  {before: func(r *reported) { r.log = slices.Clip(bytes.Clone(r.log[:len(r.log)-1])) }, want: []Code{CodeLogChanged}, genuine: true, changed: true},
		"the log was altered":                 {before: func(r *reported) { r.log = bytes.Clone(r.log); r.log[200] ^= 1 }, want: []Code{CodeLogChanged}, genuine: true, changed: true},
		"the log has an event too many":       {before: func(r *reported) { r.log = addEvent(r.log, 4) }, want: []Code{CodeLogChanged}, genuine: true, changed: true},
		"the log has no event but bytes":      {before: func(r *reported) { r.log = append(bytes.Clone(r.log), 1, 2, 3) }, want: []Code{CodeLogChanged}, genuine: true, changed: true},
		"another disk":                        {before: func(r *reported) { r.Disk.GUID = "11020304-0506-0708-090a-0b0c0d0e0f10" }, want: []Code{CodeDiskForeign}, genuine: true, changed: true},
		"the log has an event of another PCR": {before: func(r *reported) { r.log = addEvent(r.log, 10) }, genuine: true},

		// Genuine, and no reason to lock the machine out.
		"another boot":                {before: func(r *reported) { r.tpm.Clock.ResetCount++; r.extend(0, "x") }, want: []Code{CodeReportBoot}, genuine: true},
		"the TPM restarted":           {before: func(r *reported) { r.tpm.Clock.RestartCount++ }, want: []Code{CodeReportBoot}, genuine: true},
		"the TPM was cleared":         {before: func(r *reported) { r.tpm.Clock = tpm2.TPMSClockInfo{} }, want: []Code{CodeReportBoot}, genuine: true},
		"the TPM has other firmware":  {before: func(r *reported) { r.tpm.Firmware-- }, want: []Code{CodeReportBoot}, genuine: true},
		"overtaken by a later report": {before: func(r *reported) { r.boot.Clock = uint64(r.tpm.Clock.Clock) + 1 }, want: []Code{CodeClock}, genuine: true},
		"a quarantined machine":       {before: func(r *reported) { r.known.State = StateQuarantined }, want: []Code{CodeQuarantined}, genuine: true},
		"a revoked machine":           {before: func(r *reported) { r.known.State = StateRevoked }, want: []Code{CodeMachineRevoked}, genuine: true},

		// Not proven to be from the machine, or not an answer to the challenge.
		"no boot is on record": {before: func(r *reported) { r.boot = nil }, want: []Code{CodeReportBoot}},
		"another attestation key": {before: func(r *reported) {
			k := newKey(r.t, elliptic.P256())
			r.tpm.AK, r.tpm.AKPublic = k, akArea(r.t, &k.PublicKey)
			r.extend(0, "x")
		}, want: []Code{CodeAKChanged}},
		"a boot without attestation key": {before: func(r *reported) { r.boot.AKName = nil }, want: []Code{CodeAKChanged}},
		"signed by another key":          {before: func(r *reported) { r.tpm.AK = newKey(r.t, elliptic.P256()); r.extend(0, "x") }, want: []Code{CodeQuoteSignature, CodeQuoteMissing}},
		"the log altered on the way":     {after: func(r *reported) { r.ev.EventLog = bytes.Clone(r.ev.EventLog); r.ev.EventLog[200] ^= 1 }, want: []Code{CodeQuoteNonce, CodeQuoteMissing}},
		"the disk altered on the way":    {after: func(r *reported) { r.ev.Disk.StateExists = !r.ev.Disk.StateExists }, want: []Code{CodeQuoteNonce, CodeQuoteMissing}},
		"PCR values altered on the way":  {after: func(r *reported) { r.ev.Quotes[0].PCRs[0] = make([]byte, 32) }, want: []Code{CodeQuoteDigest, CodeQuoteMissing}},
		"another connection":             {after: func(r *reported) { r.ses.Exporter = bytes.Repeat([]byte{8}, 32) }, want: []Code{CodeQuoteNonce, CodeQuoteMissing}},
		"another challenge's nonce":      {after: func(r *reported) { r.ch.Nonce = bytes.Repeat([]byte{8}, 32) }, want: []Code{CodeQuoteNonce, CodeQuoteMissing}},
		"an expired challenge":           {before: func(r *reported) { r.ch.Expires = now; r.extend(0, "x") }, want: []Code{CodeChallenge}},
		"evidence for a release":         {before: func(r *reported) { r.ch.Purpose = PurposeUnlock }, want: []Code{CodeChallenge, CodeQuoteNonce, CodeQuoteMissing}},
		"no channel binding":             {before: func(r *reported) { r.ses.Exporter = nil }, want: []Code{CodeChallenge}},
		"no quote":                       {after: func(r *reported) { r.ev.Quotes = nil }, want: []Code{CodeQuoteMissing}},
		"a quote twice":                  {after: func(r *reported) { r.ev.Quotes = append(r.ev.Quotes, r.ev.Quotes[0]) }, want: []Code{CodeMalformed}},
		"a transport key":                {after: func(r *reported) { r.ev.Transport, _ = r.tpm.MakeTransport(r.ch.Nonce, r.ses.Exporter) }, want: []Code{CodeTransport}},
		"a log that is too large":        {before: func(r *reported) { r.log = make([]byte, MaxEventLog+1) }, want: []Code{CodeMalformed}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReported(t)
			if c.before != nil {
				c.before(r)
			}
			r.collect()
			if c.after != nil {
				c.after(r)
			}
			result, rep := r.verify()
			want := slices.Clone(c.want)
			slices.Sort(want)
			if got := codesOf(result); !slices.Equal(got, want) || result.Allowed != (len(want) == 0) {
				t.Errorf("allowed %t with %q, want %q: %+v", result.Allowed, got, want, result.Findings)
			}
			if rep.Genuine != c.genuine || rep.Changed != c.changed {
				t.Errorf("genuine %t, changed %t, want %t, %t", rep.Genuine, rep.Changed, c.genuine, c.changed)
			}
		})
	}
}

// first makes the first report.
func (r *reported) first() {
	r.collect()
	_, rep := r.verify()
	r.boot.Volume, r.boot.Clock = rep.Volume, rep.Clock
}

// released returns the SHA-256 PCRs of the release.
func (r *reported) released() map[int][]byte {
	m := map[int][]byte{}
	for i, p := range PolicyPCRs() {
		m[p] = r.boot.PCRs["sha256"][i*32 : (i+1)*32]
	}
	return m
}

func TestAReportMustQuoteTheBanksOfTheRelease(t *testing.T) {
	r := newReported(t, "sha256", "sha384")
	r.Banks = []string{"sha384"}
	r.collect()
	if result, rep := r.verify(); result.Allowed || !rep.Changed || !slices.Equal(codesOf(result), []Code{CodeQuoteMissing}) {
		t.Errorf("a bank less: %q, %+v", codesOf(result), rep)
	}
	r = newReported(t, "sha256", "sha384")
	delete(r.boot.PCRs, "sha384")
	r.collect()
	if result, rep := r.verify(); result.Allowed || !rep.Changed || !slices.Equal(codesOf(result), []Code{CodeQuoteMissing}) {
		t.Errorf("a bank more: %q, %+v", codesOf(result), rep)
	}
}

func TestEvidenceOfAReportIsNoneForARelease(t *testing.T) {
	r := newReported(t)
	r.collect()
	r.ch.Purpose = PurposeUnlock
	if result := r.scene.verify(); result.Allowed {
		t.Error("a report was taken for evidence of a boot")
	}
	r.ch.Purpose = PurposeReport
	if result := r.scene.verify(); result.Allowed || !slices.Contains(codesOf(result), CodeChallenge) {
		t.Errorf("findings are %q", codesOf(result))
	}
}

func TestNothingOfAReportPanics(t *testing.T) {
	if result, rep := VerifyReport(nil, nil, nil, nil, nil); result.Allowed || rep.Genuine {
		t.Error("nothing was allowed")
	}
	result, rep := VerifyReport(&Evidence{Disk: Disk{GUID: papertpm.Disk}}, &Challenge{Purpose: PurposeReport}, &Session{}, &Known{}, &Boot{})
	if result.Allowed || rep.Genuine {
		t.Error("nothing was allowed")
	}
}

func TestSerialNumbers(t *testing.T) {
	for _, s := range []string{"", " S1", "S1 ", "Default string", "0000000", "To be filled by O.E.M.", "a\x01b", "ä", strings.Repeat("1", 65), "???", "............"} {
		if CheckSerial(s) == nil {
			t.Errorf("%q is taken for a serial number", s)
		}
	}
	for _, s := range []string{"S1", "5CD9 12/3-x", "MXQ94001AB"} {
		if err := CheckSerial(s); err != nil || SerialKey(s) != strings.ToUpper(s) {
			t.Errorf("%q: %v, %q", s, err, SerialKey(s))
		}
	}
	for _, c := range []struct {
		serial string
		owner  MachineID
		want   []Code
	}{
		{"serial-1", MachineID{}, nil}, {"SERIAL-1", MachineID{}, nil}, {"serial-2", MachineID{}, []Code{CodeSerialMismatch}},
		{"", MachineID{1}, []Code{CodeSerialTaken}}, {"", MachineID{}, nil},
	} {
		s := newScene(t)
		s.known.Serial, s.known.SerialOwner = c.serial, c.owner
		s.collect()
		if got := codesOf(s.verify()); !slices.Equal(got, c.want) {
			t.Errorf("%+v: findings are %q", c, got)
		}
	}
	s := newScene(t)
	s.collect()
	s.known.SerialOwner = s.verify().Machine
	if got := codesOf(s.verify()); got != nil {
		t.Errorf("a machine's own serial number: %q", got)
	}
}

func TestAnEndorsementKeyIsKnownByEachDigest(t *testing.T) {
	s := newScene(t)
	cert, err := x509.ParseCertificate(s.tpm.EKCertificates[0])
	if err != nil {
		t.Fatal(err)
	}
	area := tpm2.Marshal(s.tpm.EKPublic)
	got, err := EKDigests(area, cert)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := EKMachineID(area)
	if len(got) != 4 || MachineID(got[0]) != id || got[3] != digestOf(string(cert.Raw)) || got[2] != digestOf(string(area)) {
		t.Errorf("digests are %s", got)
	}
	if got, err := EKDigests(area, s.ca.Root); err != nil || len(got) != 3 {
		t.Errorf("with a certificate of another key: %s, %v", got, err)
	}
	if _, err := EKDigests([]byte("none"), nil); err == nil {
		t.Error("no key has digests")
	}
}

func BenchmarkVerifyReport(b *testing.B) {
	r := newReported(b)
	r.collect()
	for b.Loop() {
		if result, _ := r.verify(); !result.Allowed {
			b.Fatal(result.Findings)
		}
	}
}
