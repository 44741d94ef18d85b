package audit

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// Kind says what an entry records, and so which payload type its data is.
type Kind string

// Kinds of entry. They are stable: a log outlives the program that wrote it.
const (
	KindStart            Kind = "service.start"     // Start
	KindChallengeRefused Kind = "challenge.refused" // ChallengeRefused
	KindVerdict          Kind = "evidence.verdict"  // Verdict
	KindRelease          Kind = "release"           // Release
	KindConfirm          Kind = "release.confirm"   // Confirm
	KindState            Kind = "machine.state"     // StateChange
	KindInstall          Kind = "machine.install"   // Install
	KindToken            Kind = "token"             // Token
	KindCampaign         Kind = "campaign"          // Campaign
	KindReport           Kind = "report"            // Reattestation
	KindStale            Kind = "machine.stale"     // Stale
	KindExpected         Kind = "machine.expected"  // Expected
	KindPolicy           Kind = "policy"            // Policy
	KindDiskKey          Kind = "machine.disk-key"  // DiskKey
	KindKEK              Kind = "kek.rewrap"        // KEKRewrap
	KindRestore          Kind = "store.restore"     // Restore
	KindAcceptRestore    Kind = "store.accept"      // AcceptRestore
)

// Kinds returns all of them.
func Kinds() []Kind {
	return []Kind{
		KindStart, KindChallengeRefused, KindVerdict, KindRelease, KindConfirm, KindState, KindInstall, KindToken, KindCampaign,
		KindReport, KindStale, KindExpected, KindPolicy, KindDiskKey, KindKEK, KindRestore, KindAcceptRestore, KindAlarm, KindRecovery, KindPrune,
	}
}

// Start records that the service began to answer. A gap in a log's time is
// explained by the start that follows it.
type Start struct {
	Version string `json:"version,omitempty"`
	KEK     string `json:"kek"` // id of the key that wraps disk keys, never the key
	// FormerKEKs and LostKEKs are the ids of those that only open, and of those
	// whose disk keys are given up. Optional.
	FormerKEKs []string `json:"formerKEKs,omitempty"`
	LostKEKs   []string `json:"lostKEKs,omitempty"`
	ReleaseKey string   `json:"releaseKey"` // id of the key that signs releases: SHA-256 of its SubjectPublicKeyInfo
	// SignsEnrolments: from here on entries that enrol machines have a Trust, signed
	// with ReleaseKey.
	SignsEnrolments bool `json:"signsEnrolments,omitempty"`
}

// ChallengeRefused records a request that got no challenge, or that answered
// one that was not open. Who sent it is not proven.
type ChallengeRefused struct {
	Reason  string `json:"reason"`
	Address string `json:"address"`
	// Suppressed is the number of further refusals since the entry before
	// that were not logged, so that a flood cannot fill the log.
	Suppressed int64 `json:"suppressed,omitempty"`
}

// Verdict records the appraisal of one piece of evidence.
type Verdict struct {
	ChallengeID string          `json:"challengeID"`
	Address     string          `json:"address"`
	Evidence    manifest.SHA256 `json:"evidence"` // of the stored evidence; unset if the sender's TPM was not proven and nothing was stored
	Result      *attest.Result  `json:"result"`
	Suppressed  int64           `json:"suppressed,omitempty"` // as in ChallengeRefused
	// Explanation is that of a refusal whose evidence was stored.
	Explanation *attest.Explanation `json:"explanation,omitempty"`
	// Bindings say whose the TPM is, where that is new and no other entry of the
	// decision says it.
	Bindings []Binding `json:"bindings,omitempty"`
}

// What a release gave.
const (
	SecretDiskKey     = "disk-key"
	SecretNextDiskKey = "next-disk-key"
	SecretJoinToken   = "join-token"
)

// Release records that secrets were released, and of which kind, never their
// values.
type Release struct {
	ID           string   `json:"id"`
	ChallengeID  string   `json:"challengeID"`
	Policy       string   `json:"policy"`
	Image        string   `json:"image"`
	ResetCount   uint32   `json:"resetCount"`   // with RestartCount, the boot it is for
	RestartCount uint32   `json:"restartCount"` // TPMS_CLOCK_INFO
	NodeName     string   `json:"nodeName"`
	DiskGUID     string   `json:"diskGUID"`
	NewDiskKey   bool     `json:"newDiskKey"` // the disk key was made for this release
	Secrets      []string `json:"secrets"`    // SecretDiskKey, SecretNextDiskKey, SecretJoinToken
	TokenID      string   `json:"tokenID,omitempty"`
	Rotation     string   `json:"rotation,omitempty"` // of the disk key, if the next one was released, see DiskKey
	// Generation counts the machine's installs, and the times that its TPM's
	// counters started anew: with the two counters it names one boot among all
	// of the machine's. 0 in entries of earlier versions.
	Generation int64 `json:"generation,omitempty"`
	// Banks are the PCR banks that were active, sorted. Entries of earlier versions
	// have none.
	Banks []string `json:"banks,omitempty"`
	// Bindings say whose the TPM is, where that is new.
	Bindings []Binding `json:"bindings,omitempty"`
}

// OutcomeUnlocked is the outcome of a release that opened the disk, alone or
// before a comma and what became of the change of its key. Any other outcome
// is the error that the machine met.
const OutcomeUnlocked = "unlocked"

// Confirm records what the machine said became of a release, proven by the
// transport secret that only its TPM could unseal.
type Confirm struct {
	ReleaseID string `json:"releaseID"`
	Outcome   string `json:"outcome"`
}

// StateChange records a new enrolment state.
type StateChange struct {
	From   attest.EnrolmentState `json:"from,omitempty"` // empty: the machine was unknown
	To     attest.EnrolmentState `json:"to"`
	By     string                `json:"by"`
	Reason string                `json:"reason"`
	Effect string                `json:"effect,omitempty"` // what else it changed in the machine's record
	// Identity is the machine's after the decision that this entry is the last
	// state change of.
	Identity *Identity `json:"identity,omitempty"`
	// Trust is the service's signature of an entry that enrols, see Trust. Entries
	// of earlier versions have none.
	Trust *Envelope `json:"trust,omitempty"`
}

// Install records an install record that was accepted. What the box said of
// itself (serial, UUID, MAC) is a claim.
type Install struct {
	By             string    `json:"by"`
	DiskGUID       string    `json:"diskGUID"`
	PreviousDisk   string    `json:"previousDisk,omitempty"` // of the install before, if there was one
	Serial         string    `json:"serial"`
	UUID           string    `json:"uuid"`
	MAC            string    `json:"mac"`
	Image          string    `json:"image"`
	ManifestDigest string    `json:"manifestDigest"`
	SecureBoot     string    `json:"secureBoot"`
	Finished       time.Time `json:"finished"`
	// Candidate: the machine is enrolled, and the install counts only once the
	// machine has booted from the disk.
	Candidate bool `json:"candidate,omitempty"`
}

// TokenEvent is a step in the life of a join token.
type TokenEvent string

// Steps in the life of a join token.
const (
	TokenMinted  TokenEvent = "minted"
	TokenUsed    TokenEvent = "used"    // a certificate was issued for it
	TokenJoined  TokenEvent = "joined"  // its node is Ready
	TokenRevoked TokenEvent = "revoked" // taken back before its time
	TokenExpired TokenEvent = "expired"
)

// Token records a step in the life of a join token. ID is its public half.
type Token struct {
	Event    TokenEvent `json:"event"`
	ID       string     `json:"id"`
	NodeName string     `json:"nodeName"`
	Expires  time.Time  `json:"expires,omitzero"`
	Reason   string     `json:"reason,omitempty"`
}

// Campaign records a change of a firmware campaign.
type Campaign struct {
	Name   string          `json:"name"`
	From   string          `json:"from,omitempty"`
	To     string          `json:"to"`
	By     string          `json:"by,omitempty"` // an operator, or the service itself
	Reason string          `json:"reason,omitempty"`
	Detail json.RawMessage `json:"detail,omitempty"`
}

// Reattestation records the appraisal of one report from a running system: the first
// of each boot, and those that were refused. What is accepted again and again
// is not logged.
type Reattestation struct {
	ChallengeID string          `json:"challengeID"`
	Address     string          `json:"address"`
	Evidence    manifest.SHA256 `json:"evidence,omitzero"` // of the stored evidence; unset if nothing was stored
	Result      *attest.Result  `json:"result"`
	// Genuine: the machine's own attestation key signed the report. Changed:
	// it shows that the machine is no longer what was released.
	Genuine bool `json:"genuine"`
	Changed bool `json:"changed,omitempty"`
	// Volume is PCR 15 of each bank, if it was accepted: what the boot's later
	// reports must have.
	Volume     map[string][]byte `json:"volume,omitempty"`
	Suppressed int64             `json:"suppressed,omitempty"` // as in ChallengeRefused
}

// Stale records that a machine missed the time of its report, or that it is
// heard of again.
type Stale struct {
	Stale      bool      `json:"stale"`
	Due        time.Time `json:"due"`                 // that was missed
	LastReport time.Time `json:"lastReport,omitzero"` // before
	NodeName   string    `json:"nodeName"`
}

// Expected records that machines were enrolled beforehand.
type Expected struct {
	By       string         `json:"by"`
	Machines []ExpectedLine `json:"machines"`
	// Bindings are what was written. Entries of earlier versions have none.
	Bindings []Binding `json:"bindings,omitempty"`
	// Trust is as in StateChange.
	Trust *Envelope `json:"trust,omitempty"`
}

// ExpectedLine is one machine that was enrolled beforehand.
type ExpectedLine struct {
	Serial  string          `json:"serial"`
	EK      manifest.SHA256 `json:"ek"`
	Outcome string          `json:"outcome"`
}

// Restore records that the store was filled from a backup. Entries before it
// are the backup's, and those of a later log that continued it.
type Restore struct {
	By     string    `json:"by"` // of the machine's own users, who ran the command
	Reason string    `json:"reason"`
	Taken  time.Time `json:"taken"`  // when the backup was made
	Backup Head      `json:"backup"` // where the backup's log ends
	Log    Head      `json:"log"`    // where the log that continues it ends; Backup if there was none
	// Complete: By named Log as the last entry that the service ever wrote, so
	// nothing was lost. Otherwise nothing is released until AcceptRestore, and
	// every machine must start anew once, those that enrol later too until a
	// person settled it.
	Complete bool `json:"complete"`
	// NotReplayed counts the entries after Backup, by kind, whose effect could
	// not be repeated.
	NotReplayed map[Kind]int64 `json:"notReplayed,omitempty"`
}

func (d Restore) text() string {
	s := fmt.Sprintf("store restored by %s from a backup of %s that ends at entry %d", d.By, stamp(d.Taken), d.Backup.Seq)
	if d.Log.Seq > d.Backup.Seq {
		s += fmt.Sprintf(", and the log that goes on to entry %d", d.Log.Seq)
	}
	if d.Complete {
		return s + ", with nothing lost: " + d.Reason
	}
	return s + "; later decisions may be lost, so nothing is released until this is accepted: " + d.Reason
}

// AcceptRestore records that a person took it upon them that what a restore may
// have lost (revocations above all) was put right, so that secrets are
// released again.
type AcceptRestore struct {
	By      string `json:"by"`
	Reason  string `json:"reason"`
	Restore Head   `json:"restore"` // the Restore entry that is accepted
	// Settled: what the person says is instead that no machine is in a boot from
	// before the restore any more, so that those that enrol from now on need not
	// start anew.
	Settled bool `json:"settled,omitempty"`
}

func (d AcceptRestore) text() string {
	what := "accepted"
	if d.Settled {
		what = "settled, with no machine in a boot from before it,"
	}
	return fmt.Sprintf("restore of entry %d %s by %s: %s", d.Restore.Seq, what, d.By, d.Reason)
}

// Policy records that the service goes by another policy than before. Without a
// name it goes by none.
type Policy struct {
	Name        string          `json:"name,omitempty"`
	Version     int             `json:"version,omitempty"`
	Digest      manifest.SHA256 `json:"digest,omitzero"` // SHA-256 of the file
	Signed      bool            `json:"signed"`
	FromName    string          `json:"fromName,omitempty"`
	FromVersion int             `json:"fromVersion,omitempty"`
	Rollback    bool            `json:"rollback,omitempty"` // to an older version, or to another name
	By          string          `json:"by"`
	Reason      string          `json:"reason,omitempty"`
	// Images are the SHA-256 digests of the manifests that came with it, or with
	// those before.
	Images []manifest.SHA256 `json:"images,omitempty"`
	// Statement is the SHA-256 of what the service signed of this enabling, and
	// Counter the number in it, one above the last. Entries of earlier versions
	// have neither.
	Statement manifest.SHA256 `json:"statement,omitzero"`
	Counter   int64           `json:"counter,omitempty"`
}
