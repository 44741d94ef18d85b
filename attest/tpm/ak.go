package tpm

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
)

// Limits of what Activate accepts, bytes. The largest real values are those of
// an RSA-4096 key and SHA-512.
const (
	maxCredential      = 256
	maxEncryptedSecret = 512
)

// Identity is who this TPM is to one service.
type Identity struct {
	EK       *EK
	AKPublic []byte // TPMT_PUBLIC of the attestation key
	AKName   []byte // its TPM Name
}

// akTemplate returns the template of the attestation key for a service. It is
// in the endorsement hierarchy, because a TPM obfuscates resetCount,
// restartCount and firmwareVersion in what other keys sign (TPMS_ATTEST, Part
// 2, 10.12.12), and its unique field depends on the service, so that two
// services cannot tell by this key that they talk to the same TPM.
func akTemplate(service string) tpm2.TPMTPublic {
	x := sha256.Sum256([]byte("sealift attestation key v1\x00" + service))
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: x[:]},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}
}

// Identify chooses the endorsement key and makes the attestation key for a
// service. The same service id, which is a name of the caller's choice, gives
// the same keys on each boot.
func (t *TPM) Identify(service string) (*Identity, error) {
	return t.identify(service, attest.MachineID{}, false)
}

// IdentifyByKeys is Identify without a certificate passed over (EK.PassedOver): it makes
// the key of each, which may take a chip long.
func (t *TPM) IdentifyByKeys(service string) (*Identity, error) {
	return t.identify(service, attest.MachineID{}, true)
}

// IdentifyAs is Identify with the endorsement key whose identity is machine, which
// the service says is this TPM's. It fails if the TPM has no certificate of it, and it
// is not the ECC P-256 key, of which the service may have one.
func (t *TPM) IdentifyAs(service string, machine attest.MachineID) (*Identity, error) {
	id, err := t.identify(service, machine, true)
	if err != nil {
		return nil, fmt.Errorf("identify as machine %s: %w", machine, err)
	}
	return id, nil
}

func (t *TPM) identify(service string, machine attest.MachineID, thorough bool) (*Identity, error) {
	if err := errors.Join(t.flush(&t.ak), t.flush(&t.tk)); err != nil {
		return nil, fmt.Errorf("identify: %w", err)
	}
	t.identity = nil
	ek, err := t.chooseEK(machine, thorough)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	t.service = service
	if err := t.loadAK(); err != nil {
		return nil, err
	}
	t.identity = &Identity{EK: ek, AKPublic: t.ak.public, AKName: t.ak.name.Buffer}
	return t.identity, nil
}

// loadAK makes the attestation key where it is not loaded.
func (t *TPM) loadAK() (err error) {
	if t.ak != nil {
		return nil
	}
	t.ak, _, err = t.createPrimary(tpm2.TPMRHEndorsement, "attestation key", akTemplate(t.service), tpm2.TPMLPCRSelection{}, nil)
	return err
}

// errNotIdentified is what a call out of order gets.
var errNotIdentified = errors.New("no attestation key: call Identify first")

// Activate opens a credential that was made for the keys of Identify
// (TPM2_ActivateCredential, Part 3, 12.5) and returns the secret in it, for
// attest.ActivationProof. credential is the contents of a TPM2B_ID_OBJECT and
// secret of a TPM2B_ENCRYPTED_SECRET.
//
// The answer crosses the bus in clear: what a listener could prove with it is
// bound to this attestation key, which is in this TPM.
func (t *TPM) Activate(credential, secret []byte) (attest.Secret, error) {
	if t.identity == nil {
		return nil, fmt.Errorf("activate credential: %w", errNotIdentified)
	}
	if len(credential) == 0 || len(credential) > maxCredential {
		return nil, fmt.Errorf("activate credential: got a credential of %d bytes, want 1 to %d", len(credential), maxCredential)
	}
	if len(secret) == 0 || len(secret) > maxEncryptedSecret {
		return nil, fmt.Errorf("activate credential: got an encrypted secret of %d bytes, want 1 to %d", len(secret), maxEncryptedSecret)
	}
	if err := errors.Join(t.loadAK(), t.loadEK()); err != nil {
		return nil, fmt.Errorf("activate credential: %w", err)
	}
	rsp, err := t.activate(credential, secret)
	if errors.Is(err, tpm2.TPMRCLockout) {
		if end := t.endLockout(); end != nil {
			err = fmt.Errorf("%w; %w", hint(err), end)
		} else {
			rsp, err = t.activate(credential, secret)
		}
	}
	// Room for what Unwrap loads.
	err = errors.Join(err, t.flush(&t.ek))
	if err != nil {
		return nil, fmt.Errorf("activate credential: %w", err)
	}
	return rsp.CertInfo.Buffer, nil
}

func (t *TPM) activate(credential, secret []byte) (_ *tpm2.ActivateCredentialResponse, err error) {
	// A high-range key takes its empty authorization value; a low-range key
	// wants the policy PolicySecret(TPM_RH_ENDORSEMENT).
	auth := tpm2.PasswordAuth(nil)
	if !t.ekTemplate.ObjectAttributes.UserWithAuth {
		var flush func() error
		auth, flush, err = tpm2.PolicySession(t.transport, tpm2.TPMAlgSHA256, 16)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, flush()) }()
		_, err = tpm2.PolicySecret{
			AuthHandle:    hierarchy(tpm2.TPMRHEndorsement),
			PolicySession: auth.Handle(),
			NonceTPM:      auth.NonceTPM(),
		}.Execute(t.transport)
		if err != nil {
			return nil, fmt.Errorf("authorize by the endorsement hierarchy: %w", hint(err))
		}
	}
	return tpm2.ActivateCredential{
		ActivateHandle: t.ak.auth(tpm2.PasswordAuth(nil)),
		KeyHandle:      t.ek.auth(auth),
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: secret},
	}.Execute(t.transport)
}
