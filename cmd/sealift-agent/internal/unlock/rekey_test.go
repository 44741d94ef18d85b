package unlock

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/blockdev"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/luks2"
)

// halves is what the service keeps of a disk key that is being changed: both
// halves until it is told that the next one is in use.
type halves struct {
	present, next attest.Secret
}

func (h *halves) keys() Keys {
	return Keys{TPM: &fakeTPM{}, ServiceHalf: bytes.Clone(h.present), NextHalf: bytes.Clone(h.next)}
}

// confirm takes what the agent says of its state.
func (h *halves) confirm(o *Opened) {
	if o.Rekeyed {
		h.present, h.next = h.next, nil
	}
}

var errCut = errors.New("power cut")

// powered is a device that loses power at the call of that number, having done
// it or not.
type powered struct {
	luks2.Device
	at, calls int
	done      bool
}

func (p *powered) goes(do func() error) error {
	p.calls++
	switch {
	case p.calls < p.at:
		return do()
	case p.calls == p.at && p.done:
		return errors.Join(errCut, do())
	}
	return errCut
}

func (p *powered) WriteAt(b []byte, off int64) (n int, err error) {
	err = p.goes(func() error {
		n, err = p.Device.WriteAt(b, off)
		return err
	})
	return n, err
}

func (p *powered) Sync() error { return p.goes(p.Device.Sync) }

// memory is a device whose headers Inspect reads from a file.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (memory) Sync() error                                { return nil }

// boot looks at the disk anew, as every boot does.
func boot(t *testing.T, disk blockdev.Disk, table *gpt.Table, d luks2.Device, k Keys) (*Opened, error) {
	t.Helper()
	s, err := Inspect(disk, table)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Exists() || s.damaged != nil {
		t.Fatalf("the state is lost: %v", s.damaged)
	}
	return s.unlock(d, k)
}

// Wherever the power is cut and whichever confirmation is lost, the machine's
// next boot opens the disk, and the change comes to its end.
func TestAChangeOfTheDiskKeyThatIsCutOffAnywhereEnds(t *testing.T) {
	t.Parallel()
	disk, table, node := fakeDisk(t, Label)
	format(t, node, table.Disk.String(), half(1), half(2), goodToken())
	fresh, err := os.ReadFile(node)
	if err != nil {
		t.Fatal(err)
	}
	d := make(memory, len(fresh))
	boot := func(d luks2.Device, k Keys) (*Opened, error) {
		t.Helper()
		headers := make([]byte, 32<<10)
		if _, err := d.ReadAt(headers, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(node, headers, 0o600); err != nil {
			t.Fatal(err)
		}
		return boot(t, disk, table, d, k)
	}
	// A cut before or after what was asked, and then a boot that is heard or not.
	for at := 1; ; at++ {
		lost := at%2 == 0
		copy(d, fresh)
		service := &halves{present: half(2), next: half(3)}
		cut := &powered{Device: d, at: at, done: at/2%2 == 0}
		o, err := boot(cut, service.keys())
		if err != nil || cut.calls >= at == o.Rekeyed || cut.calls >= at != errors.Is(o.RekeyErr, errCut) {
			t.Fatalf("cut %d: %+v, %v", at, o, err)
		}
		volumeKey := o.Volume.Key
		whole := cut.calls < at
		// The boot that was cut tells nothing. The next does, if it is heard.
		o, err = boot(d, service.keys())
		if err != nil || !o.Rekeyed || !bytes.Equal(o.Volume.Key, volumeKey) {
			t.Fatalf("the boot after cut %d: %+v, %v", at, o, err)
		}
		if !lost {
			service.confirm(o)
		}
		o, err = boot(d, service.keys())
		if err != nil || o.Rekeyed != lost || !bytes.Equal(o.Volume.Key, volumeKey) {
			t.Fatalf("the second boot after cut %d: %+v, %v", at, o, err)
		}
		service.confirm(o)
		if !bytes.Equal(service.present, half(3)) || service.next != nil {
			t.Fatalf("after cut %d the service has not heard of the change", at)
		}
		if _, err := boot(d, Keys{TPM: &fakeTPM{}, ServiceHalf: half(2)}); !errors.Is(err, luks2.ErrWrongKey) {
			t.Fatalf("after cut %d the old key: %v", at, err)
		}
		// An agent that knows of no next key.
		if o, err := boot(d, service.keys()); err != nil || o.Rekeyed || o.RekeyErr != nil {
			t.Fatalf("after cut %d: %+v, %v", at, o, err)
		}
		if whole {
			if at < 8 {
				t.Errorf("only %d writes and syncs", at-1)
			}
			break
		}
	}
}

func TestAKeyThatIsNotToChangeChangesNothing(t *testing.T) {
	disk, table, node := fakeDisk(t, Label)
	format(t, node, table.Disk.String(), half(1), half(2), goodToken())
	before, err := os.ReadFile(node)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]Keys{
		"without a next half":        {TPM: &fakeTPM{}, ServiceHalf: half(2)},
		"recovered, under the first": {TPM: &fakeTPM{}, ServiceHalf: half(2), NextHalf: half(3), Either: true},
		"recovered, under the next":  {TPM: &fakeTPM{}, ServiceHalf: half(3), NextHalf: half(2), Either: true},
		"recovered with wrong ones":  {TPM: &fakeTPM{}, ServiceHalf: half(3), NextHalf: half(4), Either: true},
		"with two wrong halves":      {TPM: &fakeTPM{}, ServiceHalf: half(4), NextHalf: half(5)},
		"with a next half too short": {TPM: &fakeTPM{}, ServiceHalf: half(2), NextHalf: half(3)[:31]},
		"with another device half":   {TPM: &fakeTPM{other: true}, ServiceHalf: half(2), NextHalf: half(3)},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := os.OpenFile(node, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			o, err := boot(t, disk, table, f, k)
			if name == "without a next half" || k.Either && name != "recovered with wrong ones" {
				if err != nil || o.Rekeyed || o.RekeyErr != nil {
					t.Errorf("got %+v, %v", o, err)
				}
			} else if err == nil {
				t.Error("no error")
			}
			if after, err := os.ReadFile(node); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the partition changed, %v", err)
			}
		})
	}
}

// cryptsetup agrees on which of the two derived keys opens the volume.
func TestCryptsetupOpensWithTheNextDerivedKey(t *testing.T) {
	path, err := exec.LookPath("cryptsetup")
	if err != nil {
		path = "/usr/sbin/cryptsetup"
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("REQUIRE_TOOLS") != "" {
				t.Fatal("cryptsetup is not installed")
			}
			t.Skip("cryptsetup is not installed")
		}
	}
	disk, table, node := fakeDisk(t, Label)
	format(t, node, table.Disk.String(), half(1), half(2), goodToken())
	opens := func(service attest.Secret) bool {
		t.Helper()
		key, err := DiskKey(half(1), service, table.Disk.String())
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, key, 0o600); err != nil {
			t.Fatal(err)
		}
		return exec.Command(path, "open", "--test-passphrase", "--key-file", file, node).Run() == nil
	}
	if !opens(half(2)) || opens(half(3)) {
		t.Fatal("cryptsetup does not open it with the present key alone")
	}
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if o, err := boot(t, disk, table, f, Keys{TPM: &fakeTPM{}, ServiceHalf: half(2), NextHalf: half(3)}); err != nil || !o.Rekeyed {
		t.Fatalf("%+v, %v", o, err)
	}
	if opens(half(2)) || !opens(half(3)) {
		t.Error("cryptsetup does not open it with the next key alone")
	}
}
