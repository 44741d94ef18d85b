package inspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/verity"
)

// Superblock is what a dm-verity superblock says (cryptsetup, "DMVerity",
// verity superblock format 1).
type Superblock struct {
	UUID     guid.GUID
	Salt     [32]byte
	DataSize int64 // bytes
}

// ReadSuperblock reads the superblock at the start of d. It takes what the
// image builder and the agent agree on, and nothing else: hash type 1, SHA-256,
// blocks of 4096 bytes, a salt of 32 bytes.
func ReadSuperblock(d Disk) (*Superblock, error) {
	b, err := readAll(d, 0, verity.BlockSize)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(b[:8]) != "verity\x00\x00" {
		return nil, fmt.Errorf("signature is %q, want \"verity\"", b[:8])
	}
	if name := string(bytes.TrimRight(b[32:64], "\x00")); name != "sha256" {
		return nil, fmt.Errorf("algorithm is %q, want \"sha256\"", name)
	}
	for _, c := range []struct {
		name      string
		got, want uint64
	}{
		{"version", uint64(le.Uint32(b[8:])), 1},
		{"hash type", uint64(le.Uint32(b[12:])), 1},
		{"data block size", uint64(le.Uint32(b[64:])), verity.BlockSize},
		{"hash block size", uint64(le.Uint32(b[68:])), verity.BlockSize},
		{"salt size", uint64(le.Uint16(b[80:])), 32},
	} {
		if c.got != c.want {
			return nil, fmt.Errorf("%s is %d, want %d", c.name, c.got, c.want)
		}
	}
	blocks := le.Uint64(b[72:])
	if blocks == 0 || blocks > 1<<40/verity.BlockSize {
		return nil, fmt.Errorf("it covers %d blocks, want 1 to %d", blocks, uint64(1<<40/verity.BlockSize))
	}
	for _, r := range [][2]int{{82, 88}, {120, verity.BlockSize}} {
		if i := nonZero(b[r[0]:r[1]]); i >= 0 {
			return nil, fmt.Errorf("byte %d is %#02x, want zero", r[0]+i, b[r[0]+i])
		}
	}
	return &Superblock{
		UUID: guid.FromBytes([16]byte(b[16:32])), Salt: [32]byte(b[88:120]), DataSize: int64(blocks) * verity.BlockSize,
	}, nil
}

// against is a writer that compares what is written with what a disk has.
type against struct {
	disk Disk
	at   int64
	buf  []byte
}

func (a *against) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		if a.buf == nil {
			a.buf = make([]byte, zeroUnit)
		}
		b := a.buf[:min(len(a.buf), len(p)-done)]
		if err := readFull(a.disk, b, a.at); err != nil {
			return done, err
		}
		if i := firstDifference(p[done:done+len(b)], b); i >= 0 {
			at := a.at + int64(i)
			return done, fmt.Errorf("hash tree differs from the data at byte %d, in block %d: it has %#02x, the data gives %#02x", at, at/verity.BlockSize, b[i], p[done+i])
		}
		done += len(b)
		a.at += int64(len(b))
	}
	return done, nil
}

// rootHash recomputes the whole hash tree of data with the salt and size of
// the superblock, compares it byte for byte with the one on the disk, and
// returns its root hash. The hash is there even if the comparison failed.
func rootHash(ctx context.Context, data, hashes Disk, sb *Superblock, workers int) (root manifest.SHA256, err error) {
	if sb.DataSize > data.Size() {
		return root, fmt.Errorf("superblock covers %d bytes, the partition has %d", sb.DataSize, data.Size())
	}
	if n := verity.Size(sb.DataSize); n > hashes.Size() {
		return root, fmt.Errorf("a hash tree of %d bytes does not fit into the partition's %d", n, hashes.Size())
	}
	compare := &keepFirst{w: &against{disk: hashes}}
	t, err := verity.Write(ctx, compare, data, sb.DataSize, sb.Salt, workers, nil)
	if err != nil {
		return root, err
	}
	return manifest.SHA256(t.RootHash), compare.err
}

// keepFirst lets verity.Write finish, so that the root hash becomes known, and
// keeps the first error of its writer.
type keepFirst struct {
	w   io.Writer
	err error
}

func (f *keepFirst) Write(p []byte) (int, error) {
	if f.err == nil {
		_, f.err = f.w.Write(p)
	}
	return len(p), nil
}
