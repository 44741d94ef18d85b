package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpmroots"
	"github.com/sealift/sealift/image/manifest"
)

// tpmConfig says which TPMs are believed; see docs/tpm-roots.md.
type tpmConfig struct {
	Allowed []attest.TPMClass `yaml:"allowed"` // hardware, firmware, virtual, software
	Vendors bool              `yaml:"vendors"` // the makers' roots that come with sealift
	Store   string            `yaml:"store"`   // directory in the form of tpmroots
	Roots   []rootConfig      `yaml:"roots"`

	Certificates           string `yaml:"certificates"` // directory of endorsement certificates of machines whose TPM has none
	AllowExpired           bool   `yaml:"allowExpired"` // endorsement certificates, not authorities
	RevocationLists        string `yaml:"revocationLists"`
	RequireRevocationLists bool   `yaml:"requireRevocationLists"`

	Bank   string         `yaml:"bank"` // PCR bank to appraise by: sha256 if left out, or sha384
	Denied []denialConfig `yaml:"denied"`
}

type rootConfig struct {
	Class        attest.TPMClass    `yaml:"class"`
	File         string             `yaml:"file"` // PEM
	Intermediate bool               `yaml:"intermediate"`
	Vendors      []attest.TPMVendor `yaml:"vendors"` // that it may vouch for; any if left out
}

// denialConfig denies TPM firmware. Versions are 64 bits in hex, as a result
// shows them.
type denialConfig struct {
	Vendor attest.TPMVendor `yaml:"vendor"`
	Model  string           `yaml:"model"`
	From   string           `yaml:"from"`
	To     string           `yaml:"to"`
	Reason string           `yaml:"reason"`
}

func (c *tpmConfig) resolve(at func(*string)) {
	at(&c.Store)
	at(&c.Certificates)
	at(&c.RevocationLists)
	for i := range c.Roots {
		at(&c.Roots[i].File)
	}
}

func (c *tpmConfig) need(need func(field string, given bool)) {
	need("tpm.allowed", len(c.Allowed) > 0)
	need("tpm.roots", len(c.Roots) > 0 || c.Vendors || c.Store != "")
	for i, r := range c.Roots {
		need(fmt.Sprintf("tpm.roots[%d].class", i), r.Class != "")
		need(fmt.Sprintf("tpm.roots[%d].file", i), r.File != "")
	}
	for i, d := range c.Denied {
		need(fmt.Sprintf("tpm.denied[%d].vendor", i), d.Vendor != 0)
		need(fmt.Sprintf("tpm.denied[%d].reason", i), d.Reason != "")
	}
	need("tpm.revocationLists", c.RevocationLists != "" || !c.RequireRevocationLists)
}

func (c *tpmConfig) check() error {
	for _, class := range c.Allowed {
		if !knownClass(class) {
			return fmt.Errorf("tpm.allowed: unknown class %q, want hardware, firmware, virtual or software", class)
		}
	}
	for i, r := range c.Roots {
		if !knownClass(r.Class) {
			return fmt.Errorf("tpm.roots[%d].class: unknown class %q, want hardware, firmware, virtual or software", i, r.Class)
		}
	}
	switch c.Bank {
	case "", "sha256", "sha384":
	default:
		return fmt.Errorf("tpm.bank is %q, want sha256 or sha384", c.Bank)
	}
	_, err := c.denied()
	return err
}

func knownClass(c attest.TPMClass) bool {
	switch c {
	case attest.TPMHardware, attest.TPMFirmware, attest.TPMVirtual, attest.TPMSoftware:
		return true
	}
	return false
}

func (c *tpmConfig) denied() ([]attest.TPMDenial, error) {
	var out []attest.TPMDenial
	for i, d := range c.Denied {
		denial := attest.TPMDenial{Vendor: d.Vendor, Model: d.Model, Reason: d.Reason}
		for _, v := range []struct {
			field, text string
			to          *uint64
		}{{"from", d.From, &denial.From}, {"to", d.To, &denial.To}} {
			if v.text == "" {
				continue
			}
			var err error
			if *v.to, err = strconv.ParseUint(strings.TrimPrefix(v.text, "0x"), 16, 64); err != nil || *v.to == 0 {
				return nil, fmt.Errorf("tpm.denied[%d].%s is %q, want a version as 64 bits in hex, such as 0x0007005500000000", i, v.field, v.text)
			}
		}
		if denial.To != 0 && denial.To < denial.From {
			return nil, fmt.Errorf("tpm.denied[%d]: to is %s, below from, %s", i, d.To, d.From)
		}
		out = append(out, denial)
	}
	return out, nil
}

// policy reads what the configuration names.
func (c *tpmConfig) policy() (attest.TPMPolicy, error) {
	p := attest.TPMPolicy{Allowed: c.Allowed, AllowExpired: c.AllowExpired, RequireRevocation: c.RequireRevocationLists}
	var err error
	if p.Denied, err = c.denied(); err != nil {
		return p, err
	}
	if c.Vendors {
		if p.Roots, err = tpmroots.Load(tpmroots.Vendors()); err != nil {
			return p, err
		}
	}
	if c.Store != "" {
		roots, err := tpmroots.Load(os.DirFS(c.Store))
		if err != nil {
			return p, withHint(fmt.Errorf("%s: %w", c.Store, err), "docs/tpm-roots.md says what a store of TPM roots has in it")
		}
		p.Roots = append(p.Roots, roots...)
	}
	for _, r := range c.Roots {
		b, err := readFile(r.File, maxSmall)
		if err != nil {
			return p, fmt.Errorf("read TPM root: %w", err)
		}
		found := false
		for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				continue
			}
			crt, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return p, fmt.Errorf("read TPM root %s: %w", r.File, err)
			}
			p.Roots = append(p.Roots, attest.TPMRoot{Class: r.Class, Certificate: crt, Intermediate: r.Intermediate, Vendors: r.Vendors})
			found = true
		}
		if !found {
			return p, fmt.Errorf("read TPM root %s: no certificate in it", r.File)
		}
	}
	if c.Certificates != "" {
		if p.Imported, err = tpmroots.Certificates(os.DirFS(c.Certificates)); err != nil {
			return p, fmt.Errorf("%s: %w", c.Certificates, err)
		}
	}
	if c.RevocationLists != "" {
		if p.Revocations, err = tpmroots.RevocationLists(os.DirFS(c.RevocationLists), p.Roots); err != nil {
			return p, fmt.Errorf("%s: %w", c.RevocationLists, err)
		}
	}
	return p, nil
}

// digestTPMPolicy returns a digest of everything that the policy says of TPMs but
// the imported certificates, for the policy's id.
func digestTPMPolicy(p *attest.TPMPolicy, bank string) (manifest.SHA256, error) {
	h := sha256.New()
	field := func(b []byte) { fmt.Fprintf(h, "%d:%s", len(b), b) }
	for _, r := range p.Roots {
		field(fmt.Appendf(nil, "%s %t %v", r.Class, r.Intermediate, r.Vendors))
		field(r.Certificate.Raw)
	}
	rest, err := json.Marshal(struct {
		Allowed      []attest.TPMClass
		AllowExpired bool
		Required     bool
		Lists        []string
		Denied       []attest.TPMDenial
		Bank         string
		// The ids of policies without these are as they were.
		ProveBanks     bool             `json:",omitempty"`
		AskBanks       bool             `json:",omitempty"`
		BankExemptions []attest.TPMRule `json:",omitempty"`
		WithoutSHA256  []attest.TPMRule `json:",omitempty"`
	}{p.Allowed, p.AllowExpired, p.RequireRevocation, slices.Sorted(slices.Values(p.Revocations.Digests())), p.Denied, bank, p.ProveBanks, p.AskBanks, p.BankExemptions, p.WithoutSHA256})
	if err != nil {
		return manifest.SHA256{}, fmt.Errorf("name the policy: %w", err)
	}
	field(rest)
	return manifest.SHA256(h.Sum(nil)), nil
}
