package inspect

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/sealift/sealift/image/manifest"
)

// Kinds of a Difference, in the order in which Compare tells them.
const (
	KindPackage   = "package"
	KindModule    = "module"    // kernel module, by its name, wherever it lies
	KindFile      = "file"      // in the root file system
	KindInitrd    = "initrd"    // file in the initramfs
	KindESP       = "esp"       // file on the EFI system partition
	KindSection   = "section"   // of the UKI
	KindCmdline   = "cmdline"   // kernel parameter
	KindReference = "reference" // reference value: a PCR or a digest behind it
	KindManifest  = "manifest"  // another field of the manifests
	KindPartition = "partition"
	KindBytes     = "bytes"
)

// Changes of a Difference.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// Difference is one thing in which two images differ.
type Difference struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Change string `json:"change"`
	// Fields are what has changed, or what an added or removed thing is.
	Fields []Field `json:"fields,omitempty"`
}

// Field is one property of a thing in both images; A or B is empty where the
// thing, or the property, is not there. Numbers of bytes that differ are in B.
type Field struct {
	Name string `json:"name"`
	A    string `json:"a,omitempty"`
	B    string `json:"b,omitempty"`
}

// String returns one line for people.
func (d Difference) String() string {
	var b strings.Builder
	mark := map[string]string{Added: "+", Removed: "-", Changed: "~"}[d.Change]
	fmt.Fprintf(&b, "%s %s %s", mark, d.Kind, d.Name)
	for i, f := range d.Fields {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		b.WriteString(sep)
		switch {
		case d.Change != Changed || d.Kind == KindBytes:
			fmt.Fprintf(&b, "%s %s", f.Name, short(cmp.Or(f.A, f.B)))
		default:
			fmt.Fprintf(&b, "%s %s -> %s", f.Name, short(cmp.Or(f.A, "none")), short(cmp.Or(f.B, "none")))
		}
	}
	return b.String()
}

// short cuts digests, which no one compares by eye.
func short(s string) string {
	const most = 16
	if len(s) >= 64 && strings.Trim(s, "0123456789abcdef") == "" {
		return s[:most] + "…"
	}
	return s
}

// thing is something with a name and properties, in order.
type thing struct {
	name   string
	fields []Field // A is the value
}

// diff compares two lists of things by their names.
func diff(kind string, a, b []thing) []Difference {
	index := func(things []thing) map[string]thing {
		m := make(map[string]thing, len(things))
		for _, t := range things {
			m[t.name] = t
		}
		return m
	}
	inA, inB := index(a), index(b)
	all := maps.Clone(inA)
	maps.Copy(all, inB)
	var out []Difference
	for _, name := range slices.Sorted(maps.Keys(all)) {
		x, there := inA[name]
		y, here := inB[name]
		d := Difference{Kind: kind, Name: name, Change: Changed}
		switch {
		case !there:
			d.Change = Added
			for _, f := range y.fields {
				if f.A != "" {
					d.Fields = append(d.Fields, Field{Name: f.Name, B: f.A})
				}
			}
		case !here:
			d.Change = Removed
			for _, f := range x.fields {
				if f.A != "" {
					d.Fields = append(d.Fields, f)
				}
			}
		default:
			if d.Fields = changed(x.fields, y.fields); d.Fields == nil {
				continue
			}
		}
		out = append(out, d)
	}
	return out
}

// changed returns the properties that differ. Things of one kind have the same
// properties in the same order.
func changed(a, b []Field) []Field {
	var out []Field
	for i := range max(len(a), len(b)) {
		var f Field
		if i < len(a) {
			f = a[i]
		}
		if i < len(b) {
			f.Name, f.B = b[i].Name, b[i].A
		}
		if f.A != f.B {
			out = append(out, f)
		}
	}
	return out
}

// Compare returns what differs between two images, but for their bytes; those
// are CompareBytes's.
func Compare(a, b *Image) []Difference {
	var out []Difference
	out = append(out, diff(KindPackage, packages(a), packages(b))...)
	out = append(out, diff(KindModule, modules(a), modules(b))...)
	out = append(out, diff(KindFile, files(a.Root, false), files(b.Root, false))...)
	out = append(out, diff(KindInitrd, files(a.Initrd, false), files(b.Initrd, false))...)
	out = append(out, diff(KindESP, files(a.ESP, true), files(b.ESP, true))...)
	out = append(out, diff(KindSection, sections(a), sections(b))...)
	out = append(out, diff(KindCmdline, cmdline(a), cmdline(b))...)
	out = append(out, diff(KindReference, references(a), references(b))...)
	out = append(out, diff(KindPartition, partitions(a), partitions(b))...)
	return out
}

func packages(i *Image) []thing {
	var out []thing
	for name, version := range i.Packages {
		out = append(out, thing{name, []Field{{Name: "version", A: version}}})
	}
	return out
}

// moduleName returns the name of a kernel module's file, or nothing.
func moduleName(file string) string {
	if !strings.Contains(file, "/modules/") {
		return ""
	}
	base := path.Base(file)
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if name, ok := strings.CutSuffix(base, suffix); ok {
			return name
		}
	}
	return ""
}

// modules returns the kernel modules by their names, so that those of another
// kernel are compared, and not listed twice.
func modules(i *Image) []thing {
	where := map[string]map[string]string{} // module to place to digest
	for place, list := range map[string][]File{"root": i.Root, "initrd": i.Initrd} {
		for _, f := range list {
			if name := moduleName(f.Path); name != "" {
				if where[name] == nil {
					where[name] = map[string]string{}
				}
				where[name][place] = f.SHA256.String()
			}
		}
	}
	var out []thing
	for name, in := range where {
		out = append(out, thing{name, []Field{{Name: "root", A: in["root"]}, {Name: "initrd", A: in["initrd"]}}})
	}
	return out
}

// files returns a list of files, without kernel modules and, for a file system
// that has none, without modes and owners.
func files(list []File, bare bool) []thing {
	var out []thing
	for _, f := range list {
		if moduleName(f.Path) != "" {
			continue
		}
		t := thing{name: f.Path}
		if !bare {
			t.fields = []Field{{Name: "mode", A: modeText(f.Mode)}, {Name: "owner", A: fmt.Sprintf("%d:%d", f.UID, f.GID)}}
		}
		var size, digest string
		if f.Mode.IsRegular() {
			size, digest = strconv.FormatInt(f.Size, 10), f.SHA256.String()
		}
		t.fields = append(t.fields, Field{Name: "size", A: size}, Field{Name: "target", A: f.Target}, Field{Name: "sha256", A: digest})
		out = append(out, t)
	}
	return out
}

func sections(i *Image) []thing {
	var out []thing
	for _, s := range i.Sections {
		t := thing{s.Name, []Field{{Name: "sha256", A: s.SHA256.String()}}}
		if s.Name != ".cmdline" {
			t.fields = append(t.fields, Field{Name: "text", A: strings.ReplaceAll(s.Text, "\n", " ")})
		}
		out = append(out, t)
	}
	return out
}

// cmdline returns the kernel parameters; one that is there several times has
// all its values.
func cmdline(i *Image) []thing {
	values := map[string][]string{}
	for _, p := range strings.Fields(i.UKI.Cmdline) {
		name, value, _ := strings.Cut(p, "=")
		values[name] = append(values[name], value)
	}
	var out []thing
	for name, v := range values {
		out = append(out, thing{name, []Field{{Name: "value", A: strings.Join(v, " ")}}})
	}
	return out
}

func references(i *Image) []thing {
	out := []thing{
		{"authenticode", []Field{{Name: "sha256", A: i.UKI.Authenticode.String()}}},
		{"kernel", []Field{{Name: "sha256", A: i.UKI.Kernel.String()}}},
		{"initrd", []Field{{Name: "sha256", A: i.UKI.Initrd.String()}}},
		{"stub", []Field{{Name: "version", A: i.UKI.StubVersion}}},
	}
	for bank, values := range i.UKI.PCRs {
		for index, value := range values {
			out = append(out, thing{fmt.Sprintf("PCR %d, %s", index, bank), []Field{{Name: "value", A: value}}})
		}
	}
	return out
}

func partitions(i *Image) []thing {
	out := []thing{{"the disk", []Field{{Name: "GUID", A: i.Table.Disk.String()}, {Name: "size", A: strconv.FormatInt(i.disk.Size(), 10)}}}}
	for _, p := range i.Table.Partitions {
		out = append(out, thing{p.Name, []Field{
			{Name: "number", A: strconv.Itoa(p.Number)}, {Name: "type", A: p.Type.String()}, {Name: "GUID", A: p.GUID.String()},
			{Name: "first LBA", A: strconv.FormatUint(p.First, 10)}, {Name: "last LBA", A: strconv.FormatUint(p.Last, 10)},
			{Name: "attributes", A: strconv.FormatUint(p.Attributes, 16)},
		}})
	}
	return out
}

// CompareManifests returns the fields of two manifests that differ, but for
// those that follow from what Compare tells: chunks, artifacts, partitions, and
// the UKI on the disk.
func CompareManifests(a, b *manifest.Manifest) ([]Difference, error) {
	list := func(m *manifest.Manifest) ([]thing, error) {
		own := *m
		own.Disk, own.Artifacts, own.UKI = manifest.Disk{}, nil, manifest.UKI{}
		leaves, err := flatten("", own)
		var out []thing
		for name, value := range leaves {
			out = append(out, thing{name, []Field{{Name: "value", A: value}}})
		}
		return out, err
	}
	x, err := list(a)
	if err != nil {
		return nil, err
	}
	y, err := list(b)
	if err != nil {
		return nil, err
	}
	return diff(KindManifest, x, y), nil
}

// CompareBytes counts the bytes that differ, in each partition of both tables
// and outside of them.
func CompareBytes(ctx context.Context, a, b *Image) ([]Difference, error) {
	type area struct {
		name string
		a, b *section
	}
	var areas []area
	for _, p := range a.Table.Partitions {
		x, err1 := a.partition(p.Name)
		y, err2 := b.partition(p.Name)
		if err1 == nil && err2 == nil {
			areas = append(areas, area{name: p.Name, a: x, b: y})
		}
	}
	head := int64(gptFirstUsable * SectorSize)
	for _, i := range []int64{0, 1} {
		x, err1 := sectionOf(a.disk, i*(a.disk.Size()-head), head)
		y, err2 := sectionOf(b.disk, i*(b.disk.Size()-head), head)
		if err1 == nil && err2 == nil {
			areas = append(areas, area{name: []string{"primary table", "backup table"}[i], a: x, b: y})
		}
	}
	var out []Difference
	for _, p := range areas {
		n, blocks, first, err := countDifferent(ctx, p.a, p.b)
		if err != nil {
			return nil, fmt.Errorf("compare %s: %w", p.name, err)
		}
		if n > 0 {
			out = append(out, Difference{Kind: KindBytes, Name: p.name, Change: Changed, Fields: []Field{
				{Name: "different bytes", B: strconv.FormatInt(n, 10)},
				{Name: "blocks of 4096 bytes", B: strconv.FormatInt(blocks, 10)},
				{Name: "first at byte", B: strconv.FormatInt(first, 10)},
			}})
		}
	}
	return out, nil
}

// countDifferent returns how many bytes, and blocks of 4096 bytes, of two
// sections differ, and where the first one is. What only the longer one has
// counts unless it is zero.
func countDifferent(ctx context.Context, a, b *section) (n, blocks, first int64, err error) {
	const block = 4096
	first = -1
	x, y := make([]byte, zeroUnit), make([]byte, zeroUnit)
	end := max(a.Size(), b.Size())
	fill := func(s *section, p []byte, off int64) error {
		clear(p)
		if have := min(int64(len(p)), s.Size()-off); have > 0 {
			return readFull(s, p[:have], off)
		}
		return nil
	}
	for off := int64(0); off < end; {
		if err := ctx.Err(); err != nil {
			return 0, 0, 0, err
		}
		nextA, _, err1 := nextData(a, min(off, a.Size()))
		nextB, _, err2 := nextData(b, min(off, b.Size()))
		if err := cmp.Or(err1, err2); err != nil {
			return 0, 0, 0, err
		}
		if nextA >= a.Size() {
			nextA = end
		}
		if nextB >= b.Size() {
			nextB = end
		}
		if skip := min(nextA, nextB) / block * block; skip > off {
			off = skip
			continue
		}
		size := min(zeroUnit, end-off)
		if err := cmp.Or(fill(a, x[:size], off), fill(b, y[:size], off)); err != nil {
			return 0, 0, 0, err
		}
		for at := int64(0); at < size; at += block {
			p, q := x[at:min(at+block, size)], y[at:min(at+block, size)]
			if bytes.Equal(p, q) {
				continue
			}
			blocks++
			for i := range p {
				if p[i] != q[i] {
					if first < 0 {
						first = off + at + int64(i)
					}
					n++
				}
			}
		}
		off += size
	}
	return n, blocks, first, nil
}
