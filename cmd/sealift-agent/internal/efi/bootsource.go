package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// BootedFromNetwork reports whether firmware loaded what runs from a network
// card: whether the device path of the boot option in BootCurrent (UEFI 2.10,
// 3.3) has a network node. Firmware and whoever set it may claim anything, so
// this may decide only where to look first.
func (v Vars) BootedFromNetwork() (bool, error) {
	b, err := v.read("BootCurrent", global)
	if err != nil {
		return false, err
	}
	if len(b) != 2 {
		return false, fmt.Errorf("EFI variable BootCurrent has %d bytes, want 2", len(b))
	}
	name := bootName(binary.LittleEndian.Uint16(b))
	option, err := v.read(name, global)
	if err != nil {
		return false, err
	}
	network, err := onNetwork(option)
	if err != nil {
		return false, fmt.Errorf("EFI variable %s: %w", name, err)
	}
	return network, nil
}

// Device path nodes (UEFI 2.10, 10.3).
const (
	nodeMessaging = 3
	nodeMAC       = 11 // 10.3.4.10
	nodeURI       = 24 // 10.3.4.23
	nodeEnd       = 0x7f
)

// onNetwork reports whether a load option's device path has a network node.
func onNetwork(option []byte) (bool, error) {
	if len(option) < 6 {
		return false, errors.New("load option: too short")
	}
	length := int(binary.LittleEndian.Uint16(option[4:]))
	b := option[6:]
	for {
		if len(b) < 2 {
			return false, errors.New("load option: the description has no end")
		}
		c := binary.LittleEndian.Uint16(b)
		b = b[2:]
		if c == 0 {
			break
		}
	}
	if length > len(b) {
		return false, fmt.Errorf("load option: the device path has %d bytes, it says %d", len(b), length)
	}
	for path := b[:length]; len(path) >= 4 && path[0] != nodeEnd; {
		n := int(binary.LittleEndian.Uint16(path[2:]))
		if n < 4 || n > len(path) {
			return false, fmt.Errorf("load option: a node of the device path has %d bytes of %d", n, len(path))
		}
		if path[0] == nodeMessaging && (path[1] == nodeMAC || path[1] == nodeURI) {
			return true, nil
		}
		path = path[n:]
	}
	return false, nil
}
