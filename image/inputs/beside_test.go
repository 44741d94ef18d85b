package inputs

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/profiles"
)

func TestFilesBesideTheProfileArePinned(t *testing.T) {
	dir := t.TempDir()
	profile := filepath.Join(dir, "shop.yaml")
	must(t, os.MkdirAll(filepath.Join(dir, "files"), 0o755), os.WriteFile(filepath.Join(dir, "files", "x"), []byte("one"), 0o600))
	p := &profiles.Profile{Files: []profiles.File{{Path: "/etc/x", Source: "files/x"}, {Path: "/etc/y", Source: "files/x"}, {Path: "/etc/z", Content: "z"}}}
	cache := Cache{Dir: t.TempDir()}
	r := &Resolver{Cache: cache, Profile: profile}
	lock := &profiles.Lock{}
	must(t, r.lockFiles(t.Context(), lock, p))
	if len(lock.Files) != 1 || lock.Files[0].Path != "files/x" || lock.Files[0].Size != 3 || lock.Files[0].SHA256 != hexSum([]byte("one")) {
		t.Fatalf("locked %+v", lock.Files)
	}
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: profile, Offline: true}
	copied, err := f.fetchFile(t.Context(), lock.Files[0])
	must(t, err)
	b, err := os.ReadFile(copied)
	must(t, err)
	if string(b) != "one" {
		t.Errorf("the copy holds %q", b)
	}

	must(t, os.WriteFile(filepath.Join(dir, "files", "x"), []byte("two"), 0o600))
	var stale *StaleError
	var mismatch *MismatchError
	if _, err := f.fetchFile(t.Context(), lock.Files[0]); !errors.As(err, &stale) || !errors.As(err, &mismatch) || !strings.Contains(err.Error(), "files/x") {
		t.Errorf("an edited file: %v", err)
	}
	if b, err := os.ReadFile(copied); err != nil || string(b) != "one" {
		t.Errorf("the copy became %q, %v", b, err)
	}
}

func TestSourcesDoNotLeadOutOfTheProfilesDirectory(t *testing.T) {
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	dir := filepath.Join(outside, "profile")
	must(t, os.Mkdir(dir, 0o755), os.Symlink("../secret", filepath.Join(dir, "link")), os.Symlink("..", filepath.Join(dir, "up")),
		os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "absolute")), os.WriteFile(filepath.Join(dir, "x"), nil, 0o600), os.Symlink("x", filepath.Join(dir, "inside")))
	profile := filepath.Join(dir, "shop.yaml")
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: profile}
	for _, source := range []string{"", "..", "../secret", "link", "up/secret", "absolute", filepath.Join(outside, "secret"), ".", "none", "x/y"} {
		if _, err := f.fetchFile(t.Context(), profiles.LockedFile{Path: source, SHA256: hexSum([]byte("secret"))}); err == nil {
			t.Errorf("source %q was read", source)
		}
	}
	if _, err := f.fetchFile(t.Context(), profiles.LockedFile{Path: "inside", SHA256: hexSum(nil)}); err != nil {
		t.Errorf("a link that stays inside: %v", err)
	}
}

// tarLayout packs an OCI layout into an archive, as container tools do.
func tarLayout(t *testing.T, dir string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "base.tar")
	out, err := os.Create(file)
	must(t, err)
	w := tar.NewWriter(out)
	must(t, w.AddFS(os.DirFS(dir)), w.Close(), out.Close())
	return file
}

func TestBaseImageIsPinnedAndFetchedFromWhereverItIs(t *testing.T) {
	n := newInternet(t)
	img := archImage(t, "amd64")
	digest, err := img.Digest()
	must(t, err)
	dir := t.TempDir()
	l, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	must(t, err, l.AppendImage(img))
	must(t, os.Rename(tarLayout(t, filepath.Join(dir, "layout")), filepath.Join(dir, "base.tar")))
	ref, err := name.ParseReference("registry.example/os/base:v1")
	must(t, err, remote.Write(ref, img, remote.WithTransport(n)))
	index := indexDigest(t, n)

	for claim, o := range map[string]profiles.OCI{
		"layout":   {Layout: "layout"},
		"archive":  {Archive: "base.tar"},
		"registry": {Image: "registry.example/os/base@" + digest.String()},
		"a tag beside the digest, which says nothing": {Image: "registry.example/os/base:v7@" + digest.String()},
		"an index": {Image: "registry.example/os/multi@" + index.String()},
	} {
		t.Run(claim, func(t *testing.T) {
			p := &profiles.Profile{Base: profiles.BaseOCI, Arch: "amd64", OCI: o}
			cache := Cache{Dir: t.TempDir()}
			r := &Resolver{Cache: cache, Client: n.client(), Profile: filepath.Join(dir, "shop.yaml")}
			lock := &profiles.Lock{Arch: "amd64"}
			must(t, r.lockBase(t.Context(), lock, p))
			if lock.OCI == nil || lock.OCI.Source != o.Source() || (lock.OCI.Digest != digest.String()) != (claim == "an index") {
				t.Fatalf("locked %+v, want digest %s", lock.OCI, digest)
			}
			f := r.fetcher()
			layers, err := f.fetchBase(t.Context(), o, lock.OCI)
			must(t, err)
			if len(layers) != 2 {
				t.Fatalf("got %d layers", len(layers))
			}
			if _, err := oci.Flatten(t.Context(), t.TempDir(), layers, 1<<20, func(string) bool { return false }); err != nil {
				t.Error(err)
			}
			// What is in the cache needs neither the network nor the file.
			f.Offline, f.Profile = true, "/nowhere/shop.yaml"
			if again, err := f.fetchBase(t.Context(), o, lock.OCI); err != nil || len(again) != 2 || again[0] != layers[0] {
				t.Errorf("from the cache: %v, %v", again, err)
			}
			f.Cache = Cache{Dir: t.TempDir()}
			if _, err := f.fetchBase(t.Context(), o, lock.OCI); err == nil {
				t.Error("neither cached nor there, but got")
			} else if offline := errors.As(err, new(*OfflineError)); offline != (o.Image != "") {
				t.Errorf("neither cached nor there: %v", err)
			}
		})
	}

	p := &profiles.Profile{Base: profiles.BaseOCI, Arch: "arm64", OCI: profiles.OCI{Layout: "layout"}}
	r := &Resolver{Cache: Cache{Dir: t.TempDir()}, Profile: filepath.Join(dir, "shop.yaml")}
	if err := r.lockBase(t.Context(), &profiles.Lock{}, p); err == nil || !strings.Contains(err.Error(), "want linux/arm64") {
		t.Errorf("another architecture: %v", err)
	}
}

// indexDigest pushes an index and returns its digest.
func indexDigest(t *testing.T, n *internet) v1.Hash {
	t.Helper()
	const reference = "registry.example/os/multi:v1"
	n.push(t, reference)
	ref, err := name.ParseReference(reference)
	must(t, err)
	d, err := remote.Get(ref, remote.WithTransport(n))
	must(t, err)
	if !d.MediaType.IsIndex() {
		t.Fatalf("%s is %s", reference, d.MediaType)
	}
	return d.Digest
}

func TestDamagedLayersOfABaseImageAreNotUsed(t *testing.T) {
	img := archImage(t, "amd64")
	dir := t.TempDir()
	l, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	must(t, err, l.AppendImage(img))
	o := profiles.OCI{Layout: "layout"}
	r := &Resolver{Cache: Cache{Dir: t.TempDir()}, Profile: filepath.Join(dir, "shop.yaml")}
	lock := &profiles.Lock{}
	must(t, r.lockBase(t.Context(), lock, &profiles.Profile{Base: profiles.BaseOCI, Arch: "amd64", OCI: o}))
	layers, err := img.Layers()
	must(t, err)
	h, err := layers[1].Digest()
	must(t, err)
	blob := filepath.Join(dir, "layout", "blobs", "sha256", h.Hex)
	b, err := os.ReadFile(blob)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.Chmod(blob, 0o600), os.WriteFile(blob, b, 0o600))
	var mismatch *MismatchError
	if _, err := r.fetcher().fetchBase(t.Context(), o, lock.OCI); !errors.As(err, &mismatch) || !strings.Contains(err.Error(), h.Hex) {
		t.Errorf("got %v", err)
	}
}
