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
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// EndorsementKey is an endorsement key that a trusted authority vouches for.
// Only VerifyEK makes one.
type EndorsementKey struct {
	machine     MachineID
	class       TPMClass
	certificate *x509.Certificate
	model       TPMModel
	quirks      []string
	expired     bool
	imported    bool
	named       bool // each root that vouches for it may vouch for this vendor, and not for any
}

// Machine returns the identity that the key proves.
func (k *EndorsementKey) Machine() MachineID { return k.machine }

// Class returns the class of the root that the certificate leads to.
func (k *EndorsementKey) Class() TPMClass { return k.class }

// Certificate returns the verified endorsement certificate.
func (k *EndorsementKey) Certificate() *x509.Certificate { return k.certificate }

// Model returns what the certificate says of the TPM.
func (k *EndorsementKey) Model() TPMModel { return k.model }

// Quirks names what is wrong with the certificate's form and was tolerated.
func (k *EndorsementKey) Quirks() []string { return k.quirks }

// Imported reports whether the certificate came from the policy and not from
// the machine.
func (k *EndorsementKey) Imported() bool { return k.imported }

// EKMachineID returns the identity of an endorsement key, given as TPMT_PUBLIC,
// without asking who vouches for it.
func EKMachineID(ekPublic []byte) (MachineID, error) {
	_, key, err := checkEK(ekPublic)
	if err != nil {
		return MachineID{}, err
	}
	return machineOf(key)
}

func machineOf(key crypto.PublicKey) (MachineID, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return MachineID{}, fmt.Errorf("endorsement key: %w", err)
	}
	return MachineIDOf(spki), nil
}

// errWeakKey says that a modulus can be factored.
var errWeakKey = errors.New("its modulus has the form that an attacker can factor (ROCA, CVE-2017-15361)")

// checkEK checks that a TPMT_PUBLIC is an endorsement key of a kind that
// TPM2_MakeCredential works with: a restricted decryption key that never left
// its TPM, RSA-2048, RSA-3072, ECC P-256 or ECC P-384, with AES-CFB (TCG EK
// Credential Profile for TPM Family 2.0, annex B). The error wraps errWeakKey
// for a key of the right kind that is weak.
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
		if parms.KeyBits != 2048 && parms.KeyBits != 3072 || k.N.BitLen() != int(parms.KeyBits) || k.E != 65537 || parms.Scheme.Scheme != tpm2.TPMAlgNull {
			return nil, nil, fmt.Errorf("%s: RSA with %d bits, modulus of %d, exponent %d, scheme %#04x, want 2048 or 3072, the same, 65537, none",
				what, parms.KeyBits, k.N.BitLen(), k.E, uint16(parms.Scheme.Scheme))
		}
		if weakROCA(k.N) {
			return nil, nil, fmt.Errorf("%s: %w", what, errWeakKey)
		}
		if parms.KeyBits == 3072 {
			nameAlg, bits = tpm2.TPMAlgSHA384, 256
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
//   - the public area is of an endorsement key (restricted, fixed, AES-CFB), and
//     its modulus is not weak (ROCA);
//   - the first certificate is of exactly this key;
//   - it is an endorsement certificate: extended key usage 2.23.133.8.1, key
//     usage keyEncipherment or keyAgreement, no authority, a subject alternative
//     name that can be read, and no other critical extension that is left unread;
//   - it is valid at the time now, or has expired and the policy allows that,
//     and leads to a root of the policy through the policy's intermediates and
//     the certificates that came with it, all of them valid;
//   - the root may vouch for TPMs of the manufacturer that the certificate names;
//   - no certificate of the chain is on a revocation list of the policy, and
//     each one's issuer has a list in force if the policy requires that;
//   - the root's class is allowed.
//
// Where the machine brings no certificate that passes for its key, the policy's
// own for this key is checked instead, in the same way.
//
// It returns findings instead of the key if one of these does not hold.
func VerifyEK(ekPublic []byte, certificates [][]byte, p *TPMPolicy, now time.Time) (*EndorsementKey, []Finding) {
	_, key, err := checkEK(ekPublic)
	machine, err := machineIfGood(key, err)
	return p.verifyEK(machine, key, err, certificates, now)
}

// machineIfGood names the machine of a key that was checked.
func machineIfGood(key crypto.PublicKey, fault error) (MachineID, error) {
	if fault != nil {
		return MachineID{}, fault
	}
	return machineOf(key)
}

// verifyEK is VerifyEK for a key that was read, or could not be.
func (p *TPMPolicy) verifyEK(machine MachineID, key crypto.PublicKey, fault error, certificates [][]byte, now time.Time) (*EndorsementKey, []Finding) {
	if errors.Is(fault, errWeakKey) {
		return nil, []Finding{{Code: CodeEKWeak, Message: fault.Error(), Hint: "update the TPM's firmware, clear the TPM, and have the maker's new certificate imported; or replace the TPM"}}
	}
	if fault != nil {
		return nil, []Finding{{Code: CodeMalformed, Message: fault.Error(), Hint: "use an agent that makes the key from a template of the TCG EK Credential Profile"}}
	}
	leaf, chain, err := parseCertificates(certificates)
	ek, finding := p.certified(machine, key, leaf, chain, err, now)
	if finding == nil {
		return ek, nil
	}
	own := p.Imported[machine]
	switch finding.Code {
	case CodeEKCertificate, CodeEKNotSigned, CodeEKMismatch, CodeEKExpired:
		if own == nil {
			break
		}
		// What the machine sent is still of use as links of the chain.
		if leaf != nil {
			chain = append(chain, leaf)
		}
		if ek, finding = p.certified(machine, key, own, chain, nil, now); finding == nil {
			ek.imported = true
			return ek, nil
		}
	}
	return nil, []Finding{*finding}
}

// certified checks one certificate of an endorsement key. fault is why there is
// none.
func (p *TPMPolicy) certified(machine MachineID, key crypto.PublicKey, leaf *x509.Certificate, chain []*x509.Certificate, fault error, now time.Time) (*EndorsementKey, *Finding) {
	untrusted := func(err error, hint string) (*EndorsementKey, *Finding) {
		return nil, &Finding{Code: CodeEKCertificate, Message: "endorsement certificate: " + err.Error(), Hint: hint}
	}
	if fault != nil {
		return untrusted(fault, "this TPM brings no usable certificate: import the maker's (docs/tpm-roots.md), or exclude this kind of TPM")
	}
	name := certificateName(leaf)
	if !certifiesKey(leaf, key) {
		return nil, &Finding{
			Code:    CodeEKMismatch,
			Message: fmt.Sprintf("endorsement certificate %s is of another key than the one sent", name),
			Got:     MachineIDOf(leaf.RawSubjectPublicKeyInfo).String(), Want: machine.String(),
			Hint: "the TPM's certificate and key do not belong together: its NV indices were overwritten, or the message was",
		}
	}
	if err := checkEKUsage(leaf); err != nil {
		return untrusted(err, "this is no endorsement certificate")
	}
	ek := &EndorsementKey{machine: machine, certificate: leaf}
	var err error
	if ek.model, ek.quirks, err = tpmModel(leaf); err != nil {
		return untrusted(fmt.Errorf("%s: %w", name, err), "the certificate is damaged or of an unknown form: ask the TPM's maker")
	}
	if now.After(leaf.NotAfter) {
		ek.expired = true
		if !p.AllowExpired {
			return nil, &Finding{
				Code:    CodeEKExpired,
				Message: fmt.Sprintf("endorsement certificate %s expired on %s", name, leaf.NotAfter.UTC().Format(time.DateOnly)),
				Got:     leaf.NotAfter.UTC().Format(time.RFC3339), Want: "after " + now.UTC().Format(time.RFC3339),
				Hint: "import a new certificate, or allow expired endorsement certificates in the policy (tpm.allowExpired): a TPM does not get worse with age",
			}
		}
	}
	chains, err := p.buildChains(leaf, chain, ek.expired, now)
	if err != nil {
		if authority := p.notSignedBy(leaf, chain); authority != nil {
			return nil, &Finding{
				Code:    CodeEKNotSigned,
				Message: fmt.Sprintf("endorsement certificate %s: the trusted authority %q is named as the issuer, and did not sign it", name, cleanText(authority.Subject.String())),
				Hint:    "the certificate is forged or damaged: reject the machine",
			}
		}
		return untrusted(fmt.Errorf("%s: %w", name, err), "add the TPM maker's root certificate, or the missing intermediate, to the policy, if you trust it (docs/tpm-roots.md)")
	}
	var vendors []string
	for _, c := range chains {
		state := p.Revocations.check(c, now)
		if state.revoked != "" {
			return nil, &Finding{Code: CodeEKRevoked, Message: "endorsement certificate: " + state.revoked,
				Hint: "the authority has withdrawn its word for this TPM: replace it"}
		}
		for _, root := range p.rootsOf(c) {
			if len(root.Vendors) > 0 && !slices.Contains(root.Vendors, ek.model.Vendor) {
				vendors = append(vendors, fmt.Sprint(root.Vendors))
				continue
			}
			if state.unknown != "" && p.RequireRevocation {
				return nil, &Finding{Code: CodeEKRevocation, Message: fmt.Sprintf("endorsement certificate %s: %s", name, state.unknown),
					Hint: "give the service the authority's current list (tpm.revocationLists)"}
			}
			ek.named = len(root.Vendors) > 0 && (ek.class == "" || ek.named)
			// If chains lead to roots of several classes, the least protected one counts.
			if classRank(root.Class) > classRank(ek.class) {
				ek.class = root.Class
			}
		}
	}
	if ek.class == "" && len(vendors) > 0 {
		slices.Sort(vendors)
		want := strings.Join(slices.Compact(vendors), " ")
		got := "no manufacturer"
		if ek.model.Vendor != 0 {
			got = "the manufacturer " + ek.model.Vendor.String()
		}
		return nil, &Finding{
			Code:    CodeTPMVendor,
			Message: fmt.Sprintf("endorsement certificate %s names %s, its root may vouch for %s only", name, got, want),
			Got:     ek.model.Vendor.String(), Want: want,
			Hint: "the authority is trusted for its own TPMs only: look at the certificate, and at the vendors of this root in the policy",
		}
	}
	if ek.class == "" {
		return untrusted(errors.New("its root has no class"), "give the root a class in the policy")
	}
	if !slices.Contains(p.Allowed, ek.class) {
		return nil, &Finding{
			Code:    CodeTPMClass,
			Message: fmt.Sprintf("endorsement certificate %s is of a %s TPM, the policy allows %q", name, ek.class, p.Allowed),
			Got:     string(ek.class), Want: fmt.Sprint(p.Allowed),
			Hint: "use a machine with an allowed class of TPM, or allow this class in the policy",
		}
	}
	return ek, nil
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
			sent, err := parseOAEPKey(c.RawSubjectPublicKeyInfo)
			return err == nil && k.Equal(sent)
		}
		return k.Equal(c.PublicKey)
	case *ecdsa.PublicKey:
		return k.Equal(c.PublicKey)
	}
	return false
}

// parseOAEPKey reads a key whose algorithm is id-RSAES-OAEP, which crypto/x509
// leaves unread: some makers mark endorsement keys so (RFC 4055, 4).
func parseOAEPKey(spki []byte) (*rsa.PublicKey, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) != 0 || info.Algorithm.Algorithm.String() != oidRSAESOAEP {
		return nil, errors.New("its key is of an unknown algorithm")
	}
	return x509.ParsePKCS1PublicKey(info.Key.RightAlign())
}

// EKCertificateMachine returns the identity of the machine whose endorsement key
// a certificate is of, for TPMPolicy.Imported. It does not ask who vouches for it.
func EKCertificateMachine(c *x509.Certificate) (MachineID, error) {
	key := crypto.PublicKey(c.PublicKey)
	if c.PublicKey == nil {
		k, err := parseOAEPKey(c.RawSubjectPublicKeyInfo)
		if err != nil {
			return MachineID{}, fmt.Errorf("endorsement certificate %s: %w", certificateName(c), err)
		}
		key = k
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return MachineID{}, fmt.Errorf("endorsement certificate %s: %w", certificateName(c), err)
	}
	return MachineIDOf(spki), nil
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

// buildChains returns the chains from a certificate to roots of the policy.
func (p *TPMPolicy) buildChains(leaf *x509.Certificate, sent []*x509.Certificate, expired bool, now time.Time) ([][]*x509.Certificate, error) {
	// The TPM's make and model are in a critical subject alternative name of
	// type directoryName, which crypto/x509 leaves unread and then refuses.
	// tpmModel has read it. Only this one extension may stay unread: a copy, so
	// that the caller's certificate keeps what it says.
	c := *leaf
	c.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(leaf.UnhandledCriticalExtensions), isOID(oidSubjectAlt))
	if expired {
		// The authorities must be valid now all the same.
		c.NotAfter = now
	}
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // checkEKUsage has looked
	}
	n := 0
	for _, r := range p.Roots {
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
		return nil, errors.New("the policy has no trusted root")
	}
	var chains [][]*x509.Certificate
	var err error
	own := opts.Intermediates
	for _, path := range p.sentPaths(leaf, sent, now) {
		opts.Intermediates = own.Clone()
		for _, s := range path {
			opts.Intermediates.AddCert(s)
		}
		more, fault := c.Verify(opts)
		if fault != nil {
			err = fault
		}
		chains = append(chains, more...)
	}
	if len(chains) > 0 {
		return chains, nil
	}
	return nil, err
}

// notSignedBy returns the authority of the policy that a certificate, or one that may
// be a link of its chain, names as its issuer, by name and key identifier (RFC 5280,
// 4.2.1.1), and whose key did not sign it; nil if there is none.
func (p *TPMPolicy) notSignedBy(leaf *x509.Certificate, sent []*x509.Certificate) *x509.Certificate {
	for _, c := range append(usable(sent), leaf) {
		var named *x509.Certificate
		signed := false
		for _, r := range p.Roots {
			a := r.Certificate
			if a == nil || !bytes.Equal(a.RawSubject, c.RawIssuer) || len(c.AuthorityKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, a.SubjectKeyId) {
				continue
			}
			named = a
			err := a.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
			// A signature that cannot be verified here is not known to be another's.
			signed = signed || err == nil || errors.Is(err, x509.ErrUnsupportedAlgorithm) || errors.As(err, new(x509.InsecureAlgorithmError))
		}
		if named != nil && !signed {
			return named
		}
	}
	return nil
}

// rootsOf returns the policy's entries for the root of a chain.
func (p *TPMPolicy) rootsOf(chain []*x509.Certificate) []*TPMRoot {
	var out []*TPMRoot
	top := chain[len(chain)-1]
	for i := range p.Roots {
		if r := &p.Roots[i]; !r.Intermediate && r.Certificate != nil && bytes.Equal(r.Certificate.Raw, top.Raw) {
			out = append(out, r)
		}
	}
	return out
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
