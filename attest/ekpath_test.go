package attest_test

import (
	"cmp"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// authority is a template of one with a name, valid from and to so many hours from
// now. Each has another serial number.
func authority(serial int64, name string, from, to int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: now.Add(time.Duration(from) * time.Hour), NotAfter: now.Add(time.Duration(to) * time.Hour),
	}
}

// nameOfCertificate is an issuer of whom only the name counts.
func nameOfCertificate(c *x509.Certificate) *x509.Certificate {
	return &x509.Certificate{RawSubject: c.RawSubject, Subject: c.Subject}
}

// permutations calls f with each order of certs.
func permutations(certs []*x509.Certificate, f func([]*x509.Certificate)) {
	var walk func(done, rest []*x509.Certificate)
	walk = func(done, rest []*x509.Certificate) {
		if len(rest) == 0 {
			f(done)
			return
		}
		for i := range rest {
			next := append(append([]*x509.Certificate{}, rest[:i]...), rest[i+1:]...)
			walk(append(append([]*x509.Certificate{}, done...), rest[i]), next)
		}
	}
	walk(nil, certs)
}

// TestAmongAuthoritiesOfOneNameAPathIsFound sends authorities that were certified
// again, in each order. openssl, which is given those that it needs, says what is
// a chain.
func TestAmongAuthoritiesOfOneNameAPathIsFound(t *testing.T) {
	openssl := tpmtest.Tool(t, "openssl")
	ca, other := newCA(t), newCA(t)
	model := certify(t, ca, newKey(t, elliptic.P256()).Public(), nil)
	ek, low, high, former := newKey(t, elliptic.P256()), newKey(t, elliptic.P256()), newKey(t, elliptic.P384()), newKey(t, elliptic.P256())
	leafOf := func(issuer *x509.Certificate, by crypto.Signer) *x509.Certificate {
		return signed(t, &x509.Certificate{
			SerialNumber: big.NewInt(8), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: model.KeyUsage, UnknownExtKeyUsage: model.UnknownExtKeyUsage,
		}, issuer, ek.Public(), by)
	}
	expired := signed(t, authority(10, "low", -9, -1), ca.Root, low.Public(), ca.Key)
	renewed := signed(t, authority(11, "low", -1, 9), ca.Root, low.Public(), ca.Key)
	toCome := signed(t, authority(12, "low", 1, 9), ca.Root, low.Public(), ca.Key)
	crossed := signed(t, authority(13, "low", -1, 9), other.Root, low.Public(), other.Key)
	rolled := signed(t, authority(14, "low", -1, 9), ca.Root, former.Public(), ca.Key)
	forged := signed(t, authority(15, "low", -1, 9), nameOfCertificate(ca.Root), low.Public(), other.Key)
	noAuthority := authority(16, "low", -1, 9)
	noAuthority.IsCA, noAuthority.KeyUsage = false, x509.KeyUsageDigitalSignature
	person := signed(t, noAuthority, ca.Root, low.Public(), ca.Key)

	highExpired := signed(t, authority(20, "high", -9, -1), ca.Root, high.Public(), ca.Key)
	highRenewed := signed(t, authority(21, "high", -1, 9), ca.Root, high.Public(), ca.Key)
	lowOfHigh := signed(t, authority(22, "low", -1, 9), highRenewed, low.Public(), high)
	lowOfHighExpired := signed(t, authority(23, "low", -9, -1), highRenewed, low.Public(), high)

	leaf := leafOf(renewed, low)
	for name, tt := range map[string]struct {
		sent []*x509.Certificate
		ok   bool
		code Code // if it is none of the usual
	}{
		"an expired one and its renewal":          {sent: []*x509.Certificate{expired, renewed}, ok: true},
		"one that is to come":                     {sent: []*x509.Certificate{toCome, expired, renewed}, ok: true},
		"one of an authority that is not trusted": {sent: []*x509.Certificate{crossed, renewed}, ok: true},
		"one with another key":                    {sent: []*x509.Certificate{rolled, renewed}, ok: true},
		"one that is no authority":                {sent: []*x509.Certificate{person, renewed}, ok: true},
		"one with a forged signature":             {sent: []*x509.Certificate{forged, renewed}, ok: true},
		"all of them":                             {sent: []*x509.Certificate{expired, toCome, crossed, rolled, forged, renewed}, ok: true},
		"two levels, two of each":                 {sent: []*x509.Certificate{lowOfHighExpired, lowOfHigh, highExpired, highRenewed}, ok: true},
		"none that is valid":                      {sent: []*x509.Certificate{expired, toCome}},
		"none that leads to a root":               {sent: []*x509.Certificate{crossed, forged}, code: CodeEKNotSigned},
		"none whose key it is":                    {sent: []*x509.Certificate{rolled, forged}, code: CodeEKNotSigned},
		"no authority":                            {sent: []*x509.Certificate{person, expired}},
		"two levels, none valid above":            {sent: []*x509.Certificate{lowOfHigh, lowOfHighExpired, highExpired}},
	} {
		t.Run(name, func(t *testing.T) {
			policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMHardware}}
			n := 0
			permutations(tt.sent, func(sent []*x509.Certificate) {
				if n++; n > 200 {
					return
				}
				ders := [][]byte{leaf.Raw}
				for _, c := range sent {
					ders = append(ders, c.Raw)
				}
				_, findings := VerifyEK(tpm2.Marshal(ekArea(t, ek.Public())), ders, policy, now)
				if (findings == nil) != tt.ok {
					t.Errorf("order %d: %+v", n, findings)
				}
				if !tt.ok && findings != nil && findings[0].Code != cmp.Or(tt.code, CodeEKCertificate) {
					t.Errorf("order %d: %s", n, findings[0].Code)
				}
			})
			// openssl tries no second issuer of a name: one subset must do for it.
			verified := false
			for set := range 1 << len(tt.sent) {
				var sent []*x509.Certificate
				for i, c := range tt.sent {
					if set>>i&1 == 1 {
						sent = append(sent, c)
					}
				}
				if verified = opensslVerifies(t, openssl, ca.Root, sent, leaf); verified {
					break
				}
			}
			if verified != tt.ok {
				t.Errorf("openssl finds a chain: %t, want %t", verified, tt.ok)
			}
		})
	}
	// One that is expired is said to be.
	policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMHardware}}
	if _, f := VerifyEK(tpm2.Marshal(ekArea(t, ek.Public())), [][]byte{leaf.Raw, toCome.Raw, expired.Raw}, policy, now); len(f) != 1 || !strings.Contains(f[0].Message, "expired") {
		t.Errorf("got %+v", f)
	}
	// The policy's own intermediate may be below one that is sent.
	policy.Roots = append(policy.Roots, TPMRoot{Certificate: lowOfHigh, Intermediate: true})
	if _, f := VerifyEK(tpm2.Marshal(ekArea(t, ek.Public())), [][]byte{leaf.Raw, highExpired.Raw, highRenewed.Raw}, policy, now); f != nil {
		t.Errorf("got %+v", f)
	}
}

func opensslVerifies(t *testing.T, openssl string, root *x509.Certificate, sent []*x509.Certificate, leaf *x509.Certificate) bool {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, certs ...*x509.Certificate) string {
		var b []byte
		for _, c := range certs {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{"verify", "-attime", fmt.Sprint(now.Unix()), "-no-CApath", "-no-CAstore", "-CAfile", file("root.pem", root)}
	if len(sent) > 0 {
		args = append(args, "-untrusted", file("sent.pem", sent...))
	}
	return exec.Command(openssl, append(args, file("leaf.pem", leaf))...).Run() == nil
}

// Whoever makes up authorities does not have the service search without an end.
func TestTheSearchAmongAuthoritiesOfOneNameEnds(t *testing.T) {
	ca, own := newCA(t), newCA(t)
	ek, key := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	model := certify(t, ca, ek.Public(), nil)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(8), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: model.KeyUsage, UnknownExtKeyUsage: model.UnknownExtKeyUsage,
	}
	policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMHardware}}
	const n = MaxCertificates - 1
	named := func(names ...string) (out []*x509.Certificate) {
		// Whatever their names, each may have signed each: they have one key.
		for i := range n {
			parent := authority(1, names[(i+1)%len(names)], -1, 1)
			out = append(out, signed(t, authority(int64(100+i), names[i%len(names)], -1, 1), parent, key.Public(), key))
		}
		return out
	}
	inTheRootsName := func() (out []*x509.Certificate) {
		for i := range n {
			c := authority(int64(100+i), "", -1, 1)
			c.RawSubject = ca.Root.RawSubject
			out = append(out, signed(t, c, nameOfCertificate(ca.Root), key.Public(), key))
		}
		return out
	}
	certified := func(names ...string) (out []*x509.Certificate) {
		for i := range n {
			out = append(out, signed(t, authority(int64(100+i), names[i%len(names)], -1, 1), ca.Root, key.Public(), ca.Key))
		}
		return out
	}
	for name, tt := range map[string]struct {
		sent   []*x509.Certificate
		issuer string
		ok     bool
		paths  int // at most
	}{
		"all of one name":                     {sent: named("a"), issuer: "a", paths: 1},
		"two names in a circle":               {sent: named("a", "b"), issuer: "a", paths: 1},
		"three names in a circle":             {sent: named("a", "b", "c"), issuer: "a", paths: 1},
		"in the root's name":                  {sent: inTheRootsName(), paths: 1},
		"many that the root has certified":    {sent: certified("a"), issuer: "a", ok: true, paths: 5},
		"many that it has, of several names":  {sent: certified("a", "b"), issuer: "a", ok: true, paths: 5},
		"others that it has not, of one name": {sent: []*x509.Certificate{own.Root, signed(t, authority(3, "a", -1, 1), own.Root, key.Public(), own.Key), signed(t, authority(4, "a", -1, 1), own.Root, key.Public(), own.Key)}, issuer: "a", paths: 1},
	} {
		t.Run(name, func(t *testing.T) {
			parent := authority(2, tt.issuer, -1, 1)
			if tt.issuer == "" {
				parent.RawSubject = ca.Root.RawSubject
			}
			leaf := signed(t, template, parent, ek.Public(), key)
			ders := [][]byte{leaf.Raw}
			for _, c := range tt.sent {
				ders = append(ders, c.Raw)
			}
			paths, checks := policy.SentPaths(leaf, tt.sent, now)
			if paths > tt.paths || checks > 16 {
				t.Errorf("%d paths after %d signatures, want at most %d and 16", paths, checks, tt.paths)
			}
			_, findings := VerifyEK(tpm2.Marshal(ekArea(t, ek.Public())), ders, policy, now)
			if (findings == nil) != tt.ok {
				t.Errorf("got %+v", findings)
			}
			for _, f := range findings {
				if strings.Contains(f.Message, "limit reached") {
					t.Errorf("crypto/x509 searched to its own limit: %s", f.Message)
				}
			}
		})
	}
}
