package dm

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/sealift/sealift/attest"
)

// SectorSize is the unit of every start and length in a table, in bytes.
const SectorSize = 512

// Target is one line of a device's table. Start and Sectors are in 512-byte
// sectors. In what Status returns, Params is the target's status.
type Target struct {
	Start   uint64
	Sectors uint64
	Type    string // verity, crypt; at most 15 bytes
	Params  string
}

// Corruption says what the kernel does when a block of a verity device does
// not match its hash. The zero value stops the machine.
type Corruption string

// Values of Corruption (Documentation/admin-guide/device-mapper/verity.rst).
const (
	Panic   Corruption = ""                      // panic_on_corruption: the kernel panics, and reboots if panic= says so
	Restart Corruption = "restart_on_corruption" // the kernel restarts the machine at once
	EIO     Corruption = "eio"                   // the read fails; nothing else notices
)

// Verity is a dm-verity target of format 1 with SHA-256 and 4096-byte blocks.
type Verity struct {
	Data       string // device node of the data
	Hash       string // device node of the hash tree
	DataBlocks uint64 // number of data blocks
	HashStart  uint64 // block of Hash at which the tree starts, behind the superblock
	RootHash   [32]byte
	Salt       []byte // at most 256 bytes
	Corruption Corruption
}

// Target returns the table line.
func (v Verity) Target() (Target, error) {
	if err := checkNodes(v.Data, v.Hash); err != nil {
		return Target{}, fmt.Errorf("verity target: %w", err)
	}
	if v.DataBlocks == 0 || v.DataBlocks > 1<<50 {
		return Target{}, fmt.Errorf("verity target: %d data blocks", v.DataBlocks)
	}
	if len(v.Salt) > 256 {
		return Target{}, fmt.Errorf("verity target: salt has %d bytes, at most 256 allowed", len(v.Salt))
	}
	salt := "-"
	if len(v.Salt) > 0 {
		salt = hex.EncodeToString(v.Salt)
	}
	p := fmt.Sprintf("1 %s %s 4096 4096 %d %d sha256 %x %s", v.Data, v.Hash, v.DataBlocks, v.HashStart, v.RootHash, salt)
	switch v.Corruption {
	case Panic:
		p += " 1 panic_on_corruption"
	case Restart:
		p += " 1 restart_on_corruption"
	case EIO:
	default:
		return Target{}, fmt.Errorf("verity target: unknown corruption mode %q", string(v.Corruption))
	}
	return Target{Sectors: v.DataBlocks * 8, Type: "verity", Params: p}, nil
}

// Crypt is a dm-crypt target with the cipher aes-xts-plain64 and 4096-byte
// sectors.
type Crypt struct {
	Device   string        // device node that holds the ciphertext
	Offset   uint64        // start of the ciphertext, in 512-byte sectors
	Sectors  uint64        // length, in 512-byte sectors; a multiple of 8
	Key      attest.Secret // 64 bytes: AES-256 key, then tweak key
	Discards bool          // pass discards down; they show which blocks are in use
}

// target returns the table line. It names the key by its description in the
// kernel's keyring, so that the table, which root can read, does not hold it.
func (c Crypt) target(keyDescription string) (Target, error) {
	if err := checkNodes(c.Device); err != nil {
		return Target{}, fmt.Errorf("crypt target: %w", err)
	}
	if len(c.Key) != 64 {
		return Target{}, fmt.Errorf("crypt target: key has %d bytes, want 64", len(c.Key))
	}
	if c.Sectors == 0 || c.Sectors%8 != 0 || c.Offset%8 != 0 {
		return Target{}, fmt.Errorf("crypt target: %d sectors at %d are not whole 4096-byte blocks", c.Sectors, c.Offset)
	}
	options := "1 sector_size:4096"
	if c.Discards {
		options = "2 sector_size:4096 allow_discards"
	}
	p := fmt.Sprintf("aes-xts-plain64 :%d:logon:%s 0 %s %d %s", len(c.Key), keyDescription, c.Device, c.Offset, options)
	return Target{Sectors: c.Sectors, Type: "crypt", Params: p}, nil
}

// checkNodes refuses paths that would break the table's syntax.
func checkNodes(paths ...string) error {
	for _, p := range paths {
		if !strings.HasPrefix(p, "/") || strings.ContainsAny(p, " \t\n\\\x00") {
			return fmt.Errorf("%q is not a device node's path", p)
		}
	}
	return nil
}
