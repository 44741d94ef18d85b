package papertpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"
)

// CA is an authority for endorsement certificates.
type CA struct {
	Root *x509.Certificate
	Key  *ecdsa.PrivateKey
	// NotBefore and NotAfter are of all that it issues and that names no time.
	NotBefore, NotAfter time.Time
}

// NewCA makes an authority whose certificates are valid in that time.
func NewCA(notBefore, notAfter time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: %w", err)
	}
	ca := &CA{Key: key, NotBefore: notBefore, NotAfter: notAfter}
	ca.Root, err = ca.Sign(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Paper TPM Root"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, key.Public())
	return ca, err
}

// Sign issues a certificate by a template. Without a parent it is its own.
func (ca *CA) Sign(template, parent *x509.Certificate, pub any) (*x509.Certificate, error) {
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = ca.NotBefore, ca.NotAfter
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, ca.Key)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: certify: %w", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: certify: %w", err)
	}
	return c, nil
}

// Certify issues an endorsement certificate by the TCG EK Credential Profile.
// change, which may be nil, alters the template.
func (ca *CA) Certify(pub any, change func(*x509.Certificate)) (*x509.Certificate, error) {
	name, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: "id:50415052"}}})
	if err != nil {
		return nil, fmt.Errorf("paper TPM: certify: %w", err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		return nil, fmt.Errorf("paper TPM: certify: %w", err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), KeyUsage: x509.KeyUsageKeyAgreement, BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:    []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	}
	if _, ok := pub.(*rsa.PublicKey); ok {
		c.KeyUsage = x509.KeyUsageKeyEncipherment
	}
	if change != nil {
		change(c)
	}
	return ca.Sign(c, ca.Root, pub)
}

// Equip gives a TPM a certificate for its endorsement key.
func (ca *CA) Equip(t *TPM) error {
	ek, ok := t.EK.(crypto.Signer)
	if !ok {
		return fmt.Errorf("paper TPM: no endorsement key of type %T", t.EK)
	}
	c, err := ca.Certify(ek.Public(), nil)
	if err != nil {
		return err
	}
	t.EKCertificates = [][]byte{c.Raw}
	return nil
}
