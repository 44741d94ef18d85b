package tpmtest_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func TestPCRsSurviveNoReset(t *testing.T) {
	d := tpmtest.Config{P256Certificate: true, Chain: true}.Open(t)
	d.Extend(11, []byte("x"))
	x := sha256.Sum256([]byte("x"))
	want := sha256.Sum256(append(make([]byte, 32), x[:]...))
	if got := d.PCR("sha256", 11); !bytes.Equal(got, want[:]) {
		t.Errorf("PCR 11 after an extend: got %x, want %x", got, want)
	}
	for name, reset := range map[string]func(){"orderly": d.Reset, "power loss": d.PowerLoss} {
		d.Extend(11, []byte("x"))
		reset()
		if got := d.PCR("sha256", 11); !bytes.Equal(got, make([]byte, 32)) {
			t.Errorf("PCR 11 after a reset (%s): got %x, want zeros", name, got)
		}
	}
	if n := d.Objects(); n != 0 {
		t.Errorf("%d objects or sessions are loaded, want none", n)
	}
}
