package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
)

// cryptsetup runs the reference implementation, which works on plain files
// without device-mapper for all that is asked of it here.
func cryptsetup(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("cryptsetup")
	if err != nil {
		path = "/usr/sbin/cryptsetup"
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("REQUIRE_TOOLS") != "" {
				t.Fatal("cryptsetup is not installed")
			}
			t.Skip("cryptsetup is not installed")
		}
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

// files makes a blank image and a key file in a new directory.
func files(t *testing.T, key attest.Secret) (image *os.File, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	image, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Close() })
	if err := image.Truncate(testSize); err != nil {
		t.Fatal(err)
	}
	keyFile = filepath.Join(dir, "key")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return image, keyFile
}

func TestCryptsetupOpensWhatWeFormat(t *testing.T) {
	key := testKey(0x0a) // newlines: it is no passphrase
	image, keyFile := files(t, key)
	const id = "3f3d5b9e-6a51-4c3e-9d0c-0d5c8d1f0a11"
	token := json.RawMessage(`{"type":"sealift-tpm2","keyslots":["0"],"sealed":"AAEC"}`)
	v, err := Format(image, testSize, key, Options{UUID: id, Label: "state", Tokens: []json.RawMessage{token}})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := cryptsetup(t, "open", "--test-passphrase", "--key-file", keyFile, image.Name()); err != nil {
		t.Fatalf("cryptsetup open: %v\n%s", err, out)
	}
	out, err := cryptsetup(t, "luksDump", image.Name())
	if err != nil {
		t.Fatalf("cryptsetup luksDump: %v\n%s", err, out)
	}
	for _, want := range []string{id, "state", "aes-xts-plain64", "sector: 4096 [bytes]", "0: sealift-tpm2", "Iterations: 1000"} {
		if !strings.Contains(out, want) {
			t.Errorf("luksDump does not show %q:\n%s", want, out)
		}
	}
	volumeKey := filepath.Join(t.TempDir(), "volume-key")
	if out, err := cryptsetup(t, "luksDump", "-q", "--dump-volume-key", "--key-file", keyFile, "--volume-key-file", volumeKey, image.Name()); err != nil {
		t.Fatalf("cryptsetup luksDump --dump-volume-key: %v\n%s", err, out)
	}
	if got, err := os.ReadFile(volumeKey); err != nil || !bytes.Equal(got, v.Key) {
		t.Errorf("cryptsetup finds another volume key (%v)", err)
	}
}

func TestCryptsetupReadsOurSecondaryHeader(t *testing.T) {
	image, keyFile := files(t, testKey(1))
	if _, err := Format(image, testSize, testKey(1), Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt([]byte{1}, 5000); err != nil {
		t.Fatal(err)
	}
	if out, err := cryptsetup(t, "open", "--test-passphrase", "--key-file", keyFile, image.Name()); err != nil {
		t.Errorf("cryptsetup open: %v\n%s", err, out)
	}
}

func TestWeOpenWhatCryptsetupFormats(t *testing.T) {
	key := testKey(0x0a)
	image, keyFile := files(t, key)
	out, err := cryptsetup(t, "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1500",
		"--sector-size", "4096", "--key-file", keyFile, image.Name())
	if err != nil {
		t.Fatalf("cryptsetup luksFormat: %v\n%s", err, out)
	}
	v, err := Open(image, testSize, key)
	if err != nil {
		t.Fatal(err)
	}
	volumeKey := filepath.Join(t.TempDir(), "volume-key")
	if out, err := cryptsetup(t, "luksDump", "-q", "--dump-volume-key", "--key-file", keyFile, "--volume-key-file", volumeKey, image.Name()); err != nil {
		t.Fatalf("cryptsetup luksDump --dump-volume-key: %v\n%s", err, out)
	}
	if want, err := os.ReadFile(volumeKey); err != nil || !bytes.Equal(v.Key, want) {
		t.Errorf("we find another volume key than cryptsetup (%v)", err)
	}
	if _, err := Open(image, testSize, testKey(2)); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another key: got %v, want ErrWrongKey", err)
	}
}

func TestWeRefuseOtherVolumesOfCryptsetup(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"another cipher", []string{"--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"}, "aes-cbc-essiv:sha256"},
		{"a 256-bit key", []string{"--key-size", "256"}, "volume key has 32 bytes"},
		{"512-byte sectors", []string{"--sector-size", "512"}, "sector size is 512"},
		{"another hash", []string{"--hash", "sha512"}, "sha512"},
		{"argon2id", []string{"--pbkdf", "argon2id", "--pbkdf-memory", "64", "--pbkdf-force-iterations", "4"}, "argon2id"},
		{"LUKS1", []string{"--type", "luks1"}, "version is 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key := testKey(3)
			image, keyFile := files(t, key)
			args := []string{"luksFormat", "-q", "--key-file", keyFile}
			if tt.name != "argon2id" {
				args = append(args, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
			}
			if tt.name != "512-byte sectors" && tt.name != "LUKS1" {
				args = append(args, "--sector-size", "4096")
			}
			if tt.name != "LUKS1" {
				args = append(args, "--type", "luks2")
			}
			if out, err := cryptsetup(t, append(append(args, tt.args...), image.Name())...); err != nil {
				t.Fatalf("cryptsetup luksFormat: %v\n%s", err, out)
			}
			_, err := Open(image, testSize, key)
			if err == nil || errors.Is(err, ErrWrongKey) || errors.Is(err, ErrNoVolume) {
				t.Fatalf("got %v, want a refusal that names the reason", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error does not say %q: %v", tt.want, err)
			}
		})
	}
}
