//go:build vmtest

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/efi"
)

func (m *machine) setupMode() error {
	if err := unix.Mount("efivarfs", efi.Dir, "efivarfs", 0, ""); err != nil {
		return fmt.Errorf("mount efivarfs: %w", err)
	}
	setup, err := efi.Vars{}.SetupMode()
	if err != nil {
		return err
	}
	secure, err := efi.Vars{}.SecureBoot()
	if err != nil {
		return err
	}
	if !setup || secure {
		return fmt.Errorf("setup mode is %v and Secure Boot %v, want true and false", setup, secure)
	}
	return nil
}

func keys() (efi.Keys, error) {
	var k efi.Keys
	for name, p := range map[string]*[]byte{"PK": &k.PK, "KEK": &k.KEK, "db": &k.DB} {
		b, err := os.ReadFile("/keys/" + name + ".auth")
		if err != nil {
			return k, err
		}
		*p = b
	}
	return k, nil
}

// failedEnrolment leaves what the kernel leaves of a write that the firmware
// refused: an empty file that cannot be changed.
func (m *machine) failedEnrolment() error {
	k, err := keys()
	if err != nil {
		return err
	}
	// In setup mode OVMF checks the signature of PK only.
	k.PK = bytes.Clone(k.PK)
	k.PK[len(k.PK)-1] ^= 0xff
	if err := (efi.Vars{}).Enrol(k); err == nil {
		return errors.New("the firmware took a damaged payload")
	} else {
		fmt.Printf("vmtest: damaged payload: %v\n", err)
	}
	left, err := filepath.Glob(efi.Dir + "/PK-*")
	if err != nil || len(left) != 1 {
		return fmt.Errorf("left are %q, %w, want the empty file", left, err)
	}
	st, err := os.Stat(left[0])
	if err != nil || st.Size() != 0 {
		return fmt.Errorf("%s: %+v, %w", left[0], st, err)
	}
	return nil
}

func (m *machine) enrol() error {
	k, err := keys()
	if err != nil {
		return err
	}
	return efi.Vars{}.Enrol(k)
}

func (m *machine) enrolAgain() error {
	k, err := keys()
	if err != nil {
		return err
	}
	if err := (efi.Vars{}).Enrol(k); err == nil || !strings.Contains(err.Error(), "not in setup mode") {
		return fmt.Errorf("got %v", err)
	}
	return nil
}

func (m *machine) bootEntry() error {
	esp, ok := m.data.Table.ByName("esp")
	if !ok {
		return errors.New("no esp")
	}
	stale := esp
	stale.GUID[0] ^= 1
	e := efi.BootEntry{Description: "Sealift", Partition: stale, File: `\EFI\BOOT\BOOTX64.EFI`}
	first, err := efi.Vars{}.BootFirst(e)
	if err != nil {
		return err
	}
	// A copy of ours at another number, as an older installer could leave it.
	entry := fmt.Sprintf("%s/Boot%04X-8be4df61-93ca-11d2-aa0d-00e098032b8c", efi.Dir, first)
	b, err := os.ReadFile(entry)
	if err != nil {
		return err
	}
	extra := efi.Dir + "/Boot00F7-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	if err := os.WriteFile(extra, b, 0o644); err != nil {
		return err
	}
	order := efi.Dir + "/BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	before, err := os.ReadFile(order)
	if err != nil {
		return err
	}
	if err := os.WriteFile(order, append(before, 0xf7, 0x00), 0o644); err != nil {
		return err
	}
	e.Partition = esp
	for range 2 {
		n, err := efi.Vars{}.BootFirst(e)
		if err != nil {
			return err
		}
		if n != first {
			return fmt.Errorf("got Boot%04X, want Boot%04X again", n, first)
		}
	}
	after, err := os.ReadFile(order)
	if err != nil {
		return err
	}
	if !bytes.Equal(after, before) {
		return fmt.Errorf("BootOrder is %x, want %x", after, before)
	}
	if _, err := os.Stat(extra); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the other entry is still there: %v", err)
	}
	fmt.Printf("vmtest: Boot%04X, BootOrder %x\n", first, after)
	return nil
}
