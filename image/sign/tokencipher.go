package sign

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
)

// TokenCipher encrypts small secrets with an AES key that stays in a PKCS #11
// token. Close it after use.
type TokenCipher struct {
	aead  cipher.AEAD
	close func() error
}

// LoadTokenCipher opens the secret key that a PKCS #11 URI names (RFC 7512), in
// the form that Load takes for signing keys. The token must do CKM_AES_GCM with
// it. password is as in Load.
func LoadTokenCipher(ref string, password func() ([]byte, error)) (*TokenCipher, error) {
	return loadTokenCipher(ref, password)
}

// Seal encrypts plain, with a nonce of 12 random bytes in front.
func (c *TokenCipher) Seal(plain, additional []byte) (_ []byte, err error) {
	nonce := make([]byte, c.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("encrypt in the token: %w", err)
	}
	// The token's cipher has no other way to say that the token refused.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("encrypt in the token: %v", r)
		}
	}()
	return c.aead.Seal(nonce, nonce, plain, additional), nil
}

// Open decrypts what Seal made.
func (c *TokenCipher) Open(box, additional []byte) ([]byte, error) {
	n := c.aead.NonceSize()
	if len(box) < n+c.aead.Overhead() {
		return nil, errors.New("decrypt in the token: the ciphertext is cut short")
	}
	plain, err := c.aead.Open(nil, box[:n], box[n:], additional)
	if err != nil {
		return nil, fmt.Errorf("decrypt in the token: %w", err)
	}
	return plain, nil
}

// Close closes the token.
func (c *TokenCipher) Close() error { return c.close() }
