// Package api holds the types on the wire between a node's agent and the
// attestation service, and between an operator and the service. Bodies are
// JSON over TLS 1.3. []byte fields are standard base64.
package api

import (
	"encoding/json"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// Version is the protocol version that both sides must name.
const Version = 1

// Paths of the node API.
const (
	PathChallenge = "/v1/challenge" // POST ChallengeRequest
	PathEvidence  = "/v1/evidence"  // POST EvidenceRequest, on the connection whose exporter was quoted
	PathConfirm   = "/v1/confirm"   // POST ConfirmRequest
	PathKey       = "/v1/key"       // POST KeyRequest, on the connection that has the challenge
)

// Limits of request bodies, bytes.
const (
	MaxChallengeBody = 128 << 10
	MaxEvidenceBody  = 4 << 20
	MaxConfirmBody   = 16 << 10
)

// ExporterLabel is the TLS exporter label of RFC 9266 4.1; the context is
// empty and the length ExporterLength.
const (
	ExporterLabel  = "EXPORTER-Channel-Binding"
	ExporterLength = 32
)

// ChallengeRequest opens an attestation.
type ChallengeRequest struct {
	Version        int            `json:"version"`
	Purpose        attest.Purpose `json:"purpose"`
	EKPublic       []byte         `json:"ekPublic"`       // TPMT_PUBLIC
	EKCertificates [][]byte       `json:"ekCertificates"` // DER, EK certificate first
	AKPublic       []byte         `json:"akPublic"`       // TPMT_PUBLIC
}

// Challenge answers a ChallengeRequest. It is single-use and short-lived.
type Challenge struct {
	ID         string    `json:"id"`
	Nonce      []byte    `json:"nonce"`      // 32 bytes
	Credential []byte    `json:"credential"` // TPM2B_ID_OBJECT contents for TPM2_ActivateCredential; empty for a report
	Secret     []byte    `json:"secret"`     // TPM2B_ENCRYPTED_SECRET contents; empty for a report
	PCRs       []int     `json:"pcrs"`       // must equal attest.PolicyPCRs
	Expires    time.Time `json:"expires"`
	// ProveBanks asks for Evidence.Banks whatever banks are active. It saves
	// machines a signature that no policy wants; what counts is the policy.
	ProveBanks bool `json:"proveBanks,omitempty"`
	// Machine is what this TPM is to the service by another of its endorsement
	// keys, which is the one to use: the agent asks again with that. Unset: it is
	// none.
	Machine attest.MachineID `json:"machine,omitzero"`
	// ProveKeys asks for the TPM's other endorsement keys, see KeyRequest. It is
	// advice: what was not proven is asked for in the next boot again.
	ProveKeys bool `json:"proveKeys,omitempty"`
}

// KeyRequest answers a Challenge not with evidence but only with the proof that
// the endorsement key is in one TPM with the attestation key. The service remembers
// it with the connection. The answer is empty.
type KeyRequest struct {
	ChallengeID     string `json:"challengeID"`
	ActivationProof []byte `json:"activationProof"`
}

// MaxKeys is how many KeyRequests a connection has room for.
const MaxKeys = 8

// EvidenceRequest answers a Challenge.
type EvidenceRequest struct {
	ChallengeID     string          `json:"challengeID"`
	ActivationProof []byte          `json:"activationProof"`
	Evidence        attest.Evidence `json:"evidence"`
	// KeysProven: the agent proved every other endorsement key for which the TPM
	// holds a certificate, over this connection.
	KeysProven bool `json:"keysProven,omitempty"`
}

// EvidenceResponse carries the verdict. Release is set only if it was allowed.
// A refusal has HTTP status 403 and the same body. A report has no Release.
type EvidenceResponse struct {
	Result  *attest.Result `json:"result"`
	Release *Envelope      `json:"release,omitempty"`
	// ReportAfter answers a report: when the next one is wanted, seconds.
	ReportAfter int `json:"reportAfter,omitempty"`
}

// ConfirmRequest tells the service how a release ended. Proof is an
// HMAC-SHA256 under the release's transport secret over the release id and
// the outcome, so only the TPM that could unseal can confirm.
type ConfirmRequest struct {
	ReleaseID string `json:"releaseID"`
	Outcome   string `json:"outcome"` // OutcomeUnlocked, one of diskkey.go, or an error text of at most 512 bytes
	Proof     []byte `json:"proof"`
}

// OutcomeUnlocked is the outcome of a release that opened the disk and was capped.
const OutcomeUnlocked = "unlocked"

// ReleaseType is the DSSE payload type of a Release.
const ReleaseType = "application/vnd.sealift.release.v1+json"

// Envelope is a DSSE envelope with one signature, ECDSA P-256 with SHA-256
// over the DSSE pre-authentication encoding.
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []Signature `json:"signatures"`
}

// Signature is one DSSE signature.
type Signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"` // ASN.1 DER
}

// Release is the signed payload that gives a machine its secrets.
type Release struct {
	ID          string           `json:"id"`
	Machine     attest.MachineID `json:"machine"`
	ChallengeID string           `json:"challengeID"`
	Policy      string           `json:"policy"`
	Issued      time.Time        `json:"issued"`
	// Key is a 32-byte transport secret that only this TPM in this state can
	// unseal.
	Key attest.WrappedKey `json:"key"`
	// Sealed is Secrets as JSON under AES-256-GCM with the key
	// HKDF-SHA256(transport secret, salt=nil, info="sealift release v1 "+ID),
	// a 12-byte nonce in front, additional data ID.
	Sealed []byte `json:"sealed"`
	// ReportAfter is when the service wants the first report, and each one
	// after it, seconds. 0: it wants none.
	ReportAfter int `json:"reportAfter,omitempty"`
}

// Bounds of ReportAfter, seconds, to which an agent keeps.
const (
	MinReportAfter = 10
	MaxReportAfter = 24 * 60 * 60
)

// Secrets is the plaintext of Release.Sealed.
type Secrets struct {
	DiskKey attest.Secret `json:"diskKey"` // the service's 32-byte half of the disk key
	// NextDiskKey is the half that is to take its place, if there is one. The
	// volume may be under either.
	NextDiskKey attest.Secret `json:"nextDiskKey,omitempty"`
	Join        *Join         `json:"join,omitempty"` // nil if the node has already joined
	NodeName    string        `json:"nodeName"`
}

// Join is what a kubelet needs for its TLS bootstrap.
type Join struct {
	Server  string        `json:"server"` // https://host:port of the kube-apiserver
	CA      []byte        `json:"ca"`     // PEM
	Token   attest.Secret `json:"token"`  // bootstrap token, id.secret
	Expires time.Time     `json:"expires"`
}

// Error is the body of every other failure.
type Error struct {
	Code    string `json:"code"` // stable, e.g. "bad-request", "too-large", "rate-limited"
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Request string `json:"request,omitempty"` // as HeaderRequestID
}

// Codes of an Error with which the service refused a request before it did
// anything for it: the same request may come again when Retry-After is over, over
// the same connection if that stays, and with the same challenge.
const (
	CodeBusy        = "busy"         // it had no time
	CodeRateLimited = "rate-limited" // there were too many of them
)

// HeaderRequestID is the header of every answer that names the request in the
// service's log. A client cannot choose it.
const HeaderRequestID = "X-Request-Id"

// Paths of the operator API, served on another listener to holders of an
// operator certificate.
const (
	PathMachines    = "/v1/machines"     // GET: []Machine in pages, ?state=, ?node=; GET /{id}; POST /{id}/approve, /{id}/revoke, /{id}/quarantine, /{id}/reinstate, /{id}/rejoin, /{id}/rotate-key with StateChange, /{id}/re-enrol with ReEnrol
	PathExpected    = "/v1/expected"     // GET: []Expected in pages; POST ExpectedList
	PathInstalls    = "/v1/installs"     // POST InstallRecord: enrols the machine
	PathCampaigns   = "/v1/campaigns"    // GET: []json; POST firmware.Campaign; GET /{name}
	PathRestore     = "/v1/restore"      // GET: RestoreStatus; POST /accept, /settle with StateChange: releases again after a restore, takes new machines as new
	PathAudit       = "/v1/audit"        // GET: JSON lines of audit.Entry, ?machine=ID&from=SEQ
	PathAuditHead   = "/v1/audit/head"   // GET: audit.Envelope of an audit.HeadStatement
	PathEvidenceLog = "/v1/evidence-log" // GET /{digest}: the stored evidence that an audit entry names; GET, or POST PolicyProposal, /{digest}/explanation
	PathPolicy      = "/v1/policy"       // GET: PolicyState; POST /enable with PolicyEnable: PolicyState; POST /whatif with PolicyProposal: JSON lines of WhatIf
)

// Machine is the service's record of a machine, as operators see it.
type Machine struct {
	ID          attest.MachineID      `json:"id"`
	State       attest.EnrolmentState `json:"state"`
	Reason      string                `json:"reason,omitempty"`
	NodeName    string                `json:"nodeName"`
	DiskGUID    string                `json:"diskGUID,omitempty"`
	Serial      string                `json:"serial,omitempty"`
	Installed   time.Time             `json:"installed,omitzero"`
	LastSeen    time.Time             `json:"lastSeen,omitzero"`
	LastAllowed bool                  `json:"lastAllowed"`
	Firmware    attest.Firmware       `json:"firmware"`
	Image       string                `json:"image,omitempty"`
	Joined      bool                  `json:"joined"`
	Next        *Candidate            `json:"next,omitempty"`     // nil if no reinstall waits to be proven
	Rotation    *DiskKeyRotation      `json:"rotation,omitempty"` // nil if its disk key is to stay
	// LastEvidence is the digest of the evidence that was stored last, accepted
	// or refused; AcceptedEvidence that of the last that was accepted.
	LastEvidence     manifest.SHA256 `json:"lastEvidence,omitzero"`
	AcceptedEvidence manifest.SHA256 `json:"acceptedEvidence,omitzero"`

	// LastReport is when a report of the running system was last accepted,
	// ReportDue when the next one must be. Stale: that time is over. It
	// refuses nothing.
	LastReport time.Time `json:"lastReport,omitzero"`
	ReportDue  time.Time `json:"reportDue,omitzero"`
	Stale      bool      `json:"stale,omitempty"`
	// BankProof is what it answered when it was asked last to prove its active PCR
	// banks; nil if it never was, or has not answered since.
	BankProof *BankProof `json:"bankProof,omitempty"`
	// Listed: the machine was enrolled beforehand, and must claim its Serial.
	Listed bool `json:"listed,omitempty"`
	// ReplacedBy is the machine that took over the name and the serial number
	// of this one.
	ReplacedBy attest.MachineID `json:"replacedBy,omitzero"`
	// OtherKeys are the other endorsement keys that are proven to be in its TPM.
	OtherKeys []attest.MachineID `json:"otherKeys,omitempty"`
	// Unproven is what the audit log says of an enrolled machine, if that is not that
	// it is enrolled: it is given nothing. Set when one machine is asked for.
	Unproven string `json:"unproven,omitempty"`
	// Damaged is why the service cannot read the record, if it cannot. The other fields
	// but ID, State, NodeName and DiskGUID are unset then.
	Damaged string `json:"damaged,omitempty"`
}

// Candidate is an install of a machine that is enrolled already, as an install
// record says it. It takes the place of the present install when evidence from
// its disk is accepted.
type Candidate struct {
	DiskGUID  string    `json:"diskGUID"`
	Serial    string    `json:"serial"`
	Installed time.Time `json:"installed,omitzero"`
}

// StateChange asks for another enrolment state, or for another join.
type StateChange struct {
	Reason string `json:"reason"`
}

// RestoreStatus is what is known of the last restore of the service's store
// from a backup.
type RestoreStatus struct {
	Held       bool      `json:"held"`              // nothing is released until an approver accepts the restore
	Restored   time.Time `json:"restored,omitzero"` // unset if the store was never restored
	Taken      time.Time `json:"taken,omitzero"`    // when the backup was made
	By         string    `json:"by,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Accepted   time.Time `json:"accepted,omitzero"`
	AcceptedBy string    `json:"acceptedBy,omitempty"`
	// Unsettled: a machine that the store does not know may have had a release
	// before, in the boot that it still is in. So it gets none in the first boot
	// that it is known in, until an approver settles the restore.
	Unsettled bool      `json:"unsettled,omitempty"`
	Settled   time.Time `json:"settled,omitzero"`
	SettledBy string    `json:"settledBy,omitempty"`
	// Missing is what the restore could not rebuild and a person must mend, the
	// first MaxRestoreMissing; MissingMore counts the others.
	Missing     []RestoreMissing `json:"missing,omitempty"`
	MissingMore int              `json:"missingMore,omitempty"`
	// NotReplayed counts the entries of the audit log after the backup, by kind, whose
	// effect could not be repeated.
	NotReplayed map[string]int64 `json:"notReplayed,omitempty"`
}

// MaxRestoreMissing is how many RestoreMissing a RestoreStatus has.
const MaxRestoreMissing = 1000

// RestoreMissing is something that a restore could not rebuild of a machine.
type RestoreMissing struct {
	Machine  attest.MachineID `json:"machine,omitzero"` // unset: it was expected, and has not shown up
	NodeName string           `json:"nodeName,omitempty"`
	Serial   string           `json:"serial,omitempty"` // claimed
	What     string           `json:"what"`
	Mend     string           `json:"mend"` // a command, and what else is to be done
}

// InstallRecord is what an installer leaves behind and a provisioner hands to
// the attestation service.
type InstallRecord struct {
	EKPublic       []byte          `json:"ekPublic"` // TPMT_PUBLIC
	EKCertificates [][]byte        `json:"ekCertificates"`
	DiskGUID       string          `json:"diskGUID"`
	Serial         string          `json:"serial"` // SMBIOS type 1, claimed
	UUID           string          `json:"uuid"`   // SMBIOS type 1, claimed
	MAC            string          `json:"mac"`
	Image          string          `json:"image"`          // name and version
	ManifestDigest string          `json:"manifestDigest"` // SHA-256 hex of the verified manifest
	SecureBoot     string          `json:"secureBoot"`     // "enrolled", "already", or why not
	Finished       time.Time       `json:"finished"`
	Detail         json.RawMessage `json:"detail,omitempty"`
}

// Role is what an operator may do.
type Role string

// Roles of operators. Each may read the machines, the campaigns and what is
// known of them; what a role may do beside is said with it.
const (
	RoleViewer   Role = "viewer"   // nothing beside
	RoleOperator Role = "operator" // enrol, revoke, campaigns: all that needs one person
	RoleApprover Role = "approver" // approve what another asked for: machines, recovery, policies
	RoleAuditor  Role = "auditor"  // read the audit log and the evidence
)

// Known reports whether r is one of the roles.
func (r Role) Known() bool {
	switch r {
	case RoleViewer, RoleOperator, RoleApprover, RoleAuditor:
		return true
	}
	return false
}

// OperatorOrganization is the subject organization of operators' client
// certificates. Nothing else that the same authority issues has it.
const OperatorOrganization = "sealift:operators"
