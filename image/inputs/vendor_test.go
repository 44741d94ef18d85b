package inputs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/profiles"
)

// internet stands for the servers of vendors and registries: files by whole
// address, with the names that the vendors give them, and one registry for all
// image names. What else is asked for does not exist.
type internet struct {
	registry *url.URL

	mu    sync.Mutex
	files map[string][]byte // by address
	asked []string
}

func newInternet(t testing.TB) *internet {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	must(t, err)
	return &internet{registry: u, files: map[string][]byte{}}
}

func (n *internet) put(address string, b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.files[address] = b
}

func (n *internet) client() *http.Client { return &http.Client{Transport: n} }

// RoundTrip implements http.RoundTripper.
func (n *internet) RoundTrip(r *http.Request) (*http.Response, error) {
	address := r.URL.String()
	n.mu.Lock()
	n.asked = append(n.asked, address)
	b, ok := n.files[address]
	n.mu.Unlock()
	switch {
	case ok:
		return &http.Response{StatusCode: 200, Status: "200 OK", Body: io.NopCloser(bytes.NewReader(b)), Request: r, Header: http.Header{}}, nil
	case strings.HasPrefix(r.URL.Path, "/v2/"):
		to := r.Clone(r.Context())
		to.URL.Scheme, to.URL.Host, to.Host = n.registry.Scheme, n.registry.Host, n.registry.Host
		return http.DefaultTransport.RoundTrip(to)
	case strings.HasPrefix(r.URL.Host, "127.0.0.1:"): // the Debian mirror
		return http.DefaultTransport.RoundTrip(r)
	}
	return &http.Response{StatusCode: 404, Status: "404 Not Found", Body: http.NoBody, Request: r, Header: http.Header{}}, nil
}

// push puts an image for linux/amd64 and linux/arm64 into the registry, and
// returns the digest for amd64.
func (n *internet) push(t testing.TB, reference string) v1.Hash {
	t.Helper()
	index := v1.ImageIndex(empty.Index)
	var digest v1.Hash
	for _, arch := range []string{"arm64", "amd64"} {
		img := archImage(t, arch)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
		var err error
		digest, err = img.Digest()
		must(t, err)
	}
	ref, err := name.ParseReference(reference)
	must(t, err, remote.WriteIndex(ref, index, remote.WithTransport(n)))
	return digest
}

func archImage(t testing.TB, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(2000, 2)
	must(t, err)
	cfg, err := img.ConfigFile()
	must(t, err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", arch
	img, err = mutate.ConfigFile(img, cfg)
	must(t, err)
	return img
}

// tarGz makes a tar.gz archive as vendors do: names start with "./".
func tarGz(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(makeTar(t, entries...))
	must(t, err, z.Close())
	return b.Bytes()
}

// sums is a file of checksums as sha256sum prints it, in text or binary mode.
func sums(mode string, files map[string][]byte) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(mapKeys(files)) {
		fmt.Fprintf(&b, "%x %s%s\n", sha256.Sum256(files[name]), mode, name)
	}
	return b.Bytes()
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// release is one release of a vendor as its server has it.
type vendorRelease struct {
	distro, version string
	directory       string // address
	files           map[string][]byte
	images          []string // references in full, of the list
	program         string   // name of the Program
	content         []byte   // of the Program
}

// vendors are the releases that tests lock, laid out and named as the vendors do.
func vendors(t testing.TB) []vendorRelease {
	t.Helper()
	const gh = "https://github.com/"
	k3s := vendorRelease{distro: "k3s", version: "v1.34.1+k3s1", directory: gh + "k3s-io/k3s/releases/download/v1.34.1%2Bk3s1/",
		program: "k3s", content: []byte("#!k3s"), images: []string{"docker.io/rancher/mirrored-pause:3.6", "docker.io/rancher/klipper-lb:v0.4.13"}}
	k3s.files = map[string][]byte{"k3s": k3s.content, "k3s-arm64": []byte("#!k3s for arm64"), "k3s-images.txt": []byte(strings.Join(k3s.images, "\n") + "\n"),
		"k3s-airgap-images-amd64.tar.zst": []byte("not needed")}
	k3s.files["sha256sum-amd64.txt"] = sums(" ", k3s.files)

	k0s := vendorRelease{distro: "k0s", version: "v1.34.1+k0s.1", directory: gh + "k0sproject/k0s/releases/download/v1.34.1%2Bk0s.1/",
		program: "k0s", content: []byte("#!k0s"), images: []string{"quay.io/k0sproject/coredns:1.12.2", "registry.k8s.io/pause:3.10.1"}}
	k0s.files = map[string][]byte{"k0s-v1.34.1+k0s.1-amd64": k0s.content, "airgap-images-list.txt": []byte(strings.Join(k0s.images, "\n") + "\n")}
	k0s.files["sha256sums.txt"] = sums("*", k0s.files)

	rke2 := vendorRelease{distro: "rke2", version: "v1.34.1+rke2r1", directory: gh + "rancher/rke2/releases/download/v1.34.1%2Brke2r1/",
		program: "rke2", content: []byte("#!rke2"), images: []string{"docker.io/rancher/rke2-runtime:v1.34.1-rke2r1", "docker.io/rancher/hardened-flannel:v0.27.3-build20250909"}}
	rke2.files = map[string][]byte{
		"rke2.linux-amd64.tar.gz": tarGz(t,
			entry{Header: tar.Header{Name: "./bin/", Typeflag: tar.TypeDir, Mode: 0o755}},
			entry{Header: tar.Header{Name: "./bin/rke2", Mode: 0o755}, body: string(rke2.content)},
			file("./bin/rke2-killall.sh", "#!/bin/sh"), file("./lib/systemd/system/rke2-agent.service", "[Unit]")),
		"rke2-images.linux-amd64.txt": []byte(strings.Join(rke2.images, "\n") + "\n"),
	}
	rke2.files["sha256sum-amd64.txt"] = sums(" ", rke2.files)

	kubelet := []byte("#!kubelet")
	upstream := vendorRelease{distro: "kubernetes", version: "v1.34.9", directory: "https://dl.k8s.io/release/v1.34.9/bin/linux/amd64/",
		program: "kubelet", content: kubelet,
		files: map[string][]byte{"kubelet": kubelet, "kubelet.sha256": fmt.Appendf(nil, "%x", sha256.Sum256(kubelet))}}
	return []vendorRelease{k3s, k0s, rke2, upstream}
}

func (v vendorRelease) publish(t testing.TB, n *internet) {
	t.Helper()
	for name, b := range v.files {
		n.put(v.directory+name, b)
	}
	for _, ref := range v.images {
		n.push(t, ref)
	}
}

// world is a Debian mirror, vendors and registries, and a profile that uses them.
func world(t testing.TB, v vendorRelease) (*mirror, *internet, *Resolver, *profiles.Profile) {
	t.Helper()
	m, n := newMirror(t, demoSuites()), newInternet(t)
	v.publish(t, n)
	r := m.resolver(t)
	r.Client = n.client()
	p := demoProfile(t, m.URL)
	p.Kubernetes.Distro, p.Kubernetes.Version, p.Kubernetes.Source = v.distro, v.version, ""
	must(t, p.Validate())
	return m, n, r, p
}

func TestEachReleaseIsLockedAndFetched(t *testing.T) {
	needTool(t, "go")
	for _, v := range vendors(t) {
		t.Run(v.distro, func(t *testing.T) {
			_, n, r, p := world(t, v)
			lock, err := r.Resolve(t.Context(), p)
			must(t, err)
			raw, err := lock.Encode()
			must(t, err)
			if lock, err = profiles.ParseLock("shop.lock.yaml", raw); err != nil {
				t.Fatalf("the lock does not parse: %v", err)
			}
			d := lock.Distro
			if d.Name != v.distro || d.Version != v.version || d.Source != profiles.SourceRelease || len(d.Artifacts) != 1 || len(lock.Go.Builds) != 0 {
				t.Errorf("distro in the lock is %+v, with %d Go builds", d, len(lock.Go.Builds))
			}
			file := path.Base(d.Artifacts[0].URL)
			if !strings.HasPrefix(d.Artifacts[0].URL, v.directory) || d.Artifacts[0].SHA256 != hexSum(v.files[file]) || d.Artifacts[0].Size != int64(len(v.files[file])) {
				t.Errorf("artifact in the lock is %+v", d.Artifacts[0])
			}
			var names []string
			for _, img := range lock.Images {
				names = append(names, img.Name)
				if !img.Distro || !strings.HasPrefix(img.Digest, "sha256:") {
					t.Errorf("image in the lock is %+v", img)
				}
			}
			if !slices.Equal(names, v.images) {
				t.Errorf("images in the lock are %v, want %v", names, v.images)
			}
			again, err := r.Resolve(t.Context(), p)
			must(t, err)
			if b, err := again.Encode(); err != nil || !bytes.Equal(b, raw) {
				t.Errorf("a second lock differs (%v)", err)
			}

			f := &Fetcher{Cache: r.Cache, Client: n.client(), Profile: "shop.yaml"}
			distro, err := profiles.LoadDistro(v.distro)
			must(t, err)
			programs, err := f.fetchRelease(t.Context(), lock, distro)
			must(t, err)
			if b, err := os.ReadFile(programs[v.program]); err != nil || !bytes.Equal(b, v.content) {
				t.Errorf("program %s holds %q, %v", v.program, b, err)
			}
			for _, img := range lock.Images {
				archive, err := f.fetchImage(t.Context(), img, lock.Arch)
				must(t, err)
				checkBundle(t, archive, img)
			}
			// From here on nothing of it may be asked for again.
			n.mu.Lock()
			n.asked, n.files = nil, nil
			n.mu.Unlock()
			f.Offline = true
			if _, err := f.fetchRelease(t.Context(), lock, distro); err != nil {
				t.Errorf("offline: %v", err)
			}
			for _, img := range lock.Images {
				if _, err := f.fetchImage(t.Context(), img, lock.Arch); err != nil {
					t.Errorf("offline: %v", err)
				}
			}
			if len(n.asked) > 0 {
				t.Errorf("an offline fetch asked for %v", n.asked)
			}
		})
	}
}

// checkBundle holds that containerd, by the OCI layout, and RKE2, by the
// manifest.json of docker save, find the image in an archive.
func checkBundle(t *testing.T, archive string, img profiles.LockedImage) {
	t.Helper()
	f, err := os.Open(archive)
	must(t, err, oci.CheckArchive(f, img.Name), f.Close())
	tag, err := name.NewTag(img.Name)
	must(t, err)
	saved, err := tarball.ImageFromPath(archive, &tag)
	must(t, err)
	cfg, err := saved.ConfigFile()
	must(t, err)
	layers, err := saved.Layers()
	must(t, err)
	if cfg.Architecture != "amd64" || len(layers) != 2 {
		t.Errorf("docker's view of %s: architecture %s, %d layers", img.Name, cfg.Architecture, len(layers))
	}
}

func TestALockRefusesWhatTheVendorsChecksumsDoNotSay(t *testing.T) {
	needTool(t, "go")
	v := vendors(t)[0]
	tests := []struct {
		claim string
		edit  func(n *internet)
		want  string
		exit3 bool
	}{
		{"another program", func(n *internet) { n.put(v.directory+"k3s", []byte("#!evil")) }, "k3s v1.34.1+k3s1 file k3s: from " + v.directory + "k3s: SHA-256", true},
		{"another list of images", func(n *internet) { n.put(v.directory+"k3s-images.txt", []byte("evil.example/x:1\n")) }, "file k3s-images.txt: from", true},
		{"no such version", func(n *internet) { n.files = map[string][]byte{} }, "checksums: get " + v.directory + "sha256sum-amd64.txt: 404 Not Found", false},
		{"checksums without the program", func(n *internet) {
			n.put(v.directory+"sha256sum-amd64.txt", sums(" ", map[string][]byte{"k3s-arm64": nil}))
		}, "k3s is not listed", false},
		{"checksums that are an error page", func(n *internet) {
			n.put(v.directory+"sha256sum-amd64.txt", []byte("<html>\n<body>Not today\n"))
		}, "is not a digest and a file name", false},
		{"a list of images with an error page in it", func(n *internet) {
			n.put(v.directory+"k3s-images.txt", []byte("<html>"))
			n.put(v.directory+"sha256sum-amd64.txt", sums(" ", map[string][]byte{"k3s": v.content}))
		}, "is not a full image reference", false},
		{"an image that the registry does not have", func(n *internet) {
			list := []byte("docker.io/rancher/no-such:v1\n")
			n.put(v.directory+"k3s-images.txt", list)
			n.put(v.directory+"sha256sum-amd64.txt", sums(" ", map[string][]byte{"k3s": v.content, "k3s-images.txt": list}))
		}, "image docker.io/rancher/no-such:v1", false},
	}
	for _, tc := range tests {
		t.Run(tc.claim, func(t *testing.T) {
			_, n, r, p := world(t, v)
			tc.edit(n)
			_, err := r.Resolve(t.Context(), p)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if got := errors.As(err, new(*MismatchError)); got != tc.exit3 {
				t.Errorf("MismatchError is %t, want %t: %v", got, tc.exit3, err)
			}
		})
	}
}

func TestAMirrorHasTheVendorsPaths(t *testing.T) {
	needTool(t, "go")
	v := vendors(t)[2]
	at := v
	at.directory = strings.Replace(v.directory, "https://github.com/", "https://mirror.example/gh/", 1)
	_, _, r, p := world(t, at)
	p.Kubernetes.Mirror = "https://mirror.example/gh"
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	if got := lock.Distro.Artifacts[0].URL; !strings.HasPrefix(got, at.directory) {
		t.Errorf("artifact is at %s, want it below %s", got, at.directory)
	}
}

func TestExcludedImagesAreNotLocked(t *testing.T) {
	needTool(t, "go")
	_, _, r, p := world(t, vendors(t)[0])
	p.Preload.Exclude = []string{"*klipper*"}
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	if len(lock.Images) != 1 || lock.Images[0].Name != "docker.io/rancher/mirrored-pause:3.6" {
		t.Errorf("images in the lock are %+v", lock.Images)
	}
}

func TestTheListOfImagesComesFromTheProgramWhereTheReleaseHasNone(t *testing.T) {
	needTool(t, "go")
	needTool(t, "sh")
	if runtime.GOARCH != "amd64" {
		t.Skip("the program of the release is for amd64")
	}
	v := vendors(t)[1]
	delete(v.files, "airgap-images-list.txt")
	script := "#!/bin/sh\n[ \"$*\" = 'airgap list-images' ] && [ -z \"$SECRET\" ] || exit 1\necho quay.io/k0sproject/coredns:1.12.2\necho registry.k8s.io/pause:3.10.1\n"
	v.files["k0s-v1.34.1+k0s.1-amd64"] = []byte(script)
	v.files["sha256sums.txt"] = sums("*", map[string][]byte{"k0s-v1.34.1+k0s.1-amd64": []byte(script)})
	t.Setenv("SECRET", "of the caller")
	_, n, r, p := world(t, v)
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	if len(lock.Images) != 2 || lock.Distro.Images.From != "k0s airgap list-images" {
		t.Errorf("list of images is from %+v: %+v", lock.Distro.Images, lock.Images)
	}
	// A program that the checksums do not name is not run.
	n.put(v.directory+"k0s-v1.34.1+k0s.1-amd64", []byte(script+"#"))
	r.Cache = Cache{Dir: t.TempDir()}
	if _, err := r.Resolve(t.Context(), p); !errors.As(err, new(*MismatchError)) {
		t.Errorf("got %v, want a MismatchError", err)
	}
	p.Arch, p.Kernel.Package = "arm64", "linux-image-cloud-arm64"
	v2 := vendor{r: r, release: mustDistro(t, "k0s").Release, item: "k0s", version: v.version, arch: "arm64", sums: map[string][]byte{}}
	if _, _, err := v2.imageList(t.Context(), lock, mustDistro(t, "k0s")); err == nil || !strings.Contains(err.Error(), "does not run on this machine") {
		t.Errorf("a program for arm64: %v", err)
	}
}

func mustDistro(t testing.TB, name string) *profiles.Distro {
	t.Helper()
	d, err := profiles.LoadDistro(name)
	must(t, err)
	return d
}

func TestReadMemberTakesOneFileAndNothingElse(t *testing.T) {
	read := func(b []byte) (string, error) {
		var got []byte
		err := readMember(bytes.NewReader(b), "bin/rke2", func(r io.Reader) (err error) {
			got, err = io.ReadAll(r)
			return err
		})
		return string(got), err
	}
	if got, err := read(tarGz(t, file("../../etc/passwd", "x"), link(tar.TypeSymlink, "bin/x", "/etc"), file("./bin/rke2", "program"))); err != nil || got != "program" {
		t.Errorf("got %q, %v", got, err)
	}
	good := tarGz(t, file("bin/rke2", strings.Repeat("program", 1000)))
	for claim, tc := range map[string]struct {
		b    []byte
		want string
	}{
		"no such file":        {tarGz(t, file("bin/other", "x")), "has no file bin/rke2"},
		"a link in its place": {tarGz(t, link(tar.TypeSymlink, "bin/rke2", "/etc/passwd")), "want a plain file"},
		"a device":            {tarGz(t, entry{Header: tar.Header{Name: "bin/rke2", Typeflag: tar.TypeChar}}), "want a plain file"},
		"no archive":          {[]byte("<html>"), "EOF"},
		"half an archive":     {good[:len(good)/2], "EOF"},
	} {
		if _, err := read(tc.b); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", claim, err, tc.want)
		}
	}
}

func TestChecksumFiles(t *testing.T) {
	a, b := hexSum([]byte("a")), hexSum([]byte("b"))
	for claim, tc := range map[string]struct{ text, want, err string }{
		"text mode":               {a + "  k3s\n" + b + "  k3s-arm64\n", a, ""},
		"binary mode":             {b + " *k0s.exe\n" + a + " *k3s\n", a, ""},
		"a name in a directory":   {a + "  ./k3s\n", a, ""},
		"a lone digest":           {a, a, ""},
		"a lone digest in a line": {a + "\n", a, ""},
		"no newline at the end":   {b + "  x\n" + a + "  k3s", a, ""},
		"lines of DOS":            {b + "  x\r\n" + a + "  k3s\r\n", a, ""},
		"the same line twice":     {a + "  k3s\n" + a + "  k3s\n", a, ""},
		"two digests":             {a + "  k3s\n" + b + "  k3s\n", "", "second digest"},
		"only longer names":       {a + "  k3s-arm64\n", "", "k3s is not listed"},
		"a short digest":          {a[1:] + "  k3s\n", "", "is not a SHA-256 digest"},
		"a lone word":             {"hello", "", "is not a SHA-256 digest"},
		"a digest of zeros":       {strings.Repeat("0", 64) + "  k3s\n", "", "of nothing"},
		"an error page":           {"<html>\n<head>\n", "", "line 1"},
		"nothing":                 {"", "", "is not a SHA-256 digest"},
		"too much":                {strings.Repeat(a+"  k3s\n", 20_000), "", "at most"},
	} {
		got, err := checksumOf([]byte(tc.text), "k3s")
		switch {
		case tc.err == "" && (err != nil || got.String() != tc.want):
			t.Errorf("%s: got %s, %v, want %s", claim, got, err, tc.want)
		case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
			t.Errorf("%s: got %v, want %q", claim, err, tc.err)
		}
	}
}

func TestImageListsHaveFullReferences(t *testing.T) {
	got, err := parseImageList([]byte("# images\nnginx:1.27\r\n\nrancher/pause:3.6\ndocker.io/busybox:1\nindex.docker.io/rancher/pause:3.6\nlocalhost:5000/x/y:z\nquay.io/a/b:v1\nquay.io/a/b:v1\n"))
	want := []string{"docker.io/library/nginx:1.27", "docker.io/rancher/pause:3.6", "docker.io/library/busybox:1", "localhost:5000/x/y:z", "quay.io/a/b:v1"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for claim, text := range map[string]string{
		"a page":      "<html>",
		"no tag":      "quay.io/a/b\n",
		"nothing":     "# none\n",
		"too many":    strings.Repeat("x", 1) + "\n" + manyImages(maxImages+1),
		"a long line": strings.Repeat("a", 5000) + ":1\n",
		"a path":      "../../etc/passwd:1\n",
	} {
		if _, err := parseImageList([]byte(text)); err == nil {
			t.Errorf("%s was taken for a list of images", claim)
		}
	}
}

func manyImages(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "quay.io/a/b:%d\n", i)
	}
	return b.String()
}

func FuzzChecksums(f *testing.F) {
	f.Add([]byte(hexSum(nil) + "  k3s\n" + hexSum(nil) + " *x\n"))
	f.Add([]byte(hexSum(nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := checksumOf(b, "k3s"); err == nil && d.IsZero() {
			t.Error("a digest of zeros was found")
		}
	})
}

func FuzzImageList(f *testing.F) {
	f.Add([]byte("nginx:1.27\n# x\nquay.io/a/b:v1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseImageList(b)
		if err != nil {
			return
		}
		for _, ref := range list {
			if err := profiles.CheckImage(ref); err != nil {
				t.Error(err)
			}
			if _, err := name.ParseReference(ref); err != nil {
				t.Errorf("the registry client does not read %q: %v", ref, err)
			}
		}
	})
}

func FuzzReadMember(f *testing.F) {
	f.Add(tarGz(f, file("./bin/rke2", "program")))
	f.Add(makeTar(f, file("./bin/rke2", "program")))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = readMember(bytes.NewReader(b), "bin/rke2", func(r io.Reader) error {
			_, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			return err
		})
	})
}

// leftovers are the temporary files of a cache.
func leftovers(t testing.TB, c Cache) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(c.Dir, "tmp", "*"))
	must(t, err)
	return found
}

// readAllClose reads an answer to its end.
func readAllClose(resp *http.Response) ([]byte, error) {
	b, err := io.ReadAll(resp.Body)
	return b, errors.Join(err, resp.Body.Close())
}

// setBody gives an answer another body.
func setBody(resp *http.Response, b []byte) {
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	resp.Header.Set("Content-Length", fmt.Sprint(len(b)))
}

// TestTheDemoSwitchesItsDistroByOneField takes the demo's own profile, with
// nothing but the distro, its version and the mirror of the tests changed.
func TestTheDemoSwitchesItsDistroByOneField(t *testing.T) {
	needTool(t, "go")
	text, err := os.ReadFile("../../profiles/demo.yaml")
	must(t, err)
	for _, v := range vendors(t)[:3] {
		t.Run(v.distro, func(t *testing.T) {
			m, n := newMirror(t, demoSuites()), newInternet(t)
			v.publish(t, n)
			changed := strings.NewReplacer("distro: kubernetes", "distro: "+v.distro, "version: v1.34.4", "version: "+v.version, "\ndisk:", "\ndebian:\n  mirror: "+m.URL+"\n\ndisk:").Replace(string(text))
			p, err := profiles.Parse("demo.yaml", []byte(changed))
			must(t, err)
			r := m.resolver(t)
			r.Client, r.Profile = n.client(), "../../profiles/demo.yaml"
			lock, err := r.Resolve(t.Context(), p)
			must(t, err, lock.CheckProfile(p))
			if lock.Distro.Name != v.distro || len(lock.Images) != len(v.images) || len(lock.Sources) != 1 {
				t.Errorf("lock has distro %+v, %d images, %d sources", lock.Distro, len(lock.Images), len(lock.Sources))
			}
			f := &Fetcher{Cache: r.Cache, Client: n.client(), Profile: r.Profile}
			in, err := f.Fetch(t.Context(), p, lock)
			must(t, err)
			if in.Programs[v.program] == "" || len(in.Archives) != len(v.images) || len(in.Packages) < 5 {
				t.Errorf("inputs are %d packages, programs %v, archives %v", len(in.Packages), in.Programs, in.Archives)
			}
		})
	}
}
