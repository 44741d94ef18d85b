package oci

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// dockerManifest is an entry of manifest.json in an archive of "docker save".
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// WriteBundle writes an archive of an image from its manifest and blobs: an OCI
// layout that also has the manifest.json of "docker save". containerd, k3s and
// k0s import the one; RKE2 finds its runtime image only by the other. Layers
// stay as they are, so that digests do. open is called once for each blob,
// which must have the length that the manifest says.
func WriteBundle(w io.Writer, imageName, arch string, raw []byte, epoch int64, open func(v1.Hash) (io.ReadCloser, error)) error {
	if err := writeBundle(w, imageName, arch, raw, epoch, open); err != nil {
		return fmt.Errorf("archive of image %s: %w", imageName, err)
	}
	return nil
}

func writeBundle(w io.Writer, imageName, arch string, raw []byte, epoch int64, open func(v1.Hash) (io.ReadCloser, error)) error {
	img, err := ParseManifest(raw)
	if err != nil {
		return err
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	media := m.MediaType
	if media == "" {
		media = types.OCIManifestSchema1
	}
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType:   media,
			Size:        int64(len(raw)),
			Digest:      img.Digest,
			Platform:    &v1.Platform{Architecture: arch, OS: "linux"},
			Annotations: map[string]string{AnnotationName: imageName},
		}},
	})
	if err != nil {
		return err
	}
	saved := dockerManifest{Config: blobPath(m.Config.Digest), RepoTags: []string{imageName}, Layers: []string{}}
	for _, l := range m.Layers {
		saved.Layers = append(saved.Layers, blobPath(l.Digest))
	}
	docker, err := json.Marshal([]dockerManifest{saved})
	if err != nil {
		return err
	}
	t := newTarWriter(w, epoch)
	t.file("oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	t.file("index.json", 0o644, index)
	t.file("manifest.json", 0o644, docker)
	t.dir("blobs/")
	t.dir("blobs/sha256/")
	t.file(blobPath(img.Digest), 0o644, raw)
	for _, d := range img.Blobs {
		if err := t.stream(blobPath(d.Digest), d.Size, func() (io.ReadCloser, error) { return open(d.Digest) }); err != nil {
			return fmt.Errorf("blob %s: %w", d.Digest, err)
		}
	}
	return t.close()
}

func blobPath(h v1.Hash) string { return "blobs/sha256/" + h.Hex }

// stream adds a file of known size without holding it in memory.
func (t *tarWriter) stream(name string, size int64, open func() (io.ReadCloser, error)) (err error) {
	t.entry(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}, nil)
	if t.err != nil {
		return t.err
	}
	rc, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	n, err := io.Copy(t.w, io.LimitReader(rc, size))
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("%d bytes, the manifest says %d", n, size)
	}
	return nil
}
