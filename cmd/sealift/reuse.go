package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
)

// stampSuffix names the file beside an image's directory that holds the digest
// of everything that the image was made from.
const stampSuffix = ".inputs"

func stampFile(dir string) string { return filepath.Clean(dir) + stampSuffix }

// stampOf is what stands in the file beside an image: the digest of what it was
// made from, and that of its manifest. So a stamp is of no other image, also
// when a build ended between the two.
func stampOf(inputs string, manifestText []byte) []byte {
	return fmt.Appendf(nil, "%s\n%x\n", strings.TrimSpace(inputs), sha256.Sum256(manifestText))
}

// writeStamp says what the image that a build has returned was made from. What
// lies in its directory by now may be another build's.
func writeStamp(dir, inputs string, m *manifest.Manifest) error {
	text, err := m.Encode()
	if err != nil {
		return err
	}
	return replaceFile(stampFile(dir), stampOf(inputs, text), 0o644)
}

// reusable returns the manifest of an image that was made from the same inputs,
// and all of which is there.
func reusable(ctx context.Context, dir, inputs string, ring *keyring.Keyring) (*manifest.Manifest, error) {
	stamp, err := readFile(stampFile(dir), maxSmall)
	if err != nil {
		return nil, err
	}
	text, err := readFile(filepath.Join(dir, image.FileManifest), manifest.MaxSize)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(stamp, stampOf(inputs, text)) {
		return nil, errors.New("the image was made from other inputs")
	}
	pub, err := ring.PublicPEM(keyring.FileImage)
	if err != nil {
		return nil, err
	}
	return wholeImage(ctx, dir, text, pub)
}

// wholeImage reads all files of an image and holds them against its manifest
// and the signatures. A build syncs none of its files, so that after a power cut
// each may have its size and no content.
func wholeImage(ctx context.Context, dir string, text, pub []byte) (*manifest.Manifest, error) {
	m, err := manifest.Decode(text)
	if err != nil {
		return nil, err
	}
	for _, a := range m.Artifacts {
		sum, err := fileSum(ctx, filepath.Join(dir, filepath.Base(a.Name)))
		if err != nil {
			return nil, err
		}
		if manifest.SHA256(sum) != a.SHA256 {
			return nil, fmt.Errorf("artifact %s has digest %x, the manifest says %s", a.Name, sum, a.SHA256)
		}
	}
	for _, name := range []string{image.FileManifest, image.FileSPDX, image.FileCycloneDX, image.FileProvenance} {
		if err := checkSigned(dir, name, pub); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return m, nil
}

// checkSigned holds a file against the bundle beside it.
func checkSigned(dir, name string, pub []byte) error {
	text, err := readFile(filepath.Join(dir, name), maxSBOM)
	if err != nil {
		return err
	}
	sig, err := readFile(filepath.Join(dir, image.BundleOf(name)), maxSBOM)
	if err != nil {
		return err
	}
	if name != image.FileProvenance {
		return bundle.Verify(text, sig, pub)
	}
	statement, err := bundle.VerifyStatement(sig, pub)
	if err == nil && !bytes.Equal(statement, text) {
		err = errors.New("the bundle holds another statement")
	}
	return err
}
