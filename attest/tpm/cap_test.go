package tpm

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func TestCapExtendsEveryActiveBank(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha1", "sha256", "sha384", "sha512"}}.Open(t)
	dev := New(d)
	key := random(32)
	if err := dev.Cap("state", key, "6d0d7a1e"); err != nil {
		t.Fatal(err)
	}
	for bank, h := range map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512} {
		extended := func(digest []byte) []byte {
			e := h.New()
			e.Write(make([]byte, h.Size()))
			e.Write(digest)
			return e.Sum(nil)
		}
		m := hmac.New(h.New, key)
		m.Write([]byte("cryptsetup:state:6d0d7a1e"))
		if got, want := d.PCR(bank, 15), extended(m.Sum(nil)); !bytes.Equal(got, want) {
			t.Errorf("%s PCR 15: got %x, want %x", bank, got, want)
		}
		r := h.New()
		r.Write([]byte("sealift released"))
		for _, pcr := range []int{11, 12} {
			if got, want := d.PCR(bank, pcr), extended(r.Sum(nil)); !bytes.Equal(got, want) {
				t.Errorf("%s PCR %d: got %x, want %x", bank, pcr, got, want)
			}
		}
	}
	empty(t, d, dev)
}

// Whoever becomes root in the running system must not get the machine's half
// of the disk key either.
func TestTheDeviceHalfDoesNotOpenAfterTheCap(t *testing.T) {
	key, pub := signingKey(t)
	d := tpmtest.Open(t)
	d.Extend(11, []byte("image"))
	sig := signed(t, key, d.PCR("sha256", 11))
	dev := New(d)
	blob, err := dev.SealDeviceHalf(random(32), pub)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.UnsealDeviceHalf(blob, pub, sig); err != nil {
		t.Fatal(err)
	}
	if err := dev.Cap("state", random(32), "6d0d7a1e"); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.UnsealDeviceHalf(blob, pub, sig); err == nil {
		t.Error("it opened")
	}
}

func TestCapRefusesBadInput(t *testing.T) {
	d := tpmtest.Open(t)
	dev := New(d)
	for name, in := range map[string]struct {
		label string
		key   []byte
		uuid  string
	}{
		"no label":            {"", random(32), "u"},
		"no uuid":             {"state", random(32), ""},
		"a colon":             {"a:b", random(32), "u"},
		"no key":              {"state", nil, "u"},
		"a key of 15 bytes":   {"state", random(15), "u"},
		"a colon in the uuid": {"state", random(32), "u:"},
	} {
		if err := dev.Cap(in.label, in.key, in.uuid); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if !bytes.Equal(d.PCR("sha256", 15), make([]byte, 32)) {
		t.Error("PCR 15 was extended")
	}
	if err := dev.Cap("state", random(16), "u"); err != nil {
		t.Errorf("the shortest key: %v", err)
	}
}

// swallowing answers one command for the TPM, with success, without telling it.
type swallowing struct {
	*tpmtest.TPM
	command tpm2.TPMCC
	rsp     []byte
}

func (s *swallowing) Send(b []byte) ([]byte, error) {
	if len(b) >= 10 && tpm2.TPMCC(uint32(b[6])<<24|uint32(b[7])<<16|uint32(b[8])<<8|uint32(b[9])) == s.command {
		return s.rsp, nil
	}
	return s.TPM.Send(b)
}

func TestCapFailsIfThePCRDoesNotChange(t *testing.T) {
	d := tpmtest.Open(t)
	// A successful response to a command with one password session.
	ok := []byte{0x80, 0x02, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0}
	if err := New(&swallowing{d, tpm2.TPMCCPCRExtend, ok}).Cap("state", random(32), "u"); err == nil {
		t.Error("no error")
	}
}

func TestUnknownBankIsAnError(t *testing.T) {
	d := tpmtest.Open(t)
	// TPM2_GetCapability answers that SM3-256 is active: no more data,
	// TPM_CAP_PCRS, one selection with hash 0x0012 and three bytes.
	rsp := []byte{0x80, 0x01, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0x12, 3, 0xff, 0xff, 0xff}
	err := New(&swallowing{d, tpm2.TPMCCGetCapability, rsp}).Cap("state", random(32), "u")
	if err == nil || !strings.Contains(err.Error(), "0x12") {
		t.Errorf("got %v, want an error that names the bank", err)
	}
	if !bytes.Equal(d.PCR("sha256", 15), make([]byte, 32)) {
		t.Error("PCR 15 was extended in the other banks")
	}
}
