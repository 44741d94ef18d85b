package oidc

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// issuer is an OpenID Connect issuer on loopback.
type issuer struct {
	*testing.T
	srv *httptest.Server
	ca  *x509.CertPool

	mu      sync.Mutex
	keys    any            // of the key set; guarded by mu
	down    bool           // guarded by mu
	asked   int            // for the key set; guarded by mu
	about   map[string]any // of discovery; guarded by mu
	now     time.Time      // guarded by mu
	entered chan struct{}  // told of each request for keys, if not nil
	answer  chan struct{}  // waited for before keys are given, if not nil
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{T: t, now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	i.srv = httptest.NewTLSServer(http.HandlerFunc(i.serve))
	t.Cleanup(i.srv.Close)
	i.ca = x509.NewCertPool()
	i.ca.AddCert(i.srv.Certificate())
	i.about = map[string]any{"issuer": i.srv.URL, "jwks_uri": i.srv.URL + "/keys"}
	return i
}

func (i *issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	down, keys, about := i.down, i.keys, i.about
	if r.URL.Path == "/keys" {
		i.asked++
	}
	i.mu.Unlock()
	switch {
	case down:
		http.Error(w, "down", http.StatusBadGateway)
	case r.URL.Path == "/.well-known/openid-configuration":
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(about)
	case r.URL.Path == "/keys":
		if i.entered != nil {
			i.entered <- struct{}{}
			<-i.answer
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(keys)
	case r.URL.Path == "/moved":
		http.Redirect(w, r, "/keys", http.StatusFound)
	default:
		http.NotFound(w, r)
	}
}

func (i *issuer) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func (i *issuer) clock() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

func keySetOf(keys ...jose.JSONWebKey) jose.JSONWebKeySet { return jose.JSONWebKeySet{Keys: keys} }

func public(id string, key crypto.Signer) jose.JSONWebKey {
	return jose.JSONWebKey{KeyID: id, Use: "sig", Key: key.Public()}
}

func newECDSA(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newRSA(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sign makes a token.
func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, id string, claims any) string {
	t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT")
	if id != "" {
		opts = opts.WithHeader("kid", id)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// claims are those of a good token, with changes; a nil value takes one away.
func (i *issuer) claims(changes map[string]any) map[string]any {
	now := i.clock()
	c := map[string]any{
		"iss": i.srv.URL, "aud": "sealift", "sub": "u1", "exp": now.Add(5 * time.Minute).Unix(), "iat": now.Unix(), "roles": []string{"viewer", "approver"},
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func (i *issuer) authenticator(change func(*Config)) *Authenticator {
	i.Helper()
	c := Config{Issuer: i.srv.URL, Audience: "sealift", CA: i.ca, RolesClaim: "roles", Clock: i.clock}
	if change != nil {
		change(&c)
	}
	a, err := New(c)
	if err != nil {
		i.Fatal(err)
	}
	return a
}

func TestTokensNameTheirOperatorAndRoles(t *testing.T) {
	i := newIssuer(t)
	r, e := newRSA(t, 2048), newECDSA(t)
	i.keys = keySetOf(public("r", r), public("e", e))
	groups := func(c *Config) {
		c.RolesClaim, c.GroupsClaim, c.Groups = "", "teams", map[string][]api.Role{"sre": {api.RoleOperator, api.RoleApprover}, "audit": {api.RoleAuditor}}
	}
	for name, tt := range map[string]struct {
		config func(*Config)
		token  string
		want   string
	}{
		"RS256":                          {nil, sign(t, jose.RS256, r, "r", i.claims(nil)), "u1 [approver viewer]"},
		"ES256":                          {nil, sign(t, jose.ES256, e, "e", i.claims(nil)), "u1 [approver viewer]"},
		"several audiences":              {nil, sign(t, jose.ES256, e, "e", i.claims(map[string]any{"aud": []string{"x", "sealift"}})), "u1 [approver viewer]"},
		"one role as a text":             {nil, sign(t, jose.ES256, e, "e", i.claims(map[string]any{"roles": "auditor"})), "u1 [auditor]"},
		"roles of unknown names":         {nil, sign(t, jose.ES256, e, "e", i.claims(map[string]any{"roles": []string{"root", "Operator", "operator ", "viewer", "viewer"}})), "u1 [viewer]"},
		"no roles at all":                {nil, sign(t, jose.ES256, e, "e", i.claims(map[string]any{"roles": nil})), "u1 []"},
		"groups":                         {groups, sign(t, jose.ES256, e, "e", i.claims(map[string]any{"teams": []string{"sre", "audit", "cooks"}})), "u1 [approver auditor operator]"},
		"groups do not read roles":       {groups, sign(t, jose.ES256, e, "e", i.claims(nil)), "u1 []"},
		"the name is another claim":      {func(c *Config) { c.NameClaim = "upn" }, sign(t, jose.ES256, e, "e", i.claims(map[string]any{"upn": "ana@x"})), "ana@x [approver viewer]"},
		"a verified email":               {func(c *Config) { c.NameClaim = "email" }, sign(t, jose.ES256, e, "e", i.claims(map[string]any{"email": "ana@x", "email_verified": true})), "ana@x [approver viewer]"},
		"over for less than the skew":    {nil, sign(t, jose.ES256, e, "e", i.claims(map[string]any{"exp": i.now.Add(-59 * time.Second).Unix()})), "u1 [approver viewer]"},
		"early by less than the skew":    {nil, sign(t, jose.ES256, e, "e", i.claims(map[string]any{"nbf": i.now.Add(59 * time.Second).Unix()})), "u1 [approver viewer]"},
		"an algorithm that was asked of": {func(c *Config) { c.Algorithms = []string{"PS384"} }, sign(t, jose.PS384, r, "r", i.claims(nil)), "u1 [approver viewer]"},
	} {
		t.Run(name, func(t *testing.T) {
			op, err := i.authenticator(tt.config).Authenticate(t.Context(), tt.token)
			if got := fmt.Sprint(op.Name, " ", op.Roles); err != nil || got != tt.want {
				t.Errorf("got %s, %v; want %s", got, err, tt.want)
			}
			// A name that is not the subject may change; the subject does not.
			if want := map[bool]string{false: "u1"}[op.Name == "u1"]; op.Subject != want {
				t.Errorf("the subject is %q, want %q", op.Subject, want)
			}
		})
	}
}

func TestHostileTokensAreRefused(t *testing.T) {
	i := newIssuer(t)
	r, e, other := newRSA(t, 2048), newECDSA(t), newECDSA(t)
	weak := newRSA(t, 1024)
	symmetric := []byte("a key that all share, of 32 bytes")
	i.keys = keySetOf(public("r", r), public("e", e), public("weak", weak),
		jose.JSONWebKey{KeyID: "oct", Key: symmetric}, jose.JSONWebKey{KeyID: "private", Key: other}, jose.JSONWebKey{KeyID: "enc", Use: "enc", Key: other.Public()})
	der, err := x509.MarshalPKIXPublicKey(r.Public())
	if err != nil {
		t.Fatal(err)
	}
	pub := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	enc := base64.RawURLEncoding.EncodeToString
	good := i.claims(nil)
	payload, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	whole := sign(t, jose.ES256, e, "e", good)
	parts := strings.Split(whole, ".")
	ec := func(changes map[string]any) string { return sign(t, jose.ES256, e, "e", i.claims(changes)) }
	var full jose.JSONWebSignature
	jws, err := jose.ParseSignedCompact(whole, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	full = *jws
	own := func() string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: other, KeyID: "mine"}}, &jose.SignerOptions{EmbedJWK: true})
		if err != nil {
			t.Fatal(err)
		}
		jws, err := s.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		token, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	config := func(c *Config) { c.Algorithms = []string{"RS256", "RS512", "ES256", "ES384", "EdDSA"} }
	for name, tt := range map[string]struct{ token, want string }{
		"empty":                                {"", "not a JWT"},
		"no token":                             {"hello", "not a JWT"},
		"alg none":                             {enc([]byte(`{"alg":"none"}`)) + "." + enc(payload) + ".", "not a JWT signed with"},
		"alg None":                             {enc([]byte(`{"alg":"None"}`)) + "." + enc(payload) + ".", "not a JWT signed with"},
		"alg none with a signature":            {enc([]byte(`{"alg":"none","kid":"e"}`)) + "." + parts[1] + "." + parts[2], "not a JWT signed with"},
		"HS256 with the public key, PEM":       {sign(t, jose.HS256, pub, "r", good), "not a JWT signed with"},
		"HS256 with the public key, DER":       {sign(t, jose.HS256, der, "r", good), "not a JWT signed with"},
		"HS256 with the issuer's shared key":   {sign(t, jose.HS256, symmetric, "oct", good), "not a JWT signed with"},
		"an algorithm that is not allowed":     {sign(t, jose.PS256, r, "r", good), "not a JWT signed with"},
		"an algorithm of another kind of key":  {sign(t, jose.ES256, e, "r", good), "no key with its key id"},
		"a short RSA key":                      {sign(t, jose.RS256, weak, "weak", good), "no key with its key id"},
		"a key whose private half is public":   {sign(t, jose.ES256, other, "private", good), "no key with its key id"},
		"a key for encryption":                 {sign(t, jose.ES256, other, "enc", good), "no key with its key id"},
		"an unknown key":                       {sign(t, jose.ES256, other, "nobody", good), "no key with its key id"},
		"another key under a known id":         {sign(t, jose.ES256, other, "e", good), "signature"},
		"no key id":                            {sign(t, jose.ES256, other, "", good), "signature"},
		"its own key in the header":            {own(), "signature"},
		"another payload":                      {parts[0] + "." + enc(bytes.Replace(payload, []byte("viewer"), []byte("auditor"), 1)) + "." + parts[2], "signature"},
		"JSON in place of the compact form":    {full.FullSerialize(), "not a JWT"},
		"a critical header that nobody knows":  {enc([]byte(`{"alg":"ES256","kid":"e","crit":["x"],"x":1}`)) + "." + parts[1] + "." + parts[2], ""},
		"another issuer":                       {ec(map[string]any{"iss": "https://elsewhere.example"}), "another issuer"},
		"the issuer with a slash":              {ec(map[string]any{"iss": i.srv.URL + "/"}), "another issuer"},
		"no issuer":                            {ec(map[string]any{"iss": nil}), "another issuer"},
		"another audience":                     {ec(map[string]any{"aud": "wiki"}), "another audience"},
		"no audience":                          {ec(map[string]any{"aud": nil}), "another audience"},
		"expired":                              {ec(map[string]any{"exp": i.now.Add(-61 * time.Second).Unix()}), "valid until"},
		"no expiry":                            {ec(map[string]any{"exp": nil}), "no exp"},
		"an expiry that is a text":             {ec(map[string]any{"exp": "tomorrow"}), ""},
		"an expiry past all time":              {ec(map[string]any{"exp": 1e300}), ""},
		"not yet valid":                        {ec(map[string]any{"nbf": i.now.Add(61 * time.Second).Unix()}), "its nbf is"},
		"issued in the future":                 {ec(map[string]any{"iat": i.now.Add(time.Hour).Unix()}), "its iat is"},
		"a token of more than the bound":       {ec(map[string]any{"x": strings.Repeat("x", MaxToken)}), "at most"},
		"claims nested without end":            {sign(t, jose.ES256, e, "e", json.RawMessage(`{"iss":"`+i.srv.URL+`","aud":"sealift","sub":"u1","exp":99999999999,"x":`+strings.Repeat(`[`, 4000)+strings.Repeat(`]`, 4000)+`}`)), "none"},
		"roles nested":                         {ec(map[string]any{"roles": []any{[]string{"operator"}}}), `claim "roles" is not a list`},
		"roles in an object":                   {ec(map[string]any{"roles": map[string]any{"operator": true}}), `claim "roles" is not a list`},
		"roles in a claim of another spelling": {ec(map[string]any{"roles": nil, "Roles": []string{"operator"}}), "none"},
		"a name that is no text":               {ec(map[string]any{"sub": []string{"u1"}}), ""},
		"no name":                              {ec(map[string]any{"sub": nil}), `claim "sub"`},
	} {
		t.Run(name, func(t *testing.T) {
			op, err := i.authenticator(config).Authenticate(t.Context(), tt.token)
			if tt.want == "none" { // it is a good token, which may do nothing
				if err != nil || len(op.Roles) > 0 {
					t.Errorf("got %v, %v; want no role", op, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, server.ErrCannotTell) {
				t.Errorf("got %v, %v; want a refusal with %q", op, err, tt.want)
			}
			if op.Name != "" || op.Roles != nil {
				t.Errorf("a refusal gives %+v", op)
			}
			if err != nil && len(tt.token) > 40 && strings.Contains(err.Error(), tt.token[len(tt.token)-20:]) {
				t.Errorf("the error quotes the token: %v", err)
			}
		})
	}
}

func TestAnEmailThatIsNotVerifiedIsNoName(t *testing.T) {
	i := newIssuer(t)
	e := newECDSA(t)
	i.keys = keySetOf(public("e", e))
	a := i.authenticator(func(c *Config) { c.NameClaim = "email" })
	for _, v := range []any{false, "false", 0, "yes"} {
		token := sign(t, jose.ES256, e, "e", i.claims(map[string]any{"email": "boss@x", "email_verified": v}))
		if op, err := a.Authenticate(t.Context(), token); err == nil {
			t.Errorf("email_verified %v: %+v", v, op)
		}
	}
}

func TestANameThatIsNotTheSubjectNeedsOne(t *testing.T) {
	i := newIssuer(t)
	e := newECDSA(t)
	i.keys = keySetOf(public("e", e))
	a := i.authenticator(func(c *Config) { c.NameClaim = "upn" })
	for _, v := range []any{nil, ""} { // what is no text is no subject of a JWT
		token := sign(t, jose.ES256, e, "e", i.claims(map[string]any{"upn": "ana@x", "sub": v}))
		if op, err := a.Authenticate(t.Context(), token); err == nil || !strings.Contains(err.Error(), `claim "sub"`) {
			t.Errorf("sub %v: %+v, %v", v, op, err)
		}
	}
}

func TestKeysAreRotated(t *testing.T) {
	i := newIssuer(t)
	first, second := newECDSA(t), newECDSA(t)
	i.keys = keySetOf(public("1", first))
	a := i.authenticator(nil)
	login := func(key *ecdsa.PrivateKey, id string) error {
		_, err := a.Authenticate(t.Context(), sign(t, jose.ES256, key, id, i.claims(nil)))
		return err
	}
	if err := login(first, "1"); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := login(second, "2"); err == nil || errors.Is(err, server.ErrCannotTell) {
			t.Fatalf("a key that the issuer does not have yet: %v", err)
		}
	}
	if n := i.count(); n != 1 {
		t.Errorf("the issuer was asked %d times within the pause, want once", n)
	}
	i.set(func() { i.keys = keySetOf(public("1", first), public("2", second)); i.now = i.now.Add(fetchPause) })
	if err := login(second, "2"); err != nil {
		t.Errorf("the issuer's new key: %v", err)
	}
	// Nobody shows an unknown key, and still the first one ends.
	i.set(func() { i.keys = keySetOf(public("2", second)) })
	if err := login(first, "1"); err != nil {
		t.Errorf("before the keys are asked for again: %v", err)
	}
	i.set(func() { i.now = i.now.Add(keysFresh) })
	if err := login(first, "1"); err == nil {
		t.Error("a key that the issuer withdrew is still good")
	}
}

func TestAnIssuerThatIsDownOpensNothing(t *testing.T) {
	i := newIssuer(t)
	e := newECDSA(t)
	i.keys = keySetOf(public("e", e))
	a := i.authenticator(nil)
	login := func(id string) error {
		_, err := a.Authenticate(t.Context(), sign(t, jose.ES256, e, id, i.claims(nil)))
		return err
	}
	i.set(func() { i.down = true })
	if err := login("e"); !errors.Is(err, server.ErrCannotTell) {
		t.Errorf("before the issuer was ever reached: %v, want %v", err, server.ErrCannotTell)
	}
	i.set(func() { i.down = false; i.now = i.now.Add(fetchPause) })
	if err := login("e"); err != nil {
		t.Fatalf("the issuer is back: %v", err)
	}
	i.set(func() { i.down = true; i.now = i.now.Add(keysFresh) })
	if err := login("e"); err != nil {
		t.Errorf("a known key while the issuer is down: %v", err)
	}
	if err := login("other"); !errors.Is(err, server.ErrCannotTell) {
		t.Errorf("an unknown key while the issuer is down: %v, want %v", err, server.ErrCannotTell)
	}
	i.set(func() { i.now = i.now.Add(keysKept) })
	if err := login("e"); !errors.Is(err, server.ErrCannotTell) {
		t.Errorf("a key past its time: %v, want %v", err, server.ErrCannotTell)
	}
}

func TestManyAtOnceAskTheIssuerOnce(t *testing.T) {
	i := newIssuer(t)
	e := newECDSA(t)
	i.keys = keySetOf(public("e", e))
	i.entered, i.answer = make(chan struct{}), make(chan struct{})
	a := i.authenticator(nil)
	token := sign(t, jose.ES256, e, "e", i.claims(nil))
	first, gone := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		// Who began the attempt goes away; the others still have its result.
		if _, err := a.Authenticate(first, token); err != nil {
			t.Error(err)
		}
	})
	<-i.entered
	gone()
	for range 10 {
		wg.Go(func() {
			if _, err := a.Authenticate(t.Context(), token); err != nil {
				t.Error(err)
			}
		})
	}
	i.answer <- struct{}{}
	wg.Wait()
	if n := i.count(); n != 1 {
		t.Errorf("the issuer was asked %d times, want once", n)
	}
}

func TestAnIssuerThatAnswersNonsenseOpensNothing(t *testing.T) {
	e := newECDSA(t)
	good := keySetOf(public("e", e))
	many := make([]jose.JSONWebKey, maxKeys+1)
	for n := range many {
		many[n] = public("e", e)
	}
	for name, change := range map[string]func(*issuer){
		"a key set of another kind": func(i *issuer) { i.keys = "keys" },
		"too many keys":             func(i *issuer) { i.keys = keySetOf(many...) },
		"an endless key set":        func(i *issuer) { i.keys = map[string]any{"keys": good.Keys, "x": strings.Repeat("x", maxDocument)} },
		"another issuer":            func(i *issuer) { i.about["issuer"] = "https://elsewhere.example" },
		"keys over plain HTTP": func(i *issuer) {
			i.about["jwks_uri"] = strings.Replace(i.srv.URL, "https", "http", 1) + "/keys"
		},
		"keys at a file":          func(i *issuer) { i.about["jwks_uri"] = "file:///etc/passwd" },
		"keys that moved":         func(i *issuer) { i.about["jwks_uri"] = i.srv.URL + "/moved" },
		"no keys":                 func(i *issuer) { delete(i.about, "jwks_uri") },
		"a certificate of others": func(i *issuer) { i.ca = x509.NewCertPool() },
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(t)
			i.keys = good
			i.srv.Config.ErrorLog = nil
			change(i)
			op, err := i.authenticator(nil).Authenticate(t.Context(), sign(t, jose.ES256, e, "e", i.claims(nil)))
			if !errors.Is(err, server.ErrCannotTell) || op.Name != "" {
				t.Errorf("got %+v, %v; want %v", op, err, server.ErrCannotTell)
			}
		})
	}
}

func TestNewRefusesWhatIsNotSafe(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no issuer":               func(c *Config) { c.Issuer = "" },
		"plain HTTP":              func(c *Config) { c.Issuer = "http://issuer.example" },
		"no audience":             func(c *Config) { c.Audience = "" },
		"no way to a role":        func(c *Config) { c.RolesClaim = "" },
		"a role that is unknown":  func(c *Config) { c.Groups = map[string][]api.Role{"g": {"root"}} },
		"alg none":                func(c *Config) { c.Algorithms = []string{"RS256", "none"} },
		"a shared key":            func(c *Config) { c.Algorithms = []string{"HS256"} },
		"an algorithm in letters": func(c *Config) { c.Algorithms = []string{"rs256"} },
		"a skew of an hour":       func(c *Config) { c.Skew = time.Hour },
		"a negative skew":         func(c *Config) { c.Skew = -1 },
	} {
		c := Config{Issuer: "https://issuer.example", Audience: "sealift", RolesClaim: "roles"}
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// The token is made by openssl and put together by hand, so that the library
// that checks is not the one that signed.
func TestATokenSignedByOpenSSL(t *testing.T) {
	tool, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	i := newIssuer(t)
	key := newRSA(t, 2048)
	i.keys = keySetOf(public("r", key))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/key.pem"
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(i.claims(nil))
	if err != nil {
		t.Fatal(err)
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","kid":"r"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	cmd := exec.Command(tool, "dgst", "-sha256", "-sign", file)
	cmd.Stdin = strings.NewReader(signed)
	sig, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	op, err := i.authenticator(nil).Authenticate(t.Context(), signed+"."+base64.RawURLEncoding.EncodeToString(sig))
	if err != nil || op.Name != "u1" || !slices.Contains(op.Roles, api.RoleApprover) {
		t.Errorf("got %+v, %v", op, err)
	}
}

func FuzzTokens(f *testing.F) {
	key := newECDSA(f)
	a, err := New(Config{Issuer: "https://issuer.example", Audience: "sealift", RolesClaim: "roles"})
	if err != nil {
		f.Fatal(err)
	}
	a.keys.keys, a.keys.fetched, a.keys.tried = []jose.JSONWebKey{public("e", key)}, time.Now().Add(1000*time.Hour), time.Now().Add(1000*time.Hour)
	f.Add(sign(f, jose.ES256, key, "e", map[string]any{"iss": "https://issuer.example", "aud": "sealift", "exp": 1}))
	f.Add("e30.e30.e30")
	f.Add(`{"payload":"e30","signatures":[]}`)
	f.Fuzz(func(t *testing.T, token string) {
		if op, err := a.Authenticate(t.Context(), token); err == nil {
			t.Errorf("accepted as %+v", op)
		}
	})
}

func FuzzKeySets(f *testing.F) {
	b, err := json.Marshal(keySetOf(public("e", newECDSA(f))))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"oct","k":"AA"},{"kty":"RSA","n":"","e":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseKeys(b)
		if err != nil {
			return
		}
		for _, alg := range known() {
			choose(keys, "e", alg)
			choose(keys, "", alg)
		}
	})
}
