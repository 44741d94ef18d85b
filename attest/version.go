package attest

import (
	"cmp"
	"fmt"
	"strings"
)

// maxVersion bounds a version that is compared, in bytes.
const maxVersion = 128

// versionPart is a run of digits or of letters of a version.
type versionPart struct {
	text   string // lower case; digits without leading zeros
	number bool
	early  bool // letters after "-" or "~": a pre-release
}

// versionParts splits a version into its runs of digits and of letters. What is
// between them only separates.
func versionParts(s string) []versionPart {
	var out []versionPart
	early := false
	for i := 0; i < len(s); {
		kind := partKind(s[i])
		if kind == 0 {
			early = s[i] == '-' || s[i] == '~'
			i++
			continue
		}
		j := i
		for j < len(s) && partKind(s[j]) == kind {
			j++
		}
		p := versionPart{text: strings.ToLower(s[i:j]), number: kind == 'd'}
		if p.number {
			p.text = strings.TrimLeft(p.text, "0")
		}
		p.early = early && !p.number
		early = false
		out = append(out, p)
		i = j
	}
	return out
}

// partKind returns 'd' for a digit, 'l' for a letter and 0 for what separates.
func partKind(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return 'd'
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		return 'l'
	}
	return 0
}

// CompareVersions orders two versions of one maker: -1 if a is older than b, 0
// if they are the same, 1 if a is newer.
//
// A version is a sequence of runs of digits and of letters; other characters
// only separate. Runs are compared one by one: digits as numbers of any length,
// letters by their bytes without case. A version that goes on where the other
// ends is the newer one, unless it goes on with letters after "-" or "~", which
// is a pre-release (SemVer 2.0.0, 11; Debian Policy 5.6.12). So 1.9 < 1.10 <
// 1.10.1, N32ET68W < N32ET70W and 2.0-rc1 < 2.0.
//
// Versions in which digits meet letters are of two schemes and have no order:
// that, a version without any run, and one of more than 128 bytes are errors.
func CompareVersions(a, b string) (int, error) {
	for _, v := range []string{a, b} {
		if len(v) > maxVersion {
			return 0, fmt.Errorf("version %s has %d bytes, at most %d are compared", printable([]byte(v), 16), len(v), maxVersion)
		}
		if len(versionParts(v)) == 0 {
			return 0, fmt.Errorf("version %q has neither digits nor letters", v)
		}
	}
	pa, pb := versionParts(a), versionParts(b)
	for i := range min(len(pa), len(pb)) {
		x, y := pa[i], pb[i]
		switch {
		case x.early != y.early && x.number != y.number:
			return map[bool]int{true: -1, false: 1}[x.early], nil
		case x.number != y.number:
			return 0, fmt.Errorf("versions %q and %q are of two schemes: %q against %q", a, b, x.text, y.text)
		case x.number && len(x.text) != len(y.text):
			return cmp.Compare(len(x.text), len(y.text)), nil
		case x.text != y.text:
			return strings.Compare(x.text, y.text), nil
		}
	}
	switch n := len(pa) - len(pb); {
	case n > 0 && pa[len(pb)].early, n < 0 && !pb[len(pa)].early:
		return -1, nil
	case n == 0:
		return 0, nil
	}
	return 1, nil
}
