package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/monitor"
	"github.com/sealift/sealift/cmd/sealift/internal/oidc"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
	"github.com/sealift/sealift/image/manifest"
)

// appearances are the forms in which a secret could show: raw, hex, base64 of
// both alphabets wherever it begins in what was encoded, and as Go prints bytes.
func appearances(secret []byte) map[string]string {
	all := map[string]string{
		"raw": string(secret), "hex": hex.EncodeToString(secret), "HEX": strings.ToUpper(hex.EncodeToString(secret)),
		"bytes": strings.Trim(fmt.Sprint(secret), "[]"), "quoted": strings.Trim(fmt.Sprintf("%q", secret), `"`),
	}
	for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
		for offset := range 3 {
			text := enc.EncodeToString(append(make([]byte, offset), secret...))
			// The first and last digits depend on what is before and behind.
			all[fmt.Sprint(name, offset)] = text[(offset*8+5)/6 : len(text)-1]
		}
	}
	return all
}

func TestAppearancesAreFound(t *testing.T) {
	secret := []byte("\x01\xfe 32 bytes of a secret, or so\x80")
	for what, text := range map[string]string{
		"log":       fmt.Sprint("x", string(secret)),
		"struct":    fmt.Sprintf("%v", struct{ B []byte }{secret}),
		"hex":       fmt.Sprintf("%x", append([]byte("before"), secret...)),
		"base64 +1": base64.StdEncoding.EncodeToString([]byte("a" + string(secret) + "b")),
		"base64 +2": base64.URLEncoding.EncodeToString([]byte("ab" + string(secret) + "bcd")),
	} {
		found := false
		for _, form := range appearances(secret) {
			found = found || strings.Contains(text, form)
		}
		if !found {
			t.Errorf("%s: not found in %q", what, text)
		}
	}
}

// locked is a buffer for many goroutines.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// joins mints one token.
type joins struct{ secret string }

func (j joins) Mint(_ context.Context, node string) (*server.Token, error) {
	if node == "" {
		return nil, errors.New("no node")
	}
	return &server.Token{ID: "abcdef", Secret: attest.Secret(j.secret), Expires: time.Now().Add(time.Minute), Server: "https://10.0.0.1:6443", CA: []byte("ca")}, nil
}
func (joins) Revoke(context.Context, string) error { return nil }

// No secret of a whole release, with everything that can go wrong around it,
// shows in the log with debug lines, in the metrics, in what a stranger is
// answered, or in the audit log.
func TestNoSecretShowsAnywhere(t *testing.T) {
	place := newService(t)
	ring, err := keyring.Open(filepath.Join(place.dir, "some"))
	if err != nil {
		t.Fatal(err)
	}
	kek, err := ring.DiskKEK()
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{"key-encryption key": bytes.Clone(kek)}
	release, err := ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	if secrets["release key"], err = release.Bytes(); err != nil {
		t.Fatal(err)
	}
	issuer, err := ring.Issuer(time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	crt, err := issuer.IssueServer([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	if secrets["TLS key"], err = crt.PrivateKey.(*ecdsa.PrivateKey).Bytes(); err != nil {
		t.Fatal(err)
	}
	store, err := sqlstore.Create(t.Context(), filepath.Join(place.dir, "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	l := newLogin(t)
	trust := x509.NewCertPool()
	trust.AddCert(l.srv.Certificate())
	bearer, err := oidc.New(oidc.Config{Issuer: l.srv.URL, Audience: "sealift", CA: trust, RolesClaim: "groups"})
	if err != nil {
		t.Fatal(err)
	}
	good, bad := l.token("u1", "k1", "operator"), l.token("u1", "k2", "operator")
	secrets["token of an operator"], secrets["refused token"] = []byte(good), []byte(bad)
	secrets["its signature"] = []byte(good[strings.LastIndex(good, ".")+1:])
	join := "abcdef." + rand.Text()
	secrets["join token"] = []byte(join[7:])

	ca, err := papertpm.NewCA(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	log := new(locked)
	logger := slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	mon := monitor.New(monitor.Config{Version: "1", Log: logger, Clock: time.Now})
	metered := mon.Store(store)
	srv, err := server.New(server.Config{
		Store: metered, Standing: storetest.Standing(t, store, release), KEK: kek, ReleaseKey: release, Tokens: mon.Tokens(joins{join}), Bearer: bearer, Meter: mon, Log: logger,
		Limits: server.Limits{PerEK: time.Hour, EKBurst: 3},
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) {
			return &attest.Policy{
				ID: "p", Images: []*manifest.Manifest{papertpm.GoodImage()}, Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{papertpm.GoodFirmware()}},
				TPM: attest.TPMPolicy{Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: ca.Root}}, Allowed: []attest.TPMClass{attest.TPMSoftware}},
			}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	kekID, releaseID := srv.KeyIDs()
	mon.Key("disk-kek", kekID)
	mon.Key("release", releaseID)
	ctx, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	listen := func(serve func(net.Listener) error) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := serve(ln); err != nil {
				t.Error(err)
			}
		})
		return "https://" + ln.Addr().String()
	}
	nodes := listen(func(ln net.Listener) error { return srv.ServeNodes(ctx, ln, crt) })
	operators := listen(func(ln net.Listener) error { return srv.ServeOperators(ctx, ln, crt, issuer.Pool()) })
	stop := sync.OnceFunc(func() { end(); wg.Wait() })
	t.Cleanup(stop)

	// The machine, and its release.
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpm, err := papertpm.New(ek)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Equip(tpm); err != nil {
		t.Fatal(err)
	}
	boot, err := papertpm.GoodBoot().OnDisk("6d0f0b6e-3f0c-4a57-9f6d-8d6b6f3f2a11", false)
	if err != nil {
		t.Fatal(err)
	}
	rec := &api.InstallRecord{EKPublic: tpm2.Marshal(tpm.EKPublic), EKCertificates: tpm.EKCertificates, DiskGUID: boot.Disk.GUID, Finished: time.Now()}
	if _, err := srv.Enrol(t.Context(), "line-1", rec); err != nil {
		t.Fatal(err)
	}
	machine, err := tpm.MachineID()
	if err != nil {
		t.Fatal(err)
	}
	node := &client.Client{URL: nodes, CA: issuer.Pool(), ReleaseKey: &release.PublicKey}
	attestOnce := func() (*api.Release, error) {
		s, err := node.Connect(t.Context())
		if err != nil {
			return nil, err
		}
		defer s.Close()
		ch, err := s.Challenge(t.Context(), &api.ChallengeRequest{
			Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: rec.EKPublic, EKCertificates: tpm.EKCertificates, AKPublic: tpm2.Marshal(tpm.AKPublic),
		})
		if err != nil {
			return nil, err
		}
		boot.Measure(tpm)
		ev, err := tpm.Evidence(boot, attest.PurposeUnlock, ch.Nonce, s.Exporter())
		if err != nil {
			return nil, err
		}
		secret, err := tpm.Activate(ch.Credential, ch.Secret)
		if err != nil {
			return nil, err
		}
		proof := attest.ActivationProof(secret, ch.ID, ch.Nonce, tpm2.Marshal(tpm.AKPublic))
		n := len(secrets)
		secrets[fmt.Sprint("activation secret ", n)], secrets[fmt.Sprint("activation proof ", n)] = secret, proof
		r, _, err := s.Evidence(t.Context(), machine, &api.EvidenceRequest{ChallengeID: ch.ID, ActivationProof: proof, Evidence: *ev})
		return r, err
	}
	r, err := attestOnce()
	if err != nil {
		t.Fatal(err)
	}
	transport, err := tpm.Unwrap(r.Key)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := api.OpenSecrets(transport, r)
	if err != nil {
		t.Fatal(err)
	}
	if string(opened.Join.Token) != join {
		t.Fatal("the release has another join token")
	}
	secrets["transport secret"], secrets["disk key"] = bytes.Clone(transport), bytes.Clone(opened.DiskKey)

	// What goes wrong around it.
	var answers bytes.Buffer
	var refused *client.RefusedError
	if _, err := attestOnce(); !errors.As(err, &refused) { // a second release
		t.Fatalf("a second release: %v", err)
	}
	fmt.Fprintln(&answers, refused)
	if err := node.Confirm(t.Context(), make(attest.Secret, api.TransportSecretSize), r.ID, api.OutcomeUnlocked); err == nil {
		t.Fatal("a confirmation without proof was taken")
	} else {
		fmt.Fprintln(&answers, err)
	}
	secrets["proof of the confirmation"] = api.ConfirmProof(transport, r.ID, api.OutcomeUnlocked)
	if err := node.Confirm(t.Context(), transport, r.ID, api.OutcomeUnlocked); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"limit", "beyond"} {
		if _, err := attestOnce(); err == nil {
			t.Fatal(what, ": released")
		} else {
			fmt.Fprintln(&answers, err)
		}
	}
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: issuer.Pool()}}}
	ask := func(method, url, token, body string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(&answers, resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	path := api.PathMachines + "/" + machine.String()
	for _, tt := range []struct {
		method, url, token, body string
		want                     int
	}{
		{"GET", operators + api.PathMachines, good, "", 200},
		{"GET", operators + path, good, "", 200},
		{"GET", operators + api.PathMachines, bad, "", 401},
		{"GET", operators + api.PathMachines, good[:len(good)-10], "", 401},
		{"GET", operators + api.PathAudit, good, "", 403},
		{"POST", operators + path + "/revoke", good, `{"reason":"test"}`, 200},
		{"GET", nodes + api.PathMachines, good, "", 404},
		{"POST", nodes + api.PathEvidence, "", `{"challengeID":"` + hex.EncodeToString(transport) + `"}`, 400},
	} {
		if status := ask(tt.method, tt.url, tt.token, tt.body); status != tt.want {
			t.Errorf("%s %s: HTTP %d, want %d", tt.method, tt.url, status, tt.want)
		}
	}
	stop()

	w := httptest.NewRecorder()
	mon.Handler(nil).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	var chain []byte
	entries := 0
	for e, err := range store.Audit(t.Context(), 1) {
		if err == nil {
			chain, err = audit.AppendLine(chain, e)
		}
		if err != nil {
			t.Fatal(err)
		}
		entries++
	}
	texts := map[string]string{"log": log.String(), "metrics": w.Body.String(), "answers": answers.String(), "audit log": string(chain)}
	// Each is what it is taken for.
	for where, want := range map[string]string{"log": `"msg":"request"`, "metrics": `sealift_audit_events_total{kind="release"} 1`, "answers": "rate-limited", "audit log": `"kind":"release.confirm"`} {
		if !strings.Contains(texts[where], want) {
			t.Errorf("the %s has no %s:\n%s", where, want, texts[where])
		}
	}
	if len(secrets) < 14 || entries < 8 {
		t.Errorf("%d secrets, %d entries", len(secrets), entries)
	}
	for name, secret := range secrets {
		if len(secret) < 16 {
			t.Errorf("%s has %d bytes: it could be anywhere", name, len(secret))
		}
		for form, text := range appearances(secret) {
			for where, all := range texts {
				if strings.Contains(all, text) {
					t.Errorf("the %s shows the %s as %s", where, name, form)
				}
			}
		}
	}
}
