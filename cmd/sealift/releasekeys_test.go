package main

import (
	"bytes"
	"crypto/ecdsa"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image/manifest"
)

// thiefIn is who writes to a service's SQLite file.
func thiefIn(t *testing.T, file string) database {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return database{t, db}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What docs/keys.md says of a change of the release key, by the commands that it names.
// An entry that somebody had written into the database before it enrols nobody after it.
func TestTheReleaseKeyIsChanged(t *testing.T) {
	s := startService(t, "witness: witness.json")
	at := func(name string) string { return filepath.Join(s.dir, name) }
	config, ours, thief := at("serve.yaml"), attest.MachineID{}, attest.MachineID{}
	for i, id := range []*attest.MachineID{&ours, &thief} {
		rec, got := newInstall(t, s.tpmCA)
		rec.DiskGUID = fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-%012d", i)
		install(t, s, rec)
		*id = got
	}
	ask := func(args ...string) string {
		t.Helper()
		return mustCLI(t, append(args, "--server", s.operators, "--identity", s.identity)...)
	}
	unproven := func(id attest.MachineID) string {
		t.Helper()
		var m api.Machine
		if err := json.Unmarshal([]byte(ask("--json", "machine", "show", id.String())), &m); err != nil {
			t.Fatal(err)
		}
		if m.State != attest.StateEnrolled {
			t.Errorf("machine %s is %s on record", id.Short(), m.State)
		}
		return m.Unproven
	}
	alarms := func(log string) (all []audit.Entry) {
		t.Helper()
		for line := range strings.Lines(log) {
			if strings.Contains(line, `"kind":"alarm"`) && strings.Contains(line, string(audit.AlarmEnrolmentUnproven)) {
				e, err := audit.ParseLine([]byte(strings.TrimSuffix(line, "\n")))
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, e)
			}
		}
		return all
	}
	stop := func() {
		t.Helper()
		if code := s.stop(); code != exitOK {
			t.Fatalf("exit %d", code)
		}
	}
	refused := func(want string, args ...string) {
		t.Helper()
		if code, _, talk := cli(t, "", args...); code != exitRefused || !strings.Contains(talk, want) || !strings.Contains(talk, "hint: ") {
			t.Errorf("%v: exit %d, want %d with %q: %s", args, code, exitRefused, want, talk)
		}
	}
	ask("machine", "revoke", thief.String(), "--reason", "stolen")
	stop()
	d := thiefIn(t, at("s.db"))
	d.becomes(thief, attest.StateEnrolled)
	d.log(audit.KindState, thief, audit.StateChange{From: attest.StateRevoked, To: attest.StateEnrolled, By: "ana", Reason: "found"})
	var forged int64
	if err := d.db.QueryRow("SELECT max(seq) FROM audit").Scan(&forged); err != nil {
		t.Fatal(err)
	}
	if err := d.db.Close(); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	if got := unproven(thief); !strings.HasPrefix(got, "revoked since ") {
		t.Errorf("with the former key the log says of the thief's machine: %q", got)
	}
	// It is told before the machine asks for anything.
	ask("audit", "export", "--out", at("former.jsonl"))
	before, err := os.ReadFile(at("former.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	raised := alarms(string(before))
	if len(raised) != 1 || raised[0].Machine != thief || !strings.Contains(string(raised[0].Data), fmt.Sprintf("audit entry %d enrols machine %s, and does not count: it is not signed", forged, thief)) {
		t.Errorf("alarms: %+v", raised)
	}
	stop()
	mustCLI(t, "backup", "--config", config, "--out", at("former.zst"))

	// The change.
	mustCLI(t, "keys", "init", at("next"))
	copyFile(t, at("keys/release.pub"), at("release-1.pub"))
	copyFile(t, at("next/release.key"), at("some/release.key"))
	refused("neither the present one nor a former one", "serve", "--config", config)
	refused("release.former", "backup", "--config", config, "--out", at("x.zst"))
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, append(text, "release: {former: [release-1.pub]}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	mustCLI(t, "backup", "--config", config, "--out", at("between.zst"))
	for range 2 {
		s.start(t)
		if got := unproven(ours); got != "" {
			t.Errorf("with the new key the log says of our machine: %q", got)
		}
		if got := unproven(thief); !strings.HasPrefix(got, "revoked since ") {
			t.Errorf("with the new key the log says of the thief's machine: %q", got)
		}
		rec, id := newInstall(t, s.tpmCA)
		rec.DiskGUID = "6a0d1e0c-3b1f-4a56-9d0e-" + id.String()[:12]
		install(t, s, rec)
		if got := unproven(id); got != "" {
			t.Errorf("the log says of a machine that was installed since: %q", got)
		}
		ask("audit", "export", "--out", at("now.jsonl"))
		for name, tt := range map[string]struct {
			former []string
			lacks  bool
		}{"with the former key": {[]string{"--former", at("release-1.pub")}, false}, "without": {nil, true}} {
			out := t.TempDir()
			ask(append([]string{"report", "attestation", "--key", at("next/release.pub"), "--machine", ours.String(), "--out", out}, tt.former...)...)
			page, err := os.ReadFile(filepath.Join(out, "report.html"))
			if err != nil {
				t.Fatal(err)
			}
			if hints := bytes.Contains(page, []byte("which may be a former one (--former)")); hints != tt.lacks {
				t.Errorf("a report %s: says what it lacks: %t", name, hints)
			}
		}
		stop()
	}
	mustCLI(t, "audit", "verify", at("now.jsonl"), "--key", at("next/release.pub"))
	mustCLI(t, "audit", "verify", at("former.jsonl"), "--key", at("release-1.pub"))
	refused("signed by another key", "audit", "verify", at("former.jsonl"), "--key", at("next/release.pub"))

	// Backups and exports of the former key can be restored, if it is named.
	if err := os.Remove(at("s.db")); err != nil {
		t.Fatal(err)
	}
	again := []string{"restore", at("former.zst"), "--config", config, "--audit", at("former.jsonl"), "--reason", "the disk died"}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("release.former", again...)
	if err := os.WriteFile(config, append(text, "release: {former: [release-1.pub]}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	mustCLI(t, again...)
	s.start(t)
	if got := unproven(ours); got != "" {
		t.Errorf("after a restore the log says of our machine: %q", got)
	}
	stop()
}

func TestFormerReleaseKeysThatCannotBeAreRefused(t *testing.T) {
	s := newService(t)
	at := func(name string) string { return filepath.Join(s.dir, name) }
	text, err := os.ReadFile(at("serve.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("noise.pub"), []byte("noise"), 0o600); err != nil {
		t.Fatal(err)
	}
	for setting, want := range map[string]string{
		"release: {former: [keys/release.pub]}":                            "is there twice",
		"release: {former: [noise.pub]}":                                   "release.former[0]: read the release key",
		"release: {former: [keys/pcr.pub]}":                                "want ECDSA",
		"release: {former: [\"\"]}":                                        "release.former[0] is empty",
		"release: {former: [" + strings.Repeat("a, ", 16) + "a]}":          "at most 16",
		"release: {previous: [keys/release.pub]}":                          "unknown field",
		"release: {former: [some/release.key]}":                            "is no PEM public key",
		"release: {former: [img/../keys/release.pub, ./keys/release.pub]}": "is there twice",
	} {
		if err := os.WriteFile(at("serve.yaml"), append(bytes.Clone(text), setting+"\n"...), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, talk := cli(t, "", "serve", "--config", at("serve.yaml")); code != exitUsage || !strings.Contains(talk, want) {
			t.Errorf("%s: exit %d, want %d with %q: %s", setting, code, exitUsage, want, talk)
		}
	}
}

// changeReleaseKey puts another release key into the scene's key directory, and returns
// the one that was there.
func (s *policyScene) changeReleaseKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	former, err := s.ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(t.TempDir(), "next")
	mustCLI(t, "keys", "init", next)
	for _, name := range []string{keyring.FileRelease + ".key", keyring.FileRelease + ".pub"} {
		copyFile(t, filepath.Join(next, name), filepath.Join(s.keys, name))
	}
	return former
}

// Who writes to the database, and has the former release key, has the service that has
// changed it give nothing to a machine that was locked out.
func TestAFormerReleaseKeyIsOfNoUseAfterTheChange(t *testing.T) {
	t.Parallel()
	const unproven = string(attest.CodeMachineUnproven)
	s := newPolicyScene(t)
	file := filepath.Join(t.TempDir(), "s.db")
	store, err := openStore(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	r := s.start(store, store, s.images[:], nil, nil)
	ours, theirs, early := s.newBox(t, 1), s.newBox(t, 2), s.newBox(t, 3)
	for _, b := range []*standingBox{ours, theirs, early} {
		b.install(t, r)
		if got := b.starts(r); got != "released" {
			t.Fatalf("before: %s", got)
		}
	}
	r.state(t, theirs.id, attest.StateRevoked)
	r.state(t, early.id, attest.StateRevoked)
	if _, err := r.enable(s.request(1, "1")); err != nil {
		t.Fatal(err)
	}
	r.look()
	d := thiefIn(t, file)
	d.becomes(early.id, attest.StateEnrolled)
	d.log(audit.KindState, early.id, audit.StateChange{From: attest.StateRevoked, To: attest.StateEnrolled, By: "ana", Reason: "found"})
	if got := early.starts(r); got != unproven {
		t.Errorf("reinstated by an entry that is not signed: %s", got)
	}
	former := s.changeReleaseKey(t)
	named := func(l *livePolicy) { l.former = []*ecdsa.PublicKey{&former.PublicKey} }
	r = s.start(store, store, s.images[:], nil, named)
	if got := ours.starts(r); !strings.Contains(got, "the policy is not available") {
		t.Errorf("by a policy that the former key signed: %s", got)
	}
	if _, err := r.enable(s.request(1, "1")); err != nil {
		t.Fatal(err)
	}
	r.look()
	// The former key is known now.
	ev, err := audit.SignTrust(former, audit.Event{Time: s.now(), Kind: audit.KindState, Machine: theirs.id, Data: audit.StateChange{From: attest.StateRevoked, To: attest.StateEnrolled, By: "ana"}}, s.now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	d.becomes(theirs.id, attest.StateEnrolled)
	d.log(audit.KindState, theirs.id, ev.Data)
	id, err := api.KeyID(&former.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	d.log(audit.KindStart, attest.MachineID{}, audit.Start{ReleaseKey: id, SignsEnrolments: true})
	d.log(audit.KindState, theirs.id, ev.Data)
	check := func(claim string, r *replica) {
		t.Helper()
		for b, want := range map[*standingBox]string{ours: "released", theirs: unproven, early: unproven} {
			if got := b.starts(r); got != want {
				t.Errorf("%s, machine %s: %s, want %s", claim, b.id.Short(), got, want)
			}
		}
	}
	check("while it runs", r)
	if err := r.live.watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after a start", s.start(store, store, s.images[:], nil, named))
	// What is kept of the standing, as who has the former key would have it.
	all, err := audit.NewStanding(audit.ReleaseKeys{Present: &former.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	head := r.live.witness.standing.head()
	of := all.Statement(s.now())
	of.Head, of.Keys = head, r.live.witness.standing.all.Statement(s.now()).Keys
	e, err := audit.Sign(former, audit.StandingType, of)
	if err != nil {
		t.Fatal(err)
	}
	d.document(standingKind, standingName, e)
	w, err := openWitness(t.Context(), store, r.live.witness.key, "", s.now, slog.New(slog.DiscardHandler), &former.PublicKey)
	if err == nil {
		err = w.catchUp(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if state, _ := w.standing.all.Machine(ours.id); state != attest.StateEnrolled {
		t.Errorf("by a standing that the former key signed our machine is %q", state)
	}
	told := map[attest.MachineID]int{}
	for e, err := range store.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindAlarm && bytes.Contains(e.Data, []byte(audit.AlarmEnrolmentUnproven)) {
			told[e.Machine]++
		}
	}
	if told[early.id] == 0 || told[theirs.id] == 0 || told[ours.id] != 0 {
		t.Errorf("alarms: %v", told)
	}
}

// Without the former key its enrolments do not count, and the service says what mends it.
func TestAnUnknownReleaseKeyIsTold(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	store, err := openStore(t.Context(), filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	r := s.start(store, store, s.images[:], nil, nil)
	b := s.newBox(t, 1)
	b.install(t, r)
	former := s.changeReleaseKey(t)
	r = s.start(store, store, s.images[:], nil, nil)
	if got := b.starts(r); got != string(attest.CodeMachineUnproven) {
		t.Errorf("without the former key: %s", got)
	}
	r.await("the audit log has enrolments that are signed with unknown release keys: they do not count")
	raised := alarmsIn(t, store)
	if len(raised) == 0 || raised[0].Name != audit.AlarmEnrolmentUnproven || !strings.Contains(raised[0].What, b.id.String()) || !strings.Contains(raised[0].What, "name its public key under release.former") {
		t.Errorf("alarms: %+v", raised)
	}
	if err := r.live.witness.save(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	// What was kept was made without the key, and is not gone by.
	r = s.start(store, store, s.images[:], nil, func(l *livePolicy) { l.former = []*ecdsa.PublicKey{&former.PublicKey} })
	if got := b.starts(r); got != "released" {
		t.Errorf("with the former key: %s", got)
	}
}

// A head that a former key signed is one that the log must have after the change, too,
// until the present key has signed a later one.
func TestALogThatWentBackWhileTheKeyWasChangedIsSeen(t *testing.T) {
	t.Parallel()
	former, key := newReleaseKey(t), newReleaseKey(t)
	for name, tt := range map[string]struct {
		file, stored bool // the head is kept there
		entries      int  // of the log of before that are there
		other        bool // the log is another
		want         bool // it is seen
	}{
		"it goes on, by the file":      {true, true, 100, false, false},
		"it goes on":                   {false, true, 100, false, false},
		"it goes on, the file alone":   {true, false, 100, false, false},
		"it was cut, by the file":      {true, false, 40, false, true},
		"it was cut, by the store":     {false, true, 40, false, true},
		"it is another, by the file":   {true, false, 100, true, true},
		"it is another, by the store":  {false, true, 100, true, true},
		"nothing says how far it went": {false, false, 40, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := new(storetest.Memory)
			long(t, before, 100)
			file := filepath.Join(t.TempDir(), "witness.json")
			w := newWitness(t, before, former, file)
			if err := w.catchUp(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := w.save(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			if !tt.file {
				file = ""
			}
			h := steal(t, inMemory(), before)
			h.log = h.log[:tt.entries]
			if tt.other {
				h.log[10].Time = h.log[10].Time.Add(time.Second)
			}
			var kept []server.Record
			for _, r := range h.records {
				if r.Document == nil || r.Document.Kind != server.KindSignedHead || tt.stored {
					kept = append(kept, r)
				}
			}
			h.records = kept
			store := h.store()
			open := func() (*logWitness, error) {
				w, err := openWitness(t.Context(), store, key, file, time.Now, slog.New(slog.DiscardHandler), &former.PublicKey)
				if err == nil {
					// What was read so far takes nothing away of what was kept.
					if _, err = w.follow(t.Context(), 10); err == nil {
						err = w.save(t.Context(), true)
					}
				}
				if err == nil {
					err = w.catchUp(t.Context())
				}
				return w, err
			}
			for range 2 {
				if _, err := open(); errors.Is(err, errAltered) != tt.want || !tt.want && err != nil {
					t.Errorf("%v", err)
				}
			}
			if tt.want {
				return
			}
			w, err := open()
			if err == nil {
				err = w.save(t.Context(), true)
			}
			if err != nil {
				t.Fatal(err)
			}
			// From then on the present key's counts.
			w, err = openWitness(t.Context(), store, key, file, time.Now, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if got, _, _ := w.seen(); got.Seq < int64(tt.entries) || got.Hash == (manifest.SHA256{}) {
				t.Errorf("it starts after entry %d", got.Seq)
			}
		})
	}
}
