package keyring

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/api"
)

func newOperator(t *testing.T, k *Keyring, now time.Time, name string) (*Issuer, tls.Certificate) {
	t.Helper()
	i, err := k.Issuer(now, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	crt, err := i.IssueOperator(name, []api.Role{api.RoleViewer})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Register(crt.Leaf); err != nil {
		t.Fatal(err)
	}
	return i, crt
}

// revoke puts a certificate on the list, as the command does.
func revoke(t *testing.T, k *Keyring, i *Issuer, serials ...*big.Int) {
	t.Helper()
	b, err := i.Revoke(k, serials)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(k.Dir(), FileRevoked), b)
}

// put replaces a file by another.
func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestARevokedCertificateIsKnownAtOnce(t *testing.T) {
	k, now := newKeyring(t), time.Now()
	i, lost := newOperator(t, k, now, "ana")
	_, second := newOperator(t, k, now, "ana")
	_, other := newOperator(t, k, now, "bob")
	list, err := k.Revocations("")
	if err != nil {
		t.Fatal(err)
	}
	want := func(step string, crt tls.Certificate, want bool) {
		t.Helper()
		if got, err := list.Revoked(crt.Leaf); got != want || err != nil {
			t.Errorf("%s: revoked is %t, %v; want %t", step, got, err, want)
		}
	}
	want("before", lost, false)
	revoke(t, k, i, lost.Leaf.SerialNumber)
	want("after", lost, true)
	want("after", other, false)
	issued, err := k.IssuedTo("ana", now)
	if err != nil || len(issued) != 2 || issued[0].Serial != lost.Leaf.SerialNumber.Text(16) || issued[1].Serial != second.Leaf.SerialNumber.Text(16) {
		t.Errorf("issued to ana: %+v, %v", issued, err)
	}
	if over, err := k.IssuedTo("ana", now.Add(operatorLife+time.Hour)); err != nil || len(over) != 0 {
		t.Errorf("certificates that are over: %+v, %v", over, err)
	}
	revoke(t, k, i, lost.Leaf.SerialNumber, second.Leaf.SerialNumber)
	want("twice", lost, true)
	want("the second", second, true)
	want("at last", other, false)

	again, err := k.Revocations("")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Revoked(lost.Leaf); !got || err != nil {
		t.Errorf("after a restart: revoked is %t, %v", got, err)
	}
}

func TestAListThatCannotBeUsedRefusesEveryCertificate(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(t *testing.T, k *Keyring, path string, first, second []byte)
		want   string
	}{
		"it is gone": {func(t *testing.T, _ *Keyring, path string, _, _ []byte) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		"it is empty":       {func(t *testing.T, _ *Keyring, path string, _, _ []byte) { put(t, path, nil) }, "not exactly one PEM block"},
		"it is cut":         {func(t *testing.T, _ *Keyring, path string, _, b []byte) { put(t, path, b[:len(b)/2]) }, "not exactly one PEM block"},
		"it is another one": {func(t *testing.T, _ *Keyring, path string, b, _ []byte) { put(t, path, b) }, "it is number 1, number 2 was there before"},
		"it is of another CA": {func(t *testing.T, _ *Keyring, path string, _, _ []byte) {
			other := newKeyring(t)
			i, err := other.Issuer(time.Now(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			b, err := i.Revoke(other, nil)
			if err != nil {
				t.Fatal(err)
			}
			put(t, path, b)
		}, "not of the service CA"},
		"a byte is another": {func(t *testing.T, _ *Keyring, path string, _, b []byte) {
			p, _ := pem.Decode(b)
			p.Bytes[len(p.Bytes)-1] ^= 1
			put(t, path, pem.EncodeToMemory(p))
		}, "not of the service CA"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeyring(t)
			i, crt := newOperator(t, k, time.Now(), "ana")
			path := filepath.Join(k.Dir(), FileRevoked)
			read := func() []byte {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			revoke(t, k, i)
			first := read()
			revoke(t, k, i)
			second := read()
			list, err := k.Revocations("")
			if err != nil {
				t.Fatal(err)
			}
			tt.damage(t, k, path, first, second)
			for range 2 {
				if _, err := list.Revoked(crt.Leaf); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error is %v, want one with %q", err, tt.want)
				}
			}
			put(t, path, second)
			if got, err := list.Revoked(crt.Leaf); got || err != nil {
				t.Errorf("mended: %t, %v", got, err)
			}
		})
	}
	if _, err := newKeyring(t).Revocations(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a list that is named and not there is taken for an empty one")
	}
}

func TestRevokedCertificatesThatAreOverLeaveTheList(t *testing.T) {
	k, now := newKeyring(t), time.Now()
	i, crt := newOperator(t, k, now, "ana")
	revoke(t, k, i, crt.Leaf.SerialNumber)
	later, err := k.Issuer(now.Add(revokedKept+time.Hour), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	revoke(t, k, later, big.NewInt(7))
	b, err := os.ReadFile(filepath.Join(k.Dir(), FileRevoked))
	if err != nil {
		t.Fatal(err)
	}
	p, _ := pem.Decode(b)
	crl, err := x509.ParseRevocationList(p.Bytes)
	if err != nil || len(crl.RevokedCertificateEntries) != 1 || crl.RevokedCertificateEntries[0].SerialNumber.Int64() != 7 || crl.Number.Int64() != 2 {
		t.Errorf("list is %+v, %v", crl, err)
	}
}

// openssl takes the list for what it is, and refuses the certificate by it.
func TestOpenSSLReadsTheList(t *testing.T) {
	tool, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	k := newKeyring(t)
	i, lost := newOperator(t, k, time.Now(), "ana")
	_, kept := newOperator(t, k, time.Now(), "bob")
	revoke(t, k, i, lost.Leaf.SerialNumber)
	ca := filepath.Join(k.Dir(), FileServiceCA+".crt")
	if out, err := exec.Command(tool, "crl", "-in", filepath.Join(k.Dir(), FileRevoked), "-CAfile", ca, "-noout", "-text").CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "verify OK") || !strings.Contains(string(out), strings.ToUpper(lost.Leaf.SerialNumber.Text(16))) {
		t.Errorf("openssl crl: %v\n%s", err, out)
	}
	for _, tt := range []struct {
		crt  tls.Certificate
		want string
	}{{lost, "certificate revoked"}, {kept, ": OK"}} {
		file := filepath.Join(t.TempDir(), "crt.pem")
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tt.crt.Certificate[0]}), 0o600); err != nil {
			t.Fatal(err)
		}
		out, _ := exec.Command(tool, "verify", "-crl_check", "-CRLfile", filepath.Join(k.Dir(), FileRevoked), "-CAfile", ca, file).CombinedOutput()
		if !strings.Contains(string(out), tt.want) {
			t.Errorf("openssl verify of %s: %s, want %q", tt.crt.Leaf.Subject, out, tt.want)
		}
	}
}
