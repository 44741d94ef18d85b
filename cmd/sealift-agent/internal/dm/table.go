package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// maxTable bounds an encoded table, in bytes.
const maxTable = 64 << 10

// encodeTable lays out a table as DM_TABLE_LOAD wants it: per target a
// dm_target_spec, whose next field is the distance to the next spec, and the
// parameters with a NUL, padded to 8 bytes.
func encodeTable(table []Target) ([]byte, error) {
	if len(table) == 0 {
		return nil, errors.New("the table is empty")
	}
	var b []byte
	var end uint64
	for i, t := range table {
		if t.Start != end || t.Sectors == 0 || t.Start+t.Sectors < t.Start {
			return nil, fmt.Errorf("target %d: %d sectors at %d do not follow sector %d", i, t.Sectors, t.Start, end)
		}
		end = t.Start + t.Sectors
		if t.Type == "" || len(t.Type) > 15 || strings.Contains(t.Type+t.Params, "\x00") {
			return nil, fmt.Errorf("target %d: bad type %q or parameters", i, t.Type)
		}
		spec := make([]byte, (specSize+len(t.Params)+1+7)/8*8)
		binary.NativeEndian.PutUint64(spec[0:], t.Start)
		binary.NativeEndian.PutUint64(spec[8:], t.Sectors)
		binary.NativeEndian.PutUint32(spec[20:], uint32(len(spec)))
		copy(spec[24:40], t.Type)
		copy(spec[specSize:], t.Params)
		b = append(b, spec...)
	}
	if len(b) > maxTable {
		return nil, fmt.Errorf("the table has %d bytes, at most %d allowed", len(b), maxTable)
	}
	return b, nil
}

// decodeTable reads what DM_TABLE_STATUS returns: here next is the distance
// of the next spec from the start of the data.
func decodeTable(b []byte, n uint32) ([]Target, error) {
	var table []Target
	at := 0
	for i := range n {
		if at < 0 || at > len(b)-specSize {
			return nil, fmt.Errorf("target %d of %d starts outside the %d bytes of the answer", i, n, len(b))
		}
		spec := b[at:]
		params := spec[specSize:]
		end := bytes.IndexByte(params, 0)
		if end < 0 {
			return nil, fmt.Errorf("target %d of %d has no end", i, n)
		}
		typ, _, _ := strings.Cut(string(spec[24:40]), "\x00")
		table = append(table, Target{
			Start:   binary.NativeEndian.Uint64(spec[0:]),
			Sectors: binary.NativeEndian.Uint64(spec[8:]),
			Type:    typ,
			Params:  string(params[:end]),
		})
		next := int(binary.NativeEndian.Uint32(spec[20:]))
		if next <= at && i+1 < n {
			return nil, fmt.Errorf("target %d of %d points back to %d", i, n, next)
		}
		at = next
	}
	return table, nil
}
