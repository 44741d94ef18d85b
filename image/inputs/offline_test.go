package inputs

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
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
	t.Setenv("GOSUMDB", sumDB(t)+" "+address)
	t.Setenv("HTTP_PROXY", address)
	t.Setenv("HTTPS_PROXY", address)
	t.Setenv("GOFLAGS", "-mod=mod")
	return &http.Client{Transport: trap{t}}
}

// sumDB is the name of the go command's own checksum database.
func sumDB(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("go", "env", "GOSUMDB")
	cmd.Env = append(os.Environ(), "GOENV=off", "GOSUMDB=")
	out, err := cmd.Output()
	must(t, err)
	return strings.TrimSpace(string(out))
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
	f, b := wanting(t, client)
	dir := b.Dir
	f.Profile = filepath.Join(dir, "p.yaml")
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

// wanting is a main package of a module that is nowhere to be had, and what
// builds it without a network.
func wanting(t *testing.T, client *http.Client) (*Fetcher, build) {
	t.Helper()
	dir := t.TempDir()
	must(t,
		os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module hello.example\n\ngo 1.24\n\nrequire golang.org/x/mod v0.20.0\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "go.sum"), []byte("golang.org/x/mod v0.20.0 h1:utOm6MM3R3dnawAiJgn0y+xvuYRsm1RKM/4giyfDgV0=\ngolang.org/x/mod v0.20.0/go.mod h1:hTbmBsO62+eylJbnUtE2MGJUyE7QWk4xUqPFrRgJ+7c=\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nimport \"golang.org/x/mod/semver\"\n\nfunc main() { println(semver.IsValid(\"v1\")) }\n"), 0o644))
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Client: client, Offline: true}
	return f, build{Name: "hello", Dir: dir, Package: ".", Toolchain: toolchain(t), Arch: runtime.GOARCH}
}

// byFile makes settings of the go command as "go env -w" does.
func byFile(t *testing.T, settings map[string]string) {
	t.Helper()
	var text strings.Builder
	for name, value := range settings {
		t.Setenv(name, "")
		text.WriteString(name + "=" + value + "\n")
	}
	file := filepath.Join(t.TempDir(), "env")
	must(t, os.WriteFile(file, []byte(text.String()), 0o600))
	t.Setenv("GOENV", file)
}

func TestNoSettingOfTheGoCommandLeadsAnOfflineBuildToTheNetwork(t *testing.T) {
	for claim, settings := range map[string]map[string]string{
		"private modules":          {"GOPRIVATE": "*"},
		"modules without a proxy":  {"GONOPROXY": "golang.org/x/*", "GOVCS": "*:all"},
		"private, and no TLS":      {"GOPRIVATE": "golang.org/*", "GOINSECURE": "*"},
		"no proxy, no checksums":   {"GOPROXY": "direct", "GONOSUMDB": "*", "GOSUMDB": "off"},
		"flags that change go.mod": {"GOFLAGS": "-mod=mod"},
	} {
		t.Run(claim, func(t *testing.T) {
			f, b := wanting(t, cutOff(t))
			t.Setenv("GOMODCACHE", t.TempDir())
			refused := func(where string) {
				var offline *OfflineError
				if _, err := f.goBuild(t.Context(), b); !errors.As(err, &offline) {
					t.Errorf("settings of %s: got %v, want an OfflineError", where, err)
				}
			}
			t.Run("environment", func(t *testing.T) {
				for name, value := range settings {
					t.Setenv(name, value)
				}
				refused("the environment")
			})
			t.Run("file", func(t *testing.T) {
				byFile(t, settings)
				refused("go env -w")
			})
		})
	}
}

func TestAnOfflineBuildDoesNotAskTheChecksumDatabase(t *testing.T) {
	f, b := wanting(t, cutOff(t))
	// A toolchain in the module cache without what the database said of it.
	cache := t.TempDir()
	t.Setenv("GOMODCACHE", cache)
	version := "v0.0.1-go1.99.1." + runtime.GOOS + "-" + runtime.GOARCH
	info := filepath.Join(cache, "cache", "download", "golang.org", "toolchain", "@v")
	must(t,
		os.MkdirAll(filepath.Join(cache, "golang.org", "toolchain@"+version, "bin"), 0o755),
		os.MkdirAll(info, 0o755),
		os.WriteFile(filepath.Join(info, version+".ziphash"), []byte("h1:utOm6MM3R3dnawAiJgn0y+xvuYRsm1RKM/4giyfDgV0="), 0o600))
	b.Toolchain = "go1.99.1"
	name := sumDB(t)
	for _, db := range []string{os.Getenv("GOSUMDB"), name, strings.TrimSuffix(name, ".org") + ".google.cn"} {
		t.Setenv("GOSUMDB", db)
		var offline *OfflineError
		if _, err := f.goBuild(t.Context(), b); !errors.As(err, &offline) || !strings.Contains(err.Error(), "checksum") && !strings.Contains(err.Error(), "verifying") {
			t.Errorf("GOSUMDB=%s: got %v, want an OfflineError about the checksum", db, err)
		}
	}
}

func TestAnOfflineGoCommandSendsNoTelemetry(t *testing.T) {
	tc := toolchain(t)
	config := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(config, "go", "telemetry"), 0o755),
		os.WriteFile(filepath.Join(config, "go", "telemetry", "mode"), []byte("on 2020-01-01\n"), 0o600))
	t.Setenv("XDG_CONFIG_HOME", config)
	for _, offline := range []bool{false, true} {
		f := &Fetcher{Offline: offline}
		if mode := goEnvOf(t, f, tc)["GOTELEMETRY"]; (mode == "on") == offline {
			t.Errorf("offline %t: telemetry is %s", offline, mode)
		}
	}
}

// goEnvOf is what the go command makes of a fetcher's environment.
func goEnvOf(t *testing.T, f *Fetcher, toolchain string) map[string]string {
	t.Helper()
	cmd := exec.Command("go", "env", "-json")
	var err error
	cmd.Env, err = f.goEnv(t.Context(), toolchain, runtime.GOARCH)
	must(t, err)
	out, err := cmd.Output()
	must(t, err)
	var env map[string]string
	must(t, json.Unmarshal(out, &env))
	return env
}

func TestSettingsOfTheGoCommandDoNotChangeWhatIsBuilt(t *testing.T) {
	tc := toolchain(t)
	byFile(t, nil)
	dir := hello(t)
	must(t, os.WriteFile(filepath.Join(dir, "tagged.go"), []byte("//go:build other\n\npackage main\n\nfunc init() { println(\"other\") }\n"), 0o644))
	made := func(t *testing.T) (string, string) {
		t.Helper()
		f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Offline: true}
		sum, _, err := f.sourceSum(t.Context(), dir, tc, runtime.GOARCH)
		must(t, err)
		file, err := f.goBuild(t.Context(), build{Name: "hello", Dir: dir, Package: ".", Toolchain: tc, Arch: runtime.GOARCH})
		must(t, err)
		return sum, filepath.Base(file)
	}
	sum, program := made(t)
	settings := map[string]string{
		"GOFLAGS": "-tags=other -gcflags=all=-N", "GOEXPERIMENT": "nogreenteagc", "CGO_ENABLED": "1", "GO111MODULE": "off",
		"GOWORK": filepath.Join(dir, "go.work"), "GOCACHEPROG": "false", "GOTOOLCHAIN": "go1.99.1", "GOAMD64": "v3",
	}
	for name, value := range settings {
		for _, where := range []string{"environment", "file"} {
			t.Run(name+" "+where, func(t *testing.T) {
				if where == "file" {
					byFile(t, map[string]string{name: value})
				} else {
					t.Setenv(name, value)
				}
				if s, p := made(t); s != sum || p != program {
					t.Errorf("sources %s, program %s; want %s and %s", s, p, sum, program)
				}
			})
		}
	}
}

func TestWhereModulesComeFromIsTheUsersToSay(t *testing.T) {
	tc := toolchain(t)
	mod := t.TempDir()
	want := map[string]string{"GOPROXY": "https://proxy.example", "GOPRIVATE": "shop.example", "GOSUMDB": "off", "GOMODCACHE": mod}
	byFile(t, want)
	got := goEnvOf(t, &Fetcher{}, tc)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
	if got["GONOPROXY"] != "shop.example" {
		t.Errorf("GONOPROXY is %q", got["GONOPROXY"])
	}
	if got := goEnvOf(t, &Fetcher{Offline: true}, tc); got["GOMODCACHE"] != mod || got["GOPROXY"] != "off" || got["GOPRIVATE"] != "" {
		t.Errorf("offline: %v", got)
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
