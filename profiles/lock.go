package profiles

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// KindLock is the kind of a lock file.
const KindLock = "Lock"

// Lock pins every input of an image to a digest. An image is built from its
// profile and its lock alone.
type Lock struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Profile    string `yaml:"profile"` // name of the profile
	Arch       string `yaml:"arch"`
	// ProfileDigest is of the fields of the profile that choose inputs; see
	// Profile.InputDigest. A profile that asks for other inputs than its lock
	// has does not build.
	ProfileDigest string `yaml:"profileDigest"`

	Debian   LockedDebian    `yaml:"debian"`
	Go       LockedGo        `yaml:"go"`
	Archives []LockedArchive `yaml:"archives"`
	Sources  []LockedSource  `yaml:"sources"`
}

// LockedDebian is the dependency closure over Debian packages.
type LockedDebian struct {
	Suite    string          `yaml:"suite"`
	Releases []LockedRelease `yaml:"releases"`
	Packages []LockedPackage `yaml:"packages"` // in order of name
}

// LockedRelease records the signed index that packages were chosen from.
type LockedRelease struct {
	Archive string `yaml:"archive"` // debian, debian-security
	Suite   string `yaml:"suite"`   // bookworm-security
	Date    string `yaml:"date"`    // RFC 3339
	SHA256  string `yaml:"sha256"`  // of the InRelease file
}

// LockedPackage is one Debian package.
type LockedPackage struct {
	Name    string   `yaml:"name"`
	Version string   `yaml:"version"`
	Arch    string   `yaml:"arch"` // of the package: amd64, all
	URLs    []string `yaml:"urls"` // tried in this order
	Size    int64    `yaml:"size"`
	SHA256  string   `yaml:"sha256"`
}

// LockedGo pins the Go commands of the distro. The modules' own digests are in
// the go.sum file, which this pins.
type LockedGo struct {
	Toolchain string         `yaml:"toolchain"` // e.g. go1.26.8
	Modules   []LockedModule `yaml:"modules"`
	ModSHA256 string         `yaml:"modSHA256"` // of the distro's go.mod
	SumSHA256 string         `yaml:"sumSHA256"` // of the distro's go.sum
	Builds    []LockedBuild  `yaml:"builds"`
}

// LockedModule is a module that the distro requires directly.
type LockedModule struct {
	Path    string `yaml:"path"`
	Version string `yaml:"version"`
	Sum     string `yaml:"sum"` // h1: digest as in go.sum
}

// LockedBuild is one Go command.
type LockedBuild struct {
	Name    string `yaml:"name"`
	Package string `yaml:"package"` // import path, or the file beside go.mod.in
	LDFlags string `yaml:"ldflags"`
	// MainSHA256 is of the main package's source if that is the distro's own.
	MainSHA256 string `yaml:"mainSHA256,omitempty"`
}

// LockedArchive is a preloaded image that is taken from a file beside the profile.
type LockedArchive struct {
	Name   string `yaml:"name"` // image reference
	Path   string `yaml:"path"` // as in the profile
	Size   int64  `yaml:"size"`
	SHA256 string `yaml:"sha256"`
}

// LockedSource is a preloaded image that is built from a Go main package.
type LockedSource struct {
	Name string `yaml:"name"` // image reference
	Path string `yaml:"path"` // as in the profile
	// Sum is the digest over every source file of the package and of what it
	// imports outside the standard library and the module cache, and over the
	// sums of the modules that it uses.
	Sum string `yaml:"sum"`
}

// LockPath returns where the lock of a profile's file lies: demo.lock.yaml
// beside demo.yaml.
func LockPath(profile string) string {
	ext := filepath.Ext(profile)
	return strings.TrimSuffix(profile, ext) + ".lock.yaml"
}

// LoadLock reads a lock file strictly. A fault is a *FileError.
func LoadLock(path string) (*Lock, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("load lock: %w", err)
	}
	return ParseLock(path, b)
}

// ParseLock is LoadLock for bytes that were read already.
func ParseLock(file string, b []byte) (*Lock, error) {
	l := &Lock{}
	d := decodeStrict(file, b, l)
	if len(d.problems) == 0 {
		l.validate(d.at)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return l, nil
}

// Encode returns the lock file's text. Equal locks give equal bytes.
func (l *Lock) Encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# Every input of the image, by digest. Made by: sealift profile lock\n")
	if err := yaml.NewEncoder(&b, yaml.Indent(2), yaml.IndentSequence(false)).Encode(l); err != nil {
		return nil, fmt.Errorf("encode lock: %w", err)
	}
	return b.Bytes(), nil
}

// Digest is the SHA-256 of the lock file's text, which manifests record.
func (l *Lock) Digest() ([32]byte, error) {
	b, err := l.Encode()
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(b), nil
}

// Package finds a locked Debian package.
func (l *Lock) Package(name string) (*LockedPackage, error) {
	for i := range l.Debian.Packages {
		if l.Debian.Packages[i].Name == name {
			return &l.Debian.Packages[i], nil
		}
	}
	return nil, fmt.Errorf("package %s is not in the lock", name)
}

// CheckProfile reports whether the lock is for this profile as it is now.
func (l *Lock) CheckProfile(p *Profile) error {
	d, err := p.InputDigest()
	if err != nil {
		return err
	}
	switch {
	case l.Profile != p.Name:
		return fmt.Errorf("lock is of profile %q, not of %q", l.Profile, p.Name)
	case l.Arch != p.Arch:
		return fmt.Errorf("lock is for %s, profile %s is for %s", l.Arch, p.Name, p.Arch)
	case l.ProfileDigest != d:
		return fmt.Errorf("profile %s asks for other inputs than its lock has: digest of the choice is %s, the lock has %s", p.Name, d, l.ProfileDigest)
	}
	return nil
}

// InputDigest is the hex SHA-256 over what chooses the inputs of an image: the
// profile's fields that do, and the descriptions of its base and distro. What
// only configures an image, such as the command line or the disk layout, can
// change without locking anew.
func (p *Profile) InputDigest() (string, error) {
	base, err := LoadBase(p.Base)
	if err != nil {
		return "", err
	}
	distro, err := LoadDistro(p.Kubernetes.Distro)
	if err != nil {
		return "", err
	}
	version, err := distro.Version(p.Kubernetes.Version)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal([]any{
		"sealift.dev/input-digest/v1", p.Arch, p.Base, p.Debian, p.Kernel.Package, p.Packages, p.Preload,
		base.Content.Packages, base.Content.Exclude, base.Stub,
		distro.Name, distro.Content.Packages, distro.Content.Exclude, version,
	})
	if err != nil {
		return "", fmt.Errorf("digest of the choice of inputs: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

func (l *Lock) validate(r report) {
	if l.APIVersion != APIVersion {
		r("apiVersion", fmt.Sprintf("got %q, want %q", l.APIVersion, APIVersion), "")
	}
	if l.Kind != KindLock {
		r("kind", fmt.Sprintf("got %q, want %q", l.Kind, KindLock), "")
	}
	if len(l.Profile) > 40 || !matches(labelPattern, l.Profile) {
		r("profile", fmt.Sprintf("%q is not the name of a profile", l.Profile), "")
	}
	digest := regexp.MustCompile(`^[0-9a-f]{64}$`)
	sum := func(field, got string) {
		if !digest.MatchString(got) {
			r(field, fmt.Sprintf("%.80q is not a SHA-256 digest in lower-case hex", got), "")
		}
	}
	sum("profileDigest", l.ProfileDigest)
	for i, rel := range l.Debian.Releases {
		f := fmt.Sprintf("debian.releases[%d]", i)
		sum(f+".sha256", rel.SHA256)
		if _, err := time.Parse(time.RFC3339, rel.Date); err != nil {
			r(f+".date", fmt.Sprintf("%q is not a time", rel.Date), "")
		}
	}
	seen := map[string]bool{}
	for i, p := range l.Debian.Packages {
		f := fmt.Sprintf("debian.packages[%d]", i)
		if !matches(packagePattern, p.Name) || seen[p.Name] {
			r(f+".name", fmt.Sprintf("%q is not a package name, or is there twice", p.Name), "")
		}
		seen[p.Name] = true
		sum(f+".sha256", p.SHA256)
		if p.Size <= 0 || p.Size > MaxArtifact {
			r(f+".size", fmt.Sprintf("%d is not between 1 and %d", p.Size, int64(MaxArtifact)), "")
		}
		if len(p.URLs) == 0 {
			r(f+".urls", "no address", "")
		}
		for j, u := range p.URLs {
			if pu, err := url.Parse(u); err != nil || (pu.Scheme != "http" && pu.Scheme != "https") || pu.Host == "" || pu.User != nil {
				r(fmt.Sprintf("%s.urls[%d]", f, j), fmt.Sprintf("%q is not an http or https address", u), "")
			}
		}
	}
	if !regexp.MustCompile(`^go1\.[0-9]{1,3}(\.[0-9]{1,3})?((rc|beta)[0-9]{1,2})?$`).MatchString(l.Go.Toolchain) {
		r("go.toolchain", fmt.Sprintf("%q is not a Go toolchain", l.Go.Toolchain), "")
	}
	if len(l.Go.Builds) > 0 {
		sum("go.modSHA256", l.Go.ModSHA256)
		sum("go.sumSHA256", l.Go.SumSHA256)
	}
	for i, b := range l.Go.Builds {
		if b.MainSHA256 != "" {
			sum(fmt.Sprintf("go.builds[%d].mainSHA256", i), b.MainSHA256)
		}
	}
	for i, a := range l.Archives {
		sum(fmt.Sprintf("archives[%d].sha256", i), a.SHA256)
	}
	for i, s := range l.Sources {
		sum(fmt.Sprintf("sources[%d].sum", i), s.Sum)
	}
}

// MaxArtifact bounds one downloaded input, in bytes.
const MaxArtifact = 1 << 30
