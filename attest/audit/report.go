package audit

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sort"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// ReportSchema names the format of a Report's JSON.
const ReportSchema = "sealift.dev/attestation-report/v1"

// ReportOptions says what a report is about.
type ReportOptions struct {
	Machine   attest.MachineID // Optional; the whole fleet if unset.
	From, To  time.Time        // Optional; entries before From or from To on are left out. The whole chain is verified all the same.
	Generated time.Time        // printed on the report

	// Key is the service's public release key, and Signed what the service signs of
	// where its log ends, of type HeadType, nil if it signs nothing. The report is then
	// of the log up to there. Optional.
	Key    *ecdsa.PublicKey
	Signed *Envelope
	// Former are the release keys before Key, see ReleaseKeys. Optional.
	Former []*ecdsa.PublicKey
	// Kept is the hash of an entry that was kept elsewhere, which the log must have.
	// Optional.
	Kept manifest.SHA256
}

// Report is what an auditor gets: everything that the log says of one machine
// or of the fleet, and whether the log is what was written.
type Report struct {
	Schema    string           `json:"schema"`
	Generated time.Time        `json:"generated"`
	Subject   attest.MachineID `json:"subject,omitzero"` // unset: the fleet
	From      time.Time        `json:"from,omitzero"`
	To        time.Time        `json:"to,omitzero"`
	Chain     ChainState       `json:"chain"`
	Summary   Summary          `json:"summary"`
	Machines  []MachineReport  `json:"machines"`
	Campaigns []CampaignReport `json:"campaigns"`
	Unproven  []Line           `json:"unproven"` // refusals of senders whose TPM was not proven
	Service   []Line           `json:"service"`  // starts of the service, changes of the key-encryption key
}

// Summary counts what the report holds.
type Summary struct {
	Machines   int           `json:"machines"`
	Allowed    int           `json:"allowed"`
	Refused    int           `json:"refused"`
	Releases   int           `json:"releases"`
	Confirmed  int           `json:"confirmed"` // releases that opened the disk
	Suppressed int64         `json:"suppressed"`
	Codes      []CodeCount   `json:"codes"` // findings by code, most frequent first
	Kinds      map[Kind]int  `json:"kinds"`
	Secrets    []SecretCount `json:"secrets"`
}

// CodeCount counts the verdicts with a finding.
type CodeCount struct {
	Code     attest.Code `json:"code"`
	Verdicts int         `json:"verdicts"`
}

// SecretCount counts releases of one kind of secret.
type SecretCount struct {
	Kind     string `json:"kind"`
	Releases int    `json:"releases"`
}

// MachineReport is one machine's history.
type MachineReport struct {
	ID        attest.MachineID      `json:"id"`
	NodeName  string                `json:"nodeName,omitempty"`
	State     attest.EnrolmentState `json:"state,omitempty"` // after the last change in the log
	Reason    string                `json:"reason,omitempty"`
	DiskGUID  string                `json:"diskGUID,omitempty"`
	Serial    string                `json:"serial,omitempty"` // claimed
	FirstSeen time.Time             `json:"firstSeen"`
	LastSeen  time.Time             `json:"lastSeen"`
	Allowed   int                   `json:"allowed"`
	Refused   int                   `json:"refused"`
	Releases  int                   `json:"releases"`
	Verdicts  []VerdictLine         `json:"verdicts"`
	History   []Line                `json:"history"` // everything, in the log's order
}

// Line is one entry in words.
type Line struct {
	Seq      int64            `json:"seq"`
	Time     time.Time        `json:"time"`
	Kind     Kind             `json:"kind"`
	Machine  attest.MachineID `json:"machine,omitzero"`
	Text     string           `json:"text"`
	Bad      bool             `json:"bad"`      // a refusal or a step against a machine
	Verified bool             `json:"verified"` // part of the chain that is intact
	Hash     manifest.SHA256  `json:"hash"`
}

// VerdictLine is one appraisal with all that it found.
type VerdictLine struct {
	Line
	ChallengeID string          `json:"challengeID"`
	Address     string          `json:"address"`
	Evidence    manifest.SHA256 `json:"evidence"`
	Result      *attest.Result  `json:"result"`
	Pruned      *PruneLine      `json:"pruned,omitempty"` // set if the evidence is not stored any more
	Release     *ReleaseLine    `json:"release,omitempty"`
	// Explanation is that of a refusal, as it was then.
	Explanation *attest.Explanation `json:"explanation,omitempty"`
}

// ReleaseLine is what a verdict released.
type ReleaseLine struct {
	Line
	Release
	Outcome   string    `json:"outcome,omitempty"` // as confirmed; empty if the machine never confirmed
	Confirmed time.Time `json:"confirmed,omitzero"`
}

// CampaignReport is the history of one firmware campaign.
type CampaignReport struct {
	Name  string `json:"name"`
	State string `json:"state"`
	Lines []Line `json:"lines"`
}

// Build makes a report from a whole log, verifying the chain as it reads, and what
// shows that the service wrote it. A broken chain does not stop it: the report says
// so, and marks what follows the break. Only an error that ends the sequence is
// returned.
func Build(entries iter.Seq2[Entry, error], o ReportOptions) (*Report, error) {
	b := builder{
		o: o,
		r: &Report{
			Schema: ReportSchema, Generated: o.Generated.UTC(), Subject: o.Machine, From: o.From, To: o.To,
			Machines: []MachineReport{}, Campaigns: []CampaignReport{}, Unproven: []Line{}, Service: []Line{},
		},
		machines:  map[attest.MachineID]*MachineReport{},
		campaigns: map[string]*CampaignReport{},
		codes:     map[attest.Code]int{},
		secrets:   map[string]int{},
		releases:  map[string]*ReleaseLine{},
		waiting:   map[string]waiting{},
		stored:    map[manifest.SHA256]waiting{},
	}
	b.r.Chain.Intact = true
	if o.Key != nil {
		var err error
		if b.standing, err = NewStanding(ReleaseKeys{Present: o.Key, Former: o.Former}); err != nil {
			return nil, err
		}
	}
	b.signed()
	b.r.Summary.Kinds = map[Kind]int{}
	for e, err := range entries {
		if err != nil {
			var broken *BrokenError
			if !errors.As(err, &broken) {
				return nil, err
			}
			b.broke(err)
			continue
		}
		if err := b.add(e); err != nil {
			return nil, err
		}
		if b.end != nil && b.r.Chain.Intact && b.r.Chain.Entries >= b.end.Head.Seq {
			break // what was decided since is not signed
		}
	}
	return b.finish(), nil
}

type waiting struct {
	machine *MachineReport
	verdict int // index into machine.Verdicts
}

type builder struct {
	o         ReportOptions
	r         *Report
	v         Verifier
	machines  map[attest.MachineID]*MachineReport
	campaigns map[string]*CampaignReport
	codes     map[attest.Code]int
	secrets   map[string]int
	releases  map[string]*ReleaseLine     // by release id
	waiting   map[string]waiting          // allowed verdicts by challenge id
	stored    map[manifest.SHA256]waiting // verdicts by evidence
	end       *HeadStatement              // what the service signed; nil: nothing that was verified
	standing  *Standing                   // what the intact chain says of machines; nil without Key
	doubt     UnsignedEntries             // the entry that it noted last, if that enrols and does not count
}

func (b *builder) broke(err error) {
	if b.r.Chain.Intact {
		b.r.Chain.Intact = false
		b.r.Chain.Broken = err.Error()
	}
}

func (b *builder) add(e Entry) error {
	if b.r.Chain.Intact {
		if err := b.v.Add(e); err != nil {
			b.broke(err)
		} else {
			b.r.Chain.Entries++
			b.trust(e)
			if !b.o.Kept.IsZero() && e.Hash == b.o.Kept {
				b.r.Chain.Kept = &Head{Seq: e.Seq, Hash: e.Hash}
			}
		}
	}
	if e.Kind == KindPrune {
		b.pruned(e) // of verdicts in the report, also if it is not itself
	}
	if !b.o.Machine.IsZero() && e.Machine != b.o.Machine && e.Kind != KindCampaign && e.Kind != KindStart && e.Kind != KindKEK && e.Kind != KindRestore && e.Kind != KindAcceptRestore && e.Kind != KindPrune {
		return nil
	}
	if !b.o.From.IsZero() && e.Time.Before(b.o.From) || !b.o.To.IsZero() && !e.Time.Before(b.o.To) {
		return nil
	}
	if !b.r.Chain.Intact {
		b.r.Chain.Unverified++
	}
	b.r.Summary.Kinds[e.Kind]++
	l := Line{Seq: e.Seq, Time: e.Time, Kind: e.Kind, Machine: e.Machine, Verified: b.r.Chain.Intact, Hash: e.Hash}
	if err := b.describe(e, &l); err != nil {
		// The entry is in the chain but its data is not what its kind says:
		// it is shown, not hidden.
		l.Text, l.Bad = "unreadable: "+err.Error(), true
		b.file(e, l)
	}
	return nil
}

// file puts a line where it belongs that describe could not place.
func (b *builder) file(e Entry, l Line) {
	if e.Machine.IsZero() {
		b.r.Service = append(b.r.Service, l)
		return
	}
	m := b.machine(e)
	m.History = append(m.History, l)
}

func (b *builder) machine(e Entry) *MachineReport {
	m := b.machines[e.Machine]
	if m == nil {
		m = &MachineReport{ID: e.Machine, FirstSeen: e.Time, Verdicts: []VerdictLine{}, History: []Line{}}
		b.machines[e.Machine] = m
	}
	if e.Time.After(m.LastSeen) {
		m.LastSeen = e.Time
	}
	return m
}

// describe decodes e's data, says it in words and files it.
func (b *builder) describe(e Entry, l *Line) error {
	switch e.Kind {
	case KindVerdict:
		return b.verdict(e, l)
	case KindRelease:
		return b.release(e, l)
	case KindConfirm:
		return b.confirm(e, l)
	case KindCampaign:
		return b.campaign(e, l)
	case KindStart:
		var d Start
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Text = fmt.Sprintf("service started, version %s, disk keys wrapped by %s, releases signed by %s", orNone(d.Version), orNone(d.KEK), orNone(d.ReleaseKey))
		if len(d.FormerKEKs) > 0 {
			l.Text += ", also opens what is wrapped by " + list(d.FormerKEKs)
		}
		if len(d.LostKEKs) > 0 {
			l.Text += ", what is wrapped by " + list(d.LostKEKs) + " is given up"
			l.Bad = true
		}
		b.r.Service = append(b.r.Service, *l)
		return nil
	case KindKEK:
		var d KEKRewrap
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Text = d.text()
		b.r.Service = append(b.r.Service, *l)
		return nil
	case KindRestore:
		var d Restore
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Text = d.text()
		l.Bad = !d.Complete
		b.r.Service = append(b.r.Service, *l)
		return nil
	case KindAcceptRestore:
		var d AcceptRestore
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Text = d.text()
		b.r.Service = append(b.r.Service, *l)
		return nil
	case KindPrune:
		var d Prune
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Text = d.text()
		b.r.Service = append(b.r.Service, *l)
		return nil
	case KindPolicy:
		return b.policy(e, l)
	case KindChallengeRefused:
		var d ChallengeRefused
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Text, l.Bad = fmt.Sprintf("challenge refused to %s: %s%s", d.Address, d.Reason, suppressed(d.Suppressed)), true
		b.r.Summary.Suppressed += d.Suppressed
		b.r.Unproven = append(b.r.Unproven, *l)
		return nil
	case KindExpected:
		var d Expected
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Text = fmt.Sprintf("%d machines enrolled beforehand by %s", len(d.Machines), d.By)
		b.r.Service = append(b.r.Service, *l)
		return nil
	case KindReport:
		return b.report(e, l)
	case KindAlarm:
		var d Alarm
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Text, l.Bad = fmt.Sprintf("ALARM %s: %s", d.Name, d.What), true
		if d.Peer != "" {
			l.Text += " (" + d.Peer + ")"
		}
		b.file(e, *l)
		return nil
	}
	m := b.machine(e)
	switch e.Kind {
	case KindState:
		var d StateChange
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		from := d.From
		if from == attest.StateUnknown {
			from = "unknown"
		}
		state, warning := b.enrolment(e, &d, m)
		m.State, m.Reason = state, d.Reason
		l.Bad = d.To == attest.StateRevoked || d.To == attest.StateQuarantined || warning != ""
		l.Text = fmt.Sprintf("%s → %s by %s: %s%s", from, d.To, d.By, d.Reason, warning)
		if d.Effect != "" {
			l.Text += " (" + d.Effect + ")"
		}
	case KindInstall:
		var d Install
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		if !d.Candidate {
			m.DiskGUID, m.Serial = d.DiskGUID, d.Serial
		}
		l.Text = fmt.Sprintf("installed %s (manifest %s) on disk %s, Secure Boot %s, serial %s and MAC %s as claimed, recorded by %s",
			orNone(d.Image), orNone(d.ManifestDigest), d.DiskGUID, orNone(d.SecureBoot), orNone(d.Serial), orNone(d.MAC), d.By)
	case KindToken:
		var d Token
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		m.NodeName = d.NodeName
		l.Text = fmt.Sprintf("join token %s for node %s: %s", d.ID, d.NodeName, d.Event)
		if d.Event == TokenMinted && !d.Expires.IsZero() {
			l.Text += ", expires " + stamp(d.Expires)
		}
		if d.Reason != "" {
			l.Text += ": " + d.Reason
		}
	case KindStale:
		var d Stale
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Bad, l.Text = d.Stale, "heard of again, after it had been due at "+stamp(d.Due)
		if d.Stale {
			l.Text = "stale: a report was due at " + stamp(d.Due)
		}
	case KindRecovery:
		var d Recovery
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Bad = d.Event == RecoveryGiven || d.Event == RecoveryRefused
		l.Text = fmt.Sprintf("recovery %s: %s by %s", orNone(d.Request), d.Event, d.By)
		if d.Reason != "" {
			l.Text += ": " + d.Reason
		}
		if !d.Expires.IsZero() {
			l.Text += ", until " + stamp(d.Expires)
		}
	case KindDiskKey:
		var d DiskKey
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return err
		}
		l.Text = d.text()
	default:
		l.Text = "entry of a kind that this report does not know: " + string(e.Data)
	}
	m.History = append(m.History, *l)
	return nil
}

// report files a report of a running system. One that the machine did not sign
// is filed with what nobody proved.
func (b *builder) report(e Entry, l *Line) error {
	var d Reattestation
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return err
	}
	if d.Result == nil {
		return errors.New("a report without a result")
	}
	b.r.Summary.Suppressed += d.Suppressed
	l.Text = "first report of the boot accepted"
	if l.Bad = !d.Result.Allowed; l.Bad {
		l.Text = "report refused"
		for i, f := range d.Result.Findings {
			l.Text += map[bool]string{true: ": ", false: "; "}[i == 0] + string(f.Code) + ": " + f.Message
		}
		l.Text += suppressed(d.Suppressed)
	}
	if l.Bad && !d.Genuine {
		b.r.Unproven = append(b.r.Unproven, *l)
		return nil
	}
	b.file(e, *l)
	return nil
}

func (b *builder) verdict(e Entry, l *Line) error {
	var d Verdict
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return err
	}
	if d.Result == nil {
		return errors.New("a verdict without a result")
	}
	b.r.Summary.Suppressed += d.Suppressed
	codes := map[attest.Code]bool{}
	for _, f := range d.Result.Findings {
		if !codes[f.Code] {
			codes[f.Code] = true
			b.codes[f.Code]++
		}
	}
	l.Bad = !d.Result.Allowed
	if d.Result.Allowed {
		b.r.Summary.Allowed++
		l.Text = fmt.Sprintf("evidence accepted: image %s, firmware %s %s", orNone(d.Result.Image), orNone(d.Result.Firmware.Version), d.Result.Firmware.Verdict)
	} else {
		b.r.Summary.Refused++
		l.Text = "evidence refused: " + findings(d.Result.Findings) + suppressed(d.Suppressed)
	}
	if e.Machine.IsZero() {
		b.r.Unproven = append(b.r.Unproven, *l)
		return nil
	}
	m := b.machine(e)
	if d.Result.Allowed {
		m.Allowed++
	} else {
		m.Refused++
	}
	m.Verdicts = append(m.Verdicts, VerdictLine{Line: *l, ChallengeID: d.ChallengeID, Address: d.Address, Evidence: d.Evidence, Result: d.Result, Explanation: d.Explanation})
	if !d.Evidence.IsZero() {
		b.stored[d.Evidence] = waiting{m, len(m.Verdicts) - 1}
	}
	if d.Result.Allowed && d.ChallengeID != "" {
		b.waiting[d.ChallengeID] = waiting{m, len(m.Verdicts) - 1}
	}
	m.History = append(m.History, *l)
	return nil
}

func (b *builder) release(e Entry, l *Line) error {
	var d Release
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return err
	}
	m := b.machine(e)
	m.NodeName, m.DiskGUID = d.NodeName, d.DiskGUID
	m.Releases++
	b.r.Summary.Releases++
	for _, s := range d.Secrets {
		b.secrets[s]++
	}
	l.Text = fmt.Sprintf("released %s for boot %d.%d, release %s", list(d.Secrets), d.ResetCount, d.RestartCount, d.ID)
	if d.NewDiskKey {
		l.Text += ", disk key made"
	}
	if d.TokenID != "" {
		l.Text += ", join token " + d.TokenID
	}
	rl := &ReleaseLine{Line: *l, Release: d}
	b.releases[d.ID] = rl
	if w, ok := b.waiting[d.ChallengeID]; ok && w.machine == m {
		m.Verdicts[w.verdict].Release = rl
		delete(b.waiting, d.ChallengeID)
	}
	m.History = append(m.History, *l)
	return nil
}

func (b *builder) confirm(e Entry, l *Line) error {
	var d Confirm
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return err
	}
	m := b.machine(e)
	l.Text = fmt.Sprintf("machine confirmed release %s: %s", d.ReleaseID, d.Outcome)
	if rl := b.releases[d.ReleaseID]; rl != nil && rl.Machine == e.Machine {
		rl.Outcome, rl.Confirmed = d.Outcome, e.Time
		if opened(d.Outcome) {
			b.r.Summary.Confirmed++
		}
	}
	l.Bad = !opened(d.Outcome)
	m.History = append(m.History, *l)
	return nil
}

func (b *builder) campaign(e Entry, l *Line) error {
	var d Campaign
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return err
	}
	c := b.campaigns[d.Name]
	if c == nil {
		c = &CampaignReport{Name: d.Name, Lines: []Line{}}
		b.campaigns[d.Name] = c
	}
	if d.To != "" {
		c.State = d.To
	}
	from := d.From
	if from == "" {
		from = "new"
	}
	l.Text = fmt.Sprintf("campaign %s: %s → %s", d.Name, from, d.To)
	if d.By != "" {
		l.Text += " by " + d.By
	}
	if d.Reason != "" {
		l.Text += ": " + d.Reason
	}
	c.Lines = append(c.Lines, *l)
	if !e.Machine.IsZero() && (b.o.Machine.IsZero() || e.Machine == b.o.Machine) {
		m := b.machine(e)
		m.History = append(m.History, *l)
	}
	return nil
}

// pruned marks the verdicts whose evidence is gone.
func (b *builder) pruned(e Entry) {
	var d Prune
	if json.Unmarshal(e.Data, &d) != nil {
		return // describe says so
	}
	for _, digest := range d.Evidence {
		if v, ok := b.stored[digest]; ok {
			v.machine.Verdicts[v.verdict].Pruned = &PruneLine{Seq: e.Seq, Time: e.Time, By: d.By}
			delete(b.stored, digest)
		}
	}
}

func (b *builder) policy(e Entry, l *Line) error {
	var d Policy
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return err
	}
	named := func(name string, version int) string {
		if name == "" {
			return "none"
		}
		return fmt.Sprintf("%s version %d", name, version)
	}
	l.Text = fmt.Sprintf("policy: %s → %s by %s", named(d.FromName, d.FromVersion), named(d.Name, d.Version), d.By)
	if d.Name != "" {
		l.Text += fmt.Sprintf(", SHA-256 %s, signed: %t", d.Digest, d.Signed)
	}
	if d.Rollback {
		l.Text += ", a step back"
	}
	if n := len(d.Images); n > 0 {
		l.Text += fmt.Sprintf(", with %d manifests", n)
	}
	if d.Reason != "" {
		l.Text += ": " + d.Reason
	}
	l.Bad = d.Rollback || d.Name == "" || !d.Signed
	b.r.Service = append(b.r.Service, *l)
	return nil
}

func (b *builder) finish() *Report {
	r := b.r
	r.Chain.Head = b.v.Head()
	b.prove()
	for _, m := range b.machines {
		r.Machines = append(r.Machines, *m)
	}
	sort.Slice(r.Machines, func(i, j int) bool { return r.Machines[i].ID.String() < r.Machines[j].ID.String() })
	for _, c := range b.campaigns {
		r.Campaigns = append(r.Campaigns, *c)
	}
	sort.Slice(r.Campaigns, func(i, j int) bool { return r.Campaigns[i].Name < r.Campaigns[j].Name })
	r.Summary.Machines = len(r.Machines)
	r.Summary.Codes = []CodeCount{}
	for c, n := range b.codes {
		r.Summary.Codes = append(r.Summary.Codes, CodeCount{c, n})
	}
	sort.Slice(r.Summary.Codes, func(i, j int) bool {
		a, c := r.Summary.Codes[i], r.Summary.Codes[j]
		if a.Verdicts != c.Verdicts {
			return a.Verdicts > c.Verdicts
		}
		return a.Code < c.Code
	})
	r.Summary.Secrets = []SecretCount{}
	for s, n := range b.secrets {
		r.Summary.Secrets = append(r.Summary.Secrets, SecretCount{s, n})
	}
	sort.Slice(r.Summary.Secrets, func(i, j int) bool { return r.Summary.Secrets[i].Kind < r.Summary.Secrets[j].Kind })
	return r
}

// findings names the codes of a refusal, each once.
func findings(fs []attest.Finding) string {
	var codes []string
	seen := map[attest.Code]bool{}
	for _, f := range fs {
		if !seen[f.Code] {
			seen[f.Code] = true
			codes = append(codes, string(f.Code))
		}
	}
	return list(codes)
}

func list(s []string) string {
	out := ""
	for i, v := range s {
		if i > 0 {
			out += ", "
		}
		out += v
	}
	return orNone(out)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func suppressed(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d more since the entry before were not logged)", n)
}
