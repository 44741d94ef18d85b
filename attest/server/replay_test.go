package server_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/backup"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/image/manifest"
)

// backUp makes a backup of what the scene's service has.
func (s *scene) backUp() []byte {
	s.Helper()
	var b bytes.Buffer
	if _, err := backup.Write(&b, s.release, backup.Manifest{Taken: s.now()}, func(each func(server.Record) error) error {
		return s.memory.Dump(context.Background(), each)
	}); err != nil {
		s.Fatal(err)
	}
	return b.Bytes()
}

// exportLog exports the audit log from entry from on, with its signed head.
func (s *scene) exportLog(from int64) []byte {
	s.Helper()
	var b []byte
	var head audit.Head
	for e, err := range s.memory.Audit(context.Background(), from) {
		if err == nil {
			b, err = audit.AppendLine(b, e)
			head = e.Head()
		}
		if err != nil {
			s.Fatal(err)
		}
	}
	return append(b, s.signHead(s.release, audit.HeadStatement{Head: head, Time: s.now()})...)
}

// signHead is the last line of an export.
func (s *scene) signHead(key crypto.Signer, head audit.HeadStatement) []byte {
	s.Helper()
	e, err := audit.Sign(key, audit.HeadType, head)
	if err != nil {
		s.Fatal(err)
	}
	line, err := audit.AppendSigned(nil, e)
	if err != nil {
		s.Fatal(err)
	}
	return line
}

// head is the hash of the log's last entry.
func (s *scene) head() manifest.SHA256 {
	s.Helper()
	head, _, err := audit.Verify(bytes.NewReader(s.exportLog(1)))
	if err != nil {
		s.Fatal(err)
	}
	return head.Hash
}

// restored is a new store from a backup.
func (s *scene) restored(change func(*backup.Order), file []byte) (*storetest.Memory, *backup.Report) {
	s.Helper()
	o := &backup.Order{Backup: bytes.NewReader(file), Key: &s.release.PublicKey, By: "root", Reason: "the disk died", Now: s.now()}
	if change != nil {
		change(o)
	}
	m := new(storetest.Memory)
	r, err := backup.Restore(s.Context(), m.Load, o)
	if err != nil {
		s.Fatal(err)
	}
	return m, r
}

// TestAReplayedLogGivesTheRecords lets a service do anything to its machines,
// takes a backup in the middle, and compares what backup and log give with
// what the service has.
func TestAReplayedLogGivesTheRecords(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 1))
			s := newScene(t, nil)
			op := s.operator()
			boxes := make([]*box, 4)
			boots := make([]server.Boot, len(boxes))
			disks := make([]string, len(boxes))
			for i := range boxes {
				boxes[i] = newBox(t, s.tpmCA)
				boots[i].Reset = 1
				disks[i] = fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-%012d", i+1)
			}
			last := make([]*api.EvidenceResponse, len(boxes))
			step := func() {
				i := rnd.IntN(len(boxes))
				b := boxes[i]
				verb := func(v string) {
					s.call(op, "POST", "https://"+s.operators+api.PathMachines+"/"+b.id.String()+"/"+v, &api.StateChange{Reason: fmt.Sprint("because ", rnd.Uint32())}, nil)
				}
				switch n := rnd.IntN(20); {
				case n < 3: // installed, on this disk or on another
					if rnd.IntN(3) == 0 {
						disks[i] = fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-%012d", rnd.IntN(1<<20)+100)
					}
					rec := record(b)
					rec.DiskGUID = disks[i]
					_, _ = s.srv.Enrol(context.Background(), "line-1", rec) // a revoked one is refused
				case n < 9:
					if rnd.IntN(4) > 0 {
						boots[i].Reset++
						boots[i].Restart = rnd.Uint32N(3)
					}
					s.set(func() { s.boot = boots[i] })
					c := s.httpClient()
					req := s.answer(b, s.challenge(c, b))
					req.Evidence.Disk = attest.Disk{GUID: disks[i], StateExists: true}
					_, last[i] = s.send(c, req)
				case n < 12: // what the machine says of its last release
					if last[i] == nil || last[i].Release == nil {
						return
					}
					rel, _, transport := s.open(last[i])
					outcome := []string{api.OutcomeUnlocked, "no such volume"}[rnd.IntN(2)]
					s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm, &api.ConfirmRequest{
						ReleaseID: rel.ID, Outcome: outcome, Proof: api.ConfirmProof(transport, rel.ID, outcome),
					}, nil)
				case n < 14:
					m, err := s.memory.Machine(context.Background(), b.id)
					if err != nil || m.TokenID == "" {
						return
					}
					event := []audit.TokenEvent{audit.TokenUsed, audit.TokenJoined, audit.TokenExpired}[rnd.IntN(3)]
					if err := s.srv.TokenEvent(context.Background(), audit.Token{Event: event, ID: m.TokenID, NodeName: m.NodeName}); err != nil {
						t.Error(err)
					}
				default:
					verb([]string{"approve", "approve", "revoke", "reinstate", "reinstate", "rejoin"}[n-14])
				}
			}
			for range 20 {
				step()
			}
			file := s.backUp()
			for range 40 {
				step()
			}
			memory, report := s.restored(func(o *backup.Order) {
				o.Log, o.Head = bytes.NewReader(s.exportLog(1)), s.head()
			}, file)
			if !report.Complete || len(report.NotReplayed) > 0 {
				t.Errorf("not complete: %+v", report)
			}
			real, err := s.memory.Machines(t.Context(), server.Query{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := memory.Machines(t.Context(), server.Query{})
			if err != nil || len(got) != len(real) {
				t.Fatalf("%d machines, want %d: %v", len(got), len(real), err)
			}
			lost := fmt.Sprint(report.LostKeys)
			for i, m := range real {
				g := got[i]
				if strings.Contains(lost, m.ID.String()) {
					if g.DiskKey != nil || g.State == attest.StateEnrolled {
						t.Errorf("machine %s: the key of its disk is lost, and it is %s", m.ID.Short(), g.State)
					}
					g.State, g.Reason = m.State, m.Reason
				} else if string(box64(g.DiskKey)) != string(box64(m.DiskKey)) {
					t.Errorf("machine %s: another disk key", m.ID.Short())
				}
				if m.StateMade && !g.StateMade {
					// Seen in evidence, and not confirmed. The next tells again.
					g.StateMade = true
				}
				// What the log does not hold, and evidence that is lost.
				for _, m := range []*server.Machine{m, g} {
					m.LastEvidence, m.AcceptedEvidence = manifest.SHA256{}, manifest.SHA256{}
					m.AKName, m.Clock, m.DiskKey, m.Former = nil, 0, nil, nil
					m.Boot, m.LastReport, m.ReportDue, m.Stale = nil, time.Time{}, time.Time{}, false
				}
				a, _ := json.Marshal(m)
				b, _ := json.Marshal(g)
				if !bytes.Equal(a, b) {
					t.Errorf("machine %s:\ngot  %s\nwant %s", m.ID.Short(), b, a)
				}
			}
			// No boot that had its release gets another one.
			for e, err := range s.memory.Audit(t.Context(), 1) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Kind != audit.KindRelease {
					continue
				}
				var d audit.Release
				if err := json.Unmarshal(e.Data, &d); err != nil {
					t.Fatal(err)
				}
				was, err := s.memory.Release(t.Context(), d.ID)
				if err != nil {
					t.Fatal(err)
				}
				is, err := memory.Release(t.Context(), d.ID)
				if err != nil || is.Machine != was.Machine || is.Generation != was.Generation || is.ResetCount != was.ResetCount || is.RestartCount != was.RestartCount {
					t.Errorf("release %s is of another boot: got %+v, want %+v, %v", d.ID, is, was, err)
					continue
				}
				if is.Transport != nil || is.Outcome == "" {
					t.Errorf("release %s is open still", d.ID)
				}
			}
		})
	}
}

func box64(k *server.SealedKey) []byte {
	if k == nil {
		return nil
	}
	return k.Box
}

// keep is for newScene: it keeps the configuration for adopt.
func keep(into *server.Config) func(*server.Config) {
	return func(c *server.Config) { *into = *c }
}

// adopt starts the service of that configuration again, on another store.
func (s *scene) adopt(c server.Config, m *storetest.Memory) {
	s.Helper()
	c.Standing = storetest.Standing(s, m, s.release)
	s.memory, c.Store = m, &storetest.Faulty{Store: m, Fail: c.Store.(*storetest.Faulty).Fail}
	srv, err := server.New(c)
	if err != nil {
		s.Fatal(err)
	}
	srv.Appraise(s.appraise)
	s.srv = srv
	if err := srv.Start(s.Context()); err != nil {
		s.Fatal(err)
	}
	s.listen()
}

func TestARestoredServiceIsHeldUntilAPersonAccepts(t *testing.T) {
	var config server.Config
	s := newScene(t, keep(&config))
	b, gone := newBox(t, s.tpmCA), newBox(t, s.tpmCA)
	s.enrol(b)
	rec := record(gone)
	rec.DiskGUID = otherDisk
	if _, err := s.srv.Enrol(t.Context(), "line-1", rec); err != nil {
		t.Fatal(err)
	}
	c := s.httpClient()
	old := s.answer(b, s.challenge(c, b)) // open while the backup is made
	file := s.backUp()
	if status, _ := s.attest(b); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	op := s.operator()
	s.call(op, "POST", "https://"+s.operators+api.PathMachines+"/"+gone.id.String()+"/revoke", &api.StateChange{Reason: "stolen"}, nil)

	// Nothing but the backup is left: neither the release nor the revocation.
	memory, report := s.restored(nil, file)
	if report.Complete || report.Replayed != 0 {
		t.Errorf("got %+v", report)
	}
	s.adopt(config, memory)
	op = s.operator()
	c = s.httpClient()
	if status, resp := s.send(c, old); status != http.StatusForbidden || codes(resp.Result) != string(attest.CodeChallenge) {
		t.Errorf("a challenge from before: HTTP %d, %s", status, codes(resp.Result))
	}
	var failed api.Error
	ask := func() int {
		c := s.httpClient()
		failed = api.Error{}
		return s.call(c, "POST", "https://"+s.nodes+api.PathEvidence, s.answer(b, s.challenge(c, b)), &failed)
	}
	if status := ask(); status != http.StatusServiceUnavailable || failed.Code != "held" {
		t.Errorf("before it was accepted: HTTP %d, %+v", status, failed)
	}
	if err := s.srv.RestoreAccepted(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing is released") {
		t.Errorf("before it was accepted: the check says %v", err)
	}
	var st api.RestoreStatus
	if s.call(op, "GET", "https://"+s.operators+api.PathRestore, nil, &st); !st.Held || st.By != "root" || st.Reason != "the disk died" {
		t.Errorf("got %+v", st)
	}
	// The person revokes what was lost, then accepts.
	if status := s.call(op, "POST", "https://"+s.operators+api.PathMachines+"/"+gone.id.String()+"/revoke", &api.StateChange{Reason: "stolen, again"}, nil); status != 200 {
		t.Errorf("HTTP %d", status)
	}
	viewer := s.httpClient(s.certificate(pkix.Name{
		CommonName: "bob", Organization: []string{api.OperatorOrganization}, OrganizationalUnit: []string{"operator"},
	}, x509.ExtKeyUsageClientAuth))
	if status := s.call(viewer, "POST", "https://"+s.operators+api.PathRestore+"/accept", &api.StateChange{Reason: "x"}, nil); status != http.StatusForbidden {
		t.Errorf("accepted by one who is no approver: HTTP %d", status)
	}
	for range 2 { // again is no error
		if status := s.call(op, "POST", "https://"+s.operators+api.PathRestore+"/accept", &api.StateChange{Reason: "compared"}, &st); status != 200 || st.Held || st.AcceptedBy != "alice" {
			t.Errorf("HTTP %d, %+v", status, st)
		}
	}
	// The boot had its release after the backup, which the store cannot know.
	for range 2 {
		if status, resp := s.attest(b); status != http.StatusForbidden || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
			t.Errorf("a second release in the boot of the lost one: HTTP %d, %s", status, codes(resp.Result))
		}
	}
	s.set(func() { s.boot.Reset++ })
	status, resp := s.attest(b)
	if status != 200 {
		t.Errorf("in the next boot: HTTP %d, %s", status, codes(resp.Result))
	}
	if status, resp := s.attest(gone); status != http.StatusForbidden || !strings.Contains(codes(resp.Result), string(attest.CodeMachineRevoked)) {
		t.Errorf("the machine that was revoked again: HTTP %d, %s", status, codes(resp.Result))
	}
	kinds := s.kinds()
	for _, k := range []audit.Kind{audit.KindRestore, audit.KindAcceptRestore} {
		if strings.Count(kinds, string(k)) != 1 {
			t.Errorf("the log has %s", kinds)
		}
	}
}

func TestARestoreThatLostNothingGoesOnAtOnce(t *testing.T) {
	var config server.Config
	s := newScene(t, keep(&config))
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	status, open := s.attest(b)
	if status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	_, before, _ := s.open(open)
	file := s.backUp()
	memory, report := s.restored(func(o *backup.Order) { o.Head = s.head() }, file)
	if !report.Complete {
		t.Errorf("got %+v", report)
	}
	rel, _, transport := s.open(open)
	s.adopt(config, memory)
	if status := s.call(s.httpClient(), "POST", "https://"+s.nodes+api.PathConfirm, &api.ConfirmRequest{
		ReleaseID: rel.ID, Outcome: api.OutcomeUnlocked, Proof: api.ConfirmProof(transport, rel.ID, api.OutcomeUnlocked),
	}, nil); status != http.StatusForbidden {
		t.Errorf("an open release from before was confirmed: HTTP %d", status)
	}
	if status, resp := s.attest(b); status != http.StatusForbidden || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
		t.Errorf("a second release in one boot: HTTP %d, %s", status, codes(resp.Result))
	}
	s.set(func() { s.boot.Reset++ })
	status, resp := s.attest(b)
	if status != 200 {
		t.Fatalf("in the next boot: HTTP %d, %s", status, codes(resp.Result))
	}
	if _, after, _ := s.open(resp); !bytes.Equal(before.DiskKey, after.DiskKey) {
		t.Error("the disk has another key")
	}
}

func TestARevocationThatTheLogHasHolds(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	file := s.backUp()
	op := s.operator()
	s.call(op, "POST", "https://"+s.operators+api.PathMachines+"/"+b.id.String()+"/revoke", &api.StateChange{Reason: "stolen"}, nil)
	log := s.exportLog(1)
	if err := s.srv.Start(t.Context()); err != nil { // goes on after the export
		t.Fatal(err)
	}
	memory, report := s.restored(func(o *backup.Order) { o.Log = bytes.NewReader(log) }, file)
	m, err := memory.Machine(t.Context(), b.id)
	if err != nil || m.State != attest.StateRevoked || m.Reason != "stolen" || report.Complete {
		t.Errorf("got %+v, %v, %+v", m, err, report)
	}
}

func TestABackupHoldsNoSecretInTheClear(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	_, resp := s.attest(b)
	_, secrets, transport := s.open(resp)
	z, err := zstd.NewReader(bytes.NewReader(s.backUp()))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(b.id.String())) {
		t.Fatal("the machine is not in the backup")
	}
	for name, secret := range map[string]attest.Secret{"disk key": secrets.DiskKey, "transport secret": transport, "join token": secrets.Join.Token} {
		for _, form := range []string{string(secret), base64.StdEncoding.EncodeToString(secret), hex.EncodeToString(secret)} {
			if bytes.Contains(text, []byte(form)) {
				t.Errorf("the backup holds the %s", name)
			}
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	file := s.backUp()
	for range 3 {
		if err := s.srv.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	log := s.exportLog(1)
	lines := bytes.SplitAfter(log, []byte("\n"))
	other := newScene(t, nil)
	unsigned := bytes.Join(lines[:len(lines)-2], nil)
	end, _, err := audit.Verify(bytes.NewReader(unsigned))
	if err != nil {
		t.Fatal(err)
	}
	// Anybody can go on with a log, or make another one up.
	next, err := audit.Next(end, audit.Event{Time: s.now(), Kind: audit.KindState, Machine: b.id, Data: audit.StateChange{From: attest.StateRevoked, To: attest.StateEnrolled}})
	if err != nil {
		t.Fatal(err)
	}
	line, err := audit.AppendLine(nil, next)
	if err != nil {
		t.Fatal(err)
	}
	madeUp := append(bytes.Clone(unsigned), line...)
	signedBy := func(key crypto.Signer, head audit.Head) func(*backup.Order) {
		return func(o *backup.Order) {
			o.Log = bytes.NewReader(append(bytes.Clone(madeUp), s.signHead(key, audit.HeadStatement{Head: head})...))
		}
	}
	tests := map[string]struct {
		order func(*backup.Order)
		want  string
	}{
		"another fleet's backup": {func(o *backup.Order) { o.Key = &other.release.PublicKey }, "of another fleet"},
		"what is no backup":      {func(o *backup.Order) { o.Backup = bytes.NewReader(log) }, "is no backup"},
		"another service's log":  {func(o *backup.Order) { o.Log = bytes.NewReader(other.exportLog(1)) }, "neither the present one nor a former one"},
		"a log altered": {func(o *backup.Order) {
			o.Log = bytes.NewReader(bytes.Replace(log, []byte("line-1"), []byte("line-2"), 1))
		}, "altered"},
		"a log with a gap":                         {func(o *backup.Order) { o.Log = bytes.NewReader(bytes.Join(append(lines[:4:4], lines[5:]...), nil)) }, "missing entry"},
		"a log that begins too late":               {func(o *backup.Order) { o.Log = bytes.NewReader(bytes.Join(lines[4:], nil)) }, "what is between is missing"},
		"a log that ends too early":                {func(o *backup.Order) { o.Log, o.UnsignedLog = bytes.NewReader(bytes.Join(lines[:2], nil)), true }, "before the backup's"},
		"a log without a signed head":              {func(o *backup.Order) { o.Log = bytes.NewReader(unsigned) }, "has no signed head, so anybody could have made it"},
		"a log made up":                            {func(o *backup.Order) { o.Log = bytes.NewReader(madeUp) }, "has no signed head"},
		"a log made up, with the old head":         {func(o *backup.Order) { o.Log = bytes.NewReader(append(bytes.Clone(madeUp), lines[len(lines)-2]...)) }, "and its signed head is entry"},
		"a log made up, and signed by another key": {signedBy(other.release, next.Head()), "neither the present one nor a former one"},
		"a log cut short": {func(o *backup.Order) {
			o.Log = bytes.NewReader(bytes.Join(append(lines[:len(lines)-3:len(lines)-3], lines[len(lines)-2]), nil))
		}, "it was cut short or altered"},
		"something after the signed head":                 {func(o *backup.Order) { o.Log = bytes.NewReader(append(bytes.Clone(log), line...)) }, "something follows the signed head"},
		"an empty log":                                    {func(o *backup.Order) { o.Log = bytes.NewReader(nil) }, "empty"},
		"a head that is not the last":                     {func(o *backup.Order) { o.Log, o.Head = bytes.NewReader(log), manifest.SHA256{1} }, "not with the last entry that was named"},
		"a backup that is not the last when it should be": {func(o *backup.Order) { o.Head = s.head() }, "not with the last entry that was named"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := &backup.Order{Backup: bytes.NewReader(file), Key: &s.release.PublicKey, By: "root", Reason: "r", Now: time.Unix(1, 0)}
			tt.order(o)
			m := new(storetest.Memory)
			_, err := backup.Restore(t.Context(), m.Load, o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want it to contain %q", err, tt.want)
			}
			if ms, err := m.Machines(t.Context(), server.Query{}); err != nil || len(ms) > 0 {
				t.Errorf("%d machines were restored, %v", len(ms), err)
			}
		})
	}
	// Without its signature only if that is asked for.
	if _, r := s.restored(func(o *backup.Order) { o.Log, o.UnsignedLog = bytes.NewReader(unsigned), true }, file); r.Replayed != 3 || !r.Held {
		t.Errorf("got %+v", r)
	}
	// And a log that begins right after the backup, or goes on from before it.
	for from := range int64(3) {
		m, r := s.restored(func(o *backup.Order) { o.Log, o.Head = bytes.NewReader(s.exportLog(from+2)), s.head() }, file)
		if !r.Complete || r.Replayed != 3 {
			t.Errorf("from %d: got %+v", from+2, r)
		}
		_ = m
	}
}
