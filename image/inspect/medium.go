package inspect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/iso9660"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
)

// readMedium reads the directory of an installation medium, as the installer
// does, but wants exactly the files that the builder puts there.
func readMedium(medium Disk) (*iso9660.Volume, error) {
	v, err := iso9660.Read(medium, medium.Size())
	if err != nil {
		return nil, err
	}
	want := []string{profiles.MediumManifest, profiles.MediumBundle, profiles.MediumRecords, profiles.MediumDisk}
	slices.Sort(want)
	return v, several(present(
		same("label of the medium", v.Label, profiles.MediumLabel),
		same("files on the medium", fmt.Sprintf("%.300q", v.Names()), fmt.Sprintf("%q", want)),
	))
}

// openMediumDisk opens the compressed disk on an installation medium.
func openMediumDisk(medium Disk) (*zstdDisk, error) {
	v, err := readMedium(medium)
	if err != nil {
		return nil, err
	}
	f, _ := v.Open(profiles.MediumDisk) // readMedium wants it
	return openZstd(f, f.Size())
}

// checkISO checks what is on an installation medium: the image's installer to
// boot, the image's manifest with the compressed disk for its only artifact, and
// that disk.
func (v *verifier) checkISO(ctx context.Context, a manifest.Artifact) (_ string, err error) {
	f, err := v.open(a.Name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	medium := &rawDisk{f: f, size: info.Size()}
	got, err := isoInstaller(medium, v.m.Arch)
	if err != nil {
		return "", err
	}
	want, err := v.installer()
	if err != nil {
		return "", err
	}
	if !bytes.Equal(got, want) {
		return "", errors.New("the installer on its ESP is another than the image's")
	}
	volume, err := readMedium(medium)
	if err != nil {
		return "", err
	}
	if err := v.checkMediumManifest(ctx, volume); err != nil {
		return "", err
	}
	records, err := readMediumFile(volume, profiles.MediumRecords, profiles.MediumRecordsSize)
	if err != nil {
		return "", err
	}
	if len(records) != profiles.MediumRecordsSize || len(bytes.Trim(records, "\n")) != 0 {
		return "", fmt.Errorf("%s on it is not %d empty lines", profiles.MediumRecords, profiles.MediumRecordsSize)
	}
	if a.Name != v.DiskName { // else disk.chunks has it
		packed, err := openMediumDisk(medium)
		if err != nil {
			return "", err
		}
		if err := same("size of the disk on it", packed.Size(), v.m.Disk.Size); err != nil {
			return "", err
		}
		if _, err := v.compareChunks(ctx, packed); err != nil {
			return "", fmt.Errorf("the disk on it: %w", err)
		}
	}
	return "the image's installer on its ESP, the image's manifest, and the disk", nil
}

// checkMediumManifest makes the manifest of a medium out of the image's and the
// compressed disk there, and wants it to be the one on the medium, and signed.
func (v *verifier) checkMediumManifest(ctx context.Context, volume *iso9660.Volume) error {
	packed, _ := volume.Open(profiles.MediumDisk) // readMedium wants it
	h := sha256.New()
	for off := int64(0); off < packed.Size(); off += 16 << 20 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := io.Copy(h, io.NewSectionReader(packed, off, min(16<<20, packed.Size()-off))); err != nil {
			return err
		}
	}
	own := *v.m
	own.Artifacts = []manifest.Artifact{{
		Kind: manifest.KindDiskZstd, Name: profiles.MediumDisk, Size: packed.Size(), SHA256: manifest.SHA256(h.Sum(nil)),
	}}
	if listed, ok := v.m.Artifact(manifest.KindDiskZstd); ok {
		if err := same("SHA-256 of "+profiles.MediumDisk+" on it", own.Artifacts[0].SHA256, listed.SHA256); err != nil {
			return err
		}
	}
	want, err := own.Encode()
	if err != nil {
		return err
	}
	got, err := readMediumFile(volume, profiles.MediumManifest, manifest.MaxSize)
	if err != nil {
		return err
	}
	if i := firstDifference(got, want); i >= 0 {
		return fmt.Errorf("%s on it is not the image's with the disk there, from byte %d on", profiles.MediumManifest, i)
	}
	signature, err := readMediumFile(volume, profiles.MediumBundle, bundle.MaxStatementSize)
	if err != nil {
		return err
	}
	if err := bundle.Verify(got, signature, v.Keys.Image); err != nil {
		return fmt.Errorf("%s on it: %w", profiles.MediumBundle, err)
	}
	return nil
}

// readMediumFile returns a whole file of at most max bytes.
func readMediumFile(volume *iso9660.Volume, name string, max int64) ([]byte, error) {
	f, _ := volume.Open(name) // readMedium wants it
	if f.Size() > max {
		return nil, fmt.Errorf("%s on it has more than %d bytes", name, max)
	}
	return readAll(f, 0, int(f.Size()))
}

// isoInstaller reads the installer from the ESP of an installation medium.
func isoInstaller(medium Disk, arch string) ([]byte, error) {
	t, err := ReadTable(medium)
	if err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	boot, err := disk.BootPath(arch)
	if err != nil {
		return nil, err
	}
	for _, p := range t.Partitions {
		if p.Type.String() != "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" {
			continue
		}
		part, err := sectionOf(medium, int64(p.First)*SectorSize, int64(p.Last-p.First+1)*SectorSize)
		if err != nil {
			return nil, err
		}
		esp, err := ReadFAT(part)
		if err != nil {
			return nil, fmt.Errorf("ESP: %w", err)
		}
		for _, e := range esp.Entries {
			if e.Path == boot && !e.Dir {
				return esp.ReadFile(e, maxUKI)
			}
		}
	}
	return nil, fmt.Errorf("no ESP with %s", boot)
}
