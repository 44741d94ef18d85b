package profiles

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// Rule is what a field of a profile must hold beside its type. The parser
// holds every field against its rule, and the JSON Schema is made of the same
// rules, so that an editor says what the parser will say. What a rule cannot
// say, such as that two UKIs fit the ESP, only the parser checks.
type Rule struct {
	Required bool
	// What names a good value in messages: "the name of a kernel module".
	What string
	// Hint says how to write one. Optional.
	Hint string

	// For strings.
	Pattern   string   // regular expression that both RE2 and ECMA-262 read
	Not       string   // another, which must not match
	NotWhy    string   // what a value that Not matches is: "set by the image builder"
	MaxLength int      // characters; no bound if zero
	Enum      []string // every good value

	// For numbers.
	Min, Max int
	Unit     string // MiB

	// For lists.
	Unique bool // no value twice

	// For mappings: names of fields.
	ExactlyOne []string // exactly one of these is set
	AtMostOne  []string // at most one of these is set
	NotEmpty   bool     // at least one field is set
}

// The forms of names. They are compiled where they are used: a profile is
// validated once in a program's life.
const (
	labelPattern   = `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`  // RFC 1123 label
	versionPattern = `^[0-9A-Za-z][0-9A-Za-z.-]{0,39}$` // of an image
	packagePattern = `^[a-z0-9][a-z0-9+.-]{1,127}$`     // Debian Policy 5.6.1
	kernelPattern  = `^linux-image-[a-z0-9+.-]{1,112}$`
	modulePattern  = `^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$` // kernel module
	domainPattern  = `^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	paramPattern   = `^[A-Za-z0-9_.-]+(=[A-Za-z0-9_.,:/@+-]*)?$` // kernel parameter
	fromPattern    = `^[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[0-9a-f]{64})$`
	excludePattern = `^[A-Za-z0-9_./:@*-]{1,255}$`
	imagePattern   = `^[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`
	pinnedPattern  = `^[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?@sha256:[0-9a-f]{64}$`
	mirrorPattern  = `^https?://[^/?#@\s]+(/[^?#@\s]*[^/?#@\s])?$`
	servicePattern = `^https://[^/?#@\s]+$`
	cidrPattern    = `^([0-9]{1,3}\.){3}[0-9]{1,3}/([89]|1[0-9]|2[0-8])$`
	ipv4Pattern    = `^([0-9]{1,3}\.){3}[0-9]{1,3}$`
	releasePattern = `^v[0-9]+\.[0-9]+\.[0-9]+([.+-][0-9A-Za-z.+-]*)?$`
	localPattern   = `^[^\x00-\x1f\x7f]+$` // a path of this machine
	// The root, empty components, "." and "..".
	uncleanPath     = `^/|//|/$|(^|/)\.\.?(/|$)`
	uncleanAbs      = `//|/$|/\.\.?(/|$)`
	absPattern      = `^/[^\x00-\x1f\x7f]+$`
	modePattern     = `^0?[0-7]{3}$`
	userPattern     = `^[a-z_][a-z0-9_-]{0,31}$` // useradd(8)
	hardwarePatern  = `^[ -~]{1,64}$`            // attest keeps 64 printable characters of each
	digestPattern   = `^[0-9a-f]{64}$`
	dayPattern      = `^[0-9]{4}-[0-9]{2}-[0-9]{2}$`
	textPattern     = `^[^\x00-\x1f\x7f]{1,256}$`
	firmwarePattern = `^[ -~]{0,63}[0-9A-Za-z][ -~]{0,63}$`
	manifestNames   = `^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`
)

func matches(pattern, s string) bool { return regexp.MustCompile(pattern).MatchString(s) }

// maxMiB bounds a size of a partition: 1 TiB.
const maxMiB = 1 << 20

// reservedPaths matches paths that an extra file must not have: the mount
// points of the root file system and what is below them, and what the image
// builder and the agent rely on. Links are followed once more when the image
// is built.
const reservedPaths = `^/(dev|proc|run|sys|tmp|var)(/|$)` +
	`|^/(init|linuxrc|(usr/)?s?bin/init)(/|$)` +
	`|^/(etc|(usr/)?lib|usr/share)/sealift(/|$)` +
	`|^/(usr/)?lib/modules(/|$)` +
	`|^/(bin|sbin|lib|lib64|usr|etc)$` +
	`|^/(etc|usr/lib)/os-release$` +
	`|^/etc/(passwd|group|shadow|gshadow|passwd-|group-|shadow-|gshadow-|hostname|machine-id|mtab|resolv\.conf)$`

// Reserved reports whether an extra file may not be at an absolute path.
func Reserved(name string) bool { return matches(reservedPaths, name) }

// Rules returns the rule of each field by its path; [] stands for the entries
// of a list. A field without one may hold whatever its type allows.
func Rules() map[string]Rule {
	size := func(min int) Rule { return Rule{Min: min, Max: maxMiB, Unit: "MiB"} }
	smbios := Rule{Pattern: hardwarePatern, What: "a pattern of SMBIOS text", Hint: "use 1 to 64 printable ASCII characters, * and ?"}
	source := Rule{
		Pattern: localPattern, Not: uncleanPath, What: "the path of a file", NotWhy: "not a clean path below the profile's directory",
		MaxLength: 1024, Hint: "use one like files/motd",
	}
	local := Rule{Pattern: localPattern, MaxLength: 4095, What: "a path"}
	digest := Rule{Pattern: digestPattern, What: "a SHA-256 digest", Hint: "use 64 lower-case hexadecimal digits"}
	day := Rule{Pattern: dayPattern, What: "a day", Hint: `use one like "2026-01-31", in quotes`}
	text := Rule{Pattern: textPattern, What: "a line of text", Hint: "use 1 to 256 characters"}
	firmware := Rule{Pattern: firmwarePattern, What: "a version", Hint: "use 1 to 64 printable ASCII characters with a digit or letter among them"}
	vendor := Rule{Pattern: `^([A-Za-z0-9 ]{1,4}|id:[0-9A-Fa-f]{8})$`, What: "a TPM vendor", Hint: "use one like IFX, or id:49465800"}
	tpmFirmware := Rule{Pattern: `^([0-9]{1,5}(\.[0-9]{1,5}){0,3}|0x[0-9a-fA-F]{1,16})$`, What: "a TPM firmware version", Hint: "use one like 7.85.4555.0 or 0x0007005511cb0000"}
	need := func(r Rule) Rule { r.Required = true; return r }
	module := Rule{Pattern: modulePattern, What: "the name of a kernel module"}
	rules := map[string]Rule{
		"apiVersion": {Required: true, Enum: []string{APIVersion}},
		"kind":       {Required: true, Enum: []string{Kind}},
		"name":       {Required: true, Pattern: labelPattern, MaxLength: 40, What: "a name", Hint: "use at most 40 lower-case letters, digits and dashes"},
		"version":    {Required: true, Pattern: versionPattern, What: "a version", Hint: "use at most 40 letters, digits, dots and dashes"},
		"arch":       {Enum: Arches()},
		"base":       {Enum: Bases()},

		"oci":         {ExactlyOne: []string{"layout", "archive", "image"}},
		"oci.layout":  local,
		"oci.archive": local,
		"oci.image": {
			Pattern: pinnedPattern, MaxLength: 400, What: "an image reference with a digest",
			Hint: "use one like registry.example/os@sha256:... with 64 hexadecimal digits",
		},

		"debian.suite": {Enum: []string{"bookworm"}},
		"debian.mirror": {
			Pattern: mirrorPattern, What: "the address of a mirror",
			Hint: "use http://host or https://host; /debian and /debian-security are added",
		},

		"kernel.package":   {Pattern: kernelPattern, What: "a kernel package", Hint: "use one like linux-image-cloud-amd64"},
		"kernel.initrd[]":  module,
		"kernel.root[]":    module,
		"kernel.cmdline[]": {Pattern: paramPattern, What: "one kernel parameter", Hint: "use NAME or NAME=VALUE without spaces and quotes", Not: `^(root|init|rdinit|sealift\.roothash)(=|$)`, NotWhy: "set by the image builder"},

		"kernel.initrd": {Unique: true},
		"kernel.root":   {Unique: true},
		"packages":      {Unique: true},
		"packages[]":    {Pattern: packagePattern, What: "the name of a Debian package"},

		"files[]":         {ExactlyOne: []string{"content", "source"}},
		"files[].path":    {Required: true, Pattern: absPattern, MaxLength: 1024, What: "an absolute path", Not: uncleanAbs + "|" + reservedPaths, NotWhy: "not a clean path, or is the image builder's, or below a mount point"},
		"files[].mode":    {Pattern: modePattern, What: "the mode of a file", Hint: `use octal permission bits in quotes, like "0644"`},
		"files[].source":  source,
		"files[].content": {},

		"users[].name":  {Required: true, Pattern: userPattern, What: "the name of a user", Not: `^(root|nobody|nogroup|tty)$`, NotWhy: "in every image already", Hint: "use at most 32 lower-case letters, digits, dashes and underscores"},
		"users[].uid":   {Required: true, Min: 1000, Max: 59999},
		"users[].shell": {Pattern: absPattern, MaxLength: 1024, Not: uncleanAbs, What: "the absolute path of a program", NotWhy: "not a clean path"},

		"kubernetes.distro":     {Enum: Distros()},
		"kubernetes.version":    {Required: true, Pattern: releasePattern, MaxLength: 40, What: "a version of Kubernetes", Hint: "use one like v1.34.4"},
		"kubernetes.source":     {Enum: []string{SourceModules, SourceRelease}},
		"kubernetes.mirror":     {Pattern: mirrorPattern, What: "the address of a mirror", Hint: "use https://host or https://host/path; the paths of the vendor's server are added"},
		"kubernetes.podCIDR":    {Pattern: cidrPattern, What: "an IPv4 network of 8 to 28 bits", Hint: "use one like 10.88.0.0/24"},
		"kubernetes.clusterDNS": {Pattern: ipv4Pattern, What: "an IPv4 address"},
		"kubernetes.clusterDomain": {
			Pattern: domainPattern, MaxLength: 253, What: "a domain name",
		},

		"preload.images[]":         {AtMostOne: []string{"from", "archive", "layout", "go"}},
		"preload.images[].name":    {Required: true, Pattern: imagePattern, MaxLength: 255, What: "a full image reference", Hint: "use one like docker.io/library/app:v1"},
		"preload.images[].from":    {Pattern: fromPattern, MaxLength: 255, What: "a full image reference", Hint: "use one like registry.example:5000/app:v1, or with @sha256:"},
		"preload.images[].archive": local,
		"preload.images[].layout":  local,
		"preload.images[].go":      local,
		"preload.exclude":          {Unique: true},
		"preload.exclude[]":        {Pattern: excludePattern, What: "a pattern of image references", Hint: "use one like *traefik*"},

		"preload.manifests[]":         {ExactlyOne: []string{"content", "source"}},
		"preload.manifests[].name":    {Required: true, Pattern: manifestNames, What: "the name of a manifest", Hint: "use at most 63 lower-case letters, digits, dots and dashes"},
		"preload.manifests[].source":  source,
		"preload.manifests[].content": {},

		"disk.esp":    size(64), // FAT32 needs as much
		"disk.slot":   size(64),
		"disk.verity": size(1),
		"disk.uki":    size(1),

		"attest.url": {Required: true, Pattern: servicePattern, What: "the address of an attestation service", Hint: "use https://host:port"},
		"attest.ca":  source,

		"install.minDisk": {Min: 1, Max: 1 << 30, Unit: "MiB"},

		"hardware[]":                   {NotEmpty: true},
		"hardware[].manufacturer":      smbios,
		"hardware[].product":           smbios,
		"hardware[].version":           smbios,
		"hardware[].boardManufacturer": smbios,
		"hardware[].boardProduct":      smbios,
		"hardware[].biosVendor":        smbios,

		"policy.policy":                                {Min: 1, Max: 1},
		"policy.name":                                  {Pattern: labelPattern, MaxLength: 40, What: "a name", Hint: "use at most 40 lower-case letters, digits and dashes"},
		"policy.version":                               {Min: 1, Max: 1 << 30},
		"policy.notBefore":                             day,
		"policy.notAfter":                              day,
		"policy.images[].name":                         {Required: true, Pattern: labelPattern, MaxLength: 40, What: "the name of an image"},
		"policy.images[].minimum":                      {Pattern: versionPattern, What: "a version"},
		"policy.images[].denied[].version":             {Required: true, Pattern: versionPattern, What: "a version"},
		"policy.images[].denied[].reason":              text,
		"policy.images[].manifests":                    {Unique: true},
		"policy.images[].manifests[]":                  digest,
		"policy.secureBoot.dbx":                        {ExactlyOne: []string{"any", "digests", "superset"}},
		"policy.secureBoot.dbx.digests":                {Unique: true},
		"policy.secureBoot.dbx.digests[]":              digest,
		"policy.secureBoot.dbx.superset.file":          source,
		"policy.secureBoot.dbx.superset.sha256":        digest,
		"policy.tpm.allowed":                           {Unique: true},
		"policy.tpm.allowed[]":                         {Enum: []string{"hardware", "firmware", "virtual", "software"}},
		"policy.tpm.firmware[].vendor":                 need(vendor),
		"policy.tpm.firmware[].minimum":                need(tpmFirmware),
		"policy.tpm.firmware[].reason":                 text,
		"policy.tpm.proveBanks":                        {Enum: []string{string(BankProofAsk), string(BankProofRequire)}},
		"policy.firmware.release":                      {Unique: true},
		"policy.firmware.release[]":                    {Enum: []string{"measured", "cross-checked", "claimed only"}},
		"policy.firmware.models[].vendor":              text,
		"policy.firmware.models[].product":             text,
		"policy.firmware.models[].pattern":             {Pattern: localPattern, MaxLength: 200, What: "a regular expression"},
		"policy.firmware.models[].minimum[].version":   need(firmware),
		"policy.firmware.models[].minimum[].from":      day,
		"policy.firmware.models[].minimum[].reason":    text,
		"policy.firmware.models[].denied[].version":    need(firmware),
		"policy.firmware.models[].denied[].reason":     text,
		"policy.firmware.models[].notBefore":           day,
		"policy.firmware.models[].components[].pcr":    {Required: true, Min: 1, Max: 7},
		"policy.firmware.models[].components[].sha256": need(digest),
		"policy.firmware.models[].components[].name":   text,
		"policy.firmware.models[].configuration":       {Enum: []string{"any", "listed"}},
	}
	for _, list := range []string{"policy.tpm.bankExemptions[]", "policy.tpm.withoutSHA256[]"} {
		rules[list] = Rule{ExactlyOne: []string{"vendor", "machine"}}
		rules[list+".vendor"] = vendor
		rules[list+".model"] = text
		rules[list+".below"] = tpmFirmware
		rules[list+".machine"] = Rule{Pattern: digestPattern, What: "the id of a machine", Hint: "use 64 lower-case hexadecimal digits: sealift machine list shows them"}
		rules[list+".reason"] = need(text)
	}
	return rules
}

// checkRules holds every field against its rule. present says whether a field
// is there, so that a value that was written out is checked even if it is the
// zero value, which stands for a missing one.
func (p *Profile) checkRules(r report, present func(field string) bool) {
	c := ruleCheck{rules: Rules(), report: r, present: present}
	c.mapping(reflect.ValueOf(p).Elem(), "", "")
}

type ruleCheck struct {
	rules   map[string]Rule
	report  report
	present func(field string) bool
}

// mapping checks a struct. field is where it is, with indexes; path is the same
// as Rules has it.
func (c *ruleCheck) mapping(v reflect.Value, field, path string) {
	var set []string
	for i := range v.NumField() {
		name := yamlName(v.Type().Field(i))
		if name == "" {
			continue
		}
		f := join(field, name)
		if c.present(f) || !v.Field(i).IsZero() {
			set = append(set, name)
		}
		c.value(v.Field(i), f, join(path, name))
	}
	rule := c.rules[path]
	if len(rule.ExactlyOne) > 0 && (len(set) > 0 || c.present(field) || strings.HasSuffix(field, "]")) {
		if n := count(set, rule.ExactlyOne); n != 1 {
			c.report(field, fmt.Sprintf("%d of %s are set, want exactly one", n, strings.Join(rule.ExactlyOne, ", ")), "")
		}
	}
	if n := count(set, rule.AtMostOne); n > 1 {
		c.report(field, fmt.Sprintf("%d of %s are set, want at most one", n, strings.Join(rule.AtMostOne, ", ")), "")
	}
	if rule.NotEmpty && len(set) == 0 {
		c.report(field, "no field is set", "")
	}
}

func count(set, of []string) int {
	n := 0
	for _, name := range set {
		if slices.Contains(of, name) {
			n++
		}
	}
	return n
}

func (c *ruleCheck) value(v reflect.Value, field, path string) {
	switch v.Kind() {
	case reflect.Struct:
		c.mapping(v, field, path)
	case reflect.Slice:
		seen := map[any]bool{}
		for i := range v.Len() {
			if c.rules[path].Unique {
				if e := v.Index(i).Interface(); seen[e] {
					c.report(fmt.Sprintf("%s[%d]", field, i), fmt.Sprintf("%v is listed twice", e), "")
				} else {
					seen[e] = true
				}
			}
			c.value(v.Index(i), fmt.Sprintf("%s[%d]", field, i), path+"[]")
		}
	case reflect.String, reflect.Int:
		rule, ok := c.rules[path]
		// The entries of a list are always there.
		there := c.present(field) || !v.IsZero() || strings.HasSuffix(path, "]")
		if v.Type() == reflect.TypeFor[BankProof]() {
			there = !v.IsZero() // false is none of its words
		}
		switch {
		case !ok:
		case there && v.Kind() == reflect.String:
			rule.checkString(c.report, field, v.String())
		case there:
			rule.checkInt(c.report, field, v.Int())
		case rule.Required && len(rule.Enum) == 1:
			c.report(field, fmt.Sprintf("missing, want %q", rule.Enum[0]), "")
		case rule.Required:
			c.report(field, "missing", rule.Hint)
		}
	}
}

func (r *Rule) checkString(report report, field, s string) {
	switch {
	case len(r.Enum) == 1 && s != r.Enum[0]:
		report(field, fmt.Sprintf("got %q, want %q", s, r.Enum[0]), "")
	case len(r.Enum) > 1:
		oneOf(report, field, s, r.Enum)
	case r.Pattern != "" && !matches(r.Pattern, s), r.MaxLength > 0 && len([]rune(s)) > r.MaxLength:
		report(field, fmt.Sprintf("%.300q is not %s", s, r.What), r.Hint)
	case r.Not != "" && matches(r.Not, s):
		report(field, fmt.Sprintf("%s is %s", s, r.NotWhy), "")
	}
}

func (r *Rule) checkInt(report report, field string, n int64) {
	if n < int64(r.Min) || (r.Max > 0 && n > int64(r.Max)) {
		report(field, strings.TrimSpace(fmt.Sprintf("%d %s", n, r.Unit))+fmt.Sprintf(" is not between %d and %d", r.Min, r.Max), r.Hint)
	}
}
