package unlock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/blockdev"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/verity"
	"github.com/sealift/sealift/image/manifest"
)

// rootType is the file system of every image's root.
const rootType = "erofs"

// mkfsPaths are where the program that makes the state's file system may be in
// the root, which depends on whether its base has /sbin merged into /usr.
func mkfsPaths() []string { return []string{"/usr/sbin/mke2fs", "/sbin/mke2fs"} }

// Root is the root file system of the booted image, mounted read-only at Dir
// through dm-verity.
type Root struct {
	Dir  string
	Part blockdev.Partition // with the disk and its table
}

// MountRoot finds the partitions that the root hash names, which are those of
// the booted image and no other, and mounts the root file system at dir. The
// kernel stops the machine if a block does not match its hash.
func MountRoot(ctx context.Context, rootHash manifest.SHA256, dir string) (*Root, error) {
	var sys blockdev.System
	dataGUID, hashGUID := verity.Partitions(rootHash)
	data, err := sys.FindPartition(ctx, dataGUID)
	if err != nil {
		return nil, fmt.Errorf("mount root: %w; the machine has %s", err, inventory(sys))
	}
	hash, ok := data.Table.ByGUID(hashGUID)
	if !ok {
		return nil, fmt.Errorf("mount root: %s has the root partition %s but not its hash tree %s", data.Disk, dataGUID, hashGUID)
	}
	hashNode := blockdev.PartitionNode(data.Disk.Node, hash.Number)
	if err := blockdev.Wait(ctx, hashNode); err != nil {
		return nil, fmt.Errorf("mount root: %w", err)
	}
	node, err := verity.Open(verity.Config{Name: "root", Data: data.Node, Hash: hashNode, RootHash: rootHash})
	if err != nil {
		return nil, fmt.Errorf("mount root: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("mount root: %w", err)
	}
	if err := unix.Mount(node, dir, rootType, unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return nil, fmt.Errorf("mount root: %s at %s: %w", node, dir, err)
	}
	return &Root{Dir: dir, Part: data}, nil
}

// inventory says which disks there are and what is wrong with them.
func inventory(sys blockdev.System) string {
	disks, err := sys.Disks()
	if err != nil {
		return err.Error()
	}
	if len(disks) == 0 {
		return "no disk, or none that a driver of the image knows"
	}
	var all []string
	for _, d := range disks {
		if t, err := blockdev.ReadTable(d); err != nil {
			all = append(all, err.Error())
		} else {
			all = append(all, fmt.Sprintf("%s with %d other partitions", d, len(t.Partitions)))
		}
	}
	return strings.Join(all, ", ")
}

// MakeFileSystem makes an ext4 file system on a device node, with the program
// of the root file system, which dm-verity vouches for.
func (r *Root) MakeFileSystem(ctx context.Context, node string) (err error) {
	dev := filepath.Join(r.Dir, "dev")
	if err := unix.Mount("/dev", dev, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("make the file system: bind /dev: %w", err)
	}
	defer func() {
		if uerr := unix.Unmount(dev, 0); uerr != nil {
			err = errors.Join(err, fmt.Errorf("make the file system: unbind /dev: %w", uerr))
		}
	}()
	mkfs, err := r.find(mkfsPaths())
	if err != nil {
		return fmt.Errorf("make the file system: %w", err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, mkfs,
		"-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", Label,
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", node)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: r.Dir}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make the file system: %s: %w: %s", mkfs, err, strings.TrimSpace(out.String()))
	}
	return nil
}

// find returns the first of the paths that is a file in the root.
func (r *Root) find(paths []string) (string, error) {
	for _, p := range paths {
		if st, err := os.Lstat(filepath.Join(r.Dir, p)); err == nil && !st.IsDir() {
			return p, nil
		}
	}
	return "", fmt.Errorf("none of %q is in the root file system", paths)
}

// MountState mounts the state's file system at a directory of the root. In the
// boot that made it, its inode tables are not written full of zeros yet: that
// is left to the next boot, which has fewer programs to read and to encrypt.
func (r *Root) MountState(node, dir string, fresh bool) error {
	at := filepath.Join(r.Dir, dir)
	options := ""
	if fresh {
		options = "noinit_itable"
	}
	if err := unix.Mount(node, at, "ext4", unix.MS_NOATIME, options); err != nil {
		return fmt.Errorf("mount state: %s at %s: %w", node, at, err)
	}
	return nil
}
