package attest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Limits of an SMBIOS table, beside MaxSMBIOS.
const (
	maxSMBIOSStructures = 1024
	maxSMBIOSString     = 64 // characters kept of a string
)

// SMBIOS is what a machine's SMBIOS structure table (DSP0134) claims. Nothing
// of it is measured in a way that a verifier can rely on: it is a claim, and
// its strings are cut to 64 printable ASCII characters.
type SMBIOS struct {
	// BIOS Information (type 0, DSP0134 7.1).
	BIOSVendor, BIOSVersion, BIOSDate string
	// System Information (type 1, DSP0134 7.2).
	Manufacturer, Product, Version, Serial, UUID string
	// Baseboard Information (type 2, DSP0134 7.3), of the first board.
	BoardManufacturer, BoardProduct string
}

// ParseSMBIOS reads a structure table without its entry point, as Linux shows
// it in /sys/firmware/dmi/tables/DMI. Structures of other types are skipped.
// A second BIOS or System Information structure is an error, because it could
// show one reader another version than the next.
func ParseSMBIOS(table []byte) (*SMBIOS, error) {
	if len(table) > MaxSMBIOS {
		return nil, fmt.Errorf("smbios: got %d bytes, at most %d allowed", len(table), MaxSMBIOS)
	}
	s := &SMBIOS{}
	seen := map[byte]bool{}
	for n := 0; len(table) > 0; n++ {
		if n == maxSMBIOSStructures {
			return nil, fmt.Errorf("smbios: more than %d structures", maxSMBIOSStructures)
		}
		if len(table) < 4 {
			return nil, fmt.Errorf("smbios: structure %d: %d bytes are left, want a header of 4", n, len(table))
		}
		typ, length := table[0], int(table[1])
		if length < 4 || length > len(table) {
			return nil, fmt.Errorf("smbios: structure %d of type %d: length is %d, want 4 to the %d bytes left", n, typ, length, len(table))
		}
		end := bytes.Index(table[length:], []byte{0, 0})
		if end < 0 {
			return nil, fmt.Errorf("smbios: structure %d of type %d: its strings do not end", n, typ)
		}
		strs := table[length : length+end]
		if (typ == 0 || typ == 1) && seen[typ] {
			return nil, fmt.Errorf("smbios: structure %d: a second one of type %d", n, typ)
		}
		if !seen[typ] {
			s.read(typ, table[:length], strs)
		}
		seen[typ] = true
		table = table[length+end+2:]
		if typ == 127 { // end of table (7.46); what follows is padding
			break
		}
	}
	if !seen[0] || !seen[1] {
		return nil, errors.New("smbios: no BIOS or System Information (types 0 and 1)")
	}
	return s, nil
}

func (s *SMBIOS) read(typ byte, formatted, strs []byte) {
	str := func(offset int) string {
		if offset >= len(formatted) {
			return ""
		}
		return smbiosString(strs, int(formatted[offset]))
	}
	switch typ {
	case 0:
		s.BIOSVendor, s.BIOSVersion, s.BIOSDate = str(4), str(5), str(8)
	case 1:
		s.Manufacturer, s.Product, s.Version, s.Serial = str(4), str(5), str(6), str(7)
		if len(formatted) >= 24 {
			u := formatted[8:24]
			// The first three fields are little-endian since SMBIOS 2.6.
			s.UUID = fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(u), binary.LittleEndian.Uint16(u[4:]),
				binary.LittleEndian.Uint16(u[6:]), u[8:10], u[10:])
		}
	case 2:
		s.BoardManufacturer, s.BoardProduct = str(4), str(5)
	}
}

// smbiosString returns string number n, counted from 1; 0 and numbers beyond
// the last are empty (DSP0134 6.1.3).
func smbiosString(strs []byte, n int) string {
	if n == 0 {
		return ""
	}
	for i := 1; i < n; i++ {
		_, rest, ok := bytes.Cut(strs, []byte{0})
		if !ok {
			return ""
		}
		strs = rest
	}
	str, _, _ := bytes.Cut(strs, []byte{0})
	return cleanText(string(str))
}

// cleanText makes a machine's text fit for messages and reports: printable
// ASCII, no space around it, at most 64 characters.
func cleanText(s string) string { return cleanTo(maxSMBIOSString, s) }

// cleanTo is cleanText for at most n characters.
func cleanTo(n int, s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if len(s) > n {
		s = strings.TrimSpace(s[:n])
	}
	return s
}
