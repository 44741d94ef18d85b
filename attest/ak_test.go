package attest_test

import (
	"crypto/elliptic"
	"encoding/binary"
	"testing"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
)

// Each attribute decides what a signature by the key proves, so each must be as the
// agent's template has it, and so must the bits that no specification names yet.
func TestAttestationKeysHaveExactlyTheirAttributes(t *testing.T) {
	good := tpm2.Marshal(akArea(t, &newKey(t, elliptic.P256()).PublicKey))
	if _, err := AKName(good); err != nil {
		t.Fatal(err)
	}
	for bit := range 32 {
		b := append([]byte{}, good...)
		binary.BigEndian.PutUint32(b[4:], binary.BigEndian.Uint32(b[4:])^1<<bit)
		if _, err := AKName(b); err == nil {
			t.Errorf("accepted with the attribute bit %d flipped", bit)
		}
	}
	scheme := func(change func(*tpm2.TPMSECCParms)) tpm2.TPMTPublic {
		p := akArea(t, &newKey(t, elliptic.P256()).PublicKey)
		parms, err := p.Parameters.ECCDetail()
		if err != nil {
			t.Fatal(err)
		}
		c := *parms
		change(&c)
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &c)
		return p
	}
	ecdsa := func(h tpm2.TPMAlgID) tpm2.TPMTECCScheme {
		return tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: h})}
	}
	for name, p := range map[string]tpm2.TPMTPublic{
		"signing with SHA-1":   scheme(func(p *tpm2.TPMSECCParms) { p.Scheme = ecdsa(tpm2.TPMAlgSHA1) }),
		"signing with SHA-384": scheme(func(p *tpm2.TPMSECCParms) { p.Scheme = ecdsa(tpm2.TPMAlgSHA384) }),
		"of any scheme":        scheme(func(p *tpm2.TPMSECCParms) { p.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull} }),
		"of another curve":     scheme(func(p *tpm2.TPMSECCParms) { p.CurveID = tpm2.TPMECCNistP384 }),
		"with a policy": func() tpm2.TPMTPublic {
			p := akArea(t, &newKey(t, elliptic.P256()).PublicKey)
			p.AuthPolicy.Buffer = make([]byte, 32)
			return p
		}(),
		"named with SHA-1": func() tpm2.TPMTPublic {
			p := akArea(t, &newKey(t, elliptic.P256()).PublicKey)
			p.NameAlg = tpm2.TPMAlgSHA1
			return p
		}(),
	} {
		if _, err := AKName(tpm2.Marshal(p)); err == nil {
			t.Errorf("accepted %s", name)
		}
		if _, _, _, err := MakeCredential(tpm2.Marshal(ekArea(t, newKey(t, elliptic.P256()).Public())), tpm2.Marshal(p)); err == nil {
			t.Errorf("a credential was made for one %s", name)
		}
	}
}
