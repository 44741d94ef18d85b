package predict

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
)

func needTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func mustGUID(t testing.TB, s string) guid.GUID {
	t.Helper()
	g, err := guid.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// layout writes the partition table of a small image to a file.
func layout(t testing.TB) (string, manifest.Disk) {
	t.Helper()
	id, partitions, err := disk.AB("amd64", disk.Sizes{ESP: 64 << 20, Slot: 8 << 20, Verity: 1 << 20}, [32]byte{1, 2, 3, 31: 9})
	if err != nil {
		t.Fatal(err)
	}
	l, err := disk.Plan(id, partitions)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(l.Size); err != nil {
		t.Fatal(err)
	}
	if err := l.WriteTable(f); err != nil {
		t.Fatal(err)
	}
	return f.Name(), manifest.Disk{Size: l.Size, ChunkSize: disk.ChunkSize, Partitions: l.Partitions}
}

// onDisk returns what firmware measures of a disk.
func onDisk(t *testing.T, file string, entries int) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	event := append(bytes.Clone(b[512:512+92]), byte(entries), 0, 0, 0, 0, 0, 0, 0)
	return append(event, b[1024:1024+128*entries]...)
}

// sgdisk does to the image what the installer and the first boot do.
func TestTheGPTEventIsThatOfTheInstalledDisk(t *testing.T) {
	sgdisk := needTool(t, "sgdisk")
	file, image := layout(t)
	const size = 256<<20 + 512 // odd, as real disks are
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	on := Installed{Disk: mustGUID(t, "11223344-5566-4788-99aa-bbccddeeff00"), Size: size}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(sgdisk, append(args, file)...).CombinedOutput(); err != nil {
			t.Fatalf("sgdisk %q: %v\n%s", args, err, out)
		}
	}
	run("-e", "-U", on.Disk.String())
	got, err := GPTEvent(image, on)
	if err != nil {
		t.Fatal(err)
	}
	if want := onDisk(t, file, 5); !bytes.Equal(got, want) {
		t.Errorf("before the first boot: got\n%x, want\n%x", got, want)
	}

	on.State = mustGUID(t, "01234567-89ab-4cde-8f01-23456789abcd")
	run("-n", "6:0:0", "-t", "6:8300", "-u", "6:"+on.State.String(), "-c", "6:state")
	// The agent lets the partition end at a MiB boundary, sgdisk at the last sector.
	last := uint64(size/512-34) / 2048 * 2048
	run("-d", "6")
	run("-n", fmt.Sprintf("6:0:%d", last-1), "-t", "6:8300", "-u", "6:"+on.State.String(), "-c", "6:state")
	if got, err = GPTEvent(image, on); err != nil {
		t.Fatal(err)
	}
	if want := onDisk(t, file, 6); !bytes.Equal(got, want) {
		t.Errorf("after the first boot: got\n%x, want\n%x", got, want)
	}
}

func TestTheGPTEventIsRefusedFor(t *testing.T) {
	_, image := layout(t)
	id := guid.GUID{1}
	for name, c := range map[string]struct {
		image manifest.Disk
		on    Installed
		want  string
	}{
		"a disk smaller than the image": {image, Installed{Disk: id, Size: image.Size - 512}, "at least the image's"},
		"a disk of half a sector":       {image, Installed{Disk: id, Size: image.Size + 100}, "multiple of 512"},
		"a disk without a GUID":         {image, Installed{Size: image.Size}, "GUID is zero"},
		"a state without room":          {image, Installed{Disk: id, Size: image.Size, State: id}, "no room"},
		"a partition of a bad type": {manifest.Disk{Size: image.Size, Partitions: []manifest.Partition{{Number: 1, Type: "esp", GUID: id.String(), Sectors: 1}}},
			Installed{Disk: id, Size: image.Size}, "partition 1: guid"},
		"two partitions of one number": {manifest.Disk{Size: image.Size, Partitions: append(image.Partitions[:1:1], image.Partitions[0])},
			Installed{Disk: id, Size: image.Size}, "partition number 1"},
		"a partition number beyond the table": {manifest.Disk{Size: image.Size, Partitions: []manifest.Partition{{Number: 129}}},
			Installed{Disk: id, Size: image.Size}, "partition number 129"},
		"a label too long": {manifest.Disk{Size: image.Size, Partitions: []manifest.Partition{{Number: 1, Type: id.String(), GUID: id.String(), Sectors: 1, Label: strings.Repeat("x", 37)}}},
			Installed{Disk: id, Size: image.Size}, "36 UTF-16"},
	} {
		if _, err := GPTEvent(c.image, c.on); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, c.want)
		}
	}
}
