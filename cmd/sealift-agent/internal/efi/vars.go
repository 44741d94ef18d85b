// Package efi reads and writes UEFI variables through efivarfs: the Secure
// Boot state, the enrolment of PK, KEK and db from payloads that were signed
// elsewhere, and a boot entry for the installed disk at the head of BootOrder.
package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where efivarfs is mounted on a running system.
const Dir = "/sys/firmware/efi/efivars"

// Vendor GUIDs of variables (UEFI 2.10, 3.3 and 32.6).
const (
	global   = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // EFI_GLOBAL_VARIABLE: PK, KEK, Boot####
	security = "d719b2cb-3d3a-4596-a3bc-dad00e67656f" // EFI_IMAGE_SECURITY_DATABASE: db, dbx
)

// Variable attributes (UEFI 2.10, 8.2).
const (
	nonVolatile       = 0x01
	bootService       = 0x02
	runtime           = 0x04
	timeAuthenticated = 0x20
)

// maxVariable bounds what is read and written as one variable, in bytes.
const maxVariable = 64 << 10

// immutable is FS_IMMUTABLE_FL of FS_IOC_GETFLAGS (include/uapi/linux/fs.h).
const immutable = 0x10

// Vars is a directory of EFI variables.
type Vars struct {
	Dir string // Optional; package constant Dir if empty
}

func (v Vars) path(name, vendor string) string {
	dir := v.Dir
	if dir == "" {
		dir = Dir
	}
	return filepath.Join(dir, name+"-"+vendor)
}

// read returns the value of a variable without its attributes. The error is
// fs.ErrNotExist also for the empty file that a failed write leaves behind.
func (v Vars) read(name, vendor string) ([]byte, error) {
	f, err := os.Open(v.path(name, vendor))
	if err != nil {
		return nil, fmt.Errorf("read EFI variable %s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxVariable+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read EFI variable %s: %w", name, err)
	case len(b) > maxVariable:
		return nil, fmt.Errorf("read EFI variable %s: more than %d bytes", name, maxVariable)
	case len(b) < 4:
		return nil, fmt.Errorf("read EFI variable %s: %w", name, fs.ErrNotExist)
	}
	return b[4:], nil
}

// write sets a variable in one write(2), as efivarfs demands. The kernel makes
// files of most variables immutable, and leaves an empty immutable file behind
// when a write fails, so the flag is taken off before every try.
func (v Vars) write(name, vendor string, attributes uint32, value []byte) (err error) {
	if len(value) > maxVariable {
		return fmt.Errorf("write EFI variable %s: %d bytes, at most %d allowed", name, len(value), maxVariable)
	}
	path := v.path(name, vendor)
	if err := makeMutable(path); err != nil {
		return fmt.Errorf("write EFI variable %s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write EFI variable %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := binary.LittleEndian.AppendUint32(nil, attributes)
	if _, err := f.Write(append(b, value...)); err != nil {
		return fmt.Errorf("write EFI variable %s: %w", name, err)
	}
	return nil
}

// remove deletes a variable. One that does not exist is no error.
func (v Vars) remove(name, vendor string) error {
	path := v.path(name, vendor)
	if err := makeMutable(path); err != nil {
		return fmt.Errorf("delete EFI variable %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete EFI variable %s: %w", name, err)
	}
	return nil
}

// makeMutable takes the immutable flag off a file, if it exists and has one.
func makeMutable(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the file system has no such flags
	}
	if err != nil {
		return fmt.Errorf("get flags of %s: %w", path, err)
	}
	if flags&immutable == 0 {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable); err != nil {
		return fmt.Errorf("clear the immutable flag of %s: %w", path, err)
	}
	return nil
}

// names returns the names of the variables of that vendor.
func (v Vars) names(vendor string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(v.path("", vendor)))
	if err != nil {
		return nil, fmt.Errorf("list EFI variables: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), "-"+vendor); ok {
			names = append(names, name)
		}
	}
	return names, nil
}
