package install

import (
	"context"
	"crypto/sha256"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
	"github.com/sealift/sealift/provisioner/api"
)

// signed is a source of one manifest. Nobody may come so far as to ask for more.
type signed struct {
	Source
	t        *testing.T
	manifest []byte

	mu     sync.Mutex
	failed string // guarded by mu; the last progress
}

func (s *signed) Manifest(context.Context) ([]byte, []byte, error) { return s.manifest, nil, nil }
func (s *signed) Disk(context.Context, int64) (io.ReadCloser, error) {
	s.t.Error("the disk was fetched")
	return nil, io.EOF
}
func (s *signed) Progress(_ context.Context, p api.Progress) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Phase == PhaseFailed {
		s.failed = p.Text
	}
	return nil
}

func TestAMachineThatTheImageIsNotForIsLeftAlone(t *testing.T) {
	_, layout := testImage(40)
	m := manifest.Manifest{
		Schema: manifest.Schema, Name: "demo", Version: "1", Arch: runtime.GOARCH, Disk: layout,
		Artifacts: []manifest.Artifact{{Kind: manifest.KindDiskZstd, Name: "disk.raw.zst", Size: 1, SHA256: sha256.Sum256(nil)}},
	}
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	machine := &fakeMachine{memory: newMemory()}
	source := &signed{t: t, manifest: raw}
	f := Flow{
		Source: source, Machine: machine, Verify: func(manifest, bundle []byte) error { return nil },
		Suits: func() error {
			return CheckHardware([]profiles.Hardware{{Product: "OptiPlex*"}}, &attest.SMBIOS{Manufacturer: "QEMU", Product: "Standard PC"})
		},
		Step: t.Logf, Log: quiet(), Now: time.Now,
	}
	err = f.Run(t.Context())
	const want = `image demo 1: it is not for this machine, which says manufacturer "QEMU", product "Standard PC"; the profile wants (product "OptiPlex*")`
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if machine.opened || machine.bootable || machine.data[0] != 0xee {
		t.Error("the disk was opened")
	}
	if source.failed != want {
		t.Errorf("the factory is told %q", source.failed)
	}
}

func TestCheckHardware(t *testing.T) {
	want := []profiles.Hardware{{Manufacturer: "Dell*", BoardProduct: "0X*"}}
	for claim, tc := range map[string]struct {
		want   []profiles.Hardware
		smbios *attest.SMBIOS
		err    string
	}{
		"a machine that fits":                       {want, &attest.SMBIOS{Manufacturer: "Dell Inc.", BoardProduct: "0XYZ"}, ""},
		"another board":                             {want, &attest.SMBIOS{Manufacturer: "Dell Inc.", BoardProduct: "1"}, `boardProduct "1"`},
		"a machine that says nothing":               {want, nil, "which says nothing of itself"},
		"an image for any machine":                  {nil, nil, ""},
		"the vendor of the firmware and a version":  {[]profiles.Hardware{{BIOSVendor: "EDK*", Version: "pc-q35*"}}, &attest.SMBIOS{BIOSVendor: "EDK II", Version: "pc-q35-7.2"}, ""},
		"the maker of the board is not the machine": {[]profiles.Hardware{{BoardManufacturer: "Intel"}}, &attest.SMBIOS{Manufacturer: "Intel"}, "it is not for this machine"},
	} {
		err := CheckHardware(tc.want, tc.smbios)
		if (err == nil) != (tc.err == "") || (err != nil && !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: got %v, want %q", claim, err, tc.err)
		}
	}
}
