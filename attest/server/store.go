package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// Errors of a Store that callers act on. A Store returns errors that wrap them.
var (
	// ErrNotFound: there is no such machine, release, document or evidence.
	ErrNotFound = errors.New("not found")
	// ErrConflict: what was to be changed is no longer what the caller read,
	// or a name that must be unique is taken. Read again and decide again.
	ErrConflict = errors.New("changed meanwhile")
	// ErrReleased: there is a release for this boot of this machine already.
	ErrReleased = errors.New("already released in this boot")
)

// A DamagedError says that the record of a machine or a release is there and cannot be
// read: it does not decode, or is another's.
type DamagedError struct {
	Release string // id of the release; empty: it is of a machine
	// Machine has what is known of a machine beside its record: ID, State, NodeName,
	// DiskGUID, Revision, and why the record cannot be read (Damaged). Nil of a release.
	Machine *Machine
	Body    []byte // the record as it is stored
	Reason  error
}

func (e *DamagedError) Error() string {
	if e.Machine != nil {
		return fmt.Sprintf("the record of machine %s cannot be read: %v", e.Machine.ID, e.Reason)
	}
	return fmt.Sprintf("the record of release %q cannot be read: %v", e.Release, e.Reason)
}

func (e *DamagedError) Unwrap() error { return e.Reason }

// DecodeMachine decodes the record of a machine, as a Store keeps it. known has what its
// row says beside that; a record of another machine is none. The error is a *DamagedError.
func DecodeMachine(known *Machine, body []byte) (*Machine, error) {
	m := new(Machine)
	err := json.Unmarshal(body, m)
	if err == nil && m.ID != known.ID {
		err = fmt.Errorf("altered: its row holds the record of machine %s", m.ID)
	}
	if err != nil {
		known.Damaged = err.Error()
		return nil, &DamagedError{Machine: known, Body: body, Reason: err}
	}
	m.Revision, m.Damaged = known.Revision, ""
	return m, nil
}

// DecodeRelease does the same for the release id.
func DecodeRelease(id string, body []byte) (*Release, error) {
	r := new(Release)
	err := json.Unmarshal(body, r)
	if err == nil && r.ID != id {
		err = fmt.Errorf("altered: its row holds the record of release %q", r.ID)
	}
	if err != nil {
		return nil, &DamagedError{Release: id, Body: body, Reason: err}
	}
	return r, nil
}

// Store keeps everything that the service must remember. Any number of
// goroutines, and of service replicas, use one Store at once. Challenges are
// not in it: they must not outlive the process, and are kept with their
// connection.
//
// Durability: when a method that writes returns nil, what it wrote survives
// kill -9 and loss of power. When it returns an error, all or nothing was
// written: the caller must count on both, and never lets a secret out after an
// error.
//
// Consistency: all methods together are linearizable. Correctness comes from
// single operations that compare before they write, so there are no
// transactions in this interface.
//
// What a method returns is the caller's own copy. Errors other than those
// named mean that the Store could not do its work.
type Store interface {
	// Machine returns a machine's record, ErrNotFound, or a *DamagedError.
	Machine(ctx context.Context, id attest.MachineID) (*Machine, error)

	// Machines returns the records that match q in the order of their ids. Of one
	// that cannot be read it has what DamagedError.Machine has.
	Machines(ctx context.Context, q Query) ([]*Machine, error)

	// Commit writes a Change as a whole or not at all.
	Commit(ctx context.Context, c *Change) error

	// Release returns a release's record, ErrNotFound, or a *DamagedError.
	Release(ctx context.Context, id string) (*Release, error)

	// Evidence returns the stored bytes whose SHA-256 is digest, or ErrNotFound,
	// which is a *PrunedError if they were there.
	Evidence(ctx context.Context, digest manifest.SHA256) ([]byte, error)

	// Document returns a document, or ErrNotFound.
	Document(ctx context.Context, kind, name string) (*Document, error)

	// Documents returns the documents of a kind in the order of their names,
	// which is that of their bytes: those after a name, which is empty for all,
	// and at most limit, or all if that is 0.
	Documents(ctx context.Context, kind, after string, limit int) ([]*Document, error)

	// Audit returns the entries of the decision log from number from on, in
	// order. It sees at least what was committed when it was called. An error
	// ends the sequence.
	Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error]
}

// Query selects machines. Set fields must all match.
type Query struct {
	State    attest.EnrolmentState // Optional.
	DiskGUID string                // Optional.
	NodeName string                // Optional.
	Due      time.Time             // Optional; only machines whose Due is set and not later.
	After    attest.MachineID      // Optional; only ids greater than this one.
	Limit    int                   // at most so many; 0 is no limit
}

// Machine is the service's record of a machine.
type Machine struct {
	api.Machine

	// Revision is 0 for a record that was never stored, and grows by one with
	// each Commit of the record.
	Revision int64 `json:"-"`
	// Generation counts the installs, and the times that the TPM's counters
	// started anew. Within one the counters name a boot.
	Generation int64 `json:"generation"`

	AKName       []byte `json:"akName,omitempty"`
	StateMade    bool   `json:"stateMade"` // a state partition is known to exist
	ResetCount   uint32 `json:"resetCount"`
	RestartCount uint32 `json:"restartCount"`
	Clock        uint64 `json:"clock"`
	TPMFirmware  uint64 `json:"tpmFirmware"`
	Released     bool   `json:"released"`          // a release was made in the boot named by ResetCount and RestartCount
	Rebased      bool   `json:"rebased,omitempty"` // an operator said that the counters may have started anew
	// Restored: the record is from a backup that may be older than the last
	// release. The boot that the machine is in counts as released.
	Restored bool `json:"restored,omitempty"`

	DiskKey *SealedKey `json:"diskKey,omitempty"` // nil until the first release
	// NextKey is the disk key that Rotation is about. The volume may be under
	// either until the machine has confirmed that it is under NextKey.
	NextKey   *SealedKey `json:"nextKey,omitempty"`
	TokenID   string     `json:"tokenID,omitempty"`   // of the last join token minted
	ReleaseID string     `json:"releaseID,omitempty"` // of the last release

	// Digests are those of the endorsement key by which lists may name it.
	Digests []manifest.SHA256 `json:"digests,omitempty"`
	// TPMBound: documents say that the TPM of AKName, and of OtherKeys, is this
	// machine's.
	TPMBound bool `json:"tpmBound,omitempty"`
	// Address is where it last proved itself from, as an audit entry has it. It is
	// believed only for what its connections are worth, see crowd.
	Address string `json:"address,omitempty"`
	// FormerName is the node name that went to ReplacedBy.
	FormerName string `json:"formerName,omitempty"`

	// Banks are the PCR banks that were active at its last release, sorted.
	Banks []string `json:"banks,omitempty"`
	// Boot is the machine's state at its last release, for its reports.
	Boot *attest.Boot `json:"boot,omitempty"`
	// FenceDue: the machine was locked out, and its node must still be fenced.
	FenceDue bool `json:"fenceDue,omitempty"`

	// Former are disks that a reinstall replaced, the latest last.
	Former []FormerDisk `json:"former,omitempty"`
}

// Due returns when Watch has something to do for the machine: long ago if its
// node is to be fenced, else when its report is due, of an enrolled machine that
// is not stale yet. The zero time is never.
func (m *Machine) Due() time.Time {
	switch {
	case m.FenceDue:
		return time.Unix(0, 0)
	case m.State == attest.StateEnrolled && !m.Stale:
		return m.ReportDue
	}
	return time.Time{}
}

// SealedKey is a key under the key-encryption key.
type SealedKey struct {
	KEK string `json:"kek"` // id of the key-encryption key
	Box []byte `json:"box"` // nonce and AES-256-GCM ciphertext
	// Volume is that of the disk which a disk key opens. It is authenticated
	// with Box, and empty for keys sealed before volumes were named.
	Volume string `json:"volume,omitempty"`
}

// Release is the service's record of a release.
type Release struct {
	ID           string           `json:"id"`
	Machine      attest.MachineID `json:"machine"`
	Generation   int64            `json:"generation"` // of the machine, see Machine
	ResetCount   uint32           `json:"resetCount"`
	RestartCount uint32           `json:"restartCount"`
	Issued       time.Time        `json:"issued"`
	// Transport is the transport secret, kept to check the confirmation and
	// nil from then on.
	Transport *SealedKey `json:"transport,omitempty"`
	Rotation  string     `json:"rotation,omitempty"` // id of the machine's rotation whose next key it held
	// StateMade: the machine's record had it when the release was made.
	StateMade bool      `json:"stateMade,omitempty"`
	Outcome   string    `json:"outcome,omitempty"`
	Confirmed time.Time `json:"confirmed,omitzero"`
}

// Document is a record of what is neither a machine nor a release: a firmware
// campaign, a policy, how far a delivery has got. Its meaning is its owner's.
type Document struct {
	Kind string // who owns it, e.g. "campaign"
	Name string // unique in its kind
	// Revision is 0 for a document that was never stored, and grows by one
	// with each Commit of it.
	Revision int64
	Body     json.RawMessage // JSON, kept as it is
}

// Change is everything that one decision writes.
type Change struct {
	// Machine is stored, with Revision+1, if the stored record has this
	// Revision; 0 means that there is none. Otherwise ErrConflict. NodeName,
	// and DiskGUID if it is set, are unique among machines: a taken one gives
	// ErrConflict. Optional.
	Machine *Machine
	// Gives is stored as Machine is, and before it: the machine that gives up the
	// node name that Machine takes. Optional.
	Gives *Machine
	// Release is added. If there is one with the same Machine, Generation,
	// ResetCount and RestartCount, or the same ID: ErrReleased. Optional.
	Release *Release
	// Confirm replaces the release with the same ID if that one has no
	// Outcome yet; otherwise ErrConflict. Optional.
	Confirm *Release
	// Documents are stored, each with Revision+1, if the stored one has this
	// Revision; 0 means that there is none. Otherwise ErrConflict. Optional.
	Documents []*Document
	// Evidence is stored under its SHA-256. That it is there already is no
	// error. What EvidenceAbout says of it is noted for a Pruner. Optional.
	Evidence []byte
	// Events are appended to the decision log in this order, through
	// audit.Next. Optional.
	Events []audit.Event
}

// Record is one record of a Store. Exactly one field is set.
type Record struct {
	Machine  *Machine // with its Revision
	Release  *Release
	Document *Document // with its Revision
	Evidence []byte
	Pruned   *PrunedEvidence
	Damaged  *manifest.SHA256 // of evidence that is not as it was stored; only of a Dump
	Entry    *audit.Entry
}

// Archive is a Store that can be copied as a whole.
type Archive interface {
	Store

	// Dump calls each with every record that there is at one moment, while
	// others go on writing; audit entries come last and in order. An
	// error of each ends the dump and is returned.
	Dump(ctx context.Context, each func(Record) error) error

	// Load writes records into a Store in which nothing was ever written,
	// as a whole or not at all: ErrConflict if there is anything,
	// and if two records cannot be together. An error in the sequence is
	// returned. Audit entries must be in order and one chain from its start.
	// A Store that another process has open on what was there before writes
	// nothing more: what its service remembers may not be so any more.
	Load(ctx context.Context, records iter.Seq2[Record, error]) error
}
