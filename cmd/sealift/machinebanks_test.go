package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
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
