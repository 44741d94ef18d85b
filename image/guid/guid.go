// Package guid holds EFI_GUID, the mixed-endian identifier of GPT entries, EFI
// variables and signature lists (UEFI 2.10, appendix A), and derives such
// identifiers from content, so that a build has no random bytes in it.
package guid

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// GUID is an EFI_GUID in the byte order of memory and disk: the first three
// groups little-endian, the rest in order.
type GUID [16]byte

// Well-known vendor GUIDs of EFI variables (UEFI 2.10, 3.3 and 32.6).
const (
	GlobalVariable        = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // PK, KEK, SecureBoot, Boot####
	ImageSecurityDatabase = "d719b2cb-3d3a-4596-a3bc-dad00e67656f" // db, dbx
)

// groups are the lengths of a GUID's text groups, in bytes.
var groups = [...]int{4, 2, 2, 2, 6}

// Parse reads the text form, 36 characters in either case.
func Parse(s string) (GUID, error) {
	if len(s) != 36 {
		return GUID{}, fmt.Errorf("guid %q: got %d characters, want 36", s, len(s))
	}
	var big [16]byte
	out, in := 0, 0
	for i, n := range groups {
		if i > 0 {
			if s[in] != '-' {
				return GUID{}, fmt.Errorf("guid %q: no dash at character %d", s, in+1)
			}
			in++
		}
		if _, err := hex.Decode(big[out:out+n], []byte(s[in:in+2*n])); err != nil {
			return GUID{}, fmt.Errorf("guid %q: %w", s, err)
		}
		out += n
		in += 2 * n
	}
	return FromBytes(big), nil
}

// FromBytes makes a GUID whose text form shows b in order, which is how the
// Discoverable Partitions Specification puts a root hash into a GUID.
func FromBytes(b [16]byte) GUID {
	g := GUID(b)
	binary.LittleEndian.PutUint32(g[0:], binary.BigEndian.Uint32(b[0:]))
	binary.LittleEndian.PutUint16(g[4:], binary.BigEndian.Uint16(b[4:]))
	binary.LittleEndian.PutUint16(g[6:], binary.BigEndian.Uint16(b[6:]))
	return g
}

// Derive returns the version 8 UUID (RFC 9562, 5.8) that stands for content
// within domain: the first 128 bits of a SHA-256 over both, with version and
// variant set. Equal arguments give equal GUIDs.
func Derive(domain string, content []byte) GUID {
	h := sha256.New()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(domain)))
	h.Write(n[:])
	h.Write([]byte(domain))
	h.Write(content)
	var b [16]byte
	copy(b[:], h.Sum(nil))
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return FromBytes(b)
}

// Bytes returns the 16 bytes in the order of the text form.
func (g GUID) Bytes() [16]byte { return FromBytes([16]byte(g)) }

// String returns the text form in lower case.
func (g GUID) String() string {
	b := g.Bytes()
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
