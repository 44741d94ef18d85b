package attest_test

import (
	"bytes"
	"crypto/elliptic"
	"testing"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
)

func TestAttestationKeysOfAnotherKindAreRefused(t *testing.T) {
	key := newKey(t, elliptic.P256())
	if _, err := AKName(tpm2.Marshal(akArea(t, &key.PublicKey))); err != nil {
		t.Fatalf("a good key was refused: %v", err)
	}
	scheme := func(p *tpm2.TPMTPublic, change func(*tpm2.TPMSECCParms)) {
		parms, err := p.Parameters.ECCDetail()
		if err != nil {
			t.Fatal(err)
		}
		q := *parms
		change(&q)
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &q)
	}
	cases := map[string]func(*tpm2.TPMTPublic){
		"unrestricted":         func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false },
		"can decrypt":          func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true },
		"can be duplicated":    func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false },
		"can change parent":    func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false },
		"was imported":         func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		"needs a policy":       func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = make([]byte, 32) },
		"name algorithm SHA-1": func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 },
		"signs with SHA-1": func(p *tpm2.TPMTPublic) {
			scheme(p, func(q *tpm2.TPMSECCParms) {
				q.Scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA1})
			})
		},
		"signs in any scheme": func(p *tpm2.TPMTPublic) {
			scheme(p, func(q *tpm2.TPMSECCParms) { q.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull} })
		},
		"of another curve": func(p *tpm2.TPMTPublic) {
			scheme(p, func(q *tpm2.TPMSECCParms) { q.CurveID = tpm2.TPMECCNistP384 })
		},
		"a point that is not on the curve": func(p *tpm2.TPMTPublic) {
			point, _ := p.Unique.ECC()
			point.X.Buffer[3] ^= 1
		},
		"a coordinate that is too long": func(p *tpm2.TPMTPublic) {
			point, _ := p.Unique.ECC()
			point.X.Buffer = append([]byte{0}, point.X.Buffer...)
		},
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			p := akArea(t, &newKey(t, elliptic.P256()).PublicKey)
			change(&p)
			ek := tpm2.Marshal(ekArea(t, key.Public()))
			if _, err := AKName(tpm2.Marshal(p)); err == nil {
				t.Error("accepted by AKName")
			}
			if _, _, _, err := MakeCredential(ek, tpm2.Marshal(p)); err == nil {
				t.Error("accepted by MakeCredential")
			}
		})
	}
	if _, _, _, err := MakeCredential([]byte("x"), tpm2.Marshal(akArea(t, &key.PublicKey))); err == nil {
		t.Error("a credential was made for no key")
	}
}

func TestWrapTakesSecretsOfOneSize(t *testing.T) {
	s := newScene(t)
	s.collect()
	v, ok := s.verify().Verified()
	if !ok {
		t.Fatal("refused")
	}
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := Wrap(v, make(Secret, n)); err == nil {
			t.Errorf("a secret of %d bytes was wrapped", n)
		}
	}
	a, err := Wrap(v, make(Secret, SecretSize))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Wrap(v, make(Secret, SecretSize))
	if err != nil {
		t.Fatal(err)
	}
	if string(a.Public) == string(b.Public) || string(a.Seed) == string(b.Seed) {
		t.Error("two wrappings of one secret have something in common")
	}
}

// FuzzVerifyQuote changes what a TPM signs. Whatever it is, Verify neither
// panics nor allows anything but the unchanged evidence.
func FuzzVerifyQuote(f *testing.F) {
	s := newScene(f)
	s.collect()
	q, tr := s.ev.Quotes[0], s.ev.Transport
	f.Add(q.Attest, q.Signature, tr.Public, tr.CreationData, tr.Certify, s.ev.AKPublic, true)
	f.Add(tr.Certify, tr.Signature, s.ev.AKPublic, tr.CreationData, q.Attest, tr.Public, false)
	f.Fuzz(func(t *testing.T, attest, signature, public, creation, certify, ak []byte, signed bool) {
		ev := *s.ev
		d := s.tpm
		ev.AKPublic = ak
		ev.Transport = TransportKey{Public: public, CreationData: creation, Certify: certify, Signature: tr.Signature}
		ev.Quotes = []Quote{{Bank: "sha256", Attest: attest, Signature: signature, PCRs: q.PCRs}}
		if signed { // reach what is behind the signature
			ev.Quotes[0].Signature, ev.Transport.Signature = sign(t, d, attest), sign(t, d, certify)
		}
		same := string(attest) == string(q.Attest) && string(public) == string(tr.Public) && string(creation) == string(tr.CreationData) &&
			string(certify) == string(tr.Certify) && string(ak) == string(s.ev.AKPublic)
		if r := Verify(&ev, s.ch, s.ses, s.known, s.policy); r.Allowed && !same {
			t.Errorf("allowed with the quote %x, transport key %x", attest, public)
		}
	})
}

// FuzzDecodePublic looks for a structure that is accepted but is not what
// go-tpm makes of its contents.
func FuzzDecodePublic(f *testing.F) {
	f.Add(tpm2.Marshal(akArea(f, &newKey(f, elliptic.P256()).PublicKey)))
	f.Add(tpm2.Marshal(tpm2.RSAEKTemplate))
	s := newScene(f)
	s.collect()
	for _, b := range [][]byte{s.ev.EKPublic, s.ev.Quotes[0].Attest, s.ev.Quotes[0].Signature, s.ev.Transport.Public, s.ev.Transport.Certify, s.ev.Transport.CreationData} {
		if len(DecodeStructures(b)) == 0 {
			f.Fatalf("%x is refused", b)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for what, again := range DecodeStructures(b) {
			if !bytes.Equal(again, b) {
				t.Errorf("%s: %x was read as %x", what, b, again)
			}
		}
		CheckEK(b)
		CheckAK(b)
	})
}
