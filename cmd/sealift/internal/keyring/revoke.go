package keyring

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Files about operators' certificates.
const (
	FileOperators = "operators.jsonl" // what was issued, so that it can be revoked by name
	FileRevoked   = "operators.crl"   // what was revoked, a CRL (RFC 5280 5) of the service CA in PEM
)

const (
	// maxLists bounds the two files, bytes. A revoked certificate takes some
	// 40, an issued one some 150.
	maxLists = 4 << 20
	// revokedKept is how long a certificate stays on the list: by then it is
	// over by itself, whenever it was issued before it was revoked.
	revokedKept = operatorLife + 2*clockSkew
)

// Issued is an operator's certificate that was issued.
type Issued struct {
	Name     string    `json:"name"`
	Serial   string    `json:"serial"` // hex
	Roles    []string  `json:"roles"`
	NotAfter time.Time `json:"notAfter"`
}

// Register notes that a certificate was issued to an operator. It is durable
// when it returns. If it fails, the list is as it was.
func (k *Keyring) Register(crt *x509.Certificate) (err error) {
	line, err := json.Marshal(Issued{crt.Subject.CommonName, crt.SerialNumber.Text(16), crt.Subject.OrganizationalUnit, crt.NotAfter.UTC()})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(k.dir, FileOperators), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("note the certificate of %s: %w", crt.Subject.CommonName, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	before, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Write(append(line, '\n'))
		if err != nil {
			// A part of a line would spoil the next one.
			err = errors.Join(err, f.Truncate(before))
		}
	}
	if err != nil {
		return fmt.Errorf("note the certificate of %s: %w", crt.Subject.CommonName, err)
	}
	return f.Sync()
}

// IssuedTo returns the certificates of an operator that are not over.
func (k *Keyring) IssuedTo(name string, now time.Time) ([]Issued, error) {
	path := filepath.Join(k.dir, FileOperators)
	b, err := readList(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Issued
	for n, line := range bytes.Split(bytes.TrimSpace(b), []byte("\n")) {
		var one Issued
		if err := json.Unmarshal(line, &one); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n+1, err)
		}
		if one.Name == name && now.Before(one.NotAfter) {
			all = append(all, one)
		}
	}
	return all, nil
}

func readList(path string) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, maxLists+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxLists {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxLists)
	}
	return b, nil
}

// Revoke returns the list of revoked certificates, in PEM, with these serial
// numbers on it beside those of the present list. It writes nothing.
func (i *Issuer) Revoke(k *Keyring, serials []*big.Int) ([]byte, error) {
	number := big.NewInt(1)
	var entries []x509.RevocationListEntry
	old, err := readList(filepath.Join(k.dir, FileRevoked))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		crl, err := parseList(old, i.ca)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(k.dir, FileRevoked), err)
		}
		number.Add(number, crl.Number)
		for _, e := range crl.RevokedCertificateEntries {
			if i.now.Before(e.RevocationTime.Add(revokedKept)) {
				entries = append(entries, x509.RevocationListEntry{SerialNumber: e.SerialNumber, RevocationTime: e.RevocationTime})
			}
		}
	}
	for _, serial := range serials {
		if !slices.ContainsFunc(entries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(serial) == 0 }) {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: i.now})
		}
	}
	// The list says nothing of how fresh it must be: it is good until the CA
	// ends, and whoever can keep a newer one from the service could as well
	// take this one away.
	der, err := x509.CreateRevocationList(i.rand, &x509.RevocationList{
		Number: number, ThisUpdate: i.now, NextUpdate: i.ca.NotAfter, RevokedCertificateEntries: entries,
	}, i.ca, i.key)
	if err != nil {
		return nil, fmt.Errorf("sign the list of revoked certificates: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}

// parseList reads a CRL in PEM that the CA signed.
func parseList(b []byte, ca *x509.Certificate) (*x509.RevocationList, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "X509 CRL" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New(`it is not exactly one PEM block "X509 CRL"`)
	}
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("it is not a certificate revocation list: %w", err)
	}
	if err := crl.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("it is not of the service CA: %w", err)
	}
	if crl.Number == nil {
		return nil, errors.New("it has no number")
	}
	return crl, nil
}

// Revocations answers whether a certificate is revoked, by a file that may be
// replaced at any time. Its methods may be used by many goroutines.
type Revocations struct {
	path string
	ca   *x509.Certificate

	mu      sync.Mutex
	seen    fs.FileInfo     // of the file that was read last; nil if there was none; guarded by mu
	number  *big.Int        // of the newest list; nil before the first; guarded by mu
	serials map[string]bool // in hex; guarded by mu
	err     error           // why the file cannot be used; guarded by mu
}

// Revocations opens the list of revoked certificates at path, or in the key
// directory if that is empty, where it may be missing: then nothing was
// revoked yet.
func (k *Keyring) Revocations(path string) (*Revocations, error) {
	ca, err := k.Certificate(FileServiceCA)
	if err != nil {
		return nil, err
	}
	if _, ok := ca.PublicKey.(*ecdsa.PublicKey); !ok {
		return nil, fmt.Errorf("key directory %s: the service CA's key is %T, want ECDSA", k.dir, ca.PublicKey)
	}
	r := &Revocations{path: path, ca: ca}
	if path == "" {
		r.path = filepath.Join(k.dir, FileRevoked)
	} else if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("list of revoked certificates: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refresh(); r.err != nil {
		return nil, r.err
	}
	return r, nil
}

// Revoked reports whether a certificate is on the list. A list that was there
// and is not, that cannot be read, or that is older than one before, is an
// error for every certificate until it is mended.
func (r *Revocations) Revoked(crt *x509.Certificate) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh()
	return r.serials[crt.SerialNumber.Text(16)], r.err
}

// Check returns why no certificate can be judged, or nil.
func (r *Revocations) Check(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refresh()
	return r.err
}

// refresh reads the file if it is another than the last. The caller holds mu.
func (r *Revocations) refresh() {
	info, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) && r.number == nil && r.seen == nil {
		return
	}
	if err != nil {
		r.seen, r.err = nil, fmt.Errorf("list of revoked certificates: %w", err)
		return
	}
	if r.seen != nil && os.SameFile(info, r.seen) && info.ModTime().Equal(r.seen.ModTime()) && info.Size() == r.seen.Size() {
		return
	}
	r.seen, r.err = info, r.read()
}

func (r *Revocations) read() error {
	b, err := readList(r.path)
	if err != nil {
		return fmt.Errorf("list of revoked certificates: %w", err)
	}
	crl, err := parseList(b, r.ca)
	if err != nil {
		return fmt.Errorf("list of revoked certificates %s: %w", r.path, err)
	}
	if r.number != nil && crl.Number.Cmp(r.number) < 0 {
		return fmt.Errorf("list of revoked certificates %s: it is number %v, number %v was there before", r.path, crl.Number, r.number)
	}
	r.number, r.serials = crl.Number, map[string]bool{}
	for _, e := range crl.RevokedCertificateEntries {
		r.serials[e.SerialNumber.Text(16)] = true
	}
	return nil
}
