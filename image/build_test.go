package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pkcs7"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/image/tree"
)

func needTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + name); err == nil {
			return path
		}
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(needTool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func needFile(t *testing.T, path string) []byte {
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

// rsaKeys are made once: each takes up to a second.
var rsaKeys = sync.OnceValues(func() (map[string]*rsa.PrivateKey, error) {
	keys := make(map[string]*rsa.PrivateKey)
	for _, name := range []string{"PK", "KEK", "db", "other", "pcr"} {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		keys[name] = key
	}
	return keys, nil
})

func rsaKey(t *testing.T, name string) *rsa.PrivateKey {
	t.Helper()
	keys, err := rsaKeys()
	if err != nil {
		t.Fatal(err)
	}
	return keys[name]
}

func publicPEM(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func certificate(t *testing.T, name string) *pkcs7.Signer {
	t.Helper()
	key := rsaKey(t, name)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(1600000000, 0), NotAfter: time.Unix(2100000000, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pkcs7.Signer{Key: key, Certificate: cert}
}

// input is an image of small trees. In place of a kernel it has an EFI program
// that says what a kernel says.
func input(t *testing.T) BuildInput {
	t.Helper()
	needFile(t, testStub)
	in, err := makeFixture(t).input(false)
	if err != nil {
		t.Fatal(err)
	}
	in.Output = filepath.Join(t.TempDir(), "out")
	return in
}

func TestToolsAcceptTheBuild(t *testing.T) {
	in := input(t)
	m, err := Build(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(in.Output, name) }
	text, err1 := os.ReadFile(path(FileManifest))
	signature, err2 := os.ReadFile(path(FileBundle))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if err := bundle.Verify(text, signature, publicPEM(t, in.Signer.Public())); err != nil {
		t.Error(err)
	}
	if again, err := m.Encode(); err != nil || !bytes.Equal(again, text) {
		t.Errorf("returned manifest is not the written one (%v)", err)
	}
	for _, a := range m.Artifacts {
		b, err := os.ReadFile(path(a.Name))
		if err != nil || int64(len(b)) != a.Size || sha256.Sum256(b) != a.SHA256 {
			t.Errorf("artifact %s does not match its description (%v)", a.Name, err)
		}
	}
	if len(m.Artifacts) != 6 {
		t.Errorf("%d artifacts, want 6", len(m.Artifacts))
	}

	cert := filepath.Join(t.TempDir(), "db.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: in.DB.Certificate.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{FileUKI, FileInstaller} {
		if out := run(t, "sbverify", "--cert", cert, path(name)); !strings.Contains(out, "Signature verification OK") || strings.Contains(out, "warning") {
			t.Errorf("sbverify %s:\n%s", name, out)
		}
	}
	if out := run(t, "sgdisk", "--verify", path(FileDisk)); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk --verify:\n%s", out)
	}
	raw, err := os.ReadFile(path(FileDisk))
	if err != nil {
		t.Fatal(err)
	}
	part := func(role string) string {
		t.Helper()
		for _, p := range m.Disk.Partitions {
			if p.Role == role {
				name := filepath.Join(t.TempDir(), role)
				if err := os.WriteFile(name, raw[p.FirstLBA*512:(p.FirstLBA+p.Sectors)*512], 0o600); err != nil {
					t.Fatal(err)
				}
				return name
			}
		}
		t.Fatalf("no partition %s", role)
		return ""
	}
	root := part(manifest.RoleRootA)
	run(t, "veritysetup", "verify", root, part(manifest.RoleRootVerityA), m.Root.RootHash.String())
	run(t, "fsck.erofs", root)
	esp := part(manifest.RoleESP)
	run(t, "fsck.vfat", "-n", esp)
	got := filepath.Join(t.TempDir(), "uki")
	run(t, "mcopy", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI", got)
	if b, err := os.ReadFile(got); err != nil || sha256.Sum256(b) != m.Artifacts[0].SHA256 {
		t.Errorf("the ESP does not hold the UKI (%v)", err)
	}
	if want := "sealift.roothash=" + m.Root.RootHash.String(); !strings.HasSuffix(m.UKI.Cmdline, want) || !strings.Contains(m.UKI.Cmdline, "net.ifnames=0") {
		t.Errorf("command line is %q", m.UKI.Cmdline)
	}
	for _, name := range []string{FileUKI, FileInstaller} {
		for sec, want := range map[string]string{
			".uname": testRelease, ".osrel": string(in.OSRelease), ".sbat": section(t, testStub, ".sbat"),
		} {
			if got := section(t, path(name), sec); got != want {
				t.Errorf("section %s of %s is %q, want %q", sec, name, got, want)
			}
		}
	}
	if strings.Contains(m.Installer.Cmdline, "roothash") {
		t.Errorf("installer's command line is %q", m.Installer.Cmdline)
	}
	for _, s := range m.Installer.Sections {
		if s.Name == ".pcrpkey" {
			t.Error("the installer has a PCR key")
		}
	}
	for i, want := range m.Disk.Chunks {
		chunk := raw[int64(i)*m.Disk.ChunkSize : int64(i+1)*m.Disk.ChunkSize]
		zero := len(bytes.Trim(chunk, "\x00")) == 0
		if zero != want.IsZero() || !zero && sha256.Sum256(chunk) != want {
			t.Errorf("chunk %d does not match its digest", i)
		}
	}
	if stat, ok := must(os.Stat(path(FileDisk))).Sys().(*syscall.Stat_t); ok && stat.Blocks*512 > 12<<20 {
		t.Errorf("disk image takes %d bytes of %d, so it is not sparse", stat.Blocks*512, len(raw))
	}
}

// section returns a section of a PE file as objcopy has it, without the NULs
// that it is padded with.
func section(t *testing.T, file, name string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "section")
	run(t, "objcopy", "-O", "binary", "--only-section="+name, file, to)
	b, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(b), "\x00")
}

func must(info fs.FileInfo, err error) fs.FileInfo {
	if err != nil {
		panic(err)
	}
	return info
}

func TestDebugMarksTheImage(t *testing.T) {
	for _, debug := range []bool{false, true} {
		in := input(t)
		in.Outputs = []Output{OutputNetboot}
		if in.Profile.Debug = debug; debug {
			in.OSRelease = append(in.OSRelease, "VARIANT_ID=debug\n"...)
		}
		m, err := Build(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(in.Output, FileManifest))
		if err != nil {
			t.Fatal(err)
		}
		// A manifest without the mark is what it was before there was one.
		if m.Debug != debug || bytes.Contains(text, []byte(`"debug"`)) != debug || debug && !bytes.Contains(text, []byte("\n  \"debug\": true,\n")) {
			t.Errorf("debug %t: the manifest says %t", debug, m.Debug)
		}
		for name, cmdline := range map[string]string{FileUKI: m.UKI.Cmdline, FileInstaller: m.Installer.Cmdline} {
			if quiet := slices.Contains(strings.Fields(cmdline), "loglevel=4"); quiet == debug {
				t.Errorf("debug %t: the command line of %s is %q", debug, name, cmdline)
			}
			if got := section(t, filepath.Join(in.Output, name), ".osrel"); strings.Contains(got, "VARIANT_ID=debug\n") != debug {
				t.Errorf("debug %t: .osrel of %s is %q", debug, name, got)
			}
		}
	}
}

func TestABuildReplacesAnImageAndNothingElse(t *testing.T) {
	in := input(t)
	if _, err := Build(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	in.Profile.Version = "2"
	if _, err := Build(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(in.Output, FileManifest))
	if err != nil || !bytes.Contains(b, []byte(`"version": "2"`)) {
		t.Errorf("the second image did not replace the first (%v)", err)
	}
	precious := filepath.Join(in.Output, "thesis.txt")
	if err := os.WriteFile(precious, []byte("years"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), in); err == nil || !strings.Contains(err.Error(), "holds thesis.txt") {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	onlyOutput(t, in.Output)
}

// onlyOutput checks that nothing is left beside the output directory.
func onlyOutput(t *testing.T, output string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(output))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(output) {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

func TestAFailedBuildLeavesNothing(t *testing.T) {
	big := func(t *testing.T, size int) *tree.Tree {
		root := tree.New()
		if err := root.WriteFile("big", make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
		return root
	}
	for name, c := range map[string]struct {
		edit func(*testing.T, *BuildInput)
		want string
	}{
		"root over budget":          {func(t *testing.T, in *BuildInput) { in.Root = big(t, 9<<20) }, "budget disk.slot of profile demo is 8 MiB"},
		"UKI over budget":           {func(_ *testing.T, in *BuildInput) { in.Kernel = append(bytes.Clone(in.Kernel), make([]byte, 4<<20)...) }, "budget disk.uki of profile demo is 4 MiB"},
		"verity too small":          {func(_ *testing.T, in *BuildInput) { in.Profile.Disk.Slot = 512 }, "want at least 5"},
		"ESP too small":             {func(_ *testing.T, in *BuildInput) { in.Profile.Disk.ESP = 32 }, "esp 32"},
		"db key of another":         {func(t *testing.T, in *BuildInput) { in.DB = certificate(t, "other") }, "not that of the enrolment"},
		"root hash in profile":      {func(_ *testing.T, in *BuildInput) { in.Profile.Kernel.Cmdline = []string{"sealift.roothash=00"} }, "only the builder sets"},
		"kernel that is none":       {func(_ *testing.T, in *BuildInput) { in.Kernel = in.Stub }, "it is not a bzImage"},
		"modules of another kernel": {func(_ *testing.T, in *BuildInput) { in.KernelRelease = "6.1.0-1" }, "the kernel is " + testRelease + ", its modules are for 6.1.0-1"},
		"os-release without debug":  {func(_ *testing.T, in *BuildInput) { in.Profile.Debug = true }, "debug of profile demo is true, but VARIANT_ID in os-release says false"},
		"os-release with debug":     {func(_ *testing.T, in *BuildInput) { in.OSRelease = []byte("VARIANT_ID=debug\n") }, "debug of profile demo is false"},
		"stub that is none":         {func(_ *testing.T, in *BuildInput) { in.Stub = in.Kernel }, "stub"},
		"no lock":                   {func(_ *testing.T, in *BuildInput) { in.LockDigest = manifest.SHA256{} }, "no lock digest"},
		"epoch before all formats'": {func(_ *testing.T, in *BuildInput) { in.Epoch = time.Unix(0, 0) }, "epoch 1970"},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			c.edit(t, &in)
			_, err := Build(t.Context(), in)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "build image demo 1: ") {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
			onlyOutput(t, in.Output)
			if _, err := os.Stat(in.Output); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("output is there (%v)", err)
			}
		})
	}
}

func TestACancelledBuildStops(t *testing.T) {
	in := input(t)
	ctx, cancel := context.WithCancel(t.Context())
	in.Progress = func(step string, _, _ int64) {
		if step == StepCompress {
			cancel()
		}
	}
	if _, err := Build(ctx, in); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(in.Output); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("output is there (%v)", err)
	}
}

func ExampleBuildInput() {
	in := BuildInput{Progress: func(step string, done, total int64) { fmt.Printf("%s: %d of %d\n", step, done, total) }}
	in.Progress(StepVerity, 1, 2)
	// Output: verity tree: 1 of 2
}
