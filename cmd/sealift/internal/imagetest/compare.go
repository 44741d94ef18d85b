package imagetest

import (
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/predict"
)

// Check is one comparison of what was predicted with what was booted.
type Check struct {
	Name string `json:"name"` // e.g. "PCR 4, event 3"
	OK   bool   `json:"ok"`
	// What is compared, for people: an event's type and name.
	What   string `json:"what,omitempty"`
	Bank   string `json:"bank,omitempty"`
	Want   string `json:"want,omitempty"` // predicted
	Got    string `json:"got,omitempty"`  // booted
	Detail string `json:"detail,omitempty"`
}

// String returns the check as one line for people.
func (c Check) String() string {
	s := c.Name
	if c.What != "" {
		s += ": " + c.What
	}
	if c.Bank != "" {
		s += ", " + c.Bank
	}
	if c.OK {
		switch {
		case c.Detail != "":
			s += ": " + c.Detail
		case c.What == "value":
			s += ": " + c.Got
		}
		return s
	}
	if c.Want != "" || c.Got != "" {
		s += fmt.Sprintf(": predicted %s, booted %s", orNothing(c.Want), orNothing(c.Got))
	}
	if c.Detail != "" {
		s += ": " + c.Detail
	}
	return s
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// quotedPCRs are values that a TPM has signed: bank, PCR.
type quotedPCRs map[string]map[int][]byte

// compare checks every predicted event and value against those of a boot, in
// each bank, and that there are no others. The log leads to the quoted values,
// or that is a failed check, too.
func compare(want manifest.Boot, log *attest.EventLog, quoted quotedPCRs) []Check {
	var all []Check
	for _, p := range want.PCRs {
		for _, bank := range predict.Banks() {
			all = append(all, compareEvents(p, bank, log)...)
			all = append(all, compareValue(p, bank, log, quoted))
		}
	}
	return all
}

// step is one event of a boot, as far as it is compared.
type step struct {
	kind, name, digest string
	number             int // in the log; 0 for a predicted one
}

// compareEvents aligns the two lists of events: what one list has and the other
// has not is named as such, and does not make everything behind it differ.
func compareEvents(p manifest.PCR, bank string, log *attest.EventLog) []Check {
	var want, got []step
	for _, e := range p.Events {
		want = append(want, step{kind: e.Type, name: e.Name, digest: e.Digests[bank]})
	}
	for _, e := range log.ForPCR(p.Index) {
		d, ok := log.Digest(e, bank)
		if !ok {
			return []Check{{Name: fmt.Sprintf("PCR %d", p.Index), Bank: bank, Detail: fmt.Sprintf("the event log has only the banks %q", log.Banks)}}
		}
		got = append(got, step{kind: typeName(e.UntrustedType), digest: hex.EncodeToString(d), number: e.Number})
	}
	var all []Check
	for i, j := 0, 0; i < len(want) || j < len(got); {
		var w, g *step
		if i < len(want) {
			w = &want[i]
		}
		if j < len(got) {
			g = &got[j]
		}
		if w != nil && g != nil && w.digest != g.digest {
			switch {
			case indexOf(got[j:], w.digest) >= 0: // g was put in before
				w = nil
			case indexOf(want[i:], g.digest) >= 0: // w was left out
				g = nil
			}
		}
		all = append(all, compareStep(p.Index, bank, w, g))
		if w != nil {
			i++
		}
		if g != nil {
			j++
		}
	}
	return all
}

func indexOf(steps []step, digest string) int {
	return slices.IndexFunc(steps, func(s step) bool { return s.digest == digest })
}

// compareStep compares two events; one of them may be missing.
func compareStep(pcr int, bank string, w, g *step) Check {
	c := Check{Name: fmt.Sprintf("PCR %d", pcr), Bank: bank}
	if g != nil {
		c.Name += fmt.Sprintf(", event %d", g.number)
		c.What, c.Got = g.kind, g.digest
	}
	if w != nil {
		c.What, c.Want = w.kind+" "+w.name, w.digest
	}
	switch {
	case w == nil:
		c.Detail = "an event that is not predicted"
	case g == nil:
		c.Detail = "a predicted event was not measured"
	case w.digest != g.digest || w.digest == "":
	case w.kind != g.kind:
		c.Detail = fmt.Sprintf("the log has it as %s", g.kind)
	default:
		c.OK = true
	}
	return c
}

// compareValue compares a PCR's final value with the quoted one, and that one
// with what the log leads to.
func compareValue(p manifest.PCR, bank string, log *attest.EventLog, quoted quotedPCRs) Check {
	c := Check{Name: fmt.Sprintf("PCR %d", p.Index), What: "value", Bank: bank, Want: p.Values[bank]}
	q, ok := quoted[bank][p.Index]
	if !ok {
		c.Detail = "the TPM quoted no such PCR"
		return c
	}
	c.Got = hex.EncodeToString(q)
	if replayed, err := log.Replay(bank, p.Index); err != nil {
		c.Detail = err.Error()
		return c
	} else if r := hex.EncodeToString(replayed); r != c.Got {
		c.Detail = "the event log leads to " + r
		return c
	}
	c.OK = c.Want != "" && c.Want == c.Got
	return c
}

// typeName returns an event's type as the TCG PC Client Platform Firmware
// Profile and the manifest name it.
func typeName(t attest.EventType) string {
	switch t {
	case attest.EventSeparator:
		return manifest.TypeSeparator
	case attest.EventTag:
		return manifest.TypeEventTag
	case attest.EventIPL:
		return manifest.TypeIPL
	case attest.EventVariableConfig:
		return manifest.TypeVariableConfig
	case attest.EventBootApplication:
		return manifest.TypeBootApplication
	case attest.EventGPT:
		return manifest.TypeGPT
	case attest.EventAction:
		return manifest.TypeAction
	case attest.EventAuthority:
		return manifest.TypeAuthority
	}
	return fmt.Sprintf("event type %#x", uint32(t))
}
