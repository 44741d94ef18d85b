package audit_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
)

func testKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestReleaseKeysThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	a, b := &testKey(t, elliptic.P256()).PublicKey, &testKey(t, elliptic.P256()).PublicKey
	var many []*ecdsa.PublicKey
	for range audit.MaxFormerKeys + 1 {
		many = append(many, &testKey(t, elliptic.P256()).PublicKey)
	}
	for name, tt := range map[string]struct {
		keys audit.ReleaseKeys
		want string
	}{
		"none":              {audit.ReleaseKeys{}, "not ECDSA P-256"},
		"a former one nil":  {audit.ReleaseKeys{Present: a, Former: []*ecdsa.PublicKey{nil}}, "not ECDSA P-256"},
		"P-384":             {audit.ReleaseKeys{Present: a, Former: []*ecdsa.PublicKey{&testKey(t, elliptic.P384()).PublicKey}}, "not ECDSA P-256"},
		"the present again": {audit.ReleaseKeys{Present: a, Former: []*ecdsa.PublicKey{a}}, "is there twice"},
		"one twice":         {audit.ReleaseKeys{Present: a, Former: []*ecdsa.PublicKey{b, b}}, "is there twice"},
		"too many":          {audit.ReleaseKeys{Present: a, Former: many}, "at most 16"},
		"as many as may be": {audit.ReleaseKeys{Present: a, Former: many[1:]}, ""},
		"the present alone": {audit.ReleaseKeys{Present: a}, ""},
	} {
		err := tt.keys.Check()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestReleaseKeysOpenWhatOneOfThemSigned(t *testing.T) {
	t.Parallel()
	present, former, other := testKey(t, elliptic.P256()), testKey(t, elliptic.P256()), testKey(t, elliptic.P256())
	keys := audit.ReleaseKeys{Present: &present.PublicKey, Former: []*ecdsa.PublicKey{&former.PublicKey}}
	signed := func(key *ecdsa.PrivateKey) *audit.Envelope {
		e, err := audit.Sign(key, audit.SeenType, audit.HeadStatement{Head: audit.Head{Seq: 7}})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	claims := signed(other)
	claims.Signatures[0].KeyID = signed(former).SignedBy()
	for name, tt := range map[string]struct {
		e                *audit.Envelope
		opens, isPresent bool
		unknown          bool
	}{
		"the present one":                {signed(present), true, true, false},
		"a former one":                   {signed(former), true, false, false},
		"another":                        {signed(other), false, false, true},
		"another that says it is former": {claims, false, false, false},
		"none":                           {nil, false, false, false},
		"no signature":                   {&audit.Envelope{PayloadType: audit.SeenType}, false, false, true},
	} {
		var s audit.HeadStatement
		isPresent, err := keys.Open(tt.e, audit.SeenType, &s)
		if (err == nil) != tt.opens || tt.opens && (isPresent != tt.isPresent || s.Head.Seq != 7) || errors.Is(err, audit.ErrUnknownKey) != tt.unknown {
			t.Errorf("%s: %t, %v, %+v", name, isPresent, err, s)
		}
	}
}

// Hostile rows are counted, not kept.
func TestEntriesThatWouldEnrolAreToldWithinBounds(t *testing.T) {
	t.Parallel()
	l := newStandingLog(t)
	l.signs()
	if l.all.Doubts() {
		t.Error("there is nothing to doubt")
	}
	long := l.signed(changed(unknown, enrolled))
	d := long.Data.(audit.StateChange)
	e := *d.Trust
	e.PayloadType = strings.Repeat("x", 10_000)
	d.Trust = &e
	long.Data = d
	l.note(long)
	for range 1000 {
		l.note(changed(unknown, enrolled))
	}
	l.note(listed(t, false, "added"))
	u := l.all.Unsigned()
	if len(u.First) != 8 || u.More != 993 || u.From != 10 || u.To != 1002 || u.Unknown || l.all.Doubts() {
		t.Errorf("%d, then %d, from %d to %d", len(u.First), u.More, u.From, u.To)
	}
	if got := u.First[0].String(); len(got) > 600 || !strings.HasPrefix(got, fmt.Sprintf("audit entry 2 enrols machine %s, and does not count: ", attest.MachineID{7})) {
		t.Errorf("it says %s", got)
	}
	if got := u.First[1].String(); !strings.HasSuffix(got, "it is not signed") {
		t.Errorf("it says %s", got)
	}
	// What nobody could be told of is there again, with what came since.
	l.note(changed(unknown, enrolled))
	l.all.Retell(u)
	if again := l.all.Unsigned(); len(again.First) != 8 || again.First[0] != u.First[0] || again.More != 994 || again.From != 10 || again.To != 1004 {
		t.Errorf("again %d, then %d, from %d to %d", len(again.First), again.More, again.From, again.To)
	}
}

func TestAnEntryThatDoesNotCountSaysWhy(t *testing.T) {
	t.Parallel()
	l := newStandingLog(t)
	l.signs()
	first := l.signed(changed(unknown, enrolled))
	l.note(first)
	l.note(changed(enrolled, revoked))
	other := newStandingLog(t)
	other.now = l.now
	list := l.signed(listed(t, false, "added"))
	l.note(list)
	if l.all.Doubts() {
		t.Fatalf("%+v", l.all.Unsigned())
	}
	lost := l.signed(changed(revoked, enrolled))
	l.now = l.now.Add(time.Hour)
	l.note(audit.Event{Kind: audit.KindRestore, Data: audit.Restore{By: "root"}})
	for want, ev := range map[string]audit.Event{
		"it is not signed":                         changed(revoked, enrolled),
		"it was written once more":                 first,
		"before the store was restored":            lost,
		"neither the present one nor a former one": other.signed(changed(revoked, enrolled)),
		"its signature is that of another entry":   {Kind: audit.KindState, Machine: attest.MachineID{9}, Data: first.Data},
	} {
		l.note(ev)
		u := l.all.Unsigned()
		if len(u.First) != 1 || !strings.Contains(u.First[0].Why, want) || u.First[0].Seq != l.head.Seq || u.First[0].Machine != ev.Machine {
			t.Errorf("%s: %+v", want, u)
		}
	}
	// An entry that takes trust away, or enrols nobody, is none.
	for _, ev := range []audit.Event{changed(enrolled, revoked), changed(unknown, pending), listed(t, false, "added")} {
		l.note(ev)
	}
	if u := l.all.Unsigned(); !u.Empty() {
		t.Errorf("%+v", u)
	}
}
