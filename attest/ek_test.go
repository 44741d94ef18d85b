package attest_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
)

func newRSA(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func TestEachKindOfEndorsementKeyIsVerified(t *testing.T) {
	ca := newCA(t)
	policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMFirmware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMFirmware}}
	for name, key := range map[string]crypto.PublicKey{
		"RSA-2048": newRSA(t).Public(), "P-256": newKey(t, elliptic.P256()).Public(), "P-384": newKey(t, elliptic.P384()).Public(),
	} {
		t.Run(name, func(t *testing.T) {
			public := tpm2.Marshal(ekArea(t, key))
			cert := certify(t, ca, key, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
			ek, findings := VerifyEK(public, [][]byte{cert.Raw}, policy, now)
			if findings != nil {
				t.Fatalf("refused: %+v", findings)
			}
			id, err := EKMachineID(public)
			if err != nil {
				t.Fatal(err)
			}
			if want := MachineIDOf(cert.RawSubjectPublicKeyInfo); ek.Machine() != want || id != want {
				t.Errorf("machine is %s and %s, want %s", ek.Machine(), id, want)
			}
			if ek.Class() != TPMFirmware || !ek.Certificate().Equal(cert) {
				t.Errorf("class %s, certificate of %s", ek.Class(), ek.Certificate().Subject)
			}
			if len(ek.Certificate().UnhandledCriticalExtensions) != 1 {
				t.Error("the returned certificate hides that its subject alternative name was not read")
			}
		})
	}
}

func TestEndorsementCertificatesAreRefused(t *testing.T) {
	ca := newCA(t)
	key := newKey(t, elliptic.P256())
	public := tpm2.Marshal(ekArea(t, key.Public()))
	cert := func(change func(*x509.Certificate)) [][]byte {
		return [][]byte{certify(t, ca, key.Public(), change).Raw}
	}
	good := cert(nil)
	allowed := func() *TPMPolicy {
		return &TPMPolicy{Roots: []TPMRoot{{Class: TPMSoftware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMSoftware}}
	}
	otherExtension := func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
	}
	// An authority that gives itself the name and the key identifier of the trusted one.
	forger := newCA(t)
	forger.Root.RawSubject, forger.Root.SubjectKeyId = ca.Root.RawSubject, ca.Root.SubjectKeyId
	damaged := slices.Clone(good[0])
	damaged[len(damaged)-1] ^= 1
	// ecdsa-with-SHA224 (RFC 5758, 3.2), which nobody here can verify.
	strange := bytes.ReplaceAll(good[0], []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2}, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 1})
	between, err := forger.Sign(&x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "Intermediate"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, forger.Root, forger.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	below := *forger
	below.Root = between
	cases := map[string]struct {
		public []byte
		certs  [][]byte
		policy func(*TPMPolicy)
		now    time.Time
		want   Code
		says   string
	}{
		"no certificate":           {certs: [][]byte{}, want: CodeEKCertificate, says: "none was sent"},
		"no DER":                   {certs: [][]byte{{1, 2, 3}}, want: CodeEKCertificate},
		"too many certificates":    {certs: slices.Repeat(good, MaxCertificates+1), want: CodeEKCertificate, says: "at most 8"},
		"a certificate too large":  {certs: [][]byte{make([]byte, MaxCertificate+1)}, want: CodeEKCertificate, says: "at most 8192"},
		"a certificate of another": {certs: [][]byte{certify(t, ca, newKey(t, elliptic.P256()).Public(), nil).Raw}, want: CodeEKMismatch},
		"a certificate of the authority": {certs: cert(func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }),
			want: CodeEKCertificate, says: "authority"},
		"a certificate of an authority that may not sign": {certs: cert(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
			want: CodeEKCertificate, says: "authority"},
		"a certificate that may sign others": {certs: cert(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }),
			want: CodeEKCertificate, says: "authority"},
		"no endorsement usage": {certs: cert(func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }),
			want: CodeEKCertificate, says: "2.23.133.8.1"},
		"a signing usage": {certs: cert(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }),
			want: CodeEKCertificate, says: "keyAgreement"},
		"another unread critical extension": {certs: cert(otherExtension), want: CodeEKCertificate, says: "unhandled critical extension"},
		"not yet valid":                     {certs: good, now: now.Add(-2 * time.Hour), want: CodeEKCertificate, says: "expired or is not yet valid"},
		"expired":                           {certs: good, now: now.Add(2 * time.Hour), want: CodeEKExpired, says: "expired on 2026-03-04"},
		"another authority": {certs: good, policy: func(p *TPMPolicy) { p.Roots[0].Certificate = newCA(t).Root },
			want: CodeEKCertificate, says: "authority"},
		"an authority that has only the name of the trusted one": {certs: [][]byte{certify(t, forger, key.Public(), nil).Raw},
			want: CodeEKNotSigned, says: "is named as the issuer, and did not sign it"},
		"an intermediate of such an authority": {certs: [][]byte{certify(t, &below, key.Public(), nil).Raw, between.Raw}, want: CodeEKNotSigned},
		"a signature that is damaged":          {certs: [][]byte{damaged}, want: CodeEKNotSigned},
		"a signature of another kind":          {certs: [][]byte{strange}, want: CodeEKCertificate, says: "algorithm unimplemented"},
		"an authority of the same name with another key identifier": {certs: [][]byte{certify(t, newCA(t), key.Public(), nil).Raw},
			want: CodeEKCertificate, says: "authority"},
		"a root that is only an intermediate": {certs: good, policy: func(p *TPMPolicy) { p.Roots[0].Intermediate = true },
			want: CodeEKCertificate, says: "no trusted root"},
		"a root without class": {certs: good, policy: func(p *TPMPolicy) { p.Roots[0].Class = "" },
			want: CodeEKCertificate, says: "no trusted root"},
		"a root of an unknown class": {certs: good, policy: func(p *TPMPolicy) { p.Roots[0].Class = "magic"; p.Allowed = []TPMClass{"magic"} },
			want: CodeEKCertificate, says: "no trusted root"},
		"no root": {certs: good, policy: func(p *TPMPolicy) { p.Roots = nil }, want: CodeEKCertificate, says: "no trusted root"},
		"a class that is not allowed": {certs: good, policy: func(p *TPMPolicy) { p.Allowed = []TPMClass{TPMHardware} },
			want: CodeTPMClass, says: "software"},
		"a root listed as hardware and as software": {certs: good, policy: func(p *TPMPolicy) {
			p.Roots = append(p.Roots, TPMRoot{Class: TPMHardware, Certificate: ca.Root})
			p.Allowed = []TPMClass{TPMHardware}
		}, want: CodeTPMClass},
		"a key that is no TPM structure": {public: []byte("key"), certs: good, want: CodeMalformed},
		"a key with a trailing byte":     {public: append(slices.Clone(public), 0), certs: good, want: CodeMalformed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := allowed()
			if c.policy != nil {
				c.policy(p)
			}
			if c.public == nil {
				c.public = public
			}
			if c.now.IsZero() {
				c.now = now
			}
			ek, findings := VerifyEK(c.public, c.certs, p, c.now)
			if ek != nil || len(findings) != 1 || findings[0].Code != c.want || !strings.Contains(findings[0].Message, c.says) {
				t.Errorf("got %+v, want one finding %s that says %q", findings, c.want, c.says)
			}
		})
	}
}

func TestEndorsementKeysOfAnotherKindAreRefused(t *testing.T) {
	good := func() tpm2.TPMTPublic { return ekArea(t, newKey(t, elliptic.P256()).Public()) }
	rsaKey := newRSA(t)
	roca := rocaKey(t)
	cases := map[string]func() tpm2.TPMTPublic{
		"not restricted":       func() tpm2.TPMTPublic { p := good(); p.ObjectAttributes.Restricted = false; return p },
		"can sign":             func() tpm2.TPMTPublic { p := good(); p.ObjectAttributes.SignEncrypt = true; return p },
		"can be duplicated":    func() tpm2.TPMTPublic { p := good(); p.ObjectAttributes.FixedTPM = false; return p },
		"was imported":         func() tpm2.TPMTPublic { p := good(); p.ObjectAttributes.SensitiveDataOrigin = false; return p },
		"name algorithm SHA-1": func() tpm2.TPMTPublic { p := good(); p.NameAlg = tpm2.TPMAlgSHA1; return p },
		"another cipher":       func() tpm2.TPMTPublic { p := good(); changeECC(&p, aes256); return p },
		"a weak modulus (ROCA)": func() tpm2.TPMTPublic {
			return ekArea(t, roca)
		},
		"a small exponent": func() tpm2.TPMTPublic {
			p := ekArea(t, rsaKey.Public())
			parms, _ := p.Parameters.RSADetail()
			q := *parms
			q.Exponent = 3
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &q)
			return p
		},
		"a short modulus": func() tpm2.TPMTPublic {
			return ekArea(t, &rsa.PublicKey{N: big.NewInt(0).Rsh(rsaKey.N, 8), E: 65537})
		},
		"a point that is not on the curve": func() tpm2.TPMTPublic {
			p := good()
			point, _ := p.Unique.ECC()
			point.Y.Buffer[31] ^= 1
			return p
		},
		"a symmetric key": func() tpm2.TPMTPublic {
			p := good()
			p.Type = tpm2.TPMAlgKeyedHash
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{})
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{})
			return p
		},
	}
	for name, make := range cases {
		t.Run(name, func(t *testing.T) {
			if id, err := EKMachineID(tpm2.Marshal(make())); err == nil {
				t.Errorf("accepted as machine %s", id)
			}
		})
	}
}

// rocaKey has the form N = k*M + 65537^a mod M of the weak generator, with M
// the product of the first primes.
func rocaKey(t *testing.T) *rsa.PublicKey {
	t.Helper()
	m := big.NewInt(1)
	for p := int64(2); p <= 167; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(p))
		}
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(123456789), m)
	k := new(big.Int).Lsh(big.NewInt(1), 2047)
	k.Div(k, m)
	n.Add(n, k.Add(k, big.NewInt(1)).Mul(k, m))
	if n.BitLen() != 2048 {
		t.Fatalf("modulus has %d bits", n.BitLen())
	}
	return &rsa.PublicKey{N: n, E: 65537}
}

func TestOrdinaryModuliAreNotTakenForWeak(t *testing.T) {
	if !WeakROCA(rocaKey(t).N) {
		t.Error("the weak form was not seen")
	}
	for range 2000 {
		n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 2048))
		if err != nil {
			t.Fatal(err)
		}
		if WeakROCA(n) {
			t.Errorf("%x is taken for weak", n)
		}
	}
}

// Some makers mark the key of the certificate as RSAES-OAEP (RFC 4055), which
// crypto/x509 leaves unread.
func TestRSAESOAEPKeysAreCompared(t *testing.T) {
	key, other := newRSA(t), newRSA(t)
	spki, err := asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}},
		asn1.BitString{Bytes: x509.MarshalPKCS1PublicKey(&key.PublicKey), BitLength: 8 * len(x509.MarshalPKCS1PublicKey(&key.PublicKey))}})
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{RawSubjectPublicKeyInfo: spki}
	if !CertifiesKey(c, key.Public()) {
		t.Error("the key is not recognised")
	}
	if CertifiesKey(c, other.Public()) || CertifiesKey(c, newKey(t, elliptic.P256()).Public()) {
		t.Error("another key is taken for the certificate's")
	}
}

func TestAnIntermediateSentByTheMachineIsUsedButNotTrusted(t *testing.T) {
	ca := newCA(t)
	issuer := &papertpm.CA{Key: newKey(t, elliptic.P256()), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter}
	var err error
	issuer.Root, err = ca.Sign(&x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "Paper Issuer"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, ca.Root, issuer.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t, elliptic.P256())
	public := tpm2.Marshal(ekArea(t, key.Public()))
	leaf := certify(t, issuer, key.Public(), nil).Raw
	policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMHardware}}
	if _, f := VerifyEK(public, [][]byte{leaf, []byte("junk"), issuer.Root.Raw}, policy, now); f != nil {
		t.Errorf("refused with the intermediate: %+v", f)
	}
	if _, f := VerifyEK(public, [][]byte{leaf}, policy, now); f == nil {
		t.Error("accepted without the intermediate")
	}
	policy.Roots = append(policy.Roots, TPMRoot{Certificate: issuer.Root, Intermediate: true})
	if _, f := VerifyEK(public, [][]byte{leaf}, policy, now); f != nil {
		t.Errorf("refused with the policy's intermediate: %+v", f)
	}
	policy.Roots = policy.Roots[1:]
	if _, f := VerifyEK(public, [][]byte{leaf, issuer.Root.Raw}, policy, now); f == nil {
		t.Error("an intermediate was trusted as a root")
	}
}

// sentAuthority is one that the root vouches for, and that a machine sends.
func sentAuthority(t *testing.T, ca *papertpm.CA, key crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "between"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(template)
	}
	return signed(t, template, ca.Root, key.Public(), ca.Key)
}

func signed(t *testing.T, template, issuer *x509.Certificate, key crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key, by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An authority that is sent and has a key of a size that none has is no link of a
// chain, whoever vouches for it: its key costs too much.
func TestAnIntermediateWithAHugeKeyIsNotUsed(t *testing.T) {
	ca := newCA(t)
	key := newKey(t, elliptic.P256())
	model := certify(t, ca, key.Public(), nil)
	for name, c := range map[string]struct {
		key crypto.Signer
		ok  bool
	}{
		"RSA-4096": {newHugeRSA(t, 4096), true}, "RSA-4120": {newHugeRSA(t, 4120), false}, "RSA-9000": {newHugeRSA(t, 9000), false},
		"P-256": {newKey(t, elliptic.P256()), true}, "P-384": {newKey(t, elliptic.P384()), true}, "P-521": {newKey(t, elliptic.P521()), false},
	} {
		between := sentAuthority(t, ca, c.key, nil)
		leaf := signed(t, &x509.Certificate{
			SerialNumber: big.NewInt(8), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			KeyUsage: model.KeyUsage, UnknownExtKeyUsage: model.UnknownExtKeyUsage,
		}, between, key.Public(), c.key)
		policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMHardware}}
		_, findings := VerifyEK(tpm2.Marshal(ekArea(t, key.Public())), [][]byte{leaf.Raw, between.Raw}, policy, now)
		if c.ok && findings != nil {
			t.Errorf("%s: refused: %+v", name, findings)
		}
		if !c.ok && (len(findings) != 1 || findings[0].Code != CodeEKCertificate) {
			t.Errorf("%s: got %+v, want %s", name, findings, CodeEKCertificate)
		}
	}
}

// Of authorities of one name that are sent, the issuer is found, and they are not
// tried as the issuer of each other: a search without an end.
func TestOfIntermediatesOfOneNameTheIssuerIsFound(t *testing.T) {
	ca := newCA(t)
	key := newKey(t, elliptic.P256())
	model := certify(t, ca, key.Public(), nil)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(8), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: model.KeyUsage, UnknownExtKeyUsage: model.UnknownExtKeyUsage,
	}
	public := tpm2.Marshal(ekArea(t, key.Public()))
	policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMHardware}}
	first, second := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	one, two := sentAuthority(t, ca, first, nil), sentAuthority(t, ca, second, nil)
	leaf := signed(t, template, two, key.Public(), second)
	for name, sent := range map[string][]*x509.Certificate{"it is the first": {leaf, two, one}, "it is the last": {leaf, one, two}, "it is there twice": {leaf, one, two, two}} {
		var ders [][]byte
		for _, c := range sent {
			ders = append(ders, c.Raw)
		}
		if _, findings := VerifyEK(public, ders, policy, now); findings != nil {
			t.Errorf("%s: %+v", name, findings)
		}
	}
	// Each is the issuer of each other, as they have one key.
	other := newCA(t)
	all := [][]byte{nil}
	for i := range MaxCertificates - 1 {
		c := signed(t, &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: "between"}, DNSNames: []string{string(rune('a' + i))},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}, sentAuthority(t, other, first, nil), first.Public(), first)
		all = append(all, c.Raw)
	}
	all[0] = signed(t, template, one, key.Public(), first).Raw
	_, findings := VerifyEK(public, all, policy, now)
	if len(findings) != 1 || findings[0].Code != CodeEKCertificate || strings.Contains(findings[0].Message, "limit reached") {
		t.Errorf("got %+v", findings)
	}
}

// hugeRSA is an RSA key of about any size that is made at once: of many small primes.
type hugeRSA struct{ n, d *big.Int }

func newHugeRSA(t *testing.T, bits int) *hugeRSA {
	t.Helper()
	e, n, phi := big.NewInt(65537), big.NewInt(1), big.NewInt(1)
	for n.BitLen() < bits-16 {
		p, err := rand.Prime(rand.Reader, min(256, bits-n.BitLen()))
		if err != nil {
			t.Fatal(err)
		}
		less := new(big.Int).Sub(p, big.NewInt(1))
		if new(big.Int).GCD(nil, nil, less, e).Cmp(big.NewInt(1)) == 0 {
			n.Mul(n, p)
			phi.Mul(phi, less)
		}
	}
	return &hugeRSA{n, new(big.Int).ModInverse(e, phi)}
}

func (k *hugeRSA) Public() crypto.PublicKey { return &rsa.PublicKey{N: k.n, E: 65537} }

// Sign is EMSA-PKCS1-v1_5 (RFC 8017, 9.2) with SHA-256.
func (k *hugeRSA) Sign(_ io.Reader, sum []byte, _ crypto.SignerOpts) ([]byte, error) {
	size := (k.n.BitLen() + 7) / 8
	info := slices.Concat([]byte{0, 0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}, sum)
	padded := slices.Concat([]byte{0, 1}, bytes.Repeat([]byte{0xff}, size-2-len(info)), info)
	return new(big.Int).Exp(new(big.Int).SetBytes(padded), k.d, k.n).FillBytes(make([]byte, size)), nil
}

func FuzzVerifyEK(f *testing.F) {
	ca := newCA(f)
	key := newKey(f, elliptic.P256())
	public := tpm2.Marshal(ekArea(f, key.Public()))
	f.Add(public, certify(f, ca, key.Public(), nil).Raw)
	f.Add(tpm2.Marshal(ekArea(f, newRSA(f).Public())), []byte{0x30, 0})
	other := newCA(f)
	policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMSoftware, Certificate: other.Root}}, Allowed: []TPMClass{TPMSoftware}}
	f.Fuzz(func(t *testing.T, public, cert []byte) {
		if ek, findings := VerifyEK(public, [][]byte{cert}, policy, now); ek != nil || len(findings) == 0 {
			t.Errorf("accepted %x", cert)
		}
	})
}
