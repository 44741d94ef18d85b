package attest_test

import (
	"bytes"
	"strings"
	"testing"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
)

func TestSMBIOSOfARealMachine(t *testing.T) {
	s, err := ParseSMBIOS(readFile(t, "smbios-qemu-7.2.bin"))
	if err != nil {
		t.Fatal(err)
	}
	want := SMBIOS{
		BIOSVendor: "EFI Development Kit II / OVMF", BIOSVersion: "0.0.0", BIOSDate: "02/06/2015",
		Manufacturer: "QEMU", Product: "Standard PC (Q35 + ICH9, 2009)", Version: "pc-q35-7.2",
		UUID: "00000000-0000-0000-0000-000000000000",
	}
	if *s != want {
		t.Errorf("got %+v, want %+v", *s, want)
	}
}

func TestSMBIOSStringsAreCleanClaims(t *testing.T) {
	s, err := ParseSMBIOS(papertpm.EncodeSMBIOS("1.0\x1b[31m", strings.Repeat("A", 300), "  Box\xff ", "serial-1"))
	if err != nil {
		t.Fatal(err)
	}
	if s.BIOSVersion != "1.0?[31m" || s.Manufacturer != strings.Repeat("A", 64) || s.Product != "Box?" || s.Serial != "serial-1" {
		t.Errorf("got %+v", s)
	}
}

func TestSMBIOSUUIDIsLittleEndianInFront(t *testing.T) {
	table := papertpm.EncodeSMBIOS("1.0", "Paper", "Box", "serial-1")
	i := bytes.Index(table, []byte{1, 27, 1, 0})
	copy(table[i+8:], []byte{0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff})
	s, err := ParseSMBIOS(table)
	if err != nil {
		t.Fatal(err)
	}
	if want := "00112233-4455-6677-8899-aabbccddeeff"; s.UUID != want { // the example of DSP0134 7.2.1
		t.Errorf("uuid is %s, want %s", s.UUID, want)
	}
}

func TestMalformedSMBIOSIsRefused(t *testing.T) {
	good := papertpm.EncodeSMBIOS("1.0", "Paper", "Box", "serial-1")
	one := func(typ byte) []byte { return []byte{typ, 4, 0, 0, 0, 0} }
	cases := map[string]struct {
		table []byte
		says  string
	}{
		"nothing":                     {nil, "no BIOS"},
		"no system information":       {append(one(0), one(127)...), "no BIOS or System"},
		"half a header":               {[]byte{0, 4, 0}, "header"},
		"a length below the header":   {[]byte{0, 3, 0, 0, 0, 0}, "length is 3"},
		"a length beyond the table":   {[]byte{0, 200, 0, 0, 0, 0}, "length is 200"},
		"strings without end":         {good[:30], "do not end"},
		"a second BIOS information":   {append(append([]byte{}, good[:len(good)-6]...), one(0)...), "a second one of type 0"},
		"a second system information": {append(append([]byte{}, good[:len(good)-6]...), one(1)...), "a second one of type 1"},
		"too many structures":         {bytes.Repeat(one(9), MaxSMBIOSStructures+1), "more than"},
		"a table that is too large":   {make([]byte, MaxSMBIOS+1), "at most"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseSMBIOS(c.table); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
		})
	}
}

func TestShortSMBIOSStructuresHaveEmptyStrings(t *testing.T) {
	s, err := ParseSMBIOS([]byte{0, 4, 0, 0, 0, 0, 1, 5, 0, 0, 9, 'x', 0, 0})
	if err != nil {
		t.Fatal(err)
	}
	if *s != (SMBIOS{}) {
		t.Errorf("got %+v, want nothing", *s)
	}
}

func FuzzParseSMBIOS(f *testing.F) {
	f.Add(papertpm.EncodeSMBIOS("1.0", "Paper", "Box", "serial-1"))
	f.Add(readFile(f, "smbios-qemu-7.2.bin"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSMBIOS(b)
		if err == nil && (len(s.BIOSVersion) > MaxSMBIOSString || len(s.Serial) > MaxSMBIOSString) {
			t.Errorf("a string is too long: %+v", s)
		}
	})
}
