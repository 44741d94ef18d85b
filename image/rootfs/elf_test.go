package rootfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
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

// nodeOf is a node with this content.
func nodeOf(t testing.TB, content []byte) *tree.Node {
	t.Helper()
	tr := tree.New()
	must(t, tr.WriteFile("f", content, 0o755))
	n, err := tr.Lookup("f")
	must(t, err)
	return n
}

func TestVersionsAgreeWithAnotherReader(t *testing.T) {
	seen := 0
	for _, name := range []string{"/bin/sh", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libm.so.6", "/usr/lib/x86_64-linux-gnu/libstdc++.so.6"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Log(err)
			continue
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		must(t, err)
		var want []string
		defs, err := f.DynamicVersions()
		must(t, err)
		for _, d := range defs {
			want = append(want, d.Name)
		}
		got, err := definedVersions(nodeOf(t, b))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s defines %v, %v, want %v", name, got, err, want)
		}
		seen += len(got)
		needs, err := f.DynamicVersionNeeds()
		must(t, err)
		for _, need := range needs {
			want = want[:0]
			for _, d := range need.Needs {
				if d.Flags&elf.VER_FLG_WEAK == 0 {
					want = append(want, d.Dep)
				}
			}
			if got, err := neededVersions(nodeOf(t, b), need.Name); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s needs %v of %s, %v, want %v", name, got, need.Name, err, want)
			}
		}
	}
	if seen == 0 && os.Getenv("REQUIRE_TOOLS") != "" {
		t.Fatal("no library was found")
	}
	if seen == 0 {
		t.Skip("no library was found")
	}
}

// TestVersionsOfAHostileLibraryAreRefused makes chains whose entries overlap:
// followed as their counts say, each of n entries leads through all the others.
func TestVersionsOfAHostileLibraryAreRefused(t *testing.T) {
	const n = 8000
	le := binary.LittleEndian
	need, def := make([]byte, 16*n), make([]byte, 20*n)
	for i := range n {
		r := need[16*i:]
		le.PutUint16(r, 1)
		le.PutUint16(r[2:], 0xffff)
		le.PutUint32(r[8:], 16)
		le.PutUint32(r[12:], 16)
		r = def[20*i:]
		le.PutUint16(r, 1)
		le.PutUint16(r[6:], 0xffff)
		le.PutUint32(r[16:], 1)
	}
	long := bytes.Repeat([]byte("x"), 1000)
	str := section{name: ".dynstr", kind: elf.SHT_STRTAB, data: make([]byte, 16)}
	none := section{name: ".x", kind: elf.SHT_PROGBITS}
	for claim, tc := range map[string]struct {
		str, versions section
		want          string
	}{
		"needs that count too many":  {str, section{kind: elf.SHT_GNU_VERNEED, data: need, link: 1}, "more versions than fit"},
		"definitions that overlap":   {str, section{kind: elf.SHT_GNU_VERDEF, data: def, link: 1}, "versions overlap"},
		"definitions without end":    {str, section{kind: elf.SHT_GNU_VERDEF, data: def[:19], link: 1}, "outside of its section"},
		"a huge section":             {str, section{kind: elf.SHT_GNU_VERDEF, data: make([]byte, maxVersionSection+1), link: 1}, "at most 1048576 allowed"},
		"a long name":                {section{kind: elf.SHT_STRTAB, data: long}, section{kind: elf.SHT_GNU_VERDEF, data: def, link: 1}, "is too long"},
		"no strings":                 {none, section{kind: elf.SHT_GNU_VERDEF, data: def, link: 1}, "has no strings"},
		"strings that are not there": {none, section{kind: elf.SHT_GNU_VERDEF, data: def, link: 99}, "has no strings"},
	} {
		file := nodeOf(t, makeELF(t, "", tc.str, tc.versions))
		_, err1 := definedVersions(file)
		_, err2 := neededVersions(file, "")
		if err := errors.Join(err1, err2); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", claim, err, tc.want)
		}
		if got := testing.AllocsPerRun(1, func() { _, _ = definedVersions(file); _, _ = neededVersions(file, "x") }); got > 1000 {
			t.Errorf("%s: %v allocations", claim, got)
		}
	}
}

func FuzzVersions(f *testing.F) {
	f.Add(makeELF(f, "", section{name: ".dynstr", kind: elf.SHT_STRTAB, data: make([]byte, 16)}, section{kind: elf.SHT_GNU_VERDEF, data: make([]byte, 28), link: 1}))
	f.Add(makeELF(f, "", section{name: ".dynstr", kind: elf.SHT_STRTAB, data: make([]byte, 16)}, section{kind: elf.SHT_GNU_VERNEED, data: make([]byte, 32), link: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := nodeOf(t, b)
		_, _ = definedVersions(n)
		_, _ = neededVersions(n, "libc.so.6")
	})
}

func FuzzNeededELF(f *testing.F) {
	f.Add(dynamic(f, "/lib64/ld.so.2", "libc.so.6"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = neededELF(bytes.NewReader(b)) })
}

func FuzzReadModinfo(f *testing.F) {
	f.Add(kmod(f, "depends=a,b", "softdep=pre: c post: d", "name=x"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = readModinfo(b) })
}
