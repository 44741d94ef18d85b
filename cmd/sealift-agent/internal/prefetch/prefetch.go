// Package prefetch reads programs of the root file system into memory before
// they are started. A program that is executed cold takes one page fault after
// the other, each a small read that waits for the disk and for dm-verity, on
// one CPU; the kernel even stops to read ahead for it, because the faults look
// random. Read in order beforehand, the same pages cost a fraction, and the
// time for it is there while the machine waits for the network and the TPM.
package prefetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// chunk is what a reader reads at a time, in bytes.
const chunk = 256 << 10

// Files reads the files, which are absolute paths below root, in their order,
// with that many readers: dm-verity hashes on the CPU that asked. It returns
// when all is read or ctx ends, with the first error of each file; pages that
// are in memory already cost next to nothing. Whoever executes a file finds
// its errors again, so callers may go on without what this could not read.
func Files(ctx context.Context, root string, paths []string, readers int) error {
	var errs []error
	for _, p := range paths {
		if ctx.Err() != nil {
			break
		}
		errs = append(errs, file(ctx, filepath.Join(root, p), readers))
	}
	return errors.Join(errs...)
}

// file reads one file; reader i of n takes every n-th chunk.
func file(ctx context.Context, path string, readers int) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	errs := make([]error, readers)
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			for at := int64(i) * chunk; at < st.Size() && ctx.Err() == nil; at += int64(readers) * chunk {
				if err := readAhead(f, at, min(chunk, st.Size()-at)); err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// readAhead brings a part of a file into memory and waits for it. It has the
// kernel read, and takes one byte of the last page for a sign of the end: a
// copy of it all to here would cost as much as its hashing.
func readAhead(f *os.File, at, n int64) error {
	if err := unix.Fadvise(int(f.Fd()), at, n, unix.FADV_WILLNEED); err != nil {
		return fmt.Errorf("read %s ahead: %w", f.Name(), err)
	}
	if _, err := f.ReadAt(make([]byte, 1), at+n-1); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
