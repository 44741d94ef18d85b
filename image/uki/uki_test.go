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
)

const stubPath = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

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

// input is a UKI of the real stub. The kernel is another EFI program, because
// a kernel is not always there and one PE image measures like any other.
func input(t testing.TB) Input {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return Input{
		Stub:      needFile(t, stubPath),
		Kernel:    needFile(t, "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"),
		Initrd:    []byte("not quite an initrd, and of odd length"),
		Cmdline:   "console=ttyS0 sealift.roothash=0123",
		OSRelease: []byte("ID=sealift\n"),
		Uname:     "6.1.0-56-cloud-amd64",
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
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d entries: %v", len(entries), err)
	}
	if err := entries[0].Verify(&in.PCRKey.PublicKey); err != nil {
		t.Error(err)
	}
	pcr11 := mustHex(t, u.PCRs["sha256"][11])
	want, err := pcrsig.PolicyDigest(map[int][]byte{11: pcr11})
	if err != nil || !bytes.Equal(want, entries[0].Policy[:]) {
		t.Errorf("policy is %x, want %x (%v)", entries[0].Policy, want, err)
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
	for _, name := range []string{".osrel", ".cmdline", ".linux", ".initrd", ".pcrpkey", ".pcrsig"} {
		if !strings.Contains(string(out), name) {
			t.Errorf("objdump does not see %s:\n%s", name, out)
		}
	}
	if strings.Contains(string(out), ".uname") {
		t.Error(".uname is in the image, but this stub does not measure it")
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
	for name, c := range map[string]struct {
		edit func(*Input)
		want string
	}{
		"no stub":                   {func(in *Input) { in.Stub = nil }, "stub: parse PE image"},
		"stub that is not a stub":   {func(in *Input) { in.Stub = in.Kernel }, "LoaderInfo: systemd-boot"},
		"stub of another version":   {func(in *Input) { in.Stub = bytes.Replace(in.Stub, []byte("stub 252."), []byte("stub 251."), 1) }, "systemd-stub 251."},
		"kernel without EFI stub":   {func(in *Input) { in.Kernel = []byte("MZ") }, "kernel: parse PE image"},
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
		"a section nobody measures":   rename(".osrel", ".uname"),
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
