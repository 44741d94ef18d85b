package inputs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"pault.ag/go/debian/dependency"
	"pault.ag/go/debian/version"
)

// universe is every package that the archives offer.
type universe struct {
	byName   map[string][]candidate
	provides map[string][]provider // virtual package name
}

// provider is a package that stands for another name.
type provider struct {
	name    string // of the real package
	version string // of the virtual package; empty if none was given
}

func newUniverse() *universe {
	return &universe{byName: map[string][]candidate{}, provides: map[string][]provider{}}
}

// add takes one candidate. The newest version of a package is the one that
// counts; of equal versions the one of the archive that was added first.
func (u *universe) add(c candidate) {
	list := u.byName[c.Name]
	at := len(list)
	for i := range list {
		if version.Compare(c.Version, list[i].Version) > 0 {
			at = i
			break
		}
	}
	u.byName[c.Name] = slices.Insert(list, at, c)
}

// index makes the table of virtual packages. Only the newest version of each
// package counts.
func (u *universe) index() error {
	for name, list := range u.byName {
		if list[0].Provides == "" {
			continue
		}
		dep, err := dependency.Parse(list[0].Provides)
		if err != nil {
			return fmt.Errorf("package %s: provides %q: %w", name, list[0].Provides, err)
		}
		for _, rel := range dep.Relations {
			for _, p := range rel.Possibilities {
				pr := provider{name: name}
				if p.Version != nil {
					pr.version = p.Version.Number
				}
				u.provides[p.Name] = append(u.provides[p.Name], pr)
			}
		}
	}
	for _, list := range u.provides {
		slices.SortFunc(list, func(a, b provider) int {
			return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.version, b.version))
		})
	}
	return nil
}

// closure returns the newest version of each wanted package and of all that
// they depend on (Debian Policy 7.2: Depends and Pre-Depends), in order of
// name. Of alternatives the first that can be had is taken, unless one of them
// is chosen anyway. A relation is taken as met if it names an excluded package.
func (u *universe) closure(want, exclude []string) ([]candidate, error) {
	chosen := map[string]candidate{}
	excluded := map[string]bool{}
	for _, name := range exclude {
		excluded[name] = true
	}
	var queue []string
	choose := func(name string) {
		if _, ok := chosen[name]; !ok {
			chosen[name] = u.byName[name][0]
			queue = append(queue, name)
		}
	}
	for _, name := range want {
		if len(u.byName[name]) == 0 {
			return nil, fmt.Errorf("package %s is in none of the archives%s", name, u.hint(name))
		}
		choose(name)
	}
	for len(queue) > 0 {
		c := chosen[queue[0]]
		queue = queue[1:]
		for _, field := range c.Depends {
			dep, err := parseDependency(field)
			if err != nil {
				return nil, fmt.Errorf("package %s: depends on %.120q: %w", c.Name, field, err)
			}
			for _, rel := range dep.Relations {
				name, err := u.meet(rel, chosen, excluded)
				if err != nil {
					return nil, fmt.Errorf("package %s %s: %w", c.Name, c.Version, err)
				}
				if name != "" {
					choose(name)
				}
			}
		}
	}
	out := make([]candidate, 0, len(chosen))
	for _, c := range chosen {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b candidate) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// meet returns the package that meets a relation, or the empty string if the
// relation is left to an excluded package.
func (u *universe) meet(rel dependency.Relation, chosen map[string]candidate, excluded map[string]bool) (string, error) {
	first := ""
	var names []string
	for _, p := range rel.Possibilities {
		names = append(names, p.String())
		if excluded[p.Name] {
			return "", nil
		}
		for _, name := range u.meetOne(p) {
			if _, ok := chosen[name]; ok {
				return name, nil
			}
			if first == "" && !excluded[name] {
				first = name
			}
		}
	}
	if first == "" {
		return "", fmt.Errorf("nothing in the archives meets the dependency %s", strings.Join(names, " | "))
	}
	return first, nil
}

// meetOne returns the packages that meet one alternative: the real package
// first, then those that provide it.
func (u *universe) meetOne(p dependency.Possibility) []string {
	var out []string
	if list := u.byName[p.Name]; len(list) > 0 && (p.Version == nil || p.Version.SatisfiedBy(list[0].Version)) {
		out = append(out, p.Name)
	}
	for _, pr := range u.provides[p.Name] {
		if p.Version == nil {
			out = append(out, pr.name)
			continue
		}
		// Policy 7.5: a provider without a version meets no versioned relation.
		if v, err := version.Parse(pr.version); pr.version != "" && err == nil && p.Version.SatisfiedBy(v) {
			out = append(out, pr.name)
		}
	}
	return out
}

// hint names the newest kernel where a kernel package was replaced.
func (u *universe) hint(name string) string {
	if list := u.provides[name]; len(list) > 0 {
		return fmt.Sprintf("; it is provided by %s", list[0].name)
	}
	return ""
}

// parseDependency turns a panic of the parser into an error.
func parseDependency(field string) (d *dependency.Dependency, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("not a dependency: %v", r)
		}
	}()
	return dependency.Parse(field)
}
