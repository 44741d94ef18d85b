// Package papertpm is a TPM on paper: keys in memory, and the structures that a
// TPM 2.0 makes with them, in plain Go. It signs what a TPM would sign, and,
// where a caller bends it, what a TPM never would. Tests, the simulated fleet
// and the attack lab share it; nothing that boots a machine may.
//
// New and FromSeed make a TPM, CA certifies its endorsement key, Boot says what
// a boot measured, and TPM.Evidence makes of it what an agent would send. Every
// key, counter and structure is reachable: fields are read when they are used,
// and the On functions see each structure before it is signed.
package papertpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
)

// TPM is one software identity. It is used by one goroutine.
type TPM struct {
	// EK is *rsa.PrivateKey or *ecdsa.PrivateKey (P-256, P-384).
	EK       crypto.PrivateKey
	EKPublic tpm2.TPMTPublic
	// EKCertificates are DER, as the NV indices would hold them.
	EKCertificates [][]byte

	AK        *ecdsa.PrivateKey // P-256
	AKPublic  tpm2.TPMTPublic
	Hierarchy tpm2.TPMHandle // of AK, for its qualified name

	Clock    tpm2.TPMSClockInfo
	Firmware uint64 // TPMS_ATTEST firmwareVersion

	// PCRs are the present values: bank to PCR, for every active bank.
	PCRs map[string]map[int][]byte

	// Transport is the key that Transport made last, nil after a reset.
	Transport       *ecdsa.PrivateKey
	transportPublic tpm2.TPMTPublic

	// Prove has QuoteAll prove the active banks also where SHA-256 is active.
	Prove bool
	// Unable has it say instead why it cannot. Optional.
	Unable string

	// Optional: changes to a structure before it is signed.
	OnTransport func(*tpm2.TPMTPublic)
	OnCreation  func(*tpm2.TPMSCreationData)
	OnCertify   func(*tpm2.TPMSAttest)
	OnQuote     func(bank string, a *tpm2.TPMSAttest)
	OnTime      func(*tpm2.TPMSTimeInfo)     // in ProveBanks
	OnList      func(*tpm2.TPMLPCRSelection) // of the active banks, in ProveBanks
	OnBanks     func(*tpm2.TPMSAttest)
	// RawQuote replaces the bytes that are signed and sent as a quote.
	RawQuote func([]byte) []byte
	// SignHash is the hash of signatures; SHA-256.
	SignHash tpm2.TPMAlgID

	frozen     Areas // see Freeze
	frozenName []byte
}

// New makes a TPM with this endorsement key and a new attestation key, just
// after its seventh reset, with zero PCRs in the SHA-256 bank.
func New(ek crypto.PrivateKey) (*TPM, error) {
	ak, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: %w", err)
	}
	return with(ek, ak)
}

// FromSeed makes the TPM whose two P-256 keys follow from seed.
func FromSeed(seed []byte) (*TPM, error) {
	var keys [2]*ecdsa.PrivateKey
	for i, what := range []string{"endorsement", "attestation"} {
		// 48 bits more than the order has, so that no scalar is likelier than
		// another; modulo the order less one, plus one, it is never zero.
		b, err := hkdf.Key(sha256.New, seed, nil, "sealift paper TPM "+what, 38)
		if err != nil {
			return nil, fmt.Errorf("paper TPM: %w", err)
		}
		one := big.NewInt(1)
		d := new(big.Int).Mod(new(big.Int).SetBytes(b), new(big.Int).Sub(elliptic.P256().Params().N, one))
		if keys[i], err = ecdsa.ParseRawPrivateKey(elliptic.P256(), d.Add(d, one).FillBytes(make([]byte, 32))); err != nil {
			return nil, fmt.Errorf("paper TPM: %w", err)
		}
	}
	return with(keys[0], keys[1])
}

func with(ek crypto.PrivateKey, ak *ecdsa.PrivateKey) (*TPM, error) {
	signer, ok := ek.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("paper TPM: no endorsement key of type %T", ek)
	}
	ekPublic, err := EKArea(signer.Public())
	if err != nil {
		return nil, err
	}
	akPublic, err := AKArea(&ak.PublicKey)
	if err != nil {
		return nil, err
	}
	return &TPM{
		EK: ek, EKPublic: ekPublic, AK: ak, AKPublic: akPublic, Hierarchy: tpm2.TPMRHEndorsement,
		Clock:    tpm2.TPMSClockInfo{Clock: 50_000, ResetCount: 7, RestartCount: 1, Safe: true},
		Firmware: 0x2019102300163636, SignHash: tpm2.TPMAlgSHA256,
		PCRs: map[string]map[int][]byte{"sha256": zeroPCRs("sha256")},
	}, nil
}

// WithEK is the same TPM with another of its endorsement keys: the attestation key
// and the counters are t's, as they are now. It has no certificates.
func (t *TPM) WithEK(ek crypto.PrivateKey) (*TPM, error) {
	other, err := with(ek, t.AK)
	if err != nil {
		return nil, err
	}
	other.AKPublic, other.Hierarchy = t.AKPublic, t.Hierarchy
	other.Clock, other.Firmware = t.Clock, t.Firmware
	for bank, values := range t.PCRs {
		other.PCRs[bank] = maps.Clone(values)
	}
	return other, nil
}

// point returns a public key as a TPM has it.
func point(k *ecdsa.PublicKey) (*tpm2.TPMSECCPoint, error) {
	b, err := k.Bytes() // uncompressed: 4, X, Y
	if err != nil {
		return nil, fmt.Errorf("paper TPM: %w", err)
	}
	n := len(b) / 2
	return &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: b[1 : 1+n : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: b[1+n:]}}, nil
}

// AKArea returns the public area of an attestation key as the service wants it.
func AKArea(k *ecdsa.PublicKey) (tpm2.TPMTPublic, error) {
	p, err := point(k)
	if err != nil {
		return tpm2.TPMTPublic{}, err
	}
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			CurveID:   tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			KDF: tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, p),
	}, nil
}

// EKArea returns the public area of an endorsement key by the templates of the
// TCG EK Credential Profile: RSA 2048, P-256, and the high-range P-384.
func EKArea(key crypto.PublicKey) (tpm2.TPMTPublic, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		p := tpm2.RSAEKTemplate
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
		return p, nil
	case *ecdsa.PublicKey:
		p := tpm2.ECCEKTemplate
		bits := tpm2.TPMKeyBits(128)
		curve := tpm2.TPMECCNistP256
		if k.Curve == elliptic.P384() {
			p.NameAlg, bits, curve = tpm2.TPMAlgSHA384, 256, tpm2.TPMECCNistP384
			p.ObjectAttributes.UserWithAuth = true
		}
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES,
				KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits), Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)},
			CurveID: curve,
		})
		u, err := point(k)
		if err != nil {
			return tpm2.TPMTPublic{}, err
		}
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, u)
		return p, nil
	}
	return tpm2.TPMTPublic{}, fmt.Errorf("paper TPM: no endorsement key of type %T", key)
}

// MachineID is the identity that the service gives to the endorsement key.
func (t *TPM) MachineID() (attest.MachineID, error) {
	return attest.EKMachineID(t.ekArea())
}

// Areas are the encoded public areas of a TPM's two keys.
type Areas struct{ EK, AK []byte }

// Areas encodes the public areas of the endorsement and the attestation key.
func (t *TPM) Areas() Areas {
	return Areas{EK: tpm2.Marshal(t.EKPublic), AK: tpm2.Marshal(t.AKPublic)}
}

// Freeze has the TPM use a, its Areas, for good: EKPublic and AKPublic must not
// change from here on. It is for a fleet, whose time goes by encoding.
func (t *TPM) Freeze(a Areas) {
	t.frozen, t.frozenName = a, nameOf(a.AK)
}

func (t *TPM) ekArea() []byte {
	if t.frozen.EK != nil {
		return t.frozen.EK
	}
	return tpm2.Marshal(t.EKPublic)
}

func (t *TPM) akArea() []byte {
	if t.frozen.AK != nil {
		return t.frozen.AK
	}
	return tpm2.Marshal(t.AKPublic)
}

// Name returns the Name of the attestation key.
func (t *TPM) Name() []byte {
	if t.frozenName != nil {
		return t.frozenName
	}
	return nameOf(t.akArea())
}

// Reset is a TPM reset, as of a machine that was switched off and on: the
// transport key is gone, the PCRs are zero, and the reset is counted.
func (t *TPM) Reset() {
	t.Clock.ResetCount++
	t.Clock.RestartCount = 0
	t.Clock.Clock += 1000
	t.Transport = nil
	for bank := range t.PCRs {
		t.PCRs[bank] = zeroPCRs(bank)
	}
}

// Extend extends data into a PCR of every active bank (TPM2_PCR_Event).
func (t *TPM) Extend(pcr int, data []byte) {
	for bank, values := range t.PCRs {
		h := hashOf(bank)
		d := h.New()
		d.Write(data)
		values[pcr] = extend(h, values[pcr], d.Sum(nil))
	}
}

// Sign signs a message with the attestation key and returns a TPMT_SIGNATURE.
// A TPM's restricted key signs only what the TPM made; this one signs anything.
func (t *TPM) Sign(message []byte) ([]byte, error) {
	h, err := t.SignHash.Hash()
	if err != nil {
		return nil, fmt.Errorf("paper TPM: sign: %w", err)
	}
	hh := h.New()
	hh.Write(message)
	r, s, err := ecdsa.Sign(rand.Reader, t.AK, hh.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("paper TPM: sign: %w", err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash:       t.SignHash,
		SignatureR: tpm2.TPM2BECCParameter{Buffer: r.FillBytes(make([]byte, 32))},
		SignatureS: tpm2.TPM2BECCParameter{Buffer: s.FillBytes(make([]byte, 32))},
	})}), nil
}

// Attest returns an attestation structure as this TPM would fill it in, not
// yet signed.
func (t *TPM) Attest(typ tpm2.TPMST, extra []byte, attested tpm2.TPMUAttest) tpm2.TPMSAttest {
	return tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: typ,
		QualifiedSigner: tpm2.TPM2BName{Buffer: nameOf(append(tpm2.PrimaryHandleName(t.Hierarchy), t.Name()...))},
		ExtraData:       tpm2.TPM2BData{Buffer: extra},
		ClockInfo:       t.Clock, FirmwareVersion: t.Firmware, Attested: attested,
	}
}

// MakeTransport makes the transport key for the present PCRs in the NULL
// hierarchy and certifies its creation for the nonce of a challenge and the exporter
// of the connection that it came over.
func (t *TPM) MakeTransport(nonce, exporter []byte) (attest.TransportKey, error) {
	bank := t.mainBank()
	policy, err := policyPCR(bank, t.PCRs[bank])
	if err != nil {
		return attest.TransportKey{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return attest.TransportKey{}, fmt.Errorf("paper TPM: %w", err)
	}
	u, err := point(&key.PublicKey)
	if err != nil {
		return attest.TransportKey{}, err
	}
	p := tpm2.ECCSRKTemplate
	p.ObjectAttributes.UserWithAuth = false
	p.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, u)
	if t.OnTransport != nil {
		t.OnTransport(&p)
	}
	null := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHNull))
	c := tpm2.TPMSCreationData{
		PCRSelect:     Selection(algOf(bank), attest.PolicyPCRs()),
		PCRDigest:     tpm2.TPM2BDigest{Buffer: pcrDigest(t.PCRs[bank])},
		ParentNameAlg: tpm2.TPMAlgNull, ParentName: tpm2.TPM2BName{Buffer: null}, ParentQualifiedName: tpm2.TPM2BName{Buffer: null},
		OutsideInfo: tpm2.TPM2BData{Buffer: attest.ConnectionData(exporter)},
	}
	if t.OnCreation != nil {
		t.OnCreation(&c)
	}
	k := attest.TransportKey{Public: tpm2.Marshal(p), CreationData: tpm2.Marshal(c)}
	h := sha256.Sum256(k.CreationData)
	a := t.Attest(tpm2.TPMSTAttestCreation, attest.CertifyData(nonce), tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{
		ObjectName: tpm2.TPM2BName{Buffer: nameOf(k.Public)}, CreationHash: tpm2.TPM2BDigest{Buffer: h[:]},
	}))
	if t.OnCertify != nil {
		t.OnCertify(&a)
	}
	k.Certify = tpm2.Marshal(a)
	if k.Signature, err = t.Sign(k.Certify); err != nil {
		return attest.TransportKey{}, err
	}
	t.Transport, t.transportPublic = key, p
	return k, nil
}

// mainBank is the bank whose state an agent binds the transport key to.
func (t *TPM) mainBank() string {
	if t.PCRs["sha256"] == nil && t.PCRs["sha384"] != nil {
		return "sha384"
	}
	return "sha256"
}

// Quote quotes attest.PolicyPCRs of one bank, or says that it is off.
func (t *TPM) Quote(bank string, extra []byte) (attest.Quote, error) {
	info := &tpm2.TPMSQuoteInfo{PCRSelect: Selection(algOf(bank), nil)}
	if t.PCRs[bank] != nil {
		info.PCRSelect = Selection(algOf(bank), attest.PolicyPCRs())
		info.PCRDigest.Buffer = pcrDigest(t.PCRs[bank])
	} else {
		none := sha256.Sum256(nil)
		info.PCRDigest.Buffer = none[:]
	}
	a := t.Attest(tpm2.TPMSTAttestQuote, extra, tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, info))
	if t.OnQuote != nil {
		t.OnQuote(bank, &a)
	}
	q := attest.Quote{Bank: bank, Attest: tpm2.Marshal(a), PCRs: map[int][]byte{}}
	for _, p := range attest.PolicyPCRs() {
		if v, ok := t.PCRs[bank][p]; ok {
			q.PCRs[p] = slices.Clone(v)
		}
	}
	if t.RawQuote != nil {
		q.Attest = t.RawQuote(q.Attest)
	}
	var err error
	q.Signature, err = t.Sign(q.Attest)
	return q, err
}

// Evidence is what an agent would send for a challenge with this nonce over a
// connection with this exporter. The PCRs are those that Boot.Measure left.
func (t *TPM) Evidence(b *Boot, purpose attest.Purpose, nonce, exporter []byte) (*attest.Evidence, error) {
	ev := &attest.Evidence{
		EKPublic: t.ekArea(), EKCertificates: t.EKCertificates, AKPublic: t.akArea(),
		EventLog: b.Log(), SMBIOS: b.SMBIOS, Disk: b.Disk,
	}
	var err error
	if ev.Transport, err = t.MakeTransport(nonce, exporter); err != nil {
		return nil, err
	}
	return ev, t.QuoteAll(ev, purpose, nonce, exporter)
}

// ProveBanks is the TPM's list of its active banks for the qualifying data of
// quotes.
func (t *TPM) ProveBanks(extra []byte) (*attest.BankProof, error) {
	list := tpm2.TPMLPCRSelection{}
	for _, bank := range []string{"sha1", "sha256", "sha384", "sha512"} {
		s := Selection(algOf(bank), nil).PCRSelections[0]
		if t.PCRs[bank] != nil {
			s.PCRSelect = []byte{0xff, 0xff, 0xff}
		}
		list.PCRSelections = append(list.PCRSelections, s)
	}
	if t.OnList != nil {
		t.OnList(&list)
	}
	session, err := tpm2.NewAudit(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: %w", err)
	}
	now := tpm2.TPMSTimeInfo{Time: t.Clock.Clock, ClockInfo: t.Clock}
	if t.OnTime != nil {
		t.OnTime(&now)
	}
	err = tpm2.AuditCommand(session, tpm2.ReadClock{}, &tpm2.ReadClockResponse{CurrentTime: now})
	if err != nil {
		return nil, fmt.Errorf("paper TPM: %w", err)
	}
	err = tpm2.AuditCommand(session, tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}, &tpm2.GetCapabilityResponse{
		CapabilityData: tpm2.TPMSCapabilityData{Capability: tpm2.TPMCapPCRs, Data: tpm2.NewTPMUCapabilities(tpm2.TPMCapPCRs, &list)},
	})
	if err != nil {
		return nil, fmt.Errorf("paper TPM: %w", err)
	}
	a := t.Attest(tpm2.TPMSTAttestSessionAudit, extra, tpm2.NewTPMUAttest(tpm2.TPMSTAttestSessionAudit, &tpm2.TPMSSessionAuditInfo{
		ExclusiveSession: true, SessionDigest: tpm2.TPM2BDigest{Buffer: session.Digest()},
	}))
	if t.OnBanks != nil {
		t.OnBanks(&a)
	}
	p := &attest.BankProof{Time: tpm2.Marshal(now), List: tpm2.Marshal(list), Attest: tpm2.Marshal(a)}
	p.Signature, err = t.Sign(p.Attest)
	return p, err
}

// QuoteAll quotes every active bank over what ev holds by now, in place of the
// quotes that are there. Where SHA-256 is off, it says so with a quote and proves
// which banks are active.
func (t *TPM) QuoteAll(ev *attest.Evidence, purpose attest.Purpose, nonce, exporter []byte) error {
	extra := attest.QualifyingData(attest.Binding{Purpose: purpose, Nonce: nonce, Exporter: exporter, TransportID: nameOf(ev.Transport.Public)}, ev)
	ev.Quotes, ev.Banks, ev.NoBanks = nil, nil, ""
	banks := slices.Sorted(maps.Keys(t.PCRs))
	off := !slices.Contains(banks, "sha256")
	if off {
		banks = append(banks, "sha256")
	}
	if wanted := off || t.Prove; wanted && t.Unable != "" {
		ev.NoBanks = t.Unable
	} else if wanted {
		var err error
		if ev.Banks, err = t.ProveBanks(extra); err != nil {
			return err
		}
	}
	for _, bank := range banks {
		q, err := t.Quote(bank, extra)
		if err != nil {
			return err
		}
		ev.Quotes = append(ev.Quotes, q)
	}
	return nil
}

// Activate is TPM2_ActivateCredential: it gives the secret of a challenge made
// for this endorsement and this attestation key.
func (t *TPM) Activate(credential, secret []byte) (attest.Secret, error) {
	seed, err := decapsulate(t.EK, t.EKPublic.NameAlg, "IDENTITY", secret)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: activate credential: %w", err)
	}
	b, err := openWrapper(&t.EKPublic, seed, t.Name(), credential)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: activate credential: %w", err)
	}
	v, err := tpm2.Unmarshal[tpm2.TPM2BDigest](b)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: activate credential: %w", err)
	}
	return attest.Secret(v.Buffer), nil
}

// Unwrap is TPM2_Import, TPM2_Load and TPM2_Unseal: it gives the transport
// secret of a release while the PCRs are those of its policy.
func (t *TPM) Unwrap(w attest.WrappedKey) (attest.Secret, error) {
	if t.Transport == nil {
		return nil, errors.New("paper TPM: unwrap: the transport key is gone: the TPM was reset")
	}
	seed, err := decapsulate(t.Transport, tpm2.TPMAlgSHA256, "DUPLICATE", w.Seed)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: unwrap: %w", err)
	}
	b, err := openWrapper(&t.transportPublic, seed, nameOf(w.Public), w.Duplicate)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: unwrap: %w", err)
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](w.Public)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: unwrap: public area: %w", err)
	}
	bank := t.mainBank()
	policy, err := policyPCR(bank, t.PCRs[bank])
	if err != nil {
		return nil, err
	}
	if !slices.Equal(area.AuthPolicy.Buffer, policy) {
		return nil, errors.New("paper TPM: unwrap: the PCRs are not those of the object's policy")
	}
	inner, err := tpm2.Unmarshal[tpm2.TPM2BDigest](b) // a TPM2B_SENSITIVE, its contents as bytes
	if err != nil {
		return nil, fmt.Errorf("paper TPM: unwrap: %w", err)
	}
	s, err := tpm2.Unmarshal[tpm2.TPMTSensitive](inner.Buffer)
	if err != nil {
		return nil, fmt.Errorf("paper TPM: unwrap: %w", err)
	}
	data, err := s.Sensitive.Bits()
	if err != nil {
		return nil, fmt.Errorf("paper TPM: unwrap: %w", err)
	}
	return attest.Secret(data.Buffer), nil
}
