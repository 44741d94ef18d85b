package boot

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// End is how a boot ends.
type End string

// The ways to end.
const (
	EndReboot   End = "reboot"
	EndPowerOff End = "poweroff"
	// EndHalt stops with the power on, so that the screen can be read.
	EndHalt End = "halt"
)

// ParseEnd reads one of the three words.
func ParseEnd(s string) (End, error) {
	switch e := End(s); e {
	case EndReboot, EndPowerOff, EndHalt:
		return e, nil
	}
	return "", fmt.Errorf("%q is not %s, %s or %s", s, EndReboot, EndPowerOff, EndHalt)
}

// Do writes what is cached and ends the boot. It returns only with an error.
func (e End) Do() error {
	unix.Sync()
	cmd := unix.LINUX_REBOOT_CMD_RESTART
	switch e {
	case EndPowerOff:
		cmd = unix.LINUX_REBOOT_CMD_POWER_OFF
	case EndHalt:
		cmd = unix.LINUX_REBOOT_CMD_HALT
	}
	if err := unix.Reboot(cmd); err != nil {
		return fmt.Errorf("%s: %w", e, err)
	}
	return nil
}

// CatchCtrlAltDel makes Ctrl-Alt-Del send SIGINT to PID 1 instead of
// resetting the machine at once.
func CatchCtrlAltDel() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		return fmt.Errorf("catch Ctrl-Alt-Del: %w", err)
	}
	return nil
}
