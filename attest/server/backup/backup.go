// Package backup is the file form of a copy of the service's state. Write makes
// a file from a store, Reader reads and verifies one, and Restore fills an
// empty store from one and the audit log that continued it.
//
// A backup is one zstd stream (RFC 8878) of JSON lines: a header, a record on
// each line, and at the end the manifest in a DSSE envelope, signed with the
// release key of the service. The manifest has the digest of all lines before
// it, the number of records and the head of the audit log, so a file that was
// cut short, altered, or made by another fleet is refused.
//
// Disk keys are in it as they are in the store, under the key-encryption key.
// The transport secrets of open releases are left out.
package backup

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/strict"
	"github.com/sealift/sealift/image/manifest"
)

const (
	// Version is the format's.
	Version = 1
	// manifestType is the DSSE payload type of a Manifest.
	manifestType = "application/vnd.sealift.backup.v1+json"
	// maxLine bounds one line: evidence of a few MiB, twice in base64.
	maxLine = 64 << 20
	// maxWindow bounds what a reader holds to decompress.
	maxWindow = 64 << 20
)

// Manifest says what a backup holds. It is the last line, signed.
type Manifest struct {
	Version int       `json:"version"`
	Taken   time.Time `json:"taken"`
	Program string    `json:"program,omitempty"` // version of the program that made it
	// ReleaseKey is the id of the key that signs, which is that of the fleet's
	// releases.
	ReleaseKey string     `json:"releaseKey"`
	Head       audit.Head `json:"head"` // of the audit log
	// KEKs are the ids of the key-encryption keys under which disk keys are.
	// Without these keys no disk opens.
	KEKs   []string        `json:"keks"`
	Count  Count           `json:"count"`
	Digest manifest.SHA256 `json:"digest"` // SHA-256 of all lines before the manifest's
}

// Count is how many records of each kind there are.
type Count struct {
	Machines  int64 `json:"machines"`
	Releases  int64 `json:"releases"`
	Documents int64 `json:"documents"`
	Evidence  int64 `json:"evidence"`
	Pruned    int64 `json:"pruned,omitempty"` // evidence that was removed
	Entries   int64 `json:"entries"`          // of the audit log
}

func (c *Count) add(r server.Record) {
	switch {
	case r.Machine != nil:
		c.Machines++
	case r.Release != nil:
		c.Releases++
	case r.Document != nil:
		c.Documents++
	case r.Evidence != nil:
		c.Evidence++
	case r.Pruned != nil:
		c.Pruned++
	case r.Entry != nil:
		c.Entries++
	}
}

// line is the JSON of one line. One field is set.
type line struct {
	Sealift  string                 `json:"sealift,omitempty"` // "backup": the header
	Version  int                    `json:"version,omitempty"` // with Sealift
	Machine  *server.Machine        `json:"machine,omitempty"`
	Revision int64                  `json:"revision,omitempty"` // with Machine
	Release  *server.Release        `json:"release,omitempty"`
	Document *document              `json:"document,omitempty"`
	Evidence []byte                 `json:"evidence,omitempty"`
	Pruned   *server.PrunedEvidence `json:"pruned,omitempty"`
	Entry    json.RawMessage        `json:"entry,omitempty"`    // as exported
	Manifest *api.Envelope          `json:"manifest,omitempty"` // of a Manifest
}

type document struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Revision int64  `json:"revision"`
	Body     []byte `json:"body"`
}

// preAuth is the DSSE pre-authentication encoding (DSSE protocol, "PAE").
func preAuth(payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(manifestType), manifestType, len(payload), payload)
}

// ErrDamaged: evidence was altered, or a part of it is lost. It is not backed up
// under our signature.
var ErrDamaged = errors.New("altered")

// Write writes what dump gives to w and signs it with key, ECDSA P-256. m has
// Taken and Program; Write returns it with the rest.
func Write(w io.Writer, key crypto.Signer, m Manifest, dump func(each func(server.Record) error) error) (*Manifest, error) {
	m.Version = Version
	var err error
	if m.ReleaseKey, err = api.KeyID(key.Public()); err != nil {
		return nil, fmt.Errorf("write backup: %w", err)
	}
	z, err := zstd.NewWriter(w)
	if err != nil {
		return nil, fmt.Errorf("write backup: %w", err)
	}
	digest := sha256.New()
	put := func(l *line) error {
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		b = append(b, '\n')
		digest.Write(b)
		_, err = z.Write(b)
		return err
	}
	if err := put(&line{Sealift: "backup", Version: Version}); err != nil {
		return nil, fmt.Errorf("write backup: %w", err)
	}
	keks := map[string]bool{}
	var chain audit.Verifier
	var policies audit.PolicyMark
	err = dump(func(r server.Record) error {
		m.Count.add(r)
		l := new(line)
		// What Load refuses, or a Reader, must show before the backup is needed.
		switch {
		case r.Machine != nil && r.Machine.Revision < 1:
			return fmt.Errorf("machine %s: altered, its revision is %d", r.Machine.ID, r.Machine.Revision)
		case r.Document != nil && r.Document.Revision < 1:
			return fmt.Errorf("%s %s: altered, its revision is %d", r.Document.Kind, r.Document.Name, r.Document.Revision)
		case r.Evidence != nil && len(r.Evidence) == 0:
			return errors.New("altered: evidence of nothing")
		}
		switch {
		case r.Machine != nil:
			l.Machine, l.Revision = r.Machine, r.Machine.Revision
			sealed := []*server.SealedKey{r.Machine.DiskKey, r.Machine.NextKey}
			for _, f := range r.Machine.Former {
				sealed = append(sealed, f.DiskKey, f.NextKey)
			}
			for _, k := range sealed {
				if k != nil {
					keks[k.KEK] = true
				}
			}
		case r.Release != nil:
			// Nobody confirms it any more.
			r.Release.Transport = nil
			l.Release = r.Release
		case r.Document != nil:
			l.Document = &document{r.Document.Kind, r.Document.Name, r.Document.Revision, r.Document.Body}
		case r.Evidence != nil:
			l.Evidence = r.Evidence
		case r.Pruned != nil:
			l.Pruned = r.Pruned
		case r.Entry != nil:
			if err := chain.Add(*r.Entry); err != nil {
				return err
			}
			if err := policies.Note(*r.Entry); err != nil {
				return err
			}
			b, err := audit.AppendLine(nil, *r.Entry)
			if err != nil {
				return err
			}
			l.Entry = b[:len(b)-1]
		case r.Damaged != nil:
			return fmt.Errorf("evidence %s is not as it was stored: %w", r.Damaged, ErrDamaged)
		default:
			return errors.New("a record of nothing")
		}
		return put(l)
	})
	if err != nil {
		return nil, fmt.Errorf("write backup: %w", err)
	}
	m.Head = chain.Head()
	m.KEKs = slices.Sorted(maps.Keys(keks))
	m.Digest = manifest.SHA256(digest.Sum(nil))
	payload, err := json.Marshal(&m)
	if err != nil {
		return nil, fmt.Errorf("write backup: %w", err)
	}
	sum := sha256.Sum256(preAuth(payload))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("write backup: sign the manifest: %w", err)
	}
	err = put(&line{Manifest: &api.Envelope{PayloadType: manifestType, Payload: payload, Signatures: []api.Signature{{KeyID: m.ReleaseKey, Sig: sig}}}})
	if err := errors.Join(err, z.Close()); err != nil {
		return nil, fmt.Errorf("write backup: %w", err)
	}
	return &m, nil
}

// RefusedError says that a file is no backup that may be used.
type RefusedError struct {
	Reason string
	// Err is why. Optional.
	Err error
}

func (e *RefusedError) Error() string { return "backup refused: " + e.Reason }
func (e *RefusedError) Unwrap() error { return e.Err }

func refuse(format string, args ...any) error {
	return &RefusedError{Reason: fmt.Sprintf(format, args...)}
}

// refusedFor is the refusal of something for err, which errors.Is finds.
func refusedFor(what string, err error) error {
	return &RefusedError{Reason: fmt.Sprintf("%s: %v", what, err), Err: err}
}

// Reader reads a backup. Its records are not to be trusted before Records has
// ended without an error.
type Reader struct {
	keys     audit.ReleaseKeys
	lines    *bufio.Scanner
	close    func()
	manifest *Manifest
}

// NewReader returns a Reader of the backup in r, which must be signed with the
// private half of one of keys. Close it.
func NewReader(r io.Reader, keys audit.ReleaseKeys) (*Reader, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	s := bufio.NewScanner(z)
	s.Buffer(make([]byte, 0, 64<<10), maxLine)
	return &Reader{keys: keys, lines: s, close: z.Close}, nil
}

// Close frees what the Reader holds.
func (r *Reader) Close() { r.close() }

// Manifest returns the manifest, once Records has ended without an error.
func (r *Reader) Manifest() *Manifest { return r.manifest }

// Records reads all records, once. Before it ends without an error it has
// checked: the version; that each line is one of ours; the chain of the audit
// log; the signature of the manifest by the release key; the digest of all
// lines, their number and the head of the log; and that nothing follows. A
// *RefusedError says that a check failed, any other error that reading did.
func (r *Reader) Records() iter.Seq2[server.Record, error] {
	return func(yield func(server.Record, error) bool) {
		err := r.records(func(rec server.Record) bool { return yield(rec, nil) })
		if err != nil && !errors.Is(err, errStopped) {
			yield(server.Record{}, err)
		}
	}
}

var errStopped = errors.New("stopped")

func (r *Reader) records(yield func(server.Record) bool) error {
	digest := sha256.New()
	var count Count
	var chain audit.Verifier
	if !r.lines.Scan() {
		return refuse("the file is no backup of this service")
	}
	header, err := parse(r.lines.Bytes())
	switch {
	case err != nil || header.Sealift != "backup":
		return refuse("the file is no backup of this service")
	case header.Version != Version:
		return refuse("it is of version %d, want %d", header.Version, Version)
	}
	addLine(digest, r.lines.Bytes())
	for n := int64(2); r.lines.Scan(); n++ {
		b := r.lines.Bytes()
		l, err := parse(b)
		if err != nil {
			return refuse("line %d: %v", n, err)
		}
		if l.Manifest != nil {
			return r.finish(l.Manifest, manifest.SHA256(digest.Sum(nil)), count, chain.Head())
		}
		addLine(digest, b)
		rec, err := l.record()
		if err != nil {
			return refuse("line %d: %v", n, err)
		}
		if rec.Entry != nil {
			if err := chain.Add(*rec.Entry); err != nil {
				return refuse("line %d: %v", n, err)
			}
		}
		count.add(rec)
		if !yield(rec) {
			return errStopped
		}
	}
	if err := r.lines.Err(); err != nil {
		return refuse("it cannot be read to its end: %v", err)
	}
	return refuse("it is cut short: there is no manifest at its end")
}

func addLine(h hash.Hash, b []byte) {
	h.Write(b)
	h.Write([]byte{'\n'})
}

// finish checks the manifest.
func (r *Reader) finish(e *api.Envelope, digest manifest.SHA256, count Count, head audit.Head) error {
	if e.PayloadType != manifestType || len(e.Signatures) != 1 {
		return refuse("its manifest is not one signed manifest")
	}
	key, err := r.keys.ByID(e.Signatures[0].KeyID)
	if err != nil {
		return refusedFor("it is of another fleet", err)
	}
	sum := sha256.Sum256(preAuth(e.Payload))
	if !ecdsa.VerifyASN1(key, sum[:], e.Signatures[0].Sig) {
		return refuse("the signature of its manifest does not verify: it was altered")
	}
	m := new(Manifest)
	if err := strict.Decode(bytes.NewReader(e.Payload), m); err != nil {
		return refuse("its manifest: %v", err)
	}
	switch {
	case m.Version != Version:
		return refuse("it is of version %d, want %d", m.Version, Version)
	case m.Digest != digest:
		return refuse("it was altered: its lines have the digest %s, its manifest says %s", digest, m.Digest)
	case m.Count != count:
		return refuse("it holds %+v, its manifest says %+v", count, m.Count)
	case m.Head != head:
		return refuse("its audit log ends at entry %d %s, its manifest says %d %s", head.Seq, head.Hash, m.Head.Seq, m.Head.Hash)
	}
	if r.lines.Scan() {
		return refuse("something follows its manifest")
	}
	if err := r.lines.Err(); err != nil {
		return refuse("it cannot be read to its end: %v", err)
	}
	r.manifest = m
	return nil
}

// parse reads a line strictly.
func parse(b []byte) (*line, error) {
	l := new(line)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(l); err != nil {
		return nil, fmt.Errorf("not a line of a backup: %w", err)
	}
	return l, nil
}

func (l *line) record() (server.Record, error) {
	var rec server.Record
	n := 0
	if l.Machine != nil {
		n++
		l.Machine.Revision = l.Revision
		rec.Machine = l.Machine
	}
	if l.Release != nil {
		n++
		rec.Release = l.Release
	}
	if d := l.Document; d != nil {
		n++
		rec.Document = &server.Document{Kind: d.Kind, Name: d.Name, Revision: d.Revision, Body: d.Body}
	}
	if len(l.Evidence) > 0 {
		n++
		rec.Evidence = l.Evidence
	}
	if l.Pruned != nil {
		n++
		rec.Pruned = l.Pruned
	}
	if l.Entry != nil {
		n++
		e, err := audit.ParseLine(l.Entry)
		if err != nil {
			return rec, err
		}
		rec.Entry = &e
	}
	if n != 1 || l.Sealift != "" || l.Machine == nil && l.Revision != 0 {
		return rec, errors.New("not one record")
	}
	return rec, nil
}
