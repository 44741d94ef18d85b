package profiles

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Sources of a distro's programs: Kubernetes.Source.
const (
	SourceModules = "modules" // built from Go modules that the distro's go.sum pins
	SourceRelease = "release" // the vendor's release files, which the lock pins
)

// Release says how a vendor publishes a distro as files. URL and File names are
// templates: ${VERSION} is the version, ${TAG} the version as one segment of a
// URL (with %2B for +), ${MINOR} its first two numbers (1.34), ${ARCH} the
// architecture (amd64) and ${SUFFIX} what Suffix has for it.
type Release struct {
	// Versions is a regular expression for whole versions that these templates
	// are right for. Versions need not be listed: their digests come from the
	// vendor when a profile is locked.
	Versions string `yaml:"versions"`
	URL      string `yaml:"url"` // directory of one version's files
	// Suffix is what the vendor adds to names for an architecture.
	Suffix    map[string]string `yaml:"suffix"`
	Artifacts []Artifact        `yaml:"artifacts"`
	Images    *AirgapImages     `yaml:"images"` // Optional
	Channel   Channel           `yaml:"channel"`
}

// Artifact is one file of a release.
type Artifact struct {
	Name string `yaml:"name"`
	File string `yaml:"file"` // below Release.URL
	// Checksums is the vendor's own file of SHA-256 digests, below Release.URL:
	// sha256sum's output, or a digest alone.
	Checksums string    `yaml:"checksums"`
	Programs  []Program `yaml:"programs"`
}

// Program is an executable of the root file system.
type Program struct {
	Name string `yaml:"name"`
	// Member is its path in the artifact if that is a tar.gz archive. Empty:
	// the artifact is the program.
	Member string `yaml:"member"`
	Path   string `yaml:"path"` // in the root file system
}

// AirgapImages says where a distro itself lists the images that it needs where
// there is no registry: one reference a line.
type AirgapImages struct {
	File string `yaml:"file"` // below Release.URL
	// Checksums is as in Artifact. Optional; a list that it does not name is
	// taken as it is, since the digests of its images are locked one by one.
	Checksums string `yaml:"checksums"`
	// Command prints the list, for releases that do not have File: the name of a
	// Program, and its arguments. Optional.
	Command []string `yaml:"command"`
}

// Kinds of channels.
const (
	ChannelText     = "text"     // one version as text
	ChannelChannels = "channels" // the channel server of k3s and rke2: JSON, data[].latest
	ChannelGitHub   = "github"   // GitHub's list of releases: JSON, [].tag_name
)

// Channel is where a vendor says which versions there are.
type Channel struct {
	Kind string `yaml:"kind"`
	URL  string `yaml:"url"` // a template as Release.URL is
}

// releaseVars are the names of a release's templates.
const releaseVars = `\$\{(VERSION|TAG|MINOR|ARCH|SUFFIX)\}`

// Matches reports whether the release's templates are right for a version.
func (r *Release) Matches(version string) bool {
	return len(version) <= 40 && matches(r.Versions, version)
}

// Expand fills in a template of the release.
func (r *Release) Expand(template, version, arch string) (string, error) {
	if !r.Matches(version) {
		return "", fmt.Errorf("version %.60q does not match %s", version, r.Versions)
	}
	suffix, ok := r.Suffix[arch]
	if !ok && strings.Contains(template, "${SUFFIX}") {
		return "", fmt.Errorf("%s: the vendor has nothing for %s", template, arch)
	}
	out := strings.NewReplacer(
		"${VERSION}", version, "${TAG}", url.QueryEscape(version), "${MINOR}", Minor(version),
		"${ARCH}", arch, "${SUFFIX}", suffix,
	).Replace(template)
	if strings.Contains(out, "${") {
		return "", fmt.Errorf("%s: unknown variable, want one of %s", template, releaseVars)
	}
	return out, nil
}

// FileURL returns the address of a file below Release.URL. A mirror takes the
// place of the address's scheme and host; empty: the vendor's own server.
func (r *Release) FileURL(file, version, arch, mirror string) (string, error) {
	full, err := r.Expand(r.URL+"/"+file, version, arch)
	if err != nil {
		return "", err
	}
	if mirror == "" {
		return full, nil
	}
	u, err := url.Parse(full)
	if err != nil {
		return "", fmt.Errorf("address %.200q: %w", full, err)
	}
	return strings.TrimSuffix(mirror, "/") + u.EscapedPath(), nil
}

// Minor returns the first two numbers of a version: 1.34 of v1.34.1+k3s1.
func Minor(version string) string {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 3 {
		return ""
	}
	return parts[0] + "." + parts[1]
}

// Sources returns where the programs of a version can come from, the first
// being the default.
func (d *Distro) Sources(v *DistroVersion) []string {
	var out []string
	if len(v.Builds) > 0 {
		out = append(out, SourceModules)
	}
	if d.Release != nil && d.Release.Matches(v.Version) {
		out = append(out, SourceRelease)
	}
	return out
}

// Programs returns what the distro puts into the root file system.
func (d *Distro) Programs(v *DistroVersion, source string) ([]Program, error) {
	if !slices.Contains(d.Sources(v), source) {
		return nil, fmt.Errorf("distro %s %s cannot be had from source %q, only from %s", d.Name, v.Version, source, strings.Join(d.Sources(v), ", "))
	}
	var out []Program
	if source == SourceRelease {
		for _, a := range d.Release.Artifacts {
			out = append(out, a.Programs...)
		}
		return out, nil
	}
	for _, b := range v.Builds {
		if b.Path != "" {
			out = append(out, Program{Name: b.Name, Path: b.Path})
		}
	}
	return out, nil
}

// check reports a description that could not work for any version.
func (r *Release) check() error {
	var errs []error
	if _, err := regexp.Compile(r.Versions); err != nil || !strings.HasPrefix(r.Versions, "^v") || !strings.HasSuffix(r.Versions, "$") {
		errs = append(errs, fmt.Errorf("release.versions %q is not a regular expression for whole versions", r.Versions))
	}
	known := regexp.MustCompile(releaseVars)
	templates := []string{r.URL, r.Channel.URL}
	for _, a := range r.Artifacts {
		templates = append(templates, a.File, a.Checksums)
		if a.Name == "" || a.Checksums == "" || len(a.Programs) == 0 {
			errs = append(errs, fmt.Errorf("release artifact %q: name, checksums and programs are required", a.Name))
		}
	}
	if i := r.Images; i != nil {
		templates = append(templates, i.File, i.Checksums)
	}
	for _, t := range templates {
		if strings.Contains(known.ReplaceAllString(t, ""), "${") {
			errs = append(errs, fmt.Errorf("template %q: unknown variable, want one of %s", t, releaseVars))
		}
	}
	if !slices.Contains([]string{ChannelText, ChannelChannels, ChannelGitHub}, r.Channel.Kind) {
		errs = append(errs, fmt.Errorf("release.channel.kind %q is not known", r.Channel.Kind))
	}
	return errors.Join(errs...)
}
