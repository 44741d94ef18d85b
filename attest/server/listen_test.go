package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
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
	"github.com/sealift/sealift/attest/server"
)

// patience is how long the tests wait for a connection to be cut: far longer
// than it may take.
const patience = 2 * time.Minute

// closed waits until the other side closes a connection.
func closed(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, c)
	if err != nil && errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		return fmt.Errorf("the connection is still open: %w", err)
	}
	return nil
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// dribble writes a byte at a time until the other side has enough.
func dribble(c net.Conn) {
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
		time.Sleep(200 * time.Millisecond) // it is what the peer does, nothing is waited for
	}
}

// Peers that hold on to what they have are cut off, and meanwhile the others
// are served.
func TestSlowPeersAreCutOff(t *testing.T) {
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", s.nodes)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	secure := func() net.Conn {
		t.Helper()
		c := tls.Client(dial(), &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1"})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	begin := func(text string) net.Conn {
		t.Helper()
		c := secure()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		return c
	}
	peers := map[string]net.Conn{
		"one that says nothing":                    dial(),
		"one that begins a handshake":              func() net.Conn { c := dial(); c.Write([]byte("\x16\x03\x01\x02\x00\x01")); return c }(),
		"one that is connected and says nothing":   secure(),
		"one whose header does not end":            begin("POST /v1/challenge HTTP/1.1\r\nHost: x\r\nX: "),
		"one whose body does not end":              begin("POST /v1/challenge HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"),
		"one whose chunks do not end":              begin("POST /v1/challenge HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n"),
		"one whose body nobody reads":              begin("POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"),
		"one whose body is for the other listener": begin("POST /v1/machines HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"),
	}
	for name, c := range peers {
		if !strings.HasSuffix(name, "says nothing") {
			go dribble(c)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := closed(c); err != nil {
				t.Error(err)
			}
		})
	}
	if status, _ := s.attest(b); status != 200 {
		t.Errorf("another peer: HTTP %d", status)
	}
}

func TestAnEndlessHeaderIsRefused(t *testing.T) {
	s := newScene(t, nil)
	req, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+s.nodes+api.PathChallenge, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X", strings.Repeat("x", 32<<10))
	resp, err := s.httpClient().Do(req)
	if err != nil {
		return // cut off before the answer was read
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("HTTP %d, want 431", resp.StatusCode)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	g := &gauge{all: map[string]int{}}
	s := newScene(t, func(c *server.Config) {
		c.Meter, c.Limits = g, server.Limits{Connections: 5, AddressConnections: 3}
	})
	var held []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", s.nodes)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		held = append(held, c)
	}
	// A fourth is closed at once, before its peer said anything.
	fourth, err := net.Dial("tcp", s.nodes)
	if err != nil {
		t.Fatal(err)
	}
	defer fourth.Close()
	if err := closed(fourth); err != nil {
		t.Error(err)
	}
	if n := g.count("limited node address-connections"); n != 1 {
		t.Errorf("%d connections are counted as refused, want 1", n)
	}
	// The other listener has room of its own.
	if status := s.call(s.operator(), "GET", "https://"+s.operators+api.PathMachines, nil, nil); status != 200 {
		t.Errorf("operator: HTTP %d", status)
	}
	held[0].Close()
	// The listener learns of the close in its own time.
	for ctx, b := t.Context(), newBox(t, s.tpmCA); ; {
		resp, err := s.httpClient().Post("https://"+s.nodes+api.PathChallenge, "application/json", strings.NewReader(string(mustJSON(t, &api.ChallengeRequest{
			Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic,
		}))))
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("after one was closed: HTTP %d", resp.StatusCode)
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// fakeListener gives connections from addresses that it was told.
type fakeListener struct {
	net.Listener
	from chan string
}

type fakeConn struct {
	net.Conn
	from string
}

func (c fakeConn) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", c.from)
	if err != nil {
		panic(err)
	}
	return a
}
func (c fakeConn) Close() error { return nil }

func (l fakeListener) Accept() (net.Conn, error) {
	from, ok := <-l.from
	if !ok {
		return nil, net.ErrClosed
	}
	return fakeConn{from: from}, nil
}

func TestConnectionsAreCountedByWhatOnePeerHas(t *testing.T) {
	l := fakeListener{from: make(chan string, 100)}
	var mu sync.Mutex
	var refused []string
	b := server.NewBoundedListener(l, server.Bounds{Connections: 4, AddressConnections: 2, Refused: func(limit string) {
		mu.Lock()
		defer mu.Unlock()
		refused = append(refused, limit)
	}})
	for _, from := range []string{
		"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", // the third is one too many
		"[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", // so is it of one /64
		"192.0.2.9:1", // all are taken: the other address of its network gives way
	} {
		l.from <- from
	}
	close(l.from)
	var open []net.Conn
	for {
		c, err := b.Accept()
		if err != nil {
			break
		}
		open = append(open, c)
	}
	if got := strings.Join(refused, " "); len(open) != 5 || got != "address-connections address-connections evicted" {
		t.Errorf("%d were accepted, refused: %s", len(open), got)
	}
	for _, c := range open {
		for range 2 { // a connection may be closed again
			c.Close()
		}
	}
	if total, keys := b.Open(); total != 0 || keys != 0 {
		t.Errorf("after all are closed %d of %d addresses are counted", total, keys)
	}
}

// What a peer sends after its body was refused must not be taken for a request.
func TestARefusedBodyEndsTheConnection(t *testing.T) {
	s := newScene(t, nil)
	c, err := tls.Dial("tcp", s.nodes, &tls.Config{RootCAs: s.pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body := strings.Repeat("x", api.MaxConfirmBody+1)
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", api.PathConfirm, len(body), body); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 413 || !resp.Close {
		t.Errorf("HTTP %d, close %t", resp.StatusCode, resp.Close)
	}
}
