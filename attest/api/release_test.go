package api

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/strict"
)

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sample(t testing.TB, transport attest.Secret) (*Release, *Secrets) {
	t.Helper()
	s := &Secrets{
		DiskKey: bytes.Repeat([]byte{7}, 32), NodeName: "box-1",
		Join: &Join{Server: "https://10.0.0.1:6443", CA: []byte("pem"), Token: attest.Secret("abcdef.0123456789abcdef"), Expires: time.Unix(9, 0).UTC()},
	}
	sealed, err := SealSecrets(transport, "r1", s)
	if err != nil {
		t.Fatal(err)
	}
	return &Release{ID: "r1", ChallengeID: "c1", Sealed: sealed}, s
}

func TestReleaseRoundTrip(t *testing.T) {
	key := newKey(t, elliptic.P256())
	transport := attest.Secret(bytes.Repeat([]byte{1}, TransportSecretSize))
	r, want := sample(t, transport)
	e, err := SignRelease(key, r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := VerifyRelease(e, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenSecrets(transport, got)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(s)
	if !bytes.Equal(a, b) {
		t.Errorf("got %s, want %s", b, a)
	}
}

func TestVerifyReleaseRefuses(t *testing.T) {
	key := newKey(t, elliptic.P256())
	r, _ := sample(t, bytes.Repeat([]byte{1}, TransportSecretSize))
	tests := map[string]func(e *Envelope){
		"another payload type": func(e *Envelope) { e.PayloadType = "application/json" },
		"no signature":         func(e *Envelope) { e.Signatures = nil },
		"two signatures":       func(e *Envelope) { e.Signatures = append(e.Signatures, e.Signatures[0]) },
		"altered payload":      func(e *Envelope) { e.Payload = bytes.Replace(e.Payload, []byte("r1"), []byte("r2"), 1) },
		"altered signature":    func(e *Envelope) { e.Signatures[0].Sig[9] ^= 1 },
		"another's signature": func(e *Envelope) {
			other, err := SignRelease(newKey(t, elliptic.P256()), r)
			if err != nil {
				t.Fatal(err)
			}
			e.Signatures = other.Signatures
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			e, err := SignRelease(key, r)
			if err != nil {
				t.Fatal(err)
			}
			spoil(e)
			if got, err := VerifyRelease(e, &key.PublicKey); err == nil {
				t.Errorf("got %+v, want an error", got)
			}
		})
	}
	if _, err := VerifyRelease(nil, &key.PublicKey); err == nil {
		t.Error("no envelope: no error")
	}
	p384 := newKey(t, elliptic.P384())
	if _, err := SignRelease(p384, r); err == nil {
		t.Error("P-384: no error")
	}
}

func TestSecretsOpenForOneReleaseAndSecretOnly(t *testing.T) {
	transport := attest.Secret(bytes.Repeat([]byte{1}, TransportSecretSize))
	r, _ := sample(t, transport)
	other := attest.Secret(bytes.Repeat([]byte{2}, TransportSecretSize))
	renamed := *r
	renamed.ID = "r2"
	cut := *r
	cut.Sealed = cut.Sealed[:5]
	for name, f := range map[string]func() (*Secrets, error){
		"another transport secret": func() (*Secrets, error) { return OpenSecrets(other, r) },
		"a short one":              func() (*Secrets, error) { return OpenSecrets(other[:16], r) },
		"another release":          func() (*Secrets, error) { return OpenSecrets(transport, &renamed) },
		"cut":                      func() (*Secrets, error) { return OpenSecrets(transport, &cut) },
	} {
		if s, err := f(); err == nil {
			t.Errorf("%s: got %+v, want an error", name, s)
		}
	}
}

func TestSecretsPrintRedacted(t *testing.T) {
	_, s := sample(t, bytes.Repeat([]byte{1}, TransportSecretSize))
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		out := fmt.Sprintf(format, s) + fmt.Sprintf(format, *s.Join)
		if strings.Contains(out, "0123456789abcdef") || strings.Contains(out, "07070707") || strings.Contains(out, "7, 7") || strings.Contains(out, "[7 7") {
			t.Errorf("%s prints a secret: %s", format, out)
		}
	}
}

func TestConfirmProofDependsOnAll(t *testing.T) {
	k := attest.Secret(bytes.Repeat([]byte{1}, 32))
	a := ConfirmProof(k, "r1", "x")
	for name, b := range map[string][]byte{
		"secret":   ConfirmProof(bytes.Repeat([]byte{2}, 32), "r1", "x"),
		"release":  ConfirmProof(k, "r2", "x"),
		"outcome":  ConfirmProof(k, "r1", "y"),
		"boundary": ConfirmProof(k, "r1x", ""),
	} {
		if bytes.Equal(a, b) {
			t.Errorf("another %s gives the same proof", name)
		}
	}
}

func TestTheLargestEvidenceIsDecoded(t *testing.T) {
	full := EvidenceRequest{Evidence: attest.Evidence{EKCertificates: make([][]byte, attest.MaxCertificates), Quotes: make([]attest.Quote, attest.MaxBanks)}}
	for i := range full.Evidence.Quotes {
		full.Evidence.Quotes[i].PCRs = map[int][]byte{}
		for _, p := range attest.PolicyPCRs() {
			full.Evidence.Quotes[i].PCRs[p] = make([]byte, 64)
		}
	}
	full.Evidence.EventLog = make([]byte, attest.MaxEventLog)
	b, err := json.Marshal(&full)
	if err != nil {
		t.Fatal(err)
	}
	if err := strict.Decode(bytes.NewReader(b), new(EvidenceRequest)); err != nil {
		t.Errorf("the largest evidence: %v", err)
	}
}

func FuzzVerifyRelease(f *testing.F) {
	key := newKey(f, elliptic.P256())
	r, _ := sample(f, bytes.Repeat([]byte{1}, TransportSecretSize))
	e, err := SignRelease(key, r)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"payloadType":"application/vnd.sealift.release.v1+json","payload":"e30=","signatures":[{"sig":"MAA="}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Envelope
		if strict.Decode(bytes.NewReader(b), &e) != nil {
			return
		}
		got, err := VerifyRelease(&e, &key.PublicKey)
		if err == nil && got.ID != "r1" {
			t.Errorf("verified a release that was never signed: %+v", got)
		}
	})
}

func FuzzDecodeEvidence(f *testing.F) {
	f.Add([]byte(`{"challengeID":"c","activationProof":"","evidence":{"quotes":[{"bank":"sha256","pcrs":{"0":"AA=="}}]}}`))
	f.Add([]byte(`{"version":1,"purpose":"unlock"}`))
	f.Add([]byte(`{} {}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range []any{new(EvidenceRequest), new(ChallengeRequest), new(ConfirmRequest), new(InstallRecord), new(StateChange)} {
			if err := strict.Decode(bytes.NewReader(b), v); err == nil && !json.Valid(b) {
				t.Errorf("%T: decoded what is not JSON", v)
			}
		}
	})
}
