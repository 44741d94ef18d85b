package server_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/server"
)

// A machine that a limit refuses comes again over its connection, with the
// evidence that its TPM has made.
func TestARefusedRequestKeepsItsConnectionAndItsChallenge(t *testing.T) {
	t.Parallel()
	// Loopback addresses stand for machines at other places.
	const here, there = "127.0.0.1", "127.0.0.9"
	for name, tt := range map[string]struct {
		limits server.Limits
		limit  string // that must refuse
		// before is done with the challenge given, and after once the first
		// request was refused.
		before func(*scene, *box)
		after  func(*scene)
	}{
		"its address asked too often": {
			limits: server.Limits{PerAddress: time.Second, AddressBurst: 2}, limit: "address",
			before: func(s *scene, _ *box) { s.spend(t) }, after: aSecondLater,
		},
		"its endorsement key asked too often": {
			limits: server.Limits{PerEK: time.Second, EKBurst: 1}, limit: "proven-endorsement-key",
			before: func(s *scene, b *box) {
				c := s.from(there, nil)
				if _, err := s.boots(c, b, disk); err != nil {
					t.Error(err)
				}
				s.set(func() { s.boot.Reset++ })
			},
			after: aSecondLater,
		},
		"no room to be let in": {
			limits: server.Limits{Queue: time.Millisecond}, limit: "bodies",
			before: func(s *scene, _ *box) { s.occupy(8) }, after: func(s *scene) { s.vacate() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &gauge{all: map[string]int{}}
			s := newScene(t, func(c *server.Config) { c.Meter, c.Limits = g, tt.limits })
			s.set(func() { s.stopped = time.Now() }) // no limit passes by itself
			b := newBox(t, s.tpmCA)
			s.enrol(b)
			var dialled atomic.Int32
			sess, err := s.from(here, &dialled).Connect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer sess.Close()
			ch, err := sess.Challenge(t.Context(), &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic})
			if err != nil {
				t.Fatal(err)
			}
			tt.before(s, b)
			refused, before := make(chan struct{}), g.count("limited node "+tt.limit)
			go func() {
				defer close(refused)
				for g.count("limited node "+tt.limit) == before && t.Context().Err() == nil {
					time.Sleep(time.Millisecond) // the meter tells nobody
				}
				tt.after(s)
			}()
			r, _, err := sess.Evidence(t.Context(), b.id, s.answer(b, ch))
			if err != nil {
				t.Fatal(err)
			}
			<-refused
			if r.ChallengeID != ch.ID {
				t.Errorf("the release is for challenge %s, want %s", r.ChallengeID, ch.ID)
			}
			if n := dialled.Load(); n != 1 {
				t.Errorf("%d connections, want 1", n)
			}
		})
	}
}

func aSecondLater(s *scene) { s.set(func() { s.offset += time.Second }) }

// from returns a client at an address, that comes again when it is told to.
func (s *scene) from(address string, dialled *atomic.Int32) *client.Client {
	return &client.Client{
		URL: "https://" + s.nodes, CA: s.pool(), ReleaseKey: &s.release.PublicKey, Patience: patience,
		Dial: func(ctx context.Context, network, to string) (net.Conn, error) {
			if dialled != nil {
				dialled.Add(1)
			}
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
			return d.DialContext(ctx, network, to)
		},
	}
}

// spend makes requests until one is refused for their number.
func (s *scene) spend(t *testing.T) {
	t.Helper()
	for range 1000 {
		n := s.node(t)
		n.say(post(api.PathConfirm, "{}"))
		if status, _ := n.hear(); status == 429 {
			return
		}
	}
	t.Error("no request was refused")
}

// occupy has so many requests of 127.0.0.1 wait for the store, of the 8 that are let
// in from one address, until vacate is called.
func (s *scene) occupy(n int) {
	s.Helper()
	entered, leave := make(chan struct{}), make(chan struct{})
	s.vacate = sync.OnceFunc(func() { close(leave) })
	s.Cleanup(s.vacate)
	s.set(func() {
		s.fail = func(string) (error, bool) {
			select {
			case entered <- struct{}{}:
			case <-leave:
			}
			<-leave
			return nil, false
		}
	})
	for range n {
		// That nobody knows its challenge is for the log.
		s.node(s.T).say(post(api.PathEvidence, string(mustJSON(s.T, &api.EvidenceRequest{ChallengeID: "c", Evidence: attest.Evidence{Disk: attest.Disk{GUID: disk}}}))))
		<-entered
	}
}

// What a refused request still sends is not taken for another request, and what
// follows it is answered.
func TestWhatFollowsARefusedRequestIsAnswered(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits.PerAddress, c.Limits.AddressBurst = time.Hour, 2 })
	hidden := post("/nothing", "")
	for name, tt := range map[string]struct {
		request string
		kept    bool
	}{
		"a body":                         {post(api.PathConfirm, hidden), true},
		"no body":                        {"POST /v1/confirm HTTP/1.1\r\nHost: x\r\n\r\n", true},
		"a body in chunks":               {"POST /v1/confirm HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true},
		"as much as is read":             {post(api.PathEvidence, strings.Repeat("x", 256<<10)), true},
		"more than that":                 {post(api.PathEvidence, strings.Repeat("x", 300<<10)), false},
		"more than that, in one chunk":   {"POST /v1/evidence HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4b000\r\n" + strings.Repeat("x", 300<<10) + "\r\n0\r\n\r\n", false},
		"a chunk that is none":           {"POST /v1/confirm HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", false},
		"a body that waits to be wanted": {"POST /v1/confirm HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", false},
		"a wish to end":                  {"POST /v1/confirm HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false},
		"HTTP/1.0":                       {"POST /v1/confirm HTTP/1.0\r\nHost: x\r\n\r\n", false},
	} {
		for where, refuse := range map[string]struct {
			status int
			scene  *scene
		}{"by its address": {429, s}, "without room": {503, s.full()}} {
			t.Run(name+" "+where, func(t *testing.T) {
				s := refuse.scene
				if refuse.status == 429 {
					s.spend(t)
				}
				n := s.node(t)
				if _, err := io.WriteString(n, tt.request+"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil && tt.kept {
					t.Fatal(err)
				}
				resp, err := http.ReadResponse(n.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != refuse.status || resp.Close == tt.kept || resp.Header.Get("Retry-After") == "" {
					t.Fatalf("HTTP %d, close %t, want %d, %t: %v", resp.StatusCode, resp.Close, refuse.status, !tt.kept, resp.Header)
				}
				if !tt.kept {
					if err := closed(n.Conn); err != nil {
						t.Error(err)
					}
					return
				}
				// It did not wait, so this is the last answer.
				if resp, err = http.ReadResponse(n.r, nil); err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				want := 404 // no limit is on what there is not
				if refuse.status == 503 {
					want = 503
				}
				if resp.StatusCode != want || refuse.status == 503 && !resp.Close {
					t.Errorf("the next answer is HTTP %d, close %t", resp.StatusCode, resp.Close)
				}
			})
		}
	}
}

// full returns another service, in which there is no room.
func (s *scene) full() *scene {
	s.Helper()
	other := newScene(s.T, func(c *server.Config) { c.Limits = server.Limits{Queue: time.Millisecond} })
	other.occupy(8)
	return other
}

// One that comes again before it was told to does not keep its connection.
func TestAPeerThatDoesNotWaitLosesItsConnection(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits.PerAddress, c.Limits.AddressBurst = time.Hour, 2 })
	s.spend(t)
	n := s.node(t)
	for _, last := range []bool{false, true} {
		n.say(post(api.PathConfirm, "{}"))
		resp, err := http.ReadResponse(n.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 429 || resp.Close != last {
			t.Errorf("HTTP %d, close %t, want 429, %t", resp.StatusCode, resp.Close, last)
		}
	}
	if err := closed(n.Conn); err != nil {
		t.Error(err)
	}
}

// A client that is refused while it still sends learns why.
func TestALongRequestThatIsRefusedIsToldSo(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits.PerAddress, c.Limits.AddressBurst = time.Hour, 1 })
	b := newBox(t, s.tpmCA)
	c := s.from("127.0.0.1", nil)
	c.Patience, c.Timeout = 0, patience
	sess, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	// It uses up what the address may ask for, and a connection that asked for
	// nothing is soon closed.
	if _, err := sess.Challenge(t.Context(), &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic}); err != nil {
		t.Fatal(err)
	}
	_, _, err = sess.Evidence(t.Context(), b.id, &api.EvidenceRequest{ChallengeID: "c", Evidence: attest.Evidence{EventLog: make([]byte, 12<<20)}})
	var busy *client.ServiceError
	if !errors.As(err, &busy) || busy.Status != 429 || busy.RetryAfter == 0 {
		t.Errorf("got %v, want HTTP 429", err)
	}
	if _, err := sess.Challenge(t.Context(), &api.ChallengeRequest{}); err == nil || errors.As(err, &busy) {
		t.Errorf("a session whose request was cut is used again: %v", err)
	}
}
