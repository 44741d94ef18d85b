package server

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/sealift/sealift/attest"
)

// KEKSize is the length of the key-encryption key, bytes.
const KEKSize = 32

// keyWrapper seals keys for the store, so that the database alone opens no disk.
type keyWrapper struct {
	id   string
	aead cipher.AEAD
}

// newKeyWrapper refuses keys of another length and the all-zero key, which is
// what a configuration that was never filled in gives.
func newKeyWrapper(kek attest.Secret) (*keyWrapper, error) {
	if len(kek) != KEKSize {
		return nil, fmt.Errorf("key-encryption key: got %d bytes, want %d", len(kek), KEKSize)
	}
	if hmac.Equal(kek, make([]byte, KEKSize)) {
		return nil, errors.New("key-encryption key: all bytes are zero")
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	return &keyWrapper{id: KEKID(kek), aead: aead}, nil
}

// KEKID names a key-encryption key: 16 hex digits that say nothing of it.
func KEKID(kek attest.Secret) string {
	m := hmac.New(sha256.New, kek)
	m.Write([]byte("sealift key-encryption key id v1"))
	return hex.EncodeToString(m.Sum(nil)[:8])
}

// additional returns the additional data of a box: what the key is for, so
// that one machine's box never opens as another's.
func additional(fields []string) []byte {
	b := []byte("sealift sealed key v1")
	for _, f := range fields {
		b = fmt.Appendf(b, "|%d:%s", len(f), f)
	}
	return b
}

// seal encrypts key for the purpose that the fields name.
func (w *keyWrapper) seal(key attest.Secret, purpose ...string) (*SealedKey, error) {
	nonce := make([]byte, w.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	return &SealedKey{KEK: w.id, Box: w.aead.Seal(nonce, nonce, key, additional(purpose))}, nil
}

// open decrypts what seal made with the same purpose.
func (w *keyWrapper) open(s *SealedKey, purpose ...string) (attest.Secret, error) {
	n := w.aead.NonceSize()
	if len(s.Box) < n {
		return nil, fmt.Errorf("open sealed key: got %d bytes, want at least %d", len(s.Box), n)
	}
	key, err := w.aead.Open(nil, s.Box[:n], s.Box[n:], additional(purpose))
	if err != nil {
		return nil, errors.New("open sealed key: it was altered or belongs to another machine")
	}
	return key, nil
}

// newSecret returns n random bytes.
func newSecret(n int) (attest.Secret, error) {
	b := make(attest.Secret, n)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("read random bytes: %w", err)
	}
	return b, nil
}
