package inputs

import (
	"bufio"
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/sealift/sealift/profiles"
)

// goModule is a module as "go list -json" has it.
type goModule struct {
	Path, Version, Sum string
	Main               bool
	Replace            *goModule
}

// locked is the module that is really built, or nothing for sources that are
// not from the module cache.
func (m *goModule) locked() (profiles.LockedModule, bool) {
	if m == nil || m.Main {
		return profiles.LockedModule{}, false
	}
	if m.Replace != nil {
		m = m.Replace
	}
	if m.Sum == "" { // a directory
		return profiles.LockedModule{}, false
	}
	return profiles.LockedModule{Path: m.Path, Version: m.Version, Sum: m.Sum}, true
}

// sortModules puts modules in order of path and version, each once.
func sortModules(list []profiles.LockedModule) []profiles.LockedModule {
	slices.SortFunc(list, func(a, b profiles.LockedModule) int {
		return strings.Compare(a.Path+" "+a.Version, b.Path+" "+b.Version)
	})
	return slices.Compact(list)
}

// moduleDigest is the hex SHA-256 over the modules of a program: a line of
// path, version and go.sum digest for each, in order.
func moduleDigest(list []profiles.LockedModule) string {
	var b strings.Builder
	for _, m := range sortModules(slices.Clone(list)) {
		fmt.Fprintf(&b, "%s %s %s\n", m.Path, m.Version, m.Sum)
	}
	return hexSum([]byte(b.String()))
}

// linkedModules lists, for each package, the modules that a program of it
// links. All are downloaded and checked against go.sum on the way.
func (f *Fetcher) linkedModules(ctx context.Context, dir, toolchain, arch string, packages []string) (map[string][]profiles.LockedModule, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-mod=readonly", "-deps", "-json=ImportPath,Dir,Standard,Module,Deps,DepOnly,Error"}, packages...)...)
	cmd.Dir = dir
	var err error
	if cmd.Env, err = f.goEnv(ctx, toolchain, arch); err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	type pkg struct {
		ImportPath, Dir   string
		Standard, DepOnly bool
		Module            *goModule
		Deps              []string
		Error             *struct{ Err string }
	}
	byPath := map[string]pkg{}
	var roots []pkg
	dec := json.NewDecoder(bufio.NewReader(bytes.NewReader(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if p.Error != nil {
			return nil, fmt.Errorf("go list: %s: %s", p.ImportPath, p.Error.Err)
		}
		byPath[p.ImportPath] = p
		if !p.DepOnly {
			roots = append(roots, p)
		}
	}
	result := map[string][]profiles.LockedModule{}
	for _, root := range roots {
		var list []profiles.LockedModule
		for _, name := range append([]string{root.ImportPath}, root.Deps...) {
			if m, ok := byPath[name].Module.locked(); ok {
				list = append(list, m)
			}
		}
		result[root.ImportPath] = sortModules(list)
	}
	return result, nil
}

// checkModules compares the modules that a finished program names with those
// that the lock pins.
func (b build) checkModules(program string) error {
	if b.Modules == "" {
		return nil
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return fmt.Errorf("program %s: %w", b.Name, err)
	}
	if got := moduleDigest(infoModules(info)); got != b.Modules {
		g, gerr := parseSum(got)
		w, werr := parseSum(b.Modules)
		if err := errors.Join(gerr, werr); err != nil {
			return fmt.Errorf("program %s: %w", b.Name, err)
		}
		return &MismatchError{Artifact: "module list of program " + b.Name, Source: "its build", Got: g, Want: w}
	}
	return nil
}

func infoModules(info *debug.BuildInfo) []profiles.LockedModule {
	var list []profiles.LockedModule
	// The module of the main package stands apart, but is one like the others
	// unless it is a directory, which has no digest.
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Replace != nil {
			m = m.Replace
		}
		if m.Sum != "" {
			list = append(list, profiles.LockedModule{Path: m.Path, Version: m.Version, Sum: m.Sum})
		}
	}
	return list
}
