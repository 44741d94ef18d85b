package attest_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

const logDir = "../testdata/eventlogs"

// realLogs are the logs of real firmware, see the README beside them.
func realLogs() []string {
	return []string{"ovmf-2022.11-secureboot", "ovmf-2022.11-secureboot-off", "ovmf-2022.11-cmdline-altered"}
}

func readFile(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(logDir, name))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// kernelPCRs reads the values that the kernel of the boot read from its TPM.
func kernelPCRs(tb testing.TB, name string) map[string]map[int][]byte {
	tb.Helper()
	out := map[string]map[int][]byte{}
	for line := range strings.Lines(string(readFile(tb, name+".pcrs"))) {
		var bank, value string
		var index int
		if _, err := fmt.Sscanf(line, "%s %d %s", &bank, &index, &value); err != nil {
			tb.Fatal(err)
		}
		v, err := hex.DecodeString(value)
		if err != nil {
			tb.Fatal(err)
		}
		if out[bank] == nil {
			out[bank] = map[int][]byte{}
		}
		out[bank][index] = v
	}
	return out
}

func mustDigest(tb testing.TB, s string) manifest.SHA256 {
	tb.Helper()
	var d manifest.SHA256
	if err := d.UnmarshalText([]byte(s)); err != nil {
		tb.Fatal(err)
	}
	return d
}

// realImage holds the reference values of the UKI that the logs are of. The
// keys are the snakeoil set of Debian's ovmf package.
func realImage(tb testing.TB) *manifest.Manifest {
	tb.Helper()
	d := func(s string) manifest.SHA256 { return mustDigest(tb, s) }
	return &manifest.Manifest{
		Schema: manifest.Schema, Name: "good", Version: "1",
		SecureBoot: manifest.SecureBoot{
			PK:        d("a2b1d1bd388e9adda45b084bf8c2d1d3a538a28a4b354f4dad931325c5f03749"),
			KEK:       d("a7373990f2282e687dc2d6e00335e5f7fd7a533930da34c7d1b5eb57ec13361b"),
			DB:        d("9647c098da98a3c24d7d70db44c54fdff9ba208b6e303117a40945fc8391ff54"),
			Authority: d("3e45733d81577680037ee00c931b1b636bbe2508185c0c4f9ca68e0feceb786e"),
		},
		UKI: manifest.UKI{
			StubVersion:  "252.39-1~deb12u2",
			Cmdline:      "console=ttyS0 quiet sealift.roothash=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			Authenticode: d("782948611b21ede01de5591b27e131886547f148a57e561675a06ba55bad4dbc"),
			Kernel:       d("5f21ff2c0d5d899842b28a8b19901ba72cf7a7ab93c02a77fadc6ff72be85b31"),
			Initrd:       d("9484983e5d92099c6e7f6bac6c191d5f717ee350ea57761b664c433505d3600e"),
			Sections: []manifest.Section{
				{Name: ".linux", Size: 14186432, SHA256: d("51349501a3d1ff83836437d2b365fd2d57f2feb8642d315e5181dec23d4c3275")},
				{Name: ".osrel", Size: 39, SHA256: d("392ae6ea6cf8317616c2e7e47a17069e231753a48c5680341196a79f3fcc2788")},
				{Name: ".cmdline", Size: 101, SHA256: d("38fbb78306346960702eac83c284fa098e442fb3e12844c9500d69cd8f92e5a4")},
				{Name: ".initrd", Size: 775774, SHA256: d("4af8d6ed917674670cb3c29d9a00031210a5fa39367571585cf60cc45008582b")},
				{Name: ".pcrpkey", Size: 451, SHA256: d("b0481ae74104731ebd9e18c368a270e145e78ba67b4e958fe6409645cc91718b")},
			},
		},
	}
}

// ovmfDXE is the digest of the DXE volume of OVMF_CODE_4M.secboot.fd, Debian
// 2022.11-6+deb12u2, computed from the file.
const ovmfDXE = "a644ed209b188dd428ea3e15c0b1dbbc1ad05d406bb2857cac4a73b98d0b6b4f"

// realScene is the boot of a real log: the same PCR values, quoted.
func realScene(tb testing.TB, name string) *scene {
	s := newScene(tb)
	log := readFile(tb, name+".bin")
	l, err := ParseEventLog(log)
	if err != nil {
		tb.Fatal(err)
	}
	guid := ""
	for _, e := range l.ForPCR(5) {
		if e.UntrustedType == EventGPT {
			if guid, err = GPTDiskGUID(e.UntrustedData); err != nil {
				tb.Fatal(err)
			}
		}
	}
	s.Banks = l.Banks
	s.SMBIOS = readFile(tb, "smbios-qemu-7.2.bin")
	s.Disk.GUID = guid
	s.known = &Known{State: StateEnrolled, DiskGUID: guid, StateMade: true}
	s.policy.Images = []*manifest.Manifest{realImage(tb)}
	s.policy.Firmware.References = []FirmwareReference{{
		Vendor: "QEMU", Product: "Standard PC (Q35 + ICH9, 2009)", Version: "0.0.0",
		Digests: []manifest.SHA256{mustDigest(tb, ovmfDXE)}, Unpinned: 1, Status: FirmwareAllowed,
	}}
	s.RawLog, s.pcrs = log, kernelPCRs(tb, name)
	return s
}

// realPolicy returns the policy and record under which the boot of a real log
// is accepted, and what the agent sends beside the TPM's structures.
func realPolicy(tb testing.TB, name string) (*Policy, *Known, *Evidence) {
	tb.Helper()
	s := realScene(tb, name)
	return s.policy, s.known, &Evidence{EventLog: s.RawLog, SMBIOS: s.SMBIOS, Disk: s.Disk}
}

func TestReplayGivesTheValuesThatTheKernelReadFromItsTPM(t *testing.T) {
	for _, name := range realLogs() {
		t.Run(name, func(t *testing.T) {
			l, err := ParseEventLog(readFile(t, name+".bin"))
			if err != nil {
				t.Fatal(err)
			}
			pcrs := kernelPCRs(t, name)
			if got := slices.Sorted(maps.Keys(pcrs)); !slices.Equal(got, slices.Sorted(slices.Values(l.Banks))) {
				t.Errorf("the log has the banks %q, the TPM %q", l.Banks, got)
			}
			for bank, values := range pcrs {
				for pcr, want := range values {
					if pcr == 10 {
						continue // the kernel's own (IMA)
					}
					if got, err := l.Replay(bank, pcr); err != nil || !bytes.Equal(got, want) {
						t.Errorf("PCR %d, bank %s: got %x, %v, want %x", pcr, bank, got, err, want)
					}
				}
			}
		})
	}
}

var eventlogPCR = regexp.MustCompile(`^\s+(\d+)\s*: 0x([0-9a-f]+)$`)

func TestReplayAgreesWithTpm2Eventlog(t *testing.T) {
	tool := tool(t, "tpm2_eventlog")
	for _, name := range realLogs() {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command(tool, filepath.Join(logDir, name+".bin")).Output()
			if err != nil {
				t.Fatal(err)
			}
			l, err := ParseEventLog(readFile(t, name+".bin"))
			if err != nil {
				t.Fatal(err)
			}
			_, tail, ok := strings.Cut(string(out), "\npcrs:\n")
			if !ok {
				t.Fatal("tpm2_eventlog prints no PCRs")
			}
			bank, n := "", 0
			for line := range strings.Lines(tail) {
				line = strings.TrimRight(line, "\n")
				if m := eventlogPCR.FindStringSubmatch(line); m != nil {
					pcr, err := strconv.Atoi(m[1])
					if err != nil {
						t.Fatal(err)
					}
					if got, err := l.Replay(bank, pcr); err != nil || hex.EncodeToString(got) != m[2] {
						t.Errorf("PCR %d, bank %s: got %x, %v, tpm2_eventlog says %s", pcr, bank, got, err, m[2])
					}
					n++
				} else {
					bank = strings.Trim(line, " :")
				}
			}
			if n < 10*len(l.Banks) {
				t.Errorf("compared only %d values", n)
			}
		})
	}
}

func tool(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("REQUIRE_TOOLS") != "" {
		tb.Fatalf("%s is needed: %v", name, err)
	}
	tb.Skipf("%s is needed: %v", name, err)
	return ""
}

func TestRealBootsGetTheirVerdict(t *testing.T) {
	cases := map[string]struct {
		change func(*scene)
		want   []Code
		says   []string
	}{
		"ovmf-2022.11-secureboot": {},
		"ovmf-2022.11-secureboot-off": {want: []Code{CodeSecureBootOff, CodeSecureBootKeys},
			says: []string{"Secure Boot is off", "PK holds nothing"}},
		"ovmf-2022.11-cmdline-altered": {want: []Code{CodeCmdline, CodeImageUnknown},
			says: []string{"(section .cmdline) differs from that of image good 1", "most like image good 1", "PCR 9"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := realScene(t, name)
			s.collect()
			r := s.verify()
			slices.Sort(c.want)
			if got := codesOf(r); !slices.Equal(got, c.want) || r.Allowed != (c.want == nil) {
				t.Errorf("codes are %q, want %q", got, c.want)
			}
			text := mustText(r)
			for _, want := range c.says {
				if !strings.Contains(text, want) {
					t.Errorf("findings do not say %q:\n%s", want, text)
				}
			}
			if r.Firmware.Verdict != FirmwareMeasured || r.Firmware.Claimed != "0.0.0" {
				t.Errorf("firmware is %+v", r.Firmware)
			}
		})
	}
}

func mustText(r *Result) string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s: %s\n", f.Code, f.Message)
	}
	return b.String()
}

// The facts of section 2.3: which kinds of events carry what they measured.
func TestOnlyTextEventsHaveVerifiedData(t *testing.T) {
	want := map[EventType]bool{
		EventSeparator: true, EventVariableConfig: true, EventAuthority: true, EventGPT: true, EventAction: true, EventSCRTMVersion: true,
		EventFirmwareBlob: false, EventBootApplication: false, EventIPL: false, EventTag: false, EventVariableBoot: false,
	}
	for _, name := range realLogs() {
		l, err := ParseEventLog(readFile(t, name+".bin"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range l.Events {
			e := &l.Events[i]
			if _, got := e.VerifiedData(); got != want[e.UntrustedType] {
				t.Errorf("%s, event %d, %s: verified is %t, want %t", name, e.Number, e.UntrustedType, got, want[e.UntrustedType])
			}
		}
	}
}

func BenchmarkVerifyRealLog(b *testing.B) {
	s := realScene(b, "ovmf-2022.11-secureboot")
	s.collect()
	b.ReportAllocs()
	for b.Loop() {
		if r := s.verify(); !r.Allowed {
			b.Fatal(r.Findings)
		}
	}
}

func BenchmarkParseEventLog(b *testing.B) {
	log := readFile(b, "ovmf-2022.11-secureboot.bin")
	b.SetBytes(int64(len(log)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseEventLog(log); err != nil {
			b.Fatal(err)
		}
	}
}
