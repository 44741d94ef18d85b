package profiles

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

// MaxPolicy bounds a policy file, in bytes.
const MaxPolicy = 256 << 10

// MaxPolicyFile bounds a file that a policy names, in bytes. dbx of today has 25
// KiB.
const MaxPolicyFile = 1 << 20

// Bounds of lists in a policy. What a service does for one piece of evidence
// grows with them.
const (
	maxPolicyModels     = 1000
	maxPolicyComponents = 200
	maxPolicyEntries    = 200
)

// ParsePolicy reads a policy file strictly. Every fault is found in one run; the
// error is then a *FileError. The name of the file is used in errors only.
func ParsePolicy(file string, b []byte) (*Policy, error) {
	if len(b) > MaxPolicy {
		return nil, &FileError{File: file, Problems: []Problem{{Message: fmt.Sprintf("file of %d bytes, at most %d allowed", len(b), MaxPolicy)}}}
	}
	p := new(Policy)
	d := decodeStrict(file, b, p)
	if len(d.problems) == 0 {
		c := ruleCheck{rules: Rules(), report: d.at, present: func(field string) bool { _, ok := d.pos[field]; return ok }}
		c.mapping(reflect.ValueOf(p).Elem(), "", "policy")
		p.validate(d.at, "")
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// Encode returns the policy as the text of a file.
func (p *Policy) Encode() ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(yamlNode(reflect.ValueOf(*p))); err != nil {
		return nil, fmt.Errorf("encode policy: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("encode policy: %w", err)
	}
	return b.Bytes(), nil
}

// validate checks what no rule of one field can. at is what stands before the
// names of fields. A policy that is not there at all, in a profile, is valid.
func (p *Policy) validate(r report, at string) {
	if at != "" && reflect.ValueOf(*p).IsZero() {
		return
	}
	if at == "" && p.Format == 0 {
		r("policy", "missing: the version of this format", "write policy: 1")
	}
	if p.Version == 0 {
		r(at+"version", "missing", "write version: 1, and count on with each change")
	}
	if at == "" && p.Name == "" {
		r("name", "missing", "")
	}
	from, to := checkDay(r, at+"notBefore", p.NotBefore), checkDay(r, at+"notAfter", p.NotAfter)
	if !from.IsZero() && !to.IsZero() && to.Before(from) {
		r(at+"notAfter", fmt.Sprintf("%s is before notBefore, %s", p.NotAfter, p.NotBefore), "")
	}
	names := map[string]bool{}
	bound(r, at+"images", len(p.Images), maxPolicyEntries)
	for i, m := range p.Images {
		field := fmt.Sprintf("%simages[%d]", at, i)
		if names[m.Name] {
			r(field+".name", m.Name+" is listed twice", "")
		}
		names[m.Name] = true
		bound(r, field+".denied", len(m.Denied), maxPolicyEntries)
		bound(r, field+".manifests", len(m.Manifests), maxPolicyEntries)
	}
	dbx := p.SecureBoot.DBX
	field := at + "secureBoot.dbx"
	bound(r, field+".digests", len(dbx.Digests), maxPolicyEntries)
	switch {
	case reflect.ValueOf(dbx).IsZero():
		r(field, "missing", "set digests or superset, or any: true")
	case dbx.Superset != PolicyFile{} && (dbx.Superset.File == "" || dbx.Superset.SHA256 == ""):
		r(field+".superset", "it needs file and sha256", "sha256sum prints the digest")
	case dbx.Superset == PolicyFile{} && !dbx.Any && len(dbx.Digests) == 0:
		r(field, "no dbx is allowed", "set digests or superset, or any: true")
	}
	bound(r, at+"tpm.firmware", len(p.TPM.Firmware), maxPolicyEntries)
	for name, rules := range map[string][]PolicyTPMRule{"tpm.bankExemptions": p.TPM.BankExemptions, "tpm.withoutSHA256": p.TPM.WithoutSHA256} {
		bound(r, at+name, len(rules), maxPolicyEntries)
		for i, x := range rules {
			if x.Machine != "" && (x.Model != "" || x.Below != "") {
				r(fmt.Sprintf("%s%s[%d]", at, name, i), "model and below are of a vendor's TPMs", "leave them out beside machine")
			}
		}
	}
	bound(r, at+"firmware.models", len(p.Firmware.Models), maxPolicyModels)
	for i := range p.Firmware.Models {
		p.Firmware.Models[i].validate(r, fmt.Sprintf("%sfirmware.models[%d]", at, i))
	}
}

func (m *PolicyModel) validate(r report, field string) {
	if m.Pattern != "" {
		switch re, err := regexp.Compile(m.Pattern); {
		case err != nil:
			r(field+".pattern", err.Error(), "")
		case re.NumSubexp() != 1:
			r(field+".pattern", fmt.Sprintf("%d groups, want exactly one: what is compared", re.NumSubexp()), `use one like '\((\d+\.\d+) ?\)'`)
		}
	}
	checkDay(r, field+".notBefore", m.NotBefore)
	bound(r, field+".minimum", len(m.Minimum), maxPolicyEntries)
	for i, v := range m.Minimum {
		checkDay(r, fmt.Sprintf("%s.minimum[%d].from", field, i), v.From)
	}
	bound(r, field+".denied", len(m.Denied), maxPolicyEntries)
	bound(r, field+".components", len(m.Components), maxPolicyComponents)
	for i, c := range m.Components {
		if !slices.Contains([]int{1, 2, 3, 5, 6, 7}, c.PCR) {
			r(fmt.Sprintf("%s.components[%d].pcr", field, i), fmt.Sprintf("nothing can be allowed in PCR %d", c.PCR), "use 1, 2, 3, 5, 6 or 7")
		}
		if d, err := hex.DecodeString(c.SHA384); c.SHA384 != "" && (err != nil || len(d) != 48) {
			r(fmt.Sprintf("%s.components[%d].sha384", field, i), "it is not 96 hex digits", "sealift attest log prints the digest of each bank")
		}
	}
}

func bound(r report, field string, n, limit int) {
	if n > limit {
		r(field, fmt.Sprintf("%d entries, at most %d allowed", n, limit), "")
	}
}

// checkDay returns a day as midnight in UTC, the zero time if it is left out.
func checkDay(r report, field, s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		r(field, fmt.Sprintf("%q is no day", s), `use one like "2026-01-31"`)
	}
	return t
}
