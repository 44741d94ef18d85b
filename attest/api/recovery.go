package api

import (
	"fmt"
	"time"

	"github.com/sealift/sealift/attest"
)

// Paths of the operator API for recoveries, below PathMachines/{id}.
const (
	PathRecovery        = "/recovery"         // GET Recovery; POST RecoveryOpen
	PathRecoveryApprove = "/recovery/approve" // POST RecoveryApprove: Recovery
	PathRecoveryCode    = "/recovery/code"    // POST RecoveryTake: RecoveryCode, once
)

// RecoveryOpen opens a recovery for the boot whose request it holds.
type RecoveryOpen struct {
	Request string `json:"request"` // as the machine shows it, see attest/recovery
	Reason  string `json:"reason"`
	// Minutes until the recovery is over, 1 to 60; 0 is 60.
	Minutes int `json:"minutes,omitempty"`
}

// RecoveryApprove approves the recovery of that id.
type RecoveryApprove struct {
	Request string `json:"request"`
	Reason  string `json:"reason"`
}

// RecoveryTake asks for the code of the recovery of that id.
type RecoveryTake struct {
	Request string `json:"request"`
}

// Recovery is a machine's last recovery, as operators see it.
type Recovery struct {
	ID        string             `json:"id"`
	Machine   attest.MachineID   `json:"machine"`
	NodeName  string             `json:"nodeName"`
	BootKey   []byte             `json:"bootKey"`
	DiskGUID  string             `json:"diskGUID"`
	By        string             `json:"by"` // who opened it, and may have the code
	Reason    string             `json:"reason"`
	Opened    time.Time          `json:"opened"`
	Expires   time.Time          `json:"expires"`
	Approvals []RecoveryApproval `json:"approvals,omitempty"`
	Given     time.Time          `json:"given,omitzero"` // when the code was
}

// RecoveryApproval is that of one person.
type RecoveryApproval struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
}

// RecoveryApprovals is how many people must approve.
const RecoveryApprovals = 2

// RecoveryCode answers RecoveryTake.
type RecoveryCode struct {
	Code     attest.Secret `json:"recoveryCode"` // lines, see attest/recovery
	Recovery Recovery      `json:"recovery"`
}

// NodeName is the Kubernetes node name of a machine: a lower-case RFC 1123
// label made of the first so many digits of its id.
func NodeName(id attest.MachineID, digits int) string {
	return fmt.Sprintf("box-%.*s", digits, id.String())
}
