package keyring

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// operatorLife is the lifetime of an operator's certificate. That of a server
// is valid for as long as the CA, see IssueServer.
const operatorLife = 90 * 24 * time.Hour

// Issuer issues certificates from the service CA. All keys are ECDSA P-256.
type Issuer struct {
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	now  time.Time
	rand io.Reader
}

// Issuer returns the service CA's issuer. now dates the certificates.
func (k *Keyring) Issuer(now time.Time, rand io.Reader) (*Issuer, error) {
	key, err := privateKey[*ecdsa.PrivateKey](k, FileServiceCA)
	if err != nil {
		return nil, err
	}
	ca, err := k.Certificate(FileServiceCA)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(ca.PublicKey) {
		return nil, fmt.Errorf("key directory %s: %s.crt is not of %s.key", k.dir, FileServiceCA, FileServiceCA)
	}
	if now.After(ca.NotAfter) || now.Before(ca.NotBefore) {
		return nil, fmt.Errorf("key directory %s: the service CA is valid from %s to %s, now is %s",
			k.dir, ca.NotBefore.Format(time.RFC3339), ca.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return &Issuer{ca: ca, key: key, now: now.UTC().Truncate(time.Second), rand: rand}, nil
}

// Pool returns the service CA as the only root, for verifying what it issued.
func (i *Issuer) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.ca)
	return pool
}

// IssueServer returns a certificate for a server that is reached by the given
// DNS names and IP addresses. It is valid for exactly as long as the CA: its
// key never leaves the process, so a shorter life protects nothing, while a
// process that outlives it, or a machine whose clock stands at the day on
// which its image was built, would be locked out.
func (i *Issuer) IssueServer(hosts []string) (tls.Certificate, error) {
	if len(hosts) == 0 {
		return tls.Certificate{}, errors.New("issue server certificate: no host name or address")
	}
	c := &x509.Certificate{
		Subject:     pkix.Name{CommonName: hosts[0]},
		NotBefore:   i.ca.NotBefore,
		NotAfter:    i.ca.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else if validDNSName(h) {
			c.DNSNames = append(c.DNSNames, h)
		} else {
			return tls.Certificate{}, fmt.Errorf("issue server certificate: %q is neither a DNS name nor an IP address", h)
		}
	}
	return i.issue(c)
}

// IssueOperator returns a client certificate for a person or a program. The
// roles are the certificate's organizational units, sorted.
func (i *Issuer) IssueOperator(name string, roles []api.Role) (tls.Certificate, error) {
	if name == "" || len(name) > 64 {
		return tls.Certificate{}, fmt.Errorf("issue operator certificate: name %q has %d bytes, want 1 to 64", name, len(name))
	}
	if err := server.CheckCertificateName(name); err != nil {
		return tls.Certificate{}, fmt.Errorf("issue operator certificate: %w", err)
	}
	var units []string
	for _, r := range roles {
		if !r.Known() {
			return tls.Certificate{}, fmt.Errorf("issue operator certificate: role %q is none of viewer, operator, approver, auditor", r)
		}
		units = append(units, string(r))
	}
	return i.issue(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{api.OperatorOrganization}, CommonName: name, OrganizationalUnit: slices.Compact(slices.Sorted(slices.Values(units)))},
		NotBefore:   i.now.Add(-clockSkew),
		NotAfter:    i.now.Add(operatorLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (i *Issuer) issue(c *x509.Certificate) (tls.Certificate, error) {
	fail := func(err error) (tls.Certificate, error) {
		return tls.Certificate{}, fmt.Errorf("issue certificate for %q: %w", c.Subject.CommonName, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), i.rand)
	if err != nil {
		return fail(err)
	}
	if c.SerialNumber, err = serialNumber(i.rand); err != nil {
		return fail(err)
	}
	if c.NotBefore.Before(i.ca.NotBefore) {
		c.NotBefore = i.ca.NotBefore
	}
	if c.NotAfter.After(i.ca.NotAfter) {
		c.NotAfter = i.ca.NotAfter
	}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(i.rand, c, i.ca, key.Public(), i.key)
	if err != nil {
		return fail(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// validDNSName accepts lower-case host names (RFC 1123, 2.1).
func validDNSName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !validLabel(label) {
			return false
		}
	}
	return true
}

func validLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
