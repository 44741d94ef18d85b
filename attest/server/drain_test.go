package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/server"
)

// narrow is a listener whose connections keep little of what is written to them.
type narrow struct{ net.Listener }

func (l narrow) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return c, c.(*net.TCPConn).SetWriteBuffer(4 << 10)
}

// serve serves the node API anew, in place of the scene's own, until stop is
// called. done gives its error then.
func (s *scene) serve() (stop func(), done chan error) {
	s.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.Context())
	cert := s.certificate(pkixName("service"), serverAuth)
	done = make(chan error, 1)
	go func() { done <- s.srv.ServeNodes(ctx, narrow{ln}, cert) }()
	s.nodes = ln.Addr().String()
	return stop, done
}

// ends waits until nothing is accepted any more.
func (s *scene) ends() {
	s.Helper()
	for {
		c, err := net.Dial("tcp", s.nodes)
		if err != nil {
			return
		}
		c.Close()
	}
}

// another enrols a machine with a disk of its own.
func (s *scene) another(n int) (*box, string) {
	s.Helper()
	b := newBox(s, s.tpmCA)
	guid := fmt.Sprintf("6c0d1e0c-3b1f-4a56-9d0e-%012x", n+1)
	rec := record(b)
	rec.DiskGUID = guid
	if _, err := s.srv.Enrol(s.Context(), "line-1", rec); err != nil {
		s.Fatal(err)
	}
	return b, guid
}

// slow connects a peer that takes little at a time, and has its challenge
// answered.
func (s *scene) slow(b *box, guid string) (*node, []byte) {
	s.Helper()
	d := net.Dialer{}
	raw, err := d.DialContext(s.Context(), "tcp", s.nodes)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { raw.Close() })
	if err := raw.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		s.Fatal(err)
	}
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		s.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1"})
	n := s.over(c)
	ch := new(api.Challenge)
	n.say(post(api.PathChallenge, string(mustJSON(s.T, &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic,
	}))))
	if status := n.answer(ch); status != 200 {
		s.Fatalf("challenge: HTTP %d", status)
	}
	req := s.answer(b, ch)
	req.Evidence.Disk.GUID = guid
	return n, []byte(post(api.PathEvidence, string(mustJSON(s.T, req))))
}

// answer decodes the next answer.
func (n *node) answer(v any) int {
	n.Helper()
	resp, err := http.ReadResponse(n.r, nil)
	if err != nil {
		n.Error(err)
		return 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		n.Errorf("HTTP %d: %v", resp.StatusCode, err)
	}
	return resp.StatusCode
}

// long appraises as the scene does and makes answers that no buffer holds.
func (s *scene) long(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
	r, boot := s.appraise(ev, ch, ses, k, p)
	for range 60 {
		r.Facts = append(r.Facts, attest.Fact{Name: "long", Value: strings.Repeat("x", 1000), Trust: attest.TrustClaimed})
	}
	return r, boot
}

// What is decided is told, although the peers take their time and no goroutine of
// net/http knows of the connections any more.
func TestADrainLetsSlowPeersHaveTheirAnswers(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits.Drain = patience })
	stop, done := s.serve()
	const peers = 8
	var working sync.WaitGroup
	working.Add(peers)
	goOn := make(chan struct{})
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		working.Done()
		<-goOn
		return s.long(ev, ch, ses, k, p)
	})
	var all []*node
	for i := range peers {
		n, evidence := s.slow(s.another(i))
		if _, err := n.Write(evidence); err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	working.Wait()
	stop()
	s.ends()
	close(goOn)
	var wg sync.WaitGroup
	for _, n := range all {
		wg.Go(func() {
			defer n.Close()
			resp := new(api.EvidenceResponse)
			if status := n.answer(resp); status != 200 {
				t.Errorf("HTTP %d", status)
				return
			}
			if _, err := api.VerifyRelease(resp.Release, &s.release.PublicKey); err != nil {
				t.Error(err)
			}
			// The peer is told that this is the end.
			if _, err := n.r.ReadByte(); err != io.EOF {
				t.Errorf("after the answer: %v, want EOF", err)
			}
		})
	}
	wg.Wait()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if strings.Contains(s.log.String(), "requests cut") {
		t.Error("requests were cut")
	}
}

// Whenever the end comes, each release that is on record was received.
func TestNoReleaseIsLostInADrain(t *testing.T) {
	t.Parallel()
	for _, after := range []int{0, 1, 5, 17} {
		s := newScene(t, func(c *server.Config) { c.Limits.Drain = patience })
		stop, done := s.serve()
		const machines = 24
		type box2 struct {
			*box
			disk string
		}
		var boxes []box2
		for i := range machines {
			b, disk := s.another(i)
			boxes = append(boxes, box2{b, disk})
		}
		c := &client.Client{URL: "https://" + s.nodes, CA: s.pool(), ReleaseKey: &s.release.PublicKey}
		released := make(chan string, machines)
		var wg sync.WaitGroup
		for _, b := range boxes {
			wg.Go(func() {
				id, err := s.boots(c, b.box, b.disk)
				var refused *client.RefusedError
				if errors.As(err, &refused) {
					t.Error(err)
				}
				if err == nil {
					released <- id
				}
			})
		}
		var got []string
		for range after {
			got = append(got, <-released)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		wg.Wait()
		close(released)
		for id := range released {
			got = append(got, id)
		}
		var on []string
		for e, err := range s.memory.Audit(t.Context(), 1) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == audit.KindRelease {
				var r audit.Release
				if err := json.Unmarshal(e.Data, &r); err != nil {
					t.Fatal(err)
				}
				on = append(on, r.ID)
			}
		}
		seen := map[string]bool{}
		for _, id := range got {
			seen[id] = true
		}
		for _, id := range on {
			if !seen[id] {
				t.Errorf("stopped after %d: release %s was not received", after, id)
			}
		}
		if len(on) < after || len(on) != len(got) {
			t.Errorf("stopped after %d: %d releases on record, %d received", after, len(on), len(got))
		}
	}
}

// boots attests once as the agent does and returns the release's id.
func (s *scene) boots(c *client.Client, b *box, guid string) (string, error) {
	sess, err := c.Connect(s.Context())
	if err != nil {
		return "", err
	}
	defer sess.Close()
	ch, err := sess.Challenge(s.Context(), &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic})
	if err != nil {
		return "", err
	}
	req := s.answer(b, ch)
	req.Evidence.Disk.GUID = guid
	r, _, err := sess.Evidence(s.Context(), b.id, req)
	if err != nil {
		return "", err
	}
	return r.ID, nil
}

// A peer that does not take its answer, one that does not end its request, and
// work without end are cut when the time is over.
func TestADrainEndsWithItsTime(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits.Drain = 600 * time.Millisecond })
	stop, done := s.serve()
	working, answered, goOn := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
	t.Cleanup(func() { close(goOn) })
	b, _ := s.another(0)
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		if bytes.Equal(ev.EKPublic, b.ekPublic) {
			working <- struct{}{}
			<-goOn
		}
		r, boot := s.long(ev, ch, ses, k, p)
		answered <- struct{}{}
		return r, boot
	})
	endless, evidence := s.slow(b, "6c0d1e0c-3b1f-4a56-9d0e-000000000001")
	endless.Write(evidence)
	<-working
	mute, evidence := s.slow(s.another(1))
	mute.Write(evidence)
	<-answered
	half := s.node(t)
	half.say(post(api.PathConfirm, "{}") + "POST /v1/confirm HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
	half.hear()
	// Whether its second request is in by now or not, it ends.
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(s.log.String(), "requests cut at the end of service") {
		t.Error("the log does not say that requests were cut")
	}
	for name, n := range map[string]*node{"work without end": endless, "a peer that takes nothing": mute, "half a request": half} {
		if err := closed(n.Conn); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A request that begins while the service ends is told to come back, whether it
// waits for room, comes over a connection that is there, or over one that is
// being made.
func TestRequestsThatBeginInADrainAreToldToComeBack(t *testing.T) {
	t.Parallel()
	g := &gauge{all: map[string]int{}}
	s := newScene(t, func(c *server.Config) {
		c.Meter, c.Limits = g, server.Limits{Drain: patience, Queue: patience, Concurrent: 1, EKBurst: 100}
	})
	stop, done := s.serve()
	working, goOn := make(chan struct{}, 2), make(chan struct{})
	s.srv.Appraise(func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *server.Boot) {
		working <- struct{}{}
		<-goOn
		return s.appraise(ev, ch, ses, k, p)
	})
	in, evidence := s.slow(s.another(0))
	silent := s.node(t)
	silent.say(post(api.PathConfirm, "{}"))
	silent.hear()
	raw, err := net.Dial("tcp", s.nodes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	half := s.node(t)
	in.Write(evidence)
	<-working
	// Two requests are let in at once: this is the second. The third waits.
	half.say("POST /v1/confirm HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	if resp, err := http.ReadResponse(half.r, nil); err != nil || resp.StatusCode != 100 {
		t.Fatalf("%+v, %v", resp, err)
	}
	waiting := s.node(t)
	waiting.say(post(api.PathConfirm, "{}"))
	stop()
	s.ends()
	told := func(name string, n *node) {
		t.Helper()
		resp, err := http.ReadResponse(n.r, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		defer resp.Body.Close()
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !resp.Close {
			t.Errorf("%s: HTTP %d, %v, close %t", name, resp.StatusCode, resp.Header, resp.Close)
		}
		io.Copy(io.Discard, resp.Body)
		n.Close()
	}
	told("one that waited for room", waiting)
	silent.say(post(api.PathConfirm, "{}"))
	told("one over an open connection", silent)
	late := s.over(tls.Client(raw, &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1"}))
	late.say(post(api.PathConfirm, "{}"))
	told("one over a connection that was being made", late)
	if n := g.count("limited node draining"); n != 3 {
		t.Errorf("%d requests are counted, want 3", n)
	}
	close(goOn)
	half.say("{}")
	if status, _ := half.hear(); status != 400 {
		t.Errorf("one that was let in: HTTP %d", status)
	}
	half.Close()
	resp := new(api.EvidenceResponse)
	if status := in.answer(resp); status != 200 {
		t.Errorf("evidence that was let in: HTTP %d", status)
	}
	in.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
