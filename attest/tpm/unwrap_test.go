package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func TestUnwrapOnlyInTheQuotedState(t *testing.T) {
	secret := random(32)
	for _, tt := range []struct {
		name   string
		change func(*tpmtest.TPM, *TPM) error
		want   error
	}{
		{"unchanged", func(*tpmtest.TPM, *TPM) error { return nil }, nil},
		{"a PCR outside the policy extended", func(d *tpmtest.TPM, _ *TPM) error { d.Extend(10, []byte("ima")); return nil }, nil},
		{"PCR 7 extended", func(d *tpmtest.TPM, _ *TPM) error { d.Extend(7, []byte("x")); return nil }, tpm2.TPMRCPolicyFail},
		{"PCR 15 extended", func(d *tpmtest.TPM, _ *TPM) error { d.Extend(15, []byte("x")); return nil }, tpm2.TPMRCPolicyFail},
		{"capped", func(_ *tpmtest.TPM, dev *TPM) error { return dev.Cap("state", random(32), "uuid") }, tpm2.TPMRCPolicyFail},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, dev, ev, _ := collected(t, tpmtest.Config{})
			w := wrap(t, ev.Transport.Public, sha256Quote(t, ev).PCRs, secret)
			if err := tt.change(d, dev); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				got, err := dev.Unwrap(w)
				if !errors.Is(err, tt.want) || (err == nil) != bytes.Equal(got, secret) {
					t.Errorf("got the secret: %v, error %v, want error %v", bytes.Equal(got, secret), err, tt.want)
				}
			}
			empty(t, d, dev)
		})
	}
}

func TestUnwrapNotAfterAReset(t *testing.T) {
	d, dev, ev, in := collected(t, tpmtest.Config{})
	w := wrap(t, ev.Transport.Public, sha256Quote(t, ev).PCRs, random(32))
	d.Reset()
	if got, err := dev.Unwrap(w); err == nil {
		t.Fatalf("got %d bytes with the old handle", len(got))
	}
	// The same state again, as after any good boot.
	for i := range 8 {
		d.Extend(i, []byte("firmware"))
	}
	dev = New(d)
	if _, err := dev.Identify("test"); err != nil {
		t.Fatal(err)
	}
	second, err := dev.Collect(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(second.Transport.Public, ev.Transport.Public) {
		t.Error("the transport key is the same in the next boot")
	}
	if got, err := dev.Unwrap(w); !errors.Is(err, tpm2.TPMRCIntegrity) {
		t.Errorf("got %d bytes, error %v, want %v", len(got), err, tpm2.TPMRCIntegrity)
	}
	empty(t, d, dev)
}

func TestUnwrapTriesAgainWhenAnyPCRChangesMeanwhile(t *testing.T) {
	for _, at := range []tpm2.TPMCC{tpm2.TPMCCImport, tpm2.TPMCCLoad, tpm2.TPMCCUnseal} {
		t.Run(fmt.Sprintf("before command %#x", uint32(at)), func(t *testing.T) {
			d, dev, ev, _ := collected(t, tpmtest.Config{})
			left := 1
			dev.transport = &interposed{d, func(cc tpm2.TPMCC) {
				if cc == at && left > 0 {
					left--
					d.Extend(10, []byte("ima"))
				}
			}}
			if _, err := dev.Unwrap(wrap(t, ev.Transport.Public, sha256Quote(t, ev).PCRs, random(32))); err != nil || left != 0 {
				t.Errorf("extended: %v, error %v", left == 0, err)
			}
			empty(t, d, dev)
		})
	}
}

// bus keeps all responses of a TPM.
type bus struct {
	*interposed
	heard bytes.Buffer
}

func (b *bus) Send(cmd []byte) ([]byte, error) {
	rsp, err := b.interposed.Send(cmd)
	b.heard.Write(cmd)
	b.heard.Write(rsp)
	return rsp, err
}

func TestSecretsDoNotCrossTheBusInClear(t *testing.T) {
	d, dev, ev, _ := collected(t, tpmtest.Config{})
	listener := &bus{interposed: &interposed{d, func(tpm2.TPMCC) {}}}
	dev.transport = listener
	secret := random(32)
	got, err := dev.Unwrap(wrap(t, ev.Transport.Public, sha256Quote(t, ev).PCRs, secret))
	if err != nil || !bytes.Equal(got, secret) {
		t.Fatal(err)
	}
	key, pub := signingKey(t)
	blob, err := dev.SealDeviceHalf(secret, pub)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.UnsealDeviceHalf(blob, pub, signed(t, key, d.PCR("sha256", 11))); err != nil {
		t.Fatal(err)
	}
	if listener.heard.Len() == 0 || bytes.Contains(listener.heard.Bytes(), secret) {
		t.Errorf("the secret is among the %d bytes on the bus", listener.heard.Len())
	}
}

func TestUnwrapRefusesHostileKeys(t *testing.T) {
	d, dev, ev, _ := collected(t, tpmtest.Config{})
	pcrs := sha256Quote(t, ev).PCRs
	good := wrap(t, ev.Transport.Public, pcrs, random(32))
	otherPCRs := map[int][]byte{}
	for i, v := range pcrs {
		otherPCRs[i] = v
	}
	otherPCRs[4] = random(32)
	flip := func(b []byte, at int) []byte { b = bytes.Clone(b); b[at] ^= 1; return b }
	public := func(change func(*tpm2.TPMTPublic)) []byte {
		p, err := tpm2.Unmarshal[tpm2.TPMTPublic](good.Public)
		if err != nil {
			t.Fatal(err)
		}
		change(p)
		return tpm2.Marshal(*p)
	}
	for name, w := range map[string]attest.WrappedKey{
		"nothing":                 {},
		"no public area":          {Duplicate: good.Duplicate, Seed: good.Seed},
		"no duplicate":            {Public: good.Public, Seed: good.Seed},
		"no seed":                 {Public: good.Public, Duplicate: good.Duplicate},
		"a long public area":      {Public: make([]byte, 1<<20), Duplicate: good.Duplicate, Seed: good.Seed},
		"a long duplicate":        {Public: good.Public, Duplicate: make([]byte, 1<<20), Seed: good.Seed},
		"a long seed":             {Public: good.Public, Duplicate: good.Duplicate, Seed: make([]byte, 1<<20)},
		"bytes behind the public": {Public: append(bytes.Clone(good.Public), 0), Duplicate: good.Duplicate, Seed: good.Seed},
		"half a public area":      {Public: good.Public[:20], Duplicate: good.Duplicate, Seed: good.Seed},
		"a key for another state": wrap(t, ev.Transport.Public, otherPCRs, random(32)),
		"a key of another type":   {Public: ev.Transport.Public, Duplicate: good.Duplicate, Seed: good.Seed},
		"one with a password": {Duplicate: good.Duplicate, Seed: good.Seed,
			Public: public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true })},
		"one without a policy": {Duplicate: good.Duplicate, Seed: good.Seed,
			Public: public(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = nil })},
		"another public area": {Duplicate: good.Duplicate, Seed: good.Seed,
			Public: public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false })},
		"a damaged duplicate":    {Public: good.Public, Duplicate: flip(good.Duplicate, len(good.Duplicate)-1), Seed: good.Seed},
		"a damaged seed":         {Public: good.Public, Duplicate: good.Duplicate, Seed: flip(good.Seed, 10)},
		"a short seed":           {Public: good.Public, Duplicate: good.Duplicate, Seed: good.Seed[:8]},
		"the longest duplicate":  {Public: good.Public, Duplicate: make([]byte, maxWrappedDuplicate), Seed: good.Seed},
		"the longest seed":       {Public: good.Public, Duplicate: good.Duplicate, Seed: bytes.Repeat([]byte{0xff}, maxWrappedSeed)},
		"one for another parent": wrap(t, ev.EKPublic, pcrs, random(32)),
	} {
		if got, err := dev.Unwrap(w); err == nil {
			t.Errorf("%s: got %d bytes, want an error", name, len(got))
		}
	}
	if _, err := dev.Unwrap(good); err != nil {
		t.Errorf("the right one after all of these: %v", err)
	}
	empty(t, d, dev)
	if _, err := New(d).Unwrap(good); err == nil {
		t.Error("without Collect: no error")
	}
}

func FuzzWrappedPublic(f *testing.F) {
	policy := make([]byte, 32)
	p := sealTemplate(policy)
	f.Add(tpm2.Marshal(p))
	f.Add(tpm2.Marshal(tpm2.RSAEKTemplate))
	f.Add(tpm2.Marshal(akTemplate("s")))
	f.Fuzz(func(t *testing.T, b []byte) {
		dev := &TPM{tkPolicy: policy}
		if err := dev.checkWrapped(attest.WrappedKey{Public: b, Duplicate: []byte{1}, Seed: []byte{1}}); err == nil && len(b) > maxWrappedPublic {
			t.Fatalf("accepted %d bytes", len(b))
		}
	})
}
