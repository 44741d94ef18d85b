package audit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/image/manifest"
)

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func signed(t testing.TB, key *ecdsa.PrivateKey, head HeadStatement) *Envelope {
	t.Helper()
	e, err := Sign(key, HeadType, head)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestAStatementOpensAsItWasSigned(t *testing.T) {
	key := newKey(t, elliptic.P256())
	want := HeadStatement{Head: Head{Seq: 7, Hash: manifest.SHA256{1}}, Time: begin, Policy: PolicyMark{Seq: 3, Name: "fleet <&>", Version: 2, Counter: 1}, Restored: begin}
	line, err := AppendSigned(nil, signed(t, key, want))
	if err != nil {
		t.Fatal(err)
	}
	e, err := ParseEnvelope(bytes.TrimSuffix(line, []byte("\n")))
	if err != nil {
		t.Fatal(err)
	}
	var got HeadStatement
	if err := e.Open(&key.PublicKey, HeadType, &got); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got, err := e.UnverifiedHead(); err != nil || got != want {
		t.Errorf("unverified: got %+v, %v", got, err)
	}
	if id, err := keyID(&key.PublicKey); err != nil || e.SignedBy() != id {
		t.Errorf("signed by %s, want %s, %v", e.SignedBy(), id, err)
	}
	if _, err := Sign(newKey(t, elliptic.P384()), HeadType, want); err == nil {
		t.Error("a P-384 key signs")
	}
}

func TestAStatementThatWasNotSignedSoIsRefused(t *testing.T) {
	key, other := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	head := HeadStatement{Head: Head{Seq: 7}, Time: begin}
	tests := map[string]struct {
		change func(*Envelope) *Envelope
		want   string
	}{
		"none":        {func(*Envelope) *Envelope { return nil }, "not signed"},
		"another key": {func(*Envelope) *Envelope { return signed(t, other, head) }, "signed by another key"},
		"another key's name": {func(e *Envelope) *Envelope {
			o := signed(t, other, head)
			o.Signatures[0].KeyID = e.Signatures[0].KeyID
			return o
		}, "it was altered"},
		"another type": {func(e *Envelope) *Envelope { e.PayloadType = "application/json"; return e }, "is signed as"},
		"signed as another type": {func(*Envelope) *Envelope {
			o, err := Sign(key, "application/x", head)
			if err != nil {
				t.Fatal(err)
			}
			o.PayloadType = HeadType
			return o
		}, "it was altered"},
		"another payload": {func(e *Envelope) *Envelope {
			e.Payload = bytes.Replace(e.Payload, []byte("7"), []byte("8"), 1)
			return e
		}, "it was altered"},
		"no signature":   {func(e *Envelope) *Envelope { e.Signatures = nil; return e }, "0 signatures"},
		"two signatures": {func(e *Envelope) *Envelope { e.Signatures = append(e.Signatures, e.Signatures[0]); return e }, "2 signatures"},
		"an empty one":   {func(e *Envelope) *Envelope { e.Signatures[0].Sig = nil; return e }, "it was altered"},
		"a payload of another kind": {func(*Envelope) *Envelope {
			o, err := Sign(key, HeadType, map[string]int{"more": 1})
			if err != nil {
				t.Fatal(err)
			}
			return o
		}, "unknown field"},
		"a payload spelled otherwise": {func(*Envelope) *Envelope {
			o, err := Sign(key, HeadType, json.RawMessage(`{"time":"2026-03-01T12:00:00Z","head":{"seq":1,"hash":""}}`))
			if err != nil {
				t.Fatal(err)
			}
			return o
		}, "not spelled as it was written"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got HeadStatement
			if err := tt.change(signed(t, key, head)).Open(&key.PublicKey, HeadType, &got); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	var got HeadStatement
	if err := signed(t, key, head).Open(nil, HeadType, &got); err == nil {
		t.Error("no key opens it")
	}
}

func TestTheSignedHeadEndsALog(t *testing.T) {
	entries := chain(t, 3)
	log := export(t, entries)
	e := signed(t, newKey(t, elliptic.P256()), HeadStatement{Head: entries[2].Head()})
	line, err := AppendSigned(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	read := func(parts ...[]byte) (int, *Envelope, error) {
		r := NewReader(bytes.NewReader(slices.Concat(parts...)))
		n := 0
		for _, err := range r.Entries() {
			if err != nil {
				return n, r.Signed(), err
			}
			n++
		}
		return n, r.Signed(), nil
	}
	if n, got, err := read(log, line); err != nil || n != 3 || got == nil || !bytes.Equal(got.Payload, e.Payload) {
		t.Errorf("got %d, %v, %v", n, got, err)
	}
	if n, got, err := read(log); err != nil || n != 3 || got != nil {
		t.Errorf("without: got %d, %v, %v", n, got, err)
	}
	if _, n, err := Verify(bytes.NewReader(slices.Concat(log, line))); err != nil || n != 3 {
		t.Errorf("verify: %d, %v", n, err)
	}
	long := slices.Concat([]byte(`{"payloadType":"`), bytes.Repeat([]byte("x"), maxEnvelope), []byte("\"}\n"))
	for name, parts := range map[string][][]byte{
		"an entry after it": {log, line, log}, "two": {log, line, line}, "an empty line after it": {log, line, []byte("\n")},
		"a space in it":   {log, bytes.Replace(line, []byte(","), []byte(", "), 1)},
		"a field in it":   {log, bytes.Replace(line, []byte(`{"payloadType"`), []byte(`{"payloadType":"x","payloadType"`), 1)},
		"one that is cut": {log, line[:len(line)/2]}, "one that is long": {log, long},
	} {
		if _, _, err := read(parts...); !errors.As(err, new(*BrokenError)) {
			t.Errorf("%s: got %v, want a *BrokenError", name, err)
		}
	}
}

func TestAMarkFollowsTheEnablings(t *testing.T) {
	entry := func(seq int64, kind Kind, data any) Entry {
		b, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		return Entry{Seq: seq, Kind: kind, Data: b, Hash: manifest.SHA256{9, byte(seq)}}
	}
	one, two := manifest.SHA256{1}, manifest.SHA256{2}
	var m PolicyMark
	for _, c := range []struct {
		entry Entry
		want  PolicyMark
	}{
		{entry(1, KindConfirm, Confirm{}), PolicyMark{}},
		{entry(2, KindPolicy, Policy{Name: "fleet", Version: 1, Digest: one}), PolicyMark{Seq: 2, Hash: manifest.SHA256{9, 2}, Name: "fleet", Version: 1, Digest: one}},
		{entry(3, KindPolicy, Policy{Name: "fleet", Version: 2, Statement: one, Counter: 1}), PolicyMark{Seq: 3, Hash: manifest.SHA256{9, 3}, Name: "fleet", Version: 2, Statement: one, Counter: 1}},
		{entry(4, KindPolicy, Policy{Statement: two, Counter: 5}), PolicyMark{Seq: 4, Hash: manifest.SHA256{9, 4}, Statement: two, Counter: 5}},
		{entry(5, KindPolicy, Policy{Name: "fleet", Version: 1}), PolicyMark{Seq: 5, Hash: manifest.SHA256{9, 5}, Name: "fleet", Version: 1, Counter: 5}},
	} {
		if err := m.Note(c.entry); err != nil || m != c.want {
			t.Errorf("after entry %d: %+v, %v; want %+v", c.entry.Seq, m, err, c.want)
		}
	}
	before := m
	for name, e := range map[string]Entry{
		"the last number again": entry(6, KindPolicy, Policy{Statement: one, Counter: 5}), "a lower number": entry(6, KindPolicy, Policy{Statement: one, Counter: 1}),
		"no number": entry(6, KindPolicy, Policy{Statement: one}), "a number that nobody gets to": entry(6, KindPolicy, Policy{Statement: two, Counter: math.MaxInt64}), "noise": {Seq: 6, Kind: KindPolicy, Data: []byte(`[]`)},
	} {
		if err := m.Note(e); err == nil || m != before {
			t.Errorf("%s: %v, %+v", name, err, m)
		}
	}
}

func FuzzParseEnvelope(f *testing.F) {
	key := newKey(f, elliptic.P256())
	line, err := AppendSigned(nil, signed(f, key, HeadStatement{Head: Head{Seq: 7}, Time: time.Unix(1, 0).UTC()}))
	if err != nil {
		f.Fatal(err)
	}
	line = bytes.TrimSuffix(line, []byte("\n"))
	f.Add(line)
	f.Add([]byte(`{"payloadType":"","payload":null,"signatures":null}`))
	good, err := ParseEnvelope(line)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEnvelope(b)
		if err != nil {
			return
		}
		// What is read is written the same, and nothing else than what was signed opens.
		if again, err := AppendSigned(nil, e); err != nil || !bytes.Equal(bytes.TrimSuffix(again, []byte("\n")), b) {
			t.Errorf("%q is written as %q, %v", b, again, err)
		}
		var s HeadStatement
		if e.Open(&key.PublicKey, HeadType, &s) == nil && !bytes.Equal(e.Payload, good.Payload) {
			t.Errorf("%q opens", b)
		}
		_, _ = e.UnverifiedHead()
	})
}
