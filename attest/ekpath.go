package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"slices"
	"time"
)

// Whoever makes up authorities need not have a TPM, and crypto/x509 looks for a path
// through all that it is given: authorities that all bear one name it tries as the
// issuers of each other a hundred times, and a certificate has room for an RSA key of
// 60,000 bits. So of what a machine sends it is given only what can be a path.

// Limits of the keys of the authorities that a machine sends, bits. No maker's
// authority has more.
const (
	maxSentRSA = 4096
	maxSentECC = 384
)

// Bounds of the search among authorities of one name. A chain of three levels with
// two authorities of each has eight signatures and four paths.
const (
	maxPathChecks = 16 // signatures
	maxPaths      = 4
)

// usable returns the authorities that a machine sent whose keys are of a size that
// authorities have, each once.
func usable(sent []*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range sent {
		switch k := c.PublicKey.(type) {
		case *rsa.PublicKey:
			if k.N.BitLen() > maxSentRSA {
				continue
			}
		case *ecdsa.PublicKey:
			if k.Params().BitSize > maxSentECC {
				continue
			}
		default:
			continue
		}
		if !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out
}

// sentPaths returns what of the authorities that a machine sent is to be tried as
// links of its chain, one set after the other: all of them, if each has a name of its
// own. Or else none, and those of each path of distinct names that leads to a root of
// the policy. Makers send several of one name where an authority was certified again:
// under the same key with later dates, by another authority, or under another key.
func (p *TPMPolicy) sentPaths(leaf *x509.Certificate, sent []*x509.Certificate, now time.Time) [][]*x509.Certificate {
	return p.search(leaf, sent, now).paths
}

func (p *TPMPolicy) search(leaf *x509.Certificate, sent []*x509.Certificate, now time.Time) *pathSearch {
	sent = usable(sent)
	alike := func(i int) bool {
		return slices.ContainsFunc(sent[:i], func(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, sent[i].RawSubject) })
	}
	distinct := true
	for i := range sent {
		distinct = distinct && !alike(i)
	}
	if distinct {
		return &pathSearch{paths: [][]*x509.Certificate{sent}}
	}
	s := &pathSearch{sent: sent, paths: [][]*x509.Certificate{nil}, checked: map[[2]*x509.Certificate]bool{}}
	for _, r := range p.Roots {
		switch {
		case r.Certificate == nil:
		case r.Intermediate:
			s.own = append(s.own, r.Certificate)
		case classRank(r.Class) > 0:
			s.roots = append(s.roots, r.Certificate)
		}
	}
	// The likely ones first: valid, of those as they were sent. Which of several the
	// key identifier asks for is seen at each step.
	slices.SortStableFunc(s.sent, func(a, b *x509.Certificate) int {
		return outside(a, now) - outside(b, now)
	})
	s.extend(leaf, nil)
	return s
}

// outside is 1 for a certificate that is not valid at a time, else 0.
func outside(c *x509.Certificate, now time.Time) int {
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return 1
	}
	return 0
}

// pathSearch looks for paths through authorities of which several have one name.
type pathSearch struct {
	sent, own, roots []*x509.Certificate // of the machine; the policy's
	paths            [][]*x509.Certificate
	checked          map[[2]*x509.Certificate]bool
}

// signed reports whether issuer signed c. When there were enough, it says no.
func (s *pathSearch) signed(c, issuer *x509.Certificate) bool {
	edge := [2]*x509.Certificate{c, issuer}
	ok, done := s.checked[edge]
	if !done && len(s.checked) < maxPathChecks {
		ok = c.CheckSignatureFrom(issuer) == nil
		s.checked[edge] = ok
	}
	return ok
}

// asked is 0 for an issuer whose key c names (RFC 5280, 4.2.1.1), 1 for one that
// cannot be told, 2 for another.
func asked(c, issuer *x509.Certificate) int {
	switch {
	case len(c.AuthorityKeyId) == 0 || len(issuer.SubjectKeyId) == 0:
		return 1
	case bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId):
		return 0
	}
	return 2
}

// issuers returns those of all that have the name of c's issuer, the likely ones
// first.
func issuers(c *x509.Certificate, all ...[]*x509.Certificate) []*x509.Certificate {
	var out []*x509.Certificate
	for _, i := range slices.Concat(all...) {
		if bytes.Equal(i.RawSubject, c.RawIssuer) {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b *x509.Certificate) int { return asked(c, a) - asked(c, b) })
	return out
}

// extend adds the paths that go on above the last of path, or above the leaf.
func (s *pathSearch) extend(leaf *x509.Certificate, path []*x509.Certificate) {
	top := leaf
	if len(path) > 0 {
		top = path[len(path)-1]
	}
	for _, root := range issuers(top, s.roots) {
		if s.signed(top, root) {
			// A path of the policy's own alone is looked for without these.
			links := slices.DeleteFunc(slices.Clone(path), func(c *x509.Certificate) bool { return !slices.Contains(s.sent, c) })
			if len(links) > 0 {
				s.paths = append(s.paths, links)
			}
			break
		}
	}
	for _, next := range issuers(top, s.sent, s.own) {
		named := func(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, next.RawSubject) }
		if len(s.paths) > maxPaths || slices.ContainsFunc(path, named) || !s.signed(top, next) {
			continue
		}
		s.extend(leaf, append(slices.Clone(path), next))
	}
}
