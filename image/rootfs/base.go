package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/profiles"
)

// leftOut are the paths of a base image that do not come into the root file
// system: another file system is mounted there, or another kernel is loaded
// than the image's.
func leftOut(name string) bool {
	return slices.Contains([]string{"boot", "dev", "proc", "run", "sys", "tmp", "var", "usr/lib/modules"}, name)
}

// start returns the tree that everything else is put into: an empty one, or
// that of the base image.
func (b *Builder) start(ctx context.Context) (*tree.Tree, error) {
	if b.c.Profile.Base != profiles.BaseOCI {
		return tree.New(), nil
	}
	// What does not fit the slot is refused before it fills the disk.
	t, err := oci.Flatten(ctx, b.c.TempDir, b.c.Inputs.Base, int64(b.c.Profile.Disk.Slot)<<20, leftOut)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"etc/sealift", "usr/lib/sealift", "usr/share/sealift"} {
		if _, err := t.Lookup(name); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("base image: /%s is the image builder's: %w", name, errors.Join(err, fs.ErrExist))
		}
	}
	return t, nil
}

// checkC refuses a base image with a C library that the programs of Debian's
// packages would not find, or not wholly. One without a C library is fine: they
// bring theirs.
func (b *Builder) checkC(t *tree.Tree) error {
	if b.c.Profile.Base != profiles.BaseOCI {
		return nil
	}
	linker := map[string]string{"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}[b.c.Profile.Arch]
	libc := path.Join(libraryDirs(b.c.Profile.Arch)[0], "libc.so.6")
	_, err1 := t.Lookup(linker)
	_, err2 := t.Lookup(libc)
	for _, err := range []error{err1, err2} {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("base image: %w", err)
		}
	}
	if (err1 == nil) != (err2 == nil) {
		return fmt.Errorf("base image: of /%s and /%s only one is there: its C library is not where Debian and its relatives have it", linker, libc)
	}
	return nil
}

// hasLibrary reports whether the base image has a library that a program of a
// package needs, and holds that it has all of its versioned symbols. There is
// one C library in an image; it must be as new as what is linked against it.
func (b *Builder) hasLibrary(t *tree.Tree, name string, program *tree.Node, lib string) (bool, error) {
	if b.c.Profile.Base != profiles.BaseOCI {
		return false, nil
	}
	file, err := b.findLibrary(t, lib)
	if err != nil {
		return false, nil
	}
	n, _, err := t.Resolve(file)
	if err != nil {
		return false, nil // a link to nothing: the package's own takes its place
	}
	have, err := definedVersions(n)
	if err != nil {
		return false, fmt.Errorf("base image: /%s: %w", file, err)
	}
	want, err := neededVersions(program, path.Base(lib))
	if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	for _, v := range want {
		if v == "GLIBC_PRIVATE" || !slices.Contains(have, v) {
			return false, fmt.Errorf("%s needs %s of %s, which the base image's /%s cannot give: take a base image that is at least as new, or one without a C library", name, v, lib, file)
		}
	}
	return true, nil
}
