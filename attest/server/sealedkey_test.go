package server

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
)

const vectorDisk = "6a0d1e0c-3b1f-4a56-9d0e-0123456789ab"

var vectorMachine = attest.MachineID(bytes.Repeat([]byte{1}, 32))

// counted returns n bytes that count from first.
func counted(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func vectorKeys(t *testing.T) *Server {
	t.Helper()
	keys, err := newKEKs(counted(1, KEKSize), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Server{keys: keys}
}

// The vectors were made with Python's hmac and cryptography (AES-GCM). What is
// stored must open with every later version.
func TestDiskKeysThatWereStoredOpen(t *testing.T) {
	s := vectorKeys(t)
	if got := s.keys.present.id; got != "8e5cf1680be5d2db" {
		t.Errorf("the key-encryption key is %s", got)
	}
	for volume, box := range map[string]string{
		"state": "000102030405060708090a0b155567f0a0b40b606346dc2e14e985fe5de2cbe206e60007b13503c2dc54b0b8703dc6dd1aa13df50e499dfc0c51647e",
		"":      "000102030405060708090a0b155567f0a0b40b606346dc2e14e985fe5de2cbe206e60007b13503c2dc54b0b82f4dc095a435069e14e27088e1ffcf75",
	} {
		b, err := hex.DecodeString(box)
		if err != nil {
			t.Fatal(err)
		}
		k := &SealedKey{KEK: "8e5cf1680be5d2db", Box: b, Volume: volume}
		if key, err := s.openDiskKey(k, vectorMachine, vectorDisk); err != nil || !bytes.Equal(key, counted(100, 32)) {
			t.Errorf("volume %q: %v", volume, err)
		}
		if _, err := s.openDiskKey(k, attest.MachineID{2}, vectorDisk); err == nil {
			t.Errorf("volume %q: it opens for another machine", volume)
		}
		if _, err := s.openDiskKey(k, vectorMachine, "6b"+vectorDisk[2:]); err == nil {
			t.Errorf("volume %q: it opens for another disk", volume)
		}
	}
}

func TestASealedKeyIsForItsPurposeAndEachSealIsAnother(t *testing.T) {
	s := vectorKeys(t)
	first, err := s.sealDiskKey(counted(100, 32), vectorMachine, vectorDisk)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.sealDiskKey(counted(100, 32), vectorMachine, vectorDisk)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.keys.present.aead.NonceSize(); bytes.Equal(first.Box[:n], second.Box[:n]) {
		t.Error("two boxes have one nonce")
	}
	if first.Volume != volumeState {
		t.Errorf("the volume is %q", first.Volume)
	}
	for name, open := range map[string]func() (attest.Secret, error){
		"another machine": func() (attest.Secret, error) { return s.openDiskKey(first, attest.MachineID{2}, vectorDisk) },
		"another disk":    func() (attest.Secret, error) { return s.openDiskKey(first, vectorMachine, "other") },
		"another volume": func() (attest.Secret, error) {
			return s.openDiskKey(&SealedKey{KEK: first.KEK, Box: first.Box, Volume: "other"}, vectorMachine, vectorDisk)
		},
		"no purpose": func() (attest.Secret, error) { return s.keys.open(first) },
		"fields that run together": func() (attest.Secret, error) {
			return s.keys.open(first, "disk", vectorMachine.String()+"|"+vectorDisk, volumeState)
		},
	} {
		if key, err := open(); err == nil || key != nil {
			t.Errorf("it opens for %s", name)
		}
	}
	// The lengths keep apart what the bytes alone do not.
	if a, b := additional([]string{"a|b", "c"}), additional([]string{"a", "b|c"}); bytes.Equal(a, b) {
		t.Errorf("two purposes are %q", a)
	}
}

func TestABoxThatIsTooShortOrHoldsNoDiskKeyIsRefused(t *testing.T) {
	s := vectorKeys(t)
	n := s.keys.present.aead.NonceSize()
	for size := range n + 2 {
		box := make([]byte, size+n) // has room for more
		_, err := s.openDiskKey(&SealedKey{KEK: s.keys.present.id, Box: box[:size]}, vectorMachine, vectorDisk)
		want := "it was altered"
		if size < n {
			want = fmt.Sprintf("got %d bytes, want at least %d", size, n)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d bytes: got %v, want %q", size, err, want)
		}
	}
	for _, size := range []int{0, diskKeySize - 1, diskKeySize + 1} {
		k, err := s.sealDiskKey(make([]byte, size), vectorMachine, vectorDisk)
		if err != nil {
			t.Fatal(err)
		}
		if key, err := s.openDiskKey(k, vectorMachine, vectorDisk); err == nil || key != nil {
			t.Errorf("a disk key of %d bytes is taken", size)
		}
	}
}

func TestNewSecretsAreRandom(t *testing.T) {
	a, err := newSecret(32)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newSecret(32)
	if err != nil || bytes.Equal(a, b) || bytes.Equal(a, make([]byte, 32)) || bytes.Equal(b, make([]byte, 32)) {
		t.Errorf("equal %t, %v", bytes.Equal(a, b), err)
	}
}

func TestOnlyAMissingKEKIsToldAsOne(t *testing.T) {
	if f := noDiskKey(fmt.Errorf("x: %w", ErrNoKEK)); f.code != "kek-missing" {
		t.Errorf("got %s", f.code)
	}
	if f := noDiskKey(errors.New("altered")); f.code == "kek-missing" || f.status != 500 {
		t.Errorf("got %s", f.code)
	}
}

// A record in which one of both is missing was not written by the service.
func TestARotationNeedsItsNextKey(t *testing.T) {
	s := vectorKeys(t)
	next, err := s.sealDiskKey(counted(100, 32), vectorMachine, vectorDisk)
	if err != nil {
		t.Fatal(err)
	}
	present := &SealedKey{KEK: "present"}
	for name, m := range map[string]Machine{
		"a next key without a rotation": {NextKey: next},
		"a rotation without a next key": {Machine: api.Machine{Rotation: &api.DiskKeyRotation{ID: "r"}}},
		"neither":                       {},
	} {
		m.ID, m.DiskGUID, m.DiskKey = vectorMachine, vectorDisk, present
		if key, rotation, err := s.nextKey(&m, true); key != nil || rotation != "" || err != nil {
			t.Errorf("%s: a next key is released: %q, %v", name, rotation, err)
		}
		was := m
		for _, rotation := range []string{"r", ""} {
			events, changed := m.rekeyed(&Release{Rotation: rotation}, api.OutcomeRekeyed, time.Unix(1, 0))
			if changed || events != nil || !reflect.DeepEqual(m, was) {
				t.Errorf("%s: a confirmation changes the record to %+v", name, m)
			}
		}
	}
	both := Machine{Machine: api.Machine{ID: vectorMachine, DiskGUID: vectorDisk, Rotation: &api.DiskKeyRotation{ID: "r"}}, DiskKey: present, NextKey: next}
	if key, rotation, err := s.nextKey(&both, true); !bytes.Equal(key, counted(100, 32)) || rotation != "r" || err != nil {
		t.Errorf("got %q, %v", rotation, err)
	}
	if _, changed := both.rekeyed(&Release{Rotation: "r"}, api.OutcomeRekeyed, time.Unix(1, 0)); !changed || both.DiskKey != next || both.NextKey != nil || both.Rotation != nil {
		t.Errorf("got %+v", both)
	}
}
