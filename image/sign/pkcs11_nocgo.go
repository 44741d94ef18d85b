//go:build !cgo

package sign

import "fmt"

func loadToken(ref string, _ func() ([]byte, error)) (*Signer, error) {
	if _, err := parseTokenURI(ref, classPrivate); err != nil {
		return nil, fmt.Errorf("%s URI: %w", pkcs11Scheme, err)
	}
	return nil, ErrNoPKCS11
}

func loadTokenCipher(ref string, _ func() ([]byte, error)) (*TokenCipher, error) {
	if _, err := parseTokenURI(ref, classSecret); err != nil {
		return nil, fmt.Errorf("%s URI: %w", pkcs11Scheme, err)
	}
	return nil, ErrNoPKCS11
}
