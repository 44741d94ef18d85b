package firmware

import (
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
)

// CampaignState is where a campaign stands.
type CampaignState string

// States of a Campaign.
const (
	// Open: machines of the wave may boot the old build or the new one.
	Open CampaignState = "open"
	// Proven: every machine of the wave has booted the new build, by
	// measurement, and the old build is refused from then on.
	Proven CampaignState = "proven"
)

// Campaign moves the machines of its wave from one build to another.
type Campaign struct {
	Name    string             `json:"name"`
	Vendor  string             `json:"vendor"`
	Product string             `json:"product"`
	From    string             `json:"from"` // version
	To      string             `json:"to"`   // version, in the catalogue and not denied
	Wave    []attest.MachineID `json:"wave"`

	State    CampaignState   `json:"state"`
	Opened   time.Time       `json:"opened"`
	Proofs   []CampaignProof `json:"proofs"` // in the order in which they came
	ProvenAt time.Time       `json:"provenAt,omitzero"`
}

// CampaignProof records that one machine booted the new build.
type CampaignProof struct {
	Machine attest.MachineID `json:"machine"`
	At      time.Time        `json:"at"`
}

var campaignName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// NewCampaign opens a campaign, or says what is wrong with it. Other campaigns
// are given so that two never pull one machine in two directions.
func NewCampaign(c Campaign, cat *Catalogue, others []Campaign, now time.Time) (*Campaign, error) {
	if !campaignName.MatchString(c.Name) {
		return nil, fmt.Errorf("campaign name %q: want lower-case letters, digits, dots and dashes, at most 63", c.Name)
	}
	if c.From == c.To {
		return nil, fmt.Errorf("campaign %s: leads from %s to itself", c.Name, c.From)
	}
	for _, v := range []string{c.From, c.To} {
		b := cat.find(c.Vendor, c.Product, v)
		if b == nil {
			return nil, fmt.Errorf("campaign %s: the catalogue has no build %s for %q %q", c.Name, v, c.Vendor, c.Product)
		}
		if b.Status == Denied {
			return nil, fmt.Errorf("campaign %s: build %s is denied in the catalogue", c.Name, v)
		}
	}
	if len(c.Wave) == 0 {
		return nil, fmt.Errorf("campaign %s: the wave has no machines", c.Name)
	}
	seen := map[attest.MachineID]bool{}
	for _, m := range c.Wave {
		if m.IsZero() || seen[m] {
			return nil, fmt.Errorf("campaign %s: machine %s is unset or listed twice", c.Name, m.Short())
		}
		seen[m] = true
	}
	for _, o := range others {
		if o.Name == c.Name {
			return nil, fmt.Errorf("campaign %s: exists already", c.Name)
		}
		if o.State != Open || o.Vendor != c.Vendor || o.Product != c.Product {
			continue
		}
		for _, m := range o.Wave {
			if seen[m] {
				return nil, fmt.Errorf("campaign %s: machine %s is still in the open campaign %s", c.Name, m.Short(), o.Name)
			}
		}
	}
	c.State, c.Opened, c.Proofs, c.ProvenAt = Open, now, nil, time.Time{}
	return &c, nil
}

// Observe takes the firmware verdict of an accepted boot. It returns the
// changed campaign and true if the boot proved something new. Only a measured
// verdict counts: a version that is merely claimed proves nothing.
func (c Campaign) Observe(machine attest.MachineID, fw attest.Firmware, now time.Time) (Campaign, bool) {
	if c.State != Open || fw.Verdict != attest.FirmwareMeasured ||
		fw.Version != c.To || fw.Vendor != c.Vendor || fw.Product != c.Product ||
		!slices.Contains(c.Wave, machine) || c.proved(machine) {
		return c, false
	}
	c.Proofs = append(slices.Clone(c.Proofs), CampaignProof{Machine: machine, At: now})
	if len(c.Proofs) == len(c.Wave) {
		c.State, c.ProvenAt = Proven, now
	}
	return c, true
}

func (c *Campaign) proved(machine attest.MachineID) bool {
	return slices.ContainsFunc(c.Proofs, func(p CampaignProof) bool { return p.Machine == machine })
}

// apply changes what a reference says for a machine of the wave.
func (c *Campaign) apply(r *attest.FirmwareReference, machine attest.MachineID) {
	if r.Vendor != c.Vendor || r.Product != c.Product || !slices.Contains(c.Wave, machine) {
		return
	}
	switch {
	case r.Version == c.To:
		r.Status, r.Reason = attest.FirmwareAllowed, "campaign "+c.Name
	case r.Version == c.From && c.State == Open:
		r.Status, r.Reason = attest.FirmwareAllowed, "campaign "+c.Name+" is open"
	case r.Version == c.From && c.State == Proven:
		r.Status, r.Reason = attest.FirmwareDenied, "campaign "+c.Name+" is proven: the fleet has moved to "+c.To
	}
}
