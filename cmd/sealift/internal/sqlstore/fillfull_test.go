package sqlstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/mounttest"
)

// TestFillOnAFullDisk fills a database on file systems of many sizes: there is room
// for nothing, for the write-ahead log and not for what it is copied to, for all.
// What Fill says was filled is whole, and of anything else there is nothing.
func TestFillOnAFullDisk(t *testing.T) { mounttest.Run(t, fillFull) }

// fillFull runs in a mount namespace of its own.
func fillFull(dir string) error {
	const entries, size = 100, 20_000
	records := func() iter.Seq2[server.Record, error] {
		return func(yield func(server.Record, error) bool) {
			var head audit.Head
			for range entries {
				e, err := audit.Next(head, audit.Event{Time: time.Unix(1, 0), Kind: audit.KindStart, Data: audit.Start{Version: rand.Text() + fmt.Sprintf("%0*d", size, 0)}})
				head = e.Head()
				if !yield(server.Record{Entry: &e}, err) {
					return
				}
			}
		}
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	ctx := context.Background()
	filled, failed := 0, 0
	for kib := 256; kib <= 6<<10; kib += 192 {
		if err := syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%dk", kib)); err != nil {
			return fmt.Errorf("remount: %w", err)
		}
		path := filepath.Join(dir, "state.db")
		if err := Fill(ctx, path, records()); err != nil {
			failed++
			left, err := os.ReadDir(dir)
			if err != nil {
				return err
			}
			if len(left) > 0 {
				return fmt.Errorf("%d KiB: %s is left", kib, left[0].Name())
			}
			continue
		}
		filled++
		s, err := Open(ctx, path)
		if err != nil {
			return fmt.Errorf("%d KiB: %w", kib, err)
		}
		n := 0
		for _, err := range s.Audit(ctx, 1) {
			if err != nil {
				return fmt.Errorf("%d KiB: %w", kib, err)
			}
			n++
		}
		if n != entries {
			return fmt.Errorf("%d KiB: filled, and there are %d entries of %d", kib, n, entries)
		}
		if err := s.Close(); err != nil {
			return fmt.Errorf("%d KiB: %w", kib, err)
		}
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	fmt.Printf("%d sizes sufficed, %d did not\n", filled, failed)
	if filled == 0 || failed == 0 {
		return errors.New("not both")
	}
	return nil
}
