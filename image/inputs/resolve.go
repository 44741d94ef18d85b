package inputs

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"golang.org/x/mod/modfile"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// snapshotURL keeps every state that Debian's archives ever had, by time.
const snapshotURL = "https://snapshot.debian.org/archive"

// snapshotLag is added to an index's date to get a time at which
// snapshot.debian.org has surely seen that index: it looks four times a day.
const snapshotLag = 12 * time.Hour

// maxPackagesXZ bounds a compressed Packages file, in bytes.
const maxPackagesXZ = 128 << 20

// Resolver makes lock files. All fields are required unless marked Optional.
type Resolver struct {
	Cache    Cache
	Client   *http.Client // Optional; a client with sane time limits if nil.
	Progress Progress     // Optional.
	Profile  string       // file of the profile
	Now      time.Time    // to judge signatures and indexes by

	keys openpgp.EntityList // Optional; Debian's archive keys if empty.
}

// archive is one suite of one of Debian's archives.
type archive struct {
	name  string // debian, debian-security
	suite string
	date  time.Time
}

// Resolve finds every input that the profile asks for and pins it by digest.
// It needs the network, and the go command for the toolchain's version and for
// images that are built from source. Nothing that it downloads is trusted
// before Debian's signature over it was verified.
func (r *Resolver) Resolve(ctx context.Context, p *profiles.Profile) (*profiles.Lock, error) {
	base, err := profiles.LoadBase(p.Base)
	if err != nil {
		return nil, fmt.Errorf("lock profile %s: %w", p.Name, err)
	}
	distro, err := profiles.LoadDistro(p.Kubernetes.Distro)
	if err != nil {
		return nil, fmt.Errorf("lock profile %s: %w", p.Name, err)
	}
	version, err := distro.Version(p.Kubernetes.Version)
	if err != nil {
		return nil, fmt.Errorf("lock profile %s: %w", p.Name, err)
	}
	lock := &profiles.Lock{APIVersion: profiles.APIVersion, Kind: profiles.KindLock, Profile: p.Name, Arch: p.Arch}
	if lock.ProfileDigest, err = p.InputDigest(); err != nil {
		return nil, fmt.Errorf("lock profile %s: %w", p.Name, err)
	}
	if err := r.Cache.Sweep(); err != nil {
		return nil, fmt.Errorf("lock profile %s: %w", p.Name, err)
	}
	if err := r.lockDebian(ctx, lock, p, base, distro); err != nil {
		return nil, fmt.Errorf("lock profile %s: debian: %w", p.Name, err)
	}
	if err := r.lockDistro(ctx, lock, p, distro); err != nil {
		return nil, fmt.Errorf("lock profile %s: %w", p.Name, err)
	}
	if err := r.lockGo(ctx, lock, distro, version); err != nil {
		return nil, fmt.Errorf("lock profile %s: go: %w", p.Name, err)
	}
	if err := r.lockFiles(ctx, lock, p); err != nil {
		return nil, fmt.Errorf("lock profile %s: %w", p.Name, err)
	}
	if err := r.lockBase(ctx, lock, p); err != nil {
		return nil, fmt.Errorf("lock profile %s: %w", p.Name, err)
	}
	if err := r.lockImages(ctx, lock, p); err != nil {
		return nil, fmt.Errorf("lock profile %s: %w", p.Name, err)
	}
	return lock, nil
}

func (r *Resolver) fetcher() *Fetcher {
	return &Fetcher{Cache: r.Cache, Client: r.Client, Progress: r.Progress, Profile: r.Profile}
}

func (r *Resolver) lockDebian(ctx context.Context, lock *profiles.Lock, p *profiles.Profile, base *profiles.Base, distro *profiles.Distro) error {
	keys := r.keys
	if len(keys) == 0 {
		var err error
		if keys, err = keyring(); err != nil {
			return err
		}
	}
	lock.Debian.Suite = p.Debian.Suite
	archives := []archive{
		{name: "debian", suite: p.Debian.Suite},
		{name: "debian", suite: p.Debian.Suite + "-updates"},
		{name: "debian-security", suite: p.Debian.Suite + "-security"},
	}
	u := newUniverse()
	for i := range archives {
		rel, err := r.readArchive(ctx, p.Debian.Mirror, &archives[i], keys, p.Arch, func(c candidate) error {
			c.archive = i
			u.add(c)
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s %s: %w", archives[i].name, archives[i].suite, err)
		}
		lock.Debian.Releases = append(lock.Debian.Releases, rel)
	}
	if err := u.index(); err != nil {
		return err
	}
	want := append([]string{p.Kernel.Package, base.Stub.Package}, p.Packages...)
	for _, list := range [][]profiles.PackageFiles{base.Content.Packages, distro.Content.Packages} {
		for _, pkg := range list {
			want = append(want, pkg.Name)
		}
	}
	chosen, err := u.closure(want, slices.Concat(base.Content.Exclude, distro.Content.Exclude))
	if err != nil {
		return err
	}
	for _, c := range chosen {
		a := archives[c.archive]
		lock.Debian.Packages = append(lock.Debian.Packages, profiles.LockedPackage{
			Name:    c.Name,
			Version: c.Version.String(),
			Arch:    c.Arch,
			URLs: []string{
				p.Debian.Mirror + "/" + path.Join(a.name, c.Filename),
				snapshotURL + "/" + path.Join(a.name, a.date.Add(snapshotLag).Format("20060102T150405Z"), c.Filename),
			},
			Size:   c.Digest.Size,
			SHA256: hex.EncodeToString(c.Digest.SHA256[:]),
		})
	}
	return nil
}

// readArchive downloads, verifies and reads one suite's index.
func (r *Resolver) readArchive(ctx context.Context, mirror string, a *archive, keys openpgp.EntityList, arch string, fn func(candidate) error) (profiles.LockedRelease, error) {
	var none profiles.LockedRelease
	root := mirror + "/" + a.name + "/dists/" + a.suite
	raw, err := r.fetchSmall(ctx, root+"/InRelease", maxInRelease)
	if err != nil {
		return none, err
	}
	rel, err := verifyRelease(raw, keys, a.suite, r.Now)
	if err != nil {
		return none, &UntrustedError{Source: root + "/InRelease", Reason: err}
	}
	a.date = rel.Date
	name := "main/binary-" + arch + "/Packages.xz"
	d, ok := rel.Files[name]
	if !ok || d.Size > maxPackagesXZ {
		return none, fmt.Errorf("index lists no usable %s", name)
	}
	file, err := r.fetchIndex(ctx, root, name, d, rel.ByHash)
	if err != nil {
		return none, err
	}
	if err := readPackages(file, arch, fn); err != nil {
		return none, fmt.Errorf("read %s/%s: %w", root, name, err)
	}
	return profiles.LockedRelease{Archive: a.name, Suite: a.suite, Date: rel.Date.Format(time.RFC3339), SHA256: hexSum(raw)}, nil
}

// fetchIndex gets a file whose digest the Release has. The address with the
// digest in it is the one that stays right while a mirror is being updated.
func (r *Resolver) fetchIndex(ctx context.Context, root, name string, d digest, byHash bool) (string, error) {
	want := manifest.SHA256(d.SHA256)
	if file, err := r.Cache.Lookup(ctx, want); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return file, named(err, "index "+root, "")
	}
	url := root + "/" + name
	if byHash {
		url = root + "/" + path.Dir(name) + "/by-hash/SHA256/" + want.String()
	}
	file, err := r.fetcher().download(ctx, "index "+root, url, d.Size, want)
	return file, named(err, "index "+root, url)
}

// UntrustedError says that the signature of an index does not hold.
type UntrustedError struct {
	Source string // address
	Reason error
}

func (e *UntrustedError) Error() string { return fmt.Sprintf("verify %s: %v", e.Source, e.Reason) }

// Unwrap returns the reason.
func (e *UntrustedError) Unwrap() error { return e.Reason }

func (r *Resolver) fetchSmall(ctx context.Context, url string, max int64) (_ []byte, err error) {
	body, err := get(ctx, r.fetcher().client(), url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	b, err := io.ReadAll(io.LimitReader(body, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("get %s: more than %d bytes", url, max)
	}
	return b, err
}

func readPackages(file, arch string, fn func(candidate) error) (err error) {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := newXZReader(f)
	if err != nil {
		return err
	}
	return parsePackages(z, arch, fn)
}

// goVersion is the toolchain that runs now.
func goVersion(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION")
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go env GOVERSION: %w", err)
	}
	// A development toolchain or one with experiments has more words.
	v, _, _ := strings.Cut(string(bytes.TrimSpace(out)), " ")
	return v, nil
}

// lockGo pins the toolchain that runs now and, where programs are built from
// them, the distro's module files and what each program links.
func (r *Resolver) lockGo(ctx context.Context, lock *profiles.Lock, d *profiles.Distro, v *profiles.DistroVersion) (err error) {
	if lock.Go.Toolchain, err = goVersion(ctx); err != nil {
		return err
	}
	if lock.Distro.Source != profiles.SourceModules {
		return nil
	}
	m, err := d.Module(v)
	if err != nil {
		return err
	}
	lock.Go.ModSHA256, lock.Go.SumSHA256 = hexSum(m.Mod), hexSum(m.Sum)
	if lock.Go.Modules, err = directModules(m); err != nil {
		return err
	}
	dir, err := moduleDir(m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var packages []string
	for _, b := range v.Builds {
		packages = append(packages, b.Package)
		if b.Main != "" {
			packages[len(packages)-1] = "./" + b.Name
		}
	}
	f := r.fetcher()
	f.report(Event{Item: "modules of " + d.Name + " " + v.Version})
	linked, err := f.linkedModules(ctx, dir, lock.Go.Toolchain, lock.Arch, packages)
	if err != nil {
		return err
	}
	main, err := modulePath(m)
	if err != nil {
		return err
	}
	for i, b := range v.Builds {
		l := lockedBuild(b, v, m)
		list, ok := linked[strings.Replace(packages[i], ".", main, 1)]
		if b.Main == "" {
			list, ok = linked[b.Package]
		}
		if !ok {
			return fmt.Errorf("go list does not name %s", packages[i])
		}
		l.ModulesSHA256 = moduleDigest(list)
		lock.Go.Builds = append(lock.Go.Builds, l)
	}
	return nil
}

func modulePath(m *profiles.GoModule) (string, error) {
	p := modfile.ModulePath(m.Mod)
	if p == "" {
		return "", errors.New("go.mod names no module")
	}
	return p, nil
}

// directModules lists the modules that the distro's go.mod requires directly,
// with their digests of go.sum.
func directModules(m *profiles.GoModule) ([]profiles.LockedModule, error) {
	f, err := modfile.ParseLax("go.mod", m.Mod, nil)
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for _, line := range strings.Split(string(m.Sum), "\n") {
		if w := strings.Fields(line); len(w) == 3 {
			sums[w[0]+" "+w[1]] = w[2]
		}
	}
	var out []profiles.LockedModule
	for _, req := range f.Require {
		if req.Indirect {
			continue
		}
		s := sums[req.Mod.Path+" "+req.Mod.Version]
		if s == "" {
			return nil, fmt.Errorf("go.sum has no digest of %s", req.Mod)
		}
		out = append(out, profiles.LockedModule{Path: req.Mod.Path, Version: req.Mod.Version, Sum: s})
	}
	return out, nil
}

func (r *Resolver) lockImages(ctx context.Context, lock *profiles.Lock, p *profiles.Profile) error {
	f := r.fetcher()
	for _, img := range p.Preload.Images {
		// A profile's own image takes the place of the distro's.
		lock.Images = slices.DeleteFunc(lock.Images, func(l profiles.LockedImage) bool { return l.Name == img.Name })
		if img.Pulled() || img.Layout != "" {
			locked, err := r.resolveImage(ctx, profiles.LockedImage{Name: img.Name, From: img.From, Layout: img.Layout}, p.Arch)
			if err != nil {
				return err
			}
			lock.Images = append(lock.Images, locked)
			continue
		}
		if img.Archive != "" {
			file := f.beside(img.Archive)
			st, err := os.Stat(file)
			if err != nil {
				return fmt.Errorf("image %s: %w", img.Name, err)
			}
			s, err := fileSum(file)
			if err != nil {
				return fmt.Errorf("image %s: %w", img.Name, err)
			}
			lock.Archives = append(lock.Archives, profiles.LockedArchive{Name: img.Name, Path: img.Archive, Size: st.Size(), SHA256: s})
			continue
		}
		s, modules, err := f.sourceSum(ctx, f.beside(img.Go), lock.Go.Toolchain, p.Arch)
		if err != nil {
			return fmt.Errorf("image %s: %w", img.Name, err)
		}
		lock.Sources = append(lock.Sources, profiles.LockedSource{Name: img.Name, Path: img.Go, Sum: s, Modules: modules})
	}
	return nil
}
