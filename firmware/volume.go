package firmware

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"

	"github.com/sealift/sealift/image/manifest"
)

// Limits of a firmware image and of what it unpacks to, bytes.
const (
	maxImage    = 64 << 20
	maxUnpacked = 128 << 20
)

// lzmaSection is EFI_GUIDED_SECTION's LzmaCustomDecompress GUID,
// ee4e5898-3914-4259-9d6e-dc7bd79403cf, as it stands in memory.
var lzmaSection = []byte{0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf}

// Volume is one firmware volume (UEFI PI 1.8, Volume 3, 2.1) in an image.
type Volume struct {
	Size   int64           `json:"size"`
	SHA256 manifest.SHA256 `json:"sha256"`
	SHA384 string          `json:"sha384"` // hex
}

// Section types (UEFI PI 1.8, Volume 3, 2.1.5.1).
const (
	sectionGUIDed = 0x02
	sectionVolume = 0x17
)

// Packed is the place of the LZMA section in a firmware image.
type Packed struct {
	Section int // offset of the section header
	Size    int // of the whole section
	Data    int // offset of the LZMA stream in the section
}

// FindPacked locates the one LZMA-compressed GUIDed section of an edk2 image.
func FindPacked(image []byte) (Packed, error) {
	if len(image) > maxImage {
		return Packed{}, fmt.Errorf("firmware image: %d bytes, at most %d allowed", len(image), maxImage)
	}
	i := bytes.Index(image, lzmaSection)
	if i < 4 || i+20 > len(image) {
		return Packed{}, errors.New("firmware image: no LZMA section, so this is no edk2 image that can be read")
	}
	p := Packed{Section: i - 4}
	p.Size = int(image[i-4]) | int(image[i-3])<<8 | int(image[i-2])<<16
	p.Data = int(binary.LittleEndian.Uint16(image[i+16:]))
	if image[i-1] != sectionGUIDed || p.Data < 24 || p.Size <= p.Data+13 || p.Section+p.Size > len(image) {
		return Packed{}, fmt.Errorf("firmware image: the section at %#x has type %#x, size %d and data offset %d, which do not fit together", p.Section, image[i-1], p.Size, p.Data)
	}
	return p, nil
}

// Unpack decompresses the section that FindPacked found.
func Unpack(image []byte, p Packed) ([]byte, error) {
	stream := image[p.Section+p.Data : p.Section+p.Size]
	size := binary.LittleEndian.Uint64(stream[5:])
	if size == 0 || size > maxUnpacked {
		return nil, fmt.Errorf("firmware image: the LZMA section says it holds %d bytes, at most %d allowed", size, int64(maxUnpacked))
	}
	cfg := lzma.ReaderConfig{DictCap: 64 << 20}
	r, err := cfg.NewReader(bytes.NewReader(stream))
	if err != nil {
		return nil, fmt.Errorf("firmware image: unpack LZMA section: %w", err)
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("firmware image: unpack LZMA section: %w", err)
	}
	return raw, nil
}

// Volumes returns the firmware volumes that are packed in an edk2 image, in
// the order in which they stand. Firmware measures each one decompressed, so
// these are the digests of its EV_EFI_PLATFORM_FIRMWARE_BLOB events, save for
// a volume that its own code writes into before it is measured (in OVMF the
// first one, PEIFV).
func Volumes(image []byte) ([]Volume, error) {
	p, err := FindPacked(image)
	if err != nil {
		return nil, err
	}
	raw, err := Unpack(image, p)
	if err != nil {
		return nil, err
	}
	var out []Volume
	for o := 0; o+4 <= len(raw); {
		size := int(raw[o]) | int(raw[o+1])<<8 | int(raw[o+2])<<16
		header := 4
		if size == 0xffffff {
			if o+8 > len(raw) {
				return nil, fmt.Errorf("firmware image: section header at %#x is cut off", o)
			}
			size, header = int(binary.LittleEndian.Uint32(raw[o+4:])), 8
		}
		if size == 0 {
			break
		}
		if size < header || size > len(raw)-o {
			return nil, fmt.Errorf("firmware image: section at %#x has size %d of %d bytes left", o, size, len(raw)-o)
		}
		if raw[o+3] == sectionVolume {
			v := raw[o+header : o+size]
			out = append(out, Volume{Size: int64(len(v)), SHA256: sha256.Sum256(v), SHA384: fmt.Sprintf("%x", sha512.Sum384(v))})
		}
		o = (o + size + 3) &^ 3
	}
	if len(out) == 0 {
		return nil, errors.New("firmware image: the LZMA section holds no firmware volume")
	}
	return out, nil
}
