package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// lockoutAuthSet is the bit of TPMA_PERMANENT (Part 2, 8.6) that says that the
// lockout hierarchy has an authorization value.
const lockoutAuthSet = 1 << 2

// endLockout has a TPM that takes power cuts for guesses, see Rest, count from zero
// again. It protects nothing of ours: the endorsement key is subject to the
// protection by its template and has no authorization value that could be guessed.
//
// Where the lockout hierarchy has an authorization value, which we do not know, the
// TPM is left as it is: one wrong value there would shut the hierarchy itself.
func (t *TPM) endLockout() error {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTPermanent), PropertyCount: 1}.Execute(t.transport)
	if err != nil {
		return fmt.Errorf("end the lockout: read TPMA_PERMANENT: %w", err)
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return fmt.Errorf("end the lockout: read TPMA_PERMANENT: %w", err)
	}
	if len(props.TPMProperty) != 1 || props.TPMProperty[0].Property != tpm2.TPMPTPermanent {
		return errors.New("end the lockout: the TPM does not tell TPMA_PERMANENT")
	}
	if props.TPMProperty[0].Value&lockoutAuthSet != 0 {
		return errors.New("end the lockout: the lockout hierarchy has an authorization value, so only who knows it can (tpm2_dictionarylockout --clear-lockout)")
	}
	if err := t.resetLockout(); err != nil {
		return fmt.Errorf("end the lockout: %w", err)
	}
	return nil
}

// resetLockout is TPM2_DictionaryAttackLockReset (Part 3, 25.2), which go-tpm does
// not have, with the empty authorization value.
func (t *TPM) resetLockout() error {
	const size = 10 + 4 + 4 + 9
	cmd := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
	cmd = binary.BigEndian.AppendUint32(cmd, size)
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(tpm2.TPMCCDictionaryAttackLockReset))
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(tpm2.TPMRHLockout))
	cmd = binary.BigEndian.AppendUint32(cmd, 9)                    // of authorizations: one,
	cmd = binary.BigEndian.AppendUint32(cmd, uint32(tpm2.TPMRSPW)) // a password,
	cmd = append(cmd, 0, 0, 0, 0, 0)                               // without nonce, attributes and value
	rsp, err := t.transport.Send(cmd)
	if err != nil {
		return fmt.Errorf("TPM2_DictionaryAttackLockReset: %w", err)
	}
	if len(rsp) < 10 {
		return fmt.Errorf("TPM2_DictionaryAttackLockReset: a response of %d bytes, want at least 10", len(rsp))
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])); rc != tpm2.TPMRCSuccess {
		return fmt.Errorf("TPM2_DictionaryAttackLockReset: %w", rc)
	}
	return nil
}
