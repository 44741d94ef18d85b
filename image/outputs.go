package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/iso"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/qcow2"
	"github.com/sealift/sealift/profiles"
)

// Output is a form in which an image leaves the builder. The UKI and the
// signed manifest are there in any case.
type Output string

// Outputs that can be chosen.
const (
	OutputRaw     Output = "raw"     // FileDisk
	OutputRawZstd Output = "raw.zst" // FileDiskZstd, for installers
	OutputQCOW2   Output = "qcow2"   // FileQCOW2, for virtual machines
	OutputISO     Output = "iso"     // FileISO, for installing without a network
	OutputNetboot Output = "netboot" // FileInstaller
)

// DefaultOutputs are what a factory network and an operator's checks need.
func DefaultOutputs() []Output { return []Output{OutputRaw, OutputRawZstd, OutputNetboot} }

// ParseOutputs reads names of outputs, each of which may stand several times.
func ParseOutputs(names []string) ([]Output, error) {
	known := []string{string(OutputRaw), string(OutputRawZstd), string(OutputQCOW2), string(OutputISO), string(OutputNetboot)}
	var all []Output
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("unknown output %q; %s", name, profiles.Suggest(name, known))
		}
		if !slices.Contains(all, Output(name)) {
			all = append(all, Output(name))
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no output: want some of %s", strings.Join(known, ", "))
	}
	return all, nil
}

// wants reports whether an output was chosen.
func (b *builder) wants(o Output) bool { return slices.Contains(b.Outputs, o) }

// compress computes the disk's digests and, for those who need it, its
// compressed form.
func (b *builder) compress(ctx context.Context) (err error) {
	image, err := b.out.open(FileDisk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	size := b.m.Disk.Size
	progress := func(done int64) { b.progress(StepCompress, done, size) }
	if !b.wants(OutputRawZstd) && !b.wants(OutputISO) {
		d, err := disk.Split(ctx, image, size, nil, b.Workers, progress)
		if err != nil {
			return err
		}
		b.addDisk(d)
		return nil
	}
	f, err := b.out.create(FileDiskZstd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	d, err := disk.Split(ctx, image, size, io.MultiWriter(f, h), b.Workers, progress)
	if err != nil {
		return err
	}
	n, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("compress disk image: %w", err)
	}
	b.addDisk(d)
	b.compressed = manifest.Artifact{Kind: manifest.KindDiskZstd, Name: FileDiskZstd, Size: n, SHA256: manifest.SHA256(h.Sum(nil))}
	if b.wants(OutputRawZstd) {
		b.m.Artifacts = append(b.m.Artifacts, b.compressed)
	}
	return nil
}

func (b *builder) addDisk(d *disk.Digests) {
	b.m.Disk.Chunks = d.Chunks
	b.diskDigest = d.SHA256
	if b.wants(OutputRaw) {
		b.addArtifact(manifest.KindDisk, FileDisk, b.m.Disk.Size, d.SHA256)
	}
}

// qcow2 writes the disk image for virtual machines.
func (b *builder) qcow2(ctx context.Context) (err error) {
	if !b.wants(OutputQCOW2) {
		return nil
	}
	image, err := b.out.open(FileDisk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	f, err := b.out.create(FileQCOW2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size := b.m.Disk.Size
	if _, err := qcow2.Write(ctx, f, image, size, b.Workers, func(done int64) { b.progress(StepQCOW2, done, size) }); err != nil {
		return err
	}
	return b.addFile(ctx, manifest.KindQCOW2, FileQCOW2, f)
}

// iso writes the installation medium: the installer to boot, and what it
// fetches from a provisioner elsewhere.
//
// A manifest cannot list the digest of a medium that it is on. The medium's
// own manifest is the image's without the other outputs, signed by the same key.
func (b *builder) iso(ctx context.Context) (err error) {
	if !b.wants(OutputISO) {
		return nil
	}
	own := *b.m
	own.Artifacts = []manifest.Artifact{b.compressed}
	text, bundle, err := b.signed(ctx, &own)
	if err != nil {
		return err
	}
	payload, err := b.out.open(FileDiskZstd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, payload.Close()) }()
	f, err := b.out.create(FileISO)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Empty lines of JSON lines, to be written over in place.
	records := bytes.Repeat([]byte("\n"), profiles.MediumRecordsSize)
	file := func(name string, data []byte) iso.File {
		return iso.File{Name: name, Size: int64(len(data)), Content: bytes.NewReader(data)}
	}
	var done int64
	counted := &reader{ctx, payload, func(n int) {
		done += int64(n)
		b.progress(StepISO, done, b.compressed.Size)
	}}
	path, err := disk.BootPath(b.Profile.Arch)
	if err != nil {
		return err
	}
	size, err := iso.Write(f, iso.Medium{
		Label: profiles.MediumLabel,
		Boot:  disk.ESPFile{Path: path, Data: b.installerUKI},
		Files: []iso.File{
			file(profiles.MediumManifest, text),
			file(profiles.MediumBundle, bundle),
			file(profiles.MediumRecords, records),
			{Name: profiles.MediumDisk, Size: b.compressed.Size, Content: counted},
		},
		Epoch: b.Epoch,
	})
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("write installation medium: %w", err)
	}
	return b.addFile(ctx, manifest.KindISO, FileISO, f)
}

// addFile lists a finished file, whose digest it computes.
func (b *builder) addFile(ctx context.Context, kind, name string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("output file %s: %w", name, err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, &reader{ctx, io.NewSectionReader(f, 0, info.Size()), nil}); err != nil {
		return fmt.Errorf("read back output file %s: %w", name, err)
	}
	b.addArtifact(kind, name, info.Size(), manifest.SHA256(h.Sum(nil)))
	return nil
}

// trim removes what was only needed on the way.
func (b *builder) trim(context.Context) error {
	for output, name := range map[Output]string{OutputRaw: FileDisk, OutputRawZstd: FileDiskZstd} {
		if b.wants(output) {
			continue
		}
		if err := os.Remove(filepath.Join(b.out.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove an intermediate file: %w", err)
		}
	}
	return nil
}

// reader ends when its context does, and tells how much was read.
type reader struct {
	ctx  context.Context // of the one read that the value stands for
	r    io.Reader
	told func(n int) // may be nil
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	if r.told != nil {
		r.told(n)
	}
	return n, err
}
