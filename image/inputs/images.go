package inputs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/profiles"
)

// maxImageManifest bounds the manifest of an image, in bytes.
const maxImageManifest = 4 << 20

// imageSource returns where an image lies, and the reference to ask it by.
func (f *Fetcher) imageSource(img profiles.LockedImage) (oci.Source, string) {
	ref := img.Name
	if img.From != "" {
		ref = img.From
	}
	if img.Layout != "" {
		return oci.Layout{Dir: f.beside(img.Layout)}, ref
	}
	var transport http.RoundTripper
	if f.Client != nil {
		transport = f.Client.Transport
	}
	return oci.Registry{Transport: transport}, ref
}

// resolveImage pins what the image's tag, or entry of a layout, means now.
func (r *Resolver) resolveImage(ctx context.Context, img profiles.LockedImage, arch string) (profiles.LockedImage, error) {
	f := r.fetcher()
	f.report(Event{Item: "image " + img.Name})
	source, ref := f.imageSource(img)
	got, err := oci.Resolve(ctx, source, ref, arch)
	if err != nil {
		return img, err
	}
	img.Digest, img.Size = got.Digest.String(), got.Size
	return img, nil
}

// fetchImage returns an archive of a locked image. Manifest, configuration and
// layers lie in the cache under their own digests, so that images share layers
// and a pull that was interrupted goes on where it stopped.
func (f *Fetcher) fetchImage(ctx context.Context, img profiles.LockedImage, arch string) (string, error) {
	item := "image " + img.Name
	h, err := v1.NewHash(img.Digest)
	if err != nil {
		return "", fmt.Errorf("%s: %w", item, err)
	}
	key := hexSum(fmt.Appendf(nil, "sealift.dev/image/v1\x00%s\x00%s\x00%s", img.Name, arch, h))
	file, err := f.Cache.recall(ctx, memoImage, key)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return file, named(err, item, "")
	}
	raw, err := f.imageManifest(ctx, item, img, h)
	if err != nil {
		return "", err
	}
	parsed, err := oci.ParseManifest(raw)
	if err != nil {
		return "", fmt.Errorf("%s: %w", item, err)
	}
	blobs := map[v1.Hash]string{}
	var done int64
	for _, d := range parsed.Blobs {
		blobs[d.Digest], err = f.imageBlob(ctx, item, img, d, func(n int64) {
			f.report(Event{Item: item, Done: done + n, Total: parsed.Size})
		})
		if err != nil {
			return "", err
		}
		done += d.Size
	}
	return f.bundle(ctx, img.Name, arch, key, raw, blobs)
}

func (f *Fetcher) imageManifest(ctx context.Context, item string, img profiles.LockedImage, h v1.Hash) ([]byte, error) {
	want, err := parseSum(h.Hex)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", item, err)
	}
	file, err := f.Cache.Lookup(ctx, want)
	if errors.Is(err, fs.ErrNotExist) {
		if f.Offline && img.Layout == "" {
			return nil, &OfflineError{Artifact: item, Reason: errNotCached}
		}
		source, ref := f.imageSource(img)
		var raw []byte
		if raw, _, err = source.Manifest(ctx, oci.AtDigest(ref, h)); err != nil {
			return nil, f.imageError(item, err)
		}
		_, file, err = f.Cache.Put(ctx, bytes.NewReader(raw), want, maxImageManifest)
		err = named(err, item+": manifest", ref)
	}
	if err != nil {
		return nil, named(fmt.Errorf("%s: manifest: %w", item, err), item+": manifest", "")
	}
	return os.ReadFile(file)
}

func (f *Fetcher) imageBlob(ctx context.Context, item string, img profiles.LockedImage, d v1.Descriptor, progress func(int64)) (file string, err error) {
	want, err := parseSum(d.Digest.Hex)
	if err != nil {
		return "", fmt.Errorf("%s: %w", item, err)
	}
	file, err = f.Cache.Lookup(ctx, want)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return file, named(err, item, "")
	}
	if f.Offline && img.Layout == "" {
		return "", &OfflineError{Artifact: item, Reason: errNotCached}
	}
	source, ref := f.imageSource(img)
	rc, err := source.Blob(ctx, ref, d.Digest)
	if err != nil {
		return "", f.imageError(item, err)
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	// The registry client checks digests on its own; reading through a plain
	// digest here gives every source the same error.
	_, file, err = f.Cache.Put(ctx, &countingReader{r: rc, fn: progress}, want, d.Size)
	if err != nil {
		return "", named(fmt.Errorf("%s: blob %s: %w", item, d.Digest, err), item, ref)
	}
	return file, nil
}

// imageError makes a GoneError of an image that its source does not have, and a
// MismatchError of one that is another.
func (f *Fetcher) imageError(item string, err error) error {
	if err := digestMismatch(item, err); errors.As(err, new(*MismatchError)) {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) || oci.IsNotFound(err) {
		return &GoneError{Artifact: item, Profile: f.Profile, Tried: []error{err}}
	}
	return fmt.Errorf("%s: %w", item, err)
}

// digestMismatch makes a MismatchError of a registry's answer that is not what
// was asked for by digest. Another error stays.
func digestMismatch(item string, err error) error {
	var d *oci.DigestError
	if errors.As(err, &d) {
		got, gerr := parseSum(d.Got.Hex)
		want, werr := parseSum(d.Want.Hex)
		if gerr == nil && werr == nil {
			return &MismatchError{Artifact: item, Source: "its registry", Got: got, Want: want}
		}
	}
	return err
}

// bundle assembles the archive that a node imports.
func (f *Fetcher) bundle(ctx context.Context, name, arch, key string, raw []byte, blobs map[v1.Hash]string) (string, error) {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The time is 1980: an archive's content is named by digests, and the
		// same image must give the same archive whichever lock it is in.
		pw.CloseWithError(oci.WriteBundle(pw, name, arch, raw, bundleEpoch, func(h v1.Hash) (io.ReadCloser, error) {
			return os.Open(blobs[h])
		}))
	}()
	sum, file, err := f.Cache.Put(ctx, pr, manifest.SHA256{}, profiles.MaxImage+1<<30)
	// Ends the goroutine's writing if Put gave up.
	pr.CloseWithError(errors.New("not stored"))
	<-done
	if err != nil {
		return "", err
	}
	return file, f.Cache.remember(memoImage, key, sum)
}

// bundleEpoch is the time of everything in an archive of an image: 1980-01-01.
const bundleEpoch = 315532800
