package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

const (
	// witnessStep is how many entries are read before others get their turn.
	witnessStep = 2000
	// witnessBusy is for how long a replica reads in each policyPoll, if others write so
	// much: at 55 µs each, measured with 2 kB in SQLite, some 9000 entries, which is
	// several times what one service writes.
	witnessBusy = 500 * time.Millisecond
	// witnessJoin is how many entries of this process's own there must be for the
	// reading to stop before them: fewer are read with those of others, at 200 a query.
	witnessJoin = 1000
	// witnessRead bounds the reading of a step.
	witnessRead = 10 * time.Second
	// witnessApart is how many entries there may be between one that a statement
	// names and that of its enabling, which is written as soon as it is signed: what the
	// busiest of services writes in a minute.
	witnessApart = 100_000
	// witnessFiled and witnessStored are how often the head that was seen is
	// written, to the file and to the store.
	witnessFiled  = 10 * time.Second
	witnessStored = time.Minute
)

// errAltered: the log of the store is not the one that this replica knows.
var errAltered = errors.New("the audit log of the store is not the one that this service wrote")

// logWitness follows the audit log of a store, and vouches for it: it signs the
// log's head only if every entry up to it goes on from the heads that were signed
// before. What it has seen last it keeps, signed, in a file that is not in the
// database, and in the store.
//
// The signed head in the store tells a replica from where on it must read. It
// cannot tell that the whole store was turned back, as it is turned back with it.
// The file can.
type logWitness struct {
	store server.Store
	key   *ecdsa.PrivateKey // that releases are signed with
	keys  audit.ReleaseKeys // key's is the present one
	file  string            // Optional.
	tail  *audit.Tail       // of the store, made by newTail. Optional.
	clock func() time.Time
	log   *slog.Logger

	// reading has room for who reads the log, who alone changes what follows; catching
	// for who reads it to its end because a decision waits for it.
	reading, catching chan struct{}
	reads             reads
	// standing is what the entries say of machines.
	standing *logStanding

	mu       sync.Mutex
	chain    *audit.Verifier  // guarded by mu
	policy   audit.PolicyMark // guarded by mu: up to chain's head
	restored time.Time        // guarded by mu: see audit.HeadStatement
	altered  error            // guarded by mu: for good
	// through are the heads that a former key signed: the log must have them. It is read
	// from its start until it was seen to. Guarded by mu.
	through []audit.Head
	// led is up to which entry the log was seen to go on from which, by leadsTo, which
	// may take longer than a look may. Guarded by mu.
	led struct{ from, to audit.Head }

	// saving guards what follows.
	saving            sync.Mutex
	filed, stored     audit.Head
	filedAt, storedAt time.Time
	// unfiled and unstored are why it was not kept when that was last tried.
	unfiled, unstored error
}

// openWitness reads what was seen last. A file that is there and cannot be used is
// an error: without it nobody would see that the store was turned back.
//
// former are the release keys that key replaced, the latest last. Of a head that one of
// them signed only the head itself is used, and the log is read from its start: who has
// a former key may have signed anything else in it, but the log must have that entry.
func openWitness(ctx context.Context, store server.Store, key *ecdsa.PrivateKey, file string, clock func() time.Time, log *slog.Logger, former ...*ecdsa.PublicKey) (*logWitness, error) {
	w := &logWitness{store: store, key: key, keys: audit.ReleaseKeys{Present: &key.PublicKey, Former: former}, file: file, clock: clock, log: log, reading: make(chan struct{}, 1), catching: make(chan struct{}, 1)}
	var filed, stored audit.HeadStatement
	filedNow, storedNow := true, true // signed with the present key
	if file != "" {
		b, err := readFile(file, maxSmall)
		switch {
		case errors.Is(err, os.ErrNotExist):
			log.Info("this replica has seen no audit log yet", "witness", file)
		case err != nil:
			return nil, fmt.Errorf("read the witness: %w", err)
		default:
			if filedNow, err = openHead(b, w.keys, &filed); err != nil {
				return nil, withHint(refused{fmt.Errorf("the witness %s: %w", file, err)}, hintFormer+"; if the file is of another service, and that is meant, remove it")
			}
		}
	}
	kept, err := store.Document(ctx, server.KindSignedHead, server.NameSignedHead)
	if err != nil && !errors.Is(err, server.ErrNotFound) {
		return nil, fmt.Errorf("read the signed head of the audit log: %w", err)
	}
	if err == nil {
		if storedNow, err = openHead(kept.Body, w.keys, &stored); err != nil {
			// As if there were none: all of the log is read.
			log.Error("the head of the audit log in the store is not signed by this service: reading the log from its start", "error", err, "remedy", hintFormer)
			stored, storedNow = audit.HeadStatement{}, true
		}
	}
	start := stored
	switch {
	case filed.Head.Seq == 0:
	case storedNow && stored.Restored.After(filed.Restored) && stored.Restored.After(filed.Time):
		log.Warn("the store was restored from a backup since this replica last saw it", "restored", stored.Restored, "seen", filed.Head.Seq)
		filed, filedNow = audit.HeadStatement{}, true
	default:
		// Also if the store's is later: it may be of a log that left this one out.
		start, w.filed = filed, filed.Head
		if storedNow && stored.Restored.After(filed.Restored) {
			start.Restored = stored.Restored
		}
	}
	if storedNow {
		w.stored = stored.Head
	}
	if !filedNow {
		w.filed, w.through = audit.Head{}, append(w.through, filed.Head)
		start = audit.HeadStatement{Restored: start.Restored}
	}
	if !storedNow && w.filed.Seq == 0 {
		w.through = append(w.through, stored.Head)
		start = audit.HeadStatement{Restored: filed.Restored}
	}
	if len(w.through) > 0 {
		log.Warn("the release key was changed since the audit log was last seen: reading it from its start")
	}
	w.chain, w.policy, w.restored = audit.VerifierAt(start.Head), start.Policy, start.Restored
	w.standing, err = openStanding(ctx, store, key, former, log)
	return w, err
}

// openHead reads a signed head as it is kept, and reports whether the present key
// signed it.
func openHead(b []byte, keys audit.ReleaseKeys, s *audit.HeadStatement) (present bool, err error) {
	e, err := audit.ParseEnvelope(bytes.TrimSuffix(b, []byte("\n")))
	if err != nil {
		return false, err
	}
	return keys.Open(e, audit.SeenType, s)
}

// wholeEntry reports whether take is given the data of an entry. It is not of kinds
// that machines can make many and long, and that change nothing on record: of verdicts
// only those have it that say whose a TPM is.
func wholeEntry(e audit.Entry) bool {
	switch e.Kind {
	case audit.KindVerdict, audit.KindReport:
		// In a string the quotes would be escaped.
		return bytes.Contains(e.Data, []byte(`"bindings":`))
	case audit.KindAlarm, audit.KindChallengeRefused:
		return false
	}
	return true
}

// newTail returns what a store is to tell to for a logWitness.
func newTail() *audit.Tail { return &audit.Tail{Whole: wholeEntry} }

// follow takes what this process appended itself, reads at most limit entries of
// others, and reports whether that was all.
//
// What this process appended is what it hashed in the transaction that wrote it, after
// the entry that the store then had last. It is taken only if that entry is the one
// that was seen last, and durable before it is told of. Anything else is read: so where
// somebody altered the head, the store itself is what shows it. Whatever was taken, the
// last of it must be in the store.
func (w *logWitness) follow(ctx context.Context, limit int) (end bool, err error) {
	// A read that hangs holds up those who want to read, for as long as they have.
	ctx, cancel := context.WithTimeout(ctx, witnessRead)
	defer cancel()
	select {
	case w.reading <- struct{}{}:
		defer func() { <-w.reading }()
	case <-ctx.Done():
		return false, fmt.Errorf("read the audit log: %w", ctx.Err())
	}
	for read := 0; ; {
		n, end, err := w.step(ctx, limit-read)
		if read += n; err != nil || end || read >= limit {
			return end, err
		}
	}
}

// step takes what this process appended, reads up to where it goes on with that, and
// at most limit entries, and returns how many it read. The caller holds reading.
func (w *logWitness) step(ctx context.Context, limit int) (read int, end bool, err error) {
	if err := w.own(); err != nil {
		return 0, false, err
	}
	from, _, err := w.seen()
	if err != nil {
		return 0, false, err
	}
	ended := w.reads.begin(w.clock())
	// The last that was seen must still be there.
	there := from.Seq == 0
	for e, err := range w.store.Audit(ctx, max(from.Seq, 1)) {
		switch {
		case errors.As(err, new(*audit.BrokenError)):
			return read, false, w.alter("%w", err)
		case err != nil:
			return read, false, fmt.Errorf("read the audit log: %w", err)
		case !there:
			if e.Head() != from {
				return read, false, w.alter("entry %d was %s and is %s", from.Seq, from.Hash, e.Hash)
			}
			there = true
			continue
		}
		if err := w.add(e); err != nil {
			return read, false, w.alter("%w", err)
		}
		if read++; read >= limit || w.tail != nil && w.tail.Joins(e.Head(), witnessJoin) {
			return read, false, nil
		}
	}
	if !there {
		return read, false, w.alter("it ends before entry %d, which was seen", from.Seq)
	}
	if n := w.beyond(); n > 0 {
		return read, false, w.alter("it ends before entry %d, which was seen, and signed with a former release key", n)
	}
	ended()
	return read, true, nil
}

// own takes the entries that this process appended, if they go on from what was seen.
func (w *logWitness) own() error {
	if w.tail == nil {
		return nil
	}
	from, _, err := w.seen()
	if err != nil {
		return err
	}
	entries := w.tail.After(from)
	if len(entries) == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range entries {
		if err := w.take(e); err != nil {
			w.altered = fmt.Errorf("%w: %w", errAltered, err)
			return w.altered
		}
		w.chain = audit.VerifierAt(e.Head())
	}
	return nil
}

// add takes the next entry as it was read.
func (w *logWitness) add(e audit.Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.chain.Add(e); err != nil {
		return err
	}
	if !wholeEntry(e) {
		e.Data = nil
	}
	return w.take(e)
}

// take is where each entry of the log comes by, once and in order, after it was found
// to go on from the one before: of those that the witness starts after, none. Data is
// that of the entry if wholeEntry says so, else nil. The caller holds mu.
func (w *logWitness) take(e audit.Entry) error {
	for _, h := range w.through {
		if e.Seq == h.Seq && e.Hash != h.Hash {
			return fmt.Errorf("entry %d was %s when a former release key signed it, and is %s", h.Seq, h.Hash, e.Hash)
		}
	}
	if err := w.policy.Note(e); err != nil {
		return err
	}
	return w.standing.note(e)
}

// beyond returns the last entry that a former key signed and that was not reached yet,
// zero if there is none.
func (w *logWitness) beyond() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := int64(0)
	for _, h := range w.through {
		if h.Seq > w.chain.Head().Seq {
			last = max(last, h.Seq)
		}
	}
	return last
}

// alter notes for good in what the log was altered. What was noted first stays.
func (w *logWitness) alter(format string, args ...any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.altered != nil {
		return w.altered
	}
	w.altered = fmt.Errorf("%w: %w", errAltered, fmt.Errorf(format, args...))
	return w.altered
}

// keepUp follows the log, for a moment if it does not get to the end.
func (w *logWitness) keepUp(ctx context.Context) error {
	for began := w.clock(); ; {
		end, err := w.follow(ctx, witnessStep)
		if err != nil || end || w.clock().Sub(began) > witnessBusy {
			return err
		}
	}
}

// catchUp reads the log to its end. It keeps where it got to, so that a start that
// is cut short need not be gone through again.
func (w *logWitness) catchUp(ctx context.Context) error {
	told := w.clock()
	for {
		end, err := w.follow(ctx, witnessStep)
		if err != nil {
			return err
		}
		if end {
			return w.mendStanding(ctx)
		}
		if now := w.clock(); now.Sub(told) > 5*time.Second {
			head, _, _ := w.seen()
			w.log.Info("reading the audit log", "entry", head.Seq)
			told = now
			if err := w.save(ctx, true); err != nil {
				w.log.Warn("where the audit log was read to is not kept", "error", err)
			}
		}
	}
}

// seen returns the last entry that was read, and what the log says of policies up
// to it. An error says that the log was altered.
func (w *logWitness) seen() (audit.Head, audit.PolicyMark, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.chain.Head(), w.policy, w.altered
}

// leadsTo reports whether the entry of m goes on from the entry before, by at most
// witnessApart. It reads what is between: an entry from before what this witness has
// read could have been put there since.
func (w *logWitness) leadsTo(ctx context.Context, before audit.Head, m audit.PolicyMark) (bool, error) {
	if before.Seq >= m.Seq || m.Seq-before.Seq > witnessApart {
		return false, nil
	}
	w.mu.Lock()
	if w.led.from != before {
		w.led.from, w.led.to = before, before
	}
	chain := audit.VerifierAt(w.led.to)
	w.mu.Unlock()
	if chain.Head().Seq >= m.Seq {
		return chain.Head() == audit.Head{Seq: m.Seq, Hash: m.Hash}, nil
	}
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.led.from == before {
			w.led.to = chain.Head()
		}
	}()
	for e, err := range w.store.Audit(ctx, chain.Head().Seq+1) {
		switch {
		case errors.As(err, new(*audit.BrokenError)):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("read the audit log: %w", err)
		case chain.Add(e) != nil:
			return false, nil
		case e.Seq == m.Seq:
			return e.Hash == m.Hash, nil
		}
	}
	return false, nil
}

// entry returns the entry of a mark, nil if it is not there.
func (w *logWitness) entry(ctx context.Context, m audit.PolicyMark) (*audit.Entry, error) {
	for e, err := range w.store.Audit(ctx, m.Seq) {
		switch {
		case errors.As(err, new(*audit.BrokenError)):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
		if err := audit.VerifierAt(audit.Head{Seq: m.Seq - 1, Hash: e.Prev}).Add(e); err != nil || e.Hash != m.Hash {
			return nil, nil
		}
		return &e, nil
	}
	return nil, nil
}

// sign signs the head of what was read, as that type.
func (w *logWitness) sign(payloadType string) (*audit.Envelope, audit.Head, error) {
	w.mu.Lock()
	s := audit.HeadStatement{Head: w.chain.Head(), Time: w.clock().UTC().Round(0), Policy: w.policy, Restored: w.restored}
	err := w.altered
	w.mu.Unlock()
	if err != nil {
		return nil, s.Head, err
	}
	e, err := audit.Sign(w.key, payloadType, s)
	return e, s.Head, err
}

// head implements server.Config.AuditHead.
func (w *logWitness) head(ctx context.Context) (*audit.Envelope, error) {
	if err := w.catchUp(ctx); errors.Is(err, errAltered) {
		return nil, refused{err}
	} else if err != nil {
		return nil, err
	}
	e, _, err := w.sign(audit.HeadType)
	return e, err
}

// save keeps what was read, if it is time to or now.
func (w *logWitness) save(ctx context.Context, now bool) error {
	w.saving.Lock()
	defer w.saving.Unlock()
	head, _, _ := w.seen()
	if w.beyond() > 0 {
		return nil // what was kept with a former key is all that shows that the log went back
	}
	at := w.clock()
	unkept := w.standing.save(ctx, at, now)
	// A clock that was set back says nothing of how long ago it was.
	due := func(last time.Time, every time.Duration) bool { return now || at.Sub(last) >= every || at.Before(last) }
	file := w.file != "" && head != w.filed && due(w.filedAt, witnessFiled)
	store := head.Seq > w.stored.Seq && due(w.storedAt, witnessStored)
	if !file && !store {
		return unkept
	}
	e, head, err := w.sign(audit.SeenType)
	if err != nil {
		return err
	}
	line, err := audit.AppendSigned(nil, e)
	if err != nil {
		return err
	}
	if file {
		w.filedAt = at
		if w.unfiled = replaceFile(w.file, line, 0o600); w.unfiled == nil {
			w.filed = head
		}
	}
	if store {
		w.storedAt = at
		if w.unstored = w.put(ctx, head, line); w.unstored != nil {
			w.unstored = fmt.Errorf("store the signed head of the audit log: %w", w.unstored)
		}
	}
	return errors.Join(w.unfiled, w.unstored, unkept)
}

// put stores a signed head, unless another replica has stored a later one.
func (w *logWitness) put(ctx context.Context, head audit.Head, line []byte) error {
	d, err := w.store.Document(ctx, server.KindSignedHead, server.NameSignedHead)
	if errors.Is(err, server.ErrNotFound) {
		d, err = &server.Document{Kind: server.KindSignedHead, Name: server.NameSignedHead}, nil
	}
	if err != nil {
		return err
	}
	var other audit.HeadStatement
	present := false
	if d.Revision > 0 {
		present, _ = openHead(d.Body, w.keys, &other) // one that cannot be read is written anew
	}
	if present && other.Head.Seq >= head.Seq {
		w.stored = other.Head
		return nil
	}
	d.Body = json.RawMessage(bytes.TrimSuffix(line, []byte("\n")))
	err = w.store.Commit(ctx, &server.Change{Documents: []*server.Document{d}})
	if errors.Is(err, server.ErrConflict) {
		return nil // another replica was first
	}
	if err == nil {
		w.stored = head
	}
	return err
}

// kept is whether what was seen could be kept when that was last tried.
func (w *logWitness) kept() error {
	w.saving.Lock()
	defer w.saving.Unlock()
	return errors.Join(w.unfiled, w.unstored)
}
