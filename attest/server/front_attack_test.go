package server_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

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
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{Queue: 500 * time.Millisecond} })
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
