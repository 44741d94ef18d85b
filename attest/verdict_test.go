package attest_test

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/image/manifest"
)

// beforeExit are the measurements but for those of Exit Boot Services.
func beforeExit(s *scene) []papertpm.Measurement {
	return slices.DeleteFunc(slices.Clone(s.Measured), func(m papertpm.Measurement) bool {
		return m.PCR == 5 && (string(m.Data) == ActionExit || string(m.Data) == ActionExitDone)
	})
}

func TestALogWithoutTheEndOfBootServicesIsAQuirk(t *testing.T) {
	quirk := func(r *Result) bool {
		return slices.ContainsFunc(r.Facts, func(f Fact) bool { return f.Name == "eventlog.quirk" && f.Trust == TrustQuoted })
	}
	s := newScene(t)
	s.Logged = beforeExit(s)
	s.collect()
	if r := s.verify(); !r.Allowed || !quirk(r) {
		t.Errorf("allowed %t, quirk %t, %+v", r.Allowed, quirk(r), r.Findings)
	}
	s = newScene(t)
	s.collect()
	if r := s.verify(); !r.Allowed || quirk(r) {
		t.Errorf("a whole log: allowed %t, quirk %t", r.Allowed, quirk(r))
	}
	// What was measured behind it is no quirk.
	s = newScene(t)
	s.Logged = beforeExit(s)
	s.Unlogged = []papertpm.Measurement{{PCR: 5, Data: []byte("more")}}
	s.collect()
	if r := s.verify(); r.Allowed || quirk(r) || !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Code == CodeLogReplay && *f.PCR == 5 }) {
		t.Errorf("with more behind it: allowed %t, quirk %t, %+v", r.Allowed, quirk(r), r.Findings)
	}
}

// A system leaves boot services once, for all banks. One that firmware did not measure it
// into has other measurements than the log's of another.
func TestBanksThatDifferInTheEndOfBootServicesAreNoQuirk(t *testing.T) {
	for _, odd := range []string{"sha256", "sha384"} {
		for name, logged := range map[string]bool{"a log without it": false, "a log with it": true} {
			s := newScene(t)
			s.Banks = []string{"sha256", "sha384"}
			s.Measure(s.tpm)
			s.pcrs = s.tpm.PCRs
			without := *s.Boot
			without.Measured = beforeExit(s)
			without.Measure(s.tpm)
			s.pcrs[odd] = s.tpm.PCRs[odd]
			if !logged {
				s.Logged = beforeExit(s)
			}
			s.collect()
			if r := s.verify(); r.Allowed || !slices.ContainsFunc(r.Findings, func(f Finding) bool { return logReplay(f.Code) && *f.PCR == 5 }) {
				t.Errorf("%s, not measured into %s: allowed %t, %+v", name, odd, r.Allowed, r.Findings)
			}
		}
	}
}

// logReplay reports whether a log does not lead to a quoted value.
func logReplay(c Code) bool {
	return slices.Contains([]Code{CodeLogReplay, CodeLogMissing, CodeLogDeleted, CodeLogReordered, CodeLogDuplicated, CodeLogAdded}, c)
}

func TestHarmlessDifferencesAreAccepted(t *testing.T) {
	cases := map[string]func(*scene){
		"a first boot": func(s *scene) {
			s.known = &Known{State: StateEnrolled, DiskGUID: papertpm.Disk}
			s.Disk.StateExists = false
		},
		"a clock that is not safe after a power cut": func(s *scene) {
			s.tpm.Clock.Safe = false
			s.tpm.Clock.Clock = 10
		},
		"another boot option tried first": func(s *scene) {
			s.insertAfter(isSeparatorOf(4), papertpm.Measurement{PCR: 4, Type: EventAction, Data: []byte(ActionReturning)}, papertpm.Measurement{PCR: 4, Type: EventAction, Data: []byte(ActionCalling)})
		},
		"boot services left at the second attempt": func(s *scene) {
			s.insertAfter(of(ActionExit), papertpm.Measurement{PCR: 5, Type: EventAction, Data: []byte(ActionExitFailed)}, papertpm.Measurement{PCR: 5, Type: EventAction, Data: []byte(ActionExit)})
		},
		"a log that was saved before boot services were left": func(s *scene) { s.Logged = beforeExit(s) },
		"the same in three banks": func(s *scene) {
			s.Banks = []string{"sha1", "sha256", "sha384"}
			s.Logged = beforeExit(s)
		},
		"separators of FF": func(s *scene) {
			for i := range s.Measured {
				if s.Measured[i].Type == EventSeparator {
					s.Measured[i].Data = []byte{0xff, 0xff, 0xff, 0xff}
				}
			}
		},
		"all four banks": func(s *scene) {
			s.Banks = []string{"sha1", "sha256", "sha384", "sha512"}
		},
		"a transport key created without PCRs": func(s *scene) {
			s.tpm.OnCreation = func(c *tpm2.TPMSCreationData) { c.PCRSelect = tpm2.TPMLPCRSelection{}; c.PCRDigest.Buffer = nil }
		},
		"a dbx that the policy lists": func(s *scene) {
			s.policy.DBX = []manifest.SHA256{digestOf("x"), digestOf(string(papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbx", []byte("dbx"))))}
		},
		"an empty dbt": func(s *scene) {
			s.insertAfter(of(string(papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbx", []byte("dbx")))), papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbt", nil)})
		},
		"several allowed images": func(s *scene) {
			m := papertpm.GoodImage()
			m.Name, m.UKI.Authenticode, m.UKI.Sections = "other", digestOf("other"), nil
			s.policy.Images = []*manifest.Manifest{m, s.policy.Images[0], nil}
		},
		"firmware that is known by its version text": func(s *scene) {
			s.Measured[0].Data = []byte("N32ET68W")
			s.SMBIOS = papertpm.EncodeSMBIOS("N32ET68W (1.44 )", "Paper", "Box", "serial-1")
			s.policy.Firmware.References = []FirmwareReference{{Version: "N32ET68W", Status: FirmwareAllowed}}
		},
		"PCR 0 started from locality 3": func(s *scene) {
			s.Locality = 3
			s.Measured = append([]papertpm.Measurement{{PCR: 0, Type: EventNoAction, Data: []byte(LocalitySignature + "\x03")}}, s.Measured...)
		},
		"another attempt in a boot in which nothing was released": func(s *scene) {
			s.known.ResetCount, s.known.RestartCount = 7, 1
		},
		"the restart after a boot in which secrets were released": func(s *scene) { s.known.Released = true },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			change(s)
			s.collect()
			if r := s.verify(); !r.Allowed {
				t.Errorf("refused: %+v", r.Findings)
			}
		})
	}
}

// A claim of a version is not evidence of it, and the verdict says how far the
// version is proven.
func TestFirmwareVerdictsHaveDegrees(t *testing.T) {
	cases := map[string]struct {
		change func(*scene)
		want   FirmwareVerdict
	}{
		"measured": {func(*scene) {}, FirmwareMeasured},
		"cross-checked": {func(s *scene) {
			s.Measured[0].Data = []byte("B1")
			s.SMBIOS = papertpm.EncodeSMBIOS("B1", "Paper", "Box", "serial-1")
			s.policy.Firmware.References = []FirmwareReference{{Version: "B1", Status: FirmwareAllowed}}
		}, FirmwareCrossChecked},
		"claimed only": {func(s *scene) {
			s.replace(of("dxe volume"), func(m *papertpm.Measurement) { m.Measured = []byte("evil") })
		}, FirmwareClaimedOnly},
		"unknown": {func(s *scene) { s.policy.Firmware.References = nil }, FirmwareUnknown},
		"denied":  {func(s *scene) { s.policy.Firmware.References[0].Status = "" }, FirmwareVerdictDenied},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			c.change(s)
			s.collect()
			r := s.verify()
			if r.Firmware.Verdict != c.want {
				t.Errorf("verdict is %q, want %q: %+v", r.Firmware.Verdict, c.want, r.Findings)
			}
			if allowed := c.want == FirmwareMeasured || c.want == FirmwareCrossChecked; r.Allowed != allowed {
				t.Errorf("allowed is %t, want %t: %+v", r.Allowed, allowed, r.Findings)
			}
		})
	}
}

// Facts of a TPM that nobody vouches for are claims, whatever it signed.
func TestNothingIsQuotedByAnUntrustedTPM(t *testing.T) {
	s := newScene(t)
	s.tpm.EKCertificates = nil
	s.collect()
	for _, f := range s.verify().Facts {
		if f.Trust == TrustQuoted || f.Trust == TrustDigest {
			t.Errorf("fact %s = %s has the trust %q", f.Name, f.Value, f.Trust)
		}
	}
}

func TestAllFindingsOfABootAreListed(t *testing.T) {
	s := newScene(t)
	s.known = &Known{State: StateRevoked, StateMade: true}
	s.Disk.StateExists = false
	s.ch.Expires = now.Add(-time.Second)
	s.SMBIOS = papertpm.EncodeSMBIOS("2.0", "Paper", "Box", "serial-1")
	s.replace(of("uki"), func(m *papertpm.Measurement) { m.Measured = []byte("other") })
	s.collect()
	want := []Code{CodeChallenge, CodeFirmwareClaim, CodeImageUnknown, CodeMachineRevoked, CodeStateLost}
	slices.Sort(want)
	if got := codesOf(s.verify()); !slices.Equal(got, want) {
		t.Errorf("codes are %q, want %q", got, want)
	}
}

func TestHostileLogsCannotFillAResult(t *testing.T) {
	s := newScene(t)
	for range 500 {
		s.insertAfter(of("dxe volume"), papertpm.Measurement{PCR: 2, Type: EventBootDriver, Data: []byte("rom"), Measured: []byte("x")})
	}
	s.collect()
	r := s.verify()
	if len(r.Findings) != MaxFindings+1 || !strings.Contains(r.Findings[MaxFindings].Message, "more findings") {
		t.Errorf("got %d findings, want %d and a note", len(r.Findings), MaxFindings)
	}
}

// A machine that fills its log with what nobody knows does not hide by that what else
// is wrong: alarms are raised by codes.
func TestHostileLogsHideNoCode(t *testing.T) {
	s := newScene(t)
	s.known.State = StateRevoked
	for range 500 {
		s.insertAfter(of("dxe volume"), papertpm.Measurement{PCR: 2, Type: EventBootDriver, Data: []byte("rom"), Measured: []byte("x")})
	}
	s.collect()
	r := s.verify()
	if got := codesOf(r); !slices.Contains(got, CodeMachineRevoked) {
		t.Errorf("codes are %q", got)
	}
	if n := len(r.Findings); n > MaxFindings+5 || !strings.Contains(r.Findings[n-1].Message, "more findings") {
		t.Errorf("got %d findings, want little more than %d and a note", n, MaxFindings)
	}
}

func TestVerifyDoesNotKeepTheEvidence(t *testing.T) {
	s := newScene(t)
	s.collect()
	v, ok := s.verify().Verified()
	if !ok {
		t.Fatal("refused")
	}
	before := v.Clone()
	s.ev.Quotes[0].PCRs[7][0] ^= 1
	s.ev.Transport.Public[20] ^= 1
	if !reflect.DeepEqual(v, before) {
		t.Error("a change of the evidence changed the proof")
	}
}

func BenchmarkVerify(b *testing.B) {
	s := newScene(b)
	s.collect()
	b.ReportAllocs()
	for b.Loop() {
		if r := s.verify(); !r.Allowed {
			b.Fatal(r.Findings)
		}
	}
}

// BenchmarkVerifyHostileLog is the worst log that its limits allow: it bounds
// what a machine that passed the cheap checks can cost.
func BenchmarkVerifyHostileLog(b *testing.B) {
	s := newScene(b)
	junk := papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: bytes.Repeat([]byte("x"), 200)}
	for len(s.Measured) < MaxEvents {
		s.insertAfter(isSeparatorOf(7), slices.Repeat([]papertpm.Measurement{junk}, min(100, MaxEvents-len(s.Measured)))...)
	}
	s.collect()
	b.SetBytes(int64(len(s.ev.EventLog)))
	for b.Loop() {
		if r := s.verify(); r.Allowed {
			b.Fatal("allowed")
		}
	}
}
