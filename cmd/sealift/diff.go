package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/inspect"
	"github.com/sealift/sealift/image/manifest"
)

func newImageDiffCommand(e *env) *cobra.Command {
	var noBytes bool
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Tell what differs between two images",
		Long: `Compares two images, each a directory of 'sealift image build', a disk, raw or
zstd or qcow2 as the builder writes it, or a block device: packages, kernel
modules, files, initramfs, ESP, sections of the UKI, kernel parameters, reference
values, partitions, manifests, and how many bytes changed where. Each difference
is a line: + only in B, - only in A, ~ in both. It verifies nothing.

Example:
  sealift image diff build/image.old build/image

EXIT STATUS
  0  they are equal
  1  they differ, or one cannot be read
  2  the command line is wrong`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return diffImages(cmd.Context(), e, args[0], args[1], !noBytes)
		},
	}
	cmd.Flags().BoolVar(&noBytes, "no-bytes", false, "do not count the bytes that changed")
	return cmd
}

// compared is one of two images.
type compared struct {
	*inspect.Image
	manifest *manifest.Manifest // nil if there is none beside the disk
	disk     *inspect.DiskFile
}

func diffImages(ctx context.Context, e *env, pathA, pathB string, countBytes bool) (err error) {
	var both [2]compared
	for i, path := range []string{pathA, pathB} {
		if both[i], err = loadImage(ctx, path); err != nil {
			return fmt.Errorf("read image %s: %w", path, err)
		}
		defer func() { err = errors.Join(err, both[i].disk.Close()) }()
	}
	a, b := both[0], both[1]
	all := inspect.Compare(a.Image, b.Image)
	if a.manifest != nil && b.manifest != nil {
		fields, err := inspect.CompareManifests(a.manifest, b.manifest)
		if err != nil {
			return err
		}
		all = append(all, fields...)
	}
	if countBytes {
		changed, err := inspect.CompareBytes(ctx, a.Image, b.Image)
		if err != nil {
			return err
		}
		all = append(all, changed...)
	}
	for _, d := range all {
		if err := e.print(d, "%s", plain(d.String())); err != nil {
			return err
		}
	}
	if n := len(all); n > 0 {
		return fmt.Errorf("%s and %s differ in %d things", pathA, pathB, n)
	}
	return nil
}

// loadImage reads an image and what is beside its disk. Nothing is believed of
// a manifest but what there is to print.
func loadImage(ctx context.Context, path string) (_ compared, err error) {
	var c compared
	info, err := os.Stat(path)
	if err != nil {
		return c, err
	}
	dir := path
	if !info.IsDir() {
		dir = filepath.Dir(path)
	}
	beside := info.IsDir() || info.Mode().IsRegular()
	if beside {
		b, err := readFile(filepath.Join(dir, image.FileManifest), manifest.MaxSize)
		if err == nil {
			c.manifest, err = manifest.Decode(b)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return c, err
		}
	}
	if info.IsDir() {
		a := manifest.Artifact{Kind: manifest.KindDisk, Name: image.FileDisk}
		if c.manifest != nil {
			if listed, ok := diskArtifact(c.manifest); ok {
				a = listed
			}
		}
		c.disk, err = inspect.OpenArtifact(filepath.Join(dir, a.Name), a.Kind)
	} else {
		c.disk, err = inspect.OpenDisk(path)
	}
	if err != nil {
		return c, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.disk.Close())
		}
	}()
	if c.Image, err = inspect.Load(ctx, c.disk); err != nil || !beside {
		return c, err
	}
	b, err := readFile(filepath.Join(dir, image.FileSPDX), maxSBOM)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	c.Packages, err = inspect.ReadSBOM(b)
	return c, err
}

// maxSBOM bounds an SBOM that is read, bytes.
const maxSBOM = 64 << 20

// diskArtifact returns the file that holds the disk of an image: of several, the
// one that is read fastest.
func diskArtifact(m *manifest.Manifest) (manifest.Artifact, bool) {
	for _, kind := range []string{manifest.KindDisk, manifest.KindDiskZstd, manifest.KindQCOW2, manifest.KindISO} {
		if a, ok := m.Artifact(kind); ok && a.Name == filepath.Base(a.Name) {
			return a, true
		}
	}
	return manifest.Artifact{}, false
}
