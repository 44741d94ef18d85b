package inputs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/profiles"
)

// lockFiles pins the files beside the profile.
func (r *Resolver) lockFiles(ctx context.Context, lock *profiles.Lock, p *profiles.Profile) error {
	for _, source := range p.Sources() {
		f, _, err := profiles.OpenSource(r.Profile, source)
		if err != nil {
			return err
		}
		sum, file, err := r.Cache.Put(ctx, f, manifest.SHA256{}, profiles.MaxSource)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("source %s: %w", source, err)
		}
		st, err := os.Stat(file)
		if err != nil {
			return err
		}
		lock.Files = append(lock.Files, profiles.LockedFile{Path: source, Size: st.Size(), SHA256: sum.String()})
	}
	return nil
}

// fetchFile brings a file beside the profile into the cache, where it cannot
// change any more. One that differs from the lock was edited since.
func (f *Fetcher) fetchFile(ctx context.Context, l profiles.LockedFile) (_ string, err error) {
	want, err := parseSum(l.SHA256)
	if err != nil {
		return "", fmt.Errorf("source %s: %w", l.Path, err)
	}
	src, _, err := profiles.OpenSource(f.Profile, l.Path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	_, file, err := f.Cache.Put(ctx, src, want, profiles.MaxSource)
	if errors.As(err, new(*MismatchError)) {
		return "", &StaleError{Profile: f.Profile, Reason: fmt.Errorf("source %s: %w", l.Path, err)}
	}
	if err != nil {
		return "", fmt.Errorf("source %s: %w", l.Path, err)
	}
	return file, nil
}

// nameless is what an image that needs no name is asked by: a layout or archive
// with one image gives that one.
const nameless = "base.invalid/image:base"

// baseImage returns where the image of base oci lies, and the reference to ask
// it by.
func (f *Fetcher) baseImage(o profiles.OCI) (oci.Source, string) {
	switch {
	case o.Layout != "":
		return oci.Layout{Dir: f.beside(o.Layout)}, nameless
	case o.Archive != "":
		return oci.Archive{File: f.beside(o.Archive)}, nameless
	}
	// A digest says it all; a tag beside it is for people.
	repository, digest, _ := strings.Cut(o.Image, "@")
	if colon := strings.LastIndexByte(repository, ':'); colon > strings.LastIndexByte(repository, '/') {
		repository = repository[:colon]
	}
	var transport http.RoundTripper
	if f.Client != nil {
		transport = f.Client.Transport
	}
	return oci.Registry{Transport: transport}, repository + "@" + digest
}

// lockBase pins the image of base oci.
func (r *Resolver) lockBase(ctx context.Context, lock *profiles.Lock, p *profiles.Profile) error {
	if p.Base != profiles.BaseOCI {
		return nil
	}
	f := r.fetcher()
	f.report(Event{Item: "base image"})
	source, ref := f.baseImage(p.OCI)
	got, err := oci.Resolve(ctx, source, ref, p.Arch)
	if err != nil {
		return fmt.Errorf("base %s: %w", p.OCI.Source(), err)
	}
	if strings.Contains(ref, "@") && !strings.HasSuffix(ref, "@"+got.Digest.String()) {
		// The profile's digest is of an index; what the index says is pinned by it.
		if err := checkIndex(ctx, source, ref); err != nil {
			return fmt.Errorf("base %s: %w", p.OCI.Source(), err)
		}
	}
	lock.OCI = &profiles.LockedOCI{Source: p.OCI.Source(), Digest: got.Digest.String(), Size: got.Size}
	return nil
}

// checkIndex holds an index against the digest that it was asked for by.
func checkIndex(ctx context.Context, source oci.Source, ref string) error {
	raw, _, err := source.Manifest(ctx, ref)
	if err != nil {
		return err
	}
	if _, want, _ := strings.Cut(ref, "@sha256:"); hexSum(raw) != want {
		return fmt.Errorf("index has digest %s, want %s", hexSum(raw), want)
	}
	return nil
}

// fetchBase brings the manifest and the layers of base oci into the cache and
// returns the layers, the lowest first.
func (f *Fetcher) fetchBase(ctx context.Context, o profiles.OCI, l *profiles.LockedOCI) ([]oci.Layer, error) {
	const item = "base image"
	source, ref := f.baseImage(o)
	h, err := v1.NewHash(l.Digest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", item, err)
	}
	want, err := parseSum(h.Hex)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", item, err)
	}
	local := o.Image == ""
	file, err := f.Cache.Lookup(ctx, want)
	if errors.Is(err, fs.ErrNotExist) {
		if f.Offline && !local {
			return nil, &OfflineError{Artifact: item + " " + l.Source, Reason: errNotCached}
		}
		var raw []byte
		if raw, _, err = source.Manifest(ctx, oci.AtDigest(ref, h)); err != nil {
			return nil, fmt.Errorf("%s %s: %w", item, l.Source, err)
		}
		_, file, err = f.Cache.Put(ctx, bytes.NewReader(raw), want, int64(len(raw)))
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: manifest: %w", item, l.Source, err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	// Of bounded size, with digests that name blobs.
	if _, err := oci.ParseManifest(raw); err != nil {
		return nil, fmt.Errorf("%s %s: %w", item, l.Source, err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%s %s: %w", item, l.Source, err)
	}
	var layers []oci.Layer
	for _, d := range m.Layers {
		file, err := f.fetchLayer(ctx, source, ref, d, f.Offline && !local)
		if err != nil {
			return nil, fmt.Errorf("%s %s: layer %s: %w", item, l.Source, d.Digest, err)
		}
		layers = append(layers, oci.Layer{File: file, MediaType: d.MediaType})
	}
	return layers, nil
}

func (f *Fetcher) fetchLayer(ctx context.Context, source oci.Source, ref string, d v1.Descriptor, offline bool) (_ string, err error) {
	want, err := parseSum(d.Digest.Hex)
	if err != nil {
		return "", err
	}
	file, err := f.Cache.Lookup(ctx, want)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	if offline {
		return "", &OfflineError{Artifact: "base image", Reason: errNotCached}
	}
	rc, err := source.Blob(ctx, ref, d.Digest)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	r := &countingReader{r: rc, fn: func(n int64) { f.report(Event{Item: "base image", Done: n, Total: d.Size}) }}
	_, file, err = f.Cache.Put(ctx, r, want, d.Size)
	return file, err
}
