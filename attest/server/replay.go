package server

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// OutcomeRestored is the outcome of releases that were open when a backup was
// made, and of those known from the audit log alone. Nobody can confirm them.
const OutcomeRestored = "restored: the service lost what it takes to confirm this release"

// Recovery makes of a backup, and of the audit log that continues it, the
// records of a store that can go on. Feed it the backup's records with Add and
// the later entries with Replay, then call Finish.
//
// What the log says is repeated: enrolments and installs, revocations,
// quarantines and their end, releases and their boots, joins, campaigns. What
// it does not hold is not invented. Disk keys made after the backup are lost
// with their store: their machines are quarantined, as each must be installed
// again. Attestation keys and clocks stay those of the backup.
type Recovery struct {
	machines  map[attest.MachineID]*Machine
	names     map[string]attest.MachineID // of nodes
	documents map[[2]string]*Document     // by kind and name
	open      map[string]*Release         // of the backup, with no outcome yet
	released  map[string]*Release         // known from the log alone
	lost      map[attest.MachineID]string // disk whose key was made after the backup
	skipped   map[audit.Kind]int64
}

// NewRecovery returns an empty Recovery.
func NewRecovery() *Recovery {
	return &Recovery{
		machines: map[attest.MachineID]*Machine{}, names: map[string]attest.MachineID{}, documents: map[[2]string]*Document{},
		open: map[string]*Release{}, released: map[string]*Release{}, lost: map[attest.MachineID]string{}, skipped: map[audit.Kind]int64{},
	}
}

// Add takes a record of the backup, and reports whether it is to be written as
// it is. Others are written as Finish returns them.
func (r *Recovery) Add(rec Record) (asIs bool) {
	switch {
	case rec.Machine != nil:
		r.machines[rec.Machine.ID] = rec.Machine
		r.names[rec.Machine.NodeName] = rec.Machine.ID
	case rec.Document != nil && rec.Document.Kind == documentRecovery:
		// A recovery's code is given once, and this one may have been given
		// since. Who needs it opens another.
	case rec.Document != nil:
		r.documents[[2]string{rec.Document.Kind, rec.Document.Name}] = rec.Document
	case rec.Release != nil && rec.Release.Outcome == "":
		r.open[rec.Release.ID] = rec.Release
	default:
		return true
	}
	return false
}

// machine returns the record of a machine that an entry names, a new one if the
// backup has none.
func (r *Recovery) machine(id attest.MachineID) *Machine {
	m := r.machines[id]
	if m == nil {
		m = &Machine{Machine: api.Machine{ID: id}}
		r.machines[id] = m
		for _, digits := range []int{10, 16, 32, 59} {
			if m.NodeName = api.NodeName(id, digits); r.names[m.NodeName].IsZero() {
				break
			}
		}
		r.names[m.NodeName] = id
	}
	return m
}

// rename gives m the node name that an entry says it has.
func (r *Recovery) rename(m *Machine, name string) {
	if name != "" && r.names[name].IsZero() {
		delete(r.names, m.NodeName)
		m.NodeName = name
		r.names[name] = m.ID
	}
}

// Replay repeats what an entry after the backup's last did. The chain must have
// been verified.
func (r *Recovery) Replay(e audit.Entry) error {
	var err error
	decode := func(v any) bool {
		if err = json.Unmarshal(e.Data, v); err != nil {
			err = fmt.Errorf("audit entry %d (%s): %w", e.Seq, e.Kind, err)
		}
		return err == nil
	}
	switch e.Kind {
	case audit.KindStart, audit.KindChallengeRefused, audit.KindRestore, audit.KindAcceptRestore, audit.KindKEK, audit.KindAlarm, audit.KindRecovery,
		audit.KindReport, audit.KindStale:
		// They change no record that is restored, or only what the next report
		// sets anew. Of a rewrap the keys are lost; those of the backup are under
		// the key-encryption key that it names.
	case audit.KindVerdict:
		var d audit.Verdict
		if decode(&d) && !e.Machine.IsZero() && d.Result != nil {
			r.verdict(r.machine(e.Machine), e.Time, &d)
		}
	case audit.KindState:
		var d audit.StateChange
		if decode(&d) {
			r.state(r.machine(e.Machine), &d)
			if strings.HasPrefix(d.Effect, effectGivesUp) || strings.HasPrefix(d.Effect, effectTakesOver) {
				r.skipped[e.Kind]++ // the serial number's document is not in the log
			}
		}
	case audit.KindInstall:
		var d audit.Install
		if decode(&d) {
			r.install(r.machine(e.Machine), &d)
		}
	case audit.KindRelease:
		var d audit.Release
		if decode(&d) {
			r.release(r.machine(e.Machine), e.Time, &d)
		}
	case audit.KindConfirm:
		var d audit.Confirm
		if decode(&d) {
			r.confirm(e, &d)
		}
	case audit.KindToken:
		var d audit.Token
		if decode(&d) {
			r.token(r.machine(e.Machine), &d)
		}
	case audit.KindDiskKey:
		var d audit.DiskKey
		if decode(&d) {
			r.diskKey(r.machine(e.Machine), &d)
		}
	case audit.KindCampaign:
		var d audit.Campaign
		if decode(&d) {
			r.campaign(&d)
		}
	case audit.KindPolicy, audit.KindExpected:
		// Their documents are not in the log.
		r.skipped[e.Kind]++
	default: // of a later program
		r.skipped[e.Kind]++
	}
	return err
}

func (r *Recovery) verdict(m *Machine, at time.Time, d *audit.Verdict) {
	m.LastSeen, m.LastAllowed = at, d.Result.Allowed
	if d.Result.Allowed || m.State == "" {
		m.Firmware, m.Image = d.Result.Firmware, d.Result.Image
	}
}

func (r *Recovery) state(m *Machine, d *audit.StateChange) {
	if d.From != d.To {
		m.FenceDue = d.To == attest.StateQuarantined || d.To == attest.StateRevoked
	}
	if d.To != attest.StateEnrolled {
		m.Stale, m.ReportDue = false, time.Time{}
	}
	m.State, m.Reason = d.To, d.Reason
	switch d.Effect {
	case effectRebase:
		m.AKName, m.TPMFirmware, m.Rebased = nil, 0, true
	case effectRejoin:
		m.Joined, m.TokenID = false, ""
	}
}

func (r *Recovery) install(m *Machine, d *audit.Install) {
	if d.Candidate {
		m.Next = &api.Candidate{DiskGUID: d.DiskGUID, Serial: d.Serial, Installed: d.Finished}
		return
	}
	m.Generation++
	m.DiskGUID, m.Serial, m.Installed, m.Next = d.DiskGUID, d.Serial, d.Finished, nil
	m.StateMade, m.Joined, m.DiskKey, m.NextKey, m.Rotation = false, false, nil, nil, nil
	m.ResetCount, m.RestartCount, m.Clock, m.Released = 0, 0, 0, false
}

func (r *Recovery) release(m *Machine, at time.Time, d *audit.Release) {
	r.rename(m, d.NodeName)
	if m.fromCandidate(d.DiskGUID) {
		m.promote(at)
	}
	m.DiskGUID = d.DiskGUID
	// Counters that do not go on have started anew.
	if m.Released && cmp.Or(cmp.Compare(d.ResetCount, m.ResetCount), cmp.Compare(d.RestartCount, m.RestartCount)) <= 0 {
		m.Generation++
	}
	if m.Rebased {
		m.Boot = nil // with the banks that it was approved to be without
	}
	m.ResetCount, m.RestartCount, m.Released, m.Rebased, m.ReleaseID = d.ResetCount, d.RestartCount, true, false, d.ID
	if d.NewDiskKey {
		m.DiskKey = nil
		r.lost[m.ID] = d.DiskGUID
	}
	if d.Rotation != "" && (m.Rotation == nil || m.Rotation.ID != d.Rotation) {
		// The machine was given a next disk key that the backup does not have. It
		// may be on it, whether or not that was confirmed.
		r.skipped[audit.KindRelease]++
	}
	if d.TokenID != "" {
		m.TokenID = d.TokenID
	}
	r.released[d.ID] = &Release{
		ID: d.ID, Machine: m.ID, Generation: m.Generation, ResetCount: d.ResetCount, RestartCount: d.RestartCount, Issued: at,
		Rotation: d.Rotation,
	}
}

func (r *Recovery) confirm(e audit.Entry, d *audit.Confirm) {
	rel := r.released[d.ReleaseID]
	if rel == nil {
		rel = r.open[d.ReleaseID]
	}
	if rel == nil {
		return // of a release that the backup has as confirmed
	}
	rel.Outcome, rel.Confirmed = d.Outcome, e.Time
	if m := r.machine(rel.Machine); api.Opened(d.Outcome) && m.Generation == rel.Generation {
		m.StateMade = true
	}
}

// diskKey repeats the change of a disk key, if the backup has the other key. A
// change that was asked for later is not asked for any more.
func (r *Recovery) diskKey(m *Machine, d *audit.DiskKey) {
	if d.Event != audit.DiskKeyChanged {
		return
	}
	if m.Rotation != nil && m.Rotation.ID == d.Rotation {
		m.DiskKey, m.NextKey, m.Rotation = m.NextKey, nil, nil
		return
	}
	m.DiskKey, m.NextKey, m.Rotation = nil, nil, nil
	r.lost[m.ID] = d.DiskGUID
}

func (r *Recovery) token(m *Machine, d *audit.Token) {
	r.rename(m, d.NodeName)
	switch {
	case d.Event == audit.TokenMinted:
		m.TokenID = d.ID
	case m.TokenID != d.ID:
	case d.Event == audit.TokenJoined:
		m.Joined = true
	case d.Event == audit.TokenRevoked || d.Event == audit.TokenExpired:
		m.TokenID = ""
	}
}

// campaign repeats what the firmware campaigns keep: their documents are in the
// log as they were stored.
func (r *Recovery) campaign(d *audit.Campaign) {
	key := [2]string{"campaign", d.Name}
	doc := r.documents[key]
	if doc == nil {
		doc = &Document{Kind: key[0], Name: key[1]}
		r.documents[key] = doc
	}
	doc.Body = d.Detail
	doc.Revision++
}

// Finish returns the records that Add did not take as they are, and the audit
// entries that end the log, whose last entry so far is head. Of restore the
// fields NotReplayed are set here. at is the present time.
//
// Unless the restore is complete, the store is held and every machine forfeits
// the boot that it is in. A restore with entries that could not be replayed is
// not complete, whatever its caller says.
func (r *Recovery) Finish(head audit.Head, restore audit.Restore, at time.Time) ([]Record, []audit.Entry, error) {
	if len(r.skipped) > 0 {
		restore.NotReplayed, restore.Complete = r.skipped, false
	}
	entry, err := audit.Next(head, audit.Event{Time: at, Kind: audit.KindRestore, Data: restore})
	if err != nil {
		return nil, nil, err
	}
	entries := []audit.Entry{entry}
	var records []Record
	for _, id := range slices.SortedFunc(maps.Keys(r.machines), func(a, b attest.MachineID) int { return cmp.Compare(a.String(), b.String()) }) {
		m := r.machines[id]
		m.Revision++
		m.Restored = m.Restored || !restore.Complete
		if m.State == "" {
			// Known from a verdict alone.
			m.State, m.Reason = attest.StatePending, "known from the audit log alone"
		}
		if disk := r.lost[id]; disk != "" && disk == m.DiskGUID && m.State == attest.StateEnrolled {
			ev := stateEvent(m, attest.StateQuarantined, "restore", "its disk key was made after the backup and is lost: reinstate it and install it again")
			ev.Time = at
			m.FenceDue = false // its node does nothing wrong
			e, err := audit.Next(entries[len(entries)-1].Head(), ev)
			if err != nil {
				return nil, nil, err
			}
			entries = append(entries, e)
		}
		records = append(records, Record{Machine: m})
	}
	for _, releases := range []map[string]*Release{r.open, r.released} {
		for _, id := range slices.Sorted(maps.Keys(releases)) {
			rel := releases[id]
			rel.Transport = nil
			if rel.Outcome == "" {
				rel.Outcome, rel.Confirmed = OutcomeRestored, at
			}
			records = append(records, Record{Release: rel})
		}
	}
	body, err := json.Marshal(&restoreState{Entry: entry.Head(), Status: api.RestoreStatus{
		Held: !restore.Complete, Restored: at.UTC(), Taken: restore.Taken, By: restore.By, Reason: restore.Reason,
	}})
	if err != nil {
		return nil, nil, err
	}
	key := [2]string{restoreKind, restoreName}
	var revision int64
	if old := r.documents[key]; old != nil {
		revision = old.Revision
	}
	r.documents[key] = &Document{Kind: key[0], Name: key[1], Revision: revision + 1, Body: body}
	for _, key := range slices.SortedFunc(maps.Keys(r.documents), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		records = append(records, Record{Document: r.documents[key]})
	}
	return records, entries, nil
}

// Lost returns the machines whose disk key was made after the backup.
func (r *Recovery) Lost() []attest.MachineID {
	var out []attest.MachineID
	for id, disk := range r.lost {
		if m := r.machines[id]; m != nil && m.DiskGUID == disk {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b attest.MachineID) int { return cmp.Compare(a.String(), b.String()) })
	return out
}
