package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
	"github.com/sealift/sealift/image/manifest"
)

const logDir = "../../testdata/eventlogs/"

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(logDir + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// realPolicy allows the image and the firmware of the logs in testdata, see
// the README there.
func realPolicy(t *testing.T, ca *tpmtest.CA) *attest.Policy {
	t.Helper()
	d := func(s string) (v manifest.SHA256) {
		if err := v.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		return v
	}
	return &attest.Policy{
		ID: "real-1",
		Images: []*manifest.Manifest{{
			Schema: manifest.Schema, Name: "good", Version: "1",
			SecureBoot: manifest.SecureBoot{
				PK:        d("a2b1d1bd388e9adda45b084bf8c2d1d3a538a28a4b354f4dad931325c5f03749"),
				KEK:       d("a7373990f2282e687dc2d6e00335e5f7fd7a533930da34c7d1b5eb57ec13361b"),
				DB:        d("9647c098da98a3c24d7d70db44c54fdff9ba208b6e303117a40945fc8391ff54"),
				Authority: d("3e45733d81577680037ee00c931b1b636bbe2508185c0c4f9ca68e0feceb786e"),
			},
			UKI: manifest.UKI{
				StubVersion:  "252.39-1~deb12u2",
				Cmdline:      "console=ttyS0 quiet sealift.roothash=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
				Authenticode: d("782948611b21ede01de5591b27e131886547f148a57e561675a06ba55bad4dbc"),
				Kernel:       d("5f21ff2c0d5d899842b28a8b19901ba72cf7a7ab93c02a77fadc6ff72be85b31"),
				Initrd:       d("9484983e5d92099c6e7f6bac6c191d5f717ee350ea57761b664c433505d3600e"),
				Sections: []manifest.Section{
					{Name: ".linux", Size: 14186432, SHA256: d("51349501a3d1ff83836437d2b365fd2d57f2feb8642d315e5181dec23d4c3275")},
					{Name: ".osrel", Size: 39, SHA256: d("392ae6ea6cf8317616c2e7e47a17069e231753a48c5680341196a79f3fcc2788")},
					{Name: ".cmdline", Size: 101, SHA256: d("38fbb78306346960702eac83c284fa098e442fb3e12844c9500d69cd8f92e5a4")},
					{Name: ".initrd", Size: 775774, SHA256: d("4af8d6ed917674670cb3c29d9a00031210a5fa39367571585cf60cc45008582b")},
					{Name: ".pcrpkey", Size: 451, SHA256: d("b0481ae74104731ebd9e18c368a270e145e78ba67b4e958fe6409645cc91718b")},
				},
			},
		}},
		Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{{
			Vendor: "QEMU", Product: "Standard PC (Q35 + ICH9, 2009)", Version: "0.0.0",
			Digests: []manifest.SHA256{d("a644ed209b188dd428ea3e15c0b1dbbc1ad05d406bb2857cac4a73b98d0b6b4f")}, Unpinned: 1, Status: attest.FirmwareAllowed,
		}}},
		TPM: attest.TPMPolicy{
			Roots:   []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: ca.Root}, {Certificate: ca.Issuer, Intermediate: true}},
			Allowed: []attest.TPMClass{attest.TPMSoftware},
		},
	}
}

// machine is a box with a software TPM that measures a recorded boot.
type machine struct {
	*scene
	dev  *tpmtest.TPM
	tpm  *tpm.TPM
	log  []byte
	c    *client.Client
	id   attest.MachineID
	disk attest.Disk
	ek   *tpm.EK
}

// power brings the TPM into the state that the log leads to.
func (m *machine) power() {
	m.Helper()
	l, err := attest.ParseEventLog(m.log)
	if err != nil {
		m.Fatal(err)
	}
	for i := range l.Events {
		d := l.Events[i].SHA256()
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(l.Events[i].PCR), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: d[:]}}},
		}.Execute(m.dev)
		if err != nil {
			m.Fatalf("extend event %d: %v", i, err)
		}
	}
	m.tpm = tpm.New(m.dev)
	id, err := m.tpm.Identify("service")
	if err != nil {
		m.Fatal(err)
	}
	m.ek = id.EK
	if m.id, err = attest.EKMachineID(id.EK.Public); err != nil {
		m.Fatal(err)
	}
}

// boot runs the protocol as the agent does. relay, if set, is the session over
// which the evidence is sent in place of the one it was made for.
func (m *machine) boot(relay *client.Session) (*api.Secrets, attest.Secret, *api.Release, error) {
	m.Helper()
	id, err := m.tpm.Identify("service")
	if err != nil {
		m.Fatal(err)
	}
	session, err := m.c.Connect(m.Context())
	if err != nil {
		m.Fatal(err)
	}
	defer session.Close()
	ch, err := session.Challenge(m.Context(), &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: id.EK.Public, EKCertificates: id.EK.Certificates, AKPublic: id.AKPublic,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	secret, err := m.tpm.Activate(ch.Credential, ch.Secret)
	if err != nil {
		m.Fatal(err)
	}
	ev, err := m.tpm.Collect(m.Context(), tpm.CollectInput{
		Purpose: attest.PurposeUnlock, Nonce: ch.Nonce, Exporter: session.Exporter(), EventLog: m.log, SMBIOS: readFile(m.T, "smbios-qemu-7.2.bin"), Disk: m.disk,
		ProveBanks: ch.ProveBanks,
	})
	if err != nil {
		m.Fatal(err)
	}
	if relay != nil {
		session = relay
	}
	release, _, err := session.Evidence(m.Context(), m.id, &api.EvidenceRequest{
		ChallengeID: ch.ID, ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, id.AKPublic), Evidence: *ev,
	})
	if err != nil {
		return nil, nil, nil, err
	}
	transport, err := m.tpm.Unwrap(release.Key)
	if err != nil {
		m.Fatal(err)
	}
	secrets, err := api.OpenSecrets(transport, release)
	if err != nil {
		m.Fatal(err)
	}
	return secrets, transport, release, nil
}

// wantRefused checks that err is a refusal with exactly these codes.
func (m *machine) wantRefused(err error, want ...attest.Code) {
	m.Helper()
	var refused *client.RefusedError
	if !errors.As(err, &refused) {
		m.Errorf("got %v, want a refusal", err)
		return
	}
	var s []string
	for _, c := range want {
		s = append(s, string(c))
	}
	if got := codes(refused.Result); got != strings.Join(s, " ") {
		m.Errorf("refused with %s, want %s", got, strings.Join(s, " "))
		for _, f := range refused.Result.Findings {
			m.Logf("%s: %s", f.Code, f.Message)
		}
	}
}

func (m *machine) wantReleased(err error) {
	m.Helper()
	var refused *client.RefusedError
	if errors.As(err, &refused) {
		for _, f := range refused.Result.Findings {
			m.Logf("%s: %s", f.Code, f.Message)
		}
	}
	if err != nil {
		m.Fatal(err)
	}
}

// The life of a box against a real service with a real TPM: unknown, approved,
// released once, capped, rebooted, revoked.
func TestTheWholeProtocolWithARealTPM(t *testing.T) {
	dev := tpmtest.Config{Banks: []string{"sha256"}, P256Certificate: true}.Open(t)
	s := newScene(t, func(c *server.Config) {
		c.Policy = func(context.Context, attest.MachineID) (*attest.Policy, error) { return realPolicy(t, dev.CA), nil }
	})
	s.srv.AppraiseForReal()
	m := &machine{scene: s, dev: dev, log: readFile(t, "ovmf-2022.11-secureboot.bin"), disk: attest.Disk{GUID: logDisk(t)}}
	m.c = &client.Client{URL: "https://" + s.nodes, CA: s.pool(), ReleaseKey: &s.release.PublicKey}
	m.power()

	_, _, _, err := m.boot(nil)
	m.wantRefused(err, attest.CodeMachineUnknown)
	_, _, _, err = m.boot(nil)
	m.wantRefused(err, attest.CodeMachinePending)
	url := "https://" + s.operators + api.PathMachines + "/" + m.id.String()
	if status := s.call(s.operator(), "POST", url+"/approve", api.StateChange{Reason: "known serial"}, nil); status != 200 {
		t.Fatalf("approve: HTTP %d", status)
	}

	// Evidence over another connection than its challenge's is refused unseen.
	other, err := m.c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, _, _, err = m.boot(other)
	m.wantRefused(err, attest.CodeChallenge)

	secrets, transport, release, err := m.boot(nil)
	m.wantReleased(err)
	if len(secrets.DiskKey) != 32 || secrets.Join == nil || !strings.HasPrefix(secrets.NodeName, "box-") {
		t.Errorf("secrets are %+v", secrets)
	}
	_, _, _, err = m.boot(nil)
	m.wantRefused(err, attest.CodeReleaseRepeated)
	if err := m.tpm.Cap("state", secrets.DiskKey, "c4f1ae57-0000-4000-8000-000000000001"); err != nil {
		t.Fatal(err)
	}
	if err := m.c.Confirm(t.Context(), transport, release.ID, api.OutcomeUnlocked); err != nil {
		t.Fatal(err)
	}
	m.disk.StateExists = true
	_, _, _, err = m.boot(nil)
	m.wantRefused(err, attest.CodePCRCapped, attest.CodePCRCapped, attest.CodeReleaseRepeated) // PCR 12 and 15

	// The next boots.
	dev.Reset()
	m.power()
	m.disk.StateExists = false
	_, _, _, err = m.boot(nil)
	m.wantRefused(err, attest.CodeStateLost)
	m.disk.StateExists = true
	again, _, _, err := m.boot(nil)
	m.wantReleased(err)
	if !bytes.Equal(again.DiskKey, secrets.DiskKey) {
		t.Error("the disk key is another after a reboot")
	}
	if status := s.call(s.operator(), "POST", url+"/revoke", api.StateChange{Reason: "stolen"}, nil); status != 200 {
		t.Fatalf("revoke: HTTP %d", status)
	}
	dev.Reset()
	m.power()
	_, _, _, err = m.boot(nil)
	m.wantRefused(err, attest.CodeMachineRevoked)

	// A reinstall of the reinstated machine starts anew.
	if status := s.call(s.operator(), "POST", url+"/reinstate", api.StateChange{Reason: "found"}, nil); status != 200 {
		t.Fatalf("reinstate: HTTP %d", status)
	}
	// The measured log names one disk: as if it were the new one.
	rec, err := s.memory.Machine(t.Context(), m.id)
	if err != nil {
		t.Fatal(err)
	}
	rec.DiskGUID = otherDisk
	if err := s.memory.Commit(t.Context(), &server.Change{Machine: rec}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.srv.Enrol(t.Context(), "line-1", &api.InstallRecord{EKPublic: m.ek.Public, EKCertificates: m.ek.Certificates, DiskGUID: m.disk.GUID, Finished: time.Now()}); err != nil {
		t.Fatal(err)
	}
	m.disk.StateExists = false
	fresh, _, _, err := m.boot(nil)
	m.wantReleased(err)
	if bytes.Equal(fresh.DiskKey, secrets.DiskKey) {
		t.Error("a reinstall kept the disk key")
	}

	r, err := audit.Build(s.memory.Audit(t.Context(), 1), audit.ReportOptions{Generated: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Chain.Intact || len(r.Machines) != 1 || r.Summary.Allowed != 3 || r.Summary.Refused != 6 || r.Summary.Releases != 3 || r.Summary.Confirmed != 1 {
		t.Errorf("report: %+v, %+v", r.Chain, r.Summary)
	}
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
}

// A copy of a disk in another box: the disk's owner is another machine.
func TestACopiedDiskInAnotherBoxIsRefused(t *testing.T) {
	dev := tpmtest.Config{Banks: []string{"sha256"}, P256Certificate: true}.Open(t)
	s := newScene(t, func(c *server.Config) {
		c.Policy = func(context.Context, attest.MachineID) (*attest.Policy, error) { return realPolicy(t, dev.CA), nil }
	})
	s.srv.AppraiseForReal()
	m := &machine{scene: s, dev: dev, log: readFile(t, "ovmf-2022.11-secureboot.bin"), disk: attest.Disk{GUID: logDisk(t), StateExists: true}}
	m.c = &client.Client{URL: "https://" + s.nodes, CA: s.pool(), ReleaseKey: &s.release.PublicKey}
	m.power()
	owner := newBox(t, dev.CA)
	rec := record(owner)
	rec.DiskGUID = m.disk.GUID
	if _, err := s.srv.Enrol(t.Context(), "line-1", rec); err != nil {
		t.Fatal(err)
	}
	_, _, _, err := m.boot(nil)
	m.wantRefused(err, attest.CodeMachineUnknown, attest.CodeDiskForeign)
}

// logDisk returns the GUID of the GPT that was measured.
func logDisk(t *testing.T) string {
	t.Helper()
	l, err := attest.ParseEventLog(readFile(t, "ovmf-2022.11-secureboot.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range l.ForPCR(5) {
		if e.UntrustedType == attest.EventGPT && len(e.UntrustedData) >= 72 {
			// UEFI_GPT_DATA begins with the header (UEFI 2.10, 5.3.2), whose
			// DiskGUID is at 56, its first three fields little-endian.
			g := e.UntrustedData[56:72]
			return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g), binary.LittleEndian.Uint16(g[4:]), binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:])
		}
	}
	t.Fatal("the log has no GPT event")
	return ""
}
