package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// policyPointerType is the DSSE payload type of a policyStatement.
const policyPointerType = "application/vnd.sealift.policy-enabled.v1+json"

// policyPointer is the body of a policyCurrentKind document: what is enabled, as
// others read it, and the service's signature of it.
type policyPointer struct {
	policyHead
	// Statement is that of a policyStatement, signed with the release key. Those of
	// earlier versions have none.
	Statement *audit.Envelope `json:"statement,omitempty"`
}

// policyStatement is what the service signs when a policy is enabled, or when
// policies are turned off.
type policyStatement struct {
	policyHead
	Images []manifest.SHA256 `json:"images,omitempty"` // as in policyVersion
	// Counter is one above that of the statement before. The audit log has it with
	// the statement's digest, so that no earlier one passes for the present one.
	Counter int64 `json:"counter"`
	// Log is an entry of the audit log from before it. A statement of another store
	// names one that this store's log does not have.
	Log    audit.Head `json:"log"`
	By     string     `json:"by"`
	Reason string     `json:"reason,omitempty"`
}

// errUnproven: the store does not prove which policy is enabled.
var errUnproven = errors.New("the store does not prove which policy is enabled")

// provenPolicy is which policy is enabled, and how far that is proven.
type provenPolicy struct {
	document *server.Document // that says so
	head     policyHead       // as it says
	// images are the manifests that belong to it: as the service signed them, or, if
	// it is not proven, as the log has them.
	images []manifest.SHA256
	mark   audit.PolicyMark // what the log says
	log    audit.Head       // the entry up to which that was read
	// fault is why it is not proven; it wraps errUnproven. Nil: it is.
	fault error
}

// provePolicy reads which policy is enabled, after the log was read to its end. It
// checks:
//   - the log has no entry of an enabling: then nothing says that one is enabled
//   - otherwise, that there is a statement and that this service's key signed it
//   - that it is of what the document says
//   - that it is the one of the last entry of an enabling in the log
//   - that the manifests that are kept with the policy are those of the statement
//   - that the log goes on from the entry before it that the statement names to that
//     of the enabling
//
// An error says that it could not be read.
func provePolicy(ctx context.Context, w *logWitness) (*provenPolicy, error) {
	var before *server.Document
	for range tries {
		if err := w.catchUp(ctx); err != nil {
			if errors.Is(err, errAltered) {
				err = fmt.Errorf("%w: %w", errUnproven, err)
			}
			return nil, err
		}
		p := new(provenPolicy)
		var pointer policyPointer
		var err error
		if p.log, p.mark, err = w.seen(); err != nil {
			return nil, err
		}
		if p.document, err = readPointer(ctx, w.store); err != nil {
			return nil, err
		}
		if p.document.Revision > 0 {
			err = json.Unmarshal(p.document.Body, &pointer)
		}
		p.head = pointer.policyHead
		var s policyStatement
		switch {
		case err != nil:
			p.fault = fmt.Errorf("what says so cannot be read: %w", err)
		case p.document.Revision == 0 && p.mark.Seq == 0:
			return p, nil // none ever was
		case p.document.Revision == 0:
			p.fault = fmt.Errorf("it names none, and the audit log has %s, enabled by entry %d", markText(p.mark), p.mark.Seq)
		case pointer.Statement == nil && p.mark.Counter == 0:
			p.fault = fmt.Errorf("%s was enabled by an earlier version of this program, which signed no statement of it: start once with its very file as policy.file, or have an approver enable it", p.head)
		case pointer.Statement == nil:
			p.fault = fmt.Errorf("%s is there without the service's statement", p.head)
		default:
			if err := pointer.Statement.Open(&w.key.PublicKey, policyPointerType, &s); err != nil {
				p.fault = fmt.Errorf("the statement of %s: %w", p.head, err)
				break
			}
			if s.Counter > p.mark.Counter {
				// It was made since the log was read. If not, its entry was taken away.
				if !samePointer(before, p.document) {
					before = p.document
					continue
				}
				p.fault = fmt.Errorf("the audit log has no entry of the statement %d of %s", s.Counter, p.head)
				break
			}
			p.fault, err = s.check(ctx, w, p, sha256.Sum256(pointer.Statement.Payload))
			if err != nil {
				return nil, err
			}
			if p.fault != nil && !samePointer(before, p.document) {
				// What it was compared with may be of an enabling since.
				before = p.document
				continue
			}
			p.images = s.Images
		}
		if p.fault != nil {
			p.fault = fmt.Errorf("%w: %w", errUnproven, p.fault)
			if p.images, err = w.imagesOf(ctx, p.mark); err != nil {
				return nil, fmt.Errorf("the manifests of %s: %w", markText(p.mark), err)
			}
		}
		return p, nil
	}
	return nil, fmt.Errorf("the enabled policy: %w", server.ErrConflict)
}

// check compares a statement that is signed with the rest.
func (s *policyStatement) check(ctx context.Context, w *logWitness, p *provenPolicy, digest manifest.SHA256) (fault, err error) {
	switch {
	case !s.same(p.head):
		return fmt.Errorf("it names %s, and the service's statement %s", p.head, s.policyHead), nil
	case digest != p.mark.Statement || s.Counter != p.mark.Counter:
		return fmt.Errorf("it has the statement %d of %s, and the audit log goes on to %s, enabled by entry %d", s.Counter, p.head, markText(p.mark), p.mark.Seq), nil
	}
	if s.Name != "" {
		var kept policyVersion
		if _, err := document(ctx, w.store, policyVersionKind, versionName(s.Name, s.Version), &kept); errors.Is(err, errUnreadable) {
			return err, nil
		} else if err != nil {
			return nil, err
		}
		if !slices.Equal(kept.Images, s.Images) {
			return fmt.Errorf("there are other manifests with %s than those of the service's statement", p.head), nil
		}
	}
	if ok, err := w.leadsTo(ctx, s.Log, p.mark); ok || err != nil {
		return nil, err
	}
	return fmt.Errorf("the statement %d of %s was made after entry %d, %s, which is not in this audit log: it is of another store", s.Counter, p.head, s.Log.Seq, s.Log.Hash), nil
}

// imagesOf returns the manifests of the policy that the log names last: those of the
// service's statement of it. The entry is not signed, so it counts only where no
// statement was ever made, by an earlier version of this program.
func (w *logWitness) imagesOf(ctx context.Context, m audit.PolicyMark) ([]manifest.SHA256, error) {
	if m.Seq == 0 {
		return nil, nil
	}
	if m.Counter > 0 {
		_, kept, err := overwritten[policyVersion](ctx, w.store, policyVersionKind, versionName(m.Name, m.Version))
		if err != nil {
			return nil, err
		}
		s, _ := w.statementOf(m.Name, m.Version, &kept)
		return s.Images, nil
	}
	e, err := w.entry(ctx, m)
	if e == nil {
		return nil, err
	}
	var p audit.Policy
	if err := json.Unmarshal(e.Data, &p); err != nil {
		return nil, fmt.Errorf("audit entry %d (%s): %w", e.Seq, e.Kind, err)
	}
	return p.Images, nil
}

// statementOf returns the service's statement of the last time that a version was
// enabled, as what is stored of that version has it. ok is false if nothing has.
func (w *logWitness) statementOf(name string, version int, kept *policyVersion) (s policyStatement, ok bool) {
	err := kept.Statement.Open(&w.key.PublicKey, policyPointerType, &s)
	if err != nil || s.Name != name || s.Version != version {
		return policyStatement{}, false
	}
	return s, true
}

// lastOf returns the version of a name that was enabled last, which is said to be
// version, and what was left by then: both 0 if the service signed no such thing.
func (w *logWitness) lastOf(ctx context.Context, name string, version int) (last, left int, err error) {
	_, kept, err := overwritten[policyVersion](ctx, w.store, policyVersionKind, versionName(name, version))
	if err != nil {
		return 0, 0, err
	}
	s, _ := w.statementOf(name, version, &kept)
	return s.Version, s.Left, nil
}

// same reports whether both name the same policy, enabled at the same time.
func (h policyHead) same(o policyHead) bool {
	return h.Name == o.Name && h.Version == o.Version && h.Digest == o.Digest && h.Signed == o.Signed && h.Left == o.Left && h.Enabled.Equal(o.Enabled)
}

// markText names the policy of a mark.
func markText(m audit.PolicyMark) string {
	return policyHead{Name: m.Name, Version: m.Version}.String()
}

// signPointer makes the pointer to what is to be enabled, and the fields of the
// audit entry that goes with it.
func (w *logWitness) signPointer(p *provenPolicy, head policyHead, images []manifest.SHA256, entry *audit.Policy) (*policyPointer, error) {
	s := policyStatement{policyHead: head, Images: images, Counter: p.mark.Counter + 1, Log: p.log, By: entry.By, Reason: entry.Reason}
	e, err := audit.Sign(w.key, policyPointerType, s)
	if err != nil {
		return nil, err
	}
	entry.Statement, entry.Counter = sha256.Sum256(e.Payload), s.Counter
	return &policyPointer{policyHead: head, Statement: e}, nil
}

// vouched reports whether the configuration itself says that what an earlier version
// of this program enabled, without a statement, is what is to be gone by: it names the
// very file that the log says was enabled last, or has exactly that policy as its
// floor. Once there was a statement it vouches for nothing any more: an entry without
// a signature anybody can append who writes to the database.
func (c *policyConfig) vouched(p *provenPolicy, file manifest.SHA256) bool {
	switch {
	case p.mark.Counter != 0 || p.mark.Seq == 0 || p.mark.Name == "" ||
		p.mark.Name != p.head.Name || p.mark.Version != p.head.Version || p.mark.Digest != p.head.Digest:
		return false
	case !file.IsZero():
		return p.mark.Digest == file
	}
	return c != nil && c.Floor != nil && p.head.Name == c.Floor.Name && p.head.Version == c.Floor.Version
}

// takeOver signs what an earlier version of this program enabled, if the
// configuration vouches for it.
func takeOver(ctx context.Context, w *logWitness, c *policyConfig) error {
	return again(func() error {
		p, err := provePolicy(ctx, w)
		if err != nil || p.fault == nil || !c.vouched(p, manifest.SHA256{}) {
			return err
		}
		entry := audit.Policy{
			Name: p.head.Name, Version: p.head.Version, Digest: p.head.Digest, Signed: p.head.Signed, Images: p.images,
			FromName: p.head.Name, FromVersion: p.head.Version, By: byConfiguration, Reason: "signed by the service for the first time: policy.floor names it",
		}
		next, err := w.signPointer(p, p.head, p.images, &entry)
		if err != nil {
			return err
		}
		if err := commitPolicy(ctx, w.store, entry, w.clock().UTC(), p.document, next); err != nil {
			return err
		}
		w.log.Warn("taking over a policy that an earlier version of this program enabled", "policy", p.head.String())
		return nil
	})
}

// readPointer returns the document that says which policy is enabled, of revision 0
// if there is none.
func readPointer(ctx context.Context, store server.Store) (*server.Document, error) {
	d, err := store.Document(ctx, policyCurrentKind, policyCurrentName)
	if errors.Is(err, server.ErrNotFound) {
		return &server.Document{Kind: policyCurrentKind, Name: policyCurrentName}, nil
	}
	return d, err
}

// samePointer reports whether a document is as it was.
func samePointer(a, b *server.Document) bool {
	return a != nil && b != nil && a.Revision == b.Revision && slices.Equal([]byte(a.Body), []byte(b.Body))
}
