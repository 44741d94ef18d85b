// Package firmware decides which firmware builds a machine may boot. A
// Catalogue lists the known builds of each model with the digests that they
// measure into PCR 0; a Campaign moves machines from one build to another and
// is proven by what the machines measure, never by what they claim.
// References joins the two into the attest.FirmwarePolicy for one machine.
//
// All of it is pure: storage, time and the network belong to the callers.
package firmware

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// MaxCatalogue bounds a catalogue file, bytes.
const MaxCatalogue = 8 << 20

// Catalogue is the list of firmware builds that an owner knows.
type Catalogue struct {
	Models []Model `yaml:"models" json:"models"`
}

// Model is one kind of machine, as SMBIOS type 1 names it (DSP0134 7.2).
type Model struct {
	Vendor  string  `yaml:"vendor" json:"vendor"`   // manufacturer
	Product string  `yaml:"product" json:"product"` // product name
	Builds  []Build `yaml:"builds" json:"builds"`
}

// Status says whether a build may be booted.
type Status string

// Statuses of a Build. The zero value is refused when a catalogue is read.
const (
	Allowed   Status = "allowed"
	Candidate Status = "candidate" // allowed only for machines in an open or proven campaign to it
	Denied    Status = "denied"
)

// Build is one firmware release.
type Build struct {
	Version string `yaml:"version" json:"version"` // as SMBIOS type 0 shows it
	Date    string `yaml:"date,omitempty" json:"date,omitempty"`
	// Digests are of the firmware volumes that identify the build, as its
	// EV_EFI_PLATFORM_FIRMWARE_BLOB or _BLOB2 events carry them (TCG PC Client
	// PFP, 10.4.1). Volumes and `sealift firmware digest` compute them.
	Digests []manifest.SHA256 `yaml:"digests" json:"digests"`
	// SHA384 has the digests of the same volumes in the SHA-384 bank, in hex,
	// for machines whose SHA-256 bank is off. Optional.
	SHA384 []string `yaml:"sha384,omitempty" json:"sha384,omitempty"`
	// Unpinned counts the further blob events whose digest depends on the
	// machine's configuration.
	Unpinned int    `yaml:"unpinned,omitempty" json:"unpinned,omitempty"`
	Status   Status `yaml:"status" json:"status"`
	Reason   string `yaml:"reason,omitempty" json:"reason,omitempty"`
}

// ParseCatalogue reads a catalogue strictly; name is for error messages.
func ParseCatalogue(name string, b []byte) (*Catalogue, error) {
	if len(b) > MaxCatalogue {
		return nil, fmt.Errorf("read firmware catalogue %s: %d bytes, at most %d allowed", name, len(b), MaxCatalogue)
	}
	var c Catalogue
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.DisallowUnknownField()).Decode(&c); err != nil {
		return nil, fmt.Errorf("read firmware catalogue %s: %s", name, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("read firmware catalogue %s: %w", name, err)
	}
	return &c, nil
}

// Encode returns the catalogue as YAML.
func (c *Catalogue) Encode() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("encode firmware catalogue: %w", err)
	}
	return yaml.Marshal(c)
}

func (c *Catalogue) check() error {
	models := map[[2]string]bool{}
	for _, m := range c.Models {
		if m.Vendor == "" || m.Product == "" {
			return fmt.Errorf("a model needs both vendor and product (as in SMBIOS type 1), got %q and %q", m.Vendor, m.Product)
		}
		key := [2]string{m.Vendor, m.Product}
		if models[key] {
			return fmt.Errorf("model %q %q is listed twice", m.Vendor, m.Product)
		}
		models[key] = true
		versions := map[string]bool{}
		for _, b := range m.Builds {
			where := fmt.Sprintf("model %q %q, build %q", m.Vendor, m.Product, b.Version)
			switch {
			case b.Version == "":
				return fmt.Errorf("model %q %q: a build without a version", m.Vendor, m.Product)
			case versions[b.Version]:
				return fmt.Errorf("%s: the version is listed twice", where)
			case len(b.Digests) == 0:
				return fmt.Errorf("%s: no digests, so nothing could ever prove it", where)
			case b.Unpinned < 0 || b.Unpinned > 16:
				return fmt.Errorf("%s: unpinned is %d, want 0 to 16", where, b.Unpinned)
			}
			for _, d := range b.Digests {
				if d.IsZero() {
					return fmt.Errorf("%s: an empty digest", where)
				}
			}
			if len(b.SHA384) != 0 && len(b.SHA384) != len(b.Digests) {
				return fmt.Errorf("%s: %d SHA-384 digests, want one for each of %d volumes", where, len(b.SHA384), len(b.Digests))
			}
			for _, d := range b.SHA384 {
				if raw, err := hex.DecodeString(d); err != nil || len(raw) != 48 {
					return fmt.Errorf("%s: SHA-384 digest %.100q, want 96 hex digits", where, d)
				}
			}
			switch b.Status {
			case Allowed, Candidate, Denied:
			default:
				return fmt.Errorf("%s: status is %q, want allowed, candidate or denied", where, b.Status)
			}
			versions[b.Version] = true
		}
	}
	return nil
}

// find returns the build of that version for a model, or nil.
func (c *Catalogue) find(vendor, product, version string) *Build {
	for i := range c.Models {
		m := &c.Models[i]
		if m.Vendor != vendor || m.Product != product {
			continue
		}
		for j := range m.Builds {
			if m.Builds[j].Version == version {
				return &m.Builds[j]
			}
		}
	}
	return nil
}

// References returns what a machine may boot: the catalogue, changed by the
// campaigns that the machine is part of. A candidate build is allowed only
// where a campaign leads to it; the build that a proven campaign left behind
// is denied.
//
// Of two campaigns that say something of one build, the one opened later
// counts, in whatever order they are given: the build that one campaign led to
// is the one that the next leaves behind.
func References(c *Catalogue, campaigns []Campaign, machine attest.MachineID) attest.FirmwarePolicy {
	campaigns = slices.Clone(campaigns)
	slices.SortStableFunc(campaigns, func(a, b Campaign) int { return a.Opened.Compare(b.Opened) })
	var p attest.FirmwarePolicy
	for _, m := range c.Models {
		for _, b := range m.Builds {
			r := attest.FirmwareReference{
				Vendor: m.Vendor, Product: m.Product, Version: b.Version, Date: b.Date,
				Digests: b.Digests, SHA384: b.SHA384, Unpinned: b.Unpinned,
				Status: attest.FirmwareDenied, Reason: b.Reason,
			}
			switch b.Status {
			case Allowed:
				r.Status = attest.FirmwareAllowed
			case Candidate:
				r.Reason = "no campaign leads this machine to it"
			case Denied:
				if r.Reason == "" {
					r.Reason = "denied in the catalogue"
				}
			}
			for i := range campaigns {
				if b.Status != Denied {
					campaigns[i].apply(&r, machine)
				}
			}
			p.References = append(p.References, r)
		}
	}
	return p
}
