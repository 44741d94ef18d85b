package server_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
)

// othersLog is a store whose log is another's, or cannot be read.
type othersLog struct {
	server.Store
	mu  sync.Mutex
	of  server.Store // guarded by mu
	err error        // guarded by mu
}

func (o *othersLog) set(of server.Store, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.of, o.err = of, err
}

func (o *othersLog) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return func(yield func(audit.Entry, error) bool) { yield(audit.Entry{}, o.err) }
	}
	return o.of.Audit(ctx, from)
}

func TestAnOwnStandingGoesByTheLogAlone(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	memory, other := new(storetest.Memory), new(storetest.Memory)
	commit := func(store server.Store, events ...audit.Event) {
		t.Helper()
		if err := store.Commit(t.Context(), &server.Change{Events: events}); err != nil {
			t.Fatal(err)
		}
	}
	signed := func(id byte) audit.Event {
		t.Helper()
		ev, err := audit.SignTrust(key, enrolled(attest.MachineID{id}), time.Unix(int64(id), 0))
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}
	start := audit.Event{Time: time.Unix(1, 0), Kind: audit.KindStart, Data: audit.Start{SignsEnrolments: true}}
	commit(memory, start, signed(1), enrolled(attest.MachineID{2}))
	commit(other, start, signed(3))
	store := &othersLog{Store: memory, of: memory}
	all := storetest.Standing(t, store, key)
	is := func(claim string, id byte, want attest.EnrolmentState) {
		t.Helper()
		if got, _, err := all.Machine(t.Context(), attest.MachineID{id}, true); got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", claim, got, err, want)
		}
	}
	is("signed", 1, attest.StateEnrolled)
	is("not signed", 2, attest.StateUnknown)
	is("of nothing", 4, attest.StateUnknown)
	commit(memory, signed(4))
	is("a moment later", 4, attest.StateEnrolled)
	for claim, tt := range map[string]struct {
		of   server.Store
		err  error
		want string
	}{
		"the log is another":        {other, nil, "the audit log was altered"},
		"the log is cut":            {new(storetest.Memory), nil, "the audit log was altered: it ends before entry 4"},
		"the log cannot be read":    {memory, errors.New("no disk"), "no disk"},
		"the log cannot be read on": {memory, context.DeadlineExceeded, "deadline"},
	} {
		store.set(tt.of, tt.err)
		if _, _, err := all.Machine(t.Context(), attest.MachineID{1}, true); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", claim, err)
		}
	}
	store.set(memory, nil)
	is("it is as it was", 1, attest.StateEnrolled)
	if _, err := server.NewOwnStanding(memory, audit.ReleaseKeys{}); err == nil {
		t.Error("it needs no key")
	}
}
