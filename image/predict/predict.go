// Package predict derives reference values (RFC 9334): what starting an image's
// UKIs measures into PCR 4, 5, 7, 9, 11, 12 and 13, event by event and in each
// bank. Boots makes the references that go into a manifest, GPTEvent and WithGPT
// add what differs from machine to machine, and Replay turns events into the
// value of a PCR.
//
// The order and content of events are those of the TCG PC Client Platform
// Firmware Profile (PFP) as EDK II implements it, of systemd-stub, and of the
// kernel's EFI stub. `sealift image test` compares them with a booted machine.
package predict

import (
	"crypto"
	_ "crypto/sha256" // the banks
	_ "crypto/sha512"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/uki"
)

// PCRs that are predicted.
func PCRs() []int { return []int{4, 5, 7, 9, 11, 12, 13} }

// Banks returns the names of the PCR banks that are predicted.
func Banks() []string { return []string{"sha256", "sha384"} }

func bankHash(bank string) (crypto.Hash, error) {
	switch bank {
	case "sha256":
		return crypto.SHA256, nil
	case "sha384":
		return crypto.SHA384, nil
	}
	return 0, fmt.Errorf("PCR bank is %q, want one of %q", bank, Banks())
}

// Strings that firmware measures as actions, without a NUL (PFP, "EV_EFI_ACTION
// Event Types").
const (
	actionCalling  = "Calling EFI Application from Boot Option"
	actionExit     = "Exit Boot Services Invocation"
	actionExitDone = "Exit Boot Services Returned with Success"
)

// Conditions and dependencies, as they stand in a manifest.
const (
	AssumesFirstOption = "the firmware tries no other boot option before this one"
	AssumesNoDBX       = "dbx is unset, as on a machine whose maker put nothing into it"
	AssumesNoDrivers   = "nothing but the UKI is verified: no option ROM, no driver"
	AssumesOneExit     = "the kernel leaves the boot services at the first try"
	AssumesNoTable     = "no partition table is read before, as none is for a boot from the network"

	DependsOnDiskGUID = "the disk's GUID, which the installer draws and the install record holds"
	DependsOnDiskSize = "the disk's size, which places the backup table"
	DependsOnState    = "the state partition, which the first boot adds: its GUID"
	DependsOnDBX      = "dbx, which firmware updates change"
	DependsOnKeys     = "the keys that the firmware's maker left in place"
)

// Input is what boots are predicted for. All fields are required unless marked
// Optional.
type Input struct {
	UKI        []byte             // of the disk, signed or not
	Installer  []byte             // Optional: an image may have none
	Enrolments []efivar.Enrolment // bundles of keys; one boot is predicted for each
}

// Boots returns the references of an image: its UKI from the disk, and its
// installer, if there is one, from the network, each with Secure Boot on and the
// keys of each enrolment, and the installer on firmware in setup mode.
func Boots(in Input) ([]manifest.Boot, error) {
	boots, err := in.boots()
	if err != nil {
		return nil, fmt.Errorf("predict boots: %w", err)
	}
	return boots, nil
}

func (in Input) boots() ([]manifest.Boot, error) {
	image, err := uki.Measure(in.UKI)
	if err != nil {
		return nil, err
	}
	var installer *uki.Measured
	if in.Installer != nil {
		if installer, err = uki.Measure(in.Installer); err != nil {
			return nil, fmt.Errorf("installer: %w", err)
		}
	}
	var boots []manifest.Boot
	add := func(b manifest.Boot, m *uki.Measured, keys *efivar.Enrolment) error {
		w := boot{Boot: b, measured: m, keys: keys}
		if err := w.predict(); err != nil {
			return fmt.Errorf("%s, %s: %w", b.Artifact, b.Way, err)
		}
		boots = append(boots, w.Boot)
		return nil
	}
	for _, e := range in.Enrolments {
		digests, err := e.SecureBoot()
		if err != nil {
			return nil, err
		}
		for _, b := range []struct {
			artifact, way string
			measured      *uki.Measured
		}{{manifest.KindUKI, manifest.BootDisk, image}, {manifest.KindInstaller, manifest.BootNetwork, installer}} {
			if b.measured == nil {
				continue
			}
			if err := add(manifest.Boot{Way: b.way, Artifact: b.artifact, SecureBoot: true, Enrolment: digests.Bundle()}, b.measured, &e); err != nil {
				return nil, err
			}
		}
	}
	if installer == nil {
		return boots, nil
	}
	return boots, add(manifest.Boot{Way: manifest.BootNetworkSetup, Artifact: manifest.KindInstaller}, installer, nil)
}

// boot predicts one boot.
type boot struct {
	manifest.Boot
	measured *uki.Measured
	keys     *efivar.Enrolment // nil with Secure Boot off
}

func (b *boot) predict() error {
	policy, err := b.policy()
	if err != nil {
		return err
	}
	b.PCRs = []manifest.PCR{
		b.applications(),
		b.partitions(),
		policy,
		{Index: 9, Events: []manifest.Event{
			event(manifest.TypeEventTag, "LOADED_IMAGE::LoadOptions: the kernel's command line, UTF-16 with a NUL", b.measured.LoadOptions),
			event(manifest.TypeEventTag, "Linux initrd: all initrds, as the stub concatenates them", b.measured.Initrd),
		}},
		b.sections(),
		{Index: 12, Events: []manifest.Event{}},
		{Index: 13, Events: []manifest.Event{}},
	}
	for i := range b.PCRs {
		if err := settle(&b.PCRs[i]); err != nil {
			return err
		}
	}
	return nil
}

// applications predicts PCR 4. Firmware measures an application by its
// Authenticode digest, which is the event's digest itself. The kernel inside is
// an application, too, but with Secure Boot on the stub vouches for it, so that
// firmware does not measure it.
func (b *boot) applications() manifest.PCR {
	application := func(name string, f *pe.File) manifest.Event {
		e := manifest.Event{Type: manifest.TypeBootApplication, Name: name, Digests: manifest.Digests{}}
		for _, bank := range Banks() {
			h, _ := bankHash(bank) // of Banks
			e.Digests[bank] = hex.EncodeToString(f.AuthenticodeWith(h.New()))
		}
		return e
	}
	p := manifest.PCR{Index: 4, Assumes: []string{AssumesFirstOption}, Events: []manifest.Event{
		event(manifest.TypeAction, actionCalling, []byte(actionCalling)),
		separator(),
		application("the UKI, by its Authenticode digest", b.measured.UKI),
	}}
	if !b.SecureBoot {
		p.Events = append(p.Events, application("the kernel in the UKI, by its Authenticode digest", b.measured.Kernel))
	}
	return p
}

// partitions predicts PCR 5.
func (b *boot) partitions() manifest.PCR {
	p := manifest.PCR{Index: 5, Events: []manifest.Event{separator()}, Assumes: []string{AssumesOneExit}}
	if b.Way == manifest.BootDisk {
		p.Events = append(p.Events, manifest.Event{
			Type: manifest.TypeGPT, Name: "the partition table of the boot disk",
			DependsOn: []string{DependsOnDiskGUID, DependsOnDiskSize, DependsOnState},
		})
	} else {
		p.Assumes = append(p.Assumes, AssumesNoTable)
	}
	p.Events = append(p.Events,
		event(manifest.TypeAction, actionExit, []byte(actionExit)),
		event(manifest.TypeAction, actionExitDone, []byte(actionExitDone)))
	return p
}

// policy predicts PCR 7 (PFP, "PCR[7] - Secure Boot Policy Measurements").
func (b *boot) policy() (manifest.PCR, error) {
	p := manifest.PCR{Index: 7}
	lists := map[efivar.Variable][]byte{efivar.SecureBoot: {0}}
	if b.keys != nil {
		var err error
		if lists, err = b.keys.Lists(); err != nil {
			return p, err
		}
		lists[efivar.SecureBoot] = []byte{1}
		p.Assumes = []string{AssumesNoDBX, AssumesNoDrivers}
	}
	for _, v := range []efivar.Variable{efivar.SecureBoot, efivar.PK, efivar.KEK, efivar.DB, efivar.DBX} {
		data, err := efivar.Event(v, lists[v])
		if err != nil {
			return p, err
		}
		e := event(manifest.TypeVariableConfig, string(v), data)
		switch {
		case v == efivar.DBX:
			e.Name, e.DependsOn = "dbx, unset", []string{DependsOnDBX}
		case b.keys == nil && v == efivar.PK:
			e.Name = "PK, unset" // which is what setup mode means
		case b.keys == nil && v != efivar.SecureBoot:
			e.Digests, e.DependsOn = nil, []string{DependsOnKeys}
		}
		p.Events = append(p.Events, e)
	}
	p.Events = append(p.Events, separator())
	if b.keys != nil {
		data, err := b.keys.Authority()
		if err != nil {
			return p, err
		}
		p.Events = append(p.Events, event(manifest.TypeAuthority, "the certificate in db that the UKI was verified with", data))
	}
	return p, nil
}

// sections predicts PCR 11.
func (b *boot) sections() manifest.PCR {
	p := manifest.PCR{Index: 11}
	for _, s := range b.measured.Sections {
		p.Events = append(p.Events,
			event(manifest.TypeIPL, s.Name+": the name, with a NUL", append([]byte(s.Name), 0)),
			event(manifest.TypeIPL, s.Name+": the content", s.Content))
	}
	return p
}

func separator() manifest.Event {
	return event(manifest.TypeSeparator, "separator, four bytes of zero", make([]byte, 4))
}

// event returns an event whose digests are those of data.
func event(kind, name string, data []byte) manifest.Event {
	return manifest.Event{Type: kind, Name: name, Digests: digests(data)}
}

func digests(data []byte) manifest.Digests {
	d := manifest.Digests{}
	for _, bank := range Banks() {
		h, _ := bankHash(bank) // of Banks
		s := h.New()
		s.Write(data)
		d[bank] = hex.EncodeToString(s.Sum(nil))
	}
	return d
}

// settle computes a PCR's values, or says why there are none.
func settle(p *manifest.PCR) error {
	p.Values, p.DependsOn = nil, nil
	for _, e := range p.Events {
		if e.Digests == nil {
			for _, d := range e.DependsOn {
				if !slices.Contains(p.DependsOn, d) {
					p.DependsOn = append(p.DependsOn, d)
				}
			}
		}
	}
	if p.DependsOn != nil {
		return nil
	}
	p.Values = manifest.Digests{}
	for _, bank := range Banks() {
		v, err := Replay(bank, p.Events)
		if err != nil {
			return fmt.Errorf("PCR %d: %w", p.Index, err)
		}
		p.Values[bank] = v
	}
	return nil
}

// Replay returns the value, in hex, that events lead a PCR of a bank to from
// zero.
func Replay(bank string, events []manifest.Event) (string, error) {
	h, err := bankHash(bank)
	if err != nil {
		return "", err
	}
	value := make([]byte, h.Size())
	for i, e := range events {
		d, err := hex.DecodeString(e.Digests[bank])
		if err != nil || len(d) != h.Size() {
			return "", fmt.Errorf("event %d (%s) has no %s digest", i, e.Name, bank)
		}
		s := h.New()
		s.Write(value)
		s.Write(d)
		value = s.Sum(value[:0])
	}
	return hex.EncodeToString(value), nil
}
