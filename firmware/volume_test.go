package firmware

import (
	"os"
	"testing"
)

// ovmf returns Debian's OVMF with Secure Boot, or skips.
func ovmf(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return b
}

func TestVolumesOfOVMF(t *testing.T) {
	v, err := Volumes(ovmf(t))
	if err != nil {
		t.Fatal(err)
	}
	// OVMF packs PEIFV and DXEFV, 896 KiB and 12 MiB.
	if len(v) != 2 || v[0].Size != 0xe0000 || v[1].Size != 0xc00000 {
		t.Fatalf("got %+v, want PEIFV and DXEFV", v)
	}
	if v[0].SHA256 == v[1].SHA256 || v[1].SHA256.IsZero() {
		t.Errorf("digests are not those of two volumes: %+v", v)
	}
}

func TestVolumesRefusesDamage(t *testing.T) {
	good := ovmf(t)
	p, err := FindPacked(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"empty":                  func([]byte) []byte { return nil },
		"no LZMA section":        func(b []byte) []byte { return b[:p.Section] },
		"cut inside the section": func(b []byte) []byte { return b[:p.Section+p.Size/2] },
		"a size beyond the end":  func(b []byte) []byte { b[p.Section+2] = 0xff; return b },
		"a bomb":                 func(b []byte) []byte { b[p.Section+p.Data+5+5] = 0x7f; return b },
		"a damaged stream":       func(b []byte) []byte { b[p.Section+p.Data+14] ^= 0xff; b[p.Section+p.Data+16] ^= 0xff; return b },
	} {
		t.Run(name, func(t *testing.T) {
			if v, err := Volumes(damage(append([]byte(nil), good...))); err == nil {
				t.Errorf("accepted: %+v", v)
			}
		})
	}
}

func FuzzVolumes(f *testing.F) {
	f.Add([]byte{})
	head := append([]byte{64, 0, 0, sectionGUIDed}, lzmaSection...)
	f.Add(append(append(head, 24, 0, 1, 0), make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, b []byte) { Volumes(b) })
}
