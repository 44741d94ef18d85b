package inputs

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// lockDistro writes down where the distro's programs come from. Of a release
// it pins each file by the vendor's own checksum, downloads it, so that a lock
// never names a file that is not what the checksum says, and resolves the
// distro's list of images.
func (r *Resolver) lockDistro(ctx context.Context, lock *profiles.Lock, p *profiles.Profile, d *profiles.Distro) error {
	k := p.Kubernetes
	lock.Distro = profiles.LockedDistro{Name: d.Name, Version: k.Version, Source: k.Source}
	if k.Source != profiles.SourceRelease {
		return nil
	}
	v := vendor{r: r, release: d.Release, item: d.Name + " " + k.Version, version: k.Version, arch: p.Arch, mirror: k.Mirror, sums: map[string][]byte{}}
	for _, a := range d.Release.Artifacts {
		locked, err := v.lock(ctx, a)
		if err != nil {
			return err
		}
		lock.Distro.Artifacts = append(lock.Distro.Artifacts, locked)
	}
	if d.Release.Images == nil {
		return nil
	}
	list, from, err := v.imageList(ctx, lock, d)
	if err != nil {
		return err
	}
	lock.Distro.Images = &profiles.LockedList{From: from, SHA256: hexSum(list)}
	names, err := parseImageList(list)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", v.item, from, err)
	}
	for _, name := range names {
		if p.Preload.Excluded(name) {
			continue
		}
		img, err := r.resolveImage(ctx, profiles.LockedImage{Name: name, Distro: true}, p.Arch)
		if err != nil {
			return err
		}
		lock.Images = append(lock.Images, img)
	}
	return nil
}

// vendor reads one version of a release.
type vendor struct {
	r                     *Resolver
	release               *profiles.Release
	item                  string // "k3s v1.34.1+k3s1", for messages
	version, arch, mirror string
	sums                  map[string][]byte // address: file of checksums
}

// checksums returns a file of checksums and its address.
func (v *vendor) checksums(ctx context.Context, file string) ([]byte, string, error) {
	address, err := v.release.FileURL(file, v.version, v.arch, v.mirror)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", v.item, err)
	}
	if b, ok := v.sums[address]; ok {
		return b, address, nil
	}
	b, err := v.r.fetchSmall(ctx, address, maxChecksums)
	if err != nil {
		return nil, "", fmt.Errorf("%s: checksums: %w", v.item, err)
	}
	v.sums[address] = b
	return b, address, nil
}

// entry is the name of a file in a file of checksums.
func (v *vendor) entry(file string) (string, error) {
	name, err := v.release.Expand(file, v.version, v.arch)
	if err != nil {
		return "", err
	}
	return url.PathUnescape(path.Base(name))
}

func (v *vendor) lock(ctx context.Context, a profiles.Artifact) (profiles.LockedArtifact, error) {
	out := profiles.LockedArtifact{Name: a.Name}
	fail := func(err error) (profiles.LockedArtifact, error) {
		return out, fmt.Errorf("%s: %w", v.item, err)
	}
	sums, from, err := v.checksums(ctx, a.Checksums)
	if err != nil {
		return out, err
	}
	entry, err := v.entry(a.File)
	if err != nil {
		return fail(err)
	}
	want, err := checksumOf(sums, entry)
	if err != nil {
		return fail(fmt.Errorf("checksums %s: %w", from, err))
	}
	if out.URL, err = v.release.FileURL(a.File, v.version, v.arch, v.mirror); err != nil {
		return fail(err)
	}
	item := v.item + " file " + entry
	file, err := v.r.Cache.Lookup(ctx, want)
	if errors.Is(err, fs.ErrNotExist) {
		file, err = v.r.fetcher().download(ctx, item, out.URL, profiles.MaxArtifact, want)
	}
	if err != nil {
		return out, named(fmt.Errorf("%s: %w", item, err), item, out.URL)
	}
	st, err := os.Stat(file)
	if err != nil {
		return fail(err)
	}
	out.Size, out.SHA256 = st.Size(), want.String()
	out.Checksums, out.ChecksumsSHA256 = from, hexSum(sums)
	return out, nil
}

// imageList gets the distro's list of images from the vendor's file, or from
// the command that prints it.
func (v *vendor) imageList(ctx context.Context, lock *profiles.Lock, d *profiles.Distro) (list []byte, from string, err error) {
	images := v.release.Images
	from, err = v.release.FileURL(images.File, v.version, v.arch, v.mirror)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", v.item, err)
	}
	list, err = v.r.fetchSmall(ctx, from, maxImageList)
	var status *statusError
	if errors.As(err, &status) && status.code == 404 && len(images.Command) > 0 {
		list, err = v.printList(ctx, lock, d)
		return list, strings.Join(images.Command, " "), err
	}
	if err != nil {
		return nil, "", fmt.Errorf("%s: list of images: %w", v.item, err)
	}
	if images.Checksums == "" {
		return list, from, nil
	}
	sums, address, err := v.checksums(ctx, images.Checksums)
	if err != nil {
		return nil, "", err
	}
	entry, err := v.entry(images.File)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", v.item, err)
	}
	want, err := checksumOf(sums, entry)
	if errors.Is(err, errNotListed) {
		return list, from, nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("%s: checksums %s: %w", v.item, address, err)
	}
	if got := digestOf(list); got != want {
		return nil, "", &MismatchError{Artifact: v.item + " file " + entry, Source: from, Got: got, Want: want, Size: int64(len(list))}
	}
	return list, from, nil
}

// listTimeout bounds the command that prints a list of images.
const listTimeout = time.Minute

// printList runs the distro's own program, whose digest was checked, to print
// its list of images. It sees nothing of the caller's environment.
func (v *vendor) printList(ctx context.Context, lock *profiles.Lock, d *profiles.Distro) (_ []byte, err error) {
	command := v.release.Images.Command
	if runtime.GOOS != "linux" || runtime.GOARCH != v.arch {
		return nil, fmt.Errorf("%s: the release has no list of images, and its program for %s does not run on this machine to print one", v.item, v.arch)
	}
	programs, err := v.r.fetcher().fetchRelease(ctx, lock, d)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sealift-list-")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.item, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := InstallPrograms(dir, map[string]string{command[0]: programs[command[0]]}); err != nil {
		return nil, fmt.Errorf("%s: %w", v.item, err)
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, command[0]), command[1:]...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, []string{"HOME=" + dir, "PATH=/usr/bin:/bin"}, time.Second
	var tail tailBuffer
	cmd.Stderr = &tail
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.item, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", v.item, strings.Join(command, " "), err)
	}
	list, rerr := io.ReadAll(io.LimitReader(out, maxImageList+1))
	if len(list) > maxImageList {
		cancel()
	}
	if err := errors.Join(rerr, cmd.Wait()); err != nil {
		return nil, fmt.Errorf("%s: %s: %w\n%s", v.item, strings.Join(command, " "), err, tail.b)
	}
	return list, nil
}

// tailBuffer keeps the start of what a command says when it fails.
type tailBuffer struct{ b []byte }

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.b = append(t.b, p[:min(len(p), maxOutput-len(t.b))]...)
	return len(p), nil
}

// fetchRelease makes the programs of a vendor's release available, by name.
func (f *Fetcher) fetchRelease(ctx context.Context, lock *profiles.Lock, d *profiles.Distro) (map[string]string, error) {
	if d.Release == nil {
		return nil, fmt.Errorf("distro %s has no release files", d.Name)
	}
	locked := map[string]*profiles.LockedArtifact{}
	for i := range lock.Distro.Artifacts {
		locked[lock.Distro.Artifacts[i].Name] = &lock.Distro.Artifacts[i]
	}
	out := map[string]string{}
	for _, a := range d.Release.Artifacts {
		l, ok := locked[a.Name]
		if !ok {
			return nil, &StaleError{Profile: f.Profile, Reason: fmt.Errorf("distro %s has a file %s that the lock does not pin", d.Name, a.Name)}
		}
		want, err := parseSum(l.SHA256)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.Name, err)
		}
		item := fmt.Sprintf("%s %s file %s", d.Name, lock.Distro.Version, path.Base(l.URL))
		file, err := f.cached(ctx, item, []string{l.URL}, l.Size, want)
		if err != nil {
			return nil, err
		}
		for _, p := range a.Programs {
			out[p.Name] = file
			if p.Member != "" {
				if out[p.Name], err = f.member(ctx, item, file, want, p.Member); err != nil {
					return nil, err
				}
			}
		}
	}
	return out, nil
}

// member takes one file out of a tar.gz archive.
func (f *Fetcher) member(ctx context.Context, item, archive string, digest manifest.SHA256, member string) (string, error) {
	key := hexSum([]byte(digest.String() + "\x00" + member))
	file, err := f.Cache.recall(ctx, memoMember, key)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return file, named(err, item+": "+member, "")
	}
	src, err := os.Open(archive)
	if err != nil {
		return "", fmt.Errorf("%s: %w", item, err)
	}
	var got manifest.SHA256
	err = readMember(src, member, func(r io.Reader) (err error) {
		got, file, err = f.Cache.Put(ctx, r, manifest.SHA256{}, maxProgram)
		return err
	})
	if err := errors.Join(err, src.Close()); err != nil {
		return "", fmt.Errorf("%s: %w", item, err)
	}
	return file, f.Cache.remember(memoMember, key, got)
}

// readMember calls fn with one regular file of a tar.gz archive. Of the other
// entries only the names are looked at; nothing of them is written anywhere.
func readMember(r io.Reader, member string, fn func(io.Reader) error) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	limited := &io.LimitedReader{R: z, N: maxUnpacked}
	t := tar.NewReader(limited)
	for n := 0; ; n++ {
		h, err := t.Next()
		switch {
		case limited.N <= 0:
			return fmt.Errorf("archive unpacks to more than %d bytes", int64(maxUnpacked))
		case errors.Is(err, io.EOF):
			return fmt.Errorf("archive has no file %s", member)
		case err != nil:
			return fmt.Errorf("archive: entry %d: %w", n, err)
		case n >= maxEntries:
			return fmt.Errorf("archive: more than %d entries", maxEntries)
		}
		if path.Clean(h.Name) != member {
			continue
		}
		if h.Typeflag != tar.TypeReg || h.PAXRecords["GNU.sparse.major"] != "" {
			return fmt.Errorf("archive: %s has type %q, want a plain file", member, h.Typeflag)
		}
		if h.Size > maxProgram {
			return fmt.Errorf("archive: %s has %d bytes, at most %d allowed", member, h.Size, int64(maxProgram))
		}
		return fn(t)
	}
}
