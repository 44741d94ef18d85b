package node

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Linux input events (include/uapi/linux/input-event-codes.h).
const (
	evKey    = 0x01
	keyPower = 116
	keyMax   = 0x2ff
)

// inputEventSize is sizeof(struct input_event) on 64-bit machines: two 64-bit
// times, then type, code (16 bits each) and value (32 bits).
const inputEventSize = 24

// watchPowerButton calls pressed once when a power button is pressed. It looks
// at the input devices that have one (Linux evdev); the modules button and
// evdev make them. A machine without them is only switched off by signal.
func watchPowerButton(ctx context.Context, dir string, pressed func()) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	events := make(chan struct{}, 1)
	known := map[string]bool{}
	for {
		names, err := filepath.Glob(filepath.Join(dir, "event*"))
		if err != nil {
			return
		}
		for _, name := range names {
			if known[name] {
				continue
			}
			known[name] = true
			f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				continue
			}
			if !hasPowerKey(f) {
				f.Close()
				continue
			}
			files = append(files, f)
			go readPowerKey(f, events)
		}
		select {
		case <-ctx.Done():
			return
		case <-events:
			pressed()
			return
		case <-time.After(5 * time.Second): // a keyboard may be plugged in
		}
	}
}

// hasPowerKey asks the device for its keys (EVIOCGBIT).
func hasPowerKey(f *os.File) bool {
	var bits [(keyMax + 8) / 8]byte
	// _IOC(_IOC_READ, 'E', 0x20+EV_KEY, len)
	const request = 2<<30 | uintptr(len(bits))<<16 | 'E'<<8 | (0x20 + evKey)
	// Not f.Fd(), which would make reads block also when the file is closed.
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(&bits)))
	})
	if err != nil || errno != 0 {
		return false
	}
	return bits[keyPower/8]&(1<<(keyPower%8)) != 0
}

// readPowerKey ends when the power key goes down or the file is closed.
func readPowerKey(f *os.File, events chan<- struct{}) {
	buf := make([]byte, 64*inputEventSize)
	for {
		n, err := f.Read(buf)
		if isPowerKey(buf[:max(n, 0)]) {
			select {
			case events <- struct{}{}:
			default:
			}
			return
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// isPowerKey reports whether the events hold the power key going down.
func isPowerKey(b []byte) bool {
	for ; len(b) >= inputEventSize; b = b[inputEventSize:] {
		typ, code := binary.NativeEndian.Uint16(b[16:]), binary.NativeEndian.Uint16(b[18:])
		if value := binary.NativeEndian.Uint32(b[20:]); typ == evKey && code == keyPower && value == 1 {
			return true
		}
	}
	return false
}
