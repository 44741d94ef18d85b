package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// countedStore asks before each call, which it numbers from 1, whether it fails.
type countedStore struct {
	server.Store
	calls  atomic.Int64
	before func(call int64, method string) error
}

func (s *countedStore) ask(method string) error { return s.before(s.calls.Add(1), method) }

func (s *countedStore) Machine(ctx context.Context, id attest.MachineID) (*server.Machine, error) {
	if err := s.ask("Machine"); err != nil {
		return nil, err
	}
	return s.Store.Machine(ctx, id)
}

func (s *countedStore) Machines(ctx context.Context, q server.Query) ([]*server.Machine, error) {
	if err := s.ask("Machines"); err != nil {
		return nil, err
	}
	return s.Store.Machines(ctx, q)
}

func (s *countedStore) Release(ctx context.Context, id string) (*server.Release, error) {
	if err := s.ask("Release"); err != nil {
		return nil, err
	}
	return s.Store.Release(ctx, id)
}

func (s *countedStore) Document(ctx context.Context, kind, name string) (*server.Document, error) {
	if err := s.ask("Document"); err != nil {
		return nil, err
	}
	return s.Store.Document(ctx, kind, name)
}

func (s *countedStore) Commit(ctx context.Context, c *server.Change) error {
	if err := s.ask("Commit"); err != nil {
		return err
	}
	return s.Store.Commit(ctx, c)
}

// Each call of a rewrap after the other fails: the rewrap says so, the log does
// not say that it is finished, and the next one finishes it.
func TestARewrapWhoseStoreFailsIsNotFinished(t *testing.T) {
	f := newKEKScene(t, 2)
	kek := newKEK(t)
	down := errors.New("the store is down")
	for failing := int64(1); ; failing++ {
		store := &countedStore{Store: f.memory, before: func(call int64, _ string) error {
			if call == failing {
				return down
			}
			return nil
		}}
		err := f.replica(store, kek, []attest.Secret{f.old}).Rewrap(t.Context())
		if store.calls.Load() < failing {
			if err != nil {
				t.Errorf("without a failure: %v", err)
			}
			if failing < 3 {
				t.Errorf("only %d calls were made", store.calls.Load())
			}
			break
		}
		if !errors.Is(err, down) {
			t.Errorf("call %d failed: %v", failing, err)
		}
		if got := f.rewraps(); len(got) > 1 {
			t.Fatalf("call %d failed, and the log has %+v", failing, got)
		}
	}
	if got := f.rewraps(); len(got) != 2 || got[0].Event != audit.KEKStarted || got[1].Event != audit.KEKFinished {
		t.Errorf("the log has %+v", got)
	}
	if want := map[string]int{server.KEKID(kek): 4}; !reflect.DeepEqual(f.under(), want) {
		t.Errorf("keys are under %v", f.under())
	}
}

// Another replica still seals under the former key while this one is about to
// say that nothing is left.
func TestARewrapIsNotFinishedWhileKeysAreSealedUnderAFormerKey(t *testing.T) {
	f := newKEKScene(t, 1)
	was := f.machine(f.boxes[0]).DiskKey
	kek := newKEK(t)
	documents := 0
	store := &countedStore{Store: f.memory, before: func(_ int64, method string) error {
		if method != "Document" {
			return nil
		}
		if documents++; documents == 2 { // of the end
			m := f.machine(f.boxes[0])
			m.DiskKey = was
			return f.memory.Commit(context.Background(), &server.Change{Machine: m})
		}
		return nil
	}}
	if err := f.replica(store, kek, []attest.Secret{f.old}).Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.rewraps(); len(got) != 1 || got[0].Event != audit.KEKStarted {
		t.Errorf("the log has %+v", got)
	}
	if err := f.replica(f.memory, kek, []attest.Secret{f.old}).Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.rewraps(); len(got) != 2 || got[1].Event != audit.KEKFinished {
		t.Errorf("the log has %+v", got)
	}
	f.same(f.replica(f.memory, kek, nil))
}

func TestKeysThatAreGivenUpHoldUpNoRewrap(t *testing.T) {
	f := newKEKScene(t, 1)
	kek, unused := newKEK(t), newKEK(t)
	const lost = "00112233445566aa"
	m := f.machine(f.boxes[0])
	m.NextKey.KEK = lost
	if err := f.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	f.srv = f.replica(f.memory, kek, []attest.Secret{f.old, unused}, lost)
	if err := f.srv.Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := f.rewraps()
	if len(got) != 2 || got[0].Keys != 1 || !reflect.DeepEqual(got[0].From, []string{server.KEKID(f.old)}) {
		t.Errorf("the log has %+v", got)
	}
	if want := map[string]int{server.KEKID(kek): 1, lost: 1}; !reflect.DeepEqual(f.under(), want) {
		t.Errorf("keys are under %v", f.under())
	}
	f.listen()
	var st api.KEKStatus
	if code := f.call(f.operator(), "GET", "https://"+f.operators+api.PathKEK, nil, &st); code != 200 {
		t.Fatalf("HTTP %d", code)
	}
	roles := map[string]api.KEKRole{}
	for _, u := range st.Uses {
		roles[u.KEK] = u.Role
	}
	if want := map[string]api.KEKRole{server.KEKID(kek): api.KEKPresent, server.KEKID(f.old): api.KEKFormer, server.KEKID(unused): api.KEKFormer, lost: api.KEKLost}; !reflect.DeepEqual(roles, want) {
		t.Errorf("the keys are %v, want %v", roles, want)
	}
}

func TestOperatorsAreToldWhatKeepsAFormerKey(t *testing.T) {
	f := newKEKScene(t, 2)
	kek := newKEK(t)
	const lost = "00112233445566aa"
	var down atomic.Pointer[string] // the method that fails
	store := &countedStore{Store: f.memory, before: func(_ int64, method string) error {
		if d := down.Load(); d != nil && *d == method {
			return errors.New("the store is down")
		}
		return nil
	}}
	get := func(path string) (int, []byte) { return f.raw(f.operator(), "GET", "https://"+f.operators+path, nil) }

	// Lists are there even where nothing is in them, and an id that nothing is
	// under is shown.
	f.srv = f.replica(f.memory, f.old, nil)
	f.listen()
	if code, b := get(api.PathKEK); code != 200 || !strings.Contains(string(b), `"former":[]`) || !strings.Contains(string(b), `"lost":[]`) {
		t.Errorf("HTTP %d, %s", code, b)
	}
	// Of a machine whose release was removed, and of one who has confirmed.
	m := f.machine(f.boxes[0])
	m.ReleaseID = "gone"
	if err := f.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	f.srv = f.replica(f.memory, f.old, nil)
	f.listen()
	r, _, transport := f.reboot(f.boxes[1], f.disks[1])
	if status := f.confirm(r, transport, api.OutcomeUnlocked); status != 200 {
		t.Fatalf("HTTP %d", status)
	}
	f.srv = f.replica(store, kek, []attest.Secret{f.old}, lost)
	f.listen()
	code, b := get(api.PathKEK)
	var st api.KEKStatus
	if err := json.Unmarshal(b, &st); err != nil || code != 200 {
		t.Fatalf("HTTP %d, %s, %v", code, b, err)
	}
	uses := map[string]api.KEKUse{}
	for _, u := range st.Uses {
		uses[u.KEK] = u
	}
	if u, there := uses[lost]; !there || u.Role != api.KEKLost || uses[server.KEKID(f.old)].Releases != 0 {
		t.Errorf("got %+v", st.Uses)
	}
	for _, method := range []string{"Machines", "Release", "Document"} {
		down.Store(&method)
		if code, b := get(api.PathKEK); code != 503 || strings.Contains(string(b), "uses") {
			t.Errorf("%s fails: HTTP %d, %s", method, code, b)
		}
	}
	down.Store(nil)
	// Without a look at releases, which is one for each machine, a service starts.
	release := "Release"
	down.Store(&release)
	if err := f.srv.Start(t.Context()); err != nil {
		t.Errorf("start: %v", err)
	}
	machines := "Machines"
	down.Store(&machines)
	if err := f.srv.Start(t.Context()); err == nil {
		t.Error("it starts without a look at the disk keys")
	}
	down.Store(nil)
	// A key that does not open.
	m = f.machine(f.boxes[0])
	m.DiskKey.Box[20] ^= 1
	if err := f.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	var e api.Error
	if code := f.call(f.operator(), "POST", "https://"+f.operators+api.PathKEKRewrap, api.KEKRewrapRequest{Reason: "ticket 1"}, &e); code != 500 {
		t.Errorf("HTTP %d", code)
	}
	if got := f.rewraps(); len(got) != 1 || got[0].Event != audit.KEKStarted {
		t.Errorf("the log has %+v", got)
	}
}
