//go:build cgo

package kek

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ThalesGroup/crypto11"

	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/sign"
)

// softHSM is where Debian has the library of SoftHSM.
const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// newToken makes a token of SoftHSM with two AES keys and returns its PIN file.
func newToken(t *testing.T) string {
	t.Helper()
	_, err := exec.LookPath("softhsm2-util")
	if _, err2 := os.Stat(softHSM); err == nil {
		err = err2
	}
	if err != nil && os.Getenv("REQUIRE_TOOLS") != "" {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	conf, pin := filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "pin")
	for name, text := range map[string]string{
		conf: "directories.tokendir = " + dir + "\nobjectstore.backend = file\nlog.level = ERROR\n",
		pin:  "1234\n",
	} {
		write(t, name, []byte(text))
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	if out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "fleet", "--pin", "1234", "--so-pin", "4321").CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v: %s", err, out)
	}
	c, err := crypto11.Configure(&crypto11.Config{Path: softHSM, TokenLabel: "fleet", Pin: "1234"})
	if err != nil {
		t.Fatal(err)
	}
	for i, label := range []string{"kek", "other"} {
		if _, err := c.GenerateSecretKeyWithLabel([]byte{byte(i + 1)}, []byte(label), 256, crypto11.CipherAES); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return pin
}

func TestAKeyWrappedByAToken(t *testing.T) {
	pin := newToken(t)
	uri := func(object string) string {
		return fmt.Sprintf("pkcs11:token=fleet;type=secret-key;object=%s?module-path=%s&pin-source=file:%s", object, softHSM, pin)
	}
	path := filepath.Join(t.TempDir(), "kek.wrapped")
	id, err := Wrap(t.Context(), path, uri("kek"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := Source{URI: uri("kek"), Wrapped: path}.Open(t.Context(), nil)
	if err != nil || server.KEKID(key) != id {
		t.Errorf("got %s, %v", key, err)
	}
	for name, u := range map[string]string{
		"another key of the token": uri("other"),
		"a key that is not there":  uri("none"),
		"another token":            strings.Replace(uri("kek"), "token=fleet", "token=other", 1),
	} {
		if _, err := (Source{URI: u, Wrapped: path}).Open(t.Context(), nil); err == nil || strings.Contains(err.Error(), "1234") {
			t.Errorf("%s: %v", name, err)
		}
	}
	w, err := readWrapped(path)
	if err != nil {
		t.Fatal(err)
	}
	// Without the purpose the token itself refuses it.
	c, err := sign.LoadTokenCipher(uri("kek"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := c.Open(w.Ciphertext, []byte(authenticated)); err != nil || !bytes.Equal(b, key) {
		t.Errorf("with the purpose: %v", err)
	}
	if _, err := c.Open(w.Ciphertext, nil); err == nil {
		t.Error("it opens for another purpose")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for _, box := range [][]byte{nil, w.Ciphertext[:20], append([]byte{w.Ciphertext[0] ^ 1}, w.Ciphertext[1:]...)} {
		w.Ciphertext = box
		if _, err := w.open(t.Context(), uri("kek"), nil); err == nil {
			t.Errorf("a ciphertext of %d bytes that was altered opens", len(box))
		}
	}
}
