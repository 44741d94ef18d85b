// Package storetest holds the contract of server.Store as tests: Run runs them
// against any implementation. Memory is a Store for other tests, and Faulty
// makes any Store fail.
package storetest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// Memory is a Store that forgets everything with the process. The zero value
// is empty and ready.
type Memory struct {
	mu        sync.Mutex
	machines  map[attest.MachineID]*server.Machine
	releases  map[string]*server.Release
	evidence  map[manifest.SHA256][]byte
	pruned    map[manifest.SHA256]server.PrunedEvidence
	documents map[[2]string]*server.Document // by kind and name
	log       []audit.Entry
	tail      *audit.Tail
}

// clone copies v through JSON, which is also how a database would keep it.
func clone[T any](v *T) *T {
	b, err := json.Marshal(v)
	if err != nil {
		panic("storetest: BUG: " + err.Error())
	}
	c := new(T)
	if err := json.Unmarshal(b, c); err != nil {
		panic("storetest: BUG: " + err.Error())
	}
	return c
}

func cloneMachine(m *server.Machine) *server.Machine {
	c := clone(m)
	c.Revision = m.Revision // not part of the JSON
	return c
}

// Machine implements server.Store.
func (s *Memory) Machine(_ context.Context, id attest.MachineID) (*server.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.machines[id]; m != nil {
		return cloneMachine(m), nil
	}
	return nil, fmt.Errorf("machine %s: %w", id, server.ErrNotFound)
}

// Machines implements server.Store.
func (s *Memory) Machines(_ context.Context, q server.Query) ([]*server.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*server.Machine
	for _, m := range s.machines {
		if (q.State == "" || m.State == q.State) && (q.DiskGUID == "" || m.DiskGUID == q.DiskGUID) &&
			(q.NodeName == "" || m.NodeName == q.NodeName) && (q.Due.IsZero() || !m.Due().IsZero() && !m.Due().After(q.Due)) &&
			(q.After.IsZero() || m.ID.String() > q.After.String()) {
			out = append(out, cloneMachine(m))
		}
	}
	slices.SortFunc(out, func(a, b *server.Machine) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[:q.Limit]
	}
	return out, nil
}

// Commit implements server.Store.
func (s *Memory) Commit(_ context.Context, c *server.Change) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(c); err != nil {
		return err
	}
	log := s.log
	var head audit.Head
	if len(log) > 0 {
		head = log[len(log)-1].Head()
	}
	for _, ev := range c.Events {
		e, err := audit.Next(head, ev)
		if err != nil {
			return err
		}
		log = append(log, e)
		head = e.Head()
	}
	s.tell(log[len(s.log):])
	s.log = log
	if c.Machine != nil {
		if s.machines == nil {
			s.machines = map[attest.MachineID]*server.Machine{}
		}
		m := cloneMachine(c.Machine)
		m.Revision++
		s.machines[m.ID] = m
	}
	if s.releases == nil {
		s.releases = map[string]*server.Release{}
	}
	for _, r := range []*server.Release{c.Release, c.Confirm} {
		if r != nil {
			s.releases[r.ID] = clone(r)
		}
	}
	for _, d := range c.Documents {
		if s.documents == nil {
			s.documents = map[[2]string]*server.Document{}
		}
		kept := cloneDocument(d)
		kept.Revision++
		s.documents[[2]string{d.Kind, d.Name}] = kept
	}
	if c.Evidence != nil {
		if s.evidence == nil {
			s.evidence = map[manifest.SHA256][]byte{}
		}
		s.evidence[sha256.Sum256(c.Evidence)] = slices.Clone(c.Evidence)
		delete(s.pruned, sha256.Sum256(c.Evidence))
	}
	return nil
}

// check refuses a change that must not be written. The caller holds mu.
func (s *Memory) check(c *server.Change) error {
	if m := c.Machine; m != nil {
		var stored int64
		if old := s.machines[m.ID]; old != nil {
			stored = old.Revision
		}
		if stored != m.Revision {
			return fmt.Errorf("machine %s: revision is %d, want %d: %w", m.ID, stored, m.Revision, server.ErrConflict)
		}
		for _, other := range s.machines {
			if other.ID != m.ID && (other.NodeName == m.NodeName || m.DiskGUID != "" && other.DiskGUID == m.DiskGUID) {
				return fmt.Errorf("machine %s: node name or disk of machine %s: %w", m.ID, other.ID, server.ErrConflict)
			}
		}
	}
	if r := c.Release; r != nil {
		for _, old := range s.releases {
			same := old.Machine == r.Machine && old.Generation == r.Generation && old.ResetCount == r.ResetCount && old.RestartCount == r.RestartCount
			if same || old.ID == r.ID {
				return fmt.Errorf("release %s: %w", r.ID, server.ErrReleased)
			}
		}
	}
	if r := c.Confirm; r != nil {
		if old := s.releases[r.ID]; old == nil || old.Outcome != "" {
			return fmt.Errorf("confirm release %s: %w", r.ID, server.ErrConflict)
		}
	}
	for _, d := range c.Documents {
		var stored int64
		if old := s.documents[[2]string{d.Kind, d.Name}]; old != nil {
			stored = old.Revision
		}
		if stored != d.Revision {
			return fmt.Errorf("%s %s: revision is %d, want %d: %w", d.Kind, d.Name, stored, d.Revision, server.ErrConflict)
		}
	}
	return nil
}

func cloneDocument(d *server.Document) *server.Document {
	c := *d
	c.Body = slices.Clone(d.Body)
	return &c
}

// Document implements server.Store.
func (s *Memory) Document(_ context.Context, kind, name string) (*server.Document, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.documents[[2]string{kind, name}]; d != nil {
		return cloneDocument(d), nil
	}
	return nil, fmt.Errorf("%s %s: %w", kind, name, server.ErrNotFound)
}

// Documents implements server.Store.
func (s *Memory) Documents(_ context.Context, kind, after string, limit int) ([]*server.Document, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*server.Document
	for _, d := range s.documents {
		if d.Kind == kind && d.Name > after {
			out = append(out, cloneDocument(d))
		}
	}
	slices.SortFunc(out, func(a, b *server.Document) int { return cmp.Compare(a.Name, b.Name) })
	if limit > 0 && len(out) > limit {
		out = out[:limit]
	}
	return out, nil
}

// Release implements server.Store.
func (s *Memory) Release(_ context.Context, id string) (*server.Release, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.releases[id]; r != nil {
		return clone(r), nil
	}
	return nil, fmt.Errorf("release %s: %w", id, server.ErrNotFound)
}

// Evidence implements server.Store.
func (s *Memory) Evidence(_ context.Context, digest manifest.SHA256) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.evidence[digest]; ok {
		return slices.Clone(b), nil
	}
	if p, ok := s.pruned[digest]; ok {
		return nil, &server.PrunedError{PrunedEvidence: p}
	}
	return nil, fmt.Errorf("evidence %s: %w", digest, server.ErrNotFound)
}

// Audit implements server.Store.
func (s *Memory) Audit(_ context.Context, from int64) iter.Seq2[audit.Entry, error] {
	s.mu.Lock()
	log := s.log[:len(s.log):len(s.log)]
	s.mu.Unlock()
	return func(yield func(audit.Entry, error) bool) {
		for _, e := range log {
			if e.Seq >= from && !yield(e, nil) {
				return
			}
		}
	}
}

// Tell implements server.Teller.
func (s *Memory) Tell(tail *audit.Tail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tail = tail
}

// tell tells of what was appended. The caller holds mu.
func (s *Memory) tell(appended []audit.Entry) {
	if s.tail != nil {
		s.tail.Append(appended)
	}
}

// Dump implements server.Archive.
func (s *Memory) Dump(_ context.Context, each func(server.Record) error) error {
	s.mu.Lock()
	var all []server.Record
	for _, m := range s.machines {
		all = append(all, server.Record{Machine: cloneMachine(m)})
	}
	for _, r := range s.releases {
		all = append(all, server.Record{Release: clone(r)})
	}
	for _, d := range s.documents {
		all = append(all, server.Record{Document: cloneDocument(d)})
	}
	for _, b := range s.evidence {
		all = append(all, server.Record{Evidence: slices.Clone(b)})
	}
	for _, p := range s.pruned {
		all = append(all, server.Record{Pruned: &p})
	}
	for _, e := range s.log {
		all = append(all, server.Record{Entry: &e})
	}
	s.mu.Unlock()
	for _, r := range all {
		if err := each(r); err != nil {
			return err
		}
	}
	return nil
}

// Load implements server.Archive.
func (s *Memory) Load(_ context.Context, records iter.Seq2[server.Record, error]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.machines)+len(s.releases)+len(s.documents)+len(s.evidence)+len(s.pruned)+len(s.log) > 0 {
		return fmt.Errorf("the store is not empty: %w", server.ErrConflict)
	}
	into := &Memory{
		machines: map[attest.MachineID]*server.Machine{}, releases: map[string]*server.Release{},
		documents: map[[2]string]*server.Document{}, evidence: map[manifest.SHA256][]byte{},
		pruned: map[manifest.SHA256]server.PrunedEvidence{},
	}
	var v audit.Verifier
	for r, err := range records {
		if err != nil {
			return err
		}
		switch {
		case r.Machine != nil:
			m := cloneMachine(r.Machine)
			if m.Revision < 1 {
				return fmt.Errorf("machine %s: revision is %d", m.ID, m.Revision)
			}
			m.Revision = 0
			if err := into.check(&server.Change{Machine: m}); err != nil {
				return err
			}
			m.Revision = r.Machine.Revision
			into.machines[m.ID] = m
		case r.Release != nil:
			if into.check(&server.Change{Release: r.Release}) != nil {
				return fmt.Errorf("release %s: twice: %w", r.Release.ID, server.ErrConflict)
			}
			into.releases[r.Release.ID] = clone(r.Release)
		case r.Document != nil:
			key := [2]string{r.Document.Kind, r.Document.Name}
			if into.documents[key] != nil {
				return fmt.Errorf("%s %s: twice: %w", key[0], key[1], server.ErrConflict)
			}
			into.documents[key] = cloneDocument(r.Document)
		case r.Evidence != nil:
			into.evidence[sha256.Sum256(r.Evidence)] = slices.Clone(r.Evidence)
		case r.Pruned != nil:
			into.pruned[r.Pruned.Digest] = *r.Pruned
		case r.Entry != nil:
			if err := v.Add(*r.Entry); err != nil {
				return err
			}
			into.log = append(into.log, *r.Entry)
		}
	}
	s.machines, s.releases, s.documents, s.evidence, s.pruned, s.log = into.machines, into.releases, into.documents, into.evidence, into.pruned, into.log
	return nil
}

// Faulty is a Store whose writes fail when Fail says so.
type Faulty struct {
	server.Store
	// Fail is asked before each write, by the name of its method. With an
	// error the write fails; if persisted is true, it was done all the same.
	// It is called by many goroutines.
	Fail func(method string) (err error, persisted bool)
}

func (f *Faulty) write(method string, do func() error) error {
	err, persisted := f.Fail(method)
	if err == nil {
		return do()
	}
	if persisted {
		if doErr := do(); doErr != nil {
			return doErr
		}
	}
	return err
}

// Commit implements server.Store.
func (f *Faulty) Commit(ctx context.Context, c *server.Change) error {
	return f.write("Commit", func() error { return f.Store.Commit(ctx, c) })
}
