package image

import (
	"context"
	"crypto/sha256"
	"errors"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/provenance"
	"github.com/sealift/sealift/image/sbom"
	"github.com/sealift/sealift/profiles"
)

// Names of a path's first part in SBOMs: where in the image a file is.
const (
	PlaceRoot      = "root"      // the root file system
	PlaceInitramfs = "initramfs" // of the image's UKI
	PlaceInstaller = "installer" // the initramfs of the installer's UKI
	PlaceUKI       = "uki"       // parts of the UKIs: linux, stub
)

// inventory writes the SBOMs, each with a bundle over it. They name the disk
// image by its digest; the manifest then lists them.
func (b *builder) inventory(ctx context.Context) error {
	b.progress(StepInventory, 0, b.Root.Stats().Bytes)
	places := []sbom.Place{{Name: PlaceRoot, Tree: b.Root}, {Name: PlaceInitramfs, Tree: b.Boot}}
	if b.hasInstaller() {
		places = append(places, sbom.Place{Name: PlaceInstaller, Tree: b.Installer})
	}
	v, err := sbom.Scan(ctx, sbom.Input{
		Name: b.Profile.Name, Version: b.Profile.Version, Arch: b.Profile.Arch,
		Digest: b.diskDigest, Epoch: b.Epoch, Tool: b.Provenance.Version,
		Packages: b.Packages, Base: b.Base,
		Places:    places,
		Blobs:     []sbom.Blob{{Place: PlaceUKI, Name: "linux", Data: b.Kernel}, {Place: PlaceUKI, Name: "stub", Data: b.Stub}},
		ImagesDir: profiles.ImagesDir, Workers: b.Workers, TempDir: b.out.dir,
	})
	if err != nil {
		return err
	}
	for _, d := range []struct {
		kind, name string
		encode     func() ([]byte, error)
	}{
		{manifest.KindSPDX, FileSPDX, v.SPDX},
		{manifest.KindCycloneDX, FileCycloneDX, v.CycloneDX},
	} {
		text, err := d.encode()
		if err != nil {
			return err
		}
		bundle, err := b.Signer.Sign(ctx, text)
		if err != nil {
			return err
		}
		if err := errors.Join(b.out.write(d.name, text), b.out.write(BundleOf(d.name), bundle)); err != nil {
			return err
		}
		b.addArtifact(d.kind, d.name, int64(len(text)), sha256.Sum256(text))
	}
	b.progress(StepInventory, b.Root.Stats().Bytes, b.Root.Stats().Bytes)
	return nil
}

// provenance writes the statement of how the image was made, and a bundle that
// holds it. It comes last: its subjects are the manifest and all that the
// manifest lists.
func (b *builder) provenance(ctx context.Context, manifestText []byte) error {
	s, err := provenance.New(provenance.Input{
		Manifest: b.m, ManifestName: FileManifest, ManifestText: manifestText, Parameters: b.Provenance,
	})
	if err != nil {
		return err
	}
	text, err := s.Encode()
	if err != nil {
		return err
	}
	bundle, err := b.Signer.SignStatement(ctx, text)
	if err != nil {
		return err
	}
	return errors.Join(b.out.write(FileProvenance, text), b.out.write(BundleOf(FileProvenance), bundle))
}
