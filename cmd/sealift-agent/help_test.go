package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/recovery"
)

func refusal(codes ...attest.Code) error {
	r := &attest.Result{}
	for _, c := range codes {
		r.Findings = append(r.Findings, attest.Finding{Code: c})
	}
	return fmt.Errorf("send evidence: %w", &client.RefusedError{Result: r})
}

func newTestHelp(t *testing.T, prompt func(context.Context, attest.MachineID) (*recovery.Secrets, error)) *help {
	h := &help{wanted: true, since: time.Now(), prompt: prompt, log: func(err error) { t.Error(err) }, who: func() attest.MachineID { return attest.MachineID{0xab, 0xcd} }}
	h.ctx, h.cancel = context.WithCancel(t.Context())
	return h
}

func TestPeopleAreAskedWhenNothingElseHelps(t *testing.T) {
	for claim, c := range map[string]struct {
		err    error
		since  time.Duration
		wanted bool
		asked  bool
	}{
		"a refusal":                              {refusal(attest.CodeCmdline), 0, true, true},
		"a refusal beside a spent boot":          {refusal(attest.CodeReleaseRepeated, attest.CodeCmdline), 0, true, true},
		"a boot that is spent only reboots":      {refusal(attest.CodeReleaseRepeated), 0, true, false},
		"a service that is away for a moment":    {errors.New("refused"), time.Second, true, false},
		"a service that is away":                 {errors.New("refused"), 2 * rescueAfter, true, true},
		"a machine without a state, and refused": {refusal(attest.CodeCmdline), 2 * rescueAfter, false, false},
	} {
		t.Run(claim, func(t *testing.T) {
			h := newTestHelp(t, func(ctx context.Context, _ attest.MachineID) (*recovery.Secrets, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
			h.wanted, h.since = c.wanted, time.Now().Add(-c.since)
			h.failed(c.err)
			if got := h.asking != nil; got != c.asked {
				t.Errorf("asked %t, want %t", got, c.asked)
			}
			if r := h.end(); r != nil {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestACodeEndsTheAttemptsToAttest(t *testing.T) {
	asked := 0
	h := newTestHelp(t, func(_ context.Context, id attest.MachineID) (*recovery.Secrets, error) {
		asked++
		if id != (attest.MachineID{0xab, 0xcd}) {
			t.Errorf("asked as machine %s", id)
		}
		return &recovery.Secrets{DiskKey: attest.Secret("half"), NameDigits: 5}, nil
	})
	h.failed(refusal(attest.CodeCmdline))
	<-h.ctx.Done()
	h.failed(refusal(attest.CodeCmdline))
	r := h.end()
	if r == nil || !r.recovered || string(r.secrets.DiskKey) != "half" || r.secrets.NodeName != "box-abcd0" || r.secrets.Join != nil {
		t.Errorf("got %+v", r)
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

func TestAReleaseEndsTheAsking(t *testing.T) {
	ended := make(chan struct{})
	h := newTestHelp(t, func(ctx context.Context, _ attest.MachineID) (*recovery.Secrets, error) {
		defer close(ended)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	h.failed(refusal(attest.CodeCmdline))
	if r := h.end(); r != nil {
		t.Errorf("got %+v", r)
	}
	<-ended
}

func TestAnAttemptWaitsForTheNetwork(t *testing.T) {
	e := &early{up: make(chan struct{})}
	if err := e.awaitNetwork(t.Context(), time.Millisecond); err == nil {
		t.Error("no error without a network")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.awaitNetwork(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(e.up)
	if err := e.awaitNetwork(t.Context(), 0); err != nil {
		t.Error(err)
	}
}
