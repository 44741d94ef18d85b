package server

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// effectPromoted is what the effect of a promotion ends with, in the audit log.
const effectPromoted = ", as the install record said"

// maxFormer bounds how many former disks' keys a record keeps.
const maxFormer = 4

// FormerDisk is what is kept of a disk that another install replaced.
type FormerDisk struct {
	DiskGUID  string     `json:"diskGUID"`
	DiskKey   *SealedKey `json:"diskKey"`
	StateMade bool       `json:"stateMade"`
	// NextKey and Rotation are those of the machine when the disk was replaced:
	// its volume may be under either key.
	NextKey  *SealedKey           `json:"nextKey,omitempty"`
	Rotation *api.DiskKeyRotation `json:"rotation,omitempty"`
}

// reinstall notes an install record for a machine that is enrolled. Install
// records come over the factory's network, where anybody can repeat or forge
// one, so it changes nothing that counts: it is a candidate until the machine
// proves, with accepted evidence, that it booted from the disk named. A record
// that names the machine's present disk, or the candidate's, says nothing new.
func reinstall(m *Machine, by string, rec *api.InstallRecord) []audit.Event {
	if m.DiskGUID == rec.DiskGUID || m.Next != nil && m.Next.DiskGUID == rec.DiskGUID {
		return nil
	}
	m.Next = &api.Candidate{DiskGUID: rec.DiskGUID, Serial: rec.Serial, Installed: rec.Finished}
	return []audit.Event{installEvent(m, by, rec, true)}
}

func installEvent(m *Machine, by string, rec *api.InstallRecord, candidate bool) audit.Event {
	return audit.Event{Kind: audit.KindInstall, Machine: m.ID, Data: audit.Install{
		By: by, DiskGUID: rec.DiskGUID, PreviousDisk: m.DiskGUID, Serial: rec.Serial, UUID: rec.UUID, MAC: rec.MAC,
		Image: rec.Image, ManifestDigest: rec.ManifestDigest, SecureBoot: rec.SecureBoot, Finished: rec.Finished, Candidate: candidate,
	}}
}

// fromCandidate reports whether evidence from that disk, once accepted,
// promotes the candidate.
func (m *Machine) fromCandidate(disk string) bool { return m.Next != nil && m.Next.DiskGUID == disk }

// former returns what is kept of a disk, the zero value if nothing is.
func (m *Machine) former(disk string) FormerDisk {
	if i := slices.IndexFunc(m.Former, func(f FormerDisk) bool { return f.DiskGUID == disk }); i >= 0 {
		return m.Former[i]
	}
	return FormerDisk{}
}

// recorded returns what the record says to evidence from that disk.
//
// An installer may have cleared the TPM and so started its counters anew, made
// another attestation key, or set the TPM's firmware back; what is recorded of
// them does not bind the candidate. Nor does it bind a machine of which an
// operator said so. That the boot had its release already is then left to
// sameBoot.
func (m *Machine) recorded(disk string) *attest.Known {
	k := &attest.Known{
		State: m.State, StateReason: m.Reason, AKName: m.AKName, DiskGUID: m.DiskGUID, StateMade: m.StateMade,
		ResetCount: m.ResetCount, RestartCount: m.RestartCount, Clock: m.Clock, TPMFirmware: m.TPMFirmware, Released: m.Released,
	}
	if !m.Rebased {
		k.Banks = m.Banks
		if k.Banks == nil && m.Boot != nil { // its last release is of an earlier version
			k.Banks = slices.Sorted(maps.Keys(m.Boot.PCRs))
		}
	}
	k.BanksProven = m.banksProven()
	candidate := m.fromCandidate(disk)
	if candidate {
		k.DiskGUID, k.StateMade = disk, m.former(disk).StateMade
	}
	if candidate || m.Rebased {
		k.AKName, k.TPMFirmware = nil, 0
		k.ResetCount, k.RestartCount, k.Clock, k.Released = 0, 0, 0, false
	}
	return k
}

// sameBoot reports whether accepted evidence is of the boot of the last
// release. The clock of a TPM runs on in a boot: one that stands before the
// recorded time counts anew since TPM2_Clear.
func (m *Machine) sameBoot(p *proof) bool {
	return m.Released && p.resetCount == m.ResetCount && p.restartCount == m.RestartCount && p.clock >= m.Clock
}

// countsAnew reports whether the TPM's counters were cleared since the last
// release.
func (m *Machine) countsAnew(p *proof) bool {
	switch {
	case p.resetCount != m.ResetCount:
		return p.resetCount < m.ResetCount
	case p.restartCount != m.RestartCount:
		return p.restartCount < m.RestartCount
	}
	return p.clock < m.Clock
}

// promote makes the candidate the machine's install. The key of the disk that
// it replaces is kept, for the case that the disk comes back with a record of
// its own; the key of a disk that came back is used again.
func (m *Machine) promote(now time.Time) audit.Event {
	next, old := m.Next, m.DiskGUID
	back := m.former(next.DiskGUID)
	m.Former = slices.DeleteFunc(m.Former, func(f FormerDisk) bool { return f.DiskGUID == next.DiskGUID })
	if m.DiskKey != nil {
		m.Former = append(m.Former, FormerDisk{DiskGUID: old, DiskKey: m.DiskKey, StateMade: m.StateMade, NextKey: m.NextKey, Rotation: m.Rotation})
	}
	if n := len(m.Former) - maxFormer; n > 0 {
		m.Former = slices.Delete(m.Former, 0, n)
	}
	m.Next = nil
	m.DiskGUID, m.Serial, m.Installed = next.DiskGUID, next.Serial, next.Installed
	m.DiskKey, m.StateMade = back.DiskKey, back.StateMade
	m.NextKey, m.Rotation = back.NextKey, back.Rotation
	m.Joined, m.Released = false, false
	m.Generation++
	return audit.Event{Time: now, Kind: audit.KindState, Machine: m.ID, Data: audit.StateChange{
		From: m.State, To: m.State, By: "service", Reason: m.Reason,
		Effect: fmt.Sprintf("disk %s replaces disk %q", m.DiskGUID, old) + effectPromoted,
	}}
}
