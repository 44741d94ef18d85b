// Package audit is the service's decision log: one Entry for each thing that
// was decided or done, chained by hash so that a change, a gap or another
// order shows. Next makes an entry, Verify checks a log, Build turns a log
// into a report for people. An audit entry is a row that a decision depends
// on, not a line of a program's log, and it never holds a secret.
//
// The chain proves that what is there is what was written, up to the head. A
// log cut short at its end still verifies, and so does one that was made up: hold
// its Head against one kept elsewhere, or against one that the service signed
// (HeadStatement).
package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// domain separates entry hashes from every other SHA-256, and versions the
// fields that are hashed.
const domain = "sealift audit entry v1"

// MaxData bounds the encoded data of one entry, bytes.
const MaxData = 1 << 20

// maxLine bounds one line of an exported log: the data and the other fields.
const maxLine = MaxData + 4096

// Entry is one link of the chain. Its JSON form, on one line, is what an
// exported log consists of.
type Entry struct {
	Seq     int64            `json:"seq"` // 1 is the first
	Time    time.Time        `json:"time"`
	Kind    Kind             `json:"kind"`
	Machine attest.MachineID `json:"machine,omitzero"` // unset if the entry concerns no machine
	Data    json.RawMessage  `json:"data"`             // a JSON object, by Kind
	Prev    manifest.SHA256  `json:"prev"`             // Hash of entry Seq-1, unset for the first
	Hash    manifest.SHA256  `json:"hash"`
}

// Event is what is to be logged, before it has a place in the chain.
type Event struct {
	Time    time.Time
	Kind    Kind
	Machine attest.MachineID // Optional.
	Data    any              // encoded as a JSON object; one of this package's payload types
}

// Head names the last entry of a chain. The zero Head is the empty chain.
type Head struct {
	Seq  int64           `json:"seq"`
	Hash manifest.SHA256 `json:"hash"`
}

// Head returns e as the head of the chain that ends with it.
func (e Entry) Head() Head { return Head{Seq: e.Seq, Hash: e.Hash} }

// Next returns the entry that continues the chain at prev. It is pure: whoever
// stores entries calls it with the stored head, in the transaction that stores
// the result.
func Next(prev Head, ev Event) (Entry, error) {
	if ev.Kind == "" {
		return Entry{}, fmt.Errorf("audit entry %d: no kind", prev.Seq+1)
	}
	data, err := json.Marshal(ev.Data)
	if err != nil {
		return Entry{}, fmt.Errorf("audit entry %d (%s): encode data: %w", prev.Seq+1, ev.Kind, err)
	}
	if len(data) == 0 || data[0] != '{' {
		return Entry{}, fmt.Errorf("audit entry %d (%s): data is not a JSON object", prev.Seq+1, ev.Kind)
	}
	if len(data) > MaxData {
		return Entry{}, fmt.Errorf("audit entry %d (%s): %d bytes of data, at most %d allowed", prev.Seq+1, ev.Kind, len(data), MaxData)
	}
	e := Entry{
		Seq:     prev.Seq + 1,
		Time:    ev.Time.UTC().Round(0),
		Kind:    ev.Kind,
		Machine: ev.Machine,
		Data:    data,
		Prev:    prev.Hash,
	}
	e.Hash = e.digest()
	return e, nil
}

// digest computes the hash that e must have: SHA-256 over the domain and the
// fields, each with its length in front, so that no two different entries give
// the same bytes.
func (e Entry) digest() manifest.SHA256 {
	h := sha256.New()
	field := func(p []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	var seq [8]byte
	binary.BigEndian.PutUint64(seq[:], uint64(e.Seq))
	field([]byte(domain))
	field(seq[:])
	field([]byte(e.Time.Format(time.RFC3339Nano)))
	field([]byte(e.Kind))
	field(e.Machine[:])
	field(e.Data)
	field(e.Prev[:])
	return manifest.SHA256(h.Sum(nil))
}

// BrokenError says where a log stops being what was written.
type BrokenError struct {
	Seq    int64 // entry at which it shows; 0 if the line could not be read as an entry
	Line   int64 // position in the log, from 1
	Reason string
}

func (e *BrokenError) Error() string {
	if e.Seq == 0 {
		return fmt.Sprintf("audit log: line %d: %s", e.Line, e.Reason)
	}
	return fmt.Sprintf("audit log: entry %d (line %d): %s", e.Seq, e.Line, e.Reason)
}

// A Verifier checks entries one after another. The zero Verifier expects the
// first entry of a log.
type Verifier struct {
	head Head
	n    int64
}

// VerifierAt returns a Verifier for the part of a log that follows head.
func VerifierAt(head Head) *Verifier { return &Verifier{head: head} }

// Head returns the last entry that was accepted.
func (v *Verifier) Head() Head { return v.head }

// Add checks that e is unaltered and continues the chain. Its error is a
// *BrokenError; the Verifier then still stands at the entry before.
//
// What is checked, in this order: e's hash is that of its fields (an altered
// entry), its number follows (a missing, repeated or reordered entry), and it
// names the hash of the entry before it (an entry replaced as a whole).
func (v *Verifier) Add(e Entry) error {
	v.n++
	broken := func(format string, args ...any) error {
		return &BrokenError{Seq: e.Seq, Line: v.n, Reason: fmt.Sprintf(format, args...)}
	}
	if got := e.digest(); got != e.Hash {
		return broken("altered: its fields hash to %s, it says %s", got, e.Hash)
	}
	switch want := v.head.Seq + 1; {
	case e.Seq == want:
	case e.Seq > want && e.Seq-want == 1:
		return broken("missing entry: %d comes after %d", e.Seq, v.head.Seq)
	case e.Seq > want:
		return broken("missing entries: %d comes after %d", e.Seq, v.head.Seq)
	default:
		return broken("repeated or out of order: %d comes after %d", e.Seq, v.head.Seq)
	}
	if e.Prev != v.head.Hash {
		return broken("does not continue entry %d, which was replaced: it follows %s, the entry before it is %s",
			v.head.Seq, hashText(e.Prev), hashText(v.head.Hash))
	}
	v.head = e.Head()
	return nil
}

func hashText(d manifest.SHA256) string {
	if d.IsZero() {
		return "the start of a log"
	}
	return d.String()
}

// Verify reads a whole exported log and returns its head and the number of
// entries that verified. A log that is not as it was written gives a
// *BrokenError that names the first entry at which it shows.
func Verify(r io.Reader) (Head, int64, error) {
	var v Verifier
	var n int64
	for e, err := range Lines(r) {
		if err != nil {
			return v.head, n, err
		}
		if err := v.Add(e); err != nil {
			return v.head, n, err
		}
		n++
	}
	return v.head, n, nil
}

// Lines reads an exported log: one entry in JSON on each line, and at its end the
// signed head, if it has one, which is passed over. See Reader.
func Lines(r io.Reader) iter.Seq2[Entry, error] { return NewReader(r).Entries() }

// Reader reads an exported log.
type Reader struct {
	r      io.Reader
	signed *Envelope
}

// NewReader returns a Reader of the log in r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Signed returns the signed head that ends the log, once Entries has ended
// without an error; nil if it has none. Its signature is not verified.
func (l *Reader) Signed() *Envelope { return l.signed }

// Entries returns the entries, once. A line that is not exactly what AppendLine,
// or at the end AppendSigned, writes gives a *BrokenError, after which the sequence
// goes on with the next line; any other error ends it. The entries are not
// verified.
func (l *Reader) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		s := bufio.NewScanner(l.r)
		s.Buffer(make([]byte, 0, 64<<10), maxLine)
		var line int64
		for s.Scan() {
			line++
			if bytes.HasPrefix(s.Bytes(), signedPrefix) && l.signed == nil {
				var err error
				if l.signed, err = ParseEnvelope(s.Bytes()); err != nil {
					if !yield(Entry{}, &BrokenError{Line: line, Reason: err.Error()}) {
						return
					}
				}
				continue
			}
			e, err := ParseLine(s.Bytes())
			if err == nil && l.signed != nil {
				err = errors.New("something follows the signed head")
			}
			if err != nil {
				err = &BrokenError{Line: line, Reason: err.Error()}
			}
			if !yield(e, err) {
				return
			}
		}
		if err := s.Err(); err != nil {
			if errors.Is(err, bufio.ErrTooLong) {
				err = &BrokenError{Line: line + 1, Reason: fmt.Sprintf("longer than %d bytes", maxLine)}
			} else {
				err = fmt.Errorf("read audit log after line %d: %w", line, err)
			}
			yield(Entry{}, err)
		}
	}
}

// signedPrefix is how a line with a signed head begins, and no entry does.
var signedPrefix = []byte(`{"payloadType":`)

// AppendLine appends e as one line of an exported log to b.
func AppendLine(b []byte, e Entry) ([]byte, error) {
	line, err := json.Marshal(e)
	if err != nil {
		return b, fmt.Errorf("encode audit entry %d: %w", e.Seq, err)
	}
	return append(append(b, line...), '\n'), nil
}

// ParseLine decodes one line, without its newline. It does not verify the
// entry. The line must be byte for byte what AppendLine writes: JSON allows a field twice, other spellings of names and of strings,
// and each would show a reader something else than what was hashed.
func ParseLine(line []byte) (Entry, error) {
	if e, ok := parseWritten(line); ok {
		return e, nil
	}
	e, err := decodeEntry(line)
	if err != nil {
		return Entry{}, fmt.Errorf("not an audit entry: %w", err)
	}
	again, err := AppendLine(nil, e)
	if err != nil {
		return Entry{}, err
	}
	if !bytes.Equal(again[:len(again)-1], line) {
		return Entry{}, fmt.Errorf("altered: entry %d is not spelled as it was written", e.Seq)
	}
	return e, nil
}

func decodeEntry(line []byte) (e Entry, err error) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	err = d.Decode(&e)
	return e, err
}

// parseWritten decodes a line that AppendLine wrote, at half of the cost: most
// of a line is data, which is taken as it stands. Where that ends is a guess, and
// whatever else stands in the line, it is the entry's if AppendLine makes the line of
// that; it writes no line of two entries. ok is false for every other line.
func parseWritten(line []byte) (e Entry, ok bool) {
	const field = `,"data":`
	from, to := bytes.Index(line, []byte(field))+len(field), bytes.LastIndex(line, []byte(`,"prev":`))
	if from < len(field) || to < from {
		return Entry{}, false
	}
	bare := append(append(append(make([]byte, 0, 512), line[:from]...), "{}"...), line[to:]...)
	e, err := decodeEntry(bare)
	if err != nil {
		return Entry{}, false
	}
	e.Data = bytes.Clone(line[from:to])
	again, err := AppendLine(nil, e)
	return e, err == nil && bytes.Equal(again[:len(again)-1], line)
}
