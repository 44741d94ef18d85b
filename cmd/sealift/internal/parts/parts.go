// Package parts cuts evidence into parts, so that a store keeps once what many
// pieces of evidence have in common. Cut splits a piece, Join puts it together
// again, and a Set remembers which parts a database has.
//
// Evidence is JSON of which almost all is the event log, in base64, and the log
// is the same in each boot of a machine, and for the most part the same in all
// machines of a model. So long strings are cut into parts of Size bytes, and a
// part that the database has is only referred to. What is read is put together
// again and must have the digest under which it was stored.
package parts

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
)

const (
	// Size is how long a part is at most, bytes.
	Size = 4096

	longString = 2048 // bytes of a string that is cut
	// cutMark is the first byte of a row that refers to parts. JSON begins
	// otherwise.
	cutMark = 0x01
	// maxKnown bounds the parts that are remembered, 64 bytes each. More are
	// only written again.
	maxKnown = 100_000
	// maxEvidence bounds what is put together, bytes: many times what a
	// request may have.
	maxEvidence = 64 << 20
)

// Part is a piece of evidence that is stored once.
type Part struct {
	Digest [sha256.Size]byte
	Body   []byte
}

// Cut splits evidence. row is what is stored under the evidence's own digest:
// cutMark, and then, as often as needed, the length of a piece that is kept in
// place, the piece, the number of parts that follow it, and their digests.
// Lengths and numbers are unsigned varints. Without parts, row is the evidence, unless that begins
// with cutMark itself.
func Cut(body []byte) (row []byte, parts []Part) {
	row = append(row, cutMark)
	literal := body
	for rest := body; ; {
		open := bytes.IndexByte(rest, '"')
		if open < 0 {
			break
		}
		length := bytes.IndexByte(rest[open+1:], '"')
		if length < 0 {
			break
		}
		text := rest[open+1 : open+1+length]
		rest = rest[open+1+length+1:]
		if length < longString {
			continue
		}
		kept := len(literal) - len(rest) - 1 - length
		row = binary.AppendUvarint(row, uint64(kept))
		row = append(row, literal[:kept]...)
		literal = literal[kept+length:]
		row = binary.AppendUvarint(row, uint64((length+Size-1)/Size))
		for len(text) > 0 {
			n := min(Size, len(text))
			p := Part{sha256.Sum256(text[:n]), text[:n]}
			row, parts = append(row, p.Digest[:]...), append(parts, p)
			text = text[n:]
		}
	}
	if len(parts) == 0 && !bytes.HasPrefix(body, []byte{cutMark}) {
		return body, nil
	}
	row = binary.AppendUvarint(row, uint64(len(literal)))
	return append(append(row, literal...), 0), parts
}

// ErrDamaged: a row does not refer to parts as Cut wrote it.
var ErrDamaged = errors.New("altered: the row does not refer to parts as it was written")

// Join is the inverse of Cut. get returns the part of a digest; its error is
// returned. The error of a row is ErrDamaged.
func Join(row []byte, get func(digest []byte) ([]byte, error)) ([]byte, error) {
	if len(row) == 0 || row[0] != cutMark {
		return row, nil
	}
	var body []byte
	number := func(limit int) (int, bool) {
		n, size := binary.Uvarint(row)
		if size <= 0 || n > uint64(limit) {
			return 0, false
		}
		row = row[size:]
		return int(n), true
	}
	for row = row[1:]; len(row) > 0; {
		n, ok := number(len(row))
		if !ok || n > len(row) {
			return nil, ErrDamaged
		}
		body = append(body, row[:n]...)
		row = row[n:]
		if n, ok = number(len(row) / sha256.Size); !ok || n*sha256.Size > len(row) {
			return nil, ErrDamaged
		}
		for range n {
			p, err := get(row[:sha256.Size])
			if err != nil {
				return nil, err
			}
			body = append(body, p...)
			row = row[sha256.Size:]
		}
		if len(body) > maxEvidence {
			return nil, ErrDamaged
		}
	}
	return body, nil
}

// Refs calls each with the digest of every part that a row refers to. It fails
// where Join would, for a row that is not as it was written.
func Refs(row []byte, each func(digest []byte)) error {
	_, err := Join(row, func(digest []byte) ([]byte, error) {
		each(digest)
		return nil, nil
	})
	return err
}

// Set remembers which parts are in the database and marked as used in its
// present epoch. Parts are removed only if they were last used in an epoch well
// before, so that what a Set has is there, whoever removes parts meanwhile. It is
// used by one goroutine.
type Set struct {
	epoch int64
	known map[[sha256.Size]byte]struct{}
	fresh map[[sha256.Size]byte]struct{} // of the open transaction
}

// NewSet returns an empty one.
func NewSet() *Set {
	return &Set{known: map[[sha256.Size]byte]struct{}{}, fresh: map[[sha256.Size]byte]struct{}{}}
}

// Epoch is the epoch that the Set is of.
func (s *Set) Epoch() int64 { return s.epoch }

// Begin says what epoch the database is in. In another than before nothing is
// known.
func (s *Set) Begin(epoch int64) {
	if epoch != s.epoch {
		clear(s.known)
		s.Drop()
		s.epoch = epoch
	}
}

// Has reports whether a part need not be written.
func (s *Set) Has(d [sha256.Size]byte) bool {
	_, known := s.known[d]
	if !known {
		_, known = s.fresh[d]
	}
	return known
}

// Add says that the open transaction has written a part.
func (s *Set) Add(d [sha256.Size]byte) { s.fresh[d] = struct{}{} }

// Keep is called after a commit, Drop when anything was undone.
func (s *Set) Keep() {
	if len(s.known)+len(s.fresh) > maxKnown {
		clear(s.known)
	}
	maps.Copy(s.known, s.fresh)
	s.Drop()
}

// Drop forgets what the open transaction has written.
func (s *Set) Drop() { clear(s.fresh) }
