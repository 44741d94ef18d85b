package sign

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature/kms"

	// Each makes itself known to kms.Get.
	_ "github.com/sigstore/sigstore/pkg/signature/kms/aws"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/azure"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/gcp"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/hashivault"
)

// ErrNoPKCS11 says that this program was built without cgo, which loading a
// token's library needs.
var ErrNoPKCS11 = errors.New("this build of sealift cannot load PKCS #11 libraries: build it with CGO_ENABLED=1")

// Load returns a Signer for a key reference in the syntax of cosign:
//
//	image.key                                a PEM file
//	pkcs11:token=T;object=O?module-path=M    a PKCS #11 token (RFC 7512)
//	awskms://..., gcpkms://..., azurekms://..., hashivault://KEY, openbao://KEY
//	NAME://...                               the program sigstore-kms-NAME
//
// A key management service finds its credentials where its own tools do, such
// as in VAULT_ADDR and VAULT_TOKEN. password is called for an encrypted file
// and for the PIN of a token that the reference gives no file for; it may be
// nil. Close the Signer after use.
func Load(ctx context.Context, ref string, password func() ([]byte, error)) (*Signer, error) {
	switch {
	case ref == "":
		return nil, errors.New("image signer: no key reference")
	case strings.HasPrefix(ref, pkcs11Scheme):
		s, err := loadToken(ref, password)
		if err != nil {
			return nil, fmt.Errorf("image signer: %w", err)
		}
		return s, nil
	case !strings.Contains(ref, "://"):
		return FromFile(ref, password)
	}
	s, err := kms.Get(ctx, ref, crypto.SHA256)
	if errors.As(err, new(*kms.ProviderNotFoundError)) {
		return nil, fmt.Errorf("image signer: %w (built in are %s)", err, strings.Join(providers(), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("image signer: load %s: %w", ref, err)
	}
	signer, err := New(s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	return signer, nil
}

func providers() []string {
	p := kms.SupportedProviders()
	slices.Sort(p)
	return p
}
