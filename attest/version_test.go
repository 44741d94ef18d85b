package attest_test

import (
	"cmp"
	"strings"
	"testing"

	. "github.com/sealift/sealift/attest"
)

func TestVersionsHaveAnOrder(t *testing.T) {
	t.Parallel()
	for _, ordered := range [][]string{
		{"1.9", "1.10", "1.10.1", "2"},
		{"N32ET68W (1.44 )", "N32ET70W (1.46 )", "N32ET70W (1.47 )"},
		{"F.9", "F.21", "F.21a", "F.21b"},
		{"2.0~beta", "2.0-rc1", "2.0-rc2", "2.0", "2.0.1"},
		{"2.0-rc1", "2.0.0"},
		{"0.0.0", "0.0.1", "18446744073709551616.0", "18446744073709551617"},
		{"A05", "A06", "A10"},
	} {
		for i, a := range ordered {
			for j, b := range ordered {
				got, err := CompareVersions(a, b)
				if want := cmp.Compare(i, j); err != nil || got != want {
					t.Errorf("%q against %q: got %d, %v, want %d", a, b, got, err, want)
				}
			}
		}
	}
	for _, same := range [][2]string{{"1.02", "1.2"}, {"1.2", "1-2"}, {"f.21", "F21"}, {"1.46 ", "1.46"}, {"0", "00"}} {
		if got, err := CompareVersions(same[0], same[1]); err != nil || got != 0 {
			t.Errorf("%q against %q: got %d, %v, want the same", same[0], same[1], got, err)
		}
	}
}

func TestVersionsOfTwoSchemesHaveNoOrder(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{{"N32ET68W (1.44 )", "1.46"}, {"1.x", "1.2"}, {"", "1"}, {"...", "1"}, {"1", strings.Repeat("1", 200)}} {
		for _, p := range [][2]string{c, {c[1], c[0]}} {
			if got, err := CompareVersions(p[0], p[1]); err == nil {
				t.Errorf("%.20q against %.20q: got %d, want an error", p[0], p[1], got)
			}
		}
	}
}

// The order is total where it is one: comparing both ways gives opposite answers.
func FuzzCompareVersions(f *testing.F) {
	f.Add("1.2", "1.2-rc1")
	f.Add("N32ET68W (1.44 )", "2")
	f.Fuzz(func(t *testing.T, a, b string) {
		x, err1 := CompareVersions(a, b)
		y, err2 := CompareVersions(b, a)
		if (err1 == nil) != (err2 == nil) || x != -y {
			t.Errorf("%q, %q: %d, %v and %d, %v", a, b, x, err1, y, err2)
		}
		if z, err := CompareVersions(a, a); err == nil && z != 0 {
			t.Errorf("%q is not the same as itself", a)
		}
	})
}
