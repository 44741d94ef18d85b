package inputs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sealift/sealift/profiles"
)

// sourceLDFlags are those of preloaded programs: without symbol tables, which
// nothing on a node reads.
const sourceLDFlags = "-s -w"

// buildSource builds a preloaded image's program, after comparing its sources
// with the lock.
func (f *Fetcher) buildSource(ctx context.Context, toolchain, arch string, s profiles.LockedSource) (string, error) {
	dir := f.beside(s.Path)
	got, _, err := f.sourceSum(ctx, dir, toolchain, arch)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", s.Name, f.offline("program of image "+s.Name, err))
	}
	if got != s.Sum {
		return "", &StaleError{Profile: f.Profile, Reason: fmt.Errorf("image %s: sources in %s have digest %s, the lock pins %s", s.Name, dir, got, s.Sum)}
	}
	file, err := f.goBuild(ctx, build{
		Name:      s.Name,
		Dir:       dir,
		Package:   ".",
		LDFlags:   sourceLDFlags,
		Toolchain: toolchain,
		Arch:      arch,
		Inputs:    []string{s.Sum},
		Modules:   moduleDigest(s.Modules),
	})
	if err != nil {
		return "", fmt.Errorf("image %s: build %s: %w", s.Name, dir, err)
	}
	return file, nil
}

// goPackage is what "go list -json" says about a package.
type goPackage struct {
	ImportPath                          string
	Dir                                 string
	Name                                string
	Standard                            bool
	Module                              *goModule
	GoFiles, SFiles, HFiles, EmbedFiles []string
	Error                               *struct{ Err string }
}

// sourceSum is the digest over a main package's sources: of each package that
// it links and that does not come from the module cache, the import path and
// the digest of each file; of each other module, path, version and go.sum
// digest. The standard library is the toolchain's, which the lock pins too.
func (f *Fetcher) sourceSum(ctx context.Context, dir, toolchain, arch string) (string, []profiles.LockedModule, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return "", nil, err
	}
	if !st.IsDir() {
		return "", nil, fmt.Errorf("%s is not a directory of Go sources", dir)
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-mod=readonly", "-deps", "-json", ".")
	cmd.Dir = dir
	if cmd.Env, err = f.goEnv(ctx, toolchain, arch); err != nil {
		return "", nil, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", nil, fmt.Errorf("go list in %s: %w\n%s", dir, err, bytes.TrimSpace(stderr.Bytes()))
	}
	var lines []string
	var modules []profiles.LockedModule
	dec := json.NewDecoder(bufio.NewReader(bytes.NewReader(out)))
	main := ""
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", nil, fmt.Errorf("go list in %s: %w", dir, err)
		}
		if p.Error != nil {
			return "", nil, fmt.Errorf("go list in %s: %s: %s", dir, p.ImportPath, p.Error.Err)
		}
		main = p.Name // dependencies come first, the package itself last
		switch {
		case p.Standard:
		default:
			if m, ok := p.Module.locked(); ok {
				modules = append(modules, m)
				continue
			}
			files := slices.Concat(p.GoFiles, p.SFiles, p.HFiles, p.EmbedFiles)
			for _, name := range files {
				d, err := fileSum(filepath.Join(p.Dir, name))
				if err != nil {
					return "", nil, err
				}
				lines = append(lines, fmt.Sprintf("%s/%s %s", p.ImportPath, filepath.ToSlash(name), d))
			}
		}
	}
	if main != "main" {
		return "", nil, fmt.Errorf("%s holds package %q, want a main package", dir, main)
	}
	modules = sortModules(modules)
	for _, m := range modules {
		lines = append(lines, m.Path+" "+m.Version+" "+m.Sum)
	}
	slices.Sort(lines)
	return hexSum([]byte(strings.Join(lines, "\n"))), modules, nil
}

func fileSum(path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
