package attest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"unicode/utf16"
)

// Limits of a variable in an event. dbx of today has about 25 KiB.
const (
	maxVariableName = 256 // UTF-16 code units
	maxVariableData = MaxEventLog
)

// variable is a UEFI variable as firmware measured it.
type variable struct {
	GUID string // lower case, in the usual text form
	Name string
	Data []byte
}

// Vendor GUIDs of the variables that decide about Secure Boot (UEFI 2.10, 3.3
// and 32).
const (
	guidGlobal   = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // EFI_GLOBAL_VARIABLE
	guidSecurity = "d719b2cb-3d3a-4596-a3bc-dad00e67656f" // EFI_IMAGE_SECURITY_DATABASE_GUID
)

// parseVariable decodes UEFI_VARIABLE_DATA (TCG PFP, "Measuring UEFI Variables").
func parseVariable(b []byte) (*variable, error) {
	v, rest, err := cutVariable(b)
	if err == nil && len(rest) != 0 {
		err = fmt.Errorf("variable: lengths of %d characters and %d bytes do not fit into %d bytes", (len(b)-32-len(rest)-len(v.Data))/2, len(v.Data), len(b))
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// cutVariable is parseVariable for data that may have more after the variable.
func cutVariable(b []byte) (v *variable, rest []byte, err error) {
	r := &logReader{b: b}
	guid, nameLen, dataLen := r.take(16), r.u64(), r.u64()
	if r.bad {
		return nil, nil, fmt.Errorf("variable: %d bytes are too short", len(b))
	}
	if nameLen > maxVariableName || dataLen > maxVariableData {
		return nil, nil, fmt.Errorf("variable: name of %d characters and data of %d bytes, at most %d and %d allowed",
			nameLen, dataLen, maxVariableName, maxVariableData)
	}
	name, data := r.take(int(nameLen)*2), r.take(int(dataLen))
	if r.bad {
		return nil, nil, fmt.Errorf("variable: lengths of %d characters and %d bytes do not fit into %d bytes", nameLen, dataLen, len(b))
	}
	return &variable{GUID: formatGUID(guid), Name: decodeUTF16(name), Data: data}, r.b, nil
}

// formatGUID returns the text form of an EFI_GUID, whose first three fields
// are little-endian.
func formatGUID(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]),
		binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}

// decodeUTF16 decodes UTF-16LE. A byte left over is dropped.
func decodeUTF16(b []byte) string {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u))
}

// encodeUTF16 returns s as UTF-16LE with a final NUL, as an EFI stub measures
// a command line.
func encodeUTF16(s string) []byte {
	var b []byte
	for _, u := range append(utf16.Encode([]rune(s)), 0) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// gptDiskGUID returns the disk GUID from the data of an EV_EFI_GPT_EVENT: the
// partition table header (UEFI 2.10, 5.3.2) comes first.
func gptDiskGUID(b []byte) (string, error) {
	if len(b) < 92 || string(b[:8]) != "EFI PART" {
		return "", fmt.Errorf("gpt event: %d bytes that start with %s, want a partition table header", len(b), hex.EncodeToString(b[:min(8, len(b))]))
	}
	return formatGUID(b[56:72]), nil
}
