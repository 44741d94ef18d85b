package profiles

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// defaultSource is the source of a profile that names none, or nothing if
// distro or version are not known.
func (k *Kubernetes) defaultSource() string {
	d, err := LoadDistro(k.Distro)
	if err != nil {
		return ""
	}
	v, err := d.Version(k.Version)
	if err != nil {
		return ""
	}
	if s := d.Sources(v); len(s) > 0 {
		return s[0]
	}
	return ""
}

// validateVersion checks version and source against what the distro has.
func (k *Kubernetes) validateVersion(r report, d *Distro) {
	v, err := d.Version(k.Version)
	if err != nil {
		var known []string
		for _, v := range d.Versions {
			known = append(known, v.Version)
		}
		oneOf(r, "kubernetes.version", k.Version, known)
		return
	}
	sources := d.Sources(v)
	if slices.Contains(sources, k.Source) {
		return
	}
	if !slices.Contains([]string{SourceModules, SourceRelease}, k.Source) {
		oneOf(r, "kubernetes.source", k.Source, []string{SourceModules, SourceRelease})
		return
	}
	r("kubernetes.source", fmt.Sprintf("%s %s cannot be had from %s, only from %s", d.Name, k.Version, k.Source, strings.Join(sources, ", ")), "")
}

// Excluded reports whether an image of the distro's own list is left out.
func (pl *Preload) Excluded(name string) bool {
	return slices.ContainsFunc(pl.Exclude, func(pattern string) bool {
		return matches("^"+strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*")+"$", name)
	})
}

// CheckImage reports a reference that is not a full one with a tag.
func CheckImage(reference string) error {
	if len(reference) > 255 || !matches(imagePattern, reference) {
		return fmt.Errorf("%.300q is not a full image reference", reference)
	}
	return nil
}
