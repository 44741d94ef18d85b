//go:build vmtest

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/blockdev"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/dm"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/kmod"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/verity"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/wipe"
)

// disks is what the checks of disks and verity share.
type disks struct {
	data, hash blockdev.Partition
	rootHash   [32]byte
	state      gpt.Partition
}

func (m *machine) loadModules() error {
	f, err := os.Open("/modules.list")
	if err != nil {
		return err
	}
	defer f.Close()
	paths, err := kmod.ReadList(f)
	if err != nil {
		return err
	}
	for range 2 {
		if err := kmod.Load(paths); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/text.ko", []byte("text"), 0o644); err != nil {
		return err
	}
	if err := kmod.Load([]string{"/text.ko"}); !errors.Is(err, unix.ENOEXEC) {
		return fmt.Errorf("a text file as a module: got %v, want ENOEXEC", err)
	}
	return nil
}

func (m *machine) chooseDisk() error {
	cs, err := blockdev.System{}.Candidates()
	if err != nil {
		return err
	}
	for _, c := range cs {
		fmt.Printf("vmtest: %+v\n", c)
	}
	d, err := blockdev.Choose(cs, blockdev.Rule{MinSize: 64 << 20})
	if err != nil {
		return err
	}
	if d.Node != "/dev/vda" {
		return fmt.Errorf("chose %s, want the one with our table, /dev/vda", d)
	}
	root := ""
	for _, p := range strings.Fields(read("/proc/cmdline")) {
		root = strings.TrimPrefix(p, "vmtest.roothash=")
		if root != p {
			break
		}
	}
	b, err := hex.DecodeString(root)
	if err != nil || len(b) != 32 {
		return fmt.Errorf("root hash %q: %w", root, err)
	}
	m.rootHash = [32]byte(b)
	dataGUID, hashGUID := verity.Partitions(m.rootHash)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if m.data, err = (blockdev.System{}).FindPartition(ctx, dataGUID); err != nil {
		return err
	}
	m.hash, err = (blockdev.System{}).FindPartition(ctx, hashGUID)
	return err
}

func (m *machine) config(c dm.Corruption) verity.Config {
	return verity.Config{Name: "root", Data: m.data.Node, Hash: m.hash.Node, RootHash: m.rootHash, Corruption: c}
}

func (m *machine) verityWrongHash() error {
	c := m.config(dm.Panic) // which would show
	c.RootHash[0] ^= 1
	if _, err := verity.Open(c); !errors.Is(err, verity.ErrRootHash) {
		return fmt.Errorf("got %v, want ErrRootHash", err)
	}
	if _, err := dm.Status("root"); !errors.Is(err, dm.ErrNotFound) {
		return fmt.Errorf("a device is left: %v", err)
	}
	return nil
}

func (m *machine) verityOpen() error {
	node, err := verity.Open(m.config(dm.Panic))
	if err != nil {
		return err
	}
	if err := unix.Mount(node, "/mnt", "erofs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount %s: %w", node, err)
	}
	b, err := os.ReadFile("/mnt/large")
	if err != nil {
		return err
	}
	if len(b) != 4<<20 {
		return fmt.Errorf("got %d bytes, want 4 MiB", len(b))
	}
	st, err := dm.Status("root")
	if err != nil || len(st) != 1 || st[0].Type != "verity" || st[0].Params != "V" {
		return fmt.Errorf("status is %+v, %w", st, err)
	}
	if err := dm.Remove("root"); !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("removal while mounted: got %v, want EBUSY", err)
	}
	if f, err := os.OpenFile(node, os.O_RDWR, 0); err == nil {
		_, err = f.WriteAt(make([]byte, 4096), 0)
		if err == nil {
			err = f.Sync()
		}
		f.Close()
		if err == nil {
			return errors.New("the device can be written to")
		}
	}
	if err := unix.Unmount("/mnt", 0); err != nil {
		return err
	}
	return dm.Remove("root")
}

// flipData flips a bit in the middle of the root partition and drops what is
// cached of it.
func (m *machine) flipData() error {
	f, err := os.OpenFile(m.data.Node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	const at = 2<<20 + 77
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

func (m *machine) verityCorrupt() (err error) {
	if err := m.flipData(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.flipData()) }()
	node, err := verity.Open(m.config(dm.EIO))
	if err != nil {
		return err
	}
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	_, rerr := f.ReadAt(make([]byte, 4<<20), 0)
	f.Close()
	if !errors.Is(rerr, unix.EIO) {
		return fmt.Errorf("read gave %v, want EIO", rerr)
	}
	st, err := dm.Status("root")
	if err != nil || len(st) != 1 || st[0].Params != "C" {
		return fmt.Errorf("status is %+v, %w, want C", st, err)
	}
	return dm.Remove("root")
}

// panicOnCorruption does not come back.
func (m *machine) panicOnCorruption() error {
	if err := m.flipData(); err != nil {
		return err
	}
	node, err := verity.Open(m.config(dm.Panic))
	if err != nil {
		return err
	}
	fmt.Println("vmtest: reading the corrupted block")
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	_, err = f.ReadAt(make([]byte, 4<<20), 0)
	return fmt.Errorf("the machine goes on, read gave %v", err)
}

func (m *machine) growTable() error {
	disk, err := os.OpenFile(m.data.Disk.Node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	t, err := gpt.Read(disk, m.data.Disk.Size)
	if err != nil {
		return err
	}
	if t.Disk, err = guid.New(rand.Reader); err != nil {
		return err
	}
	if err := t.Grow(m.data.Disk.Size); err != nil {
		return err
	}
	if err := gpt.Write(disk, m.data.Disk.Size, t); err != nil {
		return err
	}
	if err := gpt.Reread(disk); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return blockdev.Wait(ctx, m.hash.Node)
}

func (m *machine) addPartition() (err error) {
	if _, err := verity.Open(m.config(dm.Panic)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dm.Remove("root")) }()
	disk, err := os.OpenFile(m.data.Disk.Node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	t, err := gpt.Read(disk, m.data.Disk.Size)
	if err != nil {
		return err
	}
	id, err := guid.New(rand.Reader)
	if err != nil {
		return err
	}
	if m.state, err = t.Add(gpt.Partition{Type: gpt.LinuxFilesystem(), GUID: id, Name: "state"}, 64<<20); err != nil {
		return err
	}
	if err := gpt.Write(disk, m.data.Disk.Size, t); err != nil {
		return err
	}
	if err := gpt.Reread(disk); !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("reread of a disk in use: got %v, want EBUSY", err)
	}
	for range 2 { // the second time the kernel knows it
		if err := gpt.Announce(disk, m.state); err != nil {
			return err
		}
	}
	moved := m.state
	moved.First += 2048
	if err := gpt.Announce(disk, moved); !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("the same number in another place: got %v, want EBUSY", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p, err := blockdev.System{}.FindPartition(ctx, id)
	if err != nil {
		return err
	}
	if p.Node != "/dev/vda6" {
		return fmt.Errorf("the node is %s, want /dev/vda6", p.Node)
	}
	f, err := os.Open(p.Node)
	if err != nil {
		return err
	}
	defer f.Close()
	if size, err := f.Seek(0, 2); err != nil || size != p.Size() {
		return fmt.Errorf("the node has %d bytes, want %d (%w)", size, p.Size(), err)
	}
	return nil
}

func (m *machine) zeroRange() error {
	const disk, off, n = "/dev/vdb", 1 << 20, 8<<20 + 512
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := wipe.Range(f, off, n); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	b := make([]byte, 16<<20)
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	want := bytes.Repeat([]byte{0xa5}, len(b))
	clear(want[off : off+n])
	if !bytes.Equal(b, want) {
		return errors.New("the content is not as wanted")
	}
	return nil
}
