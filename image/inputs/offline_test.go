package inputs

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/profiles"
)

// cutOff makes every way to the network that a build could take one on which
// the test fails: the fetcher's client, the go command's module proxy and
// checksum database, and proxies of the environment.
func cutOff(t *testing.T) *http.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // the listener was closed
			}
			t.Error("something called the network")
			_ = c.Close() // the caller's failure is reported
		}
	}()
	address := "http://" + l.Addr().String()
	t.Setenv("GOPROXY", address)
	t.Setenv("GOSUMDB", "sum.golang.org "+address)
	t.Setenv("HTTP_PROXY", address)
	t.Setenv("HTTPS_PROXY", address)
	t.Setenv("GOFLAGS", "-mod=mod")
	return &http.Client{Transport: trap{t}}
}

func TestAnOfflineFetchTouchesNoNetwork(t *testing.T) {
	tc := toolchain(t)
	v := vendors(t)[0]
	_, n, r, p := world(t, v)
	n.push(t, till)
	dir := hello(t)
	writeLayout(t, filepath.Join(dir, "layout"), oci.AnnotationName, "docker.io/x/layout:1")
	var archive bytes.Buffer
	program := filepath.Join(dir, "program")
	must(t, os.WriteFile(program, []byte("program"), 0o755))
	must(t, oci.WriteArchive(&archive, oci.Image{Name: "docker.io/x/archive:1", Arch: "amd64", Program: program, Path: "/p", Epoch: 1}),
		os.WriteFile(filepath.Join(dir, "a.tar"), archive.Bytes(), 0o644))
	p.Preload.Images = []profiles.PreloadImage{
		{Name: till}, {Name: "docker.io/x/layout:1", Layout: "layout"}, {Name: "docker.io/x/archive:1", Archive: "a.tar"}, {Name: "docker.io/x/hello:1", Go: "."},
	}
	must(t, p.Validate())
	r.Profile = filepath.Join(dir, "shop.yaml")
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	if lock.Go.Toolchain != tc {
		t.Fatalf("toolchain %s, want %s", lock.Go.Toolchain, tc)
	}
	f := &Fetcher{Cache: r.Cache, Client: n.client(), Profile: r.Profile}
	online, err := f.Fetch(t.Context(), p, lock)
	must(t, err)
	f.Client, f.Offline = cutOff(t), true
	offline, err := f.Fetch(t.Context(), p, lock)
	must(t, err)
	for what, pair := range map[string][2]map[string]string{
		"packages": {online.Packages, offline.Packages}, "programs": {online.Programs, offline.Programs},
		"archives": {online.Archives, offline.Archives}, "sources": {online.Sources, offline.Sources},
	} {
		if len(pair[0]) == 0 || len(pair[0]) != len(pair[1]) {
			t.Errorf("%s: %d online, %d offline", what, len(pair[0]), len(pair[1]))
		}
		for name, file := range pair[0] {
			if pair[1][name] != file {
				t.Errorf("%s: %s is %s online and %s offline", what, name, file, pair[1][name])
			}
		}
	}
	// With nothing in the cache, the first input that is missed is named.
	f.Cache = Cache{Dir: t.TempDir()}
	var missing *OfflineError
	if _, err := f.Fetch(t.Context(), p, lock); !errors.As(err, &missing) || !strings.Contains(err.Error(), "busybox-static") {
		t.Errorf("an empty cache: got %v, want an OfflineError that names the package", err)
	}
	if _, err := f.fetchRelease(t.Context(), lock, mustDistro(t, "k3s")); !errors.As(err, &missing) || !strings.Contains(err.Error(), "k3s v1.34.1+k3s1 file k3s") {
		t.Errorf("an empty cache: got %v, want an OfflineError that names the file", err)
	}
}

func TestAnOfflineGoBuildWithoutItsModulesSaysSo(t *testing.T) {
	tc := toolchain(t)
	client := cutOff(t)
	t.Setenv("GOMODCACHE", t.TempDir())
	dir := hello(t)
	must(t,
		os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module hello.example\n\ngo 1.24\n\nrequire golang.org/x/mod v0.20.0\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "go.sum"), []byte("golang.org/x/mod v0.20.0 h1:utOm6MM3R3dnawAiJgn0y+xvuYRsm1RKM/4giyfDgV0=\ngolang.org/x/mod v0.20.0/go.mod h1:hTbmBsO62+eylJbnUtE2MGJUyE7QWk4xUqPFrRgJ+7c=\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nimport \"golang.org/x/mod/semver\"\n\nfunc main() { println(semver.IsValid(\"v1\")) }\n"), 0o644))
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Client: client, Offline: true, Profile: filepath.Join(dir, "p.yaml")}
	var offline *OfflineError
	_, err := f.buildSource(t.Context(), tc, runtime.GOARCH, profiles.LockedSource{Name: "docker.io/x/hello:1", Path: ".", Sum: hexSum(nil)})
	if !errors.As(err, &offline) || !strings.Contains(err.Error(), "docker.io/x/hello:1") || offline.Hint() == "" {
		t.Errorf("a module that is not there: got %v, want an OfflineError", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() {}\n"), 0o644))
	_, err = f.goBuild(t.Context(), build{Name: "x", Dir: dir, Package: ".", Toolchain: "go1.99.1", Arch: runtime.GOARCH})
	if !errors.As(err, &offline) {
		t.Errorf("a toolchain that is not there: got %v, want an OfflineError", err)
	}
}

func TestAProgramThatLinksOtherModulesIsRefused(t *testing.T) {
	tc := toolchain(t)
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Offline: true}
	good := build{Name: "hello", Dir: hello(t), Package: ".", Toolchain: tc, Arch: runtime.GOARCH, Modules: moduleDigest(nil)}
	if _, err := f.goBuild(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.Modules = moduleDigest([]profiles.LockedModule{{Path: "example.org/x", Version: "v1.0.0", Sum: "h1:x"}})
	var mismatch *MismatchError
	if _, err := f.goBuild(t.Context(), bad); !errors.As(err, &mismatch) || !strings.Contains(err.Error(), "module list of program hello") {
		t.Errorf("a remembered program: got %v, want a MismatchError", err)
	}
	f.Cache = Cache{Dir: t.TempDir()}
	if _, err := f.goBuild(t.Context(), bad); !errors.As(err, &mismatch) {
		t.Errorf("a new program: got %v, want a MismatchError", err)
	}
}
