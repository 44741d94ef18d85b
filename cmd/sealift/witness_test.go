package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
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
