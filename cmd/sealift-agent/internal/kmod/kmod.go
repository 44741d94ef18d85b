// Package kmod loads kernel modules in an order that the image builder worked
// out, with finit_module(2). It resolves nothing itself: Load takes the list
// as the image holds it, dependencies first.
package kmod

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxList bounds the size of a module list, in bytes.
const MaxList = 64 << 10

// Load loads each module file in turn and stops at the first that fails. A
// module that is loaded already, or that is built into the kernel under the
// same name, is no error, and neither is one for hardware or for instructions
// that this machine does not have (ENODEV): whoever cannot do without says so.
func Load(paths []string) error {
	for _, p := range paths {
		if err := loadFile(p); err != nil {
			return err
		}
	}
	return nil
}

func loadFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("load kernel module: %w", err)
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if err == nil || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if reason := explain(err); reason != "" {
		return fmt.Errorf("load kernel module %s: %s: %w", path, reason, err)
	}
	return fmt.Errorf("load kernel module %s: %w", path, err)
}

// explain says what the kernel means by an error of finit_module(2) whose own
// text leads astray. It is empty where the text is enough.
func explain(err error) string {
	switch {
	case errors.Is(err, unix.ENOEXEC):
		return "not an uncompressed module for this kernel"
	case errors.Is(err, unix.ENOENT):
		return "a symbol or module that it needs is not loaded"
	case errors.Is(err, unix.EKEYREJECTED), errors.Is(err, unix.ENOKEY):
		return "its signature is missing or not trusted by this kernel"
	case errors.Is(err, unix.EPERM):
		return "module loading is not permitted or locked down"
	}
	return ""
}

// ReadList reads a list of module files, one absolute path a line. Blank
// lines and lines that start with # are skipped.
func ReadList(r io.Reader) ([]string, error) {
	var paths []string
	lr := &io.LimitedReader{R: r, N: MaxList + 1}
	s := bufio.NewScanner(lr)
	for n := 1; s.Scan(); n++ {
		p := strings.TrimSpace(s.Text())
		if p == "" || p[0] == '#' {
			continue
		}
		if !filepath.IsAbs(p) || filepath.Clean(p) != p {
			return nil, fmt.Errorf("module list line %d: %q is not a clean absolute path", n, p)
		}
		paths = append(paths, p)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read module list: %w", err)
	}
	if lr.N == 0 {
		return nil, fmt.Errorf("read module list: longer than %d bytes", MaxList)
	}
	return paths, nil
}
