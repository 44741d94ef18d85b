package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// activeIn lists the banks of a proof that have any PCR.
func activeIn(t *testing.T, p *attest.BankProof) string {
	t.Helper()
	if p == nil {
		return "no proof"
	}
	l, err := tpm2.Unmarshal[tpm2.TPMLPCRSelection](p.List)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range knownBanks() {
		if len(selected(*l, b.alg)) > 0 {
			names = append(names, b.name)
		}
	}
	return strings.Join(names, " ")
}

// auditDigest computes, with go-tpm's calculator, the digest of a session in which
// the clock was read, and then the banks were listed.
func auditDigest(t *testing.T, p *attest.BankProof) []byte {
	t.Helper()
	now, err := tpm2.Unmarshal[tpm2.TPMSTimeInfo](p.Time)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tpm2.Unmarshal[tpm2.TPMLPCRSelection](p.List)
	if err != nil {
		t.Fatal(err)
	}
	a, err := tpm2.NewAudit(tpm2.TPMAlgSHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := tpm2.AuditCommand(a, tpm2.ReadClock{}, &tpm2.ReadClockResponse{CurrentTime: *now}); err != nil {
		t.Fatal(err)
	}
	if err := tpm2.AuditCommand(a, tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}, &tpm2.GetCapabilityResponse{
		CapabilityData: tpm2.TPMSCapabilityData{Capability: tpm2.TPMCapPCRs, Data: tpm2.NewTPMUCapabilities(tpm2.TPMCapPCRs, l)},
	}); err != nil {
		t.Fatal(err)
	}
	return a.Digest()
}

// qualifyingOf is the qualifying data of evidence's quotes.
func qualifyingOf(dev *TPM, ev *attest.Evidence, in CollectInput) []byte {
	return attest.QualifyingData(attest.Binding{Purpose: in.Purpose, Nonce: in.Nonce, Exporter: in.Exporter, TransportID: dev.tk.name.Buffer}, ev)
}

func sessionInfo(t *testing.T, p *attest.BankProof) *tpm2.TPMSSessionAuditInfo {
	t.Helper()
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](p.Attest)
	if err != nil {
		t.Fatal(err)
	}
	info, err := a.Attested.SessionAudit()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// A proof costs a signature, so only those give one who need it.
func TestTheActiveBanksAreProvenWhereSHA256IsOff(t *testing.T) {
	for banks, want := range map[string]string{
		"sha256": "no proof", "sha1,sha256": "no proof", "sha256,sha384": "no proof",
		"sha384": "sha384", "sha1,sha384": "sha1 sha384", "sha384,sha512": "sha384 sha512",
	} {
		d, dev, ev, _ := collected(t, tpmtest.Config{Banks: strings.Split(banks, ",")})
		if got := activeIn(t, ev.Banks); got != want {
			t.Errorf("%s: proven are %s, want %s", banks, got, want)
		}
		empty(t, d, dev)
	}
}

// Where the service asks, the proof is given whatever banks are active, and is of
// the banks that are quoted.
func TestTheActiveBanksAreProvenWhereItIsAsked(t *testing.T) {
	for _, banks := range []string{"sha256", "sha1 sha256", "sha256 sha384", "sha1 sha256 sha384 sha512", "sha384"} {
		d, dev, _, in := collected(t, tpmtest.Config{Banks: strings.Fields(banks)})
		in.ProveBanks = true
		ev, err := dev.Collect(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if got := activeIn(t, ev.Banks); got != banks {
			t.Errorf("%s: proven are %s", banks, got)
		}
		if want := auditDigest(t, ev.Banks); !bytes.Equal(sessionInfo(t, ev.Banks).SessionDigest.Buffer, want) {
			t.Errorf("%s: the session's digest is not %x", banks, want)
		}
		var quoted []string
		for _, q := range ev.Quotes {
			if len(q.PCRs) > 0 {
				quoted = append(quoted, q.Bank)
			}
		}
		if got := strings.Join(quoted, " "); got != banks {
			t.Errorf("%s: quoted are %s", banks, got)
		}
		empty(t, d, dev)
	}
}

// resourceManager saves and loads the audit session around each command, as the
// resource manager of Linux does.
type resourceManager struct {
	transport.TPM
	t       *testing.T
	session tpm2.TPMHandle
	saved   *tpm2.TPMSContext
	swaps   int
}

func (r *resourceManager) Send(in []byte) ([]byte, error) {
	if r.saved != nil {
		if _, err := (tpm2.ContextLoad{Context: *r.saved}).Execute(r.TPM); err != nil {
			r.t.Errorf("load the session: %v", err)
		}
		r.saved = nil
		r.swaps++
	}
	out, err := r.TPM.Send(in)
	switch tpm2.TPMCC(binary.BigEndian.Uint32(in[6:])) {
	case tpm2.TPMCCStartAuthSession:
		r.session = tpm2.TPMHandle(binary.BigEndian.Uint32(out[10:]))
	case tpm2.TPMCCFlushContext:
		r.session = 0
	}
	if r.session != 0 {
		rsp, err := tpm2.ContextSave{SaveHandle: r.session}.Execute(r.TPM)
		if err != nil {
			r.t.Errorf("save the session: %v", err)
			return out, nil
		}
		r.saved = &rsp.Context
		// Another program's command.
		if _, err := (tpm2.GetRandom{BytesRequested: 8}).Execute(r.TPM); err != nil {
			r.t.Error(err)
		}
	}
	return out, err
}

// Other programs use the TPM meanwhile, so that the session is not an exclusive
// one. Its digest is the same.
func TestTheActiveBanksAreProvenThroughAResourceManager(t *testing.T) {
	_, dev, ev, in := collected(t, tpmtest.Config{Banks: []string{"sha384"}})
	if !sessionInfo(t, ev.Banks).ExclusiveSession {
		t.Error("without a resource manager the session is not exclusive: this test shows nothing")
	}
	r := &resourceManager{TPM: dev.transport, t: t}
	dev.transport = r
	again, err := dev.Collect(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	info := sessionInfo(t, again.Banks)
	if r.swaps < 3 || bool(info.ExclusiveSession) {
		t.Fatalf("the session was loaded %d times and is exclusive %t", r.swaps, info.ExclusiveSession)
	}
	if want := auditDigest(t, again.Banks); !bytes.Equal(info.SessionDigest.Buffer, want) {
		t.Errorf("the session's digest is %x, want %x", info.SessionDigest.Buffer, want)
	}
}

// What the TPM signs holds against other people's programs: the signature by
// tpm2_verifysignature, the list by tpm2_getcap, the digest by go-tpm.
func TestProofsOfTheActiveBanksPassOtherVerifiers(t *testing.T) {
	verify, getcap := tpmtest.Tool(t, "tpm2_verifysignature"), tpmtest.Tool(t, "tpm2_getcap")
	loadexternal := tpmtest.Tool(t, "tpm2_loadexternal")
	d, dev, ev, in := collected(t, tpmtest.Config{Banks: []string{"sha1", "sha384"}})
	info := sessionInfo(t, ev.Banks)
	qualifying := qualifyingOf(dev, ev, in)
	if want := auditDigest(t, ev.Banks); !bytes.Equal(info.SessionDigest.Buffer, want) {
		t.Errorf("the session's digest is %x, want %x", info.SessionDigest.Buffer, want)
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](ev.Banks.Attest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.ExtraData.Buffer, qualifying) {
		t.Errorf("extraData is %x, want that of the quotes, %x", a.ExtraData.Buffer, qualifying)
	}
	if err := dev.Close(); err != nil { // the tools need the room
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tcti := []string{"-T", "swtpm:path=" + d.Socket}
	tool := func(name string, args ...string) ([]byte, error) {
		return exec.Command(name, append(args, tcti...)...).CombinedOutput()
	}
	out, err := tool(getcap, "pcrs")
	if err != nil {
		t.Fatalf("tpm2_getcap: %v\n%s", err, out)
	}
	for _, line := range []string{"- sha1: [ 0,", "- sha256: [ ]", "- sha384: [ 0,"} {
		if !strings.Contains(string(out), line) {
			t.Errorf("tpm2_getcap does not say %q:\n%s", line, out)
		}
	}
	if got := activeIn(t, ev.Banks); got != "sha1 sha384" {
		t.Errorf("proven are %s", got)
	}
	ak := file("ak", tpm2.Marshal(tpm2.BytesAs2B[tpm2.TPMTPublic](ev.AKPublic)))
	context := filepath.Join(dir, "context")
	if out, err := tool(loadexternal, "-C", "n", "-u", ak, "-c", context); err != nil {
		t.Fatalf("tpm2_loadexternal: %v\n%s", err, out)
	}
	check := func(statement []byte) ([]byte, error) {
		digest := sha256.Sum256(statement)
		return tool(verify, "-c", context, "-d", file("digest", digest[:]), "-s", file("signature", ev.Banks.Signature))
	}
	if out, err := check(ev.Banks.Attest); err != nil {
		t.Errorf("tpm2_verifysignature: %v\n%s", err, out)
	}
	altered := bytes.Clone(ev.Banks.Attest)
	altered[len(altered)-1] ^= 1
	if out, err := check(altered); err == nil {
		t.Errorf("tpm2_verifysignature accepts an altered statement %s\n%s", hex.EncodeToString(altered), out)
	}
}

// noAudit is a TPM that does not know TPM2_GetSessionAuditDigest.
type noAudit struct {
	transport.TPM
	code uint32
}

func (n *noAudit) Send(in []byte) ([]byte, error) {
	if tpm2.TPMCC(binary.BigEndian.Uint32(in[6:])) != tpm2.TPMCCGetSessionAuditDigest {
		return n.TPM.Send(in)
	}
	return binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, n.code), nil
}

func TestATPMThatCannotProveItsBanksGivesEvidenceWithoutAProof(t *testing.T) {
	d, dev, _, in := collected(t, tpmtest.Config{Banks: []string{"sha384"}})
	for name, c := range map[string]struct {
		code uint32
		ok   bool
	}{
		"TPM_RC_COMMAND_CODE":                     {uint32(tpm2.TPMRCCommandCode), true},
		"TPM_RC_COMMAND_CODE of Linux":            {11<<16 | uint32(tpm2.TPMRCCommandCode), true},
		"TPM_RC_FAILURE":                          {uint32(tpm2.TPMRCFailure), false},
		"TPM_RC_AUTH_FAIL of the first handle":    {0x98e, false},
		"TPM_RC_HIERARCHY of the first handle":    {0x185, false},
		"TPM_RC_RETRY, and again, without an end": {uint32(tpm2.TPMRCRetry), false},
	} {
		t.Run(name, func(t *testing.T) {
			dev.transport = &noAudit{d, c.code}
			defer func() { dev.transport = d }()
			ev, err := dev.Collect(t.Context(), in)
			if (err == nil) != c.ok {
				t.Fatalf("got %v", err)
			}
			if c.ok && (ev.Banks != nil || len(ev.Quotes) != 2 || ev.NoBanks != "it has no TPM2_GetSessionAuditDigest") {
				t.Errorf("a proof is there, or %d quotes, or it says %q", len(ev.Quotes), ev.NoBanks)
			}
			if !c.ok && !strings.Contains(err.Error(), "prove the active pcr banks") {
				t.Errorf("got %v", err)
			}
		})
	}
	empty(t, d, dev)
}

// A service that only asks takes a machine whose TPM fails to give the proof: so the
// failure is part of the evidence.
func TestATPMThatFailsToProveItsBanksSaysSoWhereSHA256IsOn(t *testing.T) {
	d, dev, _, in := collected(t, tpmtest.Config{Banks: []string{"sha256"}})
	in.ProveBanks = true
	for code, want := range map[tpm2.TPMRC]string{tpm2.TPMRCCommandCode: "it has no TPM2_GetSessionAuditDigest", tpm2.TPMRCFailure: "prove the active pcr banks: sign the session's digest: "} {
		dev.transport = &noAudit{d, uint32(code)}
		ev, err := dev.Collect(t.Context(), in)
		dev.transport = d
		if err != nil {
			t.Fatal(err)
		}
		if ev.Banks != nil || len(ev.Quotes) != 1 || !strings.HasPrefix(ev.NoBanks, want) || len(ev.NoBanks) > attest.MaxNoBanks {
			t.Errorf("%v: a proof is there, or %d quotes, or it says %q", code, len(ev.Quotes), ev.NoBanks)
		}
	}
	ev, err := dev.Collect(t.Context(), in)
	if err != nil || ev.Banks == nil || ev.NoBanks != "" {
		t.Errorf("a TPM that can: %v, %+v", err, ev)
	}
	empty(t, d, dev)
}

// A session outlives a TPM restart, and in a restart the banks can change. A list
// from before does not serve afterwards: the TPM counted fewer restarts when it gave
// it, and cannot be made to have counted them later.
func TestAListFromBeforeARestartProvesNothing(t *testing.T) {
	d := tpmtest.Config{Banks: []string{"sha384"}}.Open(t)
	session, _, err := tpm2.HMACSession(d, tpm2.TPMAlgSHA256, 16, tpm2.Audit())
	if err != nil {
		t.Fatal(err)
	}
	first := auditedTime(t, d, session)
	list := auditedList(t, d, session)
	reversed, _, err := tpm2.HMACSession(d, tpm2.TPMAlgSHA256, 16, tpm2.Audit())
	if err != nil {
		t.Fatal(err)
	}
	auditedList(t, d, reversed)
	var saved []tpm2.TPMSContext
	for _, s := range []tpm2.Session{session, reversed} {
		rsp, err := tpm2.ContextSave{SaveHandle: s.Handle()}.Execute(d)
		if err != nil {
			t.Fatal(err)
		}
		saved = append(saved, rsp.Context)
	}
	before := clockOf(t, d)
	if _, err := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUState}).Execute(d); err != nil {
		t.Fatal(err)
	}
	d.Allocate("sha256", "sha384")
	d.PowerLoss()
	if after := clockOf(t, d); after.ResetCount != before.ResetCount || after.RestartCount == before.RestartCount {
		t.Fatalf("this was no restart: resets %d and %d, restarts %d and %d", before.ResetCount, after.ResetCount, before.RestartCount, after.RestartCount)
	}
	for _, c := range saved {
		if _, err := (tpm2.ContextLoad{Context: c}).Execute(d); err != nil {
			t.Fatalf("the session does not outlive a restart: this test shows nothing: %v", err)
		}
	}
	dev := New(d)
	if _, err := dev.Identify("test"); err != nil {
		t.Fatal(err)
	}
	in := input()
	in.Disk.GUID = "01020304-0506-0708-090a-0b0c0d0e0f10"
	ev, err := dev.Collect(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	qualifying := qualifyingOf(dev, ev, in)
	check := func(what string, want ...attest.Code) {
		t.Helper()
		if got := bankFindings(ev, in); !slices.Equal(got, want) {
			t.Errorf("%s: findings on the banks are %q, want %q", what, got, want)
		}
	}
	ev.Banks = signedSession(t, dev, session, first, list, qualifying)
	check("the session from before", attest.CodeClock)
	now := auditedTime(t, d, reversed)
	ev.Banks = signedSession(t, dev, reversed, now, list, qualifying)
	check("the clock is read after the restart", attest.CodeBankUnproven)
	ev.Banks = signedSession(t, dev, session, now, list, qualifying)
	check("another time than the session's", attest.CodeBankUnproven)
	// A list of now, made by the same means.
	session, _, err = tpm2.HMACSession(d, tpm2.TPMAlgSHA256, 16, tpm2.Audit())
	if err != nil {
		t.Fatal(err)
	}
	now = auditedTime(t, d, session)
	ev.Banks = signedSession(t, dev, session, now, auditedList(t, d, session), qualifying)
	check("a list of now")
}

// auditedTime reads the clock in an audit session.
func auditedTime(t *testing.T, d *tpmtest.TPM, session tpm2.Session) []byte {
	t.Helper()
	rsp, err := tpm2.ReadClock{}.Execute(d, session)
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.Marshal(rsp.CurrentTime)
}

// auditedList lists the active banks in an audit session.
func auditedList(t *testing.T, d *tpmtest.TPM, session tpm2.Session) []byte {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(d, session)
	if err != nil {
		t.Fatal(err)
	}
	list, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.Marshal(list)
}

// signedSession has the attestation key sign an audit session's digest.
func signedSession(t *testing.T, dev *TPM, session tpm2.Session, now, list, qualifying []byte) *attest.BankProof {
	t.Helper()
	rsp, err := tpm2.GetSessionAuditDigest{
		PrivacyAdminHandle: hierarchy(tpm2.TPMRHEndorsement), SignHandle: dev.ak.auth(tpm2.PasswordAuth(nil)), SessionHandle: session.Handle(),
		QualifyingData: tpm2.TPM2BData{Buffer: qualifying}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(dev.transport)
	if err != nil {
		t.Fatal(err)
	}
	return &attest.BankProof{Time: now, List: list, Attest: rsp.AuditInfo.Bytes(), Signature: tpm2.Marshal(rsp.Signature)}
}

// bankFindings returns the findings about the proof of the active banks. The
// policy is of no machine, so that everything else is found wanting.
func bankFindings(ev *attest.Evidence, in CollectInput) []attest.Code {
	ch := &attest.Challenge{ID: "c", Purpose: in.Purpose, Nonce: in.Nonce, ActivationSecret: random(32), AKPublic: ev.AKPublic, EKPublic: ev.EKPublic, Expires: time.Now().Add(time.Minute)}
	r := attest.Verify(ev, ch, &attest.Session{Exporter: in.Exporter, Now: time.Now()}, &attest.Known{}, &attest.Policy{Bank: "sha384"})
	var codes []attest.Code
	for _, f := range r.Findings {
		if strings.HasPrefix(string(f.Code), "bank.") || strings.HasPrefix(f.Message, "proof of the active banks") {
			codes = append(codes, f.Code)
		}
	}
	return codes
}

func clockOf(t *testing.T, d *tpmtest.TPM) tpm2.TPMSClockInfo {
	t.Helper()
	rsp, err := tpm2.ReadClock{}.Execute(d)
	if err != nil {
		t.Fatal(err)
	}
	return rsp.CurrentTime.ClockInfo
}
