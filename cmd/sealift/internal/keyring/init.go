package keyring

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/pkcs7"
)

// Lifetimes of certificates. Firmware looks at no validity period, so those of
// Secure Boot only say how long the keys are meant to last.
const (
	secureBootLife = 30 * 365 * 24 * time.Hour
	serviceCALife  = 10 * 365 * 24 * time.Hour
	clockSkew      = time.Hour // certificates begin that much before now
)

// Init makes a key directory with a full set of new keys. It never touches a
// directory that is there, empty or not. The directory appears complete or not
// at all. now dates the certificates and the Secure Boot payloads; rand makes
// serial numbers and the disk key, while crypto takes what it needs for key
// pairs from the operating system.
func Init(dir string, now time.Time, rand io.Reader) error {
	return initialise(dir, now, rand, nil)
}

// External is an image key that is kept elsewhere, in a token or a service.
type External struct {
	Ref    string // reference, as image/sign takes it
	Public []byte // PEM
}

// InitExternal is Init without an image key of its own: the directory gets the
// public key and the reference of one that is kept elsewhere.
func InitExternal(dir string, now time.Time, rand io.Reader, image External) error {
	return initialise(dir, now, rand, &image)
}

func initialise(dir string, now time.Time, rand io.Reader, image *External) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make key directory %s: %w", dir, err)
		}
	}()
	if _, err := os.Lstat(dir); err == nil {
		return fs.ErrExist
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// MkdirTemp gives mode 0700.
	temp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	w := &writer{dir: temp, now: now.UTC().Truncate(time.Second), rand: rand}
	w.secureBoot()
	if image == nil {
		w.keyPair(FileImage, newECDSA)
	} else {
		w.external(FileImage, image)
	}
	w.keyPair(FilePCR, newRSA)
	w.keyPair(FileRelease, newECDSA)
	w.serviceCA()
	w.diskKEK()
	if w.err != nil {
		return w.err
	}
	if err := syncDir(temp); err != nil {
		return err
	}
	// Rename replaces an empty directory silently, so one that appeared in
	// the meantime with content fails here and an empty one loses nothing.
	if err := os.Rename(temp, dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func newRSA(rand io.Reader) (crypto.Signer, error) { return rsa.GenerateKey(rand, 2048) }

func newECDSA(rand io.Reader) (crypto.Signer, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand)
}

// writer writes the files. After the first error it does nothing more.
type writer struct {
	dir  string
	now  time.Time
	rand io.Reader
	err  error
}

func (w *writer) write(name string, data []byte, perm fs.FileMode) {
	if w.err != nil {
		return
	}
	f, err := os.OpenFile(filepath.Join(w.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		w.err = err
		return
	}
	_, err = f.Write(data)
	w.err = errors.Join(err, f.Sync(), f.Close())
}

func (w *writer) writePEM(name, kind string, der []byte, perm fs.FileMode) {
	w.write(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), perm)
}

// key makes a key and writes NAME.key. It returns nil after an error.
func (w *writer) key(name string, generate func(io.Reader) (crypto.Signer, error)) crypto.Signer {
	if w.err != nil {
		return nil
	}
	key, err := generate(w.rand)
	if err != nil {
		w.err = fmt.Errorf("key %s: %w", name, err)
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.err = fmt.Errorf("key %s: %w", name, err)
		return nil
	}
	w.writePEM(name+".key", "PRIVATE KEY", der, 0o600)
	return key
}

func (w *writer) keyPair(name string, generate func(io.Reader) (crypto.Signer, error)) {
	key := w.key(name, generate)
	if w.err != nil {
		return
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		w.err = fmt.Errorf("key %s: %w", name, err)
		return
	}
	w.writePEM(name+".pub", "PUBLIC KEY", der, 0o644)
}

// external writes the public half of a key that is kept elsewhere, and where.
func (w *writer) external(name string, key *External) {
	if w.err != nil {
		return
	}
	if key.Ref == "" || len(key.Ref) > maxRef || strings.ContainsAny(key.Ref, "\r\n\x00") {
		w.err = fmt.Errorf("key %s: reference of %d bytes is empty, too long or not one line", name, len(key.Ref))
		return
	}
	w.write(name+".pub", key.Public, 0o644)
	w.write(name+".ref", []byte(key.Ref+"\n"), 0o600)
}

// selfSigned makes a key and a certificate that it signs itself.
func (w *writer) selfSigned(name, commonName string, life time.Duration, generate func(io.Reader) (crypto.Signer, error), edit func(*x509.Certificate)) (crypto.Signer, *x509.Certificate) {
	key := w.key(name, generate)
	if w.err != nil {
		return nil, nil
	}
	serial, err := serialNumber(w.rand)
	if err != nil {
		w.err = err
		return nil, nil
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"Sealift"}, CommonName: commonName},
		NotBefore:    w.now.Add(-clockSkew),
		NotAfter:     w.now.Add(life),
	}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificate(w.rand, template, template, key.Public(), key)
	if err != nil {
		w.err = fmt.Errorf("certificate %s: %w", name, err)
		return nil, nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		w.err = fmt.Errorf("certificate %s: %w", name, err)
		return nil, nil
	}
	w.writePEM(name+".crt", "CERTIFICATE", der, 0o644)
	return key, cert
}

// secureBoot makes PK, KEK and db, and the payloads that enrol them: PK signed
// by itself, as firmware demands, KEK by PK, db by KEK.
func (w *writer) secureBoot() {
	type pair struct {
		key  crypto.Signer
		cert *x509.Certificate
	}
	var pk, kek, db pair
	pk.key, pk.cert = w.selfSigned(FilePK, "Sealift platform key", secureBootLife, newRSA, nil)
	kek.key, kek.cert = w.selfSigned(FileKEK, "Sealift key exchange key", secureBootLife, newRSA, nil)
	db.key, db.cert = w.selfSigned(FileDB, "Sealift image signing", secureBootLife, newRSA, func(c *x509.Certificate) {
		c.KeyUsage = x509.KeyUsageDigitalSignature
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	})
	if w.err != nil {
		return
	}
	lists, err := efivar.Enrolment{PK: pk.cert, KEK: kek.cert, DB: db.cert}.Lists()
	if err != nil {
		w.err = err
		return
	}
	for _, p := range []struct {
		v  efivar.Variable
		by pair
	}{{efivar.PK, pk}, {efivar.KEK, pk}, {efivar.DB, kek}} {
		b, err := efivar.Authenticate(p.v, lists[p.v], w.now, &pkcs7.Signer{Key: p.by.key, Certificate: p.by.cert})
		if err != nil {
			w.err = err
			return
		}
		w.write(string(p.v)+".auth", b, 0o644)
	}
}

func (w *writer) serviceCA() {
	w.selfSigned(FileServiceCA, "Sealift service CA", serviceCALife, newECDSA, func(c *x509.Certificate) {
		c.IsCA = true
		c.BasicConstraintsValid = true
		c.MaxPathLenZero = true
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	})
}

func (w *writer) diskKEK() {
	if w.err != nil {
		return
	}
	key := make([]byte, diskKEKSize)
	if _, err := io.ReadFull(w.rand, key); err != nil {
		w.err = fmt.Errorf("disk key encryption key: %w", err)
		return
	}
	w.write(FileDiskKEK+".key", append(hex.AppendEncode(nil, key), '\n'), 0o600)
}

// serialNumber returns a positive number of 127 random bits (RFC 5280, 4.1.2.2).
func serialNumber(rand io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(rand, b); err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40 // never zero, always the same length
	return new(big.Int).SetBytes(b), nil
}

func syncDir(dir string) (err error) {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
