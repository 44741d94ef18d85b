package storetest

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

var _ server.Pruner = (*Memory)(nil)

// Usage implements server.Pruner.
func (s *Memory) Usage(context.Context) (*api.StoreStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := func(n int) api.StoreRecords { return api.StoreRecords{Count: int64(n), Bytes: -1} }
	u := &api.StoreStatus{
		Store: "memory", FreeBytes: -1, Machines: n(len(s.machines)), Releases: n(len(s.releases)), Documents: n(len(s.documents)),
		Evidence: n(len(s.evidence)), Audit: n(len(s.log)), Pruned: int64(len(s.pruned)),
	}
	for _, r := range s.releases {
		if r.Outcome == "" {
			u.OpenReleases++
		}
	}
	if all := s.old(time.Now().AddDate(100, 0, 0)); len(all) > 0 {
		u.OldestEvidence, u.NewestEvidence = all[0].Received, all[len(all)-1].Received
	}
	return u, nil
}

// IndexEvidence implements server.Pruner.
func (s *Memory) IndexEvidence(context.Context, int) (int, error) { return 0, nil }

// old returns all evidence from before a time, the oldest first. The caller
// holds mu.
func (s *Memory) old(before time.Time) (all []server.EvidenceRef) {
	for digest, b := range s.evidence {
		id, received, ok := server.EvidenceAbout(b)
		if !ok || !received.Before(before) {
			continue
		}
		ref := server.EvidenceRef{Digest: digest, Machine: id, Received: received.UTC(), Size: int64(len(b))}
		var open []*server.Release
		for _, r := range s.releases {
			open = append(open, r)
		}
		ref.Needed = server.Needed(&ref, s.machines[id], open)
		all = append(all, ref)
	}
	slices.SortFunc(all, compareRefs)
	return all
}

func compareRefs(a, b server.EvidenceRef) int {
	return cmp.Or(a.Received.Compare(b.Received), cmp.Compare(a.Digest.String(), b.Digest.String()))
}

// OldEvidence implements server.Pruner.
func (s *Memory) OldEvidence(_ context.Context, before time.Time, after *server.EvidenceRef, limit int) ([]server.EvidenceRef, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.old(before)
	if after != nil {
		all = slices.DeleteFunc(all, func(r server.EvidenceRef) bool { return compareRefs(r, *after) <= 0 })
	}
	return all[:min(limit, len(all))], nil
}

// Prune implements server.Pruner.
func (s *Memory) Prune(_ context.Context, refs []server.EvidenceRef, entry func([]server.EvidenceRef) audit.Event) ([]server.EvidenceRef, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[manifest.SHA256]bool{}
	for _, r := range refs {
		wanted[r.Digest] = true
	}
	gone := slices.DeleteFunc(s.old(time.Unix(1<<40, 0)), func(r server.EvidenceRef) bool { return !wanted[r.Digest] || r.Needed != "" })
	if len(gone) == 0 {
		return nil, nil
	}
	var head audit.Head
	if len(s.log) > 0 {
		head = s.log[len(s.log)-1].Head()
	}
	e, err := audit.Next(head, entry(gone))
	if err != nil {
		return nil, err
	}
	s.log = append(s.log, e)
	s.tell([]audit.Entry{e})
	if s.pruned == nil {
		s.pruned = map[manifest.SHA256]server.PrunedEvidence{}
	}
	for _, r := range gone {
		delete(s.evidence, r.Digest)
		s.pruned[r.Digest] = server.PrunedEvidence{Digest: r.Digest, Machine: r.Machine, Received: r.Received, Entry: e.Seq}
	}
	return gone, nil
}

// Compact implements server.Pruner. Nothing is shared here.
func (s *Memory) Compact(_ context.Context, _ time.Time, step func(int, int64) error) error {
	return step(0, 0)
}
