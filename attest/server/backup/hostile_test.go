package backup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// heapAtEnd is a file that tells how much memory is in use when its last bytes
// are read.
type heapAtEnd struct {
	*bytes.Reader
	heap uint64
}

func (r *heapAtEnd) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b[:min(len(b), 4096)])
	if r.heap == 0 && (r.Len() == 0 || errors.Is(err, io.EOF)) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		r.heap = m.HeapAlloc
	}
	return n, err
}

// A backup is a file that somebody sends: as long as its signature, which comes
// last, was not seen, nothing of it is kept.
func TestAForgedBackupDoesNotFillTheMemory(t *testing.T) {
	var b bytes.Buffer
	reason := strings.Repeat("r", 4000)
	if _, err := Write(&b, newKey(t), Manifest{Taken: time.Unix(3, 0).UTC()}, func(each func(server.Record) error) error {
		for i := range uint32(20_000) {
			m := &server.Machine{Machine: api.Machine{NodeName: "n", State: attest.StateEnrolled, Reason: reason}, Revision: 1}
			binary.BigEndian.PutUint32(m.ID[:], i)
			if err := each(server.Record{Machine: m}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 4<<20 {
		t.Fatalf("the file has %d bytes", b.Len())
	}
	key := newKey(t)
	file := &heapAtEnd{Reader: bytes.NewReader(b.Bytes())}
	_, err := Restore(t.Context(), nil, &Order{Backup: file, Key: &key.PublicKey, Now: time.Unix(4, 0)})
	if !errors.As(err, new(*RefusedError)) || !strings.Contains(err.Error(), "of another fleet") {
		t.Fatalf("got %v", err)
	}
	if file.heap == 0 || file.heap > 40<<20 {
		t.Errorf("%d MB of memory are in use at the end of a file of %d kB", file.heap>>20, b.Len()>>10)
	}
}
