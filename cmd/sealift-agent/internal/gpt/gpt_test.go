package gpt

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
)

const (
	imageSize = 8 << 20
	diskSize  = 32<<20 + 512 // odd, as real disks are
)

func sgdisk(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("sgdisk")
	if err != nil {
		path = "/usr/sbin/sgdisk"
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("REQUIRE_TOOLS") != "" {
				t.Fatal("sgdisk is not installed")
			}
			t.Skip("sgdisk is not installed")
		}
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("sgdisk %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// image makes a disk image with two partitions by sgdisk.
func image(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(imageSize); err != nil {
		t.Fatal(err)
	}
	sgdisk(t, "-n", "1:2048:+1M", "-t", "1:ef00", "-c", "1:esp",
		"-n", "2:0:+2M", "-t", "2:8300", "-c", "2:root-ä", "-A", "2:set:60", f.Name())
	return f
}

func newGUID(t testing.TB) guid.GUID {
	t.Helper()
	g, err := guid.New(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestReadGivesWhatSgdiskWrote(t *testing.T) {
	f := image(t)
	table, err := Read(f, imageSize)
	if err != nil {
		t.Fatal(err)
	}
	if table.Damaged != nil || len(table.Partitions) != 2 {
		t.Fatalf("got %+v", table)
	}
	p := table.Partitions[1]
	if p.Number != 2 || p.Name != "root-ä" || p.First != 4096 || p.Last != 8191 || p.Attributes != 1<<60 || p.Type != LinuxFilesystem() {
		t.Errorf("partition 2 is %+v", p)
	}
	info := strings.ToLower(sgdisk(t, "-i", "2", f.Name()))
	if !strings.Contains(info, p.GUID.String()) {
		t.Errorf("our GUID %s is not sgdisk's:\n%s", p.GUID, info)
	}
	if byName, ok := table.ByName("root-ä"); !ok || byName.Number != 2 {
		t.Errorf("ByName gives %+v, %v", byName, ok)
	}
}

func TestAGrownTableSatisfiesSgdisk(t *testing.T) {
	f := image(t)
	if err := f.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	table, err := Read(f, diskSize)
	if err != nil {
		t.Fatal(err)
	}
	table.Disk = newGUID(t)
	if err := table.Grow(diskSize); err != nil {
		t.Fatal(err)
	}
	state, err := table.Add(Partition{Type: LinuxFilesystem(), GUID: newGUID(t), Name: "state"}, 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	if state.Number != 3 || state.First != 8192 || state.Size() != 27<<20 {
		t.Errorf("state is %+v of %d bytes", state, state.Size())
	}
	if err := Write(f, diskSize, table); err != nil {
		t.Fatal(err)
	}
	if out := sgdisk(t, "--verify", f.Name()); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk --verify:\n%s", out)
	}
	out := strings.ToLower(sgdisk(t, "-p", f.Name()))
	for _, want := range []string{table.Disk.String(), "esp", "root-", "state"} {
		if !strings.Contains(out, want) {
			t.Errorf("sgdisk -p does not show %q:\n%s", want, out)
		}
	}
	again, err := Read(f, diskSize)
	if err != nil {
		t.Fatal(err)
	}
	if again.Damaged != nil || fmt.Sprint(again.Partitions) != fmt.Sprint(table.Partitions) || again.Disk != table.Disk {
		t.Errorf("read again: %+v, want %+v", again, table)
	}
}

func TestEitherCopyIsEnough(t *testing.T) {
	for name, at := range map[string]int64{
		"primary header":  512 + 60,
		"primary entries": 1024 + 40,
		"backup header":   imageSize - 512 + 60,
		"backup entries":  imageSize - 33*512 + 40,
	} {
		t.Run(name, func(t *testing.T) {
			f := image(t)
			before, err := Read(f, imageSize)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{0xa5}, at); err != nil {
				t.Fatal(err)
			}
			table, err := Read(f, imageSize)
			if err != nil {
				t.Fatal(err)
			}
			if table.Damaged == nil || fmt.Sprint(table.Partitions) != fmt.Sprint(before.Partitions) {
				t.Errorf("got %+v", table)
			}
			if err := Write(f, imageSize, table); err != nil {
				t.Fatal(err)
			}
			if table, err = Read(f, imageSize); err != nil || table.Damaged != nil {
				t.Errorf("after Write: %v, %v", table, err)
			}
			sgdisk(t, "--verify", f.Name())
			if _, err := f.WriteAt([]byte{0xa5}, 512+60); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{0xa5}, imageSize-512+60); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(f, imageSize); err == nil || errors.Is(err, ErrNone) {
				t.Errorf("both damaged: got %v", err)
			}
		})
	}
	if _, err := Read(bytes.NewReader(make([]byte, imageSize)), imageSize); !errors.Is(err, ErrNone) {
		t.Errorf("blank disk: got %v, want ErrNone", err)
	}
}

// buffer is a Device in memory whose writes fail from the nth on.
type buffer struct {
	b     []byte
	after int // bytes that are still written
}

func (d *buffer) ReadAt(p []byte, off int64) (int, error) { return copy(p, d.b[off:]), nil }
func (d *buffer) Sync() error                             { return nil }
func (d *buffer) WriteAt(p []byte, off int64) (int, error) {
	n := min(len(p), d.after)
	d.after -= n
	copy(d.b[off:], p[:n])
	if n < len(p) {
		return n, errors.New("power cut")
	}
	return n, nil
}

func TestAPowerCutWhileGrowingLeavesATable(t *testing.T) {
	const grown = imageSize + 2<<20
	f := image(t)
	start := make([]byte, grown)
	if _, err := f.ReadAt(start[:imageSize], 0); err != nil {
		t.Fatal(err)
	}
	for after := 0; after <= 2*33*512+512+512; after += 768 {
		dev := &buffer{b: bytes.Clone(start), after: after}
		table, err := Read(dev, grown)
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Grow(grown); err != nil {
			t.Fatal(err)
		}
		if _, err := table.Add(Partition{Type: LinuxFilesystem(), GUID: newGUID(t), Name: "state"}, 1<<20); err != nil {
			t.Fatal(err)
		}
		werr := Write(dev, grown, table)
		again, err := Read(dev, grown)
		if err != nil {
			t.Fatalf("cut after %d bytes: %v", after, err)
		}
		if n := len(again.Partitions); n != 3 && (n != 2 || werr == nil) {
			t.Fatalf("cut after %d bytes: %d partitions", after, n)
		}
	}
}

func TestAPowerCutWhileMendingThePrimaryLeavesATable(t *testing.T) {
	f := image(t)
	start := make([]byte, imageSize)
	if _, err := f.ReadAt(start, 0); err != nil {
		t.Fatal(err)
	}
	clear(start[SectorSize : 2*SectorSize])
	for after := 0; after <= 2*33*512+512+512; after += 256 {
		dev := &buffer{b: bytes.Clone(start), after: after}
		table, err := Read(dev, imageSize)
		if err != nil {
			t.Fatal(err)
		}
		before := fmt.Sprint(table.Partitions)
		for i := range table.Partitions {
			table.Partitions[i].Name = "changed"
		}
		werr := Write(dev, imageSize, table)
		again, err := Read(dev, imageSize)
		if err != nil {
			t.Fatalf("cut after %d bytes: %v", after, err)
		}
		if got := fmt.Sprint(again.Partitions); got != fmt.Sprint(table.Partitions) && (got != before || werr == nil) {
			t.Fatalf("cut after %d bytes: %v, damaged: %v", after, again.Partitions, again.Damaged)
		}
	}
}

func TestAddRefuses(t *testing.T) {
	full := Table{Disk: newGUID(t), FirstUsable: 34, LastUsable: 4095, entries: 1}
	if _, err := full.Add(Partition{Type: LinuxFilesystem(), GUID: newGUID(t)}, 2<<20); err == nil {
		t.Error("too little space was enough")
	}
	p, err := full.Add(Partition{Type: LinuxFilesystem(), GUID: newGUID(t)}, 1<<20)
	if err != nil || p.First != 2048 || p.Last != 4095 {
		t.Fatalf("got %+v, %v", p, err)
	}
	if _, err := full.Add(Partition{Type: LinuxFilesystem(), GUID: newGUID(t)}, 0); err == nil {
		t.Error("a partition behind the last entry was accepted")
	}
	roomy := Table{Disk: newGUID(t), FirstUsable: 34, LastUsable: 1 << 20, entries: 128}
	for name, p := range map[string]Partition{
		"no type":     {GUID: newGUID(t)},
		"no GUID":     {Type: LinuxFilesystem()},
		"a long name": {Type: LinuxFilesystem(), GUID: newGUID(t), Name: strings.Repeat("x", 37)},
	} {
		if _, err := roomy.Add(p, 0); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if err := roomy.Grow(1 << 20); err == nil {
		t.Error("a smaller disk was accepted")
	}
}

func TestReadRefusesTablesThatDoNotHoldTogether(t *testing.T) {
	whole := make([]byte, imageSize)
	if _, err := image(t).ReadAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	entry := func(b []byte, n int) []byte { return b[1024+128*(n-1):][:128] }
	for name, change := range map[string]func(b []byte){
		"overlap":               func(b []byte) { binary.LittleEndian.PutUint64(entry(b, 2)[32:], 4095) },
		"the same GUID twice":   func(b []byte) { copy(entry(b, 2)[16:32], entry(b, 1)[16:32]) },
		"a zero GUID":           func(b []byte) { clear(entry(b, 2)[16:32]) },
		"end before start":      func(b []byte) { binary.LittleEndian.PutUint64(entry(b, 2)[40:], 4000) },
		"end behind the disk":   func(b []byte) { binary.LittleEndian.PutUint64(entry(b, 2)[40:], 1<<40) },
		"start in the table":    func(b []byte) { binary.LittleEndian.PutUint64(entry(b, 1)[32:], 3) },
		"larger entries":        func(b []byte) { binary.LittleEndian.PutUint32(b[512+84:], 256) },
		"very many entries":     func(b []byte) { binary.LittleEndian.PutUint32(b[512+80:], 1<<31) },
		"no entries":            func(b []byte) { binary.LittleEndian.PutUint32(b[512+80:], 0) },
		"another revision":      func(b []byte) { binary.LittleEndian.PutUint32(b[512+8:], 0x20000) },
		"another header size":   func(b []byte) { binary.LittleEndian.PutUint32(b[512+12:], 512) },
		"another place":         func(b []byte) { binary.LittleEndian.PutUint64(b[512+24:], 2) },
		"entries in partitions": func(b []byte) { binary.LittleEndian.PutUint64(b[512+72:], 2048) },
		"entries far away":      func(b []byte) { binary.LittleEndian.PutUint64(b[512+72:], 1<<63) },
		"usable to the end":     func(b []byte) { binary.LittleEndian.PutUint64(b[512+48:], imageSize/512-1) },
		"no disk GUID":          func(b []byte) { clear(b[512+56 : 512+72]) },
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(whole)
			clear(b[imageSize-512:]) // the backup would be used
			change(b)
			seal(b)
			if table, err := Read(bytes.NewReader(b), imageSize); err == nil {
				t.Errorf("accepted: %+v", table)
			}
		})
	}
}

// seal makes the primary's checksums right.
func seal(b []byte) {
	if len(b) < 1024+128*128 {
		return
	}
	h := b[512:1024]
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(b[1024:][:128*128]))
	binary.LittleEndian.PutUint32(h[16:], headerCRC(h))
}

func FuzzRead(f *testing.F) {
	const size = 1 << 20
	t := Table{Disk: guid.GUID{1}, FirstUsable: 34, LastUsable: 2000, entries: 128}
	for i := range byte(3) {
		t.Partitions = append(t.Partitions, Partition{Number: int(i) + 1, Type: LinuxFilesystem(), GUID: guid.GUID{i + 1}, First: 100 * uint64(i+1), Last: 100*uint64(i+1) + 99, Name: "p"})
	}
	primary, _, err := t.encode(size/512 - 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(make([]byte, 512), primary...))
	f.Add([]byte("EFI PART"))
	f.Fuzz(func(t *testing.T, head []byte) {
		b := make([]byte, size)
		copy(b, head)
		seal(b)
		table, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if err := table.check(); err != nil {
			t.Errorf("accepted: %v", err)
		}
		for _, p := range table.Partitions {
			if p.Offset() < 0 || p.Size() <= 0 || p.Offset()+p.Size() > int64(len(b)) {
				t.Errorf("partition %d is outside the disk: %+v", p.Number, p)
			}
		}
	})
}
