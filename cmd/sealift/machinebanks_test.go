package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

func TestMachinesAreListedByWhatTheyAnsweredOnTheirBanks(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	answers := map[string]*api.BankProof{
		"proven":    {Answer: attest.BanksProven, At: at, Detail: "sha256 sha384", Vendor: "STM ", Model: "ST33", Proven: at},
		"failed":    {Answer: attest.BanksFailed, At: at, Detail: "bank.hidden: bank 0x0012 is active"},
		"unable":    {Answer: attest.BanksUnable, At: at, Detail: "it has no \x1b[31mTPM2_GetSessionAuditDigest", Vendor: "STM ", Model: "ST33"},
		"silent":    {Answer: attest.BanksSilent, At: at, Vendor: "STM ", Model: "ST33"},
		"not-asked": nil,
	}
	says := map[string]string{
		"proven":    "proven 2026-05-04T03:02:01Z: sha256 sha384",
		"failed":    "failed 2026-05-04T03:02:01Z: bank.hidden: bank 0x0012 is active",
		"unable":    `(TPM "STM " "ST33")`,
		"silent":    `silent 2026-05-04T03:02:01Z (TPM "STM " "ST33")`,
		"not-asked": "not asked",
	}
	for name, p := range answers {
		m := api.Machine{ID: attest.MachineID{1}, State: attest.StateEnrolled, BankProof: p}
		for _, asked := range append(bankAnswers(), "") {
			if got := answeredBanks(&m, asked); got != (asked == name || asked == "") {
				t.Errorf("%s is among %q: %t", name, asked, got)
			}
		}
		var out bytes.Buffer
		if err := printMachines(&env{out: &out}, []api.Machine{m}); err != nil {
			t.Fatal(err)
		}
		if text := out.String(); !strings.Contains(text, "BANKS") || !strings.Contains(text, says[name]) || strings.Contains(text, "\x1b") {
			t.Errorf("%s is shown as\n%s", name, text)
		}
	}
	if code, _, talk := cli(t, "", "machine", "list", "--banks", "maybe"); code != exitUsage || !strings.Contains(talk, "proven, failed, unable, silent, not-asked") {
		t.Errorf("exit %d: %s", code, talk)
	}
}

// Of whom it is not known is neither among the refused nor among the allowed, and the
// command does not end as if all were well.
func TestWhatIfCountsMachinesThatWereNotAskedByThemselves(t *testing.T) {
	for _, c := range []struct {
		effects []api.Effect
		err     string // empty: all is well
	}{
		{[]api.Effect{api.EffectNone, api.EffectNone}, ""},
		{[]api.Effect{api.EffectNone, api.EffectNotAsked, api.EffectNotAsked}, "would refuse 0 of 3 machines that are allowed now, and 2 could not be judged"},
		{[]api.Effect{api.EffectRefused, api.EffectNotAsked, api.EffectFailed}, "would refuse 1 of 3 machines that are allowed now, and 2 could not be judged"},
	} {
		sum := server.NewReplaySummary("p version 2")
		rows := func(yield func(api.WhatIf, error) bool) {
			for i, effect := range c.effects {
				row := &api.WhatIfMachine{ID: attest.MachineID{byte(i)}, NodeName: "node", Vendor: "Paper", Effect: effect}
				sum.Add(row)
				if !yield(api.WhatIf{Machine: row}, nil) {
					return
				}
			}
			yield(api.WhatIf{Summary: sum.Summary()}, nil)
		}
		var out bytes.Buffer
		err := printWhatIf(&env{out: &out}, rows, false)
		if (err == nil) != (c.err == "") || err != nil && (!errors.As(err, new(refused)) || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%q: got %v, want %q", c.effects, err, c.err)
		}
		unasked := strings.Contains(c.err, "2 could not") && c.effects[0] == api.EffectNone
		if unasked && (!strings.Contains(out.String(), "not asked  ") || !strings.Contains(out.String(), "3 machines: 2 were not asked for their banks, 1 stay allowed")) {
			t.Errorf("%q is shown as\n%s", c.effects, out.String())
		}
	}
}
