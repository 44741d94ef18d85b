package oci

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sealift/sealift/profiles"
)

// Archive is a Source: an OCI image layout in a tar archive that holds one
// image, or one index. It is read where it lies and never unpacked.
type Archive struct{ File string }

// Manifest implements Source. A reference with a digest is looked up among the
// blobs; any other is the only entry of index.json.
func (a Archive) Manifest(_ context.Context, reference string) ([]byte, types.MediaType, error) {
	raw, media, err := a.manifest(reference)
	if err != nil {
		return nil, "", fmt.Errorf("archive %s: %w", a.File, err)
	}
	return raw, media, nil
}

func (a Archive) manifest(reference string) ([]byte, types.MediaType, error) {
	want := v1.Descriptor{}
	if _, digest, ok := strings.Cut(reference, "@"); ok {
		var err error
		if want.Digest, err = v1.NewHash(digest); err != nil {
			return nil, "", err
		}
	} else {
		raw, err := a.read("index.json")
		if err != nil {
			return nil, "", err
		}
		var index v1.IndexManifest
		if err := json.Unmarshal(raw, &index); err != nil {
			return nil, "", fmt.Errorf("index.json: %w", err)
		}
		if n := len(index.Manifests); n != 1 {
			return nil, "", fmt.Errorf("index.json has %d entries, want one image or one index", n)
		}
		want = index.Manifests[0]
	}
	if err := checkDigest(want.Digest); err != nil {
		return nil, "", err
	}
	raw, err := a.read(blobPath(want.Digest))
	if err != nil {
		return nil, "", err
	}
	if got := hashOf(raw); got != want.Digest {
		return nil, "", fmt.Errorf("blob has digest %s, its name says %s", got, want.Digest)
	}
	if want.MediaType == "" {
		var m struct {
			MediaType types.MediaType `json:"mediaType"`
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, "", fmt.Errorf("manifest %s: %w", want.Digest, err)
		}
		// The field is optional in an OCI manifest, which only an image leaves out.
		if want.MediaType = m.MediaType; want.MediaType == "" {
			want.MediaType = types.OCIManifestSchema1
		}
	}
	return raw, want.MediaType, nil
}

// Blob implements Source. The reference says nothing here.
func (a Archive) Blob(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	if err := checkDigest(h); err != nil {
		return nil, fmt.Errorf("archive %s: %w", a.File, err)
	}
	rc, _, err := a.open(blobPath(h))
	if err != nil {
		return nil, fmt.Errorf("archive %s: %w", a.File, err)
	}
	return rc, nil
}

func (a Archive) read(name string) (_ []byte, err error) {
	rc, size, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	if size > maxManifest {
		return nil, fmt.Errorf("%s has %d bytes, at most %d allowed", name, size, maxManifest)
	}
	return io.ReadAll(rc)
}

// open finds a file of the archive. What is not a regular file is passed over,
// so that no name leads elsewhere.
func (a Archive) open(name string) (_ io.ReadCloser, size int64, err error) {
	f, err := profiles.OpenRegular(a.File)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	t := tar.NewReader(f)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil, 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		if err != nil {
			return nil, 0, err
		}
		if n >= maxArchiveEntries {
			return nil, 0, fmt.Errorf("more than %d entries", maxArchiveEntries)
		}
		if h.Typeflag == tar.TypeReg && strings.TrimPrefix(h.Name, "./") == name {
			return struct {
				io.Reader
				io.Closer
			}{t, f}, h.Size, nil
		}
	}
}
