package inspect

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
)

// Verify checks an image and reports each check in a fixed order, from one
// goroutine. It returns how many failed; the error is only for what ended the
// verification itself, such as the context.
//
// It checks that
//   - the manifest is signed by the image key and in the form that the builder
//     writes, so that nothing in it can be read in two ways,
//   - the disk's partition table, its ESP and the file on it, the UKI's
//     sections and signature, the dm-verity tree and the root file system are
//     well-formed, agree with each other and with the manifest, and leave no
//     room that is neither accounted for nor zero,
//   - every byte of the disk is covered by a chunk digest,
//   - all reference values follow from the bytes at hand,
//   - every file beside the manifest is listed in it or signed for itself.
func Verify(ctx context.Context, in Input, report func(Check)) (failed int, err error) {
	v := &verifier{Input: in}
	if v.Workers <= 0 {
		v.Workers = runtime.GOMAXPROCS(0)
	}
	tell := func(c Check) {
		if !c.OK {
			failed++
		}
		report(c)
	}
	tell(result("manifest.signature", func(context.Context) (string, error) {
		return "by the image key", bundle.Verify(in.Manifest, in.Bundle, in.Keys.Image)
	})(ctx))
	format := result("manifest.format", v.readManifest)(ctx)
	tell(format)
	if !format.OK {
		tell(Check{Name: "disk", Detail: "cannot be checked without a manifest"})
		return failed, ctx.Err()
	}
	jobs := v.diskJobs()
	jobs = append(jobs, v.ukiJobs()...)
	jobs = append(jobs, v.rootJobs()...)
	if !in.DiskOnly {
		jobs = append(jobs, v.fileJobs()...)
	}
	return failed, run(ctx, jobs, v.Workers, tell)
}

// job is one check to be made.
type job func(context.Context) Check

// result makes a job of a function that returns what it found.
func result(name string, f func(context.Context) (string, error)) job {
	return func(ctx context.Context) Check {
		detail, err := f(ctx)
		if err == nil {
			return Check{Name: name, OK: true, Detail: detail}
		}
		c := Check{Name: name, Detail: err.Error()}
		var m *Mismatch
		if errors.As(err, &m) {
			c.Got, c.Want = m.Got, m.Want
		}
		return c
	}
}

// run runs jobs, some at a time, and reports their results in their order, each
// as soon as all before it are there.
func run(ctx context.Context, jobs []job, workers int, report func(Check)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers + 1)
	results := make([]chan Check, len(jobs))
	for i := range results {
		results[i] = make(chan Check, 1)
	}
	told := make(chan error, 1)
	go func() {
		for _, r := range results {
			select {
			case c := <-r:
				if ctx.Err() != nil {
					told <- ctx.Err()
					return
				}
				report(c)
			case <-ctx.Done():
				told <- ctx.Err()
				return
			}
		}
		told <- nil
	}()
	for i, j := range jobs {
		g.Go(func() error {
			results[i] <- j(ctx)
			return ctx.Err()
		})
	}
	// The reporter is waited for first: Wait ends the context.
	err := <-told
	return errors.Join(err, g.Wait())
}

// verifier holds what several checks need. Its functions may be called by
// several goroutines; each computes its value once.
type verifier struct {
	Input
	m *manifest.Manifest

	table     func() (*Table, error)
	esp       func() (*FAT, error)
	uki       func() ([]byte, error)
	super     func() (*Superblock, error)
	installer func() ([]byte, error)
	image     func() (Disk, error) // the disk as it was built
	digest    func() (manifest.SHA256, error)
	root      func() (*Root, error)
	initrds   map[string]func() (*initramfs, error) // by the agent's mode
}

// readManifest decodes the manifest and prepares what follows from it.
func (v *verifier) readManifest(ctx context.Context) (string, error) {
	m, err := manifest.Decode(v.Manifest)
	if err != nil {
		return "", err
	}
	again, err := m.Encode()
	if err != nil {
		return "", err
	}
	if i := firstDifference(v.Manifest, again); i >= 0 {
		return "", fmt.Errorf("it is not in the form that the builder writes, from byte %d on", i)
	}
	v.m = m
	v.image = sync.OnceValues(v.asBuilt)
	v.table = sync.OnceValues(func() (*Table, error) { return ReadTable(v.Disk) })
	v.esp = sync.OnceValues(v.readESP)
	v.uki = sync.OnceValues(v.readUKI)
	v.super = sync.OnceValues(func() (*Superblock, error) {
		p, err := v.partition(manifest.RoleRootVerityA)
		if err != nil {
			return nil, err
		}
		return ReadSuperblock(p)
	})
	v.installer = sync.OnceValues(v.readInstaller)
	v.digest = sync.OnceValues(func() (manifest.SHA256, error) { return v.wholeDigest(ctx) })
	v.root = sync.OnceValues(func() (*Root, error) { return v.readRoot(ctx) })
	v.initrds = map[string]func() (*initramfs, error){
		profiles.ModeBoot:    sync.OnceValues(func() (*initramfs, error) { return readInitramfs(v.uki) }),
		profiles.ModeInstall: sync.OnceValues(func() (*initramfs, error) { return readInitramfs(v.installer) }),
	}
	return fmt.Sprintf("%s %s for %s, %s, %d artifacts, %d chunks", m.Name, m.Version, m.Arch, debugMark(m.Debug), len(m.Artifacts), len(m.Disk.Chunks)), nil
}

// partition returns the place that the manifest gives a role. Whether the
// disk's own table agrees is a check of its own.
func (v *verifier) partition(role string) (*section, error) {
	d, err := v.image()
	if err != nil {
		return nil, err
	}
	var found []manifest.Partition
	for _, p := range v.m.Disk.Partitions {
		if p.Role == role {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("the manifest has %d partitions %s, want 1", len(found), role)
	}
	p := found[0]
	return sectionOf(d, int64(p.FirstLBA)*SectorSize, int64(p.Sectors)*SectorSize)
}
