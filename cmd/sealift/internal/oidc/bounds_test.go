package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

func TestTimesThatAreNoneAreRefused(t *testing.T) {
	i := newIssuer(t)
	e := newECDSA(t)
	i.keys = keySetOf(public("e", e))
	a := i.authenticator(nil)
	text := fmt.Sprintf(`"%d"`, i.now.Add(time.Minute).Unix())
	for name, tt := range map[string]struct {
		claim, value string
		want         string // empty: it is good
	}{
		"an exp that is a number as text":   {"exp", text, "its exp is not a date"},
		"an exp in milliseconds":            {"exp", fmt.Sprint(i.now.Add(time.Minute).UnixMilli()), "its exp is not a date"},
		"the last exp that is taken":        {"exp", "100000000000", ""},
		"an exp with a fraction":            {"exp", fmt.Sprintf("%d.5", i.now.Unix()), ""},
		"an nbf that is a number as text":   {"nbf", text, "its nbf is not a date"},
		"an nbf that is null":               {"nbf", "null", "its nbf is not a date"},
		"an iat that is a number as text":   {"iat", text, "its iat is not a date"},
		"a name that is empty":              {"sub", `""`, `claim "sub"`},
		"groups of a kind that nobody uses": {"groups", `{"a":1}`, ""},
	} {
		token := sign(t, jose.ES256, e, "e", i.claims(map[string]any{tt.claim: json.RawMessage(tt.value)}))
		op, err := a.Authenticate(t.Context(), token)
		if tt.want == "" && (err != nil || op.Name != "u1") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %+v, %v; want %q", name, op, err, tt.want)
		}
	}
}

func TestGroupsAreReadFromTheirClaimAlone(t *testing.T) {
	i := newIssuer(t)
	e := newECDSA(t)
	i.keys = keySetOf(public("e", e))
	a := i.authenticator(func(c *Config) { c.RolesClaim, c.Groups = "", map[string][]api.Role{"sre": {api.RoleOperator}} })
	op, err := a.Authenticate(t.Context(), sign(t, jose.ES256, e, "e", i.claims(map[string]any{"groups": []string{"sre"}})))
	if err != nil || len(op.Roles) != 1 || op.Roles[0] != api.RoleOperator {
		t.Errorf("the claim that is read unless another is named: %+v, %v", op, err)
	}
	op, err = a.Authenticate(t.Context(), sign(t, jose.ES256, e, "e", i.claims(map[string]any{"groups": map[string]any{"sre": true}})))
	if err == nil || !strings.Contains(err.Error(), `claim "groups" is not a list`) || op.Name != "" {
		t.Errorf("an object: %+v, %v", op, err)
	}
}

func TestAnEmailCountsUnlessItIsSaidToBeUnverified(t *testing.T) {
	i := newIssuer(t)
	e := newECDSA(t)
	i.keys = keySetOf(public("e", e))
	byEmail := func(c *Config) { c.NameClaim = "email" }
	for name, tt := range map[string]struct {
		config   func(*Config)
		verified any
		want     string
	}{
		"nothing is said":            {byEmail, nil, "ana@x"},
		"it is said as text":         {byEmail, "true", "ana@x"},
		"the name is another claim":  {nil, false, "u1"},
		"the name is of a directory": {func(c *Config) { c.NameClaim = "upn" }, false, "ana"},
	} {
		token := sign(t, jose.ES256, e, "e", i.claims(map[string]any{"email": "ana@x", "upn": "ana", "email_verified": tt.verified}))
		if op, err := i.authenticator(tt.config).Authenticate(t.Context(), token); err != nil || op.Name != tt.want {
			t.Errorf("%s: got %+v, %v; want %s", name, op, err, tt.want)
		}
	}
}

func TestIssuersThatAreNoPlainHTTPSURLAreRefused(t *testing.T) {
	for name, issuer := range map[string]string{
		"what is no URL": "https://[", "no host": "https:///path", "a user": "https://ana@issuer.example",
		"a query": "https://issuer.example?x=1", "a fragment": "https://issuer.example#x",
	} {
		if _, err := New(Config{Issuer: issuer, Audience: "sealift", RolesClaim: "roles"}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := New(Config{Issuer: "https://issuer.example/realm", Audience: "sealift", RolesClaim: "roles", Skew: MaxSkew}); err != nil {
		t.Error(err)
	}
}

func TestAKeyIsTheOneThatATokenNames(t *testing.T) {
	i := newIssuer(t)
	first, second, r := newECDSA(t), newECDSA(t), newRSA(t, 2048)
	forOne := public("for one", r)
	forOne.Algorithm = "RS512"
	unmarked := public("unmarked", first)
	unmarked.Use = ""
	many := make([]jose.JSONWebKey, 0, maxKeys)
	many = append(many, public("1", first), public("2", second), forOne, unmarked)
	for len(many) < maxKeys {
		many = append(many, public(fmt.Sprint(len(many)), r))
	}
	i.keys = keySetOf(many...)
	a := i.authenticator(func(c *Config) { c.Algorithms = []string{"ES256", "RS256", "RS512"} })
	for name, tt := range map[string]struct {
		token string
		ok    bool
	}{
		"no key is named, and there are several":  {sign(t, jose.ES256, first, "", i.claims(nil)), false},
		"a key is for the algorithm":              {sign(t, jose.RS512, r, "for one", i.claims(nil)), true},
		"a key is for another algorithm":          {sign(t, jose.RS256, r, "for one", i.claims(nil)), false},
		"a key does not say what it is for":       {sign(t, jose.ES256, first, "unmarked", i.claims(nil)), true},
		"as many keys as are looked at: the last": {sign(t, jose.RS256, r, fmt.Sprint(maxKeys-1), i.claims(nil)), true},
	} {
		if op, err := a.Authenticate(t.Context(), tt.token); (err == nil) != tt.ok {
			t.Errorf("%s: got %+v, %v", name, op, err)
		}
	}
}

func TestTheIssuerIsAskedAgainWhenItsKeysAreNotFresh(t *testing.T) {
	i := newIssuer(t)
	e := newECDSA(t)
	i.keys = keySetOf(public("e", e))
	a := i.authenticator(nil)
	login := func() error {
		_, err := a.Authenticate(t.Context(), sign(t, jose.ES256, e, "e", i.claims(nil)))
		return err
	}
	if err := a.Check(t.Context()); err != nil {
		t.Errorf("before the issuer was asked: %v", err)
	}
	for _, step := range []struct {
		after time.Duration
		down  bool
		asked int // times, altogether
		ok    bool
	}{
		{0, false, 1, true},
		{keysFresh - 1, false, 1, true},
		{1, false, 2, true},
		{keysFresh, true, 2, true}, // it does not get as far as the keys
		{keysKept - keysFresh - 1, true, 2, true},
		{1, true, 2, false},
		{fetchPause, false, 3, true},
	} {
		i.set(func() { i.now, i.down = i.now.Add(step.after), step.down })
		err := login()
		if (err == nil) != step.ok || err != nil && !errors.Is(err, server.ErrCannotTell) || i.count() != step.asked {
			t.Errorf("%+v: asked %d times, %v", step, i.count(), err)
		}
		if err := a.Check(t.Context()); (err != nil) != step.down {
			t.Errorf("%+v: the check says %v", step, err)
		}
	}
}

func TestWhoGoesAwayDoesNotWaitForTheIssuer(t *testing.T) {
	i := newIssuer(t)
	e := newECDSA(t)
	i.keys = keySetOf(public("e", e))
	i.entered, i.answer = make(chan struct{}), make(chan struct{})
	a := i.authenticator(nil)
	token := sign(t, jose.ES256, e, "e", i.claims(nil))
	first := make(chan error)
	go func() {
		_, err := a.Authenticate(t.Context(), token)
		first <- err
	}()
	<-i.entered
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Authenticate(gone, token); !errors.Is(err, server.ErrCannotTell) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(i.answer)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// The key set itself is right in each case: only where it comes from is not.
func TestKeysThatDoNotComeFromTheIssuerOpenNothing(t *testing.T) {
	e := newECDSA(t)
	set := keySetOf(public("e", e))
	give := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			if err := json.NewEncoder(w).Encode(set); err != nil {
				t.Error(err)
			}
		}
	}
	plain := httptest.NewServer(give(http.StatusOK))
	t.Cleanup(plain.Close)
	for name, change := range map[string]func(*issuer) (uri string){
		"over plain HTTP": func(*issuer) string { return plain.URL },
		"with an error": func(i *issuer) string {
			i.srv.Config.Handler = over(i, "/failed", give(http.StatusInternalServerError))
			return i.srv.URL + "/failed"
		},
		"with another success": func(i *issuer) string {
			i.srv.Config.Handler = over(i, "/partial", give(http.StatusPartialContent))
			return i.srv.URL + "/partial"
		},
		"from nobody":     func(*issuer) string { return "https://127.0.0.1:1/keys" },
		"from no URL":     func(*issuer) string { return "https://[" },
		"from no host":    func(*issuer) string { return "https:///keys" },
		"from a relative": func(*issuer) string { return "/keys" },
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(t)
			i.keys = set
			uri := change(i)
			i.about["jwks_uri"] = uri
			op, err := i.authenticator(nil).Authenticate(t.Context(), sign(t, jose.ES256, e, "e", i.claims(nil)))
			if !errors.Is(err, server.ErrCannotTell) || op.Name != "" {
				t.Errorf("got %+v, %v; want %v", op, err, server.ErrCannotTell)
			}
		})
	}
}

// over serves a path with h, and the rest as the issuer does.
func over(i *issuer, path string, h http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(path, h)
	mux.HandleFunc("/", i.serve)
	return mux
}
