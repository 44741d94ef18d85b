package server

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
)

// sign is what a finding in refused evidence is a sign of.
type sign struct {
	alarm audit.AlarmName // that it raises; empty if none
	// accepted: it raises it only for a machine whose evidence was accepted
	// before. In a new one it shows how it is built or set up.
	accepted bool
	// unless is another finding of which it may be a consequence, component a
	// component of which it says nothing. Optional.
	unless    attest.Code
	component string
	why       string // of the decision
}

const (
	tampered = audit.AlarmEvidenceTampered
	misused  = audit.AlarmMachineMisused
	unproven = audit.AlarmMachineUnproven
)

// signs decides for each finding code whether it raises an alarm: if an honest
// agent on an honest machine does not cause it, or if it says that an identity,
// a disk or a key is where it does not belong, and seldom otherwise.
func signs() map[attest.Code]sign {
	return map[attest.Code]sign{
		attest.CodeMalformed:     {why: "an agent of another version, or firmware's SMBIOS"},
		attest.CodeChallenge:     {why: "a lost connection, or a slow TPM"},
		attest.CodeChallengeKey:  {why: "whoever sends it proved nothing: anybody could raise it"},
		attest.CodeActivation:    {why: "whoever sends it proved nothing: anybody could raise it"},
		attest.CodeEKWeak:        {why: "a known flaw of a TPM"},
		attest.CodeEKExpired:     {why: "time"},
		attest.CodeEKRevocation:  {why: "a list that nobody renewed"},
		attest.CodeEKRevoked:     {alarm: misused, why: "the maker no longer vouches for the key: somebody may have it"},
		attest.CodeEKMismatch:    {alarm: misused, why: "it shows the certificate of another TPM"},
		attest.CodeTPMVendor:     {why: "the authority's entry in the root store is wrong"},
		attest.CodeTPMClass:      {why: "a policy that excludes machines that there are"},
		attest.CodeTPMDenied:     {why: "a policy that excludes machines that there are"},
		attest.CodeEKNotSigned:   {why: "anybody can make up such a certificate"},
		attest.CodeEKCertificate: {why: "a TPM of a maker that is not in the root store yet"},

		attest.CodeAKAttributes:    {why: "an agent of another version"},
		attest.CodeAKChanged:       {why: "the endorsement hierarchy was changed, or the service's name"},
		attest.CodeQuoteMissing:    {why: "how the banks are set in the firmware; bank.hidden tells the attack"},
		attest.CodeQuoteSignature:  {alarm: tampered, why: "an agent sends what its TPM signed"},
		attest.CodeQuoteFormat:     {alarm: tampered, why: "a TPM signs nothing that looks like this"},
		attest.CodeQuoteDowngraded: {why: "how the banks are set in the firmware"},
		attest.CodeQuoteNonce:      {alarm: tampered, why: "a quote that was made for another challenge, connection or set of evidence"},
		attest.CodeQuoteChallenge:  {alarm: tampered, why: "an agent answers each challenge anew: it was kept and sent again"},
		attest.CodeQuoteConnection: {alarm: tampered, why: "relayed: somebody is in between"},
		attest.CodeQuoteEvidence:   {alarm: tampered, why: "an agent sends what its TPM signed for: it was altered on the way"},
		attest.CodeQuoteEmpty:      {alarm: tampered, why: "an agent that gets no PCR quoted gives up"},
		attest.CodeQuoteSelection:  {alarm: tampered, why: "an agent that would quote others gives up when it gets the challenge"},
		attest.CodeQuoteDigest:     {why: "a PCR was extended while it was quoted"},
		attest.CodeTransport:       {alarm: tampered, why: "an agent makes the key as it must be: the secrets were to go elsewhere"},

		attest.CodeBankUnproven:  {why: "an agent from before the proof, or a TPM that cannot give it"},
		attest.CodeBankHidden:    {alarm: tampered, why: "an agent quotes each bank that it can: what was measured is kept back"},
		attest.CodeBankTurnedOff: {alarm: tampered, why: "only somebody at the firmware's setup does it, and a person must say that it was meant"},
		attest.CodeBankEmpty:     {alarm: tampered, accepted: true, why: "the bank was not active before, or firmware measured into it"},
		attest.CodeBankUnlogged:  {alarm: tampered, accepted: true, why: "the bank was not active before, or firmware logged it"},
		attest.CodeClock:         {why: "TPM2_Clear"},
		attest.CodeTPMFirmware:   {alarm: tampered, why: "somebody put older firmware into the TPM"},

		attest.CodeLogMalformed:  {why: "firmware"},
		attest.CodeLogReplay:     {alarm: tampered, accepted: true, why: "its firmware logged what it measured before: the log was altered, or something measured is not in it"},
		attest.CodeLogMissing:    {alarm: tampered, accepted: true, why: "its firmware logged what it measured before"},
		attest.CodeLogDeleted:    {alarm: tampered, accepted: true, why: "its firmware logged what it measured before"},
		attest.CodeLogReordered:  {alarm: tampered, accepted: true, why: "its firmware logged in the order in which it measured before"},
		attest.CodeLogDuplicated: {alarm: tampered, accepted: true, why: "its firmware logged each event once before"},
		attest.CodeLogAdded:      {alarm: tampered, accepted: true, why: "its firmware logged nothing but what it measured before"},
		attest.CodeLogRetyped:    {alarm: tampered, accepted: true, why: "its firmware kept to the rules before"},
		attest.CodeLogStructure:  {alarm: tampered, accepted: true, why: "its firmware kept to the rules before"},
		attest.CodeEventUnknown:  {why: "a card or a disk that was added"},

		attest.CodeSecureBootOff:  {alarm: tampered, accepted: true, why: "it was on: somebody was at the firmware's setup, or it forgot its settings"},
		attest.CodeSecureBootKeys: {alarm: tampered, accepted: true, unless: attest.CodeSecureBootOff, component: "dbx", why: "somebody enrolled other keys; dbx changes with updates"},
		attest.CodeAuthority:      {why: "an option ROM"},

		attest.CodeImageUnknown: {why: "an image that the service was not told of"},
		attest.CodeImageDenied:  {why: "a machine that was not updated yet"},
		attest.CodePolicyDates:  {why: "a policy that ran out"},
		attest.CodeSection:      {alarm: tampered, unless: attest.CodeImageUnknown, why: "a known image, and not what it holds"},
		attest.CodeCmdline:      {alarm: tampered, unless: attest.CodeImageUnknown, why: "somebody gave the kernel of a known image other parameters"},
		attest.CodePCRNotZero:   {alarm: tampered, accepted: true, why: "somebody gave parameters, credentials or extensions to its boot"},
		attest.CodePCRCapped:    {why: "an agent that was started again; a second release is release.repeated"},

		attest.CodeFirmwareUnknown: {why: "an update that the catalogue does not know"},
		attest.CodeFirmwareDenied:  {why: "a machine that was not updated yet"},
		attest.CodeFirmwareClaim:   {alarm: tampered, accepted: true, why: "its SMBIOS says another version than the one that was measured"},

		attest.CodeMachineUnknown:  {why: "a machine that nobody enrolled"},
		attest.CodeMachinePending:  {why: "it is to be approved"},
		attest.CodeMachineRevoked:  {alarm: misused, why: "whoever has it switched it on"},
		attest.CodeQuarantined:     {why: "that it was quarantined is an event of its own, machine.quarantined"},
		attest.CodeMachineUnproven: {alarm: unproven, why: "the service writes both together: somebody else wrote the record"},
		attest.CodeRecordDamaged:   {why: "a disk of the service's fails, or somebody wrote to the database: it says nothing of the machine"},
		attest.CodeSerialMismatch:  {why: "a list with mistakes"},
		attest.CodeSerialTaken:     {alarm: misused, why: "it says that it is another machine, or the board was exchanged"},
		attest.CodeTPMTaken:        {alarm: misused, why: "a box that was locked out comes back, or is to be two machines; an agent of this version uses the right key"},

		attest.CodeDiskForeign:     {alarm: misused, why: "the disk is in another machine than its own, or in an older state"},
		attest.CodeStateLost:       {why: "a disk that was replaced or broke"},
		attest.CodeReleaseRepeated: {why: "it has an alarm of its own, release.repeated"},

		attest.CodeReportBoot: {why: "a machine that was started again"},
		attest.CodePCRChanged: {why: "it quarantines the machine, which is an event of its own"},
		attest.CodeLogChanged: {why: "it quarantines the machine, which is an event of its own"},
	}
}

// signsEvery is how often a machine's alarm for the same finding is raised: a
// machine that is refused asks again until somebody has looked.
const signsEvery = 24 * time.Hour

// maxSigns is how many findings an alarm names.
const maxSigns = 5

// raise returns the alarms for what evidence of m is a sign of, and what to call
// when they are committed.
func (s *Server) raise(sub *submission, m *Machine, result *attest.Result) (alarms []audit.Event, raised func()) {
	known := signs()
	has := map[attest.Code]bool{}
	for _, f := range result.Findings {
		has[f.Code] = true
	}
	// A record that was rebuilt from the audit log has the release alone.
	accepted := !m.AcceptedEvidence.IsZero() || m.ReleaseID != ""
	what, count := map[audit.AlarmName]string{}, map[audit.AlarmName]int{}
	var keys []string
	tampering := false // a finding says so, told of now or before
	for _, f := range result.Findings {
		r := known[f.Code]
		switch {
		case r.alarm == "", r.accepted && !accepted, r.unless != "" && has[r.unless], r.component != "" && r.component == f.Component:
			continue
		}
		tampering = tampering || r.alarm == tampered
		key := m.ID.String() + " " + string(f.Code)
		if !s.raised.due(key, sub.now) {
			continue
		}
		keys = append(keys, key)
		count[r.alarm]++
		if n := count[r.alarm]; n <= maxSigns {
			if n > 1 {
				what[r.alarm] += "; "
			}
			what[r.alarm] += string(f.Code) + ": " + clip(f.Message)
		}
	}
	for _, name := range []audit.AlarmName{tampered, misused, unproven} {
		if n := count[name]; n > 0 {
			if n > maxSigns {
				what[name] += fmt.Sprintf("; and %d more", n-maxSigns)
			}
			alarms = append(alarms, alarm(m.ID, sub.now, audit.Alarm{Name: name, Peer: sub.peer.address, What: what[name]}))
		}
	}
	failed := func() {}
	// A policy that requires the proof makes findings of what is wrong with it.
	onlyAsked := slices.ContainsFunc(result.Facts, func(f attest.Fact) bool { return f.Name == "pcr.banks.failed" })
	if onlyAsked || !tampering {
		var more []audit.Event
		more, failed = s.banksAlarm(sub, m, result)
		alarms = append(alarms, more...)
	}
	if m.Revision > 0 && has[attest.CodeReleaseRepeated] {
		// Each is told of within the machine's budget for refusals, and one of a
		// boot whatever else used that up.
		key := m.ID.String() + " " + string(attest.CodeReleaseRepeated) + " " + m.ReleaseID
		if due := s.raised.due(key, sub.now); due || sub.logged {
			keys = append(keys, key)
			alarms = append(alarms, alarm(m.ID, sub.now, audit.Alarm{
				Name: audit.AlarmReleaseRepeated, Peer: sub.peer.address, What: "a second release was asked for in one boot",
			}))
		}
	}
	return alarms, func() {
		s.raised.note(keys, sub.now)
		failed()
	}
}

// reminders remember when something was told last. A process that was started
// again tells it again.
type reminders struct {
	every time.Duration

	mu    sync.Mutex
	at    map[string]time.Time // guarded by mu
	swept time.Time            // guarded by mu
}

func newReminders(every time.Duration) *reminders {
	return &reminders{every: every, at: map[string]time.Time{}}
}

// due reports whether key is to be told.
func (r *reminders) due(key string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.at[key]
	return !ok || now.Sub(at) >= r.every || now.Before(at)
}

// note remembers that keys were told. Those for which there is no room are told
// again.
func (r *reminders) note(keys []string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.at)+len(keys) > maxKeys && now.Sub(r.swept) >= time.Minute {
		r.swept = now
		for k, at := range r.at {
			if now.Sub(at) >= r.every {
				delete(r.at, k)
			}
		}
	}
	for _, k := range keys {
		if len(r.at) < maxKeys {
			r.at[k] = now
		}
	}
}
