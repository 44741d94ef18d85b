package pkcs7

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newSigner(t testing.TB, serial int64) *Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Unix(1600000000, 0), NotAfter: time.Unix(2100000000, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Signer{Key: key, Certificate: cert}
}

func TestOpensslVerifiesBothForms(t *testing.T) {
	tool, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("openssl is required: %v", err)
		}
		t.Skip("openssl is not installed")
	}
	s := newSigner(t, 1)
	dir := t.TempDir()
	cert, sig, msg := filepath.Join(dir, "cert"), filepath.Join(dir, "sig"), filepath.Join(dir, "msg")
	message := []byte("the message")
	content := append([]byte{4, byte(len(message))}, message...) // OCTET STRING, as Data has it
	for _, at := range []time.Time{{}, time.Unix(1700000000, 0)} {
		s.Time = at
		attached, err1 := s.SignAttached(Data(), content)
		if err := errors.Join(err1,
			os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw}), 0o600),
			os.WriteFile(sig, attached, 0o600), os.WriteFile(msg, message, 0o600)); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(tool, "cms", "-verify", "-inform", "DER", "-in", sig, "-CAfile", cert, "-purpose", "any", "-binary").Output()
		if err != nil || !bytes.Equal(out, message) {
			t.Errorf("time %v: openssl gives %q (%v)", at, out, err)
		}
		u, err := ParseAttached(attached)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Verify(nil, s.Certificate); err != nil {
			t.Error(err)
		}
	}
}

func TestVerifyRefusesWhatWasNotSigned(t *testing.T) {
	s, other := newSigner(t, 1), newSigner(t, 2)
	sameName := newSigner(t, 1) // issuer and serial number of s, another key
	message := []byte("message")
	for _, at := range []time.Time{{}, time.Unix(1700000000, 0)} {
		s.Time = at
		der, err := s.SignDetached(message)
		if err != nil {
			t.Fatal(err)
		}
		u, err := ParseDetached(der)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := u.Verify(message, other.Certificate, s.Certificate); err != nil || !c.Equal(s.Certificate) {
			t.Errorf("good signature: %v", err)
		}
		for name, c := range map[string]struct {
			message []byte
			certs   []*x509.Certificate
		}{
			"another message":         {[]byte("massage"), []*x509.Certificate{s.Certificate}},
			"no trusted certificate":  {message, nil},
			"another certificate":     {message, []*x509.Certificate{other.Certificate}},
			"certificate of the name": {message, []*x509.Certificate{sameName.Certificate}},
		} {
			if _, err := u.Verify(c.message, c.certs...); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
	}
}

func TestNoChangedByteIsAccepted(t *testing.T) {
	s := newSigner(t, 1)
	s.Time = time.Unix(1700000000, 0)
	message := []byte("message")
	der, err := s.SignDetached(message)
	if err != nil {
		t.Fatal(err)
	}
	certificate := bytes.Index(der, s.Certificate.Raw)
	for i := range der {
		// The enclosed certificate is a hint that Verify does not rely on.
		if i >= certificate && i < certificate+len(s.Certificate.Raw) {
			continue
		}
		b := bytes.Clone(der)
		b[i] ^= 1
		u, err := ParseDetached(b)
		if err != nil {
			continue
		}
		if _, err := u.Verify(message, s.Certificate); err == nil {
			t.Errorf("byte %d of %d changed: accepted", i, len(der))
		}
	}
}

func TestUnfitSignersAreRefused(t *testing.T) {
	good, other := newSigner(t, 1), newSigner(t, 2)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		s    *Signer
		want string
	}{
		"none":                       {nil, "required"},
		"no certificate":             {&Signer{Key: good.Key}, "required"},
		"ECDSA key":                  {&Signer{Key: ec, Certificate: good.Certificate}, "want an RSA key"},
		"certificate of another key": {&Signer{Key: good.Key, Certificate: other.Certificate}, "not of this key"},
	} {
		if err := c.s.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, c.want)
		}
	}
	late := *good
	late.Time = time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := late.SignDetached(nil); err == nil {
		t.Error("a signing time that UTCTime cannot hold is accepted")
	}
	if _, err := good.SignAttached(Data(), []byte("not DER")); err == nil {
		t.Error("content that is not DER is accepted")
	}
}

func FuzzParse(f *testing.F) {
	s := newSigner(f, 1)
	message := []byte("message")
	detached, err1 := s.SignDetached(message)
	attached, err2 := s.SignAttached(Data(), []byte{4, 1, 'x'})
	s.Time = time.Unix(1700000000, 0)
	timed, err3 := s.SignDetached(message)
	if err := errors.Join(err1, err2, err3); err != nil {
		f.Fatal(err)
	}
	f.Add(detached)
	f.Add(attached)
	f.Add(timed)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, parse := range []func([]byte) (*Untrusted, error){ParseAttached, ParseDetached} {
			u, err := parse(b)
			if err != nil {
				continue
			}
			if _, err := u.Verify([]byte("never signed"), s.Certificate); err == nil {
				t.Error("a message that was never signed verifies")
			}
		}
	})
}
