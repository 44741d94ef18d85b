package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/dm"
)

// endFor says how a signal to PID 1 ends the machine: Ctrl-Alt-Del (SIGINT)
// starts it again, as everywhere; the rest switches it off.
func endFor(sig os.Signal) boot.End {
	if sig == unix.SIGINT {
		return boot.EndReboot
	}
	return boot.EndPowerOff
}

// podGrace is how long the processes of pods have between SIGTERM and SIGKILL
// when the machine is switched off.
const podGrace = 10 * time.Second

// endProcesses asks every process to end, waits, and kills what is left.
func (n *Node) endProcesses() {
	if !n.procs.Reap() {
		return
	}
	_ = unix.Kill(-1, unix.SIGTERM)
	for deadline := time.Now().Add(podGrace); n.procs.Reap(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = unix.Kill(-1, unix.SIGKILL)
			deadline = deadline.Add(podGrace)
		}
	}
}

// unmountAll takes away every mount but the kernel's own and the root, the
// last one first, so that the state's file system is clean, and closes the
// state's encrypted device. What does not unmount is made read-only.
func unmountAll() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	targets, err := parseMounts(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	var errs []error
	for _, t := range slices.Backward(targets) {
		if keepMounted(t) {
			continue
		}
		if err := unix.Unmount(t, 0); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", t, err))
			// A mount that is busy because of another one below it goes later
			// or is written out by this.
			_ = unix.Mount("", t, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	}
	unix.Sync()
	if err := dm.Remove("state"); err != nil && !errors.Is(err, dm.ErrNotFound) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func keepMounted(target string) bool {
	for _, keep := range []string{"/", "/dev", "/proc", "/sys", "/run"} {
		if target == keep || keep != "/" && keep != "/run" && strings.HasPrefix(target, keep+"/") {
			return true
		}
	}
	return false
}

// parseMounts returns the mount points of a mountinfo file (proc(5)) in its
// order.
func parseMounts(r io.Reader) ([]string, error) {
	var targets []string
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 5 {
			return nil, fmt.Errorf("list mounts: a line has %d fields, want at least 5", len(f))
		}
		targets = append(targets, unescape(f[4]))
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return targets, nil
}

// unescape undoes the kernel's octal escapes of blank, tab, newline and
// backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
