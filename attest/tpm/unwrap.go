package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
)

// Limits of what Unwrap accepts, bytes. A wrapped secret of 128 bytes, the
// most that a TPM seals, needs less.
const (
	maxWrappedPublic    = 256
	maxWrappedDuplicate = 512
	maxWrappedSeed      = 256
)

// Unwrap returns the secret that a service wrapped to the transport key of the
// last Collect: TPM2_Import (Part 3, 13.3), TPM2_Load and TPM2_Unseal. It works
// while the PCRs are the ones that Collect quoted, and until the TPM is reset.
// The secret leaves the TPM encrypted, with a key that a listener on the
// chip's bus cannot have. Unwrap leaves no object behind.
func (t *TPM) Unwrap(w attest.WrappedKey) (attest.Secret, error) {
	if t.tk == nil {
		return nil, errors.New("unwrap: no transport key: call Collect first")
	}
	if err := t.checkWrapped(w); err != nil {
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	// Import and Load need the place of a third object.
	if err := t.flush(&t.ek); err != nil {
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	var secret attest.Secret
	err := whilePCRsChange(func() (err error) {
		secret, err = t.unwrap(w)
		return err
	})
	if errors.Is(err, tpm2.TPMRCPolicyFail) {
		err = fmt.Errorf("%w: the PCRs are not the ones that were quoted", err)
	}
	if err != nil {
		return nil, fmt.Errorf("unwrap: %w", err)
	}
	return secret, nil
}

// checkWrapped refuses what the TPM should not even see.
func (t *TPM) checkWrapped(w attest.WrappedKey) error {
	for _, f := range []struct {
		name string
		data []byte
		max  int
	}{{"public area", w.Public, maxWrappedPublic}, {"duplicate", w.Duplicate, maxWrappedDuplicate}, {"seed", w.Seed, maxWrappedSeed}} {
		if len(f.data) == 0 || len(f.data) > f.max {
			return fmt.Errorf("%s: got %d bytes, want 1 to %d", f.name, len(f.data), f.max)
		}
	}
	public, err := parsePublic(w.Public)
	if err != nil {
		return err
	}
	if public.Type != tpm2.TPMAlgKeyedHash || public.NameAlg != tpm2.TPMAlgSHA256 {
		return fmt.Errorf("public area: got an object of type %#x with name algorithm %#x, want a KEYEDHASH with SHA-256", public.Type, public.NameAlg)
	}
	if public.ObjectAttributes.UserWithAuth {
		return errors.New("public area: the object opens with an authorization value, want only with a policy")
	}
	if !bytes.Equal(public.AuthPolicy.Buffer, t.tkPolicy) {
		return fmt.Errorf("public area: got the policy %x, want %x, that of the quoted PCRs", public.AuthPolicy.Buffer, t.tkPolicy)
	}
	return nil
}

// parsePublic decodes a TPMT_PUBLIC and refuses any other encoding than the
// TPM's own.
func parsePublic(b []byte) (*tpm2.TPMTPublic, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return nil, fmt.Errorf("public area: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(*public), b) {
		return nil, errors.New("public area: not in canonical form")
	}
	return public, nil
}

func (t *TPM) unwrap(w attest.WrappedKey) (secret attest.Secret, err error) {
	// The parent's commands give nothing secret away: their session has no key.
	byState, flush, err := t.stateSession()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, flush()) }()
	public := tpm2.BytesAs2B[tpm2.TPMTPublic](w.Public)
	imported, err := tpm2.Import{
		ParentHandle: t.tk.auth(byState),
		ObjectPublic: public,
		Duplicate:    tpm2.TPM2BPrivate{Buffer: w.Duplicate},
		InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: w.Seed},
		Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(t.transport)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	// A policy session is empty again after it has authorized a command.
	if err := t.policyState(byState); err != nil {
		return nil, err
	}
	loaded, err := tpm2.Load{ParentHandle: t.tk.auth(byState), InPrivate: imported.OutPrivate, InPublic: public}.Execute(t.transport)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	item := &object{handle: loaded.ObjectHandle, name: loaded.Name}
	defer func() {
		o := item
		err = errors.Join(err, t.flush(&o))
	}()
	return t.unseal(item, t.tk, t.policyState)
}

// stateSession starts a policy session for the state of attest.PolicyPCRs.
func (t *TPM) stateSession() (tpm2.Session, func() error, error) {
	s, flush, err := tpm2.PolicySession(t.transport, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		return nil, nil, fmt.Errorf("start policy session: %w", err)
	}
	if err := t.policyState(s); err != nil {
		return nil, nil, errors.Join(err, flush())
	}
	return s, flush, nil
}

// policyState is TPM2_PolicyPCR over attest.PolicyPCRs of the transport key's
// bank in their present state.
func (t *TPM) policyState(s tpm2.Session) error {
	return t.policyPCR(s, t.tkBank, attest.PolicyPCRs()...)
}

func (t *TPM) policyPCR(s tpm2.Session, b bank, pcrs ...int) error {
	if _, err := (tpm2.PolicyPCR{PolicySession: s.Handle(), Pcrs: b.selection(pcrs...)}).Execute(t.transport); err != nil {
		return fmt.Errorf("policy of PCRs %d: %w", pcrs, err)
	}
	return nil
}

// unseal opens a sealed object in a session that satisfies its policy. The
// session is salted with a key of this TPM, and the secret is encrypted with
// AES-128-CFB on its way out (Part 1, 21.3): a listener on the bus cannot read
// it (CVE-2026-0714 is a product that did without).
func (t *TPM) unseal(item, salt *object, satisfy func(tpm2.Session) error) (_ attest.Secret, err error) {
	salted, err := salt.salt()
	if err != nil {
		return nil, err
	}
	s, flush, err := tpm2.PolicySession(t.transport, tpm2.TPMAlgSHA256, 16, salted, tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return nil, fmt.Errorf("start salted session: %w", err)
	}
	defer func() { err = errors.Join(err, flush()) }()
	if err := satisfy(s); err != nil {
		return nil, err
	}
	rsp, err := tpm2.Unseal{ItemHandle: item.auth(s)}.Execute(t.transport)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return rsp.OutData.Buffer, nil
}
