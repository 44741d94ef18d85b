// Package inputs turns what a profile asks for into files with known digests.
//
// A Resolver makes the lock: it reads Debian's signed indexes, resolves the
// dependency closure and writes down the digest of every input. A Fetcher
// brings what a lock pins into a content-addressed Cache, from the network or
// by building Go programs, and checks every byte against the lock. ReadDeb
// reads a package's files; nothing in a package is ever run.
package inputs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/profiles"
)

// Progress takes an Event. It is never called from two goroutines at once.
type Progress func(Event)

// Event says how far an input is. Fetches come one after another.
type Event struct {
	Item  string // what is being fetched or built, e.g. "package runc 1.1.5"
	Done  int64  // bytes; 0 for a build
	Total int64  // bytes; 0 if unknown
	Line  string // a build's own message. Optional.
}

// Fetcher makes the inputs of a lock available as files.
type Fetcher struct {
	Cache    Cache
	Client   *http.Client // Optional; a client with sane time limits if nil.
	Offline  bool         // use only what the cache and the Go module cache hold
	Progress Progress     // Optional.
	// Profile is the profile's file, for the command in hints and as the
	// place that preloaded archives and sources are relative to.
	Profile string
}

// Inputs are the files of a lock. All were checked against it.
type Inputs struct {
	Lock     *profiles.Lock
	Packages map[string]string // package name: data archive; see ReadPackage
	Programs map[string]string // name of a Program of the distro: executable
	Archives map[string]string // image reference: OCI archive, be it the user's own or pulled
	Sources  map[string]string // image reference: static executable, the image's program
	Files    map[string]string // path of a file beside the profile, as in the profile: a copy of it
	Base     []oci.Layer       // of base oci, the lowest first
}

// ErrGone reports a pinned file that no server has any more. Errors that wrap
// it are *GoneError.
var ErrGone = errors.New("no longer available")

// GoneError names a pinned file that could not be had from any address.
type GoneError struct {
	Artifact string // e.g. "package runc 1.1.5+ds1-1+deb12u1"
	Profile  string // file of the profile whose lock pins it
	Tried    []error
}

func (e *GoneError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %v", e.Artifact, ErrGone)
	for _, err := range e.Tried {
		fmt.Fprintf(&b, "; %v", err)
	}
	return b.String()
}

// Unwrap makes errors.Is(err, ErrGone) true.
func (e *GoneError) Unwrap() []error { return append([]error{ErrGone}, e.Tried...) }

// Hint is the command that mends it.
func (e *GoneError) Hint() string { return "sealift profile lock " + e.Profile }

// StaleError says that a lock is not of what the profile asks for now.
type StaleError struct {
	Profile string // file
	Reason  error
}

func (e *StaleError) Error() string { return "the lock is stale: " + e.Reason.Error() }

// Unwrap returns the reason.
func (e *StaleError) Unwrap() error { return e.Reason }

// Hint is the command that mends it.
func (e *StaleError) Hint() string { return "sealift profile lock " + e.Profile }

// OfflineError names an input that a build without network would need it for.
type OfflineError struct {
	Artifact string
	Reason   error
}

func (e *OfflineError) Error() string {
	return fmt.Sprintf("%s: %v, and the build is offline", e.Artifact, e.Reason)
}

// Unwrap returns the reason.
func (e *OfflineError) Unwrap() error { return e.Reason }

// Hint is what mends it.
func (e *OfflineError) Hint() string {
	return "build once without --offline, or bring the cache of a machine that did"
}

// errNotCached is the reason of most OfflineErrors.
var errNotCached = errors.New("not in the cache")

// Fetch makes every package, image and node program of the lock available. The
// profile is the one that the lock was made for. A package that the mirror does
// not have is looked for at its other addresses; if it is at none, the error is
// a *GoneError. Whatever is not what the lock pins is a *MismatchError.
func (f *Fetcher) Fetch(ctx context.Context, p *profiles.Profile, lock *profiles.Lock) (*Inputs, error) {
	if err := lock.CheckProfile(p); err != nil {
		return nil, &StaleError{Profile: f.Profile, Reason: err}
	}
	distro, err := profiles.LoadDistro(p.Kubernetes.Distro)
	if err != nil {
		return nil, fmt.Errorf("fetch inputs: %w", err)
	}
	version, err := distro.Version(p.Kubernetes.Version)
	if err != nil {
		return nil, fmt.Errorf("fetch inputs: %w", err)
	}
	if err := f.Cache.Sweep(); err != nil {
		return nil, fmt.Errorf("fetch inputs: %w", err)
	}
	in := &Inputs{
		Lock:     lock,
		Packages: map[string]string{},
		Archives: map[string]string{},
		Sources:  map[string]string{},
		Files:    map[string]string{},
	}
	for _, l := range lock.Files {
		file, err := f.fetchFile(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("fetch inputs: %w", err)
		}
		in.Files[l.Path] = file
	}
	if lock.OCI != nil {
		if in.Base, err = f.fetchBase(ctx, p.OCI, lock.OCI); err != nil {
			return nil, fmt.Errorf("fetch inputs: %w", err)
		}
	}
	for i := range lock.Debian.Packages {
		pkg := &lock.Debian.Packages[i]
		file, err := f.fetchPackage(ctx, pkg)
		if err != nil {
			return nil, fmt.Errorf("fetch inputs: %w", err)
		}
		in.Packages[pkg.Name] = file
	}
	for _, img := range lock.Images {
		file, err := f.fetchImage(ctx, img, lock.Arch)
		if err != nil {
			return nil, fmt.Errorf("fetch inputs: %w", err)
		}
		in.Archives[img.Name] = file
	}
	for _, a := range lock.Archives {
		file, err := f.fetchArchive(ctx, a)
		if err != nil {
			return nil, fmt.Errorf("fetch inputs: %w", err)
		}
		in.Archives[a.Name] = file
	}
	for _, s := range lock.Sources {
		file, err := f.buildSource(ctx, lock.Go.Toolchain, lock.Arch, s)
		if err != nil {
			return nil, fmt.Errorf("fetch inputs: %w", err)
		}
		in.Sources[s.Name] = file
	}
	if lock.Distro.Source == profiles.SourceRelease {
		in.Programs, err = f.fetchRelease(ctx, lock, distro)
	} else {
		in.Programs, err = f.GoBuild(ctx, lock, distro, version)
	}
	if err != nil {
		return nil, fmt.Errorf("fetch inputs: %w", err)
	}
	return in, nil
}

func (f *Fetcher) report(e Event) {
	if f.Progress != nil {
		f.Progress(e)
	}
}

func (f *Fetcher) client() *http.Client {
	if f.Client != nil {
		return f.Client
	}
	return defaultClient()
}

// defaultClient bounds what a dead server can cost. There is no limit for the
// whole answer, which may be large; a stalled one ends with the context.
func defaultClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 30 * time.Second
	return &http.Client{Transport: t}
}

func (f *Fetcher) fetchPackage(ctx context.Context, p *profiles.LockedPackage) (string, error) {
	item := "package " + p.Name + " " + p.Version
	want, err := parseSum(p.SHA256)
	if err != nil {
		return "", fmt.Errorf("%s: %w", item, err)
	}
	deb, err := f.cachedDeb(ctx, item, p, want)
	if err != nil {
		return "", err
	}
	return f.unpack(ctx, item, deb, want)
}

// cachedDeb returns the package's file, from the cache or from the network.
func (f *Fetcher) cachedDeb(ctx context.Context, item string, p *profiles.LockedPackage, want manifest.SHA256) (string, error) {
	return f.cached(ctx, item, p.URLs, p.Size, want)
}

// cached returns a file of known length and digest, from the cache or from the
// first address that has it.
func (f *Fetcher) cached(ctx context.Context, item string, urls []string, size int64, want manifest.SHA256) (string, error) {
	file, err := f.Cache.Lookup(ctx, want)
	if err == nil {
		return file, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", named(err, item, "")
	}
	if f.Offline {
		return "", &OfflineError{Artifact: item, Reason: errNotCached}
	}
	gone := &GoneError{Artifact: item, Profile: f.Profile}
	for _, u := range urls {
		file, err := f.download(ctx, item, u, size, want)
		if err == nil {
			return file, nil
		}
		// A wrong file is never passed over: the mirror is damaged or lies.
		if errors.As(err, new(*MismatchError)) {
			return "", named(err, item, u)
		}
		// Nor is a failure that another address would not mend.
		if ctx.Err() != nil || errors.As(err, new(*fs.PathError)) {
			return "", fmt.Errorf("%s: %w", item, err)
		}
		gone.Tried = append(gone.Tried, err)
	}
	return "", gone
}

// download stores one file. Its length and digest are known beforehand.
func (f *Fetcher) download(ctx context.Context, item, url string, size int64, want manifest.SHA256) (file string, err error) {
	body, err := get(ctx, f.client(), url)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	r := &countingReader{r: body, fn: func(n int64) { f.report(Event{Item: item, Done: n, Total: size}) }}
	_, file, err = f.Cache.Put(ctx, r, want, size)
	return file, err
}

// get asks for a file; any answer but 200 is an error.
func get(ctx context.Context, c *http.Client, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "sealift")
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(&statusError{url: url, code: resp.StatusCode, status: resp.Status}, resp.Body.Close())
	}
	return resp.Body, nil
}

// statusError is an answer of a server that is not the file.
type statusError struct {
	url    string
	code   int
	status string // with the code
}

func (e *statusError) Error() string { return fmt.Sprintf("get %s: %s", e.url, e.status) }

// countingReader reports how much was read, at most once a megabyte.
type countingReader struct {
	r       io.Reader
	fn      func(int64)
	n, last int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.n-c.last >= 1<<20 || err != nil {
		c.last = c.n
		c.fn(c.n)
	}
	return n, err
}

func (f *Fetcher) fetchArchive(ctx context.Context, a profiles.LockedArchive) (file string, err error) {
	item := "archive of image " + a.Name
	want, err := parseSum(a.SHA256)
	if err != nil {
		return "", fmt.Errorf("%s: %w", item, err)
	}
	if file, err := f.Cache.Lookup(ctx, want); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return file, named(err, item, "")
	}
	src, err := profiles.OpenRegular(f.beside(a.Path))
	if err != nil {
		return "", fmt.Errorf("%s: %w", item, err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	_, file, err = f.Cache.Put(ctx, src, want, profiles.MaxArtifact)
	return file, named(err, item, src.Name())
}

// beside resolves a path of the profile.
func (f *Fetcher) beside(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(f.Profile), p)
}
