// Package monitor shows from outside how the service is: Prometheus metrics,
// whether the process lives, and whether it is ready for requests. A Monitor of
// New is the server's Meter, wraps its Store and its TokenMinter to see what
// they do, and serves what it knows.
//
// No label has a value that a peer could choose, and none names a machine, a
// person or an address: what is counted stays bounded, and is no secret.
package monitor

import (
	"context"
	"log/slog"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// Config is what a Monitor needs. All fields are required unless marked
// Optional.
type Config struct {
	Version string // of the program
	Log     *slog.Logger
	Clock   func() time.Time
}

// Monitor counts, and serves what it counted. Its methods may be used by many
// goroutines.
type Monitor struct {
	c        Config
	registry *prometheus.Registry

	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	verdicts *prometheus.CounterVec
	findings *prometheus.CounterVec
	limited  *prometheus.CounterVec
	events   *prometheus.CounterVec
	alarms   *prometheus.CounterVec
	store    *prometheus.HistogramVec
	failed   *prometheus.CounterVec
	tokens   *prometheus.HistogramVec
	machines *prometheus.GaugeVec
	head     prometheus.Gauge
	counted  prometheus.Gauge
	health   *prometheus.GaugeVec
	keys     *prometheus.GaugeVec
	policy   *prometheus.GaugeVec
	asked    prometheus.Gauge
	// passed, passing and passAll are of the passes over the audit log.
	passed, passing, passAll prometheus.Gauge

	draining atomic.Bool
	starting atomic.Pointer[string] // what is done before it serves; nil once it does
	mint     atomic.Pointer[error]  // of the last attempt to mint; nil before the first

	mu     sync.Mutex
	checks []*check // guarded by mu
}

var _ server.Meter = (*Monitor)(nil)

// New returns a Monitor that has seen nothing.
func New(c Config) *Monitor {
	m := &Monitor{c: c, registry: prometheus.NewRegistry()}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	// From below the fsync of a fast disk to past every time limit.
	buckets := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(v)
		return v
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	m.requests = counter("sealift_http_requests_total", "Requests answered, by API, route and HTTP status.", "api", "route", "status")
	m.duration = histogram("sealift_http_request_duration_seconds", "Time from the header of a request to the end of its answer.", "api", "route")
	m.verdicts = counter("sealift_verdicts_total", "Evidence answered, by outcome.", "outcome")
	m.findings = counter("sealift_findings_total", "Refused evidence, by each finding code in it.", "code")
	m.limited = counter("sealift_limited_total", "Requests and connections that a limit refused.", "api", "limit")
	m.events = counter("sealift_audit_events_total", "Entries that this process wrote to the audit log, by kind.", "kind")
	m.alarms = counter("sealift_alarms_total", "Alarms that this process wrote to the audit log, by name.", "name")
	m.store = histogram("sealift_store_duration_seconds", "Time of an operation of the store.", "operation")
	m.failed = counter("sealift_store_errors_total", "Operations of the store that could not be done.", "operation")
	m.tokens = histogram("sealift_token_duration_seconds", "Time of an operation on join tokens, by result.", "operation", "result")
	m.machines = gauges("sealift_machines", "Machines on record, by state, when they were last counted.", "state")
	m.head = gauges("sealift_audit_head", "Number of the last entry of the audit log, when it was last looked at.").WithLabelValues()
	m.passed = gauges("sealift_audit_pass_completed_timestamp_seconds", "When this replica last had gone over all of the audit log, as seconds since 1970. 0: not yet.").WithLabelValues()
	m.passing = gauges("sealift_audit_pass_verified_entries", "Entries of the audit log that the pass which runs has gone over.").WithLabelValues()
	m.passAll = gauges("sealift_audit_pass_entries", "Entries of the audit log that the pass which runs is to go over.").WithLabelValues()
	m.counted = gauges("sealift_machines_counted_timestamp_seconds", "When machines were last counted, as seconds since 1970.").WithLabelValues()
	m.health = gauges("sealift_check_ok", "Whether a check of the service's health was passed when it was last made.", "check")
	m.keys = gauges("sealift_key_info", "Ids of the keys in use, which are no secret. Always 1.", "use", "id")
	m.policy = gauges("sealift_policy_info", "The policy that this replica goes by. Always 1.", "name", "version", "digest")
	m.asked = gauges("sealift_policy_confirmed_timestamp_seconds", "When this replica last saw that its policy is the enabled one, as seconds since 1970.").WithLabelValues()
	gauges("sealift_build_info", "The program. Always 1.", "version", "goversion").WithLabelValues(c.Version, runtime.Version()).Set(1)
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sealift_draining", Help: "1 once the service was told to end."}, func() float64 {
			if m.draining.Load() {
				return 1
			}
			return 0
		}),
	)
	// What is not there yet cannot be told from what is not counted.
	for _, outcome := range []string{"allowed", "refused"} {
		m.verdicts.WithLabelValues(outcome)
	}
	for _, k := range audit.Kinds() {
		m.events.WithLabelValues(string(k))
	}
	for _, name := range audit.AlarmNames() {
		m.alarms.WithLabelValues(string(name))
	}
	for _, op := range storeOperations() {
		m.failed.WithLabelValues(op)
	}
	return m
}

// Request implements server.Meter.
func (m *Monitor) Request(api, route string, status int, took time.Duration) {
	m.requests.WithLabelValues(api, route, strconv.Itoa(status)).Inc()
	m.duration.WithLabelValues(api, route).Observe(took.Seconds())
}

// Verdict implements server.Meter. A code counts once for each evidence.
func (m *Monitor) Verdict(r *attest.Result) {
	if r.Allowed {
		m.verdicts.WithLabelValues("allowed").Inc()
		return
	}
	m.verdicts.WithLabelValues("refused").Inc()
	seen := map[attest.Code]bool{}
	for _, f := range r.Findings {
		if !seen[f.Code] {
			seen[f.Code] = true
			m.findings.WithLabelValues(string(f.Code)).Inc()
		}
	}
}

// Limited implements server.Meter.
func (m *Monitor) Limited(api, limit string) { m.limited.WithLabelValues(api, limit).Inc() }

// Key tells which key is in use, e.g. "disk-kek".
func (m *Monitor) Key(use, id string) { m.keys.WithLabelValues(use, id).Set(1) }

// Policy tells by which policy the service goes. Without a name it is none.
func (m *Monitor) Policy(name string, version int, digest string) {
	m.policy.Reset()
	m.policy.WithLabelValues(name, strconv.Itoa(version), digest).Set(1)
}

// PolicyConfirmed tells when it was last seen that it is the enabled one.
func (m *Monitor) PolicyConfirmed(at time.Time) { m.asked.Set(float64(at.UnixMilli()) / 1000) }

// AuditPass tells how far the pass over the audit log has got, of how many entries.
func (m *Monitor) AuditPass(verified, of int64) {
	m.passing.Set(float64(verified))
	m.passAll.Set(float64(of))
}

// AuditPassed tells when a pass over all of the audit log ended.
func (m *Monitor) AuditPassed(at time.Time) { m.passed.Set(float64(at.UnixMilli()) / 1000) }

// Starting makes the service not ready until it serves, and says what it does till
// then.
func (m *Monitor) Starting(what string) { m.starting.Store(&what) }

// Serving ends Starting.
func (m *Monitor) Serving() { m.starting.Store(nil) }

// Drain makes the service not ready, for ever.
func (m *Monitor) Drain() { m.draining.Store(true) }

const (
	countPause = 30 * time.Second // between two counts, at least
	countShare = 20               // a count may take this part of the time
	countPage  = 500              // machines read at once
)

// Count counts machines and looks for the head of the audit log until ctx
// ends. It reads every record, so it does so at times of its own, not when
// somebody asks, and rests for the longer the more there are.
func (m *Monitor) Count(ctx context.Context, store server.Store) {
	head := int64(0)
	for {
		began := time.Now()
		var err error
		if head, err = m.count(ctx, store, head); err != nil && ctx.Err() == nil {
			m.c.Log.Warn("machines not counted", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(countPause, countShare*time.Since(began))):
		}
	}
}

// damaged is the state by which machines are counted whose record cannot be read.
const damaged attest.EnrolmentState = "damaged"

// count counts once. head is what it returned the last time.
func (m *Monitor) count(ctx context.Context, store server.Store, head int64) (int64, error) {
	n := map[attest.EnrolmentState]int{attest.StateEnrolled: 0, attest.StatePending: 0, attest.StateQuarantined: 0, attest.StateRevoked: 0, damaged: 0}
	for after := (attest.MachineID{}); ; {
		page, err := store.Machines(ctx, server.Query{After: after, Limit: countPage})
		if err != nil {
			return head, err
		}
		for _, one := range page {
			if one.Damaged != "" {
				one.State = damaged
			}
			n[one.State]++
			after = one.ID
		}
		if len(page) < countPage {
			break
		}
	}
	for state, count := range n {
		m.machines.WithLabelValues(string(state)).Set(float64(count))
	}
	m.counted.Set(float64(m.c.Clock().Unix()))
	head, err := headOf(ctx, store, head)
	if err == nil {
		m.head.Set(float64(head))
	}
	return head, err
}

// headOf returns the number of the last entry of the audit log, which has at
// least so many. It asks for single entries, ever further apart, and then
// halves the gap.
func headOf(ctx context.Context, store server.Store, known int64) (int64, error) {
	has := func(seq int64) (bool, error) {
		for _, err := range store.Audit(ctx, seq) {
			return err == nil, err
		}
		return false, nil
	}
	step := int64(1)
	for ; ; step *= 2 {
		there, err := has(known + step)
		if err != nil {
			return known, err
		}
		if !there {
			break
		}
		known += step
	}
	// known is there, or is 0, and known+step is not.
	for gap := step; gap > 1; {
		half := gap / 2
		there, err := has(known + half)
		if err != nil {
			return known, err
		}
		if there {
			known += half
			gap -= half
		} else {
			gap = half
		}
	}
	return known, nil
}
