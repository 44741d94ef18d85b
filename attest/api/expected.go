package api

import (
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// MaxExpected is how many machines one ExpectedList may name: it fits into a
// request however its texts are escaped.
const MaxExpected = 100

// Bounds of an Expected, bytes.
const (
	MaxModel = 64
	MaxNote  = 200
)

// Expected is a machine that is enrolled beforehand: it has not shown up yet.
type Expected struct {
	Serial string `json:"serial"` // SMBIOS type 1
	// EK is a SHA-256 of the endorsement key in one of the forms of
	// attest.EKDigests. Any form will do.
	EK    manifest.SHA256 `json:"ek"`
	Model string          `json:"model,omitempty"`
	Note  string          `json:"note,omitempty"`

	By      string           `json:"by,omitempty"` // who enrolled it; set by the service
	At      time.Time        `json:"at,omitzero"`
	Machine attest.MachineID `json:"machine,omitzero"` // that showed up with the key, unset until then
	// Withdrawn: it is no longer expected. In a list: it is to be withdrawn.
	Withdrawn bool `json:"withdrawn,omitempty"`
	// Damaged is why the service cannot read what it has of EK, if it cannot. The other
	// fields are unset then. Set by the service.
	Damaged string `json:"damaged,omitempty"`
}

// ExpectedList enrols machines beforehand: all of them or none.
type ExpectedList struct {
	Machines []Expected `json:"machines"`
	Apply    bool       `json:"apply"`   // otherwise it is only checked
	Replace  bool       `json:"replace"` // another serial number for a known key is no conflict
}

// What became of an Expected.
const (
	ExpectedAdded     = "added"
	ExpectedChanged   = "changed"
	ExpectedPresent   = "present" // it was there already
	ExpectedWithdrawn = "withdrawn"
	ExpectedConflict  = "conflict" // Problem says with what; nothing was written
)

// ExpectedAnswer answers an ExpectedList, in the order of its machines.
type ExpectedAnswer struct {
	Results []ExpectedResult `json:"results"`
}

// ExpectedResult is what became of one machine of the list.
type ExpectedResult struct {
	Outcome string `json:"outcome"`
	Problem string `json:"problem,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// ReEnrol moves the node name and the serial number of the machine in the path
// to another endorsement key.
type ReEnrol struct {
	New    attest.MachineID `json:"new"`
	Reason string           `json:"reason"`
}
