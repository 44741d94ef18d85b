package dm

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
)

func TestTheVerityTargetIsThatOfTheKernelsDocumentation(t *testing.T) {
	v := Verity{Data: "/dev/vda2", Hash: "/dev/vda3", DataBlocks: 100, HashStart: 1, Salt: []byte{0xab, 0xcd}}
	v.RootHash[0] = 0x12
	root := "12" + strings.Repeat("00", 31)
	for _, tt := range []struct {
		corruption Corruption
		want       string
	}{
		{Panic, " 1 panic_on_corruption"},
		{Restart, " 1 restart_on_corruption"},
		{EIO, ""},
	} {
		v.Corruption = tt.corruption
		got, err := v.Target()
		want := Target{Sectors: 800, Type: "verity", Params: "1 /dev/vda2 /dev/vda3 4096 4096 100 1 sha256 " + root + " abcd" + tt.want}
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	v.Salt = nil
	if got, _ := v.Target(); !strings.HasSuffix(got.Params, root+" -") {
		t.Errorf("without a salt: %s", got.Params)
	}
	for name, change := range map[string]func(*Verity){
		"an unknown mode":         func(v *Verity) { v.Corruption = "ignore_corruption" },
		"a path with a space":     func(v *Verity) { v.Data = "/dev/vda 2" },
		"a relative path":         func(v *Verity) { v.Hash = "vda3" },
		"no blocks":               func(v *Verity) { v.DataBlocks = 0 },
		"blocks that overflow":    func(v *Verity) { v.DataBlocks = 1 << 62 },
		"a salt that is too long": func(v *Verity) { v.Salt = make([]byte, 257) },
	} {
		bad := v
		change(&bad)
		if got, err := bad.Target(); err == nil {
			t.Errorf("%s was accepted: %+v", name, got)
		}
	}
}

func TestTheCryptTargetDoesNotHoldTheKey(t *testing.T) {
	c := Crypt{Device: "/dev/vda6", Offset: 32768, Sectors: 1024, Key: bytes.Repeat(attest.Secret{0x5a}, 64)}
	got, err := c.target("sealift:state")
	want := Target{Sectors: 1024, Type: "crypt", Params: "aes-xts-plain64 :64:logon:sealift:state 0 /dev/vda6 32768 1 sector_size:4096"}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", c, c, c), hex.EncodeToString(c.Key[:8])) || strings.Contains(fmt.Sprintf("%v", c), "90 90") {
		t.Error("the key prints")
	}
	c.Discards = true
	if got, _ := c.target("x:y"); !strings.HasSuffix(got.Params, " 2 sector_size:4096 allow_discards") {
		t.Errorf("with discards: %s", got.Params)
	}
	for name, change := range map[string]func(*Crypt){
		"a short key":     func(c *Crypt) { c.Key = c.Key[:32] },
		"half a block":    func(c *Crypt) { c.Sectors = 4 },
		"nothing":         func(c *Crypt) { c.Sectors = 0 },
		"an odd offset":   func(c *Crypt) { c.Offset = 1 },
		"a relative path": func(c *Crypt) { c.Device = "vda6" },
	} {
		bad := c
		change(&bad)
		if got, err := bad.target("x:y"); err == nil {
			t.Errorf("%s was accepted: %+v", name, got)
		}
	}
}

func TestTablesOfGapsOrOverlapsAreRefused(t *testing.T) {
	ok := []Target{{0, 8, "linear", "/dev/vda 0"}, {8, 16, "zero", ""}}
	b, err := encodeTable(ok)
	if err != nil {
		t.Fatal(err)
	}
	// As a status comes back, next counts from the start of the data.
	at := 0
	for range ok {
		next := int(b[at+20])
		b[at+20] = byte(at + next)
		at += next
	}
	got, err := decodeTable(b, 2)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(ok) {
		t.Errorf("got %v, %v, want %v", got, err, ok)
	}
	for name, bad := range map[string][]Target{
		"nothing":           {},
		"a gap at start":    {{8, 8, "zero", ""}},
		"a gap":             {{0, 8, "zero", ""}, {16, 8, "zero", ""}},
		"an overlap":        {{0, 8, "zero", ""}, {4, 8, "zero", ""}},
		"an empty target":   {{0, 0, "zero", ""}},
		"an overflow":       {{0, 8, "zero", ""}, {8, 1<<64 - 4, "zero", ""}},
		"a long type":       {{0, 8, strings.Repeat("x", 16), ""}},
		"a NUL":             {{0, 8, "zero", "a\x00b"}},
		"very long options": {{0, 8, "zero", strings.Repeat("x", maxTable)}},
	} {
		if _, err := encodeTable(bad); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzDecodeTable(f *testing.F) {
	b, err := encodeTable([]Target{{0, 8, "linear", "/dev/vda 0"}, {8, 16, "zero", ""}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, uint32(2))
	f.Add(b[:40], uint32(1))
	f.Add([]byte(nil), uint32(1<<31))
	f.Fuzz(func(t *testing.T, b []byte, n uint32) {
		if table, err := decodeTable(b, n); err == nil && len(table) != int(n) {
			t.Errorf("got %d targets, want %d", len(table), n)
		}
	})
}
