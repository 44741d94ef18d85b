package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// roundTripper makes a transport of a function.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// noNetwork is a client that reaches nothing, and counts who tried.
func noNetwork(tried *int) *http.Client {
	return &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		*tried++
		return nil, errors.New("no route to host")
	})}
}

// runWith runs a command line with a client in place of the network.
func runWith(t *testing.T, client *http.Client, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), env{in: strings.NewReader(""), out: &out, err: &errs, client: client}, args)
	return code, out.String(), errs.String()
}

// k3sProfile is the demo's profile with another distro, and a lock that fits it
// in a directory of its own.
func k3sProfile(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../profiles/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "demo.yaml")
	changed := strings.NewReplacer("distro: kubernetes", "distro: k3s", "version: v1.34.4", "version: v1.34.1+k3s1").Replace(string(text))
	i := strings.Index(changed, "preload:")
	changed = changed[:i] + changed[strings.Index(changed, "\ndisk:"):]
	if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := profiles.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := profiles.LoadLock("../../profiles/demo.lock.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if lock.ProfileDigest, err = p.InputDigest(); err != nil {
		t.Fatal(err)
	}
	sum := strings.Repeat("7", 64)
	lock.Sources, lock.Go.Modules, lock.Go.Builds, lock.Go.ModSHA256, lock.Go.SumSHA256 = nil, nil, nil, "", ""
	lock.Distro = profiles.LockedDistro{Name: "k3s", Version: "v1.34.1+k3s1", Source: profiles.SourceRelease, Artifacts: []profiles.LockedArtifact{{
		Name: "k3s", URL: "https://github.com/k3s-io/k3s/releases/download/v1.34.1%2Bk3s1/k3s", Size: 7, SHA256: sum,
		Checksums: "https://github.com/k3s-io/k3s/releases/download/v1.34.1%2Bk3s1/sha256sum-amd64.txt", ChecksumsSHA256: sum,
	}}}
	lock.Images = []profiles.LockedImage{{Name: "docker.io/rancher/mirrored-pause:3.6", Digest: "sha256:" + sum, Size: 1000, Distro: true}}
	b, err := lock.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(profiles.LockPath(file), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAProfileWithAnotherDistroLintsAndShows(t *testing.T) {
	file := k3sProfile(t)
	for _, command := range []string{"lint", "show"} {
		tried := 0
		code, stdout, stderr := runWith(t, noNetwork(&tried), "profile", command, file)
		if code != 0 || tried != 0 || !strings.Contains(stdout, "k3s") {
			t.Errorf("%s: exit %d, %d times to the network\n%s%s", command, code, tried, stdout, stderr)
		}
	}
}

func TestLockCheckSaysWhatItCouldNotReachAndWritesNothing(t *testing.T) {
	file := k3sProfile(t)
	before, err := os.ReadFile(profiles.LockPath(file))
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	code, stdout, stderr := runWith(t, noNetwork(&tried), "profile", "lock", file, "--check", "--cache", t.TempDir())
	if code != exitFailed || tried == 0 {
		t.Errorf("exit %d after %d tries, want %d\n%s", code, tried, exitFailed, stderr)
	}
	for _, want := range []string{
		"not checked: Debian packages: ", "not checked: k3s versions: ", "not checked: image docker.io/rancher/mirrored-pause:3.6: ", "3 places not reached",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is not in\n%s", want, stdout)
		}
	}
	if !strings.Contains(stderr, "3 places could not be reached, so it may be behind") {
		t.Errorf("error is %s", stderr)
	}
	if after, err := os.ReadFile(profiles.LockPath(file)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the lock was written (%v)", err)
	}
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(entries) != 2 {
		t.Errorf("beside the profile there is %v, %v", entries, err)
	}
	code, stdout, _ = runWith(t, noNetwork(&tried), "--json", "profile", "lock", file, "--check", "--cache", t.TempDir())
	if code != exitFailed || !strings.Contains(stdout, `"newer":[]`) || !strings.Contains(stdout, `"unknown":[{"what":"Debian packages"`) {
		t.Errorf("with --json: exit %d\n%s", code, stdout)
	}
}

func TestWhatIsRefusedExitsWithThree(t *testing.T) {
	for claim, err := range map[string]error{
		"a digest":    &inputs.MismatchError{Artifact: "x", Want: manifest.SHA256{1}},
		"a signature": &inputs.UntrustedError{Source: "x", Reason: errors.New("no")},
	} {
		if got := exitCode(lockError(err)); got != exitRefused {
			t.Errorf("%s: exit %d, want %d", claim, got, exitRefused)
		}
	}
	if got := exitCode(lockError(errors.New("x"))); got != exitFailed {
		t.Errorf("another error: exit %d, want %d", got, exitFailed)
	}
}

func TestALockFromAServerThatAnswersPagesFails(t *testing.T) {
	file := k3sProfile(t)
	client := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Status: "200 OK", Body: readCloser("<html>"), Request: r, Header: http.Header{}}, nil
	})}
	before, err := os.ReadFile(profiles.LockPath(file))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"--check"}} {
		code, _, stderr := runWith(t, client, append([]string{"profile", "lock", file, "--cache", t.TempDir()}, args...)...)
		if code != exitRefused || !strings.Contains(stderr, "InRelease: not a clear-signed message") {
			t.Errorf("%v: exit %d, want %d\n%s", args, code, exitRefused, stderr)
		}
	}
	if after, err := os.ReadFile(profiles.LockPath(file)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the lock was written (%v)", err)
	}
}

func readCloser(s string) readNothing { return readNothing{strings.NewReader(s)} }

type readNothing struct{ *strings.Reader }

func (readNothing) Close() error { return nil }
