package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
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
	if v.Machine() != r.Machine || !bytes.Equal(v.AKName(), s.tpm.Name()) || v.Clock() != 50_000 || v.TPMFirmware() != s.tpm.Firmware {
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
// changeECC changes the parameters of an ECC public area.
func changeECC(p *tpm2.TPMTPublic, change func(*tpm2.TPMSECCParms)) {
	parms, _ := p.Parameters.ECCDetail()
	c := *parms
	change(&c)
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &c)
}

func aes256(p *tpm2.TPMSECCParms) {
	p.Symmetric.KeyBits = tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256))
}

func TestEachAttackIsRefusedWithItsFinding(t *testing.T) {
	cases := map[string]struct {
		before func(*scene)
		after  func(*scene)
		want   []Code
		says   string // in one of the messages
	}{
		// Challenge and session.
		"an expired challenge": {
			before: func(s *scene) { s.ch.Expires = now }, want: []Code{CodeChallenge}, says: "expired"},
		"a challenge for another purpose": {
			before: func(s *scene) { s.ch.Purpose = "renew" }, want: []Code{CodeChallenge}, says: `"renew"`},
		"a challenge for another endorsement key": {
			after: func(s *scene) { s.ch.EKPublic = []byte("other") }, want: []Code{CodeChallengeKey}},
		"a challenge for another attestation key": {
			after: func(s *scene) { s.ch.AKPublic = []byte("other") }, want: []Code{CodeChallengeKey}},
		"a connection without channel binding": {
			before: func(s *scene) { s.ses.Exporter = nil }, want: []Code{CodeChallenge}},
		"evidence relayed over another connection": {
			after: func(s *scene) { s.ses.Exporter = bytes.Repeat([]byte{8}, 32) }, want: []Code{CodeQuoteConnection}},
		"a quote replayed for a later nonce": {
			after: func(s *scene) {
				s.ch.Nonce = bytes.Repeat([]byte{1}, 32)
				s.ses.ActivationProof = ActivationProof(s.ch.ActivationSecret, s.ch.ID, s.ch.Nonce, s.ev.AKPublic)
			}, want: []Code{CodeQuoteChallenge}},

		"a challenge with a short nonce": {
			before: func(s *scene) { s.ch.Nonce = s.ch.Nonce[:31] }, want: []Code{CodeChallenge}, says: "nonce of 31"},
		"a challenge with a short secret": {
			before: func(s *scene) { s.ch.ActivationSecret = s.ch.ActivationSecret[:16] }, want: []Code{CodeChallenge}, says: "secret of 16"},

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
			before: func(s *scene) { s.tpm.EKCertificates = nil }, want: []Code{CodeEKCertificate}},
		"an endorsement certificate of another authority": {
			before: func(s *scene) {
				s.tpm.EKCertificates = [][]byte{certify(s.t, newCA(s.t), &s.tpm.EK.(*ecdsa.PrivateKey).PublicKey, nil).Raw}
			}, want: []Code{CodeEKCertificate}},
		"the endorsement certificate of another machine": {
			before: func(s *scene) { s.tpm.EKCertificates = newTPM(s.t, s.ca).EKCertificates }, want: []Code{CodeEKMismatch}},
		"a class of TPM that is not allowed": {
			before: func(s *scene) { s.policy.TPM.Allowed = []TPMClass{TPMHardware} }, want: []Code{CodeTPMClass}},
		"an unrestricted attestation key": {
			before: func(s *scene) { s.tpm.AKPublic.ObjectAttributes.Restricted = false; s.known.AKName = nil }, want: []Code{CodeAKAttributes}},
		"an attestation key that was imported": {
			before: func(s *scene) {
				s.tpm.AKPublic.ObjectAttributes.SensitiveDataOrigin = false
				s.known.AKName = nil
			}, want: []Code{CodeAKAttributes}},
		"an attestation key of the owner hierarchy, whose counters are obfuscated": {
			before: func(s *scene) { s.tpm.Hierarchy = tpm2.TPMRHOwner }, want: []Code{CodeAKAttributes}},
		"another attestation key than last time": {
			before: func(s *scene) { s.known.AKName = []byte("other") }, want: []Code{CodeAKChanged}},

		// Quotes.
		"no quote": {
			after: func(s *scene) { s.ev.Quotes = nil }, want: []Code{CodeQuoteMissing}},
		"only the SHA-1 bank": {
			before: func(s *scene) { s.Banks = []string{"sha1", "sha256"} },
			after:  func(s *scene) { s.ev.Quotes = s.ev.Quotes[:1] }, want: []Code{CodeQuoteDowngraded, CodeQuoteMissing}, says: "only sha1 is quoted, which never suffices"},
		"a bank of the log that is not quoted": {
			before: func(s *scene) { s.Banks = []string{"sha256", "sha384"} },
			after:  func(s *scene) { s.ev.Quotes = s.ev.Quotes[:1] }, want: []Code{CodeQuoteMissing}, says: "sha384"},
		"a quoted bank that firmware left empty": {
			before: func(s *scene) { s.Banks = []string{"sha256", "sha384"}; s.LogBanks = []string{"sha256"} }, want: []Code{CodeBankUnlogged}, says: "sha384"},
		"one bank quoted twice": {
			after: func(s *scene) { s.ev.Quotes = append(s.ev.Quotes, s.ev.Quotes[0]) }, want: []Code{CodeMalformed}},
		"a quote with one byte of its signature changed": {
			after: func(s *scene) { b := s.ev.Quotes[0].Signature; b[len(b)-1] ^= 1 }, want: []Code{CodeQuoteSignature}},
		"a quote signed by another key": {
			after: func(s *scene) {
				q := newTPM(s.t, s.ca)
				s.ev.Quotes[0].Signature = sign(s.t, q, s.ev.Quotes[0].Attest)
			}, want: []Code{CodeQuoteSignature}},
		"a quote without the magic": {
			before: func(s *scene) { s.tpm.RawQuote = func(b []byte) []byte { b[0] = 0; return b } }, want: []Code{CodeQuoteFormat}, says: "magic"},
		"a certification in place of a quote": {
			after: func(s *scene) {
				s.ev.Quotes[0].Attest, s.ev.Quotes[0].Signature = s.ev.Transport.Certify, s.ev.Transport.Signature
			}, want: []Code{CodeQuoteFormat}},
		"a quote with a SHA-1 signature": {
			before: func(s *scene) { s.tpm.SignHash = tpm2.TPMAlgSHA1 }, want: []Code{CodeQuoteFormat}},
		"a quote with a trailing byte": {
			before: func(s *scene) { s.tpm.RawQuote = func(b []byte) []byte { return append(b, 0) } }, want: []Code{CodeMalformed}},
		"a quote that is cut off": {
			before: func(s *scene) { s.tpm.RawQuote = func(b []byte) []byte { return b[:len(b)-2] } }, want: []Code{CodeMalformed}},
		"a quote over fewer PCRs": {
			before: func(s *scene) {
				s.tpm.OnQuote = func(_ string, a *tpm2.TPMSAttest) {
					q, _ := a.Attested.Quote()
					q.PCRSelect = papertpm.Selection(tpm2.TPMAlgSHA256, []int{0, 1, 2})
				}
			}, want: []Code{CodeQuoteSelection}},
		"a quote over no PCR": {
			before: func(s *scene) {
				s.tpm.OnQuote = func(_ string, a *tpm2.TPMSAttest) {
					q, _ := a.Attested.Quote()
					q.PCRSelect = tpm2.TPMLPCRSelection{}
				}
			}, want: []Code{CodeQuoteEmpty}, says: "no PCR"},
		"a quote of another bank under the name sha256": {
			before: func(s *scene) {
				s.tpm.OnQuote = func(_ string, a *tpm2.TPMSAttest) {
					q, _ := a.Attested.Quote()
					q.PCRSelect = papertpm.Selection(tpm2.TPMAlgSHA384, PolicyPCRs())
				}
			}, want: []Code{CodeQuoteSelection}},
		"a quote over one PCR more": {
			before: func(s *scene) {
				s.tpm.OnQuote = func(_ string, a *tpm2.TPMSAttest) {
					q, _ := a.Attested.Quote()
					q.PCRSelect = papertpm.Selection(tpm2.TPMAlgSHA256, append(PolicyPCRs(), 16))
				}
			}, want: []Code{CodeQuoteSelection}},
		"PCR values that were not quoted": {
			after: func(s *scene) { s.ev.Quotes[0].PCRs[7][0] ^= 1 }, want: []Code{CodeQuoteDigest}},
		"PCR values with one missing": {
			after: func(s *scene) { delete(s.ev.Quotes[0].PCRs, 7) }, want: []Code{CodeQuoteDigest}},
		"the value of a PCR that is not quoted": {
			after: func(s *scene) { s.ev.Quotes[0].PCRs[16] = make([]byte, 32) }, want: []Code{CodeQuoteDigest}},
		"bytes moved from one PCR value to the next": {
			after: func(s *scene) {
				p := s.ev.Quotes[0].PCRs
				p[1], p[0] = append([]byte{p[0][31]}, p[1]...), p[0][:31]
			}, want: []Code{CodeQuoteDigest}},
		"quotes of two boots": {
			before: func(s *scene) {
				s.Banks = []string{"sha256", "sha384"}
				s.tpm.OnQuote = func(bank string, a *tpm2.TPMSAttest) {
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
				s.tpm.OnTransport = func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true }
			}, want: []Code{CodeTransport}},
		"a transport key that can be duplicated": {
			before: func(s *scene) {
				s.tpm.OnTransport = func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }
			}, want: []Code{CodeTransport}},
		"a transport key of another curve": {
			before: func(s *scene) {
				s.tpm.OnTransport = func(p *tpm2.TPMTPublic) {
					point, err := newKey(s.t, elliptic.P384()).PublicKey.Bytes() // 4, X, Y
					if err != nil {
						s.t.Fatal(err)
					}
					changeECC(p, func(parms *tpm2.TPMSECCParms) { parms.CurveID = tpm2.TPMECCNistP384 })
					p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:49]}, Y: tpm2.TPM2BECCParameter{Buffer: point[49:]}})
				}
			}, want: []Code{CodeTransport}, says: "want P-256"},
		"a transport key with another name algorithm": {
			before: func(s *scene) { s.tpm.OnTransport = func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 } }, want: []Code{CodeTransport}, says: "want ECC with SHA-256"},
		"a transport key with another cipher": {
			before: func(s *scene) { s.tpm.OnTransport = func(p *tpm2.TPMTPublic) { changeECC(p, aes256) } }, want: []Code{CodeTransport}, says: "AES-256"},
		"a transport key whose creator chose its private half": {
			before: func(s *scene) {
				s.tpm.OnTransport = func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false }
			}, want: []Code{CodeTransport}},
		"a transport key without policy": {
			before: func(s *scene) { s.tpm.OnTransport = func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = nil } }, want: []Code{CodeTransport}},
		"a transport key for other PCR values": {
			before: func(s *scene) { s.tpm.OnTransport = func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer[0] ^= 1 } }, want: []Code{CodeTransport}},
		"a transport key of the owner hierarchy, which outlives a reset": {
			before: func(s *scene) {
				s.tpm.OnCreation = func(c *tpm2.TPMSCreationData) { c.ParentName.Buffer = []byte{0x40, 0, 0, 1} }
			}, want: []Code{CodeTransport}, says: "TPM_RH_NULL"},
		"a transport key with the name of a parent": {
			before: func(s *scene) {
				s.tpm.OnCreation = func(c *tpm2.TPMSCreationData) { c.ParentNameAlg = tpm2.TPMAlgSHA256 }
			}, want: []Code{CodeTransport}},
		"a transport key made in another state": {
			before: func(s *scene) { s.tpm.OnCreation = func(c *tpm2.TPMSCreationData) { c.PCRDigest.Buffer[0] ^= 1 } }, want: []Code{CodeTransport}},
		"a transport key made with other PCRs": {
			before: func(s *scene) {
				s.tpm.OnCreation = func(c *tpm2.TPMSCreationData) {
					c.PCRSelect = papertpm.Selection(tpm2.TPMAlgSHA256, []int{16})
				}
			}, want: []Code{CodeTransport}, says: "created under"},
		"a transport key other than the certified one": {
			before: func(s *scene) {
				s.tpm.OnCertify = func(a *tpm2.TPMSAttest) {
					c, _ := a.Attested.Creation()
					c.ObjectName.Buffer[5] ^= 1
				}
			}, want: []Code{CodeTransport}},
		"creation data other than the certified one": {
			before: func(s *scene) {
				s.tpm.OnCertify = func(a *tpm2.TPMSAttest) {
					c, _ := a.Attested.Creation()
					c.CreationHash.Buffer[5] ^= 1
				}
			}, want: []Code{CodeTransport}},
		"a transport key swapped after quoting": {
			after: func(s *scene) {
				var err error
				if s.ev.Transport, err = s.tpm.MakeTransport(s.ch.Nonce, s.ses.Exporter); err != nil {
					s.t.Fatal(err)
				}
			}, want: []Code{CodeQuoteEvidence}},
		"a certification of an earlier challenge": {
			before: func(s *scene) {
				s.tpm.OnCertify = func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = CertifyData([]byte("earlier")) }
			}, want: []Code{CodeTransport}},
		"a certification of an earlier boot": {
			before: func(s *scene) {
				s.tpm.OnCertify = func(a *tpm2.TPMSAttest) { a.ClockInfo.ResetCount-- }
			}, want: []Code{CodeClock}},

		// Event log.
		"no event log": {
			after: func(s *scene) { s.ev.EventLog = nil }, want: []Code{CodeLogMalformed, CodeQuoteEvidence}},
		"an event log that is cut off": {
			before: func(s *scene) { s.Logged = append([]papertpm.Measurement{}, s.Measured[:5]...) }, want: []Code{CodeLogDeleted, CodeLogMissing, CodeLogReplay}},
		"all events of PCR 7 deleted": {
			before: func(s *scene) {
				s.Logged = slices.DeleteFunc(slices.Clone(s.Measured), func(m papertpm.Measurement) bool { return m.PCR == 7 })
			}, want: []Code{CodeLogMissing}},
		"firmware that never measured into PCR 7": {
			before: func(s *scene) {
				s.Measured = slices.DeleteFunc(s.Measured, func(m papertpm.Measurement) bool { return m.PCR == 7 })
			}, want: []Code{CodeLogStructure, CodeSecureBootOff, CodeSecureBootKeys}},
		"two events swapped": {
			before: func(s *scene) {
				s.Logged = slices.Clone(s.Measured)
				s.Logged[1], s.Logged[2] = s.Logged[2], s.Logged[1]
			}, want: []Code{CodeLogReordered}},
		"an event appended to the log only": {
			before: func(s *scene) {
				s.Logged = append(slices.Clone(s.Measured), papertpm.Measurement{PCR: 5, Type: EventAction, Data: []byte(ActionExit)})
			}, want: []Code{CodeLogDuplicated}},
		"a measurement that is not in the log": {
			before: func(s *scene) { s.Unlogged = []papertpm.Measurement{{PCR: 4, Data: []byte("kexec")}} }, want: []Code{CodeLogReplay}},
		"a second separator": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(4), papertpm.Measurement{PCR: 4, Type: EventSeparator, Data: make([]byte, 4)})
			}, want: []Code{CodeLogStructure}, says: "2 separators"},
		"no separator": {
			before: func(s *scene) {
				s.Measured = slices.DeleteFunc(s.Measured, func(m papertpm.Measurement) bool { return m.PCR == 6 })
			}, want: []Code{CodeLogStructure}, says: "0 separators"},
		"an error separator": {
			before: func(s *scene) {
				s.replace(isSeparatorOf(3), func(m *papertpm.Measurement) { m.Data = []byte{1, 0, 0, 0} })
			}, want: []Code{CodeEventUnknown, CodeLogStructure}},
		"an error separator among what is not judged": {
			before: func(s *scene) {
				s.insertAfter(of("order"), papertpm.Measurement{PCR: 1, Type: EventSeparator, Data: []byte{1, 0, 0, 0}})
			}, want: []Code{CodeEventUnknown, CodeLogStructure}, says: "an invalid separator"},
		"what the policy names, after the separator of PCR 6": {
			before: func(s *scene) {
				s.policy.Models = []ModelRule{{Components: []Component{{PCR: 6, SHA256: digestOf("setting"), Name: "the maker's"}}}}
				s.insertAfter(isSeparatorOf(6), papertpm.Measurement{PCR: 6, Type: EventTag, Data: []byte("setting")})
			}, want: []Code{CodeLogStructure}, says: "after the separator"},
		"a separator under another type": {
			before: func(s *scene) { s.replace(isSeparatorOf(2), func(m *papertpm.Measurement) { m.Type = EventAction }) },
			want:   []Code{CodeLogRetyped}},
		"firmware code measured after the separator of PCR 0": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(0), papertpm.Measurement{PCR: 0, Type: EventFirmwareBlob, Data: []byte("x"), Measured: []byte("late")})
			}, want: []Code{CodeFirmwareUnknown, CodeLogStructure}},

		// What booted.
		"Secure Boot off": {
			before: func(s *scene) {
				s.replace(of(string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1}))), func(m *papertpm.Measurement) {
					m.Data = papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{0})
				})
				s.Measured = slices.DeleteFunc(s.Measured, func(m papertpm.Measurement) bool { return m.Type == EventAuthority })
				s.insertAfter(of("uki"), papertpm.Measurement{PCR: 4, Type: EventBootApplication, Data: []byte("path"), Measured: []byte("kernel")})
			}, want: []Code{CodeSecureBootOff}, says: "Secure Boot is off"},
		"Secure Boot neither on nor off": {
			before: func(s *scene) {
				s.replace(of(string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1}))), func(m *papertpm.Measurement) {
					m.Data = papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{2})
				})
			}, want: []Code{CodeSecureBootOff}, says: "is 02, want 01"},
		"audit mode": {
			before: func(s *scene) {
				s.insertAfter(of(string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1}))), papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: papertpm.EncodeVariable(papertpm.GlobalGUID(), "AuditMode", []byte{1})})
			}, want: []Code{CodeEventUnknown}, says: "AuditMode has a value"},
		"a dbt": {
			before: func(s *scene) {
				s.insertAfter(of(string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1}))), papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbt", []byte("x"))})
			}, want: []Code{CodeEventUnknown}, says: "dbt has a value"},
		"a dbr": {
			before: func(s *scene) {
				s.insertAfter(of(string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1}))), papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbr", []byte("x"))})
			}, want: []Code{CodeEventUnknown}, says: "dbr has a value"},
		"a variable that does not belong there": {
			before: func(s *scene) {
				s.insertAfter(of(string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1}))), papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: papertpm.EncodeVariable(papertpm.GlobalGUID(), "MokList", nil)})
			}, want: []Code{CodeEventUnknown}, says: "MokList"},
		"the image's certificate measured twice": {
			before: func(s *scene) {
				i := slices.IndexFunc(s.Measured, func(m papertpm.Measurement) bool { return m.Type == EventAuthority })
				s.Measured = slices.Insert(s.Measured, i, s.Measured[i])
			}, want: []Code{CodeAuthority}, says: "measured twice"},
		"Secure Boot logged as on while it was measured as off": {
			before: func(s *scene) {
				s.Logged = slices.Clone(s.Measured)
				s.replace(of(string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1}))), func(m *papertpm.Measurement) {
					m.Data = papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{0})
				})
			}, want: []Code{CodeLogReplay}},
		"a variable whose data was changed in the log but not its digest": {
			before: func(s *scene) {
				s.replace(of(string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{1}))), func(m *papertpm.Measurement) {
					m.Measured = papertpm.EncodeVariable(papertpm.GlobalGUID(), "SecureBoot", []byte{0})
				})
			}, want: []Code{CodeEventUnknown, CodeSecureBootOff}},
		"the kernel loaded by firmware although Secure Boot is on": {
			before: func(s *scene) {
				s.insertAfter(of("uki"), papertpm.Measurement{PCR: 4, Type: EventBootApplication, Data: []byte("path"), Measured: []byte("kernel")})
			}, want: []Code{CodeImageUnknown}},
		"another PK": {
			before: func(s *scene) {
				s.replace(of(string(papertpm.EncodeVariable(papertpm.GlobalGUID(), "PK", []byte("pk")))), func(m *papertpm.Measurement) { m.Data = papertpm.EncodeVariable(papertpm.GlobalGUID(), "PK", nil) })
			}, want: []Code{CodeSecureBootKeys}, says: "PK holds nothing"},
		"another db": {
			before: func(s *scene) {
				s.replace(of(string(papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", []byte("db")))), func(m *papertpm.Measurement) {
					m.Data = papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", []byte("db and more"))
				})
			}, want: []Code{CodeSecureBootKeys}, says: "db holds"},
		"no dbx": {
			before: func(s *scene) {
				s.Measured = slices.DeleteFunc(s.Measured, of(string(papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbx", []byte("dbx")))))
			}, want: []Code{CodeSecureBootKeys}, says: "dbx was not measured"},
		"a dbx that the policy does not list": {
			before: func(s *scene) { s.policy.DBX = []manifest.SHA256{digestOf("other")} }, want: []Code{CodeSecureBootKeys}, says: "dbx holds"},
		"an image without reference keys": {
			before: func(s *scene) { s.policy.Images[0].SecureBoot = manifest.SecureBoot{} }, want: []Code{CodeAuthority, CodeSecureBootKeys}},
		"db measured twice": {
			before: func(s *scene) {
				db := of(string(papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", []byte("db"))))
				s.insertAfter(db, papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", []byte("db"))})
			}, want: []Code{CodeLogStructure}, says: "twice"},
		"a variable measured after the separator": {
			before: func(s *scene) {
				dbx := papertpm.EncodeVariable(papertpm.SecurityGUID(), "dbx", []byte("dbx"))
				s.Measured = slices.DeleteFunc(s.Measured, of(string(dbx)))
				s.insertAfter(isSeparatorOf(7), papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: dbx})
			}, want: []Code{CodeLogStructure}, says: "after the separator"},
		"a db under the vendor GUID of another variable": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(7), papertpm.Measurement{PCR: 7, Type: EventVariableConfig, Data: papertpm.EncodeVariable(papertpm.GlobalGUID(), "db", nil)})
			}, want: []Code{CodeEventUnknown}},
		"an option ROM signed with another certificate": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(7), papertpm.Measurement{PCR: 7, Type: EventAuthority, Data: papertpm.EncodeVariable(papertpm.SecurityGUID(), "db", []byte("other"))})
			}, want: []Code{CodeAuthority}},
		"Secure Boot on without an authority": {
			before: func(s *scene) {
				s.Measured = slices.DeleteFunc(s.Measured, func(m papertpm.Measurement) bool { return m.Type == EventAuthority })
			}, want: []Code{CodeAuthority}},
		"a debug mode in PCR 7": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(7), papertpm.Measurement{PCR: 7, Type: EventAction, Data: []byte("UEFI Debug Mode")})
			}, want: []Code{CodeEventUnknown}, says: "UEFI Debug Mode"},
		"another UKI with the same sections": {
			before: func(s *scene) {
				s.replace(of("uki"), func(m *papertpm.Measurement) { m.Measured = []byte("uki of another build") })
			},
			want: []Code{CodeImageUnknown}, says: "most like image demo 1"},
		"a boot loader before the UKI": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(4), papertpm.Measurement{PCR: 4, Type: EventBootApplication, Data: []byte("path"), Measured: []byte("grub")})
			}, want: []Code{CodeImageUnknown}},
		"an unknown boot loader under the type of an action": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(4), papertpm.Measurement{PCR: 4, Type: EventAction, Data: []byte(ActionCalling), Measured: []byte("grub")})
			}, want: []Code{CodeEventUnknown}},
		"an action under another type": {
			before: func(s *scene) {
				s.insertAfter(isSeparatorOf(4), papertpm.Measurement{PCR: 4, Type: EventBootApplication, Data: []byte(ActionCalling)})
			}, want: []Code{CodeLogRetyped}, says: "the digest of the action"},
		"the partition table of another disk, logged as that of the machine's": {
			before: func(s *scene) {
				i := slices.IndexFunc(s.Measured, func(m papertpm.Measurement) bool { return m.Type == EventGPT })
				s.Measured[i].Measured = append(bytes.Clone(s.Measured[i].Data), 0)
			}, want: []Code{CodeEventUnknown}, says: "neither a partition table"},
		"a partition table under another type": {
			before: func(s *scene) {
				i := slices.IndexFunc(s.Measured, func(m papertpm.Measurement) bool { return m.Type == EventGPT })
				s.Measured[i].Type = EventIPL
			}, want: []Code{CodeEventUnknown}, says: "neither a partition table"},
		"the partition table of another disk": {
			before: func(s *scene) {
				i := slices.IndexFunc(s.Measured, func(m papertpm.Measurement) bool { return m.Type == EventGPT })
				s.Measured[i].Data = bytes.Clone(s.Measured[i].Data)
				s.Measured[i].Data[56] ^= 1
			}, want: []Code{CodeDiskForeign}, says: "firmware booted from disk"},
		"the UKI under another type": {
			before: func(s *scene) { s.replace(of("uki"), func(m *papertpm.Measurement) { m.Type = EventIPL }) },
			want:   []Code{CodeLogRetyped}},
		"an altered command line": {
			before: func(s *scene) {
				s.replace(of("uki"), func(m *papertpm.Measurement) { m.Measured = []byte("altered uki") })
				s.replace(of("contents of .cmdline"), func(m *papertpm.Measurement) { m.Measured = []byte("init=/bin/sh") })
				s.replace(of(string(papertpm.EncodeUTF16(papertpm.Cmdline))), func(m *papertpm.Measurement) { m.Measured = papertpm.EncodeUTF16("init=/bin/sh") })
				other := papertpm.GoodImage()
				other.Name, other.UKI.Authenticode, other.UKI.Sections = "other", digestOf("other uki"), []manifest.Section{{Name: ".linux", SHA256: digestOf("contents of .linux")}}
				s.policy.Images = append([]*manifest.Manifest{other}, s.policy.Images...)
			}, want: []Code{CodeCmdline, CodeImageUnknown}, says: "differs from that of image demo 1"},
		"an altered initrd": {
			before: func(s *scene) {
				s.replace(of("contents of .initrd"), func(m *papertpm.Measurement) { m.Measured = []byte("evil") })
				s.replace(of("initrd"), func(m *papertpm.Measurement) { m.Measured = []byte("evil") })
			}, want: []Code{CodeEventUnknown, CodeSection}, says: "section .initrd differs"},
		"a section that the image does not have": {
			before: func(s *scene) { s.insertAfter(of("contents of .initrd"), papertpm.Section(".dtb", "evil")...) }, want: []Code{CodeSection}, says: ".dtb"},
		".uname, of which a stub 252 knows nothing": {
			before: func(s *scene) { s.insertAfter(of("contents of .cmdline"), papertpm.Section(".uname", "6.1.0")...) }, want: []Code{CodeSection}, says: ".uname"},
		"a section that is missing": {
			before: func(s *scene) {
				s.Measured = slices.DeleteFunc(s.Measured, func(m papertpm.Measurement) bool {
					return string(m.Bytes()) == ".osrel\x00" || string(m.Bytes()) == "contents of .osrel"
				})
			}, want: []Code{CodeSection}, says: ".osrel"},
		"a section measured twice": {
			before: func(s *scene) {
				s.insertAfter(of("contents of .cmdline"), papertpm.Section(".cmdline", "contents of .cmdline")...)
			}, want: []Code{CodeSection}, says: "twice"},
		"sections in another order": {
			before: func(s *scene) {
				i := slices.IndexFunc(s.Measured, of(".osrel\x00"))
				s.Measured = append(s.Measured[:i:i], append(slices.Concat(s.Measured[i+2:i+4], s.Measured[i:i+2]), s.Measured[i+4:]...)...)
			}, want: []Code{CodeSection}, says: "another order"},
		"an image without reference sections": {
			before: func(s *scene) { s.policy.Images[0].UKI.Sections = nil }, want: []Code{CodeSection}},
		"an image without reference sections, which measures none": {
			before: func(s *scene) {
				s.policy.Images[0].UKI.Sections = nil
				s.Measured = slices.DeleteFunc(s.Measured, func(m papertpm.Measurement) bool { return m.PCR == 11 })
			}, want: []Code{CodeSection}, says: "names no sections"},
		"a section under another type": {
			before: func(s *scene) {
				s.replace(of("contents of .initrd"), func(m *papertpm.Measurement) { m.Type = EventAction })
			}, want: []Code{CodeLogRetyped}, says: "the digest of section .initrd"},
		"something else in PCR 11": {
			before: func(s *scene) {
				s.insertAfter(of("contents of .initrd"), papertpm.Measurement{PCR: 11, Type: EventIPL, Data: []byte("x"), Measured: []byte("enter-initrd")})
			}, want: []Code{CodeEventUnknown}},
		"a second initrd": {
			before: func(s *scene) {
				s.insertAfter(of("initrd"), papertpm.Measurement{PCR: 9, Type: EventTag, Data: []byte("Linux initrd"), Measured: []byte("evil")})
			}, want: []Code{CodeEventUnknown}},
		"the initrd for a second time": {
			before: func(s *scene) {
				s.insertAfter(of("initrd"), papertpm.Measurement{PCR: 9, Type: EventTag, Data: []byte("Linux initrd"), Measured: []byte("initrd")})
			}, want: []Code{CodeEventUnknown}, says: "for a second time"},
		"the initrd under another type": {
			before: func(s *scene) { s.replace(of("initrd"), func(m *papertpm.Measurement) { m.Type = EventIPL }) },
			want:   []Code{CodeLogRetyped}, says: "the digest of the initrd"},
		"another command line in PCR 9 only": {
			before: func(s *scene) {
				s.replace(of(string(papertpm.EncodeUTF16(papertpm.Cmdline))), func(m *papertpm.Measurement) { m.Measured = papertpm.EncodeUTF16("init=/bin/sh") })
			}, want: []Code{CodeCmdline}},
		"an option ROM": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), papertpm.Measurement{PCR: 2, Type: EventBootDriver, Data: []byte("path"), Measured: []byte("rom")})
			}, want: []Code{CodeEventUnknown}},
		"something of the maker's in PCR 6": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), papertpm.Measurement{PCR: 6, Type: 1, Data: []byte("Dell Configuration")})
			}, want: []Code{CodeEventUnknown}, says: "Dell Configuration"},
		"an event of an unknown type in PCR 1": {
			before: func(s *scene) {
				s.insertAfter(of("order"), papertpm.Measurement{PCR: 1, Type: 0x1234, Data: []byte("x")})
			}, want: []Code{CodeEventUnknown}, says: "type 0x1234"},
		"a boot application in PCR 1": {
			before: func(s *scene) {
				s.insertAfter(of("order"), papertpm.Measurement{PCR: 1, Type: EventBootApplication, Data: []byte("x")})
			}, want: []Code{CodeEventUnknown}},
		"the image's digest as configuration": {
			before: func(s *scene) {
				s.insertAfter(of("order"), papertpm.Measurement{PCR: 1, Type: EventVariableBoot, Data: []byte("x"), Measured: []byte("uki")})
			}, want: []Code{CodeLogStructure}},
		"an unknown event in PCR 5": {
			before: func(s *scene) {
				s.insertAfter(of(ActionExitDone), papertpm.Measurement{PCR: 5, Type: EventAction, Data: []byte("loader.conf")})
			}, want: []Code{CodeEventUnknown}},
		"a command line from outside": {
			before: func(s *scene) { s.Unlogged = []papertpm.Measurement{{PCR: 12, Data: []byte("cmdline")}} }, want: []Code{CodePCRNotZero}},
		"a command line from outside that is in the log": {
			before: func(s *scene) {
				s.Measured = append(s.Measured, papertpm.Measurement{PCR: 12, Type: EventIPL, Data: []byte("cmdline")})
			}, want: []Code{CodePCRNotZero}},
		"a shim": {
			before: func(s *scene) { s.Unlogged = []papertpm.Measurement{{PCR: 14, Data: []byte("MokList")}} }, want: []Code{CodePCRNotZero}},
		"a boot that was capped": {
			before: func(s *scene) {
				s.Unlogged = []papertpm.Measurement{{PCR: 15, Data: []byte("key")}, {PCR: 12, Data: []byte("released")}}
			},
			want: []Code{CodePCRCapped}},
		"a boot in which only PCR 15 was capped": {
			before: func(s *scene) { s.Unlogged = []papertpm.Measurement{{PCR: 15, Data: []byte("key")}} },
			want:   []Code{CodePCRCapped}, says: "already capped"},

		// Firmware.
		"firmware of an unknown build": {
			before: func(s *scene) {
				s.replace(of("dxe volume"), func(m *papertpm.Measurement) { m.Measured = []byte("evil dxe") })
				s.SMBIOS = papertpm.EncodeSMBIOS("6.6", "Paper", "Box", "serial-1")
			}, want: []Code{CodeFirmwareUnknown}, says: `"6.6"`},
		"firmware of a denied build": {
			before: func(s *scene) {
				s.replace(of("dxe volume"), func(m *papertpm.Measurement) { m.Measured = []byte("dxe volume 0") })
				s.SMBIOS = papertpm.EncodeSMBIOS("0.9", "Paper", "Box", "serial-1")
			}, want: []Code{CodeFirmwareDenied}, says: "CVE-1"},
		"firmware of a build that is both allowed and denied": {
			before: func(s *scene) {
				r := s.policy.Firmware.References[0]
				r.Status = FirmwareDenied
				s.policy.Firmware.References = append(s.policy.Firmware.References, r)
			}, want: []Code{CodeFirmwareDenied}},
		"SMBIOS that claims a newer version": {
			before: func(s *scene) { s.SMBIOS = papertpm.EncodeSMBIOS("2.0", "Paper", "Box", "serial-1") }, want: []Code{CodeFirmwareClaim}, says: `says "2.0", the measured firmware is version "1.0"`},
		"SMBIOS that claims a longer version": {
			before: func(s *scene) { s.SMBIOS = papertpm.EncodeSMBIOS("1.0 2.0", "Paper", "Box", "serial-1") }, want: []Code{CodeFirmwareClaim}},
		"SMBIOS without a version": {
			before: func(s *scene) { s.SMBIOS = papertpm.EncodeSMBIOS(" ", "Paper", "Box", "serial-1") }, want: []Code{CodeFirmwareClaim}, says: "says nothing"},
		"no SMBIOS": {
			before: func(s *scene) { s.SMBIOS = nil }, want: []Code{CodeFirmwareUnknown, CodeMalformed}},
		"SMBIOS swapped after quoting": {
			after: func(s *scene) { s.ev.SMBIOS = papertpm.EncodeSMBIOS("1.0", "Paper", "Box 2", "serial-1") }, want: []Code{CodeQuoteEvidence}},
		"the firmware of another model": {
			before: func(s *scene) { s.SMBIOS = papertpm.EncodeSMBIOS("1.0", "Paper", "Other box", "serial-1") }, want: []Code{CodeFirmwareUnknown}},
		"a build of another model": {
			before: func(s *scene) { s.policy.Firmware.References[0].Product = "Other box" }, want: []Code{CodeFirmwareUnknown}},
		"a build of which other digests are known, under its version text": {
			before: func(s *scene) {
				s.Measured[0].Data = []byte("1.0")
				s.replace(of("dxe volume"), func(m *papertpm.Measurement) { m.Measured = []byte("evil") })
			}, want: []Code{CodeFirmwareUnknown}},
		"a build of two equal volumes, with one of them": {
			before: func(s *scene) {
				s.policy.Firmware.References = s.policy.Firmware.References[:1]
				r := &s.policy.Firmware.References[0]
				r.Digests, r.Unpinned = []manifest.SHA256{digestOf("dxe volume"), digestOf("dxe volume")}, 0
			}, want: []Code{CodeFirmwareUnknown}},
		"a build that is known by its version text, and another that is claimed": {
			before: func(s *scene) {
				s.Measured[0].Data = []byte("B1")
				s.SMBIOS = papertpm.EncodeSMBIOS("B2", "Paper", "Box", "serial-1")
				s.policy.Firmware.References = []FirmwareReference{{Version: "B1", Status: FirmwareAllowed}, {Version: "B2", Status: FirmwareAllowed}}
			}, want: []Code{CodeFirmwareUnknown}},
		"a third firmware volume": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), papertpm.Measurement{PCR: 0, Type: EventFirmwareBlob, Data: []byte("x"), Measured: []byte("evil")})
			}, want: []Code{CodeFirmwareUnknown}},
		"a third firmware volume under another type": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), papertpm.Measurement{PCR: 0, Type: EventSCRTMContents, Data: []byte("x"), Measured: []byte("evil")})
			}, want: []Code{CodeFirmwareUnknown}},
		"firmware code as a second version text": {
			before: func(s *scene) {
				s.insertAfter(of("dxe volume"), papertpm.Measurement{PCR: 0, Type: EventSCRTMVersion, Data: []byte("evil")})
			}, want: []Code{CodeFirmwareUnknown}},
		"firmware code as a large version text": {
			before: func(s *scene) {
				s.Measured[0] = papertpm.Measurement{PCR: 0, Type: EventSCRTMVersion, Data: bytes.Repeat([]byte("evil"), 200)}
			}, want: []Code{CodeFirmwareUnknown}},
		"a firmware volume missing": {
			before: func(s *scene) { s.Measured = slices.DeleteFunc(s.Measured, of("pei volume")) }, want: []Code{CodeFirmwareUnknown}},
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
				s.Disk.GUID = "11111111-2222-3333-4444-555555555555"
				s.known.DiskGUID = s.Disk.GUID
			}, want: []Code{CodeDiskForeign}, says: papertpm.Disk},
		"a disk swapped after quoting": {
			after: func(s *scene) { s.ev.Disk.StateExists = false }, want: []Code{CodeStateLost, CodeQuoteEvidence}},
		"a disk that is no GUID": {
			before: func(s *scene) { s.Disk.GUID = "disk" }, want: []Code{CodeMalformed}},
		"a lost state partition": {
			before: func(s *scene) { s.Disk.StateExists = false }, want: []Code{CodeStateLost}},
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
