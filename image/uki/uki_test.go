package uki

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/tpm/pcrsig"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/uki/ukitest"
)

const (
	stubPath = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	bootPath = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"

	testRelease = "6.1.0-56-cloud-amd64"
)

func needFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("REQUIRE_TOOLS") == "" {
		t.Skipf("%s is not installed", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func needTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

// input is a UKI of the real stub. The kernel is another EFI program that says
// what a kernel says, because a kernel is not always there and one PE image
// measures like any other.
func input(t testing.TB) Input {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return Input{
		Stub:      needFile(t, stubPath),
		Kernel:    ukitest.Kernel(pe.MachineAMD64, testRelease),
		Initrd:    []byte("not quite an initrd, and of odd length"),
		Cmdline:   "console=ttyS0 sealift.roothash=0123",
		OSRelease: []byte("ID=sealift\n"),
		PCRKey:    key,
		Epoch:     time.Unix(1700000000, 0),
	}
}

func TestPCR11IsWhatSystemdMeasureSays(t *testing.T) {
	measure := needTool(t, "/usr/lib/systemd/systemd-measure")
	for name, edit := range map[string]func(*Input){
		"all sections":  func(*Input) {},
		"no os-release": func(in *Input) { in.OSRelease = nil },
		"no PCR key":    func(in *Input) { in.PCRKey = nil },
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			edit(&in)
			image, err := Assemble(in)
			if err != nil {
				t.Fatal(err)
			}
			u, err := Predict(image)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			args := []string{"calculate", "--bank=sha256", "--bank=sha384", "--phase=:", "--json=short"}
			f, err := pe.Parse(image)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range f.Sections {
				switch s.Name {
				case ".linux", ".osrel", ".cmdline", ".initrd", ".pcrpkey":
					path := filepath.Join(dir, s.Name)
					if err := os.WriteFile(path, s.Data(), 0o600); err != nil {
						t.Fatal(err)
					}
					args = append(args, "--"+s.Name[1:]+"="+path)
				}
			}
			out, err := exec.Command(measure, args...).Output()
			if err != nil {
				t.Fatalf("systemd-measure %q: %v", args, err)
			}
			var got map[string][]struct{ Hash string }
			if err := json.Unmarshal(out, &got); err != nil || len(got) != 2 {
				t.Fatalf("systemd-measure says %s (%v)", out, err)
			}
			for bank, values := range got {
				if len(values) != 1 || u.PCRs[bank][11] != values[0].Hash {
					t.Errorf("%s PCR 11 is %s, systemd-measure says %+v", bank, u.PCRs[bank][11], values)
				}
			}
		})
	}
}

func TestThePolicyInTheImageIsForItsOwnPCR11(t *testing.T) {
	in := input(t)
	image, err := Assemble(in)
	if err != nil {
		t.Fatal(err)
	}
	u, err := Predict(image)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	last := f.Sections[len(f.Sections)-1]
	if last.Name != ".pcrsig" {
		t.Errorf("last section is %s, want .pcrsig", last.Name)
	}
	entries, err := pcrsig.Parse(last.Data())
	if err != nil || len(entries) != 2 {
		t.Fatalf("%d entries: %v", len(entries), err)
	}
	for i, bank := range []string{"sha256", "sha384"} {
		if err := entries[i].Verify(&in.PCRKey.PublicKey); err != nil {
			t.Error(err)
		}
		want, err := pcrsig.PolicyDigest(bank, map[int][]byte{11: mustHex(t, u.PCRs[bank][11])})
		if err != nil || entries[i].Bank != bank || !bytes.Equal(want, entries[i].Policy[:]) {
			t.Errorf("policy is %x of bank %s, want %x of bank %s (%v)", entries[i].Policy, entries[i].Bank, want, bank, err)
		}
	}
	key, ok, err := f.Section(".pcrpkey")
	if err != nil || !ok {
		t.Fatalf("no .pcrpkey: %v", err)
	}
	block, _ := pem.Decode(key.Data())
	if block == nil {
		t.Fatalf(".pcrpkey is not PEM: %q", key.Data())
	}
	if pub, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil || !in.PCRKey.PublicKey.Equal(pub) {
		t.Errorf(".pcrpkey is another key (%v)", err)
	}
}

func TestSectionsAreLaidOutAsFirmwareLoadsThem(t *testing.T) {
	objdump := needTool(t, "objdump")
	in := input(t)
	image, err := Assemble(in)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Assemble(in)
	if err != nil || !bytes.Equal(image, again) {
		t.Errorf("the same input gave other bytes (%v)", err)
	}
	f, err := pe.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	end := f.SizeOfHeaders
	stub, err := pe.Parse(in.Stub)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range f.Sections {
		if s.RawOffset != end {
			t.Errorf("%s begins at %#x in the file, the section before it ends at %#x", s.Name, s.RawOffset, end)
		}
		end = s.RawOffset + s.RawSize
		if i >= len(stub.Sections) && s.VirtualAddress%4096 != 0 {
			t.Errorf("%s is at %#x in memory, not at a page", s.Name, s.VirtualAddress)
		}
		if i < len(stub.Sections) && !bytes.Equal(s.Raw(), stub.Sections[i].Raw()) {
			t.Errorf("%s is not the stub's", s.Name)
		}
	}
	if int(end) != len(image) {
		t.Errorf("the file has %d bytes, its sections end at %d", len(image), end)
	}
	path := filepath.Join(t.TempDir(), "uki.efi")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(objdump, "-h", path).CombinedOutput()
	if err != nil {
		t.Fatalf("objdump: %v\n%s", err, out)
	}
	for _, name := range []string{".osrel", ".cmdline", ".uname", ".linux", ".initrd", ".pcrpkey", ".pcrsig"} {
		if !strings.Contains(string(out), name) {
			t.Errorf("objdump does not see %s:\n%s", name, out)
		}
	}
}

func TestObjcopyReadsWhatTheSectionsSay(t *testing.T) {
	objcopy := needTool(t, "objcopy")
	in := input(t)
	image, err := Assemble(in)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "uki.efi")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	dump := func(path, name string) []byte {
		t.Helper()
		to := filepath.Join(dir, "section")
		if out, err := exec.Command(objcopy, "-O", "binary", "--only-section="+name, path, to).CombinedOutput(); err != nil {
			t.Fatalf("objcopy %s: %v\n%s", name, err, out)
		}
		b, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, want := range map[string][]byte{
		".osrel": in.OSRelease, ".cmdline": []byte(in.Cmdline), ".uname": []byte(testRelease), ".linux": in.Kernel, ".initrd": in.Initrd,
		".sbat": dump(stubPath, ".sbat"),
	} {
		// objcopy pads to the file alignment.
		if got := dump(path, name); !bytes.HasPrefix(got, want) || len(bytes.Trim(got[len(want):], "\x00")) != 0 {
			t.Errorf("objcopy reads %.200q from %s, want %.200q", got, name, want)
		}
	}
	// Firmware with shim's rules for revocation looks for these lines.
	if sbat := string(dump(path, ".sbat")); !strings.HasPrefix(sbat, "sbat,1,") || !strings.Contains(sbat, "\nsystemd,1,") {
		t.Errorf(".sbat is %q", sbat)
	}
}

func TestUnameIsSignedAndNotMeasured(t *testing.T) {
	in := input(t)
	// A stub that knows a section has its name in it.
	if bytes.Contains(in.Stub, []byte(".uname")) || !bytes.Contains(in.Stub, []byte(".osrel")) {
		t.Error("this stub knows .uname: what it does with it has to be looked at")
	}
	image, err := Assemble(in)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	s, ok, err := f.Section(".uname")
	if err != nil || !ok || string(s.Data()) != testRelease {
		t.Fatalf(".uname is %q, %v, %v; want %s", s.Data(), ok, err, testRelease)
	}
	if got, err := CheckUname(image); err != nil || got != testRelease {
		t.Errorf("got %q, %v", got, err)
	}
	before, err := Predict(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range before.Sections {
		if s.Name == ".uname" {
			t.Error(".uname is among the sections that are measured")
		}
	}
	image[s.RawOffset]++
	after, err := Predict(image)
	if err != nil {
		t.Fatal(err)
	}
	if before.Authenticode == after.Authenticode {
		t.Error("another .uname has the same Authenticode digest")
	}
	for bank := range banks() {
		for _, index := range []int{9, 11, 12, 13} {
			if before.PCRs[bank][index] != after.PCRs[bank][index] {
				t.Errorf("%s PCR %d depends on .uname", bank, index)
			}
		}
	}
	var wrong *UnameError
	if _, err := CheckUname(image); !errors.As(err, &wrong) || wrong.Kernel != testRelease || wrong.Uname != "7"+testRelease[1:] {
		t.Errorf("another .uname than the kernel's: error is %v", err)
	}
}

func TestTheKernelItselfSaysItsRelease(t *testing.T) {
	amd64 := ukitest.Kernel(pe.MachineAMD64, testRelease)
	arm64 := ukitest.Kernel(pe.MachineARM64, testRelease)
	edit := func(b []byte, at int, to ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], to)
		return b
	}
	long := strings.Repeat("6", 65)
	for name, c := range map[string]struct {
		kernel []byte
		want   string // the release, or what the error says
		bad    bool
	}{
		"bzImage":                          {kernel: amd64, want: testRelease},
		"Image":                            {kernel: arm64, want: testRelease},
		"Image that says it twice":         {kernel: append(bytes.Clone(arm64), "Linux version "+testRelease+" (another) #2"...), want: testRelease},
		"Image with a format, too":         {kernel: append(bytes.Clone(arm64), "Linux version %s (%s)"...), want: testRelease},
		"longest release":                  {kernel: ukitest.Kernel(pe.MachineARM64, long[1:]), want: long[1:]},
		"another EFI program":              {kernel: needFile(t, bootPath), want: "no setup header", bad: true},
		"no PE image":                      {kernel: []byte("MZ"), want: "parse PE image", bad: true},
		"no magic":                         {kernel: edit(amd64, 0x202, 'h'), want: "no setup header", bad: true},
		"protocol before 2.00":             {kernel: edit(amd64, 0x206, 0xff, 1), want: "no setup header", bad: true},
		"no text":                          {kernel: edit(amd64, 0x20e, 0, 0), want: "text at 0x0", bad: true},
		"text outside of the setup":        {kernel: edit(amd64, 0x20e, 0, 2), want: "outside of the setup's 0x200 bytes", bad: true},
		"setup of 255 sectors in a stump":  {kernel: edit(amd64, 0x1f1, 255), want: "outside of the setup's", bad: true},
		"text without an end":              {kernel: edit(amd64, 0x300, bytes.Repeat([]byte("6"), 0x100)...), want: "no end", bad: true},
		"text that is no release":          {kernel: edit(amd64, 0x300, []byte("vmlinuz")...), want: "no release", bad: true},
		"release with a control character": {kernel: edit(amd64, 0x301, '\n'), want: "no release", bad: true},
		"release that is too long":         {kernel: edit(amd64, 0x300, []byte(long)...), want: "no release", bad: true},
		"compressed Image":                 {kernel: edit(arm64, 0x38, 0), want: "not an uncompressed arm64 Image", bad: true},
		"Image without a banner":           {kernel: bytes.Replace(arm64, []byte("Linux version"), []byte("Minix version"), 1), want: "no banner", bad: true},
		"Image with two banners":           {kernel: append(bytes.Clone(arm64), "Linux version 6.2 (another) #2"...), want: "two releases", bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := KernelRelease(c.kernel)
			switch {
			case !c.bad && (err != nil || got != c.want):
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			case c.bad && (err == nil || got != "" || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %q, error %v; want one with %q", got, err, c.want)
			}
		})
	}
}

func TestExtraArchivesArePartOfTheMeasuredInitrd(t *testing.T) {
	in := input(t)
	image, err := Assemble(in)
	if err != nil {
		t.Fatal(err)
	}
	u, err := Predict(image)
	if err != nil {
		t.Fatal(err)
	}
	if plain := sha256.Sum256(in.Initrd); u.Initrd == plain {
		t.Error("the initrd's digest is that of .initrd alone")
	}
	in.PCRKey = nil
	if image, err = Assemble(in); err != nil {
		t.Fatal(err)
	}
	if u, err = Predict(image); err != nil {
		t.Fatal(err)
	}
	if plain := sha256.Sum256(in.Initrd); u.Initrd != plain {
		t.Error("without extra archives the initrd's digest is not that of .initrd")
	}
	// These bytes were compared, through PCR 9, with what a booted stub made.
	const head = "070701000000010000416d0000000000000000000000010000000000000000000000000000000000000000000000000000000700000000.extra\x00\x00\x00\x00"
	if b := packExtra(".extra", "tpm2-pcr-signature.json", []byte("{}")); !bytes.HasPrefix(b, []byte(head)) || !bytes.HasSuffix(b, []byte("0000000B00000000TRAILER!!!\x00\x00\x00\x00")) || len(b)%4 != 0 {
		t.Errorf("archive is %q", b)
	}
	cpio := needTool(t, "cpio")
	cmd := exec.Command(cpio, "-itv", "--quiet", "--numeric-uid-gid")
	cmd.Env = append(os.Environ(), "TZ=UTC")
	cmd.Stdin = bytes.NewReader(packExtra(".extra", "tpm2-pcr-signature.json", []byte("{}")))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	for _, want := range []string{"dr-xr-xr-x", ".extra\n", "-r--r--r--", ".extra/tpm2-pcr-signature.json\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("cpio does not show %q:\n%s", want, out)
		}
	}
}

func TestBadInputIsRefused(t *testing.T) {
	good := input(t)
	boot := needFile(t, bootPath)
	for name, c := range map[string]struct {
		edit func(*Input)
		want string
	}{
		"no stub":                   {func(in *Input) { in.Stub = nil }, "stub: parse PE image"},
		"stub that is not a stub":   {func(in *Input) { in.Stub = boot }, "LoaderInfo: systemd-boot"},
		"stub of another version":   {func(in *Input) { in.Stub = bytes.Replace(in.Stub, []byte("stub 252."), []byte("stub 251."), 1) }, "systemd-stub 251."},
		"kernel without EFI stub":   {func(in *Input) { in.Kernel = []byte("MZ") }, "kernel: parse PE image"},
		"kernel that is none":       {func(in *Input) { in.Kernel = boot }, "kernel release: it is not a bzImage"},
		"no initrd":                 {func(in *Input) { in.Initrd = nil }, "no initrd"},
		"no command line":           {func(in *Input) { in.Cmdline = "" }, "no kernel command line"},
		"newline in command line":   {func(in *Input) { in.Cmdline = "quiet\n" }, "printable ASCII at byte 5"},
		"command line is too long":  {func(in *Input) { in.Cmdline = strings.Repeat("x", MaxCmdline+1) }, "2048 bytes"},
		"epoch before 1970":         {func(in *Input) { in.Epoch = time.Unix(-1, 0) }, "epoch"},
		"PCR key of the wrong size": {func(in *Input) { in.PCRKey = smallKey(t) }, "1024 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			in := good
			c.edit(&in)
			_, err := Assemble(in)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestPredictRefusesWhatTheStubWouldReadDifferently(t *testing.T) {
	in := input(t)
	image, err := Assemble(in)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	rename := func(from, to string) []byte {
		b := bytes.Clone(image)
		for i, s := range f.Sections {
			if s.Name == from {
				clear(b[f.Offsets().SectionTable+40*i:][:8])
				copy(b[f.Offsets().SectionTable+40*i:][:8], to)
			}
		}
		return b
	}
	for name, b := range map[string][]byte{
		"not a PE image":              []byte("MZ"),
		"not a stub":                  in.Kernel,
		"no command line":             rename(".cmdline", ".other"),
		"no kernel":                   rename(".linux", ".other"),
		"two command lines":           rename(".osrel", ".cmdline"),
		"a section nobody measures":   rename(".osrel", ".ucode"),
		"two kernel releases":         rename(".osrel", ".uname"),
		"a profile of another kernel": rename(".osrel", ".profile"),
	} {
		if _, err := Predict(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzPredict(f *testing.F) {
	image, err := Assemble(input(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image)
	f.Add(image[:1024])
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, err := Predict(b); err == nil && u.Authenticode.IsZero() {
			t.Error("accepted without a digest")
		}
	})
}

func FuzzKernelRelease(f *testing.F) {
	f.Add(ukitest.Kernel(pe.MachineAMD64, testRelease)[:0x600])
	f.Add(ukitest.Kernel(pe.MachineARM64, testRelease)[:0x600])
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, read := range map[string]func([]byte) (string, error){"setup": setupRelease, "banner": bannerRelease} {
			if s, err := read(b); err == nil && !isRelease(s) {
				t.Errorf("%s: %q was taken for a release", name, s)
			}
		}
	})
}

func mustHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// smallKey has a modulus of 1024 bits, which crypto/rsa would not generate.
func smallKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), 1023)
	return &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}, D: big.NewInt(3)}
}
