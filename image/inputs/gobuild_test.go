package inputs

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/sealift/sealift/profiles"
)

// hello is a module with one main package and one that it imports.
func hello(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t,
		os.MkdirAll(filepath.Join(dir, "word"), 0o755),
		os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module hello.example\n\ngo 1.24\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nimport \"hello.example/word\"\n\nfunc main() { println(word.Word) }\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "word", "word.go"), []byte("package word\n\nconst Word = \"hello\"\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "unused_windows.go"), []byte("package main\n"), 0o644),
	)
	return dir
}

func toolchain(t *testing.T) string {
	t.Helper()
	needTool(t, "go")
	return strings.Fields(runtime.Version())[0]
}

func TestSourceBuildsAreStaticAndRemembered(t *testing.T) {
	tc := toolchain(t)
	dir := hello(t)
	var built int
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: filepath.Join(dir, "p.yaml"), Offline: true, Progress: func(e Event) {
		if strings.HasPrefix(e.Line, "built") {
			built++
		}
	}}
	sum, _, err := f.sourceSum(t.Context(), dir, tc, runtime.GOARCH)
	must(t, err)
	s := profiles.LockedSource{Name: "docker.io/x/hello:1", Path: ".", Sum: sum}
	first, err := f.buildSource(t.Context(), tc, runtime.GOARCH, s)
	must(t, err)
	e, err := elf.Open(first)
	must(t, err)
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the program is not static")
		}
	}
	must(t, e.Close())
	if again, err := f.buildSource(t.Context(), tc, runtime.GOARCH, s); err != nil || again != first || built != 1 {
		t.Errorf("second build: %v, built %d times, want once", err, built)
	}
	// The same source in another place and another cache is the same program.
	other := hello(t)
	g := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: filepath.Join(other, "p.yaml"), Offline: true}
	if sum2, _, err := g.sourceSum(t.Context(), other, tc, runtime.GOARCH); err != nil || sum2 != sum {
		t.Errorf("digest of the same sources elsewhere: %s, %v, want %s", sum2, err, sum)
	}
	if second, err := g.buildSource(t.Context(), tc, runtime.GOARCH, s); err != nil || filepath.Base(second) != filepath.Base(first) {
		t.Errorf("the same sources elsewhere give %s, %v, want digest %s", second, err, filepath.Base(first))
	}
	bin := t.TempDir()
	must(t, InstallPrograms(bin, map[string]string{"hello": first}), InstallPrograms(bin, map[string]string{"hello": first}))
	if out, err := exec.Command(filepath.Join(bin, "hello")).CombinedOutput(); err != nil || string(out) != "hello\n" {
		t.Errorf("installed program: %q, %v", out, err)
	}
}

func TestChangedSourcesAreStale(t *testing.T) {
	tc := toolchain(t)
	dir := hello(t)
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: filepath.Join(dir, "p.yaml"), Offline: true}
	sum, _, err := f.sourceSum(t.Context(), dir, tc, runtime.GOARCH)
	must(t, err, os.WriteFile(filepath.Join(dir, "word", "word.go"), []byte("package word\n\nconst Word = \"bye\"\n"), 0o644))
	var stale *StaleError
	if _, err := f.buildSource(t.Context(), tc, runtime.GOARCH, profiles.LockedSource{Name: "x", Path: ".", Sum: sum}); !errors.As(err, &stale) {
		t.Errorf("got %v, want a StaleError", err)
	}
}

func TestFailedBuildsShowWhatTheCompilerSaid(t *testing.T) {
	tc := toolchain(t)
	dir := hello(t)
	must(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() { undefined() }\n"), 0o644))
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Offline: true}
	_, err := f.goBuild(t.Context(), build{Name: "x", Dir: dir, Package: ".", Toolchain: tc, Arch: runtime.GOARCH})
	if err == nil || !strings.Contains(err.Error(), "undefined: undefined") {
		t.Errorf("got %v, want the compiler's message", err)
	}
	if _, _, err := f.sourceSum(t.Context(), filepath.Join(dir, "word"), tc, runtime.GOARCH); err == nil || !strings.Contains(err.Error(), "want a main package") {
		t.Errorf("a library as a program: %v", err)
	}
	if _, _, err := f.sourceSum(t.Context(), filepath.Join(dir, "none"), tc, runtime.GOARCH); err == nil {
		t.Error("a missing directory has a digest")
	}
}

func TestGoLocksOfOtherModuleFilesAreStale(t *testing.T) {
	d, err := profiles.LoadDistro("kubernetes")
	must(t, err)
	v := &d.Versions[0]
	m, err := d.Module(v)
	must(t, err)
	fresh := func() *profiles.Lock {
		l := &profiles.Lock{Arch: "amd64", Go: profiles.LockedGo{Toolchain: "go1.26.8", ModSHA256: hexSum(m.Mod), SumSHA256: hexSum(m.Sum)}}
		for _, b := range v.Builds {
			l.Go.Builds = append(l.Go.Builds, lockedBuild(b, v, m))
		}
		return l
	}
	must(t, checkGoLock(fresh(), v, m))
	for claim, edit := range map[string]func(*profiles.Lock){
		"go.mod":  func(l *profiles.Lock) { l.Go.ModSHA256 = hexSum(nil) },
		"go.sum":  func(l *profiles.Lock) { l.Go.SumSHA256 = hexSum(nil) },
		"main":    func(l *profiles.Lock) { l.Go.Builds[len(l.Go.Builds)-1].MainSHA256 = hexSum(nil) },
		"ldflags": func(l *profiles.Lock) { l.Go.Builds[0].LDFlags = "" },
		"build":   func(l *profiles.Lock) { l.Go.Builds = l.Go.Builds[1:] },
	} {
		l := fresh()
		edit(l)
		var stale *StaleError
		f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Offline: true}
		if _, err := f.GoBuild(t.Context(), l, d, v); !errors.As(err, &stale) {
			t.Errorf("another %s: got %v, want a StaleError", claim, err)
		}
	}
}
