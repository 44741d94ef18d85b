package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Ways of a Boot.
const (
	BootDisk         = "disk"          // from the boot entry that the installer wrote, Secure Boot on
	BootNetwork      = "network"       // by PXE or HTTP, Secure Boot on
	BootNetworkSetup = "network-setup" // the same on firmware in setup mode, so with Secure Boot off
)

// Boot is one way of starting one of the image's UKIs, and what firmware, stub
// and kernel then measure of it into PCR 4, 5, 7, 9, 11, 12 and 13, up to the
// first program of the initramfs.
type Boot struct {
	Way        string `json:"way"`
	Artifact   string `json:"artifact"` // kind of the UKI: KindUKI, KindInstaller
	SecureBoot bool   `json:"secureBoot"`
	// Enrolment names the bundle of Secure Boot keys that the boot is
	// predicted for; see SecureBoot.Bundle. Unset without Secure Boot.
	Enrolment SHA256 `json:"enrolment"`
	PCRs      []PCR  `json:"pcrs"` // ascending
}

// PCR is the reference of one PCR: its events, and its final value in each bank
// where that does not depend on the machine.
type PCR struct {
	Index  int     `json:"pcr"`
	Events []Event `json:"events"` // in the order of measurement
	Values Digests `json:"values,omitempty"`
	// Assumes lists, for people, what has to hold for Values. DependsOn lists
	// what there would have to be known for a value where Values is empty.
	Assumes   []string `json:"assumes,omitempty"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

// Types of an Event, as the TCG PC Client Platform Firmware Profile names them.
const (
	TypeSeparator       = "EV_SEPARATOR"
	TypeEventTag        = "EV_EVENT_TAG"
	TypeIPL             = "EV_IPL"
	TypeVariableConfig  = "EV_EFI_VARIABLE_DRIVER_CONFIG"
	TypeBootApplication = "EV_EFI_BOOT_SERVICES_APPLICATION"
	TypeGPT             = "EV_EFI_GPT_EVENT"
	TypeAction          = "EV_EFI_ACTION"
	TypeAuthority       = "EV_EFI_VARIABLE_AUTHORITY"
)

// Event is one measurement.
type Event struct {
	Type    string  `json:"type"`
	Name    string  `json:"name"` // what is measured, for people
	Digests Digests `json:"digests,omitempty"`
	// DependsOn lists what the digests depend on that is not in the image.
	// With digests, they are those of the case that Name tells.
	DependsOn []string `json:"dependsOn,omitempty"`
}

// Digests has a digest, or a PCR's value, for each bank: bank name ("sha256",
// "sha384") to lower-case hex.
type Digests map[string]string

// PCR returns the reference of one PCR, or false.
func (b *Boot) PCR(index int) (PCR, bool) {
	for _, p := range b.PCRs {
		if p.Index == index {
			return p, true
		}
	}
	return PCR{}, false
}

// Boot returns the first boot of an artifact in one way, or false.
func (m *Manifest) Boot(artifact, way string) (Boot, bool) {
	for _, b := range m.Boots {
		if b.Artifact == artifact && b.Way == way {
			return b, true
		}
	}
	return Boot{}, false
}

// maxEvents bounds the events of one PCR. A UKI has two for each section.
const maxEvents = 128

func (b *Boot) check() error {
	last := -1
	for _, p := range b.PCRs {
		if p.Index <= last || p.Index > 23 {
			return fmt.Errorf("PCR %d after %d, want 0 to 23 in ascending order", p.Index, last)
		}
		last = p.Index
		if len(p.Events) > maxEvents {
			return fmt.Errorf("PCR %d: %d events, at most %d allowed", p.Index, len(p.Events), maxEvents)
		}
		if err := p.Values.check(); err != nil {
			return fmt.Errorf("PCR %d: %w", p.Index, err)
		}
		for i, e := range p.Events {
			if err := e.Digests.check(); err != nil {
				return fmt.Errorf("PCR %d, event %d (%s): %w", p.Index, i, e.Name, err)
			}
		}
	}
	return nil
}

func (d Digests) check() error {
	for bank, text := range d {
		size, ok := map[string]int{"sha256": 32, "sha384": 48}[bank]
		if !ok {
			return fmt.Errorf("bank is %q, want sha256 or sha384", bank)
		}
		if b, err := hex.DecodeString(text); err != nil || len(b) != size {
			return fmt.Errorf("digest in bank %s is %.200q, want %d hex digits", bank, text, 2*size)
		}
	}
	return nil
}

// Bundle names the enrolment: a SHA-256 over the digests of PK, KEK and db. Machines with the same bundle measure the same keys into PCR 7.
func (s *SecureBoot) Bundle() SHA256 {
	b := append(append(append([]byte("sealift enrolment v1\x00"), s.PK[:]...), s.KEK[:]...), s.DB[:]...)
	return sha256.Sum256(b)
}
