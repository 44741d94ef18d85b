package server

import (
	"bytes"
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
// quarantines and their end, who has which node name and serial number, releases
// and their boots, joins, campaigns. What it does not hold is not invented. Disk
// keys made after the backup are lost with their store: their machines are
// quarantined, as each must be installed again. Attestation keys and clocks stay
// those of the backup, and are taken anew if the log says that the TPM's counters
// may have started anew. What a machine was at a release after the backup is not
// known: its reports are refused until it starts anew. So are those of a boot
// whose first report may be lost.
type Recovery struct {
	machines  map[attest.MachineID]*Machine
	names     map[string]attest.MachineID // of nodes
	documents map[[2]string]*Document     // by kind and name
	open      map[string]*Release         // of the backup, with no outcome yet
	released  map[string]*Release         // known from the log alone
	skipped   map[audit.Kind]int64

	lost     map[attest.MachineID]string          // disk whose key was made after the backup
	next     map[attest.MachineID]string          // disk whose next key was, and was released
	asked    map[attest.MachineID]string          // disk whose key was to change, by a decision after the backup
	unknown  map[attest.MachineID]map[string]bool // what entries of an earlier version do not tell of who it is
	started  map[attest.MachineID]string          // must start anew, as this of it is lost
	expected []audit.ExpectedLine                 // of entries of an earlier version
	policy   audit.PolicyMark                     // what the log after the backup says was enabled
	// What entries of an earlier version say before the one that makes it so: an
	// install, a promotion.
	installed, promoted map[attest.MachineID]bool
}

// NewRecovery returns an empty Recovery.
func NewRecovery() *Recovery {
	return &Recovery{
		machines: map[attest.MachineID]*Machine{}, names: map[string]attest.MachineID{}, documents: map[[2]string]*Document{},
		open: map[string]*Release{}, released: map[string]*Release{}, skipped: map[audit.Kind]int64{},
		lost: map[attest.MachineID]string{}, next: map[attest.MachineID]string{}, asked: map[attest.MachineID]string{},
		unknown: map[attest.MachineID]map[string]bool{}, started: map[attest.MachineID]string{},
		installed: map[attest.MachineID]bool{}, promoted: map[attest.MachineID]bool{},
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
	case rec.Document != nil && rec.Document.Kind == KindSignedHead:
		// It is of the log that the backup is of. The restored one has another.
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
		m = &Machine{Machine: api.Machine{ID: id}, Restored: r.restoreState().Status.Unsettled}
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
	case audit.KindStart, audit.KindChallengeRefused, audit.KindKEK, audit.KindAlarm, audit.KindRecovery, audit.KindStale, audit.KindPrune:
		// They change no record that is restored, or only what the next report
		// sets anew. Of a rewrap the keys are lost; those of the backup are under
		// the key-encryption key that it names. Evidence that was pruned is in the
		// backup, and is pruned again.
	case audit.KindVerdict:
		var d audit.Verdict
		if decode(&d) && !e.Machine.IsZero() && d.Result != nil {
			r.verdict(r.machine(e.Machine), e.Time, &d)
			err = r.bindings(d.Bindings)
		}
	case audit.KindState:
		var d audit.StateChange
		if decode(&d) {
			err = r.state(r.machine(e.Machine), &d)
		}
	case audit.KindInstall:
		var d audit.Install
		if decode(&d) {
			r.install(r.machine(e.Machine), &d)
		}
	case audit.KindRelease:
		var d audit.Release
		if decode(&d) {
			err = r.release(r.machine(e.Machine), e.Time, &d)
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
	case audit.KindReport:
		var d audit.Reattestation
		if decode(&d) {
			r.report(r.machines[e.Machine], e.Time, &d)
		}
	case audit.KindExpected:
		var d audit.Expected
		if decode(&d) && d.Bindings == nil && len(d.Machines) > 0 {
			r.skipped[e.Kind]++
			r.expected = append(r.expected, d.Machines...)
		}
		if err == nil {
			err = r.bindings(d.Bindings)
		}
	case audit.KindRestore:
		var d audit.Restore
		if decode(&d) {
			err = r.restored(e, &d)
		}
	case audit.KindAcceptRestore:
		var d audit.AcceptRestore
		if decode(&d) {
			err = r.accepted(e.Time, &d)
		}
	case audit.KindPolicy:
		// Its document is not in the log.
		r.skipped[e.Kind]++
		err = r.policy.Note(e)
	default: // of a later program
		r.skipped[e.Kind]++
	}
	return err
}

func (r *Recovery) verdict(m *Machine, at time.Time, d *audit.Verdict) {
	m.LastSeen, m.LastAllowed, m.Address = at, d.Result.Allowed, d.Address
	m.answered(d.Result, at)
	if d.Result.Allowed || m.State == "" {
		m.Firmware, m.Image = d.Result.Firmware, d.Result.Image
	}
}

func (r *Recovery) state(m *Machine, d *audit.StateChange) error {
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
	case effectUnlisted:
		m.Listed = false
	}
	switch {
	case strings.HasSuffix(d.Effect, effectFenced):
		m.FenceDue = false
	case strings.HasPrefix(d.Effect, effectGivesUp):
		m.FenceDue, m.TokenID = false, ""
	case strings.HasPrefix(d.Effect, effectTakesOver):
		m.Joined = false
	}
	if d.Identity != nil {
		return r.identity(m, d.Identity)
	}
	return r.stateBefore(m, d)
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
	m.Boot = nil
	delete(r.asked, m.ID)
	delete(r.unknown[m.ID], lacksSerial)
	r.installed[m.ID] = true
}

func (r *Recovery) release(m *Machine, at time.Time, d *audit.Release) error {
	r.rename(m, d.NodeName)
	generation := m.Generation
	if m.fromCandidate(d.DiskGUID) {
		serial := m.Serial
		m.promote(at)
		if m.Listed {
			m.Serial = serial
		}
		if r.promoted[m.ID] && !m.Listed {
			if err := r.bind(m, false); err != nil {
				return err
			}
		}
		delete(r.promoted, m.ID)
	}
	m.DiskGUID = d.DiskGUID
	// Counters that do not go on have started anew.
	if m.Released && cmp.Or(cmp.Compare(d.ResetCount, m.ResetCount), cmp.Compare(d.RestartCount, m.RestartCount)) <= 0 {
		m.Generation++
	}
	if d.Generation > 0 {
		m.Generation = d.Generation
	}
	if m.Generation != generation {
		// Its TPM may have been cleared: what the backup knows of it does not bind.
		m.AKName, m.TPMFirmware, m.Clock = nil, 0, 0
	}
	switch {
	case d.Banks != nil:
		m.Banks = d.Banks
	case m.Rebased:
		m.Banks = nil // it was approved to be without
	}
	m.TPMBound = m.TPMBound || len(d.Bindings) > 0
	for _, b := range d.Bindings {
		if id, ok := keyOfDocument(b.Name); ok && b.Kind == tpmKind {
			m.hasKeys(id)
		}
	}
	if err := r.bindings(d.Bindings); err != nil {
		return err
	}
	m.ResetCount, m.RestartCount, m.Released, m.Rebased, m.ReleaseID = d.ResetCount, d.RestartCount, true, false, d.ID
	// Who had a release is not in the boot of an earlier restore any more. What it
	// was then is not known, and it is heard of anew with its next release.
	m.Restored, m.Boot, m.ReportDue = false, nil, at
	r.started[m.ID] = lostRelease
	if d.NewDiskKey {
		m.DiskKey = nil
	}
	if m.DiskKey == nil {
		// Or of a disk that came back, whose key was made before that.
		r.lost[m.ID] = d.DiskGUID
	}
	if d.Rotation != "" && (m.Rotation == nil || m.Rotation.ID != d.Rotation) {
		// The machine was given a next disk key that the backup does not have. It
		// may be on it, whether or not that was confirmed.
		r.next[m.ID] = d.DiskGUID
	}
	if d.TokenID != "" {
		m.TokenID = d.TokenID
	}
	r.released[d.ID] = &Release{
		ID: d.ID, Machine: m.ID, Generation: m.Generation, ResetCount: d.ResetCount, RestartCount: d.RestartCount, Issued: at,
		Rotation: d.Rotation,
	}
	return nil
}

// report repeats what the first report of a boot sets.
func (r *Recovery) report(m *Machine, at time.Time, d *audit.Reattestation) {
	if m == nil || d.Result == nil {
		return
	}
	m.LastSeen, m.Address = at, d.Address
	if !d.Result.Allowed {
		return
	}
	m.LastReport = at
	switch {
	case m.Boot == nil || m.Boot.Volume != nil:
	case d.Volume != nil:
		m.Boot.Volume = d.Volume
	default: // of an earlier version: what its later reports must have is lost
		m.Boot = nil
		r.started[m.ID] = lostReport
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
	if d.Event == audit.DiskKeyAsked {
		r.asked[m.ID] = d.DiskGUID
	}
	if d.Event != audit.DiskKeyChanged {
		return
	}
	delete(r.asked, m.ID)
	delete(r.next, m.ID)
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

// identity repeats who a machine is.
func (r *Recovery) identity(m *Machine, id *audit.Identity) error {
	r.rename(m, id.NodeName)
	m.FormerName, m.Serial, m.Listed, m.ReplacedBy, m.Digests = id.FormerName, id.Serial, id.Listed, id.ReplacedBy, id.Digests
	delete(r.unknown, m.ID)
	delete(r.installed, m.ID)
	return r.bindings(id.Bindings)
}

// bindings repeats whose serial numbers are. An entry has no documents of other
// kinds.
func (r *Recovery) bindings(all []audit.Binding) error {
	for _, b := range all {
		if b.Kind != serialKind && b.Kind != expectedKind && b.Kind != tpmKind || b.Name == "" || !bytes.HasPrefix(b.Body, []byte("{")) {
			return fmt.Errorf("a binding of kind %q, name %q, is not one of a serial number, of an expected machine or of a TPM", b.Kind, b.Name)
		}
		r.document(b.Kind, b.Name, b.Body)
	}
	return nil
}

// document stores a document once more.
func (r *Recovery) document(kind, name string, body json.RawMessage) {
	key := [2]string{kind, name}
	doc := r.documents[key]
	if doc == nil {
		doc = &Document{Kind: kind, Name: name}
		r.documents[key] = doc
	}
	doc.Body = body
	doc.Revision++
}

// What is lost of a machine that must start anew.
const (
	lostRelease = "what it was at its last release"
	lostReport  = "what the first report of its boot said, if there was one"
)

// lacksSerial is what entries of an earlier version do not tell of a machine
// that waits for approval.
const lacksSerial = "its serial number"

// stateBefore repeats who a machine is from an entry of an earlier version, as
// far as it tells that.
func (r *Recovery) stateBefore(m *Machine, d *audit.StateChange) error {
	lacks := func(what string) {
		if r.unknown[m.ID] == nil {
			r.unknown[m.ID] = map[string]bool{}
		}
		r.unknown[m.ID][what] = true
	}
	serial, listed := strings.CutPrefix(d.Reason, reasonExpected)
	switch {
	case strings.HasPrefix(d.Effect, effectGivesUp), strings.HasPrefix(d.Effect, effectTakesOver):
		lacks("whose its node name and serial number are since it was enrolled anew")
		return nil
	case strings.HasSuffix(d.Effect, effectPromoted):
		r.promoted[m.ID] = true
		return nil
	case d.To == attest.StatePending:
		lacks(lacksSerial)
		return nil
	case d.To != attest.StateEnrolled || d.From == d.To:
		return nil
	case listed:
		m.Generation++
		m.Serial, m.Listed = cmp.Or(m.Serial, serial), true
	}
	met := listed || r.installed[m.ID]
	delete(r.installed, m.ID)
	return r.bind(m, met)
}

// bind gives a machine its serial number as the service did when it wrote an
// entry of an earlier version: it had found it to be nobody else's. met: the
// machine was asked for among those that are expected.
func (r *Recovery) bind(m *Machine, met bool) error {
	key := attest.SerialKey(m.Serial)
	if key == "" {
		return nil
	}
	var n serialNumber
	if doc := r.documents[[2]string{serialKind, key}]; doc != nil {
		if err := json.Unmarshal(doc.Body, &n); err != nil {
			return fmt.Errorf("%s %s of the backup: %w", serialKind, key, err)
		}
	}
	if n.Machine == m.ID {
		return nil
	}
	if doc := r.documents[[2]string{expectedKind, n.EK.String()}]; met && doc != nil && !n.EK.IsZero() {
		// Only the machine that was expected can have had it.
		e := new(api.Expected)
		if err := json.Unmarshal(doc.Body, e); err != nil {
			return fmt.Errorf("%s %s of the backup: %w", expectedKind, n.EK, err)
		}
		e.Machine, m.Serial, m.Listed = m.ID, e.Serial, true
		body, err := json.Marshal(e)
		if err != nil {
			return err
		}
		r.document(expectedKind, n.EK.String(), body)
	}
	n.Serial, n.Machine = m.Serial, m.ID
	body, err := json.Marshal(&n)
	if err != nil {
		return err
	}
	r.document(serialKind, key, body)
	delete(r.unknown[m.ID], lacksSerial)
	return nil
}

// restoreState returns what is known so far of an earlier restore.
func (r *Recovery) restoreState() *restoreState {
	state := new(restoreState)
	if doc := r.documents[[2]string{restoreKind, restoreName}]; doc != nil {
		// One that cannot be read holds, as a store with it would.
		if err := json.Unmarshal(doc.Body, state); err != nil {
			state.Status.Held, state.Status.Unsettled = true, true
		}
	}
	return state
}

// restored repeats an earlier restore: the machines that it did not know to be
// in a boot that had no release are so still, unless a release followed.
func (r *Recovery) restored(e audit.Entry, d *audit.Restore) error {
	state := r.restoreState()
	held, unsettled := state.Status.Held || !d.Complete, state.Status.Unsettled || !d.Complete
	*state = restoreState{Entry: e.Head(), Status: api.RestoreStatus{
		Held: held, Unsettled: unsettled, Restored: e.Time, Taken: d.Taken, By: d.By, Reason: d.Reason,
	}}
	if !d.Complete {
		for _, m := range r.machines {
			r.incomplete(m)
		}
	}
	return r.keep(state)
}

// incomplete does to a machine what a restore does that may have lost some of
// it. A boot of which no report is known may have had its first one, which says
// what PCR 15 must be from then on. That is not taken a second time: its reports
// are refused, and it starts anew.
func (r *Recovery) incomplete(m *Machine) {
	m.Restored = true
	if m.Boot != nil && m.Boot.Volume == nil {
		m.Boot = nil
		r.started[m.ID] = lostReport
	}
}

// accepted repeats what a person said of an earlier restore.
func (r *Recovery) accepted(at time.Time, d *audit.AcceptRestore) error {
	state := r.restoreState()
	if d.Settled {
		state.Status.Unsettled, state.Status.Settled, state.Status.SettledBy = false, at, d.By
	} else {
		state.Status.Held, state.Status.Accepted, state.Status.AcceptedBy = false, at, d.By
	}
	return r.keep(state)
}

func (r *Recovery) keep(state *restoreState) error {
	body, err := json.Marshal(state)
	if err != nil {
		return err
	}
	r.document(restoreKind, restoreName, body)
	return nil
}

// campaign repeats what the firmware campaigns keep: their documents are in the
// log as they were stored.
func (r *Recovery) campaign(d *audit.Campaign) {
	r.document("campaign", d.Name, d.Detail)
}

// Finish returns the records that Add did not take as they are, and the audit
// entries that end the log, whose last entry so far is head. Of restore the
// fields NotReplayed are set here. at is the present time.
//
// Unless the restore is complete, the store is held and every machine forfeits
// the boot that it is in, also one that the store does not know until that is
// settled. A restore with entries that could not be replayed, or with machines
// of which it is not known who they are, is not complete, whatever its caller
// says. What an earlier restore left open stays open.
func (r *Recovery) Finish(head audit.Head, restore audit.Restore, at time.Time) ([]Record, []audit.Entry, error) {
	for id, disk := range r.next {
		if m := r.machines[id]; m.DiskGUID == disk {
			r.skipped[audit.KindRelease]++
		}
	}
	for _, what := range r.unknown {
		if len(what) > 0 {
			r.skipped[audit.KindState]++
		}
	}
	if len(r.skipped) > 0 {
		restore.NotReplayed, restore.Complete = r.skipped, false
	}
	entry, err := audit.Next(head, audit.Event{Time: at, Kind: audit.KindRestore, Data: restore})
	if err != nil {
		return nil, nil, err
	}
	entries := []audit.Entry{entry}
	var records []Record
	for _, id := range sorted(r.machines) {
		m := r.machines[id]
		m.Revision++
		if !restore.Complete {
			r.incomplete(m)
		}
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
	before, missing := r.restoreState().Status, r.Missing()
	if before.Held {
		missing = append(before.Missing, missing...)
	}
	state := &restoreState{Entry: entry.Head(), Status: api.RestoreStatus{
		Held: before.Held || !restore.Complete, Unsettled: before.Unsettled || !restore.Complete,
		NotReplayed: map[string]int64{},
		Restored:    at.UTC(), Taken: restore.Taken, By: restore.By, Reason: restore.Reason,
		Missing: missing[:min(len(missing), api.MaxRestoreMissing)], MissingMore: max(0, len(missing)-api.MaxRestoreMissing),
	}}
	for kind, n := range r.skipped {
		state.Status.NotReplayed[string(kind)] = n
	}
	if err := r.keep(state); err != nil {
		return nil, nil, err
	}
	for _, key := range slices.SortedFunc(maps.Keys(r.documents), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		records = append(records, Record{Document: r.documents[key]})
	}
	return records, entries, nil
}

// sorted returns the ids of a map of machines in their order.
func sorted[V any](m map[attest.MachineID]V) []attest.MachineID {
	return slices.SortedFunc(maps.Keys(m), func(a, b attest.MachineID) int { return cmp.Compare(a.String(), b.String()) })
}

// Held reports whether the store that Finish gave is held, and whether it is
// unsettled: by this restore, or by an earlier one that was left open.
func (r *Recovery) Held() (held, unsettled bool) {
	status := r.restoreState().Status
	return status.Held, status.Unsettled
}
