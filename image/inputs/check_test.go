package inputs

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sealift/sealift/profiles"
)

func TestChannelsNameVersions(t *testing.T) {
	k3s, k0s, upstream := mustDistro(t, "k3s").Release, mustDistro(t, "k0s").Release, mustDistro(t, "kubernetes").Release
	tests := []struct {
		claim, kind string
		release     *profiles.Release
		text        string
		want        []string
		err         string
	}{
		{"text of dl.k8s.io", profiles.ChannelText, upstream, "v1.34.9", []string{"v1.34.9"}, ""},
		{"text with a newline", profiles.ChannelText, upstream, "v1.34.9\n", []string{"v1.34.9"}, ""},
		{"an error page", profiles.ChannelText, upstream, "<html>", nil, "is not a version"},
		{"channels of k3s", profiles.ChannelChannels, k3s, `{"type":"collection","data":[{"id":"stable","latest":"v1.33.5+k3s1"},
			{"id":"v1.34","latest":"v1.34.3+k3s1"},{"id":"testing","latest":"v1.35.0-rc1+k3s1"},{"id":"x"}]}`, []string{"v1.33.5+k3s1", "v1.34.3+k3s1"}, ""},
		{"releases of GitHub", profiles.ChannelGitHub, k0s, `[{"tag_name":"v1.34.2+k0s.0"},{"tag_name":"v1.34.3+k0s.0","prerelease":true},
			{"tag_name":"v1.34.4+k0s.0","draft":true},{"tag_name":"v1.35.0-alpha.1"}]`, []string{"v1.34.2+k0s.0"}, ""},
		{"no version at all", profiles.ChannelGitHub, k0s, `[]`, nil, "no version"},
		{"something else", profiles.ChannelChannels, k3s, `[1]`, nil, "cannot unmarshal"},
		{"unknown kind", "rss", k3s, ``, nil, "unknown kind"},
	}
	for _, tc := range tests {
		got, err := parseChannel(tc.kind, []byte(tc.text), tc.release)
		switch {
		case tc.err == "" && (err != nil || !slices.Equal(got, tc.want)):
			t.Errorf("%s: got %v, %v, want %v", tc.claim, got, err, tc.want)
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%s: got %v, want %q", tc.claim, err, tc.err)
		}
	}
}

func TestVersionsCompareByTheirNumbers(t *testing.T) {
	all := []string{"v1.34.9+k3s1", "v1.34.10+k3s1", "v1.34.10+k3s2", "v1.33.99+k3s1", "v1.35.0+k3s1"}
	for _, tc := range []struct{ version, patch, latest string }{
		{"v1.34.1+k3s1", "v1.34.10+k3s2", "v1.35.0+k3s1"},
		{"v1.34.10+k3s2", "v1.34.10+k3s2", "v1.35.0+k3s1"},
		{"v1.34.11+k3s1", "v1.34.11+k3s1", "v1.35.0+k3s1"},
		{"v1.36.0+k3s1", "v1.36.0+k3s1", "v1.36.0+k3s1"},
	} {
		if patch, latest := newest(tc.version, all); patch != tc.patch || latest != tc.latest {
			t.Errorf("%s: got %s and %s, want %s and %s", tc.version, patch, latest, tc.patch, tc.latest)
		}
	}
}

// channels is the answer of the channel server for k3s.
const channels = "https://update.k3s.io/v1-release/channels"

func TestCheckSaysWhatIsNewer(t *testing.T) {
	needTool(t, "go")
	m, n, r, p := world(t, vendors(t)[0])
	n.push(t, "registry.example/shop/till:v1")
	p.Preload.Images = []profiles.PreloadImage{{Name: "registry.example/shop/till:v1"}}
	must(t, p.Validate())
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	n.put(channels, []byte(`{"data":[{"latest":"v1.34.1+k3s1"}]}`))
	s, err := r.Check(t.Context(), p, lock)
	must(t, err)
	if !s.Current() || s.Checked < 10 || len(s.Notes) > 0 {
		t.Errorf("a fresh lock: %+v", s)
	}

	suites := demoSuites()
	suites["bookworm-security"] = append(suites["bookworm-security"], stanza{"busybox-static", "1:1.36.0-1", "libnew", ""}, stanza{"libnew", "1-1", "", ""})
	m.addSuite(t, "bookworm-security", suites["bookworm-security"], "")
	n.push(t, "registry.example/shop/till:v1")
	n.put(channels, []byte(`{"data":[{"latest":"v1.34.3+k3s1"},{"latest":"v1.35.1+k3s1"}]}`))
	if s, err = r.Check(t.Context(), p, lock); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range s.Newer {
		got = append(got, x.Kind+" "+x.Name+" "+x.Locked+" "+x.Available)
	}
	old, fresh := lock.Images[len(lock.Images)-1].Digest, s.Newer[len(s.Newer)-1].Available
	want := []string{
		"package busybox-static 1:1.35.0-4 1:1.36.0-1",
		"package libnew not locked 1-1",
		"distro k3s v1.34.1+k3s1 v1.34.3+k3s1",
		"image registry.example/shop/till:v1 " + old + " " + fresh,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") || s.Current() || old == fresh {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "k3s v1.35.1+k3s1 is out") {
		t.Errorf("notes are %q", s.Notes)
	}
}

func TestCheckSaysWhatItCouldNotReach(t *testing.T) {
	needTool(t, "go")
	m, n, r, p := world(t, vendors(t)[0])
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	m.Close()
	n.registry.Host = "127.0.0.1:1"
	n.files = map[string][]byte{}
	s, err := r.Check(t.Context(), p, lock)
	must(t, err)
	var got []string
	for _, u := range s.Unknown {
		got = append(got, u.What)
	}
	want := []string{"Debian packages", "k3s versions", "image docker.io/rancher/mirrored-pause:3.6", "image docker.io/rancher/klipper-lb:v0.4.13"}
	if !slices.Equal(got, want) || s.Current() || len(s.Newer) > 0 {
		t.Errorf("not reached: %q, want %q; newer: %v", got, want, s.Newer)
	}
}

func TestCheckRefusesAnIndexThatItCannotTrust(t *testing.T) {
	needTool(t, "go")
	m, _, r, p := world(t, vendors(t)[0])
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	root := "/debian/dists/bookworm/InRelease"
	m.files[root] = bytes.Replace(m.files[root], []byte("Origin: Test"), []byte("Origin: Tesu"), 1)
	if _, err := r.Check(t.Context(), p, lock); !errors.As(err, new(*UntrustedError)) {
		t.Errorf("got %v, want an UntrustedError", err)
	}
	p.Packages = []string{"nano"}
	if _, err := r.Check(t.Context(), p, lock); !errors.As(err, new(*StaleError)) {
		t.Errorf("got %v, want a StaleError", err)
	}
}

func TestCheckLooksAtFilesBesideTheProfile(t *testing.T) {
	tc := toolchain(t)
	m, n := newMirror(t, demoSuites()), newInternet(t)
	dir := hello(t)
	r := m.resolver(t)
	r.Client, r.Profile = n.client(), filepath.Join(dir, "shop.yaml")
	f := r.fetcher()
	sum, modules, err := f.sourceSum(t.Context(), dir, tc, "amd64")
	must(t, err, os.WriteFile(filepath.Join(dir, "a.tar"), []byte("archive"), 0o644))
	lock := &profiles.Lock{Arch: "amd64",
		Go:       profiles.LockedGo{Toolchain: tc},
		Archives: []profiles.LockedArchive{{Name: "docker.io/x/a:1", Path: "a.tar", SHA256: hexSum([]byte("archive"))}},
		Sources:  []profiles.LockedSource{{Name: "docker.io/x/hello:1", Path: ".", Sum: sum, Modules: modules}},
	}
	s := &Status{}
	must(t, r.checkBeside(t.Context(), s, lock))
	if !s.Current() || s.Checked != 2 {
		t.Errorf("unchanged files: %+v", s)
	}
	must(t, os.WriteFile(filepath.Join(dir, "a.tar"), []byte("other"), 0o644),
		os.WriteFile(filepath.Join(dir, "word", "word.go"), []byte("package word\n\nconst Word = \"bye\"\n"), 0o644))
	s = &Status{}
	must(t, r.checkBeside(t.Context(), s, lock))
	if len(s.Newer) != 2 || s.Newer[0].Kind != "archive" || s.Newer[1].Kind != "source" {
		t.Errorf("changed files: %+v", s)
	}
	lock.Go.Toolchain = "go1.20.1"
	s = &Status{}
	must(t, r.checkToolchain(t.Context(), s, lock))
	if len(s.Newer) != 1 || s.Newer[0].Available != tc {
		t.Errorf("an older toolchain: %+v", s)
	}
}

func TestCheckLooksAtFilesOfTheImageAndAtItsBase(t *testing.T) {
	needTool(t, "go")
	_, n, r, p := world(t, vendors(t)[3])
	dir := t.TempDir()
	r.Profile = filepath.Join(dir, "shop.yaml")
	write := func(name, text string) {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	appendImage := func() string {
		img := archImage(t, "amd64")
		must(t, os.RemoveAll(filepath.Join(dir, "base")))
		l, err := layout.Write(filepath.Join(dir, "base"), empty.Index)
		must(t, err, l.AppendImage(img))
		digest, err := img.Digest()
		must(t, err)
		return digest.String()
	}
	sources := []string{"ca.pem", "config", "pod.yaml"}
	for _, name := range sources {
		write(name, name)
	}
	locked := appendImage()
	p.Base, p.OCI = profiles.BaseOCI, profiles.OCI{Layout: "base"}
	p.Files = []profiles.File{{Path: "/etc/config", Source: "config"}, {Path: "/etc/inline", Content: "x"}}
	p.Preload.Manifests = []profiles.Manifest{{Name: "pod", Source: "pod.yaml"}}
	p.Attest.CA = "ca.pem"
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	n.put("https://dl.k8s.io/release/stable-1.34.txt", []byte(lock.Distro.Version))
	check := func() (newer []string, checked int) {
		t.Helper()
		s, err := r.Check(t.Context(), p, lock)
		must(t, err)
		if len(s.Unknown) > 0 {
			t.Errorf("not checked: %v", s.Unknown)
		}
		for _, x := range s.Newer {
			newer = append(newer, x.Kind+" "+x.Name+" "+x.Locked+" "+x.Available)
		}
		return newer, s.Checked
	}
	newer, all := check()
	if len(newer) > 0 || len(lock.Files) != 3 || lock.OCI == nil {
		t.Fatalf("a fresh lock: %q, with %d files", newer, len(lock.Files))
	}

	for _, name := range sources {
		write(name, "other")
		want := "file " + name + " " + hexSum([]byte(name)) + " " + hexSum([]byte("other"))
		if newer, checked := check(); len(newer) != 1 || newer[0] != want || checked != all {
			t.Errorf("%s was edited: %d checked of %d, newer %q, want %q", name, checked, all, newer, want)
		}
		write(name, name)
	}
	fresh := appendImage()
	if newer, checked := check(); len(newer) != 1 || newer[0] != "base image layout base "+locked+" "+fresh || checked != all {
		t.Errorf("another base: %d checked of %d, newer %q", checked, all, newer)
	}
	for _, name := range append(sources, "base") {
		must(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, "away")))
		if _, err := r.Check(t.Context(), p, lock); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is gone: got %v", name, err)
		}
		must(t, os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, name)))
	}
	// What is there and cannot be read as a file was not looked at.
	must(t, os.Remove(filepath.Join(dir, "config")), os.Mkdir(filepath.Join(dir, "config"), 0o700))
	s, err := r.Check(t.Context(), p, lock)
	must(t, err)
	if s.Current() || len(s.Unknown) != 1 || s.Unknown[0].What != "file config" {
		t.Errorf("a directory for a file: %+v", s.Unknown)
	}
}

func TestCheckAsksForTheBaseImage(t *testing.T) {
	n := newInternet(t)
	const repository = "registry.example/os/base"
	img := archImage(t, "amd64")
	digest, err := img.Digest()
	must(t, err)
	ref, err := name.ParseReference(repository + ":v1")
	must(t, err, remote.Write(ref, img, remote.WithTransport(n)))
	p := &profiles.Profile{Base: profiles.BaseOCI, Arch: "amd64", OCI: profiles.OCI{Image: repository + "@" + digest.String()}}
	r := &Resolver{Cache: Cache{Dir: t.TempDir()}, Client: n.client(), Profile: "shop.yaml"}
	lock := &profiles.Lock{}
	must(t, r.lockBase(t.Context(), lock, p))
	s := &Status{}
	must(t, r.checkBase(t.Context(), s, p, lock))
	if !s.Current() || s.Checked != 1 {
		t.Errorf("the same image: %+v", s)
	}
	s = &Status{}
	must(t, r.checkBase(t.Context(), s, p, &profiles.Lock{}))
	if len(s.Newer) != 1 || s.Newer[0].Locked != "not locked" {
		t.Errorf("a lock without it: %+v", s)
	}
	r.Client = &http.Client{Transport: damage{n, func(_ string, b []byte) []byte { return append(b, ' ') }}}
	if err := r.checkBase(t.Context(), &Status{}, p, lock); !errors.As(err, new(*MismatchError)) {
		t.Errorf("another image by its digest: got %v, want a MismatchError", err)
	}
	r.Client, n.registry.Host = n.client(), "127.0.0.1:1"
	s = &Status{}
	must(t, r.checkBase(t.Context(), s, p, lock))
	if len(s.Unknown) != 1 || s.Unknown[0].What != "base image "+p.OCI.Image || s.Checked != 0 {
		t.Errorf("no registry: %+v", s)
	}
}

// trap is a transport that no one may use.
type trap struct{ t testing.TB }

func (tr trap) RoundTrip(r *http.Request) (*http.Response, error) {
	tr.t.Errorf("the network was asked for %s", r.URL)
	return nil, errors.New("the network must not be touched")
}

func FuzzChannel(f *testing.F) {
	f.Add("channels", []byte(`{"data":[{"latest":"v1.34.1+k3s1"}]}`))
	f.Add("github", []byte(`[{"tag_name":"v1.34.1+k3s1"}]`))
	f.Add("text", []byte("v1.34.1+k3s1"))
	r := mustDistro(f, "k3s").Release
	f.Fuzz(func(t *testing.T, kind string, b []byte) {
		list, err := parseChannel(kind, b, r)
		if err != nil {
			return
		}
		patch, latest := newest("v1.34.1+k3s1", list)
		if compareVersions(patch, "v1.34.1+k3s1") < 0 || compareVersions(latest, patch) < 0 {
			t.Errorf("newest of %q is %s and %s", list, patch, latest)
		}
	})
}
