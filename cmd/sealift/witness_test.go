package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
)

func newReleaseKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newWitness returns one as a service that starts has it.
func newWitness(t *testing.T, store server.Store, key *ecdsa.PrivateKey, file string) *logWitness {
	t.Helper()
	w, err := openWitness(t.Context(), store, key, file, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// signEnabled enables what the service would not, with its key.
func signEnabled(t *testing.T, store server.Store, ring *keyring.Keyring, head policyHead) {
	t.Helper()
	key, err := ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	w := newWitness(t, store, key, "")
	proven, err := provePolicy(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	entry := audit.Policy{Name: head.Name, Version: head.Version, Digest: head.Digest, By: "somebody"}
	pointer, err := w.signPointer(proven, head, nil, &entry)
	if err == nil {
		err = commitPolicy(t.Context(), store, entry, time.Now(), proven.document, pointer)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// verifyAsAuditor follows docs/audit.md: openssl and Python say that an export is what
// the service wrote, and not so of one that was altered.
func verifyAsAuditor(t *testing.T, export, key string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(language string) string {
		_, rest, ok := strings.Cut(string(text), "\n```"+language+"\n")
		code, _, end := strings.Cut(rest, "\n```\n")
		if !ok || !end {
			t.Fatalf("docs/audit.md has no block of %s", language)
		}
		return code
	}
	tpmtest.Tool(t, "openssl")
	shell, python := tpmtest.Tool(t, "sh"), tpmtest.Tool(t, "python3")
	try := func(change func([]byte) []byte) (signature, chain error, out string) {
		dir := t.TempDir()
		for name, from := range map[string]string{"audit.jsonl": export, "release.pub": key} {
			b, err := os.ReadFile(from)
			if err == nil {
				if name == "audit.jsonl" {
					b = change(b)
				}
				err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		run := func(program, code string) error {
			// As a person would: what fails shows in what is printed.
			cmd := exec.Command(program, "-c", code)
			cmd.Dir = dir
			b, err := cmd.CombinedOutput()
			out += string(b)
			return err
		}
		signature = run(shell, block("sh"))
		if !strings.Contains(out, "Verified OK") {
			signature = errors.New("not verified")
		}
		return signature, run(python, block("python")), out
	}
	same := func(b []byte) []byte { return b }
	if signature, chain, out := try(same); signature != nil || chain != nil {
		t.Errorf("the export: %v, %v: %s", signature, chain, out)
	}
	if signature, _, out := try(func(b []byte) []byte { return bytes.Replace(b, []byte(`"payload":"ey`), []byte(`"payload":"eX`), 1) }); signature == nil {
		t.Errorf("another payload: openssl takes it: %s", out)
	}
	lines := func(b []byte) [][]byte { return bytes.SplitAfter(b, []byte("\n")) }
	for name, change := range map[string]func([]byte) []byte{
		"an entry altered":  func(b []byte) []byte { return bytes.Replace(b, []byte("stolen"), []byte("broken"), 1) },
		"an entry left out": func(b []byte) []byte { l := lines(b); return bytes.Join(append(l[:1:1], l[2:]...), nil) },
		"cut short": func(b []byte) []byte {
			l := lines(b)
			return bytes.Join(append(l[:len(l)-3:len(l)-3], l[len(l)-2:]...), nil)
		},
	} {
		if _, chain, out := try(change); chain == nil {
			t.Errorf("%s: Python takes it: %s", name, out)
		}
	}
}
