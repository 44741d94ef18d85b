package server_test

import (
	"bytes"
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// releasing waits with the first commit of a release: it says so, and goes on
// when it is told to.
type releasing struct {
	waited  atomic.Bool
	entered chan struct{}
	goOn    chan struct{}
}

func newReleasing() *releasing {
	return &releasing{entered: make(chan struct{}), goOn: make(chan struct{})}
}

func (r *releasing) wait(c *server.Change) {
	if c.Release != nil && r.waited.CompareAndSwap(false, true) {
		close(r.entered)
		<-r.goOn
	}
}

// releases are those in the store, the generation and boot of each counted once.
func (s *scene) releases(b *box) (n int) {
	s.Helper()
	for e, err := range s.memory.Audit(s.Context(), 1) {
		if err != nil {
			s.Fatal(err)
		}
		if e.Kind == "release" && e.Machine == b.id {
			n++
		}
	}
	return n
}

// A release whose commit outlasts the drain is lost on its way. The machine asks
// again, is told to start anew, and has the same disk key in its next boot,
// without anybody's help.
func TestAReleaseThatOutlastsTheDrainIsMadeAgainInTheNextBoot(t *testing.T) {
	t.Parallel()
	hold, slow := newReleasing(), &slowStore{}
	s := newScene(t, func(c *server.Config) {
		slow.Store, c.Store, c.Limits.Drain = c.Store, slow, 300*time.Millisecond
	})
	b, guid := s.another(0)
	slow.commit = hold.wait
	stop, done := s.serve()
	n, evidence := s.slow(b, guid)
	if _, err := n.Write(evidence); err != nil {
		t.Fatal(err)
	}
	<-hold.entered
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := closed(n.Conn); err != nil {
		t.Error(err)
	}
	if n := s.releases(b); n != 0 {
		t.Fatalf("%d releases are on record before the commit", n)
	}
	close(hold.goOn)
	for s.releases(b) == 0 {
		time.Sleep(time.Millisecond) // the store tells nobody
	}
	lost := s.machine(b)

	// The service is back, the machine asks again.
	s.serve()
	again := func() (int, *api.EvidenceResponse) {
		c := s.httpClient()
		req := s.answer(b, s.challenge(c, b))
		req.Evidence.Disk.GUID = guid
		return s.send(c, req)
	}
	status, resp := again()
	if status != http.StatusForbidden || codes(resp.Result) != string(attest.CodeReleaseRepeated) {
		t.Errorf("again in this boot: HTTP %d, %s", status, codes(resp.Result))
	}
	s.set(func() { s.boot.Reset++ })
	status, resp = again()
	if status != 200 {
		t.Fatalf("the next boot: HTTP %d, %s", status, codes(resp.Result))
	}
	r, secrets, _ := s.open(resp)
	if secrets.Join == nil || len(secrets.DiskKey) == 0 || r.ID == lost.ReleaseID {
		t.Errorf("the next boot's release is %s with %v, the lost one was %s", r.ID, secrets, lost.ReleaseID)
	}
	if m := s.machine(b); !bytes.Equal(m.DiskKey.Box, lost.DiskKey.Box) || m.State != attest.StateEnrolled {
		t.Error("the next boot has another disk key")
	}
}

// What was not decided before the end, or before the peer went away, is not
// decided afterwards: it would spend a boot for nothing.
func TestWhatNobodyWouldHearIsNotReleased(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(s *scene, n *node, stop func(), done chan error){
		"the service ended": func(s *scene, _ *node, stop func(), done chan error) {
			stop()
			if err := <-done; err != nil {
				s.Error(err)
			}
		},
		"the peer went away": func(s *scene, n *node, _ func(), _ chan error) { n.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			requests := make(chan context.Context, 1)
			s := newScene(t, func(c *server.Config) {
				policy := c.Policy
				c.Limits.Drain = 300 * time.Millisecond
				c.Policy = func(ctx context.Context, id attest.MachineID) (*attest.Policy, error) {
					select {
					case requests <- ctx:
					default:
					}
					return policy(ctx, id)
				}
			})
			b, guid := s.another(0)
			<-requests // the install record's
			stop, done := s.serve()
			working, goOn := make(chan struct{}), make(chan struct{})
			var first sync.Once
			s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
				first.Do(func() {
					close(working)
					<-goOn
				})
				return s.appraise(ev, ch, ses, k, p)
			})
			n, evidence := s.slow(b, guid)
			if _, err := n.Write(evidence); err != nil {
				t.Fatal(err)
			}
			<-working
			end(s, n, stop, done)
			<-(<-requests).Done()
			close(goOn)
			if name == "the service ended" {
				s.serve()
			}
			c := s.httpClient()
			req := s.answer(b, s.challenge(c, b))
			req.Evidence.Disk.GUID = guid
			if status, resp := s.send(c, req); status != 200 {
				t.Errorf("again in this boot: HTTP %d, %s", status, codes(resp.Result))
			}
			if n := s.releases(b); n != 1 {
				t.Errorf("%d releases are on record, want 1", n)
			}
			for s.tokens.open() != 1 {
				time.Sleep(time.Millisecond) // the token that nobody got is taken back
			}
		})
	}
}

// A machine that comes to another replica while the first one's commit is still
// under way has one release, and the other none.
func TestAReplicaThatIsAskedMeanwhileReleasesOnce(t *testing.T) {
	t.Parallel()
	hold, slow := newReleasing(), &slowStore{}
	s := newScene(t, func(c *server.Config) {
		slow.Store, c.Store, c.Limits.Drain = c.Store, slow, 300*time.Millisecond
	})
	b, guid := s.another(0)
	slow.commit = hold.wait
	n, evidence := s.slow(b, guid)
	if _, err := n.Write(evidence); err != nil {
		t.Fatal(err)
	}
	<-hold.entered
	other := s.httpClient()
	req := s.answer(b, s.challenge(other, b))
	req.Evidence.Disk.GUID = guid
	status, resp := s.send(other, req)
	if status != 200 {
		t.Errorf("the other replica: HTTP %d, %s", status, codes(resp.Result))
	}
	close(hold.goOn)
	first := new(api.EvidenceResponse)
	if status := n.answer(first); status != http.StatusForbidden || codes(first.Result) != string(attest.CodeReleaseRepeated) || first.Release != nil {
		t.Errorf("the first one: HTTP %d, %s", status, codes(first.Result))
	}
	if n := s.releases(b); n != 1 {
		t.Errorf("%d releases are on record, want 1", n)
	}
	if n := s.tokens.open(); n != 1 {
		t.Errorf("%d tokens are out, want 1", n)
	}
}
