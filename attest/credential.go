package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// activationSecretSize is the size of what MakeCredential protects, in bytes.
// A credential may be no longer than the digest of the EK's name algorithm.
const activationSecretSize = 32

// AKName returns the TPM Name of an attestation key after the checks that
// MakeCredential and Verify make: ECC P-256, ECDSA with SHA-256, name
// algorithm SHA-256, and exactly the attributes fixedTPM, fixedParent,
// sensitiveDataOrigin, userWithAuth, noDA, restricted and sign.
// Such a key signs nothing but what its TPM made (Part 1, "Attestation").
func AKName(akPublic []byte) ([]byte, error) {
	if _, err := checkAK(akPublic); err != nil {
		return nil, err
	}
	return nameOf(akPublic), nil
}

// checkAK checks an attestation key's public area and returns the key.
func checkAK(akPublic []byte) (*ecdsa.PublicKey, error) {
	p, err := decodePublic("attestation key", akPublic)
	if err != nil {
		return nil, err
	}
	if p.Type != tpm2.TPMAlgECC || p.NameAlg != tpm2.TPMAlgSHA256 {
		return nil, fmt.Errorf("attestation key: type %#04x with name algorithm %#04x, want ECC with SHA-256", uint16(p.Type), uint16(p.NameAlg))
	}
	const want = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrUserWithAuth | attrNoDA | attrRestricted | attrSign
	if err := checkAttributes(akPublic, want, 0); err != nil {
		return nil, fmt.Errorf("attestation key: %w: it must be a restricted signing key that never left its TPM", err)
	}
	if len(p.AuthPolicy.Buffer) != 0 {
		return nil, fmt.Errorf("attestation key: it has an authorization policy of %d bytes, want none", len(p.AuthPolicy.Buffer))
	}
	parms, err := p.Parameters.ECCDetail()
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	if parms.CurveID != tpm2.TPMECCNistP256 || parms.Symmetric.Algorithm != tpm2.TPMAlgNull || parms.KDF.Scheme != tpm2.TPMAlgNull {
		return nil, fmt.Errorf("attestation key: curve %#04x, cipher %#04x, key derivation %#04x, want P-256 and none",
			uint16(parms.CurveID), uint16(parms.Symmetric.Algorithm), uint16(parms.KDF.Scheme))
	}
	if parms.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return nil, fmt.Errorf("attestation key: signature scheme is %#04x, want ECDSA", uint16(parms.Scheme.Scheme))
	}
	scheme, err := parms.Scheme.Details.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	if scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return nil, fmt.Errorf("attestation key: signature hash is %#04x, want SHA-256", uint16(scheme.HashAlg))
	}
	return eccPoint("attestation key", p, parms)
}

// eccPoint returns the key of an ECC public area whose point is on its curve.
func eccPoint(what string, p *tpm2.TPMTPublic, parms *tpm2.TPMSECCParms) (*ecdsa.PublicKey, error) {
	point, err := p.Unique.ECC()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	var curve elliptic.Curve
	switch parms.CurveID {
	case tpm2.TPMECCNistP256:
		curve = elliptic.P256()
	case tpm2.TPMECCNistP384:
		curve = elliptic.P384()
	default:
		return nil, fmt.Errorf("%s: curve is %#04x, want P-256 or P-384", what, uint16(parms.CurveID))
	}
	size := curve.Params().BitSize / 8
	if len(point.X.Buffer) > size || len(point.Y.Buffer) > size {
		return nil, fmt.Errorf("%s: coordinates of %d and %d bytes, want at most %d", what, len(point.X.Buffer), len(point.Y.Buffer), size)
	}
	// Uncompressed point, SEC 1 2.3.3. A TPM may leave out leading zeros.
	enc := make([]byte, 1+2*size)
	enc[0] = 4
	copy(enc[1+size-len(point.X.Buffer):], point.X.Buffer)
	copy(enc[1+2*size-len(point.Y.Buffer):], point.Y.Buffer)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, enc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return key, nil
}

// MakeCredential makes a challenge that only a TPM can answer that holds both
// keys: credential and secret are the contents of the TPM2B_ID_OBJECT and the
// TPM2B_ENCRYPTED_SECRET for TPM2_ActivateCredential (Part 1, "Credential
// Protection"), which gives the activation secret. It refuses keys of a kind that Verify would refuse;
// it does not ask who vouches for the endorsement key.
func MakeCredential(ekPublic, akPublic []byte) (credential, secret []byte, activation Secret, err error) {
	name, err := AKName(akPublic)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make credential: %w", err)
	}
	p, _, err := checkEK(ekPublic)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make credential: %w", err)
	}
	key, err := tpm2.ImportEncapsulationKey(p)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make credential: endorsement key: %w", err)
	}
	activation = make(Secret, activationSecretSize)
	rand.Read(activation)
	credential, secret, err = tpm2.CreateCredential(rand.Reader, key, name, activation)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make credential: %w", err)
	}
	return credential, secret, activation, nil
}
