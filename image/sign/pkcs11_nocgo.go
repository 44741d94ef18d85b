//go:build !cgo

package sign

import "fmt"

func loadToken(ref string, _ func() ([]byte, error)) (*Signer, error) {
	if _, err := parseTokenURI(ref); err != nil {
		return nil, fmt.Errorf("%s URI: %w", pkcs11Scheme, err)
	}
	return nil, ErrNoPKCS11
}
