package server_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
)

func newKEK(t testing.TB) attest.Secret {
	t.Helper()
	k := make(attest.Secret, server.KEKSize)
	if _, err := rand.Read(k); err != nil {
		t.Fatal(err)
	}
	return k
}

// kekScene is a fleet whose records are under one key-encryption key.
type kekScene struct {
	*scene
	config server.Config
	old    attest.Secret
	boxes  []*box
	disks  []string
	halves [][2]attest.Secret // of each box: the present and the next
}

// newKEKScene makes n machines; each has a disk key and one that it is to get.
func newKEKScene(t *testing.T, n int) *kekScene {
	t.Helper()
	f := &kekScene{old: newKEK(t)}
	f.scene = newScene(t, func(c *server.Config) { c.KEK = f.old; f.config = *c })
	for i := range n {
		b, guid := newBox(t, f.tpmCA), fmt.Sprintf("%08x%s", i+1, disk[8:])
		rec := record(b)
		rec.DiskGUID = guid
		if _, err := f.srv.Enrol(t.Context(), "line-1", rec); err != nil {
			t.Fatal(err)
		}
		if status, resp := f.attestFrom(b, guid, false); status != 200 {
			t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
		}
		if status, _ := f.rotate(b, "x"); status != 200 {
			t.Fatalf("HTTP %d", status)
		}
		_, secrets, _ := f.reboot(b, guid)
		f.boxes, f.disks = append(f.boxes, b), append(f.disks, guid)
		f.halves = append(f.halves, [2]attest.Secret{secrets.DiskKey, secrets.NextDiskKey})
	}
	return f
}

// replica makes another service on the same store.
func (f *kekScene) replica(store server.Store, kek attest.Secret, former []attest.Secret, lost ...string) *server.Server {
	f.Helper()
	c := f.config
	c.Store, c.KEK, c.FormerKEKs, c.LostKEKs = store, bytes.Clone(kek), former, lost
	c.Standing = storetest.Standing(f, f.memory, f.release)
	srv, err := server.New(c)
	if err != nil {
		f.Fatal(err)
	}
	srv.Appraise(f.appraise)
	return srv
}

// under returns the ids under which the store has disk keys, with how many.
func (f *kekScene) under() map[string]int {
	f.Helper()
	ms, err := f.memory.Machines(context.Background(), server.Query{})
	if err != nil {
		f.Fatal(err)
	}
	n := map[string]int{}
	for _, m := range ms {
		for _, k := range []*server.SealedKey{m.DiskKey, m.NextKey} {
			if k != nil {
				n[k.KEK]++
			}
		}
		for _, d := range m.Former {
			for _, k := range []*server.SealedKey{d.DiskKey, d.NextKey} {
				if k != nil {
					n[k.KEK]++
				}
			}
		}
	}
	return n
}

// same holds that every machine is released what it was before.
func (f *kekScene) same(srv *server.Server) {
	f.Helper()
	f.srv = srv
	f.listen()
	for i, b := range f.boxes {
		_, secrets, _ := f.reboot(b, f.disks[i])
		if !bytes.Equal(secrets.DiskKey, f.halves[i][0]) || !bytes.Equal(secrets.NextDiskKey, f.halves[i][1]) {
			f.Errorf("machine %d has other keys", i)
		}
	}
}

// rewraps returns the events of the rewraps in the log.
func (f *kekScene) rewraps() []audit.KEKRewrap {
	f.Helper()
	var all []audit.KEKRewrap
	f.kinds() // verifies the chain
	for e, err := range f.memory.Audit(context.Background(), 1) {
		if err != nil {
			f.Fatal(err)
		}
		if e.Kind == audit.KindKEK {
			var d audit.KEKRewrap
			if err := json.Unmarshal(e.Data, &d); err != nil {
				f.Fatal(err)
			}
			all = append(all, d)
		}
	}
	return all
}

func TestRewrapBringsEveryDiskKeyUnderThePresentKey(t *testing.T) {
	f := newKEKScene(t, 3)
	// One machine has a former disk, too.
	f.reinstall(f.boxes[0], otherDisk, time.Unix(5000, 0))
	f.set(func() { f.boot.Reset++ })
	if status, resp := f.attestFrom(f.boxes[0], otherDisk, false); status != 200 {
		t.Fatalf("HTTP %d, %s", status, codes(resp.Result))
	}
	_, secrets, _ := f.reboot(f.boxes[0], otherDisk)
	first := f.halves[0]
	f.halves[0], f.disks[0] = [2]attest.Secret{secrets.DiskKey, nil}, otherDisk

	kek := newKEK(t)
	srv := f.replica(f.memory, kek, []attest.Secret{f.old})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.same(srv) // before
	if err := srv.Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, present := server.KEKID(f.old), server.KEKID(kek)
	if want := map[string]int{present: 7}; !reflect.DeepEqual(f.under(), want) {
		t.Errorf("keys are under %v, want %v", f.under(), want)
	}
	want := []audit.KEKRewrap{
		{Event: audit.KEKStarted, To: present, From: []string{old}, Keys: 7},
		{Event: audit.KEKFinished, To: present, From: []string{old}, Keys: 7},
	}
	if got := f.rewraps(); !reflect.DeepEqual(got, want) {
		t.Errorf("the log has %+v\nwant %+v", got, want)
	}
	if err := srv.Rewrap(t.Context()); err != nil || len(f.rewraps()) != 2 {
		t.Errorf("a second rewrap: %v, the log has %+v", err, f.rewraps())
	}

	// The former key can go, and the former disk comes back.
	srv = f.replica(f.memory, kek, nil)
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.same(srv)
	guid := fmt.Sprintf("%08x%s", 1, disk[8:])
	f.reinstall(f.boxes[0], guid, time.Unix(6000, 0))
	f.halves[0], f.disks[0] = first, guid
	f.same(srv)
}

// A rewrap that is killed at any write is taken up by the next.
func TestARewrapThatIsCutOffGoesOn(t *testing.T) {
	f := newKEKScene(t, 4)
	kek := newKEK(t)
	start, err := f.memory.Machines(t.Context(), server.Query{})
	if err != nil {
		t.Fatal(err)
	}
	for _, persisted := range []bool{false, true} {
		for at := int64(1); ; at++ {
			// The records as they were; the log goes on.
			for _, m := range start {
				now, err := f.memory.Machine(t.Context(), m.ID)
				if err != nil {
					t.Fatal(err)
				}
				m.Revision = now.Revision
				if err := f.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
					t.Fatal(err)
				}
			}
			before := len(f.rewraps())
			var n atomic.Int64
			killed := errors.New("killed")
			store := &storetest.Faulty{Store: f.memory, Fail: func(string) (error, bool) {
				if n.Add(1) >= at {
					return killed, persisted && n.Load() == at
				}
				return nil, false
			}}
			err := f.replica(store, kek, []attest.Secret{f.old}).Rewrap(t.Context())
			if err == nil {
				if at < 6 { // the start, four machines, the end
					t.Errorf("only %d writes", at-1)
				}
				break
			}
			if !errors.Is(err, killed) {
				t.Fatalf("write %d: %v", at, err)
			}
			srv := f.replica(f.memory, kek, []attest.Secret{f.old})
			if err := srv.Rewrap(t.Context()); err != nil {
				t.Fatalf("after write %d: %v", at, err)
			}
			if want := map[string]int{server.KEKID(kek): 8}; !reflect.DeepEqual(f.under(), want) {
				t.Fatalf("after write %d keys are under %v", at, f.under())
			}
			if got := f.rewraps()[before:]; len(got) != 2 || got[0].Event != audit.KEKStarted || got[1].Event != audit.KEKFinished {
				t.Errorf("after write %d the log has %+v", at, got)
			}
		}
	}
	f.same(f.replica(f.memory, kek, nil))
}

// unread is a store whose machines must not be read.
type unread struct {
	server.Store
	t *testing.T
}

func (u unread) Machines(context.Context, server.Query) ([]*server.Machine, error) {
	u.t.Error("the machines were read")
	return nil, nil
}

// A service has nothing to look for in every record when it starts, unless there
// is a former key. What a rewrap that was cut off after its last key left open is
// still closed.
func TestWithoutAFormerKeyNoMachineIsRead(t *testing.T) {
	f := newKEKScene(t, 2)
	kek := newKEK(t)
	cut := errors.New("cut")
	var writes atomic.Int64
	store := &storetest.Faulty{Store: f.memory, Fail: func(string) (error, bool) {
		if writes.Add(1) > 3 { // the start and two machines
			return cut, false
		}
		return nil, false
	}}
	if err := f.replica(store, kek, []attest.Secret{f.old}).Rewrap(t.Context()); !errors.Is(err, cut) {
		t.Fatalf("got %v, want it cut off", err)
	}
	srv := f.replica(unread{f.memory, t}, kek, nil)
	if err := srv.Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.rewraps(); len(got) != 2 || got[1].Event != audit.KEKFinished {
		t.Errorf("the log has %+v", got)
	}
}

// Several replicas rewrap at once while machines change.
func TestRewrapsAtOnceLoseNothing(t *testing.T) {
	f := newKEKScene(t, 6)
	kek := newKEK(t)
	replicas := make([]*server.Server, 3)
	for i := range replicas {
		replicas[i] = f.replica(f.memory, kek, []attest.Secret{f.old})
	}
	f.srv = replicas[0]
	f.listen()
	var wg sync.WaitGroup
	for _, r := range replicas {
		wg.Go(func() {
			if err := r.Rewrap(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	f.set(func() { f.boot.Reset++ })
	for i, b := range f.boxes[:2] {
		wg.Go(func() {
			status, resp := f.attestFrom(b, f.disks[i], true)
			if status != 200 {
				t.Errorf("HTTP %d, %s", status, codes(resp.Result))
				return
			}
			if _, secrets, _ := f.open(resp); !bytes.Equal(secrets.DiskKey, f.halves[i][0]) || !bytes.Equal(secrets.NextDiskKey, f.halves[i][1]) {
				t.Errorf("machine %d has other keys", i)
			}
		})
	}
	wg.Wait()
	// A record that changed under every attempt is done by the next.
	if err := replicas[1].Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{server.KEKID(kek): 12}; !reflect.DeepEqual(f.under(), want) {
		t.Errorf("keys are under %v", f.under())
	}
	if got := f.rewraps(); len(got) != 2 {
		t.Errorf("the log has %+v, want one start and one end", got)
	}
	f.same(f.replica(f.memory, kek, nil))
}

func TestAMissingKEKRefusesAndNeverGivesANewKey(t *testing.T) {
	f := newKEKScene(t, 2)
	other := newKEK(t)
	srv := f.replica(f.memory, other, nil)
	before := f.kinds()
	err := srv.Start(t.Context())
	if !errors.Is(err, server.ErrNoKEK) || !strings.Contains(err.Error(), server.KEKID(f.old)) || !strings.Contains(err.Error(), "4 under key") {
		t.Errorf("start: %v", err)
	}
	if f.kinds() != before {
		t.Error("a start that was refused is in the log")
	}
	// One that was started before the key went out of use.
	f.srv = srv
	f.listen()
	was := f.machine(f.boxes[0])
	f.set(func() { f.boot.Reset++ })
	c := f.httpClient()
	req := f.answer(f.boxes[0], f.challenge(c, f.boxes[0]))
	req.Evidence.Disk = attest.Disk{GUID: f.disks[0], StateExists: true}
	var e api.Error
	if status := f.call(c, "POST", "https://"+f.nodes+api.PathEvidence, req, &e); status != 500 || e.Code != "kek-missing" || e.Hint == "" {
		t.Errorf("HTTP %d, %+v", status, e)
	}
	if m := f.machine(f.boxes[0]); !reflect.DeepEqual(m, was) {
		t.Errorf("record was %+v\nis %+v", was, m)
	}
	// One that is given up: the service serves the others, and a reinstall of
	// the machine gives it another disk and so another key.
	srv = f.replica(f.memory, other, nil, server.KEKID(f.old))
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.srv = srv
	f.listen()
	if err := srv.Rewrap(t.Context()); err != nil || len(f.rewraps()) != 0 {
		t.Errorf("rewrap: %v, %+v", err, f.rewraps())
	}
	f.reinstall(f.boxes[0], otherDisk, time.Unix(5000, 0))
	if status, resp := f.attestFrom(f.boxes[0], otherDisk, false); status != 200 {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
}

func TestADiskKeyThatDoesNotOpenIsLeftAsItIsAndTheOthersAreDone(t *testing.T) {
	f := newKEKScene(t, 3)
	m := f.machine(f.boxes[1])
	m.DiskKey.Box[15] ^= 1
	if err := f.memory.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	kek := newKEK(t)
	err := f.replica(f.memory, kek, []attest.Secret{f.old}).Rewrap(t.Context())
	if err == nil || !strings.Contains(err.Error(), "1 of 6 disk keys do not open") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(f.log.String(), m.ID.Short()) {
		t.Error("the log does not name the machine")
	}
	if want := map[string]int{server.KEKID(kek): 5, server.KEKID(f.old): 1}; !reflect.DeepEqual(f.under(), want) {
		t.Errorf("keys are under %v", f.under())
	}
	if got := f.rewraps(); len(got) != 1 || got[0].Event != audit.KEKStarted {
		t.Errorf("the log has %+v", got)
	}
	if after := f.machine(f.boxes[1]); !bytes.Equal(after.DiskKey.Box, m.DiskKey.Box) {
		t.Error("the key that does not open was changed")
	}
}

func TestOperatorsSeeWhenAFormerKeyCanGo(t *testing.T) {
	f := newKEKScene(t, 2)
	kek := newKEK(t)
	old, present := server.KEKID(f.old), server.KEKID(kek)
	f.srv = f.replica(f.memory, kek, []attest.Secret{f.old}, "00112233445566aa")
	f.listen()
	status := func() api.KEKStatus {
		t.Helper()
		var st api.KEKStatus
		if code := f.call(f.operator(), "GET", "https://"+f.operators+api.PathKEK, nil, &st); code != 200 {
			t.Errorf("HTTP %d", code)
		}
		return st
	}
	use := func(st api.KEKStatus, id string) api.KEKUse {
		for _, u := range st.Uses {
			if u.KEK == id {
				return u
			}
		}
		t.Errorf("%s is not in %+v", id, st)
		return api.KEKUse{}
	}
	st := status()
	if st.Present != present || !reflect.DeepEqual(st.Former, []string{old}) || len(st.Lost) != 1 || st.Rewrap != nil {
		t.Errorf("got %+v", st)
	}
	if got, want := use(st, old), (api.KEKUse{KEK: old, Role: api.KEKFormer, DiskKeys: 2, NextKeys: 2, Releases: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	var e api.Error
	if code := f.call(f.operator(), "POST", "https://"+f.operators+api.PathKEKRewrap, api.KEKRewrapRequest{}, &e); code != 400 {
		t.Errorf("no reason: HTTP %d", code)
	}
	if code := f.call(f.operator(), "POST", "https://"+f.operators+api.PathKEKRewrap, api.KEKRewrapRequest{Reason: "ticket 1"}, &st); code != 200 {
		t.Errorf("HTTP %d", code)
	}
	if st.Rewrap == nil || st.Rewrap.To != present || st.Rewrap.Finished.IsZero() || st.Rewrap.Keys != 4 {
		t.Errorf("got %+v", st.Rewrap)
	}
	if got := f.rewraps(); len(got) != 2 || got[0].By != "alice" || got[0].Reason != "ticket 1" {
		t.Errorf("the log has %+v", got)
	}
	// The releases age out, or are confirmed while the former key is there.
	if got := use(st, old); got.Keys() != 0 || got.Releases != 2 {
		t.Errorf("got %+v", got)
	}
	f.set(func() { f.offset = 2 * time.Hour })
	if got := use(status(), old); got.Releases != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestAConfirmationUnderAKeyThatIsGoneIsRefused(t *testing.T) {
	f := newKEKScene(t, 1)
	r, _, transport := f.reboot(f.boxes[0], f.disks[0])
	kek := newKEK(t)
	if err := f.replica(f.memory, kek, []attest.Secret{f.old}).Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.srv = f.replica(f.memory, kek, nil)
	f.listen()
	if status := f.confirm(r, transport, api.OutcomeRekeyed); status != 403 {
		t.Errorf("HTTP %d", status)
	}
	r, secrets, transport := f.reboot(f.boxes[0], f.disks[0])
	if !bytes.Equal(secrets.NextDiskKey, f.halves[0][1]) {
		t.Error("the next half is lost")
	}
	if status := f.confirm(r, transport, api.OutcomeRekeyed); status != 200 {
		t.Errorf("HTTP %d", status)
	}
}

func TestNewRefusesKEKs(t *testing.T) {
	a, b := newKEK(t), newKEK(t)
	for name, tt := range map[string]struct {
		kek    attest.Secret
		former []attest.Secret
		lost   []string
		want   string
	}{
		"none":                     {nil, nil, nil, "got 0 bytes"},
		"zeros":                    {make(attest.Secret, 32), nil, nil, "all bytes are zero"},
		"a short one":              {a[:31], nil, nil, "got 31 bytes"},
		"a short former one":       {a, []attest.Secret{b[:5]}, nil, "former key-encryption key: got 5 bytes"},
		"the same as former":       {a, []attest.Secret{a}, nil, "is there twice"},
		"a former one twice":       {a, []attest.Secret{b, b}, nil, "is there twice"},
		"a lost one that is no id": {a, nil, []string{"disk-kek"}, "not 16 hex digits"},
		"a lost one that is here":  {a, []attest.Secret{b}, []string{server.KEKID(b)}, "is lost and is here"},
	} {
		store, key := new(storetest.Memory), newKey(t)
		_, err := server.New(server.Config{
			Store: store, Standing: storetest.Standing(t, store, key), KEK: tt.kek, FormerKEKs: tt.former, LostKEKs: tt.lost, ReleaseKey: key, Log: slog.New(slog.DiscardHandler),
			Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return nil, nil },
		})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

// No byte of a key is in what is kept, logged or answered.
func TestKeysOfARotationStayWhereTheyBelong(t *testing.T) {
	f := newKEKScene(t, 1)
	kek := newKEK(t)
	f.srv = f.replica(f.memory, kek, []attest.Secret{f.old})
	if err := f.srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.listen()
	var text bytes.Buffer
	for _, get := range []string{api.PathMachines, api.PathMachines + "/" + f.boxes[0].id.String(), api.PathKEK, api.PathAudit} {
		_, b := f.raw(f.operator(), "GET", "https://"+f.operators+get, nil)
		text.Write(b)
	}
	if err := f.srv.Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	spoilt := f.machine(f.boxes[0])
	spoilt.DiskKey.KEK = server.KEKID(f.old) // does not open
	if err := f.memory.Commit(t.Context(), &server.Change{Machine: spoilt}); err != nil {
		t.Fatal(err)
	}
	err := f.srv.Rewrap(t.Context())
	if err == nil {
		t.Error("no error")
	}
	fmt.Fprint(&text, err, f.config, f.srv)
	ms, err := f.memory.Machines(t.Context(), server.Query{})
	if err != nil {
		t.Fatal(err)
	}
	text.Write(mustJSON(t, ms))
	for e, err := range f.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		text.Write(mustJSON(t, e))
	}
	text.WriteString(f.log.String())
	for name, secret := range map[string]attest.Secret{
		"present half": f.halves[0][0], "next half": f.halves[0][1], "former key-encryption key": f.old, "key-encryption key": kek,
	} {
		for form, b := range map[string][]byte{"raw": secret, "hex": fmt.Appendf(nil, "%x", []byte(secret)), "base64": bytes.Trim(mustJSON(t, []byte(secret)), `"`), "decimal": bytes.Trim(fmt.Append(nil, []byte(secret)), "[]")} {
			if bytes.Contains(text.Bytes(), b) {
				t.Errorf("the %s is kept or logged in %s", name, form)
			}
		}
	}
}
