package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// Severity says how much an issue matters.
type Severity string

// Severities, the worst first.
const (
	Error   Severity = "error"   // machines are refused that should not be, or given secrets that should not
	Warning Severity = "warning" // something can get past the policy
	Notice  Severity = "notice"  // to know
)

// AtLeast reports whether s is as bad as t, or worse.
func (s Severity) AtLeast(t Severity) bool { return s.rank() <= t.rank() }

func (s Severity) rank() int { return slices.Index([]Severity{Error, Warning, Notice}, s) }

// Issue is one thing that a policy does not cover, or that is wrong with it.
type Issue struct {
	Severity Severity `json:"severity"`
	Code     string   `json:"code"`            // stable, docs/policy.md lists them
	Where    string   `json:"where,omitempty"` // field of the policy, or what of the inputs
	Text     string   `json:"text"`
	Remedy   string   `json:"remedy"`
}

// Machines are the machines of one model that the service knows.
type Machines struct {
	Vendor, Product string // SMBIOS type 1, claimed
	Count           int
}

// LintInputs are what Lint compares a policy with. What is nil is not known,
// and what needs it is not looked at.
type LintInputs struct {
	Images   []Image
	TPM      *attest.TPMPolicy
	Firmware *attest.FirmwarePolicy
	Machines []Machines
	At       time.Time
}

// endsSoon is how long before its end a policy is warned of.
const endsSoon = 30 * 24 * time.Hour

type linter struct {
	d   *Document
	in  LintInputs
	out []Issue
}

// Lint says what a policy does not cover. The worst comes first.
func Lint(d *Document, in LintInputs) []Issue {
	l := &linter{d: d, in: in}
	l.dates()
	l.images()
	l.secureBoot()
	l.tpm()
	l.firmware()
	l.coverage()
	slices.SortStableFunc(l.out, func(a, b Issue) int { return cmp.Compare(a.Severity.rank(), b.Severity.rank()) })
	return l.out
}

func (l *linter) add(s Severity, code, where, remedy, format string, args ...any) {
	l.out = append(l.out, Issue{s, code, where, fmt.Sprintf(format, args...), remedy})
}

func (l *linter) dates() {
	const remedy = "set notAfter to a later day, raise version, and sign it: sealift policy sign"
	switch why := l.d.notInForce(l.in.At); {
	case why != "" && l.d.NotBefore != "" && l.in.At.Before(day(l.d.NotBefore)):
		l.add(Warning, "policy.not-yet", "notBefore", "enable it on that day, or set notBefore back", "%s: until then it gives nothing", why)
	case why != "":
		l.add(Error, "policy.expired", "notAfter", remedy, "%s: every machine is refused", why)
	case l.d.NotAfter != "" && day(l.d.NotAfter).Sub(l.in.At) < endsSoon:
		l.add(Warning, "policy.ends-soon", "notAfter", remedy, "it ends on %s: every machine is refused from then on", l.d.NotAfter)
	}
}

func (l *linter) images() {
	if len(l.d.Images) == 0 {
		l.add(Error, "images.none", "images", "list the images that may run", "no image is listed: every machine is refused")
	}
	for i := range l.d.Images {
		l.image(&l.d.Images[i], fmt.Sprintf("images[%d]", i))
	}
	for _, i := range l.in.Images {
		where := "image " + i.Manifest.Name + " " + i.Manifest.Version
		if !slices.ContainsFunc(l.d.Images, func(r profiles.PolicyImage) bool { return r.Name == i.Manifest.Name }) {
			l.add(Notice, "images.unlisted", where, "list it under images, or remove its directory from the configuration", "the service has its manifest, the policy does not list it: it is refused")
			continue
		}
		if l.d.refuses(i) == "" {
			l.manifest(i.Manifest, where)
		}
	}
}

func (l *linter) image(r *profiles.PolicyImage, where string) {
	if r.Minimum == "" && len(r.Manifests) == 0 {
		l.add(Warning, "images.no-minimum", where, "set minimum to the oldest version that may still run", "image %s has no minimum: an old image with known holes is given secrets", r.Name)
	}
	if r.Debug {
		l.add(Warning, "images.debug", where+".debug", "leave debug out", "images of %s that are marked debug are allowed", r.Name)
	}
	for k, v := range r.Denied {
		if c, err := attest.CompareVersions(v.Version, r.Minimum); r.Minimum != "" && err == nil && c < 0 {
			l.add(Notice, "images.denied-shadowed", fmt.Sprintf("%s.denied[%d]", where, k), "remove it", "version %s is below the minimum %s anyway", v.Version, r.Minimum)
		}
	}
	if l.in.Images == nil {
		return
	}
	known, allowed, incomparable := 0, 0, ""
	for _, i := range l.in.Images {
		if i.Manifest.Name != r.Name {
			continue
		}
		known++
		if refuses(r, i) == "" {
			allowed++
		}
		if _, err := attest.CompareVersions(i.Manifest.Version, r.Minimum); r.Minimum != "" && err != nil {
			incomparable = err.Error()
		}
	}
	switch {
	case known == 0:
		l.add(Error, "images.no-manifest", where, "add the image's directory to images in the configuration of sealift serve", "there is no signed manifest of image %s", r.Name)
	case incomparable != "":
		l.add(Error, "images.minimum-incomparable", where+".minimum", "write the minimum as the image writes its versions", "image %s: %s", r.Name, incomparable)
	case allowed == 0:
		l.add(Error, "images.all-refused", where, "build a version that the policy allows, or lower the minimum", "every one of %d signed manifests of image %s is refused", known, r.Name)
	}
	for k, m := range r.Manifests {
		if !slices.ContainsFunc(l.in.Images, func(i Image) bool { return i.Digest.String() == m }) {
			l.add(Error, "images.pinned-missing", fmt.Sprintf("%s.manifests[%d]", where, k), "add the image's directory to images in the configuration of sealift serve, or remove the digest", "there is no manifest with the digest %s", m)
		}
	}
}

// manifest looks at the reference values of an image that may run.
func (l *linter) manifest(m *manifest.Manifest, where string) {
	if b := m.SecureBoot; b.PK.IsZero() || b.KEK.IsZero() || b.DB.IsZero() || b.Authority.IsZero() {
		l.add(Error, "images.no-keys", where, "build it with a key directory: sealift image build --keys", "its manifest has no digests of the Secure Boot keys: every boot is refused")
	}
	if len(m.UKI.Sections) == 0 {
		l.add(Error, "images.no-sections", where, "build it again: sealift image build", "its manifest names no sections: every boot is refused")
	}
	boot, ok := m.Boot(manifest.KindUKI, manifest.BootDisk)
	if !ok {
		l.add(Warning, "images.no-predictions", where, "build it again: sealift image build", "its manifest predicts no boot from disk: machines whose firmware has only the SHA-384 bank are refused")
		return
	}
	for _, bank := range []string{"sha256", "sha384"} {
		var lacking []string
		for _, p := range boot.PCRs {
			if slices.ContainsFunc(p.Events, func(e manifest.Event) bool { return len(e.Digests) > 0 && e.Digests[bank] == "" }) {
				lacking = append(lacking, fmt.Sprint(p.Index))
			}
		}
		if len(lacking) > 0 {
			l.add(Warning, "images.bank", where, "build it again: sealift image build", "its manifest predicts nothing in bank %s for PCR %s", bank, strings.Join(lacking, ", "))
		}
	}
}

func (l *linter) secureBoot() {
	switch dbx := l.d.SecureBoot.DBX; {
	case dbx.Any:
		l.add(Warning, "dbx.any", "secureBoot.dbx", "set superset to the dbx that the machines should have at least", "any dbx is allowed, also an empty one: a revoked boot loader that the db trusts can start")
	case len(dbx.Digests) > 0:
		l.add(Notice, "dbx.exact", "secureBoot.dbx.digests", "set superset instead, or list the digest of each update in time", "a machine that gets a newer dbx is refused until its digest is listed")
	}
}

func (l *linter) tpm() {
	allowed := l.d.TPM.Allowed
	if len(allowed) == 0 && l.in.TPM != nil {
		for _, c := range l.in.TPM.Allowed {
			allowed = append(allowed, string(c))
		}
	}
	for _, c := range allowed {
		switch attest.TPMClass(c) {
		case attest.TPMSoftware:
			l.add(Error, "tpm.software", "tpm.allowed", "allow hardware and firmware only", "software TPMs are allowed: whoever has such a machine's files has its secrets")
		case attest.TPMVirtual:
			l.add(Warning, "tpm.virtual", "tpm.allowed", "allow hardware and firmware only, unless you trust the hypervisor", "virtual TPMs are allowed: the hypervisor can read what they keep")
		}
		if l.in.TPM != nil && !slices.ContainsFunc(l.in.TPM.Roots, func(r attest.TPMRoot) bool { return string(r.Class) == c && !r.Intermediate }) {
			l.add(Warning, "tpm.no-root", "tpm.allowed", "add the makers' roots to tpm.roots in the configuration of sealift serve", "class %s is allowed, but no root vouches for a TPM of it", c)
		}
	}
	if len(l.d.TPM.Firmware) == 0 {
		l.add(Notice, "tpm.no-minimum", "tpm.firmware", "set a minimum for the makers whose TPMs you have", "no minimum for the TPMs' own firmware: known holes in it (CVE-2023-1017, CVE-2017-15361) are not refused")
	}
	l.banks()
}

// carteBlanche is what a machine can do that keeps a bank back.
const carteBlanche = "a machine whose firmware extends another bank alone could be booted into anything that keeps that bank back and fills SHA-256 (CVE-2021-42299)"

// banks looks at the proof of the active PCR banks.
func (l *linter) banks() {
	required := l.d.TPM.ProveBanks == profiles.BankProofRequire || l.in.TPM != nil && l.in.TPM.ProveBanks
	switch {
	case required:
	case l.d.TPM.ProveBanks == profiles.BankProofAsk:
		l.add(Notice, "tpm.banks-asked", "tpm.proveBanks", "set proveBanks: require, once 'sealift policy whatif' shows nobody who should not be refused",
			"machines are asked to prove which PCR banks are active, and none is refused for it: "+carteBlanche)
	default:
		l.add(Notice, "tpm.banks-unproven", "tpm.proveBanks", "set proveBanks: ask, and proveBanks: require when the machines have answered",
			"which PCR banks are active is proven only where SHA-256 is off: beside it, "+carteBlanche)
	}
	for i, x := range l.d.TPM.BankExemptions {
		where := fmt.Sprintf("tpm.bankExemptions[%d]", i)
		if !required {
			l.add(Notice, "tpm.banks-exempt-idle", where, "remove it, or set proveBanks: require", "nothing is required that it could exempt from")
			continue
		}
		l.add(Warning, "tpm.banks-exempt", where, "remove it when these machines can prove their banks, or are gone; have banks that the firmware does not measure into turned off",
			"%s need not prove which PCR banks are active: beside SHA-256, %s", theTPMs(x), carteBlanche)
		l.tpmRule(l.d.TPM.BankExemptions[:i], x, where)
	}
	for i, x := range l.d.TPM.WithoutSHA256 {
		where := fmt.Sprintf("tpm.withoutSHA256[%d]", i)
		l.add(Warning, "tpm.without-sha256", where, "name the model, or each machine, whose firmware you know to measure into SHA-384, and no others",
			"%s may have SHA-256 off from its first boot on: one whose firmware extends SHA-256 alone then measures nothing, and could be booted into anything that fills SHA-384", theTPMs(x))
		l.tpmRule(l.d.TPM.WithoutSHA256[:i], x, where)
	}
}

// theTPMs names the TPMs of a rule.
func theTPMs(x profiles.PolicyTPMRule) string {
	if x.Machine != "" {
		return "machine " + x.Machine
	}
	model := "any model"
	if x.Model != "" {
		model = "model " + x.Model
	}
	if x.Below != "" {
		model += ", firmware below " + x.Below
	}
	return fmt.Sprintf("every machine whose TPM is by %q (%s)", x.Vendor, model)
}

// tpmRule says if a rule is of the same TPMs as one before it, or of none: if no root
// is there to vouch for its vendor by name.
func (l *linter) tpmRule(before []profiles.PolicyTPMRule, x profiles.PolicyTPMRule, where string) {
	x.Reason = ""
	for _, o := range before {
		if o.Reason = ""; o == x {
			l.add(Notice, "tpm.rule-twice", where, "remove it", "another rule of the list is for the same TPMs")
			break
		}
	}
	vendor, err := attest.ParseTPMVendor(x.Vendor)
	if x.Vendor == "" || err != nil || l.in.TPM == nil {
		return
	}
	var named []string
	for _, r := range l.in.TPM.Roots {
		if r.Intermediate {
			continue
		}
		if slices.Contains(r.Vendors, vendor) {
			return
		}
		for _, v := range r.Vendors {
			named = append(named, fmt.Sprintf("%q", v))
		}
	}
	slices.Sort(named)
	l.add(Warning, "tpm.rule-nobody", where, "write the vendor as a refusal shows it, or name the vendors of the root in the configuration of sealift serve (tpm.roots[].vendors)",
		"no root may vouch for the vendor %q by name, so it is for nobody; named are: %s", vendor, cmp.Or(strings.Join(slices.Compact(named), " "), "none"))
}

func modelName(vendor, product string) string {
	if vendor == "" && product == "" {
		return "any model"
	}
	return strings.TrimSpace(vendor + " " + product)
}

func fits(m *profiles.PolicyModel, vendor, product string) bool {
	return (m.Vendor == "" || m.Vendor == vendor) && (m.Product == "" || m.Product == product)
}

func (l *linter) firmware() {
	if slices.Contains(l.d.Firmware.Release, string(attest.FirmwareClaimedOnly)) {
		l.add(Error, "firmware.claimed-only", "firmware.release", "remove \"claimed only\", and add the builds to the catalogue: sealift firmware catalogue add",
			"A MACHINE THAT ONLY CLAIMS A KNOWN VERSION IS GIVEN SECRETS: any firmware can claim any version, so no rule for firmware holds")
	}
	seen := map[[2]string]int{}
	for i := range l.d.Firmware.Models {
		m := &l.d.Firmware.Models[i]
		where := fmt.Sprintf("firmware.models[%d]", i)
		key := [2]string{m.Vendor, m.Product}
		if k, twice := seen[key]; twice {
			l.add(Notice, "firmware.model-twice", where, "merge the two", "%s has a rule already, firmware.models[%d]: both count", modelName(m.Vendor, m.Product), k)
		}
		seen[key] = i
		if key == [2]string{} {
			l.add(Notice, "firmware.any-model", where, "name vendor and product, unless it is meant", "the rule is for any model: versions of different makers are compared with one another")
		}
		l.model(m, where)
	}
	if l.in.Firmware == nil {
		return
	}
	models := map[[2]string]bool{}
	for i := range l.in.Firmware.References {
		r := &l.in.Firmware.References[i]
		where := fmt.Sprintf("catalogue: %s %s", modelName(r.Vendor, r.Product), r.Version)
		if r.Status == attest.FirmwareAllowed && r.Unpinned > 0 {
			l.add(Warning, "firmware.unpinned", where, "use firmware whose volumes are all measured as they are in the file, or keep its flash from being written", "%d of its volumes are trusted unseen", r.Unpinned)
		}
		if r.Status == attest.FirmwareAllowed && len(r.Digests) == 0 && len(r.SHA384) == 0 {
			l.add(Notice, "firmware.text-only", where, "add its digests: sealift firmware catalogue add", "it is known by its version text only, so it is at best cross-checked")
		}
		l.bank(r, where)
		key := [2]string{r.Vendor, r.Product}
		if models[key] {
			continue
		}
		models[key] = true
		if !slices.ContainsFunc(l.d.Firmware.Models, func(m profiles.PolicyModel) bool { return fits(&m, r.Vendor, r.Product) && len(m.Minimum) > 0 }) {
			l.add(Warning, "firmware.no-minimum", "catalogue: "+modelName(r.Vendor, r.Product), "set firmware.models[].minimum for it", "the policy has no minimum version for the model: every build that the catalogue allows may run, whatever its age")
		}
	}
	for _, m := range l.in.Machines {
		if !slices.ContainsFunc(l.in.Firmware.References, func(r attest.FirmwareReference) bool {
			return (r.Vendor == "" || r.Vendor == m.Vendor) && (r.Product == "" || r.Product == m.Product)
		}) {
			l.add(Error, "firmware.no-reference", "machines: "+modelName(m.Vendor, m.Product), "add its builds to the catalogue: sealift firmware catalogue add", "%d machines are of this model, and the catalogue has no build for it: they are refused", m.Count)
		}
	}
}

// bank says what it means that a build has digests in one bank only.
func (l *linter) bank(r *attest.FirmwareReference, where string) {
	has := map[string]bool{"sha256": len(r.Digests) > 0, "sha384": len(r.SHA384) > 0}
	for _, bank := range []string{"sha256", "sha384"} {
		if has[bank] || !has["sha256"] && !has["sha384"] {
			continue
		}
		const remedy = "add them, from the firmware's files: sealift firmware catalogue add"
		if r.Status == attest.FirmwareAllowed {
			l.add(Warning, "firmware.bank", where, remedy, "it has no digests of the bank %s: machines that are appraised by it are refused, and where it is active beside the other it is not compared", bank)
		} else {
			l.add(Warning, "firmware.bank", where, remedy, "it is denied, and has no digests of the bank %s: where machines are appraised by it, whatever could be this build is refused", bank)
		}
	}
}

// model looks at one rule, and at the builds of the catalogue that it judges.
func (l *linter) model(m *profiles.PolicyModel, where string) {
	name := modelName(m.Vendor, m.Product)
	now, err := compileModel(m, l.in.At)
	if err != nil {
		return // Parse has refused it
	}
	// As it will be when every minimum counts.
	later, err := compileModel(m, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		return
	}
	same := func(a, b string) (int, error) {
		for _, v := range []*string{&a, &b} {
			if c, err := now.Compared(*v); err == nil {
				*v = c
			}
		}
		return attest.CompareVersions(a, b)
	}
	for i, v := range m.Minimum {
		at := fmt.Sprintf("%s.minimum[%d]", where, i)
		for k, o := range m.Minimum {
			c, err := same(v.Version, o.Version)
			if i != k && err == nil && (c < 0 || c == 0 && i > k) && !day(o.From).After(day(v.From)) {
				l.add(Notice, "firmware.minimum-shadowed", at, "remove it", "the minimum %s counts at least as early and is not lower", o.Version)
				break
			}
			if i < k && err != nil {
				l.add(Error, "firmware.minimum-incomparable", at, "write both in the same form, or give the model a pattern", "%v", err)
			}
		}
	}
	for i, v := range m.Denied {
		for _, o := range m.Minimum {
			if c, err := same(v.Version, o.Version); err == nil && c < 0 && o.From == "" {
				l.add(Notice, "firmware.denied-shadowed", fmt.Sprintf("%s.denied[%d]", where, i), "remove it", "version %s is below the minimum %s anyway", v.Version, o.Version)
				break
			}
		}
	}
	digests := map[string]bool{}
	for i, c := range m.Components {
		key := fmt.Sprint(c.PCR, c.SHA256)
		if digests[key] {
			l.add(Notice, "firmware.component-twice", fmt.Sprintf("%s.components[%d]", where, i), "remove it", "the same digest is allowed in PCR %d already", c.PCR)
		}
		digests[key] = true
		// Of an option ROM the log has no data from which the other digest follows.
		if c.PCR == 2 && c.SHA384 == "" {
			l.add(Warning, "firmware.component-bank", fmt.Sprintf("%s.components[%d]", where, i), "add its sha384: sealift attest log shows it",
				"the component has no digest of the bank sha384: a machine that is appraised by it and has the component is refused")
		}
	}
	if m.Configuration == "listed" && !slices.ContainsFunc(m.Components, func(c profiles.PolicyComponent) bool { return c.PCR == 1 }) {
		l.add(Error, "firmware.configuration-empty", where+".configuration", "list the events of PCR 1 under components: sealift attest log shows them", "all of PCR 1 must be listed, and nothing of it is: every machine with a boot order is refused")
	}
	if l.in.Firmware == nil {
		return
	}
	builds, allowed, then := 0, 0, 0
	for i := range l.in.Firmware.References {
		r := &l.in.Firmware.References[i]
		if !fits(m, r.Vendor, r.Product) || r.Status != attest.FirmwareAllowed {
			continue
		}
		builds++
		build := fmt.Sprintf("catalogue: %s %s", modelName(r.Vendor, r.Product), r.Version)
		for _, v := range m.Minimum {
			if _, err := same(r.Version, v.Version); err != nil {
				l.add(Error, "firmware.minimum-incomparable", build, "write the minimum as the firmware writes its version, or give the model a pattern", "the build is refused: %v", err)
			}
		}
		if _, err := attest.FirmwareDate(r.Date); err != nil && m.NotBefore != "" {
			l.add(Error, "firmware.date-unknown", build, "give the build its date in the catalogue, YYYY-MM-DD", "the policy wants firmware from %s on, and the build has no date that can be read: it is refused", m.NotBefore)
		}
		if reason, _ := now.Judge(r.Version, r.Date); reason == "" {
			allowed++
		}
		if reason, _ := later.Judge(r.Version, r.Date); reason == "" {
			then++
		}
	}
	switch {
	case builds == 0:
		l.add(Warning, "firmware.model-unknown", where, "add its builds to the catalogue: sealift firmware catalogue add; or correct vendor and product", "the catalogue allows no build for %s: the rule judges nothing", name)
	case allowed == 0:
		l.add(Error, "firmware.all-refused", where, "add a newer build to the catalogue, or lower the minimum", "each of %d builds that the catalogue allows for %s is refused", builds, name)
	case then == 0:
		l.add(Warning, "firmware.deadline", where, "add a newer build to the catalogue before that day, and move the fleet: sealift firmware campaign create", "when all its minima count, each of %d builds that the catalogue allows for %s is refused", builds, name)
	}
}

// coverage says what of a boot no policy can hold machines to.
func (l *linter) coverage() {
	listed := false
	var free []string
	for i := range l.d.Firmware.Models {
		m := &l.d.Firmware.Models[i]
		if m.Configuration == "listed" {
			listed = true
		} else {
			free = append(free, modelName(m.Vendor, m.Product))
		}
	}
	what := "for no model"
	if listed {
		what = "only for the models that say configuration: listed"
		if len(free) > 0 {
			what += ", and not for " + strings.Join(free[:min(len(free), 5)], ", ")
		}
	}
	l.add(Notice, "coverage.pcr1", "PCR 1", "set configuration: listed for models whose setup must not change", "boot order, setup, handoff tables and microcode (EV_EFI_VARIABLE_BOOT, EV_EFI_HANDOFF_TABLES, EV_CPU_MICROCODE, EV_PLATFORM_CONFIG_FLAGS) are quoted, and compared %s", what)
	l.add(Notice, "coverage.pcr5", "PCR 5", "none: each machine's partition table is its own", "of a partition table (EV_EFI_GPT_EVENT) only the disk's GUID is compared, with the machine's own claim and record")
	l.add(Notice, "coverage.pcrs", "PCR 8, 10, 16 to 23", "none: nothing measures into them before secrets are released", "these PCRs are not quoted, and their events are not compared")
}
