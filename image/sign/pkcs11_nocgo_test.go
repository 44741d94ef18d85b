//go:build !cgo

package sign

import (
	"errors"
	"testing"
)

func TestWithoutCgoATokenIsRefusedWithTheReason(t *testing.T) {
	if _, err := Load(t.Context(), "pkcs11:token=t;object=o?module-path=/lib/x.so", nil); !errors.Is(err, ErrNoPKCS11) {
		t.Errorf("got %v", err)
	}
}

func TestWithoutCgoATokensSecretKeyIsRefusedWithTheReason(t *testing.T) {
	if _, err := LoadTokenCipher("pkcs11:token=t;object=o;type=secret-key?module-path=/lib/x.so", nil); !errors.Is(err, ErrNoPKCS11) {
		t.Errorf("got %v", err)
	}
}
