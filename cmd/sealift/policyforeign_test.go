package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/image/manifest"
)

// A statement of another service with the same keys does not pass for one of this
// service, whatever is put into the old part of its log.
func TestAStatementOfAnotherLogIsNotTaken(t *testing.T) {
	onAllStores(t, testAStatementOfAnotherLogIsNotTaken)
}

func testAStatementOfAnotherLogIsNotTaken(t *testing.T, g *ground) {
	s := newPolicyScene(t)
	ours := g.fresh(t)
	a := s.start(ours, ours, s.images[:], policyText(1, "1"), nil)
	if _, err := a.enable(s.request(2, "2")); err != nil {
		t.Fatal(err)
	}
	// The log goes on, and is signed, so that nobody reads its old part again.
	long(t, ours, 30)
	if err := a.live.watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.live.witness.save(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	test := g.fresh(t)
	other := s.start(test, test, s.images[:], policyText(1, "1"), nil)
	for version := 2; version < 5; version++ {
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
	var p policyPointer
	if err := json.Unmarshal(theirs, &p); err != nil {
		t.Fatal(err)
	}
	var signed policyStatement
	if err := p.Statement.Open(&a.live.witness.key.PublicKey, policyPointerType, &signed); err != nil {
		t.Fatal(err)
	}
	head, _, _ := a.live.witness.seen()
	if signed.Log.Seq >= head.Seq {
		t.Fatalf("their statement names entry %d, and this log was seen to entry %d", signed.Log.Seq, head.Seq)
	}
	h := steal(t, g, ours)
	h.document(policyCurrentKind, policyCurrentName, func(json.RawMessage) json.RawMessage { return theirs })
	data, err := json.Marshal(audit.Policy{
		Name: p.Name, Version: p.Version, Digest: p.Digest, Signed: true, By: "configuration", Counter: signed.Counter, Statement: sha256.Sum256(p.Statement.Payload),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.log = append(h.log, audit.Entry{Time: time.Now(), Kind: audit.KindPolicy, Data: data})
	h.rows = map[int64]audit.Entry{}
	for _, e := range steal(t, g, test).log {
		if e.Seq == signed.Log.Seq {
			h.rows[e.Seq] = e
		}
	}
	store := h.store()
	b := s.starts(t, store, nil)
	b.wants("by their policy", 1, "unavailable")
	if err := b.live.check(t.Context()); err == nil || !strings.Contains(err.Error(), "it is of another store") {
		t.Errorf("it says %v", err)
	}
	if raised := alarmsIn(t, store); len(raised) == 0 || raised[len(raised)-1].Name != audit.AlarmPolicyUnproven {
		t.Errorf("alarms: %+v", raised)
	}
}

// long appends n entries that say nothing of policies.
func long(t *testing.T, store server.Store, n int) {
	t.Helper()
	for range n {
		if err := store.Commit(t.Context(), &server.Change{Events: []audit.Event{{Time: time.Now(), Kind: audit.KindConfirm, Data: audit.Confirm{ReleaseID: "r", Outcome: "o"}}}}); err != nil {
			t.Fatal(err)
		}
	}
}

// shifting is a store in which the manifests of a policy's version are others at the
// second look, as they are for a moment where somebody changes them to and fro.
type shifting struct {
	*storetest.Memory
	more manifest.SHA256
	seen int // -1: they are not yet
}

func (s *shifting) Document(ctx context.Context, kind, name string) (*server.Document, error) {
	d, err := s.Memory.Document(ctx, kind, name)
	if err != nil || kind != policyVersionKind || s.seen < 0 {
		return d, err
	}
	if s.seen++; s.seen == 1 {
		return d, nil
	}
	var v policyVersion
	if err := json.Unmarshal(d.Body, &v); err != nil {
		return nil, err
	}
	v.Images = append(v.Images, s.more)
	d.Body, err = json.Marshal(v)
	return d, err
}

// What a replica goes by are the manifests that it has compared with the statement, and
// not what the store says a moment later.
func TestManifestsAreThoseThatWereProven(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	// All of them have the second image, and the manifest of the first lies in the store.
	a := s.start(memory, memory, s.images[1:], policyText(1, "1"), nil)
	if _, err := a.enable(s.request(2, "1")); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(policyManifest(s.sent[0]))
	if err != nil {
		t.Fatal(err)
	}
	digest := manifest.SHA256(sha256.Sum256(s.sent[0].Manifest))
	if err := memory.Commit(t.Context(), &server.Change{Documents: []*server.Document{{Kind: policyManifestKind, Name: digest.String(), Body: body}}}); err != nil {
		t.Fatal(err)
	}
	store := &shifting{Memory: memory, more: digest, seen: -1}
	b := s.start(store, store, s.images[1:], nil, nil)
	b.wants("before", 1, "image.unknown")
	store.seen = 0
	b.live.mu.Lock()
	b.live.source = nil
	b.live.mu.Unlock()
	if err := b.live.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.wants("by a manifest that the service did not sign", 1, "image.unknown")
	b.wants("by its own", 2, "released")
}

// during is a store in which something is done once while a policy's version is read.
type during struct {
	server.Archive
	do func()
}

func (d *during) Document(ctx context.Context, kind, name string) (*server.Document, error) {
	if do := d.do; kind == policyVersionKind && do != nil {
		d.do = nil
		do()
	}
	return d.Archive.Document(ctx, kind, name)
}

// That a policy is enabled once more, with another manifest, while a replica looks at
// it, is no sign that somebody altered the store.
func TestAnEnablingDuringALookIsNoAlarm(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	a := s.start(memory, memory, s.images[:1], policyText(1, "1"), nil)
	store := &during{Archive: memory}
	b := s.on(t).start(store, store, s.images[:1], nil, nil)
	if _, err := a.enable(s.request(2, "1")); err != nil {
		t.Fatal(err)
	}
	more := s.request(2, "1")
	more.Images = s.sent[1:]
	enabled := false
	store.do = func() {
		enabled = true
		if _, err := a.enable(more); err != nil {
			t.Error(err)
		}
	}
	if err := b.live.look(t.Context()); err != nil {
		t.Error(err)
	}
	if alarms := alarmsIn(t, memory); len(alarms) > 0 {
		t.Errorf("alarms: %+v", alarms)
	}
	if !enabled {
		t.Error("nothing was enabled meanwhile")
	}
	b.look()
	b.wants("by both", 2, "released")
}

// What is kept of a policy by its name is signed by nobody: it does not keep a later
// version from being enabled, nor gets into what the service signs.
func TestANumberThatSomebodyWritesHoldsUpNoPolicy(t *testing.T) {
	onAllStores(t, testANumberThatSomebodyWritesHoldsUpNoPolicy)
}

func testANumberThatSomebodyWritesHoldsUpNoPolicy(t *testing.T, g *ground) {
	s := newPolicyScene(t)
	ours := g.fresh(t)
	s.start(ours, ours, s.images[:], policyText(1, "1"), nil)
	h := steal(t, g, ours)
	h.document(policyKind, "fleet", func(b json.RawMessage) json.RawMessage {
		var n policyName
		if err := json.Unmarshal(b, &n); err != nil {
			t.Fatal(err)
		}
		n.Version, n.Left = 1<<40, 1<<40
		b, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
	store := h.store()
	b := s.on(t).start(store, store, s.images[:], policyText(2, "2"), nil)
	b.wants("by the configuration's", 1, denied)
	if _, err := b.enable(s.request(3, "1")); err != nil {
		t.Error(err)
	}
	b.wants("by the approver's", 1, "released")
	var p policyPointer
	if err := json.Unmarshal(body(t, store, policyCurrentKind, policyCurrentName), &p); err != nil || p.Version != 3 || p.Left != 0 {
		t.Errorf("%+v, %v", p.policyHead, err)
	}
}

// Nor does it where the present policy has another name, or none is enabled; nor does
// another content that somebody writes of a version which the service never enabled.
func TestNorDoesOneOfAPolicyThatIsNotEnabled(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	written := func(t *testing.T, s *policyScene, present []byte) (*storetest.Memory, *replica) {
		t.Helper()
		store := new(storetest.Memory)
		r := s.start(store, store, s.images[:], present, nil)
		change := new(server.Change)
		for at, v := range map[[2]string]any{
			{policyKind, "fleet"}: policyName{policyHead: policyHead{Name: "fleet", Version: 1 << 40, Left: 1 << 40}},
			{policyVersionKind, versionName("fleet", 2)}: policyVersion{
				policyHead: policyHead{Name: "fleet", Version: 2, Digest: manifest.SHA256{1}}, Images: []manifest.SHA256{{2}},
			},
		} {
			body, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			change.Documents = append(change.Documents, &server.Document{Kind: at[0], Name: at[1], Body: body})
		}
		if err := store.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		return store, r
	}
	sound := func(t *testing.T, store *storetest.Memory, version int) {
		t.Helper()
		var p policyPointer
		if err := json.Unmarshal(body(t, store, policyCurrentKind, policyCurrentName), &p); err != nil || p.Name != "fleet" || p.Version != version || p.Left != 0 {
			t.Errorf("%+v, %v", p.policyHead, err)
		}
	}
	t.Run("no policy is enabled", func(t *testing.T) {
		t.Parallel()
		store, _ := written(t, s.on(t), nil)
		b := s.on(t).start(store, store, s.images[:], policyText(2, "2"), nil)
		b.wants("by the configuration's", 1, denied)
		sound(t, store, 2)
	})
	t.Run("another policy is enabled", func(t *testing.T) {
		t.Parallel()
		other := bytes.Replace(policyText(7, "1"), []byte("name: fleet"), []byte("name: other"), 1)
		store, r := written(t, s.on(t), other)
		request := s.request(2, "2")
		request.Rollback = true
		if _, err := r.enable(request); err != nil {
			t.Fatal(err)
		}
		r.wants("by the approver's", 1, denied)
		sound(t, store, 2)
		s.on(t).start(store, store, s.images[:], policyText(3, "1"), nil).wants("by the configuration's", 1, "released")
		sound(t, store, 3)
	})
}

// Nor does what somebody writes to the log of the manifests of a policy: an approver who
// puts that right does not have the service sign them.
func TestManifestsThatSomebodyWritesToTheLogAreNotCarriedOn(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	store := new(storetest.Memory)
	a := s.start(store, store, nil, nil, nil)
	request := s.request(1, "1")
	request.Images = s.sent[1:]
	if _, err := a.enable(request); err != nil {
		t.Fatal(err)
	}
	a.wants("enabled", 2, "released")
	a.wants("enabled", 1, string(attest.CodeImageUnknown))
	body, err := json.Marshal(policyManifest(s.sent[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Commit(t.Context(), &server.Change{
		Documents: []*server.Document{{Kind: policyManifestKind, Name: manifest.SHA256(s.images[0].digest).String(), Body: body}},
		Events: []audit.Event{{Time: s.now(), Kind: audit.KindPolicy, Data: audit.Policy{
			By: "ana", Name: "fleet", Version: 1, Digest: sha256.Sum256(request.Policy), Signed: true, Images: []manifest.SHA256{s.images[0].digest},
		}}},
	}); err != nil {
		t.Fatal(err)
	}
	b := s.on(t).start(store, store, nil, nil, nil)
	b.wants("somebody wrote to the log", 2, "unavailable")
	if _, err := b.enable(request); err != nil {
		t.Fatal(err)
	}
	b.wants("put right", 2, "released")
	b.wants("put right", 1, string(attest.CodeImageUnknown))
}
