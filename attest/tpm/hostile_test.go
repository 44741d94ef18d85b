package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// scripted is a TPM that answers with prepared responses, whatever it is asked,
// and with the last one for ever.
type scripted struct {
	responses [][]byte
	asked     int
}

// maxCommands is far more than any way through the protocol needs.
const maxCommands = 300_000

func (s *scripted) Send([]byte) ([]byte, error) {
	if s.asked++; s.asked > maxCommands {
		panic("the TPM is asked without end")
	}
	if len(s.responses) == 0 {
		return nil, errors.New("no answer")
	}
	r := s.responses[0]
	if len(s.responses) > 1 {
		s.responses = s.responses[1:]
	}
	return bytes.Clone(r), nil
}

// recorder keeps the responses of a TPM, each with its length in front.
type recorder struct {
	*interposed
	heard []byte
}

func (r *recorder) Send(cmd []byte) ([]byte, error) {
	rsp, err := r.interposed.Send(cmd)
	r.heard = binary.BigEndian.AppendUint16(r.heard, uint16(len(rsp)))
	r.heard = append(r.heard, rsp...)
	return rsp, err
}

// attestOnce goes through the whole protocol with a TPM.
func attestOnce(dev *TPM) {
	id, err := dev.Identify("service")
	if err == nil {
		if _, _, _, err := attest.MakeCredential(id.EK.Public, id.AKPublic); err == nil {
			dev.Activate(make([]byte, 52), make([]byte, 256))
		}
		dev.Collect(context.Background(), input())
		dev.Unwrap(attest.WrappedKey{Public: make([]byte, 10), Duplicate: []byte{1}, Seed: []byte{1}})
	}
	dev.SealDeviceHalf(make([]byte, 32), nil)
	dev.Cap("state", make([]byte, 32), "uuid")
	dev.Rest()
}

// A machine's TPM is a device on a bus, and what is said to be its answer can come
// from whoever sits on that. Whatever it is, the agent neither panics, nor asks
// without end, nor takes more memory than the answers have.
func FuzzHostileTPM(f *testing.F) {
	f.Add([]byte{0, 10, 0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1})
	f.Add([]byte{0, 19, 0x80, 1, 0, 0, 0, 19, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &scripted{}
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			s.responses = append(s.responses, b[2:2+n])
			b = b[2+n:]
		}
		attestOnce(New(s))
	})
}

// The answers of a real TPM, from which the fuzzer starts. Those that are kept in
// testdata/fuzz were written by this test with UPDATE_CORPUS set.
func TestTheProtocolRunsFromARecording(t *testing.T) {
	for name, banks := range map[string][]string{"swtpm": {"sha256"}, "swtpm-sha384": {"sha384"}} {
		t.Run(name, func(t *testing.T) { runFromARecording(t, name, banks) })
	}
}

func runFromARecording(t *testing.T, name string, banks []string) {
	d := tpmtest.Config{Banks: banks, P256Certificate: true, Chain: true}.Open(t)
	r := &recorder{interposed: &interposed{TPM: d, before: func(tpm2.TPMCC) {}}}
	attestOnce(New(r))
	if len(r.heard) < 3000 {
		t.Fatalf("only %d bytes were said", len(r.heard))
	}
	writeCorpus(t, "FuzzHostileTPM", name, r.heard)
	s := &scripted{}
	for b := r.heard; len(b) > 0; {
		n := int(binary.BigEndian.Uint16(b))
		s.responses, b = append(s.responses, b[2:2+n]), b[2+n:]
	}
	dev := New(s)
	if id, err := dev.Identify("service"); err != nil || id.EK.Kind != "ECC P-256" || len(id.EK.Certificates) != 2 {
		t.Errorf("the recording does not lead to an identity: %v", err)
	}
}

// writeCorpus keeps an input of a fuzz target where UPDATE_CORPUS is set.
func writeCorpus(t *testing.T, target, name string, input []byte) {
	t.Helper()
	if os.Getenv("UPDATE_CORPUS") == "" {
		return
	}
	dir := filepath.Join("testdata", "fuzz", target)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", input)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
