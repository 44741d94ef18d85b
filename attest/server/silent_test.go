package server_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// pieces is a connection whose writes are sent as cut says.
type pieces struct {
	net.Conn
	cut  func(b []byte) [][]byte // nil: as they are
	held []byte
	hold bool // what is written is kept for later
}

func (p *pieces) Write(b []byte) (int, error) {
	if p.hold {
		p.held = append(p.held, b...)
		return len(b), nil
	}
	all := append(p.held, b...)
	p.held = nil
	if p.cut == nil {
		_, err := p.Conn.Write(all)
		return len(b), err
	}
	for _, piece := range p.cut(all) {
		if _, err := p.Conn.Write(piece); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// dial is a connection to an address before its TLS handshake, with no segment of
// TCP waiting for the next.
func (s *scene) dial(t *testing.T, address string) (*pieces, *tls.Conn) {
	t.Helper()
	raw, err := net.Dial("tcp", address) // which sets TCP_NODELAY
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	p := &pieces{Conn: raw}
	return p, tls.Client(p, &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1"})
}

// The service waits for a request without reading it. It is served however it
// begins to arrive.
func TestARequestIsServedHoweverItBegins(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	at := func(n int) func([]byte) [][]byte {
		return func(b []byte) [][]byte { n := min(n, len(b)); return [][]byte{b[:n], b[n:]} }
	}
	for name, cut := range map[string]func([]byte) [][]byte{
		"whole":                       nil,
		"a part of the record header": at(3),
		"the record header alone":     at(5),
		"a part of the record":        at(30),
		"byte by byte":                func(b []byte) [][]byte { return bytes.SplitAfter(b, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			p, c := s.dial(t, s.nodes)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			n := s.over(c)
			n.T = t
			for range 3 {
				p.cut = cut
				n.say(post(api.PathConfirm, "{}"))
				if status, code := n.hear(); status != 400 || code != "bad-request" {
					t.Errorf("HTTP %d %s", status, code)
				}
			}
		})
	}
}

// What comes with the end of the handshake is read with it.
func TestARequestThatComesWithTheHandshakeIsServed(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	request := post(api.PathConfirm, "{}")
	for name, cut := range map[string]int{"whole": len(request), "a part of it": 20, "one byte": 1} {
		t.Run(name, func(t *testing.T) {
			p, c := s.dial(t, s.nodes)
			p.cut = func(b []byte) [][]byte {
				p.hold, p.cut = true, nil // but the client's first flight
				return [][]byte{b}
			}
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			if len(p.held) == 0 {
				t.Fatal("the end of the handshake was not held back")
			}
			n := s.over(c)
			n.T = t
			p.hold = false
			n.say(request[:cut])
			if rest := request[cut:]; rest != "" {
				n.say(rest)
			}
			if status, code := n.hear(); status != 400 || code != "bad-request" {
				t.Errorf("HTTP %d %s", status, code)
			}
		})
	}
}

// What crypto/tls has read ahead would not be seen by who waits for the network.
func TestWhatWasReadAheadIsLookedAt(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	for name, ahead := range map[string]bool{"read ahead": true, "nothing was": false} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			p, c := s.dial(t, ln.Addr().String())
			p.cut = func(b []byte) [][]byte {
				p.hold, p.cut = ahead, nil
				return [][]byte{b}
			}
			sent := make(chan error, 1)
			go func() {
				err := c.Handshake()
				p.hold = false
				if err == nil && ahead {
					_, err = io.WriteString(c, "GET")
				}
				sent <- err
			}()
			raw, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			peer := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{s.certificate(pkixName("service"), serverAuth)}})
			if err := peer.Handshake(); err != nil {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if begun, err := server.Look(peer); begun != ahead || err != nil {
				t.Errorf("a request has begun: %v, %v, want %v", begun, err, ahead)
			}
			if _, err := io.WriteString(c, "POST"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(peer, make([]byte, len("POST"))); err != nil {
				t.Errorf("what follows cannot be read: %v", err)
			}
		})
	}
}

// A record that is no request waits for nobody's room: a silent connection that ends
// is closed at once, also where no request is let in.
func TestASilentConnectionThatEndsIsClosed(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{Queue: patience} })
	type silent struct {
		p *pieces
		c *tls.Conn
	}
	var all []silent
	for range 2 {
		p, c := s.dial(t, s.nodes)
		n := s.over(c)
		n.say(post(api.PathConfirm, "{}"))
		n.hear()
		all = append(all, silent{p, c})
	}
	s.occupy(8)
	if err := all[0].c.CloseWrite(); err != nil { // an alert
		t.Fatal(err)
	}
	if err := all[1].p.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for i, one := range all {
		if _, err := io.Copy(io.Discard, one.p.Conn); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

// A peer may change its keys while it is silent (RFC 8446 4.6.3), and ask for the
// service's to change.
func TestKeysAreChangedWhileAConnectionIsSilent(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := newScene(t, nil)
	cmd := exec.CommandContext(t.Context(), openssl, "s_client", "-connect", s.nodes, "-tls1_3")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	commands, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r, said := bufio.NewReader(out), bufio.NewReader(commands)
	until := func(r *bufio.Reader, begins string) {
		for {
			switch line, err := r.ReadString('\n'); {
			case err != nil:
				t.Fatalf("no line begins with %s: %v", begins, err)
			case strings.HasPrefix(line, begins):
				return
			}
		}
	}
	until(r, "---") // it is connected
	for range 3 {
		// k changes the client's keys, K those of both.
		for _, command := range []string{"k\n", "K\n"} {
			if _, err := io.WriteString(in, command); err != nil {
				t.Fatal(err)
			}
			until(said, "KEYUPDATE")
		}
		if _, err := io.WriteString(in, post(api.PathConfirm, "{}")); err != nil {
			t.Fatal(err)
		}
		until(r, "HTTP/1.1 400")
	}
	in.Close()
	_ = cmd.Wait() // it ends with its input
}
