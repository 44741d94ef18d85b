package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image/sign/bundle"
)

func TestTheImageKeyMayBeKeptElsewhere(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	e := &env{in: strings.NewReader(""), out: &bytes.Buffer{}, err: &bytes.Buffer{}}
	if err := keyring.Init(at("own"), time.Now(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(at("own"), "image.key")
	if err := initKeys(t.Context(), e, at("elsewhere"), keyOptions{ref: key}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(at("elsewhere"), "image.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory has an image key of its own (%v)", err)
	}
	for name, c := range map[string]struct {
		ring string
		o    keyOptions
		want string // part of the error; empty: it signs
	}{
		"the directory's own":      {"own", keyOptions{}, ""},
		"that of the reference":    {"elsewhere", keyOptions{}, ""},
		"the right one by name":    {"elsewhere", keyOptions{ref: key}, ""},
		"another one by name":      {"own", keyOptions{ref: filepath.Join(at("own"), "release.key")}, "installers would refuse"},
		"one that is not there":    {"own", keyOptions{ref: at("none")}, "no such file"},
		"a service without a name": {"own", keyOptions{ref: "nokms://x"}, "no kms provider"},
	} {
		ring, err := keyring.Open(at(c.ring))
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.o.imageSigner(t.Context(), e, ring)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, want %q", name, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		pub, err1 := ring.PublicPEM(keyring.FileImage)
		b, err2 := s.Sign(t.Context(), []byte("x"))
		if err := errors.Join(err1, err2, bundle.Verify([]byte("x"), b, pub), s.Close()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestThePasswordOfTheImageKeyComesFromAPrivateFile(t *testing.T) {
	dir := t.TempDir()
	good, open := filepath.Join(dir, "good"), filepath.Join(dir, "open")
	for _, name := range []string{good, open} {
		if err := os.WriteFile(name, []byte("open sesame\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	e := &env{in: strings.NewReader("open sesame\n"), out: &bytes.Buffer{}, err: &bytes.Buffer{}}
	for name, c := range map[string]struct{ file, want string }{
		"private":           {good, ""},
		"read by others":    {open, "want 0600"},
		"none, no terminal": {"", "no terminal"},
		"not there":         {filepath.Join(dir, "none"), "no such file"},
	} {
		o := keyOptions{password: c.file}
		got, err := o.secret(e)
		if c.want == "" && (err != nil || string(got) != "open sesame") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "sesame")) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, c.want)
		}
	}
}
