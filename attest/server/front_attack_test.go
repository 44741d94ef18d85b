package server_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// RFC 9110 9.3.2: what follows the headers is the next answer.
func TestTheAnswerToHEADHasNoBody(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	n := s.node(t)
	n.say("HEAD /v1/confirm HTTP/1.1\r\nHost: x\r\n\r\n" + post(api.PathConfirm, "{}"))
	resp, err := http.ReadResponse(n.r, &http.Request{Method: http.MethodHead})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 405 {
		t.Errorf("HTTP %d, want 405", resp.StatusCode)
	}
	if status, code := n.hear(); status != 400 || code != "bad-request" {
		t.Errorf("the next answer is HTTP %d %s", status, code)
	}
}

// net/http answers OPTIONS * without a handler unless it is told not to, and
// waits for the next request itself.
func TestOPTIONSOfAllGivesItsRoomBack(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{Queue: patience} })
	for range 8 {
		n := s.node(t)
		n.say("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(n.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	n := s.node(t)
	n.say(post(api.PathConfirm, "{}"))
	if status, code := n.hear(); status != 400 {
		t.Errorf("HTTP %d %s, want 400", status, code)
	}
}

// An answer is not as long as what it refuses.
func TestTheAnswerToALongNameIsShort(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	n := s.node(t)
	n.say(post(api.PathEvidence, `{"`+strings.Repeat("\u200b", 60<<10)+`":1}`))
	resp, err := http.ReadResponse(n.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 400 || resp.ContentLength > 8<<10 {
		t.Errorf("HTTP %d with %d bytes", resp.StatusCode, resp.ContentLength)
	}
}

// scarce is a listener that has no file descriptor at first.
type scarce struct {
	net.Listener
	failed atomic.Int32
}

func (l *scarce) Accept() (net.Conn, error) {
	if l.failed.Add(1) <= 2 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAnErrorThatPassesDoesNotEndTheListener(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.srv.ServeNodes(ctx, &scarce{Listener: inner}, s.certificate(pkixName("service"), serverAuth))
	}()
	s.nodes = inner.Addr().String()
	n := s.node(t)
	n.say(post(api.PathConfirm, "{}"))
	if status, _ := n.hear(); status != 400 {
		t.Errorf("HTTP %d, want 400", status)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whoever holds the room for requests with bodies that do not come, from many
// addresses, does not keep a machine out that has something to say.
func TestSlowRequestsGiveWayToOthers(t *testing.T) {
	t.Parallel()
	g := &gauge{all: map[string]int{}}
	s := newScene(t, func(c *server.Config) { c.Meter, c.Limits = g, server.Limits{Concurrent: 1} })
	for range 2 {
		n := s.node(t)
		n.say("POST /v1/evidence HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n")
		// Then it was let in.
		if resp, err := http.ReadResponse(n.r, nil); err != nil || resp.StatusCode != 100 {
			t.Fatalf("%+v, %v", resp, err)
		}
		go dribble(n)
	}
	other := s.node(t)
	other.say(post(api.PathConfirm, "{}"))
	if status, code := other.hear(); status != 400 {
		t.Errorf("HTTP %d %s, want 400", status, code)
	}
	if n := g.count("limited node slow"); n != 1 {
		t.Errorf("%d were cut, want 1", n)
	}
}

// Who was released to has room of its own to confirm that. Whoever holds on to it keeps
// neither others from confirming, nor is it cut in vain for a request of another kind.
func TestSlowConfirmationsGiveWayToOthers(t *testing.T) {
	t.Parallel()
	for name, requests := range map[string]int{"to another": 0, "and not to a request": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &gauge{all: map[string]int{}}
			s := newScene(t, func(c *server.Config) { c.Meter, c.Limits = g, server.Limits{Concurrent: 1} })
			var released []*node
			for i := range 2 {
				n, evidence := s.slow(s.another(i))
				n.say(string(evidence))
				if status := n.answer(new(api.EvidenceResponse)); status != 200 {
					t.Fatalf("release: HTTP %d", status)
				}
				released = append(released, n)
			}
			hold := func(n *node) {
				n.say("POST /v1/confirm HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
				// Then it was let in.
				if resp, err := http.ReadResponse(n.r, nil); err != nil || resp.StatusCode != 100 {
					t.Fatalf("%+v, %v", resp, err)
				}
				go dribble(n)
			}
			hold(released[0])
			other := released[1]
			for range requests {
				hold(s.node(t))
				other = s.node(t)
			}
			other.say(post(api.PathConfirm, "{}"))
			if status, code := other.hear(); status != 400 {
				t.Errorf("HTTP %d %s, want 400", status, code)
			}
			if n := g.count("limited node slow"); n != 1 {
				t.Errorf("%d were cut, want 1", n)
			}
		})
	}
}

// What is no request of this protocol is refused, and its connection ends and
// gives its room back.
func TestOtherProtocolsGiveTheirRoomBack(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{Concurrent: 1, Queue: patience} })
	for name, say := range map[string]string{
		"HTTP/2":                  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"an upgrade to HTTP/2":    "GET /v1/confirm HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		"a WebSocket":             "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"a proxy's CONNECT":       "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n",
		"an absolute URL":         "GET http://169.254.169.254/latest HTTP/1.1\r\nHost: x\r\n\r\n",
		"another expectation":     "POST /v1/confirm HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 200-ok\r\n\r\n{}",
		"HTTP/0.9":                "GET /\r\n\r\n",
		"HTTP/1.0, to be kept":    "POST /v1/confirm HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
		"two lengths":             "POST /v1/confirm HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
		"a length and chunks":     "POST /v1/confirm HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"another encoding":        "POST /v1/confirm HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"a header without a name": "POST /v1/confirm HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
		"a trailer without end":   "POST /v1/confirm HTTP/1.1\r\nHost: x\r\nTrailer: T\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: " + strings.Repeat("t", 64<<10),
		"a header without end":    "POST /v1/confirm HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10),
	} {
		for range 3 { // one more than there is room for
			n := s.node(t)
			// It may be cut before all is said.
			_, _ = io.WriteString(n, say)
			_, _ = n.Conn.(*tls.Conn).Write([]byte("GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
			if err := closed(n.Conn); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		n := s.node(t)
		n.say(post(api.PathConfirm, "{}"))
		if status, code := n.hear(); status != 400 {
			t.Errorf("after %s: HTTP %d %s, want 400", name, status, code)
		}
	}
}

// A client that speaks only HTTP/2 is told so in the handshake.
func TestHTTP2IsNotNegotiated(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	c, err := tls.Dial("tcp", s.nodes, &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1", NextProtos: []string{"h2"}})
	if err == nil {
		c.Close()
		t.Error("no error")
	}
	c, err = tls.Dial("tcp", s.nodes, &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1", NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Errorf("negotiated %q", p)
	}
}
