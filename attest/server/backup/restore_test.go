package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// changing is a file that is another each time it is read from its start.
type changing struct {
	*bytes.Reader
	next [][]byte // the last one stays
}

func (c *changing) Seek(offset int64, whence int) (int64, error) {
	if offset == 0 && whence == io.SeekStart && len(c.next) > 0 {
		c.Reader = bytes.NewReader(c.next[0])
		c.next = c.next[1:]
	}
	return c.Reader.Seek(offset, whence)
}

func file(each ...[]byte) *changing { return &changing{bytes.NewReader(nil), each} }

// logOf is an exported log of entries that follow head, one for each text.
func logOf(t *testing.T, head audit.Head, texts ...string) []byte {
	t.Helper()
	var b []byte
	for _, text := range texts {
		e, err := audit.Next(head, audit.Event{Time: time.Unix(9, 0), Kind: audit.KindStart, Data: audit.Start{Version: text}})
		if err == nil {
			b, err = audit.AppendLine(b, e)
		}
		if err != nil {
			t.Fatal(err)
		}
		head = e.Head()
	}
	return b
}

// Both files are read several times, and somebody may put others in their place
// meanwhile: what was verified must be what is stored. And a log must go on where
// the backup ends.
func TestWhatIsRestoredIsWhatWasVerified(t *testing.T) {
	key := newKey(t)
	one, m := sample(t, key)
	_, records, err := readAll(t, one, key)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer // with the same log
	if _, err := Write(&b, key, Manifest{Taken: time.Unix(3, 0).UTC()}, func(each func(server.Record) error) error {
		for _, rec := range append(records, server.Record{Evidence: []byte("more")}) {
			if err := each(rec); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	two := b.Bytes()
	later := logOf(t, m.Head, "a", "b")
	lines := bytes.SplitAfter(later, []byte("\n"))
	var last audit.Entry
	if err := json.Unmarshal(lines[1], &last); err != nil {
		t.Fatal(err)
	}
	otherHead := audit.Head{Seq: m.Head.Seq, Hash: manifest.SHA256{1}}
	before := audit.Head{Seq: m.Head.Seq - 1, Hash: manifest.SHA256{2}}
	for name, tt := range map[string]struct {
		backup, log *changing
		head        manifest.SHA256
		want        string // of the error; empty: none
	}{
		"as they are":                     {file(one), file(later), last.Hash, ""},
		"no log":                          {file(one), nil, m.Head.Hash, ""},
		"another backup before the end":   {file(one, one, two), file(later), manifest.SHA256{}, "changed while it was read"},
		"another backup after the first":  {file(one, two), file(later), manifest.SHA256{}, ""}, // is verified, too
		"a longer log":                    {file(one), file(later, logOf(t, m.Head, "a", "b", "c")), manifest.SHA256{}, "changed while it was read"},
		"another log":                     {file(one), file(later, logOf(t, m.Head, "a", "x")), manifest.SHA256{}, "changed while it was read"},
		"a log of another history":        {file(one), file(logOf(t, before, "x", "y")), manifest.SHA256{}, "does not continue the backup"},
		"a log that follows another head": {file(one), file(logOf(t, otherHead, "x")), manifest.SHA256{}, "does not continue entry"},
		"a log with a gap":                {file(one), file(lines[1]), manifest.SHA256{}, "what is between is missing"},
		"a log that ends before":          {file(one), file(logOf(t, audit.Head{Seq: 1, Hash: manifest.SHA256{3}}, "x")), manifest.SHA256{}, "before the backup's"},
		"an empty log":                    {file(one), file(nil), manifest.SHA256{}, "is empty"},
		"another last entry was named":    {file(one), file(later), m.Head.Hash, "not with the last entry that was named"},
		"without its log":                 {file(one), nil, last.Hash, "not with the last entry that was named"},
	} {
		t.Run(name, func(t *testing.T) {
			o := &Order{Backup: tt.backup, Key: &key.PublicKey, Head: tt.head, By: "ops", Reason: "r", Now: time.Unix(10, 0), UnsignedLog: true}
			if tt.log != nil {
				o.Log = tt.log
			}
			var stored int
			report, err := Restore(t.Context(), func(_ context.Context, records iter.Seq2[server.Record, error]) error {
				for _, err := range records {
					if err != nil {
						return err
					}
					stored++
				}
				return nil
			}, o)
			if tt.want == "" {
				if err != nil || stored == 0 || report.Complete != !tt.head.IsZero() {
					t.Errorf("%d stored, %+v, %v", stored, report, err)
				}
				return
			}
			if !errors.As(err, new(*RefusedError)) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a refusal with %q", err, tt.want)
			}
		})
	}
}
