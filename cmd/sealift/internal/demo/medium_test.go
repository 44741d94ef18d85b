package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/cmd/sealift/internal/vm"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// TestInstallFromAMedium boots an installation medium on real firmware, as an
// optical disc and as disks, in boxes without any network. Each takes minutes,
// so it runs only where SEALIFT_VM is set; SEALIFT_BIN is the directory of the
// built programs, SEALIFT_IMAGE an image with output iso that was built with
// its raw disk, to spare building one.
func TestInstallFromAMedium(t *testing.T) {
	if os.Getenv("SEALIFT_VM") == "" {
		t.Skip("the long VM run: make e2e")
	}
	dir := mediumImage(t)
	want, err := os.Open(filepath.Join(dir, image.FileDisk))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	text, err := os.ReadFile(filepath.Join(dir, image.FileManifest))
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	inventory, err := os.ReadFile(filepath.Join(dir, image.FileSPDX))
	if err != nil {
		t.Fatal(err)
	}
	accel := vm.Accelerator(t.Context())
	for _, c := range []struct {
		name   string
		device []string // after -drive if=none,id=medium,file=...
		drive  string
		keeps  bool // the record
		module string
	}{
		{"as a disc in a SCSI drive", []string{"-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-cd,bus=scsi.0,drive=medium"}, "media=cdrom,readonly=on", false, "sr_mod"},
		{"as a virtual disk", []string{"-device", "virtio-blk-pci,drive=medium"}, "cache=unsafe", true, "virtio_blk"},
		{"as a USB stick", []string{"-device", "qemu-xhci", "-device", "usb-storage,drive=medium,removable=on"}, "cache=unsafe", true, "usb-storage"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !bytes.Contains(inventory, []byte("/"+c.module+".ko")) {
				t.Skipf("the image's kernel has no %s", c.module)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
			defer cancel()
			work, err := os.MkdirTemp("", "box") // short: swtpm makes sockets in it
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(work) })
			medium := filepath.Join(work, "medium.iso")
			if err := copyFile(medium, filepath.Join(dir, image.FileISO)); err != nil {
				t.Fatal(err)
			}
			box := &vm.Box{
				Name: "offline", Dir: work, Code: ovmfCode, Memory: 1536, CPUs: 2,
				UUID: "5ea11f70-0000-4000-8000-0000000000ff", Serial: "OFF-1",
			}
			if err := vm.Create(ctx, box, ovmfVars, diskSize, vm.TPMCA{Dir: filepath.Join(work, "ca")}); err != nil {
				t.Fatal(err)
			}
			run, err := box.Start(ctx, accel, vm.Power{Label: "install", Extra: append([]string{
				"-drive", "if=none,id=medium,format=raw,file=" + medium + "," + c.drive}, c.device...)})
			if err != nil {
				t.Fatal(err)
			}
			expect := func(text string) {
				t.Helper()
				line, at, err := run.WaitFor(ctx, regexp.MustCompile(text))
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%6.1f s: %s", at.Seconds(), line)
			}
			expect(`installing from /dev/\w+ .*, without a network`)
			expect(`image demo 1: signature verified`)
			expect(`Secure Boot keys: enrolled`)
			expect(`sealift: .* installed$`)
			if err := run.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			if lost := len(run.Lines(regexp.MustCompile(`record was not kept`))) > 0; lost == c.keeps {
				t.Errorf("the record was lost: %t, want %t", lost, !c.keeps)
			}
			compareDisk(t, want, box.DiskFile(), m)
			records := mediumRecords(t, medium)
			if !c.keeps && len(records) != 0 || c.keeps && (len(records) != 1 || records[0].Image != "demo 1" || records[0].Serial != "OFF-1" || len(records[0].EKCertificates) == 0) {
				t.Errorf("records on the medium: %+v", records)
			}

			// Without the medium the firmware, whose Secure Boot is on by now,
			// starts what was installed.
			if run, err = box.Start(ctx, accel, vm.Power{Label: "boot"}); err != nil {
				t.Fatal(err)
			}
			defer run.Kill()
			expect(`sealift: .* agent started`)
		})
	}
}

// mediumOutputs are all forms of an image.
const mediumOutputs = "raw,raw.zst,netboot,qcow2,iso"

// mediumImage returns the directory of an image with its raw disk and medium.
func mediumImage(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("SEALIFT_IMAGE"); dir != "" {
		return dir
	}
	root, bin := checkout(t)
	work := filepath.Join(root, "build", "test")
	dir, keys := filepath.Join(work, "medium"), filepath.Join(work, "keys")
	sealift := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "sealift"), args...).CombinedOutput(); err != nil {
			t.Fatalf("sealift %q: %v\n%s", args, err, out)
		}
	}
	if _, err := os.Stat(keys); err != nil {
		if err := os.MkdirAll(work, 0o755); err != nil {
			t.Fatal(err)
		}
		sealift("keys", "init", keys)
	}
	sealift("image", "build", filepath.Join(root, "profiles", "demo.yaml"), "--keys", keys,
		"--cache", filepath.Join(root, "build", "cache"), "--out", dir, "--output", mediumOutputs, "--reuse")
	return dir
}

// compareDisk holds every chunk of an installed disk against the image's, but
// for the first, in which the partition table has an identity of its own.
func compareDisk(t *testing.T, want *os.File, installed string, m *manifest.Manifest) {
	t.Helper()
	got, err := os.Open(installed)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	last := m.Disk.Partitions[len(m.Disk.Partitions)-1]
	end := int64(last.FirstLBA+last.Sectors) * 512
	const first = 1 << 20
	a, b := make([]byte, 4<<20), make([]byte, 4<<20)
	for at := int64(first); at < end; at += int64(len(a)) {
		n := min(int64(len(a)), end-at)
		if _, err := want.ReadAt(a[:n], at); err != nil {
			t.Fatal(err)
		}
		if _, err := got.ReadAt(b[:n], at); err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(a[:n]) != sha256.Sum256(b[:n]) {
			t.Errorf("the installed disk differs from the image at bytes %d to %d", at, at+n)
		}
	}
}

// mediumRecords returns the install records that are on a medium.
func mediumRecords(t *testing.T, medium string) []api.InstallRecord {
	t.Helper()
	out := filepath.Join(t.TempDir(), "records")
	if text, err := exec.Command("xorriso", "-osirrox", "on", "-indev", medium, "-extract", "/"+profiles.MediumRecords, out).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var all []api.InstallRecord
	for line := range bytes.Lines(b) {
		if strings.TrimSpace(string(line)) == "" {
			continue
		}
		var r api.InstallRecord
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("record %q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}
