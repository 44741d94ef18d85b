package audit

import "time"

// KindRecovery is the kind of an entry about a recovery, by which a machine
// gets its disk key without giving evidence.
const KindRecovery Kind = "machine.recovery" // Recovery

// RecoveryEvent is a step of a recovery.
type RecoveryEvent string

// Steps of a recovery.
const (
	RecoveryOpened     RecoveryEvent = "opened"
	RecoverySuperseded RecoveryEvent = "superseded" // by the request that is opened with it
	RecoveryApproved   RecoveryEvent = "approved"
	RecoveryRefused    RecoveryEvent = "refused"
	RecoveryGiven      RecoveryEvent = "code given" // written before the code leaves
)

// Recovery records a step of a recovery. It never holds the code.
type Recovery struct {
	Event   RecoveryEvent `json:"event"`
	Request string        `json:"request,omitempty"` // its id; empty if none was opened
	By      string        `json:"by"`
	Reason  string        `json:"reason,omitempty"` // of the operator, or of the refusal
	// BootKey is the public key of the one boot that the code is for, hex.
	BootKey string    `json:"bootKey,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

// Names of alarms about recoveries.
const (
	// AlarmRecoveryGiven: a machine's half of the disk key left without evidence.
	AlarmRecoveryGiven AlarmName = "recovery.code-given"
	// AlarmRecoveryRefused: somebody asked for a recovery, or approved one, who
	// or for which there must be none: a revoked machine, or one person twice.
	AlarmRecoveryRefused AlarmName = "recovery.refused"
)
