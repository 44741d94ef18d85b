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
	"github.com/sealift/sealift/attest/policy"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/firmware"
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
	revision   int64            // of the store's policyCurrentKind document that says so; 0: none does
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
	c.Revision = p.revision
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
		d, err := policy.Parse("the proposal", req.Policy, sentFiles(req.Files))
		if err != nil {
			return nil, err
		}
		pub, err := ring.PublicPEM(keyring.FileImage)
		if err != nil {
			return nil, err
		}
		var more []loadedImage
		for i, s := range req.Images {
			m := policyManifest(s)
			one, err := m.image(pub)
			if err != nil {
				return nil, fmt.Errorf("images[%d]: %w", i, err)
			}
			more = append(more, one)
		}
		return &server.Proposal{Name: d.String(), Now: p.policy, Then: p.with(d, more, req.At).policy}, nil
	}
}

// loadPolicy reads the policy that a configuration names, and verifies its
// signature. A file that was altered is refused whatever the configuration says.
// Without a signature the bundle is nil.
func loadPolicy(c *policyConfig, ring *keyring.Keyring) (d *policy.Document, sig []byte, err error) {
	if c == nil || c.File == "" {
		return nil, nil, nil
	}
	text, err := readFile(c.File, profiles.MaxPolicy)
	if err != nil {
		return nil, nil, fmt.Errorf("read policy: %w", err)
	}
	sig, err = readFile(c.File+sign.BundleSuffix, bundle.MaxSize)
	switch {
	case errors.Is(err, os.ErrNotExist) && !c.Unsigned:
		return nil, nil, withHint(refused{fmt.Errorf("policy %s is not signed", c.File)}, "sealift policy sign %s --keys KEYS", c.File)
	case errors.Is(err, os.ErrNotExist):
		sig = nil
	case err != nil:
		return nil, nil, fmt.Errorf("read the signature of the policy: %w", err)
	default:
		pub, err := ring.PublicPEM(keyring.FileImage)
		if err != nil {
			return nil, nil, err
		}
		if err := bundle.Verify(text, sig, pub); err != nil {
			return nil, nil, withHint(refused{fmt.Errorf("policy %s: %w", c.File, err)}, "it was altered after it was signed, or signed by another fleet's key: sealift policy sign %s --keys KEYS", c.File)
		}
	}
	if d, err = parsePolicy(c.File, text); err != nil {
		return nil, nil, err
	}
	return d, sig, nil
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
