// Package boot is what the agent does as PID 1 of an initramfs before it has
// a task, and after it: the first mounts (MountAPI), the kernel's command line
// (ParseCmdline), what firmware left for the operating system to read
// (ReadEventLog, ReadSMBIOS), the step into the real root (SwitchRoot), and
// the end (Reboot, PowerOff).
package boot

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Mount is one mount(2).
type Mount struct {
	Source string
	Target string
	Type   string
	Flags  uintptr
	Data   string
	// Optional mounts may fail: the machine lacks the feature.
	Optional bool
}

// noExec are the flags of a file system that holds no programs.
const noExec = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV

// APIMounts are the kernel's own file systems that everything else needs, in
// the order in which they are mounted. They move along into the real root.
func APIMounts() []Mount {
	return []Mount{
		{Source: "proc", Target: "/proc", Type: "proc", Flags: noExec},
		{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: noExec},
		{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs", Flags: unix.MS_NOSUID, Data: "mode=0755"},
		{Source: "securityfs", Target: "/sys/kernel/security", Type: "securityfs", Flags: noExec, Optional: true},
		{Source: "tmpfs", Target: "/run", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=0755"},
	}
}

// EFIVars is the mount of the firmware's variables. It needs the efivarfs
// module.
func EFIVars() Mount {
	return Mount{Source: "efivarfs", Target: "/sys/firmware/efi/efivars", Type: "efivarfs", Flags: noExec}
}

// Do makes the mount point and mounts. A mount that is there already is left
// alone.
func (m Mount) Do() error {
	err := os.MkdirAll(m.Target, 0o755)
	if err == nil || m.Type != "" && errors.Is(err, unix.EROFS) {
		err = unix.Mount(m.Source, m.Target, m.Type, m.Flags, m.Data)
	}
	if err == nil || errors.Is(err, unix.EBUSY) || m.Optional {
		return nil
	}
	return fmt.Errorf("mount %s on %s: %w", m.Source, m.Target, err)
}

// MountAll mounts in order and stops at the first error.
func MountAll(mounts []Mount) error {
	for _, m := range mounts {
		if err := m.Do(); err != nil {
			return err
		}
	}
	return nil
}

// InInitramfs reports whether the root directory is the kernel's initramfs.
func InInitramfs() bool {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return false
	}
	return int64(st.Type) == unix.RAMFS_MAGIC || int64(st.Type) == unix.TMPFS_MAGIC
}

// UseConsole makes the console device the standard input, output and error,
// so that a crash of the agent leaves its trace there. The kernel gives PID 1
// these files only if its initramfs had a console node.
func UseConsole(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("use %s as file %d: %w", device, fd, err)
		}
	}
	return nil
}

// EarliestNow returns a time before which this boot cannot be: the newer of
// the modification time of the named file of the image, and of the time from
// which the certificate authorities in ca (PEM), which the image names, are
// valid. Both are measured with the image.
func EarliestNow(name string, ca []byte) (time.Time, error) {
	st, err := os.Stat(name)
	if err != nil {
		return time.Time{}, fmt.Errorf("read the image's time: %w", err)
	}
	earliest := st.ModTime()
	for block, rest := pem.Decode(ca); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return time.Time{}, fmt.Errorf("read the time of the certificate authority: %w", err)
		}
		if c.NotBefore.After(earliest) {
			earliest = c.NotBefore
		}
	}
	return earliest, nil
}

// RaiseClock sets the clock to a time if it stands before that, which tells of
// a battery that died: certificates would otherwise all be not valid yet. It
// reports whether it changed the clock.
func RaiseClock(earliest time.Time) (bool, error) {
	if !time.Now().Before(earliest) {
		return false, nil
	}
	ts := unix.NsecToTimespec(earliest.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return false, fmt.Errorf("set the clock to %s: %w", earliest.UTC().Format(time.RFC3339), err)
	}
	return true, nil
}

// WriteSysctl sets a kernel parameter, named with dots as sysctl(8) does. A
// slash inside a component stays as it is.
func WriteSysctl(name, value string) error {
	p := []byte(name)
	for i, c := range p {
		if c == '.' {
			p[i] = '/'
		}
	}
	file := filepath.Join("/proc/sys", string(p))
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", name, value, err)
	}
	return nil
}
