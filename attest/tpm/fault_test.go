package tpm

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/pcrsig"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// failingNth fails one command, the one of that number, with TPM_RC_FAILURE.
type failingNth struct {
	*tpmtest.TPM
	number, sent int
	failed       tpm2.TPMCC // 0: none yet
}

func (f *failingNth) Send(b []byte) ([]byte, error) {
	f.sent++
	if f.sent == f.number {
		f.failed = tpm2.TPMCC(binary.BigEndian.Uint32(b[6:10]))
		return []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x01}, nil
	}
	return f.TPM.Send(b)
}

// Each operation is done again and again, while one command after the other fails.
func TestACommandThatFailsIsAnErrorAndLeavesNothing(t *testing.T) {
	_, pub := signingKey(t)
	key, pub2 := signingKey(t)
	for name, op := range map[string]struct {
		// prepare returns what is tried. What of it is no error although a
		// command failed returns errTold.
		prepare func(t *testing.T, d *tpmtest.TPM, dev *TPM) func() error
	}{
		"identify": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			return func() error {
				id, err := dev.Identify("test")
				if err == nil && len(id.EK.Problems) > 0 {
					return errTold
				}
				return err
			}
		}},
		"identify again": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			identified(t, dev)
			if _, err := dev.Collect(t.Context(), input()); err != nil {
				t.Fatal(err)
			}
			return func() error {
				id, err := dev.Identify("test")
				if err == nil && len(id.EK.Problems) > 0 {
					return errTold
				}
				return err
			}
		}},
		"identify as a machine": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			machine, err := attest.EKMachineID(identified(t, dev).EK.Public)
			if err != nil {
				t.Fatal(err)
			}
			return func() error { _, err := dev.IdentifyAs("test", machine); return err }
		}},
		"activate": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			blob, secret, _ := credential(t, identified(t, dev))
			return func() error { _, err := dev.Activate(blob, secret); return err }
		}},
		"activate after the keys were removed": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			blob, secret, _ := credential(t, identified(t, dev))
			if err := dev.Rest(); err != nil {
				t.Fatal(err)
			}
			return func() error { _, err := dev.Activate(blob, secret); return err }
		}},
		"other endorsement keys": {func(t *testing.T, d *tpmtest.TPM, dev *TPM) func() error {
			d.DefineNV(0x01c00014, certify(t, d, highRange(tpm2.TPMECCNistP256)))
			identified(t, dev)
			return func() error {
				defer d.UndefineNV(0x01c00014)
				n, err := dev.EachOtherEK(func([]byte) error { return nil })
				if err == nil && n != 1 {
					t.Errorf("%d other keys, want 1", n)
				}
				return err
			}
		}},
		"collect": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			identified(t, dev)
			return func() error {
				in := input()
				in.ProveBanks = true
				ev, err := dev.Collect(t.Context(), in)
				if err == nil && ev.NoBanks != "" && strings.Contains(ev.NoBanks, tpm2.TPMRCFailure.Error()) {
					return errTold
				}
				return err
			}
		}},
		"collect again, after a rest": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			identified(t, dev)
			if err := dev.Rest(); err != nil {
				t.Fatal(err)
			}
			if _, err := dev.Collect(t.Context(), input()); err != nil {
				t.Fatal(err)
			}
			return func() error { _, err := dev.Collect(t.Context(), input()); return err }
		}},
		"unwrap": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			identified(t, dev)
			ev, err := dev.Collect(t.Context(), input())
			if err != nil {
				t.Fatal(err)
			}
			w := wrap(t, ev.Transport.Public, sha256Quote(t, ev).PCRs, random(32))
			return func() error { _, err := dev.Unwrap(w); return err }
		}},
		"seal": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			identified(t, dev)
			return func() error {
				blob, err := dev.SealDeviceHalf(random(32), pub)
				if err != nil && blob != nil {
					t.Error("a blob beside an error")
				}
				return err
			}
		}},
		"unseal": {func(t *testing.T, d *tpmtest.TPM, dev *TPM) func() error {
			blob, err := dev.SealDeviceHalf(random(32), pub2)
			if err != nil {
				t.Fatal(err)
			}
			identified(t, dev)
			signatures := signed(t, key, d.PCR("sha256", pcrsig.KernelPCR))
			return func() error {
				secret, err := dev.UnsealDeviceHalf(blob, pub2, signatures)
				if err != nil && secret != nil {
					t.Error("a secret beside an error")
				}
				return err
			}
		}},
		"report": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			id := identified(t, dev)
			in := input()
			return func() error {
				_, err := dev.Report(t.Context(), ReportInput{
					Service: "test", EKPublic: id.EK.Public, AKPublic: id.AKPublic, Nonce: in.Nonce, Exporter: in.Exporter, EventLog: in.EventLog,
				})
				return err
			}
		}},
		"cap": {func(_ *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			return func() error { return dev.Cap("state", random(32), "uuid") }
		}},
		"rest": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			identified(t, dev)
			return dev.Rest
		}},
		"close": {func(t *testing.T, _ *tpmtest.TPM, dev *TPM) func() error {
			identified(t, dev)
			return dev.Close
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d := tpmtest.Config{P256Certificate: true}.Open(t)
			// Others would be tried where a certificate cannot be read.
			d.UndefineNV(0x01c00016)
			d.UndefineNV(0x01c00002)
			for number := 1; ; number++ {
				f := &failingNth{TPM: d}
				dev := New(f)
				try := op.prepare(t, d, dev)
				f.number = f.sent + number
				err := try()
				if f.failed == 0 {
					if err != nil {
						t.Errorf("without a failure: %v", err)
					}
					if number == 1 {
						t.Error("no command was sent")
					}
					return
				}
				if !errors.Is(err, tpm2.TPMRCFailure) && !errors.Is(err, errTold) {
					t.Errorf("command %d, %v, failed: got %v", number, f.failed, err)
				}
				if err := dev.Close(); err != nil {
					t.Error(err)
				}
				// What cannot be flushed stays.
				flushed := f.failed != tpm2.TPMCCFlushContext
				if n := d.Objects(); flushed && n != 0 {
					t.Errorf("command %d, %v, failed: %d objects or sessions are left in the TPM", number, f.failed, n)
				}
				if !flushed {
					d.Reset()
				}
			}
		})
	}
}

// errTold: a failure is part of what an operation returns.
var errTold = errors.New("told")

func identified(t *testing.T, dev *TPM) *Identity {
	t.Helper()
	id, err := dev.Identify("test")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAQuoteOfABankThatIsSaidToBeOffIsRefusedWhereItIsNot(t *testing.T) {
	d := tpmtest.Open(t)
	dev := New(d)
	identified(t, dev)
	b, err := bankNamed("sha256")
	if err != nil {
		t.Fatal(err)
	}
	if q, err := dev.quote(b, nil, random(32)); err == nil || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("got %+v, %v", q, err)
	}
	empty(t, d, dev)
}

func TestNoncesOfTemplatesAreBounded(t *testing.T) {
	for alg, size := range map[tpm2.TPMAlgID]int{tpm2.TPMAlgRSA: 256, tpm2.TPMAlgECC: 32} {
		nonce := random(size)
		u, err := uniqueNonce(alg, nonce[:size-1])
		if err != nil {
			t.Fatal(err)
		}
		// TPM2B_PUBLIC_KEY_RSA, or the x of a TPMS_ECC_POINT.
		got := tpm2.Marshal(tpm2.TPMTPublic{Type: alg, NameAlg: tpm2.TPMAlgSHA256, Parameters: parameters(alg), Unique: u})
		want := slices.Concat(binary.BigEndian.AppendUint16(nil, uint16(size)), nonce[:size-1], []byte{0})
		if alg == tpm2.TPMAlgECC {
			want = append(want, append([]byte{0, 32}, make([]byte, 32)...)...)
		}
		if !slices.Equal(got[len(got)-len(want):], want) {
			t.Errorf("%v: got %x, want %x at the end", alg, got, want)
		}
		if _, err := uniqueNonce(alg, nonce); err != nil {
			t.Errorf("%v: %v", alg, err)
		}
		if _, err := uniqueNonce(alg, append(nonce, 0)); err == nil {
			t.Errorf("%v: a nonce of %d bytes was taken", alg, size+1)
		}
	}
}

func parameters(alg tpm2.TPMAlgID) tpm2.TPMUPublicParms {
	if alg == tpm2.TPMAlgRSA {
		return tpm2.RSAEKTemplate.Parameters
	}
	return tpm2.ECCEKTemplate.Parameters
}
