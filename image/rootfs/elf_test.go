package rootfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/sealift/sealift/image/tree"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// section is one section of a made ELF file.
type section struct {
	name string
	kind elf.SectionType
	data []byte
	link uint32
}

// makeELF writes a 64-bit ELF file with the sections and, if interp is set, a
// program header for it: what the builder reads of a real one.
func makeELF(t testing.TB, interp string, sections ...section) []byte {
	t.Helper()
	names := []byte{0}
	all := append([]section{{}}, sections...)
	all = append(all, section{name: ".shstrtab", kind: elf.SHT_STRTAB})
	var nameAt []uint32
	for _, s := range all {
		nameAt = append(nameAt, uint32(len(names)))
		names = append(append(names, s.name...), 0)
	}
	all[len(all)-1].data = names
	const headers = 64 + 56
	body := append([]byte(interp), 0)
	at := []uint64{}
	for _, s := range all {
		at = append(at, uint64(headers+len(body)))
		body = append(body, s.data...)
	}
	var out bytes.Buffer
	progs := uint16(0)
	if interp != "" {
		progs = 1
	}
	w := func(v any) { must(t, binary.Write(&out, binary.LittleEndian, v)) }
	w(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Shoff: uint64(headers + len(body)), Ehsize: 64, Phentsize: 56, Phnum: progs,
		Shentsize: 64, Shnum: uint16(len(all)), Shstrndx: uint16(len(all) - 1),
	})
	w(elf.Prog64{Type: uint32(elf.PT_INTERP), Off: headers, Filesz: uint64(len(interp) + 1)})
	out.Write(body)
	for i, s := range all {
		w(elf.Section64{Name: nameAt[i], Type: uint32(s.kind), Off: at[i], Size: uint64(len(s.data)), Link: s.link})
	}
	return out.Bytes()
}

// dynamic is a program that needs the libraries.
func dynamic(t testing.TB, interp string, libs ...string) []byte {
	t.Helper()
	str := []byte{0}
	var dyn bytes.Buffer
	for _, l := range libs {
		must(t, binary.Write(&dyn, binary.LittleEndian, elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: uint64(len(str))}))
		str = append(append(str, l...), 0)
	}
	must(t, binary.Write(&dyn, binary.LittleEndian, elf.Dyn64{}))
	return makeELF(t, interp,
		section{name: ".dynstr", kind: elf.SHT_STRTAB, data: str},
		section{name: ".dynamic", kind: elf.SHT_DYNAMIC, data: dyn.Bytes(), link: 1})
}

// kmod is a module file with these .modinfo entries.
func kmod(t testing.TB, info ...string) []byte {
	t.Helper()
	return makeELF(t, "", section{name: ".modinfo", kind: elf.SHT_PROGBITS, data: []byte(strings.Join(info, "\x00") + "\x00")})
}

func TestNeededReadsLinkerAndLibraries(t *testing.T) {
	for _, tc := range []struct {
		claim string
		data  []byte
		want  []string
	}{
		{"dynamic program", dynamic(t, "/lib64/ld.so.2", "libc.so.6", "libm.so.6"), []string{"/lib64/ld.so.2", "libc.so.6", "libm.so.6"}},
		{"shared library", dynamic(t, "", "libc.so.6"), []string{"libc.so.6"}},
		{"static program", makeELF(t, ""), nil},
		{"script", []byte("#!/bin/sh\necho" + strings.Repeat(" x", 100)), nil},
		{"empty file", nil, nil},
	} {
		tr := tree.New()
		must(t, tr.WriteFile("f", tc.data, 0o755))
		n, err := tr.Lookup("f")
		must(t, err)
		if got, err := needed(n); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, %v, want %v", tc.claim, got, err, tc.want)
		}
	}
}

func TestNeededAgreesWithReadelf(t *testing.T) {
	readelf, err := exec.LookPath("readelf")
	if err != nil {
		t.Skip("readelf is missing")
	}
	const program = "/bin/sh"
	f, err := os.Open(program)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	got, err := neededELF(f)
	must(t, err)
	out, err := exec.Command(readelf, "-d", "-l", program).Output()
	must(t, err)
	for _, lib := range got {
		if !strings.Contains(string(out), lib+"]") {
			t.Errorf("readelf does not know %s:\n%s", lib, out)
		}
	}
	if n := strings.Count(string(out), "(NEEDED)"); len(got) != n && len(got) != n+1 {
		t.Errorf("got %v, readelf lists %d libraries", got, n)
	}
}

func FuzzNeededELF(f *testing.F) {
	f.Add(dynamic(f, "/lib64/ld.so.2", "libc.so.6"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = neededELF(bytes.NewReader(b)) })
}

func FuzzReadModinfo(f *testing.F) {
	f.Add(kmod(f, "depends=a,b", "softdep=pre: c post: d", "name=x"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = readModinfo(b) })
}
