package inputs

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sealift/sealift/profiles"
)

const till = "registry.example/shop/till:v1"

func TestATagIsPinnedWhenItIsLocked(t *testing.T) {
	n := newInternet(t)
	want := n.push(t, till)
	r := &Resolver{Cache: Cache{Dir: t.TempDir()}, Client: n.client(), Profile: "shop.yaml"}
	img, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: till}, "amd64")
	must(t, err)
	if img.Digest != want.String() || img.Size < 4000 {
		t.Errorf("locked %+v, want digest %s", img, want)
	}
	// The tag moves; what was locked is still what is pulled.
	if moved := n.push(t, till); moved == want {
		t.Fatal("the tag did not move")
	}
	f := r.fetcher()
	archive, err := f.fetchImage(t.Context(), img, "amd64")
	must(t, err)
	checkBundle(t, archive, img)
	// Another cache, another time: the same bytes.
	g := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Client: n.client(), Profile: "shop.yaml"}
	if again, err := g.fetchImage(t.Context(), img, "amd64"); err != nil || filepath.Base(again) != filepath.Base(archive) {
		t.Errorf("the same image elsewhere is %s, %v, want %s", again, err, archive)
	}
	if left := leftovers(t, f.Cache); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
}

func TestImagesOfAnotherArchitectureAreRefused(t *testing.T) {
	n := newInternet(t)
	n.push(t, till)
	r := &Resolver{Cache: Cache{Dir: t.TempDir()}, Client: n.client()}
	if _, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: till}, "riscv64"); err == nil || !strings.Contains(err.Error(), "nothing for linux/riscv64") {
		t.Errorf("an index without it: %v", err)
	}
	ref, err := name.ParseReference("registry.example/one:v1")
	must(t, err, remote.Write(ref, archImage(t, "arm64"), remote.WithTransport(n)))
	if _, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: "registry.example/one:v1"}, "amd64"); err == nil || !strings.Contains(err.Error(), `"linux"/"arm64", want linux/amd64`) {
		t.Errorf("a single image: %v", err)
	}
	if img, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: "registry.example/one:v1"}, "arm64"); err != nil || img.Digest == "" {
		t.Errorf("a single image for it: %v", err)
	}
}

// damage is a registry that changes what it sends.
type damage struct {
	http.RoundTripper
	edit func(path string, body []byte) []byte
}

func (d damage) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := d.RoundTripper.RoundTrip(r)
	if err != nil || r.Method != http.MethodGet || resp.StatusCode != 200 {
		return resp, err
	}
	b, err := readAllClose(resp)
	if err != nil {
		return nil, err
	}
	b = d.edit(r.URL.Path, b)
	setBody(resp, b)
	return resp, nil
}

func TestARegistryThatLiesIsRefusedByDigest(t *testing.T) {
	n := newInternet(t)
	n.push(t, till)
	r := &Resolver{Cache: Cache{Dir: t.TempDir()}, Client: n.client()}
	img, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: till}, "amd64")
	must(t, err)
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for claim, edit := range map[string]func(string, []byte) []byte{
		"another manifest": func(p string, b []byte) []byte {
			if strings.Contains(p, "/manifests/") {
				return append(b, ' ')
			}
			return b
		},
		"a changed layer": func(p string, b []byte) []byte {
			if strings.Contains(p, "/blobs/") && len(b) > 1500 {
				return flip(b)
			}
			return b
		},
		"a shorter layer": func(p string, b []byte) []byte {
			if strings.Contains(p, "/blobs/") && len(b) > 1500 {
				return b[:len(b)-1]
			}
			return b
		},
		"a longer layer": func(p string, b []byte) []byte {
			if strings.Contains(p, "/blobs/") && len(b) > 1500 {
				return append(b, 'x')
			}
			return b
		},
	} {
		t.Run(claim, func(t *testing.T) {
			f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Client: &http.Client{Transport: damage{n, edit}}, Profile: "shop.yaml"}
			_, err := f.fetchImage(t.Context(), img, "amd64")
			var mismatch *MismatchError
			if !errors.As(err, &mismatch) || !strings.Contains(err.Error(), till) || mismatch.Want.IsZero() {
				t.Errorf("got %v, want a MismatchError that names the image", err)
			}
			if left := leftovers(t, f.Cache); len(left) > 0 {
				t.Errorf("temporary files are left: %v", left)
			}
			// What did arrive whole may stay; nothing may be there under a wrong name.
			sweepCheck(t, f.Cache)
		})
	}
}

// sweepCheck holds that every file of a cache has the digest that is its name.
func sweepCheck(t testing.TB, c Cache) {
	t.Helper()
	must(t, filepath.WalkDir(filepath.Join(c.Dir, "sha256"), func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || (err == nil && d.IsDir()) {
			return nil
		}
		if err != nil {
			return err
		}
		got, err := fileSum(p)
		if err == nil && got != filepath.Base(p) {
			t.Errorf("%s has digest %s", p, got)
		}
		return err
	}))
}

func TestAnImageThatTheRegistryLostIsGone(t *testing.T) {
	n := newInternet(t)
	n.push(t, till)
	r := &Resolver{Cache: Cache{Dir: t.TempDir()}, Client: n.client()}
	img, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: till}, "amd64")
	must(t, err)
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Client: newInternet(t).client(), Profile: "shop.yaml"}
	if _, err := f.fetchImage(t.Context(), img, "amd64"); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), till) {
		t.Errorf("got %v, want ErrGone", err)
	}
	f.Offline, f.Client = true, &http.Client{Transport: trap{t}}
	var offline *OfflineError
	if _, err := f.fetchImage(t.Context(), img, "amd64"); !errors.As(err, &offline) {
		t.Errorf("offline: got %v, want an OfflineError", err)
	}
}

func TestImagesArePulledFromElsewhereUnderTheirName(t *testing.T) {
	n := newInternet(t)
	want := n.push(t, "mirror.example:5000/shop/till:v7")
	r := &Resolver{Cache: Cache{Dir: t.TempDir()}, Client: n.client()}
	img, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: till, From: "mirror.example:5000/shop/till:v7"}, "amd64")
	must(t, err)
	byDigest, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: till, From: "mirror.example:5000/shop/till@" + want.String()}, "amd64")
	must(t, err)
	if img.Digest != want.String() || byDigest.Digest != img.Digest {
		t.Errorf("locked %s and %s, want %s", img.Digest, byDigest.Digest, want)
	}
	archive, err := r.fetcher().fetchImage(t.Context(), img, "amd64")
	must(t, err)
	checkBundle(t, archive, img)
}

// writeLayout makes a layout directory with images for two architectures under
// a name, and one more under another.
func writeLayout(t testing.TB, dir, annotation, value string) {
	t.Helper()
	p, err := layout.Write(dir, empty.Index)
	must(t, err)
	index := v1.ImageIndex(empty.Index)
	for _, arch := range []string{"arm64", "amd64"} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: archImage(t, arch), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	must(t, p.AppendIndex(index, layout.WithAnnotations(map[string]string{annotation: value})),
		p.AppendImage(archImage(t, "amd64"), layout.WithAnnotations(map[string]string{annotation: "other:v9"})))
}

func TestImagesComeFromLayoutDirectoriesByNameOrTag(t *testing.T) {
	for claim, a := range map[string][2]string{
		"by the name that containerd gives": {"io.containerd.image.name", till},
		"by the name of the specification":  {"org.opencontainers.image.ref.name", till},
		"by the tag":                        {"org.opencontainers.image.ref.name", "v1"},
	} {
		t.Run(claim, func(t *testing.T) {
			dir := t.TempDir()
			writeLayout(t, filepath.Join(dir, "till"), a[0], a[1])
			r := &Resolver{Cache: Cache{Dir: t.TempDir()}, Client: &http.Client{Transport: trap{t}}, Profile: filepath.Join(dir, "shop.yaml")}
			img, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: till, Layout: "till"}, "amd64")
			must(t, err)
			f := r.fetcher()
			f.Offline = true // a layout is beside the profile: it needs no network
			archive, err := f.fetchImage(t.Context(), img, "amd64")
			must(t, err)
			checkBundle(t, archive, img)
			if _, err := r.resolveImage(t.Context(), profiles.LockedImage{Name: "docker.io/x/y:z", Layout: "till"}, "amd64"); err == nil || !strings.Contains(err.Error(), "none of 2 entries") {
				t.Errorf("a name that is not in it: %v", err)
			}
			// A layout that changed since is not what the lock pins.
			layer := largest(t, filepath.Join(dir, "till", "blobs", "sha256"))
			must(t, os.WriteFile(layer, []byte("other"), 0o644))
			f.Cache = Cache{Dir: t.TempDir()}
			if _, err := f.fetchImage(t.Context(), img, "amd64"); err != nil && !errors.As(err, new(*MismatchError)) {
				t.Errorf("a changed layout: %v", err)
			}
		})
	}
}

func largest(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	name, size := "", int64(0)
	for _, e := range entries {
		st, err := e.Info()
		must(t, err)
		if st.Size() > size {
			name, size = e.Name(), st.Size()
		}
	}
	return filepath.Join(dir, name)
}

func TestAProfilesImageTakesThePlaceOfTheDistros(t *testing.T) {
	needTool(t, "go")
	v := vendors(t)[0]
	_, n, r, p := world(t, v)
	own := n.push(t, "registry.example/pause:1")
	p.Preload.Images = []profiles.PreloadImage{{Name: v.images[0], From: "registry.example/pause:1"}}
	must(t, p.Validate())
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	if len(lock.Images) != 2 || lock.Images[1].Name != v.images[0] || lock.Images[1].Digest != own.String() || lock.Images[1].Distro {
		t.Errorf("images in the lock are %+v", lock.Images)
	}
}
