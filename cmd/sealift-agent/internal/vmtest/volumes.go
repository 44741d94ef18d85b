//go:build vmtest

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/dm"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/luks2"
)

const (
	statePart = "/dev/vda6"
	stateName = "state"
)

// volumes is what the checks of LUKS2 share.
type volumes struct {
	made *luks2.Volume
}

// diskKey is the key that the host's cryptsetup tries afterwards too.
func diskKey() attest.Secret { return bytes.Repeat(attest.Secret{0x0a}, luks2.KeySize) }

func (m *machine) prepareVolume() (err error) {
	f, err := os.OpenFile(statePart, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := luks2.Open(f, m.state.Size(), diskKey()); !errors.Is(err, luks2.ErrNoVolume) {
		return fmt.Errorf("before: got %v, want ErrNoVolume", err)
	}
	v, err := luks2.Prepare(f, m.state.Size(), diskKey(), luks2.Options{Label: "state"})
	if err != nil {
		return err
	}
	node, err := v.Activate(stateName, statePart)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dm.Remove(stateName)) }()
	if out, err := exec.Command("/sbin/mke2fs", "-q", "-t", "ext4", "-L", "state", node).CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	if err := withMount(node, func() error { return os.WriteFile("/mnt/file", []byte("kept"), 0o644) }); err != nil {
		return err
	}
	if _, err := luks2.Open(f, m.state.Size(), diskKey()); !errors.Is(err, luks2.ErrNoVolume) {
		return fmt.Errorf("before Commit: got %v, want ErrNoVolume", err)
	}
	m.made = v
	return v.Commit(f)
}

func withMount(node string, f func() error) error {
	if err := unix.Mount(node, "/mnt", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", node, err)
	}
	return errors.Join(f(), unix.Unmount("/mnt", 0))
}

func (m *machine) open() (*luks2.Volume, error) {
	f, err := os.Open(statePart)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return luks2.Open(f, m.state.Size(), diskKey())
}

func (m *machine) openVolume() (err error) {
	v, err := m.open()
	if err != nil {
		return err
	}
	if !bytes.Equal(v.Key, m.made.Key) {
		return errors.New("another volume key")
	}
	node, err := v.Activate(stateName, statePart)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dm.Remove(stateName)) }()
	if _, err := v.Activate(stateName, statePart); !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("a second activation: got %v, want EBUSY", err)
	}
	return withMount(node, func() error {
		if got := read("/mnt/file"); got != "kept" {
			return fmt.Errorf("the file holds %q", got)
		}
		return nil
	})
}

func (m *machine) keyHidden() (err error) {
	v, err := m.open()
	if err != nil {
		return err
	}
	if _, err := v.Activate(stateName, statePart); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dm.Remove(stateName)) }()
	// The kernel collects dead keys later; the second letter of their flags
	// says that they are revoked.
	for _, line := range strings.Split(read("/proc/keys"), "\n") {
		f := strings.Fields(line)
		if strings.Contains(line, "sealift:") && (len(f) < 2 || len(f[1]) < 2 || f[1][1] != 'R') {
			return fmt.Errorf("the key is alive: %s", line)
		}
	}
	return nil
}

// activateOften shows that the key is found whatever threads Go uses.
func (m *machine) activateOften() error {
	v, err := m.open()
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	var busy sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) {
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					read("/proc/self/stat")
				}
			}
		})
	}
	defer busy.Wait()
	defer close(stop)
	for i := range 30 {
		if _, err := v.Activate(stateName, statePart); err != nil {
			return fmt.Errorf("activation %d: %w", i, err)
		}
		if err := dm.Remove(stateName); err != nil {
			return fmt.Errorf("activation %d: %w", i, err)
		}
	}
	return nil
}
