package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// transportName returns the TPM Name of a transport key, without any check.
// Its name algorithm is SHA-256 or checkTransport fails.
func transportName(t *TransportKey) []byte { return nameOf(t.Public) }

// checkTransport checks the key that a release would be wrapped to:
//   - it is an ECC P-256 storage key with AES-128-CFB that never left its TPM
//     (restricted, decrypt, fixedTPM, fixedParent, sensitiveDataOrigin), and
//     no authorization value opens it (userWithAuth clear);
//   - its policy is TPM2_PolicyPCR over exactly the values quoted of q's bank;
//   - the attestation key certifies (TPM2_CertifyCreation, Part 3, 18.3), for
//     this challenge, that its TPM created the key of this Name;
//   - the creation data (Part 2, 15.1) is the one certified, and names
//     TPM_RH_NULL as parent, so that the key is gone after a TPM reset, and
//     either no PCR or PolicyPCRs with the values quoted.
//
// It returns the counters in the certification.
func checkTransport(t *TransportKey, q *quoted, key *ecdsa.PublicKey, akName, nonce []byte) (tpmTime, *checkError) {
	const what = "transport key"
	none := tpmTime{}
	if err := checkTransportPublic(t.Public, q); err != nil {
		return none, failf(CodeTransport, "%s: %v", what, err)
	}
	a, cerr := checkAttest(what+" certification", t.Certify, t.Signature, tpm2.TPMSTAttestCreation, key, akName, CertifyData(nonce))
	if cerr != nil {
		cerr.code = CodeTransport
		return none, cerr
	}
	info, err := a.Attested.Creation()
	if err != nil {
		return none, failf(CodeTransport, "%s: %v", what, err)
	}
	if name := transportName(t); !bytes.Equal(info.ObjectName.Buffer, name) {
		return none, failf(CodeTransport, "%s: the certification is of the object %x, want %x", what, info.ObjectName.Buffer, name)
	}
	if h := sha256.Sum256(t.CreationData); !bytes.Equal(info.CreationHash.Buffer, h[:]) {
		return none, failf(CodeTransport, "%s: the certified creation data has the digest %x, the data sent has %x", what, info.CreationHash.Buffer, h)
	}
	if err := checkCreation(t.CreationData, q); err != nil {
		return none, failf(CodeTransport, "%s: %v", what, err)
	}
	return timeOf(a), nil
}

func checkTransportPublic(public []byte, q *quoted) error {
	p, err := decodePublic("public area", public)
	if err != nil {
		return err
	}
	if p.Type != tpm2.TPMAlgECC || p.NameAlg != tpm2.TPMAlgSHA256 {
		return fmt.Errorf("type %#04x with name algorithm %#04x, want ECC with SHA-256", uint16(p.Type), uint16(p.NameAlg))
	}
	const want = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrRestricted | attrDecrypt
	if err := checkAttributes(public, want, attrNoDA); err != nil {
		return err
	}
	parms, err := p.Parameters.ECCDetail()
	if err != nil {
		return err
	}
	if parms.CurveID != tpm2.TPMECCNistP256 || parms.Scheme.Scheme != tpm2.TPMAlgNull || parms.KDF.Scheme != tpm2.TPMAlgNull {
		return fmt.Errorf("curve %#04x, scheme %#04x, key derivation %#04x, want P-256 and none", uint16(parms.CurveID), uint16(parms.Scheme.Scheme), uint16(parms.KDF.Scheme))
	}
	if err := checkSymmetric(&parms.Symmetric, 128); err != nil {
		return err
	}
	if _, err := eccPoint("key", p, parms); err != nil {
		return err
	}
	policy, err := policyPCR(q.bank, q.values)
	if err != nil {
		return err
	}
	if !bytes.Equal(p.AuthPolicy.Buffer, policy) {
		return fmt.Errorf("its policy is %x, want %x, that of the PCRs quoted of bank %s", p.AuthPolicy.Buffer, policy, q.bank)
	}
	return nil
}

func checkCreation(data []byte, q *quoted) error {
	c, err := decodeCreation("creation data", data)
	if err != nil {
		return err
	}
	parent := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHNull))
	if c.ParentNameAlg != tpm2.TPMAlgNull || !bytes.Equal(c.ParentName.Buffer, parent) {
		return fmt.Errorf("its parent is %x, want %x (TPM_RH_NULL)", c.ParentName.Buffer, parent)
	}
	if len(c.PCRSelect.PCRSelections) == 0 {
		return nil
	}
	want := selectionOf(bankAlg(q.bank), PolicyPCRs())
	if !equalSelection(c.PCRSelect, want) {
		return fmt.Errorf("it was created under %s, want none or %s", selectionText(c.PCRSelect), selectionText(want))
	}
	if d := pcrDigest(q.values); !bytes.Equal(c.PCRDigest.Buffer, d) {
		return fmt.Errorf("it was created in another state than the quoted one: PCR digest is %x, want %x", c.PCRDigest.Buffer, d)
	}
	return nil
}
