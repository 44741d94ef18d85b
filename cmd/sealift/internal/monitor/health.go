package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sealift/sealift/attest/server"
)

const (
	// checkKept is how long the result of a check is given again, so that
	// many who ask do not become many who write.
	checkKept = 2 * time.Second
	// checkTime bounds a check.
	checkTime = 5 * time.Second
)

// check is something that the service needs.
type check struct {
	name     string
	required bool
	try      func(ctx context.Context) error

	mu  sync.Mutex // held while it is tried
	at  time.Time  // of the last result; guarded by mu
	err error      // the last result; guarded by mu
}

// Require adds a check without which the service is not ready.
func (m *Monitor) Require(name string, try func(ctx context.Context) error) { m.add(name, true, try) }

// Prefer adds a check without which the service does less than it could.
func (m *Monitor) Prefer(name string, try func(ctx context.Context) error) { m.add(name, false, try) }

func (m *Monitor) add(name string, required bool, try func(ctx context.Context) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checks = append(m.checks, &check{name: name, required: required, try: try})
	m.health.WithLabelValues(name).Set(1)
}

// StoreWritten is a check that writes to a store, as every release must.
func StoreWritten(store server.Store, clock func() time.Time) func(context.Context) error {
	return func(ctx context.Context) error {
		d, err := store.Document(ctx, "health", "written")
		if errors.Is(err, server.ErrNotFound) {
			d, err = &server.Document{Kind: "health", Name: "written"}, nil
		}
		if err != nil {
			return err
		}
		if d.Body, err = json.Marshal(map[string]time.Time{"at": clock().UTC()}); err != nil {
			return err
		}
		// Another replica that wrote meanwhile shows as much.
		if err := store.Commit(ctx, &server.Change{Documents: []*server.Document{d}}); err != nil && !errors.Is(err, server.ErrConflict) {
			return err
		}
		return nil
	}
}

// TokensMinted is a check of what became of the last attempt to mint a token.
func (m *Monitor) TokensMinted() func(context.Context) error {
	return func(context.Context) error {
		if err := m.mint.Load(); err != nil {
			return *err
		}
		return nil
	}
}

// result tries a check, or gives its last result.
func (m *Monitor) result(ctx context.Context, c *check) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := m.c.Clock()
	if age := now.Sub(c.at); age >= 0 && age < checkKept {
		return c.err
	}
	// A prober that goes away must not make the next one believe that it failed.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime)
	defer cancel()
	err := c.try(ctx)
	if (err == nil) != (c.err == nil) {
		if err != nil {
			m.c.Log.Error("health check failed", "check", c.name, "error", err)
		} else {
			m.c.Log.Info("health check passed again", "check", c.name)
		}
	}
	c.at, c.err = m.c.Clock(), err
	m.health.WithLabelValues(c.name).Set(map[bool]float64{true: 1}[err == nil])
	return err
}

// Health is the body of /readyz. Why a check failed is in the log.
type Health struct {
	Ready  bool              `json:"ready"`
	Reason string            `json:"reason,omitempty"` // why it is not serving
	Checks map[string]string `json:"checks"`           // "ok", "failed", or "degraded" if the service is ready without it
}

// Health makes all checks.
func (m *Monitor) Health(ctx context.Context) Health {
	m.mu.Lock()
	checks := m.checks
	m.mu.Unlock()
	h := Health{Ready: true, Checks: map[string]string{"serving": "ok"}}
	reason := ""
	if what := m.starting.Load(); what != nil {
		reason = "starting: " + *what
	}
	if m.draining.Load() {
		reason = "ending"
	}
	if reason != "" {
		h.Ready, h.Reason, h.Checks["serving"] = false, reason, "failed"
		return h // no more is done for probers
	}
	for _, c := range checks {
		switch err := m.result(ctx, c); {
		case err == nil:
			h.Checks[c.name] = "ok"
		case c.required:
			h.Ready, h.Checks[c.name] = false, "failed"
		default:
			h.Checks[c.name] = "degraded"
		}
	}
	return h
}

// Handler serves /healthz, /readyz and /metrics. guard is put around /metrics.
// Optional.
func (m *Monitor) Handler(guard func(http.Handler) http.Handler) http.Handler {
	metrics := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
	if guard != nil {
		metrics = guard(metrics)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		h := m.Health(r.Context())
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if !h.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		// A prober that went away is no error of ours.
		_ = json.NewEncoder(w).Encode(h)
	})
	return mux
}
