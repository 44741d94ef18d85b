package attest

import (
	"crypto/x509"
	"time"

	"github.com/sealift/sealift/image/manifest"
)

// Policy is everything that evidence is compared with: Reference Values,
// Endorsements and the owner's rules. A zero Policy refuses everything.
type Policy struct {
	ID       string               // names the policy in results and in the audit log: digest of what it was made from
	Images   []*manifest.Manifest // allowed images; their signatures were verified by the caller
	Firmware FirmwarePolicy
	TPM      TPMPolicy
	// DBX lists the allowed digests of the EV_EFI_VARIABLE_DRIVER_CONFIG event
	// of dbx. Empty: any dbx is allowed, because firmware updates change it.
	DBX []manifest.SHA256
	// DBXSuperset are EFI_SIGNATURE_LISTs (UEFI 2.10, 32.4.1) of which the
	// machine's dbx must hold every entry. Optional.
	DBXSuperset []byte
	// DeniedImages are images that the policy knows and refuses, so that a
	// refusal says which one was booted.
	DeniedImages []DeniedImage
	Models       []ModelRule // all that match a machine count
	// NotInForce says why the policy gives nothing now, for example that it has
	// expired. Empty: it is in force.
	NotInForce string
	// Revision says which of the policies that were enabled one after the other
	// this is of; 0: none was. No verdict depends on it.
	Revision int64
	// Bank is the PCR bank that evidence is appraised by, sha256 or sha384, and
	// which therefore must be active. Empty: SHA-256. With sha384, SHA-256 need
	// not be active, if the TPM proves that it is off. What nothing proves is that
	// the firmware measures into SHA-384: say so only where it is known to. Where it
	// is known of some machines only, leave it out: see TPMPolicy.WithoutSHA256.
	Bank string
}

// DeniedImage is a known image that is given nothing.
type DeniedImage struct {
	Manifest *manifest.Manifest
	Reason   string // "version 1.2 is below the minimum 1.4"
}

// TPMClass says what kind of TPM a certificate root vouches for.
type TPMClass string

// Classes of TPM, from the best protected to the least.
const (
	TPMHardware TPMClass = "hardware" // discrete or integrated chip
	TPMFirmware TPMClass = "firmware" // in the CPU's trusted execution environment
	TPMVirtual  TPMClass = "virtual"  // offered by a hypervisor with its own root
	TPMSoftware TPMClass = "software" // swtpm and other emulators: tests only
)

// TPMPolicy says which endorsement certificates are believed.
type TPMPolicy struct {
	Roots   []TPMRoot
	Allowed []TPMClass // classes that may be given secrets

	// Imported are endorsement certificates that the owner brings for machines
	// whose TPM has none, or none that leads to a root.
	Imported map[MachineID]*x509.Certificate
	// AllowExpired accepts an endorsement certificate that has expired; the
	// authorities above it must be valid all the same.
	AllowExpired bool
	// Revocations are the authorities' lists. RequireRevocation refuses a chain
	// in which an issuer has no list that is in force.
	Revocations       *Revocations
	RequireRevocation bool
	// Denied are TPM firmwares that are given nothing.
	Denied []TPMDenial
	// ProveBanks accepts evidence only with a BankProof, whatever banks are
	// quoted. Without it only evidence in which SHA-256 is off needs one.
	ProveBanks bool
	// AskBanks, without ProveBanks, only has machines asked: what a BankProof says
	// is told, and refuses nothing where SHA-256 is quoted with its PCRs.
	AskBanks bool
	// BankExemptions are TPMs to which ProveBanks does not apply, while SHA-256 is
	// quoted with its PCRs and no proof of the machine was ever accepted.
	BankExemptions []TPMRule
	// WithoutSHA256 are TPMs that may have SHA-256 off, if they prove it, and whose
	// machines are then appraised by SHA-384, whatever Policy.Bank says. Their owner
	// vouches for the firmware, as with that.
	WithoutSHA256 []TPMRule
}

// TPMRoot is a trusted certificate authority for endorsement keys.
type TPMRoot struct {
	Class        TPMClass
	Certificate  *x509.Certificate
	Intermediate bool // not trusted by itself, only offered for building chains
	// Vendors are the manufacturers whose TPMs the root may vouch for. Empty:
	// any, as for an authority of the owner's own.
	Vendors []TPMVendor
}

// FirmwarePolicy is the set of firmware that a machine may boot. Package
// firmware computes it from the catalogue and the campaigns.
type FirmwarePolicy struct {
	References []FirmwareReference
	// Release lists the verdicts with which secrets are released. Empty:
	// measured and cross-checked. Unknown and denied never release.
	Release []FirmwareVerdict
}

// FirmwareReference is one known firmware build for one model.
type FirmwareReference struct {
	Vendor  string // SMBIOS type 1 manufacturer; empty matches any
	Product string // SMBIOS type 1 product name; empty matches any
	Version string // as the build reports it in SMBIOS type 0
	Date    string // of its release, as FirmwareDate reads it; empty if not known
	// Digests are the SHA-256 digests of the EV_EFI_PLATFORM_FIRMWARE_BLOB
	// or _BLOB2 events that identify the build; all of them must be in PCR 0.
	Digests []manifest.SHA256
	// SHA384 are the digests of the same volumes in the SHA-384 bank, in hex,
	// for machines that are appraised by it.
	SHA384 []string
	// Unpinned is the number of further firmware blob events that the build
	// measures with a digest that is different on each configuration (OVMF's
	// PEI volume, which writes into itself before it is measured).
	Unpinned int
	Status   FirmwareStatus
	Reason   string // why it is denied, or which campaign allows it
}

// FirmwareStatus says what a match with a reference means.
type FirmwareStatus string

// What a FirmwareReference says of its build. The zero value denies.
const (
	FirmwareDenied  FirmwareStatus = "denied"
	FirmwareAllowed FirmwareStatus = "allowed"
)

// EnrolmentState is where a machine stands with its owner.
type EnrolmentState string

// States of a machine. Only an enrolled machine is ever given secrets.
const (
	StateUnknown     EnrolmentState = ""
	StatePending     EnrolmentState = "pending"
	StateEnrolled    EnrolmentState = "enrolled"
	StateRevoked     EnrolmentState = "revoked"
	StateQuarantined EnrolmentState = "quarantined"
)

// Known is what the service has recorded about the machine whose evidence is
// appraised. The zero value is a machine never heard of.
type Known struct {
	State       EnrolmentState
	StateReason string // the operator's reason for the present state
	// Unproven is what the service's decision log says of the machine in place of the
	// State, if that is StateEnrolled and the log does not say so. Optional.
	Unproven string `json:",omitempty"`
	// Damaged names what the service has of the machine, its TPM and its serial number
	// and cannot read. Optional.
	Damaged      []string  `json:",omitempty"`
	AKName       []byte    // TPM Name of the attestation key seen before, nil if none
	DiskGUID     string    // of the install that the evidence is held against, empty if none
	DiskOwner    MachineID // machine to which the disk named in the evidence belongs, if any
	StateMade    bool      // a state partition exists: a confirmed unlock or accepted evidence said so
	ResetCount   uint32    // of the last accepted evidence
	RestartCount uint32
	Clock        uint64   // TPMS_CLOCK_INFO clock of the last accepted evidence, ms
	TPMFirmware  uint64   // TPMS_ATTEST firmwareVersion of the last accepted evidence
	Banks        []string // PCR banks that were active in the last accepted evidence, nil if not known
	// BanksProven: accepted evidence had a BankProof, so that the TPM can make one.
	BanksProven bool      `json:",omitempty"`
	Serial      string    // that the machine must claim, because it was enrolled beforehand with it; empty if it need not
	SerialOwner MachineID // machine to which the serial number belongs that the evidence claims, if any
	// SerialExpected: SerialOwner is the digest of an endorsement key that was
	// enrolled beforehand and has not shown up.
	SerialExpected bool
	Released       bool // a release was already made in the boot named by ResetCount and RestartCount
	// TPMOwner is the machine that this TPM is already, by another of its
	// endorsement keys, and TPMOwnerState where that stands. Unset if it is none.
	TPMOwner      MachineID
	TPMOwnerState EnrolmentState
	// OtherKeys are the other endorsement keys that are proven to be in this TPM.
	OtherKeys []MachineID
}

// Challenge is the service's memory of a challenge that this evidence answers.
// The caller has taken it from its store, so it can never be answered again.
type Challenge struct {
	ID               string
	Purpose          Purpose
	Nonce            []byte
	ActivationSecret []byte // what TPM2_MakeCredential protected
	AKPublic         []byte // the key it was made for
	EKPublic         []byte
	Expires          time.Time
	// AsksBanks: the machine was asked for a BankProof. Challenges that were kept
	// by earlier versions do not say whether it was.
	AsksBanks bool `json:",omitempty"`
}

// Session is what the transport tells about the connection and the proof.
type Session struct {
	Exporter        []byte // RFC 9266 tls-exporter of the connection the evidence came over
	ActivationProof []byte
	Now             time.Time
}
