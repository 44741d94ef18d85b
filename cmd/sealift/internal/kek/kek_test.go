package kek

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/server"
)

// transitDouble answers as the transit engine does, for one key of type aes256-gcm96.
type transitDouble struct {
	mu   sync.Mutex
	key  [32]byte
	give []byte // Optional; what any decryption gives instead
}

func newTransit(t *testing.T) *transitDouble {
	t.Helper()
	v := &transitDouble{}
	if _, err := rand.Read(v.key[:]); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, data map[string]any) {
		if err := json.NewEncoder(w).Encode(map[string]any{"data": data}); err != nil {
			t.Error(err)
		}
	}
	handle := func(verb string, do func(aead cipher.AEAD, in map[string]string) (map[string]any, error)) {
		mux.HandleFunc("PUT /v1/transit/"+verb+"/fleet-kek", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Vault-Token") != "the token" {
				http.Error(w, `{"errors":["permission denied"]}`, http.StatusForbidden)
				return
			}
			var in map[string]string
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				t.Error(err)
			}
			v.mu.Lock()
			defer v.mu.Unlock()
			block, err := aes.NewCipher(v.key[:])
			if err != nil {
				t.Error(err)
			}
			aead, err := cipher.NewGCMWithRandomNonce(block)
			if err != nil {
				t.Error(err)
			}
			data, err := do(aead, in)
			if err != nil {
				http.Error(w, `{"errors":["`+err.Error()+`"]}`, http.StatusBadRequest)
				return
			}
			answer(w, data)
		})
	}
	handle("encrypt", func(aead cipher.AEAD, in map[string]string) (map[string]any, error) {
		plain, err := base64.StdEncoding.DecodeString(in["plaintext"])
		if err != nil {
			return nil, err
		}
		return map[string]any{"ciphertext": "vault:v1:" + base64.StdEncoding.EncodeToString(aead.Seal(nil, nil, plain, nil))}, nil
	})
	handle("decrypt", func(aead cipher.AEAD, in map[string]string) (map[string]any, error) {
		text, ok := strings.CutPrefix(in["ciphertext"], "vault:v1:")
		box, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil {
			return nil, errors.New("invalid ciphertext")
		}
		plain, err := aead.Open(nil, nil, box, nil)
		if err != nil {
			return nil, errors.New("cipher: message authentication failed")
		}
		if v.give != nil {
			plain = v.give
		}
		return map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plain)}, nil
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	t.Setenv("VAULT_ADDR", s.URL)
	t.Setenv("VAULT_TOKEN", "the token")
	t.Setenv("VAULT_MAX_RETRIES", "0")
	return v
}

const transitURI = "hashivault://fleet-kek"

func TestAWrappedKeyOpensWithTheServiceThatWrappedIt(t *testing.T) {
	newTransit(t)
	path := filepath.Join(t.TempDir(), "kek.wrapped")
	id, err := Wrap(t.Context(), path, transitURI, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := Source{URI: transitURI, Wrapped: path}.Open(t.Context(), nil)
	if err != nil || len(key) != server.KEKSize || server.KEKID(key) != id {
		t.Fatalf("got %d bytes, %v", len(key), err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{string(key), hex.EncodeToString(key), base64.StdEncoding.EncodeToString(key)} {
		if bytes.Contains(b, []byte(form)) {
			t.Error("the key is in the file")
		}
	}
	if _, err := Wrap(t.Context(), path, transitURI, nil, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(b, again) {
		t.Error("the file was overwritten")
	}
	// The key of a file goes over to the service.
	file := filepath.Join(t.TempDir(), "disk-kek.key")
	if id, err = Init(file); err != nil {
		t.Fatal(err)
	}
	if key, err = ReadFile(file); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(t.TempDir(), "moved")
	if got, err := Wrap(t.Context(), moved, transitURI, key, nil); err != nil || got != id {
		t.Fatalf("%s, %v", got, err)
	}
	if got, err := (Source{URI: transitURI, Wrapped: moved}).Open(t.Context(), nil); err != nil || !bytes.Equal(got, key) {
		t.Errorf("another key, %v", err)
	}
}

func TestAWrappedKeyThatDoesNotOpenIsAnErrorThatSaysWhy(t *testing.T) {
	v := newTransit(t)
	dir := t.TempDir()
	path, other := filepath.Join(dir, "kek.wrapped"), filepath.Join(dir, "other.wrapped")
	for _, p := range []string{path, other} {
		if _, err := Wrap(t.Context(), p, transitURI, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var w, o wrapped
	for p, into := range map[string]*wrapped{path: &w, other: &o} {
		b, err := os.ReadFile(p)
		if err != nil || json.Unmarshal(b, into) != nil {
			t.Fatal(err)
		}
	}
	source := Source{URI: transitURI, Wrapped: path}
	for name, tt := range map[string]struct {
		spoil func(t *testing.T)
		want  string
	}{
		"the service is down":       {func(t *testing.T) { t.Setenv("VAULT_ADDR", "http://127.0.0.1:1") }, "connection refused"},
		"the service is not named":  {func(t *testing.T) { t.Setenv("VAULT_ADDR", "") }, "VAULT_ADDR"},
		"the service refuses":       {func(t *testing.T) { t.Setenv("VAULT_TOKEN", "another") }, "permission denied"},
		"the service has other key": {func(t *testing.T) { v.set(t, func() { v.key[0] ^= 1 }) }, "authentication failed"},
		"it gives another key":      {func(t *testing.T) { v.set(t, func() { v.give = bytes.Repeat([]byte{7}, 32) }) }, "the file is of key " + w.ID},
		"it gives a short key":      {func(t *testing.T) { v.set(t, func() { v.give = []byte("short") }) }, "got 5 bytes, want 32"},
		"the file's ciphertext is another's": {func(t *testing.T) {
			swapped := w
			swapped.Ciphertext = o.Ciphertext
			put(t, path, &swapped)
		}, "got key " + o.ID + ", the file is of key " + w.ID},
		"the file's ciphertext is altered": {func(t *testing.T) {
			altered := w
			altered.Ciphertext = bytes.Clone(w.Ciphertext)
			altered.Ciphertext[12] ^= 1
			put(t, path, &altered)
		}, "400"},
		"the file is of a newer version": {func(t *testing.T) {
			newer := w
			newer.Version = 2
			put(t, path, &newer)
		}, "of version 2, want"},
		"the file is of another type": {func(t *testing.T) {
			other := w
			other.Type = "sealift release key"
			put(t, path, &other)
		}, `it is "sealift release key" of version 1`},
		"the file names no key": {func(t *testing.T) {
			none := w
			none.ID = ""
			put(t, path, &none)
		}, "id or ciphertext is missing"},
		"the file has no ciphertext": {func(t *testing.T) {
			none := w
			none.Ciphertext = nil
			put(t, path, &none)
		}, "id or ciphertext is missing"},
		"the file has a field that nobody knows": {func(t *testing.T) {
			write(t, path, bytes.Replace(good, []byte("{"), []byte(`{"key":"00",`), 1))
		}, "unknown field"},
		"the file is cut":          {func(t *testing.T) { write(t, path, good[:20]) }, "EOF"},
		"the file has more":        {func(t *testing.T) { write(t, path, append(bytes.Clone(good), "{}"...)) }, "data after the document"},
		"the file is a plain key":  {func(t *testing.T) { write(t, path, []byte(strings.Repeat("00", 32))) }, "wrapped key-encryption key"},
		"the file is gone":         {func(t *testing.T) { write(t, path, nil); os.Remove(path) }, "no such file"},
		"others can read the file": {func(t *testing.T) { chmod(t, path, 0o644) }, "mode is 0644, want 0600"},
	} {
		t.Run(name, func(t *testing.T) {
			write(t, path, good)
			tt.spoil(t)
			key, err := source.Open(t.Context(), nil)
			if err == nil || key != nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	write(t, path, good)
	if _, err := source.Open(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// set changes the double until the test ends.
func (v *transitDouble) set(t *testing.T, f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	key := v.key
	f()
	t.Cleanup(func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.key, v.give = key, nil
	})
}

func put(t *testing.T, path string, w *wrapped) {
	t.Helper()
	b, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, b)
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, 0o600)
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// A service that cannot give back what it encrypted must be found out before
// anything is under the key.
func TestWrapProvesTheKeyBeforeItWrites(t *testing.T) {
	v := newTransit(t)
	v.set(t, func() { v.give = bytes.Repeat([]byte{7}, 32) })
	path := filepath.Join(t.TempDir(), "kek.wrapped")
	if _, err := Wrap(t.Context(), path, transitURI, nil, nil); err == nil || !strings.Contains(err.Error(), "does not open") {
		t.Errorf("got %v", err)
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != 0 {
		t.Errorf("there are %v, %v", all, err)
	}
}

func TestAKeyInAFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk-kek.key")
	id, err := Init(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("got %v, %v", info, err)
	}
	key, err := Source{File: path}.Open(t.Context(), nil)
	if err != nil || server.KEKID(key) != id {
		t.Errorf("got %s, %v", key, err)
	}
	if _, err := Init(path); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "write key-encryption key "+path) {
		t.Errorf("a second time: %v", err)
	}
	if _, err := Init(filepath.Join(dir, "none", "disk-kek.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("into a directory that is not there: %v", err)
	}
	if _, err := (Source{File: dir}).Open(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
		t.Errorf("there are %v, %v", all, err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		b    []byte
		mode os.FileMode
		want string
	}{
		"others can read it":                  {good, 0o640, "mode is 0640, want 0600"},
		"others can write it":                 {good, 0o602, "mode is 0602, want 0600"},
		"it is short":                         {good[2:], 0o600, "got 62 characters"},
		"it is not hex":                       {append([]byte("zz"), good[2:]...), 0o600, "not hex"},
		"it is empty":                         {nil, 0o600, "got 0 characters"},
		"it is as large as what is looked at": {make([]byte, maxFile), 0o600, "got 65536 characters"},
		"it is too large":                     {make([]byte, maxFile+1), 0o600, "not a regular file of at most 65536 bytes"},
	} {
		write(t, path, tt.b)
		chmod(t, path, tt.mode)
		_, err := Source{File: path}.Open(t.Context(), nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(tt.b) > 2 && bytes.Contains([]byte(err.Error()), bytes.TrimSpace(good[2:])) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestASourceNamesOneKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk-kek.key")
	if _, err := Init(path); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]Source{
		"nothing":            {},
		"two":                {File: "a", URI: "hashivault://k", Wrapped: "w"},
		"a file and a URI":   {File: path, URI: "hashivault://k"},
		"a file and another": {File: path, Wrapped: "w"},
		"no file":            {URI: "hashivault://k"},
		"no URI":             {Wrapped: "w"},
	} {
		if err := s.Check(); err == nil {
			t.Errorf("%s is taken", name)
		}
		if _, err := s.Open(t.Context(), nil); err == nil {
			t.Errorf("%s is opened", name)
		}
	}
}

func TestURIsThatNameNoKeyAreRefused(t *testing.T) {
	newTransit(t)
	dir := t.TempDir()
	for uri, want := range map[string]string{
		"": "names no key", "fleet-kek": "names no key", "hashivault:fleet-kek": "want hashivault://KEY", "hashivault://": "want hashivault://KEY",
		"hashivault://a/b": "want hashivault://KEY", "hashivault://../sys": "want hashivault://KEY", "vault://k": "is not known", "file:///etc/kek": "is not known",
		"awskms://alias": "want awskms", "awskms:alias/x": "want awskms", "awskms://host/": "want awskms", "gcpkms://projects/p": "want gcpkms",
		"gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1": "want gcpkms",
		"azurekms://vault": "want azurekms", "azurekms://vault.example/key": "want azurekms", "pkcs11:token=t": "", "pkcs11:token=t;object=o;type=private?module-path=/x": "",
		"pkcs11:token=t;object=o?module-path=/x&pin-value=1234": "", strings.Repeat("a", 5000) + ":b": "names no key", "hashivault://" + strings.Repeat("a", 5000): "names no key",
	} {
		_, err := openCipher(t.Context(), uri, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: got %v, want %q", uri, err, want)
		} else if strings.Contains(err.Error(), "1234") || len(err.Error()) > 500 {
			t.Errorf("%.40s: %v", uri, err)
		}
		if _, err := Wrap(t.Context(), filepath.Join(dir, "kek.wrapped"), uri, nil, nil); err == nil {
			t.Errorf("%.40s wraps", uri)
		}
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 0 {
		t.Errorf("there are %v, %v", all, err)
	}
}

func TestTheTokenOfVaultIsFoundWhereItsToolsKeepIt(t *testing.T) {
	home := t.TempDir()
	clear := func(t *testing.T) {
		for _, name := range []string{"VAULT_ADDR", "BAO_ADDR", "VAULT_TOKEN", "BAO_TOKEN"} {
			t.Setenv(name, "")
		}
		t.Setenv("HOME", home)
	}
	wrap := func(t *testing.T) error {
		_, err := Wrap(t.Context(), filepath.Join(t.TempDir(), "kek.wrapped"), "openbao://fleet-kek", nil, nil)
		return err
	}
	newTransit(t)
	address := os.Getenv("VAULT_ADDR")
	for name, tt := range map[string]struct {
		set  func(t *testing.T)
		want string // empty: it works
	}{
		"OpenBao's variables": {func(t *testing.T) { t.Setenv("BAO_ADDR", address); t.Setenv("BAO_TOKEN", "the token") }, ""},
		"a file": {func(t *testing.T) {
			t.Setenv("VAULT_ADDR", address)
			write(t, filepath.Join(home, ".vault-token"), []byte("the token\n"))
		}, ""},
		"no file": {func(t *testing.T) { t.Setenv("VAULT_ADDR", address); os.Remove(filepath.Join(home, ".vault-token")) }, "VAULT_TOKEN or BAO_TOKEN is not set"},
		"no home": {func(t *testing.T) { t.Setenv("VAULT_ADDR", address); t.Setenv("HOME", "") }, "VAULT_TOKEN or BAO_TOKEN is not set"},
		"authorities that cannot be read": {func(t *testing.T) {
			t.Setenv("VAULT_ADDR", address)
			t.Setenv("VAULT_TOKEN", "the token")
			t.Setenv("VAULT_CACERT", "/none")
		}, "/none"},
		"an address that is none": {func(t *testing.T) { t.Setenv("VAULT_ADDR", "https://["); t.Setenv("VAULT_TOKEN", "the token") }, "https://["},
		"another token":           {func(t *testing.T) { t.Setenv("VAULT_ADDR", address); t.Setenv("VAULT_TOKEN", "another") }, "encrypt with openbao://fleet-kek"},
	} {
		t.Run(name, func(t *testing.T) {
			clear(t)
			tt.set(t)
			if err := wrap(t); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestAnAnswerOfVaultWithoutAKeyIsAnError(t *testing.T) {
	var status int
	var body string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(s.Close)
	t.Setenv("VAULT_ADDR", s.URL)
	t.Setenv("VAULT_TOKEN", "the token")
	t.Setenv("VAULT_MAX_RETRIES", "0")
	c, err := openCipher(t.Context(), transitURI, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		status     int
		body, want string
	}{
		"nothing":         {http.StatusNoContent, "", "gave no answer"},
		"no field":        {http.StatusOK, `{"data":{"x":"y"}}`, "answer has no"},
		"an empty field":  {http.StatusOK, `{"data":{"plaintext":"","ciphertext":""}}`, "answer has no"},
		"a number":        {http.StatusOK, `{"data":{"plaintext":1,"ciphertext":1}}`, "answer has no"},
		"what is no JSON": {http.StatusOK, `x`, ""},
	} {
		status, body = tt.status, tt.body
		if b, err := c.Encrypt(t.Context(), []byte("the key")); err == nil || len(b) > 0 || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: encrypt: got %q, %v; want %q", name, b, err, tt.want)
		}
		if b, err := c.Decrypt(t.Context(), []byte("box")); err == nil || len(b) > 0 || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: decrypt: got %q, %v; want %q", name, b, err, tt.want)
		}
	}
	status, body = http.StatusOK, `{"data":{"plaintext":"no base64!"}}`
	if b, err := c.Decrypt(t.Context(), []byte("box")); err == nil || b != nil || !strings.Contains(err.Error(), "not base64") {
		t.Errorf("what is no base64: got %q, %v", b, err)
	}
}

// amazonDouble answers as AWS KMS does over HTTPS, in the JSON protocol.
func amazonDouble(t *testing.T) (uri string) {
	t.Helper()
	boxes := map[string]map[string]any{}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			KeyId, Plaintext, CiphertextBlob string
			EncryptionContext                map[string]string
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		var out map[string]any
		switch target := r.Header.Get("X-Amz-Target"); {
		case in.EncryptionContext["purpose"] != authenticated || len(in.EncryptionContext) != 1:
			t.Errorf("%s with the context %v", target, in.EncryptionContext)
		case !strings.Contains(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256") || in.KeyId != "alias/fleet-kek":
			t.Errorf("%s with %+v", target, in)
		case target == "TrentService.Encrypt":
			box := base64.StdEncoding.EncodeToString([]byte(fmt.Sprintf("box %d", len(boxes))))
			boxes[box] = map[string]any{"Plaintext": in.Plaintext, "context": fmt.Sprint(in.EncryptionContext)}
			out = map[string]any{"CiphertextBlob": box, "KeyId": in.KeyId}
		case target == "TrentService.Decrypt" && boxes[in.CiphertextBlob] != nil && boxes[in.CiphertextBlob]["context"] == fmt.Sprint(in.EncryptionContext):
			out = map[string]any{"Plaintext": boxes[in.CiphertextBlob]["Plaintext"], "KeyId": in.KeyId}
		default:
			w.WriteHeader(http.StatusBadRequest)
			out = map[string]any{"__type": "InvalidCiphertextException"}
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"AWS_CA_BUNDLE": ca, "AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_MAX_ATTEMPTS": "1",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		t.Setenv(name, value)
	}
	return "awskms://" + strings.TrimPrefix(s.URL, "https://") + "/alias/fleet-kek"
}

func TestAKeyWrappedByAWS(t *testing.T) {
	uri := amazonDouble(t)
	path := filepath.Join(t.TempDir(), "kek.wrapped")
	id, err := Wrap(t.Context(), path, uri, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := Source{URI: uri, Wrapped: path}.Open(t.Context(), nil)
	if err != nil || server.KEKID(key) != id {
		t.Errorf("got %s, %v", key, err)
	}
	w, err := readWrapped(path)
	if err != nil {
		t.Fatal(err)
	}
	w.Ciphertext = []byte("another")
	if _, err := w.open(t.Context(), uri, nil); err == nil || !strings.Contains(err.Error(), "InvalidCiphertext") {
		t.Errorf("got %v", err)
	}
	gone := strings.Replace(uri, "127.0.0.1:", "127.0.0.1:1/", 1)
	if _, err := Wrap(t.Context(), filepath.Join(t.TempDir(), "kek.wrapped"), gone, nil, nil); err == nil || !strings.Contains(err.Error(), "encrypt with awskms:") {
		t.Errorf("a service that is not there: %v", err)
	}
}

// FuzzWrapped: whatever is in the file, reading it ends with a key of the
// file's id or with an error.
func FuzzWrapped(f *testing.F) {
	f.Add([]byte(`{"version":1,"type":"sealift wrapped key-encryption key","id":"0011223344556677","ciphertext":"AAEC"}`))
	f.Add([]byte(`{}`))
	path := filepath.Join(f.TempDir(), "kek.wrapped")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if w, err := readWrapped(path); err == nil && (w.ID == "" || len(w.Ciphertext) == 0) {
			t.Errorf("got %+v", w)
		}
		if key, err := ReadFile(path); err == nil && len(key) != server.KEKSize {
			t.Errorf("got %d bytes", len(attest.Secret(key)))
		}
	})
}
