// Package dm makes and removes device-mapper devices by ioctl (Linux
// include/uapi/linux/dm-ioctl.h), without udev: a device is reached by its
// node /dev/dm-N, which devtmpfs makes, and no /dev/mapper link appears.
//
// Create takes any table; CreateCrypt is for dm-crypt, whose key goes through
// the kernel's keyring instead of the table.
package dm

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// control is the node that devtmpfs makes when dm-mod is loaded.
const control = "/dev/mapper/control"

// statusBuffer is the room for what one Status returns, in bytes.
const statusBuffer = 64 << 10

const (
	headerSize = int(unsafe.Sizeof(unix.DmIoctl{}))      // data_start
	specSize   = int(unsafe.Sizeof(unix.DmTargetSpec{})) // before each parameter string
)

// ErrNotFound is returned by Remove and Status for a device that does not exist.
var ErrNotFound = errors.New("no such device-mapper device")

// Create makes the device name with that table, resumes it, and returns its
// node. uuid is optional. If the table cannot be loaded, no device is left
// behind.
func Create(name, uuid string, table []Target, readOnly bool) (node string, err error) {
	data, err := encodeTable(table)
	if err != nil {
		return "", fmt.Errorf("create device %s: %w", name, err)
	}
	var flags uint32
	if readOnly {
		flags = unix.DM_READONLY_FLAG
	}
	h, _, err := call(unix.DM_DEV_CREATE, name, uuid, flags, 0, nil, 0)
	if err != nil {
		return "", fmt.Errorf("create device %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Remove(name))
		}
	}()
	if _, _, err := call(unix.DM_TABLE_LOAD, name, "", flags, uint32(len(table)), data, 0); err != nil {
		return "", fmt.Errorf("load table of device %s: %w", name, err)
	}
	// DM_DEV_SUSPEND without DM_SUSPEND_FLAG resumes: the table becomes live.
	if _, _, err := call(unix.DM_DEV_SUSPEND, name, "", flags, 0, nil, 0); err != nil {
		return "", fmt.Errorf("resume device %s: %w", name, err)
	}
	return "/dev/dm-" + strconv.FormatUint(uint64(unix.Minor(h.Dev)), 10), nil
}

// Remove removes the device name. It fails while the device is open.
func Remove(name string) error {
	if _, _, err := call(unix.DM_DEV_REMOVE, name, "", 0, 0, nil, 0); err != nil {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

// Status returns the status of each target of the device name. A verity
// target's Params start with V, or with C once a block was found corrupt.
func Status(name string) ([]Target, error) {
	h, data, err := call(unix.DM_TABLE_STATUS, name, "", 0, 0, nil, statusBuffer)
	if err != nil {
		return nil, fmt.Errorf("status of device %s: %w", name, err)
	}
	table, err := decodeTable(data, h.Target_count)
	if err != nil {
		return nil, fmt.Errorf("status of device %s: %w", name, err)
	}
	return table, nil
}

// call runs one ioctl with in behind the header and at least room bytes for
// the answer, which it returns.
func call(cmd uint, name, uuid string, flags, targets uint32, in []byte, room int) (unix.DmIoctl, []byte, error) {
	var h unix.DmIoctl
	if name == "" || len(name) >= len(h.Name) || strings.ContainsAny(name, "/\x00") {
		return h, nil, fmt.Errorf("%q is not a device name", name)
	}
	if len(uuid) >= len(h.Uuid) || strings.Contains(uuid, "\x00") {
		return h, nil, fmt.Errorf("%q is not a device uuid", uuid)
	}
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return h, nil, fmt.Errorf("open device-mapper (is dm-mod loaded?): %w", err)
	}
	defer f.Close()

	buf := make([]byte, headerSize+max(len(in), room))
	p := (*unix.DmIoctl)(unsafe.Pointer(&buf[0]))
	p.Version = [3]uint32{4, 0, 0}
	p.Data_size = uint32(len(buf))
	p.Data_start = uint32(headerSize)
	p.Target_count = targets
	p.Flags = flags
	copy(p.Name[:], name)
	copy(p.Uuid[:], uuid)
	copy(buf[headerSize:], in)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(cmd), uintptr(unsafe.Pointer(p))); e != 0 {
		if e == unix.ENXIO && (cmd == unix.DM_DEV_REMOVE || cmd == unix.DM_TABLE_STATUS) {
			return h, nil, ErrNotFound
		}
		return h, nil, e
	}
	h = *p
	if h.Flags&unix.DM_BUFFER_FULL_FLAG != 0 {
		return h, nil, fmt.Errorf("the answer is longer than %d bytes", room)
	}
	if h.Data_start < uint32(headerSize) || h.Data_start > h.Data_size || int(h.Data_size) > len(buf) {
		return h, nil, nil
	}
	return h, buf[h.Data_start:h.Data_size], nil
}
