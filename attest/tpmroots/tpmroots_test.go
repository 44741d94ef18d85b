package tpmroots_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
	"github.com/sealift/sealift/attest/tpmroots"
)

func TestTheMakersRootsVouchForTheirOwnTPMsOnly(t *testing.T) {
	roots, err := tpmroots.Load(tpmroots.Vendors())
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) == 0 {
		t.Fatal("no root")
	}
	for _, r := range roots {
		name := r.Certificate.Subject.String()
		if r.Intermediate {
			continue
		}
		if r.Class == attest.TPMSoftware || r.Class == attest.TPMVirtual || len(r.Vendors) == 0 {
			t.Errorf("%s is of class %s for %v", name, r.Class, r.Vendors)
		}
	}
}

// Somebody else's tool reads them, too, and finds each to be signed by itself or
// by another of the store.
func TestTheMakersRootsPassOpenssl(t *testing.T) {
	openssl := tpmtest.Tool(t, "openssl")
	store := tpmroots.Vendors()
	names, err := fs.Glob(store, "*.pem")
	if err != nil || len(names) == 0 {
		t.Fatalf("%d certificates, %v", len(names), err)
	}
	dir := t.TempDir()
	var all []byte
	for _, n := range names {
		b, err := fs.ReadFile(store, n)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bundle := filepath.Join(dir, "all")
	if err := os.WriteFile(bundle, all, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		// Without -partial_chain a certificate counts only with a chain to one
		// that is signed by itself.
		out, err := exec.Command(openssl, "verify", "-check_ss_sig", "-no_check_time", "-no-CApath", "-no-CAstore", "-CAfile", bundle, filepath.Join(dir, n)).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", n, err, out)
		}
	}
}

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func newCA(t *testing.T) *papertpm.CA {
	t.Helper()
	ca, err := papertpm.NewCA(now.Add(-time.Hour), now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func file(b []byte) *fstest.MapFile { return &fstest.MapFile{Data: b} }

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func leaf(t *testing.T, ca *papertpm.CA) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.Certify(key.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStoresAreReadStrictly(t *testing.T) {
	ca := newCA(t)
	digest := fmt.Sprintf("%x", sha256.Sum256(ca.Root.Raw))
	end := leaf(t, ca)
	entry := func(change ...string) string {
		text := "roots:\n  - {file: a.pem, sha256: " + digest + ", class: hardware, vendors: [IFX, 'id:53544D20'], source: the maker}\n"
		return strings.NewReplacer(change...).Replace(text)
	}
	for name, c := range map[string]struct {
		index string
		more  fstest.MapFS
		says  string // "" if it is good
	}{
		"a good one":                    {index: entry()},
		"an intermediate":               {index: "intermediates:\n  - {file: a.pem, sha256: " + digest + ", source: s}\n"},
		"with text for people":          {index: entry(), more: fstest.MapFS{"README.md": file([]byte("text"))}},
		"no index":                      {says: "does not exist"},
		"a field that does not exist":   {index: entry("source", "sauce"), says: "sauce"},
		"another certificate":           {index: entry(digest, strings.Repeat("00", 31)+"11"), says: "digest"},
		"no digest":                     {index: entry("sha256: "+digest+", ", ""), says: "digest"},
		"no class":                      {index: entry("class: hardware, ", ""), says: "class"},
		"a class that does not exist":   {index: entry("hardware", "magic"), says: "magic"},
		"no vendor":                     {index: entry("vendors: [IFX, 'id:53544D20'], ", ""), says: "no vendor"},
		"a vendor that is none":         {index: entry("IFX", "Infineon"), says: "Infineon"},
		"the vendor zero":               {index: entry("IFX", "'id:00000000'"), says: "no vendor"},
		"no source":                     {index: entry(", source: the maker", ""), says: "source"},
		"a file elsewhere":              {index: entry("a.pem", "../a.pem"), says: "same directory"},
		"a file that is missing":        {index: entry("a.pem", "b.pem"), says: "b.pem"},
		"a file named twice":            {index: entry() + entry("roots:\n", ""), says: "twice"},
		"the index as a certificate":    {index: entry("a.pem", "roots.yaml"), says: "twice"},
		"a file that is not named":      {index: entry(), more: fstest.MapFS{"b.pem": file(pemOf(ca.Root))}, says: "b.pem is not named"},
		"a directory":                   {index: entry(), more: fstest.MapFS{"d/b.pem": file(nil)}, says: "d is not named"},
		"two certificates in one file":  {index: entry(), more: fstest.MapFS{"a.pem": file(append(pemOf(ca.Root), pemOf(end)...))}, says: "2 certificates"},
		"a private key":                 {index: entry(), more: fstest.MapFS{"a.pem": file([]byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"))}, says: "PRIVATE KEY"},
		"nothing in a file":             {index: entry(), more: fstest.MapFS{"a.pem": file(nil)}, says: "no certificate"},
		"a large file":                  {index: entry(), more: fstest.MapFS{"a.pem": file(make([]byte, 1<<17))}, says: "more than"},
		"a certificate of no authority": {index: entry(digest, fmt.Sprintf("%x", sha256.Sum256(end.Raw))), more: fstest.MapFS{"a.pem": file(pemOf(end))}, says: "no authority"},
	} {
		t.Run(name, func(t *testing.T) {
			store := fstest.MapFS{"a.pem": file(pemOf(ca.Root))}
			if c.index != "" {
				store["roots.yaml"] = file([]byte(c.index))
			}
			for n, f := range c.more {
				store[n] = f
			}
			roots, err := tpmroots.Load(store)
			if c.says == "" {
				if err != nil || len(roots) != 1 || !roots[0].Certificate.Equal(ca.Root) {
					t.Errorf("got %d roots, %v", len(roots), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
		})
	}
}

func TestEndorsementCertificatesAreFiledByTheirKey(t *testing.T) {
	ca := newCA(t)
	a, b := leaf(t, ca), leaf(t, ca)
	got, err := tpmroots.Certificates(fstest.MapFS{"any name": file(pemOf(a)), "b.der": file(b.Raw)})
	if err != nil || len(got) != 2 {
		t.Fatalf("got %d, %v", len(got), err)
	}
	for _, c := range []*x509.Certificate{a, b} {
		if id := attest.MachineIDOf(c.RawSubjectPublicKeyInfo); !c.Equal(got[id]) {
			t.Errorf("machine %s has another certificate", id)
		}
	}
	for name, dir := range map[string]fstest.MapFS{
		"the same twice":  {"a": file(a.Raw), "b": file(pemOf(a))},
		"of an authority": {"a": file(ca.Root.Raw)},
		"of nothing":      {"a": file([]byte("x"))},
		"a directory":     {"d/a": file(a.Raw)},
	} {
		if _, err := tpmroots.Certificates(dir); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestRevocationListsAreReadFromFiles(t *testing.T) {
	ca := newCA(t)
	var err error
	if ca.Root, err = ca.Sign(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}, nil, ca.Key.Public()); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now, NextUpdate: now.Add(time.Hour)}, ca.Root, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots := []attest.TPMRoot{{Class: attest.TPMHardware, Certificate: ca.Root}}
	for name, data := range map[string][]byte{"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})} {
		if _, err := tpmroots.RevocationLists(fstest.MapFS{"a": file(data)}, roots); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := tpmroots.RevocationLists(fstest.MapFS{"a": file(data)}, nil); err == nil || !strings.Contains(err.Error(), `"a"`) {
			t.Errorf("%s: without its issuer: got %v", name, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	index, err := fs.ReadFile(tpmroots.Vendors(), tpmroots.IndexName)
	if err != nil {
		f.Fatal(err)
	}
	cert, err := fs.ReadFile(tpmroots.Vendors(), "intel-tpm-ek-root.pem")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(index, cert)
	f.Add([]byte("roots:\n  - {file: a.pem, sha256: "+strings.Repeat("0", 64)+", class: hardware, vendors: [IFX], source: x}\n"), cert)
	f.Fuzz(func(t *testing.T, index, cert []byte) {
		roots, err := tpmroots.Load(fstest.MapFS{"roots.yaml": file(index), "a.pem": file(cert), "intel-tpm-ek-root.pem": file(cert)})
		if err != nil && len(roots) > 0 {
			t.Error("roots and an error")
		}
		for _, r := range roots {
			if r.Certificate == nil || !r.Intermediate && (len(r.Vendors) == 0 || r.Class == "") {
				t.Errorf("%+v", r)
			}
			if !bytes.Contains(cert, []byte("CERTIFICATE")) && len(cert) > 0 && cert[0] != 0x30 {
				t.Error("a certificate from nothing")
			}
		}
	})
}
