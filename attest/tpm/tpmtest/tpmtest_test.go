package tpmtest_test

import (
	"bytes"
	"crypto/sha256"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

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

func TestATPMOpenedFromItsStateLeavesTheStateAsItIs(t *testing.T) {
	made := tpmtest.Config{P256Certificate: true}.Open(t)
	state := filepath.Join(filepath.Dir(made.Socket), "state")
	has := func(d *tpmtest.TPM, index tpm2.TPMHandle) bool {
		_, err := tpm2.NVReadPublic{NVIndex: index}.Execute(d)
		return err == nil
	}
	const certificate, added = 0x01c0000a, 0x01500001
	first := tpmtest.OpenState(t, state)
	if !has(first, certificate) {
		t.Error("the certificate of the TPM that was made is not there")
	}
	first.DefineNV(added, []byte("x"))
	if !has(first, added) || has(tpmtest.OpenState(t, state), added) {
		t.Error("what was written to the copy is in the state, or nowhere")
	}
}
