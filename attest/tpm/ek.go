package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
)

// EK is an endorsement key and what the TPM's maker says about it.
type EK struct {
	Kind   string // "ECC P-256", "ECC P-384", "RSA-2048" or "RSA-3072"
	Public []byte // TPMT_PUBLIC
	// Certificates are DER: the certificate of this key first, then the chain
	// certificates that are in NV. Empty if there is none for this key.
	Certificates [][]byte
	// Problems says what was found in NV but could not be used.
	Problems []error
	// PassedOver: of a certificate in NV the key was not made, because of what the TPM
	// says of another that is persistent. IdentifyByKeys makes it.
	PassedOver bool

	index uint32 // NV index of the certificate, 0 if there is none
}

// ekKind is a way to make an endorsement key, from the TCG EK Credential
// Profile for TPM Family 2.0, 2.2.1.4 (low range, templates L-n) and 2.2.1.5
// (high range, templates H-n).
type ekKind struct {
	name        string
	certificate uint32 // NV index
	nonce       uint32 // NV index, 0 if the range has none
	template    uint32 // NV index of a vendor's own template
	persistent  uint32 // handle under which many TPMs keep the key, 0 if it is made quickly or none is known
	public      tpm2.TPMTPublic
}

// Range of NV indices in which the profile keeps certificates, nonces,
// templates and chain certificates.
const (
	nvFirst      = 0x01c00002
	nvChainFirst = 0x01c00100
	nvChainLast  = 0x01c001ff
)

// ekKinds lists the kinds in the order of preference. ECC before RSA because a
// chip takes seconds to make an RSA primary key; P-256 before P-384 because
// each of them can do it. Each kind works with credential activation: go-tpm's
// CreateCredential follows the key's name algorithm, SHA-384 with AES-256 for
// P-384 and RSA-3072. Certificates of P-521, SM2 and RSA-4096 keys (H-4, H-5 and
// H-7) are passed over.
//
// Persistent endorsement keys are from 0x81010000 on (TCG Registry of Reserved TPM 2.0
// Handles and Localities), the RSA-2048 key of the low range at 0x81010001 (Windows,
// swtpm), RSA-3072 at 0x8101001c (swtpm).
func ekKinds() []ekKind {
	return []ekKind{
		{"ECC P-256", 0x01c0000a, 0x01c0000b, 0x01c0000c, 0, tpm2.ECCEKTemplate},
		{"ECC P-256", 0x01c00014, 0, 0x01c00015, 0, highRange(tpm2.TPMECCNistP256)},
		{"ECC P-384", 0x01c00016, 0, 0x01c00017, 0, highRange(tpm2.TPMECCNistP384)},
		{"RSA-2048", 0x01c00002, 0x01c00003, 0x01c00004, 0x81010001, tpm2.RSAEKTemplate},
		{"RSA-2048", 0x01c00012, 0, 0x01c00013, 0, highRange(0)},
		{"RSA-3072", 0x01c0001c, 0, 0x01c0001d, 0x8101001c, highRSA3072()},
	}
}

// policyB are the authPolicies of the high-range templates: PolicySecret of
// the endorsement hierarchy or PolicyAuthorizeNV (EK Credential Profile 2.1,
// B.6.5). This package uses neither, as userWithAuth is set.
func policyB(alg tpm2.TPMAlgID) []byte {
	if alg == tpm2.TPMAlgSHA384 {
		return []byte{
			0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a,
			0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca,
			0xcb, 0x47, 0xba, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
		}
	}
	return []byte{
		0xca, 0x3d, 0x0a, 0x99, 0xa2, 0xb9, 0x39, 0x06, 0xf7, 0xa3, 0x34, 0x24, 0x14, 0xef, 0xcf, 0xb3,
		0xa3, 0x85, 0xd4, 0x4c, 0xd1, 0xfd, 0x45, 0x90, 0x89, 0xd1, 0x9b, 0x50, 0x71, 0xc0, 0xb7, 0xa0,
	}
}

// highRange returns the template H-1 (RSA-2048, for curve 0), H-2 (P-256) or
// H-3 (P-384).
func highRange(curve tpm2.TPMECCCurve) tpm2.TPMTPublic {
	p := tpm2.RSAEKTemplate
	if curve != 0 {
		p = tpm2.ECCEKTemplate
	}
	p.ObjectAttributes.UserWithAuth = true
	bits := tpm2.TPMKeyBits(128)
	if curve == tpm2.TPMECCNistP384 {
		p.NameAlg = tpm2.TPMAlgSHA384
		bits = 256
	}
	p.AuthPolicy = tpm2.TPM2BDigest{Buffer: policyB(p.NameAlg)}
	if curve == 0 {
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
		return p
	}
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aesCFB(bits), CurveID: curve})
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return p
}

// highRSA3072 returns the template H-6.
func highRSA3072() tpm2.TPMTPublic {
	p := highRange(0)
	p.NameAlg = tpm2.TPMAlgSHA384
	p.AuthPolicy = tpm2.TPM2BDigest{Buffer: policyB(p.NameAlg)}
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aesCFB(256), KeyBits: 3072})
	return p
}

func aesCFB(bits tpm2.TPMKeyBits) tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

// EK chooses the endorsement key, always the same one on the same TPM: the
// first of ECC P-256, ECC P-384, RSA-2048 and RSA-3072 for which NV holds a certificate
// and whose key, made from its template, is the certificate's. Where there is
// none it is the ECC P-256 key without a certificate, and the service's policy
// decides.
//
// It makes the key of each certificate until one is the certificate's, whatever is
// persistent: it is for an install, which is done once, and by which a service knows the
// machine from then on. IdentifyByKeys comes to the same key, and so does Identify but
// for EK.PassedOver.
//
// A TPM whose firmware was updated may hold a certificate of a kind that comes
// before. Its service then knows it by the other key, and says so: see IdentifyAs.
func (t *TPM) EK() (*EK, error) {
	ek, err := t.chooseEK(attest.MachineID{}, true)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	return ek, nil
}

// errNoSuchKey says that a TPM has no endorsement key of that identity.
var errNoSuchKey = errors.New("none of the TPM's endorsement keys is that machine's")

// chooseEK chooses the endorsement key, or that whose identity is machine, if that
// is set. thorough: no certificate is passed over.
func (t *TPM) chooseEK(machine attest.MachineID, thorough bool) (*EK, error) {
	if err := t.flush(&t.ek); err != nil {
		return nil, err
	}
	indices, err := t.nvIndices(nvFirst, nvChainLast)
	if err != nil {
		return nil, err
	}
	ek := &EK{}
	for _, kind := range ekKinds() {
		if !slices.Contains(indices, kind.certificate) {
			continue
		}
		cert, err := t.certificate(kind.certificate)
		if err == nil && !thorough {
			if err = t.misfit(kind, cert, indices); err != nil {
				ek.PassedOver = true
			}
		}
		if err == nil {
			err = t.makeFor(cert, kind, indices)
		}
		if err != nil {
			ek.Problems = append(ek.Problems, err)
			continue
		}
		if !machine.IsZero() {
			if id, err := attest.EKMachineID(t.ek.public); err != nil || id != machine {
				if err = errors.Join(err, t.flush(&t.ek)); err != nil {
					ek.Problems = append(ek.Problems, err)
				}
				continue
			}
		}
		ek.Kind, ek.Public, ek.index = kind.name, t.ek.public, kind.certificate
		ek.Certificates = append([][]byte{cert}, t.chain(indices, ek)...)
		return ek, nil
	}
	kind := ekKinds()[0]
	if !machine.IsZero() && slices.Contains(indices, kind.certificate) {
		return nil, errors.Join(append(ek.Problems, errNoSuchKey)...)
	}
	// The service can have a certificate of this one that the TPM does not have.
	if err := t.makeEK(kind, indices); err != nil {
		return nil, errors.Join(append(ek.Problems, err)...)
	}
	if !machine.IsZero() {
		if id, err := attest.EKMachineID(t.ek.public); err != nil || id != machine {
			return nil, errors.Join(append(ek.Problems, err, t.flush(&t.ek), errNoSuchKey)...)
		}
	}
	ek.Kind, ek.Public = kind.name, t.ek.public
	return ek, nil
}

// makeFor makes the key of a kind for which NV holds the certificate cert. There must
// be no other endorsement key loaded.
func (t *TPM) makeFor(cert []byte, kind ekKind, indices []uint32) error {
	err := t.makeEK(kind, indices)
	if err == nil && !certifies(cert, t.ek.public) {
		if err = t.flush(&t.ek); err == nil {
			err = unusable{fmt.Errorf("nv index %#x: the certificate is not of the %s key that its template gives", kind.certificate, kind.name)}
		}
	}
	return err
}

// unusable says that the TPM has no key for a certificate in NV: as long as NV holds
// what it does, making the key again fails again.
type unusable struct{ error }

func (u unusable) Unwrap() error { return u.error }

// refusedTemplates are what a TPM answers to a template of a key that it cannot have
// (Part 3, TPM2_CreatePrimary, and the checks of a public area in Part 2, 12.2).
func refusedTemplates() []tpm2.TPMRC {
	return []tpm2.TPMRC{
		tpm2.TPMRCAsymmetric, tpm2.TPMRCAttributes, tpm2.TPMRCCurve, tpm2.TPMRCHash, tpm2.TPMRCKDF, tpm2.TPMRCKey, tpm2.TPMRCKeySize,
		tpm2.TPMRCMode, tpm2.TPMRCScheme, tpm2.TPMRCSize, tpm2.TPMRCSymmetric, tpm2.TPMRCType, tpm2.TPMRCValue,
	}
}

// UnusableKeysError says that all that kept EachOtherEK from a key are certificates
// for which the TPM has no key. No service can know the TPM by one of them.
type UnusableKeysError struct{ Keys []error }

func (e *UnusableKeysError) Error() string { return errors.Join(e.Keys...).Error() }

// EachOtherEK makes, one after the other, the TPM's other endorsement keys for which
// NV holds a certificate, and calls prove with the TPMT_PUBLIC of each. Meanwhile
// Activate opens credentials for that key and the attestation key. Making an RSA key
// may take a chip many seconds. It returns how many there were. An error of one key
// does not keep the others from being made; all are returned, as an UnusableKeysError if
// there is nothing else. In the end the key of Identify is loaded as before, so that a
// challenge that is asked for next does not grow old while it is made.
func (t *TPM) EachOtherEK(prove func(ekPublic []byte) error) (n int, err error) {
	if t.identity == nil {
		return 0, fmt.Errorf("other endorsement keys: %w", errNotIdentified)
	}
	template, others := t.ekTemplate, false
	defer func() {
		if t.ekTemplate = template; others {
			if back := errors.Join(t.flush(&t.ek), t.loadEK()); back != nil {
				err = fmt.Errorf("%w; before: %v", back, err)
			}
		}
		if err != nil {
			err = fmt.Errorf("other endorsement keys: %w", err)
		}
	}()
	indices, err := t.nvIndices(nvFirst, nvChainLast)
	if err != nil {
		return 0, err
	}
	var errs []error
	usable := false
	for _, kind := range ekKinds() {
		if !slices.Contains(indices, kind.certificate) || kind.certificate == t.identity.EK.index {
			continue
		}
		others = true
		if err := t.flush(&t.ek); err != nil {
			return n, err
		}
		cert, err := t.certificate(kind.certificate)
		if err == nil {
			err = t.makeFor(cert, kind, indices)
		}
		if err != nil {
			errs, usable = append(errs, err), usable || !errors.As(err, new(unusable))
			continue
		}
		n++
		if err := prove(t.ek.public); err != nil {
			errs, usable = append(errs, fmt.Errorf("%s: %w", kind.name, err)), true
		}
	}
	if len(errs) > 0 && !usable {
		return n, &UnusableKeysError{errs}
	}
	return n, errors.Join(errs...)
}

// makeEK makes the key of a kind, with the template or the nonce in NV where
// there are any (EK Credential Profile, 2.2.1.4), and keeps it in t.ek.
func (t *TPM) makeEK(kind ekKind, indices []uint32) error {
	public := kind.public
	if slices.Contains(indices, kind.template) {
		data, err := t.readNV(kind.template)
		if err != nil {
			return err
		}
		p, err := tpm2.Unmarshal[tpm2.TPMTPublic](data)
		if err != nil {
			return unusable{fmt.Errorf("nv index %#x: decode template: %w", kind.template, err)}
		}
		public = *p
	} else if kind.nonce != 0 && slices.Contains(indices, kind.nonce) {
		nonce, err := t.readNV(kind.nonce)
		if err != nil {
			return err
		}
		if public.Unique, err = uniqueNonce(public.Type, nonce); err != nil {
			return unusable{fmt.Errorf("nv index %#x: %w", kind.nonce, err)}
		}
	}
	t.ekTemplate = public
	err := t.loadEK()
	if slices.ContainsFunc(refusedTemplates(), func(rc tpm2.TPMRC) bool { return errors.Is(err, rc) }) {
		return unusable{fmt.Errorf("the %s key: %w", kind.name, err)}
	}
	return err
}

// loadEK makes the endorsement key of t.ekTemplate where it is not loaded.
func (t *TPM) loadEK() (err error) {
	if t.ek != nil {
		return nil
	}
	t.ek, _, err = t.createPrimary(tpm2.TPMRHEndorsement, "endorsement key", t.ekTemplate, tpm2.TPMLPCRSelection{}, nil)
	return err
}

// uniqueNonce returns the unique field of a low-range template with a nonce,
// which stands in front of zeros.
func uniqueNonce(alg tpm2.TPMAlgID, nonce []byte) (tpm2.TPMUPublicID, error) {
	if alg == tpm2.TPMAlgRSA {
		if len(nonce) > 256 {
			return tpm2.TPMUPublicID{}, fmt.Errorf("nonce: got %d bytes, want at most 256", len(nonce))
		}
		n := make([]byte, 256)
		copy(n, nonce)
		return tpm2.NewTPMUPublicID(alg, &tpm2.TPM2BPublicKeyRSA{Buffer: n}), nil
	}
	if len(nonce) > 32 {
		return tpm2.TPMUPublicID{}, fmt.Errorf("nonce: got %d bytes, want at most 32", len(nonce))
	}
	x := make([]byte, 32)
	copy(x, nonce)
	return tpm2.NewTPMUPublicID(alg, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: x},
		Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	}), nil
}

// certifies reports whether cert is a certificate of the key in public, a
// TPMT_PUBLIC: whether it holds the modulus, or both coordinates. A strict
// parser would not read some real endorsement certificates, which have the key
// algorithm RSAES-OAEP, sets out of DER order and other faults; what to think
// of those is for the service to decide.
func certifies(cert, public []byte) bool {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return false
	}
	pub, err := tpm2.Pub(*p)
	if err != nil {
		return false
	}
	var bits []byte
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		bits = pub.N.Bytes()
	case *ecdsa.PublicKey:
		if bits, err = pub.Bytes(); err != nil {
			return false
		}
	}
	return len(bits) > 32 && bytes.Contains(cert, bits)
}

// chain returns the certificates of the issuers that the TPM brings along:
// concatenated over consecutive NV indices (EK Credential Profile, 2.2.1.5.2).
// What cannot be read is a problem of ek, not an error: the service may have
// the chain itself.
func (t *TPM) chain(indices []uint32, ek *EK) [][]byte {
	var certs [][]byte
	var rest []byte
	for _, i := range indices {
		if i < nvChainFirst || i > nvChainLast {
			continue
		}
		data, err := t.readNV(i)
		if err != nil {
			ek.Problems = append(ek.Problems, err)
			return certs
		}
		var more [][]byte
		more, rest, err = splitCertificates(append(rest, data...))
		certs = append(certs, more...)
		if len(certs) >= attest.MaxCertificates {
			break // too many already, see below
		}
		if err != nil {
			ek.Problems = append(ek.Problems, fmt.Errorf("nv index %#x: %w", i, err))
			return certs
		}
	}
	if len(rest) > 0 {
		ek.Problems = append(ek.Problems, fmt.Errorf("the chain certificates in nv end in the middle of one"))
	}
	if limit := attest.MaxCertificates - 1; len(certs) > limit {
		ek.Problems = append(ek.Problems, fmt.Errorf("nv holds %d chain certificates, want at most %d", len(certs), limit))
		certs = certs[:limit]
	}
	return certs
}
