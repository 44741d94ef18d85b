package sign

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/sealift/sealift/image/sign/bundle"
)

// vault answers as the transit engine of Vault and OpenBao does, for one key.
// forge makes it answer with what is no signature.
func vault(t *testing.T, key *ecdsa.PrivateKey, forge bool) *httptest.Server {
	t.Helper()
	pub := string(publicPEM(t, key.Public()))
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, r *http.Request, data map[string]any) {
		if got := r.Header.Get("X-Vault-Token"); got != "the token" {
			http.Error(w, `{"errors":["permission denied"]}`, http.StatusForbidden)
			return
		}
		if err := json.NewEncoder(w).Encode(map[string]any{"data": data}); err != nil {
			t.Error(err)
		}
	}
	mux.HandleFunc("GET /v1/transit/keys/image", func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, map[string]any{
			"latest_version": 1, "type": "ecdsa-p256",
			"keys": map[string]any{"1": map[string]any{"name": "P-256", "public_key": pub}},
		})
	})
	mux.HandleFunc("PUT /v1/transit/sign/image/sha2-256", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Input     string
			Prehashed bool
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || !in.Prehashed {
			http.Error(w, `{"errors":["bad request"]}`, http.StatusBadRequest)
			return
		}
		digest, err := base64.StdEncoding.DecodeString(in.Input)
		if err != nil {
			t.Error(err)
		}
		sig, err := ecdsa.SignASN1(rand.Reader, key, digest)
		if err != nil {
			t.Error(err)
		}
		if forge {
			sig[len(sig)-1] ^= 1
		}
		answer(w, r, map[string]any{"signature": "vault:v1:" + base64.StdEncoding.EncodeToString(sig)})
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	t.Setenv("VAULT_ADDR", s.URL)
	t.Setenv("VAULT_TOKEN", "the token")
	return s
}

// signs holds that a Signer's bundles verify with its public key.
func signs(t *testing.T, s *Signer) {
	t.Helper()
	pub, err := s.PublicPEM()
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Sign(t.Context(), []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	if err := bundle.Verify([]byte("message"), b, pub); err != nil {
		t.Error(err)
	}
	if b, err = s.SignStatement(t.Context(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if got, err := bundle.VerifyStatement(b, pub); err != nil || string(got) != "{}" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestAKeyOfAKeyManagementServiceSigns(t *testing.T) {
	key := newKey(t)
	vault(t, key, false)
	s, err := Load(t.Context(), "hashivault://image", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Public().Equal(key.Public()) {
		t.Error("it is another key")
	}
	signs(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestASignatureThatDoesNotVerifyIsNotHandedOut(t *testing.T) {
	vault(t, newKey(t), true)
	s, err := Load(t.Context(), "hashivault://image", nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := s.Sign(t.Context(), []byte("message")); err == nil || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("got %s, %v", b, err)
	}
}

func TestAServiceThatRefusesIsAnErrorAtOnce(t *testing.T) {
	vault(t, newKey(t), false)
	t.Setenv("VAULT_TOKEN", "another")
	if _, err := Load(t.Context(), "hashivault://image", nil); err == nil || strings.Contains(err.Error(), "another") {
		t.Errorf("got %v", err)
	}
}

func TestAnEncryptedFileAsksForItsPassword(t *testing.T) {
	// As "cosign generate-key-pair" does it.
	private, _, err := cryptoutils.GeneratePEMEncodedECDSAKeyPair(elliptic.P256(), cryptoutils.StaticPasswordFunc([]byte("right")))
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(private); block == nil || !strings.Contains(block.Type, "ENCRYPTED") {
		t.Fatalf("block is %v", block)
	}
	path := filepath.Join(t.TempDir(), "cosign.key")
	if err := os.WriteFile(path, private, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Load(t.Context(), path, func() ([]byte, error) { return []byte("right"), nil })
	if err != nil {
		t.Fatal(err)
	}
	signs(t, s)
	if _, err := Load(t.Context(), path, func() ([]byte, error) { return []byte("wrong"), nil }); err == nil {
		t.Error("a wrong password opens it")
	}
	if _, err := Load(t.Context(), path, nil); err == nil || !strings.Contains(err.Error(), "password") {
		t.Errorf("without a password: %v", err)
	}
}

func TestReferencesThatNameNoKeyAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ ref, want string }{
		"nothing":            {"", "no key reference"},
		"no file":            {filepath.Join(t.TempDir(), "none"), "no such file"},
		"unknown service":    {"otherkms://key", "hashivault://"},
		"bad key of service": {"hashivault://a/b", "hashivault://<key>"},
		"token without name": {"pkcs11:object=image?module-path=/lib/x.so", "no token is named"},
	} {
		if _, err := Load(t.Context(), c.ref, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want one with %q", name, err, c.want)
		}
	}
}

func TestPKCS11URIs(t *testing.T) {
	for name, c := range map[string]struct{ uri, want string }{
		"all":             {"pkcs11:token=my%20token;object=image;type=private?module-path=/lib/x.so&pin-source=file:/run/pin", `token "my token", object "image"`},
		"zero byte":       {"pkcs11:slot-id=3;object=%00?module-path=/lib/x.so", ""},
		"by slot":         {"pkcs11:slot-id=3;id=%01%ff?module-path=/lib/x.so", `slot "3", id "01ff"`},
		"no module":       {"pkcs11:token=t;object=o", ""},
		"relative module": {"pkcs11:token=t;object=o?module-path=x.so", ""},
		"no key":          {"pkcs11:token=t?module-path=/lib/x.so", ""},
		"PIN in it":       {"pkcs11:token=t;object=o?module-path=/lib/x.so&pin-value=1234", ""},
		"unknown":         {"pkcs11:token=t;object=o;color=red?module-path=/lib/x.so", ""},
		"twice":           {"pkcs11:token=t;token=u;object=o?module-path=/lib/x.so", ""},
		"public key":      {"pkcs11:token=t;object=o;type=public?module-path=/lib/x.so", ""},
		"no value":        {"pkcs11:token;object=o?module-path=/lib/x.so", ""},
		"bad escape":      {"pkcs11:token=%zz;object=o?module-path=/lib/x.so", ""},
		"another scheme":  {"pkcs12:token=t", ""},
	} {
		u, err := parseTokenURI(c.uri, classPrivate)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%s: accepted as %v", name, u)
		case c.want == "" && strings.Contains(err.Error(), "1234"):
			t.Errorf("%s: the error has the PIN in it: %v", name, err)
		case c.want != "" && (err != nil || u.String() != c.want):
			t.Errorf("%s: got %v, %v, want %s", name, u, err, c.want)
		}
	}
}

func FuzzTokenURI(f *testing.F) {
	f.Add("pkcs11:token=t;slot-id=1;object=o;id=%01?module-path=/lib/x.so&pin-source=file:/run/pin")
	f.Fuzz(func(t *testing.T, s string) {
		if u, err := parseTokenURI(s, classPrivate); err == nil && (u.Module == "" || u.Object == "" && u.ID == nil) {
			t.Errorf("%q names no key: %+v", s, u)
		}
	})
}

func TestAKeyFileSignsTheSameTwice(t *testing.T) {
	private, _, err := cryptoutils.GeneratePEMEncodedECDSAKeyPair(elliptic.P256(), cryptoutils.SkipPassword)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.key")
	if err := os.WriteFile(path, private, 0o600); err != nil {
		t.Fatal(err)
	}
	var bundles [2]string
	for i := range bundles {
		s, err := Load(t.Context(), path, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Sign(t.Context(), []byte("message"))
		if err != nil {
			t.Fatal(err)
		}
		bundles[i] = string(b)
	}
	if bundles[0] != bundles[1] {
		t.Errorf("got %s and %s", bundles[0], bundles[1])
	}
}
