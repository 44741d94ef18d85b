package papertpm

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
)

// nameOf returns the Name of an object whose name algorithm is SHA-256 (TPM 2.0
// Library Part 1, "Names").
func nameOf(public []byte) []byte {
	d := sha256.Sum256(public)
	return append([]byte{0x00, 0x0b}, d[:]...)
}

// Selection returns the PCR selection of one bank as the PC Client profile
// encodes it, in three bytes.
func Selection(alg tpm2.TPMAlgID, pcrs []int) tpm2.TPMLPCRSelection {
	bits := make([]byte, 3)
	for _, p := range pcrs {
		bits[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: alg, PCRSelect: bits}}}
}

func pcrDigest(values map[int][]byte) []byte {
	h := sha256.New()
	for _, p := range attest.PolicyPCRs() {
		h.Write(values[p])
	}
	return h.Sum(nil)
}

// policyPCR returns the digest of one TPM2_PolicyPCR (Part 3, 23.7).
func policyPCR(bank string, values map[int][]byte) ([]byte, error) {
	c, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: %w", err)
	}
	p := tpm2.PolicyPCR{Pcrs: Selection(algOf(bank), attest.PolicyPCRs()), PcrDigest: tpm2.TPM2BDigest{Buffer: pcrDigest(values)}}
	if err := p.Update(c); err != nil {
		return nil, fmt.Errorf("paper TPM: %w", err)
	}
	return c.Hash().Digest, nil
}

// decapsulate recovers the seed that was encrypted to a key of the TPM (Part 1,
// "Secret Sharing"): RSA-OAEP with the label, or KDFe over the ECDH point.
func decapsulate(key crypto.PrivateKey, nameAlg tpm2.TPMAlgID, label string, secret []byte) ([]byte, error) {
	h, err := nameAlg.Hash()
	if err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return rsa.DecryptOAEP(h.New(), nil, k, secret, []byte(label+"\x00"))
	case *ecdsa.PrivateKey:
		p, err := tpm2.Unmarshal[tpm2.TPMSECCPoint](secret)
		if err != nil {
			return nil, err
		}
		own, err := k.ECDH()
		if err != nil {
			return nil, err
		}
		n := (k.Curve.Params().BitSize + 7) / 8
		if len(p.X.Buffer) > n || len(p.Y.Buffer) > n {
			return nil, errors.New("the ephemeral point is too large")
		}
		enc := make([]byte, 1+2*n)
		enc[0] = 4
		copy(enc[1+n-len(p.X.Buffer):], p.X.Buffer)
		copy(enc[1+2*n-len(p.Y.Buffer):], p.Y.Buffer)
		peer, err := own.Curve().NewPublicKey(enc)
		if err != nil {
			return nil, err
		}
		z, err := own.ECDH(peer)
		if err != nil {
			return nil, err
		}
		x := own.PublicKey().Bytes()[1 : 1+n]
		return tpm2.KDFe(h, z, label, enc[1:1+n], x, h.Size()*8), nil
	}
	return nil, fmt.Errorf("no key of type %T", key)
}

// openWrapper removes the integrity value and the encryption under a seed
// (Part 1, "Credential Protection" and "Outer Duplication Wrapper").
func openWrapper(parent *tpm2.TPMTPublic, seed, name, b []byte) ([]byte, error) {
	h, err := parent.NameAlg.Hash()
	if err != nil {
		return nil, err
	}
	if len(b) < 2+h.Size() || int(b[0])<<8|int(b[1]) != h.Size() {
		return nil, errors.New("no integrity value in front")
	}
	want, box := b[2:2+h.Size()], b[2+h.Size():]
	m := hmac.New(h.New, tpm2.KDFa(h, seed, "INTEGRITY", nil, nil, h.Size()*8))
	m.Write(box)
	m.Write(name)
	if !hmac.Equal(m.Sum(nil), want) {
		return nil, errors.New("TPM_RC_INTEGRITY: made for another key or object")
	}
	bits := 128
	if parent.NameAlg == tpm2.TPMAlgSHA384 {
		bits = 256
	}
	block, err := aes.NewCipher(tpm2.KDFa(h, seed, "STORAGE", name, nil, bits))
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(box))
	//lint:ignore SA1019 CFB is what the TPM specification says, and the integrity value was checked.
	cipher.NewCFBDecrypter(block, make([]byte, block.BlockSize())).XORKeyStream(out, box)
	return out, nil
}
