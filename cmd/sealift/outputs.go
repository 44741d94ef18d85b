package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
)

// addOutputFlag adds --output, which may be given several times or with commas.
func addOutputFlag(f *pflag.FlagSet, to *[]string) {
	var standard []string
	for _, o := range image.DefaultOutputs() {
		standard = append(standard, string(o))
	}
	f.StringSliceVar(to, "output", standard, "`forms` of the image: raw, raw.zst, qcow2, iso, netboot")
}

// parseOutputs reads the values of --output.
func parseOutputs(names []string) ([]image.Output, error) {
	all, err := image.ParseOutputs(names)
	if err != nil {
		return nil, withHint(usage{fmt.Errorf("--output: %w", err)}, "sealift image build --help")
	}
	return all, nil
}

// busy says what to do about a build that is in another one's way.
func busy(err error) error {
	if errors.Is(err, image.ErrBusy) {
		return withHint(err, "wait until it is done, or choose another --out")
	}
	return err
}

// stampOf is what stands in the file beside an image: the digest of what it was
// made from, and that of its manifest. So a stamp is of no other image, also
// when a build ended between the two.
func stampOf(inputs, dir string) (string, error) {
	b, err := readFile(filepath.Join(dir, image.FileManifest), manifest.MaxSize)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s\n%x\n", strings.TrimSpace(inputs), sha256.Sum256(b)), nil
}
