package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// signedHeads compares a copy of a log, whose chain others verify, with where the
// service signed that it saw the log end: in the store, and in its witness file. A log
// that was altered and chained anew is a chain, too, and a restore of it would be
// signed.
type signedHeads struct {
	keys audit.ReleaseKeys
	seen map[string]audit.HeadStatement // by where it is kept
	last audit.Head
}

// errNotSeen: a log is not the one whose end was signed.
var errNotSeen = errors.New("the audit log of the store is not the one whose end the service signed")

// readSignedHeads reads the witness file, which may be none. It must be read before
// the log is copied, which then has at least what the file says.
func readSignedHeads(keys audit.ReleaseKeys, witness string) (*signedHeads, error) {
	h := &signedHeads{keys: keys, seen: map[string]audit.HeadStatement{}}
	if witness == "" {
		return h, nil
	}
	b, err := readFile(witness, maxSmall)
	if errors.Is(err, os.ErrNotExist) {
		return h, nil
	}
	if err != nil {
		return h, fmt.Errorf("%w: read the witness: %w", errNotSeen, err)
	}
	return h, h.keep("the witness "+witness, b)
}

func (h *signedHeads) keep(where string, b []byte) error {
	var s audit.HeadStatement
	present, err := openHead(b, h.keys, &s)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errNotSeen, where, err)
	}
	if !present {
		s.Restored = time.Time{} // see openWitness
	}
	h.seen[where] = s
	return nil
}

// add takes the records of the copy, of which entries come last. As openWitness, it
// passes over a file from before the store was filled from a backup.
func (h *signedHeads) add(r server.Record) error {
	const stored = "the store"
	if d := r.Document; d != nil && d.Kind == server.KindSignedHead && d.Name == server.NameSignedHead {
		if err := h.keep(stored, d.Body); err != nil {
			return err
		}
		restored := h.seen[stored].Restored
		for where, s := range h.seen {
			if restored.After(s.Restored) && restored.After(s.Time) {
				delete(h.seen, where)
			}
		}
	}
	if r.Entry == nil {
		return nil
	}
	h.last = r.Entry.Head()
	for where, s := range h.seen {
		if s.Head.Seq == h.last.Seq && s.Head != h.last {
			return fmt.Errorf("%w: entry %d is %s, and %s has it signed as %s", errNotSeen, h.last.Seq, h.last.Hash, where, s.Head.Hash)
		}
	}
	return nil
}

// end is called after the last record.
func (h *signedHeads) end() error {
	for where, s := range h.seen {
		if s.Head.Seq > h.last.Seq {
			return fmt.Errorf("%w: it ends with entry %d, and %s has entry %d, which was seen at %s", errNotSeen, h.last.Seq, where, s.Head.Seq, s.Time.UTC().Format("2006-01-02 15:04:05 UTC"))
		}
	}
	return nil
}
