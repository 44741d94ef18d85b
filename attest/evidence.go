package attest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// MachineID is a machine's proven identity: the SHA-256 of the DER
// SubjectPublicKeyInfo of its endorsement key. It is never convertible from
// what a machine merely claims (MAC address, SMBIOS UUID, serial number).
type MachineID [32]byte

// MachineIDOf returns the identity of the endorsement key whose
// SubjectPublicKeyInfo is spki.
func MachineIDOf(spki []byte) MachineID { return sha256.Sum256(spki) }

// ParseMachineID reads the 64 hex digits that String writes.
func ParseMachineID(s string) (MachineID, error) {
	var id MachineID
	if len(s) != 64 {
		return id, fmt.Errorf("machine id %q: got %d characters, want 64 hex digits", s, len(s))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return MachineID{}, fmt.Errorf("machine id %q: %w", s, err)
	}
	return id, nil
}

// String returns 64 hex digits.
func (id MachineID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first 12 hex digits, for people.
func (id MachineID) Short() string { return hex.EncodeToString(id[:6]) }

// IsZero reports whether the id is unset.
func (id MachineID) IsZero() bool { return id == MachineID{} }

// MarshalText encodes the id as String does.
func (id MachineID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText decodes what MarshalText wrote; the empty string is the unset id.
func (id *MachineID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = MachineID{}
		return nil
	}
	v, err := ParseMachineID(string(b))
	*id = v
	return err
}

// Purpose says what evidence is for. It is part of what the TPM signs, so
// evidence for one purpose cannot serve another.
type Purpose string

// PurposeUnlock asks, early in boot, for disk keys and a join token.
const PurposeUnlock Purpose = "unlock"

// Size limits of evidence. What is larger is refused before it is parsed.
const (
	MaxEventLog     = 1 << 20 // bytes
	MaxSMBIOS       = 64 << 10
	MaxCertificates = 8
	MaxCertificate  = 8 << 10
	MaxBanks        = 8
	MaxNoBanks      = 256 // bytes
)

// PolicyPCRs is the exact PCR selection of every quote: firmware and boot
// (0-7), the kernel's and stub's measurements (9, 11-13), MokList (14) and the
// cap (15). PCR 8 and 10 are left out because nothing before the agent
// measures into them, and 16-23 because they are resettable or DRTM.
func PolicyPCRs() []int { return []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 15} }

// Evidence is what a machine sends to be appraised (RFC 9334). All of it is
// hostile until Verify has said otherwise. TPM structures are in the TPM's own
// wire format, without an outer size field unless the name says TPM2B.
type Evidence struct {
	EKPublic       []byte   `json:"ekPublic"`       // TPMT_PUBLIC of the endorsement key
	EKCertificates [][]byte `json:"ekCertificates"` // DER: the EK certificate first, then chain certificates found in NV
	AKPublic       []byte   `json:"akPublic"`       // TPMT_PUBLIC of the attestation key

	Quotes []Quote    `json:"quotes"`          // one for each active PCR bank, and one for SHA-256 if it is off
	Banks  *BankProof `json:"banks,omitempty"` // where SHA-256 is off, or the challenge asks for it; else Optional
	// NoBanks says, where Banks is wanted and not there, why the TPM does not make
	// it, in at most MaxNoBanks bytes. It is the machine's word, and told.
	NoBanks   string       `json:"noBanks,omitempty"`
	EventLog  []byte       `json:"eventLog"` // TCG crypto-agile event log
	Transport TransportKey `json:"transport"`

	SMBIOS []byte `json:"smbios"` // structure table (DSP0134), without the entry point; a claim
	Disk   Disk   `json:"disk"`
}

// Quote is one TPM2_Quote (TPM 2.0 Library Part 3, 18.4) over PolicyPCRs of one
// bank. Without PCR values it says that the bank is off, which a BankProof proves.
type Quote struct {
	Bank      string         `json:"bank"`      // sha1, sha256, sha384, sha512
	Attest    []byte         `json:"attest"`    // TPMS_ATTEST
	Signature []byte         `json:"signature"` // TPMT_SIGNATURE
	PCRs      map[int][]byte `json:"pcrs"`      // the values that the quote's digest is claimed to cover
}

// TransportKey is the storage key in the NULL hierarchy to which a release is
// wrapped, with the attestation key's word for how it was made
// (TPM2_CertifyCreation, Part 3, 18.3).
type TransportKey struct {
	Public       []byte `json:"public"`       // TPMT_PUBLIC
	CreationData []byte `json:"creationData"` // TPMS_CREATION_DATA
	Certify      []byte `json:"certify"`      // TPMS_ATTEST
	Signature    []byte `json:"signature"`    // TPMT_SIGNATURE
}

// Disk is what the machine says of the disk it booted from. It is bound to the
// quote but otherwise a claim of the (attested) agent.
type Disk struct {
	GUID        string `json:"guid"`        // GPT disk GUID, lower case
	StateExists bool   `json:"stateExists"` // a LUKS2 state partition is there to be opened
}

// Binding is what a quote's qualifying data commits to, beside the nonce.
type Binding struct {
	Purpose     Purpose
	Nonce       []byte // 32 bytes, from the challenge
	Exporter    []byte // TLS channel binding, RFC 9266 tls-exporter, 32 bytes
	TransportID []byte // TPM Name of the transport key
}

// QualifyingData returns the extraData of every quote over ev: a SHA-256 over
// length-prefixed fields, so that no two different inputs give the same bytes.
// It is always 32 bytes because some TPMs take no more.
func QualifyingData(b Binding, ev *Evidence) []byte {
	h := sha256.New()
	field := func(p []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	field([]byte("sealift evidence v1"))
	field([]byte(b.Purpose))
	field(b.Nonce)
	field(b.Exporter)
	field(b.TransportID)
	field(ev.EKPublic)
	field(ev.AKPublic)
	log := sha256.Sum256(ev.EventLog)
	field(log[:])
	smbios := sha256.Sum256(ev.SMBIOS)
	field(smbios[:])
	field([]byte(ev.Disk.GUID))
	if ev.Disk.StateExists {
		field([]byte{1})
	} else {
		field([]byte{0})
	}
	return h.Sum(nil)
}

// CertifyData returns the qualifying data of the transport key's
// TPM2_CertifyCreation for a challenge.
func CertifyData(nonce []byte) []byte {
	d := sha256.Sum256(append([]byte("sealift transport key v1\x00"), nonce...))
	return d[:]
}

// ConnectionData returns the outside info that the transport key is created with
// (TPM2_CreatePrimary, Part 3, 24.1): the connection over which its challenge came.
// It is in the creation data, which the TPM certifies. No verdict rests on it, since
// the quotes cover the connection; it says which it is when they are for another one.
func ConnectionData(exporter []byte) []byte {
	d := sha256.Sum256(append([]byte("sealift connection v1\x00"), exporter...))
	return d[:]
}

// ActivationProof returns what a client sends instead of the secret that
// TPM2_ActivateCredential gave it: an HMAC-SHA256 under that secret over the
// challenge's id and nonce and the attestation key.
func ActivationProof(secret []byte, challengeID string, nonce, akPublic []byte) []byte {
	return activationProof(secret, challengeID, nonce, akPublic)
}
