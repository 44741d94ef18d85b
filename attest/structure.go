package attest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// maxStructure bounds a TPM structure, in bytes: an RSA-4096 signature, the
// largest, has about 520.
const maxStructure = 1024

// decodeExact decodes a TPM structure and refuses any other encoding than the
// TPM's own. go-tpm takes missing size fields for empty ones and ignores
// trailing bytes; encoding again and comparing leaves nothing unread.
func decodeExact[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](what string, b []byte) (*T, error) {
	if len(b) == 0 || len(b) > maxStructure {
		return nil, fmt.Errorf("%s: got %d bytes, want 1 to %d", what, len(b), maxStructure)
	}
	v, err := tpm2.Unmarshal[T, P](b)
	if err != nil {
		return nil, fmt.Errorf("%s: decode: %w", what, err)
	}
	if got := tpm2.Marshal(*v); !bytes.Equal(got, b) {
		return nil, fmt.Errorf("%s: %d bytes are not the %d that its contents encode to", what, len(b), len(got))
	}
	return v, nil
}

// decodePublic decodes a TPMT_PUBLIC (TPM 2.0 Library Part 2, 12.2.4).
func decodePublic(what string, b []byte) (*tpm2.TPMTPublic, error) {
	p, err := decodeExact[tpm2.TPMTPublic](what, b)
	if err != nil {
		return nil, err
	}
	// go-tpm makes the union members on decoding, so that these never fail
	// later for a type that is let through here.
	switch p.Type {
	case tpm2.TPMAlgRSA, tpm2.TPMAlgECC:
		return p, nil
	}
	return nil, fmt.Errorf("%s: key type is %#04x, want RSA or ECC", what, uint16(p.Type))
}

// nameOf returns the TPM Name of an object whose name algorithm is SHA-256
// (Part 1, "Names"): the algorithm's id and the digest of the public area.
func nameOf(public []byte) []byte {
	d := sha256.Sum256(public)
	return append([]byte{0x00, 0x0b}, d[:]...)
}

// primaryQualifiedName returns the qualified name of a primary object (Part 1,
// "Names"), which tells its hierarchy.
func primaryQualifiedName(hierarchy tpm2.TPMHandle, name []byte) []byte {
	return nameOf(append(tpm2.PrimaryHandleName(hierarchy), name...))
}

// selectionOf returns the PCR selection for one bank as the PC Client profile
// encodes it, in three bytes.
func selectionOf(alg tpm2.TPMAlgID, pcrs []int) tpm2.TPMLPCRSelection {
	bits := make([]byte, 3)
	for _, p := range pcrs {
		bits[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: alg, PCRSelect: bits}}}
}

// equalSelection reports whether two selections are the same bytes.
func equalSelection(a, b tpm2.TPMLPCRSelection) bool {
	return bytes.Equal(tpm2.Marshal(a), tpm2.Marshal(b))
}

// pcrDigest returns the SHA-256 over the values of PolicyPCRs in index order.
func pcrDigest(values map[int][]byte) []byte {
	h := sha256.New()
	for _, p := range PolicyPCRs() {
		h.Write(values[p])
	}
	return h.Sum(nil)
}

// policyPCR returns the policy digest of one TPM2_PolicyPCR (Part 3, 23.7), in a
// SHA-256 session, over PolicyPCRs of a bank with these values.
func policyPCR(bank string, values map[int][]byte) ([]byte, error) {
	c, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, fmt.Errorf("pcr policy: %w", err)
	}
	p := tpm2.PolicyPCR{
		Pcrs:      selectionOf(bankAlg(bank), PolicyPCRs()),
		PcrDigest: tpm2.TPM2BDigest{Buffer: pcrDigest(values)},
	}
	if err := p.Update(c); err != nil {
		return nil, fmt.Errorf("pcr policy: %w", err)
	}
	return c.Hash().Digest, nil
}

// checkSymmetric requires AES in CFB mode with a key of that many bits.
func checkSymmetric(s *tpm2.TPMTSymDefObject, want int) error {
	if s.Algorithm != tpm2.TPMAlgAES {
		return fmt.Errorf("cipher is %#04x, want AES", uint16(s.Algorithm))
	}
	got, err := s.KeyBits.AES()
	if err != nil {
		return err
	}
	mode, err := s.Mode.AES()
	if err != nil {
		return err
	}
	if int(*got) != want || *mode != tpm2.TPMAlgCFB {
		return fmt.Errorf("cipher is AES-%d in mode %#04x, want AES-%d in CFB", *got, uint16(*mode), want)
	}
	return nil
}

// attributes of an object as TPMA_OBJECT bits (Part 2, 8.3.2).
const (
	attrFixedTPM            = 1 << 1
	attrFixedParent         = 1 << 4
	attrSensitiveDataOrigin = 1 << 5
	attrUserWithAuth        = 1 << 6
	attrAdminWithPolicy     = 1 << 7
	attrNoDA                = 1 << 10
	attrRestricted          = 1 << 16
	attrDecrypt             = 1 << 17
	attrSign                = 1 << 18
)

// checkAttributes requires exactly the attributes in want; those in optional
// may be set or clear. Reserved bits must be clear.
func checkAttributes(public []byte, want, optional uint32) error {
	// TPMT_PUBLIC: type, nameAlg, objectAttributes.
	if len(public) < 8 {
		return errors.New("public area is too short")
	}
	got := uint32(public[4])<<24 | uint32(public[5])<<16 | uint32(public[6])<<8 | uint32(public[7])
	if got&^optional != want&^optional {
		return fmt.Errorf("object attributes are %#08x, want %#08x", got, want)
	}
	return nil
}
