package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/image/manifest"
)

func newMonitor() *Monitor {
	return New(Config{Version: "1.2.3", Log: slog.New(slog.DiscardHandler), Clock: time.Now})
}

func get(t testing.TB, m *Monitor, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(nil).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

// scrape parses the metrics with Prometheus's own parser, and returns each
// series as text with its value.
func scrape(t testing.TB, m *Monitor) map[string]float64 {
	t.Helper()
	status, text := get(t, m, "/metrics")
	if status != 200 {
		t.Fatalf("HTTP %d: %s", status, text)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for name, f := range families {
		for _, one := range f.GetMetric() {
			var labels []string
			for _, l := range one.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			key := name
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case one.GetCounter() != nil:
				all[key] = one.GetCounter().GetValue()
			case one.GetGauge() != nil:
				all[key] = one.GetGauge().GetValue()
			case one.GetHistogram() != nil:
				all[key] = float64(one.GetHistogram().GetSampleCount())
			}
		}
	}
	return all
}

func TestWhatHappensIsCounted(t *testing.T) {
	m := newMonitor()
	m.Request("node", "POST /v1/challenge", 200, 3*time.Millisecond)
	m.Request("node", "POST /v1/challenge", 429, time.Millisecond)
	m.Verdict(&attest.Result{Allowed: true})
	m.Verdict(&attest.Result{Findings: []attest.Finding{{Code: attest.CodeCmdline}, {Code: attest.CodeCmdline}, {Code: attest.CodeQuoteNonce}}})
	m.Limited("node", "address")
	m.Key("disk-kek", "d34becaa8330cdea")
	memory := new(storetest.Memory)
	store := m.Store(memory)
	if _, err := store.Machine(t.Context(), attest.MachineID{1}); !errors.Is(err, server.ErrNotFound) {
		t.Fatal(err)
	}
	for range 3 {
		if err := store.Commit(t.Context(), &server.Change{Events: []audit.Event{{Time: time.Now(), Kind: audit.KindStart, Data: audit.Start{}}, {Time: time.Now(), Kind: audit.KindAlarm, Data: audit.Alarm{Name: audit.AlarmTokenMisused}}}}); err != nil {
			t.Fatal(err)
		}
	}
	for range store.Audit(t.Context(), 1) {
	}
	tokens := m.Tokens(minter{})
	if _, err := tokens.Mint(t.Context(), "box-1"); err == nil {
		t.Fatal("no error")
	}
	got := scrape(t, m)
	for series, want := range map[string]float64{
		`sealift_http_requests_total{api="node",route="POST /v1/challenge",status="200"}`: 1,
		`sealift_http_requests_total{api="node",route="POST /v1/challenge",status="429"}`: 1,
		`sealift_http_request_duration_seconds{api="node",route="POST /v1/challenge"}`:    2,
		`sealift_verdicts_total{outcome="allowed"}`:                                       1,
		`sealift_verdicts_total{outcome="refused"}`:                                       1,
		`sealift_findings_total{code="` + string(attest.CodeCmdline) + `"}`:               1,
		`sealift_findings_total{code="` + string(attest.CodeQuoteNonce) + `"}`:            1,
		`sealift_limited_total{api="node",limit="address"}`:                               1,
		`sealift_audit_events_total{kind="service.start"}`:                                3,
		`sealift_audit_events_total{kind="alarm"}`:                                        3,
		`sealift_alarms_total{name="token.misused"}`:                                      3,
		`sealift_alarms_total{name="operator.revoked"}`:                                   0,
		`sealift_store_duration_seconds{operation="commit"}`:                              3,
		`sealift_store_duration_seconds{operation="machine"}`:                             1,
		`sealift_store_duration_seconds{operation="audit"}`:                               1,
		`sealift_store_errors_total{operation="machine"}`:                                 0,
		`sealift_token_duration_seconds{operation="mint",result="error"}`:                 1,
		`sealift_key_info{id="d34becaa8330cdea",use="disk-kek"}`:                          1,
		`sealift_draining`: 0,
	} {
		if v, there := got[series]; !there || v != want {
			t.Errorf("%s is %v, there %t; want %v", series, v, there, want)
		}
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if got[name] == 0 {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestOnePolicyIsShown(t *testing.T) {
	m := newMonitor()
	m.Policy("fleet", 7, "aa")
	m.Policy("fleet", 8, "bb")
	m.PolicyConfirmed(time.UnixMilli(1_700_000_000_250))
	got := scrape(t, m)
	for series, want := range map[string]float64{
		`sealift_policy_info{digest="bb",name="fleet",version="8"}`: 1, `sealift_policy_confirmed_timestamp_seconds`: 1_700_000_000.25,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v", series, got[series], want)
		}
	}
	if _, there := got[`sealift_policy_info{digest="aa",name="fleet",version="7"}`]; there {
		t.Error("the former policy is still shown")
	}
}

func TestAPassOverTheLogIsShown(t *testing.T) {
	m := newMonitor()
	const passed, verified, all = `sealift_audit_pass_completed_timestamp_seconds`, `sealift_audit_pass_verified_entries`, `sealift_audit_pass_entries`
	for series, v := range scrape(t, m) {
		if (series == passed || series == verified || series == all) && v != 0 {
			t.Errorf("before: %s is %v", series, v)
		}
	}
	m.AuditPass(400, 1000)
	m.AuditPassed(time.UnixMilli(1_700_000_000_250))
	got := scrape(t, m)
	for series, want := range map[string]float64{passed: 1_700_000_000.25, verified: 400, all: 1000} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v", series, got[series], want)
		}
	}
}

func TestEachKindOfEntryIsCountedFromTheStart(t *testing.T) {
	got := scrape(t, newMonitor())
	for _, k := range audit.Kinds() {
		if v, there := got[fmt.Sprintf("sealift_audit_events_total{kind=%q}", k)]; !there || v != 0 {
			t.Errorf("%s is %v, there %t", k, v, there)
		}
	}
}

type minter struct{}

func (minter) Mint(context.Context, string) (*server.Token, error) {
	return nil, errors.New("no cluster")
}
func (minter) Revoke(context.Context, string) error { return nil }

func TestStoreErrorsAreCountedAndAnswersAreNot(t *testing.T) {
	m := newMonitor()
	store := m.Store(new(storetest.Memory))
	do := func() {
		_, _ = store.Machines(t.Context(), server.Query{})
		_, _ = store.Release(t.Context(), "x")
		_, _ = store.Evidence(t.Context(), [32]byte{1})
		_, _ = store.Document(t.Context(), "k", "n")
		_, _ = store.Documents(t.Context(), "k", "", 0)
		_, _ = store.Machine(t.Context(), attest.MachineID{1})
		_ = store.Commit(t.Context(), &server.Change{})
		for range store.Audit(t.Context(), 1) {
		}
	}
	do()
	store = m.Store(broken{err: context.Canceled})
	do()
	sum := func() (n float64) {
		for series, v := range scrape(t, m) {
			if strings.HasPrefix(series, "sealift_store_errors_total") {
				n += v
			}
		}
		return n
	}
	if n := sum(); n != 0 {
		t.Errorf("%v errors are counted, want none", n)
	}
	store = m.Store(broken{err: errors.New("disk on fire")})
	do()
	if n := sum(); n != float64(len(storeOperations())) {
		t.Errorf("%v errors are counted, want one of each of %v", n, storeOperations())
	}
}

// broken is a store that can do nothing.
type broken struct {
	server.Store // for what is not below
	err          error
}

func (b broken) Machine(context.Context, attest.MachineID) (*server.Machine, error) {
	return nil, b.err
}
func (b broken) Machines(context.Context, server.Query) ([]*server.Machine, error) { return nil, b.err }
func (b broken) Commit(context.Context, *server.Change) error                      { return b.err }
func (b broken) Release(context.Context, string) (*server.Release, error)          { return nil, b.err }
func (b broken) Evidence(context.Context, manifest.SHA256) ([]byte, error)         { return nil, b.err }
func (b broken) Document(context.Context, string, string) (*server.Document, error) {
	return nil, b.err
}
func (b broken) Documents(context.Context, string, string, int) ([]*server.Document, error) {
	return nil, b.err
}
func (b broken) Audit(context.Context, int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) { yield(audit.Entry{}, b.err) }
}

// counted is a store that counts how often machines are asked for.
type counted struct {
	server.Store
	n *atomic.Int64
}

func (c counted) Machines(context.Context, server.Query) ([]*server.Machine, error) {
	c.n.Add(1)
	return nil, errors.New("down")
}

func machines(t *testing.T, store server.Store, n int, state attest.EnrolmentState) {
	t.Helper()
	for i := range n {
		id := attest.MachineID{byte(i), byte(i >> 8), byte(len(state))}
		err := store.Commit(t.Context(), &server.Change{Machine: &server.Machine{Machine: api.Machine{ID: id, NodeName: "box-" + id.String(), State: state}},
			Events: []audit.Event{{Time: time.Now(), Kind: audit.KindState, Data: audit.StateChange{}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// failing cannot read the records of machines that are pending.
type failing struct{ server.Store }

func (f failing) Machines(ctx context.Context, q server.Query) ([]*server.Machine, error) {
	ms, err := f.Store.Machines(ctx, q)
	for _, m := range ms {
		if m.State == attest.StatePending {
			m.Damaged = "noise"
		}
	}
	return ms, err
}

func TestMachinesAreCountedByState(t *testing.T) {
	m, memory := newMonitor(), new(storetest.Memory)
	machines(t, memory, countPage, attest.StateEnrolled)
	machines(t, memory, 3, attest.StateRevoked)
	if err := memory.Commit(t.Context(), &server.Change{Machine: &server.Machine{Machine: api.Machine{ID: attest.MachineID{31: 1}, NodeName: "x", State: attest.StatePending}}}); err != nil {
		t.Fatal(err)
	}
	head, err := m.count(t.Context(), failing{memory}, 0)
	if err != nil || head != countPage+3 {
		t.Fatalf("head is %d, %v", head, err)
	}
	got := scrape(t, m)
	for series, want := range map[string]float64{
		`sealift_machines{state="enrolled"}`: countPage, `sealift_machines{state="revoked"}`: 3, `sealift_machines{state="pending"}`: 0, `sealift_machines{state="damaged"}`: 1,
		`sealift_machines{state="quarantined"}`: 0, `sealift_audit_head`: countPage + 3,
	} {
		if got[series] != want {
			t.Errorf("%s is %v, want %v", series, got[series], want)
		}
	}
}

func TestTheHeadOfTheLogIsFound(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 100} {
		memory := new(storetest.Memory)
		machines(t, memory, n, attest.StateEnrolled)
		for known := range n + 1 {
			if head, err := headOf(t.Context(), memory, int64(known)); err != nil || head != int64(n) {
				t.Fatalf("of %d entries, %d known: head %d, %v", n, known, head, err)
			}
		}
	}
}

func TestCountingRestsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMonitor()
		n := new(atomic.Int64)
		store := counted{new(storetest.Memory), n}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); m.Count(ctx, store) }()
		synctest.Wait()
		time.Sleep(10 * countPause)
		synctest.Wait()
		cancel()
		<-done
		if n.Load() != 11 {
			t.Errorf("counted %d times in ten pauses, want 11", n.Load())
		}
	})
}

func health(t *testing.T, m *Monitor) (int, Health) {
	t.Helper()
	status, body := get(t, m, "/readyz")
	var h Health
	if err := json.Unmarshal([]byte(body), &h); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return status, h
}

func TestReadiness(t *testing.T) {
	var log bytes.Buffer
	now := time.Unix(1000, 0)
	m := New(Config{Version: "1", Log: slog.New(slog.NewTextHandler(&log, nil)), Clock: func() time.Time { return now }})
	var broken error
	tried := 0
	m.Require("store", func(context.Context) error { tried++; return broken })
	m.Prefer("cluster", m.TokensMinted())
	later := func() { now = now.Add(checkKept) }

	if status, h := health(t, m); status != 200 || !h.Ready || h.Checks["store"] != "ok" || h.Checks["cluster"] != "ok" {
		t.Errorf("HTTP %d, %+v", status, h)
	}
	for range 10 {
		health(t, m)
	}
	if tried != 1 {
		t.Errorf("the store was tried %d times at once, want once", tried)
	}
	later()
	_, _ = m.Tokens(minter{}).Mint(t.Context(), "box-1")
	if status, h := health(t, m); status != 200 || !h.Ready || h.Checks["cluster"] != "degraded" {
		t.Errorf("without the cluster: HTTP %d, %+v", status, h)
	}
	later()
	broken = errors.New("secret path /var/x")
	if status, h := health(t, m); status != 503 || h.Ready || h.Checks["store"] != "failed" {
		t.Errorf("without the store: HTTP %d, %+v", status, h)
	}
	if _, body := get(t, m, "/readyz"); strings.Contains(body, "/var/x") || !strings.Contains(log.String(), "/var/x") {
		t.Errorf("why it failed belongs into the log alone: %s; %s", body, log.String())
	}
	if v := scrape(t, m)[`sealift_check_ok{check="store"}`]; v != 0 {
		t.Errorf("sealift_check_ok is %v", v)
	}
	later()
	broken = nil
	if status, _ := health(t, m); status != 200 {
		t.Errorf("mended: HTTP %d", status)
	}
	before := tried
	m.Starting("reading the log")
	if status, h := health(t, m); status != 503 || h.Ready || h.Reason != "starting: reading the log" || h.Checks["serving"] != "failed" {
		t.Errorf("starting: HTTP %d, %+v", status, h)
	}
	if status, _ := get(t, m, "/healthz"); status != 200 {
		t.Errorf("healthz while it starts: HTTP %d", status)
	}
	now = now.Add(time.Minute)
	if health(t, m); tried != before {
		t.Error("a check was made of a service that starts")
	}
	m.Serving()
	if status, h := health(t, m); status != 200 || !h.Ready || h.Reason != "" || h.Checks["serving"] != "ok" {
		t.Errorf("serving: HTTP %d, %+v", status, h)
	}
	m.Drain()
	if status, h := health(t, m); status != 503 || h.Ready || h.Reason != "ending" {
		t.Errorf("draining: HTTP %d, %+v", status, h)
	}
	if status, body := get(t, m, "/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("healthz: HTTP %d, %s", status, body)
	}
}

func TestTheStoreIsWrittenTo(t *testing.T) {
	var fail error
	memory := new(storetest.Memory)
	store := &storetest.Faulty{Store: memory, Fail: func(method string) (error, bool) {
		if method == "Commit" {
			return fail, false
		}
		return nil, false
	}}
	written := StoreWritten(store, time.Now)
	for range 3 {
		if err := written(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := memory.Document(t.Context(), "health", "written"); err != nil || d.Revision != 3 {
		t.Errorf("document %+v, %v", d, err)
	}
	fail = server.ErrConflict // another replica was first
	if err := written(t.Context()); err != nil {
		t.Error(err)
	}
	fail = errors.New("read-only file system")
	if err := written(t.Context()); err == nil {
		t.Error("a store that cannot be written passes")
	}
}

func TestMetricsMayNeedALogin(t *testing.T) {
	m := newMonitor()
	h := m.Handler(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	})
	for path, want := range map[string]int{"/metrics": 403, "/healthz": 200, "/readyz": 200, "/": 404, "/debug/pprof/": 404} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("%s: HTTP %d, want %d", path, w.Code, want)
		}
	}
}

func promtool(t *testing.T) string {
	t.Helper()
	tool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return tool
}

// The metrics are as Prometheus's own tool wants them: names, units, help.
func TestPromtoolTakesTheMetrics(t *testing.T) {
	tool := promtool(t)
	m := newMonitor()
	m.Request("node", "POST /v1/challenge", 200, time.Millisecond)
	_, text := get(t, m, "/metrics")
	var ours strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, "sealift_") {
			ours.WriteString(line)
		}
	}
	cmd := exec.Command(tool, "check", "metrics")
	cmd.Stdin = strings.NewReader(ours.String())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// The alerts that the documentation suggests are good rules, and name metrics
// that there are.
func TestTheSuggestedAlertsAreGood(t *testing.T) {
	const file = "../../../../docs/alerts.yaml"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := newMonitor()
	m.Request("node", "none", 200, 0)
	m.Limited("node", "address")
	m.Key("disk-kek", "x")
	m.Require("store", func(context.Context) error { return nil })
	m.Verdict(&attest.Result{Findings: []attest.Finding{{Code: "x"}}})
	_, _ = m.Tokens(minter{}).Mint(t.Context(), "x")
	_ = m.Store(new(storetest.Memory)).Commit(t.Context(), &server.Change{})
	if _, err := m.count(t.Context(), new(storetest.Memory), 0); err != nil {
		t.Fatal(err)
	}
	_, text := get(t, m, "/metrics")
	words := strings.FieldsFunc(string(b), func(r rune) bool {
		return !(r == '_' || r >= 'a' && r <= 'z')
	})
	n := 0
	for _, w := range words {
		if strings.HasPrefix(w, "sealift_") {
			n++
			if !strings.Contains(text, "\n"+w+"{") && !strings.Contains(text, "\n"+w+" ") {
				t.Errorf("%s names %s, which there is not", file, w)
			}
		}
	}
	if n < 8 {
		t.Errorf("%s names %d metrics", file, n)
	}
	tool := promtool(t)
	if out, err := exec.Command(tool, "check", "rules", file).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("SUCCESS")) {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
	if out, err := exec.Command(tool, "test", "rules", "testdata/alerts_test.yaml").CombinedOutput(); err != nil {
		t.Errorf("promtool test rules: %v\n%s", err, out)
	}
}

// Every metric is in the table of the documentation.
func TestTheDocumentationHasEveryMetric(t *testing.T) {
	b, err := os.ReadFile("../../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := newMonitor().registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	// Those without a series yet are not gathered.
	names := map[string]bool{"sealift_http_requests_total": true, "sealift_http_request_duration_seconds": true, "sealift_findings_total": true,
		"sealift_limited_total": true, "sealift_store_duration_seconds": true, "sealift_token_duration_seconds": true,
		"sealift_machines": true, "sealift_check_ok": true, "sealift_key_info": true, "sealift_policy_info": true}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "sealift_") {
			names[f.GetName()] = true
		}
	}
	for name := range names {
		if !strings.Contains(string(b), "| `"+name+"` |") {
			t.Errorf("docs/operations.md has no %s", name)
		}
	}
}

func BenchmarkScrape(b *testing.B) {
	m := newMonitor()
	for i := range 40 {
		m.Request("node", fmt.Sprintf("POST /v1/%d", i), 200, time.Millisecond)
	}
	h := m.Handler(nil)
	r := httptest.NewRequest("GET", "/metrics", nil)
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		_, _ = io.Copy(io.Discard, w.Body)
	}
}
