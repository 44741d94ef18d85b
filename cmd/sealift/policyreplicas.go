package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/firmware"
	"github.com/sealift/sealift/image/manifest"
)

// Where replicas tell each other what they go by.
const (
	policyReplicasKind = "policy-replicas"
	policyReplicasName = "all"
)

type policyReplicas struct {
	Replicas []api.PolicyReplica `json:"replicas"`
}

// replicas reads what the replicas tell, without those that are gone.
func (l *livePolicy) replicas(ctx context.Context) (*policyReplicas, *server.Document, error) {
	doc, all, err := overwritten[policyReplicas](ctx, l.store, policyReplicasKind, policyReplicasName)
	if err != nil {
		return nil, nil, err
	}
	now := l.local.clock()
	all.Replicas = slices.DeleteFunc(all.Replicas, func(r api.PolicyReplica) bool { return now.Sub(r.Seen) > policyGone })
	return &all, doc, nil
}

// inputs names what a source judges by beside the policy.
func (l *livePolicy) inputs(s *policySource) (manifest.SHA256, []manifest.SHA256, error) {
	var images []manifest.SHA256
	for _, i := range s.images {
		images = append(images, i.digest)
	}
	slices.SortFunc(images, func(a, b manifest.SHA256) int { return bytes.Compare(a[:], b[:]) })
	tpm, err := digestTPMPolicy(&s.tpm, s.bank)
	if err != nil {
		return manifest.SHA256{}, nil, err
	}
	b, err := json.Marshal(struct {
		Images    []manifest.SHA256
		TPM       manifest.SHA256
		Catalogue *firmware.Catalogue
	}{images, tpm, l.catalogue})
	if err != nil {
		return manifest.SHA256{}, nil, err
	}
	return sha256.Sum256(b), images, nil
}

// tell writes what this replica goes by, if it has not for a while or if it
// changed, and looks at what the others go by.
func (l *livePolicy) tell(ctx context.Context) error {
	l.mu.Lock()
	now := l.local.clock()
	since := now.Sub(l.told)
	me := api.PolicyReplica{Name: l.name, Policy: l.head.Name, Version: l.head.Version, Digest: l.head.Digest, Confirmed: l.confirmed.UTC(), Seen: now.UTC()}
	s := l.source
	if l.fault != nil {
		me.Fault = l.fault.Error()
	}
	same := me.Fault == l.toldFault
	l.mu.Unlock()
	if s == nil && me.Fault == "" || me.Name == "" || since >= 0 && since < policyTell && same {
		return nil
	}
	judges := l.local // by nothing yet
	if s != nil {
		judges, me.Revision = s, s.revision
	}
	var err error
	if me.Inputs, me.Images, err = l.inputs(judges); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, policyRead)
	defer cancel()
	var differs []string
	err = again(func() error {
		all, doc, err := l.replicas(ctx)
		if err != nil {
			return err
		}
		differs = nil
		all.Replicas = slices.DeleteFunc(all.Replicas, func(r api.PolicyReplica) bool { return r.Name == me.Name })
		for _, r := range all.Replicas {
			if s != nil && r.Revision == me.Revision && r.Inputs != me.Inputs {
				differs = append(differs, r.Name)
			}
		}
		all.Replicas = append(all.Replicas, me)
		slices.SortFunc(all.Replicas, func(a, b api.PolicyReplica) int { return strings.Compare(a.Name, b.Name) })
		if doc.Body, err = json.Marshal(all); err != nil {
			return err
		}
		return l.store.Commit(ctx, &server.Change{Documents: []*server.Document{doc}})
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	news := len(differs) > 0 && !slices.Equal(differs, l.differs)
	l.told, l.toldFault, l.differs = now, me.Fault, differs
	l.mu.Unlock()
	if news {
		l.log.Warn("replicas judge by other images, firmware or TPM roots than this one", "replicas", differs, "remedy", "give all replicas the same images, firmware.catalogue and tpm")
	}
	return nil
}

// leave takes this replica from those that are told of.
func (l *livePolicy) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, policyRead)
	defer cancel()
	l.mu.Lock()
	me := l.name
	l.mu.Unlock()
	return again(func() error {
		all, doc, err := l.replicas(ctx)
		if err != nil || doc.Revision == 0 {
			return err
		}
		all.Replicas = slices.DeleteFunc(all.Replicas, func(r api.PolicyReplica) bool { return r.Name == me })
		if doc.Body, err = json.Marshal(all); err != nil {
			return err
		}
		return l.store.Commit(ctx, &server.Change{Documents: []*server.Document{doc}})
	})
}

// alike is whether the other replicas judge by the same images, firmware and
// TPM roots, for its health.
func (l *livePolicy) alike(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.differs) > 0 {
		return fmt.Errorf("other images, firmware or TPM roots than this replica have: %s", strings.Join(l.differs, ", "))
	}
	return nil
}
