package tpmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// CA is a throw-away authority for endorsement certificates: a root and an
// issuing certificate below it, as TPM vendors have.
type CA struct {
	Root   *x509.Certificate
	Issuer *x509.Certificate
	key    *ecdsa.PrivateKey // of Issuer
}

// NewCA makes a CA.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	rootKey, key := newKey(tb), newKey(tb)
	root := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "tpmtest root"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	root = sign(tb, root, root, rootKey.Public(), rootKey)
	issuer := &x509.Certificate{
		SerialNumber:          big.NewInt(2),
		Subject:               pkix.Name{CommonName: "tpmtest issuer"},
		NotBefore:             root.NotBefore,
		NotAfter:              root.NotAfter,
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return &CA{Root: root, Issuer: sign(tb, issuer, root, key.Public(), rootKey), key: key}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func sign(tb testing.TB, c, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, key)
	if err != nil {
		tb.Fatalf("tpmtest: sign certificate of %s: %v", c.Subject, err)
	}
	c, err = x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// configure writes the authority and the configuration files of swtpm_setup
// and swtpm_localca into dir, and returns the path of swtpm_setup's. Without
// them the tools would use and write files of the whole machine.
func (ca *CA) configure(tb testing.TB, dir, localca string) string {
	tb.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	files := map[string][]byte{
		"ca.key":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"ca.crt":    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Issuer.Raw}),
		"ca.serial": []byte("3"),
		"localca.conf": fmt.Appendf(nil, "statedir = %s\nsigningkey = %s\nissuercert = %s\ncertserial = %s\n",
			dir, at("ca.key"), at("ca.crt"), at("ca.serial")),
		"localca.options": []byte("--platform-manufacturer tpmtest\n--platform-version 1\n--platform-model tpmtest\n"),
		"setup.conf": fmt.Appendf(nil, "create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n",
			localca, at("localca.conf"), at("localca.options")),
	}
	for name, data := range files {
		if err := os.WriteFile(at(name), data, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return at("setup.conf")
}

// NV indices of the TCG EK Credential Profile, 2.2.1.4 and 2.2.1.5.
const (
	nvP256  = 0x01c0000a
	nvChain = 0x01c00100
)

// certifyP256 stores a certificate for the ECC P-256 endorsement key.
func (ca *CA) certifyP256(tb testing.TB, d *TPM) {
	tb.Helper()
	ek, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHEndorsement,
		InPublic:      tpm2.New2B(tpm2.ECCEKTemplate),
	}.Execute(d)
	if err != nil {
		tb.Fatalf("tpmtest: create P-256 endorsement key: %v", err)
	}
	defer tpm2.FlushContext{FlushHandle: ek.ObjectHandle}.Execute(d)
	public, err := ek.OutPublic.Contents()
	if err != nil {
		tb.Fatal(err)
	}
	pub, err := tpm2.Pub(*public)
	if err != nil {
		tb.Fatal(err)
	}
	d.DefineNV(nvP256, ca.Certify(tb, pub).Raw)
}

// Certify issues an endorsement certificate with the extensions of the TCG EK
// Credential Profile, 3.2: a critical subject alternative name with the TPM's
// manufacturer, model and version, and the usage tcg-kp-EKCertificate.
func (ca *CA) Certify(tb testing.TB, pub any) *x509.Certificate {
	tb.Helper()
	attr := func(n int, v string) pkix.RelativeDistinguishedNameSET {
		return pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, n}, Value: v}}
	}
	name, err := asn1.Marshal(pkix.RDNSequence{attr(1, "id:00001014"), attr(2, "swtpm"), attr(3, "id:20191023")})
	if err != nil {
		tb.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		tb.Fatal(err)
	}
	return sign(tb, &x509.Certificate{
		SerialNumber:       big.NewInt(time.Now().UnixNano()),
		NotBefore:          ca.Issuer.NotBefore,
		NotAfter:           ca.Issuer.NotAfter,
		KeyUsage:           x509.KeyUsageKeyAgreement,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:    []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
		// basicConstraints says that this is no authority.
		BasicConstraintsValid: true,
	}, ca.Issuer, pub, ca.key)
}
