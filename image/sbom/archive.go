package sbom

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/tree"
)

// Bounds of an archive of container images.
const (
	maxBlobs     = 10_000
	maxJSON      = 4 << 20   // bytes of an index, a manifest or a list
	maxInner     = 200_000   // files in the layers of one archive
	maxLayer     = 8 << 30   // bytes of one layer, unpacked
	maxProgram   = 256 << 20 // bytes of a file that is looked into, which is held in memory
	maxImages    = 1_000
	maxReference = 1_000 // bytes
)

// archive is what is in an archive of container images: an OCI image layout
// (image-spec 1.1) or what "docker save" writes.
type archive struct{ images []archivedImage }

type archivedImage struct {
	name   string // full reference
	digest string // of the manifest, sha256:...; of the configuration where there is no manifest
	files  []innerFile
}

// innerFile is a file in a layer. A file that a later layer replaces or removes
// is listed as well: it is in the image's bytes.
type innerFile struct {
	file    File // Path is relative to the image's root
	program *program
}

// content is bytes as the content of a file.
func content(b []byte) tree.Content { return memory{bytes.NewReader(b)} }

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// archiveReader finds the members of an archive by name.
type archiveReader struct {
	r       io.ReaderAt
	members map[string]*io.SectionReader
	inner   int // files read so far
}

// readArchive reads an archive. A file that is no archive of images gives none.
func readArchive(r io.ReaderAt, size int64) (*archive, error) {
	a := &archiveReader{r: r, members: map[string]*io.SectionReader{}}
	if err := a.index(size); err != nil {
		return nil, fmt.Errorf("archive of images: %w", err)
	}
	var images []archivedImage
	var err error
	switch {
	case a.members["index.json"] != nil:
		images, err = a.layout()
	case a.members["manifest.json"] != nil:
		images, err = a.docker()
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("archive of images: %w", err)
	}
	return &archive{images: images}, nil
}

// index notes where each member lies.
func (a *archiveReader) index(size int64) error {
	s := io.NewSectionReader(a.r, 0, size)
	t := tar.NewReader(s)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if n == 0 {
				return nil // not an archive at all
			}
			return fmt.Errorf("entry %d: %w", n, err)
		}
		if n >= maxBlobs {
			return fmt.Errorf("more than %d entries", maxBlobs)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		at, err := s.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if h.Size > size-at {
			return fmt.Errorf("entry %d: it ends behind the archive", n)
		}
		a.members[strings.TrimPrefix(h.Name, "./")] = io.NewSectionReader(a.r, at, h.Size)
	}
}

// json reads a member into v.
func (a *archiveReader) json(name string, v any) error {
	m := a.members[name]
	if m == nil {
		return fmt.Errorf("no member %.200q", name)
	}
	if m.Size() > maxJSON {
		return fmt.Errorf("member %.200q has %d bytes, at most %d allowed", name, m.Size(), maxJSON)
	}
	b := make([]byte, m.Size())
	if _, err := m.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("member %.200q: %w", name, err)
	}
	return nil
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
}

// blob is where the content of a descriptor lies.
func (d descriptor) blob() string { return "blobs/" + strings.Replace(d.Digest, ":", "/", 1) }

// layout reads an OCI image layout. An entry without a name is listed under
// its digest.
func (a *archiveReader) layout() ([]archivedImage, error) {
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := a.json("index.json", &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) > maxImages {
		return nil, fmt.Errorf("%d images, at most %d allowed", len(index.Manifests), maxImages)
	}
	var images []archivedImage
	for _, d := range index.Manifests {
		name := d.Annotations["io.containerd.image.name"]
		if name == "" {
			name = d.Annotations["org.opencontainers.image.ref.name"]
		}
		if name == "" {
			name = d.Digest
		}
		img := archivedImage{name: reference(name), digest: d.Digest}
		if err := a.manifest(&img, d, 0); err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	return images, nil
}

// manifest adds the files of a manifest, or of those that an index of an image
// for several platforms lists and the archive has.
func (a *archiveReader) manifest(img *archivedImage, d descriptor, depth int) error {
	var m struct {
		Manifests []descriptor `json:"manifests"`
		Layers    []descriptor `json:"layers"`
	}
	if err := a.json(d.blob(), &m); err != nil {
		return err
	}
	if depth > 0 && len(m.Manifests) > 0 {
		return fmt.Errorf("image %s: an index of indexes", img.name)
	}
	found := 0
	for _, child := range m.Manifests {
		if a.members[child.blob()] == nil {
			continue
		}
		found++
		if err := a.manifest(img, child, depth+1); err != nil {
			return err
		}
	}
	if found == 0 && len(m.Manifests) > 0 {
		return fmt.Errorf("image %s: none of its %d platforms is in the archive", img.name, len(m.Manifests))
	}
	for _, l := range m.Layers {
		if err := a.layer(img, l.blob()); err != nil {
			return fmt.Errorf("layer %.100s: %w", l.Digest, err)
		}
	}
	return nil
}

// docker reads what "docker save" writes.
func (a *archiveReader) docker() ([]archivedImage, error) {
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := a.json("manifest.json", &list); err != nil {
		return nil, err
	}
	if len(list) > maxImages {
		return nil, fmt.Errorf("%d images, at most %d allowed", len(list), maxImages)
	}
	var images []archivedImage
	for _, m := range list {
		digest := strings.TrimSuffix(path.Base(m.Config), ".json")
		img := archivedImage{digest: "sha256:" + digest, name: "sha256:" + digest}
		if len(m.RepoTags) > 0 {
			img.name = m.RepoTags[0]
		}
		img.name = reference(img.name)
		for _, l := range m.Layers {
			if err := a.layer(&img, l); err != nil {
				return nil, fmt.Errorf("layer %.100s: %w", l, err)
			}
		}
		images = append(images, img)
	}
	return images, nil
}

// reference bounds a name that somebody else chose.
func reference(s string) string {
	if len(s) > maxReference {
		s = s[:maxReference]
	}
	return strings.ToValidUTF8(s, "?")
}

// layer adds the files of a layer.
func (a *archiveReader) layer(img *archivedImage, name string) error {
	m := a.members[name]
	if m == nil {
		return fmt.Errorf("no member %.200q", name)
	}
	r, err := unpacked(io.NewSectionReader(m, 0, m.Size()))
	if err != nil {
		return err
	}
	defer r.Close() // only read
	limited := &io.LimitedReader{R: r, N: maxLayer}
	t := tar.NewReader(limited)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if a.inner++; a.inner > maxInner {
			return fmt.Errorf("more than %d files", maxInner)
		}
		f := innerFile{file: File{
			Path: path.Join("/", reference(h.Name))[1:], Size: h.Size, Executable: h.Mode&0o111 != 0,
		}}
		if err := f.read(t, h.Size); err != nil {
			return fmt.Errorf("file %.200q: %w", h.Name, err)
		}
		img.files = append(img.files, f)
	}
}

// read hashes a file of a layer and looks into it if it may be a program.
func (f *innerFile) read(r io.Reader, size int64) error {
	if !f.file.Executable || size > maxProgram {
		_, err := f.file.hash(r)
		return err
	}
	var b bytes.Buffer
	if _, err := f.file.hash(io.TeeReader(r, &b)); err != nil {
		return err
	}
	f.program = readProgram(bytes.NewReader(b.Bytes()), int64(b.Len()))
	return nil
}

// unpacked returns a reader of a layer's tar archive, whatever its compression.
func unpacked(r *io.SectionReader) (io.ReadCloser, error) {
	var magic [4]byte
	if _, err := r.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case magic[0] == 0x1f && magic[1] == 0x8b:
		return gzip.NewReader(r)
	case magic == [4]byte{0x28, 0xb5, 0x2f, 0xfd}:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}
