package tpm

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// response is what a TPM answers with success to a command without a session.
func response(parameters ...[]byte) []byte {
	b := []byte{0x80, 0x01, 0, 0, 0, 0, 0, 0, 0, 0}
	for _, p := range parameters {
		b = append(b, p...)
	}
	binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
	return b
}

// handles is TPM2_GetCapability's answer: whether there are more, and which.
func handles(more byte, list ...uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte{more}, uint32(tpm2.TPMCapHandles))
	b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
	for _, h := range list {
		b = binary.BigEndian.AppendUint32(b, h)
	}
	return response(b)
}

func TestAListOfNVIndicesEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		responses [][]byte
		want      int // indices
		asked     int
	}{
		"in two parts":               {[][]byte{handles(1, 0x01c00002, 0x01c0000a), handles(0, 0x01c00100)}, 3, 2},
		"the same again and again":   {[][]byte{handles(1, 0x01c00002)}, 1, 2},
		"more that there is not":     {[][]byte{handles(1)}, 0, 1},
		"no more, and still another": {[][]byte{handles(0, 0x01c00002), handles(0, 0x01c0000a)}, 1, 1},
		"the last of the range":      {[][]byte{handles(0, nvChainLast)}, 1, 1},
		"beyond the range":           {[][]byte{handles(1, 0x01c00002, nvChainLast+1)}, 1, 1},
		"before the range":           {[][]byte{handles(1, 0x01c00001, 0x01c00002)}, 0, 1},
	} {
		s := &scripted{responses: tt.responses}
		got, err := New(s).nvIndices(nvFirst, nvChainLast)
		if err != nil || len(got) != tt.want || s.asked != tt.asked {
			t.Errorf("%s: got %x, %v after %d commands; want %d after %d", name, got, err, s.asked, tt.want, tt.asked)
		}
	}
}

// nvPublic is TPM2_NV_ReadPublic's answer for an index of so many bytes.
func nvPublic(size uint16) []byte {
	public := tpm2.Marshal(tpm2.TPMSNVPublic{NVIndex: 0x01c00002, NameAlg: tpm2.TPMAlgSHA256, Attributes: tpm2.TPMANV{OwnerRead: true}, DataSize: size})
	return response(binary.BigEndian.AppendUint16(nil, uint16(len(public))), public, []byte{0, 0})
}

func TestAnNVIndexIsBoundedAndReadWhole(t *testing.T) {
	if _, err := New(&scripted{responses: [][]byte{nvPublic(maxNV + 1)}}).readNV(0x01c00002); err == nil || !strings.Contains(err.Error(), "got 16385 bytes") {
		t.Errorf("too large: %v", err)
	}
	// What follows the largest is asked for.
	s := &scripted{responses: [][]byte{nvPublic(maxNV), {0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x01}}}
	if _, err := New(s).readNV(0x01c00002); err == nil || strings.Contains(err.Error(), "at most") || s.asked < 2 {
		t.Errorf("the largest: %v after %d commands", err, s.asked)
	}
}

func TestAChainOfTooManyCertificatesIsCut(t *testing.T) {
	for more, problems := range []int{0, 1} {
		d := tpmtest.Config{P256Certificate: true}.Open(t)
		for i := range attest.MaxCertificates - 1 + more {
			d.DefineNV(uint32(nvChainFirst+i), d.CA.Issuer.Raw)
		}
		dev := New(d)
		id, err := dev.Identify("test")
		if err != nil {
			t.Fatal(err)
		}
		if len(id.EK.Certificates) != attest.MaxCertificates || len(id.EK.Problems) != problems {
			t.Errorf("%d more: %d certificates, problems %v", more, len(id.EK.Certificates), id.EK.Problems)
		}
		empty(t, d, dev)
	}
}
