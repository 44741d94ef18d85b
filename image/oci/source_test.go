package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

func hash(s string) v1.Hash { return hashOf([]byte(s)) }

// manifestJSON is an image manifest with one layer, after an edit.
func manifestJSON(t testing.TB, edit func(m *v1.Manifest)) []byte {
	t.Helper()
	m := &v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: 6, Digest: hash("config")},
		Layers: []v1.Descriptor{{MediaType: types.OCILayer, Size: 5, Digest: hash("layer")}},
	}
	edit(m)
	b, err := json.Marshal(m)
	must(t, err)
	return b
}

func TestManifestsOfWhatCannotBePulledAreRefused(t *testing.T) {
	if img, err := ParseManifest(manifestJSON(t, func(*v1.Manifest) {})); err != nil || len(img.Blobs) != 2 || img.Size < 11 {
		t.Errorf("a good manifest: %+v, %v", img, err)
	}
	twice, err := ParseManifest(manifestJSON(t, func(m *v1.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }))
	if err != nil || len(twice.Blobs) != 2 {
		t.Errorf("a layer that is there twice: %+v, %v", twice, err)
	}
	for claim, tc := range map[string]struct {
		edit func(m *v1.Manifest)
		want string
	}{
		"version 1":                     {func(m *v1.Manifest) { m.SchemaVersion = 1 }, "version 1"},
		"a large configuration":         {func(m *v1.Manifest) { m.Config.Size = 5 << 20 }, "configuration of"},
		"no configuration":              {func(m *v1.Manifest) { m.Config.Size = 0 }, "configuration of"},
		"a layer without a digest":      {func(m *v1.Manifest) { m.Layers[0].Digest = v1.Hash{} }, "manifest"},
		"a digest that is a path":       {func(m *v1.Manifest) { m.Layers[0].Digest = v1.Hash{Algorithm: "sha256", Hex: "../../etc/passwd"} }, "manifest"},
		"another kind of digest":        {func(m *v1.Manifest) { m.Layers[0].Digest = v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("a", 128)} }, "manifest"},
		"a layer that is elsewhere":     {func(m *v1.Manifest) { m.Layers[0].MediaType = types.DockerForeignLayer }, "want a layer that the registry has"},
		"a blob that is no layer":       {func(m *v1.Manifest) { m.Layers[0].MediaType = "text/html" }, "want a layer"},
		"a negative size":               {func(m *v1.Manifest) { m.Layers[0].Size = -1 }, "has -1 bytes"},
		"a huge layer":                  {func(m *v1.Manifest) { m.Layers[0].Size = maxSize + 1 }, "at most"},
		"layers that are huge together": {func(m *v1.Manifest) { m.Layers[0].Size = maxSize - 1 }, "bytes in all"},
		"too many layers": {func(m *v1.Manifest) {
			for i := range maxLayers {
				m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCILayer, Size: 1, Digest: hash(fmt.Sprint(i))})
			}
		}, "layers, at most"},
	} {
		if _, err := ParseManifest(manifestJSON(t, tc.edit)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", claim, err, tc.want)
		}
	}
	for _, b := range []string{"", "[]", "{", `{"schemaVersion":2}`, strings.Repeat(" ", maxManifest+1)} {
		if _, err := ParseManifest([]byte(b)); err == nil {
			t.Errorf("%.20q is taken for a manifest", b)
		}
	}
}

// layoutWith writes a layout directory of an index.json and blobs.
func layoutWith(t testing.TB, index string, blobs ...string) Layout {
	t.Helper()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755), os.WriteFile(filepath.Join(dir, "index.json"), []byte(index), 0o644))
	for _, b := range blobs {
		must(t, os.WriteFile(filepath.Join(dir, "blobs", "sha256", hash(b).Hex), []byte(b), 0o644))
	}
	return Layout{Dir: dir}
}

func TestPipesInALayoutAreNotRead(t *testing.T) {
	pipe := func(name string) {
		t.Helper()
		must(t, os.RemoveAll(name), unix.Mkfifo(name, 0o600))
	}
	l := layoutWith(t, "{}", "blob")
	pipe(filepath.Join(l.Dir, "index.json"))
	pipe(filepath.Join(l.Dir, "blobs", "sha256", hash("blob").Hex))
	pipe(filepath.Join(l.Dir, "archive.tar"))
	for claim, read := range map[string]func() error{
		"index":    func() error { _, _, err := l.Manifest(t.Context(), "x/y:1"); return err },
		"manifest": func() error { _, _, err := l.Manifest(t.Context(), "x/y@"+hash("blob").String()); return err },
		"blob":     func() error { _, err := l.Blob(t.Context(), "", hash("blob")); return err },
		"archive": func() error {
			_, _, err := Archive{File: filepath.Join(l.Dir, "archive.tar")}.Manifest(t.Context(), "x/y:1")
			return err
		},
	} {
		done := make(chan error, 1)
		go func() { done <- read() }()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("%s: got %v", claim, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it waits for a writer", claim)
		}
	}
}

func TestHostileLayoutsAreRefused(t *testing.T) {
	const config = `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`
	good := string(manifestJSON(t, func(m *v1.Manifest) { m.Config.Size, m.Config.Digest = int64(len(config)), hash(config) }))
	entry := func(digest, media string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, media, digest, len(good))
	}
	image := string(types.OCIManifestSchema1)
	l := layoutWith(t, entry(hash(good).String(), image), good, config)
	if img, err := Resolve(t.Context(), l, "docker.io/x/y:1", "amd64"); err != nil || img.Digest != hash(good) {
		t.Errorf("a good layout: %v", err)
	}
	for claim, tc := range map[string]struct {
		l    Layout
		want string
	}{
		"no index":                        {Layout{Dir: t.TempDir()}, "index.json"},
		"an index that is no JSON":        {layoutWith(t, "<html>"), "index.json"},
		"an index without end":            {layoutWith(t, strings.Repeat(" ", maxManifest+1)), "more than"},
		"an empty index":                  {layoutWith(t, `{"schemaVersion":2,"manifests":[]}`), "none of 0 entries"},
		"a digest that climbs":            {layoutWith(t, entry("sha256:../../../../etc/passwd", image)), "layout"},
		"a manifest that is missing":      {layoutWith(t, entry(hash(good).String(), image)), "no such file"},
		"a configuration that is missing": {layoutWith(t, entry(hash(good).String(), image), good), "no such file"},
		"something that is no image":      {layoutWith(t, entry(hash(good).String(), "text/html"), good, config), "is no image"},
		"an index of nothing":             {layoutWith(t, entry(hash("{}").String(), string(types.OCIImageIndex)), "{}"), "nothing for linux/amd64"},
	} {
		if _, err := Resolve(t.Context(), tc.l, "docker.io/x/y:1", "amd64"); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", claim, err, tc.want)
		}
	}
	must(t, os.WriteFile(filepath.Join(l.Dir, "blobs", "sha256", hash(good).Hex), []byte(good+" "), 0o644))
	if _, err := Resolve(t.Context(), l, "docker.io/x/y:1", "amd64"); err == nil || !strings.Contains(err.Error(), "its name says") {
		t.Errorf("a changed manifest: %v", err)
	}
}

func TestABundleWithShortBlobsIsNotWritten(t *testing.T) {
	raw := manifestJSON(t, func(*v1.Manifest) {})
	open := func(content map[v1.Hash]string) func(v1.Hash) (io.ReadCloser, error) {
		return func(h v1.Hash) (io.ReadCloser, error) {
			s, ok := content[h]
			if !ok {
				return nil, errors.New("no such blob")
			}
			return io.NopCloser(strings.NewReader(s)), nil
		}
	}
	whole := map[v1.Hash]string{hash("config"): "config", hash("layer"): "layer"}
	var a, b bytes.Buffer
	must(t, WriteBundle(&a, "docker.io/x/y:1", "amd64", raw, 0, open(whole)), WriteBundle(&b, "docker.io/x/y:1", "amd64", raw, 0, open(whole)),
		CheckArchive(bytes.NewReader(a.Bytes()), "docker.io/x/y:1"))
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives of one image differ")
	}
	for claim, content := range map[string]map[v1.Hash]string{
		"a short layer":  {hash("config"): "config", hash("layer"): "lay"},
		"a lost layer":   {hash("config"): "config"},
		"a short config": {hash("config"): "", hash("layer"): "layer"},
	} {
		if err := WriteBundle(io.Discard, "docker.io/x/y:1", "amd64", raw, 0, open(content)); err == nil || !strings.Contains(err.Error(), "docker.io/x/y:1") {
			t.Errorf("%s: got %v", claim, err)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add(manifestJSON(f, func(*v1.Manifest) {}))
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := ParseManifest(b)
		if err != nil {
			return
		}
		for _, d := range img.Blobs {
			if strings.ContainsAny(blobPath(d.Digest)[len("blobs/sha256/"):], "/.") || d.Size < 0 {
				t.Errorf("blob %+v", d)
			}
		}
	})
}

func FuzzLayout(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:`+strings.Repeat("0", 64)+`","size":2}]}`), []byte("{}"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, index, blob []byte) {
		l := Layout{Dir: dir}
		must(t, os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755), os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644),
			os.WriteFile(filepath.Join(dir, "blobs", "sha256", hashOf(blob).Hex), blob, 0o644))
		_, _ = Resolve(context.Background(), l, "docker.io/x/y:1", "amd64")
		must(t, os.Remove(filepath.Join(dir, "blobs", "sha256", hashOf(blob).Hex)))
	})
}
