package luks2

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Sizes and places on the device, in bytes. cryptsetup's default layout.
const (
	binarySize = 4096
	jsonSize   = 12288
	headerSize = binarySize + jsonSize // of one copy; the secondary follows the primary
	dataOffset = 16 << 20
)

const (
	magicPrimary   = "LUKS\xba\xbe"
	magicSecondary = "SKUL\xba\xbe"
	version        = 2
	checksumAlg    = "sha256"
)

// Offsets in the binary header (LUKS2 On-Disk Format Specification, 2.1).
const (
	offVersion     = 6
	offHeaderSize  = 8
	offSequence    = 16
	offLabel       = 24 // 48 bytes
	offChecksumAlg = 72 // 32 bytes
	offSalt        = 104
	offUUID        = 168 // 40 bytes
	offSubsystem   = 208 // 48 bytes
	offOffset      = 256
	offChecksum    = 448 // 64 bytes
)

// ErrNoVolume is returned for a device on which no LUKS2 volume was ever
// completed, including one whose format was interrupted.
var ErrNoVolume = errors.New("no LUKS2 volume")

// errNoMagic is the error of one copy whose first bytes are not LUKS2's.
var errNoMagic = errors.New("no LUKS2 magic")

// header is one copy, with its checksum verified.
type header struct {
	sequence uint64
	label    string
	uuid     string
	json     []byte // without the padding
}

// readHeader reads both copies and returns the newer whole one, the primary
// where both are of the same age.
func readHeader(r io.ReaderAt) (*header, error) {
	primary, perr := readCopy(r, magicPrimary, 0)
	secondary, serr := readCopy(r, magicSecondary, headerSize)
	switch {
	case perr == nil && serr == nil && secondary.sequence > primary.sequence:
		return secondary, nil
	case perr == nil:
		return primary, nil
	case serr == nil:
		return secondary, nil
	case errors.Is(perr, errNoMagic):
		// Commit writes the primary last and over zeros: without its magic
		// a damaged secondary is the rest of an interrupted format.
		return nil, ErrNoVolume
	}
	return nil, fmt.Errorf("primary header: %w; secondary header: %w", perr, serr)
}

// readCopy reads and checks one copy. The JSON is not looked at before the
// checksum over it is verified.
func readCopy(r io.ReaderAt, magic string, at int64) (*header, error) {
	b := make([]byte, headerSize)
	if _, err := r.ReadAt(b, at); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errNoMagic
		}
		return nil, err
	}
	if string(b[:len(magic)]) != magic {
		return nil, errNoMagic
	}
	if v := binary.BigEndian.Uint16(b[offVersion:]); v != version {
		return nil, fmt.Errorf("version is %d, want %d", v, version)
	}
	if n := binary.BigEndian.Uint64(b[offHeaderSize:]); n != headerSize {
		return nil, fmt.Errorf("size is %d, want %d", n, headerSize)
	}
	if o := binary.BigEndian.Uint64(b[offOffset:]); o != uint64(at) {
		return nil, fmt.Errorf("it is at %d and says %d", at, o)
	}
	if alg := text(b[offChecksumAlg:][:32]); alg != checksumAlg {
		return nil, fmt.Errorf("checksum algorithm is %q, want %q", alg, checksumAlg)
	}
	want := bytes.Clone(b[offChecksum:][:sha256.Size])
	clear(b[offChecksum:][:64])
	if got := sha256.Sum256(b); subtle.ConstantTimeCompare(got[:], want) != 1 {
		return nil, fmt.Errorf("checksum is %x, want %x", got, want)
	}
	doc, padding, _ := bytes.Cut(b[binarySize:], []byte{0})
	if len(bytes.TrimLeft(padding, "\x00")) > 0 {
		return nil, errors.New("data behind the JSON document")
	}
	h := &header{
		sequence: binary.BigEndian.Uint64(b[offSequence:]),
		label:    text(b[offLabel:][:48]),
		uuid:     text(b[offUUID:][:40]),
		json:     doc,
	}
	if !validUUID(h.uuid) {
		return nil, fmt.Errorf("uuid %q is not a uuid", h.uuid)
	}
	return h, nil
}

// encode returns one copy. The salt only makes the two checksums differ.
func (h *header) encode(magic string, at int64, salt [64]byte) ([]byte, error) {
	if len(h.json) >= jsonSize {
		return nil, fmt.Errorf("metadata has %d bytes, less than %d allowed", len(h.json), jsonSize)
	}
	if len(h.label) > 47 || strings.Contains(h.label, "\x00") {
		return nil, fmt.Errorf("label %q has a NUL or more than 47 bytes", h.label)
	}
	if !validUUID(h.uuid) {
		return nil, fmt.Errorf("uuid %q is not a lower-case uuid", h.uuid)
	}
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.BigEndian.PutUint16(b[offVersion:], version)
	binary.BigEndian.PutUint64(b[offHeaderSize:], headerSize)
	binary.BigEndian.PutUint64(b[offSequence:], h.sequence)
	copy(b[offLabel:], h.label)
	copy(b[offChecksumAlg:], checksumAlg)
	copy(b[offSalt:], salt[:])
	copy(b[offUUID:], h.uuid)
	binary.BigEndian.PutUint64(b[offOffset:], uint64(at))
	copy(b[binarySize:], h.json)
	sum := sha256.Sum256(b)
	copy(b[offChecksum:], sum[:])
	return b, nil
}

// text returns a NUL-padded field up to its first NUL.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// validUUID accepts the lower-case text form only, as cryptsetup writes it:
// the UUID becomes part of a device-mapper name and of a measured event.
func validUUID(s string) bool {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	return err == nil && strings.Count(s, "-") == 4
}
