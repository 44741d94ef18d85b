package attest

import (
	"github.com/sealift/sealift/image/manifest"
)

// Verdict on firmware, in the order of trust.
type FirmwareVerdict string

// The five verdicts on a firmware version. Only Measured and CrossChecked may
// release secrets.
const (
	FirmwareMeasured      FirmwareVerdict = "measured"      // digests of a known build are in PCR 0
	FirmwareCrossChecked  FirmwareVerdict = "cross-checked" // a measured version string agrees with the claim
	FirmwareClaimedOnly   FirmwareVerdict = "claimed only"
	FirmwareUnknown       FirmwareVerdict = "unknown"
	FirmwareVerdictDenied FirmwareVerdict = "denied"
)

// Trust says how far a fact is proven.
type Trust string

// Trust of a fact that stands in a Result.
const (
	TrustQuoted   Trust = "quoted"   // signed by the TPM, directly or through replay to a quoted PCR
	TrustDigest   Trust = "digest"   // only its digest is quoted, the text beside it is a hint
	TrustClaimed  Trust = "claimed"  // the machine's word
	TrustRecorded Trust = "recorded" // the service's own record
)

// Code names the check that a Finding failed. Codes are stable: scripts,
// documents and tests rely on them.
type Code string

// Finding codes. README.md explains each one and says what mends it.
const (
	CodeMalformed       Code = "evidence.malformed"  // a structure could not be decoded
	CodeChallenge       Code = "challenge.invalid"   // not open, expired, or for another purpose
	CodeChallengeKey    Code = "challenge.other-key" // made for another endorsement or attestation key
	CodeActivation      Code = "ak.not-activated"    // AK and EK not proven to be in one TPM
	CodeEKCertificate   Code = "ek.untrusted"        // no chain to a trusted root, or not an EK certificate
	CodeEKNotSigned     Code = "ek.not-signed"       // a trusted authority is named as its issuer, and did not sign it
	CodeEKMismatch      Code = "ek.mismatch"         // certificate and key differ
	CodeEKExpired       Code = "ek.expired"
	CodeEKWeak          Code = "ek.weak" // the key can be computed from its public part
	CodeEKRevoked       Code = "ek.revoked"
	CodeEKRevocation    Code = "ek.revocation-unknown" // the policy wants a list that is in force, and there is none
	CodeTPMClass        Code = "tpm.class-not-allowed"
	CodeTPMVendor       Code = "tpm.vendor-not-allowed" // the root may not vouch for this manufacturer
	CodeAKAttributes    Code = "ak.attributes"          // not a restricted, fixed signing key of the expected kind
	CodeAKChanged       Code = "ak.changed"
	CodeQuoteMissing    Code = "quote.missing"    // neither SHA-256 nor SHA-384, or a bank of the log is not quoted
	CodeQuoteDowngraded Code = "quote.downgraded" // of the banks, only SHA-1 is quoted
	CodeQuoteSignature  Code = "quote.signature"
	CodeQuoteFormat     Code = "quote.format"           // magic, type or scheme
	CodeQuoteNonce      Code = "quote.nonce"            // extraData is not ours, and why is not known
	CodeQuoteChallenge  Code = "quote.other-challenge"  // the TPM answers another challenge
	CodeQuoteConnection Code = "quote.other-connection" // it answers ours, which came to it over another connection
	CodeQuoteEvidence   Code = "quote.other-evidence"   // it answers ours over this connection, and has not signed this evidence
	CodeQuoteSelection  Code = "quote.selection"
	CodeQuoteEmpty      Code = "quote.empty"     // it covers no PCR
	CodeQuoteDigest     Code = "quote.digest"    // PCR values sent are not the ones quoted
	CodeBankUnproven    Code = "bank.unproven"   // what is quoted as active and as off is not what the TPM says, or it says nothing
	CodeBankHidden      Code = "bank.hidden"     // the TPM says that a bank is active which is not quoted
	CodeBankTurnedOff   Code = "bank.turned-off" // SHA-256 was active in the last accepted boot
	CodeBankEmpty       Code = "bank.empty"      // nothing was measured into it
	CodeBankUnlogged    Code = "bank.not-logged" // the log has no digests of it
	CodeClock           Code = "tpm.clock"       // clock not safe or went backwards
	CodeTPMFirmware     Code = "tpm.firmware"    // the TPM's own firmware is older than before
	CodeTPMDenied       Code = "tpm.firmware-denied"
	CodeTransport       Code = "transport.invalid"
	CodeLogMalformed    Code = "eventlog.malformed"
	CodeLogReplay       Code = "eventlog.replay"     // log does not lead to the quoted value, and why is not known
	CodeLogMissing      Code = "eventlog.missing"    // it has no event of a PCR that was extended
	CodeLogDeleted      Code = "eventlog.deleted"    // with a known event more it leads to the quoted value
	CodeLogReordered    Code = "eventlog.reordered"  // in another order it does
	CodeLogDuplicated   Code = "eventlog.duplicated" // without one of two equal events it does
	CodeLogAdded        Code = "eventlog.added"      // without some of its events it does
	CodeLogRetyped      Code = "eventlog.retyped"    // a known digest is logged under another type
	CodeLogStructure    Code = "eventlog.structure"  // separator, order or duplicate rule broken
	CodeEventUnknown    Code = "event.unknown"       // an event no rule allows
	CodeSecureBootOff   Code = "secureboot.off"
	CodeSecureBootKeys  Code = "secureboot.keys" // PK, KEK, db or dbx differ from the reference
	CodeAuthority       Code = "secureboot.authority"
	CodeImageUnknown    Code = "image.unknown" // what was booted is no allowed image
	CodeImageDenied     Code = "image.denied"  // it is a known one that the policy refuses
	CodePolicyDates     Code = "policy.not-in-force"
	CodeSection         Code = "uki.section"  // a UKI section differs from the allowed image
	CodeCmdline         Code = "uki.cmdline"  // the kernel command line does
	CodePCRNotZero      Code = "pcr.not-zero" // something extended a PCR that must be untouched
	CodePCRCapped       Code = "pcr.capped"   // the boot was already capped
	CodeFirmwareUnknown Code = "firmware.unknown"
	CodeFirmwareDenied  Code = "firmware.denied"
	CodeFirmwareClaim   Code = "firmware.claim-mismatch" // SMBIOS says another version than the measured one
	CodeMachineUnknown  Code = "machine.unknown"
	CodeMachinePending  Code = "machine.pending"
	CodeMachineRevoked  Code = "machine.revoked"
	CodeQuarantined     Code = "machine.quarantined"
	CodeDiskForeign     Code = "disk.foreign"      // the disk belongs to another machine or install
	CodeStateLost       Code = "disk.state-lost"   // a state partition was made before and is gone
	CodeReleaseRepeated Code = "release.repeated"  // a second release in one boot
	CodeReportBoot      Code = "report.other-boot" // a report of another boot than that of the last release
	CodePCRChanged      Code = "report.pcr-changed"
	CodeLogChanged      Code = "report.log-changed"      // the event log is not that of the release
	CodeSerialMismatch  Code = "machine.serial-mismatch" // SMBIOS says another serial number than the pre-enrolment
	CodeSerialTaken     Code = "machine.serial-taken"    // the serial number belongs to another endorsement key
	CodeTPMTaken        Code = "machine.tpm-taken"       // the TPM is another machine's, by another of its endorsement keys
	CodeMachineUnproven Code = "machine.unproven"        // the record says that it is enrolled, and the service's decision log does not
	CodeRecordDamaged   Code = "record.damaged"          // what the service has of the machine cannot be read
)

// Finding is one failed check. Any finding refuses the evidence.
type Finding struct {
	Code Code `json:"code"`
	PCR  *int `json:"pcr,omitempty"`
	// Component names what it is about where the code does not, e.g. "dbx".
	Component string `json:"component,omitempty"`
	Message   string `json:"message"` // for people: names the component, both sides of a mismatch
	Got       string `json:"got,omitempty"`
	Want      string `json:"want,omitempty"`
	Hint      string `json:"hint,omitempty"` // the command or action that mends it
}

// Fact is something the evidence says, with how far it is proven.
type Fact struct {
	Name  string `json:"name"` // e.g. "firmware.version"
	Value string `json:"value"`
	Trust Trust  `json:"trust"`
}

// Result is the Attestation Result (RFC 9334) of one piece of evidence. It is
// what the audit log keeps and what a refused machine is told.
type Result struct {
	Machine  MachineID       `json:"machine"`
	Policy   string          `json:"policy"`
	Allowed  bool            `json:"allowed"`
	Findings []Finding       `json:"findings"`
	Facts    []Fact          `json:"facts"`
	Image    string          `json:"image,omitempty"` // "name version" of the matched image
	ImageUKI manifest.SHA256 `json:"imageUKI"`        // its Authenticode digest
	Firmware Firmware        `json:"firmware"`
	// Banks is what the evidence says of the proof of its active PCR banks.
	Banks BankAnswer `json:"banks,omitempty"`

	verified *Verified
}

// Firmware is the verdict on the machine's firmware.
type Firmware struct {
	Verdict FirmwareVerdict   `json:"verdict"`
	Version string            `json:"version,omitempty"` // of the matched reference
	Claimed string            `json:"claimed,omitempty"` // SMBIOS type 0
	Vendor  string            `json:"vendor,omitempty"`  // SMBIOS type 1, claimed
	Product string            `json:"product,omitempty"` // SMBIOS type 1, claimed
	Digests []manifest.SHA256 `json:"digests,omitempty"` // of all firmware blob events in PCR 0
}

// Verified is what accepted evidence proves. Only Verify makes one, and only
// a Verified can have a secret wrapped for it.
type Verified struct {
	machine      MachineID
	akName       []byte
	transport    []byte         // TPMT_PUBLIC of the transport key
	bank         string         // whose state the transport key is bound to
	pcrs         map[int][]byte // PolicyPCRs of this bank
	resetCount   uint32
	restartCount uint32
	clock        uint64
	tpmFirmware  uint64
	boot         *Boot
}

// Verified returns the proof that the evidence was accepted, or false. A
// Result that was decoded from JSON never has one.
func (r *Result) Verified() (*Verified, bool) {
	if r == nil || !r.Allowed || len(r.Findings) > 0 || r.verified == nil {
		return nil, false
	}
	return r.verified, true
}

// Machine returns the proven identity.
func (v *Verified) Machine() MachineID { return v.machine }

// AKName returns the TPM Name of the attestation key.
func (v *Verified) AKName() []byte { return v.akName }

// Boot returns the TPM's reset and restart counters, which name this boot.
func (v *Verified) Boot() (resetCount, restartCount uint32) { return v.resetCount, v.restartCount }

// Clock returns the TPM's clock in milliseconds.
func (v *Verified) Clock() uint64 { return v.clock }

// TPMFirmware returns the TPM's signed firmware version.
func (v *Verified) TPMFirmware() uint64 { return v.tpmFirmware }
