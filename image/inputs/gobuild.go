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
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// build is one run of the go command, and all that decides its output.
type build struct {
	Name      string // for messages
	Dir       string // module directory
	Package   string // argument of go build
	LDFlags   string
	Toolchain string // e.g. go1.26.8
	Arch      string // GOARCH
	// Inputs are digests of what is compiled; with the fields above they are
	// the key under which the output is remembered.
	Inputs []string
	// Modules is the digest over the modules that the program must turn out to
	// link; see moduleDigest.
	Modules string
}

// maxProgram bounds a built program, in bytes.
const maxProgram = 1 << 30

// GoBuild builds programs of the lock's distro that are named, or all those
// that have a place in the root file system if none is, and returns their
// files by name. The output of an earlier build with the same inputs is taken
// from the cache. The Go command checks every module against the distro's
// go.sum, which the lock pins.
func (f *Fetcher) GoBuild(ctx context.Context, lock *profiles.Lock, d *profiles.Distro, v *profiles.DistroVersion, names ...string) (_ map[string]string, err error) {
	m, err := d.Module(v)
	if err != nil {
		return nil, err
	}
	if err := checkGoLock(lock, v, m); err != nil {
		return nil, &StaleError{Profile: f.Profile, Reason: err}
	}
	modules := map[string]string{}
	for _, b := range lock.Go.Builds {
		modules[b.Name] = b.ModulesSHA256
	}
	dir, err := moduleDir(m)
	if err != nil {
		return nil, fmt.Errorf("build programs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	out := map[string]string{}
	for _, b := range v.Builds {
		if !chosen(b, names) {
			continue
		}
		run := build{
			Name:      b.Name,
			Dir:       dir,
			Package:   b.Package,
			LDFlags:   v.LDFlags,
			Toolchain: lock.Go.Toolchain,
			Arch:      lock.Arch,
			Inputs:    []string{lock.Go.ModSHA256, lock.Go.SumSHA256},
			Modules:   modules[b.Name],
		}
		if b.Main != "" {
			run.Package = "./" + b.Name
			run.Inputs = append(run.Inputs, hexSum(m.Mains[b.Name]))
		}
		if out[b.Name], err = f.goBuild(ctx, run); err != nil {
			return nil, fmt.Errorf("build %s %s: %w", b.Name, v.Version, err)
		}
	}
	for _, name := range names {
		if out[name] == "" {
			return nil, fmt.Errorf("build programs: distro %s %s has no program %s", d.Name, v.Version, name)
		}
	}
	return out, nil
}

// InstallPrograms copies programs of GoBuild into a directory under their own
// names, executable, to be run on this machine.
func InstallPrograms(dir string, programs map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install programs: %w", err)
	}
	for name, file := range programs {
		if err := installProgram(filepath.Join(dir, name), file); err != nil {
			return fmt.Errorf("install %s: %w", name, err)
		}
	}
	return nil
}

func installProgram(to, from string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	// A new file every time: the old one may be running, and then cannot be
	// written to.
	tmp, err := os.CreateTemp(filepath.Dir(to), ".install-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(tmp, src)
	err = errors.Join(err, tmp.Chmod(0o755), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), to)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

func chosen(b profiles.GoBuild, names []string) bool {
	if len(names) == 0 {
		return b.Path != ""
	}
	for _, n := range names {
		if b.Name == n {
			return true
		}
	}
	return false
}

// checkGoLock compares the distro's module files with what the lock pins.
func checkGoLock(lock *profiles.Lock, v *profiles.DistroVersion, m *profiles.GoModule) error {
	if got := hexSum(m.Mod); got != lock.Go.ModSHA256 {
		return fmt.Errorf("go.mod of the distro %s has SHA-256 %s, the lock pins %s", v.Version, got, lock.Go.ModSHA256)
	}
	if got := hexSum(m.Sum); got != lock.Go.SumSHA256 {
		return fmt.Errorf("go.sum of the distro %s has SHA-256 %s, the lock pins %s", v.Version, got, lock.Go.SumSHA256)
	}
	locked := map[string]profiles.LockedBuild{}
	for _, b := range lock.Go.Builds {
		locked[b.Name] = b
	}
	for _, b := range v.Builds {
		want, got := lockedBuild(b, v, m), locked[b.Name]
		if want.ModulesSHA256 = got.ModulesSHA256; got != want {
			return fmt.Errorf("build of %s is %+v, the lock pins %+v", b.Name, want, got)
		}
	}
	return nil
}

func lockedBuild(b profiles.GoBuild, v *profiles.DistroVersion, m *profiles.GoModule) profiles.LockedBuild {
	l := profiles.LockedBuild{Name: b.Name, Package: b.Package, LDFlags: v.LDFlags}
	if b.Main != "" {
		l.Package, l.MainSHA256 = b.Main, hexSum(m.Mains[b.Name])
	}
	return l
}

// moduleDir lays out a module in a temporary directory.
func moduleDir(m *profiles.GoModule) (string, error) {
	dir, err := os.MkdirTemp("", "sealift-go-")
	if err != nil {
		return "", err
	}
	if err := writeModule(dir, m); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// writeModule lays out the module in which a distro's programs are built. Its
// path is not part of the output: -trimpath keeps it out.
func writeModule(dir string, m *profiles.GoModule) error {
	errs := []error{
		os.WriteFile(filepath.Join(dir, "go.mod"), m.Mod, 0o644),
		os.WriteFile(filepath.Join(dir, "go.sum"), m.Sum, 0o644),
	}
	for name, src := range m.Mains {
		errs = append(errs,
			os.MkdirAll(filepath.Join(dir, name), 0o755),
			os.WriteFile(filepath.Join(dir, name, "main.go"), src, 0o644))
	}
	return errors.Join(errs...)
}

// key is what a program is remembered by: all that it is made from. Programs of
// version 1 may have been built with flags of the user's, which it did not have.
func (b build) key() string {
	h := sha256.New()
	for _, s := range append([]string{"sealift.dev/go-build/v2", b.Package, b.LDFlags, b.Toolchain, b.Arch}, b.Inputs...) {
		fmt.Fprintf(h, "%q\n", s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (f *Fetcher) goBuild(ctx context.Context, b build) (string, error) {
	key := b.key()
	file, err := f.Cache.recall(ctx, memoGoBuild, key)
	if err == nil {
		return file, b.checkModules(file)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", named(err, "program "+b.Name, "")
	}
	sum, file, err := f.runGo(ctx, b)
	if err != nil {
		return "", err
	}
	return file, f.Cache.remember(memoGoBuild, key, sum)
}

// runGo runs go build and stores the program in the cache.
func (f *Fetcher) runGo(ctx context.Context, b build) (_ manifest.SHA256, _ string, err error) {
	var none manifest.SHA256
	tmp, err := os.MkdirTemp("", "sealift-out-")
	if err != nil {
		return none, "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	out := filepath.Join(tmp, "program")
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false",
		"-ldflags="+b.LDFlags, "-o", out, b.Package)
	cmd.Dir = b.Dir
	if cmd.Env, err = f.goEnv(ctx, b.Toolchain, b.Arch); err != nil {
		return none, "", err
	}
	cmd.WaitDelay = 10 * time.Second
	start := time.Now()
	f.report(Event{Item: "program " + b.Name, Line: "building with " + b.Toolchain})
	if err := f.runLines(cmd, "program "+b.Name); err != nil {
		return none, "", f.offline("program "+b.Name, err)
	}
	if err := b.checkModules(out); err != nil {
		return none, "", err
	}
	p, err := os.Open(out)
	if err != nil {
		return none, "", err
	}
	sum, file, err := f.Cache.Put(ctx, p, none, maxProgram)
	if err := errors.Join(err, p.Close()); err != nil {
		return none, "", err
	}
	f.report(Event{Item: "program " + b.Name, Line: fmt.Sprintf("built in %s", time.Since(start).Round(time.Second))})
	return sum, file, nil
}

// goSettings are the settings of the go command that stay the user's: where
// modules come from, and where they and what was compiled are kept.
var goSettings = []string{
	"GOPROXY", "GOSUMDB", "GOPRIVATE", "GONOPROXY", "GONOSUMDB", "GOINSECURE", "GOVCS", "GOAUTH",
	"GOPATH", "GOMODCACHE", "GOCACHE", "GOTMPDIR",
}

// userGo returns the user's own goSettings, wherever they were made.
func userGo(ctx context.Context) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"env", "-json"}, goSettings...)...)
	// No module of the current directory may ask for another toolchain.
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local", "GO111MODULE=off", "GOFLAGS="+goFlags)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	var user map[string]string
	if err := json.Unmarshal(out, &user); err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	return user, nil
}

// goFlags takes the place of the user's GOFLAGS. It says what go build is told
// anyway: if it were empty, the go command would look for flags in its files.
const goFlags = "-buildvcs=false"

// goEnv is the environment of the go command: the user's own, so that module
// proxy, checksum database and caches are theirs, with everything set that
// changes the output. Of the file that "go env -w" writes only goSettings are
// taken, because an empty variable would not take the place of what is there.
func (f *Fetcher) goEnv(ctx context.Context, toolchain, arch string) ([]string, error) {
	user, err := userGo(ctx)
	if err != nil {
		return nil, err
	}
	env := os.Environ()
	for _, name := range goSettings {
		env = append(env, name+"="+user[name])
	}
	env = append(env,
		"CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0",
		"GOENV=off", "GOFLAGS="+goFlags, "GOEXPERIMENT=", "GOWORK=off", "GODEBUG=", "GOFIPS140=off",
		"GO111MODULE=on", "GO_EXTLINK_ENABLED=",
		// A program of the user's that would answer for the compiler.
		"GOCACHEPROG=",
		// The toolchain that the lock names. The go command takes itself if it
		// is that one, and else fetches and checks it as it does a module.
		"GOTOOLCHAIN="+toolchain,
	)
	if f.Offline {
		env = append(env, offlineGo(user["GOSUMDB"])...)
	}
	return env, nil
}

// noSumDB is the address of the checksum database without a network. There is
// nothing.
const noSumDB = "file:///dev/null/offline"

// offlineGo is what keeps the go command from every connection.
func offlineGo(sumDB string) []string {
	// The database's name stays, so that what it said before can be read from
	// the module cache: a toolchain there is checked against it each time.
	// Without an address the go command would ask it in spite of GOPROXY.
	if name, _, _ := strings.Cut(strings.TrimSpace(sumDB), " "); name != "" && name != "off" {
		if own, ok := strings.CutSuffix(name, ".google.cn"); ok {
			name = own + ".org" // the go command has this name for another address of the same
		}
		sumDB = name + " " + noSumDB
	}
	return []string{
		"GOPROXY=off", "GOSUMDB=" + sumDB,
		// What is private is fetched from where it lies, whatever GOPROXY says.
		"GOPRIVATE=", "GONOPROXY=none", "GONOSUMDB=", "GOINSECURE=", "GOVCS=*:off", "GOAUTH=off",
		// The go command sends its telemetry, if that is on, while it does
		// something else. The user's choice is below this directory.
		"XDG_CONFIG_HOME=/dev/null",
	}
}

// offline says of a failed go command that it wanted something of the network,
// if it did.
func (f *Fetcher) offline(item string, err error) error {
	if !f.Offline {
		return err
	}
	for _, wanted := range []string{"GOPROXY=off", "toolchain not available", noSumDB, strings.TrimPrefix(noSumDB, "file://")} {
		if strings.Contains(err.Error(), wanted) {
			return &OfflineError{Artifact: item, Reason: fmt.Errorf("a Go module or the toolchain is not in the Go module cache: %w", err)}
		}
	}
	return err
}

// maxOutput bounds what of a failed command's output is kept, in bytes.
const maxOutput = 8 << 10

// runLines runs a command, reports each line that it prints, and puts the last
// ones into the error if it fails.
func (f *Fetcher) runLines(cmd *exec.Cmd, item string) error {
	pr, pw := io.Pipe()
	cmd.Stdout, cmd.Stderr = pw, pw
	var tail bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := bufio.NewScanner(pr)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			if tail.Len() < maxOutput {
				tail.WriteString("\n" + s.Text())
			}
			f.report(Event{Item: item, Line: s.Text()})
		}
		// Whatever is left must be read, or the command would block.
		_, _ = io.Copy(io.Discard, pr)
	}()
	err := cmd.Run()
	// Closing a pipe's writing end never fails.
	_ = pw.Close()
	<-done
	if err != nil {
		return fmt.Errorf("%s: %w%s", strings.Join(cmd.Args[:2], " "), err, tail.String())
	}
	return nil
}

func hexSum(b []byte) string { return digestOf(b).String() }

func digestOf(b []byte) manifest.SHA256 { return sha256.Sum256(b) }
