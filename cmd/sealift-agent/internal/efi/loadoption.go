package efi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
)

// active is LOAD_OPTION_ACTIVE (UEFI 2.10, 3.1.3).
const active = 1

// BootEntry is a boot option that starts a file on a GPT partition.
type BootEntry struct {
	Description string        // shown in the firmware's menu; names the entries that are ours
	Partition   gpt.Partition // the ESP
	File        string        // with backslashes, e.g. \EFI\BOOT\BOOTX64.EFI
}

// encode returns the EFI_LOAD_OPTION (UEFI 2.10, 3.1.3): attributes, length of
// the device path, description, and a path of a hard drive node (10.3.5.1), a
// file node (10.3.5.4) and the end node.
func (e BootEntry) encode() ([]byte, error) {
	if len(e.File) < 2 || e.File[0] != '\\' || len(e.File) > 255 {
		return nil, fmt.Errorf("boot entry: %q is not a path with backslashes from the root", e.File)
	}
	if e.Description == "" || len(e.Description) > 64 || slices.Contains([]rune(e.Description+e.File), 0) {
		return nil, fmt.Errorf("boot entry: bad description %q", e.Description)
	}
	p := e.Partition
	if p.Number < 1 || p.GUID.IsZero() || p.Last < p.First {
		return nil, fmt.Errorf("boot entry: partition %d has no place or GUID", p.Number)
	}
	le := binary.LittleEndian
	path := []byte{4, 1, 42, 0}
	path = le.AppendUint32(path, uint32(p.Number))
	path = le.AppendUint64(path, p.First)
	path = le.AppendUint64(path, p.Last-p.First+1)
	path = append(path, p.GUID[:]...)
	path = append(path, 2, 2) // GPT, signature is a GUID
	file := appendUTF16(nil, e.File)
	path = append(path, 4, 4)
	path = le.AppendUint16(path, uint16(4+len(file)))
	path = append(path, file...)
	path = append(path, 0x7f, 0xff, 4, 0)

	b := le.AppendUint32(nil, active)
	b = le.AppendUint16(b, uint16(len(path)))
	b = appendUTF16(b, e.Description)
	return append(b, path...), nil
}

// description reads the description of a load option that anyone may have
// written. The rest of the option is not looked at.
func description(option []byte) (string, error) {
	if len(option) < 6 {
		return "", errors.New("load option: too short")
	}
	var u []uint16
	for b := option[6:]; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			return string(utf16.Decode(u)), nil
		}
		u = append(u, c)
	}
	return "", errors.New("load option: the description has no end")
}

// appendUTF16 appends s as UTF-16, little endian, with a NUL.
func appendUTF16(b []byte, s string) []byte {
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, 0, 0)
}
