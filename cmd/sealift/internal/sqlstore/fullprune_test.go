package sqlstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/mounttest"
	"github.com/sealift/sealift/image/manifest"
)

// TestPruneOnAFullDisk fills a small file system, prunes there, and makes it
// larger. Whatever fails, fails whole, and nothing that was durable is lost.
func TestPruneOnAFullDisk(t *testing.T) { mounttest.Run(t, pruneFull) }

// pruneFull runs in a mount namespace of its own.
func pruneFull(dir string) error {
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=6m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	ctx := context.Background()
	s, err := Create(ctx, filepath.Join(dir, "state.db"))
	if err != nil {
		return err
	}
	old := time.Unix(1_000_000, 0)
	var durable []manifest.SHA256
	write := func(i int) error {
		log := make([]byte, 20_000)
		_, _ = rand.Read(log)
		id := attest.MachineID{byte(i), byte(i >> 8), 1}
		b, err := json.Marshal(&api.StoredEvidence{Version: api.Version, Received: old.Add(time.Duration(i)), Address: "10.0.0.1", Machine: id, Evidence: attest.Evidence{EventLog: log}})
		if err != nil {
			return err
		}
		r := fmt.Sprint("r", i)
		err = s.Commit(ctx, &server.Change{
			Evidence: b, Release: &server.Release{ID: r, Machine: id, ResetCount: uint32(i)},
			Events: []audit.Event{{Time: old, Kind: audit.KindRelease, Machine: id, Data: audit.Release{ID: r}}},
		})
		_, found := s.Release(ctx, r)
		switch {
		case err == nil && found != nil:
			return fmt.Errorf("release %s was written, and cannot be read: %w", r, found)
		case err != nil && !errors.Is(found, server.ErrNotFound):
			return fmt.Errorf("release %s failed (%v), and there is something of it: %w", r, err, found)
		case err == nil:
			durable = append(durable, sha256.Sum256(b))
		}
		return err
	}
	check := func() error {
		var v audit.Verifier
		pruned := map[manifest.SHA256]int64{}
		for e, err := range s.Audit(ctx, 1) {
			if err == nil {
				err = v.Add(e)
			}
			var d audit.Prune
			if err == nil && e.Kind == audit.KindPrune {
				err = json.Unmarshal(e.Data, &d)
			}
			if err != nil {
				return err
			}
			for _, x := range d.Evidence {
				pruned[x] = e.Seq
			}
		}
		for _, d := range durable {
			_, err := s.Evidence(ctx, d)
			var gone *server.PrunedError
			if pruned[d] == 0 && err != nil || pruned[d] > 0 && (!errors.As(err, &gone) || gone.Entry != pruned[d]) {
				return fmt.Errorf("evidence %s, pruned by entry %d: %w", d, pruned[d], err)
			}
		}
		return nil
	}
	order := server.PruneOrder{Before: old.Add(time.Hour), By: "ops", Now: func() time.Time { return old }}
	n, failed := 0, 0
	for ; failed < 3; n++ {
		if write(n) != nil {
			failed++
		}
		if n > 2000 {
			return errors.New("the disk was never full")
		}
	}
	r, err := server.Prune(ctx, s, order)
	fmt.Printf("on the full disk: %d of %d pruned, %v\n", r.Removed, len(durable), err)
	if err := check(); err != nil {
		return fmt.Errorf("on the full disk: %w", err)
	}
	err = write(n)
	fmt.Printf("the next write: %v\n", err)
	if err := check(); err != nil {
		return fmt.Errorf("after that: %w", err)
	}
	if err := syscall.Mount("none", dir, "tmpfs", syscall.MS_REMOUNT, "size=60m"); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if err := write(n + 1); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	r, err = server.Prune(ctx, s, order)
	if err != nil || !r.Done {
		return fmt.Errorf("with room again: %+v, %w", r, err)
	}
	if err := check(); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	return s.Close()
}
