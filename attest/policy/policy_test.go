package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

var now = time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC)

// clean is a policy with which nothing is wrong.
const clean = `policy: 1
name: fleet
version: 3
images:
- {name: shop, minimum: "1.2"}
secureBoot: {dbx: {superset: {file: dbx.bin, sha256: %DBX%}}}
tpm:
  allowed: [hardware]
  firmware: [{vendor: IFX, minimum: 7.85.4555.0}]
  proveBanks: true
firmware:
  models:
  - {vendor: Paper, product: Box, minimum: [{version: "1.44"}, {version: "1.46", from: "2027-01-01"}]}
`

// dbx is an EFI_SIGNATURE_LIST with one hash.
func dbx() []byte {
	b := []byte("\x26\x16\xc4\xc1\x4c\x50\x92\x40\xac\xa9\x41\xf9\x36\x93\x43\x28")
	b = binary.LittleEndian.AppendUint32(b, 28+48)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, 48)
	return append(b, make([]byte, 48)...)
}

func beside(name string) ([]byte, error) {
	if name != "dbx.bin" {
		return nil, os.ErrNotExist
	}
	return dbx(), nil
}

func text(change ...string) string {
	s := strings.ReplaceAll(clean, "%DBX%", fmt.Sprintf("%q", fmt.Sprintf("%x", sha256.Sum256(dbx()))))
	return strings.NewReplacer(change...).Replace(s)
}

func parse(t testing.TB, s string) *Document {
	t.Helper()
	d, err := Parse("p.yaml", []byte(s), beside)
	if err != nil {
		t.Fatalf("%v in\n%s", err, s)
	}
	return d
}

func digest(s string) manifest.SHA256 { return sha256.Sum256([]byte(s)) }

// image is a manifest with all that lint looks for.
func image(name, version string) Image {
	hex := func(n int) string { return strings.Repeat("ab", n) }
	m := &manifest.Manifest{Schema: manifest.Schema, Name: name, Version: version}
	m.SecureBoot = manifest.SecureBoot{PK: digest("pk"), KEK: digest("kek"), DB: digest("db"), Authority: digest("authority")}
	m.UKI = manifest.UKI{Authenticode: digest(name + version), Sections: []manifest.Section{{Name: ".linux", SHA256: digest("linux")}}}
	m.Boots = []manifest.Boot{{Way: manifest.BootDisk, Artifact: manifest.KindUKI, SecureBoot: true, PCRs: []manifest.PCR{
		{Index: 4, Events: []manifest.Event{{Digests: manifest.Digests{"sha256": hex(32), "sha384": hex(48)}}}},
	}}}
	return Image{Manifest: m, Digest: digest("manifest of " + name + version)}
}

func reference(version, date string) attest.FirmwareReference {
	return attest.FirmwareReference{Vendor: "Paper", Product: "Box", Version: version, Date: date, Digests: []manifest.SHA256{digest(version)}, SHA384: []string{strings.Repeat("ab", 48)}, Status: attest.FirmwareAllowed}
}

func lintInputs() LintInputs {
	return LintInputs{
		Images:   []Image{image("shop", "1.2"), image("shop", "1.3")},
		TPM:      &attest.TPMPolicy{Allowed: []attest.TPMClass{attest.TPMHardware}, Roots: []attest.TPMRoot{{Class: attest.TPMHardware, Vendors: []attest.TPMVendor{0x49465800, 0x53544D00}}}},
		Firmware: &attest.FirmwarePolicy{References: []attest.FirmwareReference{reference("1.44", "2026-01-01"), reference("1.46", "2026-05-01")}},
		Machines: []Machines{{"Paper", "Box", 7}},
		At:       now,
	}
}

func TestPoliciesBecomeWhatTheVerifierReads(t *testing.T) {
	d := parse(t, text("minimum: \"1.2\"", "minimum: \"1.3\", denied: [{version: \"1.4\", reason: broken}]"))
	debug := image("shop", "1.9")
	debug.Manifest.Debug = true
	in := Inputs{
		Images:   []Image{image("shop", "1.2"), image("shop", "1.3"), image("shop", "1.4"), image("other", "9"), debug, image("shop", "v2")},
		TPM:      attest.TPMPolicy{Allowed: []attest.TPMClass{attest.TPMSoftware}},
		Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{reference("1.44", "")}},
		At:       now,
	}
	p, err := d.Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Images) != 1 || p.Images[0].Version != "1.3" || p.NotInForce != "" {
		t.Errorf("%d images, not in force %q", len(p.Images), p.NotInForce)
	}
	var why []string
	for _, i := range p.DeniedImages {
		why = append(why, i.Manifest.Name+" "+i.Manifest.Version+": "+i.Reason)
	}
	want := []string{
		"shop 1.2: version 1.2 is below the minimum 1.3", "shop 1.4: version 1.4 is denied: broken",
		"other 9: policy fleet version 3 does not list this image", "shop 1.9: it is marked debug",
		`shop v2: it cannot be compared with the minimum 1.3: versions "v2" and "1.3" are of two schemes: "v" against "1"`,
	}
	if !slices.Equal(why, want) {
		t.Errorf("refused are\n%s\nwant\n%s", strings.Join(why, "\n"), strings.Join(want, "\n"))
	}
	if !slices.Equal(p.TPM.Allowed, []attest.TPMClass{attest.TPMHardware}) {
		t.Errorf("classes are %q: the policy's count, not the configuration's", p.TPM.Allowed)
	}
	ifx, err := attest.ParseTPMVendor("IFX")
	if want := (attest.TPMDenial{Vendor: ifx, To: 0x0007005511caffff, Reason: "it is below the minimum 7.85.4555.0"}); err != nil || !slices.Equal(p.TPM.Denied, []attest.TPMDenial{want}) {
		t.Errorf("denied TPMs are %+v", p.TPM.Denied)
	}
	if !p.TPM.ProveBanks || p.TPM.AskBanks || p.TPM.BankExemptions != nil || p.TPM.WithoutSHA256 != nil {
		t.Errorf("of the banks it says %+v", p.TPM)
	}
	if len(p.DBXSuperset) == 0 || len(p.Models) != 1 || len(p.Firmware.References) != 1 {
		t.Errorf("%+v", p)
	}
}

func TestRulesForTPMsBecomeWhatTheVerifierReads(t *testing.T) {
	id := attest.MachineID{0xab}
	d := parse(t, text("proveBanks: true", fmt.Sprintf("proveBanks: ask\n  bankExemptions: [{vendor: 'STM ', model: ST33, below: '1.258', reason: r}, {machine: %q, reason: s}]\n  withoutSHA256: [{vendor: 'id:49465800', reason: t}]", id)))
	in := Inputs{TPM: attest.TPMPolicy{BankExemptions: []attest.TPMRule{{Vendor: 1}}}, At: now}
	for range 2 { // the inputs stay as they are
		p, err := d.Compile(in)
		if err != nil {
			t.Fatal(err)
		}
		if p.TPM.ProveBanks || !p.TPM.AskBanks {
			t.Errorf("it requires %t, asks %t", p.TPM.ProveBanks, p.TPM.AskBanks)
		}
		if want := []attest.TPMRule{{Vendor: 1}, {Vendor: 0x53544D00, Model: "ST33", Below: 0x0001010200000000, Reason: "r"}, {Machine: id, Reason: "s"}}; !slices.Equal(p.TPM.BankExemptions, want) {
			t.Errorf("exempt are %+v", p.TPM.BankExemptions)
		}
		if want := []attest.TPMRule{{Vendor: 0x49465800, Reason: "t"}}; !slices.Equal(p.TPM.WithoutSHA256, want) {
			t.Errorf("without SHA-256 may be %+v", p.TPM.WithoutSHA256)
		}
	}
	for bad, want := range map[string]string{
		"bankExemptions: [{vendor: IFX, below: '70000', reason: r}]":                                          "tpm.bankExemptions[0]",
		"bankExemptions: [{vendor: IFX, below: '0', reason: r}]":                                              "no version is below 0",
		"bankExemptions: [{vendor: 'id:00000000', reason: r}]":                                                "no maker has this id",
		"bankExemptions: [{machine: '" + strings.Repeat("0", 64) + "', reason: r}]":                           "no machine has this id",
		"bankExemptions: [{vendor: IFX, reason: r}]\n  withoutSHA256: [{vendor: IFX, below: '0', reason: r}]": "tpm.withoutSHA256[0]",
	} {
		if _, err := Parse("p.yaml", []byte(text("proveBanks: true", bad)), beside); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", bad, err, want)
		}
	}
}

func TestMinimaCountFromTheirDayOn(t *testing.T) {
	d := parse(t, text())
	for _, c := range []struct {
		at   time.Time
		want int
	}{
		{time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC), 1},
		{time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), 2},
	} {
		p, err := d.Compile(Inputs{At: c.at})
		if err != nil || len(p.Models[0].Minimum) != c.want {
			t.Errorf("at %s: %v, %v, want %d minima", c.at, p.Models[0].Minimum, err, c.want)
		}
	}
}

func TestAPolicyIsInForceOnItsDays(t *testing.T) {
	d := parse(t, text("version: 3", "version: 3\nnotBefore: \"2026-06-15\"\nnotAfter: \"2026-06-16\""))
	for _, c := range []struct {
		at   string
		want string
	}{
		{"2026-06-14T23:59:59Z", "in force from 2026-06-15 on"}, {"2026-06-15T00:00:00Z", ""},
		{"2026-06-16T23:59:59Z", ""}, {"2026-06-17T00:00:00Z", "ended on 2026-06-16"},
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		p, err := d.Compile(Inputs{At: at})
		if err != nil || (p.NotInForce == "") != (c.want == "") || !strings.Contains(p.NotInForce, c.want) {
			t.Errorf("at %s: %q, %v, want %q", c.at, p.NotInForce, err, c.want)
		}
	}
}

func TestWithoutAPolicyAllInputsAreAllowed(t *testing.T) {
	var d *Document
	p, err := d.Compile(Inputs{Images: []Image{image("a", "1"), image("b", "2")}, At: now})
	if err != nil || len(p.Images) != 2 || len(p.DeniedImages) != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestFilesOfAPolicyAreTheOnesThatItMeans(t *testing.T) {
	for _, c := range []struct {
		claim, text, want string
		read              func(string) ([]byte, error)
	}{
		{"one that is not there", text("dbx.bin", "other.bin"), "file does not exist", beside},
		{"another content", text(), "has the SHA-256", func(string) ([]byte, error) { return append(dbx(), 0), nil }},
		{"one that is too large", text(), "at most 1048576", func(string) ([]byte, error) { return make([]byte, MaxFile+1), nil }},
		{"one that is no dbx", strings.Replace(text(), fmt.Sprintf("%x", sha256.Sum256(dbx())), fmt.Sprintf("%x", sha256.Sum256([]byte("text"))), 1), "damaged signature list", func(string) ([]byte, error) { return []byte("text"), nil }},
		{"a TPM firmware that no TPM has", text("7.85.4555.0", "7.85.99999.0"), "value out of range", beside},
	} {
		if _, err := Parse("p.yaml", []byte(c.text), c.read); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.claim, err, c.want)
		}
	}
	if got := Files([]byte(text())); !slices.Equal(got, []string{"dbx.bin"}) {
		t.Errorf("files are %q", got)
	}
}

func TestTPMFirmwareVersionsAreNumbers(t *testing.T) {
	for s, want := range map[string]uint64{"7.85.4555.0": 0x0007005511cb0000, "7.85": 0x0007005500000000, "0x0007005511cb0000": 0x0007005511cb0000, "1": 1 << 48} {
		if got, err := TPMFirmware(s); err != nil || got != want {
			t.Errorf("%s is %#x, %v, want %#x", s, got, err, want)
		}
	}
	for _, s := range []string{"", "x", "1.2.3.4.5", "65536", "0x", "0x11112222333344445"} {
		if got, err := TPMFirmware(s); err == nil {
			t.Errorf("%q is %#x", s, got)
		}
	}
}

// Each case changes the clean policy or its inputs in one way, and gives exactly
// one issue more than the clean one.
func TestLintNamesWhatAPolicyDoesNotCover(t *testing.T) {
	base := Lint(parse(t, text()), lintInputs())
	var clean []string
	for _, i := range base {
		if i.Severity != Notice || !strings.HasPrefix(i.Code, "coverage.") {
			t.Errorf("the clean policy has an issue: %+v", i)
		}
		clean = append(clean, i.Code)
	}
	box := "{vendor: Paper, product: Box, minimum:"
	cases := map[string]struct {
		text   string
		change func(*LintInputs)
		want   []string // severity and code
	}{
		"an end that has passed":       {text: text("version: 3", "version: 3\nnotAfter: \"2026-01-01\""), want: []string{"error policy.expired"}},
		"an end that is near":          {text: text("version: 3", "version: 3\nnotAfter: \"2026-07-01\""), want: []string{"warning policy.ends-soon"}},
		"a start that is to come":      {text: text("version: 3", "version: 3\nnotBefore: \"2026-07-01\""), want: []string{"warning policy.not-yet"}},
		"no images":                    {text: text("images:\n- {name: shop, minimum: \"1.2\"}\n", ""), want: []string{"error images.none", "notice images.unlisted", "notice images.unlisted"}},
		"an image without a minimum":   {text: text("shop, minimum: \"1.2\"", "shop"), want: []string{"warning images.no-minimum"}},
		"debug images":                 {text: text("minimum: \"1.2\"", "minimum: \"1.2\", debug: true"), want: []string{"warning images.debug"}},
		"a denied version below":       {text: text("minimum: \"1.2\"", "minimum: \"1.2\", denied: [{version: \"1.1\"}]"), want: []string{"notice images.denied-shadowed"}},
		"an image without a manifest":  {text: text("images:\n", "images:\n- {name: other, minimum: \"1\"}\n"), want: []string{"error images.no-manifest"}},
		"a minimum of another scheme":  {text: text("minimum: \"1.2\"", "minimum: \"v2\""), want: []string{"error images.minimum-incomparable"}},
		"a minimum above all":          {text: text("minimum: \"1.2\"", "minimum: \"2\""), want: []string{"error images.all-refused"}},
		"a manifest that is not there": {text: text("minimum: \"1.2\"", "minimum: \"1.2\", manifests: [\""+strings.Repeat("ab", 32)+"\", \""+image("shop", "1.3").Digest.String()+"\"]"), want: []string{"error images.pinned-missing"}},
		"an image that nobody listed":  {change: func(in *LintInputs) { in.Images = append(in.Images, image("other", "1")) }, want: []string{"notice images.unlisted"}},
		"an image without keys":        {change: func(in *LintInputs) { in.Images[1].Manifest.SecureBoot.PK = manifest.SHA256{} }, want: []string{"error images.no-keys"}},
		"an image without sections":    {change: func(in *LintInputs) { in.Images[1].Manifest.UKI.Sections = nil }, want: []string{"error images.no-sections"}},
		"an image without predictions": {change: func(in *LintInputs) { in.Images[1].Manifest.Boots = nil }, want: []string{"warning images.no-predictions"}},
		"an image without a bank":      {change: func(in *LintInputs) { delete(in.Images[1].Manifest.Boots[0].PCRs[0].Events[0].Digests, "sha384") }, want: []string{"warning images.bank"}},
		"any dbx":                      {text: text(text(), "") + strings.Replace(text(), text()[strings.Index(text(), "secureBoot:"):strings.Index(text(), "tpm:")], "secureBoot: {dbx: {any: true}}\n", 1), want: []string{"warning dbx.any"}},
		"dbx by digest":                {text: strings.Replace(text(), text()[strings.Index(text(), "secureBoot:"):strings.Index(text(), "tpm:")], "secureBoot: {dbx: {digests: [\""+strings.Repeat("ab", 32)+"\"]}}\n", 1), want: []string{"notice dbx.exact"}},
		"software TPMs":                {text: text("[hardware]", "[hardware, software]"), change: func(in *LintInputs) { in.TPM.Roots = append(in.TPM.Roots, attest.TPMRoot{Class: attest.TPMSoftware}) }, want: []string{"error tpm.software"}},
		"software TPMs by configuration": {text: text("  allowed: [hardware]\n", ""), change: func(in *LintInputs) {
			in.TPM = &attest.TPMPolicy{Allowed: []attest.TPMClass{attest.TPMSoftware}, Roots: []attest.TPMRoot{{Class: attest.TPMSoftware}}}
		}, want: []string{"error tpm.software"}},
		"virtual TPMs without a root":            {text: text("[hardware]", "[hardware, virtual]"), want: []string{"warning tpm.no-root", "warning tpm.virtual"}},
		"no minimum for TPMs":                    {text: text("  firmware: [{vendor: IFX, minimum: 7.85.4555.0}]\n", ""), want: []string{"notice tpm.no-minimum"}},
		"banks that nobody proves":               {text: text("  proveBanks: true\n", ""), want: []string{"notice tpm.banks-unproven"}},
		"banks that are only asked for":          {text: text("proveBanks: true", "proveBanks: ask"), want: []string{"notice tpm.banks-asked"}},
		"TPMs that need not prove them":          {text: text("proveBanks: true", "proveBanks: require\n  bankExemptions: [{vendor: IFX, model: SLB9665, reason: r}]"), want: []string{"warning tpm.banks-exempt"}},
		"an exemption from nothing":              {text: text("proveBanks: true", "bankExemptions: [{vendor: IFX, reason: r}]"), want: []string{"notice tpm.banks-exempt-idle", "notice tpm.banks-unproven"}},
		"exemptions that say it twice":           {text: text("proveBanks: true", "proveBanks: true\n  bankExemptions: [{vendor: IFX, reason: r}, {vendor: IFX, reason: s}]"), want: []string{"notice tpm.rule-twice", "warning tpm.banks-exempt", "warning tpm.banks-exempt"}},
		"an exemption of a maker without a root": {text: text("proveBanks: true", "proveBanks: true\n  bankExemptions: [{vendor: NTC, reason: r}]"), want: []string{"warning tpm.banks-exempt", "warning tpm.rule-nobody"}},
		"an exempt machine":                      {text: text("proveBanks: true", "proveBanks: true\n  bankExemptions: [{machine: \""+strings.Repeat("ab", 32)+"\", reason: r}]"), want: []string{"warning tpm.banks-exempt"}},
		"TPMs without SHA-256":                   {text: text("proveBanks: true", "proveBanks: true\n  withoutSHA256: [{vendor: IFX, reason: r}]"), want: []string{"warning tpm.without-sha256"}},
		"claims":                                 {text: text("firmware:\n  models", "firmware:\n  release: [measured, claimed only]\n  models"), want: []string{"error firmware.claimed-only"}},
		"a model twice":                          {text: text() + "  - " + box + " [{version: \"1.44\"}]}\n", want: []string{"notice firmware.model-twice"}},
		"a rule for any model":                   {text: text() + "  - {denied: [{version: \"9\"}]}\n", want: []string{"notice firmware.any-model"}},
		"a minimum that another outdoes":         {text: text(`{version: "1.44"}`, `{version: "1.44"}, {version: "1.40", from: "2026-02-01"}`), want: []string{"notice firmware.minimum-shadowed"}},
		"minima of two schemes":                  {text: text(`from: "2027-01-01"`, `from: "2027-01-01"}, {version: "A05", from: "2030-01-01"`), want: []string{"error firmware.minimum-incomparable", "error firmware.minimum-incomparable", "error firmware.minimum-incomparable", "error firmware.minimum-incomparable", "warning firmware.deadline"}},
		"a denied build below":                   {text: text(box, "{vendor: Paper, product: Box, denied: [{version: \"1.1\"}], minimum:"), want: []string{"notice firmware.denied-shadowed"}},
		"a component twice":                      {text: text(box, "{vendor: Paper, product: Box, components: [{pcr: 6, sha256: "+strings.Repeat("ab", 32)+"}, {pcr: 6, sha256: "+strings.Repeat("ab", 32)+"}], minimum:"), want: []string{"notice firmware.component-twice"}},
		"a configuration of nothing":             {text: text(box, "{vendor: Paper, product: Box, configuration: listed, minimum:"), want: []string{"error firmware.configuration-empty"}},
		"builds without a date":                  {text: text(box, "{vendor: Paper, product: Box, notBefore: \"2025-01-01\", minimum:"), change: func(in *LintInputs) { in.Firmware.References[0].Date = "spring" }, want: []string{"error firmware.date-unknown"}},
		"a minimum above all builds":             {text: text(`"1.44"`, `"1.50"`), want: []string{"error firmware.all-refused", "notice firmware.minimum-shadowed"}},
		"a minimum above all, in a while":        {text: text(`"1.46"`, `"1.50"`), want: []string{"warning firmware.deadline"}},
		"a model without builds":                 {text: text() + "  - {vendor: Other, product: Box}\n", want: []string{"warning firmware.model-unknown"}},
		"a build with unpinned volumes":          {change: func(in *LintInputs) { in.Firmware.References[0].Unpinned = 1 }, want: []string{"warning firmware.unpinned"}},
		"a build without digests":                {change: func(in *LintInputs) { in.Firmware.References[0].Digests, in.Firmware.References[0].SHA384 = nil, nil }, want: []string{"notice firmware.text-only"}},
		"a build without SHA-384":                {change: func(in *LintInputs) { in.Firmware.References[0].SHA384 = nil }, want: []string{"warning firmware.bank"}},
		"a denied build without SHA-384": {change: func(in *LintInputs) {
			in.Firmware.References[0].SHA384, in.Firmware.References[0].Status = nil, attest.FirmwareDenied
		}, want: []string{"warning firmware.bank"}},
		"a build without SHA-256":       {change: func(in *LintInputs) { in.Firmware.References[0].Digests = nil }, want: []string{"warning firmware.bank"}},
		"an option ROM without SHA-384": {text: text(box, "{vendor: Paper, product: Box, components: [{pcr: 2, sha256: "+strings.Repeat("ab", 32)+"}, {pcr: 6, sha256: "+strings.Repeat("ab", 32)+"}], minimum:"), want: []string{"warning firmware.component-bank"}},
		"builds without a minimum": {change: func(in *LintInputs) {
			in.Firmware.References = append(in.Firmware.References, attest.FirmwareReference{Vendor: "Other", Product: "Box", Version: "1", Digests: []manifest.SHA256{{1}}, SHA384: []string{"01"}, Status: attest.FirmwareAllowed})
		}, want: []string{"warning firmware.no-minimum"}},
		"machines without builds": {change: func(in *LintInputs) { in.Machines = append(in.Machines, Machines{"Other", "Box", 3}) }, want: []string{"error firmware.no-reference"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := c.text
			if s == "" {
				s = text()
			}
			in := lintInputs()
			if c.change != nil {
				c.change(&in)
			}
			var got []string
			rest := slices.Clone(clean)
			for _, i := range Lint(parse(t, s), in) {
				if i.Text == "" || i.Remedy == "" {
					t.Errorf("%s says nothing, or not what mends it: %+v", i.Code, i)
				}
				if k := slices.Index(rest, i.Code); k >= 0 {
					rest = slices.Delete(rest, k, k+1)
					continue
				}
				got = append(got, string(i.Severity)+" "+i.Code)
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("issues are %q, want %q", got, c.want)
			}
		})
	}
}

func TestLintLooksOnlyAtWhatItWasGiven(t *testing.T) {
	for _, i := range Lint(parse(t, text()), LintInputs{At: now}) {
		if i.Severity != Notice {
			t.Errorf("%+v", i)
		}
	}
}

// FuzzParse: what is a policy compiles, and is linted, without a panic.
func FuzzParse(f *testing.F) {
	f.Add([]byte(text()))
	f.Add([]byte(text("proveBanks: true", "proveBanks: ask\n  bankExemptions: [{vendor: 'STM ', model: ST33, below: '1.258', reason: r}]\n  withoutSHA256: [{machine: '"+strings.Repeat("ab", 32)+"', reason: r}]")))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse("p.yaml", b, func(string) ([]byte, error) { return nil, errors.New("no file") })
		if err != nil {
			return
		}
		if _, err := d.Compile(Inputs{Images: lintInputs().Images, At: now}); err != nil {
			t.Errorf("%v in\n%s", err, b)
		}
		Lint(d, lintInputs())
	})
}

// The document lists each code that Lint can give, with its severity.
func TestTheDocumentListsEveryCodeOfLint(t *testing.T) {
	source, err := os.ReadFile("lint.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`l\.add\((Error|Warning|Notice), "([a-z0-9.-]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(found) < 30 {
		t.Fatalf("found %d codes", len(found))
	}
	for _, f := range found {
		row := regexp.MustCompile("(?m)^\\| [^|]*`" + regexp.QuoteMeta(f[2]) + "`[^|]*\\| " + strings.ToLower(f[1]) + " \\|")
		if !row.Match(doc) {
			t.Errorf("docs/policy.md does not list %s as %s", f[2], strings.ToLower(f[1]))
		}
	}
}
