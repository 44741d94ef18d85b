package tpm

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest/tpm/pcrsig"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// signingKey makes a PCR signing key, and its public part as a .pcrpkey section.
func signingKey(t testing.TB) (*rsa.PrivateKey, []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func signed(t testing.TB, key *rsa.PrivateKey, pcr11 []byte) []byte {
	t.Helper()
	file, err := pcrsig.Sign(key, map[string][]byte{"sha256": pcr11})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDeviceHalfOpensInSignedStatesOnly(t *testing.T) {
	key, pub := signingKey(t)
	otherKey, otherPub := signingKey(t)
	secret := random(32)
	d := tpmtest.Open(t)
	d.Extend(11, []byte("image 1"))
	image1 := signed(t, key, d.PCR("sha256", 11))
	dev := New(d)
	blob, err := dev.SealDeviceHalf(secret, pub)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(blob, secret) {
		t.Fatal("the secret is in the blob")
	}
	open := func(name string, blob, pub, sigs []byte, fault string) {
		t.Helper()
		got, err := dev.UnsealDeviceHalf(blob, pub, sigs)
		if fault == "" {
			if err != nil || !bytes.Equal(got, secret) {
				t.Errorf("%s: got the secret: %v, error %v", name, bytes.Equal(got, secret), err)
			}
		} else if err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: got %v, want an error with %q", name, err, fault)
		}
	}
	open("the boot that sealed it", blob, pub, image1, "")

	d.Reset()
	d.Extend(11, []byte("image 2"))
	image2 := signed(t, key, d.PCR("sha256", 11))
	open("an updated image with its signature", blob, pub, image2, "")
	open("an updated image with the old signature", blob, pub, image1, "none of 1 signatures")
	open("an image signed by another key", blob, pub, signed(t, otherKey, d.PCR("sha256", 11)), "none of 1 signatures")
	open("an image that brings another key", blob, otherPub, signed(t, otherKey, d.PCR("sha256", 11)), "sealed to the policy")
	open("no signatures", blob, pub, []byte("{}"), "none of 0 signatures")
	open("signatures of another bank", blob, pub, bytes.Replace(image2, []byte("sha256"), []byte("sha384"), 1), "none of 1 signatures")
	open("signatures of a bank that policies are not made for", blob, pub, bytes.Replace(image2, []byte("sha256"), []byte("sha512"), 1), "none of 0 signatures")
	open("damaged signatures", blob, pub, image2[:100], "pcr signatures")
	open("no key", blob, nil, image2, "pcr key")
	open("two signatures, the second of this state", blob, pub,
		[]byte(`{"sha256":[`+between(image1)+`,`+between(image2)+`]}`), "")
	wrong := bytes.Clone(image2)
	at := bytes.LastIndex(wrong, []byte(`"sig":"`)) + 20
	wrong[at] = 'A' + (wrong[at]+1-'A')%26
	open("a wrong signature", blob, pub, wrong, "signature of pcr policy")

	d.Extend(11, []byte("later phase"))
	open("after PCR 11 was extended", blob, pub, image2, "none of 1 signatures")
	empty(t, d, dev)

	foreign := tpmtest.Config{CA: d.CA}.Open(t)
	foreign.Extend(11, []byte("image 1"))
	dev = New(foreign)
	open("on another TPM", blob, pub, image1, "another TPM")
	empty(t, foreign, dev)
}

// between returns the entry in a file of one entry.
func between(file []byte) string {
	s := string(file)
	return s[strings.Index(s, "[")+1 : strings.LastIndex(s, "]")]
}

// The software checks of UnsealDeviceHalf only give better errors: the TPM
// must refuse by itself.
func TestTPMItselfRefusesOtherStatesAndSignatures(t *testing.T) {
	key, pub := signingKey(t)
	d := tpmtest.Open(t)
	dev := New(d)
	blob, err := dev.SealDeviceHalf(random(32), pub)
	if err != nil {
		t.Fatal(err)
	}
	half, err := parseDeviceHalf(blob)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := pcrsig.Parse(signed(t, key, d.PCR("sha256", 11)))
	if err != nil {
		t.Fatal(err)
	}
	wrong := entries[0]
	wrong.Signature = bytes.Clone(wrong.Signature)
	wrong.Signature[0] ^= 1
	if _, err := dev.approve(&wrong, &key.PublicKey); !errors.Is(err, tpm2.TPMRCSignature) {
		t.Errorf("a wrong signature: got %v, want %v", err, tpm2.TPMRCSignature)
	}
	left := 1
	dev.transport = &interposed{d, func(cc tpm2.TPMCC) {
		if cc == tpm2.TPMCCPolicyPCR && left > 0 {
			left--
			d.Extend(11, []byte("x"))
		}
	}}
	if _, err := dev.unsealDeviceHalf(half, &key.PublicKey, entries); !errors.Is(err, tpm2.TPMRCValue) {
		t.Errorf("PCR 11 extended after it was read: got %v, want %v", err, tpm2.TPMRCValue)
	}
	empty(t, d, dev)
}

func TestDeviceHalfRefusesPlantedObjects(t *testing.T) {
	key, pub := signingKey(t)
	d := tpmtest.Open(t)
	dev := New(d)
	blob, err := dev.SealDeviceHalf(random(32), pub)
	if err != nil {
		t.Fatal(err)
	}
	sigs := signed(t, key, d.PCR("sha256", 11))
	change := func(f func(*tpm2.TPMTPublic)) []byte {
		half, err := parseDeviceHalf(blob)
		if err != nil {
			t.Fatal(err)
		}
		p, err := tpm2.Unmarshal[tpm2.TPMTPublic](half.public)
		if err != nil {
			t.Fatal(err)
		}
		f(p)
		half.public = tpm2.Marshal(*p)
		return half.marshal()
	}
	damaged := bytes.Clone(blob)
	damaged[len(damaged)-60] ^= 1
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"another magic":       append([]byte("x"), blob...),
		"cut off":             blob[:len(blob)-1],
		"bytes behind":        append(bytes.Clone(blob), 0),
		"too long":            append(bytes.Clone(blob), make([]byte, maxDeviceHalf)...),
		"damaged":             damaged,
		"no policy":           change(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = nil }),
		"one with a password": change(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true }),
		"one from elsewhere":  change(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }),
		"other contents": change(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: random(32)})
		}),
	} {
		if got, err := dev.UnsealDeviceHalf(b, pub, sigs); err == nil {
			t.Errorf("%s: got %d bytes, want an error", name, len(got))
		}
	}
	for name, secret := range map[string][]byte{"nothing": nil, "129 bytes": make([]byte, 129)} {
		if _, err := dev.SealDeviceHalf(secret, pub); err == nil {
			t.Errorf("%s is sealed", name)
		}
	}
	for _, n := range []int{1, 128} {
		b, err := dev.SealDeviceHalf(make([]byte, n), pub)
		if err != nil {
			t.Errorf("%d bytes are not sealed: %v", n, err)
			continue
		}
		if got, err := dev.UnsealDeviceHalf(b, pub, sigs); err != nil || len(got) != n {
			t.Errorf("%d bytes sealed: got %d, error %v", n, len(got), err)
		}
	}
	empty(t, d, dev)
}

func TestDeviceHalfCanBeUsedBetweenCollectAndUnwrap(t *testing.T) {
	d, dev, ev, in := collected(t, tpmtest.Config{})
	key, pub := signingKey(t)
	secret := random(32)
	w := wrap(t, ev.Transport.Public, sha256Quote(t, ev).PCRs, secret)
	blob, err := dev.SealDeviceHalf(random(32), pub)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.UnsealDeviceHalf(blob, pub, signed(t, key, d.PCR("sha256", 11))); err != nil {
		t.Fatal(err)
	}
	if got, err := dev.Unwrap(w); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("unwrap: %v", err)
	}
	again, err := dev.Collect(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.AKPublic, ev.AKPublic) {
		t.Error("the attestation key is another one")
	}
	empty(t, d, dev)
}

func FuzzDeviceHalf(f *testing.F) {
	d := deviceHalf{public: []byte{1}, private: []byte{2, 3}, srk: []byte{4}}
	f.Add(d.marshal())
	f.Add([]byte(deviceHalfMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDeviceHalf(b)
		if err == nil && !bytes.Equal(d.marshal(), b) {
			t.Fatalf("%x does not come back", b)
		}
	})
}
