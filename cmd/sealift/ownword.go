package main

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// ownWord is which entries about machines this process itself wrote to the log that may
// not have been read yet. Where a person locks a machine out, and somebody who writes to
// the database enrols it on record again at once, what was read a moment ago still says
// that it is enrolled.
type ownWord struct {
	mu       sync.Mutex
	machines map[attest.MachineID]int64 // guarded by mu: number of the last entry of each
	lists    int64                      // guarded by mu: number of the last entry of lists
}

// tail returns what a store is to tell to for a logWitness, and for o.
func (o *ownWord) tail() *audit.Tail {
	t := newTail()
	t.Each = o.note
	return t
}

// note takes an entry that this process appended.
func (o *ownWord) note(e audit.Entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch e.Kind {
	case audit.KindState:
		if o.machines == nil {
			o.machines = map[attest.MachineID]int64{}
		}
		o.machines[e.Machine] = e.Seq
	case audit.KindExpected:
		o.lists = e.Seq
	}
}

// forget forgets the entries up to one that was read.
func (o *ownWord) forget(head audit.Head) {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.machines, func(_ attest.MachineID, seq int64) bool { return seq <= head.Seq })
}

// machine reports whether there is an entry about a machine after head.
func (o *ownWord) machine(id attest.MachineID, head audit.Head) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.machines[id] > head.Seq
}

// list reports whether there is one about a list after head.
func (o *ownWord) list(head audit.Head) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lists > head.Seq
}

// firsthand is a judge that has the log read where this process wrote what may change the
// answer: what is decided here counts here from when it is in the store.
type firsthand struct{ judge }

// ahead reports whether something was written after what was read.
func (j firsthand) ahead(ctx context.Context, written func(*ownWord, audit.Head) bool) (bool, error) {
	if j.live.own == nil {
		return false, nil
	}
	w, err := j.live.watched(ctx)
	if err != nil {
		return false, err
	}
	return written(j.live.own, w.standing.head()), nil
}

// Machine implements server.Standing.
func (j firsthand) Machine(ctx context.Context, id attest.MachineID, current bool) (attest.EnrolmentState, time.Time, error) {
	ahead, err := j.ahead(ctx, func(o *ownWord, head audit.Head) bool { return o.machine(id, head) })
	if err != nil {
		return attest.StateUnknown, time.Time{}, err
	}
	return j.judge.Machine(ctx, id, current || ahead)
}

// Expected implements server.Standing.
func (j firsthand) Expected(ctx context.Context, ek manifest.SHA256, serial string, current bool) (bool, time.Time, error) {
	ahead, err := j.ahead(ctx, (*ownWord).list)
	if err != nil {
		return false, time.Time{}, err
	}
	return j.judge.Expected(ctx, ek, serial, current || ahead)
}
