package audit_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/image/manifest"
)

// standingLog is a log that a service with a key writes, one entry a second.
type standingLog struct {
	testing.TB
	key  *ecdsa.PrivateKey
	all  *audit.Standing
	head audit.Head
	now  time.Time
}

func newStandingLog(t testing.TB) *standingLog {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	all, err := audit.NewStanding(audit.ReleaseKeys{Present: &key.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	return &standingLog{TB: t, key: key, all: all, now: time.Unix(1_800_000_000, 0)}
}

// note appends an entry as it is.
func (l *standingLog) note(ev audit.Event) {
	l.Helper()
	l.now = l.now.Add(time.Second)
	ev.Time = l.now
	e, err := audit.Next(l.head, ev)
	if err == nil {
		err = l.all.Note(e)
	}
	if err != nil {
		l.Fatal(err)
	}
	l.head = e.Head()
}

// signs appends the entry of a service that signs enrolments.
func (l *standingLog) signs() {
	l.Helper()
	id, err := api.KeyID(&l.key.PublicKey)
	if err != nil {
		l.Fatal(err)
	}
	l.note(audit.Event{Kind: audit.KindStart, Data: audit.Start{ReleaseKey: id, SignsEnrolments: true}})
}

func (l *standingLog) signed(ev audit.Event) audit.Event {
	l.Helper()
	if !audit.NeedsTrust(ev) {
		return ev
	}
	ev, err := audit.SignTrust(l.key, ev, l.now.Add(time.Second))
	if err != nil {
		l.Fatal(err)
	}
	return ev
}

func changed(from, to attest.EnrolmentState) audit.Event {
	return audit.Event{Kind: audit.KindState, Machine: attest.MachineID{7}, Data: audit.StateChange{From: from, To: to, By: "ana", Reason: "r"}}
}

const (
	unknown     = attest.StateUnknown
	pending     = attest.StatePending
	enrolled    = attest.StateEnrolled
	quarantined = attest.StateQuarantined
	revoked     = attest.StateRevoked
)

func TestALogSaysWhereAMachineStands(t *testing.T) {
	t.Parallel()
	type step struct {
		from, to attest.EnrolmentState
		unsigned bool
	}
	for name, tt := range map[string]struct {
		steps []step
		want  attest.EnrolmentState
	}{
		"nothing":                       {nil, unknown},
		"pending":                       {[]step{{unknown, pending, false}}, unknown},
		"installed":                     {[]step{{unknown, enrolled, false}}, enrolled},
		"approved":                      {[]step{{unknown, pending, false}, {pending, enrolled, false}}, enrolled},
		"approved, known from verdicts": {[]step{{pending, enrolled, false}}, enrolled},
		"unsigned":                      {[]step{{unknown, enrolled, true}}, unknown},
		"what is not said of it before": {[]step{{revoked, enrolled, false}}, unknown},
		"enrolled as it was":            {[]step{{enrolled, enrolled, false}}, unknown},
		"revoked":                       {[]step{{unknown, enrolled, false}, {enrolled, revoked, true}}, revoked},
		"revoked from nothing":          {[]step{{enrolled, revoked, true}}, revoked},
		"quarantined":                   {[]step{{unknown, enrolled, false}, {enrolled, quarantined, true}}, quarantined},
		"quarantined, then revoked":     {[]step{{unknown, enrolled, false}, {enrolled, quarantined, true}, {quarantined, revoked, true}}, revoked},
		"revoked, then quarantined":     {[]step{{unknown, enrolled, false}, {enrolled, revoked, true}, {enrolled, quarantined, true}}, revoked},
		"reinstated":                    {[]step{{unknown, enrolled, false}, {enrolled, revoked, true}, {revoked, enrolled, false}}, enrolled},
		"reinstated from another state": {[]step{{unknown, enrolled, false}, {enrolled, revoked, true}, {quarantined, enrolled, false}}, revoked},
		"reinstated unsigned":           {[]step{{unknown, enrolled, false}, {enrolled, revoked, true}, {revoked, enrolled, true}}, revoked},
		"revoked, and installed":        {[]step{{unknown, enrolled, false}, {enrolled, revoked, true}, {unknown, enrolled, false}}, revoked},
		"revoked, and pending":          {[]step{{unknown, enrolled, false}, {enrolled, revoked, true}, {unknown, pending, true}, {pending, enrolled, false}}, revoked},
		"fenced":                        {[]step{{unknown, enrolled, false}, {enrolled, revoked, true}, {revoked, revoked, true}}, revoked},
		"lost, and pending":             {[]step{{unknown, enrolled, false}, {unknown, pending, true}}, pending},
		"lost, and approved":            {[]step{{unknown, enrolled, false}, {unknown, pending, true}, {pending, enrolled, false}}, enrolled},
		"a state of a later version":    {[]step{{unknown, enrolled, false}, {enrolled, "parked", true}}, pending},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newStandingLog(t)
			l.signs()
			for _, s := range tt.steps {
				ev := changed(s.from, s.to)
				if !s.unsigned {
					ev = l.signed(ev)
				}
				l.note(ev)
			}
			if got, _ := l.all.Machine(attest.MachineID{7}); got != tt.want {
				t.Errorf("it is %q, want %q", got, tt.want)
			}
			if got, _ := l.all.Machine(attest.MachineID{8}); got != unknown {
				t.Errorf("another is %q", got)
			}
		})
	}
}

func TestAnEntryThatEnrolsCountsOnce(t *testing.T) {
	t.Parallel()
	l := newStandingLog(t)
	l.signs()
	first := l.signed(changed(unknown, enrolled))
	l.note(first)
	l.note(changed(enrolled, revoked))
	again := l.signed(changed(revoked, enrolled))
	l.note(again)
	l.note(changed(enrolled, revoked))
	at := l.head
	for name, ev := range map[string]audit.Event{
		"the first": first, "the last": again,
		"for another machine": {Kind: audit.KindState, Machine: attest.MachineID{9}, Data: again.Data},
		"with another reason": func() audit.Event {
			d := l.signed(changed(revoked, enrolled)).Data.(audit.StateChange)
			d.Reason = "found"
			return audit.Event{Kind: audit.KindState, Machine: attest.MachineID{7}, Data: d}
		}(),
		"signed by another": func() audit.Event {
			other := newStandingLog(t)
			other.now = l.now
			return other.signed(changed(revoked, enrolled))
		}(),
	} {
		l.note(ev)
		for _, id := range []attest.MachineID{{7}, {9}} {
			if got, _ := l.all.Machine(id); got == enrolled {
				t.Errorf("%s: it is enrolled", name)
			}
		}
	}
	if l.head == at {
		t.Fatal("nothing was noted")
	}
	l.note(l.signed(changed(revoked, enrolled)))
	if got, when := l.all.Machine(attest.MachineID{7}); got != enrolled || !when.Equal(l.now) {
		t.Errorf("reinstated it is %q, %v", got, when)
	}
}

// Whoever writes to the database can append an entry of any time. It locks a machine out,
// and not for good.
func TestAnEntryOfAnyTimeLeavesRoomForALaterOne(t *testing.T) {
	t.Parallel()
	l := newStandingLog(t)
	l.signs()
	l.note(l.signed(changed(unknown, enrolled)))
	now := l.now
	l.now = time.Date(9999, 12, 31, 23, 59, 58, 999_999_999, time.UTC)
	l.note(changed(enrolled, revoked))
	l.now = now
	for range 3 {
		_, last := l.all.Machine(attest.MachineID{7})
		ev, err := audit.SignTrust(l.key, changed(revoked, enrolled), last.Add(time.Microsecond))
		if err != nil {
			t.Fatal(err)
		}
		l.note(ev)
		if got, _ := l.all.Machine(attest.MachineID{7}); got != enrolled {
			t.Errorf("reinstated it is %q", got)
		}
		l.note(changed(enrolled, revoked))
	}
}

// What was decided after a backup is not in the log of the store that was restored from
// it. Who has a copy of it cannot write it there.
func TestAnEntryFromBeforeARestoreDoesNotCountAfterIt(t *testing.T) {
	t.Parallel()
	l := newStandingLog(t)
	l.signs()
	l.note(l.signed(changed(unknown, enrolled)))
	l.note(changed(enrolled, revoked))
	l.now = l.now.Add(time.Hour) // what comes of it is lost
	reinstated := l.signed(changed(revoked, enrolled))
	another := l.signed(audit.Event{Kind: audit.KindState, Machine: attest.MachineID{9}, Data: audit.StateChange{To: enrolled}})
	expected := api.Expected{Serial: "ABC-1", EK: manifest.SHA256{8}}
	list := l.signed(listed(t, false, api.ExpectedAdded, expected))
	l.now = l.now.Add(time.Hour)
	l.note(audit.Event{Kind: audit.KindRestore, Data: audit.Restore{By: "root"}})
	kept, err := audit.RestoreStanding(audit.ReleaseKeys{Present: &l.key.PublicKey}, statement(l.all, nil), nil)
	if err != nil || !kept.Restored().Equal(l.now) {
		t.Errorf("kept, it was restored at %v: %v", kept.Restored(), err)
	}
	for _, ev := range []audit.Event{reinstated, another, list} {
		l.note(ev)
	}
	for id, want := range map[attest.MachineID]attest.EnrolmentState{{7}: revoked, {9}: unknown} {
		if got, _ := l.all.Machine(id); got != want {
			t.Errorf("machine %s is %q, want %q", id.Short(), got, want)
		}
	}
	if ok, _ := l.all.Expected(expected.EK, expected.Serial); ok {
		t.Error("a list counts that was lost")
	}
	l.note(l.signed(changed(revoked, enrolled)))
	l.note(l.signed(listed(t, false, api.ExpectedAdded, expected)))
	if got, _ := l.all.Machine(attest.MachineID{7}); got != enrolled {
		t.Errorf("reinstated after it, it is %q", got)
	}
	if ok, _ := l.all.Expected(expected.EK, expected.Serial); !ok {
		t.Error("a list that was imported after it does not count")
	}
}

// listed is an entry of a list, as this version writes it, or an earlier one.
func listed(t *testing.T, earlier bool, outcome string, all ...api.Expected) audit.Event {
	t.Helper()
	d := audit.Expected{By: "ana"}
	for _, e := range all {
		d.Machines = append(d.Machines, audit.ExpectedLine{Serial: e.Serial, EK: e.EK, Outcome: outcome})
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if !earlier {
			d.Bindings = append(d.Bindings, audit.Binding{Kind: audit.BindingExpected, Name: e.EK.String(), Body: b}, audit.Binding{Kind: audit.BindingSerial, Name: e.Serial, Body: json.RawMessage(`{}`)})
		}
	}
	return audit.Event{Kind: audit.KindExpected, Data: d}
}

func TestALogSaysWhichMachinesAreExpected(t *testing.T) {
	t.Parallel()
	ek := manifest.SHA256{3}
	for _, earlier := range []bool{false, true} {
		l := newStandingLog(t)
		if !earlier {
			l.signs()
		}
		is := func(claim string, want bool, serial string) {
			t.Helper()
			if got, _ := l.all.Expected(ek, serial); got != want {
				t.Errorf("%s, of an earlier version %t: expected is %t", claim, earlier, got)
			}
		}
		is("before", false, "ABC-1")
		added := l.signed(listed(t, earlier, api.ExpectedAdded, api.Expected{Serial: "ABC-1", EK: ek}))
		l.note(added)
		is("added", true, "abc-1")
		is("with another serial number", false, "ABC-2")
		l.note(listed(t, earlier, api.ExpectedWithdrawn, api.Expected{Serial: "ABC-1", EK: ek, Withdrawn: true}))
		is("withdrawn", false, "ABC-1")
		if !earlier {
			l.note(added)
			is("the entry again", false, "ABC-1")
			l.note(listed(t, false, api.ExpectedAdded, api.Expected{Serial: "ABC-1", EK: ek}))
			is("unsigned", false, "ABC-1")
		}
		l.note(l.signed(listed(t, earlier, api.ExpectedAdded, api.Expected{Serial: "ABC-1", EK: ek})))
		is("added again", true, "ABC-1")
	}
}

// statement is what is signed of a Standing.
func statement(of *audit.Standing, shards map[string]manifest.SHA256) *audit.StandingStatement {
	s := of.Statement(time.Unix(1_800_000_000, 0))
	s.Shards = shards
	return &s
}

func TestAStandingIsKeptInParts(t *testing.T) {
	t.Parallel()
	l := newStandingLog(t)
	l.signs()
	parts, digests := map[string][]byte{}, map[string]manifest.SHA256{}
	keep := func() *audit.StandingStatement {
		for i, part := range l.all.Parts() {
			parts[audit.ShardName(i)], digests[audit.ShardName(i)] = part, sha256.Sum256(part)
		}
		return statement(l.all, maps.Clone(digests))
	}
	for n := range 700 {
		id := attest.MachineID(sha256.Sum256([]byte{byte(n), byte(n >> 8)}))
		l.note(l.signed(audit.Event{Kind: audit.KindState, Machine: id, Data: audit.StateChange{To: enrolled}}))
		if n%3 == 0 {
			l.note(audit.Event{Kind: audit.KindState, Machine: id, Data: audit.StateChange{From: enrolled, To: revoked}})
		}
		l.note(l.signed(listed(t, false, api.ExpectedAdded, api.Expected{Serial: "ABC-1", EK: manifest.SHA256(id)})))
	}
	of := keep()
	if l.all.Changed() || len(l.all.Parts()) != 0 {
		t.Error("nothing changed, and parts did")
	}
	id := attest.MachineID{9}
	l.note(l.signed(audit.Event{Kind: audit.KindState, Machine: id, Data: audit.StateChange{To: enrolled}}))
	if changed := l.all.Parts(); len(changed) != 1 || changed[9] == nil || l.all.Changed() {
		t.Errorf("%d parts changed", len(changed))
	}
	old, err := audit.RestoreStanding(audit.ReleaseKeys{Present: &l.key.PublicKey}, of, parts)
	if err != nil {
		t.Fatal(err)
	}
	if m, k := old.Len(); m != 700 || k != 700 {
		t.Errorf("%d machines and %d keys", m, k)
	}
	if got, _ := old.Machine(id); got != unknown {
		t.Errorf("a later one is %q", got)
	}
	for i, part := range old.Parts(9, 200) {
		if !bytes.Equal(part, parts[audit.ShardName(i)]) {
			t.Errorf("part %d is encoded otherwise", i)
		}
	}
	for name, spoil := range map[string]func(of *audit.StandingStatement, parts map[string][]byte){
		"a part is gone":    func(_ *audit.StandingStatement, parts map[string][]byte) { delete(parts, "09") },
		"a part is another": func(_ *audit.StandingStatement, parts map[string][]byte) { parts["09"] = parts["0a"] },
		"a part is cut":     func(_ *audit.StandingStatement, parts map[string][]byte) { parts["09"] = parts["09"][:20] },
		"parts change names": func(of *audit.StandingStatement, parts map[string][]byte) {
			parts["09"], of.Shards["09"] = parts["0a"], of.Shards["0a"]
		},
	} {
		of, parts := *of, maps.Clone(parts)
		of.Shards = maps.Clone(of.Shards)
		spoil(&of, parts)
		if _, err := audit.RestoreStanding(audit.ReleaseKeys{Present: &l.key.PublicKey}, &of, parts); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
}

func TestAStandingTakesEntriesInOrder(t *testing.T) {
	t.Parallel()
	l := newStandingLog(t)
	l.note(changed(unknown, enrolled))
	for name, e := range map[string]audit.Entry{
		"the same":         {Seq: 1, Kind: audit.KindState, Data: json.RawMessage(`{}`)},
		"after a gap":      {Seq: 3, Kind: audit.KindState, Data: json.RawMessage(`{}`), Prev: l.head.Hash},
		"of another log":   {Seq: 2, Kind: audit.KindState, Data: json.RawMessage(`{}`), Prev: manifest.SHA256{1}},
		"data that is not": {Seq: 2, Kind: audit.KindState, Data: json.RawMessage(`{"to":1}`), Prev: l.head.Hash},
		"a list that is not": {Seq: 2, Kind: audit.KindExpected, Prev: l.head.Hash,
			Data: json.RawMessage(`{"bindings":[{"kind":"expected","name":"","body":[]}]}`)},
	} {
		if err := l.all.Note(e); err == nil || l.all.Head() != l.head {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is kept is in a database that anybody may have written to.
func FuzzRestoreStanding(f *testing.F) {
	l := newStandingLog(f)
	l.note(audit.Event{Kind: audit.KindState, Machine: attest.MachineID{9}, Data: audit.StateChange{To: enrolled}})
	for _, part := range l.all.Parts() {
		f.Add(part)
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add(make([]byte, 8+48))
	f.Fuzz(func(t *testing.T, part []byte) {
		of := statement(l.all, map[string]manifest.SHA256{"09": sha256.Sum256(part)})
		s, err := audit.RestoreStanding(audit.ReleaseKeys{Present: &l.key.PublicKey}, of, map[string][]byte{"09": part})
		if err != nil {
			return
		}
		m, k := s.Len()
		if m > len(part)/40 || k > len(part)/48 {
			t.Errorf("%d machines and %d keys of %d bytes", m, k, len(part))
		}
	})
}
