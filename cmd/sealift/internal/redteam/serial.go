package redteam

import (
	"bytes"
	"slices"
)

// withSerial returns an SMBIOS table whose System Information (type 1, DSP0134
// 7.2) has another serial number. The rest is as it was, for the policy may go by
// it. A table without a serial number is returned as it is.
func withSerial(table []byte, serial string) []byte {
	for rest := table; len(rest) >= 4; {
		typ, length := rest[0], int(rest[1])
		if length < 4 || length > len(rest) {
			return table
		}
		end := bytes.Index(rest[length:], []byte{0, 0})
		if end < 0 {
			return table
		}
		after := rest[length+end:]
		if typ != 1 {
			rest = after[2:]
			continue
		}
		strs := bytes.Split(rest[length:length+end], []byte{0})
		if length <= 7 || rest[7] == 0 || int(rest[7]) > len(strs) {
			return table
		}
		strs[rest[7]-1] = []byte(serial)
		return slices.Concat(table[:len(table)-len(rest)+length], bytes.Join(strs, []byte{0}), after)
	}
	return table
}
