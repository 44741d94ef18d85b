package rescue

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/console"
)

// activeConsoles names the devices of the kernel's console, separated by
// spaces (Documentation/ABI/testing/sysfs-tty). /dev/console itself is the last
// of them only, so that a keyboard beside a serial console would not be read.
const activeConsoles = "/sys/class/tty/console/active"

// terminal is a device with a Printer on it.
type terminal struct {
	*console.Printer
	f *os.File
}

func (t *terminal) Input() io.Reader { return t.f }

// OpenTerminals opens the devices of the kernel's console. A machine without
// any has no terminal.
func OpenTerminals() []Terminal {
	b, err := os.ReadFile(activeConsoles)
	if err != nil {
		b = nil
	}
	return openTerminals("/dev", string(b))
}

func openTerminals(dir, active string) []Terminal {
	open := func(name string) Terminal {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil
		}
		return &terminal{console.New(f, console.Uptime), f}
	}
	var all []Terminal
	for _, name := range strings.Fields(active) {
		if strings.Contains(name, "/") {
			continue
		}
		if t := open(name); t != nil {
			all = append(all, t)
		}
	}
	if len(all) == 0 {
		if t := open("console"); t != nil {
			all = append(all, t)
		}
	}
	return all
}
