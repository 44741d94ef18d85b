package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/policy"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
)

// Kinds of the documents in which policies are kept.
const (
	policyKind         = "policy"          // by name: the version that was enabled last
	policyVersionKind  = "policy-version"  // by name and version: all that were ever enabled
	policyManifestKind = "policy-manifest" // by SHA-256: manifests that came with a policy
	policyCurrentKind  = "policy-current"  // which policy all replicas go by
	policyCurrentName  = "current"
)

// policyHead is the body of a policyCurrentKind document.
type policyHead struct {
	Name    string          `json:"name"` // empty: none
	Version int             `json:"version"`
	Digest  manifest.SHA256 `json:"digest"`
	Signed  bool            `json:"signed"`
	Enabled time.Time       `json:"enabled"`
	// Left is the highest version of this name from which there was a step back
	// that was meant.
	Left int `json:"left,omitempty"`
}

func (h policyHead) String() string {
	if h.Name == "" {
		return "none"
	}
	return fmt.Sprintf("%s version %d", h.Name, h.Version)
}

// policyName is the body of a policyKind document: the version of that name that
// was enabled last.
type policyName struct {
	policyHead
	// Rollbacks are those of configurations that were carried out, the last of them.
	Rollbacks []policyRollback `json:"rollbacks,omitempty"`
}

// policyVersion is the body of a policyVersionKind document. With its bundle and
// files it is all that another replica needs, which verifies it for itself.
type policyVersion struct {
	policyHead
	Text   []byte            `json:"text"`
	Bundle []byte            `json:"bundle,omitempty"` // without it only a replica that has the file can go by it
	Files  map[string][]byte `json:"files,omitempty"`
	// Images are the policyManifestKind documents that belong to it.
	Images []manifest.SHA256 `json:"images,omitempty"`
	// Statement is that of the last time that it was enabled, see policyPointer.
	Statement *audit.Envelope `json:"statement,omitempty"`
}

func versionName(name string, version int) string { return fmt.Sprintf("%s@%010d", name, version) }

// policyManifest is the body of a policyManifestKind document.
type policyManifest struct {
	Manifest []byte `json:"manifest"`
	Bundle   []byte `json:"bundle"`
}

// image verifies a manifest that is kept, or that was sent.
func (m *policyManifest) image(key []byte) (loadedImage, error) {
	if err := bundle.Verify(m.Manifest, m.Bundle, key); err != nil {
		return loadedImage{}, err
	}
	d, err := manifest.Decode(m.Manifest)
	if err != nil {
		return loadedImage{}, err
	}
	return loadedImage{manifest: d, digest: sha256.Sum256(m.Manifest)}, nil
}

// errUnreadable: what is stored is not what this program writes.
var errUnreadable = errors.New("it cannot be read")

// document returns a stored document, and decodes its body into v. One that was
// never stored has revision 0, and v stays as it is. With errUnreadable, too, it
// returns the document.
func document(ctx context.Context, store server.Store, kind, name string, v any) (*server.Document, error) {
	d, err := store.Document(ctx, kind, name)
	if errors.Is(err, server.ErrNotFound) {
		return &server.Document{Kind: kind, Name: name}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(d.Body, v); err != nil {
		return d, fmt.Errorf("read %s %s: %w: %w", kind, name, errUnreadable, err)
	}
	return d, nil
}

// overwritten is document for what is to be written anew: one that cannot be read,
// because somebody altered it, is in nobody's way, and says no more than one that
// somebody took away.
func overwritten[T any](ctx context.Context, store server.Store, kind, name string) (*server.Document, T, error) {
	var v, none T
	d, err := document(ctx, store, kind, name, &v)
	if errors.Is(err, errUnreadable) {
		return d, none, nil
	}
	return d, v, err
}

// enabling is a policy that is to be enabled, by a configuration or by an
// operator. What it brings has been verified.
type enabling struct {
	document *policy.Document
	bundle   []byte            // nil: it is not signed
	files    map[string][]byte // that it names
	images   []policyManifest  // that come with it, and
	digests  []manifest.SHA256 // of each
	by       string            // an operator; empty: the configuration
	reason   string
	// rollback may be nil. Of an operator's, To is 0: any version.
	rollback *policyRollback
	imageKey []byte // PEM, of a configuration
}

// complete reports whether what is stored of its version needs nothing of what it
// brings. What an operator brings replaces what was altered. Configurations, of which
// there may be several with signatures of their own, replace what is of no use.
func (n *enabling) complete(kept *policyVersion) bool {
	switch {
	case kept.Digest != n.document.Digest || sha256.Sum256(kept.Text) != n.document.Digest:
		return false
	case n.by != "":
		return bytes.Equal(kept.Bundle, n.bundle) && maps.EqualFunc(kept.Files, n.files, bytes.Equal)
	case n.bundle != nil && bundle.Verify(kept.Text, kept.Bundle, n.imageKey) != nil:
		return false
	}
	_, err := policy.Parse("the stored policy", kept.Text, sentFiles(kept.Files))
	return err == nil
}

// enablePolicy makes the policy of a configuration that of the service, if it
// is newer. Where the store has a policy that this replica can verify, it is
// that which counts, unless the configuration says clearly something else; so a
// replica that starts with an old file takes nothing back. Where the store has
// one that cannot be verified without its file, a version below the last of its
// name, a policy of another name, and no policy where there was one need the
// configuration to say so. A version that had another content is refused.
//
// Where it is not proven what is enabled, a configuration changes nothing, unless it
// vouches for what it names, see policyConfig.vouched, or says that there is to be
// none.
func enablePolicy(ctx context.Context, w *logWitness, c *policyConfig, d *policy.Document, sig []byte, files map[string][]byte, imageKey []byte, now time.Time, log *slog.Logger) error {
	if d == nil {
		return again(func() error { return tryDisable(ctx, w, c, now.UTC(), log) })
	}
	_, err := commitEnabling(ctx, w, enabling{document: d, bundle: sig, files: files, rollback: c.Rollback, imageKey: imageKey}, now.UTC(), log)
	return err
}

// again tries a change anew while others are first.
func again(try func() error) error {
	var err error
	for range tries {
		if err = try(); !errors.Is(err, server.ErrConflict) {
			break
		}
	}
	return err
}

// tryDisable has the service go by no policy, if the configuration says so.
func tryDisable(ctx context.Context, w *logWitness, c *policyConfig, now time.Time, log *slog.Logger) error {
	proven, err := provePolicy(ctx, w)
	if err != nil {
		return err
	}
	current := proven.head
	if proven.fault != nil {
		if c == nil || c.Off == "" {
			return proven.fault
		}
		current = policyHead{Name: proven.mark.Name, Version: proven.mark.Version}
	} else if current.Name == "" {
		return nil
	}
	if c == nil || c.Off == "" {
		follow, err := canFollow(ctx, w.store, current)
		if err != nil {
			return err
		}
		if follow {
			log.Info("the configuration names no policy: going by the one that is enabled", "policy", current.Name, "version", current.Version)
			return nil
		}
		return withHint(refused{fmt.Errorf("the service goes by policy %s, and the configuration names none", current)},
			"name it under policy.file, or say why there is to be none: policy: {off: REASON}")
	}
	entry := audit.Policy{By: byConfiguration, FromName: current.Name, FromVersion: current.Version, Reason: c.Off}
	next, err := w.signPointer(proven, policyHead{Enabled: now}, nil, &entry)
	if err != nil {
		return err
	}
	if err := commitPolicy(ctx, w.store, entry, now, proven.document, next); err != nil {
		return err
	}
	soundPolicyBack(log, entry)
	return nil
}

// soundPolicyBack logs the alarm of a step back, as server.Server does with its own.
func soundPolicyBack(log *slog.Logger, entry audit.Policy) {
	log.Error("alarm", "name", string(audit.AlarmPolicyBack), "policy", entry.Name, "version", entry.Version,
		"was", entry.FromName, "wasVersion", entry.FromVersion, "what", entry.Reason, "peer", entry.By)
}

// byConfiguration is who enabled a policy in the audit log when no operator did.
const byConfiguration = "configuration"

// canFollow reports whether a replica can go by the enabled policy without its
// file.
func canFollow(ctx context.Context, store server.Store, head policyHead) (bool, error) {
	var kept policyVersion
	if _, err := document(ctx, store, policyVersionKind, versionName(head.Name, head.Version), &kept); errors.Is(err, errUnreadable) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return head.Signed && kept.Digest == head.Digest && len(kept.Bundle) > 0, nil
}

// commitEnabling enables a policy, and reports whether anything changed.
func commitEnabling(ctx context.Context, w *logWitness, n enabling, now time.Time, log *slog.Logger) (changed bool, err error) {
	err = again(func() error {
		changed, err = tryEnable(ctx, w, n, now, log)
		return err
	})
	return changed, err
}

func tryEnable(ctx context.Context, w *logWitness, n enabling, now time.Time, log *slog.Logger) (bool, error) {
	d, store := n.document, w.store
	proven, err := provePolicy(ctx, w)
	if err != nil {
		return false, err
	}
	current := proven.head
	if proven.fault != nil {
		if n.by == "" && !new(policyConfig).vouched(proven, d.Digest) {
			return false, proven.fault
		}
		// What counts is what the log says.
		current = policyHead{Name: proven.mark.Name, Version: proven.mark.Version, Digest: proven.mark.Digest}
	}
	named, head, err := overwritten[policyName](ctx, store, policyKind, d.Name)
	if err != nil {
		return false, err
	}
	versioned, kept, err := overwritten[policyVersion](ctx, store, policyVersionKind, versionName(d.Name, d.Version))
	if err != nil {
		return false, err
	}
	// What is kept of a version, or by name, is signed by nobody but in a statement.
	was, ok := w.statementOf(d.Name, d.Version, &kept)
	if ok && was.Digest != d.Digest {
		return false, withHint(refused{fmt.Errorf("policy %s was enabled with another content before: its file has the SHA-256 %s, it had %s", d, d.Digest, was.Digest)},
			"raise version in the file, and sign it: sealift policy sign FILE --keys KEYS")
	}
	entry := audit.Policy{By: n.by, Reason: n.reason, FromName: current.Name, FromVersion: current.Version}
	if n.by == "" {
		entry.By = byConfiguration
	}
	follow, err := canFollow(ctx, store, current)
	if err != nil {
		return false, err
	}
	if current.Name == d.Name {
		head.Version, head.Left = current.Version, current.Left
	} else if head.Version, head.Left, err = w.lastOf(ctx, d.Name, head.Version); err != nil {
		return false, err
	}
	back := ""
	switch {
	case current.Name != "" && current.Name != d.Name:
		back = fmt.Sprintf("the service goes by policy %s, this is %s", current, d)
	case d.Version < head.Version:
		back = fmt.Sprintf("policy %s is older than version %d, which was enabled on %s", d, head.Version, head.Enabled.Format(time.DateOnly))
	case n.by == "" && follow && d.Version > head.Version && d.Version <= head.Left:
		// Not by a replica that starts with the file of then.
		log.Warn("the configuration's policy was taken back: going by the one that is enabled", "file", d.String(), "enabled", current.String(),
			"again", "sealift policy enable FILE")
		return false, nil
	}
	if back != "" {
		meant := n.rollback != nil && (n.by != "" || n.rollback.To == d.Version && !(follow && slices.Contains(head.Rollbacks, *n.rollback)))
		switch {
		case meant:
			entry.Rollback = true
			if n.by == "" {
				entry.Reason = n.rollback.Reason
			}
		case n.by == "" && follow && current.Name == d.Name:
			log.Warn("the configuration's policy is older than the one that is enabled, by which this replica goes", "file", d.String(), "enabled", current.String())
			return false, nil
		case n.by == "":
			return false, withHint(refused{errors.New(back)}, "if it is meant: policy: {file: FILE, rollback: {to: %d, reason: TEXT}}", d.Version)
		default:
			return false, withHint(refused{errors.New(back)}, "raise version in the file and sign it; or, if a step back is meant: sealift policy enable FILE --rollback --reason TEXT")
		}
	}
	images, err := carriedImages(ctx, store, n, append(slices.Clone(proven.images), was.Images...), log)
	if err != nil {
		return false, err
	}
	var brought []any
	for i, m := range n.images {
		doc, has, err := overwritten[policyManifest](ctx, store, policyManifestKind, n.digests[i].String())
		if err != nil {
			return false, err
		}
		if !bytes.Equal(has.Manifest, m.Manifest) || !bytes.Equal(has.Bundle, m.Bundle) {
			brought = append(brought, doc, m)
		}
	}
	signed := n.bundle != nil
	same := current.Name == d.Name && current.Digest == d.Digest && current.Signed == signed && proven.fault == nil && slices.Equal(images, proven.images)
	if same && len(brought) == 0 && n.complete(&kept) && slices.Equal(images, kept.Images) {
		return false, nil // as before
	}
	if proven.fault != nil && n.by == "" && entry.Reason == "" {
		entry.Reason = "signed by the service for the first time: policy.file names it"
		log.Warn("taking over a policy that an earlier version of this program enabled", "policy", d.String())
	}
	entry.Name, entry.Version, entry.Digest, entry.Signed, entry.Images = d.Name, d.Version, d.Digest, signed, images
	next := policyHead{Name: d.Name, Version: d.Version, Digest: d.Digest, Signed: signed, Enabled: now, Left: head.Left}
	if d.Version < head.Version {
		next.Left = max(head.Left, head.Version)
	}
	nextNamed := policyName{policyHead: next, Rollbacks: head.Rollbacks}
	if entry.Rollback && n.by == "" {
		const most = 10
		nextNamed.Rollbacks = append(slices.Clone(head.Rollbacks), *n.rollback)
		nextNamed.Rollbacks = nextNamed.Rollbacks[max(0, len(nextNamed.Rollbacks)-most):]
	}
	version := policyVersion{policyHead: next, Text: d.Text, Bundle: n.bundle, Files: n.files, Images: images}
	version.Left = 0
	if !kept.Digest.IsZero() {
		version.Enabled = kept.Enabled
	}
	pointer, err := w.signPointer(proven, next, images, &entry)
	if err != nil {
		return false, err
	}
	version.Statement = pointer.Statement
	pairs := append([]any{proven.document, pointer, named, nextNamed, versioned, version}, brought...)
	if err := commitPolicy(ctx, store, entry, now, pairs...); err != nil {
		return false, err
	}
	if entry.Rollback {
		soundPolicyBack(log, entry)
	}
	log.Info("policy enabled", "policy", d.Name, "version", d.Version, "digest", d.Digest, "signed", signed, "rollback", entry.Rollback, "by", entry.By, "images", len(images))
	return true, nil
}

// carriedImages are the manifests that belong to a policy: those that it brings,
// that it had, and that the present one has, as far as it lists their images. So
// an image is taken away by what a policy says, and never by being forgotten.
//
// had are those that the service has signed; what is written beside a policy's text
// adds none.
func carriedImages(ctx context.Context, store server.Store, n enabling, had []manifest.SHA256, log *slog.Logger) ([]manifest.SHA256, error) {
	all := slices.Clone(n.digests)
	for _, digest := range had {
		if slices.Contains(all, digest) {
			continue
		}
		_, m, err := overwritten[policyManifest](ctx, store, policyManifestKind, digest.String())
		if err != nil {
			return nil, err
		}
		// Each replica verifies its signature when it takes the policy. One that is lost
		// goes.
		d, err := manifest.Decode(m.Manifest)
		if err == nil && sha256.Sum256(m.Manifest) != digest {
			err = errors.New("another is stored in its place")
		}
		if err != nil {
			log.Error("a manifest that came with a policy is lost", "digest", digest, "error", err)
			continue
		}
		if listsImage(n.document, d.Name) {
			all = append(all, digest)
		}
	}
	slices.SortFunc(all, func(a, b manifest.SHA256) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(all), nil
}

// listsImage reports whether a policy lists images of a name.
func listsImage(d *policy.Document, name string) bool {
	for _, i := range d.Images {
		if i.Name == name {
			return true
		}
	}
	return false
}

// commitPolicy writes documents, each followed by its body, with the audit entry,
// and the alarm of a step back.
func commitPolicy(ctx context.Context, store server.Store, entry audit.Policy, now time.Time, pairs ...any) error {
	change := &server.Change{Events: []audit.Event{{Time: now, Kind: audit.KindPolicy, Data: entry}}}
	if entry.Rollback || entry.Name == "" {
		from, to := policyHead{Name: entry.FromName, Version: entry.FromVersion}, policyHead{Name: entry.Name, Version: entry.Version}
		change.Events = append(change.Events, audit.Event{Time: now, Kind: audit.KindAlarm, Data: audit.Alarm{
			Name: audit.AlarmPolicyBack, Peer: entry.By, What: fmt.Sprintf("the service goes by policy %s after %s: %s", to, from, entry.Reason),
		}})
	}
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

// sentFiles reads the files of a policy from what was sent.
func sentFiles(files map[string][]byte) func(name string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		b, ok := files[name]
		if !ok {
			return nil, fmt.Errorf("%s was not sent: %w", name, os.ErrNotExist)
		}
		return b, nil
	}
}
