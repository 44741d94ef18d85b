package audit

import (
	"bytes"
	"crypto/elliptic"
	"encoding/json"
	"iter"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// story is the log of one box's life beside another's, told through every kind.
func story(t *testing.T) []Entry {
	t.Helper()
	box, other := attest.MachineIDOf([]byte("box")), attest.MachineIDOf([]byte("other"))
	pcr := 12
	allowed := &attest.Result{Machine: box, Policy: "p1", Allowed: true, Image: "demo 1",
		Facts: []attest.Fact{
			{Name: "firmware.version", Value: "v2", Trust: attest.TrustQuoted},
			{Name: "smbios.serial", Value: `<script>alert("x")</script>`, Trust: attest.TrustClaimed},
		},
		Firmware: attest.Firmware{Verdict: attest.FirmwareMeasured, Version: "v2", Claimed: "v2", Vendor: "QEMU", Product: "Standard PC"}}
	refused := &attest.Result{Machine: box, Policy: "p1", Findings: []attest.Finding{
		{Code: attest.CodeCmdline, PCR: &pcr, Message: "command line differs", Got: "aa", Want: "bb", Hint: "install the signed image again"},
		{Code: attest.CodeCmdline, Message: "and again"},
	}}
	events := []Event{
		{Kind: KindStart, Data: Start{Version: "1", KEK: "k1", ReleaseKey: "rk"}},
		{Kind: KindInstall, Machine: box, Data: Install{By: "line-1", DiskGUID: "d-1", Serial: "S1", MAC: "02:00:00:00:00:01", Image: "demo 1", SecureBoot: "enrolled"}},
		{Kind: KindState, Machine: box, Data: StateChange{To: attest.StateEnrolled, By: "line-1", Reason: "installed"}},
		{Kind: KindVerdict, Machine: box, Data: Verdict{ChallengeID: "c1", Address: "10.0.0.2", Evidence: manifest.SHA256{1}, Result: allowed}},
		{Kind: KindToken, Machine: box, Data: Token{Event: TokenMinted, ID: "abcdef", NodeName: "box-1", Expires: begin}},
		{Kind: KindRelease, Machine: box, Data: Release{ID: "r1", ChallengeID: "c1", NodeName: "box-1", DiskGUID: "d-1", ResetCount: 4, Secrets: []string{SecretDiskKey, SecretJoinToken}, TokenID: "abcdef"}},
		{Kind: KindConfirm, Machine: box, Data: Confirm{ReleaseID: "r1", Outcome: OutcomeUnlocked}},
		{Kind: KindCampaign, Machine: box, Data: Campaign{Name: "bios-v2", From: "open", To: "proven", Reason: "v2 measured"}},
		{Kind: KindVerdict, Machine: box, Data: Verdict{ChallengeID: "c2", Address: "10.0.0.2", Evidence: manifest.SHA256{2}, Result: refused}},
		{Kind: KindVerdict, Machine: other, Data: Verdict{ChallengeID: "c3", Result: &attest.Result{Machine: other, Findings: []attest.Finding{{Code: attest.CodeMachineUnknown, Message: "never enrolled"}}}}},
		{Kind: KindChallengeRefused, Data: ChallengeRefused{Reason: "no such challenge", Address: "10.0.0.9", Suppressed: 3}},
		{Kind: KindRecovery, Machine: box, Data: Recovery{Event: RecoveryGiven, Request: "5e1f", By: "carol", BootKey: "aa", Expires: begin}},
		{Kind: KindAlarm, Machine: box, Data: Alarm{Name: AlarmReleaseRepeated, What: "a second release was asked for in one boot", Peer: "10.0.0.2"}},
		{Kind: KindState, Machine: box, Data: StateChange{From: attest.StateEnrolled, To: attest.StateRevoked, By: "alice", Reason: "stolen"}},
		{Kind: "future.kind", Machine: box, Data: json.RawMessage(`{"a":1}`)},
		{Kind: KindVerdict, Machine: box, Data: json.RawMessage(`{"result":7}`)},
	}
	var out []Entry
	var head Head
	for i, ev := range events {
		ev.Time = begin.Add(time.Duration(i) * time.Minute)
		e, err := Next(head, ev)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
		head = e.Head()
	}
	return out
}

func seq(entries []Entry) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func TestAReportSaysWhoEnabledAPolicy(t *testing.T) {
	e, err := Next(Head{}, Event{Time: begin, Kind: KindPolicy, Data: Policy{
		Name: "fleet", Version: 7, Digest: manifest.SHA256{1}, Signed: true, FromName: "fleet", FromVersion: 8, Rollback: true, By: "ana", Reason: "ticket",
		Images: []manifest.SHA256{{2}, {3}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Build(seq([]Entry{e}), ReportOptions{Generated: begin})
	if err != nil || len(r.Service) != 1 || !r.Service[0].Bad {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, want := range []string{"fleet version 8 → fleet version 7 by ana", "a step back", "with 2 manifests", "ticket"} {
		if !strings.Contains(r.Service[0].Text, want) {
			t.Errorf("%q does not say %q", r.Service[0].Text, want)
		}
	}
}

func TestReportHoldsEveryVerdictReleaseAndRefusal(t *testing.T) {
	entries := story(t)
	r, err := Build(seq(entries), ReportOptions{Generated: begin})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Chain.Intact || r.Chain.Head != entries[len(entries)-1].Head() || r.Chain.Entries != int64(len(entries)) {
		t.Errorf("chain: %+v", r.Chain)
	}
	if s := r.Summary; s.Machines != 2 || s.Allowed != 1 || s.Refused != 2 || s.Releases != 1 || s.Confirmed != 1 || s.Suppressed != 3 {
		t.Errorf("summary: %+v", s)
	}
	if len(r.Summary.Codes) != 2 || r.Summary.Codes[0].Verdicts != 1 {
		t.Errorf("a code counts once a verdict: %+v", r.Summary.Codes)
	}
	if len(r.Campaigns) != 1 || r.Campaigns[0].State != "proven" || len(r.Unproven) != 1 || len(r.Service) != 1 {
		t.Errorf("campaigns %+v, unproven %+v, service %+v", r.Campaigns, r.Unproven, r.Service)
	}
	box := attest.MachineIDOf([]byte("box"))
	for _, m := range r.Machines {
		if m.ID != box {
			continue
		}
		if m.State != attest.StateRevoked || m.NodeName != "box-1" || m.DiskGUID != "d-1" || len(m.Verdicts) != 2 {
			t.Errorf("machine: %+v", m)
		}
		rel := m.Verdicts[0].Release
		if rel == nil || rel.Outcome != OutcomeUnlocked || rel.Seq != 6 {
			t.Errorf("release of the first verdict: %+v", rel)
		}
		if m.Verdicts[1].Release != nil {
			t.Error("a refused verdict has a release")
		}
		last := m.History[len(m.History)-1]
		if !last.Bad || !strings.HasPrefix(last.Text, "unreadable: ") {
			t.Errorf("an unreadable entry is not shown as such: %+v", last)
		}
	}
}

func TestReportOfOneMachineVerifiesTheWholeChain(t *testing.T) {
	entries := story(t)
	other := attest.MachineIDOf([]byte("other"))
	r, err := Build(seq(entries), ReportOptions{Machine: other})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Machines) != 1 || r.Machines[0].ID != other || !r.Chain.Intact || r.Chain.Entries != int64(len(entries)) {
		t.Errorf("machines %+v, chain %+v", r.Machines, r.Chain)
	}
}

func TestReportSaysWhereTheChainBreaks(t *testing.T) {
	entries := story(t)
	entries[3].Data = json.RawMessage(strings.Replace(string(entries[3].Data), "demo 1", "demo 2", 1))
	r, err := Build(seq(entries), ReportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Chain.Intact || !strings.Contains(r.Chain.Broken, "entry 4") || r.Chain.Head.Seq != 3 || r.Chain.Unverified != int64(len(entries))-3 {
		t.Errorf("chain: %+v", r.Chain)
	}
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(page.String(), "Not verified") || !strings.Contains(page.String(), "unverified") {
		t.Error("the page does not say that the chain is broken")
	}
}

// A chain alone anybody can make.
func TestReportSaysWhatShowsThatTheServiceWroteTheLog(t *testing.T) {
	entries := story(t)
	last := entries[len(entries)-1].Head()
	key, other := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	at := begin.Add(time.Hour)
	sign := func(h Head) *Envelope { return signed(t, key, HeadStatement{Head: h, Time: at}) }
	upTo3 := sign(entries[2].Head())
	for claim, c := range map[string]struct {
		o        ReportOptions
		verified bool
		entries  int
		says     []string // the page
		unproven string
	}{
		"nothing":                         {ReportOptions{}, false, len(entries), []string{"Not verified", "nothing shows that the service wrote it"}, "neither the service's key"},
		"the service's signature":         {ReportOptions{Key: &key.PublicKey, Signed: sign(last)}, true, len(entries), []string{"✓ Verified", "The service signed on", sign(last).SignedBy()}, ""},
		"its signature of a part":         {ReportOptions{Key: &key.PublicKey, Signed: upTo3}, true, 3, []string{"✓ Verified"}, ""},
		"not another key's":               {ReportOptions{Key: &other.PublicKey, Signed: sign(last)}, false, len(entries), []string{"Not verified", "another key"}, "another key"},
		"not one of another type":         {ReportOptions{Key: &key.PublicKey, Signed: func() *Envelope { e := sign(last); e.PayloadType = "x"; return e }()}, false, len(entries), []string{"Not verified"}, "signed as"},
		"not one of another log":          {ReportOptions{Key: &key.PublicKey, Signed: sign(Head{Seq: last.Seq, Hash: manifest.SHA256{1}})}, false, len(entries), []string{"Not verified"}, "the service signed that it ends with"},
		"not one of more than there is":   {ReportOptions{Key: &key.PublicKey, Signed: sign(Head{Seq: last.Seq + 1, Hash: last.Hash})}, false, len(entries), []string{"Not verified"}, "the service signed that it ends with"},
		"not a service that signs none":   {ReportOptions{Key: &key.PublicKey}, false, len(entries), []string{"Not verified"}, "does not sign"},
		"a hash that was kept":            {ReportOptions{Kept: entries[1].Hash}, true, len(entries), []string{"✓ Verified", "Entry 2 has the hash", "nothing of the entries after it"}, ""},
		"not one that it does not have":   {ReportOptions{Kept: manifest.SHA256{1}}, false, len(entries), []string{"Not verified"}, "was cut short or written anew"},
		"both":                            {ReportOptions{Kept: entries[1].Hash, Key: &key.PublicKey, Signed: sign(last)}, true, len(entries), []string{"✓ Verified", "Entry 2 has the hash", "The service signed on"}, ""},
		"not one of both alone, the hash": {ReportOptions{Kept: manifest.SHA256{1}, Key: &key.PublicKey, Signed: sign(last)}, false, len(entries), []string{"Not verified"}, "was cut short or written anew"},
		"not one of both alone, the key":  {ReportOptions{Kept: entries[1].Hash, Key: &other.PublicKey, Signed: sign(last)}, false, len(entries), []string{"Not verified"}, "another key"},
	} {
		t.Run(claim, func(t *testing.T) {
			r, err := Build(seq(entries), c.o)
			if err != nil {
				t.Fatal(err)
			}
			s := r.Chain
			if !s.Intact || s.Verified != c.verified || s.Entries != int64(c.entries) || s.Broken != "" || (s.Unproven == "") != c.verified || !strings.Contains(s.Unproven, c.unproven) {
				t.Errorf("chain: %+v", s)
			}
			if want := c.verified && c.o.Key != nil; (s.Signed != nil) != want || want && !s.Signed.Time.Equal(at) {
				t.Errorf("signed: %+v", s.Signed)
			}
			var page bytes.Buffer
			if err := r.WriteHTML(&page); err != nil {
				t.Fatal(err)
			}
			for _, want := range c.says {
				if !strings.Contains(page.String(), want) {
					t.Errorf("the page does not say %q", want)
				}
			}
		})
	}
	t.Run("nothing is verified that is altered", func(t *testing.T) {
		bad := slices.Clone(entries)
		bad[3].Data = json.RawMessage(strings.Replace(string(bad[3].Data), "demo 1", "demo 2", 1))
		r, err := Build(seq(bad), ReportOptions{Key: &key.PublicKey, Signed: upTo3})
		if err != nil || !r.Chain.Verified {
			t.Errorf("the part before: %+v, %v", r.Chain, err)
		}
		r, err = Build(seq(bad), ReportOptions{Key: &key.PublicKey, Signed: sign(last), Kept: entries[1].Hash})
		if err != nil || r.Chain.Verified || r.Chain.Intact || r.Chain.Signed != nil {
			t.Errorf("%+v, %v", r.Chain, err)
		}
	})
}

func TestReportPageStandsAloneAndEscapes(t *testing.T) {
	r, err := Build(seq(story(t)), ReportOptions{Generated: begin})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, no := range []string{"<script", "http://", "https://", "src=", "<link", "@import", "url("} {
		if strings.Contains(page, no) {
			t.Errorf("the page contains %q", no)
		}
	}
	for _, want := range []string{`lang="en"`, "&lt;script&gt;", "uki.cmdline", "install the signed image again", "claimed by the machine", "signed by the TPM", "bios-v2", "stolen", "ALARM release.repeated", "recovery 5e1f: code given by carol, until", "disk-key, join-token", r.Chain.Head.Hash.String(), "a kind that this report does not know"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not contain %q", want)
		}
	}
	if path, err := exec.LookPath("xmllint"); err == nil {
		c := exec.Command(path, "--html", "--noout", "-")
		c.Stdin = strings.NewReader(page)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("xmllint: %v\n%s", err, out)
		}
	}
}

func TestReportIsReproducible(t *testing.T) {
	var first []byte
	for range 3 {
		r, err := Build(seq(story(t)), ReportOptions{Generated: begin})
		if err != nil {
			t.Fatal(err)
		}
		j, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := r.WriteHTML(&b); err != nil {
			t.Fatal(err)
		}
		all := append(j, b.Bytes()...)
		if first != nil && !bytes.Equal(first, all) {
			t.Fatal("the same log gave another report")
		}
		first = all
	}
}
