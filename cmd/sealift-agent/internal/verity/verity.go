// Package verity opens the root file system through dm-verity: Open reads the
// hash tree's superblock, compares the tree's top block with the root hash
// from the measured kernel command line, and makes the device. It fails
// closed: a block that does not match stops the machine unless the caller
// chose otherwise.
package verity

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/dm"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
)

// ErrRootHash is returned when the tree's top block is not the one that the
// root hash names: another image's tree, or a damaged one.
var ErrRootHash = errors.New("the hash tree does not match the root hash")

// Config says what to open.
type Config struct {
	Name       string        // device-mapper name
	Data       string        // node of the partition with the file system
	Hash       string        // node of the partition with the tree and its superblock
	RootHash   [32]byte      // trusted
	Corruption dm.Corruption // Optional; the kernel panics if unset.
}

// Partitions returns the unique GUIDs of the partitions that hold the data and
// the tree of a root hash: its first and its last 128 bits (UAPI Discoverable
// Partitions Specification).
func Partitions(rootHash [32]byte) (data, hash guid.GUID) {
	return guid.FromText([16]byte(rootHash[:16])), guid.FromText([16]byte(rootHash[16:]))
}

// Open makes the read-only device and returns its node /dev/dm-N.
//
// The kernel checks the root hash at the first read only, and in the default
// mode answers a wrong one with a panic. Open therefore checks the top block
// itself first, and reads the first block through the new device at last.
func Open(c Config) (node string, err error) {
	s, err := check(c)
	if err != nil {
		return "", fmt.Errorf("open verity device %s: %w", c.Name, err)
	}
	t, err := dm.Verity{
		Data:       c.Data,
		Hash:       c.Hash,
		DataBlocks: s.DataBlocks,
		HashStart:  1, // the superblock takes one block
		RootHash:   c.RootHash,
		Salt:       s.Salt,
		Corruption: c.Corruption,
	}.Target()
	if err != nil {
		return "", fmt.Errorf("open verity device %s: %w", c.Name, err)
	}
	if node, err = dm.Create(c.Name, "", []dm.Target{t}, true); err != nil {
		return "", fmt.Errorf("open verity device: %w", err)
	}
	if err := readFirst(node); err != nil {
		return "", errors.Join(fmt.Errorf("open verity device %s: first block: %w", c.Name, err), dm.Remove(c.Name))
	}
	return node, nil
}

// check reads the superblock and verifies what can be verified of it.
func check(c Config) (*UntrustedSuperblock, error) {
	hash, err := os.Open(c.Hash)
	if err != nil {
		return nil, err
	}
	defer hash.Close()
	data, err := os.Open(c.Data)
	if err != nil {
		return nil, err
	}
	defer data.Close()
	hashSize, err := hash.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	dataSize, err := data.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	s, err := ReadSuperblock(hash)
	if err != nil {
		return nil, err
	}
	if have := uint64(dataSize) / BlockSize; s.DataBlocks > have {
		return nil, fmt.Errorf("%s has %d blocks, the tree is over %d", c.Data, have, s.DataBlocks)
	}
	if have, want := uint64(hashSize)/BlockSize, 1+hashBlocks(s.DataBlocks); have < want {
		return nil, fmt.Errorf("%s has %d blocks, the tree needs %d", c.Hash, have, want)
	}
	if err := checkTop(hash, s.Salt, c.RootHash); err != nil {
		return nil, err
	}
	return s, nil
}

// checkTop compares the tree's top block, which follows the superblock, with
// the root hash: SHA-256 over salt and block.
func checkTop(hash io.ReaderAt, salt []byte, want [32]byte) error {
	top := make([]byte, BlockSize)
	if _, err := hash.ReadAt(top, BlockSize); err != nil {
		return fmt.Errorf("read the top of the hash tree: %w", err)
	}
	h := sha256.New()
	h.Write(salt)
	h.Write(top)
	if got := h.Sum(nil); subtle.ConstantTimeCompare(got, want[:]) != 1 {
		return fmt.Errorf("%w: got %x, want %x", ErrRootHash, got, want)
	}
	return nil
}

func readFirst(node string) error {
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(make([]byte, BlockSize), 0)
	return err
}
