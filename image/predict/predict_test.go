package predict

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/uki"
	"github.com/sealift/sealift/image/uki/ukitest"
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

func certificate(t testing.TB, key *rsa.PrivateKey, serial int64) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Unix(2e9, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}

// input is an image of the real stub. Another EFI program stands for the
// kernel, because a kernel is not always there and one measures like the other.
func input(t testing.TB) Input {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	in := uki.Input{
		Stub:   needFile(t, "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"),
		Kernel: ukitest.Kernel(pe.MachineAMD64, "6.1.0"),
		Initrd: []byte("initrd"), Cmdline: "quiet", OSRelease: []byte("ID=sealift\n"), PCRKey: key, Epoch: time.Unix(1700000000, 0),
	}
	var all Input
	if all.UKI, err = uki.Assemble(in); err != nil {
		t.Fatal(err)
	}
	in.PCRKey, in.Initrd = nil, []byte("the installer's")
	if all.Installer, err = uki.Assemble(in); err != nil {
		t.Fatal(err)
	}
	for i := range int64(2) {
		all.Enrolments = append(all.Enrolments, efivar.Enrolment{
			PK: certificate(t, key, 10*i+1), KEK: certificate(t, key, 10*i+2), DB: certificate(t, key, 10*i+3),
		})
	}
	return all
}

func TestAnImageWithoutAnInstallerHasNoBootsOfOne(t *testing.T) {
	in := input(t)
	var want []manifest.Boot
	for _, b := range boots(t, in).Boots {
		if b.Artifact == manifest.KindUKI {
			want = append(want, b)
		}
	}
	in.Installer = nil
	if got := boots(t, in).Boots; len(got) != len(in.Enrolments) || !reflect.DeepEqual(got, want) {
		t.Errorf("got %d boots, want the %d of the disk, unchanged", len(got), len(want))
	}
	in.Installer = []byte{}
	if _, err := Boots(in); err == nil {
		t.Error("an empty file passes for no installer")
	}
}

func boots(t testing.TB, in Input) *manifest.Manifest {
	t.Helper()
	all, err := Boots(in)
	if err != nil {
		t.Fatal(err)
	}
	return &manifest.Manifest{Boots: all}
}

func names(events []manifest.Event) []string {
	var out []string
	for _, e := range events {
		out = append(out, e.Type+" "+e.Name)
	}
	return out
}

func TestEachBundleOfKeysHasBootsOfItsOwn(t *testing.T) {
	in := input(t)
	m := boots(t, in)
	if len(m.Boots) != 2*2+1 {
		t.Fatalf("got %d boots, want the disk and the installer for each of 2 bundles, and setup mode", len(m.Boots))
	}
	seen := map[string]bool{}
	for _, b := range m.Boots {
		pcr7, ok := b.PCR(7)
		if !ok {
			t.Fatal("a boot without PCR 7")
		}
		if !b.SecureBoot {
			if pcr7.Values != nil || !slices.Equal(pcr7.DependsOn, []string{DependsOnKeys}) {
				t.Errorf("PCR 7 in setup mode is %v, depends on %q", pcr7.Values, pcr7.DependsOn)
			}
			continue
		}
		if b.Artifact == manifest.KindUKI {
			if seen[pcr7.Values["sha256"]] {
				t.Error("two bundles have one PCR 7")
			}
			seen[pcr7.Values["sha256"]] = true
		}
		if b.Enrolment.IsZero() {
			t.Error("a boot with Secure Boot names no enrolment")
		}
	}
}

func TestEventsAreInTheOrderInWhichTheyAreMeasured(t *testing.T) {
	m := boots(t, input(t))
	disk, _ := m.Boot(manifest.KindUKI, manifest.BootDisk)
	setup, _ := m.Boot(manifest.KindInstaller, manifest.BootNetworkSetup)
	const (
		calling = "EV_EFI_ACTION Calling EFI Application from Boot Option"
		sep     = "EV_SEPARATOR separator, four bytes of zero"
		app     = "EV_EFI_BOOT_SERVICES_APPLICATION the UKI, by its Authenticode digest"
		kernel  = "EV_EFI_BOOT_SERVICES_APPLICATION the kernel in the UKI, by its Authenticode digest"
		exit    = "EV_EFI_ACTION Exit Boot Services Invocation"
		done    = "EV_EFI_ACTION Exit Boot Services Returned with Success"
	)
	for _, c := range []struct {
		boot manifest.Boot
		pcr  int
		want []string
	}{
		{disk, 4, []string{calling, sep, app}},
		{setup, 4, []string{calling, sep, app, kernel}},
		{disk, 5, []string{sep, "EV_EFI_GPT_EVENT the partition table of the boot disk", exit, done}},
		{setup, 5, []string{sep, exit, done}},
		{disk, 7, []string{"EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot", "EV_EFI_VARIABLE_DRIVER_CONFIG PK", "EV_EFI_VARIABLE_DRIVER_CONFIG KEK",
			"EV_EFI_VARIABLE_DRIVER_CONFIG db", "EV_EFI_VARIABLE_DRIVER_CONFIG dbx, unset", sep, "EV_EFI_VARIABLE_AUTHORITY the certificate in db that the UKI was verified with"}},
		{setup, 7, []string{"EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot", "EV_EFI_VARIABLE_DRIVER_CONFIG PK, unset", "EV_EFI_VARIABLE_DRIVER_CONFIG KEK",
			"EV_EFI_VARIABLE_DRIVER_CONFIG db", "EV_EFI_VARIABLE_DRIVER_CONFIG dbx, unset", sep}},
		{disk, 12, nil}, {disk, 13, nil},
	} {
		p, ok := c.boot.PCR(c.pcr)
		if got := names(p.Events); !ok || !slices.Equal(got, c.want) {
			t.Errorf("%s, PCR %d: got %q, want %q", c.boot.Way, c.pcr, got, c.want)
		}
	}
}

func TestValuesAreThoseThatPackageUKIPredicts(t *testing.T) {
	in := input(t)
	m := boots(t, in)
	u, err := uki.Predict(in.UKI)
	if err != nil {
		t.Fatal(err)
	}
	disk, _ := m.Boot(manifest.KindUKI, manifest.BootDisk)
	for bank, values := range u.PCRs {
		for index, want := range values {
			if p, _ := disk.PCR(index); p.Values[bank] != want {
				t.Errorf("%s PCR %d is %s, package uki says %s", bank, index, p.Values[bank], want)
			}
		}
	}
	digests, err := in.Enrolments[0].SecureBoot()
	if err != nil {
		t.Fatal(err)
	}
	pcr7, _ := disk.PCR(7)
	for i, want := range map[int]manifest.SHA256{1: digests.PK, 2: digests.KEK, 3: digests.DB, 6: digests.Authority} {
		if got := pcr7.Events[i].Digests["sha256"]; got != want.String() {
			t.Errorf("%s is %s, the manifest's Secure Boot section has %s", pcr7.Events[i].Name, got, want)
		}
	}
}

func TestPCR5HasAValueOnceTheDiskIsKnown(t *testing.T) {
	m := boots(t, input(t))
	disk, _ := m.Boot(manifest.KindUKI, manifest.BootDisk)
	before, _ := disk.PCR(5)
	if before.Values != nil || len(before.DependsOn) != 3 {
		t.Fatalf("PCR 5 of no disk in particular is %v, depends on %q", before.Values, before.DependsOn)
	}
	one, err := WithGPT(disk, []byte("a table"))
	if err != nil {
		t.Fatal(err)
	}
	p, _ := one.PCR(5)
	h := sha256.Sum256([]byte("a table"))
	h384 := sha512.Sum384([]byte("a table"))
	if p.Values["sha384"] == "" || p.Events[1].Digests["sha256"] != hex.EncodeToString(h[:]) || p.Events[1].Digests["sha384"] != hex.EncodeToString(h384[:]) {
		t.Errorf("PCR 5 is %+v", p)
	}
	if again, _ := disk.PCR(5); again.Values != nil || again.Events[1].Digests != nil {
		t.Error("the reference itself was changed")
	}
	network, _ := m.Boot(manifest.KindInstaller, manifest.BootNetwork)
	if _, err := WithGPT(network, []byte("a table")); err == nil {
		t.Error("a boot from the network was given a partition table")
	}
}

func TestReplayStartsAtZeroAndExtends(t *testing.T) {
	zero, err := Replay("sha384", nil)
	if err != nil || zero != fmt.Sprintf("%096x", 0) {
		t.Errorf("no events: %s, %v", zero, err)
	}
	d := sha256.Sum256([]byte("x"))
	want := sha256.Sum256(append(make([]byte, 32), d[:]...))
	got, err := Replay("sha256", []manifest.Event{event("EV_IPL", "x", []byte("x"))})
	if err != nil || got != hex.EncodeToString(want[:]) {
		t.Errorf("got %s (%v), want %x", got, err, want)
	}
	if _, err := Replay("sha1", nil); err == nil {
		t.Error("a bank that is not predicted was replayed")
	}
	if _, err := Replay("sha256", []manifest.Event{{Name: "table"}}); err == nil {
		t.Error("an event without a digest was replayed")
	}
}

func TestBootsAreWhatAManifestAccepts(t *testing.T) {
	m := boots(t, input(t))
	m.Schema, m.Disk = manifest.Schema, manifest.Disk{Size: 512, ChunkSize: 512, Chunks: make([]manifest.SHA256, 1)}
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := manifest.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := back.Encode(); err != nil || string(again) != string(b) {
		t.Errorf("decoded and encoded again it differs (%v)", err)
	}
	m.Boots[0].PCRs[0].Events[0].Digests["sha256"] = "abc"
	if b, err = m.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.Decode(b); err == nil {
		t.Error("a digest of three digits was accepted")
	}
}
