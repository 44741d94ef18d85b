package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
)

// proveBanks makes an attest.BankProof. The session needs no salt: what it
// authenticates is signed by the attestation key.
//
// A TPM without TPM2_GetSessionAuditDigest gives no proof and no error: the service
// is told so, and says what is missing, where an operator sees it.
func (t *TPM) proveBanks(qualifying []byte) (_ *attest.BankProof, err error) {
	session, flush, err := tpm2.HMACSession(t.transport, tpm2.TPMAlgSHA256, 16, tpm2.Audit())
	if err != nil {
		return nil, fmt.Errorf("prove the active pcr banks: start an audit session: %w", err)
	}
	defer func() { err = errors.Join(err, flush()) }()
	clock, err := tpm2.ReadClock{}.Execute(t.transport, session)
	if err != nil {
		return nil, fmt.Errorf("prove the active pcr banks: read the clock: %w", err)
	}
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(t.transport, session)
	if err != nil {
		return nil, fmt.Errorf("prove the active pcr banks: list them: %w", err)
	}
	list, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, fmt.Errorf("prove the active pcr banks: list them: %w", err)
	}
	signed, err := tpm2.GetSessionAuditDigest{
		PrivacyAdminHandle: hierarchy(tpm2.TPMRHEndorsement),
		SignHandle:         t.ak.auth(tpm2.PasswordAuth(nil)),
		SessionHandle:      session.Handle(),
		QualifyingData:     tpm2.TPM2BData{Buffer: qualifying},
		InScheme:           tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(t.transport)
	if unknownCommand(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("prove the active pcr banks: sign the session's digest: %w", hint(err))
	}
	return &attest.BankProof{
		Time: tpm2.Marshal(clock.CurrentTime), List: tpm2.Marshal(list),
		Attest: signed.AuditInfo.Bytes(), Signature: tpm2.Marshal(signed.Signature),
	}, nil
}

// unknownCommand reports whether err is TPM_RC_COMMAND_CODE, of the TPM or of
// Linux' resource manager, which puts its layer into bits 16 to 23.
func unknownCommand(err error) bool {
	var rc tpm2.TPMRC
	return errors.As(err, &rc) && rc&0xffff == tpm2.TPMRCCommandCode
}
