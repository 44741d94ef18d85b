package redteam

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sealift/sealift/attest/papertpm"
)

// Files of an authority's directory.
const (
	FileCACert = "ek-ca.crt" // PEM
	fileCAKey  = "ek-ca.key" // PKCS #8 in PEM
)

// maxCAFile bounds a file of an authority, bytes.
const maxCAFile = 16 << 10

// caLife is how long an authority and its certificates are valid: attacks are
// tried for a day, and a policy that was forgotten afterwards trusts nobody.
const caLife = 24 * time.Hour

// CreateCA makes the directory with a new authority for the endorsement keys of
// the attacks. It is valid for one day.
func CreateCA(dir string, now time.Time) (*papertpm.CA, error) {
	ca, err := papertpm.NewCA(now.Add(-time.Minute), now.Add(caLife))
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(ca.Key)
	if err != nil {
		return nil, fmt.Errorf("make the authority %s: %w", dir, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the authority: %w", err)
	}
	for _, f := range []struct {
		name string
		pem  *pem.Block
		mode os.FileMode
	}{
		{fileCAKey, &pem.Block{Type: "PRIVATE KEY", Bytes: key}, 0o600},
		{FileCACert, &pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}, 0o644},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.name), pem.EncodeToMemory(f.pem), f.mode); err != nil {
			return nil, fmt.Errorf("make the authority: %w", err)
		}
	}
	return ca, nil
}

// OpenCA reads what CreateCA made.
func OpenCA(dir string) (*papertpm.CA, error) {
	block := func(name, kind string) ([]byte, error) {
		path := filepath.Join(dir, name)
		st, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !st.Mode().IsRegular() || st.Size() > maxCAFile {
			return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, maxCAFile)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		p, rest := pem.Decode(b)
		if p == nil || p.Type != kind || len(rest) != 0 {
			return nil, fmt.Errorf("%s is not exactly one PEM block %q", path, kind)
		}
		return p.Bytes, nil
	}
	fail := func(err error) (*papertpm.CA, error) { return nil, fmt.Errorf("read the authority: %w", err) }
	der, err := block(FileCACert, "CERTIFICATE")
	if err != nil {
		return fail(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(err)
	}
	if der, err = block(fileCAKey, "PRIVATE KEY"); err != nil {
		return fail(err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return fail(err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(root.PublicKey) {
		return fail(errors.New("its key is not the one of its certificate"))
	}
	return &papertpm.CA{Root: root, Key: key, NotBefore: root.NotBefore, NotAfter: root.NotAfter}, nil
}
