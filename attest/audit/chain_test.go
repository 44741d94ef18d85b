package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
)

var begin = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// chain returns a log of n entries as they are stored.
func chain(t testing.TB, n int) []Entry {
	t.Helper()
	var head Head
	var out []Entry
	for i := range n {
		e, err := Next(head, Event{
			Time: begin.Add(time.Duration(i) * time.Second), Kind: KindConfirm,
			Machine: attest.MachineIDOf([]byte{byte(i % 3)}),
			Data:    Confirm{ReleaseID: fmt.Sprintf("r%d", i), Outcome: "unlocked <&> \u2028"},
		})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
		head = e.Head()
	}
	return out
}

func export(t testing.TB, entries []Entry) []byte {
	t.Helper()
	var b []byte
	for _, e := range entries {
		var err error
		if b, err = AppendLine(b, e); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestVerifyAcceptsWhatNextMade(t *testing.T) {
	entries := chain(t, 7)
	head, n, err := Verify(bytes.NewReader(export(t, entries)))
	if err != nil {
		t.Fatal(err)
	}
	if n != 7 || head != entries[6].Head() {
		t.Errorf("got %d entries and head %v, want 7 and %v", n, head, entries[6].Head())
	}
	if head, n, err := Verify(strings.NewReader("")); err != nil || n != 0 || head != (Head{}) {
		t.Errorf("empty log: got %v, %d, %v", head, n, err)
	}
}

func TestVerifyNamesTheFirstBrokenEntry(t *testing.T) {
	tests := map[string]struct {
		change func([]Entry) []Entry
		seq    int64
		want   string
	}{
		"altered data":    {func(e []Entry) []Entry { e[3].Data = json.RawMessage(`{"releaseID":"x"}`); return e }, 4, "altered"},
		"altered time":    {func(e []Entry) []Entry { e[3].Time = e[3].Time.Add(1); return e }, 4, "altered"},
		"altered kind":    {func(e []Entry) []Entry { e[3].Kind = KindRelease; return e }, 4, "altered"},
		"altered machine": {func(e []Entry) []Entry { e[3].Machine[0] ^= 1; return e }, 4, "altered"},
		"altered number":  {func(e []Entry) []Entry { e[3].Seq = 9; return e }, 9, "altered"},
		"missing entry":   {func(e []Entry) []Entry { return append(e[:3], e[4:]...) }, 5, "missing entry: 5 comes after 3"},
		"missing entries": {func(e []Entry) []Entry { return append(e[:3], e[5:]...) }, 6, "missing entries: 6 comes after 3"},
		"missing start":   {func(e []Entry) []Entry { return e[1:] }, 2, "missing entry: 2 comes after 0"},
		"swapped entries": {func(e []Entry) []Entry { e[3], e[4] = e[4], e[3]; return e }, 5, "missing entry"},
		"repeated entry":  {func(e []Entry) []Entry { e[4] = e[3]; return e }, 4, "repeated or out of order: 4 comes after 4"},
		"entry replaced with a right hash": {func(e []Entry) []Entry {
			e[3].Data = json.RawMessage(`{"releaseID":"x"}`)
			e[3].Hash = e[3].digest()
			return e
		}, 5, "does not continue entry 4, which was replaced"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, err := Verify(bytes.NewReader(export(t, tt.change(chain(t, 7)))))
			var broken *BrokenError
			if !errors.As(err, &broken) {
				t.Fatalf("got %v, want a *BrokenError", err)
			}
			if broken.Seq != tt.seq || !strings.Contains(broken.Reason, tt.want) {
				t.Errorf("got entry %d: %s; want entry %d: %s", broken.Seq, broken.Reason, tt.seq, tt.want)
			}
		})
	}
}

func TestEveryFlippedByteIsFound(t *testing.T) {
	good := export(t, chain(t, 3))
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x20 // turns letters into their other case, which JSON's decoder forgives in names
		if _, _, err := Verify(bytes.NewReader(bad)); err == nil {
			t.Errorf("byte %d (%q) flipped to %q: not found", i, good[i], bad[i])
		}
	}
}

func TestOtherSpellingsAreRefused(t *testing.T) {
	line := string(bytes.TrimSpace(export(t, chain(t, 1))))
	tests := map[string]string{
		"space":          strings.Replace(line, `{"seq":1`, `{ "seq":1`, 1),
		"field twice":    strings.Replace(line, `{"seq":1`, `{"kind":"evidence.verdict","seq":1`, 1),
		"unknown field":  strings.Replace(line, `{"seq":1`, `{"seq":1,"note":"x"`, 1),
		"data after":     line + `{}`,
		"not JSON":       "hello",
		"escaped letter": strings.Replace(line, `"r0"`, `"\u00720"`, 1),
		"empty line":     "",
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, err := Verify(strings.NewReader(text + "\n"))
			var broken *BrokenError
			if !errors.As(err, &broken) || broken.Line != 1 {
				t.Errorf("got %v, want a *BrokenError at line 1", err)
			}
		})
	}
}

func TestNextRefuses(t *testing.T) {
	tests := map[string]Event{
		"no kind":         {Time: begin, Data: Confirm{}},
		"no object":       {Time: begin, Kind: KindConfirm, Data: "text"},
		"no data":         {Time: begin, Kind: KindConfirm},
		"too much data":   {Time: begin, Kind: KindConfirm, Data: Confirm{Outcome: strings.Repeat("x", MaxData)}},
		"unencodable":     {Time: begin, Kind: KindConfirm, Data: struct{ F func() }{func() {}}},
		"raw, not object": {Time: begin, Kind: KindConfirm, Data: json.RawMessage(`[]`)},
	}
	for name, ev := range tests {
		t.Run(name, func(t *testing.T) {
			if e, err := Next(Head{}, ev); err == nil {
				t.Errorf("got %+v, want an error", e)
			}
		})
	}
}

func TestVerifierContinuesFromAHead(t *testing.T) {
	entries := chain(t, 5)
	v := VerifierAt(entries[2].Head())
	for _, e := range entries[3:] {
		if err := v.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := VerifierAt(entries[1].Head()).Add(entries[3]); err == nil {
		t.Error("a gap after the head was accepted")
	}
}

func FuzzVerify(f *testing.F) {
	good := export(f, chain(f, 3))
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte(`{"seq":1,"time":"2026-03-01T12:00:00Z","kind":"x","data":{},"prev":"","hash":""}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		head, n, err := Verify(bytes.NewReader(b))
		if err == nil && n > 0 && head.Seq != n {
			t.Errorf("%d entries verified, head is %d", n, head.Seq)
		}
	})
}
