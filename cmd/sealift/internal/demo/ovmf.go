package demo

import (
	"bytes"
	"fmt"

	"github.com/ulikunitz/xz/lzma"

	"github.com/sealift/sealift/firmware"
)

// The release that Debian's OVMF reports in SMBIOS type 0, as NUL-terminated
// strings that stand beside each other in its SMBIOS driver.
const (
	ovmfVersion = "0.0.0"
	ovmfDate    = "02/06/2015"
)

// release makes another release of an OVMF build: the same code, but with
// another version and date in its SMBIOS driver. Both must be as long as the
// ones they replace. The result is a firmware that boots, reports the new
// version and measures another DXE volume.
func release(code []byte, version, date string) ([]byte, error) {
	if len(version) != len(ovmfVersion) || len(date) != len(ovmfDate) {
		return nil, fmt.Errorf("make firmware release %q of %q: want %d and %d characters", version, date, len(ovmfVersion), len(ovmfDate))
	}
	p, err := firmware.FindPacked(code)
	if err != nil {
		return nil, err
	}
	raw, err := firmware.Unpack(code, p)
	if err != nil {
		return nil, err
	}
	old := []byte(ovmfVersion + "\x00" + ovmfDate + "\x00")
	if n := bytes.Count(raw, old); n != 1 {
		return nil, fmt.Errorf("make firmware release %s: the image names release %s %d times, want once", version, ovmfVersion, n)
	}
	raw = bytes.Replace(raw, old, []byte(version+"\x00"+date+"\x00"), 1)

	var packed bytes.Buffer
	// The properties and the dictionary are those that edk2's decoder is built for.
	w, err := lzma.WriterConfig{
		Properties: &lzma.Properties{LC: 3, LP: 0, PB: 2}, DictCap: 1 << 24, BufSize: 1 << 20,
		Matcher: lzma.HashTable4, SizeInHeader: true, Size: int64(len(raw)),
	}.NewWriter(&packed)
	if err != nil {
		return nil, fmt.Errorf("make firmware release %s: %w", version, err)
	}
	if _, err := w.Write(raw); err != nil {
		return nil, fmt.Errorf("make firmware release %s: %w", version, err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("make firmware release %s: %w", version, err)
	}
	return repack(code, p, packed.Bytes())
}

// repack puts another LZMA stream into the section p of a firmware image. A
// longer one grows the section and the FFS file around it (UEFI PI 1.8,
// Volume 3, 2.1.4) into the erased flash that follows.
func repack(code []byte, p firmware.Packed, stream []byte) ([]byte, error) {
	const fileHeader = 24
	file := p.Section - fileHeader
	size := p.Data + len(stream)
	if file < 0 || p.Section+size > len(code) || size+fileHeader > 0xffffff {
		return nil, fmt.Errorf("repack firmware: a section of %d bytes does not fit", size)
	}
	out := bytes.Clone(code)
	if size > p.Size {
		for i, b := range out[p.Section+p.Size : p.Section+size] {
			if b != 0xff {
				return nil, fmt.Errorf("repack firmware: the flash at %#x is in use, so the section cannot grow by %d bytes", p.Section+p.Size+i, size-p.Size)
			}
		}
		put24(out[p.Section:], size)
		header := out[file : file+fileHeader]
		put24(header[20:], size+fileHeader)
		// The header's 8-bit sum is zero with the data checksum (17) and the
		// state (23) taken as zero.
		header[16] = 0
		var sum byte
		for i, b := range header {
			if i != 17 && i != 23 {
				sum += b
			}
		}
		header[16] = -sum
	}
	n := copy(out[p.Section+p.Data:], stream)
	for i := p.Section + p.Data + n; i < p.Section+p.Size; i++ {
		out[i] = 0
	}
	return out, nil
}

func put24(b []byte, v int) { b[0], b[1], b[2] = byte(v), byte(v>>8), byte(v>>16) }
