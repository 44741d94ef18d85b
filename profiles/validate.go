package profiles

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
)

// Validate reports every fault of a profile that was made or changed in
// memory, after filling in defaults that follow from other fields. A profile
// from Load is valid.
func (p *Profile) Validate() error {
	p.setDependentDefaults()
	e := &FileError{File: "profile"}
	p.validate(func(field, msg, hint string) {
		e.Problems = append(e.Problems, Problem{Field: field, Message: msg, Hint: hint})
	})
	if len(e.Problems) > 0 {
		return e
	}
	return nil
}

// report takes one problem: the field's path, the message, and an optional hint.
type report func(field, msg, hint string)

// The forms of names. They are compiled where they are used: a profile is
// validated once in a program's life.
const (
	labelPattern   = `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`  // RFC 1123 label
	versionPattern = `^[0-9A-Za-z][0-9A-Za-z.-]{0,39}$` // of an image
	packagePattern = `^[a-z0-9][a-z0-9+.-]{1,127}$`     // Debian Policy 5.6.1
	modulePattern  = `^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$` // kernel module
	domainPattern  = `^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	paramPattern   = `^[A-Za-z0-9_.-]+(=[A-Za-z0-9_.,:/@+-]*)?$` // kernel parameter
	fromPattern    = `^[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[0-9a-f]{64})$`
	excludePattern = `^[A-Za-z0-9_./:@*-]{1,255}$`
	imagePattern   = `^[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`
)

func matches(pattern, s string) bool { return regexp.MustCompile(pattern).MatchString(s) }

func (p *Profile) validate(r report) {
	want := func(field, got, want string) {
		if got != want {
			r(field, fmt.Sprintf("got %q, want %q", got, want), "")
		}
	}
	want("apiVersion", p.APIVersion, APIVersion)
	want("kind", p.Kind, Kind)
	if len(p.Name) > 40 || !matches(labelPattern, p.Name) {
		r("name", fmt.Sprintf("%q is not a name", p.Name), "use at most 40 lower-case letters, digits and dashes")
	}
	if !matches(versionPattern, p.Version) {
		r("version", fmt.Sprintf("%q is not a version", p.Version), "use at most 40 letters, digits, dots and dashes")
	}
	oneOf(r, "arch", p.Arch, Arches())
	oneOf(r, "base", p.Base, Bases())
	oneOf(r, "debian.suite", p.Debian.Suite, []string{"bookworm"})
	if u, err := url.Parse(p.Debian.Mirror); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/") {
		r("debian.mirror", fmt.Sprintf("%q is not the address of a mirror", p.Debian.Mirror),
			"use http://host or https://host; /debian and /debian-security are added")
	}
	p.Kernel.validate(r, p.Debug)
	p.checkKernelArch(r)
	for i, name := range p.Packages {
		if !matches(packagePattern, name) {
			r(fmt.Sprintf("packages[%d]", i), fmt.Sprintf("%q is not the name of a Debian package", name), "")
		}
	}
	p.Kubernetes.validate(r)
	p.Preload.validate(r)
	p.Disk.validate(r)
	p.Attest.validate(r)
	if least := p.Disk.fixed() + minState; p.Install.MinDisk < least {
		r("install.minDisk", fmt.Sprintf("%d MiB is less than the %d MiB that the disk layout needs", p.Install.MinDisk, least), "")
	}
}

func oneOf(r report, field, got string, known []string) {
	for _, k := range known {
		if got == k {
			return
		}
	}
	r(field, fmt.Sprintf("%q is not supported", got), didYouMean(got, known))
}

func (k *Kernel) validate(r report, debug bool) {
	if !matches(packagePattern, k.Package) || !strings.HasPrefix(k.Package, "linux-image-") {
		r("kernel.package", fmt.Sprintf("%q is not a kernel package", k.Package), "use one like linux-image-cloud-amd64")
	}
	validateModules(r, "kernel.initrd", k.Initrd)
	validateModules(r, "kernel.root", k.Root)
	for i, arg := range k.Cmdline {
		field := fmt.Sprintf("kernel.cmdline[%d]", i)
		name, _, _ := strings.Cut(arg, "=")
		switch {
		case !matches(paramPattern, arg):
			r(field, fmt.Sprintf("%q is not one kernel parameter", arg), "use NAME or NAME=VALUE without spaces and quotes")
		case name == ParamOnFatal && !debug:
			r(field, name+" is heeded only in images marked debug", "set debug: true")
		case name == ParamOnFatal:
		case strings.HasPrefix(name, "sealift.") || name == "root" || name == "init" || name == "rdinit":
			r(field, fmt.Sprintf("%s is set by the image builder", name), "")
		}
	}
}

func validateModules(r report, field string, names []string) {
	for i, name := range names {
		if !matches(modulePattern, name) {
			r(fmt.Sprintf("%s[%d]", field, i), fmt.Sprintf("%q is not the name of a kernel module", name), "")
		}
	}
}

func (k *Kubernetes) validate(r report) {
	d, err := LoadDistro(k.Distro)
	if err != nil {
		oneOf(r, "kubernetes.distro", k.Distro, Distros())
	} else {
		k.validateVersion(r, d)
	}
	if k.Mirror != "" {
		if u, err := url.Parse(k.Mirror); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" ||
			u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/") {
			r("kubernetes.mirror", fmt.Sprintf("%q is not the address of a mirror", k.Mirror),
				"use https://host or https://host/path; the paths of the vendor's server are added")
		}
	}
	if pfx, err := netip.ParsePrefix(k.PodCIDR); err != nil || !pfx.Addr().Is4() || pfx != pfx.Masked() || pfx.Bits() < 8 || pfx.Bits() > 28 {
		r("kubernetes.podCIDR", fmt.Sprintf("%q is not an IPv4 network of 8 to 28 bits", k.PodCIDR), "use one like 10.88.0.0/24")
	}
	if a, err := netip.ParseAddr(k.ClusterDNS); err != nil || !a.Is4() {
		r("kubernetes.clusterDNS", fmt.Sprintf("%q is not an IPv4 address", k.ClusterDNS), "")
	}
	if len(k.ClusterDomain) > 253 || !matches(domainPattern, k.ClusterDomain) {
		r("kubernetes.clusterDomain", fmt.Sprintf("%q is not a domain name", k.ClusterDomain), "")
	}
}

func (pl *Preload) validate(r report) {
	seen := map[string]bool{}
	for i, img := range pl.Images {
		field := fmt.Sprintf("preload.images[%d]", i)
		switch {
		case len(img.Name) > 255 || !matches(imagePattern, img.Name):
			r(field+".name", fmt.Sprintf("%q is not a full image reference", img.Name), "use one like docker.io/library/app:v1")
		case seen[img.Name]:
			r(field+".name", fmt.Sprintf("%s is listed twice", img.Name), "")
		}
		seen[img.Name] = true
		img.validateSource(r, field)
	}
	for i, pattern := range pl.Exclude {
		if !matches(excludePattern, pattern) {
			r(fmt.Sprintf("preload.exclude[%d]", i), fmt.Sprintf("%q is not a pattern of image references", pattern), "use one like *traefik*")
		}
	}
}

func (d *Disk) validate(r report) {
	const limit = 1 << 20 // 1 TiB in MiB
	least := func(field string, got, min int, why string) {
		if got < min || got > limit {
			r(field, fmt.Sprintf("%d MiB is not between %d and %d", got, min, limit), why)
		}
	}
	least("disk.esp", d.ESP, 64, "a FAT32 partition needs as much")
	least("disk.slot", d.Slot, 64, "")
	least("disk.verity", d.Verity, minVerity(min(d.Slot, limit)), "the hash tree of the slot needs as much")
	least("disk.uki", d.UKI, 1, "")
	// The ESP holds the UKI of either slot, and the file system itself.
	if d.UKI*2+8 > d.ESP {
		r("disk.uki", fmt.Sprintf("two UKIs of %d MiB do not fit an ESP of %d MiB", d.UKI, d.ESP),
			fmt.Sprintf("make disk.esp at least %d", d.UKI*2+8))
	}
}

func (a *Attest) validate(r report) {
	u, err := url.Parse(a.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" {
		r("attest.url", fmt.Sprintf("%q is not the address of an attestation service", a.URL), "use https://host:port")
	}
}
