// Package policy makes an attest.Policy of a policy file and of what it judges:
// signed manifests of images, known firmware and trusted roots of TPMs. Parse
// reads the file, Document.Compile applies it, and Lint says what it does not
// cover. docs/policy.md describes the file.
//
// The package is pure: reading files, verifying signatures, the store and the
// time belong to the callers.
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// MaxFile bounds a file that a policy names, in bytes.
const MaxFile = profiles.MaxPolicyFile

// Document is a policy with the files that belong to it. Make it with Parse.
type Document struct {
	*profiles.Policy
	Text   []byte
	Digest manifest.SHA256 // of Text, which binds the files too
	dbx    []byte          // EFI_SIGNATURE_LISTs
}

// Parse reads a policy. name is that of its file, for errors; read returns a
// file beside it. Parse checks that each file is the one that the policy means.
func Parse(name string, text []byte, read func(name string) ([]byte, error)) (*Document, error) {
	p, err := profiles.ParsePolicy(name, text)
	if err != nil {
		return nil, err
	}
	d := &Document{Policy: p, Text: text, Digest: sha256.Sum256(text)}
	for i, v := range p.TPM.Firmware {
		if _, err := tpmMinimum(v); err != nil {
			return nil, fmt.Errorf("policy %s: tpm.firmware[%d]: %w", name, i, err)
		}
	}
	for i, v := range slices.Concat(p.TPM.BankExemptions, p.TPM.WithoutSHA256) {
		if _, err := tpmRule(v); err != nil {
			list := "bankExemptions"
			if n := len(p.TPM.BankExemptions); i >= n {
				list, i = "withoutSHA256", i-n
			}
			return nil, fmt.Errorf("policy %s: tpm.%s[%d]: %w", name, list, i, err)
		}
	}
	f := p.SecureBoot.DBX.Superset
	if f.File == "" {
		return d, nil
	}
	b, err := read(f.File)
	if err != nil {
		return nil, fmt.Errorf("policy %s: secureBoot.dbx.superset: %w", name, err)
	}
	if len(b) > MaxFile {
		return nil, fmt.Errorf("policy %s: secureBoot.dbx.superset: %s has %d bytes, at most %d allowed", name, f.File, len(b), MaxFile)
	}
	if got := manifest.SHA256(sha256.Sum256(b)); got.String() != f.SHA256 {
		return nil, fmt.Errorf("policy %s: secureBoot.dbx.superset: %s has the SHA-256 %s, want %s", name, f.File, got, f.SHA256)
	}
	if d.dbx, err = attest.SignatureLists(b); err != nil {
		return nil, fmt.Errorf("policy %s: secureBoot.dbx.superset: %s: %w", name, f.File, err)
	}
	return d, nil
}

// Files are the names of the files that the policy of a text needs, or nothing
// for a text that is no policy.
func Files(text []byte) []string {
	p, err := profiles.ParsePolicy("", text)
	if err != nil || p.SecureBoot.DBX.Superset.File == "" {
		return nil
	}
	return []string{path.Clean(p.SecureBoot.DBX.Superset.File)}
}

// String names the policy for people and for the audit log.
func (d *Document) String() string { return fmt.Sprintf("%s version %d", d.Name, d.Version) }

// Image is a manifest whose signature was verified.
type Image struct {
	Manifest *manifest.Manifest
	Digest   manifest.SHA256 // of its bytes
}

// Inputs are what a policy judges.
type Inputs struct {
	Images   []Image
	TPM      attest.TPMPolicy
	Firmware attest.FirmwarePolicy // the catalogue, as campaigns change it for the machine
	At       time.Time             // for what counts from a day on
}

// Compile applies the policy. Without a document every image, every dbx and
// all firmware of the inputs is allowed. The policy that it returns has no ID.
func (d *Document) Compile(in Inputs) (*attest.Policy, error) {
	p := &attest.Policy{TPM: in.TPM, Firmware: in.Firmware}
	if d == nil {
		for _, i := range in.Images {
			p.Images = append(p.Images, i.Manifest)
		}
		return p, nil
	}
	p.NotInForce = d.notInForce(in.At)
	for _, i := range in.Images {
		if reason := d.refuses(i); reason != "" {
			p.DeniedImages = append(p.DeniedImages, attest.DeniedImage{Manifest: i.Manifest, Reason: reason})
		} else {
			p.Images = append(p.Images, i.Manifest)
		}
	}
	for _, text := range d.SecureBoot.DBX.Digests {
		digest, err := parseDigest(text)
		if err != nil {
			return nil, fmt.Errorf("policy %s: secureBoot.dbx: %w", d, err)
		}
		p.DBX = append(p.DBX, digest)
	}
	p.DBXSuperset = d.dbx
	if len(d.TPM.Allowed) > 0 {
		p.TPM.Allowed = nil
		for _, c := range d.TPM.Allowed {
			p.TPM.Allowed = append(p.TPM.Allowed, attest.TPMClass(c))
		}
	}
	p.TPM.ProveBanks = p.TPM.ProveBanks || d.TPM.ProveBanks == profiles.BankProofRequire
	p.TPM.AskBanks = p.TPM.AskBanks || d.TPM.ProveBanks == profiles.BankProofAsk
	for _, l := range []struct {
		name string
		to   *[]attest.TPMRule
		from []profiles.PolicyTPMRule
	}{
		{"bankExemptions", &p.TPM.BankExemptions, d.TPM.BankExemptions},
		{"withoutSHA256", &p.TPM.WithoutSHA256, d.TPM.WithoutSHA256},
	} {
		*l.to = slices.Clone(*l.to)
		for _, v := range l.from {
			x, err := tpmRule(v)
			if err != nil {
				return nil, fmt.Errorf("policy %s: tpm.%s: %w", d, l.name, err)
			}
			*l.to = append(*l.to, x)
		}
	}
	p.TPM.Denied = slices.Clone(in.TPM.Denied)
	for _, v := range d.TPM.Firmware {
		rule, err := tpmMinimum(v)
		if err != nil {
			return nil, fmt.Errorf("policy %s: tpm.firmware: %w", d, err)
		}
		if rule.To > 0 {
			p.TPM.Denied = append(p.TPM.Denied, rule)
		}
	}
	for _, v := range d.Firmware.Release {
		p.Firmware.Release = append(p.Firmware.Release, attest.FirmwareVerdict(v))
	}
	for i := range d.Firmware.Models {
		r, err := compileModel(&d.Firmware.Models[i], in.At)
		if err != nil {
			return nil, fmt.Errorf("policy %s: firmware.models[%d]: %w", d, i, err)
		}
		p.Models = append(p.Models, *r)
	}
	return p, nil
}

// day returns a day of a policy that was parsed.
func day(s string) time.Time {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return time.Time{}
	}
	return t
}

// notInForce says why the policy is not in force at a time. Days are in UTC.
func (d *Document) notInForce(at time.Time) string {
	switch {
	case d.NotBefore != "" && at.Before(day(d.NotBefore)):
		return fmt.Sprintf("policy %s is in force from %s on", d, d.NotBefore)
	case d.NotAfter != "" && !at.Before(day(d.NotAfter).AddDate(0, 0, 1)):
		return fmt.Sprintf("policy %s ended on %s", d, d.NotAfter)
	}
	return ""
}

// refuses says why an image may not run, or nothing.
func (d *Document) refuses(i Image) string {
	k := slices.IndexFunc(d.Images, func(r profiles.PolicyImage) bool { return r.Name == i.Manifest.Name })
	if k < 0 {
		return fmt.Sprintf("policy %s does not list this image", d)
	}
	return refuses(&d.Images[k], i)
}

func refuses(r *profiles.PolicyImage, i Image) string {
	version := i.Manifest.Version
	for _, v := range r.Denied {
		if c, err := attest.CompareVersions(version, v.Version); err == nil && c == 0 || v.Version == version {
			return strings.TrimSuffix(fmt.Sprintf("version %s is denied: %s", version, v.Reason), ": ")
		}
	}
	if r.Minimum != "" {
		switch c, err := attest.CompareVersions(version, r.Minimum); {
		case err != nil:
			return fmt.Sprintf("it cannot be compared with the minimum %s: %v", r.Minimum, err)
		case c < 0:
			return fmt.Sprintf("version %s is below the minimum %s", version, r.Minimum)
		}
	}
	if len(r.Manifests) > 0 && !slices.Contains(r.Manifests, i.Digest.String()) {
		return fmt.Sprintf("its manifest %s is none of those that the policy names", i.Digest)
	}
	if i.Manifest.Debug && !r.Debug {
		return "it is marked debug"
	}
	return ""
}

// compileModel applies what is in force at a time.
func compileModel(m *profiles.PolicyModel, at time.Time) (*attest.ModelRule, error) {
	r := &attest.ModelRule{Vendor: m.Vendor, Product: m.Product, NotBefore: day(m.NotBefore), Configuration: m.Configuration == "listed"}
	var err error
	if m.Pattern != "" {
		if r.Version, err = regexp.Compile(m.Pattern); err != nil {
			return nil, err
		}
	}
	for _, v := range m.Minimum {
		if v.From == "" || !at.Before(day(v.From)) {
			r.Minimum = append(r.Minimum, attest.FirmwareMinimum{Version: v.Version, Reason: v.Reason})
		}
	}
	for _, v := range m.Denied {
		r.Denied = append(r.Denied, attest.FirmwareDenial{Version: v.Version, Reason: v.Reason})
	}
	for _, c := range m.Components {
		digest, err := parseDigest(c.SHA256)
		if err != nil {
			return nil, err
		}
		sha384, err := hex.DecodeString(c.SHA384)
		if err != nil {
			return nil, fmt.Errorf("component %q: sha384: %w", c.Name, err)
		}
		r.Components = append(r.Components, attest.Component{PCR: c.PCR, SHA256: digest, SHA384: sha384, Name: c.Name})
	}
	return r, nil
}

func parseDigest(s string) (manifest.SHA256, error) {
	var d manifest.SHA256
	if err := d.UnmarshalText([]byte(s)); err != nil {
		return d, err
	}
	if d.IsZero() {
		return d, errors.New("an empty digest")
	}
	return d, nil
}

// tpmMinimum denies all versions below a minimum.
func tpmMinimum(v profiles.PolicyTPMFirmware) (attest.TPMDenial, error) {
	vendor, err := attest.ParseTPMVendor(v.Vendor)
	if err != nil {
		return attest.TPMDenial{}, err
	}
	minimum, err := TPMFirmware(v.Minimum)
	if err != nil || minimum == 0 {
		return attest.TPMDenial{}, err
	}
	reason := "it is below the minimum " + v.Minimum
	if v.Reason != "" {
		reason += ", " + v.Reason
	}
	return attest.TPMDenial{Vendor: vendor, To: minimum - 1, Reason: reason}, nil
}

// tpmRule reads which TPMs a rule is for.
func tpmRule(v profiles.PolicyTPMRule) (attest.TPMRule, error) {
	x := attest.TPMRule{Model: v.Model, Reason: v.Reason}
	var err error
	if v.Machine != "" {
		if x.Machine, err = attest.ParseMachineID(v.Machine); err == nil && x.Machine.IsZero() {
			err = errors.New("machine: no machine has this id")
		}
		return x, err
	}
	if x.Vendor, err = attest.ParseTPMVendor(v.Vendor); err != nil {
		return x, err
	}
	if x.Vendor == 0 {
		return x, errors.New("vendor: no maker has this id")
	}
	if v.Below == "" {
		return x, nil
	}
	if x.Below, err = TPMFirmware(v.Below); err == nil && x.Below == 0 {
		err = errors.New("below: no version is below 0")
	}
	return x, err
}

// TPMFirmware reads a version of a TPM's firmware: up to four numbers of 16 bits
// with dots between, the first in the highest bits, or 0x and hex digits.
func TPMFirmware(s string) (uint64, error) {
	if digits, ok := strings.CutPrefix(s, "0x"); ok {
		return strconv.ParseUint(digits, 16, 64)
	}
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return 0, fmt.Errorf("TPM firmware %.40q: %d numbers, want at most 4", s, len(parts))
	}
	var v uint64
	for i := range 4 {
		var n uint64
		if i < len(parts) {
			var err error
			if n, err = strconv.ParseUint(parts[i], 10, 16); err != nil {
				return 0, fmt.Errorf("TPM firmware %.40q: %w", s, err)
			}
		}
		v = v<<16 | n
	}
	return v, nil
}
