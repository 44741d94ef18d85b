package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	attestapi "github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/blockdev"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
	"github.com/sealift/sealift/provisioner/api"
)

// volume makes an ISO 9660 image with another implementation than the builder's.
func volume(t *testing.T, label string, files map[string][]byte) []byte {
	t.Helper()
	if _, err := exec.LookPath("xorriso"); err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip("xorriso is not installed")
	}
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "x.iso")
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", label, "-o", out, dir).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// devices makes a made-up /sys and /dev with these devices.
func devices(t *testing.T, contents map[string][]byte) blockdev.System {
	t.Helper()
	root := t.TempDir()
	s := blockdev.System{Sys: filepath.Join(root, "sys"), Dev: filepath.Join(root, "dev")}
	write := func(path, text string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range contents {
		dir := filepath.Join(s.Sys, "block", name)
		write(filepath.Join(dir, "size"), strconv.Itoa(len(b)/512))
		write(filepath.Join(dir, "ro"), "0")
		write(filepath.Join(dir, "removable"), "0")
		write(filepath.Join(dir, "queue", "logical_block_size"), "512")
		write(filepath.Join(dir, "device", "model"), "a drive")
		write(filepath.Join(s.Dev, name), string(b))
	}
	return s
}

// release is an image as a medium has it.
func release(t *testing.T, edit func(*manifest.Manifest)) (img []byte, files map[string][]byte) {
	t.Helper()
	img, layout := testImage(40)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	compressed := enc.EncodeAll(img, nil)
	m := manifest.Manifest{
		Schema: manifest.Schema, Name: "demo", Version: "1", Arch: runtime.GOARCH, Disk: layout,
		Artifacts: []manifest.Artifact{{Kind: manifest.KindDiskZstd, Name: "disk.raw.zst", Size: int64(len(compressed)), SHA256: sha256.Sum256(compressed)}},
	}
	if edit != nil {
		edit(&m)
	}
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return img, map[string][]byte{
		profiles.MediumManifest: raw, profiles.MediumBundle: []byte("bundle"), profiles.MediumDisk: compressed,
		profiles.MediumRecords: bytes.Repeat([]byte("\n"), 8<<10),
	}
}

func TestInstallFromAMedium(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(*manifest.Manifest)
		files  func(map[string][]byte)
		image  string
		verify error
		err    string
		wiped  bool // the disk was written to, and has no partition table
	}{
		"a signed image is installed and its record is on the medium": {image: "demo 1"},
		"a signature of another key touches nothing":                  {verify: errors.New("not by the key"), err: "not by the key"},
		"an image that is not the installer's touches nothing":        {image: "demo 2", err: "there is image demo 1, this is the installer of image demo 2"},
		"a medium without a manifest touches nothing":                 {files: func(f map[string][]byte) { delete(f, profiles.MediumManifest) }, err: "has no file manifest.json"},
		"a bundle that is too long touches nothing":                   {files: func(f map[string][]byte) { f[profiles.MediumBundle] = make([]byte, maxBundle+1) }, err: "at most"},
		"a disk of another size leaves no partition table": {
			files: func(f map[string][]byte) { f[profiles.MediumDisk] = append(f[profiles.MediumDisk], 0) }, err: "the signed manifest says",
		},
		"a disk that was changed leaves no partition table": {
			edit: func(m *manifest.Manifest) { m.Disk.Chunks[7] = sha256.Sum256(nil) }, err: "chunk 7: got digest", wiped: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			img, files := release(t, c.edit)
			if c.files != nil {
				c.files(files)
			}
			s := devices(t, map[string][]byte{"sr0": volume(t, profiles.MediumLabel, files), "vda": make([]byte, 1<<20)})
			medium, err := FindMedium(t.Context(), s, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer medium.Close()
			if medium.Node() != filepath.Join(s.Dev, "sr0") || !strings.Contains(medium.String(), "sr0") {
				t.Errorf("the medium is %s", medium)
			}
			box := &fakeMachine{memory: newMemory()}
			f := Flow{
				Source: medium, Image: c.image, Host: api.HostKey{MAC: "52:54:00:00:00:01"}, Machine: box,
				Verify: func(raw, bundle []byte) error {
					if string(bundle) != "bundle" {
						t.Errorf("the bundle is %q", bundle)
					}
					return c.verify
				},
				Step: t.Logf, Log: quiet(), Now: time.Now,
			}
			err = f.Run(t.Context())
			records := onMedium(t, s, "sr0")
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want an error with %q", err, c.err)
				}
				if !c.wiped && box.data[0] != 0xee {
					t.Error("the disk was written to")
				}
				if c.wiped && len(bytes.Trim(box.data[:tableSize], "\x00")) != 0 {
					t.Error("a partition table is left")
				}
				if len(records) != 0 || box.bootable {
					t.Error("a failed install was recorded or made bootable")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(box.data[:len(img)], img) || !box.bootable {
				t.Error("the image is not on the disk")
			}
			if len(records) != 1 || records[0].Image != "demo 1" || records[0].MAC != "52:54:00:00:00:01" ||
				records[0].ManifestDigest != manifest.SHA256(sha256.Sum256(files[profiles.MediumManifest])).String() {
				t.Errorf("got records %+v", records)
			}
		})
	}
}

// onMedium reads the records back from the device.
func onMedium(t *testing.T, s blockdev.System, name string) []attestapi.InstallRecord {
	t.Helper()
	m, err := FindMedium(t.Context(), s, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b, err := m.read(profiles.MediumRecords, profiles.MediumRecordsSize)
	if err != nil {
		t.Fatal(err)
	}
	var all []attestapi.InstallRecord
	for line := range bytes.Lines(b) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		var r attestapi.InstallRecord
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

func TestRecordsFollowEachOtherUntilThereIsNoRoom(t *testing.T) {
	_, files := release(t, nil)
	files[profiles.MediumRecords] = bytes.Repeat([]byte("\n"), 500)
	image := volume(t, profiles.MediumLabel, files)
	s := devices(t, map[string][]byte{"sda": image})
	m, err := FindMedium(t.Context(), s, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	n := 0
	for ; ; n++ {
		err = m.Record(t.Context(), api.Record{Record: json.RawMessage(`{"diskGUID":"` + strings.Repeat(strconv.Itoa(n), 100) + `"}`)})
		if err != nil {
			break
		}
		if n > 10 {
			t.Fatal("there is no end")
		}
	}
	if !errors.Is(err, ErrNotKept) || !strings.Contains(err.Error(), "are full") || n != 4 {
		t.Errorf("after %d records: %v", n, err)
	}
	all := onMedium(t, s, "sda")
	for i, r := range all {
		if r.DiskGUID != strings.Repeat(strconv.Itoa(i), 100) {
			t.Errorf("record %d is %+v", i, r)
		}
	}
	if len(all) != n {
		t.Errorf("got %d records, want %d", len(all), n)
	}
	now, err := os.ReadFile(m.Node())
	if err != nil || len(now) != len(image) {
		t.Fatalf("the medium has %d bytes, had %d (%v)", len(now), len(image), err)
	}
	changed := 0
	for i := range now {
		if now[i] != image[i] {
			changed++
		}
	}
	if changed > 500 {
		t.Errorf("%d bytes were changed", changed)
	}
}

func TestAnInstallIsCompleteWithoutItsRecord(t *testing.T) {
	_, files := release(t, nil)
	delete(files, profiles.MediumRecords)
	s := devices(t, map[string][]byte{"sr0": volume(t, profiles.MediumLabel, files)})
	m, err := FindMedium(t.Context(), s, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var told []string
	f := Flow{
		Source: m, Machine: &fakeMachine{memory: newMemory()}, Verify: func(raw, bundle []byte) error { return nil },
		Step: func(format string, args ...any) { told = append(told, strings.ReplaceAll(format, "%v", "")) }, Log: quiet(), Now: time.Now,
	}
	if err := f.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if last := told[len(told)-1]; !strings.Contains(last, "sealift machine approve") {
		t.Errorf("the last step is %q", last)
	}
}

func TestAMediumIsFoundByItsLabelAlone(t *testing.T) {
	_, files := release(t, nil)
	medium, other := volume(t, profiles.MediumLabel, files), volume(t, "DEBIAN", files)
	for name, c := range map[string]struct {
		devices map[string][]byte
		node    string
		err     string
	}{
		"among disks and other discs": {map[string][]byte{"sda": make([]byte, 1<<20), "sr0": other, "sr1": medium, "vda": nil}, "sr1", ""},
		"as a disk":                   {map[string][]byte{"vda": make([]byte, 1<<20), "vdb": medium}, "vdb", ""},
		"twice is once too often":     {map[string][]byte{"sr0": medium, "vdb": medium}, "", "two installation media"},
		"not at all":                  {map[string][]byte{"sr0": other, "vda": make([]byte, 1<<20)}, "", ErrNoMedium.Error()},
		"not on a floppy":             {map[string][]byte{"fd0": medium}, "", ErrNoMedium.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			s := devices(t, c.devices)
			m, err := FindMedium(t.Context(), s, 0)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, %v, want an error with %q", m, err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if m.Node() != filepath.Join(s.Dev, c.node) {
				t.Errorf("found %s", m)
			}
		})
	}
}

func TestAMediumIsWaitedFor(t *testing.T) {
	_, files := release(t, nil)
	s := devices(t, map[string][]byte{"sr0": volume(t, profiles.MediumLabel, files)})
	node := filepath.Join(s.Dev, "sr0")
	if err := os.Rename(node, node+".later"); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(2 * mediumInterval)
		os.Rename(node+".later", node)
	}()
	m, err := FindMedium(t.Context(), s, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FindMedium(ctx, devices(t, map[string][]byte{"vda": nil}), time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
