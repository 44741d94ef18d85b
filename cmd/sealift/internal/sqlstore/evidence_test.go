package sqlstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// log is a long string of JSON, of which two differ in one place.
func log(change string) string {
	return strings.Repeat("0123456789abcdef", 2000) + change + strings.Repeat("fedcba9876543210", 1000)
}

func TestEvidenceIsReadAsItWasStored(t *testing.T) {
	s := create(t)
	for name, body := range map[string]string{
		"no JSON": "evidence", "empty object": "{}", "short": `{"a":"b"}`,
		"long": `{"log":"` + log("x") + `","b":[1,"c"]}`, "two long": `["` + log("x") + `","` + log("y") + `"]`,
		"only a long string": `"` + log("x") + `"`, "no end": `{"log":"` + log("x"), "escapes": `{"a":"` + strings.Repeat(`\"`, 4000) + `"}`,
		"cut right": `{"a":"` + strings.Repeat("a", longString) + `"}`, "two parts": `"` + strings.Repeat("b", 2*partSize) + `"`,
	} {
		if err := s.Commit(t.Context(), &server.Change{Evidence: []byte(body)}); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Evidence(t.Context(), sha256.Sum256([]byte(body))); err != nil || string(got) != body {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(body))
		}
	}
}

func TestWhatTwoPiecesOfEvidenceShareIsStoredOnce(t *testing.T) {
	s := create(t)
	size := func() (n int) {
		if err := s.read.QueryRow("SELECT (SELECT sum(length(body)) FROM evidence) + (SELECT sum(length(body)) FROM evidence_part)").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := []byte(`{"log":"` + log("x") + `"}`)
	if err := s.Commit(t.Context(), &server.Change{Evidence: first}); err != nil {
		t.Fatal(err)
	}
	was := size()
	for i := range 5 {
		if err := s.Commit(t.Context(), &server.Change{Evidence: fmt.Appendf(nil, `{"log":"%s","n":%d}`, log("x"), i)}); err != nil {
			t.Fatal(err)
		}
	}
	if grown := size() - was; grown > 5*1024 {
		t.Errorf("five more with the same log take %d bytes", grown)
	}
	was = size()
	if err := s.Commit(t.Context(), &server.Change{Evidence: []byte(`{"log":"` + log("y") + `"}`)}); err != nil {
		t.Fatal(err)
	}
	if grown := size() - was; grown < partSize || grown > 2*partSize {
		t.Errorf("a log with one other byte takes %d bytes", grown)
	}
}

func TestAPartThatIsLostOrAlteredIsFound(t *testing.T) {
	body := []byte(`{"log":"` + log("x") + `"}`)
	d := sha256.Sum256(body)
	_, parts := cut(body)
	for name, query := range map[string]string{
		"altered": fmt.Sprintf("UPDATE evidence_part SET body = CAST('x' AS BLOB) WHERE digest = x'%x'", parts[0].digest),
		"lost":    fmt.Sprintf("DELETE FROM evidence_part WHERE digest = x'%x'", parts[0].digest),
		"row":     fmt.Sprintf("UPDATE evidence SET body = x'01ff' WHERE digest = x'%x'", d),
	} {
		s := create(t)
		if err := s.Commit(t.Context(), &server.Change{Evidence: body}); err != nil {
			t.Fatal(err)
		}
		tamper(t, s, query)
		if got, err := s.Evidence(t.Context(), d); err == nil || errors.Is(err, server.ErrNotFound) {
			t.Errorf("%s: got %d bytes, %v", name, len(got), err)
		}
	}
}

// A part that was written in a transaction that failed is written again.
func TestAPartOfAFailedWriteIsStoredByTheNext(t *testing.T) {
	s := create(t)
	body := []byte(`{"log":"` + log("x") + `"}`)
	// An event that is none is seen after the evidence is written.
	if err := s.Commit(t.Context(), &server.Change{Evidence: body, Events: []audit.Event{{}}}); err == nil {
		t.Fatal("an event without a kind was stored")
	}
	if err := s.Commit(t.Context(), &server.Change{Evidence: body}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Evidence(t.Context(), sha256.Sum256(body)); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// FuzzEvidence holds that cut loses nothing and that join does not fear a row.
func FuzzEvidence(f *testing.F) {
	f.Add([]byte(`{"log":"` + log("x") + `"}`))
	f.Add([]byte{cutMark, 3, 'a', 'b', 'c', 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		get := func([]byte) ([]byte, error) { return make([]byte, partSize), nil }
		_, _ = join(b, get)
		row, parts := cut(b)
		all := map[string][]byte{}
		for _, p := range parts {
			all[string(p.digest[:])] = p.body
		}
		got, err := join(row, func(d []byte) ([]byte, error) { return all[string(d)], nil })
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes came back as %d, %v", len(b), len(got), err)
		}
	})
}
