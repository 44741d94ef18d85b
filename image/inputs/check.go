package inputs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"go/version"
	"io"
	"os"

	"github.com/sealift/sealift/profiles"
)

// Status says how a lock stands against what there is now.
type Status struct {
	Checked int       // inputs that were looked at
	Newer   []Newer   // what a new lock would have instead
	Unknown []Unknown // what could not be looked at
	Notes   []string  // what is good to know and asks for nothing
}

// Newer is an input that is behind.
type Newer struct {
	Kind      string `json:"kind"` // package, distro, image, base image, toolchain, archive, source, file
	Name      string `json:"name"`
	Locked    string `json:"locked"`
	Available string `json:"available"`
}

// Unknown is a place that could not be asked.
type Unknown struct {
	What string
	Err  error
}

// Current reports whether everything was looked at and nothing is behind.
func (s *Status) Current() bool { return len(s.Newer) == 0 && len(s.Unknown) == 0 }

// Check compares a lock with what Debian's signed indexes, the distro's
// channel, the registries and the profile's own files have now. It writes
// nothing but the cache. What cannot be reached is in the Status; an index
// whose signature does not hold, or a file with another digest than its index
// says, is an error.
func (r *Resolver) Check(ctx context.Context, p *profiles.Profile, lock *profiles.Lock) (*Status, error) {
	if err := lock.CheckProfile(p); err != nil {
		return nil, &StaleError{Profile: r.Profile, Reason: err}
	}
	base, err := profiles.LoadBase(p.Base)
	if err != nil {
		return nil, fmt.Errorf("check lock of profile %s: %w", p.Name, err)
	}
	distro, err := profiles.LoadDistro(p.Kubernetes.Distro)
	if err != nil {
		return nil, fmt.Errorf("check lock of profile %s: %w", p.Name, err)
	}
	s := &Status{}
	for _, step := range []func() error{
		func() error { return r.checkDebian(ctx, s, p, lock, base, distro) },
		func() error { return r.checkDistro(ctx, s, p, lock, distro) },
		func() error { return r.checkToolchain(ctx, s, lock) },
		func() error { return r.checkBase(ctx, s, p, lock) },
		func() error { return r.checkImages(ctx, s, p, lock) },
		func() error { return r.checkBeside(ctx, s, lock) },
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("check lock of profile %s: %w", p.Name, err)
		}
	}
	return s, nil
}

// unknown records a failure to look, unless it is a refusal or the end of ctx.
func (s *Status) unknown(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil || errors.As(err, new(*MismatchError)) || errors.As(err, new(*UntrustedError)) {
		return err
	}
	s.Unknown = append(s.Unknown, Unknown{What: what, Err: err})
	return nil
}

func (r *Resolver) checkDebian(ctx context.Context, s *Status, p *profiles.Profile, lock *profiles.Lock, base *profiles.Base, distro *profiles.Distro) error {
	fresh := &profiles.Lock{}
	if err := r.lockDebian(ctx, fresh, p, base, distro); err != nil {
		return s.unknown(ctx, "Debian packages", err)
	}
	s.Checked += len(lock.Debian.Packages)
	now := map[string]profiles.LockedPackage{}
	for _, pkg := range fresh.Debian.Packages {
		now[pkg.Name] = pkg
	}
	for _, old := range lock.Debian.Packages {
		pkg, ok := now[old.Name]
		delete(now, old.Name)
		n := Newer{Kind: "package", Name: old.Name, Locked: old.Version, Available: pkg.Version}
		switch {
		case !ok:
			n.Available = "not needed any more"
		case pkg.Version == old.Version && pkg.SHA256 == old.SHA256:
			continue
		case pkg.Version == old.Version:
			n.Available = pkg.Version + " with another digest"
		}
		s.Newer = append(s.Newer, n)
	}
	for _, pkg := range fresh.Debian.Packages {
		if _, added := now[pkg.Name]; added {
			s.Newer = append(s.Newer, Newer{Kind: "package", Name: pkg.Name, Locked: "not locked", Available: pkg.Version})
		}
	}
	return nil
}

func (r *Resolver) checkDistro(ctx context.Context, s *Status, p *profiles.Profile, lock *profiles.Lock, d *profiles.Distro) error {
	if d.Release == nil {
		return nil
	}
	what := fmt.Sprintf("%s versions", d.Name)
	address, err := d.Release.Expand(d.Release.Channel.URL, lock.Distro.Version, p.Arch)
	if err != nil {
		return err
	}
	raw, err := r.fetchSmall(ctx, address, maxChannel)
	if err != nil {
		return s.unknown(ctx, what, err)
	}
	versions, err := parseChannel(d.Release.Channel.Kind, raw, d.Release)
	if err != nil {
		return s.unknown(ctx, what, fmt.Errorf("channel %s: %w", address, err))
	}
	s.Checked++
	patch, latest := newest(lock.Distro.Version, versions)
	if patch != lock.Distro.Version {
		s.Newer = append(s.Newer, Newer{Kind: "distro", Name: d.Name, Locked: lock.Distro.Version, Available: patch})
		if v, err := d.Version(patch); lock.Distro.Source == profiles.SourceModules && (err != nil || len(v.Builds) == 0) {
			s.Notes = append(s.Notes, fmt.Sprintf("%s %s cannot be built from modules by this version of sealift; it can be had with kubernetes.source: %s", d.Name, patch, profiles.SourceRelease))
		}
	}
	if profiles.Minor(latest) != profiles.Minor(lock.Distro.Version) {
		s.Notes = append(s.Notes, fmt.Sprintf("%s %s is out", d.Name, latest))
	}
	return nil
}

func (r *Resolver) checkToolchain(ctx context.Context, s *Status, lock *profiles.Lock) error {
	v, err := goVersion(ctx)
	if err != nil {
		return s.unknown(ctx, "Go toolchain", err)
	}
	s.Checked++
	if version.Compare(v, lock.Go.Toolchain) > 0 {
		s.Newer = append(s.Newer, Newer{Kind: "toolchain", Name: "go", Locked: lock.Go.Toolchain, Available: v})
	}
	return nil
}

func (r *Resolver) checkImages(ctx context.Context, s *Status, p *profiles.Profile, lock *profiles.Lock) error {
	for _, old := range lock.Images {
		img, err := r.resolveImage(ctx, old, p.Arch)
		if err != nil {
			if err := s.unknown(ctx, "image "+old.Name, digestMismatch("image "+old.Name, err)); err != nil {
				return err
			}
			continue
		}
		s.Checked++
		if img.Digest != old.Digest {
			s.Newer = append(s.Newer, Newer{Kind: "image", Name: old.Name, Locked: old.Digest, Available: img.Digest})
		}
	}
	return nil
}

// checkBase looks at the image of base oci. One beside the profile that is gone
// is an error.
func (r *Resolver) checkBase(ctx context.Context, s *Status, p *profiles.Profile, lock *profiles.Lock) error {
	if p.Base != profiles.BaseOCI {
		return nil
	}
	fresh := &profiles.Lock{}
	if err := r.lockBase(ctx, fresh, p); err != nil {
		if p.OCI.Image == "" && errors.Is(err, os.ErrNotExist) {
			return err
		}
		return s.unknown(ctx, "base image "+p.OCI.Source(), digestMismatch("base image "+p.OCI.Source(), err))
	}
	s.Checked++
	n := Newer{Kind: "base image", Name: p.OCI.Source(), Locked: "not locked", Available: fresh.OCI.Digest}
	if lock.OCI != nil {
		n.Locked = lock.OCI.Digest
	}
	if n.Locked != n.Available {
		s.Newer = append(s.Newer, n)
	}
	return nil
}

// checkBeside looks at what lies beside the profile: archives and sources of
// images, and files. One that is gone is an error.
func (r *Resolver) checkBeside(ctx context.Context, s *Status, lock *profiles.Lock) error {
	f := r.fetcher()
	local := func(kind, of, name, locked string, sum func() (string, error)) error {
		what := kind + of + " " + name
		now, err := sum()
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err != nil {
			return s.unknown(ctx, what, err)
		}
		s.Checked++
		if now != locked {
			s.Newer = append(s.Newer, Newer{Kind: kind, Name: name, Locked: locked, Available: now})
		}
		return nil
	}
	for _, a := range lock.Archives {
		if err := local("archive", " of image", a.Name, a.SHA256, func() (string, error) { return fileSum(f.beside(a.Path)) }); err != nil {
			return err
		}
	}
	for _, src := range lock.Sources {
		err := local("source", " of image", src.Name, src.Sum, func() (string, error) {
			sum, _, err := f.sourceSum(ctx, f.beside(src.Path), lock.Go.Toolchain, lock.Arch)
			return sum, err
		})
		if err != nil {
			return err
		}
	}
	for _, file := range lock.Files {
		err := local("file", "", file.Path, file.SHA256, func() (string, error) { return sourceFileSum(r.Profile, file.Path) })
		if err != nil {
			return err
		}
	}
	return nil
}

// sourceFileSum is the digest of a file beside the profile as it is now.
func sourceFileSum(profile, source string) (_ string, err error) {
	f, _, err := profiles.OpenSource(profile, source)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, profiles.MaxSource+1))
	if err == nil && n > profiles.MaxSource {
		err = fmt.Errorf("source %s: more than %d bytes", source, int64(profiles.MaxSource))
	}
	return hex.EncodeToString(h.Sum(nil)), err
}
