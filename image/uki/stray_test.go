package uki

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/uki/ukitest"
)

const (
	flatMagic = "#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####"
	flatSBAT  = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\nsystemd,1,The systemd Developers,systemd,252,https://systemd.io/\n"
)

// flatStub is laid out as Debian's stub for arm64 is: a header of two sections,
// and behind them what its linker put there.
func flatStub(tail string) []byte {
	b := make([]byte, 0x3000, 0x3000+len(tail))
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	coff := b[0x44:]
	le.PutUint16(coff[0:], pe.MachineARM64)
	le.PutUint16(coff[2:], 2)
	le.PutUint16(coff[16:], 160)
	o := b[0x58:]
	le.PutUint16(o[0:], 0x20b)
	le.PutUint32(o[16:], 0x1000)
	le.PutUint32(o[32:], 0x1000)
	le.PutUint32(o[36:], 0x200)
	le.PutUint32(o[56:], 0x2e00)
	le.PutUint32(o[60:], 0x1000)
	le.PutUint16(o[68:], 10)
	le.PutUint32(o[108:], 6)
	for i, s := range []struct {
		name       string
		start, end uint32
	}{{".text", 0x1000, 0x2000}, {".data", 0x2000, 0x2e00}} {
		h := b[0x58+160+40*i:]
		copy(h, s.name)
		le.PutUint32(h[8:], s.end-s.start)
		le.PutUint32(h[12:], s.start)
		le.PutUint32(h[16:], s.end-s.start)
		le.PutUint32(h[20:], s.start)
	}
	return append(b, tail...)
}

func flatInput(t testing.TB, tail string) Input {
	in := input(t)
	in.Stub = flatStub(tail)
	in.Kernel = ukitest.Kernel(pe.MachineARM64, "6.1.0-56-cloud-arm64")
	return in
}

func TestTextsBehindAFlatStubBecomeSections(t *testing.T) {
	image, err := Assemble(flatInput(t, "symbols\x00"+flatSBAT+"\x00\x00\x00"+flatMagic+"\x00rest"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{".sbat": flatSBAT + "\x00", ".sdmagic": flatMagic + "\x00", ".uname": "6.1.0-56-cloud-arm64"} {
		s, ok, err := f.Section(name)
		if err != nil || !ok || string(s.Data()) != want {
			t.Errorf("section %s is %q (%v, %v), want %q", name, s.Data(), ok, err, want)
		}
	}
	if bytes.Contains(image, []byte("symbols\x00")) {
		t.Error("the rest of the stub's tail is in the image")
	}
	u, err := Predict(image)
	if err != nil {
		t.Fatal(err)
	}
	if u.StubVersion != "252.39-1~deb12u2" {
		t.Errorf("version is %s", u.StubVersion)
	}
	for _, s := range u.Sections {
		if s.Name == ".sbat" || s.Name == ".sdmagic" {
			t.Errorf("%s is measured, but stub 252 does not", s.Name)
		}
	}
}

func TestFlatStubsWithOddTailsAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ tail, want string }{
		"no version":          {flatSBAT + "\x00", "not systemd-stub"},
		"two versions":        {flatMagic + "\x00" + strings.Replace(flatMagic, "252", "257", 1) + "\x00", "is there twice"},
		"version without end": {flatMagic, "no end"},
		"binary in SBAT":      {"sbat,1,SBAT Version,\x80\x00" + flatMagic + "\x00", "byte 0x80"},
		"another version":     {strings.Replace(flatMagic, "252", "257", 1) + "\x00", "systemd-stub 257"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Assemble(flatInput(t, c.tail)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestKernelAndStubAreForOneArchitecture(t *testing.T) {
	in := flatInput(t, flatMagic+"\x00")
	in.Kernel = input(t).Kernel
	if _, err := Assemble(in); err == nil || !strings.Contains(err.Error(), "kernel is for machine 0x8664, stub for 0xaa64") {
		t.Errorf("error is %v", err)
	}
}

func FuzzStubTail(f *testing.F) {
	f.Add([]byte(flatSBAT + "\x00" + flatMagic + "\x00"))
	f.Add([]byte("sbat,1,SBAT Version,"))
	f.Fuzz(func(t *testing.T, tail []byte) {
		b := flatStub(string(tail))
		stub, err := pe.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		found, err := straySections(stub, b)
		for _, s := range found {
			if err == nil && (len(s.data) > maxStray || s.data[len(s.data)-1] != 0) {
				t.Errorf("section %s holds %.100q", s.name, s.data)
			}
		}
	})
}
