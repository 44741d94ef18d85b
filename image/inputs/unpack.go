package inputs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/manifest"
)

// ReadPackage calls fn for each entry of a locked package, as ReadDeb does.
func (in *Inputs) ReadPackage(name string, fn func(DebEntry, io.Reader) error) (err error) {
	file, ok := in.Packages[name]
	if !ok {
		return fmt.Errorf("package %s is not among the inputs", name)
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("package %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("package %s: %w", name, err)
	}
	defer z.Close()
	if err := readTar(io.LimitReader(z, maxUnpacked), fn); err != nil {
		return fmt.Errorf("package %s: %w", name, err)
	}
	return nil
}

// unpack returns the data archive of a package as tar.zst. Debian's packages
// are compressed with xz, which Go unpacks at some 10 MB/s: done once and
// remembered, it is not in the way of every build.
func (f *Fetcher) unpack(ctx context.Context, item, deb string, d manifest.SHA256) (string, error) {
	file, err := f.Cache.recall(ctx, memoUnpack, d.String())
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return file, named(err, "unpacked "+item, "")
	}
	src, err := os.Open(deb)
	if err != nil {
		return "", err
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(repack(pw, &countingReader{r: src, fn: func(n int64) {
			f.report(Event{Item: "unpack " + item, Done: n})
		}}))
	}()
	sum, file, err := f.Cache.Put(ctx, pr, manifest.SHA256{}, maxUnpacked)
	// Ends the goroutine's writing if Put gave up.
	pr.CloseWithError(errors.New("not stored"))
	<-done
	if err := errors.Join(err, src.Close()); err != nil {
		return "", fmt.Errorf("unpack %s: %w", item, err)
	}
	return file, f.Cache.remember(memoUnpack, d.String(), sum)
}

// repack reads a package and writes its data archive, after checking each
// entry, as zstd.
func repack(w io.Writer, deb io.Reader) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	err = dataArchive(deb, func(t io.Reader) error {
		tee := io.TeeReader(t, z)
		if err := readTar(tee, func(DebEntry, io.Reader) error { return nil }); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, tee)
		return err
	})
	return errors.Join(err, z.Close())
}
