package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sealift/sealift/profiles"
)

// annotationRef is the annotation of an index entry that holds a tag or a
// whole reference (image-spec 1.1, annotations).
const annotationRef = "org.opencontainers.image.ref.name"

// Layout is a Source: the directory of an OCI image layout (image-spec 1.1).
// Only index.json and files that are named by a digest are ever opened.
type Layout struct{ Dir string }

// Manifest implements Source. A reference with a digest is looked up among the
// blobs. Any other is the entry of index.json that has it as its name, or its
// tag, or the only entry there is.
func (l Layout) Manifest(_ context.Context, reference string) ([]byte, types.MediaType, error) {
	if _, digest, ok := strings.Cut(reference, "@"); ok {
		h, err := v1.NewHash(digest)
		if err != nil {
			return nil, "", err
		}
		return l.manifest(h, "")
	}
	d, err := l.entry(reference)
	if err != nil {
		return nil, "", err
	}
	return l.manifest(d.Digest, d.MediaType)
}

func (l Layout) entry(reference string) (*v1.Descriptor, error) {
	raw, err := readBounded(filepath.Join(l.Dir, "index.json"))
	if err != nil {
		return nil, fmt.Errorf("layout %s: %w", l.Dir, err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("layout %s: index.json: %w", l.Dir, err)
	}
	tag := reference[strings.LastIndexByte(reference, ':')+1:]
	for _, want := range []string{reference, tag} {
		for i, m := range index.Manifests {
			if m.Annotations[AnnotationName] == want || m.Annotations[annotationRef] == want {
				return &index.Manifests[i], nil
			}
		}
	}
	if len(index.Manifests) == 1 {
		return &index.Manifests[0], nil
	}
	return nil, fmt.Errorf("layout %s: none of %d entries of index.json is named %s", l.Dir, len(index.Manifests), reference)
}

// manifest reads a manifest blob. Without a media type its own is taken.
func (l Layout) manifest(h v1.Hash, media types.MediaType) ([]byte, types.MediaType, error) {
	file, err := l.blob(h)
	if err != nil {
		return nil, "", err
	}
	raw, err := readBounded(file)
	if err != nil {
		return nil, "", fmt.Errorf("layout %s: %w", l.Dir, err)
	}
	if got := hashOf(raw); got != h {
		return nil, "", fmt.Errorf("layout %s: blob has digest %s, its name says %s", l.Dir, got, h)
	}
	if media == "" {
		var m struct {
			MediaType types.MediaType `json:"mediaType"`
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, "", fmt.Errorf("layout %s: manifest %s: %w", l.Dir, h, err)
		}
		// The field is optional in an OCI manifest, which only an image leaves out.
		if media = m.MediaType; media == "" {
			media = types.OCIManifestSchema1
		}
	}
	return raw, media, nil
}

// Blob implements Source. The reference says nothing here.
func (l Layout) Blob(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	file, err := l.blob(h)
	if err != nil {
		return nil, err
	}
	return profiles.OpenRegular(file)
}

func (l Layout) blob(h v1.Hash) (string, error) {
	if err := checkDigest(h); err != nil {
		return "", fmt.Errorf("layout %s: %w", l.Dir, err)
	}
	return filepath.Join(l.Dir, "blobs", "sha256", h.Hex), nil
}

// readBounded reads a regular file of at most maxManifest bytes.
func readBounded(file string) (_ []byte, err error) {
	f, err := profiles.OpenRegular(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(b) > maxManifest {
		err = fmt.Errorf("%s has more than %d bytes", file, maxManifest)
	}
	return b, err
}
