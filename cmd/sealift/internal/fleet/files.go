package fleet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
)

// Files of a fleet's directory. A service takes the root as a TPM root of class
// software, the image directory as an image, and the catalogue.
const (
	FileRoot      = "tpm-root.pem"
	fileRootKey   = "tpm-root.key"
	DirImage      = "image"
	FileCatalogue = "catalogue.yaml"
)

// rootLife is how long the authority of the software TPMs is valid.
const rootLife = 10 * 365 * 24 * time.Hour

// MinLog and MaxLog bound the size of a machine's event log, bytes.
const (
	MinLog = 4 << 10
	MaxLog = attest.MaxEventLog
)

// Files is what a fleet and its service know of each other.
type Files struct {
	CA    *papertpm.CA
	Image *manifest.Manifest
	Boot  *papertpm.Boot // of any machine; its disk is replaced
	// Firmware is the digest of the machines' firmware.
	Firmware manifest.SHA256
}

// catalogue holds the firmware of papertpm.GoodBoot.
const catalogue = `models:
  - vendor: Paper
    product: Box
    builds:
      - {version: "1.0", digests: [%x], unpinned: 1, status: allowed}
`

// A Signer signs manifests; image/sign has one.
type Signer interface {
	Sign(ctx context.Context, message []byte) ([]byte, error)
}

// Prepare makes the directory dir. It must not exist.
func Prepare(ctx context.Context, dir string, signer Signer, now time.Time) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("prepare a simulated fleet: %w", err)
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, DirImage), 0o700); err != nil {
		return err
	}
	ca, err := papertpm.NewCA(now.Add(-time.Hour), now.Add(rootLife))
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(ca.Key)
	if err != nil {
		return err
	}
	m, err := papertpm.GoodImage().Encode()
	if err != nil {
		return err
	}
	bundle, err := signer.Sign(ctx, m)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content []byte
		mode    fs.FileMode
	}{
		{FileRoot, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}), 0o644},
		{fileRootKey, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600},
		{FileCatalogue, fmt.Appendf(nil, catalogue, papertpm.GoodFirmware().Digests[0][:]), 0o644},
		{filepath.Join(DirImage, image.FileManifest), m, 0o644},
		{filepath.Join(DirImage, image.FileBundle), bundle, 0o644},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.name), f.content, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// Load reads what Prepare made. The machines' event logs have about logSize
// bytes, MinLog to MaxLog.
func Load(dir string, logSize int) (*Files, error) {
	fail := func(err error) (*Files, error) { return nil, fmt.Errorf("read the simulated fleet %s: %w", dir, err) }
	if logSize < MinLog || logSize > MaxLog {
		return fail(fmt.Errorf("event log of %d bytes, want %d to %d", logSize, MinLog, MaxLog))
	}
	block := func(name string) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		p, _ := pem.Decode(b)
		if p == nil {
			return nil, fmt.Errorf("%s holds no PEM", name)
		}
		return p.Bytes, nil
	}
	der, err := block(FileRoot)
	if err != nil {
		return fail(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(err)
	}
	if der, err = block(fileRootKey); err != nil {
		return fail(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return fail(err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return fail(errors.New("the root's key is not ECDSA"))
	}
	return &Files{
		CA:    &papertpm.CA{Root: root, Key: ec, NotBefore: root.NotBefore, NotAfter: root.NotAfter},
		Image: papertpm.GoodImage(), Boot: Boot(logSize), Firmware: papertpm.GoodFirmware().Digests[0],
	}, nil
}

// Boot is papertpm.GoodBoot with a log of about that size: dbx, which is what
// is large in real logs, is filled with hashes.
func Boot(logSize int) *papertpm.Boot {
	b := papertpm.GoodBoot()
	dbx := papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbx", []byte("dbx"))
	for i, m := range b.Measured {
		if !bytes.Equal(m.Data, dbx) {
			continue
		}
		var hashes []byte
		for n := 0; len(b.Log())+len(hashes) < logSize; n++ {
			d := sha256.Sum256(fmt.Appendf(nil, "forbidden %d", n))
			hashes = append(hashes, d[:]...)
		}
		b.Measured[i].Data = papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbx", hashes[:len(hashes)/32*32])
		b.Measured[i].Measured = nil
	}
	return b
}
