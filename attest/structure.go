package attest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

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

// equalSelection reports whether two selections encode to the same bytes.
func equalSelection(a, b tpm2.TPMLPCRSelection) bool {
	return slices.EqualFunc(a.PCRSelections, b.PCRSelections, func(x, y tpm2.TPMSPCRSelection) bool {
		return x.Hash == y.Hash && bytes.Equal(x.PCRSelect, y.PCRSelect)
	})
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
	attrFixedTPM             = 1 << 1
	attrSTClear              = 1 << 2
	attrFixedParent          = 1 << 4
	attrSensitiveDataOrigin  = 1 << 5
	attrUserWithAuth         = 1 << 6
	attrAdminWithPolicy      = 1 << 7
	attrFirmwareLimited      = 1 << 8
	attrNoDA                 = 1 << 10
	attrEncryptedDuplication = 1 << 11
	attrRestricted           = 1 << 16
	attrDecrypt              = 1 << 17
	attrSign                 = 1 << 18
	attrX509Sign             = 1 << 19
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
