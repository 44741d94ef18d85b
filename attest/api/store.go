package api

import "time"

// CodePruned is the code of an Error about evidence that was pruned, with HTTP
// status 410.
const CodePruned = "pruned"

// PathStore is the service's store, for operators.
const PathStore = "/v1/store" // GET: StoreStatus, ?older=SECONDS; POST /prune with PruneRequest: JSON lines of PruneReport

// StoreStatus is what a store holds and what room it takes.
type StoreStatus struct {
	Store  string `json:"store"`  // the database's kind and version
	Schema int    `json:"schema"` // version of its tables
	Bytes  int64  `json:"bytes"`  // of the whole database
	// FreeBytes are in the database file and hold nothing: what is written next
	// goes there. -1: the database does not say.
	FreeBytes int64 `json:"freeBytes"`

	Machines  StoreRecords `json:"machines"`
	Releases  StoreRecords `json:"releases"`
	Documents StoreRecords `json:"documents"`
	Evidence  StoreRecords `json:"evidence"`
	Parts     StoreRecords `json:"parts"` // that pieces of evidence share
	Audit     StoreRecords `json:"audit"`

	OpenReleases int64 `json:"openReleases"` // without an outcome
	Pruned       int64 `json:"pruned"`       // pieces of evidence that were removed, and are remembered
	// Unindexed are pieces of evidence of an earlier program of which it is not
	// noted yet how old they are.
	Unindexed      int64     `json:"unindexed,omitempty"`
	OldestEvidence time.Time `json:"oldestEvidence,omitzero"`
	NewestEvidence time.Time `json:"newestEvidence,omitzero"`

	Retention int64 `json:"retention,omitempty"` // after which evidence is pruned by itself, seconds; 0: it is not
	// Prune is what pruning evidence of that age would do now, if it was asked.
	Prune *PruneReport `json:"prune,omitempty"`
}

// StoreRecords are the records of one kind. Bytes is what they take in the
// database with their indexes, -1 if that would take too long to find out.
type StoreRecords struct {
	Count int64 `json:"count"`
	Bytes int64 `json:"bytes"`
}

// PruneRequest asks to remove evidence that is older than so many seconds.
type PruneRequest struct {
	Older  int64  `json:"older"`
	Reason string `json:"reason,omitempty"`
	DryRun bool   `json:"dryRun,omitempty"`
	// ClockIsRight: the service's clock counts, however much later it is than when
	// evidence was pruned last.
	ClockIsRight bool `json:"clockIsRight,omitempty"`
}

// Need is why evidence that is old is kept.
type Need string

// What needs evidence.
const (
	NeedLast    Need = "last"         // it is the last of its machine, or the last that was accepted
	NeedState   Need = "state"        // its machine is pending or quarantined
	NeedRelease Need = "open-release" // the release that it earned has no outcome, and is the machine's last or not a year before it was heard of
)

// PruneReport is what pruning removed so far, or would.
type PruneReport struct {
	Before time.Time `json:"before"` // evidence received before was looked at
	DryRun bool      `json:"dryRun,omitempty"`
	Done   bool      `json:"done"` // the last report of a run that came to its end

	Removed int64     `json:"removed"` // pieces of evidence
	Oldest  time.Time `json:"oldest,omitzero"`
	Newest  time.Time `json:"newest,omitzero"`
	Parts   int64     `json:"parts"` // that pieces shared, and that none refers to any more; a dry run does not look
	Bytes   int64     `json:"bytes"` // of both

	Kept map[Need]int64 `json:"kept"` // pieces of evidence of that age that something needs
}
