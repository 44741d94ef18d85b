package main

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
)

// builtImage makes a tiny image with all that a build signs.
func builtImage(t *testing.T) (dir string, ring *keyring.Keyring, m *manifest.Manifest) {
	t.Helper()
	keys, dir := filepath.Join(t.TempDir(), "keys"), filepath.Join(t.TempDir(), "img")
	check := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	check(keyring.Init(keys, time.Now(), rand.Reader))
	check(makeImage(keys, dir))
	ring, err := keyring.Open(keys)
	check(err)
	key, err := ring.Image()
	check(err)
	signer, err := sign.FromKey(key)
	check(err)
	for _, name := range []string{image.FileSPDX, image.FileCycloneDX, image.FileProvenance} {
		text := []byte(`{"name":"` + name + `"}`)
		b, err := signer.Sign(t.Context(), text)
		if name == image.FileProvenance {
			b, err = signer.SignStatement(t.Context(), text)
		}
		check(err, os.WriteFile(filepath.Join(dir, name), text, 0o600), os.WriteFile(filepath.Join(dir, image.BundleOf(name)), b, 0o600))
	}
	text, err := os.ReadFile(filepath.Join(dir, image.FileManifest))
	check(err)
	m, err = manifest.Decode(text)
	check(err)
	return dir, ring, m
}

func TestAnImageIsReusedOnlyIfItIsWhole(t *testing.T) {
	dir, ring, m := builtImage(t)
	if err := writeStamp(dir, "inputs", m); err != nil {
		t.Fatal(err)
	}
	if got, err := reusable(t.Context(), dir, "inputs\n", ring); err != nil || got.Name != m.Name {
		t.Fatalf("a whole image: %v", err)
	}
	if _, err := reusable(t.Context(), dir, "others", ring); err == nil || !strings.Contains(err.Error(), "other inputs") {
		t.Errorf("other inputs: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// As a power cut leaves it: of the right size, and empty.
		for claim, damage := range map[string]func() error{
			"zeros":   func() error { return os.WriteFile(file, make([]byte, len(old)), 0o600) },
			"missing": func() error { return os.Remove(file) },
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			if _, err := reusable(t.Context(), dir, "inputs", ring); err == nil {
				t.Errorf("%s, %s: the image is reused", e.Name(), claim)
			}
			if err := os.WriteFile(file, old, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := reusable(t.Context(), dir, "inputs", ring); err != nil {
		t.Error(err)
	}
}

// TestAStampIsOfTheImageThatTheBuildMade is two builds into one directory, the
// second of which publishes before the first writes its stamp.
func TestAStampIsOfTheImageThatTheBuildMade(t *testing.T) {
	dir, ring, second := builtImage(t)
	first := *second
	first.Version = "0"
	if err := writeStamp(dir, "inputs of the first", &first); err != nil {
		t.Fatal(err)
	}
	if _, err := reusable(t.Context(), dir, "inputs of the first", ring); err == nil {
		t.Error("the image of the second build is taken for the first's")
	}
}

func TestPipesAreNotRead(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for claim, read := range map[string]func() error{
		"readFile": func() error { _, err := readFile(pipe, maxSmall); return err },
		"fileSum":  func() error { _, err := fileSum(t.Context(), pipe); return err },
	} {
		done := make(chan error, 1)
		go func() { done <- read() }()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("%s: got %v", claim, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s waits for a writer", claim)
		}
	}
}
