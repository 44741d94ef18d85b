package tpm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// nvTPM has one NV index, and says of it what a test has it say.
type nvTPM struct {
	data   []byte
	public []byte                                  // answer to TPM2_NV_ReadPublic; nil: that of data
	max    []byte                                  // answer to TPM2_GetCapability
	read   func(size, offset int, b []byte) []byte // answer to TPM2_NV_Read; nil: b, whole
	sizes  []int                                   // that were asked for
}

func (n *nvTPM) Send(command []byte) ([]byte, error) {
	switch c := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])); c {
	case tpm2.TPMCCNVReadPublic:
		if n.public != nil {
			return n.public, nil
		}
		return nvPublic(uint16(len(n.data))), nil
	case tpm2.TPMCCGetCapability:
		return n.max, nil
	case tpm2.TPMCCNVRead:
		size, offset := int(binary.BigEndian.Uint16(command[len(command)-4:])), int(binary.BigEndian.Uint16(command[len(command)-2:]))
		n.sizes = append(n.sizes, size)
		if len(n.sizes) > 1000 {
			panic("the index is read without end")
		}
		b := n.data[min(offset, len(n.data)):min(offset+size, len(n.data))]
		if n.read != nil {
			return n.read(size, offset, b), nil
		}
		return nvAnswer(b), nil
	default:
		return nil, fmt.Errorf("command %#x", uint32(c))
	}
}

// nvAnswer is what a TPM answers to TPM2_NV_Read with a password session.
func nvAnswer(b []byte) []byte {
	return sessionResponse(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...), []byte{0, 0, 1, 0, 0})
}

func sessionResponse(parameters, auth []byte) []byte {
	r := response(binary.BigEndian.AppendUint32(nil, uint32(len(parameters))), parameters, auth)
	r[1] = 0x02 // TPM_ST_SESSIONS
	return r
}

// property is TPM2_GetCapability's answer: properties and their values.
func property(more byte, list ...uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte{more}, uint32(tpm2.TPMCapTPMProperties))
	b = binary.BigEndian.AppendUint32(b, uint32(len(list)/2))
	for _, v := range list {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return response(b)
}

func TestAnNVIndexIsReadInPiecesAsLargeAsTheTPMGives(t *testing.T) {
	const buffer = uint32(tpm2.TPMPTNVBufferMax)
	data := random(3000)
	for claim, tt := range map[string]struct {
		max   []byte
		first int // size of the first read
		reads int
	}{
		"as it says":                   {property(0, buffer, 768), 768, 4},
		"as small as is taken":         {property(0, buffer, 64), 64, 47},
		"not smaller":                  {property(0, buffer, 63), 512, 6},
		"none":                         {property(0, buffer, 0), 512, 6},
		"not larger than an answer":    {property(0, buffer, 1025), 1024, 3},
		"as large as it can say":       {property(0, buffer, 0xffffffff), 1024, 3},
		"it says nothing":              {property(0), 512, 6},
		"it says another thing":        {property(0, buffer+1, 768), 512, 6},
		"it says it twice":             {property(0, buffer, 768, buffer, 64), 512, 6},
		"it says more than was asked":  {property(1, buffer, 768), 768, 4},
		"and this after another thing": {property(0, buffer-1, 1, buffer, 768), 512, 6},
	} {
		n := &nvTPM{data: data, max: tt.max}
		got, err := New(n).readNV(0x01c00002)
		if err != nil || !bytes.Equal(got, data) || len(n.sizes) != tt.reads || n.sizes[0] != tt.first {
			t.Errorf("%s: %v, equal %t, reads %d; want %d of %d", claim, err, bytes.Equal(got, data), n.sizes, tt.reads, tt.first)
		}
	}
	for claim, max := range map[string][]byte{
		"cut off":               property(0, buffer, 768)[:20],
		"empty":                 response(),
		"of another capability": handles(0, 1),
		"a failure":             {0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x01},
		"more than it holds":    response([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCapTPMProperties)), []byte{0xff, 0xff, 0xff, 0xff}),
	} {
		n := &nvTPM{data: data, max: max}
		if got, err := New(n).readNV(0x01c00002); err == nil || got != nil || !strings.Contains(err.Error(), "TPM_PT_NV_BUFFER_MAX") {
			t.Errorf("an answer %s: got %d bytes, %v", claim, len(got), err)
		}
	}
}

// A TPM that gives something else than was asked for gives nothing: half a certificate,
// or the parts of it in other places, would be taken for what its maker wrote.
func TestAnAnswerOfAnotherSizeThanWasAskedIsNoPartOfAnNVIndex(t *testing.T) {
	data := random(1500)
	for claim, tt := range map[string]struct {
		read func(size, offset int, b []byte) []byte
		says string
	}{
		"whole": {nil, ""},
		"a byte less at first": {func(_, offset int, b []byte) []byte {
			if offset == 0 {
				return nvAnswer(b[1:])
			}
			return nvAnswer(b)
		}, "read at 0: got 767 bytes, want 768"},
		"a byte less in the end": {func(size, offset int, b []byte) []byte {
			if offset > 0 {
				return nvAnswer(b[:len(b)-1])
			}
			return nvAnswer(b)
		}, "read at 768: got 731 bytes, want 732"},
		"a byte more":             {func(_, _ int, b []byte) []byte { return nvAnswer(append(bytes.Clone(b), 0)) }, "got 769 bytes, want 768"},
		"nothing":                 {func(_, _ int, _ []byte) []byte { return nvAnswer(nil) }, "got 0 bytes, want 768"},
		"all of it at once":       {func(_, _ int, _ []byte) []byte { return nvAnswer(data) }, "got 1500 bytes, want 768"},
		"the most that it may be": {func(_, _ int, _ []byte) []byte { return nvAnswer(make([]byte, 0xffff)) }, "read 768 bytes at 0"},
		"a length without the bytes": {func(_, _ int, b []byte) []byte {
			return sessionResponse(append([]byte{0xff, 0xff}, b...), []byte{0, 0, 1, 0, 0})
		}, "read 768 bytes at 0"},
		"no length":  {func(_, _ int, _ []byte) []byte { return sessionResponse(nil, []byte{0, 0, 1, 0, 0}) }, "read at 0: got 0 bytes, want 768"},
		"no session": {func(_, _ int, b []byte) []byte { return sessionResponse(append([]byte{3, 0}, b...), nil) }, "read 768 bytes at 0"},
		"a tag without sessions": {func(_, _ int, b []byte) []byte {
			return response(append([]byte{3, 0}, b...))
		}, "read 768 bytes at 0"},
		"nothing at all": {func(_, _ int, _ []byte) []byte { return nil }, "read 768 bytes at 0"},
		"half a header":  {func(_, _ int, b []byte) []byte { return nvAnswer(b)[:9] }, "read 768 bytes at 0"},
		"cut off":        {func(_, _ int, b []byte) []byte { return nvAnswer(b)[:400] }, "read 768 bytes at 0"},
	} {
		t.Run(claim, func(t *testing.T) {
			n := &nvTPM{data: data, max: property(0, uint32(tpm2.TPMPTNVBufferMax), 768), read: tt.read}
			got, err := New(n).readNV(0x01c00002)
			if tt.says == "" {
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
				return
			}
			if err == nil || got != nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "0x1c00002") {
				t.Errorf("got %d bytes, %v; want an error with %q", len(got), err, tt.says)
			}
		})
	}
}

func TestADamagedPublicAreaOfAnNVIndexIsAnError(t *testing.T) {
	good := nvPublic(700)
	for claim, public := range map[string][]byte{
		"cut off":                    good[:20],
		"no public area":             response([]byte{0, 0, 0, 0}),
		"half a public area":         response([]byte{0, 5}, good[12:17], []byte{0, 0}),
		"a length beyond its end":    response([]byte{0xff, 0xff}, good[12:]),
		"empty":                      response(),
		"a failure":                  {0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x01},
		"no index of that number":    {0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x8b},
		"nothing":                    nil,
		"larger than what is read":   nvPublic(maxNV + 1),
		"as large as a TPM can have": nvPublic(0xffff),
	} {
		n := &nvTPM{data: make([]byte, 700), public: public, max: property(0, uint32(tpm2.TPMPTNVBufferMax), 768)}
		if public == nil {
			n.public = []byte{}
		}
		if got, err := New(n).readNV(0x01c00002); err == nil || got != nil || len(n.sizes) > 0 || !strings.Contains(err.Error(), "0x1c00002") {
			t.Errorf("%s: got %d bytes after %d reads, %v", claim, len(got), len(n.sizes), err)
		}
	}
	if got, err := New(&nvTPM{max: property(0)}).readNV(0x01c00002); err != nil || len(got) != 0 {
		t.Errorf("an empty index: got %d bytes, %v", len(got), err)
	}
}

// shortNV is a TPM whose answers to TPM2_NV_Read of one index lack a byte.
type shortNV struct {
	*tpmtest.TPM
	index uint32
}

func (s *shortNV) Send(command []byte) ([]byte, error) {
	rsp, err := s.TPM.Send(command)
	if err == nil && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCNVRead && binary.BigEndian.Uint32(command[14:]) == s.index {
		n := int(binary.BigEndian.Uint16(rsp[14:]))
		rsp = nvAnswer(rsp[16 : 16+n-1])
	}
	return rsp, err
}

func TestACertificateOfWhichTheTPMGivesLessIsPassedOverAndTold(t *testing.T) {
	for claim, tt := range map[string]struct {
		index uint32
		kind  string
		certs int
	}{
		"of the key that goes first": {0x01c0000a, "ECC P-384", 2},
		"of an issuer":               {0x01c00100, "ECC P-256", 1},
	} {
		t.Run(claim, func(t *testing.T) {
			t.Parallel()
			d := tpmtest.Config{P256Certificate: true, Chain: true}.Open(t)
			dev := New(&shortNV{d, tt.index})
			id, err := dev.Identify("test")
			if err != nil {
				t.Fatal(err)
			}
			if id.EK.Kind != tt.kind || len(id.EK.Certificates) != tt.certs || len(id.EK.Problems) != 1 || !strings.Contains(id.EK.Problems[0].Error(), fmt.Sprintf("%#x: read at", tt.index)) {
				t.Errorf("got %s with %d certificates, problems %v", id.EK.Kind, len(id.EK.Certificates), id.EK.Problems)
			}
			empty(t, d, dev)
		})
	}
}
