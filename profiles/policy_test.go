package profiles

import (
	"bytes"
	"strings"
	"testing"
)

const policyText = `policy: 1
name: fleet
version: 3
images:
- name: shop
  minimum: "1.2"
secureBoot: {dbx: {any: true}}
`

func TestPolicyFilesAreReadStrictly(t *testing.T) {
	t.Parallel()
	replace := func(old, new string) string { return strings.Replace(policyText, old, new, 1) }
	for _, c := range []struct{ claim, text, want string }{
		{"all is well", policyText, ""},
		{"an unknown key", policyText + "imgaes: []\n", "p.yaml:8:1: imgaes: unknown field; did you mean images?"},
		{"a repeated key", policyText + "version: 4\n", "p.yaml:8:1: version: repeated field"},
		{"a second document", policyText + "---\npolicy: 1\n", "p.yaml:9:1: a second document"},
		{"another format", replace("policy: 1", "policy: 2"), "policy: 2 is not between 1 and 1"},
		{"no format", replace("policy: 1\n", ""), "policy: missing: the version of this format"},
		{"no name", replace("name: fleet\n", ""), "name: missing"},
		{"no version", replace("version: 3\n", ""), "version: missing"},
		{"version zero", replace("version: 3", "version: 0"), "version: 0 is not between 1"},
		{"no rule for dbx", replace("secureBoot: {dbx: {any: true}}\n", ""), "secureBoot.dbx: missing"},
		{"a rule for dbx that allows none", replace("any: true", "digests: []"), "secureBoot.dbx: no dbx is allowed"},
		{"two rules for dbx", replace("any: true", "any: true, digests: []"), "2 of any, digests, superset are set"},
		{"a superset without its digest", replace("any: true", "superset: {file: dbx.bin}"), "secureBoot.dbx.superset: it needs file and sha256"},
		{"a superset outside", replace("any: true", "superset: {file: ../dbx.bin, sha256: aa}"), "not a clean path below"},
		{"a day that is none", policyText + `notAfter: "2026-02-30"` + "\n", `notAfter: "2026-02-30" is no day`},
		{"a day without quotes", policyText + "notAfter: 2026-02-28\n", `got the date 2026-02-28, want a string; write "2026-02-28"`},
		{"days in the wrong order", policyText + `notBefore: "2027-01-01"` + "\n" + `notAfter: "2026-01-01"` + "\n", "notAfter: 2026-01-01 is before notBefore"},
		{"an image twice", replace("- name: shop\n", "- name: shop\n- name: shop\n"), "images[1].name: shop is listed twice"},
		{"a class of TPM that is none", policyText + "tpm: {allowed: [any]}\n", "tpm.allowed[0]"},
		{"a verdict that never releases", policyText + "firmware: {release: [unknown]}\n", "firmware.release[0]"},
		{"a pattern without a group", policyText + "firmware: {models: [{pattern: 'x'}]}\n", "0 groups, want exactly one"},
		{"a pattern that is none", policyText + "firmware: {models: [{pattern: '('}]}\n", "missing closing )"},
		{"a minimum without a version", policyText + `firmware: {models: [{minimum: [{from: "2027-01-01"}]}]}` + "\n", "firmware.models[0].minimum[0].version: missing"},
		{"a component in PCR 4", policyText + "firmware: {models: [{components: [{pcr: 4, sha256: '0123456789012345678901234567890123456789012345678901234567890123'}]}]}\n", "nothing can be allowed in PCR 4"},
		{"a choice that is none", policyText + "tpm: {proveBanks: maybe}\n", `tpm.proveBanks: "maybe" is not supported; known are: ask, require`},
		{"a choice that is nothing", policyText + "tpm: {proveBanks: ''}\n", `tpm.proveBanks: got the string "", want ask, require, true or false`},
		{"a choice that is a number", policyText + "tpm: {proveBanks: 1}\n", "tpm.proveBanks: got the number 1, want a string"},
		{"an exemption of nobody", policyText + "tpm: {bankExemptions: [{reason: r}]}\n", "tpm.bankExemptions[0]: 0 of vendor, machine are set"},
		{"an exemption of two kinds", policyText + "tpm: {bankExemptions: [{vendor: IFX, machine: '0123456789012345678901234567890123456789012345678901234567890123', reason: r}]}\n", "tpm.bankExemptions[0]: 2 of vendor, machine are set"},
		{"an exemption without a reason", policyText + "tpm: {bankExemptions: [{vendor: IFX}]}\n", "tpm.bankExemptions[0].reason: missing"},
		{"an exemption of a model of any maker", policyText + "tpm: {bankExemptions: [{model: X, reason: r}]}\n", "0 of vendor, machine are set"},
		{"an exemption of a machine and a model", policyText + "tpm: {bankExemptions: [{machine: '0123456789012345678901234567890123456789012345678901234567890123', model: X, reason: r}]}\n", "model and below are of a vendor's TPMs"},
		{"an exemption of an id that is none", policyText + "tpm: {bankExemptions: [{machine: 'ab', reason: r}]}\n", "is not the id of a machine"},
		{"an exemption by what SMBIOS claims", policyText + "tpm: {bankExemptions: [{product: X, reason: r}]}\n", "tpm.bankExemptions[0].product: unknown field"},
		{"a file that is too large", policyText + strings.Repeat("#", MaxPolicy), "at most 262144 allowed"},
	} {
		p, err := ParsePolicy("p.yaml", []byte(c.text))
		switch {
		case (c.want == "") != (err == nil):
			t.Errorf("%s: got %v, want %q", c.claim, err, c.want)
		case err != nil && !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: got %v, want %q", c.claim, err, c.want)
		case err == nil && p.Images[0].Minimum != "1.2":
			t.Errorf("%s: got %+v", c.claim, p)
		}
	}
}

// What was signed when the key was true or false means what it meant, and is written
// as it was.
func TestTheProofOfBanksIsAChoiceThatTrueAndFalseAreAmong(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text, encoded string
		want          BankProof
	}{
		{"tpm: {allowed: [hardware]}", "", BankProofNone},
		{"tpm: {proveBanks: false}", "", BankProofNone},
		{"tpm: {proveBanks: true}", "proveBanks: true\n", BankProofRequire},
		{"tpm: {proveBanks: require}", "proveBanks: true\n", BankProofRequire},
		{"tpm: {proveBanks: ask}", "proveBanks: ask\n", BankProofAsk},
	} {
		p, err := ParsePolicy("p.yaml", []byte(policyText+c.text+"\n"))
		if err != nil || p.TPM.ProveBanks != c.want {
			t.Errorf("%s: %v, %v, want %q", c.text, p, err, c.want)
			continue
		}
		out, err := p.Encode()
		if err != nil || !strings.Contains(string(out), c.encoded) || c.encoded == "" && strings.Contains(string(out), "proveBanks") {
			t.Errorf("%s: %v: written as\n%s", c.text, err, out)
		}
	}
}

func TestAPolicyInAProfileIsNamedAfterIt(t *testing.T) {
	t.Parallel()
	p, err := Parse("shop.yaml", []byte(valid+"policy: {version: 2, images: [{name: shop}], secureBoot: {dbx: {any: true}}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Policy.Name != p.Name || p.Policy.Format != 1 || p.Policy.Version != 2 {
		t.Errorf("%+v", p.Policy)
	}
	text, err := p.Policy.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParsePolicy("policy.yaml", text); err != nil {
		t.Errorf("as a file of its own: %v in\n%s", err, text)
	}
	if _, err := Parse("shop.yaml", []byte(valid+"policy: {version: 2}\n")); err == nil || !strings.Contains(err.Error(), "policy.secureBoot.dbx: missing") {
		t.Errorf("a policy without a rule for dbx: %v", err)
	}
}

// FuzzParsePolicy: whatever is accepted is the same after it was written out.
func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(policyText))
	f.Add([]byte(policyText + "tpm: {proveBanks: ask, bankExemptions: [{vendor: 'id:53544D20', model: 'ST33', below: '1.258', reason: r}], withoutSHA256: [{vendor: IFX, reason: r}]}\n"))
	if _, text, ok := strings.Cut(full, "\npolicy:\n"); ok {
		text, _, _ = strings.Cut(text, "debug: true\n")
		f.Add([]byte(strings.ReplaceAll(text, "\n  ", "\n")[2:]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePolicy("p.yaml", b)
		if err != nil {
			return
		}
		out, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParsePolicy("again.yaml", out)
		if err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		if twice, err := again.Encode(); err != nil || !bytes.Equal(out, twice) {
			t.Errorf("%v:\n%s\n%s", err, out, twice)
		}
	})
}
