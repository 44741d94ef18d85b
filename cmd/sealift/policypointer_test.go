package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/backup"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/image/manifest"
)

// body returns that of a document.
func body(t *testing.T, store server.Store, kind, name string) json.RawMessage {
	t.Helper()
	d, err := store.Document(t.Context(), kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return d.Body
}

// Without a key, whoever writes to the database brings no replica that starts on it
// to go by anything but what was enabled last.
func TestAReplicaThatStartsIsNotTurnedBack(t *testing.T) {
	onAllStores(t, testAReplicaThatStartsIsNotTurnedBack)
}

func testAReplicaThatStartsIsNotTurnedBack(t *testing.T, g *ground) {
	s := newPolicyScene(t)
	// The service goes by version 3; it was at 1, and at 2.
	ours := g.fresh(t)
	var pointers []json.RawMessage
	a := s.start(ours, ours, s.images[:], policyText(1, "1"), nil)
	for version := 1; version <= 3; version++ {
		if version > 1 {
			if _, err := a.enable(s.request(version, "2")); err != nil {
				t.Fatal(err)
			}
		}
		pointers = append(pointers, body(t, ours, policyCurrentKind, policyCurrentName))
	}
	a.wants("by the last policy", 1, denied)
	// Another service with the same keys, which went by the first.
	test := g.fresh(t)
	other := s.start(test, test, s.images[:], policyText(1, "1"), nil)
	for version := 2; version < 6; version++ {
		if _, err := other.enable(s.request(version, "2")); err != nil {
			t.Fatal(err)
		}
	}
	back := s.request(1, "1")
	back.Rollback = true
	if _, err := other.enable(back); err != nil {
		t.Fatal(err)
	}
	theirs := body(t, test, policyCurrentKind, policyCurrentName)
	// And one with other keys.
	stranger := newWitness(t, test, newReleaseKey(t), "")

	first := func(p *policyPointer) {
		*p = policyPointer{}
		if err := json.Unmarshal(pointers[0], p); err != nil {
			t.Fatal(err)
		}
	}
	off := func(h *thief) {
		h.pointer(func(p *policyPointer) { *p = policyPointer{policyHead: policyHead{Enabled: time.Now()}} })
	}
	// logged appends an entry of an enabling, which needs no key.
	logged := func(h *thief, p *policyPointer, counter int64) {
		entry := audit.Policy{Name: p.Name, Version: p.Version, Digest: p.Digest, Signed: true, By: "configuration", Counter: counter}
		if p.Statement != nil {
			entry.Statement = sha256.Sum256(p.Statement.Payload)
		}
		data, err := json.Marshal(entry)
		if err != nil {
			t.Fatal(err)
		}
		h.log = append(h.log, audit.Entry{Time: time.Now(), Kind: audit.KindPolicy, Data: data})
	}
	set := func(raw json.RawMessage) func(*thief) {
		return func(h *thief) {
			h.document(policyCurrentKind, policyCurrentName, func(json.RawMessage) json.RawMessage { return raw })
		}
	}
	for name, c := range map[string]struct {
		steal func(h *thief)
		says  string
	}{
		"the pointer names another policy": {func(h *thief) {
			h.pointer(func(p *policyPointer) { signed := p.Statement; first(p); p.Statement = signed })
		}, "it names fleet version 1, and the service's statement fleet version 3"},
		"an older pointer":                  {set(pointers[0]), "has the statement 1 of fleet version 1, and the audit log goes on to fleet version 3"},
		"the pointer before":                {set(pointers[1]), "has the statement 2 of fleet version 2"},
		"the signature is gone":             {func(h *thief) { h.pointer(func(p *policyPointer) { p.Statement = nil }) }, "fleet version 3 is there without the service's statement"},
		"an older one, without a signature": {func(h *thief) { h.pointer(func(p *policyPointer) { first(p); p.Statement = nil }) }, "without the service's statement"},
		"there is no pointer":               {set(nil), "it names none, and the audit log has fleet version 3"},
		"the pointer is noise":              {set(json.RawMessage(`[]`)), "what says so cannot be read"},
		"off, unsigned":                     {off, "none is there without the service's statement"},
		"off, with the last signature": {func(h *thief) {
			h.pointer(func(p *policyPointer) { p.policyHead = policyHead{Enabled: p.Enabled} })
		}, "it names none, and the service's statement fleet version 3"},
		"a step back that was meant": {func(h *thief) { h.pointer(func(p *policyPointer) { p.Left = 9 }) }, "and the service's statement"},
		"signed by another key": {func(h *thief) {
			h.pointer(func(p *policyPointer) {
				first(p)
				e, err := audit.Sign(stranger.key, policyPointerType, policyStatement{policyHead: p.policyHead, Counter: 4, By: "configuration"})
				if err != nil {
					t.Fatal(err)
				}
				p.Statement = e
				logged(h, p, 4)
			})
		}, "it is signed by another key"},
		"signed as something else": {func(h *thief) {
			h.pointer(func(p *policyPointer) {
				var e audit.Envelope
				if err := json.Unmarshal(body(t, ours, server.KindSignedHead, server.NameSignedHead), &e); err != nil {
					t.Fatal(err)
				}
				p.Statement = &e
			})
		}, `it is signed as "application/vnd.sealift.audit-seen.v1+json"`},
		"an older one, and an entry of it": {func(h *thief) {
			h.pointer(func(p *policyPointer) { first(p); logged(h, p, 1) })
		}, "statement 1 comes after statement 3"},
		"an older one, and an entry of a later number": {func(h *thief) {
			h.pointer(func(p *policyPointer) { first(p); logged(h, p, 9) })
		}, "has the statement 1 of fleet version 1, and the audit log goes on to fleet version 1, enabled by entry"},
		"another service's with the same keys": {set(theirs), "the audit log has no entry of the statement 6 of fleet version 1"},
		"another service's with the same keys, and an entry of it": {func(h *thief) {
			set(theirs)(h)
			h.pointer(func(p *policyPointer) { logged(h, p, 6) })
		}, "which is not in this audit log: it is of another store"},
		"as an earlier version of the program left it": {func(h *thief) {
			h.pointer(func(p *policyPointer) { first(p); p.Statement = nil; logged(h, p, 0) })
		}, "fleet version 1 is there without the service's statement"},
		"the entry of the last enabling is gone": {func(h *thief) {
			set(pointers[1])(h)
			h.cut()
		}, "the audit log of the store is not the one that this service wrote"},
		"the log is chained anew without the last enabling": {func(h *thief) {
			set(pointers[1])(h)
			kept := h.log
			h.cut()
			h.log = append(h.log[:len(h.log):len(h.log)], kept[len(h.log)+1:]...)
		}, "the audit log of the store is not the one that this service wrote"},
		"no log at all": {func(h *thief) { set(pointers[0])(h); h.log = nil }, "ends before entry"},
		"a manifest more": {func(h *thief) {
			h.document(policyVersionKind, versionName("fleet", 3), func(b json.RawMessage) json.RawMessage {
				var v policyVersion
				if err := json.Unmarshal(b, &v); err != nil {
					t.Fatal(err)
				}
				v.Images = append(v.Images, sha256.Sum256(s.sent[0].Manifest))
				b, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				return b
			})
		}, "there are other manifests with fleet version 3 than those of the service's statement"},
	} {
		// With no file, with that of the last policy, and with the first, which is what it
		// was installed with.
		for with, file := range map[string][]byte{"no file": nil, "the first file": policyText(1, "1")} {
			t.Run(name+", "+with, func(t *testing.T) {
				t.Parallel()
				h := steal(t, g, ours)
				h.t = t
				c.steal(h)
				store := h.store()
				b := s.starts(t, store, file)
				for image := 1; image <= 2; image++ {
					b.wants("at the start", image, "unavailable")
				}
				err := b.live.check(t.Context())
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("it says %v, want %q", err, c.says)
				}
				var raised []string
				before := len(alarmsIn(t, store))
				for _, alarm := range alarmsIn(t, store) {
					if alarm.Name == audit.AlarmPolicyUnproven || alarm.Name == audit.AlarmLogAltered {
						raised = append(raised, alarm.What)
					}
				}
				if len(raised) != 1 || !strings.Contains(raised[0], c.says) {
					t.Errorf("alarms: %q", raised)
				}
				// Looking again raises none, and finds nothing else.
				if err := b.live.look(t.Context()); err == nil {
					t.Error("a second look takes it")
				}
				if n := len(alarmsIn(t, store)); n != before {
					t.Errorf("%d alarms after another look, %d before", n, before)
				}
			})
		}
	}
}

// starts starts a replica that need not be able to go by what is enabled.
func (s *policyScene) starts(t *testing.T, store server.Store, file []byte) *replica {
	t.Helper()
	return s.on(t).start(store, store, s.images[:], file, nil)
}

// on returns the scene for a part of the test, with machines of its own.
func (s *policyScene) on(t *testing.T) *policyScene {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.box += 1000
	return &policyScene{T: t, keys: s.keys, ana: s.ana, ring: s.ring, signer: s.signer, ca: s.ca, images: s.images, sent: s.sent, at: s.at, box: s.box}
}

// What is left to whoever writes to the database is to turn back all of it, log and
// signed head. Replicas that have seen more do not go along.
func TestAStoreThatIsTurnedBackAsAWholeIsSeenByThoseWhoSawMore(t *testing.T) {
	onAllStores(t, testAStoreThatIsTurnedBackAsAWholeIsSeenByThoseWhoSawMore)
}

func testAStoreThatIsTurnedBackAsAWholeIsSeenByThoseWhoSawMore(t *testing.T, g *ground) {
	s := newPolicyScene(t)
	ours := g.fresh(t)
	file := filepath.Join(t.TempDir(), "witness.json")
	a := s.start(ours, ours, s.images[:], policyText(1, "1"), func(l *livePolicy) { l.witnessFile = file })
	old := steal(t, g, ours)
	if _, err := a.enable(s.request(2, "2")); err != nil {
		t.Fatal(err)
	}
	a.wants("by the last policy", 1, denied)
	seen := func(store server.Store, change func(*livePolicy)) *replica {
		t.Helper()
		b := s.on(t)
		return b.start(store, store, s.images[:], nil, change)
	}
	seen(old.store(), nil).wants("by a replica that has seen nothing", 1, "released")
	back := old.store()
	for what, change := range map[string]func(*livePolicy){
		"by one whose file has seen it":        func(l *livePolicy) { l.witnessFile = file },
		"by one whose file has seen it, twice": func(l *livePolicy) { l.witnessFile = file },
	} {
		b := seen(back, change)
		b.wants(what, 1, "unavailable")
		if err := b.live.check(t.Context()); !errors.Is(err, errAltered) {
			t.Errorf("%s: %v", what, err)
		}
		var says *operator.Error
		if _, err := b.enable(s.request(3, "1")); !errors.As(err, &says) || !strings.Contains(says.Answer.Message, errAltered.Error()) || !strings.Contains(says.Answer.Hint, "witness files") {
			t.Errorf("an approver, %s: %v", what, err)
		}
	}
	// The replica that runs, too.
	a.live.store, a.live.witness.store = back, back
	if err := a.live.look(t.Context()); !errors.Is(err, errAltered) {
		t.Error(err)
	}
	if _, err := a.live.inForce(); !errors.Is(err, errAltered) {
		t.Errorf("the one that runs decides: %v", err)
	}
	alarms := alarmsIn(t, back)
	if len(alarms) != 3 || alarms[0].Name != audit.AlarmLogAltered {
		t.Errorf("alarms: %+v", alarms)
	}
	// The file still has what was seen.
	if w := newWitness(t, ours, a.live.witness.key, file); w.policy.Version != 2 {
		t.Errorf("the file has %+v", w.policy)
	}
	// A file that was altered is not taken for none.
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"of another key": string(signedHeadLine(t, newReleaseKey(t), audit.HeadStatement{})), "altered": strings.Replace(string(b), `"payload":"e`, `"payload":"f`, 1),
		"empty": "", "twice": string(b) + string(b), "of a statement": string(signedLine(t, a.live.witness.key, policyPointerType, policyStatement{})),
	} {
		bad := filepath.Join(t.TempDir(), "w")
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openWitness(t.Context(), ours, a.live.witness.key, bad, time.Now, slog.New(slog.DiscardHandler)); err == nil || exitCode(err) != exitRefused || !strings.Contains(hintOf(err), "remove it") {
			t.Errorf("a witness that is %s: %v", name, err)
		}
	}
}

func signedHeadLine(t *testing.T, key *ecdsa.PrivateKey, s audit.HeadStatement) []byte {
	t.Helper()
	return signedLine(t, key, audit.SeenType, s)
}

func signedLine(t *testing.T, key *ecdsa.PrivateKey, kind string, v any) []byte {
	t.Helper()
	e, err := audit.Sign(key, kind, v)
	if err != nil {
		t.Fatal(err)
	}
	line, err := audit.AppendSigned(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// An approver mends what is not proven, and not by going back unseen.
func TestAnApproverEnablesOverWhatIsNotProven(t *testing.T) {
	onAllStores(t, testAnApproverEnablesOverWhatIsNotProven)
}

func testAnApproverEnablesOverWhatIsNotProven(t *testing.T, g *ground) {
	s := newPolicyScene(t)
	ours := g.fresh(t)
	a := s.start(ours, ours, s.images[:], policyText(1, "1"), nil)
	for version := 2; version <= 3; version++ {
		if _, err := a.enable(s.request(version, "2")); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*thief){
		"no pointer": func(h *thief) {
			h.document(policyCurrentKind, policyCurrentName, func(json.RawMessage) json.RawMessage { return nil })
		},
		"noise": func(h *thief) {
			h.document(policyCurrentKind, policyCurrentName, func(json.RawMessage) json.RawMessage { return json.RawMessage(`"x"`) })
		},
		"no signature": func(h *thief) { h.pointer(func(p *policyPointer) { p.Statement = nil }) },
		"noise as the version": func(h *thief) {
			h.document(policyVersionKind, versionName("fleet", 3), func(json.RawMessage) json.RawMessage { return json.RawMessage(`"x"`) })
		},
		"noise by name": func(h *thief) {
			h.pointer(func(p *policyPointer) { p.Statement = nil })
			h.document(policyKind, "fleet", func(json.RawMessage) json.RawMessage { return json.RawMessage(`{"version":"x"}`) })
		},
		"no record by name": func(h *thief) {
			h.pointer(func(p *policyPointer) { p.Statement = nil })
			h.document(policyKind, "fleet", func(json.RawMessage) json.RawMessage { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := steal(t, g, ours)
			h.t = t
			change(h)
			store := h.store()
			b := s.starts(t, store, nil)
			b.wants("not proven", 2, "unavailable")
			state, err := b.live.state(t.Context())
			if err != nil || behind(state) == 0 || !strings.Contains(state.Unproven, errUnproven.Error()) {
				t.Errorf("%+v, %v", state, err)
			}
			ask := []string{"--server", b.operators, "--identity", b.ana}
			if code, out, _ := cli(t, "", append([]string{"policy", "status"}, ask...)...); code != exitRefused || !strings.Contains(out, "not proven, so nothing is released: the store does not prove") {
				t.Errorf("policy status: exit %d, %s", code, out)
			}
			if code, out, talk := cli(t, "", append([]string{"policy", "show"}, ask...)...); code != exitRefused || out != "" || !strings.Contains(talk, "sealift policy enable FILE") {
				t.Errorf("policy show: exit %d, %s%s", code, out, talk)
			}
			if _, err := b.enable(s.request(1, "1")); err == nil || !strings.Contains(err.Error(), "is older than version 3") {
				t.Errorf("an older one: %v", err)
			}
			b.wants("still not proven", 2, "unavailable")
			if _, err := b.enable(s.request(3, "2")); err != nil {
				t.Fatal(err)
			}
			b.wants("the same, enabled again", 2, "released")
			b.wants("the same, enabled again", 1, denied)
			if state, err := b.live.state(t.Context()); err != nil || state.Unproven != "" {
				t.Errorf("%+v, %v", state, err)
			}
			s.starts(t, store, nil).wants("at the next start", 1, denied)
			if all := policyEntries(t, store); all[len(all)-1].Counter != 4 || all[len(all)-1].By != "ana" {
				t.Errorf("%+v", all[len(all)-1])
			}
		})
	}
}

// earlier makes of a store what a program that signed nothing left.
func (h *thief) earlier() {
	h.pointer(func(p *policyPointer) { p.Statement = nil })
	kept := h.records[:0:0]
	for _, r := range h.records {
		if d := r.Document; d != nil && d.Kind == server.KindSignedHead {
			continue
		} else if d != nil && d.Kind == policyVersionKind {
			var v policyVersion
			if err := json.Unmarshal(d.Body, &v); err != nil {
				h.t.Fatal(err)
			}
			v.Statement = nil
			d.Body, _ = json.Marshal(v)
		}
		kept = append(kept, r)
	}
	h.records = kept
	for i, e := range h.log {
		if e.Kind == audit.KindPolicy {
			var p audit.Policy
			if err := json.Unmarshal(e.Data, &p); err != nil {
				h.t.Fatal(err)
			}
			p.Statement, p.Counter = manifest.SHA256{}, 0
			h.log[i].Data, _ = json.Marshal(p)
		}
	}
}

func TestWhatAnEarlierVersionEnabledIsTakenOverOnce(t *testing.T) {
	onAllStores(t, testWhatAnEarlierVersionEnabledIsTakenOverOnce)
}

func testWhatAnEarlierVersionEnabledIsTakenOverOnce(t *testing.T, g *ground) {
	s := newPolicyScene(t)
	ours := g.fresh(t)
	a := s.start(ours, ours, s.images[:1], policyText(1, "1"), nil)
	with := s.request(2, "2")
	with.Images = s.sent[1:]
	if _, err := a.enable(with); err != nil {
		t.Fatal(err)
	}
	floor := func(version int) func(*livePolicy) {
		return func(l *livePolicy) {
			if l.config == nil {
				l.config = &policyConfig{}
			}
			l.config.Floor = &policyFloor{Name: "fleet", Version: version}
		}
	}
	start := func(t *testing.T, store server.Store, file []byte, change func(*livePolicy)) *replica {
		t.Helper()
		b := s.on(t)
		return b.start(store, store, s.images[:1], file, change)
	}
	for name, c := range map[string]struct {
		file   []byte
		change func(*livePolicy)
		taken  bool
	}{
		"by a configuration that names its file":         {policyText(2, "2"), nil, true},
		"by a configuration whose floor it is":           {nil, floor(2), true},
		"by a configuration without a policy":            {nil, nil, false},
		"by a configuration with a lower floor":          {nil, floor(1), false},
		"by a configuration with an older file":          {policyText(1, "1"), nil, false},
		"by a configuration with an older file as floor": {policyText(1, "1"), floor(1), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := steal(t, g, ours)
			h.t = t
			h.earlier()
			store := h.store()
			n := len(policyEntries(t, store))
			b := start(t, store, c.file, c.change)
			if !c.taken {
				b.wants("at the start", 2, "unavailable")
				if err := b.live.check(t.Context()); err == nil || !strings.Contains(err.Error(), "was enabled by an earlier version of this program") {
					t.Error(err)
				}
				if alarms := alarmsIn(t, store); len(alarms) != 1 || alarms[0].Name != audit.AlarmPolicyUnproven {
					t.Errorf("alarms: %+v", alarms)
				}
				if len(policyEntries(t, store)) != n {
					t.Error("something was enabled")
				}
				if _, err := b.enable(s.request(2, "2")); err != nil {
					t.Fatal(err)
				}
			}
			// Also the manifests that came with it.
			b.wants("then", 2, "released")
			b.wants("then", 1, denied)
			all := policyEntries(t, store)
			if len(all) != n+1 || all[n].Counter != 1 || all[n].Statement.IsZero() || len(all[n].Images) != 1 {
				t.Errorf("the audit log has %+v", all[n:])
			}
			start(t, store, c.file, c.change).wants("at the next start", 2, "released")
			if len(policyEntries(t, store)) != n+1 {
				t.Error("it was taken over again")
			}
			// Without its signature it is nothing now, whatever the configuration says.
			h = steal(t, g, store)
			h.t = t
			h.pointer(func(p *policyPointer) { p.Statement = nil })
			start(t, h.store(), c.file, c.change).wants("without the signature again", 2, "unavailable")
		})
	}
	t.Run("off", func(t *testing.T) {
		t.Parallel()
		h := steal(t, g, ours)
		h.t = t
		store := h.store()
		off := func(l *livePolicy) { l.config = &policyConfig{Off: "moved"} }
		start(t, store, nil, off)
		h = steal(t, g, store)
		h.t = t
		h.earlier()
		store = h.store()
		start(t, store, nil, nil).wants("by a configuration that does not say so", 1, "unavailable")
		start(t, store, nil, off).wants("by one that does", 1, "released")
		start(t, store, nil, nil).wants("from then on", 1, "released")
	})
}

// Manifests that somebody writes beside a policy are not carried on with the next.
func TestNoManifestIsCarriedOnThatTheServiceDidNotSign(t *testing.T) {
	onAllStores(t, testNoManifestIsCarriedOnThatTheServiceDidNotSign)
}

func testNoManifestIsCarriedOnThatTheServiceDidNotSign(t *testing.T, g *ground) {
	s := newPolicyScene(t)
	ours := g.fresh(t)
	a := s.start(ours, ours, s.images[:1], policyText(1, "1"), nil)
	if _, err := a.enable(s.request(2, "1")); err != nil {
		t.Fatal(err)
	}
	h := steal(t, g, ours)
	m, err := json.Marshal(policyManifest(s.sent[1]))
	if err != nil {
		t.Fatal(err)
	}
	digest := manifest.SHA256(sha256.Sum256(s.sent[1].Manifest))
	h.records = append(h.records, server.Record{Document: &server.Document{Kind: policyManifestKind, Name: digest.String(), Revision: 1, Body: m}})
	for version := 1; version <= 2; version++ {
		h.document(policyVersionKind, versionName("fleet", version), func(b json.RawMessage) json.RawMessage {
			var v policyVersion
			if err := json.Unmarshal(b, &v); err != nil {
				t.Fatal(err)
			}
			v.Images = append(v.Images, digest)
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return b
		})
	}
	store := h.store()
	one := s.on(t)
	b := one.start(store, store, s.images[:1], nil, nil)
	b.wants("at the start", 2, "unavailable")
	for _, version := range []int{2, 1} {
		req := s.request(version, "1")
		req.Rollback = true
		if state, err := b.enable(req); err != nil || len(state.Images) != 0 {
			t.Fatalf("%+v, %v", state, err)
		}
		b.wants("then", 2, string(attest.CodeImageUnknown))
		b.wants("then", 1, "released")
	}
}

// A restore is signed, and so told from a store that somebody turned back. What it
// lost of policies it does not hide.
func TestAReplicaGoesAlongWithARestore(t *testing.T) {
	onAllStores(t, testAReplicaGoesAlongWithARestore)
}

func testAReplicaGoesAlongWithARestore(t *testing.T, g *ground) {
	s := newPolicyScene(t)
	ours := g.fresh(t)
	file := filepath.Join(t.TempDir(), "witness.json")
	a := s.start(ours, ours, s.images[:], policyText(1, "1"), func(l *livePolicy) { l.witnessFile = file })
	key := a.live.witness.key
	var b bytes.Buffer
	if _, err := backup.Write(&b, key, backup.Manifest{Taken: s.now()}, func(each func(server.Record) error) error {
		return ours.Dump(t.Context(), each)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.enable(s.request(2, "2")); err != nil {
		t.Fatal(err)
	}
	var log []byte
	var head audit.Head
	for e, err := range ours.Audit(t.Context(), 1) {
		if err == nil {
			log, err = audit.AppendLine(log, e)
			head = e.Head()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	log = append(log, signedLine(t, key, audit.HeadType, audit.HeadStatement{Head: head})...)
	seen, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		log      []byte
		at       time.Duration // after the last that the replica saw
		signed   bool
		version  int
		says     string
		missing  int
		approver bool
	}{
		"from the backup alone":              {at: time.Second, signed: true, version: 1},
		"from the backup, before it":         {at: -time.Second, signed: true, says: errAltered.Error()},
		"from the backup, not signed":        {at: time.Second, says: errAltered.Error()},
		"with a log that has a later policy": {log: log, at: time.Second, signed: true, says: "the audit log goes on to fleet version 2", missing: 1, approver: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.on(t)
			mine := filepath.Join(t.TempDir(), "witness.json")
			if err := os.WriteFile(mine, seen, 0o600); err != nil {
				t.Fatal(err)
			}
			o := &backup.Order{Backup: bytes.NewReader(b.Bytes()), Key: &key.PublicKey, By: "root", Reason: "the disk died", Now: s.now().Add(c.at)}
			if c.log != nil {
				o.Log = bytes.NewReader(c.log)
			}
			if c.signed {
				o.SignHead = func(h audit.HeadStatement) (*audit.Envelope, error) { return audit.Sign(key, audit.SeenType, h) }
			}
			store := g.fresh(t)
			report, err := backup.Restore(t.Context(), store.Load, o)
			if err != nil || len(report.Missing) != c.missing {
				t.Fatalf("%+v, %v", report, err)
			}
			s.at = s.at.Add(time.Minute)
			r := s.start(store, store, s.images[:], nil, func(l *livePolicy) { l.witnessFile = mine })
			in, err := r.live.inForce()
			if c.says == "" && (err != nil || in.document.Version != c.version) || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Fatalf("%v, want %q", err, c.says)
			}
			if c.approver {
				if _, err := r.enable(s.request(1, "1")); err == nil || !strings.Contains(err.Error(), "is older than version 2") {
					t.Errorf("an older one: %v", err)
				}
				if _, err := r.enable(s.request(2, "2")); err != nil {
					t.Fatal(err)
				}
				if in, err = r.live.inForce(); err != nil || in.document.Version != 2 {
					t.Error(err)
				}
			}
			if c.says != "" && !c.approver {
				return
			}
			// The next start is from what was seen since, and so is that of a replica whose
			// file is from before the restore.
			if err := r.live.witness.save(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(filepath.Dir(mine), "other"), seen, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{mine, filepath.Join(filepath.Dir(mine), "other")} {
				again := s.start(store, store, s.images[:], nil, func(l *livePolicy) { l.witnessFile = file })
				if now, err := again.live.inForce(); err != nil || now.document.Version != in.document.Version {
					t.Errorf("the next start: %v", err)
				}
			}
		})
	}
}

// A replica that runs follows the log beside the pointer: one that is put back before
// it looks, and a log that is cut though the pointer stays, are seen.
func TestAReplicaThatRunsFollowsTheLog(t *testing.T) {
	onAllStores(t, testAReplicaThatRunsFollowsTheLog)
}

func testAReplicaThatRunsFollowsTheLog(t *testing.T, g *ground) {
	s := newPolicyScene(t)
	ours := g.fresh(t)
	a := s.start(ours, ours, s.images[:], policyText(1, "1"), nil)
	old := steal(t, g, ours)
	var first server.Document
	for _, r := range old.records {
		if d := r.Document; d != nil && d.Kind == policyCurrentKind {
			first = *d
		}
	}
	// runs is a replica that has seen version 1, and then has another store under it.
	runs := func(then func() server.Archive) *livePolicy {
		t.Helper()
		before := old.store()
		b := s.on(t).start(before, before, s.images[:], nil, nil).live
		next := then()
		b.mu.Lock()
		b.store, b.witness.store, b.witness.standing.store, b.source.revision = next, next, next, first.Revision
		b.mu.Unlock()
		return b
	}
	if _, err := a.enable(s.request(2, "2")); err != nil {
		t.Fatal(err)
	}
	theirs := body(t, ours, policyCurrentKind, policyCurrentName)
	b := runs(func() server.Archive {
		h := old.copied()
		// Somebody enables version 3, and the thief is faster than the look.
		store := h.store()
		c := s.on(t).start(store, store, s.images[:], nil, nil)
		if _, err := c.enable(s.request(3, "2")); err != nil {
			t.Fatal(err)
		}
		h = steal(t, g, store)
		for i, r := range h.records {
			if d := r.Document; d != nil && d.Kind == policyCurrentKind {
				h.records[i].Document = &first
			}
		}
		h.log = append(old.log[:len(old.log):len(old.log)], h.log[len(old.log):]...)
		return h.store()
	})
	b.witness.chain = audit.VerifierAt(old.log[len(old.log)-1].Head())
	if err := b.witness.standing.reset(); err != nil {
		t.Fatal(err)
	}
	if err := b.watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.look(t.Context()); !errors.Is(err, errUnproven) || !strings.Contains(err.Error(), "has the statement 1 of fleet version 1, and the audit log goes on to fleet version 3") {
		t.Errorf("the pointer put back: %v", err)
	}
	if _, err := b.inForce(); err == nil {
		t.Error("the pointer put back: it decides")
	}

	b = runs(func() server.Archive {
		h := old.copied()
		h.log = h.log[:len(h.log)-1]
		return h.store()
	})
	if err := b.watch(t.Context()); !errors.Is(err, errAltered) {
		t.Errorf("the log cut: %v", err)
	}
	if err := b.look(t.Context()); !errors.Is(err, errAltered) {
		t.Errorf("the log cut: %v", err)
	}

	// Of two statements with the same number, after the same entry, the log knows one.
	store := old.store()
	c := s.on(t).start(store, store, s.images[:], nil, nil)
	if _, err := c.enable(s.request(3, "2")); err != nil {
		t.Fatal(err)
	}
	h := steal(t, g, store)
	h.document(policyCurrentKind, policyCurrentName, func(json.RawMessage) json.RawMessage { return theirs })
	last := h.store()
	if err := s.on(t).start(last, last, s.images[:], nil, nil).live.check(t.Context()); err == nil || !strings.Contains(err.Error(), "has the statement 2 of fleet version 2, and the audit log goes on to fleet version 3") {
		t.Errorf("the statement of another branch: %v", err)
	}
}

// An approver who enables the same policy once more puts right what somebody altered of
// it in the store: a replica that starts then can go by it.
func TestAnApproverPutsRightWhatIsStored(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	request := s.request(2, "2")
	request.Images = s.sent[1:]
	digest := manifest.SHA256(sha256.Sum256(s.sent[1].Manifest)).String()
	version := func(change func(v *policyVersion)) func(json.RawMessage) (json.RawMessage, error) {
		return func(b json.RawMessage) (json.RawMessage, error) {
			var v policyVersion
			if err := json.Unmarshal(b, &v); err != nil {
				return nil, err
			}
			change(&v)
			return json.Marshal(v)
		}
	}
	set := func(v any) func(json.RawMessage) (json.RawMessage, error) {
		return func(json.RawMessage) (json.RawMessage, error) { return json.Marshal(v) }
	}
	for name, c := range map[string]struct {
		kind, name string
		change     func(json.RawMessage) (json.RawMessage, error)
		starts     bool // and a replica does that starts with the policy's file
	}{
		"another text":                       {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.Text = policyText(2, "1") }), false},
		"another signature":                  {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.Bundle = s.request(1, "1").Bundle }), false},
		"another file":                       {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.Files = map[string][]byte{"x": nil} }), false},
		"another manifest":                   {policyManifestKind, digest, set(policyManifest(s.sent[0])), false},
		"a manifest's signature":             {policyManifestKind, digest, set(policyManifest{s.sent[1].Manifest, s.sent[0].Bundle}), false},
		"noise in place of that":             {policyManifestKind, digest, set("x"), false},
		"noise of the replicas":              {policyReplicasKind, policyReplicasName, set("x"), false},
		"noise as the version":               {policyVersionKind, versionName("fleet", 2), set("x"), false},
		"noise as what has its name":         {policyKind, "fleet", set("x"), false},
		"another digest":                     {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.Digest[0] ^= 1 }), false},
		"no digest":                          {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.Digest = manifest.SHA256{} }), false},
		"another name":                       {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.policyHead = policyHead{Name: "other", Version: 7} }), false},
		"another digest, at a start":         {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.Digest[0] ^= 1 }), true},
		"no digest, at a start":              {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.Digest = manifest.SHA256{} }), true},
		"another text, at a start":           {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.Text = policyText(2, "1") }), true},
		"another signature, at a start":      {policyVersionKind, versionName("fleet", 2), version(func(v *policyVersion) { v.Bundle = s.request(1, "1").Bundle }), true},
		"a manifest's signature, at a start": {policyManifestKind, digest, set(policyManifest{s.sent[1].Manifest, s.sent[0].Bundle}), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.on(t)
			store := new(storetest.Memory)
			a := s.start(store, store, s.images[:1], policyText(1, "1"), nil)
			if _, err := a.enable(request); err != nil {
				t.Fatal(err)
			}
			n := len(policyEntries(t, store))
			if _, err := a.enable(request); err != nil || len(policyEntries(t, store)) != n {
				t.Fatalf("the same again, before: %v", err)
			}
			d, err := store.Document(t.Context(), c.kind, c.name)
			if err == nil {
				d.Body, err = c.change(d.Body)
			}
			if err == nil {
				err = store.Commit(t.Context(), &server.Change{Documents: []*server.Document{d}})
			}
			if err != nil {
				t.Fatal(err)
			}
			if name == "another text" {
				bare := &livePolicy{store: store, ring: s.ring, local: &policySource{clock: s.now}, log: slog.New(slog.DiscardHandler)}
				if err := bare.begin(t.Context(), nil); exitCode(err) != exitRefused || !strings.Contains(hintOf(err), "policy.file") {
					t.Errorf("a replica without the file: %v, %s", err, hintOf(err))
				}
			}
			if c.starts {
				// It has all of it in its configuration, and needs nothing of the store.
				s.starts(t, store, request.Policy).wants("by a replica with the file", 2, "released")
				if c.kind == policyVersionKind {
					s.on(t).start(store, store, s.images[:], nil, nil).wants("then, without the file", 2, "released")
				}
				return
			}
			if _, err := a.enable(request); err != nil {
				t.Fatal(err)
			}
			s.on(t).start(store, store, s.images[:1], nil, nil).wants("then", 2, "released")
		})
	}
}
