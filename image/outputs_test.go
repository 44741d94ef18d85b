package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
)

// allOutputs are all that can be chosen, and the files that they are.
func allOutputs() map[Output]string {
	return map[Output]string{
		OutputRaw: FileDisk, OutputRawZstd: FileDiskZstd, OutputQCOW2: FileQCOW2, OutputISO: FileISO, OutputNetboot: FileInstaller,
	}
}

func everyOutput() []Output {
	return []Output{OutputRaw, OutputRawZstd, OutputQCOW2, OutputISO, OutputNetboot}
}

func TestOnlyChosenOutputsAreThere(t *testing.T) {
	unlisted := []string{FileManifest, FileBundle, BundleOf(FileSPDX), BundleOf(FileCycloneDX), FileProvenance, BundleOf(FileProvenance)}
	always := append([]string{FileUKI, FileSPDX, FileCycloneDX}, unlisted...)
	for name, chosen := range map[string][]Output{
		"raw alone":                  {OutputRaw},
		"the compressed disk alone":  {OutputRawZstd},
		"a virtual machine's alone":  {OutputQCOW2},
		"the medium alone":           {OutputISO},
		"the netboot installer only": {OutputNetboot},
		"what is made by default":    nil,
		"everything":                 everyOutput(),
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			in.Outputs = chosen
			m, err := Build(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(always)
			if chosen == nil {
				chosen = []Output{OutputRaw, OutputRawZstd, OutputNetboot}
			}
			for _, o := range chosen {
				want = append(want, allOutputs()[o])
			}
			var got []string
			entries, err := os.ReadDir(in.Output)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				got = append(got, e.Name())
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("output holds %q, want %q", got, want)
			}
			all := slices.Clone(unlisted)
			for _, a := range m.Artifacts {
				all = append(all, a.Name)
				b, err := os.ReadFile(filepath.Join(in.Output, a.Name))
				if err != nil || int64(len(b)) != a.Size || sha256.Sum256(b) != a.SHA256 {
					t.Errorf("artifact %s does not match its description (%v)", a.Name, err)
				}
			}
			slices.Sort(all)
			if !slices.Equal(all, want) {
				t.Errorf("the manifest lists %q, want %q", all, want)
			}
			if len(m.Disk.Chunks) == 0 || m.Disk.Chunks[0].IsZero() {
				t.Error("digests are missing")
			}
			// Only of an installer that is there is anything said.
			_, network := m.Boot(manifest.KindInstaller, manifest.BootNetwork)
			_, setup := m.Boot(manifest.KindInstaller, manifest.BootNetworkSetup)
			listed := bytes.Contains(must2(os.ReadFile(filepath.Join(in.Output, FileSPDX))), []byte(`installer/init"`))
			holds := slices.Contains(chosen, OutputISO) || slices.Contains(chosen, OutputNetboot)
			if values := !m.Installer.Authenticode.IsZero(); values != holds || network != holds || setup != holds || listed != holds {
				t.Errorf("an output holds the installer: %t; the manifest has values: %t, boots: %t %t, the SBOM its files: %t", holds, values, network, setup, listed)
			}
			if text := must2(os.ReadFile(filepath.Join(in.Output, FileManifest))); bytes.Contains(text, []byte(`"installer": {`)) != holds {
				t.Errorf("the field installer in the manifest: %t, want %t", !holds, holds)
			}
			onlyOutput(t, in.Output)
		})
	}
}

func TestUnknownOutputsAreCorrected(t *testing.T) {
	for name, c := range map[string]struct {
		names []string
		want  string
	}{
		"a slip":             {[]string{"raw", "qcow"}, `unknown output "qcow"; did you mean qcow2?`},
		"capitals":           {[]string{"ISO"}, `did you mean iso?`},
		"something else":     {[]string{"vmdk-thing"}, "known are: raw, raw.zst, qcow2, iso, netboot"},
		"an empty name":      {[]string{""}, `unknown output ""`},
		"none":               {nil, "no output"},
		"a comma left alone": {[]string{"raw", ""}, `unknown output ""`},
	} {
		if _, err := ParseOutputs(c.names); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, c.want)
		}
	}
	all, err := ParseOutputs([]string{"iso", "raw", "iso", "raw.zst", "netboot", "qcow2"})
	if err != nil || !slices.Equal(all, []Output{OutputISO, OutputRaw, OutputRawZstd, OutputNetboot, OutputQCOW2}) {
		t.Errorf("got %v, %v", all, err)
	}
}

func TestToolsAcceptEveryOutput(t *testing.T) {
	in := input(t)
	in.Outputs = everyOutput()
	m, err := Build(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(in.Output, name) }
	raw, err := os.ReadFile(path(FileDisk))
	if err != nil {
		t.Fatal(err)
	}

	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", path(FileDisk), path(FileQCOW2))
	if out := run(t, "qemu-img", "check", path(FileQCOW2)); !strings.Contains(out, "No errors were found") {
		t.Errorf("qemu-img check:\n%s", out)
	}

	dir := filepath.Join(t.TempDir(), "medium")
	run(t, "xorriso", "-abort_on", "WARNING", "-osirrox", "on", "-indev", path(FileISO), "-extract", "/", dir)
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	text := read(profiles.MediumManifest)
	if err := bundle.Verify(text, read(profiles.MediumBundle), publicPEM(t, in.Signer.Public())); err != nil {
		t.Error(err)
	}
	own, err := manifest.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	compressed := read(profiles.MediumDisk)
	if a, ok := own.Artifact(manifest.KindDiskZstd); !ok || len(own.Artifacts) != 1 || a.SHA256 != sha256.Sum256(compressed) || a.Size != int64(len(compressed)) {
		t.Errorf("the medium's manifest lists %+v", own.Artifacts)
	}
	// Apart from the artifacts it is the image's.
	own.Artifacts = m.Artifacts
	if a, b := must2(own.Encode()), must2(m.Encode()); !bytes.Equal(a, b) {
		t.Error("the medium's manifest describes another image")
	}
	z, err := zstd.NewReader(bytes.NewReader(compressed))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if b, err := io.ReadAll(z); err != nil || !bytes.Equal(b, raw) {
		t.Errorf("the medium holds another disk (%v)", err)
	}
	if records := read(profiles.MediumRecords); len(records) != profiles.MediumRecordsSize || len(bytes.Trim(records, "\n")) != 0 {
		t.Error("the room for records is not empty lines")
	}
	boot := filepath.Join(t.TempDir(), "esp")
	run(t, "xorriso", "-osirrox", "on", "-indev", path(FileISO), "-extract_boot_images", boot)
	got := filepath.Join(t.TempDir(), "installer")
	esp := must2(filepath.Glob(filepath.Join(boot, "eltorito_img*_uefi.img")))
	if len(esp) != 1 {
		t.Fatalf("boot images: %q", esp)
	}
	run(t, "mcopy", "-i", esp[0], "::/EFI/BOOT/BOOTX64.EFI", got)
	if a, b := must2(os.ReadFile(got)), must2(os.ReadFile(path(FileInstaller))); !bytes.Equal(a, b) {
		t.Error("the medium boots another installer")
	}
	if out := run(t, "sgdisk", "--verify", path(FileISO)); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk --verify:\n%s", out)
	}
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestEveryOutputHasTheSameBytesElsewhere(t *testing.T) {
	needFile(t, testStub)
	fx := makeFixture(t)
	here := order{Fixture: fx, Output: filepath.Join(t.TempDir(), "out"), Outputs: everyOutput()}
	if a := here.run(t, here.process(t, "GOMAXPROCS=1", "TZ=UTC", "LC_ALL=C")); a.Err != "" {
		t.Fatal(a.Err)
	}
	// A second later at least, as another user, in another place, and with
	// another order of everything that has one.
	for began := time.Now().Unix(); time.Now().Unix() == began; {
		time.Sleep(10 * time.Millisecond)
	}
	there := here
	there.Output = filepath.Join(t.TempDir(), "a", "longer", "path")
	there.Workers, there.Reverse, there.Umask = 5, true, 0o077
	slices.Reverse(there.Outputs)
	cmd := there.process(t, "GOMAXPROCS=4", "TZ=Asia/Kathmandu", "LC_ALL=tr_TR.UTF-8", "LANG=tr_TR.UTF-8", "SOURCE_DATE_EPOCH=1",
		"TMPDIR="+t.TempDir(), "HOME="+t.TempDir(), "USER=other", "HOSTNAME=elsewhere")
	namespaces(cmd, 1234)
	cmd.Dir = t.TempDir()
	if a := there.run(t, cmd); a.Err != "" || a.UID != 1234 {
		t.Fatalf("as user %d: %s", a.UID, a.Err)
	}
	for _, name := range outputFiles() {
		a, err1 := os.ReadFile(filepath.Join(here.Output, name))
		b, err2 := os.ReadFile(filepath.Join(there.Output, name))
		if err := errors.Join(err1, err2); err != nil {
			t.Error(err)
		} else if !bytes.Equal(a, b) {
			t.Errorf("%s differs between two builds", name)
		}
	}
}
