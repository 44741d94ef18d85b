// Package keyring holds the keys of one fleet in a directory: those of Secure
// Boot, of images, of PCR policies, of the service and of releases. Init makes
// the directory, Open gives access to it.
//
// Private keys are PKCS #8 in PEM, certificates and public keys PEM. The
// directory has mode 0700 and each private file 0600; Open refuses one that
// others can read.
package keyring

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/pkcs7"
)

// Files of the directory.
const (
	FilePK        = "PK"         // .key, .crt, .auth: platform key
	FileKEK       = "KEK"        // .key, .crt, .auth: key exchange key
	FileDB        = "db"         // .key, .crt, .auth: signs UKIs
	FileImage     = "image"      // .key or .ref, .pub: signs manifests, SBOMs and provenance
	FilePCR       = "pcr"        // .key, .pub: signs PCR 11 policies
	FileRelease   = "release"    // .key, .pub: signs releases
	FileServiceCA = "service-ca" // .key, .crt: issues certificates of the service and of operators
	FileDiskKEK   = "disk-kek"   // .key: wraps disk keys at rest, 32 bytes in hex
)

// diskKEKSize is the length of the key that wraps disk keys, in bytes.
const diskKEKSize = 32

// Bounds of a key or certificate file and of a reference, in bytes.
const (
	maxFile = 64 << 10
	maxRef  = 4 << 10
)

// Keyring is an opened key directory. Its methods read files when they are
// called, so a process holds only the keys that it uses.
type Keyring struct{ dir string }

// Open checks that dir is a key directory that no one else can read.
func Open(dir string) (*Keyring, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open key directory: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open key directory %s: it is not a directory", dir)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("open key directory %s: mode is %04o, want 0700 so that no one else can read it", dir, perm)
	}
	return &Keyring{dir: dir}, nil
}

// Dir returns the directory.
func (k *Keyring) Dir() string { return k.dir }

// read returns a file. A private one must have no permissions for others.
func (k *Keyring) read(name string, private bool) (_ []byte, err error) {
	path := filepath.Join(k.dir, name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key directory %s has no file %s: %w", k.dir, name, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("read key file %s: it is not a regular file of at most %d bytes", path, maxFile)
	}
	if perm := info.Mode().Perm(); private && perm&0o077 != 0 {
		return nil, fmt.Errorf("read key file %s: mode is %04o, want 0600", path, perm)
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read key file %s: %w", path, err)
	}
	return b, nil
}

func (k *Keyring) block(name, kind string, private bool) ([]byte, error) {
	b, err := k.read(name, private)
	if err != nil {
		return nil, err
	}
	p, rest := pem.Decode(b)
	if p == nil || p.Type != kind || len(rest) != 0 {
		return nil, fmt.Errorf("key file %s: it is not exactly one PEM block %q", filepath.Join(k.dir, name), kind)
	}
	return p.Bytes, nil
}

// privateKey reads NAME.key as a key of type T.
func privateKey[T crypto.Signer](k *Keyring, name string) (T, error) {
	var none T
	der, err := k.block(name+".key", "PRIVATE KEY", true)
	if err != nil {
		return none, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return none, fmt.Errorf("key file %s: %w", filepath.Join(k.dir, name+".key"), err)
	}
	key, ok := parsed.(T)
	if !ok {
		return none, fmt.Errorf("key file %s: holds %T, want %T", filepath.Join(k.dir, name+".key"), parsed, none)
	}
	return key, nil
}

// Certificate returns NAME.crt: of PK, KEK, db or the service CA.
func (k *Keyring) Certificate(name string) (*x509.Certificate, error) {
	der, err := k.block(name+".crt", "CERTIFICATE", false)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", filepath.Join(k.dir, name+".crt"), err)
	}
	return c, nil
}

// CertificatePEM returns NAME.crt as it is in the file, after checking it.
func (k *Keyring) CertificatePEM(name string) ([]byte, error) {
	if _, err := k.Certificate(name); err != nil {
		return nil, err
	}
	return k.read(name+".crt", false)
}

// DB returns the key that signs UKIs, for package image/pe.
func (k *Keyring) DB() (*pkcs7.Signer, error) {
	key, err := privateKey[*rsa.PrivateKey](k, FileDB)
	if err != nil {
		return nil, err
	}
	cert, err := k.Certificate(FileDB)
	if err != nil {
		return nil, err
	}
	s := &pkcs7.Signer{Key: key, Certificate: cert}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("key directory %s: db: %w", k.dir, err)
	}
	return s, nil
}

// Enrolment returns the Secure Boot certificates.
func (k *Keyring) Enrolment() (efivar.Enrolment, error) {
	pk, err1 := k.Certificate(FilePK)
	kek, err2 := k.Certificate(FileKEK)
	db, err3 := k.Certificate(FileDB)
	return efivar.Enrolment{PK: pk, KEK: kek, DB: db}, errors.Join(err1, err2, err3)
}

// Auth returns the authenticated payload that enrols PK, KEK or db.
func (k *Keyring) Auth(v efivar.Variable) ([]byte, error) {
	switch v {
	case efivar.PK, efivar.KEK, efivar.DB:
		return k.read(string(v)+".auth", false)
	}
	return nil, fmt.Errorf("key directory %s has no payload for EFI variable %q", k.dir, string(v))
}

// Image returns the key that signs manifests.
func (k *Keyring) Image() (*ecdsa.PrivateKey, error) {
	return privateKey[*ecdsa.PrivateKey](k, FileImage)
}

// ImageRef returns the reference of the image key: of one that is kept
// elsewhere, else of the file image.key, which must have no permissions for
// others.
func (k *Keyring) ImageRef() (string, error) {
	b, err := k.read(FileImage+".ref", true)
	if errors.Is(err, fs.ErrNotExist) {
		// Reads it once for its checks.
		_, err := k.Image()
		return filepath.Join(k.dir, FileImage+".key"), err
	}
	if err != nil {
		return "", err
	}
	ref := strings.TrimSuffix(string(b), "\n")
	if ref == "" || len(ref) > maxRef || strings.ContainsAny(ref, "\r\n\x00") {
		return "", fmt.Errorf("key file %s: it is not a reference in one line", filepath.Join(k.dir, FileImage+".ref"))
	}
	return ref, nil
}

// PCR returns the key that signs PCR 11 policies.
func (k *Keyring) PCR() (*rsa.PrivateKey, error) { return privateKey[*rsa.PrivateKey](k, FilePCR) }

// Release returns the key that signs releases.
func (k *Keyring) Release() (*ecdsa.PrivateKey, error) {
	return privateKey[*ecdsa.PrivateKey](k, FileRelease)
}

// PublicPEM returns NAME.pub: of the image, PCR or release key, in PEM.
func (k *Keyring) PublicPEM(name string) ([]byte, error) {
	der, err := k.block(name+".pub", "PUBLIC KEY", false)
	if err != nil {
		return nil, err
	}
	if _, err := x509.ParsePKIXPublicKey(der); err != nil {
		return nil, fmt.Errorf("key file %s: %w", filepath.Join(k.dir, name+".pub"), err)
	}
	return k.read(name+".pub", false)
}

// DiskKEK returns the key that wraps disk keys at rest, 32 bytes.
func (k *Keyring) DiskKEK() (attest.Secret, error) {
	b, err := k.read(FileDiskKEK+".key", true)
	if err != nil {
		return nil, err
	}
	if n := len(b); n > 0 && b[n-1] == '\n' {
		b = b[:n-1]
	}
	key := make([]byte, diskKEKSize)
	if len(b) != hex.EncodedLen(diskKEKSize) {
		return nil, fmt.Errorf("key file %s: got %d characters, want %d hex digits", filepath.Join(k.dir, FileDiskKEK+".key"), len(b), hex.EncodedLen(diskKEKSize))
	}
	if _, err := hex.Decode(key, b); err != nil {
		return nil, fmt.Errorf("key file %s: it is not hex", filepath.Join(k.dir, FileDiskKEK+".key"))
	}
	return key, nil
}
