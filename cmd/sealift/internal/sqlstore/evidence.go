package sqlstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
)

// Evidence is JSON of which almost all is the event log, in base64, and the log
// is the same in each boot of a machine, and for the most part the same in all
// machines of a model. So long strings are cut into parts of partSize bytes,
// and a part that the database has is only referred to. What is read is put
// together again and must have the digest under which it was stored.
const (
	longString = 2048 // bytes of a string that is cut
	partSize   = 4096
	// cutMark is the first byte of a row that refers to parts. JSON begins
	// otherwise.
	cutMark = 0x01
	// maxKnown bounds the parts that are remembered, 64 bytes each. More are
	// only asked for again.
	maxKnown = 100_000
	// maxEvidence bounds what is put together, bytes: many times what a
	// request may have.
	maxEvidence = 64 << 20
)

// part is a piece of evidence that is stored once.
type part struct {
	digest [sha256.Size]byte
	body   []byte
}

// cut splits evidence. row is what is stored under the evidence's own digest:
// cutMark, and then, as often as needed, the length of a piece that is kept in
// place, the piece, the number of parts that follow it, and their digests.
// Lengths and numbers are unsigned varints. Without parts, row is the evidence, unless that begins
// with cutMark itself.
func cut(body []byte) (row []byte, parts []part) {
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
		row = binary.AppendUvarint(row, uint64((length+partSize-1)/partSize))
		for len(text) > 0 {
			n := min(partSize, len(text))
			p := part{sha256.Sum256(text[:n]), text[:n]}
			row, parts = append(row, p.digest[:]...), append(parts, p)
			text = text[n:]
		}
	}
	if len(parts) == 0 && !bytes.HasPrefix(body, []byte{cutMark}) {
		return body, nil
	}
	row = binary.AppendUvarint(row, uint64(len(literal)))
	return append(append(row, literal...), 0), parts
}

// join is the inverse of cut.
func join(row []byte, get func(digest []byte) ([]byte, error)) ([]byte, error) {
	if len(row) == 0 || row[0] != cutMark {
		return row, nil
	}
	var body []byte
	damaged := errors.New("altered: the row does not refer to parts as it was written")
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
			return nil, damaged
		}
		body = append(body, row[:n]...)
		row = row[n:]
		if n, ok = number(len(row) / sha256.Size); !ok || n*sha256.Size > len(row) {
			return nil, damaged
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
			return nil, damaged
		}
	}
	return body, nil
}

// partSet remembers which parts are in the database. Parts are never removed.
type partSet struct {
	known map[[sha256.Size]byte]struct{}
	fresh map[[sha256.Size]byte]struct{} // of the open transaction
}

func newPartSet() *partSet {
	return &partSet{known: map[[sha256.Size]byte]struct{}{}, fresh: map[[sha256.Size]byte]struct{}{}}
}

func (s *partSet) has(d [sha256.Size]byte) bool {
	_, known := s.known[d]
	if !known {
		_, known = s.fresh[d]
	}
	return known
}

// keep is called after a commit, drop when anything was undone.
func (s *partSet) keep() {
	if len(s.known)+len(s.fresh) > maxKnown {
		clear(s.known)
	}
	maps.Copy(s.known, s.fresh)
	s.drop()
}

func (s *partSet) drop() { clear(s.fresh) }

// putEvidence stores evidence that was cut. That a row is there is no error.
func (t *tx) putEvidence(ctx context.Context, digest [sha256.Size]byte, row []byte, parts []part) error {
	for _, p := range parts {
		if t.parts.has(p.digest) {
			continue
		}
		if _, err := t.exec(ctx, "INSERT INTO evidence_part (digest, body) VALUES (?, ?) ON CONFLICT DO NOTHING", p.digest[:], p.body); err != nil {
			return fmt.Errorf("store evidence %x: %w", digest, err)
		}
		t.parts.fresh[p.digest] = struct{}{}
	}
	if _, err := t.exec(ctx, "INSERT INTO evidence (digest, body) VALUES (?, ?) ON CONFLICT DO NOTHING", digest[:], row); err != nil {
		return fmt.Errorf("store evidence %x: %w", digest, err)
	}
	return nil
}
