package attest_test

import (
	"bytes"
	"encoding/binary"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/image/manifest"
)

// hashList is an EFI_SIGNATURE_LIST of SHA-256 hashes.
func hashList(owner byte, hashes ...string) []byte {
	const sha256GUID = "\x26\x16\xc4\xc1\x4c\x50\x92\x40\xac\xa9\x41\xf9\x36\x93\x43\x28"
	b := []byte(sha256GUID)
	b = binary.LittleEndian.AppendUint32(b, uint32(28+48*len(hashes)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, 48)
	for _, h := range hashes {
		d := digestOf(h)
		b = append(b, bytes.Repeat([]byte{owner}, 16)...)
		b = append(b, d[:]...)
	}
	return b
}

// EFI_CERT_X509_GUID in its binary form (UEFI 2.10, 32.4.1).
const certX509 = "\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72"

// certList is an EFI_SIGNATURE_LIST of one certificate.
func certList(der []byte) []byte {
	b := binary.LittleEndian.AppendUint32([]byte(certX509), uint32(28+16+len(der)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(16+len(der)))
	return append(append(b, make([]byte, 16)...), der...)
}

func (s *scene) setDBX(data []byte) {
	s.replace(of(string(papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbx", []byte("dbx")))), func(m *papertpm.Measurement) { m.Data = papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbx", data) })
}

func TestPolicyRulesAreAppliedToAModel(t *testing.T) {
	paper := func(r ModelRule) []ModelRule { r.Vendor, r.Product = "Paper", "Box"; return []ModelRule{r} }
	rom := papertpm.Measurement{PCR: 2, Type: EventBootDriver, Data: []byte("rom"), Measured: []byte("option rom")}
	cases := map[string]struct {
		change func(*scene)
		want   []Code
		says   string
	}{
		"a version at the minimum": {change: func(s *scene) { s.policy.Models = paper(ModelRule{Minimum: []FirmwareMinimum{{Version: "1.0"}}}) }},
		"a version below the minimum": {
			change: func(s *scene) {
				s.policy.Models = paper(ModelRule{Minimum: []FirmwareMinimum{{Version: "0.9"}, {Version: "1.1", Reason: "CVE-2"}}})
			},
			want: []Code{CodeFirmwareDenied}, says: "firmware 1.0 is below the minimum 1.1: CVE-2"},
		"a version that cannot be compared": {
			change: func(s *scene) { s.policy.Models = paper(ModelRule{Minimum: []FirmwareMinimum{{Version: "A05"}}}) },
			want:   []Code{CodeFirmwareDenied}, says: "of two schemes"},
		"a version of which a part is compared": {
			change: func(s *scene) {
				s.policy.Models = paper(ModelRule{Version: regexp.MustCompile(`\.(\d)`), Minimum: []FirmwareMinimum{{Version: "1"}}})
			},
			want: []Code{CodeFirmwareDenied}, says: "below the minimum 1"},
		"a denied version": {
			change: func(s *scene) {
				s.policy.Models = paper(ModelRule{Denied: []FirmwareDenial{{Version: "1.00", Reason: "bricks"}}})
			},
			want: []Code{CodeFirmwareDenied}, says: "denied by the policy: bricks"},
		"a rule for another model": {change: func(s *scene) {
			s.policy.Models = []ModelRule{{Vendor: "Paper", Product: "Other", Minimum: []FirmwareMinimum{{Version: "9"}}}}
		}},
		"a rule for any model": {
			change: func(s *scene) { s.policy.Models = []ModelRule{{Minimum: []FirmwareMinimum{{Version: "9"}}}} },
			want:   []Code{CodeFirmwareDenied}},
		"firmware from before the date": {
			change: func(s *scene) {
				s.policy.Models = paper(ModelRule{NotBefore: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
				s.policy.Firmware.References[0].Date = "12/31/2025"
			},
			want: []Code{CodeFirmwareDenied}, says: "was released on 2025-12-31, before 2026-01-01"},
		"firmware of that date": {change: func(s *scene) {
			s.policy.Models = paper(ModelRule{NotBefore: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
			s.policy.Firmware.References[0].Date = "2026-01-01"
		}},
		"firmware without a date where one is wanted, whatever SMBIOS claims": {
			change: func(s *scene) {
				s.policy.Models = paper(ModelRule{NotBefore: time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)})
			},
			want: []Code{CodeFirmwareDenied}, says: "is not known"},

		"only measured firmware is released and it is cross-checked": {
			change: func(s *scene) {
				s.Measured[0].Data = []byte("B1")
				s.SMBIOS = papertpm.EncodeSMBIOS("B1", "Paper", "Box", "serial-1")
				s.policy.Firmware = FirmwarePolicy{References: []FirmwareReference{{Version: "B1", Status: FirmwareAllowed}}, Release: []FirmwareVerdict{FirmwareMeasured}}
			},
			want: []Code{CodeFirmwareUnknown}, says: "only cross-checked"},
		"a claim where the policy takes claims": {change: func(s *scene) {
			s.replace(of("dxe volume"), func(m *papertpm.Measurement) { m.Measured = []byte("evil") })
			s.policy.Firmware.Release = []FirmwareVerdict{FirmwareMeasured, FirmwareClaimedOnly}
		}},
		"a claim below the minimum where the policy takes claims": {
			change: func(s *scene) {
				s.replace(of("dxe volume"), func(m *papertpm.Measurement) { m.Measured = []byte("evil") })
				s.policy.Firmware.Release = []FirmwareVerdict{FirmwareMeasured, FirmwareClaimedOnly}
				s.policy.Models = paper(ModelRule{Minimum: []FirmwareMinimum{{Version: "2"}}})
			},
			want: []Code{CodeFirmwareDenied}},
		"unknown firmware is never released": {
			change: func(s *scene) {
				s.policy.Firmware = FirmwarePolicy{Release: []FirmwareVerdict{FirmwareUnknown, FirmwareVerdictDenied, FirmwareMeasured}}
			},
			want: []Code{CodeFirmwareUnknown}},

		"an option ROM that no policy names": {change: func(s *scene) {
			s.Measured = append(s.Measured[:3:3], append([]papertpm.Measurement{rom}, s.Measured[3:]...)...)
		},
			want: []Code{CodeEventUnknown}},
		"an option ROM that the policy names": {change: func(s *scene) {
			s.Measured = append(s.Measured[:3:3], append([]papertpm.Measurement{rom}, s.Measured[3:]...)...)
			s.policy.Models = paper(ModelRule{Components: []Component{{PCR: 2, SHA256: digestOf("option rom"), Name: "NIC"}}})
		}},
		"an option ROM that the policy names for another model": {
			change: func(s *scene) {
				s.Measured = append(s.Measured[:3:3], append([]papertpm.Measurement{rom}, s.Measured[3:]...)...)
				s.policy.Models = []ModelRule{{Vendor: "Other", Components: []Component{{PCR: 2, SHA256: digestOf("option rom")}}}}
			},
			want: []Code{CodeEventUnknown}},
		"an option ROM that the policy names for another PCR": {
			change: func(s *scene) {
				s.Measured = append(s.Measured[:3:3], append([]papertpm.Measurement{rom}, s.Measured[3:]...)...)
				s.policy.Models = paper(ModelRule{Components: []Component{{PCR: 3, SHA256: digestOf("option rom")}}})
			},
			want: []Code{CodeEventUnknown}},
		"the authority of an option ROM that the policy names": {change: func(s *scene) {
			a := papertpm.Measurement{PCR: 7, Type: EventAuthority, Data: papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", []byte("another owner and certificate"))}
			s.insertAfter(isSeparatorOf(7), a)
			s.policy.Models = paper(ModelRule{Components: []Component{{PCR: 7, SHA256: digestOf(string(a.Data)), Name: "NIC maker"}}})
		}},
		"settings that are not all listed": {
			change: func(s *scene) { s.policy.Models = paper(ModelRule{Configuration: true}) },
			want:   []Code{CodeEventUnknown}, says: "PCR 1"},
		"settings that are listed": {change: func(s *scene) {
			s.policy.Models = paper(ModelRule{Configuration: true, Components: []Component{{PCR: 1, SHA256: digestOf("order"), Name: "boot order"}}})
		}},
		"an event of no type of PCR 1 that the policy names": {change: func(s *scene) {
			s.insertAfter(of("order"), papertpm.Measurement{PCR: 1, Type: 0x1234, Data: []byte("maker's table")})
			s.policy.Models = paper(ModelRule{Components: []Component{{PCR: 1, SHA256: digestOf("maker's table"), Name: "the maker's table"}}})
		}},
		"the same where all is listed": {change: func(s *scene) {
			s.insertAfter(of("order"), papertpm.Measurement{PCR: 1, Type: 0x1234, Data: []byte("maker's table")})
			s.policy.Models = paper(ModelRule{Configuration: true, Components: []Component{{PCR: 1, SHA256: digestOf("order")}, {PCR: 1, SHA256: digestOf("maker's table")}}})
		}},
		"the same that the policy names for another PCR": {
			change: func(s *scene) {
				s.insertAfter(of("order"), papertpm.Measurement{PCR: 1, Type: 0x1234, Data: []byte("maker's table")})
				s.policy.Models = paper(ModelRule{Components: []Component{{PCR: 2, SHA256: digestOf("maker's table")}}})
			},
			want: []Code{CodeEventUnknown}, says: "no configuration of the platform"},
		"the digest of the image that the policy names as a setting": {
			change: func(s *scene) {
				s.insertAfter(of("order"), papertpm.Measurement{PCR: 1, Type: EventVariableBoot, Data: []byte("x"), Measured: []byte("uki")})
				s.policy.Models = paper(ModelRule{Components: []Component{{PCR: 1, SHA256: digestOf("uki")}}})
			},
			want: []Code{CodeLogStructure}},

		"a dbx with all that the policy wants, and more": {change: func(s *scene) {
			s.policy.DBXSuperset = hashList(1, "a", "b")
			s.setDBX(append(hashList(2, "b", "c"), hashList(2, "a")...))
		}},
		"a dbx that lost a hash": {
			change: func(s *scene) {
				s.policy.DBXSuperset = hashList(1, "a", "b", "c")
				s.setDBX(hashList(1, "a", "d", "e"))
			},
			want: []Code{CodeSecureBootKeys}, says: "dbx lacks 2 hashes of the 3 entries"},
		"a dbx that lost one of many": {
			change: func(s *scene) {
				s.policy.DBXSuperset = hashList(1, "a", "b", "c")
				s.setDBX(hashList(1, "a", "c"))
			},
			want: []Code{CodeSecureBootKeys}, says: "dbx lacks 1 hash of the 3 entries"},
		"a dbx that cannot be read": {
			change: func(s *scene) { s.policy.DBXSuperset = hashList(1, "a"); s.setDBX([]byte("x")) },
			want:   []Code{CodeSecureBootKeys}, says: "damaged"},

		"an old image": {
			change: func(s *scene) {
				old := papertpm.GoodImage()
				next := papertpm.GoodImage()
				next.Version, next.UKI.Authenticode = "2", digestOf("uki 2")
				s.policy.Images = []*manifest.Manifest{next}
				s.policy.DeniedImages = []DeniedImage{{Manifest: old, Reason: "version 1 is below the minimum 2"}}
			},
			want: []Code{CodeImageDenied}, says: "image demo 1 was booted, which the policy refuses: version 1 is below"},
		"the only image, which is denied": {
			change: func(s *scene) {
				s.policy.DeniedImages = []DeniedImage{{Manifest: s.policy.Images[0], Reason: "version 1 is denied"}}
				s.policy.Images = nil
			},
			want: []Code{CodeImageDenied}, says: "which the policy refuses: version 1 is denied"},
		"a policy that denies every image, and another boot application": {
			change: func(s *scene) {
				s.replace(of("uki"), func(m *papertpm.Measurement) { m.Measured = []byte("another") })
				s.policy.DeniedImages = []DeniedImage{{Manifest: s.policy.Images[0], Reason: "denied"}}
				s.policy.Images = nil
			},
			want: []Code{CodeImageUnknown}, says: "the policy allows no image"},
		"a policy that has expired": {
			change: func(s *scene) { s.policy.NotInForce = "it ended on 2026-01-01" },
			want:   []Code{CodePolicyDates}, says: "it ended on 2026-01-01"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			c.change(s)
			s.collect()
			r := s.verify()
			if got := codesOf(r); !slices.Equal(got, c.want) {
				t.Fatalf("codes are %q, want %q: %+v", got, c.want, r.Findings)
			}
			if r.Allowed != (len(c.want) == 0) {
				t.Errorf("allowed is %t", r.Allowed)
			}
			if c.says != "" && !strings.Contains(r.Findings[0].Message, c.says) {
				t.Errorf("message is %q, want it to say %q", r.Findings[0].Message, c.says)
			}
		})
	}
}

func TestClaimedFirmwareStaysAClaim(t *testing.T) {
	s := newScene(t)
	s.replace(of("dxe volume"), func(m *papertpm.Measurement) { m.Measured = []byte("evil") })
	s.policy.Firmware.Release = []FirmwareVerdict{FirmwareClaimedOnly}
	s.collect()
	r := s.verify()
	if !r.Allowed || r.Firmware.Verdict != FirmwareClaimedOnly {
		t.Fatalf("%+v", r)
	}
	for _, f := range r.Facts {
		if f.Name == "firmware.version" && f.Trust != TrustClaimed {
			t.Errorf("the version is %q", f.Trust)
		}
	}
}

func TestUpdatesOfDBXAreReadWithAndWithoutTheirSignature(t *testing.T) {
	lists := append(hashList(1, "a", "b"), certList([]byte("certificate"))...)
	signature := []byte("pkcs7 of the maker")
	update := make([]byte, 16) // EFI_TIME
	update = binary.LittleEndian.AppendUint32(update, uint32(24+len(signature)))
	update = append(update, 0x00, 0x02, 0xf1, 0x0e)
	update = append(append(update, make([]byte, 16)...), signature...)
	for name, b := range map[string][]byte{"lists": lists, "update": append(update, lists...)} {
		got, err := SignatureLists(b)
		if err != nil || !bytes.Equal(got, lists) {
			t.Errorf("%s: %d bytes, %v, want the %d of the lists", name, len(got), err, len(lists))
		}
	}
	entries, err := SignatureEntries(lists)
	if err != nil || len(entries) != 3 || entries[2] != (SignatureEntry{GUIDX509, "certificate"}) {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	for name, b := range map[string][]byte{"nothing": nil, "an update with nothing": update, "half a list": lists[:40], "text": []byte("not a signature list, but long enough for one")} {
		if _, err := SignatureLists(b); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func FuzzSignatureLists(f *testing.F) {
	f.Add(hashList(1, "a", "b"))
	f.Add(certList([]byte("certificate")))
	f.Fuzz(func(t *testing.T, b []byte) {
		lists, err := SignatureLists(b)
		if err != nil {
			return
		}
		if entries, err := SignatureEntries(lists); err != nil || len(entries) == 0 {
			t.Errorf("%d entries, %v", len(entries), err)
		}
	})
}
