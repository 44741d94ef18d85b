package profiles

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
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
	Distro   LockedDistro    `yaml:"distro"`
	Go       LockedGo        `yaml:"go"`
	Images   []LockedImage   `yaml:"images"`
	Archives []LockedArchive `yaml:"archives"`
	Sources  []LockedSource  `yaml:"sources"`
	Files    []LockedFile    `yaml:"files,omitempty"`
	OCI      *LockedOCI      `yaml:"oci,omitempty"` // of base oci
}

// LockedFile is a file beside the profile: a source of files or manifests, or
// the attestation service's CA.
type LockedFile struct {
	Path   string `yaml:"path"` // as in the profile
	Size   int64  `yaml:"size"`
	SHA256 string `yaml:"sha256"`
}

// LockedOCI is the image that base oci starts from. Its digest pins the
// manifest, and that every layer.
type LockedOCI struct {
	Source string `yaml:"source"` // OCI.Source of the profile
	Digest string `yaml:"digest"` // sha256:hex of the manifest for the lock's architecture
	Size   int64  `yaml:"size"`   // bytes of manifest, configuration and layers
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

// LockedDistro is where the distro's programs come from.
type LockedDistro struct {
	Name      string           `yaml:"name"`
	Version   string           `yaml:"version"`
	Source    string           `yaml:"source"`              // modules, release
	Artifacts []LockedArtifact `yaml:"artifacts,omitempty"` // of a release
	// Images says which list of images the distro itself gave. Nil if the distro
	// has none.
	Images *LockedList `yaml:"images,omitempty"`
}

// LockedArtifact is one file of a vendor's release.
type LockedArtifact struct {
	Name   string `yaml:"name"`
	URL    string `yaml:"url"`
	Size   int64  `yaml:"size"`
	SHA256 string `yaml:"sha256"`
	// Checksums is the vendor's file that had the digest when the profile was
	// locked, and ChecksumsSHA256 that file's own.
	Checksums       string `yaml:"checksums"`
	ChecksumsSHA256 string `yaml:"checksumsSHA256"`
}

// LockedList is a distro's own list of images.
type LockedList struct {
	From   string `yaml:"from"` // address, or the command that printed it
	SHA256 string `yaml:"sha256"`
}

// LockedImage is a container image that was pulled, or is in a layout.
type LockedImage struct {
	Name   string `yaml:"name"`             // reference that the node knows it by
	From   string `yaml:"from,omitempty"`   // reference that it is pulled by, if another
	Layout string `yaml:"layout,omitempty"` // directory as in the profile, if it is in one
	Digest string `yaml:"digest"`           // sha256:hex of the manifest for the lock's architecture
	Size   int64  `yaml:"size"`             // bytes of manifest, configuration and layers
	Distro bool   `yaml:"distro,omitempty"` // of the distro's own list
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
	// ModulesSHA256 is over path, version and go.sum digest of each module that
	// the program links. The finished program names them too, and is compared.
	ModulesSHA256 string `yaml:"modulesSHA256"`
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
	// Modules are those modules.
	Modules []LockedModule `yaml:"modules,omitempty"`
}

// LockPath returns where the lock of a profile's file lies for amd64:
// demo.lock.yaml beside demo.yaml.
func LockPath(profile string) string { return LockPathFor(profile, AMD64) }

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
	choice := []any{
		"sealift.dev/input-digest/v2", p.Arch, p.Base, p.Debian, p.Kernel.Package, p.Packages, p.Preload,
		base.Content.Packages, base.Content.Exclude, base.Stub,
		distro.Name, distro.Content.Packages, distro.Content.Exclude, version, distro.Release,
		p.Kubernetes.Source, p.Kubernetes.Mirror,
	}
	if files := p.Sources(); len(files) > 0 || p.Base == BaseOCI {
		choice = append(choice, p.OCI, files)
	}
	b, err := json.Marshal(choice)
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
			checkAddress(r, fmt.Sprintf("%s.urls[%d]", f, j), u)
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
		sum(fmt.Sprintf("go.builds[%d].modulesSHA256", i), b.ModulesSHA256)
		if b.MainSHA256 != "" {
			sum(fmt.Sprintf("go.builds[%d].mainSHA256", i), b.MainSHA256)
		}
	}
	l.validateDistro(r, sum)
	l.validateImages(r)
	for i, a := range l.Archives {
		sum(fmt.Sprintf("archives[%d].sha256", i), a.SHA256)
	}
	for i, s := range l.Sources {
		sum(fmt.Sprintf("sources[%d].sum", i), s.Sum)
	}
	l.validateFiles(r, sum)
}

func checkAddress(r report, field, address string) {
	if u, err := url.Parse(address); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
		r(field, fmt.Sprintf("%.300q is not an http or https address", address), "")
	}
}

func (l *Lock) validateDistro(r report, sum func(field, got string)) {
	d := &l.Distro
	if !matches(labelPattern, d.Name) || len(d.Version) > 40 || d.Version == "" {
		r("distro", fmt.Sprintf("%.60q %.60q is not a distro and a version", d.Name, d.Version), "")
	}
	if d.Source != SourceModules && d.Source != SourceRelease {
		r("distro.source", fmt.Sprintf("got %.60q, want %s or %s", d.Source, SourceModules, SourceRelease), "")
	}
	seen := map[string]bool{}
	for i, a := range d.Artifacts {
		f := fmt.Sprintf("distro.artifacts[%d]", i)
		if a.Name == "" || seen[a.Name] {
			r(f+".name", fmt.Sprintf("%.60q is no name, or is there twice", a.Name), "")
		}
		seen[a.Name] = true
		if a.Size <= 0 || a.Size > MaxArtifact {
			r(f+".size", fmt.Sprintf("%d is not between 1 and %d", a.Size, int64(MaxArtifact)), "")
		}
		checkAddress(r, f+".url", a.URL)
		checkAddress(r, f+".checksums", a.Checksums)
		sum(f+".sha256", a.SHA256)
		sum(f+".checksumsSHA256", a.ChecksumsSHA256)
	}
	if d.Images != nil {
		sum("distro.images.sha256", d.Images.SHA256)
	}
}

func (l *Lock) validateImages(r report) {
	digest := regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	seen := map[string]bool{}
	for i, img := range l.Images {
		f := fmt.Sprintf("images[%d]", i)
		if len(img.Name) > 255 || !matches(imagePattern, img.Name) || seen[img.Name] {
			r(f+".name", fmt.Sprintf("%.300q is not a full image reference, or is there twice", img.Name), "")
		}
		seen[img.Name] = true
		if img.From != "" && (len(img.From) > 255 || !matches(fromPattern, img.From)) {
			r(f+".from", fmt.Sprintf("%.300q is not a full image reference", img.From), "")
		}
		if !digest.MatchString(img.Digest) {
			r(f+".digest", fmt.Sprintf("%.80q is not sha256: and a digest in lower-case hex", img.Digest), "")
		}
		if img.Size <= 0 || img.Size > MaxImage {
			r(f+".size", fmt.Sprintf("%d is not between 1 and %d", img.Size, int64(MaxImage)), "")
		}
	}
}

// MaxImage bounds a container image with its layers, in bytes.
const MaxImage = 16 << 30

// MaxArtifact bounds one downloaded input, in bytes.
const MaxArtifact = 1 << 30
