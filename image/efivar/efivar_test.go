package efivar

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealift/sealift/image/pkcs7"
)

func needTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func signer(t *testing.T, name string) *pkcs7.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(name)) + 17),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Unix(1700000000, 0), NotAfter: time.Unix(2000000000, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pkcs7.Signer{Key: key, Certificate: cert}
}

func writeSigner(t *testing.T, s *pkcs7.Signer) (key, cert string) {
	t.Helper()
	dir := t.TempDir()
	key, cert = filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	der, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err := errors.Join(err,
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate.Raw}), 0o600)); err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func TestListsAreThoseOfEfitools(t *testing.T) {
	tool := needTool(t, "cert-to-efi-sig-list")
	s := signer(t, "test")
	_, cert := writeSigner(t, s)
	out := filepath.Join(t.TempDir(), "out.esl")
	owner := Owner(s.Certificate)
	if b, err := exec.Command(tool, "-g", owner.String(), cert, out).CombinedOutput(); err != nil {
		t.Fatalf("cert-to-efi-sig-list: %v\n%s", err, b)
	}
	want, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got, err := SignatureList(owner, s.Certificate)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("list is\n%x, want\n%x (%v)", got, want, err)
	}
}

// What efitools signs for the same list and time is, up to the encoding of
// PKCS#7, what Authenticate makes: the same frame, and a signature over the
// same bytes.
func TestPayloadsAreThoseOfEfitools(t *testing.T) {
	tool := needTool(t, "sign-efi-sig-list")
	s := signer(t, "test")
	key, cert := writeSigner(t, s)
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	list, err := SignatureList(Owner(s.Certificate), s.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.esl"), filepath.Join(dir, "out.auth")
	if err := os.WriteFile(in, list, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, v := range []Variable{PK, KEK, DB, DBX} {
		cmd := exec.Command(tool, "-t", "2026-03-04 05:06:07", "-k", key, "-c", cert, string(v), in, out)
		cmd.Env = append(os.Environ(), "TZ=UTC")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sign-efi-sig-list: %v\n%s", err, b)
		}
		theirs, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := Authenticate(v, list, at, s)
		if err != nil {
			t.Fatal(err)
		}
		a, b := split(t, ours), split(t, theirs)
		if !bytes.Equal(a.stamp, b.stamp) || !bytes.Equal(a.header, b.header) || !bytes.Equal(a.data, b.data) {
			t.Errorf("%s: frame is % x | % x, efitools has % x | % x", v, a.stamp, a.header, b.stamp, b.header)
		}
		// PKCS#1 v1.5 has no randomness: equal signatures are over equal bytes.
		sig := a.der[len(a.der)-256:]
		if !bytes.Contains(b.der, sig) {
			t.Errorf("%s: efitools signs other bytes", v)
		}
	}
}

type parts struct{ stamp, header, der, data []byte }

func split(t *testing.T, b []byte) parts {
	t.Helper()
	if len(b) < 40 {
		t.Fatalf("payload has %d bytes", len(b))
	}
	end := 16 + int(binary.LittleEndian.Uint32(b[16:]))
	if end > len(b) {
		t.Fatalf("certificate ends at %d of %d", end, len(b))
	}
	return parts{stamp: b[:16], header: b[20:40], der: b[40:end], data: b[end:]}
}

func TestPayloadSignatureVerifies(t *testing.T) {
	s := signer(t, "PK")
	list, err := SignatureList(Owner(s.Certificate), s.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1700000000, 0)
	payload, err := Authenticate(PK, list, at, s)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Authenticate(PK, list, at, s)
	if err != nil || !bytes.Equal(payload, again) {
		t.Errorf("the same input gave another payload (%v)", err)
	}
	p := split(t, payload)
	u, err := pkcs7.ParseDetached(p.der)
	if err != nil {
		t.Fatal(err)
	}
	vendor, err := PK.vendor()
	if err != nil {
		t.Fatal(err)
	}
	message := []byte{'P', 0, 'K', 0}
	message = append(message, vendor[:]...)
	message = append(message, 0x27, 0, 0, 0)
	message = append(message, p.stamp...)
	message = append(message, list...)
	if _, err := u.Verify(message, s.Certificate); err != nil {
		t.Error(err)
	}
	message[0] = 'X'
	if _, err := u.Verify(message, s.Certificate); err == nil {
		t.Error("signature is good for another variable's name")
	}
}

func TestBadInputIsRefused(t *testing.T) {
	s := signer(t, "PK")
	at := time.Unix(1700000000, 0)
	if _, err := Authenticate("Boot0000", nil, at, s); err == nil {
		t.Error("a variable without signature lists is accepted")
	}
	if _, err := Authenticate(PK, nil, time.Unix(0, 0), s); err == nil {
		t.Error("a time before 1998 is accepted")
	}
	timed := *s
	timed.Time = at
	if _, err := Authenticate(PK, nil, at, &timed); err == nil {
		t.Error("a signature with attributes is accepted")
	}
	if _, err := (Enrolment{PK: s.Certificate}).SecureBoot(); err == nil {
		t.Error("an enrolment without KEK and db is accepted")
	}
}

func TestEventsFollowTheEnrolment(t *testing.T) {
	e := Enrolment{PK: signer(t, "PK").Certificate, KEK: signer(t, "KEK").Certificate, DB: signer(t, "db").Certificate}
	s, err := e.SecureBoot()
	if err != nil {
		t.Fatal(err)
	}
	other := e
	other.DB = signer(t, "db").Certificate
	o, err := other.SecureBoot()
	if err != nil {
		t.Fatal(err)
	}
	if s.PK != o.PK || s.KEK != o.KEK {
		t.Error("another db certificate changes PK or KEK")
	}
	if s.DB == o.DB || s.Authority == o.Authority {
		t.Error("another db certificate changes nothing")
	}
	// An unset variable has an event, too, with no data.
	event, err := Event(DBX, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{
		0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f,
		3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'd', 0, 'b', 0, 'x', 0,
	}
	if !bytes.Equal(event, want) {
		t.Errorf("event of an unset dbx is % x, want % x", event, want)
	}
}
