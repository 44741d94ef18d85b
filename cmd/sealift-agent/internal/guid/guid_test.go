package guid

import (
	"bytes"
	"testing"
)

func TestTheFirstThreeFieldsAreLittleEndianOnDisk(t *testing.T) {
	g, err := Parse("C12A7328-f81f-11D2-BA4B-00A0C93EC93B")
	if err != nil {
		t.Fatal(err)
	}
	want := GUID{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	if g != want {
		t.Errorf("got % x, want % x", g[:], want[:])
	}
	if got := g.String(); got != "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" {
		t.Errorf("text form is %q", got)
	}
}

func TestParseRefusesOtherForms(t *testing.T) {
	for _, s := range []string{
		"",
		"c12a7328f81f11d2ba4b00a0c93ec93b",
		"{c12a7328-f81f-11d2-ba4b-00a0c93ec93b}",
		"c12a7328-f81f-11d2-ba4b-00a0c93ec93",
		"c12a7328-f81f-11d2-ba4b-00a0c93ec93g",
		"c12a7328+f81f-11d2-ba4b-00a0c93ec93b",
	} {
		if g, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", s, g)
		}
	}
}

func TestNewMarksVersionAndVariant(t *testing.T) {
	g, err := New(bytes.NewReader(bytes.Repeat([]byte{0xff}, 16)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := g.String(), "ffffffff-ffff-4fff-bfff-ffffffffffff"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := New(bytes.NewReader(nil)); err == nil {
		t.Error("a random source without bytes gave a guid")
	}
}
