package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Bounds of an image that is pulled or read from a layout.
const (
	maxManifest = 4 << 20  // bytes of a manifest or an index, as registries have it
	maxConfig   = 4 << 20  // bytes of a configuration
	maxLayers   = 1000     // an image has at most 127 in practice
	maxSize     = 16 << 30 // bytes of all blobs
)

// Source is where the manifests and blobs of images lie. What it yields is not
// trusted: callers check digests.
type Source interface {
	// Manifest returns a manifest or index by tag or digest, and its media type.
	Manifest(ctx context.Context, reference string) ([]byte, types.MediaType, error)
	// Blob opens a blob by digest.
	Blob(ctx context.Context, reference string, h v1.Hash) (io.ReadCloser, error)
}

// Registry is a Source. References are of images in any registry. The user's
// own credentials are used, as container tools keep them (config.json).
type Registry struct {
	Transport http.RoundTripper // Optional; one with retries and proxies if nil.
}

func (r Registry) options(ctx context.Context) []remote.Option {
	opts := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("sealift")}
	if r.Transport != nil {
		opts = append(opts, remote.WithTransport(r.Transport))
	}
	return opts
}

// Manifest implements Source.
func (r Registry) Manifest(ctx context.Context, reference string) ([]byte, types.MediaType, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return nil, "", err
	}
	d, err := remote.Get(ref, r.options(ctx)...)
	if err != nil {
		return nil, "", digestError(ref, err)
	}
	return d.Manifest, d.MediaType, nil
}

// DigestError says that a registry's answer is not what was asked for by digest.
type DigestError struct{ Got, Want v1.Hash }

func (e *DigestError) Error() string { return fmt.Sprintf("digest is %s, want %s", e.Got, e.Want) }

// digestError finds out whether the registry client refused a manifest for its
// digest, for which it has no type of error.
func digestError(ref name.Reference, err error) error {
	d, ok := ref.(name.Digest)
	if !ok || !strings.Contains(err.Error(), "does not match requested digest") {
		return err
	}
	want, werr := v1.NewHash(d.DigestStr())
	got, gerr := v1.NewHash(regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(err.Error()))
	if werr != nil || gerr != nil {
		return err
	}
	return &DigestError{Got: got, Want: want}
}

// Blob implements Source.
func (r Registry) Blob(ctx context.Context, reference string, h v1.Hash) (io.ReadCloser, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	l, err := remote.Layer(ref.Context().Digest(h.String()), r.options(ctx)...)
	if err != nil {
		return nil, err
	}
	rc, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	return unverified{rc}, nil
}

// unverified ends a blob where the registry client would refuse its digest or
// length. Whoever takes a blob from a Source checks both, and says more.
type unverified struct{ io.ReadCloser }

func (u unverified) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil && strings.HasPrefix(err.Error(), "error verifying ") {
		err = io.EOF
	}
	return n, err
}

// Resolved is an image for one architecture.
type Resolved struct {
	Digest   v1.Hash // of Manifest
	Manifest []byte
	Blobs    []v1.Descriptor // configuration first, then the layers; each once
	Size     int64           // bytes of the manifest and all blobs
}

// Resolve finds the image that a reference means for an architecture: through
// an index if there is one, else by the architecture that the image's own
// configuration names.
func Resolve(ctx context.Context, s Source, reference, arch string) (*Resolved, error) {
	img, err := resolve(ctx, s, reference, arch)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", reference, err)
	}
	return img, nil
}

func resolve(ctx context.Context, s Source, reference, arch string) (*Resolved, error) {
	raw, media, err := s.Manifest(ctx, reference)
	if err != nil {
		return nil, err
	}
	if media.IsIndex() {
		want, err := choose(raw, arch)
		if err != nil {
			return nil, err
		}
		if raw, media, err = s.Manifest(ctx, AtDigest(reference, want)); err != nil {
			return nil, err
		}
		if got := hashOf(raw); got != want {
			return nil, fmt.Errorf("manifest for %s has digest %s, the index says %s", arch, got, want)
		}
	}
	if !media.IsImage() {
		return nil, fmt.Errorf("%.100q is no image", media)
	}
	img, err := ParseManifest(raw)
	if err != nil {
		return nil, err
	}
	return img, checkArch(ctx, s, reference, img, arch)
}

// AtDigest is a reference to another manifest of the same repository.
func AtDigest(reference string, h v1.Hash) string {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return reference // the source refuses it with the same error
	}
	return ref.Context().Digest(h.String()).String()
}

// choose returns the manifest of an index that is for the architecture. Of
// several, such as for variants of arm64, the first is taken.
func choose(raw []byte, arch string) (v1.Hash, error) {
	if len(raw) > maxManifest {
		return v1.Hash{}, fmt.Errorf("index has %d bytes, at most %d allowed", len(raw), maxManifest)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return v1.Hash{}, fmt.Errorf("index: %w", err)
	}
	var found []string
	for _, m := range index.Manifests {
		if m.Platform == nil || !m.MediaType.IsImage() {
			continue
		}
		if m.Platform.OS == "linux" && m.Platform.Architecture == arch {
			return m.Digest, checkDigest(m.Digest)
		}
		found = append(found, fmt.Sprintf("%.60q", m.Platform.String()))
		if len(found) > 50 {
			break
		}
	}
	return v1.Hash{}, fmt.Errorf("nothing for linux/%s, only for %v", arch, found)
}

// ParseManifest reads an image manifest and holds that its parts can be
// fetched by digest and are of bearable size.
func ParseManifest(raw []byte) (*Resolved, error) {
	if len(raw) > maxManifest {
		return nil, fmt.Errorf("manifest has %d bytes, at most %d allowed", len(raw), maxManifest)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.SchemaVersion != 2 || m.Config.Size <= 0 || m.Config.Size > maxConfig {
		return nil, fmt.Errorf("manifest of version %d with a configuration of %d bytes, want version 2 and at most %d bytes", m.SchemaVersion, m.Config.Size, maxConfig)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("manifest has %d layers, at most %d allowed", len(m.Layers), maxLayers)
	}
	out := &Resolved{Digest: hashOf(raw), Manifest: raw, Size: int64(len(raw))}
	seen := map[v1.Hash]bool{}
	for i, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := checkDigest(d.Digest); err != nil {
			return nil, fmt.Errorf("manifest: blob %d: %w", i, err)
		}
		if i > 0 && !d.MediaType.IsLayer() || !d.MediaType.IsDistributable() {
			return nil, fmt.Errorf("manifest: blob %d is a %.100q, want a layer that the registry has", i, d.MediaType)
		}
		if d.Size < 0 || d.Size > maxSize {
			return nil, fmt.Errorf("manifest: blob %d has %d bytes, at most %d allowed", i, d.Size, int64(maxSize))
		}
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		out.Blobs = append(out.Blobs, d)
		if out.Size += d.Size; out.Size > maxSize {
			return nil, fmt.Errorf("manifest: more than %d bytes in all", int64(maxSize))
		}
	}
	return out, nil
}

func checkDigest(h v1.Hash) error {
	if _, err := v1.NewHash(h.String()); err != nil || h.Algorithm != "sha256" || len(h.Hex) != 64 {
		return fmt.Errorf("%.100q is not a SHA-256 digest", h)
	}
	return nil
}

func hashOf(b []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(b))}
}

// checkArch refuses an image whose configuration names another architecture.
func checkArch(ctx context.Context, s Source, reference string, img *Resolved, arch string) (err error) {
	want := img.Blobs[0]
	rc, err := s.Blob(ctx, reference, want.Digest)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	raw, err := io.ReadAll(io.LimitReader(rc, maxConfig+1))
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if got := hashOf(raw); got != want.Digest {
		return fmt.Errorf("configuration has digest %s, the manifest says %s", got, want.Digest)
	}
	cfg, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if cfg.OS != "linux" || cfg.Architecture != arch {
		return fmt.Errorf("image is for %.40q/%.40q, want linux/%s", cfg.OS, cfg.Architecture, arch)
	}
	return nil
}

// IsNotFound reports an error of a Registry that does not have what was asked.
func IsNotFound(err error) bool {
	var te *transport.Error
	return errors.As(err, &te) && te.StatusCode == http.StatusNotFound
}
