package efi

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
)

func testEntry(t testing.TB) BootEntry {
	t.Helper()
	g, err := guid.Parse("01020304-0506-0708-090a-0b0c0d0e0f10")
	if err != nil {
		t.Fatal(err)
	}
	return BootEntry{
		Description: "Sealift",
		Partition:   gpt.Partition{Number: 1, GUID: g, First: 2048, Last: 2048 + 0x40000 - 1},
		File:        `\EFI\BOOT\BOOTX64.EFI`,
	}
}

// entryBytes is testEntry's load option, put together by hand from UEFI 2.10.
const entryBytes = "01000000" + // LOAD_OPTION_ACTIVE
	"5e00" + // device path: 42 + 48 + 4 bytes
	"5300650061006c00690066007400" + "0000" + // "Sealift"
	"04012a00" + // media, hard drive, 42 bytes
	"01000000" + "0008000000000000" + "0000040000000000" + // partition, start, size
	"04030201060508070" + "90a0b0c0d0e0f10" + "02" + "02" + // GUID on disk, GPT, GUID
	"04043000" + // media, file path, 48 bytes
	"5c004500460049005c0042004f004f0054005c0042004f004f0054005800360034002e004500460049000000" +
	"7fff0400" // end

func TestALoadOptionHasTheBytesOfTheSpecification(t *testing.T) {
	want, err := hex.DecodeString(entryBytes)
	if err != nil {
		t.Fatal(err)
	}
	got, err := testEntry(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%x, want\n%x", got, want)
	}
	if d, err := description(got); err != nil || d != "Sealift" {
		t.Errorf("its description reads as %q, %v", d, err)
	}
}

func TestALoadOptionRefusesWhatFirmwareCouldNotUse(t *testing.T) {
	for name, change := range map[string]func(*BootEntry){
		"slashes":        func(e *BootEntry) { e.File = "/EFI/BOOT/BOOTX64.EFI" },
		"no file":        func(e *BootEntry) { e.File = "" },
		"no description": func(e *BootEntry) { e.Description = "" },
		"a NUL":          func(e *BootEntry) { e.Description = "a\x00b" },
		"no partition":   func(e *BootEntry) { e.Partition = gpt.Partition{} },
	} {
		e := testEntry(t)
		change(&e)
		if b, err := e.encode(); err == nil {
			t.Errorf("%s: accepted as %x", name, b)
		}
	}
}

// firmware is a directory with variables, attributes 7 in front of each.
func firmware(t *testing.T, values map[string]string) Vars {
	t.Helper()
	v := Vars{Dir: t.TempDir()}
	for name, h := range values {
		b, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(v.path(name, global), append([]byte{7, 0, 0, 0}, b...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// contents returns the variables of a directory in hex, attributes included.
func contents(t *testing.T, v Vars) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(v.Dir)
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[string]string)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(v.Dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m[strings.TrimSuffix(e.Name(), "-"+global)] = hex.EncodeToString(b)
	}
	return m
}

func TestBootFirst(t *testing.T) {
	other := "01000000" + "0400" + "780000007fff0400"                               // "x"
	stale := strings.Replace(entryBytes, "0403020106050807", "ffffffffffffffff", 1) // another disk
	lookalike := strings.Replace(entryBytes, "5300650061006c", "5300650061006d", 1) // another description
	for name, tt := range map[string]struct {
		before map[string]string
		number uint16
		after  map[string]string
	}{
		"in an empty firmware": {
			before: map[string]string{},
			number: 0,
			after:  map[string]string{"Boot0000": entryBytes, "BootOrder": "0000"},
		},
		"before what is there": {
			before: map[string]string{"Boot0000": other, "Boot0002": other, "BootOrder": "02000000"},
			number: 1,
			after:  map[string]string{"Boot0000": other, "Boot0001": entryBytes, "Boot0002": other, "BootOrder": "010002000000"},
		},
		"not under a number that BootOrder still names": {
			before: map[string]string{"BootOrder": "0000"},
			number: 1,
			after:  map[string]string{"Boot0001": entryBytes, "BootOrder": "01000000"},
		},
		"again with the same disk": {
			before: map[string]string{"Boot0000": other, "Boot000A": entryBytes, "BootOrder": "00000a00"},
			number: 10,
			after:  map[string]string{"Boot0000": other, "Boot000A": entryBytes, "BootOrder": "0a000000"},
		},
		"in place of one for another disk": {
			before: map[string]string{"Boot0003": stale, "BootOrder": "0300"},
			number: 3,
			after:  map[string]string{"Boot0003": entryBytes, "BootOrder": "0300"},
		},
		"and deletes all others of ours": {
			before: map[string]string{"Boot0001": stale, "Boot0003": entryBytes, "Boot0004": stale, "Boot0005": lookalike, "BootOrder": "01000500"},
			number: 3,
			after:  map[string]string{"Boot0003": entryBytes, "Boot0005": lookalike, "BootOrder": "03000500"},
		},
		"beside entries that cannot be read": {
			before: map[string]string{"Boot0000": "01", "Boot0001": "010000000400780079", "Boot00zz": entryBytes, "Boot000a": entryBytes, "BootNext": "0000"},
			number: 2,
			after:  map[string]string{"Boot0000": "01", "Boot0001": "010000000400780079", "Boot0002": entryBytes, "Boot00zz": entryBytes, "Boot000a": entryBytes, "BootNext": "0000", "BootOrder": "0200"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := firmware(t, tt.before)
			n, err := v.BootFirst(testEntry(t))
			if err != nil {
				t.Fatal(err)
			}
			want := make(map[string]string)
			for name, h := range tt.after {
				want[name] = "07000000" + h
			}
			if got := contents(t, v); n != tt.number || !maps.Equal(got, want) {
				t.Errorf("got Boot%04X and\n%v, want Boot%04X and\n%v", n, got, tt.number, want)
			}
			before := contents(t, v)
			if again, err := v.BootFirst(testEntry(t)); err != nil || again != n || !maps.Equal(contents(t, v), before) {
				t.Errorf("a second call gave Boot%04X, %v and\n%v", again, err, contents(t, v))
			}
		})
	}
}

func TestBootFirstDoesNotWriteWhatIsThere(t *testing.T) {
	v := firmware(t, map[string]string{"Boot0003": entryBytes, "BootOrder": "03000000"})
	for _, name := range []string{"Boot0003", "BootOrder"} {
		if err := os.Chmod(v.path(name, global), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(v.path("Boot0003", global))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.BootFirst(testEntry(t)); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(v.path("Boot0003", global))
	if err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the entry was written again (%v)", err)
	}
}

// payload is an authenticated variable with a certificate of n bytes, which
// is not a signature.
func payload(n int) []byte {
	b := make([]byte, 16, 64)
	b = binary.LittleEndian.AppendUint32(b, uint32(24+n))
	b = append(b, 0x00, 0x02, 0xf1, 0x0e)
	b = append(b, pkcs7GUID...)
	return append(append(b, make([]byte, n)...), "signature list"...)
}

func TestEnrolRefuses(t *testing.T) {
	good := payload(10)
	for name, tt := range map[string]struct {
		vars map[string]string
		keys Keys
	}{
		"user mode":              {map[string]string{"SetupMode": "00"}, Keys{good, good, good}},
		"an unknown mode":        {map[string]string{}, Keys{good, good, good}},
		"a strange mode":         {map[string]string{"SetupMode": "02"}, Keys{good, good, good}},
		"no PK":                  {map[string]string{"SetupMode": "01"}, Keys{nil, good, good}},
		"attributes in front":    {map[string]string{"SetupMode": "01"}, Keys{good, append([]byte{0x27, 0, 0, 0}, good...), good}},
		"a bare signature list":  {map[string]string{"SetupMode": "01"}, Keys{good, good, make([]byte, 900)}},
		"a certificate too long": {map[string]string{"SetupMode": "01"}, Keys{good, good, good[:30]}},
		"nothing signed":         {map[string]string{"SetupMode": "01"}, Keys{good, good, good[:len(good)-len("signature list")]}},
	} {
		t.Run(name, func(t *testing.T) {
			v := firmware(t, tt.vars)
			if err := v.Enrol(tt.keys); err == nil {
				t.Error("accepted")
			}
			if n := len(contents(t, v)); n != len(tt.vars) {
				t.Errorf("%d variables after the refusal, want %d", n, len(tt.vars))
			}
		})
	}
}

func TestEnrolWritesAttributesAndPayloadAndChecksTheMode(t *testing.T) {
	v := firmware(t, map[string]string{"SetupMode": "01"})
	keys := Keys{PK: payload(1), KEK: payload(2), DB: payload(3)}
	err := v.Enrol(keys)
	if err == nil || !strings.Contains(err.Error(), "still in setup mode") {
		t.Errorf("a directory is no firmware, got %v", err)
	}
	for file, want := range map[string][]byte{"PK-" + global: keys.PK, "KEK-" + global: keys.KEK, "db-" + security: keys.DB} {
		got, err := os.ReadFile(filepath.Join(v.Dir, file))
		if err != nil || !bytes.Equal(got, append([]byte{0x27, 0, 0, 0}, want...)) {
			t.Errorf("%s is %x, %v", file, got, err)
		}
	}
}

func TestEnrolDoesNotWriteWhatIsThere(t *testing.T) {
	v := firmware(t, map[string]string{"SetupMode": "01", "KEK": hex.EncodeToString([]byte("signature list"))})
	before := contents(t, v)["KEK"]
	v.Enrol(Keys{PK: payload(1), KEK: payload(2), DB: payload(3)})
	after := contents(t, v)
	if after["KEK"] != before || after["PK"] == "" {
		t.Errorf("KEK was %s, is %s; PK is %s", before, after["KEK"], after["PK"])
	}
}

func TestAnEmptyVariableIsNone(t *testing.T) {
	v := firmware(t, nil)
	if err := os.WriteFile(v.path("SecureBoot", global), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := v.SecureBoot(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func FuzzSignatureList(f *testing.F) {
	f.Add(payload(10))
	f.Add(payload(10)[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		if list, err := signatureList(b); err == nil && (len(list) == 0 || !bytes.HasSuffix(b, list)) {
			t.Errorf("%x gives %x", b, list)
		}
	})
}

func FuzzDescription(f *testing.F) {
	b, err := testEntry(f).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0xd8})
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := description(b); err == nil && len(d) > 2*len(b) {
			t.Errorf("%d bytes give a description of %d", len(b), len(d))
		}
	})
}
