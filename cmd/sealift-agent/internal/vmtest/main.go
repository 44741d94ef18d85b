//go:build vmtest

// Command vmtest is the init of a virtual machine in which the agent's device
// libraries meet a real kernel, real firmware and a real disk. It is built
// and run by the test beside it:
//
//	VMTEST_KERNEL=linux-image-6.1.0-56-cloud-amd64.deb go test -tags vmtest ./cmd/sealift-agent/internal/vmtest
//
// Each check prints "check: <name>: ok" or why it failed on the console.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "vmtest: this is an init, for virtual machines only")
		os.Exit(2)
	}
	m := &machine{start: time.Now()}
	m.check("mounts", mounts)
	for _, c := range m.checks() {
		if m.check(c.name, c.run); m.failed > 0 {
			break // later checks stand on this one
		}
	}
	fmt.Printf("vmtest: %d failed\n", m.failed)
	unix.Sync()
	if strings.Contains(read("/proc/cmdline"), "vmtest.panic") {
		m.check("a corrupted block panics the kernel", m.panicOnCorruption)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// check is one claim about the libraries.
type check struct {
	name string
	run  func() error
}

// machine is what earlier checks leave for later ones.
type machine struct {
	start  time.Time
	failed int
	disks
	volumes
}

func (m *machine) check(name string, run func() error) {
	begin := time.Now()
	if err := run(); err != nil {
		m.failed++
		fmt.Printf("check: %s: FAILED: %v\n", name, err)
		return
	}
	fmt.Printf("check: %s: ok (%d ms)\n", name, time.Since(begin).Milliseconds())
}

func (m *machine) checks() []check {
	return []check{
		{"modules load, and load again", m.loadModules},
		{"disks are listed and one is chosen", m.chooseDisk},
		{"verity refuses another root hash", m.verityWrongHash},
		{"verity opens and mounts", m.verityOpen},
		{"verity tells a corrupted block", m.verityCorrupt},
		{"the table grows and is reread", m.growTable},
		{"a partition appears on a disk in use", m.addPartition},
		{"a prepared volume is used before it is found", m.prepareVolume},
		{"the volume opens and keeps its files", m.openVolume},
		{"the key stays out of table and keyring", m.keyHidden},
		{"thirty activations among busy threads", m.activateOften},
		{"a range of a disk is zeroed", m.zeroRange},
		{"efivarfs tells setup mode", m.setupMode},
		{"a failed write does not block the next", m.failedEnrolment},
		{"keys are enrolled", m.enrol},
		{"user mode refuses keys", m.enrolAgain},
		{"our boot entry comes first, once", m.bootEntry},
	}
}

func mounts() error {
	for _, mnt := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(mnt[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(mnt[0], mnt[1], mnt[0], 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", mnt[1], err)
		}
	}
	return os.MkdirAll("/mnt", 0o755)
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
