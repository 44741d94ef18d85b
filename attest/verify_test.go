package attest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/image/manifest"
)

func codesOf(r *Result) []Code {
	var out []Code
	for _, f := range r.Findings {
		out = append(out, f.Code)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestGoodEvidenceIsAccepted(t *testing.T) {
	s := newScene(t)
	s.collect()
	r := s.verify()
	v, ok := r.Verified()
	if !ok {
		t.Fatalf("refused: %+v", r.Findings)
	}
	if v.Machine() != r.Machine || !bytes.Equal(v.AKName(), s.tpm.name()) || v.Clock() != 50_000 || v.TPMFirmware() != s.tpm.firmware {
		t.Errorf("proof is of machine %s, key %x, clock %d, firmware %#x", v.Machine(), v.AKName(), v.Clock(), v.TPMFirmware())
	}
	if reset, restart := v.Boot(); reset != 7 || restart != 1 {
		t.Errorf("boot is %d, %d, want 7, 1", reset, restart)
	}
	if r.Image != "demo 1" || r.ImageUKI != digestOf("uki") || r.Policy != "test policy" {
		t.Errorf("image %q %s, policy %q", r.Image, r.ImageUKI, r.Policy)
	}
	want := Firmware{Verdict: FirmwareMeasured, Version: "1.0", Claimed: "1.0", Vendor: "Paper", Product: "Box", Digests: []manifest.SHA256{digestOf("pei volume"), digestOf("dxe volume")}}
	if g, w := mustJSON(t, r.Firmware), mustJSON(t, want); g != w {
		t.Errorf("firmware is %s, want %s", g, w)
	}
	if _, err := Wrap(v, make(Secret, SecretSize)); err != nil {
		t.Error(err)
	}
	trust := map[string]Trust{}
	for _, f := range r.Facts {
		trust[f.Name] = f.Trust
	}
	for name, want := range map[string]Trust{
		"image": TrustQuoted, "secureboot": TrustQuoted, "firmware.version": TrustQuoted, "firmware.digest": TrustDigest,
		"smbios.serial": TrustClaimed, "machine.state": TrustRecorded, "disk.guid.measured": TrustQuoted, "tpm.resets": TrustQuoted,
	} {
		if trust[name] != want {
			t.Errorf("fact %s has the trust %q, want %q", name, trust[name], want)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAResultFromJSONProvesNothing(t *testing.T) {
	s := newScene(t)
	s.collect()
	var r Result
	if err := json.Unmarshal([]byte(mustJSON(t, s.verify())), &r); err != nil {
		t.Fatal(err)
	}
	if !r.Allowed {
		t.Fatal("the result was not carried over")
	}
	if _, ok := r.Verified(); ok {
		t.Error("a decoded result gave a proof")
	}
	if _, err := Wrap(nil, make(Secret, SecretSize)); err == nil {
		t.Error("a secret was wrapped without proof")
	}
}

func TestAZeroPolicyRefusesEverything(t *testing.T) {
	s := newScene(t)
	s.collect()
	s.policy = &Policy{}
	if r := s.verify(); r.Allowed || len(r.Findings) == 0 {
		t.Errorf("allowed under a zero policy: %+v", r)
	}
	if r := Verify(nil, nil, nil, nil, nil); r.Allowed || len(r.Findings) == 0 {
		t.Error("nothing was allowed")
	}
}

// Each case is a good boot but for one change. before changes what is measured,
// made and known; after changes the evidence when it is signed. The findings
// must have exactly these codes.
func TestEachAttackIsRefusedWithItsFinding(t *testing.T) {
	cases := map[string]struct {
		before func(*scene)
		after  func(*scene)
		want   []Code
		says   string // in one of the messages
	}{
		// Challenge and session.
		"an expired challenge": {
			before: func(s *scene) { s.ch.Expires = paperNow }, want: []Code{CodeChallenge}, says: "expired"},
		"a challenge for another purpose": {
			before: func(s *scene) { s.ch.Purpose = "renew" }, want: []Code{CodeChallenge}, says: `"renew"`},
		"a challenge for another endorsement key": {
			after: func(s *scene) { s.ch.EKPublic = []byte("other") }, want: []Code{CodeChallenge}},
		"a challenge for another attestation key": {
			after: func(s *scene) { s.ch.AKPublic = []byte("other") }, want: []Code{CodeChallenge}},
		"a connection without channel binding": {
			before: func(s *scene) { s.ses.Exporter = nil }, want: []Code{CodeChallenge}},
		"evidence relayed over another connection": {
			after: func(s *scene) { s.ses.Exporter = bytes.Repeat([]byte{8}, 32) }, want: []Code{CodeQuoteNonce}},
		"a quote replayed for a later nonce": {
			after: func(s *scene) {
				s.ch.Nonce = bytes.Repeat([]byte{1}, 32)
				s.ses.ActivationProof = ActivationProof(s.ch.ActivationSecret, s.ch.ID, s.ch.Nonce, s.ev.AKPublic)
			}, want: []Code{CodeQuoteNonce}},

		// Keys.
		"a wrong activation proof": {
			after: func(s *scene) { s.ses.ActivationProof[0] ^= 1 }, want: []Code{CodeActivation}},
		"the activation secret itself instead of the proof": {
			after: func(s *scene) { s.ses.ActivationProof = s.ch.ActivationSecret }, want: []Code{CodeActivation}},
		"an activation proof of an empty secret": {
			after: func(s *scene) {
				s.ch.ActivationSecret = nil
				s.ses.ActivationProof = ActivationProof(nil, s.ch.ID, s.ch.Nonce, s.ev.AKPublic)
			}, want: []Code{CodeChallenge}},
		"no endorsement certificate": {
			before: func(s *scene) { s.tpm.certs = nil }, want: []Code{CodeEKCertificate}},
		"an endorsement certificate of another authority": {
			before: func(s *scene) { s.tpm.certs = [][]byte{newPaperCA(s.t).certify(s.tpm.ek, nil).Raw} }, want: []Code{CodeEKCertificate}},
		"the endorsement certificate of another machine": {
			before: func(s *scene) { s.tpm.certs = newPaperTPM(s.t, s.ca).certs }, want: []Code{CodeEKMismatch}},
		"a class of TPM that is not allowed": {
			before: func(s *scene) { s.policy.TPM.Allowed = []TPMClass{TPMHardware} }, want: []Code{CodeTPMClass}},
		"an unrestricted attestation key": {
			before: func(s *scene) { s.tpm.akPublic.ObjectAttributes.Restricted = false; s.known.AKName = nil }, want: []Code{CodeAKAttributes}},
		"an attestation key that was imported": {
			before: func(s *scene) {
				s.tpm.akPublic.ObjectAttributes.SensitiveDataOrigin = false
				s.known.AKName = nil
			}, want: []Code{CodeAKAttributes}},
		"an attestation key of the owner hierarchy, whose counters are obfuscated": {
			before: func(s *scene) { s.tpm.hierarchy = tpm2.TPMRHOwner }, want: []Code{CodeAKAttributes}},
		"another attestation key than last time": {
			before: func(s *scene) { s.known.AKName = []byte("other") }, want: []Code{CodeAKChanged}},

		// Quotes.
		"no quote": {
			after: func(s *scene) { s.ev.Quotes = nil }, want: []Code{CodeQuoteMissing}},
		"only the SHA-1 bank": {
			before: func(s *scene) { s.tpm.banks = []string{"sha1", "sha256"}; s.banks = []string{"sha1", "sha256"} },
			after:  func(s *scene) { s.ev.Quotes = s.ev.Quotes[:1] }, want: []Code{CodeQuoteMissing}, says: "SHA-1 never suffices"},
		"a bank of the log that is not quoted": {
			before: func(s *scene) { s.tpm.banks = []string{"sha256", "sha384"}; s.banks = []string{"sha256", "sha384"} },
			after:  func(s *scene) { s.ev.Quotes = s.ev.Quotes[:1] }, want: []Code{CodeQuoteMissing}, says: "sha384"},
		"a quoted bank that firmware left empty": {
			before: func(s *scene) { s.tpm.banks = []string{"sha256", "sha384"} }, want: []Code{CodeLogReplay}, says: "sha384"},
		"one bank quoted twice": {
			after: func(s *scene) { s.ev.Quotes = append(s.ev.Quotes, s.ev.Quotes[0]) }, want: []Code{CodeMalformed}},
		"a quote with one byte of its signature changed": {
			after: func(s *scene) { b := s.ev.Quotes[0].Signature; b[len(b)-1] ^= 1 }, want: []Code{CodeQuoteSignature}},
		"a quote signed by another key": {
			after: func(s *scene) {
				q := newPaperTPM(s.t, s.ca)
				s.ev.Quotes[0].Signature = q.sign(s.ev.Quotes[0].Attest)
			}, want: []Code{CodeQuoteSignature}},
		"a quote without the magic": {
			before: func(s *scene) { s.tpm.rawQuote = func(b []byte) []byte { b[0] = 0; return b } }, want: []Code{CodeQuoteFormat}, says: "magic"},
		"a certification in place of a quote": {
			after: func(s *scene) {
				s.ev.Quotes[0].Attest, s.ev.Quotes[0].Signature = s.ev.Transport.Certify, s.ev.Transport.Signature
			}, want: []Code{CodeQuoteFormat}},
		"a quote with a SHA-1 signature": {
			before: func(s *scene) { s.tpm.signHash = tpm2.TPMAlgSHA1 }, want: []Code{CodeQuoteFormat}},
		"a quote with a trailing byte": {
			before: func(s *scene) { s.tpm.rawQuote = func(b []byte) []byte { return append(b, 0) } }, want: []Code{CodeMalformed}},
		"a quote that is cut off": {
			before: func(s *scene) { s.tpm.rawQuote = func(b []byte) []byte { return b[:len(b)-2] } }, want: []Code{CodeMalformed}},
		"a quote over fewer PCRs": {
			before: func(s *scene) {
				s.tpm.onQuote = func(_ string, a *tpm2.TPMSAttest) {
					q, _ := a.Attested.Quote()
					q.PCRSelect = selectionOf(tpm2.TPMAlgSHA256, []int{0, 1, 2})
				}
			}, want: []Code{CodeQuoteSelection}},
		"a quote over no PCR": {
			before: func(s *scene) {
				s.tpm.onQuote = func(_ string, a *tpm2.TPMSAttest) {
					q, _ := a.Attested.Quote()
					q.PCRSelect = tpm2.TPMLPCRSelection{}
				}
			}, want: []Code{CodeQuoteSelection}, says: "no PCR"},
		"a quote of another bank under the name sha256": {
			before: func(s *scene) {
				s.tpm.onQuote = func(_ string, a *tpm2.TPMSAttest) {
					q, _ := a.Attested.Quote()
					q.PCRSelect = selectionOf(tpm2.TPMAlgSHA384, PolicyPCRs())
				}
			}, want: []Code{CodeQuoteSelection}},
		"a quote over one PCR more": {
			before: func(s *scene) {
				s.tpm.onQuote = func(_ string, a *tpm2.TPMSAttest) {
					q, _ := a.Attested.Quote()
					q.PCRSelect = selectionOf(tpm2.TPMAlgSHA256, append(PolicyPCRs(), 16))
				}
			}, want: []Code{CodeQuoteSelection}},
		"PCR values that were not quoted": {
			after: func(s *scene) { s.ev.Quotes[0].PCRs[7][0] ^= 1 }, want: []Code{CodeQuoteDigest}},
		"PCR values with one missing": {
			after: func(s *scene) { delete(s.ev.Quotes[0].PCRs, 7) }, want: []Code{CodeQuoteDigest}},
		"bytes moved from one PCR value to the next": {
			after: func(s *scene) {
				p := s.ev.Quotes[0].PCRs
				p[1], p[0] = append([]byte{p[0][31]}, p[1]...), p[0][:31]
			}, want: []Code{CodeQuoteDigest}},
		"quotes of two boots": {
			before: func(s *scene) {
				s.tpm.banks, s.banks = []string{"sha256", "sha384"}, []string{"sha256", "sha384"}
				s.tpm.onQuote = func(bank string, a *tpm2.TPMSAttest) {
					if bank == "sha384" {
						a.ClockInfo.ResetCount--
					}
				}
			}, want: []Code{CodeClock}},

		// Counters.
		"a reset counter that went back": {
			before: func(s *scene) { s.known.ResetCount = 8 }, want: []Code{CodeClock}},
		"a restart counter that went back": {
			before: func(s *scene) { s.known.ResetCount, s.known.RestartCount = 7, 2 }, want: []Code{CodeClock}},
		"a clock that went back in one boot": {
			before: func(s *scene) { s.known.ResetCount, s.known.Clock = 7, 60_000 }, want: []Code{CodeClock}},
		"a clock that went back and is said to be safe": {
			before: func(s *scene) { s.known.Clock = 60_000 }, want: []Code{CodeClock}},
		"an older firmware of the TPM": {
			before: func(s *scene) { s.known.TPMFirmware++ }, want: []Code{CodeTPMFirmware}},

		// Transport key.
		"a transport key that an authorization value opens": {
			before: func(s *scene) {
				s.tpm.onTransport = func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true }
			}, want: []Code{CodeTransport}},
		"a transport key that can be duplicated": {
			before: func(s *scene) {
				s.tpm.onTransport = func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }
			}, want: []Code{CodeTransport}},
		"a transport key without policy": {
			before: func(s *scene) { s.tpm.onTransport = func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = nil } }, want: []Code{CodeTransport}},
		"a transport key for other PCR values": {
			before: func(s *scene) { s.tpm.onTransport = func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer[0] ^= 1 } }, want: []Code{CodeTransport}},
		"a transport key of the owner hierarchy, which outlives a reset": {
			before: func(s *scene) {
				s.tpm.onCreation = func(c *tpm2.TPMSCreationData) { c.ParentName.Buffer = []byte{0x40, 0, 0, 1} }
			}, want: []Code{CodeTransport}, says: "TPM_RH_NULL"},
		"a transport key made in another state": {
			before: func(s *scene) { s.tpm.onCreation = func(c *tpm2.TPMSCreationData) { c.PCRDigest.Buffer[0] ^= 1 } }, want: []Code{CodeTransport}},
		"a transport key other than the certified one": {
			before: func(s *scene) {
				s.tpm.onCertify = func(a *tpm2.TPMSAttest) {
					c, _ := a.Attested.Creation()
					c.ObjectName.Buffer[5] ^= 1
				}
			}, want: []Code{CodeTransport}},
		"creation data other than the certified one": {
			before: func(s *scene) {
				s.tpm.onCertify = func(a *tpm2.TPMSAttest) {
					c, _ := a.Attested.Creation()
					c.CreationHash.Buffer[5] ^= 1
				}
			}, want: []Code{CodeTransport}},
		"a transport key swapped after quoting": {
			after: func(s *scene) { s.ev.Transport = s.tpm.transport(s.ch.Nonce) }, want: []Code{CodeQuoteNonce}},
		"a certification of an earlier challenge": {
			before: func(s *scene) {
				s.tpm.onCertify = func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = CertifyData([]byte("earlier")) }
			}, want: []Code{CodeTransport}},
		"a certification of an earlier boot": {
			before: func(s *scene) {
				s.tpm.onCertify = func(a *tpm2.TPMSAttest) { a.ClockInfo.ResetCount-- }
			}, want: []Code{CodeClock}},

		// Event log.
		"no event log": {
			after: func(s *scene) { s.ev.EventLog = nil }, want: []Code{CodeLogMalformed, CodeQuoteNonce}},
		"an event log that is cut off": {
			before: func(s *scene) { s.logged = append([]measurement{}, s.measured[:5]...) }, want: []Code{CodeLogReplay}},
		"all events of PCR 7 deleted": {
			before: func(s *scene) {
				s.logged = slices.DeleteFunc(slices.Clone(s.measured), func(m measurement) bool { return m.pcr == 7 })
			}, want: []Code{CodeLogReplay}},
		"firmware that never measured into PCR 7": {
			before: func(s *scene) {
				s.measured = slices.DeleteFunc(s.measured, func(m measurement) bool { return m.pcr == 7 })
			}, want: []Code{CodeLogStructure, CodeSecureBootOff, CodeSecureBootKeys}},
		"two events swapped": {
			before: func(s *scene) {
				s.logged = slices.Clone(s.measured)
				s.logged[1], s.logged[2] = s.logged[2], s.logged[1]
			}, want: []Code{CodeLogReplay}},
		"an event appended to the log only": {
			before: func(s *scene) {
				s.logged = append(slices.Clone(s.measured), measurement{pcr: 5, typ: EventAction, data: []byte(actionExit)})
			}, want: []Code{CodeLogReplay}},
		"a measurement that is not in the log": {
			before: func(s *scene) { s.extra = []measurement{{pcr: 4, data: []byte("kexec")}} }, want: []Code{CodeLogReplay}},
		"a second separator": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(4), measurement{pcr: 4, typ: EventSeparator, data: make([]byte, 4)})
			}, want: []Code{CodeLogStructure}, says: "2 separators"},
		"no separator": {
			before: func(s *scene) {
				s.measured = slices.DeleteFunc(s.measured, func(m measurement) bool { return m.pcr == 6 })
			}, want: []Code{CodeLogStructure}, says: "0 separators"},
		"an error separator": {
			before: func(s *scene) {
				s.replace(isSeparatorOf(3), func(m *measurement) { m.data = []byte{1, 0, 0, 0} })
			}, want: []Code{CodeEventUnknown, CodeLogStructure}},
		"a separator under another type": {
			before: func(s *scene) { s.replace(isSeparatorOf(2), func(m *measurement) { m.typ = EventAction }) },
			want:   []Code{CodeLogStructure}},
		"firmware code measured after the separator of PCR 0": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(0), measurement{pcr: 0, typ: EventFirmwareBlob, data: []byte("x"), measured: []byte("late")})
			}, want: []Code{CodeFirmwareUnknown, CodeLogStructure}},

		// What booted.
		"Secure Boot off": {
			before: func(s *scene) {
				s.replace(of(string(encodeVariable(paperGlobal, "SecureBoot", []byte{1}))), func(m *measurement) { m.data = encodeVariable(paperGlobal, "SecureBoot", []byte{0}) })
				s.measured = slices.DeleteFunc(s.measured, func(m measurement) bool { return m.typ == EventAuthority })
				s.insertAfter(of("uki"), measurement{pcr: 4, typ: EventBootApplication, data: []byte("path"), measured: []byte("kernel")})
			}, want: []Code{CodeSecureBootOff}, says: "Secure Boot is off"},
		"Secure Boot logged as on while it was measured as off": {
			before: func(s *scene) {
				s.logged = slices.Clone(s.measured)
				s.replace(of(string(encodeVariable(paperGlobal, "SecureBoot", []byte{1}))), func(m *measurement) { m.data = encodeVariable(paperGlobal, "SecureBoot", []byte{0}) })
			}, want: []Code{CodeLogReplay}},
		"a variable whose data was changed in the log but not its digest": {
			before: func(s *scene) {
				s.replace(of(string(encodeVariable(paperGlobal, "SecureBoot", []byte{1}))), func(m *measurement) {
					m.measured = encodeVariable(paperGlobal, "SecureBoot", []byte{0})
				})
			}, want: []Code{CodeEventUnknown, CodeSecureBootOff}},
		"the kernel loaded by firmware although Secure Boot is on": {
			before: func(s *scene) {
				s.insertAfter(of("uki"), measurement{pcr: 4, typ: EventBootApplication, data: []byte("path"), measured: []byte("kernel")})
			}, want: []Code{CodeImageUnknown}},
		"another PK": {
			before: func(s *scene) {
				s.replace(of(string(encodeVariable(paperGlobal, "PK", []byte("pk")))), func(m *measurement) { m.data = encodeVariable(paperGlobal, "PK", nil) })
			}, want: []Code{CodeSecureBootKeys}, says: "PK holds nothing"},
		"another db": {
			before: func(s *scene) {
				s.replace(of(string(encodeVariable(paperSecurity, "db", []byte("db")))), func(m *measurement) { m.data = encodeVariable(paperSecurity, "db", []byte("db and more")) })
			}, want: []Code{CodeSecureBootKeys}, says: "db holds"},
		"a dbx that the policy does not list": {
			before: func(s *scene) { s.policy.DBX = []manifest.SHA256{digestOf("other")} }, want: []Code{CodeSecureBootKeys}, says: "dbx holds"},
		"an image without reference keys": {
			before: func(s *scene) { s.policy.Images[0].SecureBoot = manifest.SecureBoot{} }, want: []Code{CodeAuthority, CodeSecureBootKeys}},
		"db measured twice": {
			before: func(s *scene) {
				db := of(string(encodeVariable(paperSecurity, "db", []byte("db"))))
				s.insertAfter(db, measurement{pcr: 7, typ: EventVariableConfig, data: encodeVariable(paperSecurity, "db", []byte("db"))})
			}, want: []Code{CodeLogStructure}, says: "twice"},
		"a variable measured after the separator": {
			before: func(s *scene) {
				dbx := encodeVariable(paperSecurity, "dbx", []byte("dbx"))
				s.measured = slices.DeleteFunc(s.measured, of(string(dbx)))
				s.insertAfter(isSeparatorOf(7), measurement{pcr: 7, typ: EventVariableConfig, data: dbx})
			}, want: []Code{CodeLogStructure}, says: "after the separator"},
		"a db under the vendor GUID of another variable": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(7), measurement{pcr: 7, typ: EventVariableConfig, data: encodeVariable(paperGlobal, "db", nil)})
			}, want: []Code{CodeEventUnknown}},
		"an option ROM signed with another certificate": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(7), measurement{pcr: 7, typ: EventAuthority, data: encodeVariable(paperSecurity, "db", []byte("other"))})
			}, want: []Code{CodeAuthority}},
		"Secure Boot on without an authority": {
			before: func(s *scene) {
				s.measured = slices.DeleteFunc(s.measured, func(m measurement) bool { return m.typ == EventAuthority })
			}, want: []Code{CodeAuthority}},
		"a debug mode in PCR 7": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(7), measurement{pcr: 7, typ: EventAction, data: []byte("UEFI Debug Mode")})
			}, want: []Code{CodeEventUnknown}, says: "UEFI Debug Mode"},
		"another UKI with the same sections": {
			before: func(s *scene) {
				s.replace(of("uki"), func(m *measurement) { m.measured = []byte("uki of another build") })
			},
			want: []Code{CodeImageUnknown}, says: "most like image demo 1"},
		"a boot loader before the UKI": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(4), measurement{pcr: 4, typ: EventBootApplication, data: []byte("path"), measured: []byte("grub")})
			}, want: []Code{CodeImageUnknown}},
		"an unknown boot loader under the type of an action": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(4), measurement{pcr: 4, typ: EventAction, data: []byte(actionCalling), measured: []byte("grub")})
			}, want: []Code{CodeEventUnknown}},
		"the UKI under another type": {
			before: func(s *scene) { s.replace(of("uki"), func(m *measurement) { m.typ = EventIPL }) },
			want:   []Code{CodeLogStructure}},
		"an altered command line": {
			before: func(s *scene) {
				s.replace(of("uki"), func(m *measurement) { m.measured = []byte("altered uki") })
				s.replace(of("contents of .cmdline"), func(m *measurement) { m.measured = []byte("init=/bin/sh") })
				s.replace(of(string(encodeUTF16(paperCmdline))), func(m *measurement) { m.measured = encodeUTF16("init=/bin/sh") })
				other := paperImage()
				other.Name, other.UKI.Authenticode, other.UKI.Sections = "other", digestOf("other uki"), []manifest.Section{{Name: ".linux", SHA256: digestOf("contents of .linux")}}
				s.policy.Images = append([]*manifest.Manifest{other}, s.policy.Images...)
			}, want: []Code{CodeCmdline, CodeImageUnknown}, says: "differs from that of image demo 1"},
		"an altered initrd": {
			before: func(s *scene) {
				s.replace(of("contents of .initrd"), func(m *measurement) { m.measured = []byte("evil") })
				s.replace(of("initrd"), func(m *measurement) { m.measured = []byte("evil") })
			}, want: []Code{CodeEventUnknown, CodeSection}, says: "section .initrd differs"},
		"a section that the image does not have": {
			before: func(s *scene) { s.insertAfter(of("contents of .initrd"), section(".dtb", "evil")...) }, want: []Code{CodeSection}, says: ".dtb"},
		".uname, of which a stub 252 knows nothing": {
			before: func(s *scene) { s.insertAfter(of("contents of .cmdline"), section(".uname", "6.1.0")...) }, want: []Code{CodeSection}, says: ".uname"},
		"a section that is missing": {
			before: func(s *scene) {
				s.measured = slices.DeleteFunc(s.measured, func(m measurement) bool {
					return string(m.bytes()) == ".osrel\x00" || string(m.bytes()) == "contents of .osrel"
				})
			}, want: []Code{CodeSection}, says: ".osrel"},
		"a section measured twice": {
			before: func(s *scene) {
				s.insertAfter(of("contents of .cmdline"), section(".cmdline", "contents of .cmdline")...)
			}, want: []Code{CodeSection}, says: "twice"},
		"sections in another order": {
			before: func(s *scene) {
				i := slices.IndexFunc(s.measured, of(".osrel\x00"))
				s.measured = append(s.measured[:i:i], append(slices.Concat(s.measured[i+2:i+4], s.measured[i:i+2]), s.measured[i+4:]...)...)
			}, want: []Code{CodeSection}, says: "another order"},
		"an image without reference sections": {
			before: func(s *scene) { s.policy.Images[0].UKI.Sections = nil }, want: []Code{CodeSection}},
		"something else in PCR 11": {
			before: func(s *scene) {
				s.insertAfter(of("contents of .initrd"), measurement{pcr: 11, typ: EventIPL, data: []byte("x"), measured: []byte("enter-initrd")})
			}, want: []Code{CodeEventUnknown}},
		"a second initrd": {
			before: func(s *scene) {
				s.insertAfter(of("initrd"), measurement{pcr: 9, typ: EventTag, data: []byte("Linux initrd"), measured: []byte("evil")})
			}, want: []Code{CodeEventUnknown}},
		"another command line in PCR 9 only": {
			before: func(s *scene) {
				s.replace(of(string(encodeUTF16(paperCmdline))), func(m *measurement) { m.measured = encodeUTF16("init=/bin/sh") })
			}, want: []Code{CodeCmdline}},
		"an option ROM": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), measurement{pcr: 2, typ: EventBootDriver, data: []byte("path"), measured: []byte("rom")})
			}, want: []Code{CodeEventUnknown}},
		"something of the maker's in PCR 6": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), measurement{pcr: 6, typ: 1, data: []byte("Dell Configuration")})
			}, want: []Code{CodeEventUnknown}, says: "Dell Configuration"},
		"an unknown event in PCR 5": {
			before: func(s *scene) {
				s.insertAfter(of(actionExitDone), measurement{pcr: 5, typ: EventAction, data: []byte("loader.conf")})
			}, want: []Code{CodeEventUnknown}},
		"a command line from outside": {
			before: func(s *scene) { s.extra = []measurement{{pcr: 12, data: []byte("cmdline")}} }, want: []Code{CodePCRNotZero}},
		"a command line from outside that is in the log": {
			before: func(s *scene) {
				s.measured = append(s.measured, measurement{pcr: 12, typ: EventIPL, data: []byte("cmdline")})
			}, want: []Code{CodePCRNotZero}},
		"a shim": {
			before: func(s *scene) { s.extra = []measurement{{pcr: 14, data: []byte("MokList")}} }, want: []Code{CodePCRNotZero}},
		"a boot that was capped": {
			before: func(s *scene) {
				s.extra = []measurement{{pcr: 15, data: []byte("key")}, {pcr: 12, data: []byte("released")}}
			},
			want: []Code{CodePCRCapped}},

		// Firmware.
		"firmware of an unknown build": {
			before: func(s *scene) {
				s.replace(of("dxe volume"), func(m *measurement) { m.measured = []byte("evil dxe") })
				s.smbios = encodeSMBIOS("6.6", "Paper", "Box")
			}, want: []Code{CodeFirmwareUnknown}, says: `"6.6"`},
		"firmware of a denied build": {
			before: func(s *scene) {
				s.replace(of("dxe volume"), func(m *measurement) { m.measured = []byte("dxe volume 0") })
				s.smbios = encodeSMBIOS("0.9", "Paper", "Box")
			}, want: []Code{CodeFirmwareDenied}, says: "CVE-1"},
		"firmware of a build that is both allowed and denied": {
			before: func(s *scene) {
				r := s.policy.Firmware.References[0]
				r.Status = FirmwareDenied
				s.policy.Firmware.References = append(s.policy.Firmware.References, r)
			}, want: []Code{CodeFirmwareDenied}},
		"SMBIOS that claims a newer version": {
			before: func(s *scene) { s.smbios = encodeSMBIOS("2.0", "Paper", "Box") }, want: []Code{CodeFirmwareClaim}, says: `says "2.0", the measured firmware is version "1.0"`},
		"SMBIOS that claims a longer version": {
			before: func(s *scene) { s.smbios = encodeSMBIOS("1.0 2.0", "Paper", "Box") }, want: []Code{CodeFirmwareClaim}},
		"SMBIOS without a version": {
			before: func(s *scene) { s.smbios = encodeSMBIOS(" ", "Paper", "Box") }, want: []Code{CodeFirmwareClaim}, says: "says nothing"},
		"no SMBIOS": {
			before: func(s *scene) { s.smbios = nil }, want: []Code{CodeFirmwareUnknown, CodeMalformed}},
		"SMBIOS swapped after quoting": {
			after: func(s *scene) { s.ev.SMBIOS = encodeSMBIOS("1.0", "Paper", "Box 2") }, want: []Code{CodeQuoteNonce}},
		"the firmware of another model": {
			before: func(s *scene) { s.smbios = encodeSMBIOS("1.0", "Paper", "Other box") }, want: []Code{CodeFirmwareUnknown}},
		"a third firmware volume": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), measurement{pcr: 0, typ: EventFirmwareBlob, data: []byte("x"), measured: []byte("evil")})
			}, want: []Code{CodeFirmwareUnknown}},
		"a third firmware volume under another type": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), measurement{pcr: 0, typ: EventSCRTMContents, data: []byte("x"), measured: []byte("evil")})
			}, want: []Code{CodeFirmwareUnknown}},
		"firmware code as a second version text": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), measurement{pcr: 0, typ: EventSCRTMVersion, data: []byte("evil")})
			}, want: []Code{CodeFirmwareUnknown}},
		"firmware code as a large version text": {
			before: func(s *scene) {
				s.measured[0] = measurement{pcr: 0, typ: EventSCRTMVersion, data: bytes.Repeat([]byte("evil"), 200)}
			}, want: []Code{CodeFirmwareUnknown}},
		"a firmware volume missing": {
			before: func(s *scene) { s.measured = slices.DeleteFunc(s.measured, of("pei volume")) }, want: []Code{CodeFirmwareUnknown}},
		"a policy without firmware": {
			before: func(s *scene) { s.policy.Firmware = FirmwarePolicy{} }, want: []Code{CodeFirmwareUnknown}},

		// The machine.
		"an unknown machine": {
			before: func(s *scene) { *s.known = Known{} }, want: []Code{CodeMachineUnknown}, says: "not enrolled"},
		"a machine in a state that does not exist": {
			before: func(s *scene) { s.known.State = "trusted" }, want: []Code{CodeMachineUnknown}},
		"a pending machine": {
			before: func(s *scene) { s.known.State = StatePending }, want: []Code{CodeMachinePending}},
		"a revoked machine": {
			before: func(s *scene) { s.known.State, s.known.StateReason = StateRevoked, "stolen" }, want: []Code{CodeMachineRevoked}, says: "stolen"},
		"a quarantined machine": {
			before: func(s *scene) { s.known.State = StateQuarantined }, want: []Code{CodeQuarantined}},
		"a copy of another machine's disk": {
			before: func(s *scene) {
				*s.known = Known{DiskOwner: MachineID{0xab, 0xcd}}
			}, want: []Code{CodeDiskForeign, CodeMachineUnknown}, says: "abcd00000000"},
		"another disk than the installed one": {
			before: func(s *scene) { s.known.DiskGUID = "11111111-2222-3333-4444-555555555555" }, want: []Code{CodeDiskForeign}},
		"another disk than the agent says": {
			before: func(s *scene) {
				s.disk.GUID = "11111111-2222-3333-4444-555555555555"
				s.known.DiskGUID = s.disk.GUID
			}, want: []Code{CodeDiskForeign}, says: paperDisk},
		"a disk swapped after quoting": {
			after: func(s *scene) { s.ev.Disk.StateExists = false }, want: []Code{CodeQuoteNonce, CodeStateLost}},
		"a disk that is no GUID": {
			before: func(s *scene) { s.disk.GUID = "disk" }, want: []Code{CodeMalformed}},
		"a lost state partition": {
			before: func(s *scene) { s.disk.StateExists = false }, want: []Code{CodeStateLost}},
		"a second release in one boot": {
			before: func(s *scene) { s.known.ResetCount, s.known.RestartCount, s.known.Released = 7, 1, true }, want: []Code{CodeReleaseRepeated}},

		// Sizes.
		"an event log that is too large": {
			after: func(s *scene) { s.ev.EventLog = make([]byte, MaxEventLog+1) }, want: []Code{CodeMalformed}},
		"an SMBIOS table that is too large": {
			after: func(s *scene) { s.ev.SMBIOS = make([]byte, MaxSMBIOS+1) }, want: []Code{CodeMalformed}},
		"too many quotes": {
			after: func(s *scene) { s.ev.Quotes = make([]Quote, MaxBanks+1) }, want: []Code{CodeMalformed}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			if c.before != nil {
				c.before(s)
			}
			s.collect()
			if c.after != nil {
				c.after(s)
			}
			r := s.verify()
			slices.Sort(c.want)
			if got := codesOf(r); !slices.Equal(got, c.want) {
				t.Errorf("codes are %q, want %q", got, c.want)
				for _, f := range r.Findings {
					t.Logf("%s: %s", f.Code, f.Message)
				}
			}
			if _, ok := r.Verified(); ok || r.Allowed {
				t.Error("allowed")
			}
			says := false
			for _, f := range r.Findings {
				says = says || strings.Contains(f.Message, c.says)
				if f.Message == "" || f.Hint == "" {
					t.Errorf("finding %s has no message or hint: %+v", f.Code, f)
				}
			}
			if !says {
				t.Errorf("no message says %q: %+v", c.says, r.Findings)
			}
		})
	}
}
