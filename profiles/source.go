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

func (i PreloadImage) validateSource(r report, field string) {
	var set []string
	for name, value := range map[string]string{"archive": i.Archive, "layout": i.Layout, "go": i.Go, "from": i.From} {
		if value != "" {
			set = append(set, name)
		}
	}
	if len(set) > 1 {
		slices.Sort(set)
		r(field, "only one of "+strings.Join(set, " and ")+" can be set", "")
	}
	if i.From != "" && (len(i.From) > 255 || !matches(fromPattern, i.From)) {
		r(field+".from", fmt.Sprintf("%q is not a full image reference", i.From), "use one like registry.example:5000/app:v1, or with @sha256:")
	}
}

// Excluded reports whether an image of the distro's own list is left out.
func (pl *Preload) Excluded(name string) bool {
	return slices.ContainsFunc(pl.Exclude, func(pattern string) bool {
		return matches("^"+strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*")+"$", name)
	})
}
