package api

import (
	"bytes"
	"strings"
	"time"
)

// Outcomes of a release that opened the disk and held Secrets.NextDiskKey. Of
// one that held none the outcome is OutcomeUnlocked.
const (
	// OutcomeRekeyed: the next key is proven to open the volume, and the old
	// one does not any more.
	OutcomeRekeyed = OutcomeUnlocked + ", rekeyed"
	// outcomeNotRekeyed is followed by the reason. Which of the two keys opens
	// the volume is not said.
	outcomeNotRekeyed = OutcomeUnlocked + ", not rekeyed: "
)

// OutcomeNotRekeyed is the outcome of a release that opened the disk with one
// of its two keys and could not make the next the only one.
func OutcomeNotRekeyed(why error) string {
	s := outcomeNotRekeyed + why.Error()
	if len(s) > MaxOutcome {
		s = string(bytes.ToValidUTF8([]byte(s[:MaxOutcome]), nil))
	}
	return s
}

// Opened reports whether an outcome says that the disk was opened.
func Opened(outcome string) bool {
	return outcome == OutcomeUnlocked || outcome == OutcomeRekeyed || strings.HasPrefix(outcome, outcomeNotRekeyed)
}

// NotRekeyed returns why the key was not changed, if an outcome says so.
func NotRekeyed(outcome string) (why string, ok bool) {
	return strings.CutPrefix(outcome, outcomeNotRekeyed)
}

// CodeNoDiskKey is the Error.Code of a rotation for a machine that has no disk
// key yet.
const CodeNoDiskKey = "no-disk-key"

// DiskKeyRotation is a change of a machine's disk key that was asked for and
// that the machine has not confirmed yet. It says nothing of the keys.
type DiskKeyRotation struct {
	ID      string    `json:"id"`
	Asked   time.Time `json:"asked"`
	By      string    `json:"by"`
	Reason  string    `json:"reason"`
	Failure string    `json:"failure,omitempty"` // why the machine could not do it the last time
}

// Paths of the operator API for the key-encryption keys.
const (
	PathKEK       = "/v1/kek"        // GET: KEKStatus
	PathKEKRewrap = "/v1/kek/rewrap" // POST KEKRewrapRequest: KEKStatus
)

// KEKRewrapRequest asks for a rewrap to begin, beside the one at each start.
type KEKRewrapRequest struct {
	Reason string `json:"reason"`
}

// KEKStatus says which key-encryption keys the answering replica has, and what
// in the store is under each. Keys are named by their ids.
type KEKStatus struct {
	Present string   `json:"present"`
	Former  []string `json:"former"` // it opens what is under them
	Lost    []string `json:"lost"`   // given up by the configuration
	Uses    []KEKUse `json:"uses"`   // by id; each configured key has one
	// Rewrap is the last that was begun, by any replica. Optional.
	Rewrap *KEKRewrap `json:"rewrap,omitempty"`
}

// KEKUse counts what is under one key-encryption key.
type KEKUse struct {
	KEK  string  `json:"kek"`
	Role KEKRole `json:"role"`
	// DiskKeys are those of the machines' disks, NextKeys those that they are
	// to get, FormerKeys those of disks that a reinstall replaced.
	DiskKeys   int `json:"diskKeys"`
	NextKeys   int `json:"nextKeys"`
	FormerKeys int `json:"formerKeys"`
	// Releases are those of the last hour that are not confirmed. They are not
	// rewrapped: nobody can confirm one later.
	Releases int `json:"releases"`
}

// Keys is the number of keys of disks.
func (u KEKUse) Keys() int { return u.DiskKeys + u.NextKeys + u.FormerKeys }

// KEKRole is what a key-encryption key is to the service.
type KEKRole string

// Roles of key-encryption keys.
const (
	KEKPresent KEKRole = "present" // seals and opens
	KEKFormer  KEKRole = "former"  // opens
	KEKLost    KEKRole = "lost"    // what is under it is given up
	KEKMissing KEKRole = "missing" // not configured
)

// KEKRewrap is the work of bringing everything under the present key.
type KEKRewrap struct {
	To       string    `json:"to"` // the key that was the present one
	Keys     int       `json:"keys"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished,omitzero"` // unset: it goes on, or was cut off and goes on at the next start
}
