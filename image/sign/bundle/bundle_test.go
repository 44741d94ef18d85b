package bundle

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"testing"
)

// FuzzVerify changes bundles. Nothing but the signed message may ever pass.
func FuzzVerify(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	message := []byte("message")
	digest := sha256.Sum256(message)
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		f.Fatal(err)
	}
	b, err := Encode(message, sig, &key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	pub := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := Verify(message, b, pub); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("other"), b)
	f.Add(message, b)
	f.Add(message, []byte(`{"mediaType":"","verificationMaterial":{},"messageSignature":[]}`))
	f.Fuzz(func(t *testing.T, m, b []byte) {
		if Verify(m, b, pub) == nil && string(m) != string(message) {
			t.Errorf("accepted for message %q", m)
		}
	})
}
