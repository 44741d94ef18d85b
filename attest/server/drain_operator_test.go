package server_test

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// slowStore waits where a test says so.
type slowStore struct {
	server.Store
	gone    chan struct{}                               // closed when the test ends
	machine func(ctx context.Context) error             // before a machine's record is read
	audit   func(ctx context.Context, number int) error // before an entry is read
	commit  func(c *server.Change)                      // before a commit
}

func (s *slowStore) Machine(ctx context.Context, id attest.MachineID) (*server.Machine, error) {
	if s.machine != nil {
		if err := s.machine(ctx); err != nil {
			return nil, err
		}
	}
	return s.Store.Machine(ctx, id)
}

func (s *slowStore) Audit(ctx context.Context, from int64) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		n := 0
		for e, err := range s.Store.Audit(ctx, from) {
			if n++; err == nil && s.audit != nil {
				err = s.audit(ctx, n)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (s *slowStore) Commit(ctx context.Context, c *server.Change) error {
	if s.commit != nil {
		s.commit(c)
	}
	return s.Store.Commit(ctx, c)
}

// serveOperators serves the operator API anew, in place of the scene's own, until
// stop is called. done gives its error then.
func (s *scene) serveOperators() (stop func(), done chan error) {
	s.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.Context())
	cert, pool := s.certificate(pkixName("service"), serverAuth), s.pool()
	done = make(chan error, 1)
	go func() { done <- s.srv.ServeOperators(ctx, ln, cert, pool) }()
	s.operators = ln.Addr().String()
	return stop, done
}

// until waits for the end of a request's context, as a store does that is asked
// for something it cannot give.
func until(entered chan<- struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
}

// An operator's request that is under way when the service ends has its answer,
// or is told that nothing was done.
func TestADrainAnswersOperators(t *testing.T) {
	t.Parallel()
	type outcome struct {
		status int
		body   string
		err    error
	}
	for name, tt := range map[string]struct {
		drain  time.Duration
		store  func(s *slowStore, entered chan<- struct{}, stopped <-chan struct{})
		method string
		path   func(id string) string
		body   any
		check  func(t *testing.T, s *scene, b *box, got outcome)
	}{
		"one that is done in time": {
			drain: patience,
			store: func(s *slowStore, entered chan<- struct{}, stopped <-chan struct{}) {
				s.machine = func(context.Context) error { entered <- struct{}{}; <-stopped; return nil }
			},
			method: "GET", path: func(id string) string { return api.PathMachines + "/" + id },
			check: func(t *testing.T, _ *scene, _ *box, got outcome) {
				if got.err != nil || got.status != 200 {
					t.Errorf("HTTP %d, %v", got.status, got.err)
				}
			},
		},
		"one that waits for the store": {
			drain:  15 * time.Second,
			store:  func(s *slowStore, entered chan<- struct{}, _ <-chan struct{}) { s.machine = until(entered) },
			method: "POST", path: func(id string) string { return api.PathMachines + "/" + id + "/revoke" }, body: &api.StateChange{Reason: "stolen"},
			check: func(t *testing.T, s *scene, b *box, got outcome) {
				var e api.Error
				if err := json.Unmarshal([]byte(got.body), &e); err != nil || got.status != 503 || e.Code != "unavailable" || e.Message != "the service ends" {
					t.Errorf("HTTP %d %s, %v", got.status, got.body, got.err)
				}
				if m := s.machine(b); m.State != attest.StateEnrolled {
					t.Errorf("the machine is %s", m.State)
				}
			},
		},
		"one that is being decided": {
			drain: 15 * time.Second,
			store: func(s *slowStore, entered chan<- struct{}, _ <-chan struct{}) {
				var request context.Context
				s.machine = func(ctx context.Context) error { request = ctx; return nil }
				s.commit = func(*server.Change) {
					entered <- struct{}{}
					<-request.Done() // what is not decided is given up now
				}
			},
			method: "POST", path: func(id string) string { return api.PathMachines + "/" + id + "/revoke" }, body: &api.StateChange{Reason: "stolen"},
			check: func(t *testing.T, s *scene, b *box, got outcome) {
				if got.err != nil || got.status != 200 {
					t.Errorf("HTTP %d, %v", got.status, got.err)
				}
				if m := s.machine(b); m.State != attest.StateRevoked {
					t.Errorf("the machine is %s", m.State)
				}
			},
		},
		"the log, sent in part": {
			drain: 300 * time.Millisecond,
			store: func(s *slowStore, entered chan<- struct{}, _ <-chan struct{}) {
				wait := until(entered)
				s.audit = func(ctx context.Context, n int) error {
					if n < 2 {
						return nil
					}
					return wait(ctx)
				}
			},
			method: "GET", path: func(string) string { return api.PathAudit },
			check: func(t *testing.T, _ *scene, _ *box, got outcome) {
				if got.err == nil {
					t.Errorf("a part was taken for the whole: HTTP %d, %v: %s", got.status, got.err, got.body)
				}
			},
		},
		"work without end": {
			drain: 300 * time.Millisecond,
			store: func(s *slowStore, entered chan<- struct{}, stopped <-chan struct{}) {
				s.machine = func(context.Context) error { entered <- struct{}{}; <-stopped; <-s.gone; return nil }
			},
			method: "GET", path: func(id string) string { return api.PathMachines + "/" + id },
			check: func(t *testing.T, s *scene, _ *box, got outcome) {
				if got.err == nil {
					t.Errorf("HTTP %d", got.status)
				}
				if !strings.Contains(s.log.String(), "requests cut at the end of service") {
					t.Error("the log does not say that requests were cut")
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slow := &slowStore{gone: make(chan struct{})}
			t.Cleanup(func() { close(slow.gone) })
			s := newScene(t, func(c *server.Config) {
				slow.Store, c.Store, c.Limits.Drain = c.Store, slow, tt.drain
			})
			b := newBox(t, s.tpmCA)
			s.enrol(b)
			stop, done := s.serveOperators()
			entered, stopped := make(chan struct{}, 1), make(chan struct{})
			tt.store(slow, entered, stopped)
			got := make(chan outcome, 1)
			go func() {
				c := s.operator()
				var body io.Reader
				if tt.body != nil {
					body = strings.NewReader(string(mustJSON(t, tt.body)))
				}
				req, err := http.NewRequestWithContext(t.Context(), tt.method, "https://"+s.operators+tt.path(b.id.String()), body)
				if err != nil {
					got <- outcome{err: err}
					return
				}
				resp, err := c.Do(req)
				if err != nil {
					got <- outcome{err: err}
					return
				}
				defer resp.Body.Close()
				text, err := io.ReadAll(resp.Body)
				got <- outcome{resp.StatusCode, string(text), err}
			}()
			<-entered
			stop()
			close(stopped)
			o := <-got
			if err := <-done; err != nil {
				t.Error(err)
			}
			slow.machine, slow.audit, slow.commit = nil, nil, nil
			tt.check(t, s, b, o)
		})
	}
}
