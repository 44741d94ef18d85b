package redteam

import (
	"bytes"
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/papertpm"
)

func target(t *testing.T) Target { return started(t) }

// started is a service whose policy also denies images.
func started(t *testing.T, denied ...attest.DeniedImage) Target {
	t.Helper()
	target, stop, err := self(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler), denied)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return target
}

func reports(t *testing.T, target Target, attacks []Attack) map[string]Report {
	t.Helper()
	all := map[string]Report{}
	if err := Run(t.Context(), target, attacks, func(r Report) { all[r.Attack] = r }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestEachAttackIsRefusedByAFindingOfItsOwn(t *testing.T) {
	t.Parallel()
	got := reports(t, target(t), Attacks())
	for _, a := range Attacks() {
		r, ok := got[a.Name]
		if !ok {
			t.Errorf("%s was not run", a.Name)
			continue
		}
		t.Logf("%-34s %v", a.Name, r.Codes)
		if r.Verdict != Refused {
			t.Errorf("%s: %s: codes %v, want one of %v: %s", a.Name, r.Verdict, r.Codes, a.Want, r.Detail)
		}
	}
}

// What a service is that trusts no authority of the attacks: as in production.
func TestAServiceThatTrustsNoSoftwareTPMIsAttackedAsFarAsItCanBe(t *testing.T) {
	t.Parallel()
	s := target(t)
	s.CA, s.Owner, s.Strict, s.SHA384, s.Exempt, s.Operators = nil, nil, nil, nil, nil, ""
	got := reports(t, s, Attacks())
	for _, a := range Attacks() {
		r := got[a.Name]
		if skipped := a.Accepted || a.Name == "operator-api-without-identity"; skipped != (r.Verdict == NotRun) || !skipped && r.Verdict != Refused {
			t.Errorf("%s: %s: codes %v, want one of %v: %s", a.Name, r.Verdict, r.Codes, a.Want, r.Detail)
		}
	}
}

func TestAnOldImageMayBeDeniedByName(t *testing.T) {
	t.Parallel()
	old := papertpm.GoodImage()
	old.Version, old.UKI.Authenticode = "0", sha256.Sum256([]byte("the image of last year"))
	target := started(t, attest.DeniedImage{Manifest: old, Reason: "version 0 is below the minimum 1"})
	attacks := slices.DeleteFunc(Attacks(), func(a Attack) bool { return a.Name != "old-image" })
	r := reports(t, target, attacks)["old-image"]
	if r.Verdict != Refused || !slices.Equal(r.Codes, want(attest.CodeImageDenied)) {
		t.Errorf("%s: codes %v: %s", r.Verdict, r.Codes, r.Detail)
	}
}

// What the attacks with banks are refused for is nothing but the bank.
func TestAMachineWithoutSHA256IsAcceptedWhereItIsSaidSo(t *testing.T) {
	t.Parallel()
	accepted := Attack{Name: "a good machine", Want: want(attest.CodeBankHidden), run: sent((*box).bySHA384, nil)}
	if r := reports(t, target(t), []Attack{accepted})[accepted.Name]; r.Verdict != Accepted {
		t.Errorf("%s: codes %v: %s", r.Verdict, r.Codes, r.Detail)
	}
	accepted = Attack{Name: "a good machine", Want: want(attest.CodeBankUnproven), run: sent((*box).exempt, claimUnable)}
	if r := reports(t, target(t), []Attack{accepted})[accepted.Name]; r.Verdict != Accepted {
		t.Errorf("exempt: %s: codes %v: %s", r.Verdict, r.Codes, r.Detail)
	}
	for _, a := range bankAttacks() {
		if r := reports(t, target(t), []Attack{a})[a.Name]; len(r.Codes) != 1 {
			t.Errorf("%s: codes are %v, want one", a.Name, r.Codes)
		}
	}
}

// An attack that a service does not refuse must show.
func TestAnAttackThatSucceedsIsReported(t *testing.T) {
	t.Parallel()
	none := sent(nil, nil)
	attacks := []Attack{
		{Name: "a good machine", Want: want(attest.CodeQuoteNonce), run: none},
		{Name: "refused for another reason", Want: want(attest.CodeQuoteNonce), run: sent(func(b *box) error { b.tpm.EKCertificates = nil; return nil }, nil)},
		{Name: "cannot be tried", Want: want(attest.CodeQuoteNonce), run: func(context.Context, *lab) (*answer, error) { return nil, os.ErrNotExist }},
	}
	got := reports(t, target(t), attacks)
	for i, want := range []string{Accepted, Wrong, Failed} {
		if r := got[attacks[i].Name]; r.Verdict != want {
			t.Errorf("%s: %s, want %s: %s", attacks[i].Name, r.Verdict, want, r.Detail)
		}
	}
}

// The evidence is of a machine that the service knows, whose serial number is its own.
func TestTheImitatedMachineMayBeOnRecord(t *testing.T) {
	t.Parallel()
	s := target(t)
	smbios, err := attest.ParseSMBIOS(s.Boot.SMBIOS)
	if err != nil {
		t.Fatal(err)
	}
	b, err := (&lab{Target: s, ca: s.CA}).stranger()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Owner.Install(t.Context(), &api.InstallRecord{
		EKPublic: tpm2.Marshal(b.tpm.EKPublic), EKCertificates: b.tpm.EKCertificates, DiskGUID: b.boot.Disk.GUID,
		Serial: smbios.Serial, Image: "1", Finished: time.Now().UTC(),
	}); err != nil {
		t.Fatal(err)
	}
	attacks := slices.DeleteFunc(Attacks(), func(a Attack) bool { return a.Name != "two-releases-in-one-boot" && a.Name != "smbios-lies" })
	for name, r := range reports(t, s, attacks) {
		if r.Verdict != Refused || len(r.Codes) != 1 {
			t.Errorf("%s: %s: codes %v: %s", name, r.Verdict, r.Codes, r.Detail)
		}
	}
}

func TestOnlyTheSerialNumberIsAnother(t *testing.T) {
	t.Parallel()
	board := []byte("\x02\x08\x05\x00\x01\x02\x00\x03Box\x00Board\x00OLD-1\x00\x00")
	table := append(board, papertpm.EncodeSMBIOS("1.0", "Paper", "Box", "OLD-1")...)
	got := withSerial(table, "a longer one")
	was, err := attest.ParseSMBIOS(table)
	if err != nil {
		t.Fatal(err)
	}
	is, err := attest.ParseSMBIOS(got)
	if err != nil {
		t.Fatal(err)
	}
	if is.Serial != "a longer one" || !bytes.HasPrefix(got, board) {
		t.Errorf("serial number is %q, table %q", is.Serial, got)
	}
	if is.Serial = was.Serial; *is != *was {
		t.Errorf("got %+v, want %+v", is, was)
	}
	for name, table := range map[string][]byte{
		"nothing":             nil,
		"no serial number":    []byte("\x01\x08\x01\x00\x01\x02\x00\x00Paper\x00Box\x00\x00"),
		"a number of no text": []byte("\x01\x08\x01\x00\x01\x02\x00\x03Paper\x00Box\x00\x00"),
		"a short structure":   []byte("\x01\x05\x01\x00\x01Paper\x00\x00"),
		"no end":              []byte("\x01\x08\x01\x00\x01\x02\x00\x03Paper"),
		"a length of nothing": {0, 0, 0, 0, 0, 0},
		"a length past it":    {1, 200, 0, 0, 0, 0},
	} {
		if got := withSerial(table, "x"); !bytes.Equal(got, table) {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestATargetThatRefusesAGoodMachineIsNoTarget(t *testing.T) {
	t.Parallel()
	s := target(t)
	s.Boot = papertpm.GoodBoot()
	s.Boot.Unlogged = []papertpm.Measurement{{PCR: 4, Type: attest.EventAction, Data: []byte("x")}}
	err := Run(t.Context(), s, Attacks(), func(r Report) { t.Errorf("%s was run", r.Attack) })
	if err == nil || !strings.Contains(err.Error(), "a good machine is refused: evidence refused: eventlog.replay") {
		t.Errorf("got %v", err)
	}
}

func TestAttacksAreDescribed(t *testing.T) {
	t.Parallel()
	var names []string
	doc, err := os.ReadFile("../../../../docs/attacks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range Attacks() {
		if slices.Contains(names, a.Name) {
			t.Errorf("%s is there twice", a.Name)
		}
		names = append(names, a.Name)
		if a.What == "" || a.Reference == "" || len(a.Want) == 0 || a.run == nil {
			t.Errorf("%s is not whole", a.Name)
		}
		row := "| `" + a.Name + "` | " + a.What + " | `" + strings.Join(a.Want, "` `") + "` | " + a.Reference + " |"
		if !strings.Contains(string(doc), row) {
			t.Errorf("docs/attacks.md lacks the row\n%s", row)
		}
	}
}

// Whoever is attacked learns from the code which of these it was.
func TestAttacksOfDifferentKindsAreToldApart(t *testing.T) {
	t.Parallel()
	kinds := []string{
		"quote-replayed", "release-replayed-after-reboot", "quote-over-no-pcr", "quote-over-other-pcrs", "quote-without-magic", "quote-of-an-unrestricted-key",
		"sha1-downgrade", "empty-bank", "ak-swapped", "ek-of-another-machine", "ek-chain-forged", "software-tpm", "log-event-retyped", "log-separator-retyped",
		"log-event-deleted", "log-events-reordered", "log-event-duplicated", "log-event-appended", "pcr7-log-deleted", "device-path-altered", "smbios-lies",
		"capped-pcr", "relayed", "stolen-disk", "root-file-system-planted", "machine-revoked", "old-image", "two-releases-in-one-boot",
		"operator-api-from-the-node-network",
	}
	by := map[string]string{}
	for _, a := range Attacks() {
		if !slices.Contains(kinds, a.Name) {
			continue
		}
		kinds = slices.DeleteFunc(kinds, func(k string) bool { return k == a.Name })
		for _, c := range a.Want {
			// It stands in for other codes where the target trusts no authority of the lab's.
			if c == string(attest.CodeEKCertificate) {
				continue
			}
			if by[c] != "" {
				t.Errorf("%s refuses both %s and %s", c, by[c], a.Name)
			}
			by[c] = a.Name
		}
	}
	if len(kinds) > 0 {
		t.Errorf("there are no attacks %q", kinds)
	}
}

func TestWhyACodeIsSharedIsSaid(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../../../docs/attacks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(doc), "\nThese stay shared:\n")
	shared := map[string][]string{}
	for _, a := range Attacks() {
		for _, c := range a.Want {
			shared[c] = append(shared[c], a.Name)
		}
	}
	rows := 0
	for c, names := range shared {
		if len(names) < 2 {
			continue
		}
		rows++
		if row := "\n| `" + c + "` | `" + strings.Join(names, "`, `") + "` | "; !strings.Contains(section, row) {
			t.Errorf("docs/attacks.md lacks the row%s", row)
		}
	}
	if n := strings.Count(section, "\n| `"); n != rows {
		t.Errorf("docs/attacks.md gives reasons for %d codes, %d are shared", n, rows)
	}
}
