package server_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// findingCodes returns the codes in the source of package attest.
func findingCodes(t *testing.T) (codes []attest.Code) {
	t.Helper()
	files, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if typ, ok := v.Type.(*ast.Ident); !ok || typ.Name != "Code" {
				return true
			}
			for _, x := range v.Values {
				lit, ok := x.(*ast.BasicLit)
				if !ok {
					t.Fatalf("%s: a code that is no literal", name)
				}
				code, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				codes = append(codes, attest.Code(code))
			}
			return true
		})
	}
	if len(codes) < 40 {
		t.Fatalf("only %d codes were found", len(codes))
	}
	return codes
}

// Whoever adds a finding decides whether it raises an alarm, and says why;
// docs/alarms.md lists what does.
func TestEachFindingHasADecisionOnItsAlarm(t *testing.T) {
	t.Parallel()
	codes, signs := findingCodes(t), server.Signs()
	for _, c := range codes {
		if signs[c].Why == "" {
			t.Errorf("%s: it is not decided whether it raises an alarm, or not said why", c)
		}
	}
	for c, s := range signs {
		if !slices.Contains(codes, c) {
			t.Errorf("a decision on %s, which does not exist", c)
		}
		if s.Alarm != "" && !slices.Contains(audit.AlarmNames(), s.Alarm) {
			t.Errorf("%s raises %s, which does not exist", c, s.Alarm)
		}
	}
	page, err := os.ReadFile("../../docs/alarms.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[attest.Code]audit.AlarmName{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z-]+\\.[a-z-]+)` \\| `([a-z.-]+)` \\|[^|]*\\|$").FindAllStringSubmatch(string(page), -1) {
		documented[attest.Code(row[1])] = audit.AlarmName(row[2])
	}
	raising := map[attest.Code]audit.AlarmName{}
	for c, s := range signs {
		if s.Alarm != "" {
			raising[c] = s.Alarm
		}
	}
	if !maps.Equal(documented, raising) {
		t.Errorf("docs/alarms.md has %v, want %v", documented, raising)
	}
	for _, name := range audit.AlarmNames() {
		if !strings.Contains(string(page), "| `"+string(name)+"` |") {
			t.Errorf("docs/alarms.md does not explain %s", name)
		}
	}
}

func TestSignsOfTamperingRaiseAnAlarm(t *testing.T) {
	t.Parallel()
	type found = []attest.Finding
	const tampered, misused = audit.AlarmEvidenceTampered, audit.AlarmMachineMisused
	for name, tt := range map[string]struct {
		findings  found
		isNew     bool // it was never accepted
		want      []audit.AlarmName
		says, not string
	}{
		"a bank that is kept back":                    {findings: found{{Code: attest.CodeBankHidden, Message: "bank sha512"}}, want: []audit.AlarmName{tampered}, says: "bank.hidden: bank sha512"},
		"a bank that is kept back, of a new machine":  {findings: found{{Code: attest.CodeBankHidden, Message: "m"}}, isNew: true, want: []audit.AlarmName{tampered}},
		"a bank that was turned off":                  {findings: found{{Code: attest.CodeBankTurnedOff, Message: "m"}}, want: []audit.AlarmName{tampered}},
		"a log that does not replay":                  {findings: found{{Code: attest.CodeLogReplay, Message: "m"}}, want: []audit.AlarmName{tampered}},
		"a log that never did":                        {findings: found{{Code: attest.CodeLogReplay, Message: "m"}}, isNew: true},
		"another's disk":                              {findings: found{{Code: attest.CodeDiskForeign, Message: "m"}}, want: []audit.AlarmName{misused}},
		"keys of Secure Boot":                         {findings: found{{Code: attest.CodeSecureBootKeys, Component: "PK", Message: "m"}}, want: []audit.AlarmName{tampered}},
		"dbx":                                         {findings: found{{Code: attest.CodeSecureBootKeys, Component: "dbx", Message: "m"}}},
		"dbx and other keys":                          {findings: found{{Code: attest.CodeSecureBootKeys, Component: "dbx", Message: "d"}, {Code: attest.CodeSecureBootKeys, Component: "db", Message: "b"}}, want: []audit.AlarmName{tampered}, says: "secureboot.keys: b", not: ": d"},
		"parameters of a known image":                 {findings: found{{Code: attest.CodeCmdline, Message: "m"}}, want: []audit.AlarmName{tampered}},
		"parameters of an unknown image":              {findings: found{{Code: attest.CodeCmdline, Message: "m"}, {Code: attest.CodeImageUnknown, Message: "m"}}},
		"both, and something else":                    {findings: found{{Code: attest.CodeDiskForeign, Message: "m"}, {Code: attest.CodeEventUnknown, Message: "e"}, {Code: attest.CodeBankHidden, Message: "m"}}, want: []audit.AlarmName{tampered, misused}, not: "e"},
		"many":                                        {findings: slices.Repeat(found{{Code: attest.CodeLogStructure, Message: "m"}}, 20), want: []audit.AlarmName{tampered}, says: "and 15 more"},
		"what a machine that is set up anew may have": {findings: found{{Code: attest.CodeFirmwareUnknown, Message: "m"}, {Code: attest.CodeEventUnknown, Message: "m"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, nil)
			b := newBox(t, s.tpmCA)
			s.enrol(b)
			if !tt.isNew {
				if status, _ := s.attest(b); status != 200 {
					t.Fatalf("HTTP %d", status)
				}
			}
			s.set(func() { s.boot.Reset++; s.refuse = tt.findings })
			if status, _ := s.attest(b); status != 403 {
				t.Fatalf("HTTP %d", status)
			}
			s.wantAlarms(tt.want...)
			for _, a := range s.alarms() {
				if !strings.Contains(a.What, tt.says) || tt.not != "" && strings.HasSuffix(a.What, tt.not) || a.Peer != "127.0.0.1" {
					t.Errorf("got %+v", a)
				}
			}
		})
	}
}

// A record that was rebuilt from the audit log, or that an earlier version wrote, has
// the release of a machine and not the evidence for it.
func TestAMachineWithAReleaseWasAccepted(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	if status, _ := s.attest(b); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	m := s.machine(b)
	m.AcceptedEvidence = manifest.SHA256{}
	if err := s.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.boot.Reset++; s.refuse = []attest.Finding{{Code: attest.CodeSecureBootOff, Message: "m"}} })
	if status, _ := s.attest(b); status != 403 {
		t.Fatalf("HTTP %d", status)
	}
	s.wantAlarms(audit.AlarmEvidenceTampered)
}

// A box that asks in a loop raises each alarm once a day, and one that has used
// up what is kept of its refusals does not keep an alarm back by that.
func TestSignsAreToldOnceADay(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits.RefusalBurst, c.Limits.Refusal = 2, 100*time.Hour })
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	refuse := func(c attest.Code) {
		s.set(func() { s.refuse = []attest.Finding{{Code: c, Message: "m"}} })
		if status, _ := s.attest(b); status != 403 {
			t.Errorf("HTTP %d", status)
		}
	}
	for range 4 {
		refuse(attest.CodeEventUnknown)
	}
	const a = audit.AlarmEvidenceTampered
	s.wantAlarms()
	refuse(attest.CodeBankHidden)
	refuse(attest.CodeBankHidden)
	s.wantAlarms(a)
	refuse(attest.CodeQuoteNonce)
	s.wantAlarms(a, a)
	s.set(func() { s.offset += 25 * time.Hour })
	refuse(attest.CodeBankHidden)
	refuse(attest.CodeBankHidden)
	s.wantAlarms(a, a, a)
	if n := strings.Count(s.kinds(), string(audit.KindVerdict)); n != 2+3 {
		t.Errorf("%d verdicts are kept, want 5", n)
	}
}

// An alarm that could not be written is raised with the next evidence.
func TestASignIsNotLostWithTheStore(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	s.set(func() {
		s.refuse = []attest.Finding{{Code: attest.CodeBankHidden, Message: "m"}}
		s.fail = func(method string) (error, bool) {
			if method == "Commit" {
				return errors.New("no space left"), false
			}
			return nil, false
		}
	})
	if status, _ := s.attest(b); status != 503 {
		t.Errorf("HTTP %d", status)
	}
	s.set(func() { s.fail = nil })
	if status, _ := s.attest(b); status != 403 {
		t.Errorf("HTTP %d", status)
	}
	s.wantAlarms(audit.AlarmEvidenceTampered)
}

// Anybody can make up evidence with such findings, and get a challenge for another's
// endorsement key.
func TestSignsOfWhoProvedNothingRaiseNoAlarm(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	other := newBox(t, s.tpmCA)
	s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeBankHidden, Message: "m"}} })
	for name, change := range map[string]func(*api.EvidenceRequest){
		"a wrong proof":             func(r *api.EvidenceRequest) { r.ActivationProof[0] ^= 1 },
		"another's endorsement key": func(r *api.EvidenceRequest) { r.Evidence.EKPublic = other.ekPublic },
		"another's attestation key": func(r *api.EvidenceRequest) { r.Evidence.AKPublic = other.akPublic },
		"no proof":                  func(r *api.EvidenceRequest) { r.ActivationProof = []byte{} },
	} {
		c := s.httpClient()
		req := s.answer(b, s.challenge(c, b))
		change(req)
		if status, _ := s.send(c, req); status != 403 {
			t.Errorf("%s: HTTP %d", name, status)
		}
	}
	s.wantAlarms()
	if m := s.machine(b); !m.LastEvidence.IsZero() {
		t.Error("evidence is kept as the machine's")
	}
}

// The disk of its first release is a machine's from then on, unless it is another's.
func TestAnApprovedMachineGetsNothingForAnothersDisk(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	owner, b := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	s.enrol(owner)
	if status, _ := s.attest(owner); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	if status, _ := s.attestFrom(b, otherDisk, false); status != 403 {
		t.Fatalf("HTTP %d", status)
	}
	if _, err := s.operatorClient().Approve(t.Context(), b.id, "ours"); err != nil {
		t.Fatal(err)
	}
	if status, resp := s.attestFrom(b, disk, true); status != 403 || codes(resp.Result) != string(attest.CodeDiskForeign) {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
	s.wantAlarms(audit.AlarmMachineMisused)
	if status, resp := s.attestFrom(b, otherDisk, false); status != 200 {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
}
