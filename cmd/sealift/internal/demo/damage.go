package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/sealift/sealift/cmd/sealift/internal/vm"
	"github.com/sealift/sealift/image/manifest"
)

var (
	sawPanic = regexp.MustCompile(`Kernel panic|^sealift: fatal: `)
	sawNode  = regexp.MustCompile(`^sealift: \[.*\] (node|containerd|kubelet|joined)\b`)
)

// block is the unit of dm-verity, bytes.
const block = 4096

// salt is the place of a byte of the salt in the superblock of a hash tree,
// which is where bytes are changed in each block: nobody reads the UUID there.
const salt = 100

// damage changes single bytes of the read-only root on copies of the disk. The
// UKI is as it was, so the box proves itself; what it must not do is run.
func (d *Demo) damage(ctx context.Context) (string, error) {
	m, err := d.manifest()
	if err != nil {
		return "", err
	}
	at := map[string]int64{}
	for _, p := range m.Disk.Partitions {
		at[p.Role] = int64(p.FirstLBA) * 512
	}
	root, tree := at[manifest.RoleRootA], at[manifest.RoleRootVerityA]
	programs, err := d.firstBlocks(root, m.Root.Size)
	if err != nil {
		return "", err
	}
	var seen []string
	for _, c := range []struct {
		what   string
		blocks []int64
	}{
		{"the first block of the file system", []int64{root}},
		{"the first block of each program", programs},
		{"the superblock of the hash tree", []int64{tree}},
		{"the top of the hash tree", []int64{tree + block}},
	} {
		line, err := d.bootDamaged(ctx, c.what, c.blocks)
		if err != nil {
			return "", fmt.Errorf("%s: %w", c.what, err)
		}
		seen = append(seen, c.what+": "+line)
	}
	return strings.Join(seen, "; "), nil
}

// firstBlocks returns the places of the first blocks of ELF files.
func (d *Demo) firstBlocks(root, size int64) ([]int64, error) {
	f, err := os.Open(d.box.DiskFile())
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	r := io.NewSectionReader(f, root, size)
	var all []int64
	b := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(b)) {
		n, err := r.ReadAt(b, off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		for i := 0; i < n; i += block {
			if bytes.HasPrefix(b[i:n], []byte("\x7fELF")) {
				all = append(all, root+off+int64(i))
			}
		}
	}
	if len(all) == 0 {
		return nil, errors.New("the root file system has no programs")
	}
	return all, nil
}

// bootDamaged changes a byte in each of the blocks of a copy of the disk, and
// returns the line with which the boot ends.
func (d *Demo) bootDamaged(ctx context.Context, what string, blocks []int64) (_ string, err error) {
	disk := d.path("fleet", "damaged.raw")
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", d.box.DiskFile(), disk).CombinedOutput(); err != nil {
		return "", fmt.Errorf("copy the disk: %w: %s", err, out)
	}
	defer func() { err = errors.Join(err, os.Remove(disk)) }()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close() // a write that was lost would show in the boot
	for _, at := range blocks {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at+salt); err != nil {
			return "", err
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, at+salt); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the boot did not end"))
	defer cancel()
	run, err := d.powerOn(ctx, d.box, d.store, "till1", vm.Power{Label: "damaged", Disk: disk})
	if err != nil {
		return "", err
	}
	defer run.Kill()
	line, _, err := run.WaitFor(ctx, sawPanic)
	if err != nil {
		return "", err
	}
	if ran := run.Lines(sawNode); len(ran) > 0 {
		return "", fmt.Errorf("with a changed byte in %s the node runs: %s", what, ran[0])
	}
	return line, nil
}
