package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// What a policy says and the verifier never hears would be off in silence.
func TestEachRuleOfAPolicyIsCompiled(t *testing.T) {
	superset, _, _ := strings.Cut(text()[strings.Index(text(), "{superset"):], "}}}")
	compile := func(change ...string) *attest.Policy {
		t.Helper()
		p, err := parse(t, text(change...)).Compile(Inputs{Images: []Image{image("shop", "1.2"), image("shop", "1.30")}, At: now})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	refused := func(p *attest.Policy) string {
		var out []string
		for _, i := range p.DeniedImages {
			out = append(out, i.Manifest.Version+": "+i.Reason)
		}
		return strings.Join(out, "; ")
	}
	if p := compile(superset+"}}", fmt.Sprintf("{digests: [%q]}", digest("dbx"))); !slices.Equal(p.DBX, []manifest.SHA256{digest("dbx")}) {
		t.Errorf("digests of dbx are %v", p.DBX)
	}
	if p := compile(); !p.TPM.ProveBanks {
		t.Error("the proof of the active banks is not wanted")
	}
	if p := compile("  proveBanks: true\n", ""); p.TPM.ProveBanks {
		t.Error("the proof of the active banks is wanted")
	}
	// A version that is denied is denied however it is written.
	if got := refused(compile(`minimum: "1.2"`, `denied: [{version: "1.030"}]`)); got != "1.30: version 1.30 is denied" {
		t.Errorf("refused are %s", got)
	}
	pinned := fmt.Sprintf("manifests: [%q]", digest("manifest of shop1.2"))
	if got := refused(compile(`minimum: "1.2"`, pinned)); !strings.HasPrefix(got, "1.30: its manifest ") || strings.Contains(got, "1.2:") {
		t.Errorf("refused are %s", got)
	}
	// To is unlimited where it is 0: a minimum of 1 must not deny everything.
	for _, minimum := range []string{"0x1", "0"} {
		if p := compile("7.85.4555.0", fmt.Sprintf("%q", minimum)); len(p.TPM.Denied) != 0 {
			t.Errorf("minimum %s denies %+v", minimum, p.TPM.Denied)
		}
	}
}
