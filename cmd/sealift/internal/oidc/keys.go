package oidc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/sealift/sealift/attest/server"
)

const (
	// keysFresh is how long the issuer's keys are used without asking again: a
	// key that the issuer withdrew is refused after that time.
	keysFresh = 10 * time.Minute
	// keysKept is how long they are used if the issuer does not answer.
	keysKept = time.Hour
	// fetchPause is between two attempts to fetch them, so that tokens with
	// made-up keys do not turn into a flood on the issuer.
	fetchPause = 10 * time.Second
	// fetchTime bounds an attempt.
	fetchTime = 5 * time.Second

	maxDocument = 256 << 10 // of what the issuer answers, bytes
	maxKeys     = 64
	minRSA      = 2048 // bits
)

// keySet is the issuer's keys (RFC 7517). go-oidc's own has no bounds, asks
// the issuer for every token with an unknown key, and uses a key that it saw
// once for ever.
type keySet struct {
	issuer string
	client *http.Client
	clock  func() time.Time

	mu      sync.Mutex
	keys    []jose.JSONWebKey // guarded by mu
	fetched time.Time         // when keys were; guarded by mu
	tried   time.Time         // when the last attempt ended; guarded by mu
	failed  error             // of the last attempt; guarded by mu
	flight  chan struct{}     // closed when the attempt under way ends; nil if there is none; guarded by mu
}

func newKeySet(issuer string, ca *x509.CertPool, clock func() time.Time) *keySet {
	return &keySet{issuer: issuer, clock: clock, client: &http.Client{
		Transport: limited{&http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{RootCAs: ca, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    fetchTime,
			ResponseHeaderTimeout:  fetchTime,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConns:           1,
			IdleConnTimeout:        time.Minute,
		}},
		// A redirection is not followed: it would be another place to trust.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// limited cuts bodies off at maxDocument.
type limited struct{ http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxDocument), resp.Body}
	}
	return resp, err
}

// find returns the issuer's key of that id for that algorithm. It asks the
// issuer if the keys are not fresh or the id is not among them. An error wraps
// server.ErrCannotTell if the issuer could not be asked.
func (k *keySet) find(ctx context.Context, id string, alg jose.SignatureAlgorithm) (crypto.PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for asked := false; ; {
		now := k.clock()
		age := now.Sub(k.fetched)
		var key crypto.PublicKey
		if age < keysKept {
			key = choose(k.keys, id, alg)
		}
		switch {
		case key != nil && age < keysFresh:
			return key, nil
		case !asked && k.flight != nil:
			if err := k.wait(ctx); err != nil {
				return nil, err
			}
			asked = true
			continue
		case !asked && now.Sub(k.tried) >= fetchPause:
			k.fetch(ctx)
			asked = true
			continue
		case key != nil:
			return key, nil // the issuer does not answer
		case k.failed != nil:
			return nil, fmt.Errorf("%w: %w", server.ErrCannotTell, k.failed)
		}
		return nil, errors.New("its issuer has no key with its key id for its algorithm")
	}
}

// check returns why the issuer could not be asked when that was last tried, or
// nil.
func (k *keySet) check() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed
}

// wait waits for the attempt under way. The caller holds mu.
func (k *keySet) wait(ctx context.Context) error {
	flight := k.flight
	k.mu.Unlock()
	defer k.mu.Lock()
	select {
	case <-flight:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", server.ErrCannotTell, ctx.Err())
	}
}

// fetch asks the issuer for its keys, while others wait. The caller holds mu.
func (k *keySet) fetch(ctx context.Context) {
	k.flight = make(chan struct{})
	k.mu.Unlock()
	// Others wait for the result: it does not end with this request.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
	keys, err := k.download(ctx)
	cancel()
	k.mu.Lock()
	k.tried, k.failed = k.clock(), err
	if err == nil {
		k.keys, k.fetched = keys, k.tried
	}
	close(k.flight)
	k.flight = nil
}

// download finds the keys by OpenID Connect Discovery 1.0, 4.
func (k *keySet) download(ctx context.Context) ([]jose.JSONWebKey, error) {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, k.client), k.issuer)
	if err != nil {
		return nil, fmt.Errorf("ask issuer %s: %w", k.issuer, err)
	}
	var about struct {
		Keys string `json:"jwks_uri"`
	}
	if err := provider.Claims(&about); err != nil {
		return nil, fmt.Errorf("ask issuer %s: %w", k.issuer, err)
	}
	if u, err := url.Parse(about.Keys); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("ask issuer %s: its keys are at %q, want an https URL", k.issuer, about.Keys)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, about.Keys, nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask issuer for its keys: %w", err)
	}
	b, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, fmt.Errorf("ask issuer for its keys at %s: %w", about.Keys, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask issuer for its keys at %s: HTTP status %d", about.Keys, resp.StatusCode)
	}
	keys, err := parseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("keys of the issuer at %s: %w", about.Keys, err)
	}
	return keys, nil
}

// parseKeys returns the public keys of a JSON Web Key Set that can sign. Those
// of kinds that we do not know are passed over (RFC 7517 5).
func parseKeys(b []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("they are not a JSON Web Key Set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("there are %d, at most %d are looked at", len(set.Keys), maxKeys)
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if err := json.Unmarshal(raw, &key); err != nil || !key.IsPublic() || key.Use != "" && key.Use != "sig" {
			continue
		}
		if r, ok := key.Key.(*rsa.PublicKey); ok && r.N.BitLen() < minRSA {
			continue
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// choose returns the key of that id that fits the algorithm, or nil. A token
// that names no key fits only if there is one key alone (OpenID Connect Core
// 1.0, 10.1).
func choose(keys []jose.JSONWebKey, id string, alg jose.SignatureAlgorithm) crypto.PublicKey {
	var found []crypto.PublicKey
	for _, k := range keys {
		if (id == "" || k.KeyID == id) && (k.Algorithm == "" || k.Algorithm == string(alg)) && fits(k.Key, alg) {
			found = append(found, k.Key)
		}
	}
	if len(found) == 0 || id == "" && len(found) > 1 {
		return nil
	}
	return found[0]
}

// fits reports whether a key is of the kind that an algorithm is for.
func fits(key crypto.PublicKey, alg jose.SignatureAlgorithm) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(string(alg), "RS") || strings.HasPrefix(string(alg), "PS")
	case *ecdsa.PublicKey:
		return string(alg) == map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[k.Curve.Params().BitSize]
	case ed25519.PublicKey:
		return alg == jose.EdDSA
	}
	return false
}
