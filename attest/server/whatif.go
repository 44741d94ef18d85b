package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/image/manifest"
)

// maxReasons bounds the findings that a line of a replay tells.
const maxReasons = 8

// replayPage is how many machines are read from the store at once.
const replayPage = 256

// Proposal is what evidence is judged by when a policy is tried: the policy of
// now and the one of then, for each machine.
type Proposal struct {
	Name      string // and version, for people
	Now, Then func(ctx context.Context, machine attest.MachineID) (*attest.Policy, error)
}

// proposal reads the proposal that a request brings.
func (s *Server) proposal(w http.ResponseWriter, r *http.Request) (*Proposal, *failure) {
	var req api.PolicyProposal
	if f := readBody(w, r, api.MaxProposalBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	p, err := s.c.Propose(r.Context(), &req)
	if err != nil {
		return nil, badRequest("the policy cannot be tried: %v", err)
	}
	return p, nil
}

// postWhatIf replays a proposal against the stored evidence of all machines, and
// writes each machine as it was judged. It writes nothing to the store. One
// replay runs at a time, on one core.
func (s *Server) postWhatIf(_ Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	p, f := s.proposal(w, r)
	if f != nil {
		return nil, f
	}
	if !s.trying.take(r.Context(), s.c.Limits.Queue) {
		f := busy(limitConcurrent)
		f.text = "another policy is being tried"
		return nil, f
	}
	defer s.trying.release()
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	started := false
	for line, err := range s.Replay(r.Context(), p) {
		if err != nil && !started {
			return nil, unavailable("the replay", err)
		}
		if err != nil {
			// Cut the connection: the reader must not take a part for all.
			s.c.Log.Error("policy not tried to the end", "policy", p.Name, "error", err)
			panic(http.ErrAbortHandler)
		}
		if !started {
			started = true
			w.Header().Set("Content-Type", "application/jsonl")
			w.Header().Set("Cache-Control", "no-store")
		}
		// Not every ResponseWriter has deadlines; those of tests do not.
		_ = rc.SetWriteDeadline(time.Now().Add(bodyTimeout))
		if err := enc.Encode(line); err != nil {
			return nil, nil // the reader went away
		}
	}
	_ = rc.SetWriteDeadline(time.Time{})
	return nil, nil
}

// Replay judges the stored evidence of every machine under a proposal, in the
// order of their ids, and ends with the summary. It only reads. An error ends
// the sequence.
func (s *Server) Replay(ctx context.Context, p *Proposal) iter.Seq2[api.WhatIf, error] {
	return func(yield func(api.WhatIf, error) bool) {
		sum := NewReplaySummary(p.Name)
		for q := (Query{Limit: replayPage}); ; {
			page, err := s.c.Store.Machines(ctx, q)
			if err != nil {
				yield(api.WhatIf{}, fmt.Errorf("read machines: %w", err))
				return
			}
			for _, m := range page {
				if err := ctx.Err(); err != nil {
					yield(api.WhatIf{}, err)
					return
				}
				row, err := s.replay(ctx, p, m)
				if err != nil {
					yield(api.WhatIf{}, err)
					return
				}
				sum.Add(row)
				if !yield(api.WhatIf{Machine: row}, nil) {
					return
				}
				q.After = m.ID
			}
			if len(page) < q.Limit {
				yield(api.WhatIf{Summary: sum.Summary()}, nil)
				return
			}
		}
	}
}

// replay judges one machine. Its last evidence counts; where that is refused by
// the present policy, a machine that booted well before must not be lost by the
// proposal either, so the last that was accepted is judged, too.
func (s *Server) replay(ctx context.Context, p *Proposal, m *Machine) (*api.WhatIfMachine, error) {
	row := &api.WhatIfMachine{Effect: api.EffectNoEvidence, Now: []attest.Code{}, Then: []attest.Code{}}
	if m.Damaged != "" {
		row.Effect, row.Error = api.EffectFailed, "its record cannot be read: "+m.Damaged
	}
	if !m.LastEvidence.IsZero() {
		now, err := p.Now(ctx, m.ID)
		if err != nil {
			return nil, fmt.Errorf("policy of machine %s: %w", m.ID, err)
		}
		then, err := p.Then(ctx, m.ID)
		if err != nil {
			return nil, fmt.Errorf("proposed policy of machine %s: %w", m.ID, err)
		}
		if row, err = s.judge(ctx, m, m.LastEvidence, now, then); err != nil {
			return nil, err
		}
		if row.Effect != api.EffectNone && row.Effect != api.EffectRefused && row.Effect != api.EffectNotAsked && !m.AcceptedEvidence.IsZero() && m.AcceptedEvidence != m.LastEvidence {
			good, err := s.judge(ctx, m, m.AcceptedEvidence, now, then)
			if err != nil {
				return nil, err
			}
			if good.Effect == api.EffectRefused || good.Effect == api.EffectNotAsked {
				row = good
			}
		}
	}
	row.ID, row.NodeName, row.State = m.ID, m.NodeName, m.State
	if m.Firmware.Vendor != "" || m.Firmware.Product != "" {
		row.Vendor, row.Product = m.Firmware.Vendor, m.Firmware.Product
	}
	return row, nil
}

// judge reads one piece of evidence and judges it, by the state that its machine is
// in now: one that was locked out since is lost by no policy, and one that was
// approved since can be. Evidence that is gone or cannot be read is told and does not
// end the replay; a store that fails does.
func (s *Server) judge(ctx context.Context, m *Machine, digest manifest.SHA256, now, then *attest.Policy) (*api.WhatIfMachine, error) {
	b, err := s.c.Store.Evidence(ctx, digest)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("read evidence %s: %w", digest, err)
	}
	var stored *api.StoredEvidence
	if err == nil {
		stored, err = api.DecodeEvidence(b)
	}
	if err != nil {
		return &api.WhatIfMachine{Effect: api.EffectFailed, Evidence: digest, Now: []attest.Code{}, Then: []attest.Code{}, Error: err.Error()}, nil
	}
	if m.State != attest.StatePending { // a list may enrol that by its evidence
		stored.Known.State, stored.Known.StateReason = m.State, m.Reason
	}
	row := Judge(stored, now, then)
	row.Evidence = digest
	return row, nil
}

// Judge compares the verdicts on stored evidence under two policies.
func Judge(stored *api.StoredEvidence, now, then *attest.Policy) *api.WhatIfMachine {
	a, b := stored.Appraise(now), stored.Appraise(then)
	row := &api.WhatIfMachine{
		ID: stored.Machine, State: stored.Known.State, Vendor: b.Firmware.Vendor, Product: b.Firmware.Product,
		Received: stored.Received, Now: findingCodes(a), Then: findingCodes(b), Banks: b.Banks,
	}
	switch {
	case a.Allowed && b.Allowed:
		row.Effect = api.EffectNone
	case a.Allowed && unasked(stored, b):
		row.Effect = api.EffectNotAsked
	case a.Allowed:
		row.Effect = api.EffectRefused
	case b.Allowed:
		row.Effect = api.EffectAllowed
	default:
		row.Effect = api.EffectStillRefused
	}
	for _, f := range bounded(b).Findings {
		if !slices.Contains(row.Now, f.Code) && len(row.Reasons) < maxReasons {
			row.Reasons = append(row.Reasons, f)
		}
	}
	return row
}

// unasked reports whether all that refuses the evidence is that it lacks a proof for
// which the machine was not asked: whether it can give it is not known.
func unasked(stored *api.StoredEvidence, r *attest.Result) bool {
	return !stored.Challenge.AsksBanks && stored.Evidence.Banks == nil && stored.Evidence.NoBanks == "" &&
		!slices.ContainsFunc(r.Findings, func(f attest.Finding) bool { return f.Code != attest.CodeBankUnproven })
}

func findingCodes(r *attest.Result) []attest.Code {
	out := []attest.Code{}
	for _, f := range r.Findings {
		if !slices.Contains(out, f.Code) {
			out = append(out, f.Code)
		}
	}
	return out
}

// ReplaySummary counts the machines of a replay.
type ReplaySummary struct {
	sum    api.WhatIfSummary
	models map[[2]string]map[api.Effect]int
}

// maxModels bounds the models that are counted by themselves: their names are
// claims. Those beyond it are counted under a name that no machine has.
const maxModels = 1000

// NewReplaySummary returns an empty one.
func NewReplaySummary(policy string) *ReplaySummary {
	return &ReplaySummary{
		sum:    api.WhatIfSummary{Policy: policy, Effects: map[api.Effect]int{}, Models: []api.WhatIfModel{}},
		models: map[[2]string]map[api.Effect]int{},
	}
}

// Add counts a machine.
func (r *ReplaySummary) Add(row *api.WhatIfMachine) {
	key := [2]string{row.Vendor, row.Product}
	if r.models[key] == nil && len(r.models) >= maxModels {
		key = [2]string{"(others)", ""}
	}
	if r.models[key] == nil {
		r.models[key] = map[api.Effect]int{}
	}
	r.models[key][row.Effect]++
	r.sum.Effects[row.Effect]++
	r.sum.Machines++
}

// Summary returns the counts, models in the order of their names.
func (r *ReplaySummary) Summary() *api.WhatIfSummary {
	sum := r.sum
	for key, effects := range r.models {
		sum.Models = append(sum.Models, api.WhatIfModel{Vendor: key[0], Product: key[1], Effects: effects})
	}
	slices.SortFunc(sum.Models, func(a, b api.WhatIfModel) int {
		return cmp.Or(cmp.Compare(a.Vendor, b.Vendor), cmp.Compare(a.Product, b.Product))
	})
	return &sum
}
