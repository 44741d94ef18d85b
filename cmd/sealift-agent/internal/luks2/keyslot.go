package luks2

import (
	"crypto/aes"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/xts"

	"github.com/sealift/sealift/attest"
)

// areaSector is the sector size of the key area's encryption, in bytes; its
// sectors are counted from 0.
const areaSector = 512

// ErrWrongKey is returned when the key does not open the volume.
var ErrWrongKey = errors.New("the key does not open the volume")

// seal returns the key area: the volume key split into stripes and encrypted
// with a key derived from key.
func (k keyslot) seal(key, volumeKey attest.Secret, rand io.Reader) ([]byte, error) {
	split, err := afSplit(volumeKey, k.AF.Stripes, rand)
	if err != nil {
		return nil, err
	}
	c, err := k.areaCipher(key)
	if err != nil {
		return nil, err
	}
	b := make([]byte, (len(split)+areaSector-1)/areaSector*areaSector)
	copy(b, split)
	clear(split)
	for i := 0; i < len(b); i += areaSector {
		c.Encrypt(b[i:i+areaSector], b[i:i+areaSector], uint64(i/areaSector))
	}
	return b, nil
}

// open reads the key area and returns what key makes of it: the volume key if
// the digest agrees, noise otherwise.
func (k keyslot) open(r io.ReaderAt, key attest.Secret) (attest.Secret, error) {
	n := k.KeySize * k.AF.Stripes
	b := make([]byte, (n+areaSector-1)/areaSector*areaSector)
	defer clear(b)
	if _, err := r.ReadAt(b, k.Area.Offset); err != nil {
		return nil, fmt.Errorf("read key area: %w", err)
	}
	c, err := k.areaCipher(key)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(b); i += areaSector {
		c.Decrypt(b[i:i+areaSector], b[i:i+areaSector], uint64(i/areaSector))
	}
	return afMerge(b[:n], k.KeySize), nil
}

func (k keyslot) areaCipher(key attest.Secret) (*xts.Cipher, error) {
	derived, err := derive(key, k.KDF.Salt, k.KDF.Iterations, k.Area.KeySize)
	if err != nil {
		return nil, err
	}
	defer clear(derived)
	return xts.NewCipher(aes.NewCipher, derived)
}

// of computes the digest of a volume key.
func (d digest) of(volumeKey attest.Secret) ([]byte, error) {
	return derive(volumeKey, d.Salt, d.Iterations, sha256.Size)
}

// verify returns ErrWrongKey unless the digest is that of the volume key.
func (d digest) verify(volumeKey attest.Secret) error {
	got, err := d.of(volumeKey)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(got, d.Digest) != 1 {
		return ErrWrongKey
	}
	return nil
}

// derive is PBKDF2 with HMAC-SHA-256 (RFC 8018, 5.2).
func derive(secret attest.Secret, salt []byte, iterations, n int) ([]byte, error) {
	b, err := pbkdf2.Key(sha256.New, string(secret), salt, iterations, n)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return b, nil
}

// afSplit spreads a key over stripes, all of which are needed to get it back
// (TKS1, the anti-forensic splitter of LUKS1).
func afSplit(key attest.Secret, stripes int, rand io.Reader) ([]byte, error) {
	n := len(key)
	b := make([]byte, n*stripes)
	if _, err := io.ReadFull(rand, b[:n*(stripes-1)]); err != nil {
		return nil, fmt.Errorf("read random stripes: %w", err)
	}
	d := make([]byte, n)
	for i := range stripes - 1 {
		subtle.XORBytes(d, d, b[i*n:][:n])
		diffuse(d)
	}
	subtle.XORBytes(b[(stripes-1)*n:], d, key)
	clear(d)
	return b, nil
}

// afMerge undoes afSplit.
func afMerge(b []byte, n int) attest.Secret {
	d := make(attest.Secret, n)
	last := len(b)/n - 1
	for i := range last {
		subtle.XORBytes(d, d, b[i*n:][:n])
		diffuse(d)
	}
	subtle.XORBytes(d, d, b[last*n:][:n])
	return d
}

// diffuse replaces each 32-byte part of d by the SHA-256 of its number, big
// endian, and itself.
func diffuse(d []byte) {
	var in [4 + sha256.Size]byte
	for i := 0; i < len(d); i += sha256.Size {
		part := d[i:min(i+sha256.Size, len(d))]
		binary.BigEndian.PutUint32(in[:], uint32(i/sha256.Size))
		n := copy(in[4:], part)
		sum := sha256.Sum256(in[:4+n])
		copy(part, sum[:])
	}
}
