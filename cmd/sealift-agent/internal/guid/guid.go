// Package guid holds the 16-byte identifier that GPT entries, EFI variables
// and device paths use.
package guid

import (
	"encoding/hex"
	"fmt"
	"io"
)

// GUID is an EFI_GUID as it lies on disk: its first three fields are little
// endian (UEFI 2.10, appendix A). The zero value means "none".
type GUID [16]byte

// order maps a byte of the text form to its place on disk.
func order(i int) int {
	switch {
	case i < 4:
		return 3 - i
	case i < 6:
		return 9 - i
	case i < 8:
		return 13 - i
	}
	return i
}

// Parse reads the 36-character text form, in either case.
func Parse(s string) (GUID, error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return GUID{}, fmt.Errorf("guid %q: want 8-4-4-4-12 hex digits", s)
	}
	var text [16]byte
	if _, err := hex.Decode(text[:], []byte(s[:8]+s[9:13]+s[14:18]+s[19:23]+s[24:])); err != nil {
		return GUID{}, fmt.Errorf("guid %q: %w", s, err)
	}
	return FromText(text), nil
}

// FromText returns the GUID whose text form has the digits of b in order, as
// partition GUIDs are made from halves of a dm-verity root hash.
func FromText(b [16]byte) GUID {
	var g GUID
	for i, v := range b {
		g[order(i)] = v
	}
	return g
}

// New returns a version 4 GUID (RFC 9562, 5.4) with random bits from r.
func New(r io.Reader) (GUID, error) {
	var g GUID
	if _, err := io.ReadFull(r, g[:]); err != nil {
		return GUID{}, fmt.Errorf("make a guid: %w", err)
	}
	g[7] = g[7]&0x0f | 0x40 // the version is in the third field, which is little endian
	g[8] = g[8]&0x3f | 0x80
	return g, nil
}

// IsZero reports whether g is the zero GUID.
func (g GUID) IsZero() bool { return g == GUID{} }

// String returns the text form in lower case.
func (g GUID) String() string {
	var text [16]byte
	for i := range text {
		text[i] = g[order(i)]
	}
	h := hex.EncodeToString(text[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
