//go:build !cgo

package sign

import (
	"errors"
	"fmt"
)

// ErrNoPKCS11 says that this program was built without cgo, which loading a
// token's library needs.
var ErrNoPKCS11 = errors.New("this build of sealift cannot load PKCS #11 libraries: build it with CGO_ENABLED=1")

func loadToken(ref string, _ func() ([]byte, error)) (*Signer, error) {
	if _, err := parseTokenURI(ref); err != nil {
		return nil, fmt.Errorf("%s URI: %w", pkcs11Scheme, err)
	}
	return nil, ErrNoPKCS11
}
