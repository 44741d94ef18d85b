package attest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
)

// allLogs are the files of every log in testdata, and of those in the
// directory SEALIFT_EVENTLOGS, for logs that are not ours to publish.
func allLogs(tb testing.TB) []string {
	tb.Helper()
	var all []string
	for _, pattern := range []string{filepath.Join(logDir, "ovmf-*.bin"), filepath.Join(logDir, "google", "*.bin")} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			tb.Fatalf("%s: %d logs, %v", pattern, len(files), err)
		}
		all = append(all, files...)
	}
	if dir := os.Getenv("SEALIFT_EVENTLOGS"); dir != "" {
		entries, err := os.ReadDir(dir)
		if err != nil {
			tb.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	return all
}

func mustDecode(tb testing.TB, b []byte) *UntrustedLog {
	tb.Helper()
	l, err := DecodeLog(b)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func mustDecodeFile(tb testing.TB, file string) *UntrustedLog {
	tb.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	return mustDecode(tb, b)
}

func quirksOf(l *UntrustedLog) []string {
	var codes []string
	for _, q := range l.Quirks {
		codes = append(codes, string(q.Code))
	}
	slices.Sort(codes)
	return codes
}

// toolPCRs returns the PCR values that tpm2_eventlog computes, as "bank 7 hex",
// and how many events of a crypto-agile log it sees.
func toolPCRs(t *testing.T, file string) (values []string, events int, err error) {
	t.Helper()
	out, err := exec.Command(tool(t, "tpm2_eventlog"), file).Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return nil, 0, fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return nil, 0, err
	}
	head, tail, ok := strings.Cut(string(out), "\npcrs:\n")
	if !ok {
		t.Fatalf("%s: tpm2_eventlog prints no PCRs", file)
	}
	bank := ""
	for line := range strings.Lines(tail) {
		line = strings.TrimRight(line, "\n")
		if m := eventlogPCR.FindStringSubmatch(line); m != nil {
			values = append(values, fmt.Sprintf("%s %s %s", bank, m[1], m[2]))
		} else {
			bank = strings.Trim(line, " :")
		}
	}
	slices.Sort(values)
	return values, strings.Count(head, "- EventNum: "), nil
}

func pcrsOf(l *UntrustedLog) []string {
	var values []string
	for _, b := range l.Banks {
		for pcr, v := range l.PCRs(b.Name) {
			values = append(values, fmt.Sprintf("%s %d %x", b.Name, pcr, v))
		}
	}
	slices.Sort(values)
	return values
}

// comparePCRs holds a log's PCR values against those of tpm2_eventlog. Version
// 5.4 of the tool knows no StartupLocality and extends EV_NO_ACTION events, so
// that PCR 0 of a log that has them is left out.
func comparePCRs(t *testing.T, l *UntrustedLog, want []string) {
	t.Helper()
	got := pcrsOf(l)
	if slices.ContainsFunc(l.Events[1:], func(e LoggedEvent) bool { return e.UntrustedType == EventNoAction }) {
		ofPCR0 := func(s string) bool { return strings.Fields(s)[1] == "0" }
		got, want = slices.DeleteFunc(got, ofPCR0), slices.DeleteFunc(want, ofPCR0)
	}
	if !slices.Equal(got, want) || len(want) == 0 {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDecodedLogsLeadToThePCRsOfTpm2Eventlog(t *testing.T) {
	tool(t, "tpm2_eventlog")
	// What tpm2_eventlog 5.4 cannot read.
	cannot := map[string]string{
		"option-rom.bin":      "it ends with a segmentation fault",
		"short-no-action.bin": "it takes the first event for a Spec ID event",
	}
	compared := 0
	for _, file := range allLogs(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, events, err := toolPCRs(t, file)
			if err != nil {
				if cannot[filepath.Base(file)] == "" && strings.HasPrefix(file, logDir) {
					t.Fatal(err)
				}
				return
			}
			l := mustDecodeFile(t, file)
			comparePCRs(t, l, want)
			if l.Format == FormatCryptoAgile && events != len(l.Events) {
				t.Errorf("%d events, tpm2_eventlog sees %d", len(l.Events), events)
			}
			if l.Damage != nil {
				t.Errorf("damaged: %+v", l.Damage)
			}
			compared++
		})
	}
	if compared < 9 {
		t.Errorf("compared only %d logs", compared)
	}
}

func TestDecodedLogsOfAnyBanksLeadToThePCRsOfTpm2Eventlog(t *testing.T) {
	tool(t, "tpm2_eventlog")
	locality := func(v byte) []papertpm.Measurement {
		return append([]papertpm.Measurement{{Type: EventNoAction, Data: append([]byte(LocalitySignature), v)}}, papertpm.GoodBoot().Measured...)
	}
	for name, log := range map[string][]byte{
		"SHA-1":              papertpm.EncodeLog([]string{"sha1"}, papertpm.GoodBoot().Measured),
		"SHA-384":            papertpm.EncodeLog([]string{"sha384"}, papertpm.GoodBoot().Measured),
		"SHA-512, SHA-256":   papertpm.EncodeLog([]string{"sha512", "sha256"}, papertpm.GoodBoot().Measured),
		"PCRs of DRTM":       papertpm.EncodeLog([]string{"sha256"}, []papertpm.Measurement{{PCR: 16, Type: EventAction}, {PCR: 17, Type: EventAction}, {PCR: 22, Type: EventAction}, {PCR: 23, Type: EventAction}}),
		"startup locality 0": papertpm.EncodeLog([]string{"sha256", "sha1"}, locality(0)),
		"startup locality 3": papertpm.EncodeLog([]string{"sha256", "sha1"}, locality(3)),
		"startup locality 4": papertpm.EncodeLog([]string{"sha256", "sha384"}, locality(4)),
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(file, log, 0o600); err != nil {
				t.Fatal(err)
			}
			want, _, err := toolPCRs(t, file)
			if err != nil {
				t.Fatal(err)
			}
			comparePCRs(t, mustDecode(t, log), want)
		})
	}
}

func TestDecodedLogsLeadToTheValuesOfTheTPM(t *testing.T) {
	for _, name := range append(realLogs(), "google/linux-tpm12", "google/option-rom", "google/glinux-alex", "google/rhel8-uefi") {
		t.Run(name, func(t *testing.T) {
			l := mustDecodeFile(t, filepath.Join(logDir, name+".bin"))
			for bank, values := range kernelPCRs(t, name) {
				got := l.PCRs(bank)
				for pcr, want := range values {
					if pcr == 10 {
						continue // the kernel's own (IMA)
					}
					untouched := got[pcr] == nil && (AllBytes(want, 0) || pcr >= 17 && AllBytes(want, 0xff))
					if !untouched && !bytes.Equal(got[pcr], want) {
						t.Errorf("PCR %d, bank %s: got %x, want %x", pcr, bank, got[pcr], want)
					}
				}
			}
		})
	}
}

func TestDecodedLogsAgreeWithTheStrictReader(t *testing.T) {
	strict := 0
	for _, file := range allLogs(t) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseEventLog(b)
		if err != nil {
			continue
		}
		strict++
		compareWithStrict(t, file, s, mustDecode(t, b))
	}
	if strict < 6 {
		t.Errorf("the strict reader read only %d logs", strict)
	}
}

// compareWithStrict holds what DecodeLog made of a log against ParseEventLog,
// which accepted it.
func compareWithStrict(t *testing.T, name string, s *EventLog, l *UntrustedLog) {
	t.Helper()
	if l.Damage != nil || l.Format != FormatCryptoAgile {
		t.Fatalf("%s: format %s, damage %+v", name, l.Format, l.Damage)
	}
	var measured []*LoggedEvent
	for i := range l.Events {
		if l.Events[i].UntrustedType != EventNoAction {
			measured = append(measured, &l.Events[i])
		}
	}
	if len(measured) != len(s.Events) {
		t.Fatalf("%s: %d events, the strict reader has %d", name, len(measured), len(s.Events))
	}
	for i, e := range measured {
		w := &s.Events[i]
		if e.Number != w.Number || int(e.PCR) != w.PCR || e.UntrustedType != w.UntrustedType || !bytes.Equal(e.UntrustedData, w.UntrustedData) || !slices.EqualFunc(e.Digests, w.Digests(), bytes.Equal) {
			t.Errorf("%s: event %d differs from the strict reader's", name, e.Number)
		}
		// With SHA-256 alone, the two say the same of the data.
		if _, verified := w.VerifiedData(); len(l.Banks) == 1 && verified != (e.Covers == CoversAll) {
			t.Errorf("%s: event %d is %s, covers %q, the strict reader says %t", name, e.Number, e.Trust, e.Covers, verified)
		}
	}
	// The strict reader sees no H-CRTM, and starts the PCRs of a dynamic launch as
	// if there had been none. It is asked for neither.
	hcrtm := slices.ContainsFunc(l.Quirks, func(q LogQuirk) bool { return q.Code == QuirkHCRTM })
	for _, bank := range s.Banks {
		for pcr, got := range l.PCRs(bank) {
			if want, err := s.Replay(bank, pcr); err != nil || !bytes.Equal(got, want) && !(hcrtm && pcr == 0) && (pcr < 17 || pcr > 22) {
				t.Errorf("%s: PCR %d, bank %s: got %x, the strict reader %x, %v", name, pcr, bank, got, want, err)
			}
		}
	}
}

func TestRealLogsShowTheirQuirks(t *testing.T) {
	for name, want := range map[string]struct {
		format string
		events int
		quirks string // code and events
		says   string
	}{
		"ovmf-2022.11-secureboot":      {FormatCryptoAgile, 39, "", `variable db holds "O=SnakeOil`},
		"ovmf-2022.11-cmdline-altered": {FormatCryptoAgile, 39, "", "partition table of the disk"},
		"google/ebs-event-missing":     {FormatSHA1, 38, "exit-boot-services.missing[] post-code[8 9]", "Calling EFI Application"},
		"google/option-rom": {FormatSHA1, 61, "no-action.digest[60] no-action.unknown[60] option-rom[11] post-code[9]",
			"image of 135488 bytes, PciRoot(0x0)/Pci(0x2,0x0)/Pci(0x0,0x0)/Offset(0xf600,0x207ff)"},
		"google/short-no-action": {FormatSHA1, 1, "no-action.short[0] separator.count[] startup-locality[0]", "started from locality 3"},
		"google/sb-cert": {FormatCryptoAgile, 15, "exit-boot-services.missing[] separator.count[] shim-certificate[12 14]",
			`the certificate "CN=Canonical Ltd. Master Certificate Authority,O=Canonical Ltd.," of Shim`},
		"google/rhel8-uefi":   {FormatCryptoAgile, 83, "shim-certificate[27]", "MokList"},
		"google/crypto-agile": {FormatCryptoAgile, 27, "exit-boot-services.missing[] post-code[3]", "SecureBoot"},
		"google/glinux-alex":  {FormatCryptoAgile, 29, "exit-boot-services.missing[] option-rom[13] post-code[6] startup-locality[1]", "BootOrder"},
		"google/linux-tpm12":  {FormatSHA1, 40, "post-code[5]", "N1FET43W"},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustDecodeFile(t, filepath.Join(logDir, name+".bin"))
			var quirks, text []string
			for _, q := range l.Quirks {
				quirks = append(quirks, fmt.Sprintf("%s%v", q.Code, q.Events))
			}
			slices.Sort(quirks)
			if got := strings.Join(quirks, " "); got != want.quirks {
				t.Errorf("quirks are %s, want %s", got, want.quirks)
			}
			for i := range l.Events {
				text = append(text, l.Events[i].Text)
			}
			if !strings.Contains(strings.Join(text, "\n"), want.says) {
				t.Errorf("no event says %q:\n%s", want.says, strings.Join(text, "\n"))
			}
			if l.Format != want.format || len(l.Events) != want.events || l.Damage != nil {
				t.Errorf("format %s, %d events, damage %+v, want %s, %d, none", l.Format, len(l.Events), l.Damage, want.format, want.events)
			}
		})
	}
}

// Offsets in a log that papertpm.EncodeLog made with one bank.
const (
	specAt  = 32                       // data of the Spec ID event
	banksAt = specAt + 28              // its banks
	eventAt = banksAt + 4 + 1          // first event
	specLen = eventAt - specAt         // data of the Spec ID event, bytes
	dataAt  = 12 + 2 + sha256.Size + 4 // data of an event, from its start
)

func TestQuirksAreSaidAndReadOver(t *testing.T) {
	one := func() []byte { return papertpm.EncodeLog([]string{"sha256"}, papertpm.GoodBoot().Measured) }
	with := func(first ...papertpm.Measurement) []byte {
		return papertpm.EncodeLog([]string{"sha256"}, append(first, papertpm.GoodBoot().Measured...))
	}
	noAction := func(data string) papertpm.Measurement {
		return papertpm.Measurement{Type: EventNoAction, Data: []byte(data)}
	}
	patch := func(b []byte, off int, p ...byte) []byte { copy(b[off:], p); return b }
	insert := func(b []byte, off int, p ...byte) []byte { return slices.Insert(b, off, p...) }
	// spec changes the size of the Spec ID event's data.
	spec := func(b []byte, more int) []byte {
		binary.LittleEndian.PutUint32(b[specAt-4:], uint32(specLen+more))
		return b
	}
	secondBank := func(alg, size byte) []byte {
		b := patch(one(), banksAt-4, 2)
		return spec(insert(b, banksAt+4, alg, 0, size, 0), 4)
	}
	// undeclared adds a SHA-1 digest to the first event.
	undeclared := func() []byte {
		return insert(patch(one(), eventAt+8, 2), eventAt+12, append([]byte{4, 0}, make([]byte, 20)...)...)
	}
	hcrtm := papertpm.Measurement{Type: EventHCRTM, Data: []byte("HCRTM"), Measured: []byte("code")}
	n := len(papertpm.GoodBoot().Measured) + 1
	for name, c := range map[string]struct {
		log    []byte
		want   string
		says   string
		events int
	}{
		"nothing":                            {one(), "", "", n},
		"vendor info":                        {spec(insert(patch(one(), eventAt-1, 3), eventAt, 'A', 'M', 'I'), 3), "vendor-info", "3 bytes of vendor info: AMI", n},
		"vendor info in hex":                 {spec(insert(patch(one(), eventAt-1, 2), eventAt, 1, 2), 2), "vendor-info", "0102", n},
		"vendor info cut short":              {patch(one(), eventAt-1, 9), "header", "shorter than its fields", n},
		"a longer header":                    {spec(insert(one(), eventAt, 0, 0), 2), "header", "2 bytes follow", n},
		"another version":                    {patch(one(), specAt+20, 0, 1), "header", "version is 1.0", n},
		"a header in another PCR":            {patch(one(), 0, 1), "header", "in PCR 1", n},
		"a bank of SM3":                      {secondBank(0x12, 32), "bank.unknown event.digests", "sm3_256 is not replayed", n},
		"a bank of a wrong size":             {secondBank(0x0c, 20), "bank.size event.digests", "declared with digests of 20 bytes, want 48", n},
		"a bank twice":                       {secondBank(0x0b, 32), "bank.twice", "sha256 is declared twice", n},
		"a digest that is missing":           {patch(secondBank(0x04, 20), eventAt+4+8, 1), "event.digests", "no digest for the bank sha1", n},
		"a digest too many":                  {undeclared(), "event.digests", "0x0004, which the header does not declare", n},
		"a PCR beyond 23":                    {with(papertpm.Measurement{PCR: 24, Type: EventAction}), "event.pcr", "PCR is 24", n + 1},
		"a type that the PFP does not name":  {with(papertpm.Measurement{PCR: 1, Type: 0x99}), "event.type", "0x00000099", n + 1},
		"a variable that does not decode":    {with(papertpm.Measurement{PCR: 1, Type: EventVariableBoot, Data: []byte("x")}), "event.unreadable", "too short", n + 1},
		"an unmeasured event that is short":  {with(noAction("short")), "no-action.short", "of 5 bytes", n + 1},
		"an unmeasured event of another":     {with(noAction("Something else...")), "no-action.unknown", "Something else", n + 1},
		"a second header":                    {with(noAction(SpecIDSignature)), "no-action.unknown", "Spec ID", n + 1},
		"an unmeasured event with a digest":  {with(papertpm.Measurement{Type: EventNoAction, Data: []byte("SP800-155 Event3"), Measured: []byte("x")}), "no-action.digest", "not zero", n + 1},
		"startup locality 3":                 {with(noAction(LocalitySignature + "\x03")), "startup-locality", "starts from 3", n + 1},
		"startup locality 4":                 {with(noAction(LocalitySignature + "\x04")), "startup-locality", "starts from 4", n + 1},
		"startup locality 0":                 {with(noAction(LocalitySignature + "\x00")), "", "", n + 1},
		"startup locality 1":                 {with(noAction(LocalitySignature + "\x01")), "startup-locality.invalid", "value 01", n + 1},
		"startup locality without a value":   {with(noAction(LocalitySignature)), "startup-locality.invalid", "want 0, 3 or 4", n + 1},
		"startup locality with more":         {with(noAction(LocalitySignature + "\x03\x00")), "startup-locality startup-locality.invalid", "of 18 bytes", n + 1},
		"startup locality twice":             {with(noAction(LocalitySignature+"\x03"), noAction(LocalitySignature+"\x04")), "startup-locality startup-locality.invalid", "a second", n + 2},
		"startup locality late":              {with(papertpm.Measurement{Type: EventAction}, noAction(LocalitySignature+"\x03")), "startup-locality startup-locality.invalid", "none measured before it", n + 2},
		"an H-CRTM":                          {with(hcrtm), "h-crtm", "no StartupLocality event", n + 1},
		"an H-CRTM with its locality":        {with(noAction(LocalitySignature+"\x04"), hcrtm), "h-crtm startup-locality", "before the TPM was started", n + 2},
		"an H-CRTM with another locality":    {with(noAction(LocalitySignature+"\x03"), hcrtm), "h-crtm startup-locality", "says 3, which counts", n + 2},
		"a separator of an error":            {with(papertpm.Measurement{PCR: 1, Type: EventSeparator, Data: []byte{1, 0, 0, 0}}), "separator.count separator.error", "01000000", n + 1},
		"a separator with another digest":    {with(papertpm.Measurement{PCR: 1, Type: EventSeparator, Data: make([]byte, 4), Measured: []byte("x")}), "separator.count separator.error", "altered", n + 1},
		"a POST code":                        {with(papertpm.Measurement{Type: EventPostCode, Data: []byte("ACPI DATA"), Measured: []byte("x")}), "post-code", "POST code", n + 1},
		"an option ROM":                      {with(papertpm.Measurement{PCR: 2, Type: EventBootDriver, Data: make([]byte, 32)}), "option-rom", "no device path", n + 1},
		"padding of zeros":                   {append(one(), make([]byte, 1001)...), "padding", "1001 bytes of 00", n},
		"padding of ones":                    {append(one(), bytes.Repeat([]byte{0xff}, 7)...), "padding", "7 bytes of ff", n},
		"padding of one byte":                {append(one(), 0), "padding", "1 bytes of 00", n},
		"a log that ends before the system":  {papertpm.EncodeLog([]string{"sha256"}, papertpm.GoodBoot().Measured[:len(papertpm.GoodBoot().Measured)-2]), "exit-boot-services.missing", "PCR 5 has no", n - 2},
		"a digest of the data in one bank":   {patch(papertpm.EncodeLog([]string{"sha1", "sha256"}, papertpm.GoodBoot().Measured), eventAt+4+14, 1, 2, 3), "event.banks-disagree", "the sha1 digest is not", n},
		"a certificate with a byte too much": {with(papertpm.Measurement{PCR: 7, Type: EventAuthority, Data: append(papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", []byte("entry")), 0), Measured: papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", []byte("entry"))}), "shim-certificate", "a byte more", n + 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustDecode(t, c.log)
			got := slices.DeleteFunc(quirksOf(l), func(s string) bool {
				return s == string(QuirkNoActionDigest) && c.want != s // papertpm.EncodeLog fills in digests
			})
			if strings.Join(got, " ") != c.want || l.Damage != nil {
				t.Errorf("quirks are %q, damage %+v, want %q, none", got, l.Damage, c.want)
			}
			if text := fmt.Sprint(l.Quirks); !strings.Contains(text, c.says) {
				t.Errorf("no quirk says %q: %s", c.says, text)
			}
			if len(l.Events) != c.events {
				t.Errorf("%d events, want %d", len(l.Events), c.events)
			}
		})
	}
}

func TestPCR0StartsFromTheLocality(t *testing.T) {
	locality := func(v byte) papertpm.Measurement {
		return papertpm.Measurement{Type: EventNoAction, Data: append([]byte(LocalitySignature), v)}
	}
	hcrtm := papertpm.Measurement{Type: EventHCRTM, Measured: []byte("code")}
	other := papertpm.Measurement{Type: EventAction, Measured: []byte("code")}
	for name, c := range map[string]struct {
		events []papertpm.Measurement
		want   byte
	}{
		"nothing":               {[]papertpm.Measurement{other}, 0},
		"locality 3":            {[]papertpm.Measurement{locality(3), other}, 3},
		"locality 4":            {[]papertpm.Measurement{locality(4), other}, 4},
		"an H-CRTM":             {[]papertpm.Measurement{hcrtm}, 4},
		"an H-CRTM, locality 0": {[]papertpm.Measurement{locality(0), hcrtm}, 0},
		"an H-CRTM, locality 4": {[]papertpm.Measurement{locality(4), hcrtm}, 4},
		"an H-CRTM elsewhere":   {[]papertpm.Measurement{{PCR: 1, Type: EventHCRTM}, other}, 0},
		"a late H-CRTM":         {[]papertpm.Measurement{other, {Type: EventHCRTM, Measured: []byte("x")}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustDecode(t, papertpm.EncodeLog([]string{"sha256"}, c.events))
			value := append(make([]byte, 31), c.want)
			for _, m := range c.events {
				if m.Type != EventNoAction && m.PCR == 0 {
					d := sha256.Sum256(m.Bytes())
					v := sha256.Sum256(append(value, d[:]...))
					value = v[:]
				}
			}
			if got := l.PCRs("sha256")[0]; l.StartupLocality != c.want || !bytes.Equal(got, value) {
				t.Errorf("PCR 0 starts from %d and is %x, want %d and %x", l.StartupLocality, got, c.want, value)
			}
		})
	}
}

func TestWhatTheLogDoesNotTellIsLeftOut(t *testing.T) {
	l := mustDecode(t, papertpm.EncodeLog([]string{"sha256", "sha1"}, []papertpm.Measurement{{PCR: 1, Type: EventAction}, {PCR: 2, Type: EventAction}}))
	if n := len(l.PCRs("sha1")); n != 2 {
		t.Fatalf("%d values", n)
	}
	b := papertpm.EncodeLog([]string{"sha256", "sha1"}, []papertpm.Measurement{{PCR: 1, Type: EventAction}, {PCR: 2, Type: EventAction}})
	first := eventAt + 4
	b[first+8] = 1
	l = mustDecode(t, slices.Delete(b, first+12+34, first+12+34+22)) // the SHA-1 digest
	if l.Damage != nil || l.PCRs("sha1")[1] != nil || l.PCRs("sha1")[2] == nil || l.PCRs("sha256")[1] == nil {
		t.Errorf("damage %+v, values %q", l.Damage, pcrsOf(l))
	}
	if got := l.PCRs("sm3_256"); len(got) != 0 {
		t.Errorf("values of a bank that is not there: %x", got)
	}
}

func TestBanksThatAreNotKnownAreReadByTheirSize(t *testing.T) {
	// SHA-256 digests under the names of SM3 and of an algorithm of the future.
	for alg, want := range map[uint16]string{0x0012: "sm3_256", 0x7fff: "alg_0x7fff"} {
		b := papertpm.EncodeLog([]string{"sha256"}, papertpm.GoodBoot().Measured)
		for i := range len(b) - 4 {
			if i == banksAt || i >= eventAt && b[i] == 0x0b && b[i+1] == 0 && b[i-4] == 1 && b[i-3]|b[i-2]|b[i-1] == 0 {
				binary.LittleEndian.PutUint16(b[i:], alg)
			}
		}
		l := mustDecode(t, b)
		if l.Damage != nil || len(l.Events) != len(papertpm.GoodBoot().Measured)+1 || l.Banks[0].Name != want || l.Banks[0].Replayed() {
			t.Errorf("%#x: damage %+v, %d events, banks %+v", alg, l.Damage, len(l.Events), l.Banks)
		}
		if got := pcrsOf(l); len(got) != 0 {
			t.Errorf("%#x: values %q", alg, got)
		}
		if e := l.Events[1]; e.Trust != DataDigestOnly || len(e.Digests[0]) != 32 {
			t.Errorf("%#x: event is %+v", alg, e)
		}
	}
}

func TestDamagedLogsAreReadUpToTheDamage(t *testing.T) {
	for _, file := range []string{"ovmf-2022.11-secureboot.bin", "google/linux-tpm12.bin"} {
		b := readFile(t, file)
		whole := mustDecode(t, b)
		for n := range len(b) {
			l := mustDecode(t, b[:n])
			i := len(l.Events)
			for k := range l.Events {
				if l.Events[k].Offset != whole.Events[k].Offset || !bytes.Equal(l.Events[k].UntrustedData, whole.Events[k].UntrustedData) {
					t.Fatalf("%s, %d bytes: event %d is another", file, n, k)
				}
			}
			atEnd := i > 0 && n == whole.Events[i].Offset
			padded := i > 0 && !atEnd && l.Damage == nil && slices.Contains(quirksOf(l), string(QuirkPadding))
			switch d := l.Damage; {
			case atEnd && d != nil:
				t.Fatalf("%s, %d bytes: whole events, but damage %+v", file, n, d)
			case padded: // a cut event of nothing but zeros
			case !atEnd && (d == nil || d.Event != i || d.Offset != whole.Events[i].Offset || d.Offset > n):
				t.Fatalf("%s, %d bytes, %d events: damage is %+v", file, n, i, d)
			}
		}
	}
	good := papertpm.EncodeLog([]string{"sha256"}, papertpm.GoodBoot().Measured)
	put := func(off int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[off:], v)
		return b
	}
	for name, c := range map[string]struct {
		log    []byte
		events int
		says   string
	}{
		"nothing":                             {nil, 0, "inside the event's header"},
		"text":                                {[]byte("This is no event log, but a text that is longer than its header."), 0, "the log only"},
		"no bank":                             {put(banksAt-4, 0), 0, "declares 0 banks"},
		"a thousand banks":                    {put(banksAt-4, 1000), 0, "declares 1000 banks"},
		"banks that are not there":            {put(banksAt-4, 3), 0, "ends inside its banks"},
		"a bank of no size":                   {put(banksAt, 0x0000000b), 0, "of 0 bytes"},
		"a bank of a great size":              {put(banksAt, 0xffff7fff), 0, "of 65535 bytes"},
		"a header longer than the log":        {put(specAt-4, 1<<31), 0, "the log only"},
		"four billion digests":                {put(eventAt+8, 1<<32-1), 1, "4294967295 digests"},
		"a digest of an unknown size":         {put(eventAt+12, 0x7777), 1, "0x7777"},
		"data longer than the log":            {put(eventAt+dataAt-4, 1<<32-1), 1, "4294967295 bytes"},
		"zeros before something else":         {append(append(bytes.Clone(good), make([]byte, 64)...), 1), len(papertpm.GoodBoot().Measured) + 1, "zeros"},
		"more events than a log can have":     {append(bytes.Clone(good), bytes.Repeat([]byte{1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, MaxDecodedEvents)...), MaxDecodedEvents, "more than"},
		"padding of two kinds":                {append(bytes.Clone(good), 0, 0, 0xff), len(papertpm.GoodBoot().Measured) + 1, "inside the event's header"},
		"an older log that ends in its event": {append(append([]byte{1}, make([]byte, 31)...), 1), 1, "inside the event's header"},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustDecode(t, c.log)
			if l.Damage == nil || !strings.Contains(l.Damage.Reason, c.says) || len(l.Events) != c.events || l.Damage.Event != c.events {
				t.Errorf("damage is %+v after %d events, want %d events and %q", l.Damage, len(l.Events), c.events, c.says)
			}
		})
	}
	if _, err := DecodeLog(make([]byte, MaxDecodedLog+1)); err == nil {
		t.Error("a log that is too large was read")
	}
}

func TestEventsSayWhatOfThemWasMeasured(t *testing.T) {
	variable := papertpm.EncodeVariable(papertpm.GlobalGUID(), "BootOrder", []byte{1, 0, 0, 0})
	utf16 := papertpm.EncodeUTF16
	for name, c := range map[string]struct {
		m      papertpm.Measurement
		trust  DataTrust
		covers string
	}{
		"text":                     {papertpm.Measurement{Type: EventAction, Data: []byte("x")}, DataAuthenticated, CoversAll},
		"code":                     {papertpm.Measurement{Type: EventFirmwareBlob, Data: make([]byte, 16), Measured: []byte("code")}, DataDigestOnly, ""},
		"nothing":                  {papertpm.Measurement{Type: EventNoAction, Data: []byte("SP800-155 Event3")}, DataHint, ""},
		"a boot variable":          {papertpm.Measurement{PCR: 1, Type: EventVariableBoot, Data: variable}, DataAuthenticated, CoversAll},
		"a boot variable's value":  {papertpm.Measurement{PCR: 1, Type: EventVariableBoot, Data: variable, Measured: []byte{1, 0, 0, 0}}, DataAuthenticated, "the variable's value"},
		"another variable's value": {papertpm.Measurement{PCR: 1, Type: EventVariableConfig, Data: variable, Measured: []byte{1, 0, 0, 0}}, DataDigestOnly, ""},
		"a command of GRUB":        {papertpm.Measurement{PCR: 8, Type: EventIPL, Data: []byte("grub_cmd: set a=b\x00"), Measured: []byte("set a=b")}, DataAuthenticated, "the text after the colon"},
		"a command of RHEL's GRUB": {papertpm.Measurement{PCR: 8, Type: EventIPL, Data: []byte("grub_cmd set a=b\x00"), Measured: []byte("set a=b\x00")}, DataAuthenticated, "the text after the space"},
		"RHEL's command line":      {papertpm.Measurement{PCR: 8, Type: EventIPL, Data: []byte("grub_kernel_cmdline /vmlinuz ro\x00"), Measured: []byte("/vmlinuz ro")}, DataAuthenticated, "the text after the space"},
		"a file of RHEL's GRUB":    {papertpm.Measurement{PCR: 9, Type: EventIPL, Data: []byte("grub_linuxefi Kernel\x00"), Measured: []byte("kernel")}, DataDigestOnly, ""},
		"words of another":         {papertpm.Measurement{PCR: 8, Type: EventIPL, Data: []byte("my_cmd set a=b\x00"), Measured: []byte("set a=b\x00")}, DataDigestOnly, ""},
		"a file of GRUB":           {papertpm.Measurement{PCR: 9, Type: EventIPL, Data: []byte("/vmlinuz\x00"), Measured: []byte("kernel")}, DataDigestOnly, ""},
		"a section's name":         {papertpm.Measurement{PCR: 11, Type: EventIPL, Data: utf16(".linux"), Measured: []byte(".linux\x00")}, DataAuthenticated, "the text as ASCII with a NUL"},
		"a section":                {papertpm.Measurement{PCR: 11, Type: EventIPL, Data: utf16(".linux"), Measured: []byte("kernel")}, DataDigestOnly, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := mustDecode(t, papertpm.EncodeLog([]string{"sha1", "sha256"}, []papertpm.Measurement{c.m})).Events[1]
			if e.Trust != c.trust || e.Covers != c.covers {
				t.Errorf("it is %s, covers %q, want %s, %q", e.Trust, e.Covers, c.trust, c.covers)
			}
		})
	}
}

func TestEventsAreToldInWords(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// Hard drive 1 with a GPT, and a file on it.
	path := append(unhex("04012a00 01000000 0008000000000000 0010000000000000 04030201060508070910111213141516 0202 04040800"), append([]byte{'\\', 0, 'a', 0}, unhex("7fff0400")...)...)
	load := append(make([]byte, 8), binary.LittleEndian.AppendUint64(nil, 4096)...)
	load = append(append(load, make([]byte, 8)...), binary.LittleEndian.AppendUint64(nil, uint64(len(path)))...)
	load = append(load, path...)
	option := append(append([]byte{1, 0, 0, 0, byte(len(path)), 0}, papertpm.EncodeUTF16("Disk")...), path...)
	const disk = `HD(1,GPT,01020304-0506-0708-0910-111213141516)/\a`
	for _, c := range []struct {
		typ  EventType
		data []byte
		want string
	}{
		{EventSeparator, make([]byte, 4), "separator 00000000"},
		{EventSCRTMVersion, papertpm.EncodeUTF16("1.2\x1b[2J"), "31002e0032001b005b0032004a000000"},
		{EventSCRTMVersion, papertpm.EncodeUTF16("1.2"), `version "1.2"`},
		{EventAction, []byte("a\nb"), `"a b"`},
		{EventAction, []byte{1, 2}, "0102"},
		{EventAction, nil, "0 bytes"},
		{EventBootApplication, load, "image of 4096 bytes, " + disk},
		{EventBootApplication, load[:40], "40 bytes"},
		{EventGPT, papertpm.EncodeGPT([16]byte{4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16}), "partition table of the disk " + papertpm.Disk},
		{EventFirmwareBlob, unhex("0000800000000000 0000010000000000"), "at 0x800000, 65536 bytes"},
		{EventFirmwareBlob2, append([]byte{2, 'F', 'V'}, unhex("0000800000000000 0000010000000000")...), `"FV", at 0x800000, 65536 bytes`},
		{EventPostCode, []byte("ACPI DATA"), `"ACPI DATA"`},
		{EventHandoff, append(unhex("0100000000000000"), make([]byte, 24)...), "1 configuration tables: 00000000-0000-0000-0000-000000000000"},
		{EventHandoff2, append(append([]byte{3, 'A', 'C', 'P'}, unhex("0100000000000000")...), make([]byte, 24)...), `"ACP", 1 configuration tables: 00000000-0000-0000-0000-000000000000`},
		{EventHandoff, unhex("ffffffffffffffff"), "ffffffffffffffff"},
		{EventTag, append(unhex("eb8eebec 05000000"), "Linux"...), `tag 0xeceb8eeb, "Linux"`},
		{EventVariableConfig, papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1}), "variable SecureBoot is 01"},
		{EventVariableConfig, papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbx", nil), "variable dbx holds nothing"},
		{EventVariableBoot, papertpm.EncodeVariable(papertpm.GlobalGUID(), "BootOrder", []byte{1, 0, 0x1a, 0}), "variable BootOrder is 0001 001A"},
		{EventVariableBoot, papertpm.EncodeVariable(papertpm.GlobalGUID(), "Boot0001", option), `variable Boot0001 is "Disk", ` + disk},
		{EventVariableBoot, papertpm.EncodeVariable(papertpm.GlobalGUID(), "Boot0001", option[:9]), "variable Boot0001 has 9 bytes"},
		{EventAuthority, papertpm.EncodeVariable(papertpm.GlobalGUID(), "SbatLevel", []byte("sbat,1\n")), `variable SbatLevel is "sbat,1"`},
		{0x13371337, []byte("x"), `"x"`},
	} {
		e := mustDecode(t, papertpm.EncodeLog([]string{"sha256"}, []papertpm.Measurement{{PCR: 1, Type: c.typ, Data: c.data}})).Events[1]
		if e.Text != c.want {
			t.Errorf("%s %x: got %s, want %s", c.typ, c.data, e.Text, c.want)
		}
	}
}

func TestDevicePathsAreToldAsUEFIWritesThem(t *testing.T) {
	for in, want := range map[string]string{
		"02010c00d041030a00000000 010106000002 7fff0400": "PciRoot(0x0)/Pci(0x2,0x0)",
		"0305060003 01":                                    "USB(0x3,0x1)",
		"03120a00 0100 0080 0000":                          "Sata(0x1,0x8000,0x0)",
		"03171000 01000000 0001020304050607":               "NVMe(0x1,0001020304050607)",
		"03180700 612f62":                                  "Uri(a/b)",
		"040818000000000000f6000000000000ff07020000000000": "Offset(0xf600,0x207ff)",
		"05010700 010000":                                  "Path(5,1,010000)",
		"0101ff00":                                         "...",
		"01010000":                                         "...",
		"010106000002 0101":                                "Pci(0x2,0x0)",
		"":                                                 "",
		"7f01040001010600000101":                           "",
		"030b2500 525400123456" + strings.Repeat("00", 26) + "01": "MAC(525400123456,0x1)",
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(in, " ", ""))
		if err != nil {
			t.Fatal(in, err)
		}
		if got := DescribePath(b); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}

func TestEventTypesHaveTheirNames(t *testing.T) {
	for typ, want := range map[EventType][2]string{
		EventVariableConfig: {"EV_EFI_VARIABLE_DRIVER_CONFIG", "variable driver config"},
		EventPostCode:       {"EV_POST_CODE", "POST code"},
		0x13371337:          {"0x13371337", "type 0x13371337"},
		0x99:                {"0x00000099", "type 0x99"},
	} {
		if typ.SpecName() != want[0] || typ.String() != want[1] {
			t.Errorf("%#x: got %q, %q, want %q", uint32(typ), typ.SpecName(), typ, want)
		}
	}
}

func FuzzDecodeLog(f *testing.F) {
	f.Add(papertpm.EncodeLog([]string{"sha256"}, papertpm.GoodBoot().Measured))
	f.Add(papertpm.EncodeLog([]string{"sha1", "sha256", "sha384", "sha512"}, papertpm.GoodBoot().Measured[:3]))
	f.Add([]byte{})
	for _, file := range allLogs(f) {
		if b, err := os.ReadFile(file); err == nil {
			f.Add(b[:min(len(b), 4096)]) // large seeds slow the fuzzer down
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := DecodeLog(b)
		if err != nil {
			t.Fatal(err)
		}
		end := 0
		for i := range l.Events {
			e := &l.Events[i]
			if e.Offset < end || e.Offset >= len(b) || e.Number != i || len(e.Digests) != len(l.Banks) {
				t.Fatalf("event %d is at %d, after %d", i, e.Offset, end)
			}
			end = e.Offset + 1
			if len(e.Text) > MaxEventText || CleanTo(MaxEventText, e.Text) != e.Text {
				t.Fatalf("event %d says %q", i, e.Text)
			}
			if (e.Trust == DataHint) != (e.UntrustedType == EventNoAction) {
				t.Fatalf("event %d of type %s is %s", i, e.UntrustedType, e.Trust)
			}
		}
		if l.Damage != nil && (l.Damage.Offset > len(b) || l.Damage.Event != len(l.Events)) {
			t.Fatalf("damage is %+v", l.Damage)
		}
		for _, q := range l.Quirks {
			if len(q.Events) > MaxListedEvents || q.Count < len(q.Events) || len(q.Text) > 1024 {
				t.Fatalf("quirk is %+v", q)
			}
		}
		for _, bank := range l.Banks {
			l.PCRs(bank.Name)
		}
		// What the strict reader accepts, the lenient one reads alike.
		if s, err := ParseEventLog(b); err == nil {
			compareWithStrict(t, "fuzz", s, l)
		}
	})
}

func TestHostileLogsTakeLittleTime(t *testing.T) {
	pad := func(b []byte) []byte { return append(b, 1) }
	fill := func(one []byte) []byte {
		return pad(bytes.Repeat(one, (MaxDecodedLog-1024)/len(one)))
	}
	event := func(m papertpm.Measurement) []byte {
		return papertpm.EncodeLog([]string{"sha256"}, []papertpm.Measurement{m})[eventAt:]
	}
	// Signature lists with as many entries as fit.
	list := append([]byte(certX509), make([]byte, 12)...)
	entries := (1<<20 - 1024) / 17
	binary.LittleEndian.PutUint32(list[16:], uint32(28+17*entries))
	binary.LittleEndian.PutUint32(list[24:], 17)
	db := papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", append(list, bytes.Repeat([]byte{0x30}, 17*entries)...))
	head := papertpm.EncodeLog([]string{"sha256"}, nil)
	for name, log := range map[string][]byte{
		"empty events":     append(bytes.Clone(head), fill([]byte{1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})...),
		"locality":         append(bytes.Clone(head), fill(event(papertpm.Measurement{Type: EventNoAction, Data: []byte(LocalitySignature + "\x03")}))...),
		"signature lists":  append(bytes.Clone(head), fill(event(papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: db}))...),
		"zeros":            fill(make([]byte, 32)),
		"an old log":       fill(append([]byte{1}, make([]byte, 31)...)),
		"old, all of ones": fill(bytes.Repeat([]byte{1}, 32)),
	} {
		start := time.Now()
		l := mustDecode(t, log)
		for _, b := range l.Banks {
			l.PCRs(b.Name)
		}
		if took := time.Since(start); took > 20*time.Second { // 1 s without -race
			t.Errorf("%s: took %s", name, took)
		} else {
			t.Logf("%s: %d events, %s", name, len(l.Events), took)
		}
	}
}

func BenchmarkDecodeLog(b *testing.B) {
	log := readFile(b, "google/option-rom.bin")
	b.SetBytes(int64(len(log)))
	b.ReportAllocs()
	for b.Loop() {
		mustDecode(b, log)
	}
}
