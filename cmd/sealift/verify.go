package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
)

func newImageVerifyCommand(e *env) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Check an image's signature and the digests of its files",
		Long: `Checks the signature over the manifest with the public key, and every artifact
against the manifest. Needs no network and no root.

Example:
  sealift image verify build/image --key keys/image.pub` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return verifyImage(cmd.Context(), e, args[0], key) },
	}
	cmd.Flags().StringVar(&key, "key", "keys/image.pub", "public key `file` that images are signed with")
	return cmd
}

// verified is what --json prints for each thing that was checked.
type verified struct {
	Verified string          `json:"verified"` // manifest, artifact
	Name     string          `json:"name"`
	Version  string          `json:"version,omitempty"`
	SHA256   manifest.SHA256 `json:"sha256,omitzero"`
}

func verifyImage(ctx context.Context, e *env, dir, key string) error {
	pub, err := readFile(key, maxSmall)
	if err != nil {
		return withHint(fmt.Errorf("read the image key: %w", err), "give the image.pub of the key directory as --key")
	}
	m, _, err := readManifest(dir, pub)
	if err != nil {
		return err
	}
	if err := e.print(verified{Verified: "manifest", Name: m.Name, Version: m.Version}, "ok  manifest: %s %s, signature", m.Name, m.Version); err != nil {
		return err
	}
	for _, a := range m.Artifacts {
		if err := verifyArtifact(ctx, dir, a); err != nil {
			return err
		}
		if err := e.print(verified{Verified: "artifact", Name: a.Name, SHA256: a.SHA256}, "ok  %s: %s", a.Name, a.SHA256); err != nil {
			return err
		}
	}
	return nil
}

// readManifest returns the manifest of an image, and its bytes, if its
// signature is by the key. What is missing or wrong in it is a refusal.
func readManifest(dir string, pub []byte) (*manifest.Manifest, []byte, error) {
	b, err := readFile(filepath.Join(dir, image.FileManifest), manifest.MaxSize)
	if err != nil {
		return nil, nil, withHint(fmt.Errorf("read the manifest: %w", err), "sealift image build PROFILE --out %s", dir)
	}
	sig, err := readFile(filepath.Join(dir, image.FileBundle), maxSmall)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, refused{fmt.Errorf("the manifest of %s is not signed: %w", dir, err)}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the signature: %w", err)
	}
	if err := bundle.Verify(b, sig, pub); err != nil {
		return nil, nil, refused{fmt.Errorf("image %s: %w", dir, err)}
	}
	m, err := manifest.Decode(b)
	if err != nil {
		return nil, nil, refused{fmt.Errorf("image %s: %w", dir, err)}
	}
	return m, b, nil
}

// verifyArtifact checks that a file is what a verified manifest says.
func verifyArtifact(ctx context.Context, dir string, a manifest.Artifact) error {
	if a.Name != filepath.Base(a.Name) || a.Name == "." || a.Name == ".." {
		return refused{fmt.Errorf("artifact %q is not a plain file name", a.Name)}
	}
	file := filepath.Join(dir, a.Name)
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return refused{fmt.Errorf("artifact %s is missing: %w", a.Name, err)}
	case err != nil:
		return fmt.Errorf("artifact %s: %w", a.Name, err)
	case info.Size() != a.Size:
		return refused{fmt.Errorf("artifact %s has %d bytes, the manifest says %d", a.Name, info.Size(), a.Size)}
	}
	sum, err := fileSum(ctx, file)
	if err != nil {
		return fmt.Errorf("artifact %s: %w", a.Name, err)
	}
	if got := manifest.SHA256(sum); got != a.SHA256 {
		return refused{fmt.Errorf("artifact %s: SHA-256 is %s, the manifest says %s", a.Name, got, a.SHA256)}
	}
	return nil
}
