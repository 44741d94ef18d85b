package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/policy"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
)

func TestEachReplicaGoesByTheEnabledPolicy(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func() server.Store) {
		s := newPolicyScene(t)
		both := s.images[:]
		one := open()
		a := s.start(one, one, both, policyText(1, "1"), nil)
		two := open()
		b := s.start(two, two, both, policyText(1, "1"), nil)
		for _, r := range []*replica{a, b} {
			r.wants("by the first policy", 1, "released")
		}
		// What is no newer signed policy changes nothing.
		text := policyText(2, "2")
		for claim, c := range map[string]struct {
			req  *api.PolicyEnable
			says string
			code int
		}{
			"unsigned":                       {&api.PolicyEnable{Policy: text, Reason: "x"}, "is not signed", exitFailed},
			"with the signature of another":  {&api.PolicyEnable{Policy: text, Bundle: s.sign(policyText(3, "2")), Reason: "x"}, "the policy:", exitFailed},
			"without a reason":               {&api.PolicyEnable{Policy: text, Bundle: s.sign(text)}, "reason has 0 bytes", exitUsage},
			"the same version, other text":   {s.request(1, "2"), "with another content before", exitFailed},
			"with an image that is unsigned": {&api.PolicyEnable{Policy: text, Bundle: s.sign(text), Reason: "x", Images: []api.SignedManifest{{Manifest: s.sent[0].Manifest, Bundle: s.sent[1].Bundle}}}, "images[0]:", exitFailed},
		} {
			if _, err := a.enable(c.req); err == nil || !strings.Contains(err.Error(), c.says) || exitCode(err) != c.code {
				t.Errorf("%s: exit %d, %v; want %q", claim, exitCode(err), err, c.says)
			}
		}
		for _, r := range []*replica{a, b} {
			r.look()
			r.wants("after what was refused", 1, "released")
		}

		state, err := a.enable(s.request(2, "2"))
		if err != nil || state.Version != 2 || len(state.Replicas) != 2 || behind(state) != 1 {
			t.Fatalf("%+v, %v", state, err)
		}
		a.wants("at the replica that enabled it", 1, denied)
		a.wants("at the replica that enabled it", 2, "released")
		// The other has not looked since. It goes by what it saw until that is too old.
		s.later(policyBound)
		b.wants("within the bound", 1, "released")
		s.later(time.Millisecond)
		b.wants("after the bound", 1, "unavailable")
		if b.live.check(t.Context()) == nil {
			t.Error("a replica that decides nothing is healthy")
		}
		b.look()
		b.wants("at the next look", 1, denied)
		b.wants("at the next look", 2, "released")
		if state, err = b.live.state(t.Context()); err != nil || behind(state) != 0 {
			t.Errorf("%+v, %v", state, err)
		}
		if err := b.live.check(t.Context()); err != nil {
			t.Error(err)
		}

		// A step back needs to be meant.
		a.look()
		if _, err := b.enable(s.request(1, "1")); err == nil || !strings.Contains(err.Error(), "is older than version 2") || !strings.Contains(hintOf(err), "--rollback") {
			t.Errorf("a lower version: %v, hint %q", err, hintOf(err))
		}
		back := s.request(1, "1")
		back.Rollback = true
		if _, err := b.enable(back); err != nil {
			t.Fatal(err)
		}
		a.look()
		for _, r := range []*replica{a, b} {
			r.wants("after a step back", 1, "released")
		}
		// A replica that starts with the file of a policy that was taken back, or
		// with none, goes by what is enabled.
		for _, file := range [][]byte{policyText(2, "2"), policyText(1, "1"), nil} {
			c := s.start(two, two, both, file, nil)
			c.wants("started with another file", 1, "released")
		}
		var log []string
		for _, e := range policyEntries(t, one) {
			log = append(log, fmt.Sprintf("%s: %s %d from %d, back %t, %s", e.By, e.Name, e.Version, e.FromVersion, e.Rollback, e.Reason))
		}
		if want := []string{"configuration: fleet 1 from 0, back false, ", "ana: fleet 2 from 1, back false, ticket", "ana: fleet 1 from 2, back true, ticket"}; !slices.Equal(log, want) {
			t.Errorf("the audit log says %q, want %q", log, want)
		}
		alarms := alarmsIn(t, one)
		if len(alarms) != 1 || alarms[0].Name != audit.AlarmPolicyBack || alarms[0].Peer != "ana" || !strings.Contains(alarms[0].What, "fleet version 1 after fleet version 2: ticket") {
			t.Errorf("the step back raised %+v", alarms)
		}
		// Forward again, for everybody.
		if _, err := a.enable(s.request(2, "2")); err != nil {
			t.Fatal(err)
		}
		b.look()
		b.wants("forward again", 1, denied)
	})
}

// While machines boot at both replicas, another policy is enabled: none is
// released by the former one after both have seen it.
func TestAPolicyIsEnabledWhileMachinesBoot(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func() server.Store) {
		s := newPolicyScene(t)
		one, two := open(), open()
		a := s.start(one, one, s.images[:], policyText(1, "1"), nil)
		b := s.start(two, two, s.images[:], policyText(1, "1"), nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for _, r := range []*replica{a, b} {
			wg.Go(func() { r.live.Run(ctx) })
			for range 2 {
				wg.Go(func() {
					for ctx.Err() == nil {
						if got := r.boot(1); got != "released" && got != denied && ctx.Err() == nil {
							t.Errorf("while it is enabled: %s", got)
							return
						}
					}
				})
			}
		}
		for version := 2; version < 5; version++ {
			minimum := fmt.Sprint(1 + version%2) // 1, 2, 1
			from, other := a, b
			if version%2 == 0 {
				from, other = b, a
			}
			state, err := from.enable(s.request(version, minimum))
			if err != nil {
				t.Fatal(err)
			}
			for behind := true; behind; {
				other.await("going by another policy") // which it also says of earlier ones
				now, err := other.live.inForce()
				behind = err != nil || now.revision < state.Revision
			}
			want := map[string]string{"1": "released", "2": denied}[minimum]
			a.wants(fmt.Sprint("version ", version), 1, want)
			b.wants(fmt.Sprint("version ", version), 1, want)
		}
		cancel()
	})
}

// Machines are asked for the proof of their banks when the policy wants it, and not
// taken at their word that it did not.
func TestAPolicyThatWantsTheBanksProvenHasMachinesAsked(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open func() server.Store) {
		s := newPolicyScene(t)
		store := open()
		a := s.start(store, store, s.images[:], policyText(1, "1"), nil)
		a.deaf = true
		a.wants("nobody asks", 1, "released")
		text := bytes.Replace(policyText(2, "1"), []byte("[software]"), []byte("[software], proveBanks: true"), 1)
		if _, err := a.enable(&api.PolicyEnable{Policy: text, Bundle: s.sign(text), Reason: "ticket"}); err != nil {
			t.Fatal(err)
		}
		a.wants("an agent that does not know it", 1, string(attest.CodeBankUnproven))
		a.deaf = false
		a.wants("an agent that does", 1, "released")
		if _, err := a.enable(s.request(3, "1")); err != nil {
			t.Fatal(err)
		}
		a.deaf = true
		a.wants("nobody asks any more", 1, "released")
	})
}

// A policy may ask before it requires, which is a newer version of it and no more; and
// take TPMs out, of which the certificates of this lab's authority are none until its
// root is there for named makers.
func TestAPolicyMayAskForTheBanksBeforeItRequiresThem(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	roots := attest.TPMRoot{Class: attest.TPMSoftware, Certificate: s.ca.Root, Vendors: []attest.TPMVendor{0x50415052}}
	start := func(named bool) *replica {
		return s.start(memory, memory, s.images[:], policyText(1, "1"), func(l *livePolicy) {
			if named {
				l.local.tpm.Roots = []attest.TPMRoot{roots}
			}
		})
	}
	a := start(true)
	a.deaf = true
	version := 1
	enable := func(tpm string) {
		t.Helper()
		version++
		text := bytes.Replace(policyText(version, "1"), []byte("[software]"), []byte("[software], "+tpm), 1)
		if _, err := a.enable(&api.PolicyEnable{Policy: text, Bundle: s.sign(text), Reason: "ticket"}); err != nil {
			t.Fatal(err)
		}
	}
	answers := func() (n map[string]int) {
		t.Helper()
		all, err := memory.Machines(t.Context(), server.Query{})
		if err != nil {
			t.Fatal(err)
		}
		n = map[string]int{}
		for _, m := range all {
			for _, answer := range bankAnswers() {
				if answeredBanks(&m.Machine, answer) {
					n[answer]++
				}
			}
		}
		return n
	}
	a.wants("nobody asks", 1, "released")
	enable("proveBanks: ask")
	a.wants("an agent that does not know it is asked", 1, "released")
	a.deaf = false
	a.wants("one that does", 1, "released")
	if n := answers(); n[banksUnasked] != 1 || n["silent"] != 1 || n["proven"] != 1 || len(n) != 3 {
		t.Errorf("machines by answer: %v", n)
	}
	enable("proveBanks: require")
	a.wants("it answers", 1, "released")
	a.deaf = true
	a.wants("it does not", 1, string(attest.CodeBankUnproven))
	enable("proveBanks: require, bankExemptions: [{vendor: IFX, reason: r}]")
	a.wants("another maker's need not", 1, string(attest.CodeBankUnproven))
	enable("proveBanks: require, bankExemptions: [{vendor: PAPR, reason: r}]")
	a.wants("this maker's need not", 1, "released")
	b := start(false)
	b.deaf = true
	b.wants("a root that may vouch for any maker", 1, string(attest.CodeBankUnproven))
	enable("proveBanks: ask")
	a.wants("a step back from requiring", 1, "released")
}

// unreadable is a store of which no document can be read while fail says why.
type unreadable struct {
	server.Store
	fail func() error
}

func (u unreadable) Document(ctx context.Context, kind, name string) (*server.Document, error) {
	if err := u.fail(); err != nil {
		return nil, err
	}
	return u.Store.Document(ctx, kind, name)
}

func TestAReplicaMayMissStepsInBetween(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	a := s.start(memory, memory, s.images[:], policyText(1, "1"), nil)
	b := s.start(memory, memory, s.images[:], nil, nil)
	enable := func(version int, minimum string, back bool) {
		t.Helper()
		req := s.request(version, minimum)
		req.Rollback = back
		if _, err := a.enable(req); err != nil {
			t.Fatal(err)
		}
	}
	enable(5, "1", false)
	b.look()
	enable(3, "2", true) // a step back, and
	enable(4, "2", false)
	b.look()
	b.wants("after a step back and one forward", 1, denied)
	// Looks that end in another order than they began do no harm.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if err := b.live.look(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for version := 6; version < 20; version++ {
		enable(version, "2", false)
	}
	wg.Wait()
	b.look()
	if r, err := b.live.inForce(); err != nil || r.document.Version != 19 {
		t.Errorf("%v, %v", r, err)
	}
}

func TestAReplicaThatCannotTellReleasesNothing(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	var mu sync.Mutex
	var down error
	looks := unreadable{memory, func() error { mu.Lock(); defer mu.Unlock(); return down }}
	set := func(err error) { mu.Lock(); down = err; mu.Unlock() }
	r := s.start(memory, looks, s.images[:], policyText(1, "1"), nil)
	r.wants("at first", 1, "released")
	set(errors.New("no route to host"))
	for range 5 {
		s.later(policyPoll)
		if err := r.live.look(t.Context()); err == nil {
			t.Fatal("a look at a store that is down")
		}
		r.wants("within the bound", 1, "released")
	}
	s.later(time.Millisecond)
	r.wants("after the bound", 1, "unavailable")
	set(nil)
	r.look()
	r.wants("when the store is back", 1, "released")
	// A clock that was set back says nothing of how old the last look is.
	s.later(-time.Minute)
	r.wants("with a clock that was set back", 1, "unavailable")
	r.look()
	r.wants("after a look by the new clock", 1, "released")
}

func TestAReplicaGoesByNothingThatItCannotVerify(t *testing.T) {
	t.Parallel()
	// put writes what is enabled as another program would.
	put := func(t *testing.T, store server.Store, key *ecdsa.PrivateKey, head policyHead, v policyVersion) {
		t.Helper()
		w := newWitness(t, store, key, "")
		proven, err := provePolicy(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		versioned, err := document(t.Context(), store, policyVersionKind, versionName(head.Name, head.Version), new(policyVersion))
		if err != nil {
			t.Fatal(err)
		}
		v.policyHead = head
		entry := audit.Policy{Name: head.Name, Version: head.Version, Digest: head.Digest, By: "somebody"}
		pointer, err := w.signPointer(proven, head, v.Images, &entry)
		if err != nil {
			t.Fatal(err)
		}
		if err := commitPolicy(t.Context(), store, entry, time.Now(), proven.document, pointer, versioned, v); err != nil {
			t.Fatal(err)
		}
	}
	of := func(text []byte, version int) policyHead {
		return policyHead{Name: "fleet", Version: version, Digest: sha256.Sum256(text), Signed: true, Enabled: time.Now()}
	}
	for name, c := range map[string]struct {
		change func(s *policyScene) (policyHead, policyVersion)
		says   string
	}{
		"a key that this program does not know": {func(s *policyScene) (policyHead, policyVersion) {
			text := append(policyText(2, "1"), "novelty: true\n"...)
			return of(text, 2), policyVersion{Text: text, Bundle: s.sign(text)}
		}, "novelty: unknown field"},
		"no signature": {func(s *policyScene) (policyHead, policyVersion) {
			text := policyText(2, "1")
			return of(text, 2), policyVersion{Text: text}
		}, "is not signed, or its signature is not in the store"},
		"unsigned and marked so": {func(s *policyScene) (policyHead, policyVersion) {
			text := policyText(2, "1")
			h := of(text, 2)
			h.Signed = false
			return h, policyVersion{Text: text, Bundle: s.sign(text)}
		}, "is not signed"},
		"the signature of another text": {func(s *policyScene) (policyHead, policyVersion) {
			text := policyText(2, "1")
			return of(text, 2), policyVersion{Text: text, Bundle: s.sign(policyText(3, "1"))}
		}, "policy fleet version 2 is enabled: "},
		"another text than the digest says": {func(s *policyScene) (policyHead, policyVersion) {
			text := policyText(3, "1")
			return of(policyText(2, "1"), 2), policyVersion{Text: text, Bundle: s.sign(text)}
		}, "its text is not in the store"},
		"a signed text under another version": {func(s *policyScene) (policyHead, policyVersion) {
			text := policyText(1, "1")
			text = append(text, "# an old one\n"...)
			return of(text, 2), policyVersion{Text: text, Bundle: s.sign(text)}
		}, "its text is that of fleet version 1"},
		"a manifest that is not there": {func(s *policyScene) (policyHead, policyVersion) {
			text := policyText(2, "1")
			return of(text, 2), policyVersion{Text: text, Bundle: s.sign(text), Images: []manifest.SHA256{{1}}}
		}, "manifest 0100"},
		"a lower version": {func(s *policyScene) (policyHead, policyVersion) {
			text := fmt.Appendf(nil, "%s# older\n", policyText(0, "1"))
			return of(text, 0), policyVersion{Text: text, Bundle: s.sign(text)}
		}, "not by a step back that was meant"},
		"none, turned off by another replica": {func(s *policyScene) (policyHead, policyVersion) {
			return policyHead{}, policyVersion{}
		}, "it was turned off after fleet version 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newPolicyScene(t)
			memory := new(storetest.Memory)
			r := s.start(memory, memory, s.images[:], policyText(1, "1"), nil)
			r.wants("at first", 1, "released")
			head, version := c.change(s)
			key, err := s.ring.Release()
			if err != nil {
				t.Fatal(err)
			}
			put(t, memory, key, head, version)
			if err := r.live.look(t.Context()); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v, want %q", err, c.says)
			}
			// At once: it is known that another is enabled.
			r.wants("then", 1, "unavailable")
			if err := r.live.tell(t.Context()); err != nil {
				t.Fatal(err)
			}
			if state, err := r.live.state(t.Context()); err != nil || behind(state) != 1 || !strings.Contains(state.Replicas[0].Fault, c.says) {
				t.Errorf("%+v, %v", state, err)
			}
			// A policy that it can go by mends it.
			if _, err := r.enable(s.request(9, "1")); err != nil {
				t.Fatal(err)
			}
			r.wants("after one that it can go by", 1, "released")
		})
	}
	t.Run("a store that was replaced", func(t *testing.T) {
		t.Parallel()
		s := newPolicyScene(t)
		old, next := new(storetest.Memory), new(storetest.Memory)
		r := s.start(old, old, s.images[:], policyText(1, "1"), nil)
		if _, err := r.enable(s.request(2, "2")); err != nil {
			t.Fatal(err)
		}
		s.start(next, next, s.images[:], policyText(1, "1"), nil)
		r.live.store, r.live.witness.store = next, next
		if err := r.live.look(t.Context()); !errors.Is(err, errAltered) {
			t.Errorf("%v", err)
		}
		r.wants("then", 1, "unavailable")
	})
}

func TestManifestsReachAllReplicasWithThePolicy(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	a := s.start(memory, memory, s.images[:1], policyText(1, "1"), nil)
	b := s.start(memory, memory, s.images[:1], policyText(1, "1"), nil)
	b.wants("an image that no replica has", 2, string(attest.CodeImageUnknown))
	with := s.request(2, "1")
	with.Images = s.sent[1:]
	if state, err := a.enable(with); err != nil || len(state.Images) != 1 {
		t.Fatalf("%+v, %v", state, err)
	}
	b.look()
	for _, r := range []*replica{a, b} {
		r.wants("an image that came with the policy", 2, "released")
		r.wants("the image of the configuration", 1, "released")
	}
	// The next version keeps it, without naming it again.
	if state, err := b.enable(s.request(3, "2")); err != nil || len(state.Images) != 1 {
		t.Fatalf("%+v, %v", state, err)
	}
	a.look()
	a.wants("with the next version", 2, "released")
	a.wants("with the next version", 1, denied)
	// A replica that starts later has it, too, and one whose own configuration has
	// it judges the same.
	s.start(memory, memory, s.images[:1], nil, nil).wants("started later", 2, "released")
	if err := a.live.alike(t.Context()); err != nil {
		t.Error(err)
	}
	// A policy that lists what nobody has is refused.
	other := []byte(strings.Replace(string(policyText(4, "1")), "{name: demo, minimum: \"1\"}", "{name: other}", 1))
	if _, err := a.enable(&api.PolicyEnable{Policy: other, Bundle: s.sign(other), Reason: "x"}); err == nil || !strings.Contains(err.Error(), "there is no signed manifest of image other") || !strings.Contains(hintOf(err), "--images") {
		t.Errorf("a policy that lists an image without a manifest: %v, hint %q", err, hintOf(err))
	}
	s.later(policyGone + time.Second) // the third replica is gone
	a.look()
	b.look()

	// An image that only one replica has would be judged differently.
	memory = new(storetest.Memory)
	a = s.start(memory, memory, s.images[:], policyText(1, "1"), nil)
	b = s.start(memory, memory, s.images[:1], policyText(1, "1"), nil)
	if err := b.live.alike(t.Context()); err == nil {
		t.Error("replicas with other images are alike")
	}
	if _, err := a.enable(s.request(2, "1")); err == nil || !strings.Contains(err.Error(), "does not have image demo 2") {
		t.Errorf("an image that another replica lacks: %v", err)
	}
	with = s.request(2, "1")
	with.Images = s.sent[1:]
	if _, err := a.enable(with); err != nil {
		t.Fatal(err)
	}
	b.look()
	b.wants("when it was sent along", 2, "released")
	a.live.told = time.Time{}
	a.look()
	if err := a.live.alike(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFilesReachAllReplicasWithThePolicy(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	// An EFI_SIGNATURE_LIST of one SHA-256 hash (UEFI 2.10, 32.4.1).
	dbx := append([]byte("\x26\x16\xc4\xc1\x4c\x50\x92\x40\xac\xa9\x41\xf9\x36\x93\x43\x28\x4c\x00\x00\x00\x00\x00\x00\x00\x30\x00\x00\x00"), make([]byte, 48)...)
	with := func(version int) []byte {
		return []byte(strings.Replace(string(policyText(version, "1")), "{dbx: {any: true}}", fmt.Sprintf("{dbx: {superset: {file: dbx.bin, sha256: %x}}}", sha256.Sum256(dbx)), 1))
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dbx.bin"), dbx, 0o600); err != nil {
		t.Fatal(err)
	}
	a := s.start(memory, memory, s.images[:1], nil, nil)
	b := s.start(memory, memory, s.images[:1], nil, nil)
	a.wants("without a policy", 1, "released")
	// What a replica's configuration names reaches the others.
	d, err := policy.Parse("p.yaml", with(1), func(string) ([]byte, error) { return dbx, nil })
	if err != nil {
		t.Fatal(err)
	}
	c := s.start(memory, memory, s.images[:1], nil, nil)
	c.live.config, c.live.file = &policyConfig{File: filepath.Join(dir, "p.yaml")}, d
	if err := c.live.begin(t.Context(), s.sign(with(1))); err != nil {
		t.Fatal(err)
	}
	req := &api.PolicyEnable{Policy: with(2), Bundle: s.sign(with(2)), Reason: "x"}
	for claim, files := range map[string]map[string][]byte{"without the file": nil, "with another file": {"dbx.bin": dbx[1:]}} {
		req.Files = files
		if _, err := a.enable(req); err == nil || !strings.Contains(err.Error(), "dbx.bin") {
			t.Errorf("%s: %v", claim, err)
		}
	}
	b.look()
	b.wants("by the first policy", 1, string(attest.CodeSecureBootKeys))
	req.Files = map[string][]byte{"dbx.bin": dbx, "other": []byte("not named")}
	if _, err := a.enable(req); err != nil {
		t.Fatal(err)
	}
	b.look()
	b.wants("by the second policy", 1, string(attest.CodeSecureBootKeys))
	var kept policyVersion
	if _, err := document(t.Context(), memory, policyVersionKind, versionName("fleet", 2), &kept); err != nil || len(kept.Files) != 1 {
		t.Errorf("%d files are kept, want the one that the policy names: %v", len(kept.Files), err)
	}
}

// What a replica has seen it forgets when it ends. What its configuration says
// holds against a store that somebody turned back meanwhile.
func TestNoStoreTurnsAReplicaBackBelowItsFloor(t *testing.T) {
	t.Parallel()
	floor := func(l *livePolicy) {
		if l.config == nil {
			l.config = &policyConfig{}
		}
		l.config.Floor = &policyFloor{Name: "fleet", Version: 2}
	}
	for name, head := range map[string]func(policyHead) policyHead{
		"an older version, as a step back that was meant": func(h policyHead) policyHead { h.Left = 9; return h },
		"no policy":                func(policyHead) policyHead { return policyHead{} },
		"a policy of another name": func(h policyHead) policyHead { h.Name, h.Version = "other", 9; return h },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newPolicyScene(t)
			memory := new(storetest.Memory)
			a := s.start(memory, memory, s.images[:], policyText(1, "1"), nil)
			b := s.start(memory, memory, s.images[:], policyText(2, "2"), floor)
			b.wants("at the floor", 1, denied)
			a.look()
			var old policyHead
			if _, err := document(t.Context(), memory, policyCurrentKind, policyCurrentName, &old); err != nil {
				t.Fatal(err)
			}
			old.Version, old.Digest = 1, sha256.Sum256(policyText(1, "1"))
			signEnabled(t, memory, s.ring, head(old))
			for what, live := range map[string]*livePolicy{
				"that runs":                      b.live,
				"that was started again":         {store: memory, ring: s.ring, local: b.live.local, mon: b.mon, log: b.live.log, catalogue: b.live.catalogue, config: &policyConfig{Floor: &policyFloor{Name: "fleet", Version: 2}}},
				"that was started with the file": {store: memory, ring: s.ring, local: b.live.local, mon: b.mon, log: b.live.log, catalogue: b.live.catalogue, config: b.live.config, file: b.live.file},
			} {
				// One that saw a policy says of none that it was turned off.
				err := live.look(t.Context())
				if err == nil || !strings.Contains(err.Error(), "wants policy fleet of version 2 or later") && !strings.Contains(err.Error(), "it was turned off after") {
					t.Errorf("a replica %s: %v", what, err)
				}
				if _, err := live.inForce(); err == nil {
					t.Errorf("a replica %s decides", what)
				}
			}
			b.wants("below the floor", 1, "unavailable")
			req := s.request(3, "2")
			req.Rollback = true // from another name
			if _, err := b.enable(req); err != nil {
				t.Fatal(err)
			}
			b.wants("above it", 1, denied)
			b.wants("above it", 2, "released")
		})
	}
	t.Run("by an approver", func(t *testing.T) {
		t.Parallel()
		s := newPolicyScene(t)
		memory := new(storetest.Memory)
		b := s.start(memory, memory, s.images[:], policyText(2, "2"), floor)
		req := s.request(1, "1")
		req.Rollback = true
		if _, err := b.enable(req); err == nil || !strings.Contains(err.Error(), "wants policy fleet of version 2 or later") {
			t.Errorf("%v", err)
		}
		b.wants("then", 1, denied)
	})
	t.Run("by the file of the configuration", func(t *testing.T) {
		t.Parallel()
		s := newPolicyScene(t)
		d, err := policy.Parse("p.yaml", policyText(1, "1"), nil)
		if err != nil {
			t.Fatal(err)
		}
		memory := new(storetest.Memory)
		live := &livePolicy{store: memory, ring: s.ring, local: &policySource{clock: s.now}, log: slog.New(slog.DiscardHandler), file: d, config: &policyConfig{File: "p.yaml"}}
		floor(live)
		if err := live.begin(t.Context(), s.sign(d.Text)); err == nil || exitCode(err) != exitRefused || !strings.Contains(err.Error(), "wants policy fleet of version 2 or later") {
			t.Errorf("%v", err)
		}
		if d, err := memory.Document(t.Context(), policyCurrentKind, policyCurrentName); err == nil {
			t.Errorf("it was enabled: %s", d.Body)
		}
	})
}

func TestNoPolicyIsForThoseWhoseConfigurationSaysSo(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	a := s.start(memory, memory, s.images[:], policyText(1, "2"), nil)
	b := s.start(memory, memory, s.images[:], nil, nil)
	off := func(l *livePolicy) { l.config = &policyConfig{Off: "moved"} }
	s.start(memory, memory, s.images[:], nil, off).wants("turned off", 1, "released")
	for name, r := range map[string]*replica{"that names a file": a, "that names none": b} {
		if err := r.live.look(t.Context()); err == nil || !strings.Contains(err.Error(), "it was turned off after fleet version 1") {
			t.Errorf("a replica %s: %v", name, err)
		}
		r.wants("a replica "+name, 1, "unavailable")
	}
	s.start(memory, memory, s.images[:], nil, nil).wants("started after that", 1, "released")
}

func TestARollbackOfAConfigurationIsCarriedOutOnce(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	a := s.start(memory, memory, s.images[:], policyText(2, "2"), nil)
	back := func(l *livePolicy) { l.config.Rollback = &policyRollback{To: 1, Reason: "ticket 1"} }
	b := s.start(memory, memory, s.images[:], policyText(1, "1"), back)
	b.wants("after the rollback", 1, "released")
	a.look()
	if _, err := a.enable(s.request(3, "2")); err != nil {
		t.Fatal(err)
	}
	s.start(memory, memory, s.images[:], policyText(1, "1"), back).wants("at the next start with the same rollback", 1, denied)
	s.start(memory, memory, s.images[:], policyText(1, "1"), func(l *livePolicy) { l.config.Rollback = &policyRollback{To: 1, Reason: "ticket 2"} }).
		wants("with another rollback", 1, "released")
}

func TestAPolicyIsEnabledByAnApprover(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	r := s.start(memory, memory, s.images[:], policyText(1, "1"), nil)
	dir := t.TempDir()
	for role, want := range map[string]string{"viewer": "does not have the role approver", "operator": "does not have the role approver", "auditor": "does not have the role approver", "approver": ""} {
		out := filepath.Join(dir, role)
		mustCLI(t, "keys", "issue", "operator", role, "--role", role, "--keys", s.keys, "--out", out)
		r.ana = out
		_, err := r.enable(s.request(2, "2"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", role, err)
		}
	}
}

func TestAPolicyIsEnabledOnTheCommandLine(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	memory := new(storetest.Memory)
	r := s.start(memory, memory, s.images[:1], policyText(1, "1"), nil)
	file, img := filepath.Join(t.TempDir(), "p.yaml"), t.TempDir()
	write := func(name string, b []byte) {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(img, image.FileManifest), s.sent[1].Manifest)
	write(filepath.Join(img, image.FileBundle), s.sent[1].Bundle)
	ask := func(args ...string) []string {
		return append(args, "--server", r.operators, "--identity", s.ana)
	}
	write(file, policyText(2, "2"))
	if code, _, talk := cli(t, "", ask("policy", "enable", file, "--reason", "x")...); code != exitRefused || !strings.Contains(talk, "is not signed") || !strings.Contains(talk, "sealift policy sign") {
		t.Errorf("without a signature: exit %d: %s", code, talk)
	}
	mustCLI(t, "policy", "sign", file, "--keys", s.keys)
	if code, _, talk := cli(t, "", ask("policy", "enable", file)...); code != exitUsage {
		t.Errorf("without a reason: exit %d: %s", code, talk)
	}
	out := mustCLI(t, ask("policy", "enable", file, "--reason", "x", "--images", img)...)
	if !strings.Contains(out, "policy: fleet version 2, SHA-256 ") || !strings.Contains(out, "with 1 manifests") || !strings.Contains(out, "goes by it") {
		t.Errorf("enable: %s", out)
	}
	r.wants("then", 2, "released")
	var state api.PolicyState
	if err := json.Unmarshal([]byte(mustCLI(t, ask("policy", "status", "--json")...)), &state); err != nil || state.Version != 2 || len(state.Text) != 0 || len(state.Replicas) != 1 || state.Replicas[0].Version != 2 {
		t.Errorf("status: %+v, %v", state, err)
	}
	if shown := mustCLI(t, ask("policy", "show")...); shown != string(policyText(2, "2")) {
		t.Errorf("show: %q", shown)
	}
	write(file, policyText(1, "1"))
	mustCLI(t, "policy", "sign", file, "--keys", s.keys)
	if code, _, talk := cli(t, "", ask("policy", "enable", file, "--reason", "x")...); code != exitRefused || !strings.Contains(talk, "is older than version 2") || !strings.Contains(talk, "--rollback") {
		t.Errorf("a lower version: exit %d: %s", code, talk)
	}
	if out := mustCLI(t, ask("policy", "enable", file, "--reason", "x", "--rollback")...); !strings.Contains(out, "policy: fleet version 1,") {
		t.Errorf("rollback: %s", out)
	}
	// Another replica that does not look any more is shown, and waited for.
	b := s.start(memory, memory, s.images[:1], policyText(1, "1"), func(l *livePolicy) {
		l.local.tpm.AllowExpired = true
	})
	if code, out, talk := cli(t, "", ask("policy", "status")...); code != exitRefused || !strings.Contains(talk, "do not judge by the same") {
		t.Errorf("status with other inputs: exit %d: %s%s", code, out, talk)
	}
	write(file, policyText(3, "1"))
	mustCLI(t, "policy", "sign", file, "--keys", s.keys)
	if code, out, talk := cli(t, "", ask("policy", "enable", file, "--reason", "x", "--wait", "0s")...); code != exitFailed || !strings.Contains(talk, "1 of 2 replicas do not go by it") || !strings.Contains(out, "not yet") {
		t.Errorf("with a replica that does not look: exit %d: %s%s", code, out, talk)
	}
	b.look()
	if code, out, _ := cli(t, "", ask("policy", "status")...); code != exitRefused || strings.Contains(out, "not yet") {
		t.Errorf("status: exit %d: %s", code, out)
	}
}
