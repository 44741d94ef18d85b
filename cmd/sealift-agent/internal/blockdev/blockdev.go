// Package blockdev finds disks and partitions through sysfs and devtmpfs,
// without udev: Disks lists what is attached, Choose picks the disk to
// install on, and FindPartition maps a partition's GUID to its device node.
package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
)

// pollInterval is how often a wait looks again. Devices appear within
// milliseconds of their driver's load.
const pollInterval = 20 * time.Millisecond

// System is where to look.
type System struct {
	Sys string // Optional; /sys if empty
	Dev string // Optional; /dev if empty
}

// Disk is a whole disk. Everything but its size is what the disk claims.
type Disk struct {
	Name       string // in the kernel, e.g. nvme0n1
	Node       string // device node
	Size       int64  // bytes
	SectorSize int    // logical block size, bytes
	Model      string
	Serial     string
	Removable  bool // removable media, or attached by USB
	ReadOnly   bool
}

// String names the disk for a message.
func (d Disk) String() string {
	s := fmt.Sprintf("%s (%d MiB", d.Node, d.Size>>20)
	if d.Model != "" {
		s += ", " + d.Model
	}
	return s + ")"
}

func (s System) sys() string {
	if s.Sys == "" {
		return "/sys"
	}
	return s.Sys
}

func (s System) dev() string {
	if s.Dev == "" {
		return "/dev"
	}
	return s.Dev
}

// notDisk matches block devices with hardware behind them that hold no
// system: optical and floppy drives, and the boot and RPMB areas of eMMC.
var notDisk = regexp.MustCompile(`^(sr|fd|mmcblk[0-9]+(boot|rpmb|gp))`)

// optical matches optical drives.
var optical = regexp.MustCompile(`^sr[0-9]`)

// Disks returns the disks with hardware behind them and media in them, by
// ascending name. Loop, RAM, device-mapper and RAID devices are none.
func (s System) Disks() ([]Disk, error) {
	return s.list(func(name string) bool { return !notDisk.MatchString(name) })
}

// Media returns what an installation medium may be in: all disks, and optical
// drives, of which it says nothing about what is in them.
func (s System) Media() ([]Disk, error) {
	return s.list(func(name string) bool { return optical.MatchString(name) || !notDisk.MatchString(name) })
}

func (s System) list(wanted func(name string) bool) ([]Disk, error) {
	entries, err := os.ReadDir(filepath.Join(s.sys(), "block"))
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var disks []Disk
	for _, e := range entries {
		dir := filepath.Join(s.sys(), "block", e.Name())
		if _, err := os.Stat(filepath.Join(dir, "device")); err != nil || !wanted(e.Name()) {
			continue
		}
		d, err := s.disk(dir, e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // unplugged in between
		}
		if err != nil {
			return nil, fmt.Errorf("list disks: %s: %w", e.Name(), err)
		}
		if d.Size > 0 && attribute(dir, "hidden") != "1" {
			disks = append(disks, d)
		}
	}
	slices.SortFunc(disks, func(a, b Disk) int { return strings.Compare(a.Name, b.Name) })
	return disks, nil
}

func (s System) disk(dir, name string) (Disk, error) {
	sectors, err := number(dir, "size")
	if err != nil {
		return Disk{}, err
	}
	block, err := number(dir, "queue/logical_block_size")
	if err != nil {
		return Disk{}, err
	}
	if sectors < 0 || sectors > 1<<50 || block < 512 || block > 1<<20 {
		return Disk{}, fmt.Errorf("%d sectors, %d bytes per block", sectors, block)
	}
	target, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Disk{}, err
	}
	serial := attribute(dir, "serial") // virtio-blk
	if serial == "" {
		serial = attribute(dir, "device/serial") // NVMe, MMC
	}
	return Disk{
		Name:       name,
		Node:       filepath.Join(s.dev(), strings.ReplaceAll(name, "!", "/")),
		Size:       sectors * 512, // in this unit whatever the block size is
		SectorSize: int(block),
		Model:      attribute(dir, "device/model"),
		Serial:     serial,
		Removable:  attribute(dir, "removable") == "1" || strings.Contains(target, "/usb"),
		ReadOnly:   attribute(dir, "ro") != "0",
	}, nil
}

// attribute returns a sysfs attribute, or the empty string if there is none.
func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func number(dir, name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("attribute %s: %w", name, err)
	}
	return n, nil
}

// PartitionNode returns the node of a partition of a disk's node: the kernel
// puts a p before the number where the disk's name ends in a digit.
func PartitionNode(disk string, number int) string {
	if disk != "" && disk[len(disk)-1] >= '0' && disk[len(disk)-1] <= '9' {
		disk += "p"
	}
	return disk + strconv.Itoa(number)
}

// Wait waits until the node exists.
func Wait(ctx context.Context, node string) error {
	err := poll(ctx, func() (bool, error) {
		_, err := os.Stat(node)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", node, err)
	}
	return nil
}

// poll calls f until it says done, fails, or ctx ends.
func poll(ctx context.Context, f func() (done bool, err error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		done, err := f()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Partition is a partition on a disk.
type Partition struct {
	gpt.Partition
	Disk  Disk
	Table *gpt.Table // of the disk
	Node  string     // of the partition; the kernel has made it
}

// FindPartition waits until some disk has a partition with that unique GUID,
// and for its node. It refuses two disks that both have one.
func (s System) FindPartition(ctx context.Context, g guid.GUID) (Partition, error) {
	var found Partition
	err := poll(ctx, func() (bool, error) {
		disks, err := s.Disks()
		if err != nil {
			return false, err
		}
		n := 0
		for _, d := range disks {
			// A disk that cannot be read or has no table may be any disk of
			// the machine; it is not the one that is looked for.
			t, err := ReadTable(d)
			if err != nil {
				continue
			}
			if p, ok := t.ByGUID(g); ok {
				if n++; n > 1 {
					return false, fmt.Errorf("it is on %s and on %s", found.Disk, d)
				}
				found = Partition{Partition: p, Disk: d, Table: t, Node: PartitionNode(d.Node, p.Number)}
			}
		}
		return n == 1, nil
	})
	if err != nil {
		return Partition{}, fmt.Errorf("find partition %s: %w", g, err)
	}
	if err := Wait(ctx, found.Node); err != nil {
		return Partition{}, fmt.Errorf("find partition %s: %w", g, err)
	}
	return found, nil
}

// ReadTable reads the partition table of a disk.
func ReadTable(d Disk) (*gpt.Table, error) {
	if d.SectorSize != gpt.SectorSize {
		return nil, fmt.Errorf("%s: logical blocks have %d bytes, only %d are supported", d, d.SectorSize, gpt.SectorSize)
	}
	f, err := os.Open(d.Node)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := gpt.Read(f, d.Size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, err)
	}
	return t, nil
}
