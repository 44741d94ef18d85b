package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/kmod"
	"github.com/sealift/sealift/profiles"
)

// maxFiles is RLIMIT_NOFILE of every process on the node.
const maxFiles = 1048576

// mounts are what a container runtime and a kubelet expect, in order. /proc,
// /sys, /dev and /run came along from the initramfs, /var is the state.
func mounts() []boot.Mount {
	const noExec = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	return []boot.Mount{
		{Source: "devpts", Target: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "gid=5,mode=620,ptmxmode=666"},
		{Source: "tmpfs", Target: "/dev/shm", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV},
		{Source: "mqueue", Target: "/dev/mqueue", Type: "mqueue", Flags: noExec},
		{Source: "tmpfs", Target: "/tmp", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV},
		{Source: "cgroup2", Target: cgroupRoot, Type: "cgroup2", Flags: noExec, Data: "nsdelegate"},
		{Source: "bpf", Target: "/sys/fs/bpf", Type: "bpf", Flags: noExec, Data: "mode=700", Optional: true},
		{Source: "securityfs", Target: "/sys/kernel/security", Type: "securityfs", Flags: noExec, Optional: true},
		// Without shared propagation a volume with mountPropagation
		// Bidirectional fails for good, so it comes before containerd.
		{Source: "none", Target: "/", Flags: unix.MS_SHARED | unix.MS_REC},
	}
}

// links are what programs expect in /dev, and where /var must not keep what
// is of one boot.
func links() map[string]string {
	return map[string]string{
		"/dev/fd":     "/proc/self/fd",
		"/dev/stdin":  "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2",
		"/var/run":    "/run",
		"/var/lock":   "/run/lock",
	}
}

// directories are made in /var and /run beside those of the distro.
func directories() []string {
	return []string{"/run/lock", "/var/lib", "/var/log", "/var/cache", "/var/tmp", stateDir}
}

// prepareSystem makes the root file system one in which services can run.
func prepareSystem(h *Handover, c *profiles.NodeConfig) error {
	if err := boot.MountAll(mounts()); err != nil {
		return err
	}
	for _, dir := range append(directories(), c.Dirs...) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range c.Volatile {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := (boot.Mount{Source: "tmpfs", Target: dir, Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=0755"}).Do(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/var/tmp", "/tmp", "/dev/shm"} {
		if err := os.Chmod(dir, 0o1777); err != nil {
			return err
		}
	}
	for name, target := range links() {
		if err := link(name, target); err != nil {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	if c.ImagesDir != "" {
		if err := showImages(c.ImagesDir); err != nil {
			return err
		}
	}
	if err := enableControllers(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sysctls)) {
		if err := boot.WriteSysctl(name, c.Sysctls[name]); err != nil {
			return err
		}
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: maxFiles, Max: maxFiles}); err != nil {
		return fmt.Errorf("raise the limit of open files to %d: %w", maxFiles, err)
	}
	if err := checkName(h.NodeName); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(h.NodeName)); err != nil {
		return fmt.Errorf("set the host name to %s: %w", h.NodeName, err)
	}
	// /etc/hostname and /etc/machine-id of an image link to these.
	if err := os.WriteFile("/run/hostname", []byte(h.NodeName+"\n"), 0o444); err != nil {
		return err
	}
	return os.WriteFile("/run/machine-id", []byte(machineID(h.DiskGUID)+"\n"), 0o444)
}

// showImages lets the archives of the image appear where a distro looks for
// them. They stay in the read-only root file system, below an overlay that is
// empty at every start: the distro finds plain files in a directory that it may
// write to and change the mode of, and no archive takes space on the disk twice.
func showImages(dir string) error {
	const scratch = "/run/sealift/images"
	if _, err := os.Stat(profiles.ImagesDir); errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(dir, 0o755)
	}
	for _, d := range []string{dir, scratch + "/upper", scratch + "/work"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return boot.Mount{
		Source: "overlay", Target: dir, Type: "overlay", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
		Data: "lowerdir=" + profiles.ImagesDir + ",upperdir=" + scratch + "/upper,workdir=" + scratch + "/work",
	}.Do()
}

// link makes a symbolic link, or leaves the one that is there.
func link(name, target string) error {
	err := os.Symlink(target, name)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if got, err := os.Readlink(name); err == nil && got == target {
		return nil
	}
	return fmt.Errorf("link %s to %s: something else is there", name, target)
}

func loadModules() error {
	f, err := os.Open(profiles.RootModulesPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the modules: %w", err)
	}
	defer f.Close()
	paths, err := kmod.ReadList(f)
	if err != nil {
		return err
	}
	return kmod.Load(paths)
}

// machineID derives machine-id(5) from the install: 128 bits with the version
// and variant of a random UUID, the same on every boot.
func machineID(diskGUID string) string {
	d := sha256.Sum256([]byte("sealift machine-id v1 " + diskGUID))
	id := d[:16]
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return hex.EncodeToString(id)
}

// checkName refuses a node name that Kubernetes would refuse: it must be a DNS
// subdomain (RFC 1123) that also fits the kernel's host name.
func checkName(name string) error {
	if name == "" || len(name) > 63 {
		return fmt.Errorf("node name %q: got %d characters, want 1 to 63", name, len(name))
	}
	for part := range strings.SplitSeq(name, ".") {
		if part == "" || strings.HasPrefix(part, "-") || strings.HasSuffix(part, "-") {
			return fmt.Errorf("node name %q: want lower-case letters, digits, and dots or dashes between them", name)
		}
		for _, r := range part {
			if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-') {
				return fmt.Errorf("node name %q: want lower-case letters, digits, and dots or dashes between them", name)
			}
		}
	}
	return nil
}

// stateDir holds what the agent itself keeps on the state partition.
const stateDir = "/var/lib/sealift"

// markerName names the file that says that an archive was imported. dm-verity
// vouches for the archive's content under its path, so the root hash and the
// path stand for its digest, and nothing has to be read again on each boot.
func markerName(rootHash, archive string) string {
	d := sha256.Sum256([]byte("sealift image v1\x00" + rootHash + "\x00" + archive))
	return filepath.Join(stateDir, "images", hex.EncodeToString(d[:]))
}
