// Package manifest describes what an image build produced: the artifacts, the
// disk's layout and content digests, and the reference values (RFC 9334) from
// which the attestation service derives its policy. A Manifest is plain data;
// package image writes it, package image/sign signs and verifies it.
package manifest

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
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
// data, an inconsistent disk, or artifacts that could not lie side by side in
// one directory are errors. It does not verify a signature; call it only on
// bytes that image/sign has verified.
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
	for _, err := range []error{m.Disk.check(), checkArtifacts(m.Artifacts), m.Root.check(), m.UKI.check("uki"), m.Installer.check("installer")} {
		if err != nil {
			return nil, fmt.Errorf("decode manifest: %w", err)
		}
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
	return d.checkPartitions()
}

// Sectors of a GPT before its first and after its last partition (UEFI 2.10,
// 5.3): the protective MBR, a header and 128 entries; entries and a header.
const (
	headSectors = 34
	tailSectors = 33
	maxEntries  = 128
)

var guidText = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func (d *Disk) checkPartitions() error {
	if len(d.Partitions) == 0 {
		return nil
	}
	sectors := uint64(d.Size / 512)
	if sectors < headSectors+tailSectors {
		return fmt.Errorf("disk: %d sectors have no room for a partition table", sectors)
	}
	end := sectors - tailSectors
	numbers, roles, guids := map[int]bool{}, map[string]bool{}, map[string]bool{}
	for _, p := range d.Partitions {
		switch name := fmt.Sprintf("disk: partition %d (%.60s)", p.Number, p.Role); {
		case p.Number < 1 || p.Number > maxEntries:
			return fmt.Errorf("%s: number is not between 1 and %d", name, maxEntries)
		case p.Role == "" || p.Role == RoleState:
			return fmt.Errorf("%s: role is %q, which no partition of an image has", name, p.Role)
		case numbers[p.Number] || roles[p.Role] || guids[p.GUID]:
			return fmt.Errorf("%s: its number, role or GUID is another partition's, too", name)
		case !guidText.MatchString(p.GUID) || !guidText.MatchString(p.Type):
			return fmt.Errorf("%s: GUID %.60q, type %.60q, want lower-case GUIDs", name, p.GUID, p.Type)
		case p.Sectors == 0:
			return fmt.Errorf("%s has no sectors", name)
		case p.FirstLBA < headSectors:
			return fmt.Errorf("%s starts at sector %d, in the partition table", name, p.FirstLBA)
		case p.FirstLBA >= end || p.Sectors > end-p.FirstLBA:
			return fmt.Errorf("%s ends outside the image", name)
		}
		numbers[p.Number], roles[p.Role], guids[p.GUID] = true, true, true
	}
	order := slices.SortedFunc(slices.Values(d.Partitions), func(a, b Partition) int { return cmp.Compare(a.FirstLBA, b.FirstLBA) })
	for i, p := range order[1:] {
		if before := order[i]; before.FirstLBA+before.Sectors > p.FirstLBA {
			return fmt.Errorf("disk: partitions %d (%s) and %d (%s) overlap", before.Number, before.Role, p.Number, p.Role)
		}
	}
	return nil
}

// maxFile bounds what a manifest may say of a size, in bytes: 1 PiB.
const maxFile = 1 << 50

// checkArtifacts wants each kind at most once, under a name that leads nowhere
// but into the image's own directory.
func checkArtifacts(list []Artifact) error {
	kinds, names := map[string]bool{}, map[string]bool{}
	for _, a := range list {
		switch {
		case !plainName(a.Name):
			return fmt.Errorf("artifact %.60q: name %.200q is not a plain file name", a.Kind, a.Name)
		case a.Kind == "":
			return fmt.Errorf("artifact %s has no kind", a.Name)
		case kinds[a.Kind]:
			return fmt.Errorf("artifact %s: kind %.60q is there twice", a.Name, a.Kind)
		case names[a.Name]:
			return fmt.Errorf("artifact %s is there twice", a.Name)
		case a.Size <= 0 || a.Size > maxFile:
			return fmt.Errorf("artifact %s: size %d is not between 1 and %d", a.Name, a.Size, int64(maxFile))
		case a.SHA256.IsZero():
			return fmt.Errorf("artifact %s has no SHA-256", a.Name)
		}
		kinds[a.Kind], names[a.Name] = true, true
	}
	return nil
}

// plainName reports whether a name is that of a file in any directory, which
// neither hides nor breaks a line that it is printed in.
func plainName(s string) bool {
	return s != "" && len(s) <= 255 && s[0] != '.' && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r == '\\' || !unicode.IsPrint(r) })
}

func (r *Root) check() error {
	if r.Size < 0 || r.Size%4096 != 0 || r.Size > maxFile {
		return fmt.Errorf("root: size %d is not a multiple of 4096 up to %d", r.Size, int64(maxFile))
	}
	return nil
}

func (u *UKI) check(name string) error {
	for _, s := range u.Sections {
		if s.Size < 0 || s.Size > maxFile {
			return fmt.Errorf("%s: size %d of section %.60q is not between 0 and %d", name, s.Size, s.Name, int64(maxFile))
		}
	}
	return nil
}
