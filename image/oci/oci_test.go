package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func sample(t testing.TB) Image {
	t.Helper()
	program := filepath.Join(t.TempDir(), "hello")
	must(t, os.WriteFile(program, bytes.Repeat([]byte("ELF"), 5000), 0o755))
	return Image{Name: "docker.io/sealift/hello:v1", Arch: "amd64", Program: program, Path: "/usr/bin/hello", Epoch: 1700000000}
}

func archive(t testing.TB, i Image) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, WriteArchive(&b, i))
	return b.Bytes()
}

func TestArchiveIsTheSameTwice(t *testing.T) {
	if !bytes.Equal(archive(t, sample(t)), archive(t, sample(t))) {
		t.Error("two archives of one program differ")
	}
}

// unpack writes an archive of plain files into a directory.
func unpack(t *testing.T, b []byte) string {
	t.Helper()
	dir := t.TempDir()
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		must(t, err)
		p := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			must(t, os.MkdirAll(p, 0o755))
			continue
		}
		body, err := io.ReadAll(r)
		must(t, err, os.WriteFile(p, body, 0o644))
	}
}

func TestArchiveIsAValidLayoutWithOneProgram(t *testing.T) {
	i := sample(t)
	dir := unpack(t, archive(t, i))
	l, err := layout.FromPath(dir)
	must(t, err)
	index, err := l.ImageIndex()
	must(t, err, validate.Index(index, validate.Fast))
	m, err := index.IndexManifest()
	must(t, err)
	if len(m.Manifests) != 1 || m.Manifests[0].Annotations[AnnotationName] != i.Name {
		t.Fatalf("index names %+v, want one entry for %s", m.Manifests, i.Name)
	}
	img, err := index.Image(m.Manifests[0].Digest)
	must(t, err, validate.Image(img, validate.Fast))
	cfg, err := img.ConfigFile()
	must(t, err)
	if cfg.Architecture != "amd64" || cfg.OS != "linux" || len(cfg.Config.Entrypoint) != 1 || cfg.Config.Entrypoint[0] != i.Path {
		t.Errorf("configuration is %+v", cfg)
	}
	layers, err := img.Layers()
	must(t, err)
	digest, err := layers[0].Digest()
	must(t, err)
	layer, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", digest.Hex))
	must(t, err)
	// An uncompressed layer is its own DiffID (image-spec, config.md).
	if len(cfg.RootFS.DiffIDs) != 1 || cfg.RootFS.DiffIDs[0] != digest {
		t.Errorf("diff IDs are %v, want %s", cfg.RootFS.DiffIDs, digest)
	}
	r := tar.NewReader(bytes.NewReader(layer))
	var got []string
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		if h.ModTime.Unix() != i.Epoch || h.Uid != 0 || h.Mode != 0o755 {
			t.Errorf("%s: time %v, owner %d, mode %o", h.Name, h.ModTime, h.Uid, h.Mode)
		}
		got = append(got, h.Name)
	}
	if strings.Join(got, " ") != "usr/ usr/bin/ usr/bin/hello" {
		t.Errorf("layer holds %v", got)
	}
	must(t, CheckArchive(bytes.NewReader(archive(t, i)), i.Name))
}

func TestProgramPathMustBeCleanAndAbsolute(t *testing.T) {
	for _, p := range []string{"", "/", "hello", "/usr/../hello", "/hello/"} {
		i := sample(t)
		i.Path = p
		if err := WriteArchive(io.Discard, i); err == nil {
			t.Errorf("path %q was accepted", p)
		}
	}
}

// rewrite copies an archive with each entry changed; a nil body drops it.
func rewrite(t *testing.T, b []byte, edit func(h *tar.Header, body []byte) []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		body, err := io.ReadAll(r)
		must(t, err)
		if body = edit(h, body); body == nil {
			continue
		}
		h.Size = int64(len(body))
		must(t, w.WriteHeader(h))
		_, err = w.Write(body)
		must(t, err)
	}
	must(t, w.Close())
	return out.Bytes()
}

func TestCheckArchiveRefusesWhatANodeCannotImport(t *testing.T) {
	i := sample(t)
	good := archive(t, i)
	tests := []struct {
		claim string
		edit  func(h *tar.Header, body []byte) []byte
		want  string
	}{
		{"changed blob", func(h *tar.Header, b []byte) []byte {
			if strings.HasPrefix(h.Name, "blobs/sha256/") && len(b) > 10_000 {
				b[len(b)/2] ^= 1
			}
			return b
		}, "has digest"},
		{"no index", func(h *tar.Header, b []byte) []byte {
			if h.Name == "index.json" {
				return nil
			}
			return b
		}, "not an OCI image layout"},
		{"no manifest", func(h *tar.Header, b []byte) []byte {
			if bytes.Contains(b, []byte(`"layers"`)) {
				return nil
			}
			return b
		}, "is not in the archive"},
		{"link", func(h *tar.Header, b []byte) []byte {
			if h.Name == "oci-layout" {
				h.Typeflag, h.Linkname = tar.TypeSymlink, "/etc/passwd"
				return []byte{}
			}
			return b
		}, "neither file nor directory"},
		{"another name", func(h *tar.Header, b []byte) []byte {
			return bytes.ReplaceAll(b, []byte("hello:v1"), []byte("other:v1"))
		}, `there are: "docker.io/sealift/other:v1"`},
		{"index that is no JSON", func(h *tar.Header, b []byte) []byte {
			if h.Name == "index.json" {
				return []byte("[")
			}
			return b
		}, "index.json"},
	}
	for _, tc := range tests {
		t.Run(tc.claim, func(t *testing.T) {
			if err := CheckArchive(bytes.NewReader(rewrite(t, good, tc.edit)), i.Name); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if err := CheckArchive(bytes.NewReader(good[:len(good)/2]), i.Name); err == nil {
		t.Error("half an archive was accepted")
	}
}

func FuzzCheckArchive(f *testing.F) {
	f.Add(archive(f, sample(f)))
	raw, err := json.Marshal(v1.IndexManifest{})
	must(f, err)
	f.Add(raw)
	f.Fuzz(func(_ *testing.T, b []byte) { _ = CheckArchive(bytes.NewReader(b), "docker.io/sealift/hello:v1") })
}
