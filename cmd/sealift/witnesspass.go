package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

const (
	// passStep is how many entries a pass reads at a time: as many as a store reads by
	// one query.
	passStep = 200
	// passRest is for how many times as long as a step took there is none: with what
	// collects its garbage a pass takes a hundredth of a core.
	passRest = 149
	// passApart is how long after the end of a pass the next one begins.
	passApart = 10 * time.Second
	// passAway is after how long a step that could not read is done again.
	passAway = 10 * time.Second
)

// What a pass found last is in a document of this kind, a passFound.
const (
	passKind = "audit-pass"
	passName = "found"
)

// passFound tells the next start where to look first. It is a hint, which nobody signs:
// wherever a pass begins, it goes over all.
type passFound struct {
	Entry int64 `json:"entry"` // 0: nothing
}

// logPass goes over the stored log, once from end to end and then anew, however it came
// to be known: what this process wrote, and took as it hashed it, what it read before,
// and what was there before it started, it sees as the store has it now. So an entry that
// was altered where nobody reads any more is found.
//
// A pass begins at any entry, goes on to the one that the witness has seen last when it
// began, and then from the log's start to where it began. The hash of the last is known,
// each entry has the hash of the one before, and what the first names as the one before
// it is what the second half must end with: so all of it is what the last entry was
// chained to. Passes of a process begin at the same entry, those of another elsewhere.
// Then each part of a log has its turn also where no process runs for as long as a pass
// takes, and replicas do not go over the same at once.
//
// It belongs to one goroutine at a time.
type logPass struct {
	w *logWitness

	first  int64 // where passes begin; 0: not chosen yet
	hinted bool  // by a passFound
	// What follows is of the pass that runs; chain is nil between passes.
	chain  *audit.Verifier
	fresh  bool       // nothing was read yet
	before audit.Head // what comes before first, as first says
	to     audit.Head // where the half that runs must end
	end    audit.Head // where the pass must get to
	n      int64      // entries that were gone over
}

// choose chooses where passes begin: where a former process found something, or
// anywhere.
func (p *logPass) choose(ctx context.Context, last int64) error {
	_, f, err := overwritten[passFound](ctx, p.w.store, passKind, passName)
	if err != nil {
		return fmt.Errorf("read what was found in the audit log: %w", err)
	}
	p.first = 1 + rand.Int64N(last)
	if p.hinted = f.Entry >= 1 && f.Entry <= last; p.hinted {
		// It may show only by what the entry before says.
		p.first = max(f.Entry-1, 1)
	}
	return nil
}

// step goes over some entries, and reports whether that was the end of a pass. An error
// that is errAltered is for good.
func (p *logPass) step(ctx context.Context) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, witnessRead)
	defer cancel()
	head, _, err := p.w.seen()
	if err != nil || head.Seq == 0 {
		return err == nil, err
	}
	if p.chain == nil {
		if p.first == 0 {
			if err := p.choose(ctx, head.Seq); err != nil {
				return false, err
			}
		}
		p.chain, p.fresh, p.to, p.end, p.n = audit.VerifierAt(audit.Head{Seq: p.first - 1}), true, head, head, 0
	}
	for n := 0; ; {
		at := p.chain.Head()
		switch {
		case at.Seq < p.to.Seq:
		case at != p.to:
			return false, p.altered(ctx, at.Seq, fmt.Errorf("entry %d was %s and is %s", p.to.Seq, p.to.Hash, at.Hash))
		case p.to == p.end:
			p.chain, p.to = new(audit.Verifier), p.before
			continue
		default:
			p.chain = nil
			return true, p.clean(ctx)
		}
		if n >= passStep {
			return false, nil
		}
		read, err := p.read(ctx, int(min(int64(passStep-n), p.to.Seq-at.Seq)))
		if n += read; err != nil {
			return false, err
		}
	}
}

// read goes over at most limit entries of the half that runs.
func (p *logPass) read(ctx context.Context, limit int) (n int, err error) {
	for e, err := range p.w.store.Audit(ctx, p.chain.Head().Seq+1) {
		var broken *audit.BrokenError
		if err != nil && !errors.As(err, &broken) {
			return n, fmt.Errorf("read the audit log: %w", err)
		}
		if err == nil {
			if p.fresh {
				p.before, p.fresh = audit.Head{Seq: p.first - 1}, false
				if p.first > 1 {
					p.before.Hash = e.Prev
				}
				p.chain = audit.VerifierAt(p.before)
			}
			err = p.chain.Add(e)
		}
		if errors.As(err, &broken) {
			broken.Line = broken.Seq // it is of the whole log
			return n, p.altered(ctx, broken.Seq, broken)
		}
		p.n++
		if n++; n >= limit {
			return n, nil
		}
	}
	at := p.chain.Head().Seq
	return n, p.altered(ctx, at+1, fmt.Errorf("it ends with entry %d, before entry %d, which was seen", at, p.to.Seq))
}

// altered notes for good that the log was altered, and where, for the next start.
func (p *logPass) altered(ctx context.Context, seq int64, why error) error {
	err := p.w.alter("%w", why)
	if kept := p.keep(ctx, seq); kept != nil {
		p.w.log.Warn("where the audit log was altered is not kept for the next start", "entry", seq, "error", kept)
	}
	return err
}

// clean forgets what was found by a former process, after all is as it should be.
func (p *logPass) clean(ctx context.Context) error {
	if !p.hinted {
		return nil
	}
	err := p.keep(ctx, 0)
	p.hinted = err != nil
	return err
}

func (p *logPass) keep(ctx context.Context, seq int64) error {
	body, err := json.Marshal(passFound{seq})
	if err != nil {
		return err
	}
	d, _, err := overwritten[passFound](ctx, p.w.store, passKind, passName)
	if err != nil {
		return err
	}
	d.Body = body
	if err := p.w.store.Commit(ctx, &server.Change{Documents: []*server.Document{d}}); !errors.Is(err, server.ErrConflict) {
		return err
	}
	return nil // another replica has found it, too
}

// findAgain looks, at a start, where a former process found that the log was altered:
// until somebody has put it right, nothing is released meanwhile.
func (l *livePolicy) findAgain(ctx context.Context, w *logWitness) error {
	head, _, err := w.seen()
	if err != nil || head.Seq == 0 {
		return err
	}
	p := &logPass{w: w}
	if err := p.choose(ctx, head.Seq); err != nil || !p.hinted {
		return err
	}
	_, err = p.step(ctx)
	return err
}

// goOver goes over the log until ctx ends, or it was altered, which the next look tells.
func (l *livePolicy) goOver(ctx context.Context) {
	var p *logPass
	away := false
	for {
		began := time.Now()
		done := false
		w, err := l.watched(ctx)
		if err == nil {
			if p == nil {
				p = &logPass{w: w}
			}
			done, err = p.step(ctx)
			l.mon.AuditPass(p.n, p.end.Seq)
		}
		rest := passRest * time.Since(began)
		switch {
		case errors.Is(err, errAltered):
			return
		case err != nil:
			rest = passAway
			if !away && ctx.Err() == nil {
				l.log.Warn("the audit log is not gone over", "error", err)
			}
		case done:
			rest = max(rest, passApart)
			l.mon.AuditPassed(l.local.clock())
			l.log.Debug("went over the audit log", "entries", p.n)
		}
		away = err != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}
