//go:build cgo

package sign

import (
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/ThalesGroup/crypto11"
	"github.com/sigstore/sigstore/pkg/signature"
)

// maxPIN bounds the file of a PIN, in bytes.
const maxPIN = 1 << 10

// openToken opens the token of a key of that class.
func openToken(ref, class string, password func() ([]byte, error)) (*crypto11.Context, *tokenURI, error) {
	u, err := parseTokenURI(ref, class)
	if err != nil {
		return nil, nil, fmt.Errorf("%s URI: %w", pkcs11Scheme, err)
	}
	pin, err := u.pin(password)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", u, err)
	}
	config := &crypto11.Config{Path: u.Module, TokenLabel: u.Token, Pin: string(pin)}
	if u.Token == "" {
		config.TokenSerial = u.Serial
	}
	if u.Token == "" && u.Serial == "" {
		config.SlotNumber = u.Slot
	}
	token, err := crypto11.Configure(config)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s of %s: %w", u, u.Module, err)
	}
	return token, u, nil
}

// label is the label of the key that the URI names, or nil.
func (u *tokenURI) label() []byte {
	if u.Object == "" {
		return nil
	}
	return []byte(u.Object)
}

// loadToken opens a token and finds its key.
func loadToken(ref string, password func() ([]byte, error)) (_ *Signer, err error) {
	token, u, err := openToken(ref, classPrivate, password)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, token.Close())
		}
	}()
	key, err := token.FindKeyPair(u.ID, u.label())
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", u, err)
	}
	if key == nil {
		return nil, fmt.Errorf("find %s: the token has no such key pair", u)
	}
	s, err := New(tokenSigner{key})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u, err)
	}
	s.close = token.Close
	return s, nil
}

// loadTokenCipher opens a token and finds its secret key.
func loadTokenCipher(ref string, password func() ([]byte, error)) (_ *TokenCipher, err error) {
	token, u, err := openToken(ref, classSecret, password)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, token.Close())
		}
	}()
	key, err := token.FindKey(u.ID, u.label())
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", u, err)
	}
	if key == nil {
		return nil, fmt.Errorf("find %s: the token has no such secret key", u)
	}
	aead, err := key.NewGCM()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u, err)
	}
	return &TokenCipher{aead: aead, close: token.Close}, nil
}

// tokenSigner is a key of a token as sigstore's signer.
type tokenSigner struct{ key crypto11.Signer }

// PublicKey implements signature.Signer.
func (s tokenSigner) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return s.key.Public(), nil
}

// SignMessage implements signature.Signer. A call of PKCS #11 cannot be
// interrupted, so a context is passed over.
func (s tokenSigner) SignMessage(message io.Reader, opts ...signature.SignOption) ([]byte, error) {
	digest, _, err := signature.ComputeDigestForSigning(message, crypto.SHA256, []crypto.Hash{crypto.SHA256}, opts...)
	if err != nil {
		return nil, err
	}
	return s.key.Sign(rand.Reader, digest, crypto.SHA256)
}

// pin returns the PIN of the token.
func (u *tokenURI) pin(password func() ([]byte, error)) ([]byte, error) {
	if u.PINFile == "" {
		if password == nil {
			return nil, errors.New("the token wants a PIN: give pin-source=file:/path")
		}
		return password()
	}
	info, err := os.Stat(u.PINFile)
	if err != nil {
		return nil, fmt.Errorf("PIN: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxPIN || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("PIN: file %s has mode %v and %d bytes, want a regular file of mode 0600 and at most %d", u.PINFile, info.Mode(), info.Size(), maxPIN)
	}
	b, err := os.ReadFile(u.PINFile)
	if err != nil {
		return nil, fmt.Errorf("PIN: %w", err)
	}
	return []byte(strings.TrimRight(string(b), "\r\n")), nil
}
