package attest

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"sync"

	"github.com/sealift/sealift/image/manifest"
)

// maxExtends bounds the search for what is wrong with logs that do not replay, in
// hashes for one piece of evidence: less than a millisecond.
const maxExtends = 4096

// breaksReplay reports whether a finding says that the log does not lead to the
// quoted value of a PCR: then nothing in the log is proven of this PCR.
func (c Code) breaksReplay() bool {
	switch c {
	case CodeLogReplay, CodeLogMissing, CodeLogDeleted, CodeLogReordered, CodeLogDuplicated, CodeLogAdded:
		return true
	}
	return false
}

// replay compares each PCR's replayed with its quoted value, in every bank.
// It returns the PCRs whose digests are authentic in the bank that is appraised.
func (v *verification) replay(l *EventLog, banks []*quoted) map[int]bool {
	sound := map[int]bool{}
	early := sync.OnceValue(func() bool { return l.endsBeforeExit(banks) }) // seldom asked
	for _, q := range banks {
		if !slices.Contains(l.Banks, q.bank) {
			v.findUnlogged(l, q, "deactivate the bank in the firmware's setup")
			continue
		}
		empty := q.empty()
		if empty && slices.ContainsFunc(l.Events, func(e Event) bool { return e.PCR <= lastSeparatedPCR }) {
			v.findEmpty(q, "the event log has events in it")
		}
		for _, pcr := range PolicyPCRs() {
			if pcr >= firstUntouched && len(l.ForPCR(pcr)) == 0 {
				continue // checkUntouched says more
			}
			if pcr == kernelPCR && !allBytes(q.values[capPCR], 0) {
				continue // the cap extends it too; checkUntouched refuses a capped boot
			}
			got, err := l.Replay(q.bank, pcr)
			if err == nil && bytes.Equal(got, q.values[pcr]) {
				if q.bank == l.main {
					sound[pcr] = true
				}
				continue
			}
			if err == nil && empty && pcr <= lastSeparatedPCR {
				continue // findEmpty said so of all of them
			}
			if err == nil && pcr == exitPCR && early() {
				if q.bank == l.main {
					sound[pcr] = true
					v.fact("eventlog.quirk", "Exit Boot Services was measured after the log was saved", TrustQuoted)
				}
				continue
			}
			f := Finding{
				Code: CodeLogReplay, Got: hex.EncodeToString(got), Want: hex.EncodeToString(q.values[pcr]),
				Hint: "the log was altered or is incomplete, or something measured without logging: restart the machine; if it stays, keep the evidence and inspect the firmware",
			}
			what := fmt.Sprint(err)
			if err == nil {
				d := &replayDiagnosis{bank: q.bank, quoted: q.values[pcr], extends: &v.extends}
				f.Code, what = d.diagnose(v, l, pcr)
			}
			f.Message = fmt.Sprintf("PCR %d, bank %s: %s: replayed %x, quoted %x", pcr, q.bank, what, got, q.values[pcr])
			v.findPCR(pcr, f)
		}
	}
	return sound
}

// endsBeforeExit reports whether the log was saved before the system left boot services:
// in each bank that it has, and that firmware measures into, what firmware measures then
// leads on from the log to the quoted value. The log is complete only where firmware has
// a table of final events (TCG EFI Protocol, "TCG2 Final Events Table") and the kernel
// adds it.
func (l *EventLog) endsBeforeExit(banks []*quoted) bool {
	some := false
	for _, q := range banks {
		if !slices.Contains(l.Banks, q.bank) || q.empty() {
			continue // which has a finding of its own
		}
		value, err := l.Replay(q.bank, exitPCR)
		if err != nil || !l.exitFollows(q.bank, value, q.values[exitPCR]) {
			return false
		}
		some = true
	}
	return some
}

// exitFollows reports whether a log that leads to value has no event of the end of boot
// services, and the two that firmware measures then lead on to the quoted value.
func (l *EventLog) exitFollows(bank string, value, quoted []byte) bool {
	hash, ok := bankHash(bank)
	index := slices.Index(l.Banks, bank)
	if !ok || index < 0 {
		return false
	}
	for _, e := range l.ForPCR(exitPCR) {
		for _, a := range []string{actionExit, actionExitDone, actionExitFailed} {
			if digest(e.digests[index]) == hashOf(hash, []byte(a)) {
				return false
			}
		}
	}
	for _, a := range []string{actionExit, actionExitDone} {
		value = []byte(hashOf(hash, append(bytes.Clone(value), hashOf(hash, []byte(a))...)))
	}
	return bytes.Equal(value, quoted)
}

// empty reports whether nothing was measured into PCR 0 to 7: they have the values
// of a TPM reset. The last byte of PCR 0 is then the locality of TPM2_Startup (TPM
// 2.0 Library Part 3, TPM2_Startup).
func (q *quoted) empty() bool {
	for pcr := 0; pcr <= lastSeparatedPCR; pcr++ {
		value := q.values[pcr]
		if pcr == 0 && len(value) > 0 && value[len(value)-1] <= 4 {
			value = value[:len(value)-1]
		}
		if !allBytes(value, 0) {
			return false
		}
	}
	return true
}

func (v *verification) findEmpty(q *quoted, but string) {
	v.find(Finding{
		Code:    CodeBankEmpty,
		Message: fmt.Sprintf("bank %s is active and quoted, and nothing was measured into PCR 0 to %d of it; %s", q.bank, lastSeparatedPCR, but),
		Got:     "PCR 0 to 7 as after a TPM reset", Want: "what firmware measured",
		Hint: "deactivate the bank in the firmware's setup: whoever boots later could fill it",
	})
}

// findUnlogged adds a finding about a quoted bank that the log does not have.
func (v *verification) findUnlogged(l *EventLog, q *quoted, hint string) {
	if q.empty() {
		v.findEmpty(q, fmt.Sprintf("the event log has only %q", l.Banks))
		return
	}
	v.find(Finding{Code: CodeBankUnlogged, Message: fmt.Sprintf("bank %s is active and quoted, but the event log has only %q", q.bank, l.Banks), Hint: hint})
}

// replayDiagnosis looks for what is wrong with the events of a PCR that do not lead
// to its quoted value: it tries logs that differ in one place. One that leads to the
// value is what was measured, since nobody finds two sequences of digests that lead
// to one value (TPM 2.0 Library Part 1, "Platform Configuration Registers"). Who
// altered the log, or whether firmware wrote it so, no log can tell.
type replayDiagnosis struct {
	bank    string
	quoted  []byte
	extends *int // how many more hashes may be computed

	h      hash.Hash
	events []*Event
	index  int      // of the bank in Event.digests
	states [][]byte // states[i] is the PCR's value after i events

	scratch [64]byte // for leads
}

// begin takes the events of a PCR, of a log that has the bank.
func (d *replayDiagnosis) begin(l *EventLog, pcr int) error {
	none := EventLog{Banks: l.Banks, StartupLocality: l.StartupLocality}
	start, err := none.Replay(d.bank, pcr)
	if err != nil {
		return err
	}
	algorithm, _ := bankHash(d.bank)
	d.h = algorithm.New()
	d.index, d.events = slices.Index(l.Banks, d.bank), l.ForPCR(pcr)
	d.states = [][]byte{start}
	for i, e := range d.events {
		d.states = append(d.states, d.extend(nil, d.states[i], e.digests[d.index]))
	}
	return nil
}

// diagnose returns the finding's code, and what was found in words.
func (d *replayDiagnosis) diagnose(v *verification, l *EventLog, pcr int) (Code, string) {
	if err := d.begin(l, pcr); err != nil {
		return CodeLogReplay, err.Error()
	}
	if len(d.events) == 0 {
		return CodeLogMissing, "something was measured, and the event log has no event of it"
	}
	if code, what := d.superfluous(); code != "" {
		return code, what
	}
	if i, ok := d.swapped(true); ok {
		return CodeLogReordered, fmt.Sprintf("the events %d and %d were measured in the other order", d.events[i[0]].Number, d.events[i[1]].Number)
	}
	if *d.extends > len(d.events) {
		if what := d.left(v.knownEvents(d.bank, pcr, *d.extends)); what != "" {
			return CodeLogDeleted, what
		}
	}
	if i, ok := d.swapped(false); ok {
		return CodeLogReordered, fmt.Sprintf("the events %d and %d were measured in each other's place", d.events[i[0]].Number, d.events[i[1]].Number)
	}
	return CodeLogReplay, "the event log does not lead to the quoted value"
}

// extend writes into to, which may be value, from its beginning.
func (d *replayDiagnosis) extend(to, value, digest []byte) []byte {
	*d.extends--
	d.h.Reset()
	d.h.Write(value)
	d.h.Write(digest)
	return d.h.Sum(to[:0])
}

// leads reports whether a value leads to the quoted one by the digests and then the
// events from the given one on. It is false if that would cost too much.
func (d *replayDiagnosis) leads(value []byte, digests [][]byte, from int) bool {
	if *d.extends < len(digests)+len(d.events)-from {
		return false
	}
	for _, digest := range digests {
		value = d.extend(d.scratch[:], value, digest)
	}
	for _, e := range d.events[from:] {
		value = d.extend(d.scratch[:], value, e.digests[d.index])
	}
	return bytes.Equal(value, d.quoted)
}

// superfluous finds events that were not measured: all behind some event, or one.
func (d *replayDiagnosis) superfluous() (Code, string) {
	first, last := -1, len(d.events)
	for i := range d.events {
		if bytes.Equal(d.states[i], d.quoted) {
			first = i
			break
		}
	}
	for i := 0; first < 0 && i < len(d.events); i++ {
		if d.leads(d.states[i], nil, i+1) {
			first, last = i, i+1
		}
	}
	if first < 0 {
		return "", ""
	}
	number := d.events[first].Number
	if len(d.events[first:last]) == 1 {
		for i, e := range d.events {
			if i != first && bytes.Equal(e.digests[d.index], d.events[first].digests[d.index]) {
				return CodeLogDuplicated, fmt.Sprintf("the event log has the digest of event %d once more than it was measured", number)
			}
		}
		return CodeLogAdded, fmt.Sprintf("event %d was not measured", number)
	}
	return CodeLogAdded, fmt.Sprintf("event %d and those of this PCR behind it, %d in all, were not measured", number, last-first)
}

// swapped finds two events that were measured in each other's place: neighbours, or
// any.
func (d *replayDiagnosis) swapped(neighbours bool) ([2]int, bool) {
	for i := range d.events {
		for j := i + 1; j < len(d.events) && (j == i+1 || !neighbours) && len(d.events)-i <= *d.extends; j++ {
			digests := [][]byte{d.events[j].digests[d.index]}
			for _, e := range d.events[i+1 : j] {
				digests = append(digests, e.digests[d.index])
			}
			if d.leads(d.states[i], append(digests, d.events[i].digests[d.index]), j+1) {
				return [2]int{i, j}, true
			}
		}
	}
	return [2]int{}, false
}

// left finds a known event that was measured and is not in the log.
func (d *replayDiagnosis) left(known []knownEvent) string {
	for _, k := range known {
		if *d.extends < 1 {
			break // a policy may have very many images
		}
		digests := [][]byte{[]byte(k.digest)}
		for i := max(0, len(d.events)+1-*d.extends); i < len(d.states); i++ {
			if !d.leads(d.states[i], digests, i) {
				continue
			}
			where := "at its end"
			if i < len(d.events) {
				where = fmt.Sprintf("before event %d", d.events[i].Number)
			}
			return fmt.Sprintf("the event log lacks an event that was measured, %s with the digest %s, %s", k.what, k.digest, where)
		}
	}
	return ""
}

// knownEvent is an event whose digest follows from a specification or the policy.
type knownEvent struct {
	digest digest
	what   string
}

// knownEvents returns events of a PCR whose digests in a bank are known: about so many, as
// each that is tried costs a hash.
func (v *verification) knownEvents(bank string, pcr, most int) []knownEvent {
	hash, _ := bankHash(bank)
	var known []knownEvent
	seen := map[digest]bool{}
	add := func(d digest, what string) {
		if !d.IsZero() && !seen[d] {
			seen[d], known = true, append(known, knownEvent{d, what})
		}
	}
	if pcr <= lastSeparatedPCR {
		add(hashOf(hash, []byte{0, 0, 0, 0}), "a separator")
		add(hashOf(hash, []byte{0xff, 0xff, 0xff, 0xff}), "a separator")
	}
	for _, a := range map[int][]string{4: {actionCalling, actionReturning}, 5: {actionExit, actionExitDone, actionExitFailed}}[pcr] {
		add(hashOf(hash, []byte(a)), fmt.Sprintf("the action %q", a))
	}
	images := slices.Clone(v.p.Images)
	for _, d := range v.p.DeniedImages {
		images = append(images, d.Manifest)
	}
	for _, m := range images {
		if m == nil {
			continue
		}
		if len(known) >= most {
			break
		}
		of := " of image " + imageName(m)
		sha256 := func(d manifest.SHA256, what string) {
			if bank == "sha256" && !d.IsZero() {
				add(digest(d[:]), what)
			}
		}
		switch pcr {
		case 4:
			sha256(m.UKI.Authenticode, "the UKI"+of)
		case 9:
			add(hashOf(hash, encodeUTF16(m.UKI.Cmdline)), "the command line"+of)
			sha256(m.UKI.Initrd, "the initrd"+of)
		case kernelPCR:
			for _, s := range m.UKI.Sections {
				add(hashOf(hash, []byte(s.Name+"\x00")), "the name of section "+s.Name)
				sha256(s.SHA256, "section "+s.Name+of)
			}
		}
		for i := range m.Boots {
			for _, p := range m.Boots[i].PCRs {
				if p.Index != pcr {
					continue
				}
				for _, e := range p.Events {
					if d, err := hex.DecodeString(e.Digests[bank]); err == nil {
						add(digest(d), "a reference value"+of)
					}
				}
			}
		}
	}
	return known
}
