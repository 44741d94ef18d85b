package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// MaxRevocationList bounds a certificate revocation list, in bytes.
const MaxRevocationList = 16 << 20

// Revocations are certificate revocation lists (RFC 5280, 5) whose signatures
// were checked. Only NewRevocations makes them. They do not change, and can be
// shared. The nil Revocations has no list.
type Revocations struct {
	digests  []string // SHA-256 of each list, in hex
	byIssuer map[[32]byte][]*revocationList
}

type revocationList struct {
	number     string
	thisUpdate time.Time
	nextUpdate time.Time
	revoked    map[string]bool // by serial number
}

// issuerKey names an authority by name and key, so that a list of a renewed
// certificate of the same authority counts, too.
func issuerKey(rawName, spki []byte) [32]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d:", len(rawName))
	h.Write(rawName)
	h.Write(spki)
	return [32]byte(h.Sum(nil))
}

// NewRevocations reads revocation lists in DER. Each must be signed by one of
// the authorities among roots, which include intermediates. Lists that cover
// only part of what their issuer revokes (delta, indirect and partitioned
// lists, all of which have a critical extension) are refused: a certificate
// that is not on such a list can be revoked all the same.
func NewRevocations(ders [][]byte, roots []TPMRoot) (*Revocations, error) {
	r := &Revocations{byIssuer: map[[32]byte][]*revocationList{}}
	for i, der := range ders {
		if err := r.add(der, roots); err != nil {
			return nil, fmt.Errorf("revocation list %d: %w", i, err)
		}
		r.digests = append(r.digests, fmt.Sprintf("%x", sha256.Sum256(der)))
	}
	return r, nil
}

// Digests returns the SHA-256 of each list, in hex.
func (r *Revocations) Digests() []string {
	if r == nil {
		return nil
	}
	return r.digests
}

func (r *Revocations) add(der []byte, roots []TPMRoot) error {
	if len(der) > MaxRevocationList {
		return fmt.Errorf("got %d bytes, at most %d allowed", len(der), MaxRevocationList)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	for _, e := range l.Extensions {
		if e.Critical {
			return fmt.Errorf("list of %q: critical extension %s: only complete lists are read", cleanText(l.Issuer.String()), e.Id)
		}
	}
	for _, e := range l.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical {
				return fmt.Errorf("list of %q: entry %x has the critical extension %s: only lists of their issuer's own certificates are read",
					cleanText(l.Issuer.String()), e.SerialNumber, x.Id)
			}
		}
	}
	fault := errors.New("none of the trusted authorities has its issuer's name")
	for _, root := range roots {
		c := root.Certificate
		if c == nil || !bytes.Equal(c.RawSubject, l.RawIssuer) {
			continue
		}
		if fault = l.CheckSignatureFrom(c); fault != nil {
			continue
		}
		list := &revocationList{thisUpdate: l.ThisUpdate, nextUpdate: l.NextUpdate, revoked: make(map[string]bool, len(l.RevokedCertificateEntries))}
		if l.Number != nil {
			list.number = l.Number.String()
		}
		for _, e := range l.RevokedCertificateEntries {
			list.revoked[string(e.SerialNumber.Bytes())] = true
		}
		key := issuerKey(c.RawSubject, c.RawSubjectPublicKeyInfo)
		r.byIssuer[key] = append(r.byIssuer[key], list)
		return nil
	}
	return fmt.Errorf("list of %q: %w", cleanText(l.Issuer.String()), fault)
}

// revocation is what the lists say of a chain.
type revocation struct {
	revoked string // names a certificate that is revoked
	unknown string // names an authority without a list that is in force
}

// check looks for each certificate of a chain, from the leaf up to the one
// that the last signed. A serial number that any list names is revoked, also by
// a list that has run out: revocations are not taken back. Certificates are
// unknown where no list of their issuer is in force.
func (r *Revocations) check(chain []*x509.Certificate, now time.Time) revocation {
	var out revocation
	for i := 0; i+1 < len(chain); i++ {
		c, issuer := chain[i], chain[i+1]
		var lists []*revocationList
		if r != nil {
			lists = r.byIssuer[issuerKey(issuer.RawSubject, issuer.RawSubjectPublicKeyInfo)]
		}
		current := false
		for _, l := range lists {
			if l.revoked[string(c.SerialNumber.Bytes())] {
				out.revoked = fmt.Sprintf("certificate %s is on the revocation list %s of its issuer, of %s",
					certificateName(c), l.number, l.thisUpdate.UTC().Format(time.DateOnly))
			}
			current = current || !now.Before(l.thisUpdate) && now.Before(l.nextUpdate)
		}
		if !current && out.unknown == "" {
			out.unknown = fmt.Sprintf("there is no revocation list of %q that is in force", cleanText(issuer.Subject.String()))
		}
	}
	return out
}
