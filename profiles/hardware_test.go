package profiles

import (
	"strings"
	"testing"
)

func TestHardwareMatches(t *testing.T) {
	dell := Hardware{Manufacturer: "Dell Inc.", Product: "OptiPlex 3000 Micro", Version: "1.0", BIOSVendor: "Dell Inc."}
	tests := []struct {
		claim string
		want  Hardware
		ok    bool
	}{
		{"the same text", Hardware{Product: "OptiPlex 3000 Micro"}, true},
		{"another case", Hardware{Manufacturer: "DELL inc."}, true},
		{"a star for the rest", Hardware{Product: "OptiPlex*"}, true},
		{"a star for nothing", Hardware{Product: "*OptiPlex 3000 Micro*"}, true},
		{"stars in between", Hardware{Product: "O*P*3*o"}, true},
		{"a question mark for one character", Hardware{Product: "OptiPlex ?000 Micro"}, true},
		{"a question mark is not for none", Hardware{Product: "OptiPlex 3000 Micro?"}, false},
		{"a part is not enough", Hardware{Product: "OptiPlex"}, false},
		{"every field must fit", Hardware{Manufacturer: "Dell*", Product: "PowerEdge*"}, false},
		{"a field that the machine does not have", Hardware{BoardProduct: "0ABC"}, false},
		{"a star fits a field that the machine does not have", Hardware{BoardProduct: "*"}, true},
		{"brackets are only brackets", Hardware{Product: "[A-Z]*"}, false},
		{"an entry without patterns fits nothing", Hardware{}, false},
	}
	for _, tc := range tests {
		if got := tc.want.Matches(dell); got != tc.ok {
			t.Errorf("%s: got %v", tc.claim, got)
		}
	}
	if err := CheckHardware(nil, dell); err != nil {
		t.Errorf("no entry: %v", err)
	}
	if err := CheckHardware([]Hardware{{Product: "NUC*"}, {Product: "OptiPlex*"}}, dell); err != nil {
		t.Errorf("one of two: %v", err)
	}
	err := CheckHardware([]Hardware{{Manufacturer: "Intel*", Product: "NUC*"}, {Product: "PowerEdge*"}}, dell)
	for _, want := range []string{`which says manufacturer "Dell Inc.", product "OptiPlex 3000 Micro"`, `(manufacturer "Intel*", product "NUC*") or (product "PowerEdge*")`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestGlobIsNotExponential(t *testing.T) {
	if glob(strings.Repeat("*a", 30)+"b", strings.Repeat("a", 64)) {
		t.Error("it fits")
	}
}
