package main

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/inspect"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
	"github.com/sealift/sealift/image/sign/bundle"
)

// verifyOptions say what to verify, and with whose keys.
type verifyOptions struct {
	path, manifest      string
	keys                string
	imageKey, pcrKey    string
	pk, kek, db         string
	diskOnly, installed bool
}

func newImageVerifyCommand(e *env) *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify IMAGE",
		Short: "Derive everything in an image's manifest from its bytes again",
		Long: `Verifies an image: a directory of 'sealift image build', one file of it that
holds the disk (raw, zstd, qcow2, or the installation medium), or a block device.
Re-derives from the disk what the manifest says about it: partition table, ESP,
the UKI with its signature and measurements, the dm-verity tree, the root file
system, and every chunk; and compares what else holds the disk or the installer.
Each check is a line. What cannot be checked has failed. An image whose manifest
lists neither installer.efi nor installer.iso has no installer to check: a line
says so. Needs no network and no root.

Of the keys, only public halves and certificates are read.

Example:
  sealift image verify build/image --keys keys
  sealift image verify /dev/sdb --manifest build/image/manifest.json --keys keys --installed

EXIT STATUS
  0  every check passed
  1  it could not begin: a file cannot be read
  2  the command line is wrong
  3  a check failed`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.path = args[0]
			return verifyImage(cmd.Context(), e, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.keys, "keys", "", "`directory` with image.pub, PK.crt, KEK.crt, db.crt and pcr.pub (default \"keys\" unless --image-key is given)")
	f.StringVar(&o.imageKey, "image-key", "", "public key `file` that images are signed with")
	f.StringVar(&o.db, "db", "", "certificate `file` that UKIs are signed with")
	f.StringVar(&o.pk, "pk", "", "certificate `file` of the platform key")
	f.StringVar(&o.kek, "kek", "", "certificate `file` of the key exchange key")
	f.StringVar(&o.pcrKey, "pcr-key", "", "public key `file` of PCR policies")
	f.StringVar(&o.manifest, "manifest", "", "manifest `file`, with its signature beside it (default: beside the disk)")
	f.BoolVar(&o.diskOnly, "disk-only", false, "check the disk, not the files beside the manifest")
	f.BoolVar(&o.installed, "installed", false, "the disk is that of a machine: with a GUID of its own, a moved backup table, and its state")
	return cmd
}

func verifyImage(ctx context.Context, e *env, o verifyOptions) (err error) {
	in, err := o.input()
	if err != nil {
		return err
	}
	d, err := o.openDisk(&in)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	in.Disk = d
	var checks int
	var failed error // to write a line
	bad, err := inspect.Verify(ctx, in, func(c inspect.Check) {
		checks++
		mark := "ok  "
		if !c.OK {
			mark = "FAIL"
		}
		if err := e.print(c, "%s  %s: %s", mark, c.Name, plain(c.Detail)); failed == nil {
			failed = err
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	if bad > 0 {
		return refused{fmt.Errorf("image %s: %d of %d checks failed", o.path, bad, checks)}
	}
	return nil
}

// input reads keys and manifest.
func (o *verifyOptions) input() (inspect.Input, error) {
	in := inspect.Input{DiskOnly: o.diskOnly, Installed: o.installed}
	info, err := os.Stat(o.path)
	if err != nil {
		return in, withHint(fmt.Errorf("open the image: %w", err), "sealift image build PROFILE --out %s", o.path)
	}
	if in.Keys, err = o.readKeys(); err != nil {
		return in, err
	}
	switch {
	case o.manifest != "":
	case info.IsDir():
		o.manifest = filepath.Join(o.path, image.FileManifest)
	case info.Mode().IsRegular():
		o.manifest = filepath.Join(filepath.Dir(o.path), image.FileManifest)
	default:
		return in, usage{errors.New("a device has no manifest beside it: give --manifest")}
	}
	in.Dir = filepath.Dir(o.manifest)
	if in.Manifest, err = readFile(o.manifest, manifest.MaxSize); err != nil {
		return in, withHint(fmt.Errorf("read the manifest: %w", err), "say where it is with --manifest")
	}
	in.Bundle, err = readFile(o.manifest+sign.BundleSuffix, maxSmall)
	if errors.Is(err, os.ErrNotExist) {
		return in, refused{fmt.Errorf("the manifest of %s is not signed: %w", o.path, err)}
	}
	if err != nil {
		return in, fmt.Errorf("read the signature: %w", err)
	}
	return in, nil
}

// openDisk opens the disk that the path names or, in a directory, the one of
// diskArtifact. A file that the manifest lists is read as what it is there, and
// as nothing else.
func (o *verifyOptions) openDisk(in *inspect.Input) (*inspect.DiskFile, error) {
	info, err := os.Stat(o.path)
	if err != nil {
		return nil, err
	}
	path := o.path
	m, err := manifest.Decode(in.Manifest)
	if err != nil {
		// The names of the files cannot be had from it; say what is wrong.
		return nil, refused{fmt.Errorf("image %s: %w", o.path, err)}
	}
	if info.IsDir() {
		a, ok := diskArtifact(m)
		if !ok {
			return nil, refused{fmt.Errorf("image %s: its manifest lists no file that holds the disk", o.path)}
		}
		path = filepath.Join(o.path, a.Name)
	}
	kind := ""
	for _, a := range m.Artifacts {
		here, err1 := os.Stat(path)
		there, err2 := os.Stat(filepath.Join(in.Dir, filepath.Base(a.Name)))
		if err1 == nil && err2 == nil && os.SameFile(here, there) {
			in.DiskName, kind = a.Name, a.Kind
		}
	}
	var d *inspect.DiskFile
	if kind != "" {
		d, err = inspect.OpenArtifact(path, kind)
	} else {
		d, err = inspect.OpenDisk(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, refused{fmt.Errorf("image %s: %w", o.path, err)}
	}
	if err != nil {
		return nil, refused{err}
	}
	return d, nil
}

// readKeys reads the public halves that were named or that --keys holds. One
// that is not there is left out; the check that needs it will fail.
func (o *verifyOptions) readKeys() (inspect.Keys, error) {
	var keys inspect.Keys
	if o.keys == "" && o.imageKey == "" {
		o.keys = "keys"
	}
	read := func(file, name string) ([]byte, error) {
		if file != "" {
			return readFile(file, maxSmall)
		}
		if o.keys == "" {
			return nil, nil
		}
		b, err := readFile(filepath.Join(o.keys, name), maxSmall)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	var err error
	if keys.Image, err = read(o.imageKey, keyring.FileImage+".pub"); err == nil && keys.Image == nil {
		err = fmt.Errorf("%s: %w", filepath.Join(o.keys, keyring.FileImage+".pub"), os.ErrNotExist)
	}
	if err == nil {
		_, err = bundle.PublicKey(keys.Image)
	}
	if err != nil {
		return keys, withHint(fmt.Errorf("read the image key: %w", err), "give the directory of 'sealift keys init' as --keys, or its image.pub as --image-key")
	}
	for _, c := range []struct {
		to         **x509.Certificate
		file, name string
	}{{&keys.PK, o.pk, keyring.FilePK}, {&keys.KEK, o.kek, keyring.FileKEK}, {&keys.DB, o.db, keyring.FileDB}} {
		b, err := read(c.file, c.name+".crt")
		if err == nil && b != nil {
			*c.to, err = parseCertificate(b)
		}
		if err != nil {
			return keys, fmt.Errorf("read the certificate of %s: %w", c.name, err)
		}
	}
	b, err := read(o.pcrKey, keyring.FilePCR+".pub")
	if err == nil && b != nil {
		keys.PCR, err = parseRSA(b)
	}
	if err != nil {
		return keys, fmt.Errorf("read the PCR key: %w", err)
	}
	return keys, nil
}

func parseCertificate(b []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it is no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseRSA(b []byte) (*rsa.PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("it is no PEM public key")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("it is %T, want RSA", key)
	}
	return public, nil
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
