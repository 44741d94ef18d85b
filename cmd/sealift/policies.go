package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/policy"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/firmware"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
)

// policySource makes the policy for each machine.
type policySource struct {
	images     []loadedImage
	tpm        attest.TPMPolicy
	bank       string // see attest.Policy
	references func(context.Context, attest.MachineID) (attest.FirmwarePolicy, error)
	document   *policy.Document // nil: none
	clock      func() time.Time

	mu   sync.Mutex
	day  string         // guarded by mu: for which base is, in UTC
	base *attest.Policy // guarded by mu: all but the firmware
	id   []byte         // guarded by mu: digest of what base was made from
}

// policy returns the policy for a machine. Its id is the digest of everything
// that it was made from.
func (p *policySource) policy(ctx context.Context, machine attest.MachineID) (*attest.Policy, error) {
	fw, err := p.references(ctx, machine)
	if err != nil {
		return nil, err
	}
	base, made, err := p.compiled()
	if err != nil {
		return nil, err
	}
	c := *base
	c.Firmware.References = fw.References
	id := sha256.New()
	id.Write(made)
	rest, err := json.Marshal(fw)
	if err != nil {
		return nil, fmt.Errorf("name the policy: %w", err)
	}
	id.Write(rest)
	// An imported certificate is part of the policy of its own machine only: else
	// each import would rename all policies.
	if crt := c.TPM.Imported[machine]; crt != nil {
		id.Write(crt.Raw)
	}
	c.ID = fmt.Sprintf("sha256:%x", id.Sum(nil))
	return &c, nil
}

// compiled returns what is the same for all machines. It is made anew each day,
// as a policy counts days.
func (p *policySource) compiled() (*attest.Policy, []byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock().UTC()
	day := now.Format(time.DateOnly)
	if p.base != nil && p.day == day {
		return p.base, p.id, nil
	}
	var images []policy.Image
	id := sha256.New()
	for _, i := range p.images {
		images = append(images, policy.Image{Manifest: i.manifest, Digest: i.digest})
		id.Write(i.digest[:])
	}
	base, err := p.document.Compile(policy.Inputs{Images: images, TPM: p.tpm, At: now})
	if err != nil {
		return nil, nil, err
	}
	base.Bank = p.bank
	tpm, err := digestTPMPolicy(&base.TPM, p.bank)
	if err != nil {
		return nil, nil, err
	}
	id.Write(tpm[:])
	rest, err := json.Marshal(struct {
		Release    []attest.FirmwareVerdict
		Models     []attest.ModelRule
		NotInForce string
	}{base.Firmware.Release, base.Models, base.NotInForce})
	if err != nil {
		return nil, nil, fmt.Errorf("name the policy: %w", err)
	}
	id.Write(rest)
	if p.document != nil {
		id.Write(p.document.Digest[:])
	}
	p.base, p.id, p.day = base, id.Sum(nil), day
	return p.base, p.id, nil
}

// with returns a source for another document and more images, at a time.
func (p *policySource) with(d *policy.Document, more []loadedImage, at time.Time) *policySource {
	next := &policySource{tpm: p.tpm, bank: p.bank, references: p.references, document: d, clock: p.clock, images: slices.Clone(p.images)}
	if !at.IsZero() {
		next.clock = func() time.Time { return at }
	}
	for _, i := range more {
		if !slices.ContainsFunc(next.images, func(o loadedImage) bool { return o.digest == i.digest }) {
			next.images = append(next.images, i)
		}
	}
	return next
}

// proposer returns what makes the policies of a proposal. Manifests that it
// brings must be signed by the image key.
func (p *policySource) proposer(ring *keyring.Keyring) func(context.Context, *api.PolicyProposal) (*server.Proposal, error) {
	return func(_ context.Context, req *api.PolicyProposal) (*server.Proposal, error) {
		d, err := policy.Parse("the proposal", req.Policy, func(name string) ([]byte, error) {
			b, ok := req.Files[name]
			if !ok {
				return nil, fmt.Errorf("%s was not sent: %w", name, os.ErrNotExist)
			}
			return b, nil
		})
		if err != nil {
			return nil, err
		}
		pub, err := ring.PublicPEM(keyring.FileImage)
		if err != nil {
			return nil, err
		}
		var more []loadedImage
		for i, s := range req.Images {
			if err := bundle.Verify(s.Manifest, s.Bundle, pub); err != nil {
				return nil, fmt.Errorf("images[%d]: %w", i, err)
			}
			m, err := manifest.Decode(s.Manifest)
			if err != nil {
				return nil, fmt.Errorf("images[%d]: %w", i, err)
			}
			more = append(more, loadedImage{manifest: m, digest: sha256.Sum256(s.Manifest)})
		}
		return &server.Proposal{Name: d.String(), Now: p.policy, Then: p.with(d, more, req.At).policy}, nil
	}
}

// loadPolicy reads the policy that a configuration names, and verifies its
// signature. A file that was altered is refused whatever the configuration says.
func loadPolicy(c *policyConfig, ring *keyring.Keyring) (d *policy.Document, signed bool, err error) {
	if c == nil || c.File == "" {
		return nil, false, nil
	}
	text, err := readFile(c.File, profiles.MaxPolicy)
	if err != nil {
		return nil, false, fmt.Errorf("read policy: %w", err)
	}
	sig, err := readFile(c.File+sign.BundleSuffix, bundle.MaxSize)
	switch {
	case errors.Is(err, os.ErrNotExist) && !c.Unsigned:
		return nil, false, withHint(refused{fmt.Errorf("policy %s is not signed", c.File)}, "sealift policy sign %s --keys KEYS", c.File)
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, false, fmt.Errorf("read the signature of the policy: %w", err)
	default:
		pub, err := ring.PublicPEM(keyring.FileImage)
		if err != nil {
			return nil, false, err
		}
		if err := bundle.Verify(text, sig, pub); err != nil {
			return nil, false, withHint(refused{fmt.Errorf("policy %s: %w", c.File, err)}, "it was altered after it was signed, or signed by another fleet's key: sealift policy sign %s --keys KEYS", c.File)
		}
		signed = true
	}
	if d, err = parsePolicy(c.File, text); err != nil {
		return nil, false, err
	}
	return d, signed, nil
}

// parsePolicy reads a policy and the files beside it.
func parsePolicy(file string, text []byte) (*policy.Document, error) {
	d, err := policy.Parse(file, text, func(name string) ([]byte, error) {
		return readFile(filepath.Join(filepath.Dir(file), filepath.FromSlash(name)), policy.MaxFile)
	})
	if err != nil {
		return nil, usage{err}
	}
	return d, nil
}

// Kinds of the documents in which policies are kept.
const (
	policyKind        = "policy"         // by name: the version that is enabled
	policyVersionKind = "policy-version" // by name and version: all that were ever enabled
	policyCurrentKind = "policy-current" // which policy the service goes by
	policyCurrentName = "current"
)

// policyHead is the body of a policyKind document.
type policyHead struct {
	Name    string          `json:"name"` // empty in a policyCurrentKind document: none
	Version int             `json:"version"`
	Digest  manifest.SHA256 `json:"digest"`
	Signed  bool            `json:"signed"`
	Enabled time.Time       `json:"enabled"`
}

// policyVersion is the body of a policyVersionKind document.
type policyVersion struct {
	policyHead
	Text []byte `json:"text"`
}

// document returns a stored document, and decodes its body into v. One that was
// never stored has revision 0, and v stays as it is.
func document(ctx context.Context, store server.Store, kind, name string, v any) (*server.Document, error) {
	d, err := store.Document(ctx, kind, name)
	if errors.Is(err, server.ErrNotFound) {
		return &server.Document{Kind: kind, Name: name}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(d.Body, v); err != nil {
		return nil, fmt.Errorf("read %s %s: %w", kind, name, err)
	}
	return d, nil
}

// enablePolicy makes d the policy of the service, for the audit log and against
// going back by mistake: a version below the last of its name, a version that
// had another content, a policy of another name, and no policy where there was
// one need the configuration to say so.
func enablePolicy(ctx context.Context, store server.Store, c *policyConfig, d *policy.Document, signed bool, now time.Time, log *slog.Logger) error {
	var err error
	for range tries {
		if err = tryEnable(ctx, store, c, d, signed, now.UTC(), log); !errors.Is(err, server.ErrConflict) {
			break
		}
	}
	return err
}

func tryEnable(ctx context.Context, store server.Store, c *policyConfig, d *policy.Document, signed bool, now time.Time, log *slog.Logger) error {
	var current policyHead
	pointer, err := document(ctx, store, policyCurrentKind, policyCurrentName, &current)
	if err != nil {
		return err
	}
	entry := audit.Policy{By: "configuration", FromName: current.Name, FromVersion: current.Version}
	if d == nil {
		if current.Name == "" {
			return nil
		}
		if c == nil || c.Off == "" {
			return withHint(refused{fmt.Errorf("the service goes by policy %s version %d, and the configuration names none", current.Name, current.Version)},
				"name it under policy.file, or say why there is to be none: policy: {off: REASON}")
		}
		entry.Reason = c.Off
		return commitPolicy(ctx, store, entry, now, pointer, policyHead{Enabled: now})
	}
	next := policyHead{Name: d.Name, Version: d.Version, Digest: d.Digest, Signed: signed, Enabled: now}
	var head policyHead
	named, err := document(ctx, store, policyKind, d.Name, &head)
	if err != nil {
		return err
	}
	var kept policyVersion
	versioned, err := document(ctx, store, policyVersionKind, fmt.Sprintf("%s@%010d", d.Name, d.Version), &kept)
	if err != nil {
		return err
	}
	if versioned.Revision > 0 && kept.Digest != d.Digest {
		return withHint(refused{fmt.Errorf("policy %s was enabled with another content before: its file has the SHA-256 %s, it had %s", d, d.Digest, kept.Digest)},
			"raise version in the file, and sign it: sealift policy sign FILE --keys KEYS")
	}
	back := ""
	switch {
	case current.Name != "" && current.Name != d.Name:
		back = fmt.Sprintf("the service goes by policy %s version %d, the configuration names %s", current.Name, current.Version, d)
	case d.Version < head.Version:
		back = fmt.Sprintf("policy %s is older than version %d, which was enabled on %s", d, head.Version, head.Enabled.Format(time.DateOnly))
	}
	if back != "" {
		if c.Rollback == nil || c.Rollback.To != d.Version {
			return withHint(refused{errors.New(back)}, "if it is meant: policy: {file: FILE, rollback: {to: %d, reason: TEXT}}", d.Version)
		}
		entry.Reason = c.Rollback.Reason
		entry.Rollback = true
	}
	if current.Name == d.Name && current.Digest == d.Digest && current.Signed == signed {
		return nil // as before
	}
	entry.Name, entry.Version, entry.Digest, entry.Signed = d.Name, d.Version, d.Digest, signed
	first := next
	if versioned.Revision > 0 {
		first.Enabled = kept.Enabled
	}
	if err := commitPolicy(ctx, store, entry, now, pointer, next, named, next, versioned, policyVersion{first, d.Text}); err != nil {
		return err
	}
	log.Info("policy enabled", "policy", d.Name, "version", d.Version, "digest", d.Digest, "signed", signed, "rollback", entry.Rollback)
	return nil
}

// commitPolicy writes documents, each followed by its body, with the audit entry.
func commitPolicy(ctx context.Context, store server.Store, entry audit.Policy, now time.Time, pairs ...any) error {
	change := &server.Change{Events: []audit.Event{{Time: now, Kind: audit.KindPolicy, Data: entry}}}
	for i := 0; i+1 < len(pairs); i += 2 {
		doc, ok := pairs[i].(*server.Document)
		if !ok {
			panic("sealift: BUG: commitPolicy without a document")
		}
		body, err := json.Marshal(pairs[i+1])
		if err != nil {
			return fmt.Errorf("encode policy: %w", err)
		}
		doc.Body = body
		change.Documents = append(change.Documents, doc)
	}
	return store.Commit(ctx, change)
}

// enabledPolicy returns what tells operators of the policy.
func enabledPolicy(store server.Store, d *policy.Document, signed bool) func(context.Context) (*api.PolicyState, error) {
	return func(ctx context.Context) (*api.PolicyState, error) {
		if d == nil {
			return &api.PolicyState{}, nil
		}
		var kept policyVersion
		if _, err := document(ctx, store, policyVersionKind, fmt.Sprintf("%s@%010d", d.Name, d.Version), &kept); err != nil {
			return nil, err
		}
		return &api.PolicyState{Name: d.Name, Version: d.Version, Digest: d.Digest, Text: d.Text, Signed: signed, Enabled: kept.Enabled}, nil
	}
}

// lintInputs are what the service knows to lint a policy with.
func (p *policySource) lintInputs(catalogue *firmware.Catalogue) policy.LintInputs {
	in := policy.LintInputs{TPM: &p.tpm, At: p.clock(), Images: []policy.Image{}}
	for _, i := range p.images {
		in.Images = append(in.Images, policy.Image{Manifest: i.manifest, Digest: i.digest})
	}
	if catalogue != nil {
		fw := firmware.References(catalogue, nil, attest.MachineID{})
		in.Firmware = &fw
	}
	return in
}

// lintAtStart logs what is wrong with the policy, but for notices.
func lintAtStart(p *policySource, catalogue *firmware.Catalogue, log *slog.Logger) {
	if p.document == nil {
		return
	}
	for _, i := range policy.Lint(p.document, p.lintInputs(catalogue)) {
		if i.Severity.AtLeast(policy.Warning) {
			log.Warn("policy: "+string(i.Severity), "code", i.Code, "where", i.Where, "text", i.Text, "remedy", i.Remedy)
		}
	}
}
