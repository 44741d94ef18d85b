//go:build cgo

package sign

import (
	"crypto/elliptic"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ThalesGroup/crypto11"
)

// softHSM is where Debian has the library of SoftHSM.
const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// token makes a token of SoftHSM with one key and returns its PIN file.
func token(t *testing.T, curve elliptic.Curve) string {
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
	conf := filepath.Join(dir, "softhsm2.conf")
	pin := filepath.Join(dir, "pin")
	for name, text := range map[string]string{
		conf: "directories.tokendir = " + dir + "\nobjectstore.backend = file\nlog.level = ERROR\n",
		pin:  "1234\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	if out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "fleet", "--pin", "1234", "--so-pin", "4321").CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v: %s", err, out)
	}
	c, err := crypto11.Configure(&crypto11.Config{Path: softHSM, TokenLabel: "fleet", Pin: "1234"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.GenerateECDSAKeyPairWithLabel([]byte{1}, []byte("image"), curve); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return pin
}

func TestAKeyOfATokenSigns(t *testing.T) {
	pin := token(t, elliptic.P256())
	for name, c := range map[string]struct {
		uri      string
		password string
	}{
		"PIN in a file": {fmt.Sprintf("pkcs11:token=fleet;object=image?module-path=%s&pin-source=file:%s", softHSM, pin), ""},
		"PIN asked for": {fmt.Sprintf("pkcs11:token=fleet;id=%%01?module-path=%s", softHSM), "1234"},
	} {
		s, err := Load(t.Context(), c.uri, func() ([]byte, error) { return []byte(c.password), nil })
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		signs(t, s)
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, uri := range map[string]string{
		"another key":   fmt.Sprintf("pkcs11:token=fleet;object=other?module-path=%s&pin-source=file:%s", softHSM, pin),
		"another token": fmt.Sprintf("pkcs11:token=other;object=image?module-path=%s&pin-source=file:%s", softHSM, pin),
		"no library":    fmt.Sprintf("pkcs11:token=fleet;object=image?module-path=%s.none&pin-source=file:%s", softHSM, pin),
		"wrong PIN":     fmt.Sprintf("pkcs11:token=fleet;object=image?module-path=%s", softHSM),
	} {
		_, err := Load(t.Context(), uri, func() ([]byte, error) { return []byte("9999"), nil })
		if err == nil || strings.Contains(err.Error(), "9999") || strings.Contains(err.Error(), "1234") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Chmod(pin, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(t.Context(), fmt.Sprintf("pkcs11:token=fleet;object=image?module-path=%s&pin-source=file:%s", softHSM, pin), nil); err == nil {
		t.Error("a PIN that others can read is taken")
	}
}

func TestATokensKeyOnAnotherCurveIsRefused(t *testing.T) {
	pin := token(t, elliptic.P384())
	if _, err := Load(t.Context(), fmt.Sprintf("pkcs11:token=fleet;object=image?module-path=%s&pin-source=file:%s", softHSM, pin), nil); err == nil || !strings.Contains(err.Error(), "P-384") {
		t.Errorf("got %v", err)
	}
}
