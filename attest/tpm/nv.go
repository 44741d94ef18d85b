package tpm

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
)

// maxNV bounds what is read from one NV index, in bytes, and minNVChunk the number
// of commands for that.
const (
	maxNV      = 16 << 10
	minNVChunk = 64
)

// nvIndices lists the NV indices that exist from first to last.
func (t *TPM) nvIndices(first, last uint32) ([]uint32, error) {
	var all []uint32
	for {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(t.transport)
		if err != nil {
			return nil, fmt.Errorf("list nv indices: %w", err)
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return nil, fmt.Errorf("list nv indices: %w", err)
		}
		for _, h := range list.Handle {
			// The TPM lists ascending handles of the same type; what is not
			// above the last one would make this loop endless.
			if uint32(h) < first || uint32(h) > last {
				return all, nil
			}
			all = append(all, uint32(h))
			first = uint32(h) + 1
		}
		if !rsp.MoreData || len(list.Handle) == 0 {
			return all, nil
		}
	}
}

// readNV reads a whole NV index that may be read with the empty authorization
// of the owner or of the index.
func (t *TPM) readNV(index uint32) ([]byte, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(t.transport)
	if err != nil {
		return nil, fmt.Errorf("nv index %#x: %w", index, err)
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("nv index %#x: decode public area: %w", index, err)
	}
	if public.DataSize > maxNV {
		return nil, fmt.Errorf("nv index %#x: got %d bytes, want at most %d", index, public.DataSize, maxNV)
	}
	named := tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: rsp.NVName}
	by := hierarchy(tpm2.TPMRHOwner)
	if public.Attributes.AuthRead {
		by = tpm2.AuthHandle{Handle: named.Handle, Name: named.Name, Auth: tpm2.PasswordAuth(nil)}
	}
	chunk, err := t.nvChunk()
	if err != nil {
		return nil, fmt.Errorf("nv index %#x: %w", index, err)
	}
	var data []byte
	for len(data) < int(public.DataSize) {
		n := min(chunk, int(public.DataSize)-len(data))
		rsp, err := tpm2.NVRead{AuthHandle: by, NVIndex: named, Size: uint16(n), Offset: uint16(len(data))}.Execute(t.transport)
		if err != nil {
			return nil, fmt.Errorf("nv index %#x: read %d bytes at %d: %w", index, n, len(data), hint(err))
		}
		if len(rsp.Data.Buffer) != n {
			return nil, fmt.Errorf("nv index %#x: read at %d: got %d bytes, want %d", index, len(data), len(rsp.Data.Buffer), n)
		}
		data = append(data, rsp.Data.Buffer...)
	}
	return data, nil
}

// nvChunk returns how many bytes TPM2_NV_Read gives at most.
func (t *TPM) nvChunk() (int, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTNVBufferMax), PropertyCount: 1}.Execute(t.transport)
	if err != nil {
		return 0, fmt.Errorf("read TPM_PT_NV_BUFFER_MAX: %w", err)
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, fmt.Errorf("read TPM_PT_NV_BUFFER_MAX: %w", err)
	}
	if len(props.TPMProperty) == 1 && props.TPMProperty[0].Property == tpm2.TPMPTNVBufferMax {
		// The upper bound leaves room in a 4096-byte response.
		if v := props.TPMProperty[0].Value; v >= minNVChunk {
			return int(min(v, 1024)), nil
		}
	}
	return 512, nil
}

// splitCertificates cuts DER certificates out of the concatenated contents of
// NV indices and returns what is left: part of a certificate that goes on in
// the next index, or nothing. Vendors pad indices with zeros or with 0xff.
func splitCertificates(data []byte) (certs [][]byte, rest []byte, err error) {
	for len(data) > 0 && data[0] == 0x30 {
		var v asn1.RawValue
		next, err := asn1.Unmarshal(data, &v)
		if err != nil {
			if len(data) > attest.MaxCertificate {
				return certs, nil, fmt.Errorf("certificate: %w", err)
			}
			return certs, data, nil
		}
		if len(v.FullBytes) > attest.MaxCertificate {
			return certs, nil, fmt.Errorf("certificate: got %d bytes, want at most %d", len(v.FullBytes), attest.MaxCertificate)
		}
		certs = append(certs, bytes.Clone(v.FullBytes))
		data = next
	}
	return certs, nil, nil
}

// certificate reads the one DER certificate in an NV index.
func (t *TPM) certificate(index uint32) ([]byte, error) {
	data, err := t.readNV(index)
	if err != nil {
		return nil, err
	}
	certs, _, err := splitCertificates(data)
	if err == nil && len(certs) == 0 {
		err = errors.New("no DER certificate in it")
	}
	if err != nil {
		return nil, unusable{fmt.Errorf("nv index %#x: %w", index, err)}
	}
	return certs[0], nil
}
