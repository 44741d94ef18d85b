package verity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// BlockSize is the size of data and hash blocks, in bytes.
const BlockSize = 4096

// superblockSize is what the superblock takes of the first hash block, in bytes.
const superblockSize = 512

// UntrustedSuperblock is the header of a hash tree as veritysetup writes it
// (cryptsetup, docs of on-disk format). Nothing vouches for it: a wrong salt
// or size shows only as blocks that do not match the root hash.
type UntrustedSuperblock struct {
	UUID       [16]byte
	DataBlocks uint64
	Salt       []byte // at most 256 bytes
}

// ReadSuperblock reads the superblock at the start of a hash device strictly:
// format 1, SHA-256, and blocks of 4096 bytes.
func ReadSuperblock(r io.ReaderAt) (*UntrustedSuperblock, error) {
	b := make([]byte, superblockSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read verity superblock: %w", err)
	}
	s, err := parseSuperblock(b)
	if err != nil {
		return nil, fmt.Errorf("verity superblock: %w", err)
	}
	return s, nil
}

// parseSuperblock reads: signature[8], version u32, hash type u32, uuid[16],
// algorithm[32], data block size u32, hash block size u32, data blocks u64,
// salt size u16, pad[6], salt[256], pad[168]; integers are little endian.
func parseSuperblock(b []byte) (*UntrustedSuperblock, error) {
	if len(b) != superblockSize {
		return nil, fmt.Errorf("it has %d bytes, want %d", len(b), superblockSize)
	}
	if string(b[:8]) != "verity\x00\x00" {
		return nil, errors.New("there is none")
	}
	if v, t := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:]); v != 1 || t != 1 {
		return nil, fmt.Errorf("version is %d and hash type %d, want 1 and 1", v, t)
	}
	if alg := string(bytes.TrimRight(b[32:64], "\x00")); alg != "sha256" {
		return nil, fmt.Errorf("algorithm is %q, want %q", alg, "sha256")
	}
	if d, h := binary.LittleEndian.Uint32(b[64:]), binary.LittleEndian.Uint32(b[68:]); d != BlockSize || h != BlockSize {
		return nil, fmt.Errorf("block sizes are %d and %d, want %d", d, h, BlockSize)
	}
	n := binary.LittleEndian.Uint64(b[72:])
	if n < 2 || n > 1<<40 {
		return nil, fmt.Errorf("%d data blocks", n)
	}
	salt := int(binary.LittleEndian.Uint16(b[80:]))
	if salt > 256 {
		return nil, fmt.Errorf("salt has %d bytes, at most 256 allowed", salt)
	}
	return &UntrustedSuperblock{
		UUID:       [16]byte(b[16:32]),
		DataBlocks: n,
		Salt:       bytes.Clone(b[88 : 88+salt]),
	}, nil
}

// hashBlocks is the number of blocks of the tree over that many data blocks,
// without the superblock. Each hash block holds 128 digests.
func hashBlocks(dataBlocks uint64) uint64 {
	var total uint64
	for n := dataBlocks; n > 1; {
		n = (n + 127) / 128
		total += n
	}
	return total
}
