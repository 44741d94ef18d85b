package blockdev

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
)

// device describes one entry of a made-up /sys/block.
type device struct {
	name, bus string            // bus is the path below /sys/devices; empty: a virtual device
	attrs     map[string]string // over the defaults
	image     []byte            // Optional; the content of the node
}

// system makes a /sys and a /dev with these devices.
func system(t *testing.T, devices ...device) System {
	t.Helper()
	root := t.TempDir()
	s := System{Sys: filepath.Join(root, "sys"), Dev: filepath.Join(root, "dev")}
	mkdir := func(dir string) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mkdir(filepath.Join(s.Sys, "block"))
	mkdir(s.Dev)
	for _, d := range devices {
		bus := d.bus
		if bus == "" {
			bus = "virtual"
		}
		dir := filepath.Join(s.Sys, "devices", bus, d.name)
		mkdir(filepath.Join(dir, "queue"))
		if d.bus != "" {
			mkdir(filepath.Join(dir, "device"))
		}
		attrs := map[string]string{"size": "65536", "removable": "0", "ro": "0", "queue/logical_block_size": "512"}
		if d.image != nil {
			attrs["size"] = strconv.Itoa(len(d.image) / 512)
			if err := os.WriteFile(filepath.Join(s.Dev, d.name), d.image, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for k, v := range d.attrs {
			attrs[k] = v
		}
		for k, v := range attrs {
			if err := os.WriteFile(filepath.Join(dir, k), []byte(v+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(dir, filepath.Join(s.Sys, "block", d.name)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestDisksAreThoseWithHardwareAndMedia(t *testing.T) {
	s := system(t,
		device{name: "vdb", bus: "pci0/virtio1", attrs: map[string]string{"size": "2048", "serial": "S1"}},
		device{name: "nvme0n1", bus: "pci0/nvme", attrs: map[string]string{"device/model": "  Fast SSD ", "device/serial": "N1", "queue/logical_block_size": "4096"}},
		device{name: "nvme0c0n1", bus: "pci0/nvme", attrs: map[string]string{"hidden": "1"}},
		device{name: "sda", bus: "pci0/usb1/1-1"},
		device{name: "sdb", bus: "pci0/ata1", attrs: map[string]string{"removable": "1"}},
		device{name: "sdc", bus: "pci0/ata2", attrs: map[string]string{"ro": "1"}},
		device{name: "sdd", bus: "pci0/ata3", attrs: map[string]string{"size": "0"}},
		device{name: "sr0", bus: "pci0/ata4"},
		device{name: "mmcblk0", bus: "soc/mmc"},
		device{name: "mmcblk0boot0", bus: "soc/mmc"},
		device{name: "loop0"}, device{name: "dm-0"}, device{name: "ram0"},
	)
	disks, err := s.Disks()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	byName := make(map[string]Disk)
	for _, d := range disks {
		names = append(names, d.Name)
		byName[d.Name] = d
	}
	if got, want := strings.Join(names, " "), "mmcblk0 nvme0n1 sda sdb sdc vdb"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if d := byName["nvme0n1"]; d.Model != "Fast SSD" || d.Serial != "N1" || d.SectorSize != 4096 || d.Size != 32<<20 {
		t.Errorf("nvme0n1 is %+v", d)
	}
	if d := byName["vdb"]; d.Serial != "S1" || d.Size != 1<<20 || d.Removable || d.ReadOnly || d.Node != filepath.Join(s.Dev, "vdb") {
		t.Errorf("vdb is %+v", d)
	}
	if !byName["sda"].Removable || !byName["sdb"].Removable || !byName["sdc"].ReadOnly {
		t.Errorf("sda %+v, sdb %+v, sdc %+v", byName["sda"], byName["sdb"], byName["sdc"])
	}
}

func TestChoose(t *testing.T) {
	disk := func(name string, gib int64, k Kind) Candidate {
		return Candidate{Disk{Node: "/dev/" + name, Size: gib << 30, SectorSize: 512}, Content{k, "an ext4 file system"}}
	}
	removable, readOnly, native := disk("sdx", 8, Blank), disk("sdy", 8, Blank), disk("sdz", 8, Blank)
	removable.Removable, readOnly.ReadOnly, native.SectorSize = true, true, 4096
	all := Rule{MinSize: 4 << 30}
	for _, tt := range []struct {
		name  string
		disks []Candidate
		rule  Rule
		want  string // the node, or part of the error if it has spaces
	}{
		{"the only blank disk", []Candidate{disk("sda", 8, Blank)}, all, "/dev/sda"},
		{"our own disk", []Candidate{disk("sda", 8, Ours)}, all, "/dev/sda"},
		{"the blank one beside foreign data", []Candidate{disk("sda", 8, Foreign), disk("sdb", 8, Blank)}, all, "/dev/sdb"},
		{"not foreign data", []Candidate{disk("sda", 8, Foreign)}, all, "holds an ext4 file system"},
		{"foreign data if told to wipe", []Candidate{disk("sda", 8, Foreign)}, Rule{Wipe: true}, "/dev/sda"},
		{"not a small disk", []Candidate{disk("sda", 3, Blank)}, all, "at least 4096 MiB"},
		{"never removable media", []Candidate{removable}, Rule{Wipe: true}, "is eligible: /dev/sdx (8192 MiB): removable"},
		{"never a read-only disk", []Candidate{readOnly}, Rule{Wipe: true}, ": read-only"},
		{"never 4096-byte blocks", []Candidate{native}, Rule{Wipe: true}, "have 4096 bytes"},
		{"no guess between two", []Candidate{disk("sda", 8, Blank), disk("sdb", 9, Ours)}, all, "several are eligible: /dev/sda"},
		{"the smallest if told to", []Candidate{disk("sda", 9, Blank), disk("sdb", 8, Blank), disk("sdc", 10, Blank)}, Rule{Smallest: true}, "/dev/sdb"},
		{"no guess between two smallest", []Candidate{disk("sda", 8, Blank), disk("sdb", 9, Blank), disk("sdc", 8, Blank)}, Rule{Smallest: true}, "several are eligible: /dev/sda (8192 MiB), /dev/sdc (8192 MiB)"},
		{"nothing to choose from", nil, all, "there is none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Choose(tt.disks, tt.rule)
			switch {
			case err == nil && d.Node != tt.want:
				t.Errorf("got %s, want %s", d.Node, tt.want)
			case err != nil && (!strings.Contains(tt.want, " ") || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// table returns a disk image with partitions of these names.
func table(t *testing.T, names ...string) ([]byte, []gpt.Partition) {
	t.Helper()
	b := make([]byte, 16<<20)
	f := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(f, b, 0o644); err != nil {
		t.Fatal(err)
	}
	dev, err := os.OpenFile(f, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	random := func() guid.GUID {
		g, err := guid.New(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	var parts []gpt.Partition
	for i, name := range names {
		first := uint64(2048 * (i + 1))
		parts = append(parts, gpt.Partition{Number: i + 1, Type: gpt.LinuxFilesystem(), GUID: random(), First: first, Last: first + 2047, Name: name})
	}
	tab, err := gpt.New(random(), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	tab.Partitions = parts
	if err := gpt.Write(dev, int64(len(b)), tab); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b, parts
}

func TestInspect(t *testing.T) {
	image := func(at int, data string) []byte {
		b := make([]byte, 4<<20)
		copy(b[at:], data)
		return b
	}
	our, _ := table(t, "esp", "root-a", "root-verity-a", "root-b", "root-verity-b", "state")
	foreign, _ := table(t, "esp", "root-a")
	damaged := bytes.Clone(our)
	damaged[600] ^= 1
	damaged[len(damaged)-500] ^= 1
	for name, tt := range map[string]struct {
		b    []byte
		kind Kind
		what string
	}{
		"zeros":                    {make([]byte, 4<<20), Blank, "nothing"},
		"erased flash":             {bytes.Repeat([]byte{0xff}, 4<<20), Blank, "nothing"},
		"a tiny blank disk":        {make([]byte, 4096), Blank, "nothing"},
		"zeros, then ones":         {append(make([]byte, 2<<20), bytes.Repeat([]byte{0xff}, 2<<20)...), Foreign, "unknown data"},
		"one bit at the start":     {image(1<<20-1, "\x01"), Foreign, "unknown data"},
		"one bit at the end":       {image(3<<20, "\x01"), Foreign, "unknown data"},
		"ext4":                     {image(1080, "\x53\xef"), Foreign, "an ext2, ext3 or ext4 file system"},
		"LUKS":                     {image(0, "LUKS\xba\xbe"), Foreign, "a LUKS volume"},
		"RAID at the end":          {image(4<<20-8192, "\xfc\x4e\x2b\xa9"), Foreign, "a RAID member"},
		"MBR":                      {image(510, "\x55\xaa"), Foreign, "an MBR partition table or boot sector"},
		"ours":                     {our, Ours, "a Sealift installation"},
		"a GPT that is not ours":   {foreign, Foreign, "a partition table with 2 partitions"},
		"ours with damaged tables": {damaged, Foreign, "a damaged partition table"},
	} {
		c, err := Inspect(bytes.NewReader(tt.b), int64(len(tt.b)))
		if err != nil || c.Kind != tt.kind || c.What != tt.what {
			t.Errorf("%s: got %+v, %v, want %v, %q", name, c, err, tt.kind, tt.what)
		}
	}
	if _, err := Inspect(bytes.NewReader(nil), 4<<20); err == nil {
		t.Error("a disk that cannot be read passed")
	}
}

func TestPartitionNodesFollowTheKernel(t *testing.T) {
	for _, tt := range [][2]string{{"/dev/vda", "/dev/vda3"}, {"/dev/nvme0n1", "/dev/nvme0n1p3"}, {"/dev/mmcblk0", "/dev/mmcblk0p3"}} {
		if got := PartitionNode(tt[0], 3); got != tt[1] {
			t.Errorf("got %s, want %s", got, tt[1])
		}
	}
}

func TestFindPartition(t *testing.T) {
	one, parts := table(t, "esp", "root-a")
	two, _ := table(t, "esp", "root-a")
	s := system(t,
		device{name: "nvme0n1", bus: "pci0/nvme", image: two},
		device{name: "sda", bus: "pci0/ata0", image: make([]byte, 1<<20)},
		device{name: "vda", bus: "pci0/virtio0", image: one},
	)
	node := filepath.Join(s.Dev, "vda2")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() {
		time.Sleep(3 * pollInterval)
		os.WriteFile(node, nil, 0o644)
	}()
	p, err := s.FindPartition(ctx, parts[1].GUID)
	if err != nil {
		t.Fatal(err)
	}
	if p.Node != node || p.Disk.Name != "vda" || p.Name != "root-a" || len(p.Table.Partitions) != 2 {
		t.Errorf("got %+v", p)
	}
}

func TestFindPartitionRefusesACopiedDisk(t *testing.T) {
	image, parts := table(t, "esp", "root-a")
	s := system(t, device{name: "vda", bus: "pci0/virtio0", image: image}, device{name: "vdb", bus: "pci0/virtio1", image: image})
	if p, err := s.FindPartition(t.Context(), parts[0].GUID); err == nil || !strings.Contains(err.Error(), "vda") || !strings.Contains(err.Error(), "vdb") {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Wait(ctx, filepath.Join(t.TempDir(), "none")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	s := system(t)
	if _, err := s.FindPartition(ctx, guid.GUID{1}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
