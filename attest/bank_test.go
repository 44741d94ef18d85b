package attest_test

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/image/manifest"
)

func hexOf(hash crypto.Hash, data []byte) string {
	h := hash.New()
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}

// sha384Scene is an accepted boot of a machine on which only these banks are on.
func sha384Scene(t testing.TB, banks ...string) *scene {
	s := newScene(t)
	s.Banks = banks
	if !slices.Contains(banks, "sha256") {
		s.policy.Bank = "sha384"
	}
	s.policy.Images = []*manifest.Manifest{papertpm.Predicted(papertpm.GoodImage(), s.Boot)}
	for i := range s.policy.Firmware.References[1:] {
		s.policy.Firmware.References[1+i].SHA384 = []string{hexOf(crypto.SHA384, []byte("dxe volume of no one"))}
	}
	return s
}

func TestEvidenceIsAppraisedBySHA384(t *testing.T) {
	for name, c := range map[string]struct {
		banks  []string
		policy string
		want   string
	}{
		"beside SHA-1":                           {banks: []string{"sha1", "sha384"}, policy: "sha384", want: "sha384"},
		"where the policy says so":               {banks: []string{"sha256", "sha384"}, policy: "sha384", want: "sha384"},
		"where the policy says so, and is alone": {banks: []string{"sha384"}, policy: "sha384", want: "sha384"},
		"not where SHA-256 is active":            {banks: []string{"sha256", "sha384"}, want: "sha256"},
	} {
		t.Run(name, func(t *testing.T) {
			s := sha384Scene(t, c.banks...)
			s.policy.Bank = c.policy
			s.collect()
			r := s.verify()
			v, ok := r.Verified()
			if !ok {
				t.Fatalf("refused: %+v", r.Findings)
			}
			for _, f := range r.Facts {
				if f.Name == "pcr.bank" && f.Value != c.want {
					t.Errorf("appraised by %s, want %s", f.Value, c.want)
				}
			}
			if r.Firmware.Verdict != FirmwareMeasured || r.Image != "demo 1" {
				t.Errorf("firmware is %s, image %q", r.Firmware.Verdict, r.Image)
			}
			secret := bytes.Repeat([]byte{3}, SecretSize)
			w, err := Wrap(v, secret)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := s.tpm.Unwrap(w); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("unwrap: %v", err)
			}
			s.tpm.Extend(4, []byte("later"))
			if _, err := s.tpm.Unwrap(w); err == nil {
				t.Error("a secret was unwrapped in another state")
			}
		})
	}
}

func TestBanksAreRefusedWithTheirFinding(t *testing.T) {
	uki := of("uki")
	cases := map[string]struct {
		banks  []string
		before func(*scene)
		after  func(*scene)
		want   []Code
		says   string
	}{
		"SHA-384 without a quote of SHA-256": {
			banks: []string{"sha384"}, after: func(s *scene) {
				s.ev.Quotes = slices.DeleteFunc(s.ev.Quotes, func(q Quote) bool { return q.Bank == "sha256" })
			}, want: []Code{CodeQuoteMissing}, says: "not even without a PCR"},
		"a bank that is said to be off, quoted with its PCRs": {
			banks: []string{"sha256", "sha384"}, after: func(s *scene) {
				for i := range s.ev.Quotes {
					if s.ev.Quotes[i].Bank == "sha256" {
						s.ev.Quotes[i].PCRs = nil
					}
				}
			}, want: []Code{CodeQuoteSelection}},
		"a bank that is off, with values beside": {
			banks: []string{"sha384"}, after: func(s *scene) {
				for i := range s.ev.Quotes {
					if s.ev.Quotes[i].Bank == "sha256" {
						s.ev.Quotes[i].PCRs = s.ev.Quotes[0].PCRs
					}
				}
			}, want: []Code{CodeQuoteEmpty}},
		"SHA-1 alone, with the TPM's word": {
			banks: []string{"sha1"}, before: func(s *scene) { s.LogBanks = []string{"sha1", "sha256"} },
			want: []Code{CodeQuoteMissing}, says: "SHA-1 never suffices"},
		"SHA-512 alone": {
			banks: []string{"sha512"}, before: func(s *scene) { s.LogBanks = []string{"sha256", "sha512"} }, want: []Code{CodeQuoteMissing}},
		"a log with only SHA-1": {
			banks: []string{"sha1", "sha256"}, before: func(s *scene) { s.LogBanks = []string{"sha1"} }, want: []Code{CodeLogMalformed}},
		"SHA-384 that the policy wants and the machine lacks": {
			banks: []string{"sha256"}, before: func(s *scene) { s.policy.Bank = "sha384" }, want: []Code{CodeQuoteMissing}, says: "not active"},
		"SHA-256 that the policy wants and the machine lacks": {
			banks: []string{"sha384"}, before: func(s *scene) { s.policy.Bank = "sha256" }, want: []Code{CodeQuoteMissing}},
		"a policy that would be content with SHA-1": {
			banks: []string{"sha1", "sha256"}, before: func(s *scene) { s.policy.Bank = "sha1" }, want: []Code{CodeQuoteMissing}},
		"an image without SHA-384 references": {
			banks: []string{"sha384"}, before: func(s *scene) { s.policy.Images[0].Boots = nil },
			want: []Code{CodeAuthority, CodeCmdline, CodeEventUnknown, CodeImageUnknown, CodeSection}, says: "no sha384 reference"},
		"firmware without SHA-384 references": {
			banks: []string{"sha384"}, before: func(s *scene) { s.policy.Firmware.References[0].SHA384 = nil }, want: []Code{CodeFirmwareUnknown}},
		"another UKI in the SHA-384 bank": {
			banks: []string{"sha384"}, before: func(s *scene) {
				s.replace(uki, func(m *papertpm.Measurement) { m.Measured = []byte("evil") })
			}, want: []Code{CodeImageUnknown}},
		"a log that declares SHA-256, which is off, with the digests of a good boot": {
			banks: []string{"sha384"}, before: func(s *scene) {
				s.LogBanks = []string{"sha256", "sha384"}
				s.replace(uki, func(m *papertpm.Measurement) { split(m, "uki", "evil") })
				s.replace(of("dxe volume"), func(m *papertpm.Measurement) { split(m, "dxe volume", "evil") })
			}, want: []Code{CodeFirmwareUnknown, CodeImageUnknown}},
		"an option ROM under the SHA-256 digest of one that is allowed, where SHA-256 is off": {
			banks: []string{"sha384"}, before: func(s *scene) {
				s.LogBanks = []string{"sha256", "sha384"}
				s.policy.Models = []ModelRule{{Components: []Component{{PCR: 2, SHA256: digestOf("rom"), Name: "a card"}}}}
				rom := papertpm.Measurement{PCR: 2, Type: EventBootDriver, Data: []byte("path")}
				split(&rom, "rom", "evil rom")
				s.insertAfter(of("dxe volume"), rom)
			}, want: []Code{CodeEventUnknown}},
		// Firmware extended SHA-384 alone. What it booted filled SHA-256.
		"the UKI of a good boot in one bank, another in the other": {
			banks: []string{"sha256", "sha384"}, before: func(s *scene) {
				s.replace(uki, func(m *papertpm.Measurement) { split(m, "uki", "evil") })
			}, want: []Code{CodeLogStructure}, says: "bank sha384 has another event than bank sha256"},
		// Firmware extended one of the two alone, and is a build that is denied.
		"allowed firmware in SHA-256, another in SHA-384": {
			banks: []string{"sha256", "sha384"}, before: func(s *scene) {
				s.replace(of("dxe volume"), func(m *papertpm.Measurement) { split(m, "dxe volume", "dxe volume 0") })
			}, want: []Code{CodeLogStructure}, says: "by bank sha256 the firmware is version 1.0, by bank sha384 it is not"},
		"allowed firmware in SHA-384, another in SHA-256": {
			banks: []string{"sha256", "sha384"}, before: func(s *scene) {
				s.policy.Bank = "sha384"
				s.replace(of("dxe volume"), func(m *papertpm.Measurement) { split(m, "dxe volume 0", "dxe volume") })
			}, want: []Code{CodeLogStructure}, says: "by bank sha384 the firmware is version 1.0, by bank sha256 it is not"},
		"Secure Boot on in one bank, off in the other": {
			banks: []string{"sha1", "sha256"}, before: func(s *scene) {
				on := papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1})
				s.replace(of(string(on)), func(m *papertpm.Measurement) {
					split(m, string(on), string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{0})))
				})
			}, want: []Code{CodeLogStructure}},
		// What the firmware measured hides behind a digest that is known, with data that
		// is not what was measured.
		"an action in one bank, a UKI in the other": {
			banks: []string{"sha1", "sha256"}, before: func(s *scene) {
				m := papertpm.Measurement{PCR: 4, Type: EventAction, Data: []byte("of something")}
				split(&m, ActionCalling, "evil")
				s.insertAfter(isSeparatorOf(4), m)
			}, want: []Code{CodeLogStructure}, says: "PCR 4, event"},
		"a separator in one bank, Secure Boot off in the other": {
			banks: []string{"sha1", "sha256"}, before: func(s *scene) {
				s.replace(isSeparatorOf(7), func(m *papertpm.Measurement) {
					m.Data = []byte("of something")
					split(m, "\x00\x00\x00\x00", "evil")
				})
			}, want: []Code{CodeLogStructure}, says: "PCR 7, event"},
		"the name of a section in one bank, another event in the other": {
			banks: []string{"sha1", "sha256"}, before: func(s *scene) {
				s.replace(of(".linux\x00"), func(m *papertpm.Measurement) {
					m.Data = []byte("of something")
					split(m, ".linux\x00", "evil")
				})
			}, want: []Code{CodeLogStructure}, says: "PCR 11, event"},
		"the command line in one bank, another in the other": {
			banks: []string{"sha1", "sha256"}, before: func(s *scene) {
				line := string(papertpm.EncodeUTF16(papertpm.Cmdline))
				s.replace(of(line), func(m *papertpm.Measurement) { split(m, line, "evil") })
			}, want: []Code{CodeLogStructure}, says: "PCR 9, event"},
		"a bank of which firmware extended nothing": {
			banks: []string{"sha256", "sha384"}, before: func(s *scene) {
				s.Measure(s.tpm)
				s.pcrs = s.tpm.PCRs
				for p := range 8 {
					s.pcrs["sha384"][p] = make([]byte, 48)
				}
			}, want: []Code{CodeBankEmpty}, says: "nothing was measured into PCR 0 to 7"},
		"a bank of which all bits are set": {
			banks: []string{"sha1", "sha256"}, before: func(s *scene) {
				s.Measure(s.tpm)
				s.pcrs = s.tpm.PCRs
				for p := range 8 {
					s.pcrs["sha1"][p] = bytes.Repeat([]byte{0xff}, 20)
				}
			}, want: []Code{CodeLogReplay}, says: "PCR 0, bank sha1"},
		"all bits set in the bank that counts, and a log of nothing": {
			banks: []string{"sha256"}, before: func(s *scene) {
				s.Measure(s.tpm)
				s.pcrs = s.tpm.PCRs
				for _, p := range PolicyPCRs() {
					s.pcrs["sha256"][p] = bytes.Repeat([]byte{0xff}, 32)
				}
				s.Logged = []papertpm.Measurement{}
			}, want: []Code{CodeLogMissing, CodePCRCapped, CodePCRNotZero}},
		"zero PCRs and a log of nothing": {
			banks: []string{"sha256"}, before: func(s *scene) { s.Measured = nil },
			want: []Code{CodeFirmwareUnknown, CodeImageUnknown, CodeLogStructure, CodeSecureBootKeys, CodeSecureBootOff, CodeSection}, says: "0 separators"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := sha384Scene(t, c.banks...)
			if c.before != nil {
				c.before(s)
			}
			s.collect()
			if c.after != nil {
				c.after(s)
			}
			r := s.verify()
			slices.Sort(c.want)
			if got := codesOf(r); !slices.Equal(got, c.want) || r.Allowed {
				t.Errorf("codes are %q, want %q", got, c.want)
			}
			var all []string
			for _, f := range r.Findings {
				all = append(all, string(f.Code)+": "+f.Message)
				if f.Hint == "" {
					t.Errorf("finding %s has no hint", f.Code)
				}
			}
			if text := strings.Join(all, "\n"); !strings.Contains(text, c.says) {
				t.Errorf("no message says %q:\n%s", c.says, text)
			}
		})
	}
}

// Digests of a bank that is off are nobody's word, and no reason to refuse.
func TestALogMayHaveDigestsOfABankThatIsOff(t *testing.T) {
	s := sha384Scene(t, "sha384")
	s.LogBanks = []string{"sha256", "sha384"}
	s.replace(of("dxe volume"), func(m *papertpm.Measurement) { split(m, "another volume", "dxe volume") })
	s.collect()
	if r := s.verify(); !r.Allowed {
		t.Errorf("refused: %+v", r.Findings)
	}
}

// split gives an event the digest of one thing in SHA-256 and of another in the
// other banks.
func split(m *papertpm.Measurement, in256, in384 string) {
	m.Digests = map[string][]byte{}
	for bank, h := range map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384} {
		data := in384
		if bank == "sha256" {
			data = in256
		}
		m.Digests[bank], _ = hex.DecodeString(hexOf(h, []byte(data)))
	}
}

// A component is named by SHA-256. Where SHA-256 is off, that is of its data, if
// this is what was measured.
func TestComponentsOfProvenDataAreAllowedBySHA384(t *testing.T) {
	s := sha384Scene(t, "sha384")
	s.policy.Models = []ModelRule{{Components: []Component{{PCR: 6, SHA256: digestOf("a setting"), Name: "the maker's setting"}}}}
	s.insertAfter(of("dxe volume"), papertpm.Measurement{PCR: 6, Type: EventTag, Data: []byte("a setting")})
	s.collect()
	if r := s.verify(); !r.Allowed {
		t.Errorf("refused: %+v", r.Findings)
	}
}

// Which PCRs a bank that is off can be said to have: none, not fewer.
func TestABankIsOffOnlyWithoutAnyPCR(t *testing.T) {
	s := sha384Scene(t, "sha384")
	s.tpm.OnQuote = func(bank string, a *tpm2.TPMSAttest) {
		if bank == "sha256" {
			q, _ := a.Attested.Quote()
			q.PCRSelect = papertpm.Selection(tpm2.TPMAlgSHA256, []int{0})
		}
	}
	s.collect()
	if got := codesOf(s.verify()); !slices.Equal(got, []Code{CodeQuoteSelection}) {
		t.Errorf("codes are %q", got)
	}
}

func TestPCR0IsJudgedFromItsLocality(t *testing.T) {
	for _, c := range []struct {
		locality, logged byte
		want             []Code
	}{
		{3, 3, nil}, {4, 4, nil}, {0, 0, nil},
		{3, 0, []Code{CodeLogReplay}}, {0, 3, []Code{CodeLogReplay}}, {4, 3, []Code{CodeLogReplay}},
		{0, 1, []Code{CodeLogMalformed}}, {0, 255, []Code{CodeLogMalformed}},
	} {
		s := newScene(t)
		s.Locality = c.locality
		s.Measured = append([]papertpm.Measurement{{Type: EventNoAction, Data: append([]byte(LocalitySignature), c.logged)}}, s.Measured...)
		s.collect()
		if got := codesOf(s.verify()); !slices.Equal(got, c.want) {
			t.Errorf("started from locality %d, logged as %d: codes are %q, want %q", c.locality, c.logged, got, c.want)
		}
	}
}
