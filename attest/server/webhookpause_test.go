package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
)

// hooked is a service that delivers to one receiver when it is told, by a clock
// that stands still.
type hooked struct {
	*testing.T
	store *storetest.Memory
	r     *receiver
	srv   *server.Server
	now   time.Time
}

func newHooked(t *testing.T) *hooked {
	t.Helper()
	h := &hooked{T: t, store: new(storetest.Memory), r: newReceiver(t), now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	key := newKey(t)
	var err error
	h.srv, err = server.New(server.Config{
		Store: h.store, Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return &attest.Policy{}, nil },
		Standing: storetest.Standing(t, h.store, key),
		KEK:      bytes.Repeat([]byte{1}, server.KEKSize), ReleaseKey: key, Log: slog.New(slog.DiscardHandler),
		Webhooks: []server.Webhook{h.r.hook()}, Clock: func() time.Time { return h.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	h.deliver() // makes the cursor
	return h
}

// deliver delivers what there is, and returns when to look again.
func (h *hooked) deliver() time.Duration {
	h.Helper()
	pause, err := h.srv.DeliverOnce(h.Context())
	if err != nil {
		h.Fatal(err)
	}
	return pause
}

// hookCursor is what is kept of a webhook.
type hookCursor struct {
	Next, Attempts          int64
	Holder, Error           string
	Since, NotBefore, Until time.Time
}

func (h *hooked) cursor() (c hookCursor, revision int64) {
	h.Helper()
	docs, err := h.store.Documents(h.Context(), "webhook", "", 0)
	if err != nil || len(docs) != 1 {
		h.Fatal(docs, err)
	}
	if err := json.Unmarshal(docs[0].Body, &c); err != nil {
		h.Fatal(err)
	}
	return c, docs[0].Revision
}

// alter changes a field of the cursor.
func (h *hooked) alter(field string, value any) {
	h.Helper()
	docs, err := h.store.Documents(h.Context(), "webhook", "", 0)
	if err != nil || len(docs) != 1 {
		h.Fatal(docs, err)
	}
	var c map[string]any
	if err := json.Unmarshal(docs[0].Body, &c); err != nil {
		h.Fatal(err)
	}
	c[field] = value
	docs[0].Body = mustJSON(h.T, c)
	if err := h.store.Commit(h.Context(), &server.Change{Documents: docs}); err != nil {
		h.Fatal(err)
	}
}

func TestAReceiverThatFailsIsAskedLessAndLess(t *testing.T) {
	h := newHooked(t)
	asked := 0
	f := func(w http.ResponseWriter, _ *http.Request) { asked++; w.WriteHeader(500) }
	h.r.fail.Store(&f)
	state(t, h.store, attest.StateQuarantined, "one")
	began := h.now
	for i := range 30 {
		want := min(time.Second<<i, 5*time.Minute)
		if got := h.deliver(); got != want || asked != i+1 {
			t.Fatalf("attempt %d: asked %d times, a pause of %v, want %v", i+1, asked, got, want)
		}
		c, _ := h.cursor()
		if !c.Since.Equal(began) || c.Attempts != int64(i+1) || !c.NotBefore.Equal(h.now.Add(want)) || c.Holder != "" || !c.Until.IsZero() || c.Next != 1 || c.Error != "HTTP 500" {
			t.Fatalf("attempt %d: the cursor is %+v", i+1, c)
		}
		// Nobody looks before the pause is over, this replica or another.
		h.now = h.now.Add(want - 1)
		if got := h.deliver(); got != 1 || asked != i+1 {
			t.Fatalf("before the end of pause %d: asked %d times, a pause of %v", i+1, asked, got)
		}
		h.now = h.now.Add(1)
	}
	h.r.fail.Store(nil)
	h.deliver()
	if d := <-h.r.got; d.reason() != "one" {
		t.Errorf("got %s", d.body)
	}
	c, _ := h.cursor()
	if !c.Since.IsZero() || c.Attempts != 0 || !c.NotBefore.IsZero() || c.Error != "" || c.Next != 2 {
		t.Errorf("the cursor is %+v", c)
	}
	// A pause that nobody would have made is none.
	for more, want := range []int{0, 2} { // events: those of both rounds
		state(t, h.store, attest.StateQuarantined, "another")
		h.alter("notBefore", h.now.Add(5*time.Minute+time.Duration(more)))
		h.deliver()
		if len(h.r.got) != want {
			t.Errorf("a pause that is %d ns too long: %d events, want %d", more, len(h.r.got), want)
		}
	}
}

func TestALeaseIsRenewedBeforeARequestThatItMightNotOutlast(t *testing.T) {
	h := newHooked(t)
	_, revision := h.cursor()
	step := func(name string, after time.Duration, renewed bool) {
		t.Helper()
		h.now = h.now.Add(after)
		was, _ := h.cursor()
		state(t, h.store, attest.StateQuarantined, name)
		h.deliver()
		<-h.r.got
		c, now := h.cursor()
		// One commit says that it was delivered, and one before that takes the lease.
		commits, until := int64(1), was.Until
		if renewed {
			commits, until = 2, h.now.Add(30*time.Second)
		}
		if now-revision != commits || !c.Until.Equal(until) || c.Holder == "" {
			t.Errorf("%s: %d commits, want %d; the lease of %q is until %v, want %v", name, now-revision, commits, c.Holder, c.Until, until)
		}
		revision = now
	}
	step("the first", 0, true)
	step("at once", 0, false)
	step("at half of its time", 15*time.Second, false)
	step("a little later", 1, true)
	step("after the clock was set back", -1, true)
	step("after its end", time.Hour, true)
}

func TestEntriesThatAreNotWantedAreNotedInLargeSteps(t *testing.T) {
	h := newHooked(t)
	_, before := h.cursor()
	commit := func(n int) {
		t.Helper()
		events := make([]audit.Event, n)
		for i := range events {
			events[i] = audit.Event{Time: h.now, Kind: audit.KindConfirm, Data: audit.Confirm{ReleaseID: fmt.Sprint(i)}}
		}
		if err := h.store.Commit(t.Context(), &server.Change{Events: events}); err != nil {
			t.Fatal(err)
		}
		h.deliver()
	}
	commit(4999)
	if c, now := h.cursor(); now != before || c.Next != 1 {
		t.Errorf("after 4999: %d commits, next is %d", now-before, c.Next)
	}
	commit(1)
	if c, now := h.cursor(); now != before+1 || c.Next != 5001 {
		t.Errorf("after 5000: %d commits, next is %d", now-before, c.Next)
	}
	state(t, h.store, attest.StateQuarantined, "one")
	h.deliver()
	if d := <-h.r.got; d.Data.Seq != 5001 {
		t.Errorf("got %s", d.body)
	}
}
