package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/server"
)

const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyV2 is a header of version 2, made here by section 2.2 of the protocol and
// not by the library that reads it.
func proxyV2(command, family byte, block ...string) string {
	b := strings.Join(block, "")
	return proxySignature + string([]byte{0x20 | command, family}) + string(binary.BigEndian.AppendUint16(nil, uint16(len(b)))) + b
}

// proxyTCP is a header of version 2 for a TCP connection.
func proxyTCP(from, to string, tlvs ...string) string {
	f, t := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	family := byte(0x11)
	if f.Addr().Is6() {
		family = 0x21
	}
	block := slices.Concat(f.Addr().AsSlice(), t.Addr().AsSlice())
	block = binary.BigEndian.AppendUint16(block, f.Port())
	block = binary.BigEndian.AppendUint16(block, t.Port())
	return proxyV2(1, family, append([]string{string(block)}, tlvs...)...)
}

func tlv(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value
}

// proxyHeaders are headers with the source that they name, "own" for the proxy
// itself, and "" if they are none.
func proxyHeaders() map[string]struct{ header, from string } {
	v4 := proxyTCP("192.0.2.7:4711", "198.51.100.1:8443")
	// The last two bytes of the prefix are the length, 12.
	short := strings.Replace(v4, "\x11\x00\x0c", "\x11\x00\x0b", 1)
	return map[string]struct{ header, from string }{
		"version 1, IPv4":                   {"PROXY TCP4 192.0.2.7 198.51.100.1 4711 8443\r\n", "192.0.2.7:4711"},
		"version 1, IPv6":                   {"PROXY TCP6 2001:db8::7 2001:db8::1 4711 8443\r\n", "[2001:db8::7]:4711"},
		"version 1, unknown":                {"PROXY UNKNOWN\r\n", "own"},
		"version 1, unknown, at its length": {"PROXY UNKNOWN " + strings.Repeat("f", 91) + "\r\n", "own"},
		"version 1, too long":               {"PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r\n", ""},
		"version 1, no end":                 {"PROXY TCP4 192.0.2.7 198.51.100.1 4711 8443", ""},
		"version 1, LF alone":               {"PROXY TCP4 192.0.2.7 198.51.100.1 4711 8443\n", ""},
		"version 1, two spaces":             {"PROXY TCP4  192.0.2.7 198.51.100.1 4711 8443\r\n", ""},
		"version 1, a field more":           {"PROXY TCP4 192.0.2.7 198.51.100.1 4711 8443 x\r\n", ""},
		"version 1, octal":                  {"PROXY TCP4 192.0.2.07 198.51.100.1 4711 8443\r\n", ""},
		"version 1, port with a zero":       {"PROXY TCP4 192.0.2.7 198.51.100.1 04711 8443\r\n", ""},
		"version 1, port too high":          {"PROXY TCP4 192.0.2.7 198.51.100.1 65536 8443\r\n", ""},
		"version 1, the other family":       {"PROXY TCP4 2001:db8::7 2001:db8::1 4711 8443\r\n", ""},
		"version 1, a zone":                 {"PROXY TCP6 fe80::1%eth0 2001:db8::1 4711 8443\r\n", ""},
		"version 2, IPv4":                   {v4, "192.0.2.7:4711"},
		"version 2, IPv6":                   {proxyTCP("[2001:db8::7]:4711", "[2001:db8::1]:8443"), "[2001:db8::7]:4711"},
		"version 2, IPv4 in IPv6":           {proxyTCP("[::ffff:192.0.2.7]:4711", "[::ffff:192.0.2.1]:8443"), "192.0.2.7:4711"},
		"version 2, TLVs":                   {proxyTCP("192.0.2.7:4711", "198.51.100.1:8443", tlv(5, "unique"), tlv(0xea, "\x01vpce-08d2bf15fac5001c9"), tlv(4, "")), "192.0.2.7:4711"},
		"version 2, a TLV that is none":     {proxyTCP("192.0.2.7:4711", "198.51.100.1:8443", "\x05\xff\xff"), "192.0.2.7:4711"},
		"version 2, as long as may be":      {proxyTCP("192.0.2.7:4711", "198.51.100.1:8443", strings.Repeat("x", server.MaxProxyHeader-16-12)), "192.0.2.7:4711"},
		"version 2, a byte more":            {proxyTCP("192.0.2.7:4711", "198.51.100.1:8443", strings.Repeat("x", server.MaxProxyHeader-16-12+1)), ""},
		"version 2, as long as can be":      {proxyTCP("192.0.2.7:4711", "198.51.100.1:8443", strings.Repeat("x", 65535-12)), ""},
		"version 2, LOCAL":                  {proxyV2(0, 0), "own"},
		"version 2, LOCAL with addresses":   {proxyV2(0, 0x11, strings.Repeat("\x01", 12)), "own"},
		"version 2, LOCAL with a block":     {proxyV2(0, 0, strings.Repeat("\x01", 40)), "own"},
		"version 2, LOCAL, family alone":    {proxyV2(0, 0x21), "own"},
		"version 2, PROXY of UNSPEC":        {proxyV2(1, 0), ""},
		"version 2, another command":        {proxyV2(2, 0x11, strings.Repeat("\x01", 12)), ""},
		"version 2, UDP":                    {proxyV2(1, 0x12, strings.Repeat("\x01", 12)), ""},
		"version 2, UNIX":                   {proxyV2(1, 0x31, strings.Repeat("x", 216)), ""},
		"version 2, another family":         {proxyV2(1, 0x41, strings.Repeat("\x01", 12)), ""},
		"version 2, another transport":      {proxyV2(1, 0x13, strings.Repeat("\x01", 12)), ""},
		"version 2, too short":              {short, ""},
		"version 2, cut":                    {v4[:20], ""},
		"version 3":                         {strings.Replace(v4, "\x21\x11", "\x31\x11", 1), ""},
		"a TLS handshake":                   {"\x16\x03\x01\x02\x00\x01", ""},
		"HTTP":                              {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ""},
	}
}

func TestProxyHeadersAreReadStrictly(t *testing.T) {
	t.Parallel()
	for name, tt := range proxyHeaders() {
		for _, after := range []string{"", "\x16\x03\x01" + strings.Repeat("hello", 200)} {
			if after != "" && (strings.HasSuffix(name, "no end") || strings.HasSuffix(name, "cut")) {
				continue
			}
			r := strings.NewReader(tt.header + after)
			from, ahead, err := server.ReadProxyHeader(r)
			got := ""
			switch {
			case err != nil:
			case from == nil:
				got = "own"
			default:
				ap := netip.MustParseAddrPort(from.String())
				got = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
			}
			if got != tt.from {
				t.Errorf("%s: got %q, want %q: %v", name, got, tt.from, err)
			}
			if rest, _ := io.ReadAll(r); err == nil && string(ahead)+string(rest) != after {
				t.Errorf("%s: what follows is not what was sent", name)
			}
		}
	}
	if _, _, err := server.ReadProxyHeader(strings.NewReader("")); err != io.EOF {
		t.Errorf("nothing at all: %v, want EOF", err)
	}
}

// A header of version 2 may come in pieces.
func TestAProxyHeaderInPiecesIsRead(t *testing.T) {
	t.Parallel()
	whole := proxyTCP("192.0.2.7:4711", "198.51.100.1:8443", tlv(5, strings.Repeat("x", 300))) + "after"
	r := io.Reader(oneByte{strings.NewReader(whole)})
	from, ahead, err := server.ReadProxyHeader(r)
	rest, _ := io.ReadAll(r)
	if err != nil || from.String() != "192.0.2.7:4711" || string(ahead)+string(rest) != "after" {
		t.Errorf("from %v, then %q%q: %v", from, ahead, rest, err)
	}
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

// FuzzProxyHeader: whatever a proxy sends is read within its bound, without a
// panic, and nothing of what follows is lost.
func FuzzProxyHeader(f *testing.F) {
	for _, tt := range proxyHeaders() {
		f.Add([]byte(tt.header+"\x16\x03\x01"), true)
		f.Add([]byte(tt.header), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		data := bytes.NewReader(b)
		r := io.Reader(data)
		if !whole {
			r = oneByte{data}
		}
		from, ahead, err := server.ReadProxyHeader(r)
		used := len(b) - data.Len() - len(ahead)
		if err != nil {
			if from != nil || ahead != nil {
				t.Fatalf("an error with %v and %d bytes", from, len(ahead))
			}
			return
		}
		if used < 15 || used > server.MaxProxyHeader {
			t.Fatalf("the header has %d bytes", used)
		}
		if !bytes.Equal(ahead, b[used:used+len(ahead)]) {
			t.Fatal("what follows is not what was sent")
		}
		if from == nil {
			return
		}
		if _, err := netip.ParseAddrPort(from.String()); err != nil {
			t.Fatalf("the source is %q: %v", from, err)
		}
		if key := server.AddressKey(from.String()); key == "unknown" || key == "" {
			t.Fatalf("source %s is counted by %q", from, key)
		}
	})
}

// proxied starts a service whose connections on both APIs come from proxies.
func proxied(t *testing.T, g *gauge, change func(*server.Config)) *scene {
	t.Helper()
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return newScene(t, func(c *server.Config) {
		c.NodeProxies, c.OperatorProxies, c.Meter = loopback, loopback, g
		if change != nil {
			change(c)
		}
	})
}

// overProxy is a node whose connection begins with header.
func (s *scene) overProxy(t *testing.T, header string) *node {
	t.Helper()
	raw, err := saying(header)(t.Context(), "tcp", s.nodes)
	if err != nil {
		t.Fatal(err)
	}
	return s.over(tls.Client(raw, &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1"}))
}

// saying dials, and says header first.
func saying(header string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, to string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, to)
		if err != nil {
			return nil, err
		}
		_, err = io.WriteString(c, header)
		return c, err
	}
}

func v1(from string) string { return "PROXY TCP4 " + from + " 198.51.100.1 4711 8443\r\n" }

// What a proxy says is what is counted and logged: machines behind it do not
// share their limits.
func TestMachinesBehindAProxyAreTheirOwnPeers(t *testing.T) {
	t.Parallel()
	g := &gauge{all: map[string]int{}}
	s := proxied(t, g, func(c *server.Config) { c.Limits = server.Limits{PerAddress: time.Hour, AddressBurst: 2} })
	attempt := func(b *box, guid, header string) error {
		t.Helper()
		c := &client.Client{URL: "https://" + s.nodes, CA: s.pool(), ReleaseKey: &s.release.PublicKey, Dial: saying(header)}
		_, err := s.boots(c, b, guid)
		return err
	}
	for i, header := range []string{v1("192.0.2.7"), proxyTCP("192.0.2.8:4711", "198.51.100.1:8443", tlv(4, "...")), proxyTCP("[2001:db8::7]:4711", "[2001:db8::1]:8443")} {
		b, guid := s.another(i)
		if err := attempt(b, guid, header); err != nil {
			t.Errorf("%q: %v", header, err)
		}
	}
	b, guid := s.another(9)
	var busy *client.ServiceError
	if err := attempt(b, guid, v1("192.0.2.7")); !errors.As(err, &busy) || busy.Status != http.StatusTooManyRequests {
		t.Errorf("one that asked twice: %v", err)
	}
	var from []string
	for e, err := range s.memory.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindVerdict {
			var v audit.Verdict
			if err := json.Unmarshal(e.Data, &v); err != nil {
				t.Fatal(err)
			}
			from = append(from, v.Address)
		}
	}
	if got := fmt.Sprint(from); got != "[192.0.2.7 192.0.2.8 2001:db8::7]" {
		t.Errorf("the log has %s", got)
	}
}

// The proxy's own connections are served, and counted as its own.
func TestAProxysOwnConnectionIsServed(t *testing.T) {
	t.Parallel()
	s := proxied(t, &gauge{all: map[string]int{}}, nil)
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	c := &client.Client{URL: "https://" + s.nodes, CA: s.pool(), ReleaseKey: &s.release.PublicKey, Dial: saying(proxyV2(0, 0))}
	if _, err := s.boots(c, b, disk); err != nil {
		t.Error(err)
	}
}

func TestWithoutItsHeaderAProxysConnectionIsClosed(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]string{
		"TLS at once":             "\x16\x03\x01\x00\x05hello",
		"a header that is none":   "PROXY TCP4 nobody nowhere 1 2\r\n",
		"part of a header":        proxySignature + "\x21",
		"a header without an end": proxyTCP("192.0.2.7:4711", "198.51.100.1:8443", strings.Repeat("x", 9000)),
		"two headers":             v1("192.0.2.7") + v1("192.0.2.8"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &gauge{all: map[string]int{}}
			s := proxied(t, g, nil)
			for api, to := range map[string]string{"node": s.nodes, "operator": s.operators} {
				c, err := saying(header)(t.Context(), "tcp", to)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := closed(c); err != nil {
					t.Error(err)
				}
				want := 1
				if name == "two headers" {
					want = 0 // the second is no TLS
				}
				if n := g.count("limited " + api + " proxy-header"); n != want {
					t.Errorf("%s: %d are counted, want %d", api, n, want)
				}
			}
			if told := strings.Count(s.log.String(), "begins without a header of the PROXY protocol"); told == 0 && name != "two headers" {
				t.Error("the log does not say why")
			}
		})
	}
}

// A load balancer that looks whether the port is open is told nothing and is in
// nobody's log; one that says nothing does not stay.
func TestASilentProxyIsCutOff(t *testing.T) {
	t.Parallel()
	g := &gauge{all: map[string]int{}}
	s := proxied(t, g, nil)
	knock, err := net.Dial("tcp", s.nodes)
	if err != nil {
		t.Fatal(err)
	}
	knock.Close()
	silent, err := net.Dial("tcp", s.nodes)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if err := closed(silent); err != nil {
		t.Error(err)
	}
	if n := g.count("limited node proxy-header"); n != 1 {
		t.Errorf("%d are counted, want the silent one", n)
	}
}

// Who is no proxy cannot say that it is somebody else.
func TestAHeaderFromElsewhereIsRefused(t *testing.T) {
	t.Parallel()
	for _, header := range []string{v1("192.0.2.7"), proxyTCP("192.0.2.7:4711", "198.51.100.1:8443")} {
		s := newScene(t, func(c *server.Config) { c.NodeProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")} })
		c := &client.Client{URL: "https://" + s.nodes, CA: s.pool(), ReleaseKey: &s.release.PublicKey, Dial: saying(header)}
		if _, err := c.Connect(t.Context()); err == nil {
			t.Errorf("%q was taken", header)
		}
		// The service learns of it before it closes the connection.
		if !strings.Contains(s.log.String(), "is not a trusted proxy's") {
			t.Error("the log does not say what to do")
		}
		b := newBox(t, s.tpmCA)
		s.enrol(b)
		if status, _ := s.attest(b); status != 200 {
			t.Errorf("without a header: HTTP %d", status)
		}
	}
}

// The limit of connections of one address is that of the peer.
func TestConnectionsBehindAProxyAreBoundedByPeer(t *testing.T) {
	t.Parallel()
	g := &gauge{all: map[string]int{}}
	s := proxied(t, g, func(c *server.Config) { c.Limits = server.Limits{Connections: 100, AddressConnections: 2} })
	for i := range 5 {
		n := s.overProxy(t, v1(fmt.Sprintf("192.0.2.%d", i)))
		n.say(post(api.PathConfirm, "{}"))
		n.hear()
	}
	var last net.Conn
	for range 3 {
		c, err := saying(v1("192.0.2.99"))(t.Context(), "tcp", s.nodes)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		last = c
	}
	// Which of the three is refused is open; the others are closed for their
	// silence.
	if err := closed(last); err != nil {
		t.Error(err)
	}
	if n := g.count("limited node address-connections"); n != 1 {
		t.Errorf("%d were refused, want 1", n)
	}
}

// An operator behind a proxy is known by the address in the log of requests.
func TestAnOperatorBehindAProxyIsServed(t *testing.T) {
	t.Parallel()
	s := proxied(t, &gauge{all: map[string]int{}}, nil)
	c := s.operator()
	c.Transport.(*http.Transport).DialContext = saying(v1("192.0.2.77"))
	if status := s.call(c, "GET", "https://"+s.operators+api.PathMachines, nil, nil); status != 200 {
		t.Errorf("HTTP %d", status)
	}
	if !strings.Contains(s.log.String(), "peer=192.0.2.77") {
		t.Error("the log has another peer")
	}
}

// HAProxy's headers of both versions, with what it puts into them, and its checks.
func TestHAProxyIsServed(t *testing.T) {
	t.Parallel()
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for i, send := range []string{
		"send-proxy",
		"send-proxy-v2",
		"send-proxy-v2 proxy-v2-options crc32c,unique-id",
	} {
		t.Run(send, func(t *testing.T) {
			t.Parallel()
			g := &gauge{all: map[string]int{}}
			s := proxied(t, g, func(c *server.Config) { c.Limits = server.Limits{PerAddress: time.Hour, AddressBurst: 2} })
			front := s.haproxy(haproxy, send)
			for j, from := range []string{"127.0.0.21", "127.0.0.22"} {
				b, guid := s.another(10*i + j)
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
				c := &client.Client{URL: "https://" + front, CA: s.pool(), ReleaseKey: &s.release.PublicKey, Dial: d.DialContext}
				if _, err := s.boots(c, b, guid); err != nil {
					t.Errorf("from %s: %v", from, err)
				}
				if !strings.Contains(s.log.String(), "peer="+from) {
					t.Errorf("the log has another peer than %s", from)
				}
			}
			if n := g.count("limited node proxy-header"); n != 0 {
				t.Errorf("%d connections were refused", n)
			}
		})
	}
}

// haproxy runs HAProxy before the node API until the test ends, once it has
// found the service by its checks, and returns its address.
func (s *scene) haproxy(program, send string) string {
	s.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	front := ln.Addr().String()
	ln.Close()
	config := filepath.Join(s.TempDir(), "haproxy.cfg")
	text := fmt.Sprintf(`defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
listen nodes
  bind %s
  unique-id-format %%{+X}o%%ci:%%cp
  server s1 %s %s check check-send-proxy inter 100ms
`, front, s.nodes, send)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
	if out, err := exec.CommandContext(s.Context(), program, "-c", "-f", config).CombinedOutput(); err != nil {
		s.Fatalf("%v: %s", err, out)
	}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "-db", "-f", config)
	out := new(logBuffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		stop()
		_ = cmd.Wait() // it was killed
		if s.Failed() {
			s.Log(out)
		}
	})
	for s.Context().Err() == nil {
		c, err := net.Dial("tcp", front)
		if err == nil {
			c.Close()
			return front
		}
		time.Sleep(10 * time.Millisecond) // HAProxy tells nobody that it listens
	}
	return front
}

// curl says version 1.
func TestCurlWithAProxyHeaderIsServed(t *testing.T) {
	t.Parallel()
	curl, err := exec.LookPath("curl")
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := proxied(t, &gauge{all: map[string]int{}}, nil)
	b := newBox(t, s.tpmCA)
	body := string(mustJSON(t, &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic}))
	out, err := exec.CommandContext(t.Context(), curl, "--silent", "--show-error", "--insecure", "--haproxy-protocol", "--output", "-",
		"--write-out", "\n%{http_code}", "--data-binary", body, "https://"+s.nodes+api.PathChallenge).CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "\n200") {
		t.Errorf("%v: %s", err, out)
	}
}
