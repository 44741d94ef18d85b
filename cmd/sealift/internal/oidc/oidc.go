// Package oidc knows operators by the tokens of an OpenID Connect issuer: an
// Authenticator of New implements server.Authenticator. Tokens are JWTs (RFC
// 7519) signed with a public key of the issuer, which is found by OpenID
// Connect Discovery 1.0: ID tokens, or access tokens that are JWTs.
package oidc

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// Bounds and defaults.
const (
	// MaxToken is the length of the longest token that is looked at, bytes.
	// The header of a request has room for little more.
	MaxToken = 12 << 10
	// MaxSkew bounds Config.Skew.
	MaxSkew = 5 * time.Minute

	defaultSkew   = time.Minute
	defaultName   = "sub"
	defaultGroups = "groups"
)

// Config is what an Authenticator needs. All fields are required unless marked
// Optional; RolesClaim or Groups must be there.
type Config struct {
	Issuer   string // https URL, exactly as tokens name it in iss
	Audience string // that tokens must name in aud: the client's id

	// CA is what the issuer's certificate must lead to. Optional; the roots of
	// the system.
	CA *x509.CertPool
	// NameClaim is the claim that is the operator's name. It must be unique
	// with the issuer, and never given to another. Optional; "sub". If it is
	// "email", a token whose email_verified is there and not true is refused.
	NameClaim string
	// RolesClaim is the claim that lists roles by their names. Others in it
	// give nothing. Optional.
	RolesClaim string
	// GroupsClaim is the claim that lists groups. Optional; "groups".
	GroupsClaim string
	// Groups gives roles to groups. Optional.
	Groups map[string][]api.Role
	// Algorithms are what tokens may be signed with (RFC 7518 3.1, RFC 8037).
	// Optional; RS256 and ES256.
	Algorithms []string
	// Skew is how far the clocks of issuer and service may be apart.
	// Optional; one minute, at most MaxSkew.
	Skew time.Duration
	// Clock returns the present time. Optional; time.Now.
	Clock func() time.Time
}

// known are the algorithms that Config.Algorithms may name: those with a
// public key. With a shared key, or none, whoever reads our configuration
// could sign.
func known() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	}
}

// Authenticator knows operators by their tokens. It may be used by many
// goroutines.
type Authenticator struct {
	c          Config
	algorithms []jose.SignatureAlgorithm
	keys       *keySet
}

var _ server.Authenticator = (*Authenticator)(nil)

// New checks c. It does not talk to the issuer: a service starts without it.
func New(c Config) (*Authenticator, error) {
	fail := func(format string, args ...any) (*Authenticator, error) {
		return nil, fmt.Errorf("OpenID Connect: "+format, args...)
	}
	u, err := url.Parse(c.Issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fail("the issuer is %q, want an https URL without query and fragment", c.Issuer)
	case c.Audience == "":
		return fail("no audience")
	case c.RolesClaim == "" && len(c.Groups) == 0:
		return fail("neither a claim for roles nor groups with roles: nobody could do anything")
	case c.Skew < 0 || c.Skew > MaxSkew:
		return fail("the skew %v is not between 0 and %v", c.Skew, MaxSkew)
	}
	for group, roles := range c.Groups {
		for _, r := range roles {
			if !r.Known() {
				return fail("group %q: role %q is none of viewer, operator, approver, auditor", group, r)
			}
		}
	}
	if len(c.Algorithms) == 0 {
		c.Algorithms = []string{string(jose.RS256), string(jose.ES256)}
	}
	a := &Authenticator{c: c}
	for _, name := range c.Algorithms {
		alg := jose.SignatureAlgorithm(name)
		if !slices.Contains(known(), alg) {
			return fail("algorithm %q is none of %v", name, known())
		}
		a.algorithms = append(a.algorithms, alg)
	}
	if a.c.NameClaim == "" {
		a.c.NameClaim = defaultName
	}
	if a.c.GroupsClaim == "" {
		a.c.GroupsClaim = defaultGroups
	}
	if a.c.Skew == 0 {
		a.c.Skew = defaultSkew
	}
	if a.c.Clock == nil {
		a.c.Clock = time.Now
	}
	a.keys = newKeySet(c.Issuer, c.CA, a.c.Clock)
	return a, nil
}

// Authenticate implements server.Authenticator. It checks, in this order:
//   - the token is a JWT of at most MaxToken bytes with one signature
//   - its algorithm is one of those that are allowed
//   - the issuer has the key that it names, of a kind for that algorithm
//   - the signature, the issuer and the audience
//   - that it is now neither before nbf and iat, nor after exp, which must be
//     there, give or take the skew
//   - that the claim for the name is a text
//
// Roles that the token has and we do not know give nothing.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (server.Operator, error) {
	if len(token) > MaxToken {
		return server.Operator{}, fmt.Errorf("it has %d bytes, at most %d are looked at", len(token), MaxToken)
	}
	// The library's errors quote the token, and ours are shown.
	jws, err := jose.ParseSignedCompact(token, a.algorithms)
	if err != nil {
		return server.Operator{}, fmt.Errorf("it is not a JWT signed with one of %v", a.algorithms)
	}
	if len(jws.Signatures) != 1 {
		return server.Operator{}, fmt.Errorf("it has %d signatures, want 1", len(jws.Signatures))
	}
	header := jws.Signatures[0].Protected
	alg := jose.SignatureAlgorithm(header.Algorithm)
	key, err := a.keys.find(ctx, header.KeyID, alg)
	if err != nil {
		return server.Operator{}, err
	}
	verifier := oidc.NewVerifier(a.c.Issuer, &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{key}}, &oidc.Config{
		ClientID: a.c.Audience, SupportedSigningAlgs: []string{string(alg)}, SkipExpiryCheck: true, // ours is stricter
	})
	verified, err := verifier.Verify(ctx, token)
	if err != nil {
		return server.Operator{}, errors.New("its signature is not of its key, or it is of another issuer or for another audience")
	}
	var claims map[string]json.RawMessage
	if err := verified.Claims(&claims); err != nil {
		return server.Operator{}, errors.New("its claims are not a JSON object")
	}
	if err := a.checkTime(claims); err != nil {
		return server.Operator{}, err
	}
	return a.operator(claims)
}

// Check returns why the issuer could not be asked when that was last tried, or
// nil. It does not ask.
func (a *Authenticator) Check(context.Context) error { return a.keys.check() }

// checkTime checks exp, nbf and iat (RFC 7519 4.1).
func (a *Authenticator) checkTime(claims map[string]json.RawMessage) error {
	now := a.c.Clock()
	expires, there, err := date(claims, "exp")
	switch {
	case err != nil:
		return err
	case !there:
		return errors.New("it has no exp: it would be good for ever")
	case !now.Before(expires.Add(a.c.Skew)):
		return fmt.Errorf("it was valid until %s, now is %s", expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	for _, name := range []string{"nbf", "iat"} {
		from, there, err := date(claims, name)
		if err != nil {
			return err
		}
		if there && now.Add(a.c.Skew).Before(from) {
			return fmt.Errorf("its %s is %s, now is %s", name, from.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// date returns a claim that is a NumericDate: seconds since 1970, possibly
// with a fraction (RFC 7519 2).
func date(claims map[string]json.RawMessage, name string) (time.Time, bool, error) {
	raw, there := claims[name]
	if !there {
		return time.Time{}, false, nil
	}
	var seconds *float64
	if err := json.Unmarshal(raw, &seconds); err != nil || seconds == nil || math.Abs(*seconds) > 1e11 {
		return time.Time{}, false, fmt.Errorf("its %s is not a date", name)
	}
	whole, part := math.Modf(*seconds)
	return time.Unix(int64(whole), int64(part*1e9)).UTC(), true, nil
}

// operator reads who it is, and what he may do.
func (a *Authenticator) operator(claims map[string]json.RawMessage) (server.Operator, error) {
	var op server.Operator
	if raw, there := claims[a.c.NameClaim]; !there || json.Unmarshal(raw, &op.Name) != nil || op.Name == "" {
		return server.Operator{}, fmt.Errorf("its claim %q is not there or not a text", a.c.NameClaim)
	}
	if a.c.NameClaim != defaultName {
		// A name of another claim may be one that people change by themselves; the
		// subject is not (OpenID Connect Core, 2 and 5.7).
		if raw, there := claims[defaultName]; !there || json.Unmarshal(raw, &op.Subject) != nil || op.Subject == "" {
			return server.Operator{}, fmt.Errorf("its claim %q is not there or not a text, and the name in %q does not tell people apart", defaultName, a.c.NameClaim)
		}
	}
	if raw, there := claims["email_verified"]; there && a.c.NameClaim == "email" {
		if s := string(raw); s != "true" && s != `"true"` {
			return server.Operator{}, errors.New("its email is not verified")
		}
	}
	add := func(r api.Role) {
		if r.Known() && !slices.Contains(op.Roles, r) {
			op.Roles = append(op.Roles, r)
		}
	}
	if a.c.RolesClaim != "" {
		names, err := list(claims, a.c.RolesClaim)
		if err != nil {
			return server.Operator{}, err
		}
		for _, name := range names {
			add(api.Role(name))
		}
	}
	if len(a.c.Groups) > 0 {
		groups, err := list(claims, a.c.GroupsClaim)
		if err != nil {
			return server.Operator{}, err
		}
		for _, group := range groups {
			for _, r := range a.c.Groups[group] {
				add(r)
			}
		}
	}
	slices.Sort(op.Roles)
	return op, nil
}

// list returns a claim that is a list of texts, or one text. Whoever is in no
// group may have none.
func list(claims map[string]json.RawMessage, name string) ([]string, error) {
	raw, there := claims[name]
	if !there || string(raw) == "null" {
		return nil, nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var all []string
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("its claim %q is not a list of texts", name)
	}
	return all, nil
}
