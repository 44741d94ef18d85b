package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// What a witness keeps of its audit.Standing in the store is in documents of these
// kinds: a signed audit.StandingStatement, and the parts whose digests it has.
const (
	standingKind     = "audit-standing"
	standingName     = "last"
	standingPartKind = "audit-standing-part"
)

const (
	// standingEvery is how often it is kept while it changes, standingApart after how
	// many entries it is kept although it did not: what a start must read once more.
	standingEvery = 5 * time.Minute
	standingApart = 50_000
	// standingBound is for how long it is gone by after the log was last read to its
	// end: as long as what is known of the policy.
	standingBound = policyBound
)

// standingPart is the body of a document with a part.
type standingPart struct {
	Part []byte `json:"part"`
}

// logStanding is what the entries that a logWitness has read say of machines. It is as
// far as the witness, but at the start: what was kept may be of an earlier entry, and
// then the entries in between are read once more, or of a later one, and then those up
// to there say nothing new.
//
// What was kept is taken for what the log says only once the log was seen to go on from
// there to an entry that is known to be the log's. Else all of the log is read.
type logStanding struct {
	store server.Store
	key   *ecdsa.PrivateKey
	keys  audit.ReleaseKeys // key's is the present one
	log   *slog.Logger

	mu  sync.RWMutex
	all *audit.Standing // guarded by mu

	// saving guards what follows.
	saving   sync.Mutex
	shards   map[string]manifest.SHA256 // of the parts as they were encoded last
	unstored bool                       // some of them are not in the store
	spoilt   bool                       // what is in the store cannot be used
	kept     audit.Head                 // of what is known to be in the store
	keptAt   time.Time
	toldAt   time.Time // when alarms were raised of entries that are not signed
}

// openStanding reads what was kept. What cannot be used is as if it were not there.
//
// Only the present key's is used. One that a former key signed is what who has that key
// says of machines; so after a change of keys all of the log is read once.
func openStanding(ctx context.Context, store server.Store, key *ecdsa.PrivateKey, former []*ecdsa.PublicKey, log *slog.Logger) (*logStanding, error) {
	s := &logStanding{store: store, key: key, keys: audit.ReleaseKeys{Present: &key.PublicKey, Former: former}, log: log}
	if err := s.reset(); err != nil {
		return nil, err
	}
	var of audit.StandingStatement
	var parts map[string][]byte
	for range 3 { // another replica may be writing it
		d, err := store.Document(ctx, standingKind, standingName)
		if errors.Is(err, server.ErrNotFound) {
			return s, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read what the audit log said of machines: %w", err)
		}
		present := false
		if of, present, err = openStandingStatement(d.Body, s.keys); err == nil && !present {
			log.Warn("what is kept of what the audit log says of machines is of a former release key: reading the log from its start")
			s.spoilt = true
			return s, nil
		}
		if err == nil {
			if parts, err = readStandingParts(ctx, store, &of); err != nil {
				return nil, err
			}
			var all *audit.Standing
			if all, err = audit.RestoreStanding(s.keys, &of, parts); err == nil {
				s.all, s.shards, s.kept = all, maps.Clone(of.Shards), of.Head
				return s, nil
			}
		}
		if errors.Is(err, audit.ErrOtherKeys) {
			log.Warn("reading the audit log from its start", "why", err)
			s.spoilt = true
			return s, nil
		}
		log.Error("what is kept of what the audit log says of machines is not what this service signed", "error", err)
	}
	s.spoilt = true
	return s, nil
}

// openStandingStatement reads a signed statement as it is kept, and reports whether the
// present key signed it.
func openStandingStatement(b []byte, keys audit.ReleaseKeys) (of audit.StandingStatement, present bool, err error) {
	e, err := audit.ParseEnvelope(b)
	if err == nil {
		present, err = keys.Open(e, audit.StandingType, &of)
	}
	if err != nil {
		return audit.StandingStatement{}, false, err
	}
	return of, present, nil
}

func readStandingParts(ctx context.Context, store server.Store, of *audit.StandingStatement) (map[string][]byte, error) {
	parts := map[string][]byte{}
	for name := range of.Shards {
		d, err := store.Document(ctx, standingPartKind, name)
		if errors.Is(err, server.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read what the audit log said of machines: %w", err)
		}
		var p standingPart
		if json.Unmarshal(d.Body, &p) == nil { // else its digest is another
			parts[name] = p.Part
		}
	}
	return parts, nil
}

// reset makes it that of no entry.
func (s *logStanding) reset() error {
	all, err := audit.NewStanding(s.keys)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.all = all
	s.mu.Unlock()
	s.saving.Lock()
	defer s.saving.Unlock()
	s.shards, s.kept = map[string]manifest.SHA256{}, audit.Head{}
	return nil
}

// head is up to which entry it is.
func (s *logStanding) head() audit.Head {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.all.Head()
}

// note takes an entry that the witness has accepted. One that it cannot take yet, as
// there are others before it, mend reads.
func (s *logStanding) note(e audit.Entry) error {
	s.mu.Lock()
	at := s.all.Head()
	var err error
	if e.Seq == at.Seq+1 && e.Prev == at.Hash {
		err = s.all.Note(e)
	}
	s.mu.Unlock()
	if err == nil && e.Seq == at.Seq && e.Head() != at {
		return s.drop(fmt.Errorf("it is of entry %d, %s, which is %s", at.Seq, at.Hash, e.Hash))
	}
	return err
}

// drop forgets what was kept, which is of another log.
func (s *logStanding) drop(why error) error {
	s.log.Error("what is kept of what the audit log says of machines is not of this log: reading the log from its start", "error", why)
	if err := s.reset(); err != nil {
		return err
	}
	s.saving.Lock()
	defer s.saving.Unlock()
	s.spoilt = true
	return nil
}

// mendStanding brings what the log says of machines to the witness's entry, which only
// a start has to do. It keeps where it got to.
func (w *logWitness) mendStanding(ctx context.Context) error {
	select {
	case w.reading <- struct{}{}: // the witness stays where it is
		defer func() { <-w.reading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	end, _, err := w.seen()
	if err != nil {
		return err
	}
	if at := w.standing.head(); at.Seq > end.Seq {
		if err := w.standing.drop(fmt.Errorf("it is of entry %d, and the log ends at entry %d", at.Seq, end.Seq)); err != nil {
			return err
		}
	}
	for w.standing.head() != end {
		from := w.standing.head()
		broken, err := w.standing.read(ctx, end, w.clock)
		switch {
		case err != nil:
			return err
		case broken == nil:
		case from.Seq == 0:
			return w.alter("%w", broken)
		default:
			if err := w.standing.drop(broken); err != nil {
				return err
			}
		}
	}
	return nil
}

// read notes the entries from where it is to end. broken says that they do not lead
// there.
func (s *logStanding) read(ctx context.Context, end audit.Head, clock func() time.Time) (broken, err error) {
	from := s.head()
	chain := audit.VerifierAt(from)
	told := clock()
	if end.Seq > from.Seq {
		for e, err := range s.store.Audit(ctx, from.Seq+1) {
			switch {
			case errors.As(err, new(*audit.BrokenError)):
				return err, nil
			case err != nil:
				return nil, fmt.Errorf("read the audit log: %w", err)
			}
			if err := chain.Add(e); err != nil {
				return err, nil
			}
			if err := s.note(e); err != nil {
				return err, nil
			}
			if e.Seq == end.Seq {
				break
			}
			if now := clock(); now.Sub(told) > 5*time.Second {
				s.log.Info("reading what the audit log says of machines", "entry", e.Seq, "of", end.Seq)
				told = now
				if err := s.save(ctx, now, true); err != nil {
					s.log.Warn("what the audit log says of machines is not kept", "error", err)
				}
			}
		}
	}
	if got := s.head(); got != end {
		return fmt.Errorf("it leads to entry %d, %s, and not to entry %d, %s", got.Seq, got.Hash, end.Seq, end.Hash), nil
	}
	return nil, nil
}

// save keeps it in the store, if it is time to or now, and raises the alarm of entries
// that would enrol and are not signed. A later one, of another replica,
// stays.
func (s *logStanding) save(ctx context.Context, at time.Time, now bool) error {
	s.saving.Lock()
	defer s.saving.Unlock()
	if told, err := s.tell(ctx, at); err != nil || !told {
		return err // a start that goes on from here would not tell of it
	}
	s.mu.RLock()
	apart, changed := s.all.Head().Seq-s.kept.Seq, s.unstored || s.all.Changed()
	s.mu.RUnlock()
	old := at.Sub(s.keptAt) >= standingEvery || at.Before(s.keptAt)
	if apart <= 0 || !now && apart < standingApart && !(old && changed) {
		return nil
	}
	s.keptAt = at
	if err := s.put(ctx, at); err != nil {
		return fmt.Errorf("store what the audit log says of machines: %w", err)
	}
	return nil
}

// put stores a statement, and the parts that the store has not.
func (s *logStanding) put(ctx context.Context, at time.Time) error {
	d, err := s.store.Document(ctx, standingKind, standingName)
	if errors.Is(err, server.ErrNotFound) {
		d, err = &server.Document{Kind: standingKind, Name: standingName}, nil
	}
	if err != nil {
		return err
	}
	var there audit.StandingStatement
	if d.Revision > 0 && !s.spoilt {
		if there, _, err = openStandingStatement(d.Body, s.keys); err != nil {
			s.log.Error("what is kept of what the audit log says of machines is not signed by this service: writing it anew", "error", err)
		}
	}
	s.mu.Lock()
	of := s.all.Statement(at)
	if !slices.Equal(there.Keys, of.Keys) {
		there = audit.StandingStatement{} // made with other keys
	}
	if there.Head.Seq >= of.Head.Seq {
		s.mu.Unlock()
		s.kept = there.Head
		return nil
	}
	parts := s.all.Parts()
	for i, part := range parts {
		s.shards[audit.ShardName(i)] = sha256.Sum256(part)
	}
	var other []int // that another replica has changed, or somebody else
	for i := range audit.Shards {
		if name := audit.ShardName(i); parts[i] == nil && s.shards[name] != there.Shards[name] {
			other = append(other, i)
		}
	}
	maps.Copy(parts, s.all.Parts(other...))
	of.Shards = maps.Clone(s.shards)
	s.mu.Unlock()
	s.unstored = true
	change := &server.Change{Documents: []*server.Document{d}}
	for _, i := range slices.Sorted(maps.Keys(parts)) {
		name := audit.ShardName(i)
		if s.shards[name] == there.Shards[name] {
			continue
		}
		p, err := s.store.Document(ctx, standingPartKind, name)
		if errors.Is(err, server.ErrNotFound) {
			p, err = &server.Document{Kind: standingPartKind, Name: name}, nil
		}
		if err != nil {
			return err
		}
		if p.Body, err = json.Marshal(standingPart{parts[i]}); err != nil {
			return err
		}
		change.Documents = append(change.Documents, p)
	}
	e, err := audit.Sign(s.key, audit.StandingType, of)
	if err != nil {
		return err
	}
	line, err := audit.AppendSigned(nil, e)
	if err != nil {
		return err
	}
	d.Body = json.RawMessage(bytes.TrimSuffix(line, []byte("\n")))
	err = s.store.Commit(ctx, change)
	if errors.Is(err, server.ErrConflict) {
		return nil // another replica was first
	}
	if err == nil {
		s.kept, s.unstored, s.spoilt = of.Head, false, false
	}
	return err
}

// judge implements server.Standing.
type judge struct{ live *livePolicy }

// ask has f look at what the log says. It fails if that is not known: if it was not read
// up to where it ended a while ago, or, if current, when this was called.
func (j judge) ask(ctx context.Context, current bool, f func(*audit.Standing)) error {
	w, err := j.live.watched(ctx)
	if err != nil {
		return err
	}
	if err := w.upToDate(ctx, current); err != nil {
		return err
	}
	s := w.standing
	s.mu.RLock()
	defer s.mu.RUnlock()
	f(s.all)
	return nil
}

// Machine implements server.Standing.
func (j judge) Machine(ctx context.Context, id attest.MachineID, current bool) (state attest.EnrolmentState, at time.Time, err error) {
	err = j.ask(ctx, current, func(s *audit.Standing) { state, at = s.Machine(id) })
	return state, at, err
}

// Expected implements server.Standing.
func (j judge) Expected(ctx context.Context, ek manifest.SHA256, serial string, current bool) (ok bool, at time.Time, err error) {
	err = j.ask(ctx, current, func(s *audit.Standing) { ok, at = s.Expected(ek, serial) })
	return ok, at, err
}

// Restored implements server.Standing.
func (j judge) Restored(ctx context.Context) (at time.Time, err error) {
	err = j.ask(ctx, false, func(s *audit.Standing) { at = s.Restored() })
	return at, err
}

// reads counts the readings of a log.
type reads struct {
	mu    sync.Mutex
	begun int64     // guarded by mu
	ended int64     // guarded by mu: the last that came to the end of the log
	at    time.Time // guarded by mu: when that began
}

func (r *reads) begin(now time.Time) (end func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begun++
	n := r.begun
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended, r.at = n, now
	}
}

// stale reports whether the last reading to the end began too long ago.
func (r *reads) stale(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, wall := now.Sub(r.at), now.Round(0).Sub(r.at.Round(0))
	return r.ended == 0 || since > standingBound || wall > standingBound || wall < 0
}

// next is the number of the next reading.
func (r *reads) next() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.begun + 1
}

func (r *reads) done(n int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended >= n
}

// upToDate has the log read to its end, if that was not done of late, or if current.
// However many ask, one reads at a time. A reading that began before somebody asked is
// not enough for them; the next one is, for all who wait.
func (w *logWitness) upToDate(ctx context.Context, current bool) error {
	if _, _, err := w.seen(); err != nil {
		return err
	}
	if !current && !w.reads.stale(w.clock()) {
		return nil
	}
	n := w.reads.next()
	select {
	case w.catching <- struct{}{}:
		defer func() { <-w.catching }()
	case <-ctx.Done():
		return fmt.Errorf("read the audit log: %w", ctx.Err())
	}
	if w.reads.done(n) {
		return nil
	}
	return w.catchUp(ctx)
}
