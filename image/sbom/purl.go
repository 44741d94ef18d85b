package sbom

import (
	"fmt"
	"strings"
)

// escape percent-encodes a part of a package URL (purl specification, "Rules
// for percent-encoding"): everything but letters, digits, ".", "-", "_", "~"
// and ":".
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".-_~:", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// escapePath is escape for parts between slashes.
func escapePath(s string) string {
	parts := strings.Split(s, "/")
	for i := range parts {
		parts[i] = escape(parts[i])
	}
	return strings.Join(parts, "/")
}

// debPURL is the package URL of a Debian binary package, with its source
// package for matching advisories, which Debian publishes by source.
func debPURL(p *Package) string {
	u := "pkg:deb/" + escape(p.vendor()) + "/" + escape(strings.ToLower(p.Name)) + "@" + escape(p.Version) + "?arch=" + escape(p.Arch)
	if release, ok := debianReleases[p.Suite]; ok {
		u += "&distro=" + release
	} else if p.Suite != "" {
		u += "&distro=" + escape(p.Suite)
	}
	if p.Source != "" && (p.Source != p.Name || p.SourceVersion != p.Version) {
		up := p.Source
		if p.SourceVersion != p.Version {
			up += "@" + p.SourceVersion
		}
		u += "&upstream=" + escape(up)
	}
	return u
}

func (p *Package) vendor() string {
	if p.Vendor == "" {
		return "debian"
	}
	return strings.ToLower(p.Vendor)
}

// debianReleases are the numbers of Debian's releases. Scanners look advisories
// up by number.
var debianReleases = map[string]string{"bullseye": "debian-11", "bookworm": "debian-12", "trixie": "debian-13", "forky": "debian-14"}

// goPURL is the package URL of a Go module, or of a package in it. The
// specification wants the module's path in lower case.
func goPURL(path, version, subpath string) string {
	u := "pkg:golang/" + escapePath(strings.ToLower(path))
	if version != "" {
		u += "@" + escape(version)
	}
	if subpath != "" {
		u += "#" + escapePath(subpath)
	}
	return u
}

// ociPURL is the package URL of a container image.
func ociPURL(reference, digest, arch string) string {
	repository, tag := splitReference(reference)
	name := repository[strings.LastIndexByte(repository, '/')+1:]
	u := "pkg:oci/" + escape(strings.ToLower(name))
	if digest != "" {
		u += "@" + escape(digest)
	}
	u += "?arch=" + escape(arch) + "&repository_url=" + escape(repository)
	if tag != "" {
		u += "&tag=" + escape(tag)
	}
	return u
}

// splitReference splits docker.io/library/pause:3.10@sha256:... into
// repository and tag. A digest in it is dropped.
func splitReference(s string) (repository, tag string) {
	s, _, _ = strings.Cut(s, "@")
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		return s[:i], s[i+1:]
	}
	return s, ""
}
