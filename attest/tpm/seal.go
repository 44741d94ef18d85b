package tpm

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/pcrsig"
)

// maxSealed is the most that a TPM seals, bytes (MAX_SYM_DATA).
const maxSealed = 128

// maxDeviceHalf bounds a device half's blob, bytes.
const maxDeviceHalf = 2 << 10

// deviceHalfMagic is in front of a device half's blob.
const deviceHalfMagic = "sealift device half 1\x00"

// deviceHalf is a blob of SealDeviceHalf: after the magic three fields, each
// with its length in 16 bits, big endian.
type deviceHalf struct {
	public  []byte // TPMT_PUBLIC of the sealed object
	private []byte // contents of its TPM2B_PRIVATE
	srk     []byte // Name of the storage root key that it was made under
}

func (d *deviceHalf) marshal() []byte {
	b := []byte(deviceHalfMagic)
	for _, f := range [][]byte{d.public, d.private, d.srk} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(f)))
		b = append(b, f...)
	}
	return b
}

func parseDeviceHalf(b []byte) (*deviceHalf, error) {
	if len(b) > maxDeviceHalf {
		return nil, fmt.Errorf("device half: got %d bytes, want at most %d", len(b), maxDeviceHalf)
	}
	rest, ok := bytes.CutPrefix(b, []byte(deviceHalfMagic))
	if !ok {
		return nil, errors.New("device half: not a sealed device half of version 1")
	}
	d := &deviceHalf{}
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{"public area", &d.public}, {"private area", &d.private}, {"storage root key's name", &d.srk}} {
		if len(rest) < 2 {
			return nil, fmt.Errorf("device half: %s: cut off", f.name)
		}
		n := int(binary.BigEndian.Uint16(rest))
		if n == 0 || n > len(rest)-2 {
			return nil, fmt.Errorf("device half: %s: got a length of %d, want 1 to %d", f.name, n, len(rest)-2)
		}
		*f.to, rest = rest[2:2+n], rest[2+n:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("device half: %d bytes after its end", len(rest))
	}
	return d, nil
}

// SealDeviceHalf seals a secret of 1 to 128 bytes to this TPM and to whatever
// boots the holder of the PCR signing key will sign: the policy is
// TPM2_PolicyAuthorize of that key (Part 3, 23.16), so a signed update of the
// system opens it and nothing else does. pcrKeyPEM is the public key as in the
// .pcrpkey section: RSA-2048, PEM. The blob is not secret.
//
// The parent is the ECC P-256 storage root key (TCG TPM v2.0 Provisioning
// Guidance, 7.5.1), which is derived anew each time; clearing the TPM loses
// it.
func (t *TPM) SealDeviceHalf(secret attest.Secret, pcrKeyPEM []byte) (blob []byte, err error) {
	defer func() {
		if err != nil {
			blob, err = nil, fmt.Errorf("seal device half: %w", err)
		}
	}()
	if len(secret) == 0 || len(secret) > maxSealed {
		return nil, fmt.Errorf("got a secret of %d bytes, want 1 to %d", len(secret), maxSealed)
	}
	key, err := pcrsig.ParseKey(pcrKeyPEM)
	if err != nil {
		return nil, err
	}
	policy, err := authorizePolicy(key)
	if err != nil {
		return nil, err
	}
	srk, err := t.storageRoot()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.flush(&srk)) }()
	salted, err := srk.salt()
	if err != nil {
		return nil, err
	}
	s, flush, err := tpm2.HMACSession(t.transport, tpm2.TPMAlgSHA256, 16, salted, tpm2.AESEncryption(128, tpm2.EncryptIn))
	if err != nil {
		return nil, fmt.Errorf("start salted session: %w", err)
	}
	defer func() { err = errors.Join(err, flush()) }()
	rsp, err := tpm2.Create{
		ParentHandle: srk.auth(s),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
		}},
		InPublic: tpm2.New2B(sealTemplate(policy)),
	}.Execute(t.transport)
	if err != nil {
		return nil, err
	}
	d := deviceHalf{public: rsp.OutPublic.Bytes(), private: rsp.OutPrivate.Buffer, srk: srk.name.Buffer}
	return d.marshal(), nil
}

// UnsealDeviceHalf opens a blob of SealDeviceHalf. pcrKeyPEM must be the key
// that it was sealed to, and pcrSignatureJSON the .pcrsig section of the image
// that was booted: it must hold that key's signature of the present value of
// PCR 11.
func (t *TPM) UnsealDeviceHalf(blob, pcrKeyPEM, pcrSignatureJSON []byte) (attest.Secret, error) {
	d, err := parseDeviceHalf(blob)
	if err != nil {
		return nil, fmt.Errorf("unseal %w", err)
	}
	key, err := pcrsig.ParseKey(pcrKeyPEM)
	if err != nil {
		return nil, fmt.Errorf("unseal device half: %w", err)
	}
	if err := d.check(key); err != nil {
		return nil, fmt.Errorf("unseal device half: %w", err)
	}
	entries, err := pcrsig.Parse(pcrSignatureJSON)
	if err != nil {
		return nil, fmt.Errorf("unseal device half: %w", err)
	}
	var secret attest.Secret
	err = whilePCRsChange(func() (err error) {
		secret, err = t.unsealDeviceHalf(d, key, entries)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("unseal device half: %w", err)
	}
	return secret, nil
}

// check refuses an object that is not what SealDeviceHalf makes for key: one
// that someone with access to the disk has put in its place, sealed to another
// policy, to choose the secret.
func (d *deviceHalf) check(key *rsa.PublicKey) error {
	public, err := parsePublic(d.public)
	if err != nil {
		return err
	}
	policy, err := authorizePolicy(key)
	if err != nil {
		return err
	}
	if !bytes.Equal(public.AuthPolicy.Buffer, policy) {
		return fmt.Errorf("it is sealed to the policy %x, want %x, that of the PCR signing key %x", public.AuthPolicy.Buffer, policy, pcrsig.KeyID(key))
	}
	want := sealTemplate(policy)
	if public.Type != want.Type || public.NameAlg != want.NameAlg || public.ObjectAttributes != want.ObjectAttributes {
		return errors.New("its type or attributes are not those of a device half")
	}
	return nil
}

func (t *TPM) unsealDeviceHalf(d *deviceHalf, key *rsa.PublicKey, entries []pcrsig.Entry) (secret attest.Secret, err error) {
	banks, err := t.activeBanks()
	if err != nil {
		return nil, err
	}
	bank, err := mainBank(banks)
	if err != nil {
		return nil, err
	}
	pcr11, err := t.ReadPCR(bank.name, pcrsig.KernelPCR)
	if err != nil {
		return nil, err
	}
	entry, err := choose(entries, key, bank.name, pcr11)
	if err != nil {
		return nil, err
	}
	authorize, err := t.approve(entry, key)
	if err != nil {
		return nil, err
	}
	srk, err := t.storageRoot()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.flush(&srk)) }()
	if !bytes.Equal(srk.name.Buffer, d.srk) {
		return nil, fmt.Errorf("it was sealed under the storage root key %x, this TPM has %x: it is another TPM, or was cleared since", d.srk, srk.name.Buffer)
	}
	loaded, err := tpm2.Load{
		ParentHandle: srk.auth(tpm2.PasswordAuth(nil)),
		InPrivate:    tpm2.TPM2BPrivate{Buffer: d.private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](d.public),
	}.Execute(t.transport)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	item := &object{handle: loaded.ObjectHandle, name: loaded.Name}
	defer func() {
		o := item
		err = errors.Join(err, t.flush(&o))
	}()
	return t.unseal(item, srk, func(s tpm2.Session) error {
		if err := t.policyPCR(s, bank, pcrsig.KernelPCR); err != nil {
			return err
		}
		authorize.PolicySession = s.Handle()
		if _, err := authorize.Execute(t.transport); err != nil {
			return fmt.Errorf("authorize policy: %w", err)
		}
		return nil
	})
}

// choose returns the entry in which key allows PCR 11 of a bank to have the given
// value.
func choose(entries []pcrsig.Entry, key *rsa.PublicKey, bank string, pcr11 []byte) (*pcrsig.Entry, error) {
	policy, err := pcrsig.PolicyDigest(bank, map[int][]byte{pcrsig.KernelPCR: pcr11})
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Bank != bank || !bytes.Equal(e.Policy[:], policy) || e.KeyID != pcrsig.KeyID(key) {
			continue
		}
		// The TPM will check it again; this tells which signature is wrong.
		return &e, e.Verify(key)
	}
	return nil, fmt.Errorf("none of %d signatures by key %x is for PCR 11 of bank %s = %x: the booted image is not the one that they belong to, or PCR 11 was extended since", len(entries), pcrsig.KeyID(key), bank, pcr11)
}

// approve lets the TPM verify the signature of an entry and returns the
// command that uses its ticket, for a session that is still to be named.
func (t *TPM) approve(e *pcrsig.Entry, key *rsa.PublicKey) (_ *tpm2.PolicyAuthorize, err error) {
	// Besides the signing key there will be the storage root key, the sealed
	// object and the transport key, and a TPM has room for three.
	if err := t.makeRoom(); err != nil {
		return nil, err
	}
	rsp, err := tpm2.LoadExternal{InPublic: tpm2.New2B(signerPublic(key)), Hierarchy: tpm2.TPMRHOwner}.Execute(t.transport)
	if err != nil {
		return nil, fmt.Errorf("load pcr signing key: %w", err)
	}
	signer := &object{handle: rsp.ObjectHandle, name: rsp.Name}
	defer func() {
		o := signer
		err = errors.Join(err, t.flush(&o))
	}()
	digest := sha256.Sum256(e.Policy[:])
	verified, err := tpm2.VerifySignature{
		KeyHandle: signer.named(),
		Digest:    tpm2.TPM2BDigest{Buffer: digest[:]},
		Signature: tpm2.TPMTSignature{
			SigAlg: tpm2.TPMAlgRSASSA,
			Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{
				Hash: tpm2.TPMAlgSHA256,
				Sig:  tpm2.TPM2BPublicKeyRSA{Buffer: e.Signature},
			}),
		},
	}.Execute(t.transport)
	if err != nil {
		return nil, fmt.Errorf("verify pcr signature: %w", err)
	}
	return &tpm2.PolicyAuthorize{
		ApprovedPolicy: tpm2.TPM2BDigest{Buffer: e.Policy[:]},
		KeySign:        signer.name,
		CheckTicket:    verified.Validation,
	}, nil
}

// storageRoot makes the storage root key.
func (t *TPM) storageRoot() (*object, error) {
	if err := t.makeRoom(); err != nil {
		return nil, err
	}
	srk, _, err := t.createPrimary(tpm2.TPMRHOwner, "storage root key", tpm2.ECCSRKTemplate, tpm2.TPMLPCRSelection{}, nil)
	return srk, err
}

// makeRoom removes the keys that can be made again. The transport key, for
// which a release may be on its way, stays.
func (t *TPM) makeRoom() error { return errors.Join(t.flush(&t.ek), t.flush(&t.ak)) }

// sealTemplate returns the template of a sealed object that only a policy opens.
func sealTemplate(policy []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
	}
}

// signerPublic returns the public area under which a PCR signing key is loaded.
// It is part of the key's Name, and so of the policy of all sealed device
// halves: it must never change.
func signerPublic(key *rsa.PublicKey) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgRSA,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTRSAScheme{
				Scheme:  tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			KeyBits: 2048,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()}),
	}
}

// authorizePolicy returns the digest of TPM2_PolicyAuthorize for key, with an
// empty policyRef.
func authorizePolicy(key *rsa.PublicKey) ([]byte, error) {
	public := signerPublic(key)
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return nil, fmt.Errorf("name of pcr signing key: %w", err)
	}
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	if err := (tpm2.PolicyAuthorize{KeySign: *name}).Update(calc); err != nil {
		return nil, fmt.Errorf("policy of pcr signing key: %w", err)
	}
	return calc.Hash().Digest, nil
}
