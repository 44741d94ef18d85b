package audit

import (
	"fmt"
	"time"

	"github.com/sealift/sealift/image/manifest"
)

// KindPrune: evidence was removed from the store.
const KindPrune Kind = "store.prune" // Prune

// Prune records that evidence was removed, because it was old and nothing needed
// it. Entries before it may name it. Evidence that is neither in the store nor
// in such an entry was lost, or taken away.
type Prune struct {
	By       string            `json:"by"`
	Reason   string            `json:"reason,omitempty"`
	Before   time.Time         `json:"before"`   // all of it was received before
	Evidence []manifest.SHA256 `json:"evidence"` // what was removed
}

func (d Prune) text() string {
	s := fmt.Sprintf("%d pieces of evidence from before %s pruned by %s", len(d.Evidence), stamp(d.Before), d.By)
	if d.Reason != "" {
		s += ": " + d.Reason
	}
	return s
}

// PruneLine says when evidence was pruned.
type PruneLine struct {
	Seq  int64     `json:"seq"` // of the entry
	Time time.Time `json:"time"`
	By   string    `json:"by"`
}
