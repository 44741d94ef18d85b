// Package manifest describes what an image build produced: the artifacts, the
// disk's layout and content digests, and the reference values (RFC 9334) from
// which the attestation service derives its policy. A Manifest is plain data;
// package image writes it, package image/sign signs and verifies it.
package manifest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
)

// Schema names the format that this package reads and writes.
const Schema = "sealift.dev/manifest/v1"

// MaxSize bounds an encoded manifest, in bytes. A larger one is refused unread.
const MaxSize = 8 << 20

// SHA256 is a SHA-256 digest. It is lower-case hex in text and JSON.
type SHA256 [32]byte

// IsZero reports whether the digest is unset. An unset digest never matches.
func (d SHA256) IsZero() bool { return d == SHA256{} }

// String returns the digest as 64 hex digits.
func (d SHA256) String() string { return hex.EncodeToString(d[:]) }

// MarshalText encodes the digest as lower-case hex, or as the empty string if unset.
func (d SHA256) MarshalText() ([]byte, error) {
	if d.IsZero() {
		return nil, nil
	}
	return []byte(d.String()), nil
}

// UnmarshalText decodes 64 hex digits. The empty string leaves the digest unset.
func (d *SHA256) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = SHA256{}
		return nil
	}
	if len(b) != 64 {
		return fmt.Errorf("sha256 digest: got %d characters, want 64", len(b))
	}
	_, err := hex.Decode(d[:], b)
	return err
}

// Manifest is the description of one built image.
type Manifest struct {
	Schema  string `json:"schema"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`  // GOARCH spelling: amd64, arm64
	Epoch   int64  `json:"epoch"` // SOURCE_DATE_EPOCH of the build, Unix seconds
	// Debug marks an image as not for production: it says more, and may have
	// what a fleet's must not, such as a shell.
	Debug bool `json:"debug,omitempty"`

	LockDigest SHA256     `json:"lockDigest"` // of the lock file's bytes
	Kubernetes Kubernetes `json:"kubernetes"`
	Artifacts  []Artifact `json:"artifacts"`
	Disk       Disk       `json:"disk"`
	Root       Root       `json:"root"`
	SecureBoot SecureBoot `json:"secureBoot"`
	UKI        UKI        `json:"uki"`                // the UKI on the disk's ESP
	Installer  UKI        `json:"installer,omitzero"` // unset if no artifact holds an installer
	Boots      []Boot     `json:"boots,omitempty"`
}

// Kubernetes names the distro inside the image.
type Kubernetes struct {
	Distro  string `json:"distro"`
	Version string `json:"version"`
}

// Kinds of Artifact.
const (
	KindDisk      = "disk"      // raw disk image
	KindDiskZstd  = "disk.zst"  // the same, zstd (RFC 8878)
	KindUKI       = "uki"       // signed UKI, as on the ESP
	KindInstaller = "installer" // signed installer UKI

	KindQCOW2 = "disk.qcow2"    // the disk image for QEMU, version 3, zstd
	KindISO   = "installer.iso" // installation medium: installer UKI and compressed disk

	KindSPDX      = "sbom.spdx"      // SBOM, SPDX 2.3 in JSON
	KindCycloneDX = "sbom.cyclonedx" // SBOM, CycloneDX 1.6 in JSON
)

// Artifact is one output file. Name has no directory part.
type Artifact struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 SHA256 `json:"sha256"`
}

// Disk is the raw image as a sequence of equal chunks, so that an installer
// can check each chunk before it writes it.
type Disk struct {
	Size       int64       `json:"size"`      // bytes; a multiple of ChunkSize
	ChunkSize  int64       `json:"chunkSize"` // bytes
	Chunks     []SHA256    `json:"chunks"`    // digest of each chunk; unset: the chunk is all zero bytes
	Partitions []Partition `json:"partitions"`
}

// Roles of a Partition.
const (
	RoleESP         = "esp"
	RoleRootA       = "root-a"
	RoleRootVerityA = "root-verity-a"
	RoleRootB       = "root-b"
	RoleRootVerityB = "root-verity-b"
	RoleState       = "state" // made on first boot, never in an image
)

// Partition is one GPT entry (UEFI 2.10, 5.3.3). LBAs are 512-byte sectors.
type Partition struct {
	Number   int    `json:"number"`
	Role     string `json:"role"`
	Label    string `json:"label"`
	Type     string `json:"type"` // partition type GUID, lower case
	GUID     string `json:"guid"` // unique partition GUID, lower case
	FirstLBA uint64 `json:"firstLBA"`
	Sectors  uint64 `json:"sectors"`
}

// Root is the root file system and its dm-verity tree.
type Root struct {
	FSType     string `json:"fsType"`     // erofs
	Size       int64  `json:"size"`       // bytes of data, a multiple of 4096
	RootHash   SHA256 `json:"rootHash"`   // dm-verity root hash
	Salt       SHA256 `json:"salt"`       // dm-verity salt
	VerityUUID string `json:"verityUUID"` // of the verity superblock
}

// SecureBoot is the enrolment bundle that the image is signed for, as the
// digests of the events that firmware measures into PCR 7 (TCG PC Client PFP,
// 3.3.4.8; UEFI_VARIABLE_DATA).
type SecureBoot struct {
	PK  SHA256 `json:"pk"`  // EV_EFI_VARIABLE_DRIVER_CONFIG of PK
	KEK SHA256 `json:"kek"` // the same of KEK
	DB  SHA256 `json:"db"`  // the same of db
	// Authority is the EV_EFI_VARIABLE_AUTHORITY event of the db certificate
	// that signed the UKI.
	Authority SHA256 `json:"authority"`
}

// UKI holds the reference values of one unified kernel image.
type UKI struct {
	StubVersion  string    `json:"stubVersion"` // e.g. 252.39-1~deb12u2
	Cmdline      string    `json:"cmdline"`
	Authenticode SHA256    `json:"authenticode"` // PE hash of the whole UKI: the digest in PCR 4
	Kernel       SHA256    `json:"kernel"`       // PE hash of .linux; in PCR 4 only with Secure Boot off
	Initrd       SHA256    `json:"initrd"`       // of all initrds as the kernel's EFI stub measures them into PCR 9
	Sections     []Section `json:"sections"`     // in the order in which the stub measures them into PCR 11
	// PCRs are final values with Secure Boot on, before any userland extend:
	// bank name ("sha256", "sha384") to PCR index to hex value. Only what does
	// not depend on the machine is listed; Manifest.Boots has the rest.
	PCRs map[string]map[int]string `json:"pcrs"`
}

// Section is a UKI section that systemd-stub measures.
type Section struct {
	Name   string `json:"name"` // with the leading dot
	Size   int64  `json:"size"` // VirtualSize
	SHA256 SHA256 `json:"sha256"`
}

// Artifact returns the artifact of that kind, or false.
func (m *Manifest) Artifact(kind string) (Artifact, bool) {
	for _, a := range m.Artifacts {
		if a.Kind == kind {
			return a, true
		}
	}
	return Artifact{}, false
}

// Encode returns the manifest as indented JSON with a final newline. Equal
// manifests give equal bytes.
func (m *Manifest) Encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(m); err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return b.Bytes(), nil
}

// Decode reads a manifest strictly: unknown fields, another schema, trailing
// data, or an inconsistent disk are errors. It does not verify a signature;
// call it only on bytes that image/sign has verified.
func Decode(b []byte) (*Manifest, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("decode manifest: %d bytes, at most %d allowed", len(b), MaxSize)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var m Manifest
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("decode manifest: data after the document")
	}
	if m.Schema != Schema {
		return nil, fmt.Errorf("decode manifest: schema is %q, want %q", m.Schema, Schema)
	}
	if err := m.Disk.check(); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	for i := range m.Boots {
		if err := m.Boots[i].check(); err != nil {
			return nil, fmt.Errorf("decode manifest: boot %d: %w", i, err)
		}
	}
	return &m, nil
}

func (d *Disk) check() error {
	if d.ChunkSize <= 0 || d.ChunkSize%512 != 0 || d.ChunkSize > 64<<20 {
		return fmt.Errorf("disk: chunk size %d is not a multiple of 512 up to 64 MiB", d.ChunkSize)
	}
	if d.Size <= 0 || d.Size%d.ChunkSize != 0 {
		return fmt.Errorf("disk: size %d is not a positive multiple of the chunk size %d", d.Size, d.ChunkSize)
	}
	if int64(len(d.Chunks)) != d.Size/d.ChunkSize {
		return fmt.Errorf("disk: got %d chunks, want %d", len(d.Chunks), d.Size/d.ChunkSize)
	}
	end := uint64(d.Size / 512)
	for _, p := range d.Partitions {
		if p.FirstLBA >= end || p.Sectors > end-p.FirstLBA {
			return fmt.Errorf("disk: partition %d (%s) ends outside the image", p.Number, p.Role)
		}
	}
	return nil
}
