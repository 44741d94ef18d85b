package sbom

import (
	"bufio"
	"bytes"
	"regexp"
	"slices"
	"strings"
)

// MaxCopyright bounds a copyright file, in bytes. The largest that Debian has,
// of the kernel and of browsers, are below.
const MaxCopyright = 2 << 20

// License is one license that a package's copyright file names.
type License struct {
	// Expression is the license as an SPDX license expression. What SPDX has
	// no identifier for is a LicenseRef of the package.
	Expression string `json:"expression"`
	// Refs are the names behind the LicenseRefs in Expression, as the
	// copyright file has them, by LicenseRef.
	Refs map[string]string `json:"refs,omitempty"`
}

// ParseCopyright returns the licenses that a package's copyright file lists, in
// order and each once. A file that is not in the machine-readable format
// (Debian copyright format 1.0) gives none: guessing a license from prose would
// be worse than saying that it is not known.
func ParseCopyright(pkg string, b []byte) []License {
	if len(b) > MaxCopyright {
		return nil
	}
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, MaxCopyright+1)
	machine, files, first := false, false, true
	var names []string
	for s.Scan() {
		line := strings.TrimRight(s.Text(), " \t\r")
		if line == "" {
			if !first {
				files = false
			}
			continue
		}
		field, value, ok := strings.Cut(line, ":")
		if !ok || line[0] == ' ' || line[0] == '\t' {
			if first {
				return nil
			}
			continue
		}
		value = strings.TrimSpace(value)
		field = strings.ToLower(field)
		switch {
		case first && field != "format" && field != "format-specification":
			return nil
		case first:
			// Format-Specification is what drafts of the format had.
			machine = strings.Contains(value, "copyright-format") || strings.Contains(value, "dep5") || strings.Contains(value, "dep-5")
			files = true // the header may have a license of the whole
		case field == "files":
			files = true
		case field == "license" && files && value != "":
			if !slices.Contains(names, value) {
				names = append(names, value)
			}
		}
		first = false
	}
	if !machine || s.Err() != nil {
		return nil
	}
	var out []License
	for _, n := range names {
		l := licenseExpression(pkg, n)
		if !slices.ContainsFunc(out, func(o License) bool { return o.Expression == l.Expression }) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b License) int { return strings.Compare(a.Expression, b.Expression) })
	return out
}

// licenseExpression turns the synopsis of a License field into an SPDX
// expression. In both, "and" binds tighter than "or", unless a comma stands
// before it: then the whole synopsis becomes a reference.
func licenseExpression(pkg, synopsis string) License {
	l := License{}
	ref := func(name string) string {
		id := "LicenseRef-" + identifier(pkg+"-"+name)
		if l.Refs == nil {
			l.Refs = map[string]string{}
		}
		l.Refs[id] = name
		return id
	}
	if strings.Contains(synopsis, ",") || len(synopsis) > 500 {
		l.Expression = ref(synopsis[:min(len(synopsis), 500)])
		return l
	}
	var or []string
	for _, alternative := range splitWord(synopsis, "or") {
		var and []string
		for _, name := range splitWord(alternative, "and") {
			id, ok := spdxLicense(name)
			if !ok {
				id = ref(name)
			}
			and = append(and, id)
		}
		or = append(or, strings.Join(and, " AND "))
	}
	l.Expression = strings.Join(or, " OR ")
	return l
}

// splitWord splits at a word, whatever its case.
func splitWord(s, word string) []string {
	var parts []string
	var cur []string
	for _, w := range strings.Fields(s) {
		if strings.EqualFold(w, word) && len(cur) > 0 {
			parts, cur = append(parts, strings.Join(cur, " ")), nil
			continue
		}
		cur = append(cur, w)
	}
	return append(parts, strings.Join(cur, " "))
}

var gnu = regexp.MustCompile(`^(a?gpl|lgpl|gfdl)(-niv)?-v?([0-9](?:\.[0-9])?)(\+?)(-only)?$`)

// gnuVersions are the versions that SPDX has identifiers for.
var gnuVersions = map[string][]string{
	"gpl": {"1.0", "2.0", "3.0"}, "lgpl": {"2.0", "2.1", "3.0"}, "agpl": {"1.0", "3.0"}, "gfdl": {"1.1", "1.2", "1.3"},
}

// otherLicenses are short names of Debian in lower case, and the SPDX
// identifiers of the same licenses. Debian's BSD-2-clause and BSD-3-clause are
// used loosely for texts that differ in names only.
var otherLicenses = map[string]string{
	"expat": "MIT", "mit": "MIT", "x11": "X11", "isc": "ISC", "zlib": "Zlib",
	"bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause", "bsd-4-clause": "BSD-4-Clause",
	"apache-1.0": "Apache-1.0", "apache-1.1": "Apache-1.1", "apache-2.0": "Apache-2.0", "apache-2": "Apache-2.0",
	"artistic-1.0": "Artistic-1.0", "artistic-2.0": "Artistic-2.0",
	"mpl-1.0": "MPL-1.0", "mpl-1.1": "MPL-1.1", "mpl-2.0": "MPL-2.0", "epl-1.0": "EPL-1.0", "epl-2.0": "EPL-2.0",
	"cc0-1.0": "CC0-1.0", "cc0": "CC0-1.0", "cc-by-3.0": "CC-BY-3.0", "cc-by-4.0": "CC-BY-4.0",
	"cc-by-sa-3.0": "CC-BY-SA-3.0", "cc-by-sa-4.0": "CC-BY-SA-4.0", "bsl-1.0": "BSL-1.0",
	"psf-2": "PSF-2.0", "python-2.0": "Python-2.0", "openssl": "OpenSSL", "curl": "curl",
	"ofl-1.1": "OFL-1.1", "wtfpl": "WTFPL", "unlicense": "Unlicense", "0bsd": "0BSD", "fsfap": "FSFAP",
	"cddl-1.0": "CDDL-1.0", "ms-pl": "MS-PL", "w3c": "W3C", "ntp": "NTP", "hpnd": "HPND", "bzip2-1.0.6": "bzip2-1.0.6",
	"sleepycat": "Sleepycat", "postgresql": "PostgreSQL", "beerware": "Beerware", "ibm-pibs": "IBM-pibs",
}

// spdxLicense returns the SPDX identifier of a license that Debian calls name.
func spdxLicense(name string) (string, bool) {
	lower := strings.ToLower(name)
	if id := otherLicenses[lower]; id != "" {
		return id, true
	}
	m := gnu.FindStringSubmatch(lower)
	if m == nil {
		return "", false
	}
	family, version := m[1], m[3]
	if !strings.Contains(version, ".") {
		version += ".0"
	}
	if !slices.Contains(gnuVersions[family], version) || (m[2] != "" && family != "gfdl") {
		return "", false
	}
	id := strings.ToUpper(family) + "-" + version
	if m[2] != "" {
		id += "-no-invariants"
	}
	if m[4] == "+" {
		return id + "-or-later", true
	}
	return id + "-only", true
}

// declared joins the licenses of a package: all of them hold, each for some of
// its files.
func declared(licenses []License) string {
	var parts []string
	for _, l := range licenses {
		terms := []string{l.Expression}
		if !strings.Contains(l.Expression, " OR ") {
			terms = strings.Split(l.Expression, " AND ")
		} else if len(licenses) > 1 {
			terms[0] = "(" + l.Expression + ")"
		}
		for _, t := range terms {
			if !slices.Contains(parts, t) {
				parts = append(parts, t)
			}
		}
	}
	return strings.Join(parts, " AND ")
}
