// Package oci makes container image archives that a node imports without a
// registry: an OCI image layout (image-spec 1.1) in a tar file with one image
// of one layer. Equal programs give equal bytes.
package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// AnnotationName is the annotation of an index entry under which containerd
// imports an image.
const AnnotationName = "io.containerd.image.name"

// Image is an image with one static program.
type Image struct {
	Name    string // full reference, e.g. docker.io/sealift/hello:v1
	Arch    string // GOARCH spelling
	Program string // file of the build machine
	Path    string // of the program in the image, absolute; the entry point
	Epoch   int64  // creation and modification time, Unix seconds
}

// maxProgram bounds a program, which is held in memory, in bytes.
const maxProgram = 256 << 20

// WriteArchive writes the image as a tar archive. The layer is not compressed:
// the disk image as a whole is, and an import need not unpack it then.
func WriteArchive(w io.Writer, i Image) error {
	if !path.IsAbs(i.Path) || path.Clean(i.Path) != i.Path || i.Path == "/" {
		return fmt.Errorf("image %s: path %q of the program is not clean and absolute", i.Name, i.Path)
	}
	layer, err := programLayer(i)
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	created := time.Unix(i.Epoch, 0).UTC()
	img, err := mutate.ConfigFile(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), &v1.ConfigFile{
		Architecture: i.Arch,
		OS:           "linux",
		Created:      v1.Time{Time: created},
		Config:       v1.Config{Entrypoint: []string{i.Path}, Env: []string{"PATH=" + path.Dir(i.Path)}},
		RootFS:       v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   static.NewLayer(layer, types.OCIUncompressedLayer),
		History: v1.History{Created: v1.Time{Time: created}, CreatedBy: "sealift"},
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	if err := writeLayout(w, i, img); err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	return nil
}

// programLayer is a tar archive of the program and the directories above it.
func programLayer(i Image) (_ []byte, err error) {
	f, err := os.Open(i.Program)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, maxProgram+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxProgram {
		return nil, fmt.Errorf("program %s: more than %d bytes", i.Program, maxProgram)
	}
	var out bytes.Buffer
	t := newTarWriter(&out, i.Epoch)
	rel := strings.TrimPrefix(i.Path, "/")
	for at, c := range rel {
		if c == '/' {
			t.dir(rel[:at+1])
		}
	}
	t.file(rel, 0o755, b)
	return out.Bytes(), t.close()
}

// writeLayout writes oci-layout, index.json and the blobs, in this order.
func writeLayout(w io.Writer, i Image, img v1.Image) error {
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	configName, err := img.ConfigName()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType:   types.OCIManifestSchema1,
			Size:        int64(len(manifest)),
			Digest:      digest,
			Platform:    &v1.Platform{Architecture: i.Arch, OS: "linux"},
			Annotations: map[string]string{AnnotationName: i.Name},
		}},
	})
	if err != nil {
		return err
	}
	t := newTarWriter(w, i.Epoch)
	t.file("oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	t.file("index.json", 0o644, index)
	t.dir("blobs/")
	t.dir("blobs/sha256/")
	t.file("blobs/sha256/"+digest.Hex, 0o644, manifest)
	t.file("blobs/sha256/"+configName.Hex, 0o644, config)
	for _, l := range layers {
		if err := t.layer(l); err != nil {
			return err
		}
	}
	return t.close()
}

// tarWriter writes entries that hold nothing of the machine. The first error
// sticks and is returned by close.
type tarWriter struct {
	w     *tar.Writer
	mtime time.Time
	err   error
}

func newTarWriter(w io.Writer, epoch int64) *tarWriter {
	return &tarWriter{w: tar.NewWriter(w), mtime: time.Unix(epoch, 0)}
}

func (t *tarWriter) entry(h *tar.Header, body []byte) {
	if t.err != nil {
		return
	}
	h.ModTime, h.Format = t.mtime, tar.FormatUSTAR
	if t.err = t.w.WriteHeader(h); t.err == nil {
		_, t.err = t.w.Write(body)
	}
}

func (t *tarWriter) dir(name string) {
	t.entry(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, nil)
}

func (t *tarWriter) file(name string, mode int64, body []byte) {
	t.entry(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(body))}, body)
}

func (t *tarWriter) layer(l v1.Layer) (err error) {
	d, err := l.Digest()
	if err != nil {
		return err
	}
	rc, err := l.Compressed()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	b, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	t.file("blobs/sha256/"+d.Hex, 0o644, b)
	return t.err
}

func (t *tarWriter) close() error { return errors.Join(t.err, t.w.Close()) }
