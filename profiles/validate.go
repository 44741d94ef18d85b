package profiles

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"strings"
)

// Validate reports every fault of a profile that was made or changed in
// memory, after filling in defaults that follow from other fields. A profile
// from Load is valid.
func (p *Profile) Validate() error {
	e := &FileError{File: "profile"}
	p.validate(func(field, msg, hint string) {
		e.Problems = append(e.Problems, Problem{Field: field, Message: msg, Hint: hint})
	}, func(string) bool { return false })
	if len(e.Problems) > 0 {
		return e
	}
	return nil
}

// report takes one problem: the field's path, the message, and an optional hint.
type report func(field, msg, hint string)

// validate fills in the defaults that follow from other fields, and reports
// what breaks a rule or does not fit together. A field that broke its rule is
// reported once.
func (p *Profile) validate(out report, present func(field string) bool) {
	said := map[string]bool{}
	r := func(field, msg, hint string) {
		if !said[field] {
			out(field, msg, hint)
		}
		said[field] = true
	}
	p.checkRules(r, present)
	p.setDependentDefaults()
	switch {
	case p.Base == BaseOCI && p.OCI == OCI{}:
		r("oci", "missing: base oci needs an image", "set oci.layout, oci.archive or oci.image")
	case p.Base != BaseOCI && p.OCI != OCI{}:
		r("oci", fmt.Sprintf("base is %q, and only base oci takes an image", p.Base), "set base: oci")
	}
	checkMirror(r, "debian.mirror", p.Debian.Mirror)
	p.Kernel.validate(r, p.Debug)
	p.checkKernelArch(r)
	p.validateFiles(r)
	p.validateUsers(r)
	p.Kubernetes.validate(r)
	p.Preload.validate(r, p.Kubernetes.Distro)
	p.Disk.validate(r)
	p.Policy.validate(r, "policy.")
	if u, err := url.Parse(p.Attest.URL); err != nil || u.Hostname() == "" {
		r("attest.url", fmt.Sprintf("%q is not the address of an attestation service", p.Attest.URL), "use https://host:port")
	}
	if least := p.Disk.fixed() + minState; p.Install.MinDisk < least {
		r("install.minDisk", fmt.Sprintf("%d MiB is less than the %d MiB that the disk layout needs", p.Install.MinDisk, least), "")
	}
}

// checkMirror holds what the pattern of a mirror cannot: that the host is one.
func checkMirror(r report, field, mirror string) {
	if u, err := url.Parse(mirror); err != nil || (mirror != "" && u.Hostname() == "") {
		r(field, fmt.Sprintf("%q is not the address of a mirror", mirror), "")
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
	for i, arg := range k.Cmdline {
		field := fmt.Sprintf("kernel.cmdline[%d]", i)
		name, _, _ := strings.Cut(arg, "=")
		switch {
		case name == ParamOnFatal && !debug:
			r(field, name+" is heeded only in images marked debug", "set debug: true")
		case name == ParamOnFatal:
		case strings.HasPrefix(name, "sealift."):
			r(field, fmt.Sprintf("%s is set by the image builder", name), "")
		}
	}
}

func (p *Profile) validateFiles(r report) {
	seen := map[string]bool{}
	for i, f := range p.Files {
		if real := mergedUsr(f.Path); seen[real] {
			r(fmt.Sprintf("files[%d].path", i), fmt.Sprintf("%s is listed twice", f.Path), "")
		} else {
			seen[real] = true
		}
	}
}

// mergedUsr returns where a path of an image is: /bin, /sbin, /lib and /lib64
// are links into /usr.
func mergedUsr(name string) string {
	for _, dir := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(name, dir) {
			return path.Join("/usr", name)
		}
	}
	return name
}

func (p *Profile) validateUsers(r report) {
	names, ids := map[string]bool{}, map[int]bool{}
	for i, u := range p.Users {
		field := fmt.Sprintf("users[%d]", i)
		if names[u.Name] {
			r(field+".name", fmt.Sprintf("%s is listed twice", u.Name), "")
		}
		if ids[u.UID] {
			r(field+".uid", fmt.Sprintf("%d is listed twice", u.UID), "")
		}
		names[u.Name], ids[u.UID] = true, true
		if u.Shell != "" && !p.Debug {
			r(field+".shell", "a user has a shell only in images marked debug", "set debug: true, or leave shell out")
		}
	}
}

func (k *Kubernetes) validate(r report) {
	if d, err := LoadDistro(k.Distro); err == nil {
		k.validateVersion(r, d)
	}
	checkMirror(r, "kubernetes.mirror", k.Mirror)
	if pfx, err := netip.ParsePrefix(k.PodCIDR); err != nil || !pfx.Addr().Is4() || pfx != pfx.Masked() || pfx.Bits() < 8 || pfx.Bits() > 28 {
		r("kubernetes.podCIDR", fmt.Sprintf("%q is not an IPv4 network of 8 to 28 bits", k.PodCIDR), "use one like 10.88.0.0/24")
	}
	if a, err := netip.ParseAddr(k.ClusterDNS); err != nil || !a.Is4() {
		r("kubernetes.clusterDNS", fmt.Sprintf("%q is not an IPv4 address", k.ClusterDNS), "")
	}
}

func (pl *Preload) validate(r report, distro string) {
	seen := map[string]bool{}
	for i, img := range pl.Images {
		if seen[img.Name] {
			r(fmt.Sprintf("preload.images[%d].name", i), fmt.Sprintf("%s is listed twice", img.Name), "")
		}
		seen[img.Name] = true
	}
	if d, err := LoadDistro(distro); err == nil && len(pl.Manifests) > 0 && d.Node.Manifests == "" {
		r("preload.manifests", fmt.Sprintf("distro %s takes no static pods from the image", distro), "")
	}
	seen = map[string]bool{}
	for i, m := range pl.Manifests {
		field := fmt.Sprintf("preload.manifests[%d]", i)
		if seen[m.Name] {
			r(field+".name", fmt.Sprintf("%s is listed twice", m.Name), "")
		}
		seen[m.Name] = true
		if m.Content != "" {
			if err := CheckStaticPod([]byte(m.Content)); err != nil {
				r(field+".content", err.Error(), "")
			}
		}
	}
}

func (d *Disk) validate(r report) {
	if least := minVerity(min(d.Slot, maxMiB)); d.Verity < least {
		r("disk.verity", fmt.Sprintf("%d MiB is not between %d and %d", d.Verity, least, maxMiB), "the hash tree of the slot needs as much")
	}
	// The ESP holds the UKI of either slot, and the file system itself.
	if d.UKI*2+8 > d.ESP {
		r("disk.uki", fmt.Sprintf("two UKIs of %d MiB do not fit an ESP of %d MiB", d.UKI, d.ESP),
			fmt.Sprintf("make disk.esp at least %d", d.UKI*2+8))
	}
}
