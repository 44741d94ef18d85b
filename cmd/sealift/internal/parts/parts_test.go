package parts

import (
	"bytes"
	"strings"
	"testing"
)

// log is a long string of JSON, of which two differ in one place.
func log(change string) string {
	return strings.Repeat("0123456789abcdef", 2000) + change + strings.Repeat("fedcba9876543210", 1000)
}

func TestWhatWasCutIsJoined(t *testing.T) {
	for name, tt := range map[string]struct {
		body  string
		parts int
	}{
		"no JSON": {"evidence", 0}, "empty": {"", 0}, "empty object": {"{}", 0}, "short": {`{"a":"b"}`, 0},
		"long":               {`{"log":"` + log("x") + `","b":[1,"c"]}`, 12},
		"two long":           {`["` + log("x") + `","` + log("y") + `"]`, 24},
		"only a long string": {`"` + log("x") + `"`, 12},
		"no end":             {`{"log":"` + log("x"), 0},
		"cut right":          {`{"a":"` + strings.Repeat("a", longString) + `"}`, 1},
		"just too short":     {`{"a":"` + strings.Repeat("a", longString-1) + `"}`, 0},
		"two parts":          {`"` + strings.Repeat("b", 2*Size) + `"`, 2},
		"begins as a row":    {"\x01\x01", 0},
	} {
		row, parts := Cut([]byte(tt.body))
		all := map[string][]byte{}
		for _, p := range parts {
			all[string(p.Digest[:])] = p.Body
		}
		got, err := Join(row, func(d []byte) ([]byte, error) { return all[string(d)], nil })
		if err != nil || string(got) != tt.body || len(parts) != tt.parts {
			t.Errorf("%s: %d bytes in %d parts, %v; want %d in %d", name, len(got), len(parts), err, len(tt.body), tt.parts)
		}
		var refs int
		if err := Refs(row, func(d []byte) {
			if !bytes.Equal(d, parts[refs].Digest[:]) {
				t.Errorf("%s: reference %d is to another part", name, refs)
			}
			refs++
		}); err != nil || refs != len(parts) {
			t.Errorf("%s: %d references, %v", name, refs, err)
		}
	}
}

func TestASetKnowsPartsOfItsEpochOnly(t *testing.T) {
	s := NewSet()
	a, b := [32]byte{1}, [32]byte{2}
	s.Begin(3)
	s.Add(a)
	s.Keep()
	s.Add(b)
	s.Drop()
	if !s.Has(a) || s.Has(b) {
		t.Errorf("has a: %t, b: %t; want what was kept", s.Has(a), s.Has(b))
	}
	s.Begin(3)
	if !s.Has(a) {
		t.Error("forgot in the same epoch")
	}
	s.Begin(4)
	if s.Has(a) || s.Epoch() != 4 {
		t.Error("remembers what was used in another epoch")
	}
	for i := range maxKnown + 2 {
		s.Add([32]byte{3, byte(i), byte(i >> 8), byte(i >> 16)})
		s.Keep()
	}
	if len(s.known) > maxKnown+1 {
		t.Errorf("remembers %d parts", len(s.known))
	}
}

// FuzzEvidence holds that Cut loses nothing and that Join does not fear a row.
func FuzzEvidence(f *testing.F) {
	f.Add([]byte(`{"log":"` + log("x") + `"}`))
	f.Add([]byte{cutMark, 3, 'a', 'b', 'c', 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		get := func([]byte) ([]byte, error) { return make([]byte, Size), nil }
		_, _ = Join(b, get)
		_ = Refs(b, func([]byte) {})
		row, parts := Cut(b)
		all := map[string][]byte{}
		for _, p := range parts {
			all[string(p.Digest[:])] = p.Body
		}
		got, err := Join(row, func(d []byte) ([]byte, error) { return all[string(d)], nil })
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes came back as %d, %v", len(b), len(got), err)
		}
	})
}
