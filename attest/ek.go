package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// EndorsementKey is an endorsement key that a trusted authority vouches for.
// Only VerifyEK makes one.
type EndorsementKey struct {
	machine     MachineID
	class       TPMClass
	certificate *x509.Certificate
}

// Machine returns the identity that the key proves.
func (k *EndorsementKey) Machine() MachineID { return k.machine }

// Class returns the class of the root that the certificate leads to.
func (k *EndorsementKey) Class() TPMClass { return k.class }

// Certificate returns the verified endorsement certificate.
func (k *EndorsementKey) Certificate() *x509.Certificate { return k.certificate }

// EKMachineID returns the identity of an endorsement key, given as TPMT_PUBLIC,
// without asking who vouches for it.
func EKMachineID(ekPublic []byte) (MachineID, error) {
	_, key, err := checkEK(ekPublic)
	if err != nil {
		return MachineID{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return MachineID{}, fmt.Errorf("endorsement key: %w", err)
	}
	return MachineIDOf(spki), nil
}

// checkEK checks that a TPMT_PUBLIC is an endorsement key of a kind that
// TPM2_MakeCredential works with: a restricted decryption key that never left
// its TPM, RSA-2048, ECC P-256 or ECC P-384, with AES-CFB (TCG EK Credential
// Profile for TPM Family 2.0, annex B).
func checkEK(ekPublic []byte) (*tpm2.TPMTPublic, crypto.PublicKey, error) {
	const what = "endorsement key"
	p, err := decodePublic(what, ekPublic)
	if err != nil {
		return nil, nil, err
	}
	const want = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrAdminWithPolicy | attrRestricted | attrDecrypt
	// The high-range templates set userWithAuth.
	if err := checkAttributes(ekPublic, want, attrUserWithAuth|attrNoDA); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	nameAlg, bits := tpm2.TPMAlgSHA256, 128
	var key crypto.PublicKey
	var cipher *tpm2.TPMTSymDefObject
	if p.Type == tpm2.TPMAlgRSA {
		parms, err := p.Parameters.RSADetail()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", what, err)
		}
		n, err := p.Unique.RSA()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", what, err)
		}
		k, err := tpm2.RSAPub(parms, n)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", what, err)
		}
		if parms.KeyBits != 2048 || k.N.BitLen() != 2048 || k.E != 65537 || parms.Scheme.Scheme != tpm2.TPMAlgNull {
			return nil, nil, fmt.Errorf("%s: RSA with %d bits, modulus of %d, exponent %d, scheme %#04x, want 2048, 2048, 65537, none",
				what, parms.KeyBits, k.N.BitLen(), k.E, uint16(parms.Scheme.Scheme))
		}
		if weakROCA(k.N) {
			return nil, nil, fmt.Errorf("%s: its modulus has the form that an attacker can factor (ROCA, CVE-2017-15361)", what)
		}
		key, cipher = k, &parms.Symmetric
	} else {
		parms, err := p.Parameters.ECCDetail()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", what, err)
		}
		if parms.Scheme.Scheme != tpm2.TPMAlgNull || parms.KDF.Scheme != tpm2.TPMAlgNull {
			return nil, nil, fmt.Errorf("%s: scheme %#04x, key derivation %#04x, want none", what, uint16(parms.Scheme.Scheme), uint16(parms.KDF.Scheme))
		}
		if parms.CurveID == tpm2.TPMECCNistP384 {
			nameAlg, bits = tpm2.TPMAlgSHA384, 256
		}
		if key, err = eccPoint(what, p, parms); err != nil {
			return nil, nil, err
		}
		cipher = &parms.Symmetric
	}
	if p.NameAlg != nameAlg {
		return nil, nil, fmt.Errorf("%s: name algorithm is %#04x, want %#04x", what, uint16(p.NameAlg), uint16(nameAlg))
	}
	if err := checkSymmetric(cipher, bits); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	return p, key, nil
}

// Object identifiers of endorsement certificates.
const (
	oidEKCertificate = "2.23.133.8.1"         // tcg-kp-EKCertificate
	oidSubjectAlt    = "2.5.29.17"            // RFC 5280, 4.2.1.6
	oidRSAESOAEP     = "1.2.840.113549.1.1.7" // RFC 8017, A.2.1
)

// isOID returns a predicate for one object identifier.
func isOID(want string) func(asn1.ObjectIdentifier) bool {
	return func(o asn1.ObjectIdentifier) bool { return o.String() == want }
}

// VerifyEK checks that a certificate of an allowed class of TPM vouches for an
// endorsement key:
//   - the public area is of an endorsement key (restricted, fixed, AES-CFB);
//   - the first certificate is of exactly this key;
//   - it is an endorsement certificate: extended key usage 2.23.133.8.1, key
//     usage keyEncipherment or keyAgreement, no authority, and no critical
//     extension but the subject alternative name is left unread;
//   - it is valid at the time now and leads to a root of the policy, through
//     the policy's intermediates and the certificates that came with it;
//   - the root's class is allowed.
//
// It returns findings instead of the key if one of these does not hold.
func VerifyEK(ekPublic []byte, certificates [][]byte, p *TPMPolicy, now time.Time) (*EndorsementKey, []Finding) {
	_, key, err := checkEK(ekPublic)
	if err != nil {
		return nil, []Finding{{Code: CodeMalformed, Message: err.Error(), Hint: "use an agent that makes the key from a template of the TCG EK Credential Profile"}}
	}
	untrusted := func(err error, hint string) (*EndorsementKey, []Finding) {
		return nil, []Finding{{Code: CodeEKCertificate, Message: "endorsement certificate: " + err.Error(), Hint: hint}}
	}
	leaf, chain, err := parseCertificates(certificates)
	if err != nil {
		return untrusted(err, "this TPM brings no usable certificate: import the maker's, or exclude this kind of TPM")
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return untrusted(err, "")
	}
	if !certifiesKey(leaf, key) {
		return nil, []Finding{{
			Code:    CodeEKMismatch,
			Message: fmt.Sprintf("endorsement certificate %s is of another key than the one sent", certificateName(leaf)),
			Got:     MachineIDOf(leaf.RawSubjectPublicKeyInfo).String(), Want: MachineIDOf(spki).String(),
			Hint: "the TPM's certificate and key do not belong together: its NV indices were overwritten, or the message was",
		}}
	}
	if err := checkEKUsage(leaf); err != nil {
		return untrusted(err, "this is no endorsement certificate")
	}
	class, err := verifyChain(leaf, chain, p.Roots, now)
	if err != nil {
		return untrusted(fmt.Errorf("%s: %w", certificateName(leaf), err), "add the TPM maker's root certificate to the policy, if you trust it")
	}
	if !slices.Contains(p.Allowed, class) {
		return nil, []Finding{{
			Code:    CodeTPMClass,
			Message: fmt.Sprintf("endorsement certificate %s is of a %s TPM, the policy allows %q", certificateName(leaf), class, p.Allowed),
			Got:     string(class), Want: fmt.Sprint(p.Allowed),
			Hint: "use a machine with an allowed class of TPM, or allow this class in the policy",
		}}
	}
	return &EndorsementKey{machine: MachineIDOf(spki), class: class, certificate: leaf}, nil
}

// parseCertificates returns the first certificate and the others. What cannot
// be parsed among the others is left out: it then is no link of a chain.
func parseCertificates(ders [][]byte) (*x509.Certificate, []*x509.Certificate, error) {
	if len(ders) == 0 {
		return nil, nil, errors.New("none was sent")
	}
	if len(ders) > MaxCertificates {
		return nil, nil, fmt.Errorf("%d certificates were sent, at most %d allowed", len(ders), MaxCertificates)
	}
	var leaf *x509.Certificate
	var chain []*x509.Certificate
	for i, der := range ders {
		if len(der) > MaxCertificate {
			return nil, nil, fmt.Errorf("certificate %d has %d bytes, at most %d allowed", i, len(der), MaxCertificate)
		}
		c, err := x509.ParseCertificate(der)
		switch {
		case i == 0 && err != nil:
			return nil, nil, err
		case i == 0:
			leaf = c
		case err == nil:
			chain = append(chain, c)
		}
	}
	return leaf, chain, nil
}

// certifiesKey reports whether a certificate's subject key is the given one.
func certifiesKey(c *x509.Certificate, key crypto.PublicKey) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if c.PublicKey == nil {
			return rsaOAEPKey(c.RawSubjectPublicKeyInfo, k)
		}
		return k.Equal(c.PublicKey)
	case *ecdsa.PublicKey:
		return k.Equal(c.PublicKey)
	}
	return false
}

// rsaOAEPKey compares with a key whose algorithm is id-RSAES-OAEP, which
// crypto/x509 does not read: some makers mark endorsement keys so (RFC 4055, 4).
func rsaOAEPKey(spki []byte, want *rsa.PublicKey) bool {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) != 0 || info.Algorithm.Algorithm.String() != oidRSAESOAEP {
		return false
	}
	key, err := x509.ParsePKCS1PublicKey(info.Key.RightAlign())
	return err == nil && want.Equal(key)
}

// checkEKUsage checks what makes a certificate an endorsement certificate (EK
// Credential Profile, EK certificate fields).
func checkEKUsage(c *x509.Certificate) error {
	if c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0 {
		return errors.New("it is of a certificate authority")
	}
	if c.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement) == 0 {
		return fmt.Errorf("key usage bits are %#x, want keyEncipherment or keyAgreement", int(c.KeyUsage))
	}
	if !slices.ContainsFunc(c.UnknownExtKeyUsage, isOID(oidEKCertificate)) {
		return fmt.Errorf("extended key usage %s (tcg-kp-EKCertificate) is missing", oidEKCertificate)
	}
	return nil
}

// verifyChain builds a chain to one of the roots and returns the root's class.
// If chains lead to roots of several classes, the least protected one counts.
func verifyChain(leaf *x509.Certificate, sent []*x509.Certificate, roots []TPMRoot, now time.Time) (TPMClass, error) {
	// The TPM's make and model are in a critical subject alternative name of
	// type directoryName, which crypto/x509 leaves unread and then refuses.
	// Only this one extension may stay unread: a copy, so that the caller's
	// certificate keeps what it says.
	c := *leaf
	c.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(leaf.UnhandledCriticalExtensions), isOID(oidSubjectAlt))
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // checkEKUsage has looked
	}
	n := 0
	for _, r := range roots {
		switch {
		case r.Certificate == nil:
		case r.Intermediate:
			opts.Intermediates.AddCert(r.Certificate)
		case classRank(r.Class) > 0:
			opts.Roots.AddCert(r.Certificate)
			n++
		}
	}
	if n == 0 {
		return "", errors.New("the policy has no trusted root")
	}
	for _, s := range sent {
		opts.Intermediates.AddCert(s)
	}
	chains, err := c.Verify(opts)
	if err != nil {
		return "", err
	}
	var class TPMClass
	for _, chain := range chains {
		top := chain[len(chain)-1]
		for _, r := range roots {
			if !r.Intermediate && r.Certificate != nil && bytes.Equal(r.Certificate.Raw, top.Raw) && classRank(r.Class) > classRank(class) {
				class = r.Class
			}
		}
	}
	if class == "" {
		return "", errors.New("its root has no class")
	}
	return class, nil
}

// classRank orders the classes from the best protected, 1, to the least; an
// unknown class is 0 and trusted for nothing.
func classRank(c TPMClass) int {
	return 1 + slices.Index([]TPMClass{TPMHardware, TPMFirmware, TPMVirtual, TPMSoftware}, c)
}

// certificateName names a certificate for people: its subject if it has one
// (most endorsement certificates have none), and its issuer.
func certificateName(c *x509.Certificate) string {
	issuer := cleanText(c.Issuer.String())
	if s := cleanText(c.Subject.String()); s != "" {
		return fmt.Sprintf("%q issued by %q", s, issuer)
	}
	return fmt.Sprintf("%x issued by %q", c.SerialNumber, issuer)
}

// weakROCA reports whether a modulus has the fingerprint of the key generator
// of CVE-2017-15361: modulo each of these primes it is a power of 65537, which
// a random modulus practically never is for all of them (Nemec et al., The Return of Coppersmith's Attack, 2017).
func weakROCA(n *big.Int) bool {
	rest := new(big.Int)
	for _, p := range []int64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157} {
		r := rest.Mod(n, big.NewInt(p)).Int64()
		v, found := int64(1), false
		for range p {
			if v == r {
				found = true
				break
			}
			v = v * 65537 % p
		}
		if !found {
			return false
		}
	}
	return true
}
