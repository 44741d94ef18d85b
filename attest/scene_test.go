package attest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/image/manifest"
)

func newKey(tb testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func akArea(tb testing.TB, k *ecdsa.PublicKey) tpm2.TPMTPublic {
	tb.Helper()
	p, err := papertpm.AKArea(k)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func ekArea(tb testing.TB, k crypto.PublicKey) tpm2.TPMTPublic {
	tb.Helper()
	p, err := papertpm.EKArea(k)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func newCA(tb testing.TB) *papertpm.CA {
	tb.Helper()
	ca, err := papertpm.NewCA(now.Add(-time.Hour), now.Add(time.Hour))
	if err != nil {
		tb.Fatal(err)
	}
	return ca
}

// certify issues an endorsement certificate; change alters the template.
func certify(tb testing.TB, ca *papertpm.CA, pub crypto.PublicKey, change func(*x509.Certificate)) *x509.Certificate {
	tb.Helper()
	c, err := ca.Certify(pub, change)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func newTPM(tb testing.TB, ca *papertpm.CA) *papertpm.TPM {
	tb.Helper()
	d, err := papertpm.New(newKey(tb, elliptic.P256()))
	if err == nil {
		err = ca.Equip(d)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func sign(tb testing.TB, d *papertpm.TPM, message []byte) []byte {
	tb.Helper()
	b, err := d.Sign(message)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func digestOf(s string) manifest.SHA256 { return sha256.Sum256([]byte(s)) }

// scene is a boot of a machine and what the service knows of it. The new scene
// is accepted.
type scene struct {
	*papertpm.Boot
	t    testing.TB
	ca   *papertpm.CA
	tpm  *papertpm.TPM
	pcrs map[string]map[int][]byte // quoted instead of those that the boot leaves

	ch     *Challenge
	ses    *Session
	known  *Known
	policy *Policy
	ev     *Evidence
}

func newScene(tb testing.TB) *scene {
	tb.Helper()
	ca := newCA(tb)
	d := newTPM(tb, ca)
	s := &scene{
		Boot: papertpm.GoodBoot(), t: tb, ca: ca, tpm: d,
		ses:   &Session{Exporter: bytes.Repeat([]byte{7}, 32), Now: now},
		known: &Known{State: StateEnrolled, DiskGUID: papertpm.Disk, StateMade: true, ResetCount: 6, Clock: 40_000, AKName: d.Name(), TPMFirmware: d.Firmware},
		policy: &Policy{
			ID: "test policy", Images: []*manifest.Manifest{papertpm.GoodImage()},
			Firmware: FirmwarePolicy{References: []FirmwareReference{
				papertpm.GoodFirmware(),
				{Vendor: "Paper", Product: "Box", Version: "2.0", Digests: []manifest.SHA256{digestOf("dxe volume 2")}, Unpinned: 1, Status: FirmwareAllowed},
				{Vendor: "Paper", Product: "Box", Version: "0.9", Digests: []manifest.SHA256{digestOf("dxe volume 0")}, Unpinned: 1, Status: FirmwareDenied, Reason: "CVE-1"},
			}},
			TPM: TPMPolicy{Roots: []TPMRoot{{Class: TPMSoftware, Certificate: ca.Root}}, Allowed: []TPMClass{TPMSoftware}},
		},
	}
	s.ch = &Challenge{
		ID: "challenge-1", Purpose: PurposeUnlock, Nonce: bytes.Repeat([]byte{9}, 32), ActivationSecret: bytes.Repeat([]byte{5}, 32),
		Expires: now.Add(time.Minute),
	}
	return s
}

// collect makes the evidence.
func (s *scene) collect() {
	s.t.Helper()
	s.Measure(s.tpm)
	if s.pcrs != nil {
		s.tpm.PCRs = s.pcrs
	}
	s.ch.AKPublic, s.ch.EKPublic = tpm2.Marshal(s.tpm.AKPublic), tpm2.Marshal(s.tpm.EKPublic)
	var err error
	if s.ev, err = s.tpm.Evidence(s.Boot, s.ch.Purpose, s.ch.Nonce, s.ses.Exporter); err != nil {
		s.t.Fatal(err)
	}
	s.ses.ActivationProof = ActivationProof(s.ch.ActivationSecret, s.ch.ID, s.ch.Nonce, s.ev.AKPublic)
}

func (s *scene) verify() *Result { return Verify(s.ev, s.ch, s.ses, s.known, s.policy) }

// replace changes the first measurement for which match holds.
func (s *scene) replace(match func(papertpm.Measurement) bool, change func(*papertpm.Measurement)) {
	s.t.Helper()
	for i := range s.Measured {
		if match(s.Measured[i]) {
			change(&s.Measured[i])
			return
		}
	}
	s.t.Fatal("no such measurement")
}

// insertAfter adds measurements behind the first for which match holds.
func (s *scene) insertAfter(match func(papertpm.Measurement) bool, add ...papertpm.Measurement) {
	s.t.Helper()
	for i := range s.Measured {
		if match(s.Measured[i]) {
			s.Measured = append(s.Measured[:i+1:i+1], append(add, s.Measured[i+1:]...)...)
			return
		}
	}
	s.t.Fatal("no such measurement")
}

// of matches a measurement by what was measured.
func of(measured string) func(papertpm.Measurement) bool {
	return func(m papertpm.Measurement) bool { return string(m.Bytes()) == measured }
}

func isSeparatorOf(pcr int) func(papertpm.Measurement) bool {
	return func(m papertpm.Measurement) bool { return m.PCR == pcr && m.Type == EventSeparator }
}
