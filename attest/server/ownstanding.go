package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// ownEvery is for how long an OwnStanding goes by what it read last.
const ownEvery = time.Second

// OwnStanding is the Standing of a store that no other process writes to, such as a
// simulator's. It reads the log from its start, and verifies that it is one chain and
// goes on as it was read. That nobody made another chain before the process began it
// cannot know, as it keeps nothing: a service has a witness for that.
type OwnStanding struct {
	store Store

	mu   sync.Mutex
	all  *audit.Standing // guarded by mu
	read time.Time       // guarded by mu: when the last reading began
}

// NewOwnStanding returns that of a store whose service has these release keys.
func NewOwnStanding(store Store, keys audit.ReleaseKeys) (*OwnStanding, error) {
	all, err := audit.NewStanding(keys)
	if err != nil {
		return nil, err
	}
	return &OwnStanding{store: store, all: all}, nil
}

// ask has f look at what the log says.
func (o *OwnStanding) ask(ctx context.Context, current bool, f func(*audit.Standing)) error {
	began := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	// Whoever waited for a reading that began after it asked need not read again.
	if current && !o.read.After(began) || !current && began.Sub(o.read) > ownEvery {
		if err := o.catchUp(ctx); err != nil {
			return err
		}
	}
	f(o.all)
	return nil
}

// catchUp reads to the end of the log. The caller holds mu.
func (o *OwnStanding) catchUp(ctx context.Context) error {
	began := time.Now()
	at := o.all.Head()
	chain := audit.VerifierAt(at)
	there := at.Seq == 0
	for e, err := range o.store.Audit(ctx, max(at.Seq, 1)) {
		switch {
		case err != nil:
			return fmt.Errorf("read the audit log: %w", err)
		case !there:
			if e.Head() != at {
				return fmt.Errorf("the audit log was altered: entry %d was %s and is %s", at.Seq, at.Hash, e.Hash)
			}
			there = true
			continue
		}
		if err := chain.Add(e); err != nil {
			return err
		}
		if err := o.all.Note(e); err != nil {
			return err
		}
	}
	if !there {
		return fmt.Errorf("the audit log was altered: it ends before entry %d", at.Seq)
	}
	o.read = began
	return nil
}

// Machine implements Standing.
func (o *OwnStanding) Machine(ctx context.Context, id attest.MachineID, current bool) (state attest.EnrolmentState, at time.Time, err error) {
	err = o.ask(ctx, current, func(s *audit.Standing) { state, at = s.Machine(id) })
	return state, at, err
}

// Expected implements Standing.
func (o *OwnStanding) Expected(ctx context.Context, ek manifest.SHA256, serial string, current bool) (ok bool, at time.Time, err error) {
	err = o.ask(ctx, current, func(s *audit.Standing) { ok, at = s.Expected(ek, serial) })
	return ok, at, err
}

// Restored implements Standing.
func (o *OwnStanding) Restored(ctx context.Context) (at time.Time, err error) {
	err = o.ask(ctx, false, func(s *audit.Standing) { at = s.Restored() })
	return at, err
}
