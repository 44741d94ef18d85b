package attest_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/image/manifest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// bend changes the first event of a boot for which match holds.
func bend(t testing.TB, b *papertpm.Boot, match func(papertpm.Measurement) bool, change func(*papertpm.Measurement)) {
	t.Helper()
	i := slices.IndexFunc(b.Measured, match)
	if i < 0 {
		t.Fatal("no such event")
	}
	m := b.Measured[i]
	m.Digests = nil
	change(&m)
	b.Measured[i] = m
}

// variableOf matches the event of a variable.
func variableOf(name string) func(papertpm.Measurement) bool {
	return func(m papertpm.Measurement) bool {
		v, err := ParseVariable(m.Data)
		return err == nil && v.Name == name && m.Type != EventAuthority
	}
}

// setVariable gives the variable of an event another value.
func setVariable(t testing.TB, m *papertpm.Measurement, value func(was []byte) []byte) {
	t.Helper()
	v, err := ParseVariable(m.Data)
	if err != nil {
		t.Fatal(err)
	}
	guid, err := papertpm.ParseGUID(v.GUID)
	if err != nil {
		t.Fatal(err)
	}
	next := value(v.Data)
	m.Data = papertpm.EncodeVariable(guid, v.Name, next)
	if m.Type == EventVariableBoot {
		m.Measured = next // as edk2 does
	}
}

func ofType(pcr int, typ EventType, n int) func(papertpm.Measurement) bool {
	return func(m papertpm.Measurement) bool {
		if m.PCR == pcr && m.Type == typ {
			n--
		}
		return n < 0
	}
}

// gptEntry is one entry of a partition table.
func gptEntry(name string, first, last uint64) []byte {
	b := bytes.Repeat([]byte{0x11}, 32)
	b = binary.LittleEndian.AppendUint64(b, first)
	b = binary.LittleEndian.AppendUint64(b, last)
	b = append(b, make([]byte, 8)...)
	return append(b, append(papertpm.EncodeUTF16(name), make([]byte, 72)...)[:72]...)
}

// realBoot is the boot of real OVMF with Secure Boot on, to be bent.
func realBoot(t testing.TB) *scene {
	t.Helper()
	s := realScene(t, "ovmf-2022.11-secureboot")
	b, err := papertpm.ReadBoot(s.RawLog)
	if err != nil {
		t.Fatal(err)
	}
	b.SMBIOS, b.Disk = s.SMBIOS, s.Disk
	s.Boot, s.pcrs = b, nil
	return s
}

// The good boot of a real machine is the last that was accepted; each case is
// its next one, bent in one way.
func TestARefusalIsExplainedEventByEvent(t *testing.T) {
	box := func(r ModelRule) []ModelRule { r.Vendor = "QEMU"; return []ModelRule{r} }
	many := func(n int) []string {
		var out []string
		for i := range n {
			out = append(out, strconv.Itoa(i))
		}
		return out
	}
	cases := []struct {
		name string
		bend func(t *testing.T, s *scene)
	}{
		{"the same boot again", func(*testing.T, *scene) {}},
		{"dbx was updated, and the policy knows another", func(t *testing.T, s *scene) {
			s.policy.DBX = []manifest.SHA256{digestOf("another dbx")}
			bend(t, s.Boot, variableOf("dbx"), func(m *papertpm.Measurement) {
				setVariable(t, m, func(was []byte) []byte { return append(slices.Clone(was), hashList(1, many(14)...)...) })
			})
		}},
		{"dbx lost what the policy wants", func(t *testing.T, s *scene) {
			s.policy.DBXSuperset = hashList(1, many(14)...)
			bend(t, s.Boot, variableOf("dbx"), func(m *papertpm.Measurement) { setVariable(t, m, func([]byte) []byte { return nil }) })
		}},
		{"db trusts another authority", func(t *testing.T, s *scene) {
			root := fixedCertificate(t)
			bend(t, s.Boot, variableOf("db"), func(m *papertpm.Measurement) {
				setVariable(t, m, func(was []byte) []byte { return append(slices.Clone(was), certList(root)...) })
			})
		}},
		{"db is of another owner", func(t *testing.T, s *scene) {
			root := fixedCertificate(t)
			bend(t, s.Boot, variableOf("db"), func(m *papertpm.Measurement) { setVariable(t, m, func([]byte) []byte { return certList(root) }) })
		}},
		{"Secure Boot is off", func(t *testing.T, s *scene) {
			bend(t, s.Boot, variableOf("SecureBoot"), func(m *papertpm.Measurement) { setVariable(t, m, func([]byte) []byte { return []byte{0} }) })
		}},
		{"a boot option leads elsewhere", func(t *testing.T, s *scene) {
			s.policy.Models = box(ModelRule{Configuration: true})
			bend(t, s.Boot, variableOf("Boot0001"), func(m *papertpm.Measurement) {
				setVariable(t, m, func(was []byte) []byte {
					var hd [42]byte // HD(1,GPT,...): another device path
					copy(hd[:], []byte{4, 1, 42, 0, 1})
					hd[41], hd[40] = 2, 2
					path := append(hd[:], 0x7f, 0xff, 4, 0)
					b := append([]byte{1, 0, 0, 0}, byte(len(path)), 0)
					return append(append(b, papertpm.EncodeUTF16("other disk")...), path...)
				})
			})
		}},
		{"another boot application", func(t *testing.T, s *scene) {
			bend(t, s.Boot, ofType(4, EventBootApplication, 0), func(m *papertpm.Measurement) { m.Measured = []byte("another UKI") })
		}},
		{"an old image", func(t *testing.T, s *scene) {
			s.policy.DeniedImages = []DeniedImage{{Manifest: s.policy.Images[0], Reason: "version 1 is below the minimum 2"}}
			next := realImage(t)
			next.Version, next.UKI.Authenticode = "2", digestOf("UKI 2")
			s.policy.Images = []*manifest.Manifest{next}
		}},
		{"another initrd in the UKI", func(t *testing.T, s *scene) {
			i := slices.IndexFunc(s.Measured, func(m papertpm.Measurement) bool {
				return m.PCR == 11 && bytes.HasPrefix(m.Data, papertpm.EncodeUTF16(".initrd")[:14])
			})
			s.Measured[i+1].Digests, s.Measured[i+1].Measured = nil, []byte("another initrd")
			bend(t, s.Boot, ofType(9, EventTag, 1), func(m *papertpm.Measurement) { m.Measured = []byte("another initrd") })
		}},
		{"a command line that another image has", func(t *testing.T, s *scene) {
			old := realImage(t)
			old.Version, old.UKI.Authenticode = "0", digestOf("UKI 0")
			old.UKI.Cmdline = strings.Replace(old.UKI.Cmdline, "quiet", "debug init=/bin/sh", 1)
			s.policy.DeniedImages = []DeniedImage{{Manifest: old, Reason: "denied"}}
			bend(t, s.Boot, ofType(9, EventTag, 0), func(m *papertpm.Measurement) { m.Measured = papertpm.EncodeUTF16(old.UKI.Cmdline) })
		}},
		{"a command line from outside, which the stub logs", func(t *testing.T, s *scene) {
			text := "console=ttyS0 rescue"
			bend(t, s.Boot, ofType(9, EventTag, 0), func(m *papertpm.Measurement) { m.Measured = papertpm.EncodeUTF16(text) })
			s.Measured = append(s.Measured, papertpm.Measurement{PCR: 12, Type: EventIPL, Data: papertpm.EncodeUTF16(text)})
		}},
		{"a command line that nobody knows", func(t *testing.T, s *scene) {
			bend(t, s.Boot, ofType(9, EventTag, 0), func(m *papertpm.Measurement) { m.Measured = []byte("secret") })
		}},
		{"an option ROM", func(t *testing.T, s *scene) {
			path := []byte{2, 1, 12, 0, 0xd0, 0x41, 0x03, 0x0a, 0, 0, 0, 0, 1, 1, 6, 0, 0, 3, 0x7f, 0xff, 4, 0} // PciRoot(0x0)/Pci(0x3,0x0)
			data := binary.LittleEndian.AppendUint64(nil, 0x7e000000)
			data = binary.LittleEndian.AppendUint64(data, 4096)
			data = binary.LittleEndian.AppendUint64(data, 0)
			data = binary.LittleEndian.AppendUint64(data, uint64(len(path)))
			rom := papertpm.Measurement{PCR: 2, Type: EventBootDriver, Data: append(data, path...), Measured: []byte("option ROM")}
			i := slices.IndexFunc(s.Measured, isSeparatorOf(2))
			s.Measured = slices.Insert(s.Measured, i, rom)
		}},
		{"another firmware volume", func(t *testing.T, s *scene) {
			bend(t, s.Boot, ofType(0, EventFirmwareBlob, 1), func(m *papertpm.Measurement) { m.Measured = []byte("another volume") })
		}},
		{"firmware below the minimum", func(t *testing.T, s *scene) {
			s.policy.Models = box(ModelRule{Minimum: []FirmwareMinimum{{Version: "1.46", Reason: "CVE-2022-1"}}})
		}},
		{"a lie about the firmware", func(t *testing.T, s *scene) {
			s.SMBIOS = bytes.Replace(s.SMBIOS, []byte("0.0.0"), []byte("9.9.9"), 1)
		}},
		{"another partition", func(t *testing.T, s *scene) {
			bend(t, s.Boot, ofType(5, EventGPT, 0), func(m *papertpm.Measurement) {
				n := binary.LittleEndian.Uint64(m.Data[92:])
				m.Data = append(slices.Clone(m.Data), gptEntry("evil", 1<<20, 1<<21)...)
				binary.LittleEndian.PutUint64(m.Data[92:], n+1)
			})
		}},
		{"another disk", func(t *testing.T, s *scene) {
			b, err := s.OnDisk("01020304-0506-4708-890a-0b0c0d0e0f10", true)
			if err != nil {
				t.Fatal(err)
			}
			s.Boot = b
		}},
		{"older firmware of the TPM", func(t *testing.T, s *scene) {
			s.known.TPMFirmware = s.tpm.Firmware
			s.tpm.Firmware--
		}},
		{"a log from which dbx was cut", func(t *testing.T, s *scene) {
			s.Logged = slices.DeleteFunc(slices.Clone(s.Measured), variableOf("dbx"))
		}},
		{"a machine that was revoked", func(t *testing.T, s *scene) {
			s.known.State, s.known.StateReason = StateRevoked, "stolen"
		}},
	}
	var out bytes.Buffer
	for _, c := range cases {
		s := realBoot(t)
		s.collect()
		last := s.ev
		if r := s.verify(); !r.Allowed {
			t.Fatalf("the good boot is refused: %+v", r.Findings)
		}
		s.tpm.Clock.ResetCount++
		c.bend(t, s)
		s.collect()
		r := s.verify()
		x := Explain(r, s.ev, s.policy, last)
		for _, f := range x.Refusals {
			if f.Component == "" || f.Command == "" || f.Trust == "" {
				t.Errorf("%s: the refusal does not name a component, a trust or a command: %+v", c.name, f)
			}
		}
		fmt.Fprintf(&out, "## %s\n", c.name)
		for _, f := range x.Refusals {
			fmt.Fprintf(&out, "(%s) ", f.Component)
		}
		for _, line := range x.Lines() {
			fmt.Fprintf(&out, "\n%s", strings.NewReplacer(r.Machine.String(), "MACHINE", r.Machine.Short(), "MACHINE").Replace(line))
		}
		fmt.Fprint(&out, "\n\n")
	}
	name := filepath.Join("testdata", "explain.golden")
	if *update {
		if err := os.WriteFile(name, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, wanted := strings.Split(out.String(), "\n"), strings.Split(string(want), "\n")
	for i := range got {
		if i >= len(wanted) || got[i] != wanted[i] {
			t.Fatalf("line %d is\n%s\nwant\n%s", i+1, got[i], strings.Join(wanted[min(i, len(wanted)):min(i+1, len(wanted))], ""))
		}
	}
	if len(got) != len(wanted) {
		t.Errorf("%d lines, want %d", len(got), len(wanted))
	}
}

// fixedCertificate is a certificate that is the same in every run.
func fixedCertificate(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "other-ca.der"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// allCodes returns the value of each finding code, from the source.
func allCodes(t testing.TB) []Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "result.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []Code
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Code" {
			s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, Code(s))
		}
		return true
	})
	if len(out) < 30 {
		t.Fatalf("found %d codes", len(out))
	}
	return out
}

func TestEveryFindingCodeHasAComponentAndACommand(t *testing.T) {
	for _, c := range allCodes(t) {
		x := Explain(&Result{Machine: MachineID{1}, Findings: []Finding{{Code: c, Message: "m"}}}, nil, nil, nil)
		f := x.Refusals[0]
		if f.Component == "" || f.Component == "the evidence" {
			t.Errorf("%s: no component", c)
		}
		if f.Command == "" || strings.Contains(f.Command, " ID") {
			t.Errorf("%s: command %q", c, f.Command)
		}
		if f.Trust == "" {
			t.Errorf("%s: no trust", c)
		}
	}
}

func TestNothingIsProvenInAnExplanationOfAnUntrustedTPM(t *testing.T) {
	s := realBoot(t)
	s.collect()
	last := s.ev
	s.tpm.EKCertificates = nil
	bend(t, s.Boot, variableOf("dbx"), func(m *papertpm.Measurement) { setVariable(t, m, func([]byte) []byte { return nil }) })
	s.policy.DBX = []manifest.SHA256{digestOf("x")}
	s.collect()
	x := Explain(s.verify(), s.ev, s.policy, last)
	if len(x.Differences) == 0 || len(x.Refusals) < 2 {
		t.Fatalf("%+v", x)
	}
	for _, d := range x.Differences {
		if d.Trust != TrustClaimed {
			t.Errorf("%s [%s]", d.Text, d.Trust)
		}
	}
	for _, f := range x.Refusals {
		if f.Trust == TrustQuoted || f.Trust == TrustDigest {
			t.Errorf("%s [%s]", f.Message, f.Trust)
		}
	}
}

// A log may have digests of a bank that is off: they are nobody's word.
func TestABankThatIsOffIsComparedWithNothing(t *testing.T) {
	boot := func(change func(*papertpm.Measurement)) (*scene, *Evidence) {
		s := sha384Scene(t, "sha384")
		s.LogBanks = []string{"sha256", "sha384"}
		s.replace(of("order"), change)
		s.collect()
		return s, s.ev
	}
	_, last := boot(func(*papertpm.Measurement) {})
	s, ev := boot(func(m *papertpm.Measurement) {
		split(m, "another order", "order")
		m.Data = []byte("another order")
	})
	for _, d := range Explain(s.verify(), ev, s.policy, last).Differences {
		if d.PCR != nil && len(d.Was+d.Is)%96 != 0 {
			t.Errorf("%+v", d)
		}
	}
}

func TestHostileLogsCannotFillAnExplanation(t *testing.T) {
	s := realBoot(t)
	s.collect()
	last := s.ev
	i := slices.IndexFunc(s.Measured, isSeparatorOf(2))
	for range 3000 {
		s.Measured = slices.Insert(s.Measured, i, papertpm.Measurement{PCR: 2, Type: EventBootDriver, Data: []byte("rom"), Measured: []byte("x")})
	}
	s.collect()
	x := Explain(s.verify(), s.ev, s.policy, last)
	if len(x.Differences) != 64 || x.Omitted == 0 {
		t.Errorf("%d differences, %d omitted", len(x.Differences), x.Omitted)
	}
	x.Refusals[0].Message = strings.Repeat("x", 5000)
	if b := x.Bounded(8); len(b.Refusals[0].Message) > 1100 || len(x.Refusals[0].Message) != 5000 {
		t.Error("a text is not bounded, or was cut in the original")
	}
	if b := x.Bounded(8); len(b.Differences) != 8 || len(b.Refusals) != 8 || len(b.Facts) != 0 || b.Omitted <= x.Omitted {
		t.Errorf("bounded: %d differences, %d refusals, %d omitted", len(b.Differences), len(b.Refusals), b.Omitted)
	}
}

// cut returns the log with the events of these PCRs only.
func cut(t testing.TB, log []byte, pcrs ...int) []byte {
	t.Helper()
	b, err := papertpm.ReadBoot(log)
	if err != nil {
		t.Fatal(err)
	}
	return papertpm.EncodeLog(b.Banks, slices.DeleteFunc(b.Measured, func(m papertpm.Measurement) bool { return !slices.Contains(pcrs, m.PCR) }))
}

// FuzzExplain: a hostile log and SMBIOS table are explained without a panic, be they
// of the present boot or of the last accepted one. The other boot is a part of a real
// one, small enough to be explained often. Nothing is signed: the verifier is told
// what a TPM quoted. That is what the hostile log leads to, so that all of it is
// appraised, or what the real one leads to, so that the log does not replay.
func FuzzExplain(f *testing.F) {
	s := realBoot(f)
	s.collect()
	parts := [][]int{{0, 2, 3, 6}, {1}, {4, 5}, {7}, {9, 11}}
	var good []*Evidence
	for _, pcrs := range parts {
		ev := *s.ev
		ev.EventLog = cut(f, s.ev.EventLog, pcrs...)
		good = append(good, &ev)
	}
	by384 := *s.policy
	by384.Bank = "sha384"
	for i, pcrs := range parts {
		for _, name := range realLogs() {
			for last := range 2 {
				f.Add(cut(f, readFile(f, name+".bin"), pcrs...), s.SMBIOS, uint8(i), last == 1, false)
			}
		}
		log := cut(f, papertpm.EncodeLog([]string{"sha1", "sha384"}, papertpm.GoodBoot().Measured), pcrs...)
		f.Add(log, s.SMBIOS, uint8(i), false, true)
		f.Add(log, s.SMBIOS, uint8(i), false, false)
		// Without one event, which is looked for.
		b, err := papertpm.ReadBoot(good[i].EventLog)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(papertpm.EncodeLog(b.Banks, b.Measured[:len(b.Measured)-1]), s.SMBIOS, uint8(i), false, true)
	}
	f.Fuzz(func(t *testing.T, log, smbios []byte, part uint8, isLast, altered bool) {
		real := *good[int(part)%len(good)]
		bad := real
		bad.EventLog, bad.SMBIOS = log, smbios
		now, last := &bad, &real
		if isLast {
			now, last = last, now
		}
		leads := now.EventLog
		if altered {
			leads = last.EventLog
		}
		quoted, err := ParseEventLog(leads)
		if err != nil {
			quoted = &EventLog{Banks: []string{"sha256"}}
		}
		policy := s.policy
		if !slices.Contains(quoted.Banks, "sha256") {
			policy = &by384
		}
		r, err := VerifyLog(now, quoted, s.known, policy)
		if err != nil {
			t.Fatal(err)
		}
		x := Explain(r, now, policy, last)
		if len(x.Refusals) != len(r.Findings) || len(x.Differences) > 64 {
			t.Errorf("%d refusals for %d findings, %d differences", len(x.Refusals), len(r.Findings), len(x.Differences))
		}
		unsound := map[int]bool{}
		for _, f := range x.Refusals {
			if f.Code == CodeLogReplay && f.PCR != nil {
				unsound[*f.PCR] = true
			}
			if f.Component == "" || f.Command == "" || f.Trust == "" {
				t.Errorf("the refusal does not name a component, a trust or a command: %+v", f)
			}
		}
		for _, d := range x.Differences {
			if d.Text == "" || d.Trust == "" || d.PCR != nil && unsound[*d.PCR] && d.Trust != TrustClaimed {
				t.Errorf("an empty difference, or one that is not proven: %+v", d)
			}
		}
	})
}

// BenchmarkExplain is what a refusal costs beside its verdict.
func BenchmarkExplain(b *testing.B) {
	s := realBoot(b)
	s.collect()
	last := s.ev
	bend(b, s.Boot, variableOf("dbx"), func(m *papertpm.Measurement) {
		setVariable(b, m, func([]byte) []byte { return hashList(1, "a", "b") })
	})
	s.policy.DBX = []manifest.SHA256{digestOf("x")}
	s.collect()
	r := s.verify()
	b.ReportAllocs()
	for b.Loop() {
		if x := Explain(r, s.ev, s.policy, last); len(x.Differences) != 1 {
			b.Fatal(x.Differences)
		}
	}
}
