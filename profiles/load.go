package profiles

import (
	"fmt"
	"io"
	"os"
	"reflect"
)

// Load reads a profile, fills in its defaults and validates it and the files
// beside it that it names. Every fault of the file is found in one run; the
// error is then a *FileError.
func Load(path string) (*Profile, error) { return LoadFor(path, "") }

// LoadFor is Load for another architecture than the profile names. The empty
// string leaves the profile's own.
func LoadFor(path, arch string) (*Profile, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("load profile: %w", err)
	}
	return parseFor(path, b, arch, func(p *Profile, r report) { p.checkSources(path, r) })
}

// Parse is Load for bytes that were read already, without what lies beside the
// file, whose name is used in errors only.
func Parse(file string, b []byte) (*Profile, error) { return parseFor(file, b, "", nil) }

// parseFor calls beside, unless it is nil, to check a profile that is valid in
// itself.
func parseFor(file string, b []byte, arch string, beside func(*Profile, report)) (*Profile, error) {
	p := Defaults()
	d := decodeStrict(file, b, p)
	if arch != "" {
		p.Arch = arch
	}
	if len(d.problems) == 0 {
		p.validate(d.at, func(field string) bool { _, ok := d.pos[field]; return ok })
	}
	if len(d.problems) == 0 && beside != nil {
		beside(p, d.at)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// readFile reads a file of at most MaxSize bytes.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%s: more than %d bytes", path, MaxSize)
	}
	return b, nil
}

// Defaults returns a profile with the values that hold where a file leaves a
// field out. Fields without a default are empty: apiVersion, kind, name,
// version, kubernetes.version, attest.url.
func Defaults() *Profile {
	return &Profile{
		Arch:   AMD64,
		Base:   "minimal",
		Debian: Debian{Suite: "bookworm", Mirror: "http://deb.debian.org"},
		Kubernetes: Kubernetes{
			Distro:        "kubernetes",
			PodCIDR:       "10.88.0.0/24",
			ClusterDNS:    "10.96.0.10",
			ClusterDomain: "cluster.local",
		},
		Disk:    Disk{ESP: 128, Slot: 512},
		Install: Install{},
	}
}

// setDependentDefaults fills in defaults that follow from other fields.
func (p *Profile) setDependentDefaults() {
	for i := range p.Files {
		if p.Files[i].Mode == "" {
			p.Files[i].Mode = "0644"
		}
	}
	if !reflect.ValueOf(p.Policy).IsZero() {
		if p.Policy.Format == 0 {
			p.Policy.Format = 1
		}
		if p.Policy.Name == "" {
			p.Policy.Name = p.Name
		}
	}
	if p.Kubernetes.Source == "" {
		p.Kubernetes.Source = p.Kubernetes.defaultSource()
	}
	if p.Kernel.Package == "" {
		p.Kernel.Package = "linux-image-cloud-" + p.Arch
	}
	if p.Disk.UKI == 0 {
		p.Disk.UKI = defaultUKI(p.Arch)
	}
	if p.Disk.Verity == 0 {
		p.Disk.Verity = minVerity(p.Disk.Slot)
	}
	if p.Install.MinDisk == 0 {
		p.Install.MinDisk = p.Disk.fixed() + minState
	}
}

// minState is the smallest state partition that a node can live on, in MiB:
// an unpacked workload image and the container runtime's own files.
const minState = 512

// fixed is what the partitions of an image need, in MiB, with alignment and
// both partition tables.
func (d Disk) fixed() int { return d.ESP + 2*(d.Slot+d.Verity) + 2 }

// minVerity is the size in MiB of a hash tree over a slot of that many MiB:
// one 4096-byte block holds 128 digests, on each level, and the superblock
// takes one more block.
func minVerity(slot int) int {
	blocks, total := slot*256, 1
	for blocks > 1 {
		blocks = (blocks + 127) / 128
		total += blocks
	}
	return (total + 255) / 256
}
