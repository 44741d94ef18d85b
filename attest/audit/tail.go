package audit

import "sync"

const (
	// maxTail bounds the entries of a Tail: what the busiest of services writes in
	// some seconds.
	maxTail = 8192
	// maxTailData bounds the data of a Tail's entries, bytes.
	maxTailData = 4 << 20
)

// Tail holds the entries that this process appended to a log last, until one who
// follows the log in the same process has taken them: what was hashed here, and is
// durable, need not be read back and hashed again. It holds some thousands, and no
// more than 4 MiB of data; past that the oldest are left out, and are read from the
// log like any other.
//
// Its entries are in the order of the log. They are not all of the log where others
// append to it, too: After tells what goes on from where its caller got to.
type Tail struct {
	// Whole reports whether an entry's data is to be kept. It must not change while
	// the Tail is used. Optional; if nil all is kept.
	Whole func(Entry) bool
	// Each is called with each entry, with all of its data, in the order of the log,
	// before the call that made the commit returns. It holds up who appends. It must not
	// change while the Tail is used. Optional.
	Each func(Entry)

	mu      sync.Mutex
	entries []Entry // guarded by mu: their numbers grow
	data    int     // guarded by mu: bytes of all entries' data
}

// Append adds entries of Next that are durable. Who appends to the log calls it after
// each commit, in the order of the commits.
func (t *Tail) Append(entries []Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range entries {
		if n := len(t.entries); n > 0 && e.Seq <= t.entries[n-1].Seq {
			// The log went back. Nothing goes on from what was there.
			t.entries, t.data = nil, 0
		}
		if t.Each != nil {
			t.Each(e)
		}
		if t.Whole != nil && !t.Whole(e) {
			e.Data = nil
		}
		t.entries = append(t.entries, e)
		t.data += len(e.Data)
		for len(t.entries) > maxTail || t.data > maxTailData {
			t.drop(1)
		}
	}
}

// drop removes the first n entries. The caller holds mu.
func (t *Tail) drop(n int) {
	for i := range n {
		t.data -= len(t.entries[i].Data)
		t.entries[i] = Entry{} // the array may live on
	}
	t.entries = t.entries[n:]
}

// After returns the entries that go on from head, each from the one before, and
// forgets them, with all that come before. It returns none if the entry after head is
// not here, or names another entry before it than head.
//
// That they are unaltered and in order is this process's own doing. That they go on
// from head is checked here, of each: Verifier.Add would find no more in them.
func (t *Tail) After(head Head) []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reach(head)
	n := 0
	for n < len(t.entries) && t.entries[n].Seq == head.Seq+1 && t.entries[n].Prev == head.Hash {
		head = t.entries[n].Head()
		n++
	}
	out := append([]Entry(nil), t.entries[:n]...)
	t.drop(n)
	return out
}

// Joins reports whether After would return something, and there are at least n entries,
// n > 0, that go on from head by their numbers.
func (t *Tail) Joins(head Head, n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reach(head)
	return len(t.entries) >= n && t.entries[0].Seq == head.Seq+1 && t.entries[0].Prev == head.Hash && t.entries[n-1].Seq == head.Seq+int64(n)
}

// reach forgets the entries up to head. The caller holds mu.
func (t *Tail) reach(head Head) {
	n := 0
	for n < len(t.entries) && t.entries[n].Seq <= head.Seq {
		n++
	}
	t.drop(n)
}
