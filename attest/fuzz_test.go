package attest_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
)

// FuzzSubjectAltName reads names of TPMs. Every extension is in a certificate that
// is otherwise good and whose root may vouch for one manufacturer, so that a
// certificate is accepted only if it names this one, padded with NUL or a space.
func FuzzSubjectAltName(f *testing.F) {
	ca := newCA(f)
	key := newKey(f, elliptic.P256())
	public := tpm2.Marshal(ekArea(f, key.Public()))
	manufacturer, model, version := tpmAttribute{1, "id:49465800"}, tpmAttribute{2, "SLB9672"}, tpmAttribute{3, "id:000F0016"}
	f.Add(tpmName(f, []tpmAttribute{manufacturer}, []tpmAttribute{model}, []tpmAttribute{version}))
	f.Add(tpmName(f, []tpmAttribute{version, manufacturer, model}))
	f.Add([]byte{0x30, 0x80})
	f.Add([]byte{})
	policy := &TPMPolicy{Roots: []TPMRoot{{Class: TPMHardware, Certificate: ca.Root, Vendors: []TPMVendor{0x49465800}}}, Allowed: []TPMClass{TPMHardware}}
	f.Fuzz(func(t *testing.T, san []byte) {
		cert, err := ca.Certify(key.Public(), withSAN(san))
		if err != nil {
			return
		}
		ek, findings := VerifyEK(public, [][]byte{cert.Raw}, policy, now)
		if ek == nil {
			if len(findings) == 0 {
				t.Error("refused without a finding")
			}
			return
		}
		upper := bytes.ToUpper(san)
		named := bytes.Contains(upper, []byte("ID:49465800")) || bytes.Contains(upper, []byte("ID:49465820")) || bytes.Contains(san, []byte("IFX"))
		if ek.Model().Vendor != 0x49465800 || !named {
			t.Errorf("accepted as %+v", ek.Model())
		}
	})
}

// FuzzRevocationList reads revocation lists. What is not signed by the authority
// is no list.
func FuzzRevocationList(f *testing.F) {
	ca := newCA(f)
	var err error
	if ca.Root, err = ca.Sign(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}, nil, ca.Key.Public()); err != nil {
		f.Fatal(err)
	}
	good, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: now}}}, ca.Root, ca.Key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	roots := []TPMRoot{{Class: TPMHardware, Certificate: ca.Root}}
	f.Fuzz(func(t *testing.T, der []byte) {
		if r, err := NewRevocations([][]byte{der}, roots); err == nil && !bytes.Equal(der, good) {
			t.Errorf("a list that was never signed counts: %v", r.Digests())
		}
	})
}

// FuzzVerify gives Verify evidence as the node API decodes it. Nothing but the
// machine's own is ever allowed, and every refusal says why.
func FuzzVerify(f *testing.F) {
	for i, banks := range [][]string{{"sha256"}, {"sha384"}, {"sha1", "sha256", "sha384"}, {"sha256"}} {
		s := sha384Scene(f, banks...)
		s.tpm.Prove = true
		if i == 3 {
			s.tpm.Unable = cannot
		}
		s.collect()
		b, err := json.Marshal(s.ev)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	// The machine is another one in each process: the evidence of the corpus
	// answers no challenge of its.
	s := newScene(f)
	s.policy.TPM.ProveBanks, s.policy.TPM.BankExemptions = true, []TPMRule{{Machine: s.machine()}}
	s.collect()
	f.Fuzz(func(t *testing.T, b []byte) {
		var ev Evidence
		if json.Unmarshal(b, &ev) != nil {
			return
		}
		r := Verify(&ev, s.ch, s.ses, s.known, s.policy)
		if _, ok := r.Verified(); ok || r.Allowed || len(r.Findings) == 0 {
			t.Errorf("allowed: %s", b)
		}
		for _, finding := range r.Findings {
			if finding.Code == "" || finding.Message == "" {
				t.Errorf("an empty finding: %+v", finding)
			}
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	})
}
