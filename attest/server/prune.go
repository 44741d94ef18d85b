package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// A Pruner is a Store that can forget evidence, a little at a time and while
// others go on writing. The audit log and releases are never pruned: the one is
// a chain, the others keep a boot from being released twice.
type Pruner interface {
	Store

	// Usage tells what there is and what room it takes.
	Usage(ctx context.Context) (*api.StoreStatus, error)

	// IndexEvidence notes, for at most limit pieces of evidence that an earlier
	// program stored, what EvidenceAbout says of them. It returns how many it
	// looked at: with none, all are noted.
	IndexEvidence(ctx context.Context, limit int) (int, error)

	// OldEvidence returns at most limit pieces of evidence that were received
	// before a time, each with what needs it, in an order of the Store's own that
	// begins with the oldest; those that come after one if that is not nil.
	OldEvidence(ctx context.Context, before time.Time, after *EvidenceRef, limit int) ([]EvidenceRef, error)

	// Prune removes those pieces of evidence that nothing needs at that
	// moment (Needed), and returns them. In the same transaction it appends the event that
	// entry makes of them, and remembers each, for PrunedError. If there are none
	// it writes nothing.
	Prune(ctx context.Context, refs []EvidenceRef, entry func([]EvidenceRef) audit.Event) ([]EvidenceRef, error)

	// Compact removes what pieces of evidence shared and none refers to any
	// more, as far as evidence that was received since a time cannot refer to it.
	// It calls step after each transaction, with the number of pieces and bytes
	// that it removed in it; an error of step ends it and is returned.
	Compact(ctx context.Context, since time.Time, step func(parts int, bytes int64) error) error
}

// EvidenceRef is a piece of evidence as a Pruner sees it.
type EvidenceRef struct {
	Digest   manifest.SHA256
	Machine  attest.MachineID // that it is of
	Received time.Time
	Size     int64    // that it takes by itself, bytes
	Needed   api.Need // what needs it; empty: nothing does
}

// unconfirmedRetention is how long the evidence of a release without an outcome
// is kept: secrets left, and nobody said what became of them. It counts from the
// release to when the machine was heard of last, and only once the machine has had
// another release, after which no honest agent confirms that one.
const unconfirmedRetention = 365 * 24 * time.Hour

// Needed says what needs evidence that is old. m is the record of its machine,
// nil if there is none, open are that machine's releases without an outcome.
func Needed(ref *EvidenceRef, m *Machine, open []*Release) api.Need {
	if m != nil {
		switch {
		case m.LastEvidence == ref.Digest || m.AcceptedEvidence == ref.Digest:
			return api.NeedLast
		case m.State == attest.StatePending || m.State == attest.StateQuarantined:
			return api.NeedState
		}
	}
	for _, r := range open {
		// A release is made when its evidence is received.
		if r.Outcome == "" && r.Machine == ref.Machine && r.Issued.Equal(ref.Received) &&
			(m == nil || m.ReleaseID == r.ID || m.LastSeen.Sub(r.Issued) < unconfirmedRetention) {
			return api.NeedRelease
		}
	}
	return ""
}

// PrunedEvidence is what a Store remembers of evidence that it removed.
type PrunedEvidence struct {
	Digest   manifest.SHA256  `json:"digest"`
	Machine  attest.MachineID `json:"machine"`
	Received time.Time        `json:"received"`
	Entry    int64            `json:"entry"` // number of the audit.Prune
}

// A PrunedError says that evidence was there and was pruned. It is ErrNotFound.
type PrunedError struct{ PrunedEvidence }

func (e *PrunedError) Error() string {
	return fmt.Sprintf("evidence %s, received %s, was pruned: audit entry %d", e.Digest, e.Received.UTC().Format(time.RFC3339), e.Entry)
}

func (e *PrunedError) Unwrap() error { return ErrNotFound }

// EvidenceAbout returns whose evidence it is and when it was received, as stored
// evidence (api.StoredEvidence) says it. It reads no more of it than that takes.
// ok is false for anything else.
func EvidenceAbout(evidence []byte) (machine attest.MachineID, received time.Time, ok bool) {
	d := json.NewDecoder(bytes.NewReader(evidence))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return machine, received, false
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			break
		}
		switch key {
		case "version", "address":
			err = d.Decode(new(any))
		case "received":
			err = d.Decode(&received)
		case "machine":
			err = d.Decode(&machine)
		default:
			// They come first, and what follows is long.
			return attest.MachineID{}, time.Time{}, false
		}
		if err != nil {
			break
		}
		if !machine.IsZero() && !received.IsZero() {
			// Databases keep it as nanoseconds.
			year := received.UTC().Year()
			return machine, received, year >= 1970 && year < 2262
		}
	}
	return attest.MachineID{}, time.Time{}, false
}

// MinRetention is how old evidence must be at least to be pruned.
const MinRetention = 24 * time.Hour

const (
	// prunePage is how many pieces of evidence are looked at, and removed, at a
	// time: releases wait for no more than that.
	prunePage = 64
	// indexPage is how many that an earlier program stored are noted at a time.
	indexPage = 64
)

// PruneOrder says what to prune.
type PruneOrder struct {
	Before     time.Time // evidence that was received before, and that nothing needs
	By, Reason string    // for the audit log
	DryRun     bool      // only count, and leave out what IndexEvidence has not noted yet
	// Now tells the time of the audit entries.
	Now func() time.Time
	// Rest is called after each transaction with how long it took, so that
	// others have their turn. Optional.
	Rest func(context.Context, time.Duration) error
	// Progress is given what was done so far, after each step. Optional.
	Progress func(api.PruneReport) error
}

// Prune removes evidence from a store as an order says. Cut off at any point,
// what was removed is recorded, and it can be done again. The report is of what
// was done, also with an error.
func Prune(ctx context.Context, p Pruner, o PruneOrder) (api.PruneReport, error) {
	report := api.PruneReport{Before: o.Before.UTC(), DryRun: o.DryRun, Kept: map[api.Need]int64{}}
	began := time.Now()
	step := func() error {
		if o.Progress != nil {
			if err := o.Progress(report); err != nil {
				return err
			}
		}
		if o.Rest != nil {
			if err := o.Rest(ctx, time.Since(began)); err != nil {
				return err
			}
		}
		began = time.Now()
		return ctx.Err()
	}
	if !o.DryRun {
		if err := index(ctx, p, step); err != nil {
			return report, err
		}
	}
	for after := (*EvidenceRef)(nil); ; {
		page, err := p.OldEvidence(ctx, o.Before, after, prunePage)
		if err != nil {
			return report, fmt.Errorf("prune: %w", err)
		}
		if err := pruneStep(ctx, p, &o, page, &report); err != nil {
			return report, fmt.Errorf("prune: %w", err)
		}
		if err := step(); err != nil {
			return report, fmt.Errorf("prune: %w", err)
		}
		if len(page) < prunePage {
			break
		}
		after = &page[len(page)-1]
	}
	if !o.DryRun {
		err := p.Compact(ctx, o.Before, func(parts int, bytes int64) error {
			report.Parts += int64(parts)
			report.Bytes += bytes
			return step()
		})
		if err != nil {
			return report, fmt.Errorf("prune: %w", err)
		}
	}
	report.Done = true
	return report, nil
}

// index notes how old all evidence is that an earlier program stored. It calls
// step after each transaction.
func index(ctx context.Context, p Pruner, step func() error) error {
	for {
		n, err := p.IndexEvidence(ctx, indexPage)
		if err == nil && n > 0 {
			err = step()
		}
		if err != nil {
			return fmt.Errorf("prune: %w", err)
		}
		if n == 0 {
			return nil
		}
	}
}

// pruneStep removes what it may of a page, and counts.
func pruneStep(ctx context.Context, p Pruner, o *PruneOrder, page []EvidenceRef, report *api.PruneReport) error {
	var gone []EvidenceRef
	for _, ref := range page {
		if ref.Needed == "" {
			gone = append(gone, ref)
		} else {
			report.Kept[ref.Needed]++
		}
	}
	if len(gone) > 0 && !o.DryRun {
		now := o.Now().UTC()
		var err error
		gone, err = p.Prune(ctx, gone, func(refs []EvidenceRef) audit.Event {
			d := audit.Prune{By: o.By, Reason: o.Reason, Before: o.Before.UTC()}
			for _, r := range refs {
				d.Evidence = append(d.Evidence, r.Digest)
			}
			return audit.Event{Time: now, Kind: audit.KindPrune, Data: d}
		})
		if err != nil {
			return err
		}
	}
	for _, ref := range gone {
		report.Removed++
		report.Bytes += ref.Size
		if at := ref.Received.UTC(); report.Oldest.IsZero() || at.Before(report.Oldest) {
			report.Oldest = at
		}
		if at := ref.Received.UTC(); at.After(report.Newest) {
			report.Newest = at
		}
	}
	return nil
}
