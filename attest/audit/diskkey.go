package audit

import (
	"fmt"
	"strings"
)

// DiskKeyEvent is a step in the change of a disk key.
type DiskKeyEvent string

// Steps in the change of a disk key.
const (
	DiskKeyAsked   DiskKeyEvent = "asked"   // releases hold the next key beside the present one
	DiskKeyChanged DiskKeyEvent = "changed" // the machine proved that the next key alone opens its volume; the old one is forgotten
)

// DiskKey records a step in the change of a machine's disk key, never a key.
type DiskKey struct {
	Event     DiskKeyEvent `json:"event"`
	Rotation  string       `json:"rotation"` // what the steps of one change have in common
	DiskGUID  string       `json:"diskGUID"`
	By        string       `json:"by,omitempty"`        // of DiskKeyAsked
	Reason    string       `json:"reason,omitempty"`    // of DiskKeyAsked
	ReleaseID string       `json:"releaseID,omitempty"` // of DiskKeyChanged: the release that was confirmed
}

func (d DiskKey) text() string {
	switch d.Event {
	case DiskKeyAsked:
		return fmt.Sprintf("disk %s is to get another key, by %s: %s (rotation %s)", d.DiskGUID, d.By, d.Reason, d.Rotation)
	case DiskKeyChanged:
		return fmt.Sprintf("disk %s has another key, the old one is forgotten (rotation %s, release %s)", d.DiskGUID, d.Rotation, d.ReleaseID)
	}
	return fmt.Sprintf("disk %s, rotation %s: %s", d.DiskGUID, d.Rotation, d.Event)
}

// KEKEvent is a step in bringing all disk keys under another key-encryption key.
type KEKEvent string

// Steps of a rewrap.
const (
	KEKStarted  KEKEvent = "started"
	KEKFinished KEKEvent = "finished" // nothing is left under a former key
)

// KEKRewrap records a step in bringing all disk keys under the present
// key-encryption key. Keys are named by their ids.
type KEKRewrap struct {
	Event KEKEvent `json:"event"`
	To    string   `json:"to"`
	From  []string `json:"from"`         // former keys under which there were disk keys
	Keys  int      `json:"keys"`         // disk keys that were under them when it began
	By    string   `json:"by,omitempty"` // an operator; empty: the start of the service
	// Reason is the operator's. Optional.
	Reason string `json:"reason,omitempty"`
}

func (d KEKRewrap) text() string {
	s := fmt.Sprintf("%d disk keys go from key-encryption key %s to %s", d.Keys, list(d.From), d.To)
	if d.Event == KEKFinished {
		s = fmt.Sprintf("%d disk keys went from key-encryption key %s to %s, none is left", d.Keys, list(d.From), d.To)
	}
	if d.By != "" {
		s += fmt.Sprintf(", by %s: %s", d.By, d.Reason)
	}
	return s
}

// opened reports whether an outcome says that the disk was opened.
func opened(outcome string) bool {
	return outcome == OutcomeUnlocked || strings.HasPrefix(outcome, OutcomeUnlocked+", ")
}
