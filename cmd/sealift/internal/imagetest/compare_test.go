package imagetest

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/predict"
)

// measured is one event of a made-up log.
type measured struct {
	pcr  int
	kind attest.EventType
	data string
}

// eventLog returns a crypto-agile log with both banks (TCG PFP, "Event Logging").
func eventLog(t *testing.T, events []measured) *attest.EventLog {
	t.Helper()
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = le.AppendUint32(spec, 2)
	spec = append(spec, 0x0b, 0, 32, 0, 0x0c, 0, 48, 0, 0)
	b := le.AppendUint32(nil, 0)
	b = le.AppendUint32(b, uint32(attest.EventNoAction))
	b = append(b, make([]byte, 20)...)
	b = le.AppendUint32(b, uint32(len(spec)))
	b = append(b, spec...)
	for _, e := range events {
		b = le.AppendUint32(b, uint32(e.pcr))
		b = le.AppendUint32(b, uint32(e.kind))
		b = le.AppendUint32(b, 2)
		d256, d384 := sha256.Sum256([]byte(e.data)), sha512.Sum384([]byte(e.data))
		b = append(le.AppendUint16(b, 0x0b), d256[:]...)
		b = append(le.AppendUint16(b, 0x0c), d384[:]...)
		b = le.AppendUint32(b, uint32(len(e.data)))
		b = append(b, e.data...)
	}
	log, err := attest.ParseEventLog(b)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// quote returns what a TPM would have quoted after the log's events.
func quote(t *testing.T, log *attest.EventLog) quotedPCRs {
	t.Helper()
	q := quotedPCRs{}
	for _, bank := range predict.Banks() {
		q[bank] = map[int][]byte{}
		for _, pcr := range predict.PCRs() {
			v, err := log.Replay(bank, pcr)
			if err != nil {
				t.Fatal(err)
			}
			q[bank][pcr] = v
		}
	}
	return q
}

// reference is a boot of two PCRs: three events, and none.
func reference(t *testing.T) manifest.Boot {
	t.Helper()
	p := manifest.PCR{Index: 4, Values: manifest.Digests{}}
	for _, data := range []string{"one", "two", "three"} {
		d256, d384 := sha256.Sum256([]byte(data)), sha512.Sum384([]byte(data))
		p.Events = append(p.Events, manifest.Event{Type: manifest.TypeAction, Name: data,
			Digests: manifest.Digests{"sha256": hex.EncodeToString(d256[:]), "sha384": hex.EncodeToString(d384[:])}})
	}
	zero := manifest.PCR{Index: 12, Values: manifest.Digests{}}
	for _, bank := range predict.Banks() {
		var err error
		if p.Values[bank], err = predict.Replay(bank, p.Events); err != nil {
			t.Fatal(err)
		}
		if zero.Values[bank], err = predict.Replay(bank, nil); err != nil {
			t.Fatal(err)
		}
	}
	return manifest.Boot{PCRs: []manifest.PCR{p, zero}}
}

func TestEachDifferenceIsNamedAndNothingElse(t *testing.T) {
	action := func(data string) measured { return measured{4, attest.EventAction, data} }
	good := []measured{action("one"), action("two"), action("three")}
	for name, c := range map[string]struct {
		events []measured
		edit   func(*manifest.Boot, quotedPCRs)
		want   []string // begin of each failed check of the SHA-256 bank
	}{
		"as predicted":               {events: good},
		"an event differs":           {events: []measured{action("one"), action("other"), action("three")}, want: []string{"PCR 4, event 2: EV_EFI_ACTION two", "PCR 4: value"}},
		"an event is put in":         {events: []measured{action("one"), action("x"), action("two"), action("three")}, want: []string{"PCR 4, event 2: EV_EFI_ACTION", "PCR 4: value"}},
		"an event is left out":       {events: []measured{action("one"), action("three")}, want: []string{"PCR 4: EV_EFI_ACTION two", "PCR 4: value"}},
		"an event is put on":         {events: append(slices.Clone(good), action("four")), want: []string{"PCR 4, event 4: EV_EFI_ACTION", "PCR 4: value"}},
		"the last is left out":       {events: good[:2], want: []string{"PCR 4: EV_EFI_ACTION three", "PCR 4: value"}},
		"nothing was measured":       {want: []string{"PCR 4: EV_EFI_ACTION one", "PCR 4: EV_EFI_ACTION two", "PCR 4: EV_EFI_ACTION three", "PCR 4: value"}},
		"another order":              {events: []measured{action("two"), action("one"), action("three")}, want: []string{"PCR 4, event 1: EV_EFI_ACTION", "PCR 4: EV_EFI_ACTION two", "PCR 4: value"}},
		"another type":               {events: []measured{action("one"), {4, attest.EventIPL, "two"}, action("three")}, want: []string{"PCR 4, event 2: EV_EFI_ACTION two"}},
		"an event in a zero PCR":     {events: append(slices.Clone(good), measured{12, attest.EventIPL, "x"}), want: []string{"PCR 12, event 4: EV_IPL", "PCR 12: value"}},
		"a PCR that nobody predicts": {events: append(slices.Clone(good), measured{1, attest.EventVariableBoot, "x"})},
		"a log that does not lead to the quote": {events: good, want: []string{"PCR 4: value"},
			edit: func(_ *manifest.Boot, q quotedPCRs) { q["sha256"][4][0] ^= 1 }},
		"a PCR that was not quoted": {events: good, want: []string{"PCR 12: value"},
			edit: func(_ *manifest.Boot, q quotedPCRs) { delete(q["sha256"], 12) }},
		"a bank that was not quoted": {events: good, want: []string{"PCR 4: value", "PCR 12: value"},
			edit: func(_ *manifest.Boot, q quotedPCRs) { delete(q, "sha256") }},
		"a reference without a value": {events: good, want: []string{"PCR 4: value"},
			edit: func(b *manifest.Boot, _ quotedPCRs) { delete(b.PCRs[0].Values, "sha256") }},
		"a reference without a digest": {events: good, want: []string{"PCR 4, event 2: EV_EFI_ACTION two"},
			edit: func(b *manifest.Boot, _ quotedPCRs) { delete(b.PCRs[0].Events[1].Digests, "sha256") }},
	} {
		t.Run(name, func(t *testing.T) {
			want, log := reference(t), eventLog(t, c.events)
			q := quote(t, log)
			if c.edit != nil {
				c.edit(&want, q)
			}
			var got []string
			for _, check := range compare(want, log, q) {
				if !check.OK && check.Bank == "sha256" {
					got = append(got, check.String())
				}
			}
			if len(got) != len(c.want) {
				t.Fatalf("failed checks:\n%s\nwant %q", strings.Join(got, "\n"), c.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], c.want[i]) {
					t.Errorf("failed check %d is\n%s\nwant %s", i, got[i], c.want[i])
				}
			}
		})
	}
}

func TestALogWithoutABankFails(t *testing.T) {
	want := reference(t)
	log := eventLog(t, nil)
	log.Banks = log.Banks[:1]
	failed := 0
	for _, c := range compare(want, log, quotedPCRs{}) {
		if c.Bank == "sha384" && c.OK {
			t.Errorf("%s: ok", c)
		}
		if !c.OK {
			failed++
		}
	}
	if failed == 0 {
		t.Error("nothing failed")
	}
}

func TestTheVerifierMayRefuseOnlyWhatATestCannotHave(t *testing.T) {
	for name, c := range map[string]struct {
		codes []attest.Code
		ok    bool
	}{
		"nobody approved it":  {[]attest.Code{attest.CodeFirmwareUnknown, attest.CodeMachineUnknown}, true},
		"another image":       {[]attest.Code{attest.CodeMachineUnknown, attest.CodeImageUnknown}, false},
		"a bad quote":         {[]attest.Code{attest.CodeQuoteSignature}, false},
		"Secure Boot was off": {[]attest.Code{attest.CodeSecureBootOff}, false},
	} {
		r := &attest.Result{}
		for _, code := range c.codes {
			r.Findings = append(r.Findings, attest.Finding{Code: code, Message: "message"})
		}
		if got := verdict(r); got.OK != c.ok {
			t.Errorf("%s: %s, ok is %t, want %t", name, got, got.OK, c.ok)
		}
	}
	if verdict(nil).OK {
		t.Error("no verdict is ok")
	}
}
