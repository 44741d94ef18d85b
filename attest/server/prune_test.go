package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/image/manifest"
)

// pruning is a service that can prune, with a machine that was accepted once and
// refused three times after, two years ago.
func pruning(t *testing.T, change func(*server.Config)) (s *scene, b *box, gone []manifest.SHA256) {
	s = newScene(t, func(c *server.Config) {
		c.Pruner = c.Store.(*storetest.Faulty).Store.(*storetest.Memory)
		if change != nil {
			change(c)
		}
	})
	b = newBox(t, s.tpmCA)
	s.enrol(b)
	s.attest(b)
	s.set(func() { s.refuse = []attest.Finding{{Code: attest.CodeImageUnknown}} })
	for range 3 {
		s.attest(b)
		gone = append(gone, s.machine(b).LastEvidence)
	}
	s.set(func() { s.offset = 2 * 365 * 24 * time.Hour })
	return s, b, gone[:2]
}

func last(t *testing.T, c *operator.Client, req *api.PruneRequest) api.PruneReport {
	t.Helper()
	var r api.PruneReport
	for next, err := range c.Prune(t.Context(), req) {
		if err != nil {
			t.Fatal(err)
		}
		r = next
	}
	return r
}

func TestAnApproverPrunesAndTheLogSaysWhat(t *testing.T) {
	s, b, gone := pruning(t, nil)
	c, year := s.operatorClient(), 365*24*time.Hour
	st, err := c.Store(t.Context(), year)
	if err != nil || st.Evidence.Count != 4 || st.Prune == nil || st.Prune.Removed != 2 || st.Prune.Kept[api.NeedLast] != 2 || st.Machines.Count != 1 || st.OpenReleases != 1 {
		t.Fatalf("%+v, %v", st, err)
	}
	if st, err := c.Store(t.Context(), 0); err != nil || st.Prune != nil {
		t.Errorf("%+v, %v", st, err)
	}
	was := s.kinds()
	if r := last(t, c, &api.PruneRequest{Older: int64(year / time.Second), DryRun: true}); r.Removed != 2 || !r.Done || s.kinds() != was {
		t.Errorf("a dry run: %+v", r)
	}
	if r := last(t, c, &api.PruneRequest{Older: int64(year / time.Second), Reason: "retention"}); r.Removed != 2 || !r.Done || r.Kept[api.NeedLast] != 2 {
		t.Errorf("%+v", r)
	}
	if got := s.kinds(); got != was+" store.prune" {
		t.Errorf("the log has %s, want %s and store.prune", got, was)
	}
	for e, err := range s.memory.Audit(t.Context(), 1) {
		var d audit.Prune
		if err != nil || e.Kind != audit.KindPrune {
			continue
		}
		if err := json.Unmarshal(e.Data, &d); err != nil || d.By != "bob" || d.Reason != "retention" || !slices.Equal(sorted(d.Evidence), sorted(gone)) {
			t.Errorf("entry %+v, %v", d, err)
		}
	}
	// Who asks for what is gone is told when it went, everywhere.
	for what, ask := range map[string]func() error{
		"evidence":    func() error { _, err := c.Evidence(t.Context(), gone[0]); return err },
		"explanation": func() error { _, err := c.Explanation(t.Context(), gone[0], nil); return err },
	} {
		var answer *operator.Error
		if err := ask(); !errors.As(err, &answer) || answer.Status != http.StatusGone || answer.Answer.Code != api.CodePruned ||
			!strings.Contains(answer.Answer.Message, "was pruned on "+s.now().UTC().Format("2006-01-02")) || !strings.Contains(answer.Answer.Message, "by bob") {
			t.Errorf("%s: %v", what, err)
		}
	}
	var never *operator.Error
	if _, err := c.Evidence(t.Context(), manifest.SHA256{1}); !errors.As(err, &never) || never.Status != http.StatusNotFound {
		t.Errorf("what was never there: %v", err)
	}
	m := s.machine(b)
	for _, kept := range []manifest.SHA256{m.LastEvidence, m.AcceptedEvidence} {
		if _, err := c.Evidence(t.Context(), kept); err != nil {
			t.Error(err)
		}
	}
	// And so does the report of an auditor, whatever time it is of.
	r, err := audit.Build(s.memory.Audit(t.Context(), 1), audit.ReportOptions{To: s.now().Add(-time.Hour), Generated: s.now()})
	if err != nil || len(r.Machines) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, v := range r.Machines[0].Verdicts {
		if want := slices.Contains(gone, v.Evidence); (v.Pruned != nil) != want || want && v.Pruned.By != "bob" {
			t.Errorf("evidence %s: %+v, want it pruned: %t", v.Evidence, v.Pruned, want)
		}
	}
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil || strings.Count(page.String(), "(pruned on ") != 2 {
		t.Errorf("%v: the page does not say what was pruned", err)
	}
}

func sorted(d []manifest.SHA256) []string {
	var out []string
	for _, x := range d {
		out = append(out, x.String())
	}
	slices.Sort(out)
	return out
}

func TestPruneRefusesWhatIsTooYoungAndWhoMayNot(t *testing.T) {
	s, _, _ := pruning(t, nil)
	for _, older := range []int64{-1, 0, 24*3600 - 1, 1 << 62} {
		var answer *operator.Error
		for _, err := range s.operatorClient().Prune(t.Context(), &api.PruneRequest{Older: older}) {
			if !errors.As(err, &answer) || answer.Status != http.StatusBadRequest {
				t.Errorf("%d: %v", older, err)
			}
		}
		if answer == nil {
			t.Errorf("%d was taken", older)
		}
	}
	for role, want := range map[string]int{"viewer": 403, "operator": 403, "auditor": 403, "approver": 200} {
		c := s.httpClient(s.identity("eve", role))
		if status := s.call(c, "POST", "https://"+s.operators+api.PathStore+"/prune", &api.PruneRequest{Older: 24 * 3600, DryRun: true}, new(api.PruneReport)); status != want {
			t.Errorf("%s: status %d, want %d", role, status, want)
		}
		if status := s.call(c, "GET", "https://"+s.operators+api.PathStore+"?older=x", nil, nil); status != 400 {
			t.Errorf("%s: status %d, want 400", role, status)
		}
	}
	if u, err := s.memory.Usage(t.Context()); err != nil || u.Evidence.Count != 4 {
		t.Errorf("%+v, %v", u, err)
	}
}

// What was pruned is told of a machine whose last evidence it was: that cannot
// be, unless its record was restored from a copy.
func TestWhatIfTellsEvidenceThatWasPruned(t *testing.T) {
	f := newFleet(t)
	b := f.box(true)
	f.attest(b)
	m := f.machine(&box{id: b.id})
	was := m.LastEvidence
	m.LastEvidence, m.AcceptedEvidence = manifest.SHA256{}, manifest.SHA256{}
	ctx := t.Context()
	set := func() {
		t.Helper()
		if err := f.memory.Commit(ctx, &server.Change{Machine: m}); err != nil {
			t.Fatal(err)
		}
		m.Revision++
	}
	set()
	r, err := f.memory.Release(ctx, m.ReleaseID)
	if err != nil {
		t.Fatal(err)
	}
	r.Outcome = "unlocked"
	if err := f.memory.Commit(ctx, &server.Change{Confirm: r}); err != nil {
		t.Fatal(err)
	}
	report, err := server.Prune(ctx, f.memory, server.PruneOrder{Before: time.Now().Add(time.Hour), By: "ops", Now: time.Now})
	if err != nil || report.Removed != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	m.LastEvidence, m.AcceptedEvidence = was, was
	set()
	rows, _ := f.whatIf()
	if row := rows[b.id]; row == nil || row.Effect != api.EffectFailed || !strings.Contains(row.Error, "was pruned: audit entry") {
		t.Errorf("%+v", row)
	}
}

func TestRetentionPrunesByItself(t *testing.T) {
	s, _, gone := pruning(t, func(c *server.Config) { c.Retention = 400 * 24 * time.Hour })
	for range 2 { // the first time it only notes the clock
		if err := s.srv.RetainOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range gone {
		if _, err := s.memory.Evidence(t.Context(), d); !errors.As(err, new(*server.PrunedError)) {
			t.Errorf("got %v, want it pruned", err)
		}
	}
	if !strings.HasSuffix(s.kinds(), " store.prune") {
		t.Errorf("the log has %s", s.kinds())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.srv.Retain(ctx); err != nil {
		t.Error(err)
	}
	// Without one nothing goes.
	s, _, _ = pruning(t, nil)
	if err := s.srv.RetainOnce(t.Context()); err != nil {
		t.Error(err)
	}
	if u, err := s.memory.Usage(t.Context()); err != nil || u.Evidence.Count != 4 {
		t.Errorf("%+v, %v", u, err)
	}
}

// A clock that jumps ahead must not have evidence removed that is not old.
func TestAClockThatIsFarAheadPrunesNothing(t *testing.T) {
	const day = 24 * time.Hour
	s, _, _ := pruning(t, func(c *server.Config) { c.Retention = 4000 * day })
	ctx, c := t.Context(), s.operatorClient()
	base := s.offset
	at := func(d time.Duration) { s.set(func() { s.offset = base + d }) }
	count := func() int64 {
		t.Helper()
		u, err := s.memory.Usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return u.Evidence.Count
	}
	order := func(right bool) error {
		req := &api.PruneRequest{Older: int64(4000 * day / time.Second), ClockIsRight: right}
		for _, err := range c.Prune(ctx, req) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	for range 2 {
		if err := s.srv.RetainOnce(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n != 4 {
		t.Fatalf("%d pieces of evidence, want 4", n)
	}
	at(server.MaxClockStep - time.Minute)
	if err := s.srv.RetainOnce(ctx); err != nil {
		t.Errorf("within what is plausible: %v", err)
	}
	before := s.kinds()
	for _, ahead := range []time.Duration{2*server.MaxClockStep + time.Minute, 5000 * day, 6000 * day} { // also the next days
		at(ahead)
		var clock *server.ClockError
		if err := s.srv.RetainOnce(ctx); !errors.As(err, &clock) || !clock.Now.After(clock.Last.Add(server.MaxClockStep)) || !strings.Contains(err.Error(), "--clock-is-right") {
			t.Errorf("%v ahead: got %v", ahead, err)
		}
		if s.srv.ClockPlausible(ctx) == nil {
			t.Errorf("%v ahead: the check passes", ahead)
		}
		var answer *operator.Error
		if err := order(false); !errors.As(err, &answer) || answer.Status != http.StatusConflict || !strings.Contains(answer.Answer.Hint, "--clock-is-right") {
			t.Errorf("%v ahead: an approver's order: %v", ahead, err)
		}
	}
	if n := count(); n != 4 || s.kinds() != before {
		t.Errorf("%d pieces of evidence, want 4; the log has %s", n, s.kinds())
	}
	// The clock is right again: it goes on by itself.
	at(0)
	if err := s.srv.RetainOnce(ctx); err != nil || s.srv.ClockPlausible(ctx) != nil {
		t.Errorf("got %v", err)
	}
	if n := count(); n != 4 {
		t.Errorf("%d pieces of evidence, want 4", n)
	}
	// Or so much time has passed, and a person says so.
	at(7000 * day)
	if err := s.srv.RetainOnce(ctx); err == nil {
		t.Error("no error")
	}
	if err := order(true); err != nil || s.srv.ClockPlausible(ctx) != nil {
		t.Errorf("got %v", err)
	}
	if n := count(); n >= 4 {
		t.Errorf("%d pieces of evidence, want fewer than 4", n)
	}
	at(7001 * day)
	if err := s.srv.RetainOnce(ctx); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsNotedOfTheClock(t *testing.T) {
	ctx, store, now := t.Context(), new(storetest.Memory), time.Now()
	for i, c := range []struct {
		at           time.Duration
		right, first bool
		fails        bool
	}{
		{0, false, true, false},
		{time.Hour, false, false, false},
		{server.MaxClockStep + time.Hour, false, false, false},
		{2*server.MaxClockStep + 2*time.Hour, false, false, true},
		{-1000 * time.Hour, false, false, false}, // it was set back
		{0, false, false, true},                  // for longer than that
		{0, true, false, false},
		{100000 * time.Hour, true, false, false},
		{100000 * time.Hour, false, false, false},
	} {
		first, err := server.NotePruneClock(ctx, store, now.Add(c.at), c.right)
		if first != c.first || errors.As(err, new(*server.ClockError)) != c.fails || !c.fails && err != nil {
			t.Errorf("step %d: first %t, %v", i, first, err)
		}
	}
	d, err := store.Document(ctx, "prune-clock", "last")
	if err != nil {
		t.Fatal(err)
	}
	d.Body = []byte(`{"time":7}`)
	if err := store.Commit(ctx, &server.Change{Documents: []*server.Document{d}}); err != nil {
		t.Fatal(err)
	}
	if _, err := server.NotePruneClock(ctx, store, now, false); err == nil {
		t.Error("what is noted cannot be read, and no error")
	}
	if _, err := server.NotePruneClock(ctx, store, now, true); err != nil {
		t.Errorf("a person's word: %v", err)
	}
	faulty := &storetest.Faulty{Store: store, Fail: func(method string) (error, bool) {
		return errors.New("broken"), false
	}}
	if _, err := server.NotePruneClock(ctx, faulty, now, true); err == nil {
		t.Error("the store is broken, and no error")
	}
}

// earlier is a store with evidence of an earlier program, so many pages of it.
type earlier struct {
	server.Pruner
	pages int
}

func (e *earlier) IndexEvidence(context.Context, int) (int, error) {
	if e.pages == 0 {
		return 0, nil
	}
	e.pages--
	return 1, nil
}

// A viewer may ask what pruning would remove, and a dry run is one.
func TestOnlyWhoPrunesHasTheStoreWritten(t *testing.T) {
	e := new(earlier)
	s, _, _ := pruning(t, func(c *server.Config) { e.Pruner, c.Pruner = c.Pruner, e })
	e.pages = 3
	if st, err := s.operatorClient().Store(t.Context(), 400*24*time.Hour); err != nil || st.Prune == nil || st.Prune.Removed == 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	req := &api.PruneRequest{Older: 400 * 24 * 3600, DryRun: true}
	if r := last(t, s.operatorClient(), req); r.Removed == 0 || e.pages != 3 {
		t.Errorf("%+v, %d of 3 pages are left", r, e.pages)
	}
	if err := s.srv.RetainOnce(t.Context()); err != nil || e.pages != 0 { // without a retention, too
		t.Errorf("%d pages are left, %v", e.pages, err)
	}
	e.pages = 3
	req.DryRun = false
	if last(t, s.operatorClient(), req); e.pages != 0 {
		t.Errorf("%d pages are left", e.pages)
	}
}

func TestARetentionNeedsAPrunerAndADay(t *testing.T) {
	s := newScene(t, nil)
	for _, c := range []server.Config{{Retention: 48 * time.Hour}, {Retention: time.Hour, Pruner: s.memory}, {Retention: -48 * time.Hour, Pruner: s.memory}} {
		c.Store, c.ReleaseKey, c.KEK = s.memory, s.release, bytes.Repeat([]byte{1}, server.KEKSize)
		c.Policy = func(context.Context, attest.MachineID) (*attest.Policy, error) { return nil, nil }
		c.Log, c.Standing = slog.New(slog.DiscardHandler), storetest.Standing(t, s.memory, s.release)
		if _, err := server.New(c); err == nil || !strings.Contains(err.Error(), "retention") {
			t.Errorf("%v: %v", c.Retention, err)
		}
	}
}

// Lists come in pages, which the client follows.
func TestListsComeInPages(t *testing.T) {
	s := newScene(t, nil)
	c, ctx := s.operatorClient(), t.Context()
	const n = 2*api.MaxPage + 3
	for i := range n {
		id := attest.MachineIDOf(fmt.Append(nil, i))
		err := s.memory.Commit(ctx, &server.Change{
			Machine:   &server.Machine{Machine: api.Machine{ID: id, NodeName: "n" + id.String(), State: []attest.EnrolmentState{attest.StateEnrolled, attest.StateRevoked}[i%2]}},
			Documents: []*server.Document{{Kind: "expected", Name: id.String(), Body: fmt.Appendf(nil, `{"serial":"S%d","ek":"%s"}`, i, id)}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	machines, err := c.Machines(ctx, attest.StateUnknown)
	if err != nil || len(machines) != n || !slices.IsSortedFunc(machines, func(a, b api.Machine) int { return strings.Compare(a.ID.String(), b.ID.String()) }) {
		t.Errorf("%d machines, %v", len(machines), err)
	}
	if revoked, err := c.Machines(ctx, attest.StateRevoked); err != nil || len(revoked) != n/2 {
		t.Errorf("%d revoked machines, %v; want %d", len(revoked), err, n/2)
	}
	seen := map[manifest.SHA256]bool{}
	for x, err := range c.AllExpected(ctx) {
		if err != nil || seen[x.EK] {
			t.Fatalf("%s is there twice, or %v", x.EK, err)
		}
		seen[x.EK] = true
	}
	if len(seen) != n {
		t.Errorf("%d machines are expected, want %d", len(seen), n)
	}
	for _, path := range []string{api.PathMachines, api.PathExpected} {
		var page []json.RawMessage
		if status := s.call(s.operator(), "GET", "https://"+s.operators+path+"?limit=3", nil, &page); status != 200 || len(page) != 3 {
			t.Errorf("%s: status %d, %d records", path, status, len(page))
		}
		page = nil
		if s.call(s.operator(), "GET", "https://"+s.operators+path, nil, &page); len(page) != api.MaxPage {
			t.Errorf("%s: %d records, want %d", path, len(page), api.MaxPage)
		}
		for _, bad := range []string{"limit=0", "limit=1001", "limit=x", "after=x"} {
			if status := s.call(s.operator(), "GET", "https://"+s.operators+path+"?"+bad, nil, nil); status != 400 {
				t.Errorf("%s?%s: status %d, want 400", path, bad, status)
			}
		}
	}
}
