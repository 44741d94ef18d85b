package guid

import (
	"strings"
	"testing"
)

func TestTheTextFormIsMixedEndianInMemory(t *testing.T) {
	g, err := Parse("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
	if err != nil {
		t.Fatal(err)
	}
	want := GUID{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	if g != want {
		t.Errorf("got % x, want % x", g, want)
	}
	if s := g.String(); s != "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" {
		t.Errorf("text form is %s", s)
	}
}

func TestBadTextIsRefused(t *testing.T) {
	for name, s := range map[string]string{
		"empty":           "",
		"too short":       "c12a7328-f81f-11d2-ba4b-00a0c93ec93",
		"too long":        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b0",
		"not hex":         "g12a7328-f81f-11d2-ba4b-00a0c93ec93b",
		"dash misplaced":  "c12a732-8f81f-11d2-ba4b-00a0c93ec93b",
		"braces":          "{12a7328-f81f-11d2-ba4b-00a0c93ec93}",
		"non-ASCII bytes": strings.Repeat("\xff", 36),
	} {
		if g, err := Parse(s); err == nil {
			t.Errorf("%s: accepted as %s", name, g)
		}
	}
}

func TestDerivedGUIDsDependOnDomainAndContent(t *testing.T) {
	a := Derive("disk", []byte("content"))
	for name, b := range map[string]GUID{
		"other domain":   Derive("esp", []byte("content")),
		"other content":  Derive("disk", []byte("content2")),
		"boundary moved": Derive("diskc", []byte("ontent")),
	} {
		if a == b {
			t.Errorf("%s: gives the same GUID %s", name, a)
		}
	}
	if b := Derive("disk", []byte("content")); a != b {
		t.Errorf("the same arguments gave %s and %s", a, b)
	}
	if s := a.String(); s[14] != '8' || !strings.ContainsRune("89ab", rune(s[19])) {
		t.Errorf("%s is not a version 8 UUID", s)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		g, err := Parse(s)
		if err != nil {
			return
		}
		if g.String() != strings.ToLower(s) {
			t.Errorf("%q came back as %q", s, g)
		}
	})
}
