package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/strict"
	"github.com/sealift/sealift/firmware"
)

// campaigns is where firmware campaigns meet the service: it says which
// firmware a machine may boot, moves campaigns by what machines prove, and
// serves them to operators.
type campaigns struct {
	store     server.Store
	catalogue *firmware.Catalogue
	clock     func() time.Time
	log       *slog.Logger
}

// campaignKind is the kind of the documents that campaigns are kept in.
const campaignKind = "campaign"

// tries is how often a change is attempted again when another was first.
const tries = 10

// all returns every campaign with its revision.
func (c *campaigns) all(ctx context.Context) ([]firmware.Campaign, []int64, error) {
	documents, err := c.store.Documents(ctx, campaignKind, "", 0)
	if err != nil {
		return nil, nil, err
	}
	var list []firmware.Campaign
	var revisions []int64
	for _, d := range documents {
		var one firmware.Campaign
		if err := json.Unmarshal(d.Body, &one); err != nil {
			return nil, nil, fmt.Errorf("read campaign %s: %w", d.Name, err)
		}
		list, revisions = append(list, one), append(revisions, d.Revision)
	}
	return list, revisions, nil
}

// references returns the firmware that a machine may boot now.
func (c *campaigns) references(ctx context.Context, machine attest.MachineID) (attest.FirmwarePolicy, error) {
	list, _, err := c.all(ctx)
	if err != nil {
		return attest.FirmwarePolicy{}, err
	}
	return firmware.References(c.catalogue, list, machine), nil
}

// Accepted implements server.FirmwareObserver: it moves the campaigns that a
// boot proves.
func (c *campaigns) Accepted(ctx context.Context, machine attest.MachineID, at time.Time, r *attest.Result) error {
	var err error
	for range tries {
		if err = c.accepted(ctx, machine, at, r); !errors.Is(err, server.ErrConflict) {
			break
		}
	}
	return err
}

func (c *campaigns) accepted(ctx context.Context, machine attest.MachineID, at time.Time, r *attest.Result) error {
	list, revisions, err := c.all(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		next, changed := list[i].Observe(machine, r.Firmware, at)
		if !changed {
			continue
		}
		reason := fmt.Sprintf("machine %s booted it, by measurement (%d of %d)", machine.Short(), len(next.Proofs), len(next.Wave))
		if err := c.save(ctx, next, revisions[i], "sealift serve", reason, machine, string(list[i].State)); err != nil {
			return err
		}
		c.log.Info("campaign moved", "campaign", next.Name, "state", next.State, "machine", machine.Short())
	}
	return nil
}

// save stores a campaign together with its audit entry.
func (c *campaigns) save(ctx context.Context, next firmware.Campaign, revision int64, by, reason string, machine attest.MachineID, from string) error {
	body, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode campaign %s: %w", next.Name, err)
	}
	return c.store.Commit(ctx, &server.Change{
		Documents: []*server.Document{{Kind: campaignKind, Name: next.Name, Revision: revision, Body: body}},
		Events: []audit.Event{{
			Time: c.clock(), Kind: audit.KindCampaign, Machine: machine,
			Data: audit.Campaign{Name: next.Name, From: from, To: string(next.State), By: by, Reason: reason, Detail: body},
		}},
	})
}

// create opens a campaign for an operator.
func (c *campaigns) create(ctx context.Context, asked firmware.Campaign, by string) (*firmware.Campaign, error) {
	list, _, err := c.all(ctx)
	if err != nil {
		return nil, err
	}
	opened, err := firmware.NewCampaign(asked, c.catalogue, list, c.clock().UTC())
	if err != nil {
		return nil, usage{err}
	}
	for _, id := range opened.Wave {
		if _, err := c.store.Machine(ctx, id); errors.Is(err, server.ErrNotFound) {
			return nil, withHint(usage{fmt.Errorf("campaign %s: there is no machine %s", opened.Name, id)}, "sealift machine list shows the ids")
		} else if err != nil {
			return nil, err
		}
	}
	reason := fmt.Sprintf("%s %s from %s to %s, %d machines", opened.Vendor, opened.Product, opened.From, opened.To, len(opened.Wave))
	if err := c.save(ctx, *opened, 0, by, reason, attest.MachineID{}, ""); err != nil {
		return nil, err
	}
	return opened, nil
}

// serve answers operators below api.PathCampaigns. The body is bounded by the
// caller.
func (c *campaigns) serve(operator string, w http.ResponseWriter, r *http.Request) {
	name := strings.Trim(strings.TrimPrefix(r.URL.Path, api.PathCampaigns), "/")
	var answer any
	var err error
	switch {
	case r.Method == http.MethodPost && name == "":
		var asked firmware.Campaign
		if err = strict.Decode(r.Body, &asked); err != nil {
			if large := new(http.MaxBytesError); errors.As(err, &large) {
				refuse(w, http.StatusRequestEntityTooLarge, api.Error{Code: "too-large", Message: fmt.Sprintf("the body is larger than %d bytes", large.Limit)})
				return
			}
			err = usage{fmt.Errorf("read the campaign: %w", err)}
			break
		}
		answer, err = c.create(r.Context(), asked, operator)
	case r.Method == http.MethodGet:
		var list []firmware.Campaign
		list, _, err = c.all(r.Context())
		answer = list
		if name == "" {
			if list == nil {
				answer = []firmware.Campaign{}
			}
			break
		}
		i := slices.IndexFunc(list, func(one firmware.Campaign) bool { return one.Name == name })
		if err == nil && i < 0 {
			refuse(w, http.StatusNotFound, api.Error{Code: "not-found", Message: "there is no campaign " + name})
			return
		}
		if err == nil {
			answer = list[i]
		}
	default:
		refuse(w, http.StatusMethodNotAllowed, api.Error{Code: "method-not-allowed", Message: "GET or POST"})
		return
	}
	switch {
	case err == nil:
		reply(w, http.StatusOK, answer)
	case errors.As(err, new(usage)):
		refuse(w, http.StatusBadRequest, api.Error{Code: "bad-request", Message: err.Error(), Hint: hintOf(err)})
	case errors.Is(err, server.ErrConflict):
		refuse(w, http.StatusConflict, api.Error{Code: "conflict", Message: "somebody else was first, try again"})
	default:
		c.log.Error("campaign request failed", "request", w.Header().Get(api.HeaderRequestID), "error", err)
		w.Header().Set("Retry-After", "2")
		refuse(w, http.StatusServiceUnavailable, api.Error{Code: "unavailable", Message: "the store is not available", Hint: "try again"})
	}
}

// refuse answers with an error, and the id that the service gave the request.
func refuse(w http.ResponseWriter, status int, e api.Error) {
	e.Request = w.Header().Get(api.HeaderRequestID)
	reply(w, status, e)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here is the reader's: it went away.
	_ = json.NewEncoder(w).Encode(body)
}
