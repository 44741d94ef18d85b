package sbom

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/tree"
)

// Bounds of an archive of container images.
const (
	maxBlobs     = 10_000
	maxJSON      = 4 << 20   // bytes of an index, a manifest or a list
	maxAllJSON   = 64 << 20  // bytes of all of them
	maxManifests = 10_000    // times that a manifest is read
	maxLayers    = 10_000    // times that an image has a layer
	maxInner     = 200_000   // files in the layers of all images
	maxUnpacked  = 16 << 30  // bytes of all layers, unpacked, and of the files in them
	maxProgram   = 256 << 20 // bytes of a file that is looked into, which is unpacked
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
	ctx     context.Context
	r       io.ReaderAt
	members map[string]*io.SectionReader
	layers  map[string][]innerFile // that were read: images share them
	temp    string                 // directory
	program *os.File               // where one is unpacked to be looked into

	manifests, references, inner int   // so far
	json, unpacked, content      int64 // bytes that may still come
}

// readArchive reads an archive. A file that is no archive of images gives none.
func readArchive(ctx context.Context, r io.ReaderAt, size int64, temp string) (_ *archive, err error) {
	a := &archiveReader{
		ctx: ctx, r: r, members: map[string]*io.SectionReader{}, layers: map[string][]innerFile{}, temp: temp,
		json: maxAllJSON, unpacked: maxUnpacked, content: maxUnpacked,
	}
	defer func() {
		if a.program != nil {
			err = errors.Join(err, a.program.Close())
		}
	}()
	if err := a.index(size); err != nil {
		return nil, fmt.Errorf("archive of images: %w", err)
	}
	var images []archivedImage
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
	t := tar.NewReader(seekContext{readerContext{a.ctx, s}, s})
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if n == 0 && a.ctx.Err() == nil {
				return nil // not an archive at all
			}
			return fmt.Errorf("entry %d: %w", n, err)
		}
		if n >= maxBlobs {
			return fmt.Errorf("more than %d entries", maxBlobs)
		}
		if sparse(h) {
			return fmt.Errorf("entry %d: a sparse file", n) // its bytes are not as they lie in the archive
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

// seekContext is a readerContext of what can seek, which spares reading what is
// not wanted.
type seekContext struct {
	readerContext
	io.Seeker
}

// sparse reports whether a file is stored without its holes, in any of the ways
// that GNU tar has.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// decode reads a member into v.
func (a *archiveReader) decode(name string, v any) error {
	m := a.members[name]
	if m == nil {
		return fmt.Errorf("no member %.200q", name)
	}
	if m.Size() > maxJSON {
		return fmt.Errorf("member %.200q has %d bytes, at most %d allowed", name, m.Size(), maxJSON)
	}
	if a.json -= m.Size(); a.json < 0 {
		return fmt.Errorf("manifests of more than %d bytes in all", maxAllJSON)
	}
	if err := a.ctx.Err(); err != nil {
		return err
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
	if err := a.decode("index.json", &index); err != nil {
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
	if a.manifests++; a.manifests > maxManifests {
		return fmt.Errorf("more than %d manifests", maxManifests)
	}
	if err := a.decode(d.blob(), &m); err != nil {
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
	if err := a.decode("manifest.json", &list); err != nil {
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

// layer adds the files of a layer. One that several images have is read once.
func (a *archiveReader) layer(img *archivedImage, name string) error {
	if a.references++; a.references > maxLayers {
		return fmt.Errorf("more than %d layers", maxLayers)
	}
	files, ok := a.layers[name]
	if !ok {
		var err error
		if files, err = a.readLayer(name); err != nil {
			return err
		}
		a.layers[name] = files
	}
	if a.inner += len(files); a.inner > maxInner {
		return fmt.Errorf("more than %d files", maxInner)
	}
	img.files = append(img.files, files...)
	return nil
}

// readLayer lists the files of a layer.
func (a *archiveReader) readLayer(name string) (files []innerFile, err error) {
	m := a.members[name]
	if m == nil {
		return nil, fmt.Errorf("no member %.200q", name)
	}
	r, err := unpacked(io.NewSectionReader(m, 0, m.Size()))
	if err != nil {
		return nil, err
	}
	defer r.Close() // only read
	budget := &io.LimitedReader{R: readerContext{a.ctx, r}, N: a.unpacked}
	tooMuch := fmt.Errorf("the layers unpack to more than %d bytes", int64(maxUnpacked))
	t := tar.NewReader(budget)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			a.unpacked = budget.N
			return files, nil
		}
		if err != nil && budget.N <= 0 {
			return nil, tooMuch
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
			continue
		}
		// The holes of a sparse file are read as zeros, and are no bytes of the layer.
		if a.content -= h.Size; a.content < 0 {
			return nil, tooMuch
		}
		if len(files) >= maxInner {
			return nil, fmt.Errorf("more than %d files", maxInner)
		}
		f := innerFile{file: File{
			Path: path.Join("/", reference(h.Name))[1:], Size: h.Size, Executable: h.Mode&0o111 != 0,
		}}
		if err := a.file(&f, t); err != nil {
			return nil, fmt.Errorf("file %.200q: %w", h.Name, err)
		}
		files = append(files, f)
	}
}

// file hashes a file of a layer and looks into it if it may be a program.
func (a *archiveReader) file(f *innerFile, r io.Reader) error {
	var magic [4]byte
	n, err := io.ReadFull(r, magic[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	r = io.MultiReader(bytes.NewReader(magic[:n]), r)
	if !f.file.Executable || f.file.Size > maxProgram || string(magic[:]) != elf.ELFMAG {
		_, err := f.file.hash(r)
		return err
	}
	w, err := a.scratch()
	if err != nil {
		return err
	}
	size, err := f.file.hash(io.TeeReader(r, w))
	if err != nil {
		return err
	}
	f.program = readProgram(w, size)
	return nil
}

// scratch returns an empty file without a name.
func (a *archiveReader) scratch() (*os.File, error) {
	if a.program != nil {
		_, err := a.program.Seek(0, io.SeekStart)
		return a.program, errors.Join(a.program.Truncate(0), err)
	}
	f, err := os.CreateTemp(a.temp, "program-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	a.program = f
	return f, nil
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
