package audit

import (
	"fmt"
	"time"
)

// ChainState says what was shown of the log.
type ChainState struct {
	// Verified: the log is one chain, and what shows that the service wrote it was
	// checked: all of Signed and Kept that was asked for, and at least one of them.
	Verified bool `json:"verified"`
	// Intact: it is one chain, which anybody can make.
	Intact  bool   `json:"intact"`
	Entries int64  `json:"entries"` // of the chain, from the first
	Head    Head   `json:"head"`    // the last of them
	Broken  string `json:"broken,omitempty"`
	// Signed: the service signed at that time, with that key, that the log ends with
	// Head. Nil: that was not shown.
	Signed *SignedBy `json:"signed,omitempty"`
	// Kept is the entry of the hash that was kept elsewhere. It shows nothing of those
	// after it.
	Kept *Head `json:"kept,omitempty"`
	// Unproven is why an intact chain is not verified.
	Unproven string `json:"unproven,omitempty"`
	// Unverified is the number of entries in the report that come after the
	// break. Nothing vouches for them.
	Unverified int64 `json:"unverified,omitempty"`
}

// SignedBy says which key signed a head, and when.
type SignedBy struct {
	Time time.Time `json:"time"`
	Key  string    `json:"key"` // its id
}

// signed verifies what the service signed, before any entry is read.
func (b *builder) signed() {
	c := &b.r.Chain
	switch {
	case b.o.Key == nil && b.o.Kept.IsZero():
		c.Unproven = "neither the service's key nor the hash of an entry was given"
	case b.o.Key == nil:
	case b.o.Signed == nil:
		c.Unproven = "the service does not sign where its log ends"
	default:
		s := new(HeadStatement)
		if err := b.o.Signed.Open(b.o.Key, HeadType, s); err != nil {
			c.Unproven = "the signed head: " + err.Error()
			return
		}
		b.end = s
	}
}

// prove compares an intact chain with what was signed and kept.
func (b *builder) prove() {
	c := &b.r.Chain
	switch {
	case !c.Intact || c.Unproven != "":
	case b.end != nil && b.end.Head != c.Head:
		c.Unproven = fmt.Sprintf("it ends with entry %d, %s, and the service signed that it ends with entry %d, %s", c.Head.Seq, c.Head.Hash, b.end.Head.Seq, b.end.Head.Hash)
	case !b.o.Kept.IsZero() && c.Kept == nil:
		c.Unproven = fmt.Sprintf("it has no entry with the hash that was kept elsewhere, %s: it was cut short or written anew", b.o.Kept)
	default:
		c.Verified = true
		if b.end != nil {
			c.Signed = &SignedBy{Time: b.end.Time, Key: b.o.Signed.SignedBy()}
		}
	}
}
