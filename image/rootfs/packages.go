package rootfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/image/tree"
)

// libraryDirs are where the dynamic linker of Debian looks without a cache
// (glibc, ld.so(8)), by architecture, as in a merged /usr.
func libraryDirs(arch string) []string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[arch]
	return []string{"usr/lib/" + triplet, "usr/lib64", "usr/lib"}
}

// skipped are directories that a whole package does not bring into an image:
// nothing on a node reads them, and nothing is ever installed there later.
func skipped(name string) bool {
	for _, dir := range []string{"usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/",
		"usr/share/lintian/", "usr/share/bug/", "usr/share/bash-completion/", "usr/lib/systemd/", "lib/systemd/",
		"etc/init.d/", "etc/default/", "etc/cron", "boot/"} {
		if strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}

// addPackages adds the wanted files of every package and the shared libraries
// that they need.
func (b *Builder) addPackages(t *tree.Tree) error {
	wanted := map[string][]string{} // package: its wanted files
	for _, c := range b.contents() {
		for _, p := range c.Packages {
			wanted[p.Name] = append(wanted[p.Name], p.Files...)
		}
	}
	if err := b.checkC(t); err != nil {
		return err
	}
	// all holds what might be needed, laid out as in the image; what is needed
	// moves from there to t.
	all := tree.New()
	if err := b.addSkeleton(all); err != nil {
		return err
	}
	var roots []string
	for _, p := range b.c.Inputs.Lock.Debian.Packages {
		if p.Name == b.base.Stub.Package || strings.HasPrefix(p.Name, "linux-image-") {
			continue
		}
		whole := slices.Contains(b.c.Profile.Packages, p.Name)
		got, err := b.collect(all, p.Name, wanted[p.Name], whole)
		if err != nil {
			return err
		}
		roots = append(roots, got...)
	}
	libs, err := b.programLibraries(t, all)
	if err != nil {
		return err
	}
	return b.keep(t, all, append(roots, libs...))
}

// programLibraries returns the shared libraries that the distro's own programs
// need: those of a vendor's release need not be static.
func (b *Builder) programLibraries(t, all *tree.Tree) ([]string, error) {
	var out []string
	programs := tree.New()
	for _, name := range slices.Sorted(maps.Keys(b.c.Inputs.Programs)) {
		needs, err := neededFile(b.c.Inputs.Programs[name])
		if err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
		if err := programs.AddFile(name, b.c.Inputs.Programs[name], 0o755); err != nil {
			return nil, err
		}
		n, err := programs.Lookup(name)
		if err != nil {
			return nil, err
		}
		for _, lib := range needs {
			there, err := b.hasLibrary(t, name, n, lib)
			if err != nil {
				return nil, err
			}
			if there {
				continue
			}
			p, err := b.findLibrary(all, lib)
			if err != nil {
				return nil, fmt.Errorf("program %s needs %s: %w", name, lib, err)
			}
			out = append(out, p)
		}
	}
	return out, nil
}

// neededFile is needed for a file of the machine that builds.
func neededFile(name string) (_ []string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); errors.Is(err, io.EOF) || string(magic[:]) != elf.ELFMAG {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return neededELF(f)
}

// collect adds to all what a package has to offer and returns the paths that
// are wanted of it: the given files, or everything of a whole package.
func (b *Builder) collect(all *tree.Tree, pkg string, files []string, whole bool) ([]string, error) {
	missing := map[string]bool{}
	for _, f := range files {
		missing[strings.TrimPrefix(f, "/")] = true
	}
	var roots []string
	err := b.c.Inputs.ReadPackage(pkg, func(e inputs.DebEntry, r io.Reader) error {
		want := missing[e.Name] || (whole && !skipped(e.Name))
		if e.Mode.IsDir() || (!want && !b.isLibrary(e.Name)) {
			return nil
		}
		delete(missing, e.Name)
		if want {
			roots = append(roots, e.Name)
		}
		return addEntry(all, e, r)
	})
	if err != nil {
		return nil, err
	}
	for f := range missing {
		return nil, fmt.Errorf("package %s has no file /%s", pkg, f)
	}
	return roots, nil
}

// isLibrary reports whether a path of a package, from before or after the
// merge of /usr, can be a shared library that the dynamic linker finds.
func (b *Builder) isLibrary(name string) bool {
	if !strings.HasPrefix(name, "usr/") {
		name = "usr/" + name
	}
	return slices.Contains(libraryDirs(b.c.Profile.Arch), path.Dir(name)) && strings.Contains(path.Base(name), ".so")
}

func addEntry(t *tree.Tree, e inputs.DebEntry, r io.Reader) error {
	switch {
	case e.Mode&fs.ModeSymlink != 0:
		return t.Symlink(e.Link, e.Name)
	case e.Hard != "":
		n, err := t.Lookup(e.Hard)
		if err != nil {
			return fmt.Errorf("hard link %s: %w", e.Name, err)
		}
		return t.Graft(e.Name, n)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return t.WriteFile(e.Name, data, e.Mode)
}

// keep moves the roots from all to t, with the targets of links and the shared
// libraries that they need.
func (b *Builder) keep(t, all *tree.Tree, roots []string) error {
	done := map[string]bool{}
	queue := slices.Clone(roots)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		n, err := all.Lookup(name)
		if err != nil {
			return err
		}
		// Two names of one place, such as lib/x and usr/lib/x, are one.
		if key := b.realDir(all, name); done[key] {
			continue
		} else {
			done[key] = true
		}
		if err := t.Graft(name, n); err != nil {
			return err
		}
		if n.Mode()&fs.ModeSymlink != 0 {
			target := n.Target()
			if !path.IsAbs(target) {
				target = path.Join(path.Dir(b.realDir(all, name)), target)
			}
			if _, err := all.Lookup(target); err == nil {
				queue = append(queue, strings.TrimPrefix(target, "/"))
			}
			continue
		}
		needs, err := needed(n)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, lib := range needs {
			there, err := b.hasLibrary(t, name, n, lib)
			if err != nil {
				return err
			}
			if there {
				continue
			}
			p, err := b.findLibrary(all, lib)
			if err != nil {
				return fmt.Errorf("%s needs %s: %w", name, lib, err)
			}
			queue = append(queue, p)
		}
	}
	return nil
}

// realDir returns the path with the links in its directory resolved.
func (b *Builder) realDir(t *tree.Tree, name string) string {
	if _, dir, err := t.Resolve(path.Dir(name)); err == nil {
		return path.Join(dir, path.Base(name))
	}
	return name
}

func (b *Builder) findLibrary(all *tree.Tree, lib string) (string, error) {
	if path.IsAbs(lib) { // the dynamic linker itself
		_, err := all.Lookup(lib)
		return strings.TrimPrefix(lib, "/"), err
	}
	for _, dir := range libraryDirs(b.c.Profile.Arch) {
		p := path.Join(dir, lib)
		if _, err := all.Lookup(p); err == nil {
			return p, nil
		}
	}
	return "", errors.New("no package of the lock has it in a library directory")
}

// needed returns the dynamic linker and the shared libraries of an ELF file
// (DT_NEEDED), or nothing for any other file.
func needed(n *tree.Node) (_ []string, err error) {
	c, err := n.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	var magic [4]byte
	if n.Size() < 64 {
		return nil, nil
	}
	if _, err := c.ReadAt(magic[:], 0); err != nil {
		return nil, err
	}
	if string(magic[:]) != elf.ELFMAG {
		return nil, nil
	}
	return neededELF(c)
}

// neededELF reads an ELF file that may be damaged.
func neededELF(r io.ReaderAt) ([]string, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		if p.Filesz > tree.MaxPath {
			return nil, fmt.Errorf("name of the dynamic linker has %d bytes", p.Filesz)
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, fmt.Errorf("name of the dynamic linker: %w", err)
		}
		out = append(out, string(bytes.TrimRight(b, "\x00")))
	}
	if f.SectionByType(elf.SHT_DYNAMIC) == nil {
		return out, nil
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("list of shared libraries: %w", err)
	}
	return append(out, libs...), nil
}
