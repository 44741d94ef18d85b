// Package tpmroots reads stores of the authorities that vouch for endorsement
// keys, and holds one of TPM makers' roots. Load reads a store, Vendors is the
// one that comes with Sealift, Certificates reads endorsement certificates of
// single machines, and RevocationLists reads the authorities' lists.
//
// A store is a directory with certificates, one PEM file each, and roots.yaml,
// which says of every one which class of TPM it vouches for (attest.TPMClass),
// which manufacturers it may vouch for, and where it is from. A file that is not
// named there is an error, and so is one with another digest: what is trusted is
// what was written down.
package tpmroots

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// IndexName is the name of a store's index.
const IndexName = "roots.yaml"

// Limits of a store.
const (
	maxIndex   = 1 << 20
	maxFile    = 64 << 10
	maxEntries = 4096
	// maxMachines bounds the endorsement certificates of a directory.
	maxMachines = 1 << 20
)

//go:embed vendors
var vendors embed.FS

// Vendors returns the store of makers' roots that comes with Sealift. It has no
// root of software TPMs.
func Vendors() fs.FS {
	sub, err := fs.Sub(vendors, "vendors")
	if err != nil {
		panic("tpmroots: BUG: " + err.Error()) // the name is constant
	}
	return sub
}

// Index is roots.yaml.
type Index struct {
	Roots         []Root         `yaml:"roots"`
	Intermediates []Intermediate `yaml:"intermediates,omitempty"`
}

// Root is a certificate that is trusted.
type Root struct {
	File   string          `yaml:"file"`   // in the same directory
	SHA256 manifest.SHA256 `yaml:"sha256"` // of the certificate's DER
	Class  attest.TPMClass `yaml:"class"`
	// Vendors are the manufacturers that it may vouch for, as in the TCG Vendor ID
	// Registry: at least one.
	Vendors []attest.TPMVendor `yaml:"vendors"`
	Source  string             `yaml:"source"` // for people
}

// Intermediate is a certificate that is offered for building chains. It is not
// trusted by itself.
type Intermediate struct {
	File   string          `yaml:"file"`
	SHA256 manifest.SHA256 `yaml:"sha256"`
	Source string          `yaml:"source"`
}

// Load reads a store and returns what is in it, in the order of the index.
func Load(store fs.FS) ([]attest.TPMRoot, error) {
	roots, err := load(store)
	if err != nil {
		return nil, fmt.Errorf("TPM roots: %w", err)
	}
	return roots, nil
}

func load(store fs.FS) ([]attest.TPMRoot, error) {
	b, err := read(store, IndexName, maxIndex)
	if err != nil {
		return nil, err
	}
	var index Index
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.DisallowUnknownField()).Decode(&index); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %s", IndexName, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	if n := len(index.Roots) + len(index.Intermediates); n > maxEntries {
		return nil, fmt.Errorf("%s: %d entries, at most %d allowed", IndexName, n, maxEntries)
	}
	var roots []attest.TPMRoot
	named := []string{IndexName}
	take := func(file string, digest manifest.SHA256) (*x509.Certificate, error) {
		if file == "" || path.Base(file) != file || !fs.ValidPath(file) {
			return nil, fmt.Errorf("%s: file is %.100q, want the name of a file in the same directory", IndexName, file)
		}
		if slices.Contains(named, file) {
			return nil, fmt.Errorf("%s: file %s is named twice", IndexName, file)
		}
		named = append(named, file)
		return authority(store, file, digest)
	}
	for _, r := range index.Roots {
		c, err := take(r.File, r.SHA256)
		if err != nil {
			return nil, err
		}
		switch r.Class {
		case attest.TPMHardware, attest.TPMFirmware, attest.TPMVirtual, attest.TPMSoftware:
		default:
			return nil, fmt.Errorf("%s: class of %s is %.40q, want hardware, firmware, virtual or software", IndexName, r.File, r.Class)
		}
		if len(r.Vendors) == 0 || slices.Contains(r.Vendors, 0) {
			return nil, fmt.Errorf("%s: %s names no vendor that it may vouch for", IndexName, r.File)
		}
		if r.Source == "" {
			return nil, fmt.Errorf("%s: %s has no source", IndexName, r.File)
		}
		roots = append(roots, attest.TPMRoot{Class: r.Class, Certificate: c, Vendors: r.Vendors})
	}
	for _, i := range index.Intermediates {
		c, err := take(i.File, i.SHA256)
		if err != nil {
			return nil, err
		}
		if i.Source == "" {
			return nil, fmt.Errorf("%s: %s has no source", IndexName, i.File)
		}
		roots = append(roots, attest.TPMRoot{Certificate: c, Intermediate: true})
	}
	files, err := fs.ReadDir(store, ".")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if !slices.Contains(named, f.Name()) && f.Name() != "README.md" {
			return nil, fmt.Errorf("%s is not named in %s", f.Name(), IndexName)
		}
	}
	return roots, nil
}

// authority reads the one certificate of an authority in a file.
func authority(store fs.FS, file string, digest manifest.SHA256) (*x509.Certificate, error) {
	b, err := read(store, file, maxFile)
	if err != nil {
		return nil, err
	}
	certs, err := parse(b)
	if err == nil && len(certs) != 1 {
		err = fmt.Errorf("got %d certificates, want 1", len(certs))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	c := certs[0]
	if got := manifest.SHA256(sha256.Sum256(c.Raw)); got != digest {
		return nil, fmt.Errorf("%s: the certificate's digest is %s, %s says %s", file, got, IndexName, digest)
	}
	if !c.BasicConstraintsValid || !c.IsCA {
		return nil, fmt.Errorf("%s: the certificate is of no authority", file)
	}
	return c, nil
}

// read reads a whole file of at most max bytes.
func read(store fs.FS, name string, max int64) (_ []byte, err error) {
	f, err := store.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(len(b)) > max {
		return nil, fmt.Errorf("%s: more than %d bytes", name, max)
	}
	return b, nil
}

// parse reads the certificates of a file: PEM, or one in DER. In PEM nothing but
// certificates and the text between them is allowed.
func parse(b []byte) ([]*x509.Certificate, error) {
	if len(b) > 0 && b[0] == 0x30 {
		c, err := x509.ParseCertificate(b)
		if err != nil {
			return nil, err
		}
		return []*x509.Certificate{c}, nil
	}
	var out []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block %.40q, want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return out, nil
}

// Certificates reads a directory of endorsement certificates, PEM or DER, of
// machines whose TPM has none: from an inventory, or from the maker's download
// service. The names of the files do not matter: a certificate is for the machine
// whose endorsement key it is of. Two for one machine are an error.
func Certificates(dir fs.FS) (map[attest.MachineID]*x509.Certificate, error) {
	out := map[attest.MachineID]*x509.Certificate{}
	files, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, fmt.Errorf("endorsement certificates: %w", err)
	}
	for _, f := range files {
		b, err := read(dir, f.Name(), maxFile)
		if err != nil {
			return nil, fmt.Errorf("endorsement certificates: %w", err)
		}
		certs, err := parse(b)
		if err != nil {
			return nil, fmt.Errorf("endorsement certificates: %s: %w", f.Name(), err)
		}
		for _, c := range certs {
			id, err := attest.EKCertificateMachine(c)
			if err != nil {
				return nil, fmt.Errorf("endorsement certificates: %s: %w", f.Name(), err)
			}
			if c.IsCA {
				return nil, fmt.Errorf("endorsement certificates: %s: it is of an authority: put it into the store of roots", f.Name())
			}
			if out[id] != nil {
				return nil, fmt.Errorf("endorsement certificates: %s: there is another one for machine %s", f.Name(), id)
			}
			if len(out) == maxMachines {
				return nil, fmt.Errorf("endorsement certificates: more than %d", maxMachines)
			}
			out[id] = c
		}
	}
	return out, nil
}

// RevocationLists reads a directory of revocation lists, PEM or DER, of the
// authorities among roots.
func RevocationLists(dir fs.FS, roots []attest.TPMRoot) (*attest.Revocations, error) {
	files, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, fmt.Errorf("revocation lists: %w", err)
	}
	var ders [][]byte
	var names []string
	for _, f := range files {
		b, err := read(dir, f.Name(), 2*attest.MaxRevocationList)
		if err != nil {
			return nil, fmt.Errorf("revocation lists: %w", err)
		}
		if block, _ := pem.Decode(b); block != nil && block.Type == "X509 CRL" {
			b = block.Bytes
		}
		ders, names = append(ders, b), append(names, f.Name())
	}
	r, err := attest.NewRevocations(ders, roots)
	if err != nil {
		return nil, fmt.Errorf("revocation lists %q: %w", names, err)
	}
	return r, nil
}
