package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sigstorebundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/sealift/sealift/image/sign/bundle"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publicPEM(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// sigstoreVerify verifies as cosign does with --key and --insecure-ignore-tlog.
func sigstoreVerify(message, bundleJSON []byte, key *ecdsa.PublicKey) error {
	var b sigstorebundle.Bundle
	if err := b.UnmarshalJSON(bundleJSON); err != nil {
		return err
	}
	verifier, err := signature.LoadECDSAVerifier(key, crypto.SHA256)
	if err != nil {
		return err
	}
	material := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) {
		return root.NewExpiringKey(verifier, time.Time{}, time.Time{}), nil
	})
	v, err := verify.NewVerifier(material, verify.WithNoObserverTimestamps())
	if err != nil {
		return err
	}
	_, err = v.Verify(&b, verify.NewPolicy(verify.WithArtifact(bytes.NewReader(message)), verify.WithKey()))
	return err
}

func TestOurVerifierAndSigstoresAgree(t *testing.T) {
	key := newKey(t)
	s, err := FromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte(`{"schema":"sealift.dev/manifest/v1"}`)
	good, err := s.Sign(t.Context(), message)
	if err != nil {
		t.Fatal(err)
	}
	other, err := FromKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Sign(t.Context(), message)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) []byte {
		t.Helper()
		b := bytes.Replace(good, []byte(old), []byte(new), 1)
		if bytes.Equal(b, good) {
			t.Fatalf("bundle has no %s: %s", old, good)
		}
		return b
	}
	for name, c := range map[string]struct {
		message, bundle []byte
		good            bool
	}{
		"as signed":                {message, good, true},
		"other white space":        {message, replace(`":`, "\" :\n\t"), true},
		"message changed":          {append(bytes.Clone(message), ' '), good, false},
		"message empty":            {nil, good, false},
		"by another key":           {message, foreign, false},
		"bundle empty":             {message, nil, false},
		"bundle cut":               {message, good[:len(good)/2], false},
		"data behind":              {message, append(bytes.Clone(good), "{}"...), false},
		"unknown field":            {message, replace(`{"mediaType"`, `{"extra":1,"mediaType"`), false},
		"field twice":              {message, replace(`{"mediaType"`, `{"mediaType":"x","mediaType"`), false},
		"field in capitals":        {message, replace(`"mediaType"`, `"MEDIATYPE"`), false},
		"no media type":            {message, replace(`"mediaType":"`+bundle.MediaType+`",`, ""), false},
		"another media type":       {message, replace("v0.3", "v0.9"), false},
		"another digest algorithm": {message, replace("SHA2_256", "SHA2_512"), false},
		"signature not base64":     {message, replace(`"signature":"`, `"signature":"*`), false},
		"signature changed":        {message, replace(`"signature":"ME`, `"signature":"MF`), false},
		"no signature":             {message, replace(`"signature"`, `"signatur"`), false},
		"field null":               {message, replace(`"messageSignature":{`, `"messageSignature":null,"x":{`), false},
	} {
		t.Run(name, func(t *testing.T) {
			ours := bundle.Verify(c.message, c.bundle, publicPEM(t, key.Public()))
			theirs := sigstoreVerify(c.message, c.bundle, &key.PublicKey)
			if (ours == nil) != c.good {
				t.Errorf("ours says %v, want good: %t", ours, c.good)
			}
			if (theirs == nil) != c.good {
				t.Errorf("sigstore's says %v, want good: %t", theirs, c.good)
			}
		})
	}
}

func TestEveryChangedByteOfASignatureIsRefused(t *testing.T) {
	key := newKey(t)
	s, err := FromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("message")
	b, err := s.Sign(t.Context(), message)
	if err != nil {
		t.Fatal(err)
	}
	pub := publicPEM(t, key.Public())
	at := bytes.Index(b, []byte(`"signature":"`)) + len(`"signature":"`)
	end := at + bytes.IndexByte(b[at:], '"')
	sig, err := base64.StdEncoding.DecodeString(string(b[at:end]))
	if err != nil {
		t.Fatal(err)
	}
	for i := range sig {
		changed := bytes.Clone(sig)
		changed[i] ^= 1
		bad := []byte(string(b[:at]) + base64.StdEncoding.EncodeToString(changed) + string(b[end:]))
		if bundle.Verify(message, bad, pub) == nil {
			t.Errorf("byte %d of the signature changed: accepted", i)
		}
	}
}

func TestKeysOfAnotherKindAreRefused(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := FromKey(p384); err == nil || !strings.Contains(err.Error(), "P-384") {
		t.Errorf("P-384 to sign: %v", err)
	}
	rs, err := signature.LoadRSAPKCS1v15Signer(rsaKey, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(rs); err == nil || !strings.Contains(err.Error(), "rsa") {
		t.Errorf("RSA to sign: %v", err)
	}
	if _, err := New(nil); err == nil {
		t.Error("no key to sign: accepted")
	}
	good := publicPEM(t, newKey(t).Public())
	for name, b := range map[string][]byte{
		"empty":          nil,
		"not PEM":        []byte("key"),
		"two blocks":     append(bytes.Clone(good), good...),
		"P-384":          publicPEM(t, p384.Public()),
		"RSA":            publicPEM(t, rsaKey.Public()),
		"another block":  bytes.ReplaceAll(good, []byte("PUBLIC"), []byte("PRIVATE")),
		"far too large":  append(bytes.Clone(good), make([]byte, 10000)...),
		"not DER inside": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: []byte{1}}),
	} {
		if _, err := bundle.PublicKey(b); err == nil {
			t.Errorf("%s to verify: accepted", name)
		}
	}
}

func TestAKeyFileIsLoaded(t *testing.T) {
	key := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.key")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := FromFile(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Sign(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := bundle.Verify([]byte("x"), b, publicPEM(t, s.Public())); err != nil {
		t.Error(err)
	}
	if _, err := FromFile(path+".none", nil); err == nil {
		t.Error("a file that is not there is loaded")
	}
}
