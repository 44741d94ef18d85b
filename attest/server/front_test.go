package server_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
)

// node is a raw connection to the node API.
type node struct {
	*testing.T
	net.Conn
	r *bufio.Reader
}

func (s *scene) node(t *testing.T) *node {
	t.Helper()
	c, err := tls.Dial("tcp", s.nodes, &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	n := s.over(c)
	n.T = t
	return n
}

// over is a node over a connection that there is.
func (s *scene) over(c net.Conn) *node {
	s.Helper()
	s.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		s.Fatal(err)
	}
	return &node{s.T, c, bufio.NewReader(c)}
}

func (n *node) say(text string) {
	n.Helper()
	if _, err := io.WriteString(n, text); err != nil {
		n.Fatal(err)
	}
}

// hear returns the status and the code of the next answer.
func (n *node) hear() (int, string) {
	n.Helper()
	resp, err := http.ReadResponse(n.r, nil)
	if err != nil {
		n.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		n.Fatal(err)
	}
	var e api.Error
	if err := json.Unmarshal(body, &e); err != nil {
		n.Fatalf("%s: %v", body, err)
	}
	if resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Date") == "" || resp.Header.Get("Cache-Control") != "no-store" {
		n.Errorf("headers are %v", resp.Header)
	}
	return resp.StatusCode, e.Code
}

func post(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

// What is sent before the answer to the request before it is not lost, however
// it is cut into pieces.
func TestRequestsSentAheadAreAnsweredInOrder(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	first, second, third := post(api.PathConfirm, "{}"), post(api.PathChallenge, "{"), post("/nothing", "")
	whole := first + second + third
	for _, cut := range []int{len(whole), len(first), len(first) + 1, len(first) + 3, len(first) + len(second) - 1, 1} {
		n := s.node(t)
		n.say(whole[:cut])
		if cut >= len(first) {
			if status, code := n.hear(); status != 400 || code != "bad-request" {
				t.Errorf("cut at %d: first: HTTP %d %s", cut, status, code)
			}
			n.say(whole[cut:])
		} else {
			n.say(whole[cut:])
			n.hear()
		}
		if status, code := n.hear(); status != 400 || code != "bad-request" {
			t.Errorf("cut at %d: second: HTTP %d %s", cut, status, code)
		}
		if status, code := n.hear(); status != 404 || code != "not-found" {
			t.Errorf("cut at %d: third: HTTP %d %s", cut, status, code)
		}
	}
}

// A body that no handler reads is never taken for the next request.
func TestABodyThatIsNotReadEndsTheConnection(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	hidden := post(api.PathConfirm, "{}")
	n := s.node(t)
	n.say(post("/nothing", hidden))
	if status, code := n.hear(); status != 404 || code != "not-found" {
		t.Errorf("HTTP %d %s", status, code)
	}
	if err := closed(n.Conn); err != nil {
		t.Error(err)
	}
	if n.r.Buffered() > 0 {
		t.Error("the body was answered")
	}
}

// A connection without a request takes no room, one with a request does until
// it is answered or cut, and a request without room is told so.
func TestRequestsWithoutRoomAreTurnedAway(t *testing.T) {
	t.Parallel()
	g := &gauge{all: map[string]int{}}
	s := newScene(t, func(c *server.Config) { c.Meter, c.Limits = g, server.Limits{Queue: time.Millisecond} })
	for range 20 {
		n := s.node(t)
		n.say(post(api.PathConfirm, "{}"))
		n.hear()
	}
	// begin returns a node with a request that was let in and lacks its body, or the
	// status that it was refused with.
	begin := func() (*node, int) {
		n := s.node(t)
		n.say("POST /v1/confirm HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
		resp, err := http.ReadResponse(n.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 100 {
			n.Close()
		}
		return n, resp.StatusCode
	}
	var begun []*node
	for range 8 {
		n, status := begin()
		if status != 100 {
			t.Fatalf("HTTP %d", status)
		}
		begun = append(begun, n)
	}
	n := s.node(t)
	n.say(post(api.PathConfirm, "{}"))
	if status, code := n.hear(); status != 503 || code != "busy" {
		t.Fatalf("HTTP %d %s", status, code)
	}
	if g.count("limited node bodies") == 0 {
		t.Error("the meter was not told")
	}
	for i, n := range begun {
		if i%2 == 0 {
			n.Close()
			continue
		}
		n.say("{}")
		if status, code := n.hear(); status != 400 {
			t.Errorf("one with room: HTTP %d %s", status, code)
		}
	}
	// All the room is there again, once what was cut is noticed.
	for room := 0; room < 8; {
		switch _, status := begin(); status {
		case 100:
			room++
		case 503:
		default:
			t.Fatalf("HTTP %d", status)
		}
	}
}

// The time that a request waits for room is not the machine's.
func TestAChallengeDoesNotRunOutForTheWait(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{Queue: patience} })
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	seen := make(chan time.Time, 1)
	s.srv.Appraise(func(_ *attest.Evidence, ch *attest.Challenge, _ *attest.Session, _ *attest.Known, _ *attest.Policy) (*attest.Result, *server.Boot) {
		seen <- ch.Expires
		return &attest.Result{Machine: b.id, Findings: []attest.Finding{{Code: "test.refused"}}}, nil
	})
	c := s.httpClient()
	ch := s.challenge(c, b)
	s.occupy(8)
	time.AfterFunc(3*time.Second, s.vacate) // that it waits is told to nobody
	if status, _ := s.send(c, s.answer(b, ch)); status != 403 {
		t.Errorf("HTTP %d, want 403", status)
	}
	if later := (<-seen).Sub(ch.Expires); later <= 0 || later > patience {
		t.Errorf("the challenge was good for %v more", later)
	}
}

// What is no HTTP gives its room back.
func TestNonsenseGivesItsRoomBack(t *testing.T) {
	t.Parallel()
	s := newScene(t, func(c *server.Config) { c.Limits = server.Limits{Queue: patience} })
	for range 40 {
		n := s.node(t)
		n.say("\x00\x01 nonsense\r\n\r\n")
		if err := closed(n.Conn); err != nil {
			t.Fatal(err)
		}
	}
	n := s.node(t)
	n.say(post(api.PathConfirm, "{}"))
	if status, _ := n.hear(); status != 400 {
		t.Errorf("HTTP %d, want 400", status)
	}
}

// Handshakes that do not end hold up those of their own address only.
func TestHandshakesThatDoNotEnd(t *testing.T) {
	t.Parallel()
	s := newScene(t, nil)
	for range 100 {
		c, err := net.Dial("tcp", s.nodes)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, "\x16\x03\x01\x02\x00\x01"); err != nil {
			t.Fatal(err)
		}
	}
	d := tls.Dialer{
		NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}},
		Config:    &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1"},
	}
	began := time.Now()
	c, err := d.DialContext(t.Context(), "tcp", s.nodes)
	if err != nil {
		t.Fatalf("after %v: %v", time.Since(began), err)
	}
	c.Close()
}

// curl, with one connection for all: Expect: 100-continue, a body in chunks,
// HTTP/1.0.
func TestCurlIsServed(t *testing.T) {
	t.Parallel()
	curl, err := exec.LookPath("curl")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := newScene(t, nil)
	b := newBox(t, s.tpmCA)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	body := string(mustJSON(t, &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic}))
	url := "https://" + s.nodes + api.PathChallenge
	one := func(args ...string) []string {
		return append([]string{"--silent", "--show-error", "--cacert", ca, "--output", "-", "--write-out", "\n%{http_code} %{num_connects}\n", "--data-binary", body}, append(args, url)...)
	}
	args := append(one("--header", "Expect: 100-continue"), "--next")
	args = append(append(args, one("--header", "Transfer-Encoding: chunked")...), "--next")
	args = append(append(args, one()...), "--next")
	args = append(args, one("--http1.0")...)
	out, err := exec.CommandContext(t.Context(), curl, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "200 ") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	if fmt.Sprint(got) != "[200 1 200 0 200 0 200 0]" {
		t.Errorf("statuses and new connections: %q\n%s", got, out)
	}
}
