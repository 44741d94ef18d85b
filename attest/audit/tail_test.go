package audit

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func seqs(entries []Entry) string {
	var out []string
	for _, e := range entries {
		out = append(out, fmt.Sprint(e.Seq))
	}
	return strings.Join(out, " ")
}

func TestATailGivesWhatGoesOnFromAHead(t *testing.T) {
	t.Parallel()
	log := chain(t, 9)
	other := chain(t, 9)
	for i := range other {
		other[i].Kind = KindStart
		if i > 0 {
			other[i].Prev = other[i-1].Hash
		}
		other[i].Hash = other[i].digest()
	}
	head := func(log []Entry, seq int) Head {
		if seq == 0 {
			return Head{}
		}
		return log[seq-1].Head()
	}
	for name, c := range map[string]struct {
		append [][]Entry
		after  Head
		want   string
		then   string // after the last that was given
	}{
		"from the start":                     {[][]Entry{log[:3]}, head(log, 0), "1 2 3", ""},
		"from within":                        {[][]Entry{log[:5]}, head(log, 3), "4 5", ""},
		"nothing was appended":               {nil, head(log, 3), "", ""},
		"all of it was seen":                 {[][]Entry{log[:3]}, head(log, 3), "", ""},
		"others appended before":             {[][]Entry{log[4:6]}, head(log, 3), "", ""},
		"others appended between":            {[][]Entry{log[:2], log[4:6]}, head(log, 0), "1 2", ""},
		"another entry is before it":         {[][]Entry{log[3:5]}, head(other, 3), "", ""},
		"the head was altered between":       {[][]Entry{log[:3], other[3:5]}, head(log, 0), "1 2 3", ""},
		"the log went back":                  {[][]Entry{log[:6], log[2:4]}, head(log, 0), "", ""},
		"the log went back, to what is seen": {[][]Entry{log[:6], other[2:4]}, head(other, 2), "3 4", ""},
	} {
		tail := new(Tail)
		for _, entries := range c.append {
			tail.Append(entries)
		}
		got := tail.After(c.after)
		if seqs(got) != c.want {
			t.Errorf("%s: got entries %s, want %s", name, seqs(got), c.want)
		}
		v := VerifierAt(c.after)
		for _, e := range got {
			if err := v.Add(e); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if again := tail.After(v.Head()); seqs(again) != c.then {
			t.Errorf("%s: then entries %s, want %s", name, seqs(again), c.then)
		}
	}
}

func TestATailSaysFromWhereItJoins(t *testing.T) {
	t.Parallel()
	log := chain(t, 12)
	tail := new(Tail)
	tail.Append(log[2:5])
	tail.Append(log[8:12])
	for _, c := range []struct {
		head Head
		n    int
		want bool
	}{
		{log[0].Head(), 1, false},
		{Head{Seq: 2, Hash: log[3].Hash}, 1, false}, // another entry 2
		{log[1].Head(), 3, true},
		{log[1].Head(), 4, false}, // 6 is another's
		{log[4].Head(), 1, false},
		{log[7].Head(), 4, true},
		{log[7].Head(), 5, false},
		{log[11].Head(), 1, false},
	} {
		if got := tail.Joins(c.head, c.n); got != c.want {
			t.Errorf("after %d, %d entries: got %t, want %t", c.head.Seq, c.n, got, c.want)
		}
	}
	// What is past was forgotten.
	if len(tail.entries) != 0 || tail.data != 0 {
		t.Errorf("%d entries of %d bytes are left", len(tail.entries), tail.data)
	}
}

func TestATailIsBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ each, kept int }{
		"many": {10, maxTail}, "long": {MaxData - 100, maxTailData / MaxData},
	} {
		tail := new(Tail)
		var log []Entry
		var head Head
		for range c.kept + 50 {
			e, err := Next(head, Event{Time: begin, Kind: KindConfirm, Data: Confirm{ReleaseID: strings.Repeat("x", c.each)}})
			if err != nil {
				t.Fatal(err)
			}
			head, log = e.Head(), append(log, e)
			tail.Append([]Entry{e})
			if len(tail.entries) > maxTail || tail.data > maxTailData {
				t.Fatalf("%s: %d entries, %d bytes", name, len(tail.entries), tail.data)
			}
		}
		// The last are there, and nothing goes on from before them.
		if got := tail.After(log[48].Head()); got != nil {
			t.Errorf("%s: entries %s go on from one that was left out", name, seqs(got))
		}
		if got := tail.After(log[49].Head()); len(got) != c.kept || got[c.kept-1].Hash != head.Hash {
			t.Errorf("%s: %d entries are there, want %d", name, len(got), c.kept)
		}
	}
}

// Of entries whose data is not kept, the hash still is that of the whole entry.
func TestATailLeavesDataOut(t *testing.T) {
	t.Parallel()
	log := chain(t, 4)
	tail := &Tail{Whole: func(e Entry) bool { return e.Seq%2 == 0 }}
	tail.Append(log)
	got := tail.After(Head{})
	if len(got) != 4 || tail.data != 0 {
		t.Fatalf("got %d entries, %d bytes are left", len(got), tail.data)
	}
	for i, e := range got {
		want := log[i]
		if want.Seq%2 == 1 {
			want.Data = nil
		}
		a, _ := json.Marshal(e)
		b, _ := json.Marshal(want)
		if string(a) != string(b) {
			t.Errorf("got  %s\nwant %s", a, b)
		}
	}
	if log[0].Data == nil {
		t.Error("the caller's entry was changed")
	}
}

func TestATailIsUsedByWhoAppendsAndWhoFollows(t *testing.T) {
	t.Parallel()
	log := chain(t, 3000)
	tail := new(Tail)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; i < len(log); i += 30 {
			tail.Append(log[i : i+30])
		}
	})
	v := new(Verifier)
	for v.Head().Seq < int64(len(log)) {
		tail.Joins(v.Head(), 10)
		for _, e := range tail.After(v.Head()) {
			if err := v.Add(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
}

// BenchmarkTail measures what an entry costs that is appended and taken.
func BenchmarkTail(b *testing.B) {
	log := chain(b, 3000)
	for b.Loop() {
		tail := new(Tail)
		for i := 0; i < len(log); i += 30 {
			tail.Append(log[i : i+30])
		}
		if got := tail.After(Head{}); len(got) != len(log) {
			b.Fatal(len(got))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(len(log)*b.N), "ns/entry")
}
