package imagetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"

	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
)

// Layout of EDK II's variable store: a firmware volume header (UEFI PI 1.8,
// Volume 3, 3.2.1), the header of the store, then the variables.
const (
	volumeGUID    = "fff12b8d-7696-4c8b-a985-2747075b4f50" // EFI_SYSTEM_NV_DATA_FV_GUID
	storeGUID     = "aaf32c78-947b-439a-a180-2e144ec37792" // gEfiAuthenticatedVariableGuid
	volumeHeader  = 56                                     // up to the block map
	storeHeader   = 28
	variableStart = 0x55aa
	variableAdded = 0x3f     // State of a valid variable
	variableFixed = 60       // header of an authenticated variable
	maxStore      = 64 << 20 // that of QEMU's arm64 board
)

// Attributes of variables that are not authenticated (UEFI 2.10, 8.2).
const bootAttributes = 0x7 // non-volatile, boot service access, runtime access

// variable is one to be put into a store.
type variable struct {
	vendor     guid.GUID
	name       string
	attributes uint32
	data       []byte
}

// addVariables returns a copy of NVRAM with more variables in it. Firmware
// takes them for its own, as it does not check signatures of what is stored.
func addVariables(nvram []byte, add []variable) ([]byte, error) {
	out, err := writeVariables(nvram, add)
	if err != nil {
		return nil, fmt.Errorf("put variables into the firmware's NVRAM: %w", err)
	}
	return out, nil
}

func writeVariables(nvram []byte, add []variable) ([]byte, error) {
	nvram, err := formatted(nvram)
	if err != nil {
		return nil, err
	}
	start, end, err := variableStore(nvram)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	at := start
	for at+variableFixed <= end && le.Uint16(nvram[at:]) == variableStart {
		size := uint64(le.Uint32(nvram[at+36:])) + uint64(le.Uint32(nvram[at+40:]))
		if size > uint64(end-at-variableFixed) {
			return nil, fmt.Errorf("a variable of %d bytes at %#x ends outside of the store", size, at)
		}
		at += (variableFixed + int(size) + 3) &^ 3
	}
	out := bytes.Clone(nvram)
	for _, v := range add {
		name := appendUTF16(nil, v.name)
		size := variableFixed + len(name) + len(v.data)
		if at > end || size > end-at {
			return nil, fmt.Errorf("no room for variable %s of %d bytes", v.name, len(v.data))
		}
		if rest := out[at : at+size]; !allErased(rest) {
			return nil, fmt.Errorf("the store is in use at %#x, where it should be erased", at)
		}
		h := out[at:]
		le.PutUint16(h, variableStart)
		h[2], h[3] = variableAdded, 0
		le.PutUint32(h[4:], v.attributes)
		clear(h[8:36]) // count, time stamp, key index: never written by an authenticated call
		le.PutUint32(h[36:], uint32(len(name)))
		le.PutUint32(h[40:], uint32(len(v.data)))
		copy(h[44:], v.vendor[:])
		copy(h[variableFixed:], name)
		copy(h[variableFixed+len(name):], v.data)
		at += (size + 3) &^ 3
	}
	return out, nil
}

// Layout of the NVRAM of QEMU's arm64 board: as many bytes each for variables,
// for the journal of writes and for its spare.
const (
	armBlock  = 256 << 10
	armBlocks = 256
	armVolume = 3 * armBlock
)

// formatted returns NVRAM with an empty store. AAVMF comes with NVRAM of zeros,
// which firmware formats at its first boot: as that does it, but for the
// journal.
func formatted(nvram []byte) ([]byte, error) {
	if len(nvram) != armBlock*armBlocks || len(bytes.TrimLeft(nvram, "\x00")) > 0 {
		return nvram, nil
	}
	volume, err := guid.Parse(volumeGUID)
	if err != nil {
		return nil, err
	}
	store, err := guid.Parse(storeGUID)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	h := make([]byte, 16, volumeHeader+16)
	h = append(h, volume[:]...)
	h = le.AppendUint64(h, armVolume)
	h = append(h, "_FVH"...)
	h = le.AppendUint32(h, 0x0e36) // readable, writable, sticky, memory mapped, erased to ones
	h = append(h, volumeHeader+16, 0, 0, 0, 0, 0, 0, 2)
	h = le.AppendUint32(h, armBlocks)
	h = le.AppendUint32(h, armBlock)
	h = append(h, make([]byte, 8)...) // the block map's end
	var sum uint16
	for i := 0; i < len(h); i += 2 {
		sum += le.Uint16(h[i:])
	}
	le.PutUint16(h[50:], -sum)
	out := bytes.Clone(nvram)
	at := copy(out, h)
	at += copy(out[at:], store[:])
	le.PutUint32(out[at:], uint32(armBlock-len(h)))
	out[at+4], out[at+5] = 0x5a, 0xfe // formatted, healthy
	for i := len(h) + storeHeader; i < armVolume; i++ {
		out[i] = 0xff
	}
	return out, nil
}

// variableStore returns where variables begin and where the store ends.
func variableStore(b []byte) (start, end int, err error) {
	volume, err := guid.Parse(volumeGUID)
	if err != nil {
		return 0, 0, err
	}
	store, err := guid.Parse(storeGUID)
	if err != nil {
		return 0, 0, err
	}
	le := binary.LittleEndian
	if len(b) < volumeHeader || len(b) > maxStore || !bytes.Equal(b[16:32], volume[:]) || string(b[40:44]) != "_FVH" {
		return 0, 0, errors.New("it does not begin with the header of an NVRAM volume")
	}
	header := int(le.Uint16(b[48:]))
	if header < volumeHeader || header+storeHeader > len(b) || !bytes.Equal(b[header:header+16], store[:]) {
		return 0, 0, errors.New("it has no store of authenticated variables")
	}
	size := int64(le.Uint32(b[header+16:]))
	if size < storeHeader || size > int64(len(b)-header) {
		return 0, 0, fmt.Errorf("its variable store of %d bytes does not fit into %d", size, len(b)-header)
	}
	return header + storeHeader, header + int(size), nil
}

func allErased(b []byte) bool {
	for _, v := range b {
		if v != 0xff {
			return false
		}
	}
	return true
}

// enrolled are the variables that an installer leaves: the keys, and a boot
// option for the ESP that comes first.
func enrolled(keys efivar.Enrolment, esp manifest.Partition, file string) ([]variable, error) {
	global, err := guid.Parse(guid.GlobalVariable)
	if err != nil {
		return nil, err
	}
	security, err := guid.Parse(guid.ImageSecurityDatabase)
	if err != nil {
		return nil, err
	}
	lists, err := keys.Lists()
	if err != nil {
		return nil, err
	}
	option, err := loadOption("Sealift", esp, file)
	if err != nil {
		return nil, err
	}
	return []variable{
		{security, string(efivar.DB), efivar.Attributes, lists[efivar.DB]},
		{global, string(efivar.KEK), efivar.Attributes, lists[efivar.KEK]},
		{global, string(efivar.PK), efivar.Attributes, lists[efivar.PK]},
		{global, "Boot0000", bootAttributes, option},
		{global, "BootOrder", bootAttributes, []byte{0, 0}},
	}, nil
}

// loadOption returns an EFI_LOAD_OPTION (UEFI 2.10, 3.1.3) that starts a file
// on a GPT partition: a hard drive node (10.3.5.1), a file node (10.3.5.4) and
// the end node.
func loadOption(description string, p manifest.Partition, file string) ([]byte, error) {
	id, err := guid.Parse(p.GUID)
	if err != nil {
		return nil, fmt.Errorf("boot option: partition %d: %w", p.Number, err)
	}
	le := binary.LittleEndian
	path := []byte{4, 1, 42, 0}
	path = le.AppendUint32(path, uint32(p.Number))
	path = le.AppendUint64(path, p.FirstLBA)
	path = le.AppendUint64(path, p.Sectors)
	path = append(path, id[:]...)
	path = append(path, 2, 2) // GPT, and its signature is a GUID
	name := appendUTF16(nil, file)
	path = append(path, 4, 4)
	path = le.AppendUint16(path, uint16(4+len(name)))
	path = append(path, name...)
	path = append(path, 0x7f, 0xff, 4, 0)

	b := le.AppendUint32(nil, 1) // LOAD_OPTION_ACTIVE
	b = le.AppendUint16(b, uint16(len(path)))
	b = appendUTF16(b, description)
	return append(b, path...), nil
}

// appendUTF16 appends s as UTF-16LE with a NUL.
func appendUTF16(b []byte, s string) []byte {
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, 0, 0)
}
